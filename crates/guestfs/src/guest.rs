//! A guest from its disks to its tree in one call: volumes, inspection, mounts, and the choice of who reads them.

use std::path::Path;
use std::sync::Arc;

use imgcore::ImageMut;
use imgcore::overlay::{self, Overlay};
use imgcore::size::human;
use imgcore::storage::Undo;

use crate::engine::{Disk, Engine, Session};
use crate::inspect::{Inspection, Mount};
use crate::keys::KeyRing;
use crate::roots::Roots;
use crate::volume::{GuestDisk, GuestDiskMut, Volume, Volumes};
use crate::{Error, GuestFs, Result, Tree, reader};

/// Who works on the guest's filesystems.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// Reading is done in this process where there is a reader, all else in the appliance.
    #[default]
    Auto,
    /// This process, or an error.
    Direct,
    /// The appliance, always.
    Appliance,
}

/// A volume to be mounted instead of what inspection finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountRequest {
    /// As the guest calls it, or `UUID=…`.
    pub device: String,
    /// Where in the tree.
    pub path: String,
    /// Mount options. In this process only btrfs' `subvol=` and `subvolid=` mean something; for most others the appliance is taken.
    pub options: String,
    /// Filesystem, for the appliance; empty means any.
    pub filesystem: String,
}

/// How to open a guest.
#[derive(Clone, Copy)]
pub struct OpenOptions<'a> {
    /// Who works on the filesystems.
    pub engine: EngineChoice,
    /// Starts appliances; without it what can't be read in process is an error.
    pub appliance: Option<&'a dyn Engine>,
    /// The root to take where there are several: `/dev/xvda2` or `UUID=…`.
    pub root: Option<&'a str>,
    /// Keys of encrypted volumes.
    pub keys: Option<&'a dyn KeyRing>,
    /// Hears what was chosen and why, in whole sentences.
    pub log: &'a dyn Fn(&str),
}

impl Default for OpenOptions<'_> {
    fn default() -> Self {
        OpenOptions { engine: EngineChoice::Auto, appliance: None, root: None, keys: None, log: &|_| {} }
    }
}

/// Who works on a guest that was opened.
pub enum Access {
    /// The readers in this process.
    Direct(Tree),
    /// An appliance.
    Appliance(Box<dyn Session>),
}

/// A guest with its filesystems mounted.
pub struct Guest {
    /// Its disks and volumes.
    pub volumes: Volumes,
    /// What is installed; `None` where the caller said what to mount.
    pub inspection: Option<Inspection>,
    access: Access,
    /// Changes that are not on its disks yet.
    pending: Vec<Pending>,
    /// What the disks are changed in.
    undo: Undo,
}

/// Changes of one disk, beside it.
struct Pending {
    overlay: Arc<Overlay>,
    image: Arc<dyn ImageMut>,
}

impl Pending {
    fn new(image: Arc<dyn ImageMut>, folder: &Path) -> Result<Self> {
        Ok(Pending { overlay: Arc::new(Overlay::in_folder(image.clone(), folder)?), image })
    }
}

impl Guest {
    /// Inspects the guest on these disks and mounts its filesystems for reading.
    ///
    /// # Errors
    /// [`Error::Invalid`] when there is no operating system, or several and none was chosen.
    pub fn open(disks: Vec<GuestDisk>, options: &OpenOptions<'_>) -> Result<Self> {
        let volumes = open_volumes(disks, options)?;
        if options.engine != EngineChoice::Appliance {
            let roots = Roots::direct(&volumes);
            let outcome =
                roots.choose(&volumes, options.root).and_then(|inspection| Ok((mount_direct(&volumes, &inspection, options)?, inspection)));
            match outcome {
                Ok((tree, inspection)) => {
                    (options.log)("The guest is read in this process.");
                    return Ok(Guest {
                        volumes,
                        inspection: Some(inspection),
                        access: Access::Direct(tree),
                        pending: Vec::new(),
                        undo: Undo::default(),
                    });
                }
                Err(e) if needs_appliance(&e, &roots) => explain(&e, options)?,
                Err(e) => return Err(e),
            }
        }
        let disks = read_only(&volumes);
        let (session, inspection) = mount_in_appliance(&volumes, disks, options, "ro")?;
        Ok(Guest { volumes, inspection: Some(inspection), access: Access::Appliance(session), pending: Vec::new(), undo: Undo::default() })
    }

