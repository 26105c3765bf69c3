//! A system's logo, where libguestfs looks for it.

use super::{CONFIG_LIMIT, Inspection};
use crate::{Ext, GuestFs};

/// By libguestfs's names of distributions.
const ICONS: &[(&str, &str)] = &[
    ("fedora", "/usr/share/icons/hicolor/96x96/apps/fedora-logo-icon.png"),
    ("rhel", "/usr/share/pixmaps/redhat/shadowman-transparent.png"),
    ("centos", "/usr/share/icons/hicolor/48x48/apps/fedora-logo-icon.png"),
    ("debian", "/usr/share/pixmaps/debian-logo.png"),
    ("ubuntu", "/usr/share/icons/gnome/24x24/places/ubuntu-logo.png"),
    ("mageia", "/usr/share/icons/mageia.png"),
    ("opensuse", "/usr/share/icons/hicolor/48x48/apps/distributor.png"),
    ("voidlinux", "/usr/share/void-artwork/void-logo.png"),
    ("altlinux", "/usr/share/icons/hicolor/48x48/apps/altlinux.png"),
];

/// What the system's own administrator made it.
const OWN: &str = "/etc/favicon.png";

/// The logo as PNG, if there is one.
pub fn icon(fs: &dyn GuestFs, inspection: &Inspection) -> Option<Vec<u8>> {
    let distro = ICONS.iter().filter(|(distro, _)| *distro == inspection.release.distro).map(|(_, path)| *path);
    let mut candidates = std::iter::once(OWN).chain(distro).filter(|path| fs.is_file(path.as_bytes()));
    candidates.find_map(|path| fs.read(path.as_bytes(), CONFIG_LIMIT).ok().filter(|content| content.starts_with(b"\x89PNG\r\n\x1a\n")))
}
