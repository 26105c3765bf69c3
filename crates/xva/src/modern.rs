//! A modern `ova.xml`: XenServer's database records, resolved to machines and disks.

use std::collections::HashMap;

use imgcore::{Error, Result};

use crate::model::{Appliance, Boot, Disk, Drive, Form, HostPolicy, Nic, Role, Vm};
use crate::xmlrpc::Value;
use crate::{XVA, legacy, xmlrpc};

/// Parses either kind of `ova.xml`. `name` is the archive's.
pub(crate) fn parse_ova(raw: &[u8], name: &str) -> Result<Appliance> {
    let text = String::from_utf8_lossy(raw);
    let text = text.trim_start_matches('\u{feff}').trim_start();
    let document = xmlrpc::document(text, name)?;
    let root = document.root_element();
    match root.tag_name().name() {
        "appliance" => legacy::parse(root, name),
        "value" => resolve(&xmlrpc::value(root, name)?, name),
        other => Err(Error::corrupt(name, XVA, None, format!("ova.xml starts with <{other}>: neither <value> nor <appliance>"))),
    }
}

/// The records, by class and in order.
struct Objects<'a> {
    all: Vec<(&'a str, &'a str, &'a Value)>,
    by_id: HashMap<&'a str, &'a Value>,
}

impl<'a> Objects<'a> {
    fn new(root: &'a Value) -> Self {
        let all: Vec<_> =
            root.get("objects").elements().iter().map(|o| (o.get("class").text(), o.get("id").text(), o.get("snapshot"))).collect();
        let by_id = all.iter().map(|(_, id, snapshot)| (*id, *snapshot)).collect();
        Objects { all, by_id }
    }

    fn class(&self, class: &'static str) -> impl Iterator<Item = (&'a str, &'a Value)> {
        self.all.iter().filter(move |(c, _, _)| c.eq_ignore_ascii_case(class)).map(|(_, id, snapshot)| (*id, *snapshot))
    }

    fn find(&self, id: &str) -> Option<&'a Value> {
        self.by_id.get(id).copied()
    }
}

fn resolve(root: &Value, name: &str) -> Result<Appliance> {
    let bad = |what: String| Error::corrupt(name, XVA, None, format!("ova.xml: {what}"));
    let objects = Objects::new(root);
    let version = root.get("version");
    let product = format!("{} {}", version.get("product_brand").text(), version.get("product_version").text()).trim().to_string();
    let form = Form::Modern { export_vsn: version.get("export_vsn").number().unwrap_or(2) };
    let mut appliance = Appliance { form, product, vms: Vec::new(), disks: Vec::new(), warnings: Vec::new() };

    // The records' own lists (VM.VBDs, VM.VIFs, VDI.VBDs) may name what is not there: only the other direction counts.
    let mut indices = HashMap::new();
    let mut drives: HashMap<&str, Vec<Drive>> = HashMap::new();
    for (id, vbd) in objects.class("VBD") {
        let vdi_id = vbd.get("VDI").text();
        if vbd.get("type").text().eq_ignore_ascii_case("CD") || vbd.get("empty").truth() || is_null(vdi_id) {
            continue;
        }
        let Some(vdi) = objects.find(vdi_id) else {
            appliance
                .warnings
                .push(format!("drive {} ({id}) refers to disk {vdi_id}, which the archive does not hold", vbd.get("userdevice").text()));
            continue;
        };
        if objects.find(vdi.get("SR").text()).is_some_and(|sr| sr.get("content_type").text() == "iso") {
            continue;
        }
        let disk = match indices.get(vdi_id) {
            Some(disk) => *disk,
            None => {
                appliance.disks.push(disk(vdi_id, vdi, Role::Disk).map_err(bad)?);
                indices.insert(vdi_id, appliance.disks.len() - 1);
                appliance.disks.len() - 1
            }
        };
        drives.entry(vbd.get("VM").text()).or_default().push(Drive {
            disk,
            device: vbd.get("userdevice").text().to_string(),
            bootable: vbd.get("bootable").truth(),
            read_only: vbd.get("mode").text().eq_ignore_ascii_case("RO"),
            shared: vdi.get("sharable").truth(),
        });
    }
    for (id, vdi) in objects.class("VDI").filter(|(_, v)| v.get("type").text().eq_ignore_ascii_case("suspend")) {
        if !indices.contains_key(id) {
            appliance.disks.push(disk(id, vdi, Role::Suspend).map_err(bad)?);
            indices.insert(id, appliance.disks.len() - 1);
        }
    }
    for (id, vm) in objects.class("VM").filter(|(_, v)| !v.get("is_control_domain").truth()) {
        let mut drives = drives.remove(id).unwrap_or_default();
        drives.sort_by(|a, b| a.order().cmp(&b.order()));
        let has = |class| objects.class(class).any(|(_, object)| object.get("VM").text() == id);
        let host = host_policy(vm, [("VUSB", "USB devices"), ("VGPU", "a part of a graphics card")].into_iter().filter(|(c, _)| has(*c)));
        let host = HostPolicy { discs: discs(&objects, id), ..host };
        appliance.vms.push(Vm { host, ..self::vm(vm, drives, nics(&objects, id), has("VTPM")) });
    }
    if appliance.vms.is_empty() {
        return Err(bad("it describes no virtual machine".into()));
    }
    appliance.vms.sort_by_key(|v| (v.snapshot, v.template));
    Ok(appliance)
}

