//! Input `ovf`: the Open Virtualization Format (DMTF DSP0243) as VMware, VirtualBox and XenServer export it: a folder with a descriptor,
//! or an OVA, the tar of one, which is read in place.

use std::sync::Arc;

use guestfs::volume::letters;
use imgcore::raw::Raw;
use imgcore::storage::{ImageStorage, MemStorage};
use imgcore::{Image, OpenOptions, size};

use super::{Input, Opened, Probe, Request, images, left_out};
use crate::source::{Policy, Source, SourceDisk};
use crate::{Error, Result};

mod envelope;
mod manifest;
mod package;
mod system;
mod units;

use envelope::{Disk, Envelope};
use manifest::Manifest;
use package::Package;
use system::System;

/// The table's line.
pub const INPUT: Input =
    Input { mode: "ovf", about: "an OVF (its descriptor or its folder) or OVA of VMware, VirtualBox or XenServer", probe, read };

const FORMAT: &str = "OVF";
const DEFAULT_MEMORY_MIB: u64 = 1024;

fn probe(probe: &Probe<'_>) -> bool {
    if probe.is_stdin() {
        return false;
    }
    if probe.is_folder {
        return package::descriptor_in(probe.path).is_some();
    }
    let head = probe.head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(probe.head).trim_ascii_start();
    let is_descriptor = head.starts_with(b"<") && head.windows(9).any(|w| w == b"Envelope " || w == b"Envelope\n" || w == b"Envelope\r");
    // The first member of an OVA is its descriptor: so DSP0243 wants it.
    let name = probe.head.get(..100).unwrap_or_default().split(|b| *b == 0).next().unwrap_or_default();
    let is_archive = probe.head.get(257..262) == Some(b"ustar") && name.to_ascii_lowercase().ends_with(b".ovf");
    let is_called = |end: &str| probe.path.extension().is_some_and(|e| e.eq_ignore_ascii_case(end));
    is_descriptor || is_archive || is_called("ovf") || is_called("ova")
}

fn read(request: &Request<'_>) -> Result<Opened> {
    let file = request.guest.display().to_string();
    if file == "-" {
        return Err(Error::Invalid("an OVF cannot be read from standard input: give its descriptor or an OVA as a file".into()));
    }
    let package = Package::open(request.guest, request.allow)?;
    let descriptor = package.read(package.descriptor(), package::DESCRIPTOR_LIMIT)?;
    let manifest = Manifest::of(&package)?;
    if let Some(manifest) = &manifest {
        manifest.check_bytes(package.descriptor(), &descriptor)?;
    }
    let envelope = Envelope::parse(&package.shown(package.descriptor()), &descriptor)?;
    let system = choose(&envelope, request.machine, &file)?;
    let mut warnings = system.warnings.clone();
    let disks = disks(request, &package, &envelope, system, &mut warnings)?;
    let memory_mib = system.memory_mib.unwrap_or_else(|| {
        warnings.push(format!("{file} gives no memory: {DEFAULT_MEMORY_MIB} MiB are assumed"));
        DEFAULT_MEMORY_MIB
    });
    match &manifest {
        None => warnings.push(format!("{file} has no manifest: whether its disks are as they were exported cannot be told")),
        Some(manifest) => {
            let bare = |d: &&Disk| d.file.as_ref().is_some_and(|f| !manifest.has(&f.href));
            warnings.extend(envelope.disks.iter().filter(bare).map(|d| format!("disk {}: the manifest has no checksum of it", d.id)));
        }
    }
    warnings.extend(system.cds.iter().map(|cd| left_out::cd_drive(&cd.name, &cd.disc)));
    let source = Source {
        name: system.name.clone(),
        uuid: system.uuid.clone(),
        description: system.description.clone(),
        memory_mib,
        vcpus: system.vcpus.unwrap_or(1),
        boot: system.boot.clone(),
        disks,
        nics: system.nics.clone(),
        local_time: system.local_time,
        policy: Policy::default(),
        warnings,
        origin: format!("OVF {file}"),
    };
    let files: Vec<String> = system.drives.iter().filter_map(|d| Some(envelope.disks.get(d.disk)?.file.as_ref()?.href.clone())).collect();
    let verify = manifest.map(|manifest| -> super::Verify { Box::new(move |progress| manifest.check(&package, &files, progress)) });
    Ok(Opened { verify, ..source.into() })
}

