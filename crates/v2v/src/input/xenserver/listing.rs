//! The guests of a pool: listing them, and finding the one that is meant.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::address::{Named, is_word};
use super::session::{Session, number, printable, text};
use crate::{Error, Result};

/// How like a wrong name a right one must be to be told.
const LIKENESS: f32 = 0.6;

/// One guest of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    /// Its name, which others may have too.
    pub name: String,
    /// What no other has.
    pub uuid: String,
    /// `Running`, `Halted`, `Suspended` or `Paused`.
    pub power_state: String,
    /// Bytes of memory.
    pub memory: u64,
    /// Its disks, by their position.
    pub disks: Vec<VmDisk>,
    #[serde(skip)]
    pub(super) reference: String,
    #[serde(skip)]
    pub(super) is_snapshot: bool,
    #[serde(skip)]
    pub(super) is_template: bool,
}

/// One disk of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmDisk {
    /// Its position: `0`, or a name as `xvda`.
    pub device: String,
    /// What its owner called it.
    pub name: String,
    /// What no other has.
    pub uuid: String,
    /// Size in bytes.
    pub size: u64,
}

impl Vm {
    /// Whether its disks may change.
    pub fn is_running(&self) -> bool {
        !matches!(self.power_state.as_str(), "Halted" | "Suspended")
    }
}

/// All machines of the pool but its hosts' own, snapshots and templates among them.
pub(super) fn all(session: &Session) -> Result<Vec<Vm>> {
    let [vms, vbds, vdis] = ["VM", "VBD", "VDI"].map(|class| session.call(&format!("{class}.get_all_records"), json!([])));
    let (vms, vbds, vdis) = (vms?, vbds?, vdis?);
    let flag = |record: &Value, field: &str| record[field].as_bool().unwrap_or(false);
    let mut all: Vec<Vm> = Vec::new();
    for (reference, vm) in vms.as_object().into_iter().flatten() {
        if flag(vm, "is_control_domain") || !is_word(text(vm, "uuid")) || !is_word(reference) {
            continue;
        }
        // What a machine says of its disks may be out of date; the disks themselves are not.
        let own = vbds.as_object().into_iter().flatten().map(|(_, vbd)| vbd);
        let own = own.filter(|vbd| text(vbd, "VM") == reference && text(vbd, "type") != "CD" && !flag(vbd, "empty"));
        let mut disks: Vec<_> = own
            .filter_map(|vbd| {
                let vdi = vdis.get(text(vbd, "VDI"))?;
                Some(VmDisk {
                    device: printable(text(vbd, "userdevice")),
                    name: printable(text(vdi, "name_label")),
                    uuid: Some(text(vdi, "uuid")).filter(|uuid| is_word(uuid))?.to_owned(),
                    size: number(vdi, "virtual_size"),
                })
            })
            .collect();
        disks.sort_by(|a, b| (a.device.len(), &a.device).cmp(&(b.device.len(), &b.device)));
        all.push(Vm {
            name: printable(text(vm, "name_label")),
            uuid: text(vm, "uuid").to_owned(),
            power_state: printable(text(vm, "power_state")),
            memory: number(vm, "memory_static_max"),
            disks,
            reference: reference.clone(),
            is_snapshot: flag(vm, "is_a_snapshot"),
            is_template: flag(vm, "is_a_template"),
        });
    }
    all.sort_by(|a, b| (&a.name, &a.uuid).cmp(&(&b.name, &b.uuid)));
    Ok(all)
}

/// Those that a person means by guests.
pub(super) fn guests(all: &[Vm]) -> impl Iterator<Item = &Vm> {
    all.iter().filter(|vm| !vm.is_snapshot && !vm.is_template)
}

/// The one that an address names.
pub(super) fn by_address<'a>(all: &'a [Vm], named: &Named, server: &str) -> Result<&'a Vm> {
    let (found, what) = match named {
        Named::Uuid(uuid) => (all.iter().find(|vm| vm.uuid.eq_ignore_ascii_case(uuid)), uuid),
        Named::Reference(reference) => (all.iter().find(|vm| vm.reference == *reference), reference),
    };
    found.ok_or_else(|| Error::Invalid(format!("{server}: has no guest {what}: 'v2v -i xenserver {server}' lists those that it has")))
}

/// The one that is meant by a name or UUID. Snapshots and templates are found by their UUID only.
pub(super) fn by_name<'a>(all: &'a [Vm], wanted: &str, server: &str) -> Result<&'a Vm> {
    if let Some(vm) = all.iter().find(|vm| vm.uuid.eq_ignore_ascii_case(wanted)) {
        return Ok(vm);
    }
    let named: Vec<_> = guests(all).filter(|vm| vm.name == wanted).collect();
    match named[..] {
        [only] => Ok(only),
        [] => {
            let near = near(all, wanted);
            let next = if near.is_empty() {
                format!("'v2v -i xenserver {server}' lists its guests")
            } else {
                format!("near that are {}", near.join(", "))
            };
            Err(Error::Invalid(format!("{server}: has no guest called '{wanted}': {next}")))
        }
        _ => {
            let uuids: Vec<_> = named.iter().map(|vm| vm.uuid.as_str()).collect();
            Err(Error::Invalid(format!("{server}: several guests are called '{wanted}': say which by its UUID: {}", uuids.join(", "))))
        }
    }
}

/// Up to five names that may have been meant, the nearest first.
fn near(all: &[Vm], wanted: &str) -> Vec<String> {
    let wanted = wanted.to_lowercase();
    let likeness = |vm: &Vm| {
        let name = vm.name.to_lowercase();
        let contains = name.contains(&wanted) || (!name.is_empty() && wanted.contains(&name));
        let ratio = similar::TextDiff::from_chars(name.as_str(), wanted.as_str()).ratio();
        if contains { ratio.max(LIKENESS) } else { ratio }
    };
    let mut near: Vec<_> = guests(all).map(|vm| (likeness(vm), &vm.name)).filter(|(likeness, _)| *likeness >= LIKENESS).collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    near.dedup_by(|a, b| a.1 == b.1);
    near.into_iter().take(5).map(|(_, name)| format!("'{name}'")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(name: &str, uuid: &str) -> Vm {
        Vm {
            name: name.into(),
            uuid: uuid.into(),
            power_state: "Halted".into(),
            memory: 0,
            disks: Vec::new(),
            reference: format!("OpaqueRef:{uuid}"),
            is_snapshot: false,
            is_template: false,
        }
    }

    #[test]
    fn guests_are_found_by_name_or_uuid() {
        let template = Vm { is_template: true, ..vm("web", "t") };
        let all = [vm("web", "1"), vm("Webserver", "2"), vm("db", "3"), vm("db", "4"), template];
        assert_eq!(by_name(&all, "web", "xen1").unwrap().uuid, "1");
        assert_eq!(by_name(&all, "t", "xen1").unwrap().name, "web");
        assert_eq!(by_address(&all, &Named::Reference("OpaqueRef:3".into()), "xen1").unwrap().uuid, "3");
        for (wanted, said) in [
            ("wbe", "called 'wbe': near that are 'web'"),
            ("webserver", "near that are 'Webserver', 'web'"),
            ("mail", "'v2v -i xenserver xen1' lists its guests"),
            ("db", "several guests are called 'db': say which by its UUID: 3, 4"),
        ] {
            let error = by_name(&all, wanted, "xen1").unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
