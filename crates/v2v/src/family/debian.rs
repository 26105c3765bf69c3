//! Debian, Ubuntu and what is made of them.

use guestfs::inspect;

use super::{Advice, Family, System};
use crate::guest::{deb, kernels};

pub(super) const FAMILY: Family = Family {
    name: "Debian",
    is: |signs| signs.are("deb", "dpkg", inspect::Family::Debian),
    ending: ".deb",
    read: deb::read,
    install: r#"#!/bin/sh
folder=${0%/*}
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then made=1; printf '#!/bin/sh\nexit 101\n' > $policy; chmod 755 $policy; fi
dpkg -i "$folder"/*/*.deb; status=$?
[ -z "$made" ] || rm -f $policy
rm -rf "$folder"
exit $status
"#,
    records: &["/var/lib/dpkg/", "/var/log/dpkg.log"],
    kernel,
    initrd: |_, kernel| format!("/boot/initrd.img-{}", kernel.version),
};

/// The package whose name stays; the kernel's own, which it depends on, has a version in its name.
fn kernel(system: &System<'_>) -> Advice {
    let (id, major) = (system.release.id.as_str(), system.release.major);
    let (start, flavor) = match (id, major, system.is_32bit) {
        ("ubuntu", ..) => ("linux-image", "generic"),
        // 4 to 6 call it by the kernel's time.
        ("debian", 1..=6, false) => ("linux-image-2.6", "amd64"),
        ("debian", 1..=6, true) => ("linux-image-2.6", "686"),
        (_, _, true) => ("linux-image", "686-pae"),
        (_, _, false) => ("linux-image", "amd64"),
    };
    let package = match (id, major) {
        // Its own is 2.6.18, or 2.6.24 from the half release.
        ("debian", 1..=4) => format!(
            "linux-image-2.6.26-2-{flavor} of Debian 5, which archive.debian.org has \
             (the guest's own release has no kernel with virtio, which came with {}),",
            kernels::VIRTIO_SINCE
        ),
        _ => format!("{start}-{flavor} (the linux-image-VERSION-{flavor} that it depends on)"),
    };
    // apt-get has `download` from 0.8.11 on.
    let how = match (id, major) {
        ("debian", 1..=6) | ("ubuntu", 1..=10) => {
            "'apt-get --download-only install' on a machine of that release, which leaves them in /var/cache/apt/archives; an initrd is built by \
             initramfs-tools, which comes with klibc-utils, libklibc and cpio"
        }
        _ => {
            "'apt-get download' on a machine of that release; an initrd is built by initramfs-tools, which comes with initramfs-tools-core, klibc-utils, \
             libklibc, cpio and logsave"
        }
    };
    Advice { package, how: how.into() }
}
