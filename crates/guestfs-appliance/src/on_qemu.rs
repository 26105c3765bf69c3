//! The appliance in QEMU, by its own translator: our kernel in a microvm without a BIOS, PCI or ACPI; or a distribution's
//! kernel in a PC.

use std::os::unix::net::UnixListener;
use std::path::Path;

use guestfs::{Error, Result};
use imgcore::nbd::Content;

use crate::appliance::{Started, Wanted};
use crate::distro_kernel;
use crate::monitor::failure;
use crate::protocol::PORT_NAME;
use crate::qemu::{self, Builder};
use crate::sys;

/// A microvm has eight places for devices, and one is the agent's.
const MAX_VIRTIO_BLK: usize = 7;
/// The PC's bridges and the agent's port take the places before this one.
const FIRST_PCI_SLOT: usize = 3;
/// Each of the 32 places has eight functions.
const MAX_PCI_DISKS: usize = (32 - FIRST_PCI_SLOT) * 8;

/// Starts a machine and waits until it holds the agent's port.
pub fn start(wanted: &Wanted) -> Result<Started> {
    let pci = wanted.files.modules.is_some();
    if pci && wanted.disks.len() > MAX_PCI_DISKS {
        let what = format!("{} disks: the appliance takes {MAX_PCI_DISKS} at most with a distribution's kernel", wanted.disks.len());
        return Err(Error::Invalid(what));
    }
    let scsi = !pci && wanted.disks.len() > MAX_VIRTIO_BLK;
    let mut builder = Builder::new()?;
    machine(&mut builder, wanted)?;
    let bus = if pci { "pci" } else { "device" };
    let port = builder.dir().join("agent.sock");
    let listener = UnixListener::bind(&port).map_err(|e| failure(format!("{}: {e}", port.display())))?;
    builder.args(["-chardev".into(), format!("socket,id=agent,path={}", qemu::quoted(&port))]);
    builder.args(["-device".into(), format!("virtio-serial-{bus},max_ports=2")]);
    builder.args(["-device".into(), format!("virtserialport,chardev=agent,name={PORT_NAME}")]);
    if scsi {
        builder.args(["-device", "virtio-scsi-device,id=scsi"]);
    }
    for (number, image) in wanted.disks.iter().enumerate() {
        let node = builder.disk(Content::Writable(image.clone()))?;
        let device = if scsi {
            format!("scsi-hd,bus=scsi.0,channel=0,scsi-id={number},lun=0,drive={node}")
        } else if pci {
            // The kernel names disks in this order. Those of an adapter it would name as their probes happen to end.
            let (slot, function) = (FIRST_PCI_SLOT + number / 8, number % 8);
            format!("virtio-blk-pci,drive={node},disable-legacy=on,num-queues=1,multifunction=on,addr={slot:#x}.{function}")
        } else {
            format!("virtio-blk-device,drive={node}")
        };
        builder.args(["-device", &device]);
    }
    let mut monitor = builder.start()?;
    let port = monitor.accept(&listener, wanted.limits.boot)?;
    Ok(Started { monitor, port, scsi })
}

/// Board, processor, memory, kernel.
fn machine(builder: &mut Builder, wanted: &Wanted) -> Result<()> {
    let files = &wanted.files;
    let khz = sys::tsc_khz();
    // Each word saves time: no measuring of clocks, no timers and devices that nobody uses, a reset that is
    // QEMU's end, and a panic that is one, too.
    let append = format!(
        "console=ttyS0 quiet panic=-1 reboot=t tsc_early_khz={khz} no_timer_check nolapic_timer tsc=reliable random.trust_cpu=on nbd.nbds_max=0 \
         loop.max_loop=0"
    );
    let memory = wanted.memory_mib.to_string();
    let machine = if files.modules.is_some() { "pc,graphics=off,usb=off" } else { "microvm,acpi=off,x-option-roms=off" };
    builder.args(["-M", machine, "-accel", "tcg", "-cpu", "max", "-m", &memory]);
    let (mut kernel, mut initramfs) = (files.kernel.clone(), files.initramfs.clone());
    match &files.modules {
        None => {
            builder.args(["-global", "virtio-mmio.force-legacy=false"]);
        }
        Some(modules) => {
            initramfs = builder.dir().join("initramfs.cpio");
            let failed = |path: &Path, e| failure(format!("{}: {e}", path.display()));
            let mut both = std::fs::read(&files.initramfs).map_err(|e| failed(&files.initramfs, e))?;
            both.extend(distro_kernel::pack(modules)?);
            std::fs::write(&initramfs, both).map_err(|e| failed(&initramfs, e))?;
            if let Some(unpacked) = distro_kernel::unpacked(&files.kernel)? {
                kernel = builder.dir().join("vmlinux");
                std::fs::write(&kernel, unpacked).map_err(|e| failed(&kernel, e))?;
            }
            // The microvm's firmware, which starts a kernel and nothing else.
            builder.args(["-bios", "qboot.rom"]);
        }
    }
    builder.args([std::ffi::OsStr::new("-kernel"), kernel.as_os_str(), "-initrd".as_ref(), initramfs.as_os_str()]);
    builder.args(["-append", append.as_str()]);
    Ok(())
}
