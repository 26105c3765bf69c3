//! SUSE's mkinitrd, until dracut came with 12: its modules are those of INITRD_MODULES, and DOMU_INITRD_MODULES for Xen's kernels.

use guestfs::engine::Command;

use super::{Builder, has_program, modular};
use crate::Result;
use crate::guest::drivers::fitting;
use crate::guest::kernels::Kernel;
use crate::guest::text::{Line, word_list};
use crate::step::Context;

pub(super) const BUILDER: Builder =
    Builder { name: "mkinitrd-suse", is_there, configure, build, by_udev: false, waits_for_disks: false, copies: None };

const SETTINGS: &str = "/etc/sysconfig/kernel";

pub(super) fn is_there(cx: &Context<'_>) -> bool {
    // Red Hat's has this file too, without that setting.
    let settings = cx.text(SETTINGS).ok().flatten();
    has_program(cx, "mkinitrd") && settings.is_some_and(|text| text.lines().any(|line| line.starts_with("INITRD_MODULES=")))
}

fn configure(cx: &mut Context<'_>) -> Result<()> {
    // What a package will bring cannot be looked into: SUSE's kernels have all of them as modules.
    let kernel = cx.facts.kernel.clone().filter(|kernel| !kernel.pending);
    let (target, all) = (cx.options.target, cx.drivers().initrd);
    let wanted = kernel.map_or_else(|| all.to_vec(), |kernel| modular(cx, &kernel, all));
    cx.edit_lines(SETTINGS, |line| {
        let Some(list) = word_list(line) else { return Line::Keep };
        let words = match list.name {
            "INITRD_MODULES" => fitting(list.words.iter().copied(), &wanted, target),
            "DOMU_INITRD_MODULES" => fitting(list.words.iter().copied(), &[], target),
            _ => return Line::Keep,
        };
        Line::of((words != list.words).then(|| list.with(&words)))
    })?;
    Ok(())
}

/// Both names are looked for in /boot. The boot loader's menu is none of its business here, which it would refresh.
fn build(cx: &Context<'_>, kernel: &Kernel, initrd: &str) -> Option<Command> {
    let name = |path: &str| path.trim_start_matches("/boot/").to_string();
    let program = ["/sbin/mkinitrd", "/usr/sbin/mkinitrd"].into_iter().find_map(|path| cx.text(path).ok().flatten());
    let refreshes = program.is_some_and(|text| text.contains("update-bootloader") && text.contains("-B"));
    let words = ["mkinitrd", "-k", &name(&kernel.image), "-i", &name(initrd)].map(String::from);
    Some(Command::new(words.into_iter().chain(refreshes.then(|| "-B".to_string()))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::Step;
    use crate::testing::{MemFs, run_step};

    #[test]
    fn lists_of_sles_10_and_11() {
        let step = Step { name: "mkinitrd", about: "", run: configure };
        let old = "## Type: string\nINITRD_MODULES=\"xenblk processor thermal jbd ext3\"\nDOMU_INITRD_MODULES=\"xennet xenblk\"\nMODULES_LOADED_ON_BOOT=\"\"\n";
        run_step(&MemFs::new().file(SETTINGS, old), &step, |cx| {
            assert_eq!(
                cx.show(SETTINGS),
                "## Type: string\nINITRD_MODULES=\"processor thermal jbd ext3 virtio_pci virtio_blk virtio_scsi virtio_net\"\nDOMU_INITRD_MODULES=\"\"\n\
                 MODULES_LOADED_ON_BOOT=\"\"\n"
            );
        });
    }
}
