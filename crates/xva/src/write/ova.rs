//! `ova.xml` as xapi exports it: the records of a machine and of all that it uses.
//!
//! The importer (xen-api's `import.ml`) creates what it finds by class: SR, VDI, VM, network, VBD, VIF. It reads each
//! record whole, and a field that it knows without a default must be there, so records are complete. A VDI's SR, a VBD's
//! VM and a VIF's network must be in the archive. Records of hosts and of guest metrics are only looked up where they
//! exist; a machine that never ran has none.

use std::fmt::Write;

use imgcore::xml::escape;

use super::machine::{Machine, Start};
use super::modern::Placed;

/// Ids before it are the machine's, the storage's and the network's.
pub(super) const FIRST_DISK: usize = 3;
const VM: usize = 0;
const SR: usize = 1;
const NETWORK: usize = 2;
const NULL: &str = "OpaqueRef:NULL";

/// The id of the record with this number.
pub(super) fn reference(number: usize) -> String {
    format!("Ref:{number}")
}

/// A value of XML-RPC, as xapi writes it: texts and whole numbers have no type.
enum Value<'a> {
    Text(String),
    Flag(bool),
    Double(f64),
    /// A time that has not been.
    Never,
    List(Vec<Value<'a>>),
    Struct(Vec<(&'a str, Value<'a>)>),
}

impl From<&str> for Value<'_> {
    fn from(text: &str) -> Self {
        Value::Text(text.into())
    }
}

impl From<String> for Value<'_> {
    fn from(text: String) -> Self {
        Value::Text(text)
    }
}

impl From<u64> for Value<'_> {
    fn from(number: u64) -> Self {
        Value::Text(number.to_string())
    }
}

impl From<bool> for Value<'_> {
    fn from(flag: bool) -> Self {
        Value::Flag(flag)
    }
}

/// `record! { "name" => value, … }`
macro_rules! record {
    ($($name:literal => $value:expr),* $(,)?) => { Value::Struct(vec![$(($name, Value::from($value))),*]) };
}

fn empty_list<'a>() -> Value<'a> {
    Value::List(Vec::new())
}

fn references<'a>(ids: impl Iterator<Item = String>) -> Value<'a> {
    Value::List(ids.map(Value::Text).collect())
}

/// Everything that the archive holds.
pub(super) fn modern(machine: &Machine, disks: &[Placed<'_>]) -> String {
    let first_vbd = FIRST_DISK + disks.len();
    let first_vif = first_vbd + disks.len();
    let vbds = || (first_vbd..first_vif).map(reference);
    let vifs = || (first_vif..first_vif + machine.nics.len()).map(reference);
    let mut objects = vec![
        object("VM", &reference(VM), vm(machine, references(vbds()), references(vifs()))),
        object("SR", &reference(SR), sr(machine, references(disks.iter().map(|d| d.id.clone())))),
    ];
    for disk in disks {
        let vbd = reference(first_vbd + disk.position);
        objects.push(object("VDI", &disk.id, vdi(machine, disk, &vbd)));
        objects.push(object("VBD", &vbd, self::vbd(machine, disk)));
    }
    if !machine.nics.is_empty() {
        objects.push(object("network", &reference(NETWORK), network(machine, references(vifs()))));
    }
    for (position, (mac, id)) in machine.nics.iter().zip(vifs()).enumerate() {
        objects.push(object("VIF", &id, vif(machine, position, mac)));
    }
    let version = record! {
        "hostname" => "localhost",
        // The same input has to give the same bytes; nobody reads it.
        "date" => "1970-01-01",
        "product_version" => env!("CARGO_PKG_VERSION"),
        "product_brand" => "Guestlift",
        "build_number" => "0",
        // The version whose records these are: an importer of a lower one refuses.
        "xapi_major" => 1,
        "xapi_minor" => 3,
        // Checksums follow their chunks.
        "export_vsn" => 2,
    };
    let mut xml = String::new();
    record! { "version" => version, "objects" => Value::List(objects) }.write(&mut xml);
    xml
}

fn object<'a>(class: &str, id: &str, snapshot: Value<'a>) -> Value<'a> {
    record! { "class" => class, "id" => id, "snapshot" => snapshot }
}

