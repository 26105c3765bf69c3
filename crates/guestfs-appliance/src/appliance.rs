//! Boots the appliance: which files, which monitor, which disks, and the first words with its agent.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use guestfs::engine::{Disk, Engine, Session};
use guestfs::{Error, Result};
use imgcore::ImageMut;
use imgcore::overlay::{self, Overlay};

use crate::accel::{self, Accel, Choice};
use crate::connection::{Connection, Limits};
use crate::distro_kernel;
use crate::locate::{self, Files};
use crate::monitor::{Monitor, failure};
use crate::on_kvm;
use crate::on_qemu::{self, saved};
use crate::protocol::{Request, VERSION, WireTime};
use crate::qemu;
use crate::session::ApplianceSession;
use crate::template::{self, Cache, Draft, Key, Template};

/// Targets that the SCSI adapter is given at most.
const MAX_DISKS: usize = 255;

/// On a processor of its own it is up within a second; when it is not by then, and QEMU may take over, it never will be.
const KVM_PATIENCE: Duration = Duration::from_secs(20);

/// Starts appliances. It holds no state between them.
#[derive(Clone, Debug)]
pub struct Appliance {
    /// Memory in MiB. What is not used costs nothing, neither time nor the host's memory.
    pub memory_mib: u64,
    /// How long the host waits.
    pub limits: Limits,
    /// The kernel and the initramfs; looked for when this is `None`.
    pub files: Option<Files>,
    /// Who runs its processor; the environment's GUESTLIFT_ACCEL decides when this is `None`.
    pub accel: Option<Accel>,
    /// Where templates of booted appliances are kept; without it every appliance boots.
    pub templates: Option<PathBuf>,
    /// Told why an appliance boots although there could be a template, or runs in QEMU although KVM was chosen.
    pub note: fn(&str),
}

/// What is to run.
pub struct Wanted {
    /// Kernel and agent.
    pub files: Files,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// How long its start may take.
    pub limits: Limits,
    /// Its disks, in order.
    pub disks: Vec<Arc<dyn ImageMut>>,
}

/// A machine that runs.
pub struct Started {
    /// Its process.
    pub monitor: Monitor,
    /// The host's end of the agent's port.
    pub port: UnixStream,
    /// Whether its disks are `sda`, … inside.
    pub scsi: bool,
    /// Disks that the kernel did not see when it started, in the places from 1 on.
    pub late_disks: usize,
}

impl Default for Appliance {
    fn default() -> Self {
        Appliance { memory_mib: 1024, limits: Limits::default(), files: None, accel: None, templates: template::folder(), note: |_| {} }
    }
}

impl Appliance {
    /// One with the usual settings.
    pub fn new() -> Self {
        Self::default()
    }

    /// How appliances run here, and why so, in words for `-v`.
    pub fn describe(&self) -> String {
        let Ok(files) = self.files() else { return "QEMU or on KVM".into() };
        let choice = match accel::wish(self.accel).and_then(|wish| accel::choose(wish, &files, 0)) {
            Ok(choice) => choice,
            Err(e) => return format!("no machine: {e}"),
        };
        let how = if choice.monitor.is_some() { "vmm-mini on KVM" } else { "QEMU with its own translator (TCG)" };
        let kernel = match &files.modules {
            None => format!("the kernel is {}", files.kernel.display()),
            Some(_) => {
                let named = std::env::var_os(distro_kernel::VARIABLE).is_some_and(|v| files.kernel == Path::new(&v));
                let why = if named { format!("{} names it", distro_kernel::VARIABLE) } else { "Guestlift's own is not installed".into() };
                format!("the kernel is the distribution's {}, since {why}", files.kernel.display())
            }
        };
        format!("{how}: {}; {kernel}", choice.why)
    }

    fn files(&self) -> Result<Files> {
        self.files.clone().map_or_else(locate::files, Ok)
    }

    /// As [`Engine::start`], with the concrete type.
    pub fn boot(&self, disks: Vec<Disk>) -> Result<ApplianceSession> {
        if disks.len() > MAX_DISKS {
            return Err(Error::Invalid(format!("{} disks: the appliance takes {MAX_DISKS} at most", disks.len())));
        }
        let mut writable: Vec<Arc<dyn ImageMut>> = Vec::new();
        let images = disks.into_iter().map(|disk| -> Result<Arc<dyn ImageMut>> {
            Ok(match disk {
                Disk::ReadOnly(image) => Arc::new(Overlay::in_folder(image, overlay::folder())?),
                Disk::Writable(image) => {
                    writable.push(image.clone());
                    image
                }
            })
        });
        let disks = images.collect::<Result<_>>()?;
        let wanted = Wanted { files: self.files()?, memory_mib: self.memory_mib, limits: self.limits, disks };
        let wish = accel::wish(self.accel)?;
        let choice = accel::choose(wish, &wanted.files, wanted.disks.len())?;
        self.boot_as(wish, &choice, &wanted, writable)
    }

