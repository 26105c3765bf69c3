//! mkinitcpio, of Arch Linux.

use guestfs::engine::Command;

use super::{Builder, has_program};
use crate::Result;
use crate::guest::drivers::fitting;
use crate::guest::kernels::Kernel;
use crate::guest::text::{Line, word_list};
use crate::step::Context;

pub(super) const BUILDER: Builder = Builder {
    name: "mkinitcpio",
    is_there: |cx| has_program(cx, "mkinitcpio"),
    configure,
    build,
    by_udev: true,
    waits_for_disks: false,
    copies: None,
};

fn configure(cx: &mut Context<'_>) -> Result<()> {
    let (target, wanted) = (cx.options.target, cx.drivers().initrd);
    cx.edit_lines("/etc/mkinitcpio.conf", |line| {
        let Some(list) = word_list(line).filter(|list| list.name == "MODULES") else { return Line::Keep };
        let words = fitting(list.words.iter().copied(), wanted, target);
        Line::of((words != list.words).then(|| list.with(&words)))
    })?;
    Ok(())
}

/// What it detects by itself would be the appliance.
fn build(_: &Context<'_>, kernel: &Kernel, initrd: &str) -> Option<Command> {
    Some(Command::new(["mkinitcpio", "-S", "autodetect", "-k", &kernel.version, "-g", initrd]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::Step;
    use crate::testing::{MemFs, run_step};

    const STEP: Step = Step { name: "mkinitcpio", about: "", run: configure };

    #[test]
    fn both_ways_to_write_the_list() {
        for (old, new) in [
            ("MODULES=()", "MODULES=(virtio_pci virtio_blk virtio_scsi virtio_net)"),
            ("MODULES=\"xen-blkfront btrfs\"", "MODULES=\"btrfs virtio_pci virtio_blk virtio_scsi virtio_net\""),
            ("#MODULES=(xen-blkfront)", "#MODULES=(xen-blkfront)"),
        ] {
            run_step(&MemFs::new().file("/etc/mkinitcpio.conf", format!("{old}\nHOOKS=(base udev)\n")), &STEP, |cx| {
                assert_eq!(cx.show("/etc/mkinitcpio.conf"), format!("{new}\nHOOKS=(base udev)\n"));
            });
        }
    }
}
