//! SUSE Linux Enterprise and openSUSE.

use guestfs::inspect;

use super::{Advice, Family, System, redhat};
use crate::guest::rpm;

pub(super) const FAMILY: Family = Family {
    name: "SUSE",
    // Both families have rpm; only this one has its own installer, or says so.
    is: |signs| {
        let is_suses = ["zypper", "yast2", "yast", "SuSEconfig"].iter().any(|program| signs.has(program));
        signs.are("rpm", "zypper", inspect::Family::Suse) && (is_suses || signs.release.family == inspect::Family::Suse)
    },
    ending: ".rpm",
    read: rpm::read,
    install: redhat::INSTALL,
    records: redhat::RECORDS,
    kernel,
    initrd: |_, kernel| format!("/boot/initrd-{}", kernel.version),
};

fn kernel(system: &System<'_>) -> Advice {
    let how = match (system.release.id.starts_with("opensuse"), system.release.major) {
        (_, 1..=10) => "from the installation medium's suse folder",
        // It learned to download without installing later.
        (false, 11) | (true, 11..=13) => {
            "'zypper install --download-only' on a machine of that release, which leaves them in /var/cache/zypp/packages, or from the installation \
             medium's suse folder"
        }
        _ => "'zypper download' on a machine of that release",
    };
    Advice { package: "kernel-default (with kernel-default-base where that is a package of its own)".into(), how: how.into() }
}
