//! What is told of one operating system, in the order of libguestfs's elements.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use guestfs::inspect::{Application, FstabEntry};
use guestfs::{Inspection, Volume, Volumes};
use serde::Serialize;

use imgcore::xml::Xml;

/// Characters in a line of the icon.
const ICON_LINE: usize = 72;

/// An operating system; what is not known is absent from the output.
#[derive(Serialize)]
pub(super) struct System {
    root: String,
    name: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    arch: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    distro: &'static str,
    /// As the system itself calls it; libguestfs's name may be another.
    #[serde(skip_serializing_if = "String::is_empty")]
    product_name: String,
    #[serde(skip)]
    libguestfs_name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    product_variant: String,
    major_version: u32,
    minor_version: u32,
    #[serde(skip_serializing_if = "str::is_empty")]
    package_format: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    package_management: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    windows_systemroot: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    windows_current_control_set: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hostname: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    build_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    osinfo: Option<String>,
    /// os-release's, which libguestfs does not tell.
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    codename: Option<String>,
    mountpoints: Vec<MountPoint>,
    filesystems: Vec<Filesystem>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    drive_mappings: Vec<Drive>,
    #[serde(skip_serializing_if = "Option::is_none")]
    applications: Option<Vec<Package>>,
    /// PNG, in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    icon: Option<String>,
}

#[derive(Serialize)]
struct MountPoint {
    device: String,
    path: String,
}

#[derive(Serialize)]
struct Drive {
    letter: char,
    device: String,
}

#[derive(Serialize)]
struct Filesystem {
    device: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uuid: Option<String>,
}

