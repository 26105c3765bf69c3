//! A legacy `ova.xml`: XenServer SDK guide, section 3.5.1, `<appliance version="0.1">`.

use imgcore::{Error, Result};
use roxmltree::Node;

use crate::XVA;
use crate::model::{Appliance, Boot, Disk, Drive, Form, HostPolicy, Role, Vm};

/// Reads the `<appliance>` element.
pub(crate) fn parse(root: Node<'_, '_>, name: &str) -> Result<Appliance> {
    let bad = |what: String| Error::corrupt(name, XVA, None, format!("ova.xml: {what}"));
    let version = root.attribute("version").unwrap_or("");
    if version != "0.1" {
        return Err(Error::unsupported(name, XVA, format!("<appliance version=\"{}\">: only 0.1 is known", version.escape_default())));
    }
    let mut appliance = Appliance { form: Form::Legacy, product: String::new(), vms: Vec::new(), disks: Vec::new(), warnings: Vec::new() };
    let mut names = Vec::new();
    for vdi in children(root, "vdi") {
        let vdi_name = vdi.attribute("name").unwrap_or("");
        let disk = disk(vdi).map_err(|what| bad(format!("disk '{}': {what}", vdi_name.escape_default())))?;
        if names.contains(&vdi_name) || appliance.disk(&disk.id).is_some() {
            return Err(bad(format!("disk '{}' is there twice", vdi_name.escape_default())));
        }
        names.push(vdi_name);
        appliance.disks.push(disk);
    }
    for vm in children(root, "vm") {
        let mut drives = Vec::new();
        for vbd in children(vm, "vbd") {
            let vdi = vbd.attribute("vdi").unwrap_or("");
            let device = vbd.attribute("device").unwrap_or("").trim().to_string();
            let Some(disk) = names.iter().position(|n| *n == vdi) else {
                appliance.warnings.push(format!("drive {device} refers to disk '{vdi}', which the archive does not hold"));
                continue;
            };
            drives.push(Drive {
                disk,
                device,
                bootable: vbd.attribute("function").is_some_and(|f| f.trim().eq_ignore_ascii_case("root")),
                read_only: matches!(vbd.attribute("mode").map(str::trim), Some("r" | "ro")),
                shared: false,
            });
        }
        drives.sort_by(|a, b| a.order().cmp(&b.order()));
        appliance.vms.push(self::vm(vm, drives));
    }
    if appliance.vms.is_empty() {
        return Err(bad("it describes no virtual machine".into()));
    }
    Ok(appliance)
}

fn children<'a, 'i: 'a>(node: Node<'a, 'i>, tag: &'static str) -> impl Iterator<Item = Node<'a, 'i>> {
    node.children().filter(move |c| c.is_element() && c.tag_name().name() == tag)
}

fn disk(vdi: Node<'_, '_>) -> Result<Disk, String> {
    let attribute = |key| vdi.attribute(key).unwrap_or("").trim();
    let source = attribute("source");
    let folder = source.strip_prefix("file://").unwrap_or(source).trim_end_matches('/');
    if folder.is_empty() || folder.contains(['/', '\0']) || folder == "." || folder == ".." {
        return Err(format!("its source is '{}': not a folder beside ova.xml, file://NAME", source.escape_default()));
    }
    let kind = attribute("type");
    if !kind.is_empty() && kind != "dir-gzipped-chunks" {
        return Err(format!("its type is '{}': only dir-gzipped-chunks is known", kind.escape_default()));
    }
    let size = attribute("size");
    Ok(Disk {
        id: folder.into(),
        name: attribute("name").into(),
        description: String::new(),
        uuid: String::new(),
        size: size
            .parse()
            .ok()
            .filter(|s| *s <= i64::MAX as u64)
            .ok_or_else(|| format!("its size is '{}': not a number of bytes", size.escape_default()))?,
        role: Role::Disk,
    })
}

fn vm(vm: Node<'_, '_>, drives: Vec<Drive>) -> Vm {
    let text = |tag| children(vm, tag).next().and_then(|n| n.text()).unwrap_or("").trim().to_string();
    let attribute = |tag, key| children(vm, tag).next().and_then(|n| n.attribute(key)).map(str::trim);
    let label = text("label");
    let hvm = attribute("hacks", "is_hvm").is_none_or(|v| v.eq_ignore_ascii_case("true") || v == "1");
    let args = attribute("hacks", "kernel_boot_cmdline").unwrap_or("").to_string();
    Vm {
        name: if label.is_empty() { vm.attribute("name").unwrap_or("").trim().into() } else { label },
        description: text("shortdesc"),
        uuid: String::new(),
        memory: attribute("config", "mem_set").and_then(|v| v.parse().ok()).unwrap_or(0),
        vcpus: attribute("config", "vcpus").and_then(|v| v.parse().ok()).unwrap_or(0),
        boot: match hvm {
            true => Boot::Hvm { uefi: false, secure_boot: false },
            // The importer makes such a guest start by pygrub: the form names no kernel.
            false => Boot::Pv { bootloader: Some("pygrub".into()), kernel: None, ramdisk: None, args, pvh: false },
        },
        drives,
        nics: Vec::new(),
        suspended: false,
        template: false,
        snapshot: false,
        vtpm: false,
        host: HostPolicy::default(),
    }
}

/// The number of a chunk by its file's name: `chunk-000000000.gz`, `chunk000000000.gz`.
pub(crate) fn chunk_number(file: &str) -> Option<u64> {
    let digits = file.strip_prefix("chunk")?.strip_suffix(".gz")?;
    let digits = digits.strip_prefix('-').unwrap_or(digits);
    (!digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
}
