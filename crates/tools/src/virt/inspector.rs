//! `virt-inspector`: what is installed, as XML in libguestfs's form or as JSON.

use std::fmt::Write;
use std::process::ExitCode;

use clap::{Args, FromArgMatches};
use guestfs::inspect::Application;
use guestfs::{Guest, Inspection, Volumes};
use serde_json::json;

use super::Entry;
use super::options::GuestArgs;
use super::show::Out;
use crate::common::{Failure, json};

/// This command's line in the table.
pub(super) const ENTRY: Entry =
    Entry { name: "inspector", arguments: Inspector::augment_args, run: |matches| run(&Inspector::from_arg_matches(matches)?) };

/// Tell what is installed in a guest.
#[derive(Args)]
#[command(after_help = "Examples:\n  virt-inspector -a disk.qcow2\n  virt-inspector --no-applications --json -d guest.xml")]
struct Inspector {
    #[command(flatten)]
    guest: GuestArgs,
    /// Leave the list of packages out
    #[arg(long)]
    no_applications: bool,
    /// Leave the icon out (there is none here: for scripts)
    #[arg(long, hide = true)]
    no_icon: bool,
    /// JSON instead of XML
    #[arg(long)]
    json: bool,
}

fn run(args: &Inspector) -> Result<ExitCode, Failure> {
    let guest = args.guest.open_confined()?;
    let Some(inspection) = &guest.inspection else {
        return Err(Failure::new("with -m nothing is inspected").hint("leave -m away"));
    };
    let applications = if args.no_applications { None } else { guestfs::inspect::packages::applications(guest.fs(), inspection)? };
    let mut out = Out::new();
    if args.json {
        out.bytes(json::pretty(&value(&guest, inspection, applications.as_deref())).as_bytes())?;
        out.bytes(b"\n")?;
    } else {
        out.bytes(xml(&guest.volumes, inspection, applications.as_deref()).as_bytes())?;
    }
    out.finish()?;
    guest.shutdown()?;
    Ok(ExitCode::SUCCESS)
}

/// Volumes that the guest uses: mounted ones and swap, by device name.
fn used<'a>(volumes: &'a Volumes, inspection: &Inspection) -> Vec<&'a guestfs::Volume> {
    let indexes = inspection.mounts.iter().map(|m| m.volume).chain(inspection.swaps.iter().copied());
    let mut used: Vec<_> = indexes.filter_map(|i| volumes.volumes.get(i)).collect();
    used.sort_by(|a, b| a.device.cmp(&b.device));
    used.dedup_by(|a, b| a.device == b.device);
    used
}

/// An XML document, element by element.
#[derive(Default)]
struct Xml {
    text: String,
    depth: usize,
}

impl Xml {
    fn open(&mut self, element: &str) {
        let _ = writeln!(self.text, "{:1$}<{element}>", "", self.depth * 2);
        self.depth += 1;
    }

    fn close(&mut self, element: &str) {
        self.depth -= 1;
        let _ = writeln!(self.text, "{:1$}</{element}>", "", self.depth * 2);
    }

    fn element(&mut self, name: &str, attribute: Option<(&str, &str)>, text: &str) {
        let attribute = attribute.map(|(key, value)| format!(" {key}=\"{}\"", escape(value))).unwrap_or_default();
        let _ = writeln!(self.text, "{:2$}<{name}{attribute}>{}</{name}>", "", escape(text), self.depth * 2);
    }

    fn optional(&mut self, name: &str, text: &str) {
        if !text.is_empty() {
            self.element(name, None, text);
        }
    }
}

/// What XML can't hold becomes U+FFFD.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' => out.push(c),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

