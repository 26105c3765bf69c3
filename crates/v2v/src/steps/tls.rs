//! What 32-bit Xen did to the C library's thread storage: harmless on KVM, so only reported.

use guestfs::Ext;

use crate::Result;
use crate::step::{Context, Step};

pub(super) const STEP: Step =
    Step { name: "tls", about: "reports what Xen's segmentation limits once needed; nothing of it harms on KVM", run };

fn run(cx: &mut Context<'_>) -> Result<()> {
    if cx.fs.is_dir(b"/lib/tls.disabled") {
        cx.note("/lib/tls.disabled holds libraries that were moved away for Xen; they may be moved back to /lib/tls");
    }
    for name in cx.names("/etc/ld.so.conf.d") {
        let path = [b"/etc/ld.so.conf.d/", &name[..]].concat();
        if cx.text(&path)?.is_some_and(|t| t.contains("nosegneg")) {
            cx.note(format!("{} asks for libraries made for Xen (nosegneg): they work on KVM too", guestfs::show(&path)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{MemFs, run_step};

    #[test]
    fn both_are_reported_and_left() {
        let base = MemFs::new().dir("/lib/tls.disabled").file("/etc/ld.so.conf.d/libc6-xen.conf", "hwcap 1 nosegneg\n");
        run_step(&base, &STEP, |cx| {
            assert_eq!(cx.reports[0].notes.len(), 2);
            assert!(cx.fs.is_unchanged());
        });
    }
}
