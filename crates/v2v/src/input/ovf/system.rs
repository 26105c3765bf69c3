//! One machine of a descriptor: what its `<Item>`s are, and what VMware, VirtualBox and XenServer say of it besides.

use roxmltree::Node;

use super::envelope::{At, Disk, attribute, find, text};
use super::units;
use crate::input::xen_vif;
use crate::source::{Boot, Nic};
use crate::{Error, Result};

/// A machine.
#[derive(Clone, Debug)]
pub(super) struct System {
    pub id: String,
    pub name: String,
    pub uuid: Option<String>,
    pub description: String,
    pub memory_mib: Option<u64>,
    pub vcpus: Option<u32>,
    pub boot: Boot,
    pub local_time: bool,
    pub drives: Vec<Drive>,
    pub nics: Vec<Nic>,
    pub cds: Vec<Cd>,
    pub warnings: Vec<String>,
}

/// A disk drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Drive {
    /// Which of the envelope's disks.
    pub disk: usize,
    /// XenServer's position of it.
    pub target: Option<String>,
    pub bootable: bool,
}

/// A CD drive with a disc.
#[derive(Clone, Debug)]
pub(super) struct Cd {
    pub name: String,
    pub disc: String,
}

/// CIM_ResourceAllocationSettingData's numbers of what an item is.
mod kind {
    pub const PROCESSOR: &str = "3";
    pub const MEMORY: &str = "4";
    pub const ETHERNET: &str = "10";
    pub const CD: &str = "15";
    pub const DVD: &str = "16";
    pub const DISK: &str = "17";
    pub const PCI: &str = "12";
    pub const LOGICAL_DISK: &str = "31";
}

impl System {
    /// `choice` is the configuration that is deployed.
    pub fn parse(at: At<'_>, node: Node<'_, '_>, disks: &[Disk], choice: Option<&str>) -> Result<Self> {
        let hardware = hardware(node).ok_or_else(|| at.error(node, "a machine without a <VirtualHardwareSection>"))?;
        let vssd = find(hardware, "System").next();
        let of_system = |name| vssd.and_then(|s| text(s, name));
        let id = attribute(node, "id").unwrap_or_default().to_owned();
        let name = text(node, "Name").or_else(|| of_system("VirtualSystemIdentifier")).unwrap_or_else(|| id.clone());
        let virtual_box = find(node, "Machine").next();
        let uuids = [virtual_box.and_then(|m| attribute(m, "uuid")), Some(id.as_str())];
        let uuid = uuids.into_iter().flatten().map(|u| u.trim_matches(['{', '}'])).find(|u| is_uuid(u)).map(str::to_owned);
        let xen = Xen::parse(hardware, &of_system("VirtualSystemType").unwrap_or_default());
        let mut system = System {
            name: if name.is_empty() { "guest".into() } else { name },
            id,
            uuid,
            description: find(node, "AnnotationSection").find_map(|s| text(s, "Annotation")).unwrap_or_default(),
            memory_mib: None,
            vcpus: None,
            boot: boot(node, &xen),
            local_time: descendant(virtual_box, "RTC").and_then(|r| attribute(r, "localOrUTC")).is_some_and(|z| z == "local"),
            drives: Vec::new(),
            nics: Vec::new(),
            cds: Vec::new(),
            warnings: Vec::new(),
        };
        if node
            .descendants()
            .any(|n| attribute(n, "key") == Some("bootOptions.efiSecureBootEnabled") && attribute(n, "value") == Some("true"))
        {
            system.warnings.push(format!("{} starts with secure boot, which is not set up", system.name));
        }
        let items = Items::new(hardware, choice);
        system.read(at, &items, disks)?;
        system.name_nics(virtual_box);
        Ok(system)
    }

