//! Kernels with their initrds as boot menus name them: people and small distributions call them as they like.

use guestfs::{Ext, GuestFs};

use super::grub::{GRUB_CFG, MENU_LST, SYSLINUX};
use super::text::fields;

/// A menu larger than this is none.
const LIMIT: u64 = 4 << 20;
/// Entries that are read of all menus; people have dozens.
const ENTRIES: usize = 1000;

/// What an entry starts, as paths of files that are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The kernel's image: `/boot/bzImage`.
    pub image: String,
    /// The first of its initrds that is not microcode.
    pub initrd: Option<String>,
}

/// What the entries of all menus start, in their order, as far as it lies in /boot.
pub fn named(fs: &dyn GuestFs) -> Vec<Named> {
    let mut found: Vec<Named> = Vec::new();
    for menu in MENU_LST.iter().chain(GRUB_CFG).chain(SYSLINUX) {
        let Ok(text) = fs.read(menu.as_bytes(), LIMIT) else { continue };
        // Where an entry begins, the one before it gets no more.
        let mut open = false;
        for line in String::from_utf8_lossy(&text).lines() {
            let words: Vec<&str> = fields(line).into_iter().map(|word| word.1).collect();
            let path = words.iter().skip(1).find(|word| !word.starts_with("--")).copied();
            match words.first().map(|word| word.to_ascii_lowercase()).as_deref() {
                Some("title" | "label" | "menuentry" | "submenu") => open = false,
                Some("kernel" | "linux" | "linux16" | "linuxefi") if found.len() < ENTRIES => {
                    let image = path.and_then(|path| in_boot(fs, path));
                    open = image.is_some();
                    found.extend(image.map(|image| Named { image, initrd: None }));
                }
                Some(word) if open && (word.starts_with("initrd") || word == "append") => {
                    let paths: Vec<&str> = match words.iter().find_map(|word| word.strip_prefix("initrd=")) {
                        Some(list) if word == "append" => list.split(',').collect(),
                        _ if word == "append" => Vec::new(),
                        _ => words[1..].iter().flat_map(|word| word.split(',')).collect(),
                    };
                    let initrd = paths.into_iter().filter(|path| !is_microcode(path)).find_map(|path| in_boot(fs, path));
                    if let Some(entry) = found.last_mut().filter(|entry| entry.initrd.is_none()) {
                        entry.initrd = initrd;
                    }
                }
                _ => {}
            }
        }
    }
    found
}

/// Whether an initrd is for the processor alone, and not what starts the system: it comes before that one.
pub fn is_microcode(path: &str) -> bool {
    ["-uc.img", "-ucode.img", "ucode.cpio", "microcode.cpio"].iter().any(|end| path.ends_with(end))
}

/// A file that a menu names, which may be seen from /boot, from a subvolume's top, or from the menu's own folder.
fn in_boot(fs: &dyn GuestFs, path: &str) -> Option<String> {
    let path = path.rsplit_once(')').map_or(path, |(_, path)| path);
    let name = path.rsplit('/').next()?;
    if path.split('/').any(|part| part == "..") {
        return None;
    }
    let places = [path.to_string(), format!("/boot{path}"), format!("/boot/{name}")];
    places.into_iter().find(|place| place.starts_with("/boot/") && fs.is_file(place.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::MemFs;

    #[test]
    fn every_kind_of_menu() {
        let fs = MemFs::new()
            .file("/boot/bzImage", "")
            .file("/boot/initrd.gz", "")
            .file("/boot/vmlinuz-huge", "")
            .file("/boot/sub/kernel", "")
            .file("/boot/sub/initrd", "")
            .file("/boot/intel-uc.img", "")
            .file(
                "/boot/grub/grub.conf",
                "default 0\ntitle a\nroot (hd0,0)\nkernel --no-mem-option (hd0,0)/bzImage root=/dev/xvda1\ninitrd /initrd.gz\ntitle b\n\
                 kernel /boot/nowhere\ninitrd /boot/initrd.gz\n",
            )
            .file(
                "/boot/grub/grub.cfg",
                "menuentry 'a' {\n\tlinux /@/boot/vmlinuz-huge ro\n}\nmenuentry 'b' {\n\tlinux16 /boot/sub/kernel\n\tinitrd16 /boot/intel-uc.img /boot/sub/initrd\n}\n",
            )
            .file("/boot/extlinux.conf", "LABEL a\n  KERNEL bzImage\n  APPEND initrd=initrd.gz,b root=/dev/xvda1\nlabel b\n linux ../../etc/passwd\n");
        let seen: Vec<(String, Option<String>)> = named(&fs).into_iter().map(|n| (n.image, n.initrd)).collect();
        let own = |image: &str, initrd: Option<&str>| (image.to_string(), initrd.map(String::from));
        let wanted = [
            own("/boot/bzImage", Some("/boot/initrd.gz")),
            own("/boot/vmlinuz-huge", None),
            own("/boot/sub/kernel", Some("/boot/sub/initrd")),
            own("/boot/bzImage", Some("/boot/initrd.gz")),
        ];
        assert_eq!(seen, wanted);
    }
}
