//! A guest that several commands work on: read in this process until one of them needs the appliance, which then stays.

use std::sync::Arc;

use guestfs::engine::{Command, Disk, Engine, Output, Session};
use guestfs::volume::Place;
use guestfs::{EngineChoice, Error, GuestDisk, GuestFs, Inspection, MountRequest, Roots, Tree, Volumes, reader};
use imgcore::overlay::{self, Overlay};
use imgcore::storage::Undo;
use imgcore::{Image, ImageMut};

use super::options::{GuestArgs, Ring};
use crate::common::Failure;

/// A disk of the guest, named `sda`, `sdb`, … as guestfish has it.
#[derive(Clone)]
pub(super) enum ShellDisk {
    /// What is written to it is forgotten.
    ReadOnly(Arc<dyn Image>),
    /// What is written to it is committed at the end.
    Writable(Arc<dyn ImageMut>),
}

/// A disk as it is from when the appliance runs, if its changes are to be kept.
struct Pending {
    overlay: Arc<Overlay>,
    image: Arc<dyn ImageMut>,
}

enum Work {
    /// Once something is mounted there is a tree.
    Direct(Option<Tree>),
    Appliance(Box<dyn Session>),
}

/// A launched guest.
pub(super) struct Launched<'a> {
    /// Who works on it, for messages.
    program: &'static str,
    args: &'a GuestArgs,
    keys: Ring,
    disks: Vec<ShellDisk>,
    pending: Vec<Pending>,
    /// What the disks' files are changed in.
    undo: Undo,
    volumes: Volumes,
    /// Whether a command may have changed partitions or superblocks since `volumes` were read.
    stale: bool,
    mounts: Vec<MountRequest>,
    work: Work,
    /// What was found by the last look for operating systems.
    pub(super) roots: Vec<Inspection>,
}

impl<'a> Launched<'a> {
    pub(super) fn new(program: &'static str, args: &'a GuestArgs, disks: Vec<ShellDisk>, undo: Undo) -> Result<Self, Failure> {
        let keys = args.asked_keys()?;
        let volumes = args.volumes(
            named(disks.iter().map(|disk| match disk {
                ShellDisk::ReadOnly(image) => image.clone(),
                ShellDisk::Writable(image) => image.clone() as Arc<dyn Image>,
            })),
            &keys,
        )?;
        let (pending, mounts, roots) = (Vec::new(), Vec::new(), Vec::new());
        let mut launched =
            Launched { program, args, keys, disks, pending, undo, volumes, stale: false, mounts, work: Work::Direct(None), roots };
        if args.engine() == EngineChoice::Appliance {
            launched.start("--engine asks for it")?;
        }
        Ok(launched)
    }

    /// Partitions and what is in them, as they are now.
    pub(super) fn volumes(&mut self) -> Result<&Volumes, Failure> {
        if self.stale {
            self.tool(&["sync"], true)?;
            let overlays: Vec<Arc<dyn Image>> = self.volumes.disks.iter().map(|d| d.image.clone()).collect();
            self.volumes = self.args.volumes(named(overlays.into_iter()), &self.keys)?;
            self.stale = false;
        }
        Ok(&self.volumes)
    }

    /// The same as they were when it was last looked.
    pub(super) fn known(&self) -> &Volumes {
        &self.volumes
    }

    /// The mounted tree.
    pub(super) fn fs(&self) -> Result<&dyn GuestFs, Failure> {
        match &self.work {
            _ if self.mounts.is_empty() => {
                Err(Failure::new("nothing is mounted").hint("'mount DEVICE /' mounts a filesystem; -i does it for you"))
            }
            Work::Direct(None) => Err(Failure::new("nothing is mounted on /")),
            Work::Direct(Some(tree)) => Ok(tree),
            Work::Appliance(session) => Ok(session.as_fs()),
        }
    }

    /// The mounted tree, for changing it.
    pub(super) fn tree_mut(&mut self) -> Result<&mut dyn Session, Failure> {
        self.fs()?;
        self.session()
    }

    /// The appliance, which is started now if it does not run.
    pub(super) fn session(&mut self) -> Result<&mut dyn Session, Failure> {
        if matches!(self.work, Work::Direct(_)) {
            self.start("this command needs it")?;
        }
        match &mut self.work {
            Work::Appliance(session) => Ok(session.as_mut()),
            Work::Direct(_) => Err(Failure::new("there is no appliance")),
        }
    }

