//! GRUB's environment block: a file of 1024 bytes with a setting a line, filled up with `#`. GRUB writes it in place, so that its size must stay.

use super::text::{Line, add_line, map_lines};

/// Where it lies: beside a menu, mostly ([`GRUB_CFG`](super::grub::GRUB_CFG)), or linked from there.
pub const GRUBENV: &[&str] = &[
    "/boot/grub2/grubenv",
    "/boot/grub/grubenv",
    "/boot/efi/EFI/rocky/grubenv",
    "/boot/efi/EFI/almalinux/grubenv",
    "/boot/efi/EFI/redhat/grubenv",
    "/boot/efi/EFI/centos/grubenv",
    "/boot/efi/EFI/scientific/grubenv",
    "/boot/efi/EFI/fedora/grubenv",
];

const HEADER: &str = "# GRUB Environment Block\n";
const SIZE: usize = 1024;

/// Whether GRUB reads this: packages leave an empty file where it may become one.
pub fn is_block(text: &str) -> bool {
    text.starts_with(HEADER)
}

/// A setting's value.
pub fn get<'a>(block: &'a str, name: &str) -> Option<&'a str> {
    block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
}

/// A block without a setting.
pub fn empty() -> String {
    format!("{HEADER}{}", "#".repeat(SIZE - HEADER.len()))
}

/// The block with a setting changed or added; `None` where it does not fit, or this is no such block.
pub fn with(block: &str, name: &str, value: &str) -> Option<String> {
    let settings = block.strip_prefix(HEADER)?.trim_end_matches('#');
    let setting = format!("{name}={value}");
    let is_it = |line: &str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('='));
    let settings = if settings.lines().any(is_it) {
        map_lines(settings, |line| Line::of(is_it(line).then(|| setting.clone())))
    } else {
        add_line(settings, &setting)
    };
    let size = block.len().max(SIZE);
    let room = size.checked_sub(HEADER.len() + settings.len())?;
    Some(format!("{HEADER}{settings}{}", "#".repeat(room)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_stays() {
        let block = format!("{HEADER}saved_entry=a\nkernelopts=root=/dev/xvda2 ro\n");
        let block = format!("{block}{}", "#".repeat(SIZE - block.len()));
        let new = with(&block, "kernelopts", "root=UUID=1 ro").unwrap();
        assert_eq!((get(&new, "kernelopts"), get(&new, "saved_entry"), new.len()), (Some("root=UUID=1 ro"), Some("a"), SIZE));
        let new = with(&new, "boot_success", "1").unwrap();
        assert!(new.starts_with(&format!("{HEADER}saved_entry=a\nkernelopts=root=UUID=1 ro\nboot_success=1\n####")) && new.len() == SIZE);
        assert_eq!(with(&block, "kernelopts", &"x".repeat(SIZE)), None);
        assert_eq!(with("saved_entry=a\n", "a", "b"), None);
        assert_eq!(with(&empty(), "a", "b").map(|block| block.len()), Some(SIZE));
        assert_eq!(get(&block, "saved"), None);
        assert!(is_block(&block) && is_block(&empty()) && !is_block("") && !is_block("saved_entry=a\n"));
    }
}