fn vm<'a>(machine: &Machine, vbds: Value<'a>, vifs: Value<'a>) -> Value<'a> {
    let uuid = machine.uuid("vm");
    let (policy, boot_params, domain_type) = match &machine.start {
        Start::Hvm { uefi } => {
            let firmware = if *uefi { "uefi" } else { "bios" };
            ("BIOS order", record! { "order" => "cdn", "firmware" => firmware }, "hvm")
        }
        Start::Pv { pvh, .. } => ("", record! {}, if *pvh { "pvh" } else { "pv" }),
    };
    let (bootloader, kernel, ramdisk, args) = match &machine.start {
        Start::Hvm { .. } => ("", "", "", ""),
        Start::Pv { kernel, args, .. } if kernel.is_empty() => ("pygrub", "", "", args.as_str()),
        Start::Pv { kernel, ramdisk, args, .. } => ("", kernel.as_str(), ramdisk.as_str(), args.as_str()),
    };
    record! {
        "uuid" => uuid,
        "allowed_operations" => empty_list(),
        "current_operations" => record! {},
        "name_label" => machine.name.as_str(),
        "name_description" => machine.description.as_str(),
        "power_state" => "Halted",
        "user_version" => 1,
        "is_a_template" => false,
        "is_default_template" => false,
        "suspend_VDI" => NULL,
        "resident_on" => NULL,
        "scheduled_to_be_resident_on" => NULL,
        "affinity" => NULL,
        "memory_overhead" => 0,
        "memory_target" => machine.memory,
        "memory_static_max" => machine.memory,
        "memory_dynamic_max" => machine.memory,
        "memory_dynamic_min" => machine.memory,
        "memory_static_min" => machine.memory,
        "VCPUs_params" => record! {},
        "VCPUs_max" => machine.vcpus,
        "VCPUs_at_startup" => machine.vcpus,
        "actions_after_shutdown" => "destroy",
        "actions_after_softreboot" => "soft_reboot",
        "actions_after_reboot" => "restart",
        "actions_after_crash" => "restart",
        "consoles" => empty_list(),
        "VIFs" => vifs,
        "VBDs" => vbds,
        "VUSBs" => empty_list(),
        "crash_dumps" => empty_list(),
        "VTPMs" => empty_list(),
        "PV_bootloader" => bootloader,
        "PV_kernel" => kernel,
        "PV_ramdisk" => ramdisk,
        "PV_args" => args,
        "PV_bootloader_args" => "",
        "PV_legacy_args" => "",
        "HVM_boot_policy" => policy,
        "HVM_boot_params" => boot_params,
        "HVM_shadow_multiplier" => Value::Double(1.0),
        "platform" => record! { "acpi" => "1", "apic" => "true", "pae" => "true", "nx" => "true", "viridian" => "false" },
        "PCI_bus" => "",
        "other_config" => record! { "mac_seed" => machine.uuid("mac_seed") },
        "domid" => "-1",
        "domarch" => "",
        "last_boot_CPU_flags" => record! {},
        "is_control_domain" => false,
        "metrics" => NULL,
        "guest_metrics" => NULL,
        "last_booted_record" => "",
        "recommendations" => "",
        "xenstore_data" => record! {},
        "ha_always_run" => false,
        "ha_restart_priority" => "",
        "is_a_snapshot" => false,
        "snapshot_of" => NULL,
        "snapshots" => empty_list(),
        "snapshot_time" => Value::Never,
        "transportable_snapshot_id" => "",
        "blobs" => record! {},
        "tags" => empty_list(),
        "blocked_operations" => record! {},
        "snapshot_info" => record! {},
        "snapshot_metadata" => "",
        "parent" => NULL,
        "children" => empty_list(),
        "bios_strings" => record! {},
        "protection_policy" => NULL,
        "is_snapshot_from_vmpp" => false,
        "snapshot_schedule" => NULL,
        "is_vmss_snapshot" => false,
        "appliance" => NULL,
        "start_delay" => 0,
        "shutdown_delay" => 0,
        "order" => 0,
        "VGPUs" => empty_list(),
        "attached_PCIs" => empty_list(),
        "suspend_SR" => NULL,
        "version" => 0,
        "generation_id" => "",
        "hardware_platform_version" => 0,
        "has_vendor_device" => false,
        "requires_reboot" => false,
        "reference_label" => "",
        "domain_type" => domain_type,
        "NVRAM" => record! {},
    }
}

fn sr<'a>(machine: &Machine, vdis: Value<'a>) -> Value<'a> {
    record! {
        "uuid" => machine.uuid("sr"),
        "name_label" => "Local storage",
        "name_description" => "",
        "allowed_operations" => empty_list(),
        "current_operations" => record! {},
        "VDIs" => vdis,
        "PBDs" => empty_list(),
        "virtual_allocation" => 0,
        "physical_utilisation" => 0,
        "physical_size" => 0,
        "type" => "lvm",
        "content_type" => "user",
        "shared" => false,
        "other_config" => record! {},
        "tags" => empty_list(),
        "sm_config" => record! {},
        "blobs" => record! {},
        "local_cache_enabled" => false,
        "introduced_by" => NULL,
        "clustered" => false,
        "is_tools_sr" => false,
    }
}

