//! LVM's settings that name Xen's disks: the filters of `lvm.conf`, and the list of devices that RHEL 9 keeps.

use crate::guest::devices::Devices;
use crate::guest::text::Line;
use crate::step::{Context, Step};

pub(super) const STEP: Step =
    Step { name: "lvm", about: "LVM looks for its volumes only on the disks that it is told, which have other names on KVM", run };

fn run(cx: &mut Context<'_>) -> crate::Result<()> {
    let devices = cx.devices.clone();
    for path in ["/etc/lvm/lvm.conf", "/etc/lvm/lvmlocal.conf"] {
        cx.edit_lines(path, |line| {
            let key = line.trim_start().split(['=', ' ', '\t']).next().unwrap_or_default();
            let is_filter = matches!(key, "filter" | "global_filter");
            Line::of(is_filter.then(|| renamed(line, &devices)).filter(|new| new != line))
        })?;
    }
    cx.edit_lines("/etc/lvm/devices/system.devices", |line| {
        let is_entry = line.starts_with("IDTYPE=devname");
        Line::of(is_entry.then(|| renamed(line, &devices)).filter(|new| new != line))
    })?;
    Ok(())
}

/// A line with Xen's disks by their new names. In a pattern, what is no whole name of a disk that is known loses its `x`.
fn renamed(line: &str, devices: &Devices) -> String {
    const XEN: &str = "/dev/xvd";
    let (mut out, mut rest) = (String::new(), line);
    while let Some(at) = rest.find(XEN) {
        let (before, name) = rest.split_at(at);
        let end = name[XEN.len()..].find(|c: char| !c.is_ascii_alphanumeric()).map_or(name.len(), |end| end + XEN.len());
        let (name, after) = name.split_at(end);
        // A disk whose content became a partition is found there.
        let new = devices.plain(name).unwrap_or_else(|| name.replace(XEN, "/dev/vd"));
        out += before;
        out += &new;
        rest = after;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{MemFs, run_step};

    #[test]
    fn filters_and_the_list_of_devices() {
        let conf = "devices {\n\t# filter = [ \"a|/dev/xvda|\" ]\n\tfilter = [ \"a|^/dev/xvda2$|\", \"a|/dev/xvd.*|\", \"r|.*|\" ]\n\
                    \tglobal_filter=[ \"a|/dev/xvdb[0-9]+|\", \"r|/dev/sd|\" ]\n\tscan = [ \"/dev\" ]\n}\n";
        let listed = "# LVM uses devices listed in this file.\nVERSION=1.1.2\nIDTYPE=devname IDNAME=/dev/xvda2 DEVNAME=/dev/xvda2 PVID=kD0z PART=2\n\
                      IDTYPE=sys_wwid IDNAME=x DEVNAME=/dev/xvdb1 PVID=aaaa\n";
        let base = MemFs::new().file("/etc/lvm/lvm.conf", conf).file("/etc/lvm/devices/system.devices", listed);
        run_step(&base, &STEP, |cx| {
            let new = conf.replace("^/dev/xvda2", "^/dev/vda2").replace("a|/dev/xvd.", "a|/dev/vd.").replace("a|/dev/xvdb[", "a|/dev/vdb[");
            assert_eq!(cx.show("/etc/lvm/lvm.conf"), new);
            assert_eq!(
                cx.show("/etc/lvm/devices/system.devices"),
                listed.replace("IDNAME=/dev/xvda2 DEVNAME=/dev/xvda2", "IDNAME=/dev/vda2 DEVNAME=/dev/vda2")
            );
        });
        run_step(&MemFs::new().file("/etc/lvm/lvm.conf", "filter = [ \"a|.*|\" ]\n"), &STEP, |cx| assert!(cx.fs.is_unchanged()));
    }
}
