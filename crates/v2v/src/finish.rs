//! The end of every conversion: the machine is described, started once if that was asked for, and all gets its place.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use guestfs::machine::MachineSpec;
use imgcore::nbd::uri::Uri;
use imgcore::{Image, ImageMut, Overlay};

use crate::bootcheck::{self, BootReport};
use crate::layout::Layout;
use crate::options::{Host, Request};
use crate::output::nbd::{self, NbdDisk};
use crate::output::{Bus, DiskFormat, Folder, Handover, Machine, MachineDisk, documents, names, xva};
use crate::report::{Clock, Report};
use crate::source::Source;
use crate::{Error, Result};

/// The boot check gives a guest no less memory than it needs to start, and no more than a busy host has.
const CHECK_MEMORY_MIB: std::ops::RangeInclusive<u64> = 256..=2048;
/// A domain of ours is no longer.
const DOMAIN_LIMIT: u64 = 4 << 20;

/// What the result is called: as the user says, else as the source's guest. Where a result of another guest has that name, which its UUID
/// tells, a piece of this one's UUID is added.
pub(crate) fn name(request: &Request, source: &Source) -> Result<String> {
    if let Some(name) = &request.name {
        return names::chosen(name);
    }
    let name = names::safe(&source.name);
    let there = uuid_of(&request.out.join(format!("{name}.xml")));
    match (&source.uuid, there) {
        (Some(own), Some(other)) if !own.eq_ignore_ascii_case(&other) => {
            let digits: String = own.chars().filter(char::is_ascii_hexdigit).take(8).collect();
            Ok(format!("{name}-{digits}"))
        }
        _ => Ok(name),
    }
}

/// The UUID in a domain that is there already.
fn uuid_of(domain: &Path) -> Option<String> {
    if domain.metadata().ok()?.len() > DOMAIN_LIMIT {
        return None;
    }
    let text = std::fs::read_to_string(domain).ok()?;
    let document = roxmltree::Document::parse(&text).ok()?;
    let uuid = document.root_element().children().find(|n| n.has_tag_name("uuid"))?;
    uuid.text().map(|t| t.trim().to_owned())
}

/// The files of the result, in the order in which they get their place.
pub(crate) fn files(request: &Request, name: &str, layout: &Layout) -> Vec<String> {
    let documents = || documents(request.target, &request.handover).iter().map(|document| document.file(name));
    match request.handover {
        Handover::Appliance => vec![mark(request, name)],
        Handover::Nbd(_) => documents().collect(),
        _ => disk_files(request, name, layout).into_iter().chain(documents()).collect(),
    }
}

/// The files that hold the disks while the result is made; all results but appliances keep them.
pub(crate) fn disk_files(request: &Request, name: &str, layout: &Layout) -> Vec<String> {
    layout.disks.iter().map(|d| format!("{name}-{}.{}", d.device, request.format.name())).collect()
}

/// The file that comes last: where it is, the result is whole.
pub(crate) fn mark(request: &Request, name: &str) -> String {
    match (&request.handover, documents(request.target, &request.handover).last()) {
        (Handover::Appliance, _) | (_, None) => format!("{name}.xva"),
        (_, Some(last)) => last.file(name),
    }
}

/// Refuses to replace what the result is made of, `--force` or not.
fn spare_source(request: &Request, source: &Source, folder: &Folder, files: &[String]) -> Result<()> {
    let real = |path: &Path| path.canonicalize().ok();
    let disks = source.disks.iter().map(|d| Path::new(&d.origin));
    let used: Vec<_> = disks.chain([request.guest.as_path()]).filter_map(real).collect();
    match files.iter().filter_map(|f| real(&folder.path_of(f))).find(|f| used.contains(f)) {
        None => Ok(()),
        Some(file) => Err(Error::Invalid(format!(
            "{}: the result would replace its own source; choose another -os, or another name with -on",
            file.display()
        ))),
    }
}

/// The new machine, with the target's own devices. `arch` is inspection's word.
pub(crate) fn machine(request: &Request, source: &Source, layout: &Layout, arch: &str, name: &str, folder: &Folder) -> Machine {
    let files = disk_files(request, name, layout);
    let servers: &[Uri] = match &request.handover {
        Handover::Nbd(servers) => servers,
        _ => &[],
    };
    let disk = |(index, (disk, file)): (usize, (&crate::layout::TargetDisk, &String))| MachineDisk {
        device: disk.device.clone(),
        bus: Bus::default(),
        file: folder.path_of(file),
        server: servers.get(index).cloned(),
        size: disk.size,
        format: if servers.is_empty() { request.format } else { DiskFormat::Raw },
        read_only: disk.volumes.iter().all(|v| source.disks.get(v.disk).is_some_and(|d| d.read_only)) && !disk.volumes.is_empty(),
    };
    Machine {
        name: name.into(),
        uuid: source.uuid.clone(),
        description: source.description.clone(),
        memory_mib: source.memory_mib,
        vcpus: source.vcpus,
        arch: if arch == "i386" { "i686".into() } else { "x86_64".into() },
        uefi: source.boot == crate::source::Boot::Uefi,
        local_time: source.local_time,
        policy: source.policy.clone(),
        disks: layout.disks.iter().zip(&files).enumerate().map(disk).collect(),
        nics: Machine::nics(source, &request.plugs),
    }
}