    /// Mounts what the caller asks for, without inspection, for reading.
    pub fn open_with_mounts(disks: Vec<GuestDisk>, mounts: &[MountRequest], options: &OpenOptions<'_>) -> Result<Self> {
        let volumes = open_volumes(disks, options)?;
        if options.engine != EngineChoice::Appliance {
            match requested_tree(&volumes, mounts) {
                Ok(tree) => {
                    return Ok(Guest {
                        volumes,
                        inspection: None,
                        access: Access::Direct(tree),
                        pending: Vec::new(),
                        undo: Undo::default(),
                    });
                }
                Err(e @ Error::Unsupported { .. }) => explain(&e, options)?,
                Err(e) => return Err(e),
            }
        }
        let session = mount_requests(&volumes, read_only(&volumes), mounts, options, "ro")?;
        Ok(Guest { volumes, inspection: None, access: Access::Appliance(session), pending: Vec::new(), undo: Undo::default() })
    }

    /// Opens the guest in an appliance that changes it; the disks' files belong to `undo`, `mounts` is as in
    /// [`open_with_mounts`](Guest::open_with_mounts), or what inspection finds if there are none.
    ///
    /// The disks stay as they are until [`shutdown`](Guest::shutdown): so long all changes lie in overlays, and dropping
    /// the guest forgets them.
    pub fn open_writable(disks: Vec<GuestDiskMut>, undo: Undo, mounts: &[MountRequest], options: &OpenOptions<'_>) -> Result<Self> {
        if options.engine == EngineChoice::Direct {
            return Err(Error::Invalid("a guest is changed in the appliance only: leave --engine direct away".into()));
        }
        let folder = overlay::folder();
        let room = overlay::free_space(&folder).map_or(String::new(), |free| format!(", where {} are free", human(free)));
        (options.log)(&format!(
            "The guest is changed in the appliance. Until all is done the changes are kept in {}{room}.",
            folder.display()
        ));
        let readable = disks.iter().map(|d| GuestDisk { name: d.name.clone(), image: d.image.clone() });
        let volumes = open_volumes(readable.collect(), options)?;
        let pending = disks.into_iter().map(|d| Pending::new(d.image, &folder)).collect::<Result<Vec<_>>>()?;
        let disks: Vec<Disk> = pending.iter().map(|p| Disk::Writable(p.overlay.clone())).collect();
        let (session, inspection) = if mounts.is_empty() {
            let (session, inspection) = mount_in_appliance(&volumes, disks, options, "rw")?;
            (session, Some(inspection))
        } else {
            (mount_requests(&volumes, disks, mounts, options, "rw")?, None)
        };
        Ok(Guest { volumes, inspection, access: Access::Appliance(session), pending, undo })
    }

    /// The guest's tree.
    pub fn fs(&self) -> &dyn GuestFs {
        match &self.access {
            Access::Direct(tree) => tree,
            Access::Appliance(session) => session.as_fs(),
        }
    }

    /// Who works on it, for those who keep nothing else.
    pub fn into_access(self) -> Access {
        self.access
    }

    /// The appliance, if it is one that works on the guest.
    pub fn session(&mut self) -> Option<&mut dyn Session> {
        match &mut self.access {
            Access::Direct(_) => None,
            Access::Appliance(session) => Some(session.as_mut()),
        }
    }

    /// Whether an appliance works on the guest, and not this process alone.
    pub fn is_in_appliance(&self) -> bool {
        matches!(self.access, Access::Appliance(_))
    }

    /// Ends the work; what was written is on the disks afterwards. With an error they are as they were.
    pub fn shutdown(self) -> Result<()> {
        if let Access::Appliance(session) = self.access {
            session.shutdown()?;
        }
        Ok(overlay::commit_all(self.pending.iter().map(|p| (p.overlay.as_ref(), p.image.as_ref())), &self.undo)?)
    }
}

/// Whether the appliance could do better.
fn needs_appliance(error: &Error, roots: &Roots) -> bool {
    matches!(error, Error::Unsupported { .. }) || roots.found.is_empty() && !roots.unreadable.is_empty()
}

/// Says why the appliance is taken, or fails if there is none.
fn explain(why: &Error, options: &OpenOptions<'_>) -> Result<()> {
    if options.engine == EngineChoice::Direct || options.appliance.is_none() {
        return Err(Error::Invalid(format!("the guest cannot be read in this process: {why}")));
    }
    (options.log)(&format!("The guest is read in the appliance, since in this process it can't be: {why}"));
    Ok(())
}