fn vdi<'a>(machine: &Machine, disk: &Placed<'_>, vbd: &str) -> Value<'a> {
    let uuid = machine.uuid(&format!("vdi {}", disk.position));
    record! {
        "uuid" => uuid.as_str(),
        "name_label" => disk.name,
        "name_description" => "",
        "allowed_operations" => empty_list(),
        "current_operations" => record! {},
        "SR" => reference(SR),
        "VBDs" => Value::List(vec![vbd.into()]),
        "crash_dumps" => empty_list(),
        "virtual_size" => disk.size,
        "physical_utilisation" => disk.size,
        "type" => "user",
        "sharable" => false,
        "read_only" => false,
        "other_config" => record! {},
        "storage_lock" => false,
        "location" => uuid.as_str(),
        "managed" => true,
        "missing" => false,
        "parent" => NULL,
        "xenstore_data" => record! {},
        "sm_config" => record! {},
        "is_a_snapshot" => false,
        "snapshot_of" => NULL,
        "snapshots" => empty_list(),
        "snapshot_time" => Value::Never,
        "tags" => empty_list(),
        "allow_caching" => false,
        "on_boot" => "persist",
        "metadata_of_pool" => NULL,
        "metadata_latest" => false,
        "is_tools_iso" => false,
        "cbt_enabled" => false,
    }
}

fn vbd<'a>(machine: &Machine, disk: &Placed<'_>) -> Value<'a> {
    record! {
        "uuid" => machine.uuid(&format!("vbd {}", disk.position)),
        "allowed_operations" => empty_list(),
        "current_operations" => record! {},
        "VM" => reference(VM),
        "VDI" => disk.id.as_str(),
        "device" => "",
        "userdevice" => disk.position as u64,
        "bootable" => disk.position == 0,
        "mode" => "RW",
        "type" => "Disk",
        "unpluggable" => disk.position != 0,
        "storage_lock" => false,
        "empty" => false,
        "other_config" => record! { "owner" => "" },
        "currently_attached" => false,
        "status_code" => 0,
        "status_detail" => "",
        "runtime_properties" => record! {},
        "qos_algorithm_type" => "",
        "qos_algorithm_params" => record! {},
        "qos_supported_algorithms" => empty_list(),
        "metrics" => NULL,
    }
}

fn network<'a>(machine: &Machine, vifs: Value<'a>) -> Value<'a> {
    record! {
        "uuid" => machine.uuid("network"),
        "name_label" => machine.network.as_str(),
        "name_description" => "",
        "allowed_operations" => empty_list(),
        "current_operations" => record! {},
        "VIFs" => vifs,
        "PIFs" => empty_list(),
        "MTU" => 1500,
        "other_config" => record! {},
        "bridge" => machine.bridge.as_str(),
        "managed" => true,
        "blobs" => record! {},
        "tags" => empty_list(),
        "default_locking_mode" => "unlocked",
        "assigned_ips" => record! {},
        "purpose" => empty_list(),
    }
}

fn vif<'a>(machine: &Machine, position: usize, mac: &str) -> Value<'a> {
    record! {
        "uuid" => machine.uuid(&format!("vif {position}")),
        "allowed_operations" => empty_list(),
        "current_operations" => record! {},
        "device" => position as u64,
        "network" => reference(NETWORK),
        "VM" => reference(VM),
        "MAC" => mac,
        "MTU" => 1500,
        "reserved" => false,
        "other_config" => record! {},
        "currently_attached" => false,
        "status_code" => 0,
        "status_detail" => "",
        "runtime_properties" => record! {},
        "qos_algorithm_type" => "",
        "qos_algorithm_params" => record! {},
        "qos_supported_algorithms" => empty_list(),
        "metrics" => NULL,
        "MAC_autogenerated" => false,
        "locking_mode" => "network_default",
        "ipv4_allowed" => empty_list(),
        "ipv6_allowed" => empty_list(),
        "ipv4_configuration_mode" => "None",
        "ipv4_addresses" => empty_list(),
        "ipv4_gateway" => "",
        "ipv6_configuration_mode" => "None",
        "ipv6_addresses" => empty_list(),
        "ipv6_gateway" => "",
    }
}

impl Value<'_> {
    fn write(&self, out: &mut String) {
        *out += "<value>";
        // Writing to a string cannot fail.
        let _ = match self {
            Value::Text(text) => {
                *out += &escape(text);
                Ok(())
            }
            Value::Flag(flag) => write!(out, "<boolean>{}</boolean>", u8::from(*flag)),
            Value::Double(number) => write!(out, "<double>{number:.1}</double>"),
            Value::Never => write!(out, "<dateTime.iso8601>19700101T00:00:00Z</dateTime.iso8601>"),
            Value::List(values) => {
                *out += "<array><data>";
                values.iter().for_each(|v| v.write(out));
                *out += "</data></array>";
                Ok(())
            }
            Value::Struct(members) => {
                *out += "<struct>";
                for (name, value) in members {
                    *out += "<member><name>";
                    *out += &escape(name);
                    *out += "</name>";
                    value.write(out);
                    *out += "</member>";
                }
                *out += "</struct>";
                Ok(())
            }
        };
        *out += "</value>";
    }
}