    /// Boots as chosen; where the user leaves it open, QEMU does what KVM failed to do after all.
    fn boot_as(&self, wish: Accel, choice: &Choice, wanted: &Wanted, writable: Vec<Arc<dyn ImageMut>>) -> Result<ApplianceSession> {
        if let Some(program) = &choice.monitor {
            let patience = if wish == Accel::Kvm { self.limits.boot } else { KVM_PATIENCE.min(self.limits.boot) };
            let save = |draft: &Draft| on_kvm::save(program, wanted, draft, patience);
            let restore = |template: &Template| on_kvm::restore(program, wanted, template);
            if let Some(session) = self.restore(&writable, on_kvm::key(program, wanted), save, restore) {
                return Ok(session);
            }
            match on_kvm::start(program, wanted).and_then(|started| self.begin(started, writable.clone(), patience)) {
                Err(why) if wish == Accel::Auto && qemu::find().is_ok() => {
                    (self.note)(&format!("The appliance runs in QEMU: on KVM {why}."))
                }
                ended => return ended,
            }
        } else {
            accel::check(choice, wish)?;
        }
        let restore = |template: &Template| saved::restore(wanted, template);
        if let Some(session) = self.restore(&writable, saved::key(wanted), |draft| saved::save(wanted, draft), restore) {
            return Ok(session);
        }
        self.begin(on_qemu::start(wanted)?, writable, self.limits.boot)
    }

    /// An appliance that continues a template, which is made if there is none yet. When that does not work it must boot.
    fn restore(
        &self,
        writable: &[Arc<dyn ImageMut>],
        key: Result<Option<Key>>,
        save: impl FnOnce(&Draft) -> Result<()>,
        restore: impl FnOnce(&Template) -> Result<Started>,
    ) -> Option<ApplianceSession> {
        let boots = |why: Error| (self.note)(&format!("The appliance boots: {why}."));
        let folder = self.templates.as_deref()?;
        let find = || -> Result<Option<Template>> {
            let Some(key) = key? else { return Ok(None) };
            Cache::open(folder)?.get(&key, save).map(Some)
        };
        let template = find().map_err(boots).ok()??;
        let restored = restore(&template);
        match restored.and_then(|started| self.begin(started, writable.to_vec(), template::PATIENCE.min(self.limits.boot))) {
            Ok(session) => Some(session),
            Err(why) => {
                template.discard(&why);
                boots(why);
                None
            }
        }
    }

    /// The first words with the agent.
    fn begin(&self, started: Started, writable: Vec<Arc<dyn ImageMut>>, patience: Duration) -> Result<ApplianceSession> {
        let Started { mut monitor, port, scsi, late_disks } = started;
        let connection = match Connection::new(port, patience) {
            Ok(connection) => connection,
            Err(e) => return Err(monitor.error(&format!("the appliance's socket: {e}"))),
        };
        let session = ApplianceSession::new(monitor, connection, self.limits, writable, scsi);
        session.hello(&hello()?, patience)?;
        if late_disks > 0 {
            session.find_disks(late_disks, patience)?;
        }
        session.connected()?;
        Ok(session)
    }
}

/// The host's first words: its clock, and a seed of its randomness.
fn hello() -> Result<Request> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut seed = vec![0; 64];
    std::fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut seed)).map_err(|e| failure(format!("/dev/urandom: {e}")))?;
    let clock = WireTime { sec: i64::try_from(now.as_secs()).unwrap_or(0), nsec: now.subsec_nanos() };
    Ok(Request::Hello { version: VERSION, clock, seed })
}

impl Engine for Appliance {
    /// `tools` makes no difference here: they are sent when one is first used.
    fn start(&self, disks: Vec<Disk>, _tools: bool) -> Result<Box<dyn Session>> {
        Ok(Box::new(self.boot(disks)?))
    }

    fn check(&self) -> Result<()> {
        let wish = accel::wish(self.accel)?;
        accel::check(&accel::choose(wish, &self.files()?, 0)?, wish)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemu_takes_over_where_kvm_fails_after_all_unless_kvm_was_asked_for() {
        let wanted = || Wanted {
            files: locate::files().unwrap(),
            memory_mib: Appliance::new().memory_mib,
            limits: Limits::default(),
            disks: Vec::new(),
        };
        let choice = Choice { monitor: Some("/bin/false".into()), why: "the probe says so".into() };
        let mut session = Appliance::new().boot_as(Accel::Auto, &choice, &wanted(), Vec::new()).unwrap();
        assert!(session.devices().is_ok());
        let error = Appliance::new().boot_as(Accel::Kvm, &choice, &wanted(), Vec::new()).map(drop).unwrap_err();
        assert!(matches!(error, Error::Appliance { .. }), "{error}");
    }
}
