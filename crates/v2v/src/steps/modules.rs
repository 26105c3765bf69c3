//! Lists of kernel modules name virtio's drivers instead of Xen's.

use crate::Result;
use crate::guest::drivers::is_xens;
use crate::guest::text::{Line, fields};
use crate::initrd;
use crate::step::{Context, Step};

pub(super) const STEP: Step = Step {
    name: "modules",
    about: "Xen's drivers cannot be loaded on KVM, which would fail at boot; virtio's must be in every initrd that the guest builds",
    run,
};

fn run(cx: &mut Context<'_>) -> Result<()> {
    let mut lists: Vec<Vec<u8>> = vec![b"/etc/modules".to_vec()];
    lists.extend(cx.names("/etc/modules-load.d").into_iter().map(|n| [b"/etc/modules-load.d/", &n[..]].concat()));
    for list in lists {
        cx.edit_lines(list, without_xens)?;
    }
    let mut aliases: Vec<Vec<u8>> = vec![b"/etc/modprobe.conf".to_vec(), b"/etc/modules.conf".to_vec()];
    aliases.extend(cx.names("/etc/modprobe.d").into_iter().map(|n| [b"/etc/modprobe.d/", &n[..]].concat()));
    for path in aliases {
        cx.edit_lines(path, |line| {
            let words = fields(line);
            let (Some((_, "alias")), Some((range, driver))) = (words.first(), words.get(2)) else { return Line::Keep };
            let new = match driver.replace('-', "_").as_str() {
                "xennet" | "xen_vnif" | "xen_netfront" => "virtio_net",
                "xenblk" | "xen_vbd" | "xen_blkfront" => "virtio_blk",
                _ => return Line::Keep,
            };
            Line::Become(crate::guest::text::replaced(line, range.clone(), new))
        })?;
    }
    initrd::configure(cx)
}

fn without_xens(line: &str) -> Line {
    if fields(line).first().is_some_and(|w| is_xens(w.1)) { Line::Drop } else { Line::Keep }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{MemFs, run_step};

    #[test]
    fn xens_modules_go_and_virtios_come() {
        let base = MemFs::new()
            .file("/etc/modules", "# comment\nloop\nxen-evtchn\nxenfs\nxen_netfront\n")
            .file("/etc/modules-load.d/xen.conf", "xen_gntdev\n")
            .file("/etc/initramfs-tools/modules", "# raid1\nxen-blkfront\nvirtio-blk")
            .file(
                "/etc/modprobe.d/aliases.conf",
                "alias eth0 xennet\n alias  scsi_hostadapter\txenblk\nalias net-pf-10 off\noptions loop max_loop=64\n",
            );
        run_step(&base, &STEP, |cx| {
            assert_eq!(cx.show("/etc/modules"), "# comment\nloop\n");
            assert_eq!(cx.show("/etc/modules-load.d/xen.conf"), "");
            assert_eq!(cx.show("/etc/initramfs-tools/modules"), "# raid1\nvirtio-blk\nvirtio_pci\nvirtio_scsi\nvirtio_net\n");
            assert_eq!(
                cx.show("/etc/modprobe.d/aliases.conf"),
                "alias eth0 virtio_net\n alias  scsi_hostadapter\tvirtio_blk\nalias net-pf-10 off\noptions loop max_loop=64\n"
            );
        });
        run_step(&MemFs::new().file("/etc/modules", "loop\n"), &STEP, |cx| assert!(cx.fs.is_unchanged()));
    }
}