fn discs(objects: &Objects<'_>, vm: &str) -> Vec<(String, String)> {
    let holds_one =
        |vbd: &&Value| vbd.get("type").text().eq_ignore_ascii_case("CD") && !vbd.get("empty").truth() && !is_null(vbd.get("VDI").text());
    let drives = objects.class("VBD").map(|(_, vbd)| vbd).filter(|vbd| vbd.get("VM").text() == vm);
    let name = |vbd: &Value| objects.find(vbd.get("VDI").text()).map_or("a disc", |vdi| vdi.get("name_label").text()).to_string();
    drives.filter(holds_one).map(|vbd| (vbd.get("userdevice").text().to_string(), name(vbd))).collect()
}

fn is_null(reference: &str) -> bool {
    reference.is_empty() || reference == "OpaqueRef:NULL" || reference == "NULL"
}

fn disk(id: &str, vdi: &Value, role: Role) -> Result<Disk, String> {
    if id.contains(['/', '\0']) || id == "." || id == ".." {
        return Err(format!("'{}' cannot be the id of a disk", id.escape_default()));
    }
    let size = vdi.get("virtual_size");
    Ok(Disk {
        id: id.into(),
        name: vdi.get("name_label").text().into(),
        description: vdi.get("name_description").text().into(),
        uuid: vdi.get("uuid").text().into(),
        size: size
            .number()
            .filter(|s| *s <= i64::MAX as u64)
            .ok_or_else(|| format!("the size of disk {id} is '{}': not a number of bytes", size.text().escape_default()))?,
        role,
    })
}

fn nics(objects: &Objects<'_>, vm: &str) -> Vec<Nic> {
    let mut nics: Vec<_> = objects
        .class("VIF")
        .filter(|(_, vif)| vif.get("VM").text() == vm)
        .map(|(_, vif)| {
            let network = objects.find(vif.get("network").text());
            let text = |key| network.map_or("", |n| n.get(key).text()).to_string();
            let device = vif.get("device").number().and_then(|n| u32::try_from(n).ok());
            Nic { mac: vif.get("MAC").text().into(), bridge: text("bridge"), network: text("name_label"), device }
        })
        .collect();
    nics.sort_by_key(|nic| nic.device.unwrap_or(u32::MAX));
    nics
}

fn vm(vm: &Value, drives: Vec<Drive>, nics: Vec<Nic>, vtpm: bool) -> Vm {
    let power_state = vm.get("power_state").text();
    // What it runs with, not the most that it may be given.
    let memory = ["memory_dynamic_max", "memory_static_max", "memory_target"].iter().find_map(|k| vm.get(k).number().filter(|n| *n > 0));
    let vcpus = ["VCPUs_at_startup", "VCPUs_max"].iter().find_map(|k| vm.get(k).number().filter(|n| *n > 0));
    Vm {
        name: vm.get("name_label").text().into(),
        description: vm.get("name_description").text().into(),
        uuid: vm.get("uuid").text().into(),
        memory: memory.unwrap_or(0),
        vcpus: vcpus.unwrap_or(0),
        boot: boot(vm),
        drives,
        nics,
        suspended: power_state.eq_ignore_ascii_case("suspended"),
        template: vm.get("is_a_template").truth(),
        snapshot: vm.get("is_a_snapshot").truth(),
        vtpm,
        host: HostPolicy::default(),
    }
}

fn host_policy(vm: &Value, devices: impl Iterator<Item = (&'static str, &'static str)>) -> HostPolicy {
    let other = vm.get("other_config");
    let in_vapp = !is_null(vm.get("appliance").text());
    let kept_running = vm.get("ha_restart_priority").text() == "restart" || vm.get("ha_always_run").truth();
    let pci = (!other.get("pci").text().is_empty()).then_some("PCI devices");
    HostPolicy {
        autostart: kept_running || other.get("auto_poweron").text() == "true",
        // 0 is the first turn, and what every other machine has too.
        order: vm.get("order").number().filter(|order| *order > 0 || in_vapp || kept_running),
        start_delay: vm.get("start_delay").number().filter(|seconds| *seconds > 0),
        local_time: vm.get("platform").get("timeoffset").text().parse().is_ok_and(is_zone),
        devices: pci.into_iter().chain(devices.map(|(_, name)| name)).collect(),
        discs: Vec::new(),
    }
}

/// Whether a clock that differs so from its host's runs in local time: zones lie quarters of an hour apart, and all else is a clock that is wrong.
fn is_zone(seconds: i64) -> bool {
    let seconds = seconds.unsigned_abs();
    seconds > 840 && (seconds + 60) % 900 <= 120
}

fn boot(vm: &Value) -> Boot {
    let text = |key| Some(vm.get(key).text().to_string()).filter(|t| !t.is_empty());
    let domain_type = vm.get("domain_type").text().to_ascii_lowercase();
    let hvm = match domain_type.as_str() {
        "hvm" => true,
        "pv" | "pv_in_pvh" | "pvh" => false,
        _ => text("HVM_boot_policy").is_some(),
    };
    if hvm {
        let firmware = vm.get("HVM_boot_params").get("firmware").text().to_ascii_lowercase();
        let secure = vm.get("platform").get("secureboot").text().to_ascii_lowercase();
        return Boot::Hvm { uefi: firmware == "uefi", secure_boot: matches!(secure.as_str(), "true" | "1" | "auto") };
    }
    Boot::Pv {
        bootloader: text("PV_bootloader"),
        kernel: text("PV_kernel"),
        ramdisk: text("PV_ramdisk"),
        args: vm.get("PV_args").text().into(),
        pvh: domain_type == "pvh",
    }
}