/// Refuses to begin where a file of the result is there already, or is what the result is made of.
pub(crate) fn check_free(request: &Request, source: &Source, folder: &Folder, files: &[String]) -> Result<()> {
    if request.discard {
        return Ok(());
    }
    if !request.force {
        folder.check_free(files)?;
    }
    spare_source(request, source, folder, files)
}

/// The disks on servers, where they go there.
pub(crate) fn remote(request: &Request, layout: &Layout, host: &Host<'_>, clock: &mut Clock<'_>) -> Result<Vec<Arc<NbdDisk>>> {
    match &request.handover {
        Handover::Nbd(servers) => {
            clock.stage("Looking at the servers' disks", || nbd::begin(servers, layout, request.force, host.progress))
        }
        _ => Ok(Vec::new()),
    }
}

/// Checks that the result boots, if that was asked for, and describes it.
pub(crate) fn describe(
    request: &Request,
    host: &Host<'_>,
    clock: &mut Clock<'_>,
    machine: &Machine,
    targets: Vec<Arc<dyn ImageMut>>,
    folder: &Folder,
) -> Result<Option<BootReport>> {
    clock.stage("Writing everything out", || targets.iter().try_for_each(|t| t.flush()))?;
    let boot_check = match request.check_boot {
        None => None,
        Some(patience) => Some(clock.stage("Starting the result", || check_boot(request, machine, &targets, folder, patience, host))?),
    };
    if host.progress.cancelled() {
        return Err(imgcore::Error::Cancelled.into());
    }
    if request.handover == Handover::Appliance {
        let disks = targets.iter().map(|t| t.clone() as Arc<dyn Image>).collect();
        let file = folder.work().join(mark(request, &machine.name));
        clock.stage("Packing the appliance", || xva::write(machine, disks, &file, host.progress))?;
        return Ok(boot_check);
    }
    drop(targets);
    for document in documents(request.target, &request.handover) {
        folder.write(&document.file(&machine.name), &(document.text)(machine), document.executable)?;
    }
    Ok(boot_check)
}

/// Puts all into place, unless it is a rehearsal.
pub(crate) fn hand_over(
    request: &Request,
    folder: Folder,
    files: &[String],
    remote: &[Arc<NbdDisk>],
    report: &Report,
    ready: &mut dyn FnMut(&Report) -> Result<()>,
) -> Result<()> {
    if request.discard {
        return ready(report);
    }
    folder.make_way(files, request.force)?;
    ready(report)?;
    nbd::finish(remote)?;
    folder.commit(files)
}

fn check_boot(
    request: &Request,
    machine: &Machine,
    targets: &[Arc<dyn ImageMut>],
    folder: &Folder,
    patience: Duration,
    host: &Host<'_>,
) -> Result<BootReport> {
    let overlay = |target: &Arc<dyn ImageMut>| {
        let overlay = Overlay::in_folder(target.clone() as Arc<dyn Image>, folder.work())?;
        Ok(Arc::new(overlay) as Arc<dyn ImageMut>)
    };
    let spec = MachineSpec {
        memory_mib: machine.memory_mib.clamp(*CHECK_MEMORY_MIB.start(), *CHECK_MEMORY_MIB.end()),
        vcpus: machine.vcpus.clamp(1, 4),
        disks: targets.iter().map(overlay).collect::<Result<_>>()?,
        macs: machine.nics.iter().map(|n| n.mac.clone()).collect(),
        uefi: machine.uefi,
        emulated: request.target.is_xen(),
    };
    bootcheck::check(host.machines, &spec, patience, &mut |bytes| host.events.console(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_are_told_apart_by_uuid() {
        let folder = tempfile::tempdir().unwrap();
        let (mut source, _) = crate::testing::xen_tools_guest();
        let request = Request { out: folder.path().into(), ..Request::default() };
        let called = |source: &Source| name(&request, source).unwrap();
        let mut there = crate::output::example();
        there.uuid = Some("4dea22b3-1d52-d8f3-2516-782e98ab3fa0".into());
        std::fs::write(folder.path().join("web.xml"), crate::output::libvirt::domain(&there)).unwrap();
        assert_eq!(called(&source), "web", "without a UUID nobody knows");
        source.uuid = there.uuid.as_ref().map(|u| u.to_uppercase());
        assert_eq!(called(&source), "web", "the same guest again");
        source.uuid = Some("0badcafe-1d52-d8f3-2516-782e98ab3fa0".into());
        assert_eq!(called(&source), "web-0badcafe");
        let chosen = Request { name: Some("db".into()), ..request.clone() };
        assert_eq!(name(&chosen, &source).unwrap(), "db");
        std::fs::write(folder.path().join("web.xml"), "rubbish").unwrap();
        assert_eq!(called(&source), "web");
    }
}
