//! Debian, Ubuntu and what is made of them.

use guestfs::inspect;

use super::{Advice, Family, System};
use crate::guest::deb;

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
    let (start, flavor) = match (system.release.id.as_str(), system.release.major, system.is_32bit) {
        ("ubuntu", ..) => ("linux-image", "generic"),
        // 4 to 6 call it by the kernel's time.
        ("debian", 1..=6, false) => ("linux-image-2.6", "amd64"),
        ("debian", 1..=6, true) => ("linux-image-2.6", "686"),
        (_, _, true) => ("linux-image", "686-pae"),
        (_, _, false) => ("linux-image", "amd64"),
    };
    Advice {
        package: format!("{start}-{flavor} (the linux-image-VERSION-{flavor} that it depends on)"),
        how: "'apt-get download' on a machine of that release; an initrd is built by initramfs-tools, which comes with initramfs-tools-core, klibc-utils, \
              libklibc, cpio and logsave"
            .into(),
    }
}