#[derive(Serialize)]
struct Package {
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    display_name: String,
    #[serde(skip_serializing_if = "is_zero")]
    epoch: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    release: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    arch: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    install_path: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    publisher: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    url: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    source_package: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    summary: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    description: String,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl System {
    pub(super) fn new(volumes: &Volumes, inspection: &Inspection, applications: Option<Vec<Application>>, icon: Option<Vec<u8>>) -> Self {
        let release = &inspection.release;
        let known = |text: &'static str| if text == "unknown" { "" } else { text };
        let volume = |index: usize| volumes.volumes.get(index);
        let mut filesystems: BTreeMap<String, Option<&Volume>> = BTreeMap::new();
        let mut mountpoints = Vec::new();
        for mount in &inspection.mounts {
            let device = mount.device_name(volumes);
            filesystems.insert(device.clone(), volume(mount.volume));
            mountpoints.push(MountPoint { device, path: String::from_utf8_lossy(&mount.path).into_owned() });
        }
        // What fstab names and is not there is told all the same.
        for entry in inspection.fstab.iter().filter(|e| e.volume.is_none() && e.spec.starts_with(b"/dev/")) {
            let device = String::from_utf8_lossy(&entry.spec).into_owned();
            if let Some(path) = entry.mount_point() {
                mountpoints.push(MountPoint { device, path: String::from_utf8_lossy(&path).into_owned() });
            } else if FstabEntry::is_swap(entry) {
                filesystems.insert(device, None);
            }
        }
        mountpoints.sort_by(|a, b| (a.path.len(), &a.path).cmp(&(b.path.len(), &b.path)));
        for mount in &mountpoints {
            filesystems.entry(mount.device.clone()).or_insert(None);
        }
        filesystems.extend(inspection.swaps.iter().filter_map(|i| volume(*i)).map(|v| (v.device.clone(), Some(v))));
        let windows = inspection.windows();
        let drives = windows.into_iter().flat_map(|w| &w.drives);
        let drive = |(letter, index): &(char, usize)| volume(*index).map(|v| Drive { letter: *letter, device: v.device.clone() });
        System {
            root: inspection.root_name(volumes),
            name: inspection.system.name(),
            arch: known(inspection.arch),
            distro: known(release.distro),
            product_name: release.product_name.clone(),
            libguestfs_name: release.libguestfs_name().to_string(),
            product_variant: windows.map(|w| w.variant.clone()).unwrap_or_default(),
            major_version: release.major,
            minor_version: release.minor,
            package_format: release.package_format(),
            package_management: release.package_management(),
            windows_systemroot: windows.map(|w| w.systemroot.clone()),
            windows_current_control_set: windows.and_then(|w| w.control_set.clone()),
            hostname: inspection.hostname.clone(),
            build_id: release.build_id.clone(),
            osinfo: inspection.osinfo(),
            id: release.id.clone(),
            codename: release.codename.clone(),
            mountpoints,
            filesystems: filesystems.into_iter().map(|(device, volume)| Filesystem::new(device, volume)).collect(),
            drive_mappings: drives.filter_map(drive).collect(),
            applications: applications.map(|all| all.into_iter().map(Package::from).collect()),
            icon: icon.map(|png| STANDARD.encode(png)),
        }
    }

    pub(super) fn write(&self, xml: &mut Xml) {
        xml.parent("operatingsystem", &[], |xml| {
            xml.element("root", &self.root);
            xml.element("name", self.name);
            xml.optional("arch", self.arch);
            xml.optional("distro", self.distro);
            xml.optional("product_name", &self.libguestfs_name);
            xml.optional("product_variant", &self.product_variant);
            xml.element("major_version", &self.major_version.to_string());
            xml.element("minor_version", &self.minor_version.to_string());
            xml.optional("package_format", self.package_format);
            xml.optional("package_management", self.package_management);
            xml.optional("windows_systemroot", self.windows_systemroot.as_deref().unwrap_or_default());
            xml.optional("windows_current_control_set", self.windows_current_control_set.as_deref().unwrap_or_default());
            xml.optional("hostname", self.hostname.as_deref().unwrap_or_default());
            xml.optional("build_id", self.build_id.as_deref().unwrap_or_default());
            xml.optional("osinfo", self.osinfo.as_deref().unwrap_or_default());
            xml.parent("mountpoints", &[], |xml| {
                for mount in &self.mountpoints {
                    xml.leaf("mountpoint", &[("dev", &mount.device)], &mount.path);
                }
            });
            xml.parent("filesystems", &[], |xml| {
                for filesystem in &self.filesystems {
                    xml.parent("filesystem", &[("dev", &filesystem.device)], |xml| {
                        xml.optional("type", filesystem.r#type);
                        xml.optional("label", filesystem.label.as_deref().unwrap_or_default());
                        xml.optional("uuid", filesystem.uuid.as_deref().unwrap_or_default());
                    });
                }
            });
            if !self.drive_mappings.is_empty() {
                xml.parent("drive_mappings", &[], |xml| {
                    for Drive { letter, device } in &self.drive_mappings {
                        xml.leaf("drive_mapping", &[("name", &letter.to_string())], device);
                    }
                });
            }
            if let Some(applications) = &self.applications {
                xml.parent("applications", &[], |xml| applications.iter().for_each(|package| package.write(xml)));
            }
            if let Some(icon) = &self.icon {
                let lines: Vec<_> = icon.as_bytes().chunks(ICON_LINE).map(String::from_utf8_lossy).collect();
                xml.element("icon", &lines.join("\n"));
            }
        });
    }
}

impl Filesystem {
    fn new(device: String, volume: Option<&Volume>) -> Self {
        let content = volume.and_then(|v| v.content.as_ref());
        Filesystem {
            device,
            r#type: content.map_or("", |c| c.kind),
            label: content.and_then(|c| c.label.clone()),
            uuid: content.and_then(|c| c.uuid.clone()),
        }
    }
}

impl From<Application> for Package {
    fn from(app: Application) -> Self {
        let Application {
            name,
            display_name,
            epoch,
            version,
            release,
            arch,
            install_path,
            publisher,
            url,
            source_package,
            summary,
            description,
            provides: _,
        } = app;
        Package { name, display_name, epoch, version, release, arch, install_path, publisher, url, source_package, summary, description }
    }
}

impl Package {
    fn write(&self, xml: &mut Xml) {
        xml.parent("application", &[], |xml| {
            xml.element("name", &self.name);
            xml.optional("display_name", &self.display_name);
            if self.epoch != 0 {
                xml.element("epoch", &self.epoch.to_string());
            }
            xml.optional("version", &self.version);
            xml.optional("release", &self.release);
            xml.optional("arch", &self.arch);
            xml.optional("install_path", &self.install_path);
            xml.optional("publisher", &self.publisher);
            xml.optional("url", &self.url);
            xml.optional("source_package", &self.source_package);
            xml.optional("summary", &self.summary);
            xml.optional("description", &self.description);
        });
    }
}
