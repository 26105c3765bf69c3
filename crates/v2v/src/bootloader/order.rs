//! Which kernel our own `grub.cfg` starts, told beforehand: the order of its script in [`config`](super::config), over what /boot holds today.

use std::collections::BTreeSet;

use guestfs::{Ext, FileType, GuestFs};

use super::config::{IMAGES, INITRDS, NUMBERS};
use crate::guest::kernels::Kernel;

/// What names of kernels hold that are passed over.
pub(super) const PASSED_OVER: [&str; 10] = ["el5xen", "xenU", "xenpae", "rescue", "config", "debug", "-dbg", ".old", ".bak", ".dpkg"];

/// Whether the script starts this kernel.
pub(super) fn starts(fs: &(impl GuestFs + ?Sized), kernel: &Kernel, unfit: &[String]) -> bool {
    first(fs, Some(kernel), unfit).is_some_and(|image| image == kernel.image)
}

/// The image that goes before all others; `None` where some are equal, as GRUB's globs come in no order. `chosen` may not be there yet. Images that
/// are `unfit` are passed over.
pub(super) fn first(fs: &(impl GuestFs + ?Sized), chosen: Option<&Kernel>, unfit: &[String]) -> Option<String> {
    let files = fs.read_dir(b"/boot").unwrap_or_default().into_iter().filter(|entry| entry.kind != FileType::Directory);
    let mut images: BTreeSet<String> = files.filter_map(|entry| Some(format!("/boot/{}", String::from_utf8(entry.name).ok()?))).collect();
    images.extend(chosen.map(|kernel| kernel.image.clone()));
    let ranked = images.into_iter().filter_map(|image| {
        let version = version_of(&image).filter(|version| !is_passed_over(version) && !unfit.contains(&image))?;
        let is_there = |initrd: &str| fs.is_file(format!("/boot/{}", initrd.replace("$1", version)).as_bytes());
        let has_initrd = match chosen.filter(|kernel| kernel.image == image) {
            Some(kernel) => kernel.initrd.is_some(),
            None => INITRDS.iter().any(|initrd| is_there(initrd)),
        };
        Some((numbers(version, has_initrd), image))
    });
    let mut ranked: Vec<_> = ranked.collect();
    ranked.sort();
    let (numbers, image) = ranked.pop()?;
    ranked.last().is_none_or(|(others, _)| *others < numbers).then_some(image)
}

/// Images that the script has to be told of by their names to pass them over.
pub(super) fn told(unfit: &[String]) -> impl Iterator<Item = &String> {
    unfit.iter().filter(|image| version_of(image).is_some_and(|version| !is_passed_over(version)))
}

/// What the script calls the version of an image: its name's end.
pub(super) fn version_of(image: &str) -> Option<&str> {
    let name = image.strip_prefix("/boot/").filter(|name| !name.contains('/'))?;
    IMAGES.iter().find_map(|prefix| name.strip_prefix(prefix))
}

/// Kernels of Xen's own, those that are no release, and copies.
fn is_passed_over(version: &str) -> bool {
    // Debian's until 5; those of 6 start everywhere.
    let is_debians = |release: &str| version.find(release).is_some_and(|at| version[at..].contains("-xen-"));
    version.ends_with("-xen") || ["2.6.18-", "2.6.26-"].into_iter().any(is_debians) || PASSED_OVER.iter().any(|part| version.contains(part))
}

