//! The appliance in QEMU, by its own translator: our kernel in a microvm without a BIOS, PCI or ACPI; or a distribution's
//! kernel in a PC.

pub mod saved;

use std::ffi::OsStr;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use guestfs::{Error, Result};
use imgcore::ImageMut;

use crate::appliance::{Started, Wanted};
use crate::distro_kernel;
use crate::monitor::failure;
use crate::protocol::PORT_NAME;
use crate::qemu::Builder;
use crate::sys;

/// A microvm has eight places for devices, and the first one is the agent's.
const PLACES: usize = 8;
const MAX_VIRTIO_BLK: usize = PLACES - 1;
/// The PC's bridges and the agent's port take the places before this one.
const FIRST_PCI_SLOT: usize = 3;
/// Each of the 32 places has eight functions.
const MAX_PCI_DISKS: usize = (32 - FIRST_PCI_SLOT) * 8;

/// The board. It names its places to the kernel only as far as they are taken: we name them all.
const MICROVM: &str = "microvm,acpi=off,x-option-roms=off,auto-kernel-cmdline=off";
const PORT_PLACE: &str = "device,bus=virtio-mmio-bus.0";
/// Where QEMU's hw/i386/microvm.h has its places: the first one's address, their size, and the first one's interrupt.
const PLACES_BASE: usize = 0xfeb0_0000;
const PLACE_SIZE: usize = 512;
const PLACES_IRQ: usize = 5;

/// Boots a machine.
pub fn start(wanted: &Wanted) -> Result<Started> {
    let pci = wanted.files.modules.is_some();
    if pci && wanted.disks.len() > MAX_PCI_DISKS {
        let what = format!("{} disks: the appliance takes {MAX_PCI_DISKS} at most with a distribution's kernel", wanted.disks.len());
        return Err(Error::Invalid(what));
    }
    let scsi = !pci && wanted.disks.len() > MAX_VIRTIO_BLK;
    let mut builder = Builder::new();
    builder.args(["-M", if pci { "pc,graphics=off,usb=off" } else { MICROVM }, "-m", &wanted.memory_mib.to_string()]);
    add_kernel(&mut builder, wanted)?;
    let port = add_port(&mut builder, if pci { "pci" } else { PORT_PLACE })?;
    if scsi {
        builder.args(["-device".into(), format!("{},id=scsi", in_place("virtio-scsi", 1))]);
    }
    for (number, image) in wanted.disks.iter().enumerate() {
        let device = if scsi {
            format!("scsi-hd,bus=scsi.0,channel=0,scsi-id={number},lun=0")
        } else if pci {
            // The kernel names disks in this order. Those of an adapter it would name as their probes happen to end.
            let (slot, function) = (FIRST_PCI_SLOT + number / 8, number % 8);
            format!("virtio-blk-pci,disable-legacy=on,num-queues=1,multifunction=on,addr={slot:#x}.{function}")
        } else {
            in_place("virtio-blk", number + 1)
        };
        add_disk(&mut builder, image, &device)?;
    }
    Ok(Started { monitor: builder.start()?, port, scsi, late_disks: 0 })
}

/// A device in one of the microvm's places.
fn in_place(device: &str, number: usize) -> String {
    format!("{device}-device,bus=virtio-mmio-bus.{number}")
}

/// The agent's port, on an adapter for the bus `bus`.
fn add_port(builder: &mut Builder, bus: &str) -> Result<UnixStream> {
    let port = builder.socket("agent")?;
    builder.args(["-device".into(), format!("virtio-serial-{bus},max_ports=2")]);
    builder.args(["-device".into(), format!("virtserialport,chardev=agent,name={PORT_NAME}")]);
    Ok(port)
}

/// A disk on a device.
fn add_disk(builder: &mut Builder, image: &Arc<dyn ImageMut>, device: &str) -> Result<()> {
    let node = builder.disk(image.clone())?;
    builder.args(["-device".into(), format!("{device},drive={node}")]);
    Ok(())
}

/// What the kernel is told. Each word saves time: no measuring of clocks, no timers and devices that nobody uses, a
/// reset that is QEMU's end, and a panic that is one, too.
fn command_line(tsc_khz: u64) -> String {
    let mut line = format!(
        "console=ttyS0 quiet panic=-1 reboot=t tsc_early_khz={tsc_khz} no_timer_check nolapic_timer tsc=reliable random.trust_cpu=on \
         nbd.nbds_max=0 loop.max_loop=0"
    );
    for number in 0..PLACES {
        line += &format!(" virtio_mmio.device={PLACE_SIZE}@{:#x}:{}", PLACES_BASE + number * PLACE_SIZE, PLACES_IRQ + number);
    }
    line
}

/// Kernel and initramfs.
fn add_kernel(builder: &mut Builder, wanted: &Wanted) -> Result<()> {
    let files = &wanted.files;
    let (mut kernel, mut initramfs) = (files.kernel.clone(), files.initramfs.clone());
    if let Some(modules) = &files.modules {
        let mut both = std::fs::read(&initramfs).map_err(|e| failure(format!("{}: {e}", initramfs.display())))?;
        both.extend(distro_kernel::pack(modules)?);
        initramfs = builder.file(&both)?;
        if let Some(unpacked) = distro_kernel::unpacked(&kernel)? {
            kernel = builder.file(&unpacked)?;
        }
        // The microvm's firmware, which starts a kernel and nothing else.
        builder.args(["-bios", "qboot.rom"]);
    }
    builder.args([OsStr::new("-kernel"), kernel.as_os_str(), "-initrd".as_ref(), initramfs.as_os_str()]);
    builder.args(["-append", &command_line(sys::tsc_khz())]);
    Ok(())
}
