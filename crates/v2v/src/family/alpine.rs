//! Alpine Linux.

use guestfs::inspect;

use super::{Advice, Family, System};
use crate::guest::pkginfo;

pub(super) const FAMILY: Family = Family {
    name: "Alpine",
    is: |signs| signs.are("apk", "apk", inspect::Family::Alpine),
    ending: ".apk",
    read: pkginfo::read,
    // The packages' triggers build the initrd and extlinux's menu. OpenRC starts nothing of what is added.
    install: r#"#!/bin/sh
folder=${0%/*}
apk add --no-network --allow-untrusted --force-non-repository "$folder"/*/*.apk; status=$?
rm -rf "$folder"
exit $status
"#,
    records: &["/lib/apk/db/"],
    kernel,
    initrd: |_, kernel| by_flavor(kernel),
};

/// By flavor, as the kernel: `vmlinuz-virt`, `initramfs-virt`.
fn by_flavor(kernel: &crate::guest::kernels::Kernel) -> String {
    format!("/boot/initramfs-{}", kernel.image.rsplit("vmlinuz-").next().unwrap_or(&kernel.version))
}

fn kernel(system: &System<'_>) -> Advice {
    let package = match (system.release.major, system.release.minor) {
        (2, _) | (3, 0..=6) => "linux-virtgrsec",
        (3, 7) => "linux-virthardened",
        _ => "linux-virt",
    };
    Advice { package: package.into(), how: "'apk fetch --recursive' on a machine of that release".into() }
}
