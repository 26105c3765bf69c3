//! What a conversion step is: one change to the staged guest, that says what it did.

use guestfs::inspect::Release;
use guestfs::{Error as GuestError, Ext, FileType, GuestFs, GuestFsMut};

use crate::bootloader::{BootPlace, Grub, Loader};
use crate::esp::Esp;
use crate::family::{self, Family, Signs};
use crate::guest::cmdline::Rewrite;
use crate::guest::devices::Devices;
use crate::guest::drivers::{self, Drivers};
use crate::guest::grub::GRUB_CFG;
use crate::guest::kernels::Kernel;
use crate::guest::{mounts, packages::Packages, text};
use crate::layout::{Layout, Volume};
use crate::source::{Boot, Source};
use crate::stack::{Mounted, holder};
use crate::staged::Staged;
use crate::target::Target;
use crate::{Error, Result};

/// A configuration file larger than this is no configuration file.
const CONFIG_LIMIT: u64 = 4 << 20;

/// One step of a conversion. The table of all is [`crate::steps::STEPS`].
pub struct Step {
    /// Its name, as in reports and messages: `fstab`.
    pub name: &'static str,
    /// What it does and why, in one line.
    pub about: &'static str,
    /// Edits the staged guest. A step that has nothing to do changes nothing.
    pub run: fn(&mut Context<'_>) -> Result<()>,
}

/// What a step found and did, for `--plan` and `--report`.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct StepReport {
    /// The step's name.
    pub name: &'static str,
    /// What it does and why.
    pub about: &'static str,
    /// What it found and decided.
    pub notes: Vec<String>,
    /// What the user should look at.
    pub warnings: Vec<String>,
    /// The files that it changed.
    pub changed: Vec<String>,
    /// The commands that it wants run in the guest.
    pub commands: Vec<String>,
}

/// What a conversion is asked to do to the guest's insides.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where the guest goes.
    pub target: Target,
    /// The kernel that the Xen host started the guest with, where the configuration names one.
    pub host_kernel: Option<HostKernel>,
    /// Why there is no [`host_kernel`](Self::host_kernel) though the configuration names one: `/boot/vmlinuz-6.1: permission denied`.
    pub host_kernel_problem: Option<String>,
    /// Kernel packages to be installed, in order.
    pub kernel_packages: Vec<Package>,
    /// Packages of KVM's agent to be installed, in order.
    pub agent_packages: Vec<Package>,
    /// The host's GRUB; looked for where it is usual, and only when the guest needs it, if not given.
    pub grub: Option<Grub>,
    /// Where a loader for UEFI goes, for a guest that did not start by it.
    pub esp: Option<Esp>,
}

/// A kernel from outside the guest.
#[derive(Clone, Debug)]
pub struct HostKernel {
    /// The file's name without directories: `vmlinuz-6.1.0-13-amd64`.
    pub kernel_name: String,
    /// The file.
    pub kernel: Vec<u8>,
    /// Name and content of the initrd that belongs to it.
    pub ramdisk: Option<(String, Vec<u8>)>,
}

/// A package file of the guest's kind.
#[derive(Clone, Debug)]
pub struct Package {
    /// The file's name without directories.
    pub name: String,
    /// The file.
    pub data: Vec<u8>,
}

/// Another guest, whose kernel is taken.
#[derive(Clone, Copy)]
pub struct Donor<'a> {
    /// What the user called it.
    pub name: &'a str,
    /// Its tree.
    pub fs: &'a dyn GuestFs,
}

/// What steps tell those after them.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The kernel that the result starts; set by step `kernel`, and by step `bootloader` where a menu of the
    /// guest's own stays, whose default is another. `None` where the guest brings a boot loader and kernels that are not looked for.
    pub kernel: Option<Kernel>,
    /// All kernels that can start on the target, the chosen one first; set by step `kernel`.
    pub kernels: Vec<Kernel>,
    /// What the result's firmware starts, in words; set by step `bootloader`.
    pub boot_loader: String,
    /// Where [`grub`](Self::grub) is to be embedded ([`Grub::embed`]) once the disks are written; `None` where a boot loader is there.
    pub boot_place: Option<BootPlace>,
    /// The GRUB whose modules were put into the guest.
    pub grub: Option<Grub>,
    /// What goes onto the ESP instead, where the guest is to start by UEFI.
    pub loader: Option<Loader>,
    /// Network interfaces are called `ethN`, as the kernel does; set by step `network`.
    pub kernel_nic_names: bool,
}