/// The machine that is meant.
fn choose<'a>(envelope: &'a Envelope, wanted: Option<&str>, file: &str) -> Result<&'a System> {
    let is_wanted = |s: &&System| wanted.is_none_or(|w| s.name == w || s.id == w || s.uuid.as_deref() == Some(w));
    let candidates: Vec<&System> = envelope.systems.iter().filter(is_wanted).collect();
    match candidates[..] {
        [only] => Ok(only),
        _ => {
            let names: Vec<_> = envelope.systems.iter().map(|s| s.name.as_str()).collect();
            let problem = match (wanted, names.is_empty()) {
                (_, true) => return Err(Error::Invalid(format!("{file}: describes no machine"))),
                (Some(name), _) => format!("has not one machine called '{name}'"),
                (None, _) => "holds several machines".into(),
            };
            Err(Error::Invalid(format!("{file}: {problem}: say which with --machine NAME: {}", names.join(", "))))
        }
    }
}

fn disks(
    request: &Request<'_>,
    package: &Package,
    envelope: &Envelope,
    system: &System,
    warnings: &mut Vec<String>,
) -> Result<Vec<SourceDisk>> {
    let mut disks: Vec<SourceDisk> = Vec::new();
    for drive in &system.drives {
        let Some(disk) = envelope.disks.get(drive.disk) else { continue };
        // Whatever the controller, Linux calls such disks sda, sdb, … on VMware and VirtualBox.
        let target = drive.target.clone().unwrap_or_else(|| format!("sd{}", letters(disks.len())));
        let (image, origin) = match request.disks.iter().find(|d| d.target.as_deref() == Some(&target)) {
            Some(own) => (images::open(request, &own.file, own.format.as_deref(), warnings)?, own.file.display().to_string()),
            None => open(request, package, disk)?,
        };
        if let Some(capacity) = disk.capacity.filter(|c| *c != image.size() && disk.file.is_some()) {
            warnings.push(format!(
                "disk {target}: the descriptor gives it {}, its file has {}: the file counts",
                size::human(capacity),
                size::human(image.size())
            ));
        }
        disks.push(SourceDisk { target, size: image.size(), image: Some(image), read_only: false, bootable: drive.bootable, origin });
    }
    super::xen_config::add_named(request, &mut disks, warnings)?;
    if disks.is_empty() {
        return Err(Error::Invalid(format!("{}: {} has no disk: name one with --disk sda=FILE", request.guest.display(), system.name)));
    }
    images::check_distinct(&disks)?;
    Ok(disks)
}

fn open(request: &Request<'_>, package: &Package, disk: &Disk) -> Result<(Arc<dyn Image>, String)> {
    let Some(file) = &disk.file else {
        // Never written by anyone.
        let capacity = disk.capacity.ok_or_else(|| Error::Invalid(format!("disk {} has neither a file nor a capacity", disk.id)))?;
        let blank = Raw::create(Arc::new(MemStorage::new(&disk.id, 0)), capacity)?;
        return Ok((Arc::new(blank), format!("(empty) {}", disk.id)));
    };
    let shown = package.shown(&file.href);
    if file.is_split {
        return Err(Error::Invalid(format!(
            "{shown}: it is split into chunks: put them together with 'cat {0}.* >{0}' and take ovf:chunkSize \
                                           out of the descriptor",
            file.href
        )));
    }
    let storage = match file.is_gzip {
        false => package.storage(&file.href)?,
        true => Arc::new(ImageStorage::new(package.unpacked(&file.href)?, &shown)),
    };
    let options = OpenOptions::new(package).exclusive().format(disk.format());
    let image = request.formats.open_storage(storage, &options).map_err(|e| images::explain(e.into()))?;
    Ok((image, shown))
}

#[cfg(test)]
mod tests;
