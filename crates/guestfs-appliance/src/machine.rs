//! Starts whole machines with firmware, as a converted guest will meet them: PCI, disks and NICs, a serial
//! console, no way out.

use std::io::{Read, Write};
use std::path::Path;
use std::process::ChildStdin;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use guestfs::machine::{Machine, MachineRunner, MachineSpec, UEFI};
use guestfs::{Error, Result};

use crate::Appliance;
use crate::monitor::{Monitor, failure};
use crate::qemu::{self, Builder};

/// Pieces of console output that wait for a reader; then the machine waits.
const QUEUE: usize = 256;

/// What the two channels of a PC's IDE take.
const IDE_DISKS: usize = 4;

impl MachineRunner for Appliance {
    fn start(&self, spec: &MachineSpec) -> Result<Box<dyn Machine>> {
        let mut builder = Builder::new();
        // TCG runs several processors on several threads only where that is no slower than one.
        // Without graphics SeaBIOS speaks on the serial port, so that a stall there shows.
        let chipset = if spec.emulated { "pc" } else { "q35" };
        builder.args(["-M".into(), format!("{chipset},graphics=off"), "-rtc".into(), "base=utc".into()]);
        builder.args(["-m".into(), spec.memory_mib.to_string(), "-smp".into(), spec.vcpus.max(1).to_string()]);
        if spec.uefi {
            add_uefi(&mut builder)?;
        }
        // Disks and NICs in fixed places, in order: the firmware starts the first disk.
        for (number, image) in spec.disks.iter().enumerate() {
            let node = builder.disk(image.clone())?;
            let boot = if number == 0 { ",bootindex=1" } else { "" };
            let device = match spec.emulated {
                // The others appear with Xen's drivers.
                true if number >= IDE_DISKS => continue,
                true => format!("ide-hd,bus=ide.{},unit={}", number / 2, number % 2),
                false => "virtio-blk-pci".into(),
            };
            builder.args(["-device".into(), format!("{device},drive={node}{boot}")]);
        }
        for (number, mac) in spec.macs.iter().enumerate() {
            let hex = |part: &str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
            if mac.split(':').count() != 6 || !mac.split(':').all(hex) {
                return Err(Error::Invalid(format!("{mac} is not the address of a network card")));
            }
            builder.args(["-netdev".into(), format!("user,id=net{number},restrict=on")]);
            // Without its boot ROM: nothing is ever started over the network.
            let model = if spec.emulated { "rtl8139" } else { "virtio-net-pci" };
            builder.args(["-device".into(), format!("{model},netdev=net{number},mac={mac},romfile=")]);
        }
        let (monitor, stdin, mut stdout) = builder.start_with_console()?;
        let (sender, output) = sync_channel(QUEUE);
        let follower = move || {
            let mut buf = [0; 4096];
            while let Ok(n @ 1..) = stdout.read(&mut buf) {
                if sender.send(buf[..n].to_vec()).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("console".into()).spawn(follower).map_err(|e| failure(format!("cannot start a thread: {e}")))?;
        Ok(Box::new(Running { monitor, stdin, output }))
    }
}

/// The code and the template that are here.
pub fn firmware() -> Option<(&'static str, &'static str)> {
    UEFI.into_iter().find(|(code, variables)| Path::new(code).is_file() && Path::new(variables).is_file())
}

/// UEFI from two flash chips; the second holds the variables and is a copy that goes with the machine.
fn add_uefi(builder: &mut Builder) -> Result<()> {
    let (code, template) = firmware()
        .ok_or_else(|| Error::Missing("the guest starts by UEFI, whose firmware is not here: install the package ovmf".into()))?;
    let variables = std::fs::read(template).map_err(|e| Error::Invalid(format!("{template}: {e}")))?;
    let variables = builder.file(&variables)?;
    let code = qemu::quoted(Path::new(code));
    builder.args(["-drive".into(), format!("if=pflash,unit=0,format=raw,readonly=on,file={code}")]);
    builder.args(["-drive".into(), format!("if=pflash,unit=1,format=raw,file={}", variables.display())]);
    Ok(())
}

struct Running {
    monitor: Monitor,
    stdin: ChildStdin,
    output: Receiver<Vec<u8>>,
}

impl Machine for Running {
    fn read_console(&mut self, timeout: Duration) -> Result<Vec<u8>> {
        match self.output.recv_timeout(timeout) {
            Ok(mut text) => {
                while let Ok(more) = self.output.try_recv() {
                    text.extend(more);
                }
                Ok(text)
            }
            Err(RecvTimeoutError::Timeout) => Ok(Vec::new()),
            Err(RecvTimeoutError::Disconnected) => Err(self.monitor.error("the machine ended")),
        }
    }

    fn write_console(&mut self, keys: &[u8]) -> Result<()> {
        let written = self.stdin.write_all(keys).and_then(|()| self.stdin.flush());
        written.map_err(|e| self.monitor.error(&format!("cannot type on the machine's console: {e}")))
    }
}
