//! Input `sr`: virtual disk images (VDIs) in a storage repository of XenServer or XCP-ng, without the pool that it belongs to.
//!
//! A repository is a folder (`<uuid>.vhd`, `.raw`, `.qcow2`), a volume group (`VHD-<uuid>`, `LV-<uuid>`, `QCOW2-<uuid>` of
//! `VG_XenStorage-<sr uuid>`) whose volumes are devices of this host, or the disk or image on which that group lies: its volumes are then
//! read by us, and nothing needs to be activated. Which VDIs make up a machine only the pool knows: `xe vm-disk-list`.

use std::path::Path;
use std::sync::Arc;

use imgcore::{Image, OpenOptions};

use super::{Input, Opened, Probe, Request, disk, images, running};
use crate::source::SourceDisk;
use crate::{Error, Result};

mod gate;
mod metadata;
mod name;
mod repository;

use gate::RepositoryGate;
use name::VdiName;
use repository::{Repository, Vdi};

/// The table's line.
pub const INPUT: Input = Input {
    mode: "sr",
    about: "disks of a storage repository of XenServer: its folder, its volume group or the disk with that",
    probe,
    read,
};

/// What a physical volume of LVM begins with, in one of its first sectors.
const LABEL: &[u8] = b"LABELONE";
/// XenServer keeps 10 MiB of metadata before a group's first extent.
const METADATA: u64 = 12 << 20;

fn probe(probe: &Probe<'_>) -> bool {
    if probe.is_stdin() {
        return false;
    }
    if probe.is_folder {
        let names = probe.path.read_dir().into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        return names.take(repository::MAX_VDIS).any(|name| VdiName::parse(&name).is_some());
    }
    VdiName::of(probe.path).is_some() || (probe.head.chunks(512).take(4).any(|s| s.starts_with(LABEL)) && has_group(probe.path))
}

/// Whether the metadata on a physical volume is that of a repository: a guest may have a volume group on a whole disk, too.
fn has_group(path: &Path) -> bool {
    let mut metadata = Vec::new();
    let file = std::fs::File::open(path).map(|file| std::io::Read::take(file, METADATA));
    let read = file.and_then(|mut file| std::io::Read::read_to_end(&mut file, &mut metadata));
    let prefix = name::GROUP.as_bytes();
    read.is_ok() && metadata.windows(prefix.len()).any(|w| w == prefix)
}

/// A VDI that the user names: `--vdi UUID`, or `--vdi xvdb=UUID`.
struct Wanted<'a> {
    target: Option<&'a str>,
    uuid: &'a str,
}

fn read(request: &Request<'_>) -> Result<Opened> {
    let place = request.guest.display().to_string();
    if place == "-" {
        return Err(Error::Invalid("a storage repository cannot be read from standard input: give its folder or its device".into()));
    }
    let mut warnings = Vec::new();
    let repository = Repository::open(request, &mut warnings)?;
    let own = VdiName::of(request.guest).filter(|_| !request.guest.is_dir());
    let named = request.vdis.iter().map(|text| match text.split_once('=') {
        Some((target, uuid)) => Wanted { target: Some(target.trim_start_matches("/dev/")), uuid },
        None => Wanted { target: None, uuid: text },
    });
    let own = own.as_ref().map(|name| Wanted { target: None, uuid: &name.uuid });
    let mut wanted: Vec<Wanted<'_>> = named.collect();
    // The VDI that is GUEST itself comes first, unless it is named once more.
    wanted.splice(0..0, own.filter(|own| wanted.iter().all(|w| !w.uuid.eq_ignore_ascii_case(own.uuid))));
    let only = if wanted.is_empty() { Some(repository.only_leaf(request.formats)?) } else { None };
    wanted.extend(only.map(|vdi| Wanted { target: None, uuid: &vdi.name.uuid }));

    let mut disks: Vec<SourceDisk> = Vec::new();
    for Wanted { target, uuid } in &wanted {
        let vdi = repository.find(uuid, request.formats)?;
        let image = open(request, &repository, vdi)?;
        let target = target.map_or_else(|| disks.len().to_string(), str::to_owned);
        disks.push(SourceDisk {
            target,
            size: image.size(),
            image: Some(image),
            read_only: false,
            bootable: false,
            origin: vdi.shown.clone(),
        });
    }
    images::check_distinct(&disks)?;
    let first = wanted.first().map_or("guest", |w| w.uuid);
    warnings.push(format!("a storage repository does not name its machines: the guest is called {first}; -on gives it a name"));
    Ok(disk::bare(first.to_owned(), disks, warnings, format!("storage repository {place}")).into())
}

fn open(request: &Request<'_>, repository: &Repository, vdi: &Vdi) -> Result<Arc<dyn Image>> {
    if let Some(path) = vdi.path().filter(|_| !request.in_use) {
        running::check_device(path)?;
    }
    let gate = RepositoryGate { repository, allow: request.allow };
    let options = OpenOptions::new(&gate).exclusive().format(vdi.name.kind.format());
    let image = vdi.storage().and_then(|storage| request.formats.open_storage(storage, &options));
    image.map_err(|e| images::explain(e.into()))
}

#[cfg(test)]
mod tests;
