//! Whether the Xen host starts a guest by itself: links beside its configuration.

use std::path::Path;

use crate::source::Policy;

/// xl's and xm's guests: `xendomains` starts what `auto` beside the configurations holds, by name.
pub(super) fn of_xen(config: &Path) -> Policy {
    let Some(folder) = folder_of(config) else { return Policy::default() };
    // The user may have named the link itself.
    let auto = if folder.file_name().is_some_and(|n| n == "auto") { folder.to_owned() } else { folder.join("auto") };
    let order = position(&auto, config);
    Policy { autostart: order.is_some(), start_order: order, start_delay: None }
}

/// libvirt's guests: a link of the same name in `autostart` beside the domain. It has no order.
pub(super) fn of_libvirt(domain: &Path) -> Policy {
    let link = folder_of(domain).and_then(|folder| Some(folder.join("autostart").join(domain.file_name()?)));
    Policy { autostart: link.is_some_and(|link| link.symlink_metadata().is_ok()), ..Policy::default() }
}

fn folder_of(file: &Path) -> Option<&Path> {
    file.parent().map(|folder| if folder.as_os_str().is_empty() { Path::new(".") } else { folder })
}

/// The turn of a configuration among a folder's links, from 1.
fn position(auto: &Path, config: &Path) -> Option<u32> {
    let mut names: Vec<_> = auto.read_dir().ok()?.filter_map(|entry| Some(entry.ok()?.file_name())).collect();
    names.sort();
    let wanted = config.canonicalize().ok()?;
    let index = names.iter().position(|name| auto.join(name).canonicalize().is_ok_and(|path| path == wanted))?;
    u32::try_from(index + 1).ok()
}
