//! Where the initrd looks for a hibernated system: `/etc/initramfs-tools/conf.d/resume` and the uswsusp configuration.

use crate::guest::text::Line;
use crate::step::{Context, Step};

pub(super) const STEP: Step =
    Step { name: "resume", about: "the initrd would wait at each boot for a swap device that has another name on the new machine", run };

fn run(cx: &mut Context<'_>) -> crate::Result<()> {
    let devices = cx.devices.clone();
    for name in cx.names("/etc/initramfs-tools/conf.d") {
        let path = [b"/etc/initramfs-tools/conf.d/", &name[..]].concat();
        cx.edit_lines(path, |line| {
            let value = line.strip_prefix("RESUME=").map(|v| v.trim_matches('"'));
            Line::of(value.and_then(|v| devices.stable(v)).map(|new| format!("RESUME={new}")))
        })?;
    }
    // uswsusp takes paths only.
    cx.edit_lines("/etc/uswsusp.conf", |line| {
        let (name, value) = line.split_once('=').unwrap_or((line, ""));
        let new = if name.trim() == "resume device" { devices.plain(value.trim()) } else { None };
        Line::of(new.map(|new| format!("{name}= {new}")))
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{MemFs, SWAP_UUID, run_step};

    #[test]
    fn by_uuid() {
        let base = MemFs::new()
            .file("/etc/initramfs-tools/conf.d/resume", "RESUME=/dev/xvda1\n")
            .file("/etc/initramfs-tools/conf.d/other", "RESUME=UUID=abc\nMODULES=most\n")
            .file("/etc/uswsusp.conf", "# x\nresume device = /dev/xvda1\ncompress = y\n");
        run_step(&base, &STEP, |cx| {
            assert_eq!(cx.show("/etc/initramfs-tools/conf.d/resume"), format!("RESUME=UUID={SWAP_UUID}\n"));
            assert_eq!(cx.show("/etc/uswsusp.conf"), "# x\nresume device = /dev/vda1\ncompress = y\n");
            assert_eq!(cx.reports[0].changed.len(), 2);
        });
    }
}
