//! Boots the appliance: our kernel and agent in QEMU's microvm, without a BIOS, PCI or ACPI; or a distribution's
//! kernel in a PC.

use std::io::Read;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use guestfs::engine::{Disk, Engine, Session};
use guestfs::{Error, Result};
use imgcore::nbd::Content;
use imgcore::{ImageMut, Overlay};

use crate::connection::{Connection, Limits};
use crate::distro_kernel;
use crate::locate::{self, Files};
use crate::protocol::{PORT_NAME, Request, VERSION, WireTime};
use crate::qemu::{self, Builder};
use crate::session::ApplianceSession;
use crate::sys;

/// A microvm has eight places for devices, and one is the agent's.
const MAX_VIRTIO_BLK: usize = 7;
/// The PC's bridges and the agent's port take the places before this one.
const FIRST_PCI_SLOT: usize = 3;
/// Each of the 32 places has eight functions.
const MAX_PCI_DISKS: usize = (32 - FIRST_PCI_SLOT) * 8;
/// Targets that the SCSI adapter is given at most.
const MAX_DISKS: usize = 255;

/// Starts appliances. It holds no state between them.
#[derive(Clone, Debug)]
pub struct Appliance {
    /// Memory in MiB. What is not used costs nothing, neither time nor the host's memory.
    pub memory_mib: u64,
    /// How long the host waits.
    pub limits: Limits,
    /// The kernel and the initramfs; looked for when this is `None`.
    pub files: Option<Files>,
}

impl Default for Appliance {
    fn default() -> Self {
        Appliance { memory_mib: 1024, limits: Limits::default(), files: None }
    }
}

impl Appliance {
    /// One with the usual settings.
    pub fn new() -> Self {
        Self::default()
    }

    /// How appliances run here, and why so, in words for `-v`.
    pub fn describe(&self) -> String {
        let how = "QEMU with its own translator (TCG): this version does not use KVM";
        match self.files() {
            Ok(Files { kernel, modules: Some(_), .. }) => {
                let named = std::env::var_os(distro_kernel::VARIABLE).is_some_and(|v| kernel == Path::new(&v));
                let why = if named { format!("{} names it", distro_kernel::VARIABLE) } else { "Guestlift's own is not installed".into() };
                format!("{how}; the kernel is the distribution's {}, since {why}", kernel.display())
            }
            Ok(Files { kernel, .. }) => format!("{how}; the kernel is {}", kernel.display()),
            Err(_) => how.into(),
        }
    }

    fn files(&self) -> Result<Files> {
        self.files.clone().map_or_else(locate::files, Ok)
    }

    /// As [`Engine::start`], with the concrete type.
    pub fn boot(&self, disks: Vec<Disk>) -> Result<ApplianceSession> {
        if disks.len() > MAX_DISKS {
            return Err(Error::Invalid(format!("{} disks: the appliance takes {MAX_DISKS} at most", disks.len())));
        }
        let files = self.files()?;
        let pci = files.modules.is_some();
        if pci && disks.len() > MAX_PCI_DISKS {
            let what = format!("{} disks: the appliance takes {MAX_PCI_DISKS} at most with a distribution's kernel", disks.len());
            return Err(Error::Invalid(what));
        }
        let scsi = !pci && disks.len() > MAX_VIRTIO_BLK;
        let mut builder = Builder::new()?;
        self.machine(&mut builder, &files)?;
        let bus = if pci { "pci" } else { "device" };
        let port = builder.dir().join("agent.sock");
        let listener =
            UnixListener::bind(&port).map_err(|e| Error::Appliance { what: format!("{}: {e}", port.display()), console: String::new() })?;
        builder.args(["-chardev".into(), format!("socket,id=agent,path={}", qemu::quoted(&port))]);
        builder.args(["-device".into(), format!("virtio-serial-{bus},max_ports=2")]);
        builder.args(["-device".into(), format!("virtserialport,chardev=agent,name={PORT_NAME}")]);

        let mut writable: Vec<Arc<dyn ImageMut>> = Vec::new();
        if scsi {
            builder.args(["-device", "virtio-scsi-device,id=scsi"]);
        }
        for (number, disk) in disks.into_iter().enumerate() {
            let image: Arc<dyn ImageMut> = match disk {
                Disk::ReadOnly(image) => Arc::new(Overlay::in_folder(image, std::env::temp_dir())?),
                Disk::Writable(image) => {
                    writable.push(image.clone());
                    image
                }
            };
            let node = builder.disk(Content::Writable(image))?;
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
        let mut qemu = builder.start()?;
        let stream = qemu.accept(&listener, self.limits.boot)?;
        let connection = match Connection::new(stream, self.limits.boot) {
            Ok(connection) => connection,
            Err(e) => return Err(qemu.error(&format!("the appliance's socket: {e}"))),
        };
        let session = ApplianceSession::new(qemu, connection, self.limits, writable, scsi);
        session.hello(&hello()?)?;
        Ok(session)
    }

    fn machine(&self, builder: &mut Builder, files: &Files) -> Result<()> {
        let khz = sys::tsc_khz();
        // Each word saves time: no measuring of clocks, no timers and devices that nobody uses, a reset that is
        // QEMU's end, and a panic that is one, too.
        let append = format!(
            "console=ttyS0 quiet panic=-1 reboot=t tsc_early_khz={khz} no_timer_check nolapic_timer tsc=reliable random.trust_cpu=on nbd.nbds_max=0 \
             loop.max_loop=0"
        );
        let memory = self.memory_mib.to_string();
        let machine = if files.modules.is_some() { "pc,graphics=off,usb=off" } else { "microvm,acpi=off,x-option-roms=off" };
        builder.args(["-M", machine, "-accel", "tcg", "-cpu", "max", "-m", &memory]);
        let (mut kernel, mut initramfs) = (files.kernel.clone(), files.initramfs.clone());
        match &files.modules {
            None => {
                builder.args(["-global", "virtio-mmio.force-legacy=false"]);
            }
            Some(modules) => {
                initramfs = builder.dir().join("initramfs.cpio");
                let failed = |path: &Path, e| Error::Appliance { what: format!("{}: {e}", path.display()), console: String::new() };
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
}

/// The host's first words: its clock, and a seed of its randomness.
fn hello() -> Result<Request> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut seed = vec![0; 64];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut f| f.read_exact(&mut seed))
        .map_err(|e| Error::Appliance { what: format!("/dev/urandom: {e}"), console: String::new() })?;
    let clock = WireTime { sec: i64::try_from(now.as_secs()).unwrap_or(0), nsec: now.subsec_nanos() };
    Ok(Request::Hello { version: VERSION, clock, seed })
}

impl Engine for Appliance {
    /// `tools` makes no difference here: they are sent when one is first used.
    fn start(&self, disks: Vec<Disk>, _tools: bool) -> Result<Box<dyn Session>> {
        Ok(Box::new(self.boot(disks)?))
    }

    fn check(&self) -> Result<()> {
        self.files()?;
        qemu::check()
    }
}
