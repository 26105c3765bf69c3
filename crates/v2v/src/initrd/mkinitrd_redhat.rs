//! Red Hat's mkinitrd, until dracut came with 6: the drivers of the root's disk are those that modprobe.conf calls scsi_hostadapter.

use guestfs::engine::Command;

use super::{Builder, has_program, mkinitrd_suse, modular};
use crate::Result;
use crate::guest::kernels::Kernel;
use crate::guest::text::{add_line, fields};
use crate::step::Context;

pub(super) const BUILDER: Builder = Builder { name: "mkinitrd-redhat", is_there: |cx| has_program(cx, "mkinitrd"), configure, build };

/// Step `modules` has renamed Xen's aliases already.
fn configure(cx: &mut Context<'_>) -> Result<()> {
    if !has_program(cx, "mkinitrd") || has_program(cx, "dracut") || mkinitrd_suse::is_there(cx) {
        return Ok(());
    }
    let block = cx.drivers().block();
    cx.edit("/etc/modprobe.conf", |text| {
        let driver = |line: &str| fields(line).get(2).map(|w| w.1.replace('-', "_"));
        if text.lines().any(|line| driver(line).as_deref() == Some(block)) {
            return text.into();
        }
        add_line(text, &format!("alias scsi_hostadapter {block}"))
    })?;
    Ok(())
}

fn build(cx: &Context<'_>, kernel: &Kernel, initrd: &str) -> Option<Command> {
    // Kernels of 5 call no other by itself: the bus is no dependency of the disk's driver.
    let with = modular(cx, kernel, cx.drivers_of(kernel).disk).into_iter().map(|module| format!("--with={module}"));
    let words = ["mkinitrd", "-f"].into_iter().map(String::from).chain(with).chain([initrd.into(), kernel.version.clone()]);
    Some(Command::new(words.collect::<Vec<_>>()))
}
