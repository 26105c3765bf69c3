//! Red Hat's mkinitrd, until dracut came with 6: the drivers of the root's disk are those that modprobe.conf calls scsi_hostadapter,
//! and the bus has to be among them.

use guestfs::engine::Command;

use super::{Builder, has_program, mkinitrd_suse, modular};
use crate::Result;
use crate::guest::kernels::Kernel;
use crate::guest::text::{add_line, fields};
use crate::step::Context;

/// How the aliases of disks' drivers begin.
const HOSTADAPTER: &str = "scsi_hostadapter";

pub(super) const BUILDER: Builder = Builder {
    name: "mkinitrd-redhat",
    is_there: |cx| has_program(cx, "mkinitrd"),
    configure,
    build,
    by_udev: false,
    waits_for_disks: false,
    copies: None,
};

/// Step `modules` has renamed Xen's aliases already.
fn configure(cx: &mut Context<'_>) -> Result<()> {
    if !has_program(cx, "mkinitrd") || has_program(cx, "dracut") || mkinitrd_suse::is_there(cx) {
        return Ok(());
    }
    // Of a kernel that a package will bring it cannot be seen what is built in; those of 5 have all of it as modules.
    let wanted = match &cx.facts.kernel {
        Some(kernel) if !kernel.pending => modular(cx, kernel, cx.drivers().disk),
        _ => cx.drivers().disk.to_vec(),
    };
    cx.edit("/etc/modprobe.conf", |text| wanted.iter().fold(text.to_string(), |text, driver| with_adapter(&text, driver)))?;
    Ok(())
}

/// The text with an alias for a disk's driver, of the first name that is free: `scsi_hostadapter`, `scsi_hostadapter1`, …
fn with_adapter(text: &str, driver: &str) -> String {
    let has = |at: usize, word: &str| text.lines().any(|line| fields(line).get(at).is_some_and(|w| w.1.replace('-', "_") == word));
    if has(2, driver) {
        return text.into();
    }
    let mut names = std::iter::once(HOSTADAPTER.to_string()).chain((1..).map(|n| format!("{HOSTADAPTER}{n}")));
    let name = names.find(|name| !has(1, name)).unwrap_or_default();
    add_line(text, &format!("alias {name} {driver}"))
}

fn build(cx: &Context<'_>, kernel: &Kernel, initrd: &str) -> Option<Command> {
    // The bus is no dependency of the disk's driver, and an older modprobe.conf may have been left as it was.
    let with = modular(cx, kernel, cx.drivers_of(kernel).disk).into_iter().map(|module| format!("--with={module}"));
    let words = ["mkinitrd", "-f"].into_iter().map(String::from).chain(with).chain([initrd.into(), kernel.version.clone()]);
    Some(Command::new(words.collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::Step;
    use crate::testing::{MemFs, run_step};

    #[test]
    fn the_bus_is_among_the_adapters() {
        let step = Step { name: "mkinitrd", about: "", run: configure };
        let guest = |conf: &str| MemFs::new().file("/sbin/mkinitrd", "").file("/etc/modprobe.conf", conf);
        for (old, new) in [
            ("", "alias scsi_hostadapter virtio_pci\nalias scsi_hostadapter1 virtio_blk\n"),
            (
                "alias eth0 virtio_net\nalias scsi_hostadapter virtio_blk",
                "alias eth0 virtio_net\nalias scsi_hostadapter virtio_blk\nalias scsi_hostadapter1 virtio_pci\n",
            ),
            (
                "alias scsi_hostadapter virtio-pci\nalias scsi_hostadapter3 virtio_blk\n",
                "alias scsi_hostadapter virtio-pci\nalias scsi_hostadapter3 virtio_blk\n",
            ),
        ] {
            run_step(&guest(old), &step, |cx| assert_eq!(cx.show("/etc/modprobe.conf"), new));
        }
    }
}
