//! What is in a repository: its VDIs, wherever they lie.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use guestfs::{GuestDisk, Volumes};
use imgcore::raw::Raw;
use imgcore::storage::{FileStorage, ImageStorage};
use imgcore::{Formats, Image, ImageInfo, NoGate, OpenOptions, Storage, size};

use super::metadata::{self, Known};
use super::name::{GROUP, Kind, VdiName};
use crate::input::{Request, images};
use crate::{Error, Result};

/// More than that are in no repository.
pub(super) const MAX_VDIS: usize = 100_000;
/// So many are listed in a message.
const LISTED: usize = 40;

/// A repository.
pub(super) struct Repository {
    /// As the user named it.
    pub shown: String,
    /// The folder of its files; one that does not exist for volumes that we read.
    pub folder: PathBuf,
    vdis: Vec<Vdi>,
    /// What the pool said of them, where it did.
    known: BTreeMap<String, Known>,
    /// Its volumes are devices of this host, which appear when they are activated.
    on_devices: bool,
}

/// A VDI.
pub(super) struct Vdi {
    pub name: VdiName,
    /// The file or volume, for messages.
    pub shown: String,
    body: Body,
}

enum Body {
    File(PathBuf),
    Volume(Arc<dyn Image>),
}

impl Vdi {
    /// The file or device, for those that are one.
    pub fn path(&self) -> Option<&Path> {
        match &self.body {
            Body::File(path) => Some(path),
            Body::Volume(_) => None,
        }
    }

    /// Its bytes.
    pub fn storage(&self) -> imgcore::Result<Arc<dyn Storage>> {
        Ok(match &self.body {
            Body::File(path) => Arc::new(FileStorage::open(path)?),
            Body::Volume(image) => Arc::new(ImageStorage::new(image.clone(), &self.shown)),
        })
    }

    /// A look at it alone, without what it names.
    fn look(&self, formats: &Formats) -> imgcore::Result<Arc<dyn Image>> {
        let options = OpenOptions::new(&NoGate).without_backing().force_share(true).format(self.name.kind.format());
        formats.open_storage(self.storage()?, &options)
    }
}

impl Repository {
    /// Opens the one that is meant: a folder, a VDI in one, or the disk with a volume group. More disks of that group are the user's `--disk`s.
    pub fn open(request: &Request<'_>, warnings: &mut Vec<String>) -> Result<Self> {
        let path = request.guest;
        if path.is_dir() {
            return Self::of_folder(path, None);
        }
        match VdiName::of(path) {
            Some(name) => {
                let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
                Self::of_folder(folder, name.group.as_deref())
            }
            None => Self::of_volumes(request, warnings),
        }
    }

