//! Input `libvirtxml`: a libvirt domain of type `xen`.

use std::path::{Path, PathBuf};

use roxmltree::{Document, Node};

use super::images::{self, Named};
use super::xen_config::{add_named, is_grub, is_hvmloader};
use super::{Input, Opened, Request, autostart, left_out, read_config, xen_disk, xen_vif};
use crate::source::{Boot, Nic, Source, SourceDisk};
use crate::{Error, Result};

/// The table's line.
pub const INPUT: Input = Input { mode: "libvirtxml", about: "a libvirt domain of type xen, and the disks that it names", probe, read };

fn probe(probe: &super::Probe<'_>) -> bool {
    let head = probe.head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(probe.head).trim_ascii_start();
    head.starts_with(b"<") && head.windows(7).any(|w| w == b"<domain")
}

fn read(request: &Request<'_>) -> Result<Opened> {
    let file = request.guest.display().to_string();
    if file == "-" {
        return Err(Error::Invalid("a libvirt domain cannot be read from standard input: give it as a file".into()));
    }
    let text = read_config(request.guest)?;
    let options = roxmltree::ParsingOptions { nodes_limit: 100_000, ..Default::default() };
    let document = Document::parse_with_options(&text, options).map_err(|e| Error::Config {
        file: file.clone(),
        line: e.pos().row as usize,
        what: format!("not well-formed XML: {e}"),
    })?;
    Domain { request, file: &file, document: &document }.source().map(Into::into)
}

struct Domain<'a> {
    request: &'a Request<'a>,
    file: &'a str,
    document: &'a Document<'a>,
}

impl<'a> Domain<'a> {
    fn error(&self, node: Node<'_, '_>, what: impl Into<String>) -> Error {
        let line = self.document.text_pos_at(node.range().start).row as usize;
        Error::Config { file: self.file.into(), line, what: what.into() }
    }

    fn source(&self) -> Result<Source> {
        let root = self.document.root_element();
        let domain = root.descendants().find(|n| n.has_tag_name("domain"));
        let domain = domain.ok_or_else(|| self.error(root, format!("<{}> is no domain", root.tag_name().name())))?;
        if domain.attribute("type") != Some("xen") {
            let kind = domain.attribute("type").unwrap_or("");
            return Err(self.error(domain, format!("the domain is of type '{kind}', not 'xen': there is nothing to convert")));
        }
        let mut warnings = Vec::new();
        let name = text(domain, "name").ok_or_else(|| self.error(domain, "<name> is missing"))?;
        let vcpus = match child(domain, "vcpu") {
            None => 1,
            Some(vcpu) => {
                let number = vcpu.attribute("current").or(vcpu.text()).unwrap_or("").trim();
                let number = number.parse().ok().filter(|v| (1..=4096).contains(v));
                number.ok_or_else(|| self.error(vcpu, "<vcpu> is no number that a guest can have"))?
            }
        };
        let devices = child(domain, "devices");
        self.warn(domain, devices, &mut warnings);
        let nics: Vec<Node<'_, '_>> = devices.into_iter().flat_map(|d| children(d, "interface")).collect();
        for (index, nic) in nics.iter().enumerate() {
            let tags: Vec<&str> =
                child(*nic, "vlan").into_iter().flat_map(|v| children(v, "tag")).filter_map(|t| t.attribute("id")).collect();
            if !tags.is_empty() {
                warnings.push(left_out::vlan(index, &tags.join(" and ")));
            } else if child(*nic, "virtualport").is_some_and(|port| port.attribute("type") == Some("openvswitch")) {
                warnings.push(left_out::open_vswitch(index));
            }
        }
        let nics = nics.into_iter().map(|n| self.nic(n)).collect::<Result<_>>()?;
        Ok(Source {
            name,
            uuid: text(domain, "uuid"),
            description: text(domain, "description").or(text(domain, "title")).unwrap_or_default(),
            memory_mib: self.memory_mib(domain)?,
            vcpus,
            boot: self.boot(domain, &mut warnings),
            disks: self.disks(devices.unwrap_or(domain), &mut warnings)?,
            nics,
            local_time: child(domain, "clock").is_some_and(is_local),
            policy: autostart::of_libvirt(self.request.guest),
            warnings,
            origin: format!("libvirt domain {}", self.file),
        })
    }

    fn warn(&self, domain: Node<'_, '_>, devices: Option<Node<'_, '_>>, warnings: &mut Vec<String>) {
        let has = |name: &'static str| devices.is_some_and(|d| child(d, name).is_some());
        warnings.extend(left_out::LIBVIRT.iter().filter(|(name, _)| has(name)).map(|(name, what)| format!("<{name}>: {what}")));
        if child(domain, "cputune").is_some() || child(domain, "vcpu").is_some_and(|v| v.attribute("cpuset").is_some()) {
            warnings.push("<cputune>: it runs on any of the new host's processors: pin it again, where that is wanted".into());
        }
        if devices.is_some_and(|d| children(d, "graphics").any(|g| g.attribute("passwd").is_some())) {
            warnings.push("<graphics>: the new machine has a VNC display of its own, without that password".into());
        }
    }

