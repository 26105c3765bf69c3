//! Input `xenserver`: a guest of a XenServer or XCP-ng, exported over HTTPS and converted while it comes.

mod address;
mod client;
mod difference;
mod export;
mod listing;
mod session;
mod snapshot;
mod tls;

use std::path::Path;
use std::sync::Arc;

pub use difference::{Base, BaseDisk, Begun, Differences, begin, differences, forget};
pub use listing::{Vm, VmDisk};

use super::remote::{self, Packing, Remote};
use super::{Input, Opened, Request, xva};
use crate::source::Source;
use crate::{Error, Result};
use address::Address;
use session::Session;
use snapshot::Snapshot;

/// The table's line.
pub const INPUT: Input = Input {
    mode: "xenserver",
    about: "a guest of a XenServer or XCP-ng: its host, and the guest's name or UUID; or https://HOST/export?uuid=…",
    probe: |probe| remote::is_url(probe.path),
    read,
};

/// A pool that was logged in to, and all that it has.
struct Pool {
    address: Address,
    /// The host as the user named it, for messages.
    host: String,
    session: Arc<Session>,
    all: Vec<Vm>,
}

impl Pool {
    fn open(guest: &Path, remote: &Remote) -> Result<Self> {
        remote::check_url(guest)?;
        let text = guest.to_str().ok_or_else(|| Error::Invalid(format!("{}: no host has such a name", guest.display())))?;
        let address = Address::parse(text).map_err(|what| Error::Invalid(format!("{text}: {what}")))?;
        let user = address.user.as_deref().or(remote.user.as_deref()).unwrap_or("root");
        let session = Arc::new(Session::open(&address.server, user, remote)?);
        let all = listing::all(&session)?;
        let host = address.server.to_string();
        Ok(Pool { address, host, session, all })
    }

    fn find(&self, name: Option<&str>) -> Result<&Vm> {
        match (&self.address.guest, name) {
            (Some(named), None) => listing::by_address(&self.all, named, &self.host),
            (None, Some(name)) => listing::by_name(&self.all, name, &self.host),
            (Some(_), Some(_)) => Err(Error::Invalid(format!("{}: the guest is named twice: by the address, and behind it", self.host))),
            (None, None) => Err(Error::Invalid(format!(
                "{0}: which guest? 'v2v -i xenserver {0}' lists them; write its name behind the host",
                self.host
            ))),
        }
    }

    /// The part of a query that asks for the export to be packed.
    fn packing(&self, remote: &Remote) -> Result<&'static str> {
        let version = self.session.version.as_deref();
        let major: u32 = version.and_then(|v| v.split('.').next()?.parse().ok()).unwrap_or(0);
        match remote.compression.or(self.address.compression) {
            None => Ok(""),
            Some(Packing::Gzip) => Ok("&use_compression=gzip"),
            Some(Packing::Zstd) if major >= 8 => Ok("&use_compression=zstd"),
            Some(Packing::Zstd) => Err(Error::Invalid(format!(
                "{}: its version {} does not know zstd: ask for gzip, or for nothing",
                self.host,
                version.unwrap_or("is unknown, and")
            ))),
        }
    }
}

/// The guests of a pool, without snapshots, templates and the hosts' own machines; or the one that the address names.
pub fn list(guest: &Path, remote: &Remote) -> Result<Vec<Vm>> {
    let pool = Pool::open(guest, remote)?;
    if pool.address.guest.is_some() {
        return Ok(vec![pool.find(None)?.clone()]);
    }
    Ok(listing::guests(&pool.all).cloned().collect())
}

/// The address of a guest's export, on the host as the user named it.
pub fn export_address(host: &Path, vm: &Vm) -> Result<String> {
    let text = host.to_string_lossy();
    let address = Address::parse(&text).map_err(|what| Error::Invalid(format!("{text}: {what}")))?;
    Ok(address.export(&vm.uuid))
}

/// The name of the guest that is meant.
pub fn name(request: &Request<'_>) -> Result<String> {
    let pool = Pool::open(request.guest, request.remote)?;
    Ok(pool.find(request.machine)?.name.clone())
}

fn read(request: &Request<'_>) -> Result<Opened> {
    let remote = request.remote;
    let pool = Pool::open(request.guest, remote)?;
    let vm = pool.find(request.machine)?;
    let (session, host) = (&pool.session, &pool.host);
    let mut warnings = Vec::new();
    let left = pool.all.iter().find(|other| other.is_snapshot && other.name == format!("{}{}", snapshot::PREFIX, vm.name));
    if let Some(left) = left {
        warnings.push(format!(
            "{host} has a snapshot of {} that an earlier conversion left: remove it there ('xe snapshot-uninstall uuid={}')",
            vm.name, left.uuid
        ));
    }
    if pool.address.server.plain {
        warnings.push(format!("{host} was asked without TLS: the password and the disks went over the network for all to read"));
    }
    if vm.power_state == "Suspended" {
        warnings.push(format!(
            "{} is suspended, not shut down: its memory is not taken over, and its filesystems are as after a power cut",
            vm.name
        ));
    }
    let snapshot = match vm.is_running() {
        false => None,
        true if remote.snapshot => Some(Snapshot::take(session, vm)?),
        true => {
            return Err(Error::Invalid(format!(
                "{host}: {} is running: shut it down, or convert it from a snapshot with --snapshot, which lacks what it writes from then on",
                vm.name
            )));
        }
    };
    let is_snapshot = snapshot.is_some();
    let exported = snapshot.as_ref().map_or(&vm.reference, |s| &s.reference);
    let path = format!("/export?ref={exported}{}", pool.packing(remote)?);
    let name = format!("{} on {host}", vm.name);
    let file = export::Remote { session: session.clone(), path, name: name.clone() };
    // The machine's name is found already, and a snapshot has another.
    let request = Request { machine: None, ..request.clone() };
    let mut opened = export::Exported::open(file, snapshot, |stream| xva::source(&request, stream.appliance(), &name, &mut |_| Ok(None)))?;
    describe(&mut opened.source, vm, &name);
    if is_snapshot {
        warnings.push(format!(
            "{} was running: this is a snapshot of it, without what it writes from now on, and its filesystems are as after a power cut",
            vm.name
        ));
    }
    opened.source.warnings.splice(0..0, warnings);
    Ok(opened)
}

/// Gives a source the name of the guest, whatever of it was exported.
fn describe(source: &mut Source, vm: &Vm, name: &str) {
    source.name.clone_from(&vm.name);
    source.uuid = Some(vm.uuid.clone());
    source.origin = format!("{name} ({})", vm.uuid);
    // The archive's own word for a snapshot names that, and not the guest.
    source.warnings.retain(|w| !w.starts_with(snapshot::PREFIX));
}
