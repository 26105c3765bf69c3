//! A guest from its disks to its tree in one call: volumes, inspection, mounts, and the choice of who reads them.

use std::path::Path;
use std::sync::Arc;

use imgcore::ImageMut;
use imgcore::overlay::{self, Overlay};
use imgcore::size::human;

use crate::engine::{Disk, Engine, Session};
use crate::inspect::{Inspection, inspect, is_root};
use crate::keys::KeyRing;
use crate::volume::{GuestDisk, GuestDiskMut, Volumes};
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
    /// Mount options, for the appliance.
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

/// The operating systems on a guest's disks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roots {
    /// Each of them.
    pub found: Vec<Inspection>,
    /// Filesystems that could not be looked at, by volume, and why.
    pub unreadable: Vec<(usize, String)>,
}

enum Access {
    Direct(Tree),
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
                    return Ok(Guest { volumes, inspection: Some(inspection), access: Access::Direct(tree), pending: Vec::new() });
                }
                Err(e) if needs_appliance(&e, &roots) => explain(&e, options)?,
                Err(e) => return Err(e),
            }
        }
        let disks = read_only(&volumes);
        let (session, inspection) = mount_in_appliance(&volumes, disks, options, "ro")?;
        Ok(Guest { volumes, inspection: Some(inspection), access: Access::Appliance(session), pending: Vec::new() })
    }

    /// Mounts what the caller asks for, without inspection, for reading.
    pub fn open_with_mounts(disks: Vec<GuestDisk>, mounts: &[MountRequest], options: &OpenOptions<'_>) -> Result<Self> {
        let volumes = open_volumes(disks, options)?;
        if options.engine != EngineChoice::Appliance {
            match requested_tree(&volumes, mounts) {
                Ok(tree) => return Ok(Guest { volumes, inspection: None, access: Access::Direct(tree), pending: Vec::new() }),
                Err(e @ Error::Unsupported { .. }) => explain(&e, options)?,
                Err(e) => return Err(e),
            }
        }
        let session = mount_requests(&volumes, read_only(&volumes), mounts, options, "ro")?;
        Ok(Guest { volumes, inspection: None, access: Access::Appliance(session), pending: Vec::new() })
    }

    /// Opens the guest in an appliance that changes it; `mounts` as in
    /// [`open_with_mounts`](Guest::open_with_mounts), or what inspection finds if there are none.
    ///
    /// The disks stay as they are until [`shutdown`](Guest::shutdown): so long all changes lie in overlays, and dropping
    /// the guest forgets them.
    pub fn open_writable(disks: Vec<GuestDiskMut>, mounts: &[MountRequest], options: &OpenOptions<'_>) -> Result<Self> {
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
        Ok(Guest { volumes, inspection, access: Access::Appliance(session), pending })
    }

    /// The guest's tree.
    pub fn fs(&self) -> &dyn GuestFs {
        match &self.access {
            Access::Direct(tree) => tree,
            Access::Appliance(session) => session.as_fs(),
        }
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

    /// Ends the work; what was written is on the disks afterwards. Up to an error before that they are as they were.
    pub fn shutdown(self) -> Result<()> {
        if let Access::Appliance(session) = self.access {
            session.shutdown()?;
        }
        for Pending { overlay, image } in self.pending {
            overlay.commit(image.as_ref())?;
        }
        Ok(())
    }
}

impl Roots {
    /// Looks at every filesystem that can be read in this process.
    pub fn direct(volumes: &Volumes) -> Self {
        let mut roots = Roots::default();
        for (index, _) in volumes.volumes.iter().enumerate().filter(|(_, v)| v.may_hold_files()) {
            let fs = match open_reader(volumes, index) {
                Ok(reader) => Tree::new(reader),
                Err(e) => {
                    roots.unreadable.push((index, e.to_string()));
                    continue;
                }
            };
            roots.look(&fs, volumes, index);
        }
        roots
    }

    /// Looks at every filesystem in the appliance, mounting each in turn.
    pub fn in_appliance(volumes: &Volumes, session: &mut dyn Session) -> Result<Self> {
        let mut roots = Roots::default();
        for (index, volume) in volumes.volumes.iter().enumerate().filter(|(_, v)| v.may_hold_files()) {
            if let Err(e) = session.mount(&volume.appliance_device(), b"/", volume.kind(), "ro") {
                if matches!(e, Error::Appliance { .. }) {
                    return Err(e);
                }
                roots.unreadable.push((index, e.to_string()));
                continue;
            }
            roots.look(session.as_fs(), volumes, index);
            session.unmount_all()?;
        }
        Ok(roots)
    }