    fn memory_mib(&self, domain: Node<'_, '_>) -> Result<u64> {
        let Some(memory) = child(domain, "memory").or(child(domain, "currentMemory")) else {
            return Err(self.error(domain, "<memory> is missing"));
        };
        let unit: u64 = match memory.attribute("unit").unwrap_or("KiB") {
            "b" | "bytes" => 1,
            "KB" => 1000,
            "k" | "KiB" => 1 << 10,
            "MB" => 1_000_000,
            "M" | "MiB" => 1 << 20,
            "GB" => 1_000_000_000,
            "G" | "GiB" => 1 << 30,
            "TB" => 1_000_000_000_000,
            "T" | "TiB" => 1 << 40,
            other => return Err(self.error(memory, format!("memory unit '{other}' is unknown"))),
        };
        let number = memory.text().unwrap_or("").trim().parse().ok();
        let bytes = number.and_then(|n: u64| n.checked_mul(unit)).filter(|b| (1 << 20..1 << 56).contains(b));
        Ok(bytes.ok_or_else(|| self.error(memory, "<memory> is no amount that a guest can have"))? >> 20)
    }

    fn boot(&self, domain: Node<'_, '_>, warnings: &mut Vec<String>) -> Boot {
        let os = child(domain, "os");
        let of_os = |name| os.and_then(|os| text(os, name));
        let kind = of_os("type").unwrap_or_default();
        if kind == "hvm" {
            let loader = of_os("loader").unwrap_or_default().to_ascii_lowercase();
            let efi = os.and_then(|os| os.attribute("firmware")) == Some("efi") || loader.contains("ovmf") || loader.contains("edk2");
            match of_os("kernel").is_some_and(|kernel| !is_hvmloader(Path::new(&kernel))) {
                _ if efi => return Boot::Uefi,
                false => return Boot::Bios,
                // QEMU starts the Xen host's kernel, as `-kernel` does.
                true => {}
            }
        }
        let pvh = kind == "xenpvh";
        let kernel = self.request.kernel.map(Into::into).or(of_os("kernel").map(PathBuf::from));
        let cmdline = of_os("cmdline");
        let bootloader = text(domain, "bootloader");
        match kernel.filter(|k| !is_grub(k) && bootloader.is_none()) {
            Some(kernel) => {
                let ramdisk = self.request.ramdisk.map(Into::into).or(of_os("initrd").map(PathBuf::from));
                let root = of_os("root").map(|r| format!("root={r} ")).unwrap_or_default();
                Boot::Direct { kernel: Some(kernel), ramdisk, cmdline: root + &cmdline.unwrap_or_default(), pvh }
            }
            None => {
                if let (Some(cmdline), Some(bootloader)) = (cmdline, bootloader) {
                    warnings
                        .push(format!("'{cmdline}' was added to the kernel's command line by Xen ({bootloader}), and is not taken over"));
                }
                Boot::Direct { kernel: None, ramdisk: None, cmdline: String::new(), pvh }
            }
        }
    }

    fn disks(&self, devices: Node<'a, '_>, warnings: &mut Vec<String>) -> Result<Vec<SourceDisk>> {
        let mut disks = Vec::new();
        for disk in children(devices, "disk") {
            let target = child(disk, "target").and_then(|t| t.attribute("dev"));
            if let Some("cdrom" | "floppy") = disk.attribute("device") {
                let disc = child(disk, "source").and_then(|s| s.attribute("file").or(s.attribute("dev")));
                warnings.push(left_out::cd_drive(target.unwrap_or("a drive"), disc.unwrap_or_default()));
                continue;
            }
            let target =
                target.filter(|t| xen_disk::is_device(t)).ok_or_else(|| self.error(disk, "the disk has no <target dev='xvda'/>"))?;
            let source = child(disk, "source");
            let path = source.and_then(|s| s.attribute("file").or(s.attribute("dev")));
            let replaced = self.request.disks.iter().any(|d| d.target.as_deref() == Some(target));
            let path = match path {
                Some(path) => path,
                None if replaced => "",
                None => {
                    let kind = disk.attribute("type").unwrap_or("file");
                    let what = format!(
                        "disk {target} of type '{kind}' names no file or device of this host: say where it is with --disk {target}=FILE"
                    );
                    return Err(self.error(disk, what));
                }
            };
            let format = child(disk, "driver").and_then(|d| d.attribute("type")).filter(|t| *t != "aio").unwrap_or("raw");
            let named = Named { config: Some(self.request.guest), path, format: Some(format), in_dev: false };
            let opened = images::open_disk(self.request, target, &named, warnings).map_err(|e| self.error(disk, e))?;
            if child(disk, "shareable").is_some() {
                warnings.push(left_out::shared_disk(target));
            }
            disks.push(SourceDisk { read_only: child(disk, "readonly").is_some(), ..opened });
        }
        add_named(self.request, &mut disks, warnings)?;
        if disks.is_empty() {
            return Err(self.error(devices, "the guest has no disk: name one with --disk xvda=FILE"));
        }
        images::check_distinct(&disks)?;
        Ok(disks)
    }

