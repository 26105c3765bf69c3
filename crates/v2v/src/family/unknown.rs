//! Whatever is left: Gentoo, Slackware, systems that people made themselves. All goes by what they have.

use super::{Advice, Family};

pub(super) const FAMILY: Family = Family {
    name: "unknown",
    is: |_| true,
    ending: "",
    read: |_| Err("packages of this system are not known".into()),
    install: "",
    records: &[],
    kernel: |_| Advice { package: String::new(), how: String::new() },
    initrd: |cx, kernel| {
        // As those that are there are called, else as most tools call theirs.
        let names = cx.names("/boot");
        let debians = names.iter().any(|name| name.starts_with(b"initrd.img-"));
        if debians { format!("/boot/initrd.img-{}", kernel.version) } else { format!("/boot/initramfs-{}.img", kernel.version) }
    },
};