    fn read(&mut self, at: At<'_>, items: &Items<'_, '_>, disks: &[Disk]) -> Result<()> {
        let mut drives = Vec::new();
        for (position, item) in items.0.iter().enumerate() {
            match text(*item, "ResourceType").unwrap_or_default().as_str() {
                kind::PROCESSOR => {
                    let number = text(*item, "VirtualQuantity").and_then(|q| q.parse::<u32>().ok()).filter(|n| (1..=4096).contains(n));
                    self.vcpus = Some(number.ok_or_else(|| at.error(*item, "no number of processors that a guest can have"))?);
                }
                kind::MEMORY => self.memory_mib = Some(memory_mib(at, *item)?),
                kind::ETHERNET => self.nics.push(Nic {
                    mac: text(*item, "Address").and_then(|a| mac(&a)),
                    network: text(*item, "Connection").filter(|c| !c.is_empty()),
                    model: text(*item, "ResourceSubType"),
                    ..Nic::default()
                }),
                kind::DISK | kind::LOGICAL_DISK => {
                    let Some(disk) = disk_of(at, *item, disks)? else { continue };
                    drives.push((items.order(*item, position), drive(*item, disk)));
                }
                kind::CD | kind::DVD => {
                    let name = text(*item, "ElementName").or(text(*item, "Caption")).unwrap_or_else(|| "a drive".into());
                    self.cds.extend(text(*item, "HostResource").map(|disc| Cd { name, disc }));
                }
                kind::PCI => self.warnings.push("a PCI device of the host was passed through, and is not taken over".into()),
                _ => {}
            }
        }
        drives.sort_by_key(|(order, _)| *order);
        self.drives = drives.into_iter().map(|(_, drive)| drive).collect();
        Ok(())
    }

    /// VirtualBox tells MAC addresses in a part of its own, adapter by adapter.
    fn name_nics(&mut self, virtual_box: Option<Node<'_, '_>>) {
        let Some(network) = descendant(virtual_box, "Network") else { return };
        let adapters = find(network, "Adapter").filter(|a| attribute(*a, "enabled") == Some("true"));
        let macs: Vec<Option<String>> = adapters.map(|a| attribute(a, "MACAddress").and_then(mac)).collect();
        for (nic, mac) in self.nics.iter_mut().zip(macs) {
            nic.mac = nic.mac.take().or(mac);
        }
    }
}

/// What XenServer writes for itself.
struct Xen {
    is_paravirtual: bool,
    is_uefi: bool,
}

impl Xen {
    fn parse(hardware: Node<'_, '_>, kind: &str) -> Self {
        let settings = find(hardware, "VirtualSystemOtherConfigurationData");
        let setting = |wanted: &'static str| {
            move |n: &Node<'_, '_>| {
                let name = attribute(*n, "Name").map(str::to_owned).or(text(*n, "Name")).unwrap_or_default();
                name.replace('-', "_").eq_ignore_ascii_case(wanted)
            }
        };
        let value = |n: Node<'_, '_>| attribute(n, "Value").map(str::to_owned).or(text(n, "Value")).unwrap_or_default();
        let boot = settings.filter(setting("HVM_boot_params")).map(value).next().unwrap_or_default();
        let is_uefi = boot.split(';').any(|pair| pair.split_once('=').is_some_and(|(k, v)| k.trim() == "firmware" && v.trim() == "uefi"));
        Xen { is_paravirtual: kind.starts_with("xen-") || kind == "DMTF:xen:pv", is_uefi }
    }
}

fn boot(node: Node<'_, '_>, xen: &Xen) -> Boot {
    if xen.is_paravirtual {
        return Boot::Direct { kernel: None, ramdisk: None, cmdline: String::new(), pvh: false };
    }
    let is_vmware = |n: &Node<'_, '_>| matches!(n.tag_name().name(), "Config" | "ExtraConfig") && attribute(*n, "key") == Some("firmware");
    let vmware = node.descendants().find(is_vmware).and_then(|n| attribute(n, "value")).is_some_and(|v| v.eq_ignore_ascii_case("efi"));
    let of_box = node.descendants().find(|n| n.tag_name().name() == "Firmware").and_then(|n| attribute(n, "type"));
    if xen.is_uefi || vmware || of_box.is_some_and(|t| t.starts_with("EFI")) { Boot::Uefi } else { Boot::Bios }
}

/// A package may describe the hardware of several hypervisors: Xen's is preferred.
fn hardware<'a, 'd>(system: Node<'a, 'd>) -> Option<Node<'a, 'd>> {
    let all: Vec<_> = find(system, "VirtualHardwareSection").collect();
    let is_xen = |n: &&Node<'_, '_>| {
        let kind = find(**n, "System").next().and_then(|s| text(s, "VirtualSystemType")).unwrap_or_default();
        kind.starts_with("xen-") || kind.starts_with("hvm-")
    };
    all.iter().find(is_xen).or(all.first()).copied()
}

/// The items of a machine that are deployed.
struct Items<'a, 'd>(Vec<Node<'a, 'd>>);