    fn nic(&self, node: Node<'_, '_>) -> Result<Nic> {
        let attribute =
            |tag: &'static str, name: &str| child(node, tag).and_then(|n| n.attribute(name)).filter(|v| !v.is_empty()).map(str::to_owned);
        let mac = match attribute("mac", "address") {
            None => None,
            Some(text) => Some(xen_vif::mac(&text).ok_or_else(|| self.error(node, format!("'{text}' is no MAC address")))?),
        };
        Ok(Nic {
            mac,
            old_mac: None,
            bridge: attribute("source", "bridge"),
            network: attribute("source", "network"),
            attached: node.attribute("type").filter(|kind| !["bridge", "network"].contains(kind)).map(|kind| format!("as type '{kind}'")),
            ip: children(node, "ip").filter_map(|ip| ip.attribute("address")).map(str::to_owned).collect(),
            model: attribute("model", "type"),
            device: None,
        })
    }
}

/// Whether a <clock> runs in local time; what libvirt reads of a running guest of Xen's has an offset from one of the two.
fn is_local(clock: Node<'_, '_>) -> bool {
    match clock.attribute("offset") {
        Some("variable") => clock.attribute("basis") == Some("localtime"),
        offset => offset == Some("localtime"),
    }
}

fn children<'a, 'd: 'a>(node: Node<'a, 'd>, name: &'static str) -> impl Iterator<Item = Node<'a, 'd>> {
    node.children().filter(move |n| n.has_tag_name(name))
}

fn child<'a, 'd: 'a>(node: Node<'a, 'd>, name: &'static str) -> Option<Node<'a, 'd>> {
    children(node, name).next()
}