/// All that a step may look at and change.
pub struct Context<'a> {
    /// The guest as its source describes it.
    pub source: &'a Source,
    /// Where its volumes go.
    pub layout: &'a Layout,
    /// What is asked for.
    pub options: &'a Options,
    /// The guest whose kernel is to be taken, if any.
    pub donor: Option<Donor<'a>>,
    /// The guest's files, with all changes so far.
    pub fs: Staged<'a>,
    /// Old device names and what they become.
    pub devices: Devices,
    /// What the guest's mounts lie on; empty where it was not inspected.
    pub mounts: Vec<Mounted>,
    /// The guest's packages, as they were before the first step.
    pub packages: Packages,
    /// Its distribution and version.
    pub release: Release,
    /// Its programs' architecture, by libguestfs's name: `x86_64`, `i386`, `unknown`.
    pub arch: &'static str,
    /// The distributions that work like it.
    pub family: &'static Family,
    /// What steps tell those after them.
    pub facts: Facts,
    /// What the steps said so far; the last one is the running step's.
    pub reports: Vec<StepReport>,
}

impl<'a> Context<'a> {
    /// A context in which no step has run.
    pub fn new(source: &'a Source, layout: &'a Layout, options: &'a Options, fs: Staged<'a>) -> Result<Self> {
        let packages = Packages::read(&fs);
        let release = guestfs::inspect::release(&fs)?;
        let family = family::of(&Signs { fs: &fs, packages: &packages, release: &release });
        Ok(Context {
            source,
            layout,
            options,
            donor: None,
            devices: Devices::new(source, layout),
            mounts: Vec::new(),
            packages,
            release,
            arch: guestfs::inspect::arch(&fs),
            family,
            fs,
            facts: Facts::default(),
            reports: Vec::new(),
        })
    }

    /// Runs one step and closes its report.
    pub fn run(&mut self, step: &Step) -> Result<()> {
        self.fs.begin(step.name);
        self.reports.push(StepReport { name: step.name, about: step.about, ..StepReport::default() });
        let commands = self.fs.commands().len();
        (step.run)(self)?;
        let changed = self.fs.paths_of(step.name);
        let commands = self.fs.commands()[commands..].iter().map(|c| c.shown()).collect();
        let report = self.report();
        (report.changed, report.commands) = (changed, commands);
        Ok(())
    }

    fn report(&mut self) -> &mut StepReport {
        if self.reports.is_empty() {
            self.reports.push(StepReport::default());
        }
        self.reports.last_mut().expect("one was just pushed")
    }

    /// Says what was found or decided.
    pub fn note(&mut self, what: impl Into<String>) {
        self.report().notes.push(what.into());
    }

    /// Says what the user should look at.
    pub fn warn(&mut self, what: impl Into<String>) {
        self.report().warnings.push(what.into());
    }

    /// The error of the running step.
    pub fn fail(&self, what: impl Into<String>) -> Error {
        let step = self.reports.last().map_or("", |r| r.name);
        Error::Step { guest: self.source.name.clone(), step, what: what.into() }
    }

    /// A configuration file's text; `None` when it is missing or no regular file.
    pub fn text(&self, path: impl AsRef<[u8]>) -> Result<Option<text::Text>> {
        let path = path.as_ref();
        match self.fs.stat(path) {
            Ok(stat) if stat.kind == FileType::Regular => {}
            Ok(_) | Err(GuestError::NotFound(_)) => return Ok(None),
            Err(GuestError::WrongType { .. }) => return Ok(None),
            // A link that goes in circles leads to no file.
            Err(GuestError::Guest { .. }) => return Ok(None),
            Err(e) => return Err(e.into()),
        }
        Ok(Some(text::Text::decode(self.fs.read(path, CONFIG_LIMIT)?)))
    }

    /// Rewrites a configuration file; says whether it changed. A missing file stays missing.
    pub fn edit(&mut self, path: impl AsRef<[u8]>, change: impl FnOnce(&str) -> String) -> Result<bool> {
        let path = path.as_ref();
        let Some(old) = self.text(path)? else { return Ok(false) };
        let new = change(&old);
        if new == *old {
            return Ok(false);
        }
        let bytes = old.encode(&new);
        self.fs.write(path, &mut &bytes[..], None)?;
        Ok(true)
    }

    /// Rewrites a configuration file line by line: see [`text::map_lines`].
    pub fn edit_lines(&mut self, path: impl AsRef<[u8]>, change: impl FnMut(&str) -> text::Line) -> Result<bool> {
        self.edit(path, |old| text::map_lines(old, change))
    }

    /// The volume that is mounted on a path of the guest; for `/boot` the root's where it has none of its own.
    pub fn mounted(&self, path: &str) -> Result<Option<Volume>> {
        let fstab = self.text("/etc/fstab")?;
        let of = |path| fstab.as_deref().and_then(|t| mounts::spec_of(t, path)).and_then(|s| mounts::volume(s, self.layout, &self.devices));
        let found = of(path).or_else(|| if path == "/boot" { of("/") } else { None });
        Ok(found.cloned())
    }

