//! initramfs-tools, of Debian and Ubuntu.

use guestfs::Ext;
use guestfs::engine::Command;

use super::{Builder, has_program};
use crate::Result;
use crate::guest::drivers::is_useless;
use crate::guest::kernels::Kernel;
use crate::guest::text::{Line, add_line, fields, map_lines};
use crate::step::Context;

pub(super) const BUILDER: Builder = Builder {
    name: "initramfs-tools",
    is_there,
    configure,
    build,
    by_udev: true,
    waits_for_disks: false,
    copies: Some(("/etc/initramfs-tools/conf.d", "conf/conf.d")),
};

fn is_there(cx: &Context<'_>) -> bool {
    // dracut brings an update-initramfs of its own.
    has_program(cx, "update-initramfs") && (cx.fs.is_dir(b"/usr/share/initramfs-tools") || !has_program(cx, "dracut"))
}

fn configure(cx: &mut Context<'_>) -> Result<()> {
    let (target, wanted) = (cx.options.target, cx.drivers().initrd);
    cx.edit("/etc/initramfs-tools/modules", |text| {
        let first = |line: &str| fields(line).first().map(|w| w.1.replace('-', "_"));
        let text = map_lines(text, |line| if first(line).is_some_and(|m| is_useless(&m, target)) { Line::Drop } else { Line::Keep });
        let missing = wanted.iter().filter(|module| !text.lines().any(|l| first(l).as_deref() == Some(**module)));
        missing.fold(text.clone(), |text, module| add_line(&text, module))
    })?;
    Ok(())
}

/// It updates only what it made itself, creates only what is not there, and knows no other name.
fn build(cx: &Context<'_>, kernel: &Kernel, initrd: &str) -> Option<Command> {
    if initrd != format!("/boot/initrd.img-{}", kernel.version) {
        return None;
    }
    let flag = if cx.fs.exists(format!("/var/lib/initramfs-tools/{}", kernel.version).as_bytes()) { "-u" } else { "-c" };
    Some(Command::new(["update-initramfs", flag, "-k", &kernel.version]))
}
