//! LVM's settings that name Xen's disks: the filters of `lvm.conf`, and the list of devices that RHEL 9 keeps.

use crate::guest::devices::Devices;
use crate::guest::text::Line;
use crate::step::{Context, Step};

pub(super) const STEP: Step =
    Step { name: "lvm", about: "LVM looks for its volumes only on the disks that it is told, which have other names on KVM", run };

fn run(cx: &mut Context<'_>) -> crate::Result<()> {
    let devices = cx.devices.clone();
    for path in ["/etc/lvm/lvm.conf", "/etc/lvm/lvmlocal.conf"] {
        // A list may go over several lines.
        let mut inside = false;
        let mut filter = String::new();
        let mut filters = Vec::new();
        cx.edit_lines(path, |line| {
            let key = line.trim_start().split(['=', ' ', '\t']).next().unwrap_or_default();
            if !(inside || matches!(key, "filter" | "global_filter")) || line.trim_start().starts_with('#') {
                return Line::Keep;
            }
            let new = renamed(line, &devices);
            filter += &new;
            inside = !line.contains(']');
            if !inside {
                filters.push(std::mem::take(&mut filter));
            }
            Line::of((new != line).then_some(new))
        })?;
        for filter in filters.iter().filter(|filter| refuses_all(filter)) {
            cx.warn(format!("{path}: LVM may not find its volumes on the new machine's disks by {}", filter.trim()));
        }
    }
    cx.edit_lines("/etc/lvm/devices/system.devices", |line| {
        let is_entry = line.starts_with("IDTYPE=devname");
        Line::of(is_entry.then(|| renamed(line, &devices)).filter(|new| new != line))
    })?;
    Ok(())
}

/// A line with the source's disks by their new names. In a pattern, what is no whole name of a disk that is known loses its `x`. Disks of
/// other names are the source's only where no pattern has Xen's, and stay refused.
fn renamed(line: &str, devices: &Devices) -> String {
    const XEN: &str = "xvd";
    if !line.contains(XEN) {
        let pattern = |pattern: &str| if pattern.starts_with('a') { by_prefix(pattern, &["sd", "hd"], devices) } else { pattern.into() };
        return line.split('"').map(pattern).collect::<Vec<String>>().join("\"");
    }
    by_prefix(line, &[XEN], devices)
}

fn by_prefix(text: &str, prefixes: &[&str], devices: &Devices) -> String {
    let (mut out, mut rest) = (String::new(), text);
    while let Some(at) = prefixes.iter().filter_map(|prefix| rest.find(prefix)).min() {
        let (before, name) = rest.split_at(at);
        let end = name.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(name.len());
        let (name, after) = name.split_at(end);
        out += before;
        if before.ends_with(|c: char| c.is_ascii_alphanumeric()) {
            out += name;
        } else {
            // A disk whose content became a partition is found there.
            let new = devices.plain(name).unwrap_or_else(|| name.replace("xvd", "vd"));
            out += new.strip_prefix("/dev/").unwrap_or(&new);
        }
        rest = after;
    }
    out + rest
}

/// Whether a filter takes no disk that it does not name, and names none of virtio's.
fn refuses_all(filter: &str) -> bool {
    let patterns: Vec<&str> = filter.split('"').skip(1).step_by(2).collect();
    let takes =
        |p: &&str| p.starts_with('a') && (p.contains("vd") || p.contains("/dev/disk") || matches!(&p[1..], "|.*|" | "/.*/" | "|.|"));
    patterns.iter().any(|p| matches!(*p, "r|.*|" | "r/.*/")) && !patterns.iter().any(takes)
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
        for (old, new) in [
            ("filter = [ \"a|^/dev/sda2$|\", \"a|md|\", \"r|.*|\" ]\n", "filter = [ \"a|^/dev/vda2$|\", \"a|md|\", \"r|.*|\" ]\n"),
            ("filter = [ \"a|xvd.*|\", \"r|.*|\" ]\n", "filter = [ \"a|vd.*|\", \"r|.*|\" ]\n"),
            ("filter = [\n\t\"a|^/dev/(sd|xvd).*|\",\n\t\"r|.*|\"\n]\n", "filter = [\n\t\"a|^/dev/(sd|vd).*|\",\n\t\"r|.*|\"\n]\n"),
        ] {
            run_step(&MemFs::new().file("/etc/lvm/lvm.conf", old), &STEP, |cx| {
                assert_eq!(cx.show("/etc/lvm/lvm.conf"), new);
                assert!(cx.reports[0].warnings.is_empty());
            });
        }
        for (kept, warnings) in [
            ("\"r|/dev/sda2|\", \"a|.*|\"", 0),
            ("\"a|.*|\"", 0),
            ("\"a|/dev/sda|\", \"r|.*|\"", 1),
            ("\"a|/dev/md|\", \"a|/dev/disk/by-uuid|\", \"r|.*|\"", 0),
        ] {
            run_step(&MemFs::new().file("/etc/lvm/lvm.conf", format!("filter = [ {kept} ]\n")), &STEP, |cx| {
                assert!(cx.fs.is_unchanged());
                assert_eq!(cx.reports[0].warnings.len(), warnings, "{kept}");
            });
        }
    }
}