    fn look(&mut self, fs: &dyn GuestFs, volumes: &Volumes, index: usize) {
        if is_root(fs) {
            match inspect(fs, volumes, index) {
                Ok(inspection) => self.found.push(inspection),
                Err(e) => self.unreadable.push((index, e.to_string())),
            }
        }
    }

    /// The one root, or the one that the user named.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the candidates.
    pub fn choose(&self, volumes: &Volumes, wanted: Option<&str>) -> Result<Inspection> {
        let device = |index: usize| volumes.volumes.get(index).map_or("?", |v| v.device.as_str());
        let candidates: Vec<String> = self.found.iter().map(|i| format!("  {}: {}", device(i.root), i.release.product_name)).collect();
        if let Some(wanted) = wanted {
            let volume = volumes.find(wanted.as_bytes());
            let chosen = self.found.iter().find(|i| Some(i.root) == volume).cloned();
            return chosen.ok_or_else(|| {
                Error::Invalid(format!("there is no operating system on {wanted}; there is one on:\n{}", candidates.join("\n")))
            });
        }
        match &self.found[..] {
            [one] => Ok(one.clone()),
            [] => {
                let seen: Vec<String> = volumes
                    .volumes
                    .iter()
                    .enumerate()
                    .map(|(i, v)| {
                        let locked = volumes.locked.contains(&i).then(|| ": locked, give its passphrase with --key".to_string());
                        let why = self.unreadable.iter().find(|(u, _)| *u == i).map(|(_, why)| format!(": {why}"));
                        let why = why.or(locked).unwrap_or_default();
                        format!("  {} {}{why}", v.device, if v.kind().is_empty() { "(unknown content)" } else { v.kind() })
                    })
                    .chain(volumes.complaints.iter().map(|complaint| format!("  {complaint}")))
                    .collect();
                Err(Error::Invalid(format!("no operating system was found; the guest's volumes are:\n{}", seen.join("\n"))))
            }
            _ => Err(Error::Invalid(format!("there are several operating systems, choose one with --root:\n{}", candidates.join("\n")))),
        }
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

fn open_reader(volumes: &Volumes, index: usize) -> Result<Arc<dyn crate::FsReader>> {
    let volume = volumes.volumes.get(index).ok_or_else(|| Error::Invalid(format!("there is no volume {index}")))?;
    reader::open(volume.kind(), volumes.image(volume)?, 0, volume.len)
}

pub(crate) fn read_only(volumes: &Volumes) -> Vec<Disk> {
    volumes.disks.iter().map(|d| Disk::ReadOnly(d.image.clone())).collect()
}

fn mount_direct(volumes: &Volumes, inspection: &Inspection, options: &OpenOptions<'_>) -> Result<Tree> {
    let mut tree = Tree::new(open_reader(volumes, inspection.root)?);
    for mount in inspection.mounts.iter().filter(|m| m.path != b"/") {
        let reader = open_reader(volumes, mount.volume)?;
        if let Err(e) = tree.mount(&mount.path, reader) {
            (options.log)(&format!("{} is not mounted: {e}", crate::show(&mount.path)));
        }
    }
    Ok(tree)
}

fn requested_tree(volumes: &Volumes, mounts: &[MountRequest]) -> Result<Tree> {
    let mut tree: Option<Tree> = None;
    for mount in mounts {
        let reader = open_reader(volumes, find(volumes, &mount.device)?)?;
        match &mut tree {
            None if mount.path == "/" => tree = Some(Tree::new(reader)),
            None => return Err(Error::Invalid(format!("mount something on / before {}", mount.path))),
            Some(tree) => tree.mount(mount.path.as_bytes(), reader)?,
        }
    }
    tree.ok_or_else(|| Error::Invalid("nothing is to be mounted".into()))
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
    for mount in &inspection.mounts {
        let Some(volume) = volumes.volumes.get(mount.volume) else { continue };
        match session.mount(&volume.appliance_device(), &mount.path, volume.kind(), mode) {
            Err(e) if mount.path != b"/" && !matches!(e, Error::Appliance { .. }) => {
                (options.log)(&format!("{} is not mounted: {e}", crate::show(&mount.path)));
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
    for mount in mounts {
        let device = volumes.volumes.get(find(volumes, &mount.device)?).map(|v| v.appliance_device()).unwrap_or_default();
        let all = [mode, &mount.options].into_iter().filter(|o| !o.is_empty()).collect::<Vec<_>>().join(",");
        session.mount(&device, mount.path.as_bytes(), &mount.filesystem, &all)?;
    }
    Ok(session)
}