    fn start(&mut self, why: &str) -> Result<(), Failure> {
        if self.args.engine() == EngineChoice::Direct {
            return Err(Failure::new("this cannot be done in this process").hint("leave --engine direct away"));
        }
        self.args.say(&format!("The appliance is started: {why}."));
        let folder = overlay::folder();
        let mut disks = Vec::new();
        for (disk, known) in self.disks.iter().zip(&mut self.volumes.disks) {
            let overlay = match disk {
                ShellDisk::ReadOnly(image) => Arc::new(Overlay::in_folder(image.clone(), &folder)?),
                ShellDisk::Writable(image) => {
                    let overlay = Arc::new(Overlay::in_folder(image.clone(), &folder)?);
                    self.pending.push(Pending { overlay: overlay.clone(), image: image.clone() });
                    overlay
                }
            };
            known.image = overlay.clone();
            disks.push(Disk::Writable(overlay));
        }
        let mut session = self.args.appliance().start(disks, false)?;
        self.volumes.activate(session.as_mut())?;
        for mount in &self.mounts {
            mount_inside(&self.volumes, session.as_mut(), mount)?;
        }
        self.work = Work::Appliance(session);
        Ok(())
    }

    /// Whether the appliance runs.
    pub(super) fn runs(&self) -> bool {
        matches!(self.work, Work::Appliance(_))
    }

    pub(super) fn mounts(&self) -> &[MountRequest] {
        &self.mounts
    }

    pub(super) fn mount(&mut self, request: MountRequest) -> Result<(), Failure> {
        self.volumes()?;
        if let Work::Direct(tree) = &mut self.work {
            match mount_direct(&self.volumes, tree, &request) {
                Ok(()) => {
                    self.mounts.push(request);
                    return Ok(());
                }
                Err(e @ Error::Unsupported { .. }) => self.start(&e.to_string())?,
                Err(e) => return Err(e.into()),
            }
        }
        if let Work::Appliance(session) = &mut self.work {
            mount_inside(&self.volumes, session.as_mut(), &request)?;
        }
        self.mounts.push(request);
        Ok(())
    }

    /// Unmounts what `which` says.
    pub(super) fn unmount(&mut self, which: impl Fn(&MountRequest) -> bool) -> Result<(), Failure> {
        let (gone, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.mounts).into_iter().partition(which);
        if let Work::Appliance(session) = &mut self.work
            && !gone.is_empty()
        {
            session.unmount_all()?;
        }
        if let Work::Direct(tree) = &mut self.work {
            *tree = None;
        }
        // The rest is mounted again: a tree loses filesystems from its end only.
        kept.into_iter().try_for_each(|mount| self.mount(mount))
    }

    /// Finds operating systems.
    pub(super) fn inspect(&mut self) -> Result<(), Failure> {
        self.volumes()?;
        let found = match &mut self.work {
            Work::Direct(_) => Roots::direct(&self.volumes),
            Work::Appliance(session) => {
                if !self.mounts.is_empty() {
                    session.unmount_all()?;
                }
                let found = Roots::in_appliance(&self.volumes, session.as_mut());
                self.mounts.iter().try_for_each(|mount| mount_inside(&self.volumes, session.as_mut(), mount))?;
                found?
            }
        };
        if found.found.is_empty()
            && !found.unreadable.is_empty()
            && matches!(self.work, Work::Direct(_))
            && self.args.engine() != EngineChoice::Direct
        {
            self.start("this process cannot read all filesystems")?;
            return self.inspect();
        }
        self.roots = found.found;
        Ok(())
    }

    /// Mounts an operating system as its fstab says.
    pub(super) fn mount_root(&mut self, options: &str) -> Result<(), Failure> {
        self.inspect()?;
        let roots = Roots { found: self.roots.clone(), unreadable: Vec::new() };
        let chosen = roots.choose(&self.volumes, self.args.root())?;
        for mount in &chosen.mounts {
            let Some(volume) = self.volumes.volumes.get(mount.volume) else { continue };
            let path = String::from_utf8_lossy(&mount.path).into_owned();
            let all = [options, &mount.selection()].into_iter().filter(|o| !o.is_empty()).collect::<Vec<_>>().join(",");
            let request = MountRequest { device: volume.device.clone(), path, options: all, filesystem: volume.kind().to_string() };
            match self.mount(request) {
                Err(e) if mount.path != b"/" => {
                    eprintln!("{}: {} is not mounted: {}", self.program, guestfs::show(&mount.path), e.message())
                }
                outcome => outcome?,
            }
        }
        Ok(())
    }

    /// What the appliance's programs call a device.
    pub(super) fn inside(&mut self, device: &str) -> Result<String, Failure> {
        let name = self.outside_name(device)?;
        Ok(self.session()?.name_inside(&name))
    }