fn text(node: Node<'_, '_>, name: &'static str) -> Option<String> {
    child(node, name)?.text().map(|t| t.trim().to_owned()).filter(|t| !t.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::testing::{Folder, read_in};

    const PV: &str = "<?xml version='1.0'?>
<!-- managed by libxl -->
<domain type='xen' id='3'>
  <name>web</name>
  <uuid>4dea22b3-1d52-d8f3-2516-782e98ab3fa0</uuid>
  <description>the shop &amp; its database</description>
  <memory unit='KiB'>524288</memory>
  <currentMemory>262144</currentMemory>
  <vcpu placement='static' current='1'>2</vcpu>
  <bootloader>/usr/bin/pygrub</bootloader>
  <os><type arch='x86_64' machine='xenpv'>linux</type></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='tap' type='aio'/>
      <source file='DIR/disk.img'/>
      <target dev='xvda2' bus='xen'/>
    </disk>
    <disk type='block' device='disk'>
      <driver name='phy'/>
      <source dev='DIR/swap.img'/>
      <target dev='xvda1' bus='xen'/>
      <readonly/>
    </disk>
    <disk type='file' device='cdrom'><target dev='hdc'/></disk>
    <interface type='bridge'>
      <mac address='00:16:3E:01:02:03'/>
      <source bridge='br0'/>
      <script path='vif-bridge'/>
      <ip address='10.0.0.5' family='ipv4'/>
    </interface>
    <interface type='network'><source network='lan'/><model type='rtl8139'/></interface>
    <console type='pty'><target type='xen' port='0'/></console>
  </devices>
</domain>";

    #[test]
    fn a_paravirtual_domain() {
        let folder = Folder::new(&["disk.img", "swap.img"]);
        let guest = read_in(&folder, "web.xml", PV).unwrap();
        assert_eq!((guest.name.as_str(), guest.memory_mib, guest.vcpus), ("web", 512, 1));
        assert_eq!(guest.uuid.as_deref(), Some("4dea22b3-1d52-d8f3-2516-782e98ab3fa0"));
        assert_eq!(guest.description, "the shop & its database");
        assert_eq!(guest.boot, Boot::Direct { kernel: None, ramdisk: None, cmdline: String::new(), pvh: false });
        let disks: Vec<_> = guest.disks.iter().map(|d| (d.target.as_str(), d.read_only)).collect();
        assert_eq!(disks, [("xvda2", false), ("xvda1", true)]);
        let nic = Nic { mac: Some("00:16:3e:01:02:03".into()), bridge: Some("br0".into()), ip: vec!["10.0.0.5".into()], ..Nic::default() };
        assert_eq!(guest.nics, [nic, Nic { network: Some("lan".into()), model: Some("rtl8139".into()), ..Nic::default() }]);
        assert!(guest.warnings.len() == 1 && guest.warnings[0].starts_with("hdc: the CD drive is not taken over"), "{:?}", guest.warnings);
        assert!(!guest.local_time && !guest.policy.autostart);
    }

    #[test]
    fn what_no_output_can_say_is_told_by_name() {
        let folder = Folder::new(&["disk.img", "swap.img", "autostart/web.xml"]);
        let more = "<interface type='ethernet'><virtualport type='openvswitch'/></interface>\
            <hostdev mode='subsystem' type='pci'/><graphics type='vnc' passwd='secret'/></devices><cputune/><clock offset='variable' adjustment='0' basis='localtime'/>";
        let guest = read_in(&folder, "web.xml", &PV.replace("</devices>", more).replace("<readonly/>", "<shareable/>")).unwrap();
        let named: Vec<_> = guest.warnings.iter().map(|w| w.split([':', ' ']).next().unwrap()).collect();
        assert_eq!(named, ["<hostdev>", "<cputune>", "<graphics>", "NIC", "xvda1", "hdc"], "{:?}", guest.warnings);
        assert!(guest.local_time && guest.policy.autostart);
    }

    #[test]
    fn boot_kinds() {
        let folder = Folder::new(&["disk.img", "swap.img"]);
        let pygrub = "<bootloader>/usr/bin/pygrub</bootloader>\n  <os><type arch='x86_64' machine='xenpv'>linux</type></os>";
        let direct =
            Boot::Direct { kernel: Some("/k".into()), ramdisk: Some("/i".into()), cmdline: "root=/dev/xvda2 ro".into(), pvh: false };
        for (os, boot) in [
            ("<os><type>hvm</type><kernel>/k</kernel><initrd>/i</initrd><cmdline>root=/dev/xvda2 ro</cmdline></os>", direct.clone()),
            ("<os><type>linux</type><kernel>/k</kernel><initrd>/i</initrd><cmdline>root=/dev/xvda2 ro</cmdline></os>", direct),
            ("<os><type>hvm</type><loader>/usr/lib/xen/boot/hvmloader</loader></os>", Boot::Bios),
            ("<os firmware='efi'><type>hvm</type></os>", Boot::Uefi),
            ("<os><type>hvm</type><loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader></os>", Boot::Uefi),
        ] {
            assert_eq!(read_in(&folder, "web.xml", &PV.replace(pygrub, os)).unwrap().boot, boot, "{os}");
        }
    }

    #[test]
    fn errors_name_file_and_line() {
        let folder = Folder::new(&["disk.img", "swap.img"]);
        let entities = "<!DOCTYPE d [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '&a;&a;&a;'>]>\n<domain type='xen'><name>&b;</name></domain>";
        for (xml, error) in [
            (
                PV.replace("type='xen' id", "type='kvm' id"),
                "DIR/web.xml:3: the domain is of type 'kvm', not 'xen': there is nothing to convert",
            ),
            (PV.replace("<name>web</name>", ""), "DIR/web.xml:3: <name> is missing"),
            (PV.replace("unit='KiB'", "unit='stone'"), "DIR/web.xml:7: memory unit 'stone' is unknown"),
            (PV.replace("524288", "99999999999999999999"), "DIR/web.xml:7: <memory> is no amount that a guest can have"),
            (
                PV.replace("file='DIR/disk.img'", "pool='p' volume='v'"),
                "DIR/web.xml:13: disk xvda2 of type 'file' names no file or device of this host: say where it is with --disk xvda2=FILE",
            ),
            (PV.replace("00:16:3E:01:02:03", "00:16"), "DIR/web.xml:25: '00:16' is no MAC address"),
            (PV.replace("</domain>", ""), "DIR/web.xml:1: not well-formed XML: the root node was opened but never closed"),
            (entities.into(), "DIR/web.xml:1: not well-formed XML: XML with DTD detected"),
        ] {
            let message = read_in(&folder, "web.xml", &xml).err().unwrap().to_string();
            assert_eq!(message.replace(folder.path().to_str().unwrap(), "DIR"), error);
        }
        let deep = "<domain type='xen'>".to_owned() + &"<a>".repeat(90_000);
        assert!(read_in(&folder, "web.xml", &deep).is_err());
    }
}
