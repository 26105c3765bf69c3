//! Red Hat Enterprise Linux and its rebuilds (CentOS, Rocky, Alma, Oracle, Scientific), Fedora, Amazon Linux.

use guestfs::inspect;

use super::{Advice, Family, System};
use crate::guest::kernels::{Kernel, compare_versions};
use crate::guest::{has_program, rpm};
use crate::step::Context;

pub(super) const FAMILY: Family = Family {
    name: "Red Hat",
    is: |signs| signs.are("rpm", "rpm", inspect::Family::RedHat),
    ending: ".rpm",
    read: rpm::read,
    install: INSTALL,
    records: RECORDS,
    kernel,
    initrd,
};

/// The first kernel of a distribution with dracut: Fedora 12's.
const DRACUTS: &str = "2.6.31";

/// As the guest's tool calls it, mkinitrd or dracut. Where packages bring the tool too, the kernel's time tells which.
fn initrd(cx: &Context<'_>, kernel: &Kernel) -> String {
    let has = |program| has_program(&cx.fs, program);
    let is_dracuts = has("dracut") || !has("mkinitrd") && compare_versions(&kernel.version, DRACUTS).is_ge();
    format!("/boot/{}-{}.img", if is_dracuts { "initramfs" } else { "initrd" }, kernel.version)
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::Step;
    use crate::testing::{MemFs, run_step};

    #[test]
    fn initrds_are_called_by_the_tool_that_makes_them() {
        const NOTHING: Step = Step { name: "nothing", about: "", run: |_| Ok(()) };
        for (release, tools, version, name) in [
            ("centos\nVERSION_ID=5", &["/sbin/mkinitrd"][..], "2.6.18-398.el5", "initrd"),
            ("centos\nVERSION_ID=5", &[], "2.6.18-398.el5", "initrd"),
            ("fedora\nVERSION_ID=11", &["/sbin/mkinitrd"], "2.6.30.10-105.2.23.fc11.x86_64", "initrd"),
            ("rhel\nVERSION_ID=6.10", &["/sbin/dracut", "/sbin/mkinitrd"], "2.6.32-754.el6.x86_64", "initramfs"),
            ("rhel\nVERSION_ID=6.10", &[], "2.6.32-754.el6.x86_64", "initramfs"),
            ("amzn\nVERSION_ID=2", &["/usr/sbin/dracut"], "4.14.355-276.618.amzn2.x86_64", "initramfs"),
            ("euleros\nVERSION_ID=2.0", &["/usr/bin/dracut"], "3.10.0-862.14.1.el7.x86_64", "initramfs"),
        ] {
            let fs = MemFs::new().file("/etc/os-release", format!("ID={release}\n"));
            let kernel =
                Kernel { version: version.into(), image: format!("/boot/vmlinuz-{version}"), initrd: None, unfit: None, pending: true };
            run_step(&tools.iter().fold(fs, |fs, tool| fs.file(tool, "")), &NOTHING, |cx| {
                assert_eq!(initrd(cx, &kernel), format!("/boot/{name}-{version}.img"), "{release} {tools:?}");
            });
        }
    }
}