    /// What this process calls a device that the appliance's programs are not asked about.
    pub(super) fn outside_name(&mut self, device: &str) -> Result<String, Failure> {
        let volumes = self.volumes()?;
        let known = volumes.find(device.as_bytes()).and_then(|index| volumes.volumes.get(index)).map(guestfs::Volume::appliance_device);
        Ok(known.unwrap_or_else(|| device.strip_prefix("/dev/sd").map_or(device.to_string(), |rest| format!("/dev/vd{rest}"))))
    }

    /// Partitions and what is in them may be others now.
    pub(super) fn changed(&mut self) {
        self.stale = true;
    }

    /// Gives what is in an encrypted device another name besides its own.
    pub(super) fn name_unlocked(&mut self, device: &str, name: String) -> Result<(), Failure> {
        self.volumes()?;
        let below = self.volumes.find(device.as_bytes());
        let inside = self.volumes.volumes.iter_mut().find(|v| matches!(v.place, Place::Unlocked { volume } if Some(volume) == below));
        let locked = || Failure::new(format!("{device}: it is locked")).hint("give its passphrase at the start: --key, --keys-from-stdin");
        inside.ok_or_else(locked)?.aliases.push(name);
        Ok(())
    }

    /// Runs a program of the appliance's own; `reads` says that it changes no device.
    pub(super) fn tool<W: AsRef<[u8]>>(&mut self, argv: &[W], reads: bool) -> Result<Output, Failure> {
        let output = self.try_tool(argv, &[], reads)?;
        let name = argv.first().map(|w| String::from_utf8_lossy(w.as_ref()).into_owned()).unwrap_or_default();
        checked(&name, output)
    }

    /// The same with an input, whatever it ends with.
    pub(super) fn try_tool<W: AsRef<[u8]>>(&mut self, argv: &[W], stdin: &[u8], reads: bool) -> Result<Output, Failure> {
        let output = self.session()?.run_tool(&Command { stdin: stdin.to_vec(), ..Command::new(argv) })?;
        self.stale |= !reads;
        Ok(output)
    }

    /// Ends the appliance; its changes are on the disks afterwards.
    pub(super) fn finish(self) -> Result<(), Failure> {
        if let Work::Appliance(session) = self.work {
            session.shutdown()?;
        }
        Ok(overlay::commit_all(self.pending.iter().map(|p| (p.overlay.as_ref(), p.image.as_ref())), &self.undo)?)
    }
}

/// A command's output, if it ended well.
pub(super) fn checked(name: &str, output: Output) -> Result<Output, Failure> {
    if output.status == 0 {
        return Ok(output);
    }
    let said = if output.stderr.trim_ascii().is_empty() { &output.stdout } else { &output.stderr };
    let said: Vec<String> = said.trim_ascii().split(|b| *b == b'\n').map(guestfs::show).collect();
    Err(Failure::new(format!("{name} ended with {}: {}", output.status, said.join("\n"))))
}

fn named(images: impl Iterator<Item = Arc<dyn Image>>) -> Vec<GuestDisk> {
    let disk = |(position, image)| GuestDisk { name: format!("sd{}", guestfs::volume::letters(position)), image };
    images.enumerate().map(disk).collect()
}

fn mount_direct(volumes: &Volumes, tree: &mut Option<Tree>, request: &MountRequest) -> guestfs::Result<()> {
    let index = volumes.find(request.device.as_bytes());
    let volume = index.and_then(|index| volumes.volumes.get(index)).ok_or_else(|| Error::NotFound(request.device.clone().into_bytes()))?;
    let reader = reader::open_with(volume.kind(), volumes.image(volume)?, 0, volume.len, &request.options)?;
    match tree {
        None if request.path == "/" => *tree = Some(Tree::new(reader)),
        None => return Err(Error::Invalid(format!("mount something on / before {}", request.path))),
        Some(_) if request.path == "/" => return Err(Error::Invalid("something is mounted on / already".into())),
        Some(tree) => tree.mount(request.path.as_bytes(), reader)?,
    }
    Ok(())
}

fn mount_inside(volumes: &Volumes, session: &mut dyn Session, request: &MountRequest) -> guestfs::Result<()> {
    let volume = volumes.find(request.device.as_bytes()).and_then(|index| volumes.volumes.get(index));
    let device = volume.map_or_else(|| request.device.clone(), guestfs::Volume::appliance_device);
    session.mount(&device, request.path.as_bytes(), &request.filesystem, &request.options)
}