impl<'a, 'd: 'a> Items<'a, 'd> {
    fn new(hardware: Node<'a, 'd>, choice: Option<&str>) -> Self {
        let is_item = |n: &Node<'_, '_>| matches!(n.tag_name().name(), "Item" | "StorageItem" | "EthernetPortItem");
        // Bounds of a range are no hardware.
        let is_real = |n: &Node<'_, '_>| attribute(*n, "bound").is_none_or(|b| b == "normal");
        let is_chosen = |n: &Node<'_, '_>| {
            attribute(*n, "configuration").is_none_or(|c| choice.is_some_and(|choice| c.split_whitespace().any(|one| one == choice)))
        };
        Items(hardware.children().filter(is_item).filter(is_real).filter(is_chosen).collect())
    }

    /// Disks in the order of their controllers, and of their places at these; an item without a controller stays where it stands.
    fn order(&self, item: Node<'_, '_>, position: usize) -> (usize, u64, usize) {
        let parent = text(item, "Parent");
        let is_parent = |n: &Node<'_, '_>| parent.is_some() && text(*n, "InstanceID") == parent;
        let controller = self.0.iter().position(is_parent).unwrap_or(position);
        let place = text(item, "AddressOnParent").and_then(|a| a.parse().ok()).unwrap_or(0);
        (controller, place, position)
    }
}

/// The disk of a drive, by `ovf:/disk/ID`; `None` for a drive of a file, which is a disc or a floppy.
fn disk_of(at: At<'_>, item: Node<'_, '_>, disks: &[Disk]) -> Result<Option<usize>> {
    let instance = text(item, "InstanceID").unwrap_or_default();
    let Some(resource) = text(item, "HostResource") else {
        // XenServer gives drive and disk the same id.
        return Ok(disks.iter().position(|d| d.id == instance));
    };
    let Some((_, id)) = resource.split_once("/disk/") else { return Ok(None) };
    let found = disks.iter().position(|d| d.id == id).or_else(|| disks.iter().position(|d| d.id == instance));
    found.map(Some).ok_or_else(|| at.error(item, format!("a drive with the disk {id}, which is not listed")))
}

fn drive(item: Node<'_, '_>, disk: usize) -> Drive {
    // device=0,bootable=true,mode=RW
    let connection = text(item, "Connection").unwrap_or_default();
    let setting =
        |name: &str| connection.split(',').find_map(|pair| pair.trim().split_once('=').filter(|(k, _)| *k == name)).map(|(_, v)| v);
    let target = setting("device").filter(|d| !d.is_empty() && d.len() < 8 && d.bytes().all(|b| b.is_ascii_alphanumeric()));
    Drive { disk, target: target.map(str::to_owned), bootable: setting("bootable") == Some("true") }
}

fn memory_mib(at: At<'_>, item: Node<'_, '_>) -> Result<u64> {
    let bad = || -> Error { at.error(item, "no amount of memory that a guest can have") };
    let quantity = text(item, "VirtualQuantity").and_then(|q| q.parse::<u64>().ok()).ok_or_else(bad)?;
    let unit = text(item, "AllocationUnits");
    // Without a unit bytes are meant, and old producers mean MiB.
    let unit = match unit.as_deref() {
        None if quantity < 1 << 20 => 1 << 20,
        unit => units::bytes(unit.unwrap_or_default()).ok_or_else(bad)?,
    };
    quantity.checked_mul(unit).map(|bytes| bytes >> 20).filter(|mib| (1..=64 << 20).contains(mib)).ok_or_else(bad)
}

/// With colons, or as VirtualBox writes it.
fn mac(text: &str) -> Option<String> {
    if text.len() == 12 && text.is_ascii() {
        let pairs: Vec<&str> = (0..12).step_by(2).filter_map(|at| text.get(at..at + 2)).collect();
        return xen_vif::mac(&pairs.join(":"));
    }
    xen_vif::mac(text)
}

fn descendant<'a, 'd: 'a>(node: Option<Node<'a, 'd>>, name: &'static str) -> Option<Node<'a, 'd>> {
    node?.descendants().find(|n| n.tag_name().name() == name)
}

fn is_uuid(text: &str) -> bool {
    let lengths = [8, 4, 4, 4, 12];
    let parts: Vec<&str> = text.split('-').collect();
    parts.len() == lengths.len() && parts.iter().zip(lengths).all(|(p, n)| p.len() == n && p.bytes().all(|b| b.is_ascii_hexdigit()))
}