    /// The user gave the kernel that the result is to start, by whatever option: it comes before what was the default.
    pub fn is_kernel_given(&self) -> bool {
        self.donor.is_some() || self.facts.kernel.as_ref().is_some_and(|kernel| kernel.pending)
    }

    /// Makes one of the kernels the one that the result starts.
    pub fn choose(&mut self, kernel: Kernel) {
        self.facts.kernels.retain(|known| *known != kernel);
        self.facts.kernels.insert(0, kernel.clone());
        self.facts.kernel = Some(kernel);
    }

    /// /boot is a filesystem of its own.
    pub fn has_own_boot(&self) -> Result<bool> {
        match holder(&self.mounts, "/boot") {
            Some(mount) => Ok(mount.path == "/boot"),
            None => Ok(self.mounted("/boot")? != self.mounted("/")?),
        }
    }

    /// The UUID of the filesystem that holds a path, whatever it lies on.
    pub fn uuid_of(&self, path: &str) -> Result<Option<String>> {
        match holder(&self.mounts, path) {
            Some(mount) => Ok(mount.uuid.clone()),
            None => Ok(self.mounted(path)?.and_then(|volume| volume.uuid)),
        }
    }

    /// A path in /boot as a boot loader sees it, which knows only the filesystem that it lies on, from its top; SUSE's GRUB is told to begin at
    /// the default subvolume.
    pub fn seen_by_boot_loader(&self, path: &str) -> Result<String> {
        let separate = self.has_own_boot()?;
        let below = path.strip_prefix("/boot").filter(|_| separate).unwrap_or(path);
        let mut menus = GRUB_CFG.iter().filter_map(|path| self.text(path).ok().flatten());
        let is_from_subvolume = menus.any(|menu| menu.contains("btrfs_relative_path=\"y"));
        Ok(format!("{}{below}", if is_from_subvolume { "" } else { self.subvolume_of_boot() }))
    }

    /// Where the subvolume with /boot is on its filesystem: `/@`; empty where all of that is mounted.
    fn subvolume_of_boot(&self) -> &str {
        holder(&self.mounts, "/boot").and_then(|mount| mount.begins_at.as_deref().ok()).unwrap_or_default()
    }

    /// How the guest's own fstab names the root, with new device names.
    pub fn root_spec(&self) -> Result<Option<String>> {
        let fstab = self.text("/etc/fstab")?;
        let spec = fstab.as_deref().and_then(|t| mounts::spec_of(t, "/"));
        Ok(spec.map(|s| self.devices.stable(s).unwrap_or_else(|| s.into())))
    }

    /// The kernel that starts on the target and that a boot loader's configuration means by a path, which may be seen from /boot.
    pub fn kernel_at(&self, path: &str) -> Option<&Kernel> {
        let path = path.rsplit_once(')').map_or(path, |(_, p)| p);
        let inode = |p: &str| self.fs.stat(p.as_bytes()).ok().map(|s| (s.dev, s.ino));
        // From the filesystem's top, or from the subvolume, as SUSE's GRUB.
        let subvolume = self.subvolume_of_boot();
        let path = path.strip_prefix(subvolume).filter(|below| below.starts_with('/')).unwrap_or(path);
        let candidates = [path.to_string(), format!("/boot{path}")];
        self.facts
            .kernels
            .iter()
            .find(|kernel| candidates.iter().any(|c| c == &kernel.image || inode(c).is_some_and(|i| Some(i) == inode(&kernel.image))))
    }

    /// What drives the target's devices in the result: what the chosen kernel has.
    pub fn drivers(&self) -> &'static Drivers {
        self.facts.kernel.as_ref().map_or(&self.options.target.drivers()[0], |kernel| self.drivers_of(kernel))
    }

    /// As [`drivers`](Self::drivers), for a kernel.
    pub fn drivers_of(&self, kernel: &Kernel) -> &'static Drivers {
        drivers::of_kernel(&self.fs, self.options.target, &kernel.version)
    }

    /// How kernel command lines change.
    pub fn rewrite(&self) -> Rewrite<'_> {
        Rewrite {
            devices: &self.devices,
            target: self.options.target,
            kernel_nic_names: self.facts.kernel_nic_names,
            root: None,
            by_name: false,
        }
    }

    /// The guest has a boot loader that its firmware started on Xen too.
    pub fn is_hvm(&self) -> bool {
        !matches!(self.source.boot, Boot::Direct { .. })
    }

    /// The names in a directory, sorted; none when it is missing.
    pub fn names(&self, dir: impl AsRef<[u8]>) -> Vec<Vec<u8>> {
        let mut names: Vec<_> = self.fs.read_dir(dir.as_ref()).unwrap_or_default().into_iter().map(|e| e.name).collect();
        names.sort();
        names
    }
}
