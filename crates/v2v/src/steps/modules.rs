//! Lists of kernel modules name the target's drivers instead of those that are of use to a paravirtual guest only.

use crate::Result;
use crate::guest::drivers::is_useless;
use crate::guest::text::{Line, fields};
use crate::initrd;
use crate::step::{Context, Step};
use crate::target::Target;

pub(super) const STEP: Step = Step {
    name: "modules",
    about: "drivers that find no device would fail at boot; the new machine's must be in every initrd that the guest builds",
    run,
};

fn run(cx: &mut Context<'_>) -> Result<()> {
    let mut lists: Vec<Vec<u8>> = vec![b"/etc/modules".to_vec()];
    lists.extend(cx.names("/etc/modules-load.d").into_iter().map(|n| [b"/etc/modules-load.d/", &n[..]].concat()));
    for list in lists {
        let target = cx.options.target;
        cx.edit_lines(list, |line| without_useless(line, target))?;
    }
    let mut aliases: Vec<Vec<u8>> = vec![b"/etc/modprobe.conf".to_vec(), b"/etc/modules.conf".to_vec()];
    aliases.extend(cx.names("/etc/modprobe.d").into_iter().map(|n| [b"/etc/modprobe.d/", &n[..]].concat()));
    let drivers = cx.drivers();
    for path in aliases {
        cx.edit_lines(path, |line| {
            let words = fields(line);
            let (Some((_, "alias")), Some((range, driver))) = (words.first(), words.get(2)) else { return Line::Keep };
            let new = match driver.replace('-', "_").as_str() {
                "xennet" | "xen_vnif" | "xen_netfront" => drivers.nic,
                "xenblk" | "xen_vbd" | "xen_blkfront" => drivers.block(),
                _ => return Line::Keep,
            };
            Line::of((driver.replace('-', "_") != new).then(|| crate::guest::text::replaced(line, range.clone(), new)))
        })?;
    }
    initrd::configure(cx)
}

fn without_useless(line: &str, target: Target) -> Line {
    if fields(line).first().is_some_and(|w| is_useless(w.1, target)) { Line::Drop } else { Line::Keep }
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