fn xml(volumes: &Volumes, inspection: &Inspection, applications: Option<&[Application]>) -> String {
    let release = &inspection.release;
    let (format, management) = release.family.packages();
    let device = |index: usize| volumes.volumes.get(index).map_or("", |v| v.device.as_str());
    let mut xml = Xml { text: "<?xml version=\"1.0\"?>\n".into(), depth: 0 };
    xml.open("operatingsystems");
    xml.open("operatingsystem");
    xml.element("root", None, device(inspection.root));
    xml.element("name", None, "linux");
    xml.element("arch", None, inspection.arch);
    xml.element("distro", None, release.distro);
    xml.optional("product_name", release.libguestfs_name());
    xml.element("major_version", None, &release.major.to_string());
    xml.element("minor_version", None, &release.minor.to_string());
    xml.optional("package_format", format);
    xml.optional("package_management", management);
    xml.optional("hostname", inspection.hostname.as_deref().unwrap_or_default());
    xml.optional("build_id", release.build_id.as_deref().unwrap_or_default());
    xml.optional("osinfo", release.osinfo().as_deref().unwrap_or_default());
    xml.open("mountpoints");
    let mut mounts: Vec<_> = inspection.mounts.iter().collect();
    mounts.sort_by_key(|m| m.path.len());
    for mount in mounts {
        xml.element("mountpoint", Some(("dev", device(mount.volume))), &String::from_utf8_lossy(&mount.path));
    }
    xml.close("mountpoints");
    xml.open("filesystems");
    for volume in used(volumes, inspection) {
        xml.open(&format!("filesystem dev=\"{}\"", escape(&volume.device)));
        if let Some(content) = &volume.content {
            xml.element("type", None, content.kind);
            xml.optional("label", content.label.as_deref().unwrap_or_default());
            xml.optional("uuid", content.uuid.as_deref().unwrap_or_default());
        }
        xml.close("filesystem");
    }
    xml.close("filesystems");
    if let Some(applications) = applications {
        xml.open("applications");
        for app in applications {
            xml.open("application");
            xml.element("name", None, &app.name);
            if app.epoch != 0 {
                xml.element("epoch", None, &app.epoch.to_string());
            }
            for (name, text) in [
                ("version", &app.version),
                ("release", &app.release),
                ("arch", &app.arch),
                ("url", &app.url),
                ("source_package", &app.source_package),
                ("summary", &app.summary),
                ("description", &app.description),
            ] {
                xml.optional(name, text);
            }
            xml.close("application");
        }
        xml.close("applications");
    }
    xml.close("operatingsystem");
    xml.close("operatingsystems");
    xml.text
}

fn value(guest: &Guest, inspection: &Inspection, applications: Option<&[Application]>) -> serde_json::Value {
    let release = &inspection.release;
    let device = |index: usize| guest.volumes.volumes.get(index).map(|v| v.device.clone());
    let (format, management) = release.family.packages();
    json!({
        "root": device(inspection.root),
        "arch": inspection.arch,
        "distro": release.distro,
        "id": release.id,
        "product_name": release.product_name,
        "major_version": release.major,
        "minor_version": release.minor,
        "codename": release.codename,
        "package_format": format,
        "package_management": management,
        "hostname": inspection.hostname,
        "osinfo": release.osinfo(),
        "mountpoints": inspection.mounts.iter().map(|m| json!({
            "path": String::from_utf8_lossy(&m.path), "device": device(m.volume),
        })).collect::<Vec<_>>(),
        "filesystems": used(&guest.volumes, inspection).iter().map(|v| json!({
            "device": v.device,
            "type": v.kind(),
            "label": v.content.as_ref().and_then(|c| c.label.clone()),
            "uuid": v.content.as_ref().and_then(|c| c.uuid.clone()),
        })).collect::<Vec<_>>(),
        "applications": applications.map(|apps| apps.iter().map(|a| json!({
            "name": a.name, "epoch": a.epoch, "version": a.version, "release": a.release, "arch": a.arch,
            "url": a.url, "source_package": a.source_package, "summary": a.summary,
        })).collect::<Vec<_>>()),
    })
}