    fn of_folder(folder: &Path, group: Option<&str>) -> Result<Self> {
        let failed = |source| Error::Io { file: folder.display().to_string(), action: "list", source };
        let mut vdis = Vec::new();
        for entry in folder.read_dir().map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let Some(name) = VdiName::of(&path).filter(|n| n.group.as_deref() == group) else { continue };
            if vdis.len() >= MAX_VDIS {
                return Err(Error::Invalid(format!("{}: more than {MAX_VDIS} files: this is no repository", folder.display())));
            }
            vdis.push(Vdi { name, shown: path.display().to_string(), body: Body::File(path) });
        }
        vdis.sort_by(|a, b| a.name.uuid.cmp(&b.name.uuid));
        let shown = folder.display().to_string();
        let known = metadata_at(&folder.join(metadata::VOLUME));
        Ok(Repository { on_devices: shown.starts_with("/dev/"), shown, folder: folder.to_owned(), vdis, known })
    }

    fn of_volumes(request: &Request<'_>, warnings: &mut Vec<String>) -> Result<Self> {
        let shown = request.guest.display().to_string();
        let mut disks = Vec::new();
        for (index, path) in std::iter::once(request.guest).chain(request.disks.iter().map(|d| d.file.as_path())).enumerate() {
            let image = images::open(request, path, None, warnings)?;
            disks.push(GuestDisk { name: format!("xvd{}", guestfs::volume::letters(index)), image });
        }
        let volumes = Volumes::open(disks).map_err(|e| Error::Invalid(format!("{shown}: {e}")))?;
        warnings.extend(volumes.complaints.iter().map(|what| format!("{shown}: {what}")));
        let groups: Vec<_> = volumes.groups.iter().filter(|g| g.name.starts_with(GROUP)).collect();
        let [group] = groups[..] else {
            let what = match groups.len() {
                0 => format!("is no storage repository: no volume group {GROUP}… is on it, and its name is no VDI's"),
                _ => format!("holds several volume groups {GROUP}…: give the partition of one"),
            };
            let detail = volumes.complaints.iter().map(|c| format!("\n{c}")).collect::<String>();
            return Err(Error::Invalid(format!("{shown}: {what}{detail}")));
        };
        let mut vdis = Vec::new();
        for volume in &group.volumes {
            let Some(name) = VdiName::parse(&volume.name) else { continue };
            let shown = format!("{shown}#{}", volume.name);
            match &volume.image {
                Ok(image) => vdis.push(Vdi { name, shown, body: Body::Volume(image.clone()) }),
                Err(what) => warnings.push(format!("{shown} cannot be read: {what}")),
            }
        }
        vdis.sort_by(|a, b| a.name.uuid.cmp(&b.name.uuid));
        let names = group.volumes.iter().find(|v| v.name == metadata::VOLUME).and_then(|v| v.image.as_ref().ok());
        let known = names.map(|volume| metadata::read(volume.as_ref())).unwrap_or_default();
        Ok(Repository { shown, folder: PathBuf::new(), vdis, known, on_devices: false })
    }

    /// The VDI with this uuid. While a snapshot is merged, one may be there twice: as what it was, and as what it becomes.
    pub fn vdi(&self, uuid: &str) -> Option<&Vdi> {
        let mut all = self.vdis.iter().filter(|v| v.name.uuid.eq_ignore_ascii_case(uuid));
        let first = all.next()?;
        Some(all.find(|v| v.name.kind != Kind::Raw).unwrap_or(first))
    }

    /// The VDI that the user means.
    pub fn find(&self, uuid: &str, formats: &Formats) -> Result<&Vdi> {
        self.vdi(uuid).ok_or_else(|| {
            let what = format!("{}: has no VDI {uuid}: looked for {}{}", self.shown, VdiName::all(uuid), self.remedy());
            Error::Invalid(format!("{what}\n{}", self.listing(formats)))
        })
    }

    /// What may be done where a VDI is not there.
    pub fn remedy(&self) -> &'static str {
        if self.on_devices {
            "; activate its volume with 'lvchange -ay GROUP/VOLUME', or give the disk with the group: its volumes are read there as they are"
        } else {
            ""
        }
    }

    /// The VDI that is no other one's parent, if there is only one.
    pub fn only_leaf(&self, formats: &Formats) -> Result<&Vdi> {
        let leaves = self.leaves(formats);
        match leaves[..] {
            [only] => Ok(only),
            [] => Err(Error::Invalid(format!("{}: holds no VDI that is a disk of a machine{}", self.shown, self.remedy()))),
            _ => Err(Error::Invalid(format!(
                "{}: holds several VDIs: say which with --vdi UUID, once for each disk of the machine; 'xe vm-disk-list vm=NAME' on the pool \
                 shows them\n{}",
                self.shown,
                self.listing(formats)
            ))),
        }
    }

    /// VDIs that are not hidden, and no parents of others. What cannot be read may be one.
    fn leaves(&self, formats: &Formats) -> Vec<&Vdi> {
        let infos: Vec<Option<ImageInfo>> = self.vdis.iter().map(|vdi| vdi.look(formats).ok().map(|image| image.info())).collect();
        let parents: BTreeSet<String> = infos.iter().flatten().filter_map(parent).collect();
        let is_leaf = |(vdi, info): &(&Vdi, &Option<ImageInfo>)| !parents.contains(&vdi.name.uuid) && !info.as_ref().is_some_and(is_hidden);
        self.vdis.iter().zip(&infos).filter(is_leaf).map(|(vdi, _)| vdi).collect()
    }

    /// What the pool called a VDI.
    fn called(&self, vdi: &Vdi) -> String {
        let Some(known) = self.known.get(&vdi.name.uuid) else { return String::new() };
        let snapshot = if known.is_snapshot { " (a snapshot)" } else { "" };
        format!("  {}{snapshot}", known.name)
    }

    /// The VDIs that may be disks of machines, a line for each.
    fn listing(&self, formats: &Formats) -> String {
        let leaves = self.leaves(formats);
        let line = |vdi: &&Vdi| match vdi.look(formats) {
            Ok(image) => format!("  {}  {}{}", vdi.name.uuid, size::human(image.size()), self.called(vdi)),
            Err(e) => format!("  {}  cannot be read: {e}", vdi.name.uuid),
        };
        let mut lines: Vec<String> = leaves.iter().take(LISTED).map(line).collect();
        if leaves.len() > LISTED {
            lines.push(format!("  and {} more", leaves.len() - LISTED));
        }
        if lines.is_empty() { "It holds no VDI.".into() } else { format!("It holds:\n{}", lines.join("\n")) }
    }
}

/// What a device or file that may be missing says of VDIs.
fn metadata_at(path: &Path) -> BTreeMap<String, Known> {
    let volume = FileStorage::open(path).and_then(|storage| Raw::open(Arc::new(storage)));
    volume.map(|volume| metadata::read(&volume)).unwrap_or_default()
}

/// The VDI that an image names below it.
fn parent(info: &ImageInfo) -> Option<String> {
    let name = info.backing_file.as_ref()?.rsplit('/').next()?;
    VdiName::parse(name).map(|name| name.uuid)
}

/// Whether XenServer has made it for snapshots only.
fn is_hidden(info: &ImageInfo) -> bool {
    info.details.iter().any(|(key, value)| key == "hidden" && value == "true")
}