fn open_volumes(disks: Vec<GuestDisk>, options: &OpenOptions<'_>) -> Result<Volumes> {
    Volumes::open_with(disks, options.keys)
}

/// Opens a volume's filesystem in this process, as these mount options say.
pub(crate) fn open_reader(volumes: &Volumes, index: usize, options: &str) -> Result<Arc<dyn crate::FsReader>> {
    let volume = volumes.volumes.get(index).ok_or_else(|| Error::Invalid(format!("there is no volume {index}")))?;
    reader::open_with(volume.kind(), volumes.image(volume)?, 0, volume.len, options)
}

/// The volumes that are one filesystem together with this one: btrfs can lie on several.
fn devices_of<'a>(volumes: &'a Volumes, index: usize) -> impl Iterator<Item = usize> + 'a {
    let identity = |i: usize| volumes.volumes.get(i).filter(|v| v.kind() == "btrfs").and_then(|v| v.content.as_ref()?.uuid.as_ref());
    let own = identity(index);
    (0..volumes.volumes.len()).filter(move |i| *i != index && own.is_some() && identity(*i) == own)
}

/// Whether a volume belongs to a filesystem that begins on one before it.
pub(crate) fn is_further_device(volumes: &Volumes, index: usize) -> bool {
    devices_of(volumes, index).any(|other| other < index)
}

/// Mounts a volume in the appliance.
pub(crate) fn mount(volumes: &Volumes, index: usize, session: &mut dyn Session, path: &[u8], options: &[&str]) -> Result<()> {
    let volume = volumes.volumes.get(index).ok_or_else(|| Error::Invalid(format!("there is no volume {index}")))?;
    // The kernel knows of no device that it was not told of.
    let others = devices_of(volumes, index).filter_map(|i| volumes.volumes.get(i));
    let others: Vec<String> = others.map(|v| format!("device={}", v.appliance_device())).collect();
    // Nor does it tell a UFS's versions apart.
    let version = (volume.kind() == "ufs").then(|| volumes.image(volume).ok().map_or("", |image| crate::ufs::mount_option(image.as_ref())));
    let all = options.iter().copied().chain(others.iter().map(String::as_str)).chain(version).filter(|o| !o.is_empty());
    session.mount(&volume.appliance_device(), path, volume.kind(), &all.collect::<Vec<_>>().join(","))
}

pub(crate) fn read_only(volumes: &Volumes) -> Vec<Disk> {
    volumes.disks.iter().map(|d| Disk::ReadOnly(d.image.clone())).collect()
}

fn mount_direct(volumes: &Volumes, inspection: &Inspection, options: &OpenOptions<'_>) -> Result<Tree> {
    let root = inspection.mounts.first().map(Mount::selection).unwrap_or_default();
    let mut tree = Tree::new(open_reader(volumes, inspection.root, &root)?);
    for mount in inspection.mounts.iter().filter(|m| m.path != b"/") {
        if volumes.volumes.get(mount.volume).is_some_and(Volume::is_blank) {
            (options.log)(&format!("{} is not mounted: no filesystem is known on its device", crate::show(&mount.path)));
            continue;
        }
        let reader = match open_reader(volumes, mount.volume, &mount.selection()) {
            // A subvolume that fstab names and that is gone.
            Err(e @ Error::Invalid(_)) => {
                (options.log)(&format!("{} is not mounted: {e}", crate::show(&mount.path)));
                continue;
            }
            reader => reader?,
        };
        if let Err(e) = tree.mount(&mount.path, reader) {
            (options.log)(&format!("{} is not mounted: {e}", crate::show(&mount.path)));
        }
    }
    Ok(tree)
}

fn requested_tree(volumes: &Volumes, mounts: &[MountRequest]) -> Result<Tree> {
    let mut tree: Option<Tree> = None;
    for mount in mounts {
        let (index, options) = place(volumes, mount)?;
        if let Some(other) = options.split(',').find(|o| !is_for_readers(o)) {
            return Err(Error::Unsupported { filesystem: "mount", what: format!("the option {other}") });
        }
        let reader = open_reader(volumes, index, &options)?;
        match &mut tree {
            None if mount.path == "/" => tree = Some(Tree::new(reader)),
            None => return Err(Error::Invalid(format!("mount something on / before {}", mount.path))),
            Some(tree) => tree.mount(mount.path.as_bytes(), reader)?,
        }
    }
    tree.ok_or_else(|| Error::Invalid("nothing is to be mounted".into()))
}

