//! `/etc/fstab` names filesystems by UUID, else by their new device name.

use crate::guest::devices::Devices;
use crate::guest::text::{Line, fields, replaced};
use crate::step::{Context, Step};

pub(super) const STEP: Step =
    Step { name: "fstab", about: "disks have other names on the new machine: mounts and swap are found by UUID where they have one", run };

/// The owner's units.
const UNITS: &str = "/etc/systemd/system";

fn run(cx: &mut Context<'_>) -> crate::Result<()> {
    let devices = cx.devices.clone();
    let mut warnings = Vec::new();
    cx.edit_lines("/etc/fstab", |line| {
        let words = fields(line);
        let Some((range, device)) = words.first().cloned() else { return Line::Keep };
        if device.starts_with('#') {
            return Line::Keep;
        }
        let word = |n: usize| words.get(n).map_or("", |w| w.1);
        // Only a Xen guest has it: the mount would fail, and with it the boot.
        if word(2) == "xenfs" {
            return Line::Become(format!("#{line}"));
        }
        let options = words.get(3).and_then(|(range, options)| Some((range.clone(), devices.in_options(options)?)));
        let line = match &options {
            Some((range, new)) => &replaced(line, range.clone(), new),
            None => line,
        };
        if let Some(new) = devices.stable(device) {
            return Line::Become(replaced(line, range, &new));
        }
        if options.is_some() {
            return Line::Become(line.into());
        }
        let optional = word(3).split(',').any(|o| o == "noauto" || o == "nofail");
        if (Devices::is_disk_name(device) || Devices::is_hardware(device)) && !optional {
            warnings.push(format!(
                "/etc/fstab mounts {device} on {}, but the source has no such disk: the boot may wait for it; add the disk or the option nofail",
                word(1)
            ));
        }
        Line::Keep
    })?;
    warnings.into_iter().for_each(|w| cx.warn(w));
    units(cx, &devices)
}

/// systemd's units for single mounts and swap areas, and what is laid over them.
fn units(cx: &mut Context<'_>, devices: &Devices) -> crate::Result<()> {
    for name in cx.names(UNITS) {
        let path = [UNITS.as_bytes(), b"/", &name[..]].concat();
        let name = String::from_utf8_lossy(&name).into_owned();
        let files = match name.strip_suffix(".d") {
            Some(_) => cx.names(&path).into_iter().map(|file| [&path[..], b"/", &file[..]].concat()).collect(),
            None => vec![path],
        };
        let kind = name.trim_end_matches(".d").rsplit('.').next().unwrap_or_default();
        if !matches!(kind, "mount" | "swap") {
            continue;
        }
        let mut changed = false;
        for file in files {
            changed |= cx.edit_lines(file, |line| {
                let Some((key, device)) = line.split_once('=').filter(|(key, _)| key.trim() == "What") else { return Line::Keep };
                let new = devices.stable(device.trim()).map(|new| match new.strip_prefix("UUID=") {
                    Some(uuid) => format!("/dev/disk/by-uuid/{uuid}"),
                    None => new,
                });
                Line::of(new.map(|new| format!("{key}={new}")))
            })?;
        }
        if changed && kind == "swap" {
            cx.warn(format!(
                "{UNITS}/{name} has the name of a disk on Xen, and systemd takes no other for it: put the swap area into /etc/fstab"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{MemFs, ROOT_UUID, SWAP_UUID, run_step};

    #[test]
    fn xen_tools_fstab() {
        let old = "proc            /proc           proc    defaults        0       0\n\
                   devpts          /dev/pts        devpts  rw,noexec,nosuid,gid=5,mode=620 0  0\n\
                   /dev/xvda1 none swap sw 0 0\n/dev/xvda2 / ext4 noatime,nodiratime,errors=remount-ro 0 1\n";
        run_step(&MemFs::new().file("/etc/fstab", old), &STEP, |cx| {
            let new = old.replace("/dev/xvda1", &format!("UUID={SWAP_UUID}")).replace("/dev/xvda2", &format!("UUID={ROOT_UUID}"));
            assert_eq!(cx.show("/etc/fstab"), new);
            assert_eq!(cx.reports[0].changed, ["/etc/fstab"]);
            assert!(cx.reports[0].warnings.is_empty());
        });
    }

    #[test]
    fn installer_fstab_keeps_comments_and_spacing() {
        let old = "# <file system> <mount point>   <type>  <options>       <dump>  <pass>\n# / was on /dev/sda2 during installation\n\
                   \t/dev/sda2\t/\text3\terrors=remount-ro 0 1\nUUID=1234-ABCD /boot vfat defaults 0 1\n/dev/xvdb1 /srv ext4 defaults 0 2 # data\n\
                   /dev/mapper/vg-home /home ext4 defaults 0 2\nxenfs /proc/xen xenfs defaults 0 0\n/dev/xvdd /media/cdrom0 udf,iso9660 user,noauto 0 0\n\
                   /dev/xvdc1 /old ext3 defaults 0 0";
        run_step(&MemFs::new().file("/etc/fstab", old), &STEP, |cx| {
            let new = old
                .replace("\t/dev/sda2", &format!("\tUUID={ROOT_UUID}"))
                .replace("/dev/xvdb1", "/dev/vdb1")
                .replace("xenfs /proc", "#xenfs /proc");
            assert_eq!(cx.show("/etc/fstab"), new);
            assert_eq!(cx.reports[0].warnings.len(), 1);
            assert!(cx.reports[0].warnings[0].contains("/dev/xvdc1 on /old"));
        });
    }

    #[test]
    fn devices_in_options_and_in_units() {
        let old = "/dev/xvda2 / btrfs device=/dev/xvda2,device=/dev/xvdb1 0 0\nUUID=1 /db xfs rw,logdev=/dev/xvdb1 0 2\n";
        let unit = "[Unit]\nDescription=x\n\n[Mount]\nWhat=/dev/xvda2\nWhere=/srv\n";
        let base = MemFs::new()
            .file("/etc/fstab", old)
            .file("/etc/systemd/system/srv.mount", unit)
            .file("/etc/systemd/system/dev-xvda1.swap", "[Swap]\nWhat=/dev/xvda1\n")
            .file("/etc/systemd/system/tmp.mount.d/x.conf", "[Mount]\nWhat=/dev/xvdb1\n");
        run_step(&base, &STEP, |cx| {
            let new = format!("UUID={ROOT_UUID} / btrfs device=/dev/vda2,device=/dev/vdb1 0 0\nUUID=1 /db xfs rw,logdev=/dev/vdb1 0 2\n");
            assert_eq!(cx.show("/etc/fstab"), new);
            assert_eq!(cx.show("/etc/systemd/system/srv.mount"), unit.replace("/dev/xvda2", &format!("/dev/disk/by-uuid/{ROOT_UUID}")));
            assert_eq!(cx.show("/etc/systemd/system/tmp.mount.d/x.conf"), "[Mount]\nWhat=/dev/vdb1\n");
            assert!(matches!(&cx.reports[0].warnings[..], [one] if one.contains("dev-xvda1.swap")), "{:?}", cx.reports[0].warnings);
        });
    }

    #[test]
    fn nothing_to_do_changes_nothing() {
        run_step(&MemFs::new().file("/etc/fstab", "UUID=1 / ext4 defaults 0 1\n"), &STEP, |cx| assert!(cx.fs.is_unchanged()));
        run_step(&MemFs::new().dir("/etc/fstab"), &STEP, |cx| assert!(cx.fs.is_unchanged()));
    }
}
