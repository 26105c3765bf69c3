//! mkinitfs, of Alpine Linux: it takes features, which are lists of modules.

use guestfs::engine::Command;

use super::{Builder, has_program};
use crate::Result;
use crate::guest::kernels::Kernel;
use crate::guest::text::{Line, word_list};
use crate::step::Context;

pub(super) const BUILDER: Builder = Builder {
    name: "mkinitfs",
    is_there: |cx| has_program(cx, "mkinitfs"),
    configure,
    build,
    by_udev: false,
    waits_for_disks: false,
    copies: None,
};

fn configure(cx: &mut Context<'_>) -> Result<()> {
    // Where it found its root on Xen, it has the feature for that.
    if cx.options.target.is_xen() {
        return Ok(());
    }
    cx.edit_lines("/etc/mkinitfs/mkinitfs.conf", |line| {
        let list = word_list(line).filter(|list| list.name == "features" && !list.words.contains(&"virtio"));
        Line::of(list.map(|list| list.with(&[&list.words[..], &["virtio"]].concat())))
    })?;
    Ok(())
}

fn build(_: &Context<'_>, kernel: &Kernel, initrd: &str) -> Option<Command> {
    Some(Command::new(["mkinitfs", "-o", initrd, &kernel.version]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::Step;
    use crate::testing::{MemFs, run_step};

    #[test]
    fn virtio_is_a_feature() {
        let step = Step { name: "mkinitfs", about: "", run: configure };
        let base = MemFs::new().file("/etc/mkinitfs/mkinitfs.conf", "features=\"ata base ext4\"\n");
        run_step(&base, &step, |cx| assert_eq!(cx.show("/etc/mkinitfs/mkinitfs.conf"), "features=\"ata base ext4 virtio\"\n"));
        let base = MemFs::new().file("/etc/mkinitfs/mkinitfs.conf", "features=\"ata base virtio\"\n");
        run_step(&base, &step, |cx| assert!(cx.fs.is_unchanged()));
    }
}