/// The volume and the mount options that a request means; `btrfsvol:DEVICE/SUBVOLUME` is libguestfs's name of a subvolume.
fn place(volumes: &Volumes, mount: &MountRequest) -> Result<(usize, String)> {
    let Some(whole) = mount.device.strip_prefix("btrfsvol:") else { return Ok((find(volumes, &mount.device)?, mount.options.clone())) };
    let mut cuts = whole.rmatch_indices('/').map(|(at, _)| (&whole[..at], &whole[at + 1..]));
    let found = cuts.find_map(|(device, name)| Some((volumes.find(device.as_bytes())?, name)));
    let (index, name) = found.ok_or_else(|| Error::Invalid(format!("there is no volume for {}", mount.device)))?;
    let subvolume = format!("subvol={name}");
    Ok((index, if mount.options.is_empty() { subvolume } else { format!("{},{subvolume}", mount.options) }))
}

/// Whether a mount option changes nothing that is read, or is one that the readers know.
fn is_for_readers(option: &str) -> bool {
    const NOTHING: [&str; 13] = [
        "",
        "ro",
        "rw",
        "defaults",
        "noatime",
        "relatime",
        "nodiratime",
        "nodev",
        "nosuid",
        "noexec",
        "discard",
        "autodefrag",
        "space_cache=v2",
    ];
    NOTHING.contains(&option) || ["subvol=", "subvolid=", "compress=", "compress-force="].iter().any(|o| option.starts_with(o))
}

fn find(volumes: &Volumes, device: &str) -> Result<usize> {
    volumes.find(device.as_bytes()).ok_or_else(|| {
        let known: Vec<&str> = volumes.volumes.iter().map(|v| v.device.as_str()).collect();
        let complaints: String = volumes.complaints.iter().map(|complaint| format!("\n  {complaint}")).collect();
        Error::Invalid(format!("there is no volume {device}; there are {}{complaints}", known.join(", ")))
    })
}

pub(crate) fn start(volumes: &Volumes, disks: Vec<Disk>, options: &OpenOptions<'_>) -> Result<Box<dyn Session>> {
    let engine = options.appliance.ok_or_else(|| Error::Invalid("this needs the appliance, and there is none".into()))?;
    let mut session = engine.start(disks, false)?;
    volumes.activate(session.as_mut())?;
    Ok(session)
}

fn mount_in_appliance(
    volumes: &Volumes,
    disks: Vec<Disk>,
    options: &OpenOptions<'_>,
    mode: &str,
) -> Result<(Box<dyn Session>, Inspection)> {
    let direct = Roots::direct(volumes);
    let mut session = start(volumes, disks, options)?;
    // One look is enough where this process could have it.
    let known = (options.engine != EngineChoice::Appliance).then(|| direct.choose(volumes, options.root).ok()).flatten();
    let inspection = match known {
        Some(inspection) => inspection,
        None => Roots::in_appliance(volumes, session.as_mut())?.choose(volumes, options.root)?,
    };
    for wanted in &inspection.mounts {
        match mount(volumes, wanted.volume, session.as_mut(), &wanted.path, &[mode, &wanted.selection()]) {
            Err(e) if wanted.path != b"/" && !matches!(e, Error::Appliance { .. }) => {
                (options.log)(&format!("{} is not mounted: {e}", crate::show(&wanted.path)));
            }
            outcome => outcome?,
        }
    }
    Ok((session, inspection))
}

fn mount_requests(
    volumes: &Volumes,
    disks: Vec<Disk>,
    mounts: &[MountRequest],
    options: &OpenOptions<'_>,
    mode: &str,
) -> Result<Box<dyn Session>> {
    let mut session = start(volumes, disks, options)?;
    for request in mounts {
        let (index, options) = place(volumes, request)?;
        match volumes.volumes.get(index) {
            Some(volume) if !request.filesystem.is_empty() => {
                let all = [mode, &options].into_iter().filter(|o| !o.is_empty()).collect::<Vec<_>>().join(",");
                session.mount(&volume.appliance_device(), request.path.as_bytes(), &request.filesystem, &all)?;
            }
            _ => mount(volumes, index, session.as_mut(), request.path.as_bytes(), &[mode, &options])?,
        }
    }
    Ok(session)
}
