//! The two phases of a guest on a XenServer: an export of a snapshot while it runs, then what has changed since that snapshot.

use ::xva::Stream;
use imgcore::vhd::incoming::{self, Content};
use imgcore::{ImageMut, Progress};
use serde::{Deserialize, Serialize};

use super::export::{self, Remote};
use super::listing::{self, Vm};
use super::snapshot::{self, Snapshot};
use super::{Pool, describe};
use crate::input::{Opened, Request, xva};
use crate::source::Source;
use crate::{Error, Result};

/// What was copied: a snapshot of a guest, which must stay until the difference to it was fetched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// The guest's UUID.
    pub vm: String,
    /// The snapshot's UUID.
    pub snapshot: String,
    /// Its disks.
    pub disks: Vec<BaseDisk>,
}

/// One disk of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseDisk {
    /// The guest's name or number of it.
    pub device: String,
    /// The snapshot's disk.
    pub uuid: String,
    /// The guest's disk that it was taken of.
    pub of: String,
}

/// A snapshot that was taken; gone when this is dropped, unless it is kept.
pub struct Begun {
    /// What was copied, once it is.
    pub base: Base,
    snapshot: Snapshot,
}

impl Begun {
    /// Leaves the snapshot on the server, and says what it is.
    pub fn keep(self) -> Base {
        self.snapshot.keep();
        self.base
    }
}

/// Takes a snapshot, of a guest that runs or not.
fn take(pool: &Pool, vm: &Vm) -> Result<Begun> {
    let snapshot = Snapshot::take(&pool.session, vm)?;
    let all = listing::all(&pool.session)?;
    let taken = all.iter().find(|other| other.reference == snapshot.reference);
    let taken = taken.ok_or_else(|| Error::Invalid(format!("{}: the snapshot of {} is gone already", pool.host, vm.name)))?;
    let mut disks = Vec::new();
    for disk in &taken.disks {
        let of = vm.disks.iter().find(|d| d.device == disk.device && d.size == disk.size);
        let of = of.ok_or_else(|| {
            Error::Invalid(format!("{}: disk {} of {} changed while the snapshot was taken: begin again", pool.host, disk.device, vm.name))
        })?;
        disks.push(BaseDisk { device: disk.device.clone(), uuid: disk.uuid.clone(), of: of.uuid.clone() });
    }
    Ok(Begun { base: Base { vm: vm.uuid.clone(), snapshot: taken.uuid.clone(), disks }, snapshot })
}

/// Takes a snapshot and begins its export.
pub fn begin(request: &Request<'_>) -> Result<(Opened, Begun)> {
    let pool = Pool::open(request.guest, request.remote)?;
    let vm = pool.find(request.machine)?;
    let begun = take(&pool, vm)?;
    let name = format!("{} on {}", vm.name, pool.host);
    let path = format!("/export?ref={}{}", begun.snapshot.reference, pool.packing(request.remote)?);
    let file = Remote { session: pool.session.clone(), path, name: name.clone() };
    let request = Request { machine: None, ..request.clone() };
    let mut opened = export::Exported::open(file, None, |stream| xva::source(&request, stream.appliance(), &name, &mut |_| Ok(None)))?;
    describe(&mut opened.source, vm, &name);
    Ok((opened, begun))
}

/// What has changed of a guest since it was copied.
pub struct Differences {
    /// The guest as it is now; its disks have no images.
    pub source: Source,
    /// The snapshot that the changes lead to; `None` when they lead to the guest itself, which is shut down.
    pub begun: Option<Begun>,
    /// In the order of the base's disks: the device, and where its difference comes from.
    disks: Vec<(String, Remote)>,
}

/// Finds what has changed since `base`. With `again` that is up to a new snapshot, and the guest may run; else it must be shut down.
pub fn differences(request: &Request<'_>, base: &Base, again: bool) -> Result<Differences> {
    let pool = Pool::open(request.guest, request.remote)?;
    let vm = pool.find(request.machine)?;
    let refuse = |what: String| Err(Error::Invalid(format!("{}: {what}", pool.host)));
    let anew = "begin anew with --phase copy --force";
    if vm.uuid != base.vm {
        return refuse(format!("{} ({}) is not the guest that was copied, which is {}: {anew}", vm.name, vm.uuid, base.vm));
    }
    if !again && vm.is_running() {
        return refuse(format!("{} is running: shut it down, then '--phase finish' fetches what has changed", vm.name));
    }
    if !pool.all.iter().any(|other| other.uuid == base.snapshot) {
        return refuse(format!("the snapshot of {} that was copied is gone, so what has changed since cannot be told: {anew}", vm.name));
    }
    let same = vm.disks.len() == base.disks.len()
        && vm.disks.iter().all(|disk| base.disks.iter().any(|b| b.device == disk.device && b.of == disk.uuid));
    if !same {
        return refuse(format!("{} has other disks than when it was copied: {anew}", vm.name));
    }
    let begun = if again { Some(take(&pool, vm)?) } else { None };
    let name = format!("{} on {}", vm.name, pool.host);
    let description = Remote {
        session: pool.session.clone(),
        path: format!("/export_metadata?ref={}&export_snapshots=false", vm.reference),
        name: name.clone(),
    };
    let inner = Request { machine: None, ..request.clone() };
    let mut source = description.repeated(0, &imgcore::NoProgress, &mut |body| {
        let stream = Stream::open(body, &name)?;
        xva::source(&inner, stream.appliance(), &name, &mut |_| Ok(None)).map(|(source, _)| source)
    })?;
    describe(&mut source, vm, &name);
    let disks = base.disks.iter().map(|disk| {
        let now = begun.as_ref().and_then(|b| b.base.disks.iter().find(|d| d.of == disk.of)).map_or(&disk.of, |d| &d.uuid);
        let path = format!("/export_raw_vdi?vdi={now}&format=vhd&base={}", disk.uuid);
        (disk.device.clone(), Remote { session: pool.session.clone(), path, name: format!("disk {} of {name}", disk.device) })
    });
    let disks = disks.collect();
    Ok(Differences { source, begun, disks })
}

impl Differences {
    /// Puts what has changed of a disk onto its copy; gives the bytes of it. The copy may have part of it already.
    pub fn apply(&self, device: &str, target: &dyn ImageMut, progress: &dyn Progress) -> Result<u64> {
        let Some((_, remote)) = self.disks.iter().find(|(name, _)| name.strip_prefix("/dev/").unwrap_or(name) == device) else {
            return Err(Error::Invalid(format!("{}: no disk {device} was copied", self.source.origin)));
        };
        remote.repeated(0, progress, &mut |mut body| Ok(incoming::receive(&mut body, &remote.name, Content::Difference, target, progress)?))
    }
}

/// Removes the snapshot of a copy, if it is there still.
pub fn forget(request: &Request<'_>, base: &Base) -> Result<()> {
    let pool = Pool::open(request.guest, request.remote)?;
    let vm = pool.all.iter().find(|vm| vm.uuid == base.snapshot && vm.is_snapshot);
    vm.map_or(Ok(()), |vm| snapshot::remove(&pool.session, &vm.reference))
}
