//! Red Hat Enterprise Linux and its rebuilds (CentOS, Rocky, Alma, Oracle, Scientific), Fedora, Amazon Linux.

use guestfs::inspect;

use super::{Advice, Family, System};
use crate::guest::rpm;

pub(super) const FAMILY: Family = Family {
    name: "Red Hat",
    is: |signs| signs.are("rpm", "rpm", inspect::Family::RedHat),
    ending: ".rpm",
    read: rpm::read,
    install: INSTALL,
    records: RECORDS,
    kernel,
    // mkinitrd's, until dracut came with 6.
    initrd: |cx, kernel| match cx.release.major {
        1..=5 if cx.release.id != "fedora" => format!("/boot/initrd-{}.img", kernel.version),
        _ => format!("/boot/initramfs-{}.img", kernel.version),
    },
};

/// For every distribution with rpm. Its packages start no services: those that would ask systemd, which says that it is not there. An initrd that a
/// kernel's package has dracut build must not be one for the host that it sees now.
pub(super) const INSTALL: &str = r#"#!/bin/sh
folder=${0%/*}
settings=/etc/dracut.conf.d/99-guestlift-install.conf
[ ! -d ${settings%/*} ] || echo 'hostonly="no"' >$settings
status=0
set -- "$folder"/instead/*.rpm
if [ -e "$1" ]; then rpm -U --replacepkgs "$@"; status=$?; fi
set -- "$folder"/beside/*.rpm
if [ $status = 0 ] && [ -e "$1" ]; then rpm -i --replacepkgs --oldpackage "$@"; status=$?; fi
rm -rf "$folder" $settings
exit $status
"#;

/// Its database, old or new.
pub(super) const RECORDS: &[&str] = &["/var/lib/rpm/", "/usr/lib/sysimage/rpm/"];

fn kernel(system: &System<'_>) -> Advice {
    let is_fedora = system.release.id == "fedora";
    let (package, tool) = match (system.release.major, is_fedora) {
        (8.., false) | (22.., true) => ("kernel-core and kernel-modules", "dnf download --resolve"),
        (6..=7, false) => ("kernel", "yumdownloader --resolve"),
        // What 5 calls kernel-xen is for Xen only.
        _ => ("kernel (not kernel-xen)", "yumdownloader --resolve"),
    };
    Advice { package: package.into(), how: format!("'{tool}' on a machine of that release") }
}
