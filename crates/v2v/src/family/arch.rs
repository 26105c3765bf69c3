//! Arch Linux and what is made of it.

use guestfs::inspect;

use super::{Advice, Family};
use crate::guest::pkginfo;

pub(super) const FAMILY: Family = Family {
    name: "Arch",
    is: |signs| signs.are("pacman", "pacman", inspect::Family::Arch),
    ending: ".pkg.tar.zst",
    read: pkginfo::read,
    // Its hooks build the initrd, and start no services.
    install: r#"#!/bin/sh
folder=${0%/*}
pacman -U --noconfirm "$folder"/*/*.pkg.tar.zst; status=$?
rm -rf "$folder"
exit $status
"#,
    records: &["/var/lib/pacman/local/", "/var/log/pacman.log"],
    kernel: |_| Advice { package: "linux".into(), how: "'pacman -Sw', which leaves it in /var/cache/pacman/pkg".into() },
    // By package, as the kernel: `vmlinuz-linux-lts`.
    initrd: |_, kernel| format!("/boot/initramfs-{}.img", kernel.image.rsplit("vmlinuz-").next().unwrap_or(&kernel.version)),
};