/// The numbers by which the script compares, the first different one counts.
fn numbers(version: &str, has_initrd: bool) -> [u64; NUMBERS] {
    let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let value = |text: &str| text.parse().unwrap_or(u64::MAX);
    // Where a number, a dot and a digit come first.
    let begins = |at: &usize| {
        let rest = &version[*at..];
        rest[digits(rest)..].strip_prefix('.').is_some_and(|rest| digits(rest) > 0) && digits(rest) > 0
    };
    let number = version.char_indices().map(|(at, _)| at).find(begins).map_or(version, |at| &version[at..]);
    let mut found = [0; NUMBERS];
    found[0] = u64::from(has_initrd);
    for (slot, part) in found[1..4].iter_mut().zip(number.split('.')) {
        let end = digits(part);
        if end == 0 {
            break;
        }
        *slot = value(&part[..end]);
        if end < part.len() {
            break;
        }
    }
    let head = number.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(number.len());
    let mut rest = if head == 0 { "" } else { &number[head..] };
    for (slot, is_first) in found[4..].iter_mut().zip([true, false, false, false]) {
        let behind = if is_first { rest.find(|c: char| c.is_ascii_digit()).map(|at| &rest[at..]) } else { rest.strip_prefix('.') };
        if let Some(behind) = behind.filter(|behind| digits(behind) > 0) {
            let end = digits(behind);
            (*slot, rest) = (value(&behind[..end]), &behind[end..]);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::MemFs;

    #[test]
    fn versions_become_numbers() {
        for (version, expected) in [
            ("6.1.0-13-amd64", [1, 6, 1, 0, 13, 0, 0, 0]),
            ("5.14.0-427.13.1.el9_4.x86_64", [1, 5, 14, 0, 427, 13, 1, 0]),
            ("genkernel-x86_64-6.1.2-gentoo", [1, 6, 1, 2, 0, 0, 0, 0]),
            ("6.9.1-arch1-1", [1, 6, 9, 1, 1, 0, 0, 0]),
            ("2.6.16.60-0.85.1-default", [1, 2, 6, 16, 0, 85, 1, 0]),
            ("linux-lts", [1, 0, 0, 0, 0, 0, 0, 0]),
            ("6.1", [1, 6, 1, 0, 0, 0, 0, 0]),
        ] {
            assert_eq!(numbers(version, true), expected, "{version}");
        }
    }

    #[test]
    fn the_first_is_one_alone() {
        let with = |names: &[&str]| names.iter().fold(MemFs::new(), |fs, name| fs.file(&format!("/boot/{name}"), "x"));
        let first_of = |names: &[&str]| first(&with(names), None, &[]);
        let cases: [(&[&str], Option<&str>); 9] = [
            (&["vmlinuz-6.1.0-9-amd64", "vmlinuz-6.1.0-13-amd64", "memtest"], Some("vmlinuz-6.1.0-13-amd64")),
            (&["vmlinuz-6.1.0-9-amd64", "initrd.img-6.1.0-9-amd64", "vmlinuz-6.1.0-13-amd64"], Some("vmlinuz-6.1.0-9-amd64")),
            (&["vmlinuz-linux", "vmlinuz-linux-lts"], None),
            (&["vmlinuz-linux"], Some("vmlinuz-linux")),
            // Debian 5's starts on Xen only, Debian 6's everywhere.
            (&["vmlinuz-2.6.26-2-amd64", "vmlinuz-2.6.26-2-xen-amd64"], Some("vmlinuz-2.6.26-2-amd64")),
            (&["vmlinuz-2.6.32-5-amd64", "vmlinuz-2.6.32-5-xen-amd64"], None),
            (&["vmlinuz-5.14.0-70.el9.x86_64", "vmlinuz-5.14.0-70.el9.x86_64+debug"], Some("vmlinuz-5.14.0-70.el9.x86_64")),
            (&["vmlinuz-6.1-xen"], None),
            (&["vmlinuz-2.6.16.60-0.85.1-default", "vmlinuz-2.6.16.60-0.85.1-xenpae"], Some("vmlinuz-2.6.16.60-0.85.1-default")),
        ];
        for (names, expected) in cases {
            assert_eq!(first_of(names), expected.map(|name| format!("/boot/{name}")), "{names:?}");
        }
        let unfit = ["vmlinuz-6.2", "vmlinuz-6.2-xen", "other"].map(|name| format!("/boot/{name}"));
        assert_eq!(first(&with(&["vmlinuz-6.1", "vmlinuz-6.2"]), None, &unfit).as_deref(), Some("/boot/vmlinuz-6.1"));
        assert_eq!(told(&unfit).collect::<Vec<_>>(), ["/boot/vmlinuz-6.2"]);
    }
}
