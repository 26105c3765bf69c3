//! /etc/fstab: its entries, and which volume each of them means.

use crate::Volumes;
use crate::volume::Volume;

/// One entry of /etc/fstab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FstabEntry {
    /// The line, from 1.
    pub line: usize,
    /// The first field as it stands: `/dev/xvda2`, `UUID=…`.
    pub spec: Vec<u8>,
    /// The mount point, with escapes undone; `none` or `swap` for swap.
    pub path: Vec<u8>,
    /// The filesystem's type.
    pub kind: Vec<u8>,
    /// Mount options.
    pub options: Vec<u8>,
    /// The volume that it means, by position in [`Volumes::volumes`].
    pub volume: Option<usize>,
}

impl FstabEntry {
    /// Whether it is swap space.
    pub fn is_swap(&self) -> bool {
        self.kind == b"swap"
    }

    /// Where it is mounted, without needless slashes; `None` for swap, for the kernel's own filesystems and for what comes and goes.
    pub fn mount_point(&self) -> Option<Vec<u8>> {
        let words = self.path.split(|b| *b == b'/').filter(|w| !w.is_empty());
        let path = words.fold(Vec::new(), |path, word| [&path[..], b"/", word].concat());
        let first = self.path.split(|b| *b == b'/').find(|w| !w.is_empty()).unwrap_or_default();
        let drive = [&b"/dev/fd"[..], b"/dev/floppy", b"/dev/cd"].iter().any(|d| self.spec.starts_with(d));
        let passing = drive || [&b"dev"[..], b"media", b"proc", b"sys"].contains(&first);
        if !self.path.starts_with(b"/") || self.is_swap() || passing {
            return None;
        }
        Some(if path.is_empty() { b"/".to_vec() } else { path })
    }
}

/// Parses the file; lines that are no entries are skipped.
pub fn parse(content: &[u8]) -> Vec<FstabEntry> {
    let mut entries = Vec::new();
    for (number, line) in content.split(|b| *b == b'\n').enumerate() {
        let mut fields = line.split(|b| b.is_ascii_whitespace()).filter(|f| !f.is_empty());
        let (Some(spec), Some(path)) = (fields.next(), fields.next()) else { continue };
        if spec.starts_with(b"#") {
            continue;
        }
        entries.push(FstabEntry {
            line: number + 1,
            spec: unescape(spec),
            path: unescape(path),
            kind: fields.next().unwrap_or(b"auto").to_vec(),
            options: fields.next().unwrap_or(b"defaults").to_vec(),
            volume: None,
        });
    }
    entries
}

/// Undoes `\040` and its like.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|d| *first == b'\\' && d.iter().all(|c| (b'0'..=b'7').contains(c)));
        match octal.map(|d| d.iter().fold(0u32, |n, c| n * 8 + u32::from(c - b'0'))) {
            Some(code) if code < 256 => {
                out.push(code as u8);
                rest = &after[3..];
            }
            _ => {
                out.push(*first);
                rest = after;
            }
        }
    }
    out
}

/// The volume that a spec of fstab, crypttab or a kernel command line means.
pub fn resolve(volumes: &Volumes, spec: &[u8]) -> Option<usize> {
    let spec = std::str::from_utf8(spec).ok()?;
    let position = |test: &dyn Fn(&Volume) -> bool| volumes.volumes.iter().position(test);
    for (tag, folder) in [("UUID", "by-uuid"), ("LABEL", "by-label"), ("PARTUUID", "by-partuuid"), ("PARTLABEL", "by-partlabel")] {
        let value = spec.strip_prefix(tag).and_then(|v| v.strip_prefix('=')).map(|v| v.trim_matches(['"', '\'']).to_string());
        let by_path = spec.strip_prefix("/dev/disk/").and_then(|s| s.strip_prefix(folder)?.strip_prefix('/')).map(udev_unescape);
        let Some(value) = value.or(by_path) else { continue };
        return position(&|v| {
            let content = v.content.as_ref();
            match tag {
                "UUID" => content.and_then(|c| c.uuid.as_ref()).is_some_and(|u| u.eq_ignore_ascii_case(&value)),
                "LABEL" => content.and_then(|c| c.label.as_ref()) == Some(&value),
                "PARTUUID" => v.partition.as_ref().is_some_and(|p| p.uuid.eq_ignore_ascii_case(&value)),
                _ => v.partition.as_ref().is_some_and(|p| p.name == value),
            }
        });
    }
    let name = spec.strip_prefix("/dev/")?;
    if let Some(exact) = position(&|v| v.device == spec).or_else(|| position(&|v| v.aliases.iter().any(|alias| alias == spec))) {
        return Some(exact);
    }
    // The same disk by another driver's name: sda2 is xvda2 is vda2.
    let wanted = match of_hardware(name) {
        // Only a single disk can be meant for sure.
        Some((None, number)) if volumes.disks.len() == 1 => return position(&|v| v.partition.as_ref().map(|p| p.number) == number),
        Some((disk, number)) => (disk?, number),
        None => split(name)?,
    };
    if let Some(same) = position(&|v| v.device.strip_prefix("/dev/").and_then(split) == Some(wanted)) {
        return Some(same);
    }
    // Or by its position, when the disks have no such names at all.
    if volumes.disks.iter().any(|d| split(&d.name).is_some()) {
        return None;
    }
    position(&|v| (v.disk(), v.partition.as_ref().map(|p| p.number)) == (Some(wanted.0), wanted.1))
}

/// Finds what Red Hat 6 mounts of disks that are called `sda` and so on in Xen's configuration: its kernel calls them xvde, as it keeps the
/// first four names for IDE's. That is so where the root itself has such a name.
pub fn resolve_moved(volumes: &Volumes, fstab: &mut [FstabEntry]) {
    let moved = |entry: &FstabEntry| {
        let name = std::str::from_utf8(&entry.spec).ok()?.strip_prefix("/dev/").filter(|name| name.starts_with("xvd"))?;
        let (disk, number) = split(name)?;
        Some((disk.checked_sub(4)?, number))
    };
    if !fstab.iter().any(|entry| entry.path == b"/" && entry.volume.is_none() && moved(entry).is_some()) {
        return;
    }
    for entry in fstab.iter_mut().filter(|entry| entry.volume.is_none()) {
        let Some(wanted) = moved(entry) else { continue };
        let is_it = |name: &str| name.starts_with("sd") && split(name) == Some(wanted);
        entry.volume = volumes.volumes.iter().position(|v| v.device.strip_prefix("/dev/").is_some_and(is_it));
    }
}

/// The disk's position, where it tells that, and the partition of a link that udev makes of a disk's serial number or place, which are the
/// machine's and not the disk's content's:
/// `disk/by-id/ata-QEMU_HARDDISK_QM00001-part2`, `disk/by-path/xen-vbd-51712-part2`.
pub fn of_hardware(link: &str) -> Option<(Option<usize>, Option<u32>)> {
    let name = link.strip_prefix("disk/by-id/").or_else(|| link.strip_prefix("disk/by-path/"))?;
    if ["dm-", "md-", "lvm-"].iter().any(|made| name.starts_with(made)) {
        return None;
    }
    let (disk, number) = name.rsplit_once("-part").unwrap_or((name, ""));
    let number = number.parse().ok();
    // QEMU counts its IDE disks from 1; Xen's numbers are those of devices, 16 to a disk.
    let serial = disk.rsplit_once("QEMU_HARDDISK_QM").and_then(|(_, n)| n.parse::<usize>().ok()?.checked_sub(1));
    let device = disk.rsplit_once("xen-vbd-").and_then(|(_, n)| n.parse::<usize>().ok()?.checked_sub(202 << 8)).filter(|n| *n < 256);
    match device {
        Some(device) if device % 16 > 0 => Some((Some(device / 16), u32::try_from(device % 16).ok())),
        Some(device) => Some((Some(device / 16), number)),
        None => Some((serial, number)),
    }
}

/// `sda2` and its like as the disk's position and the partition.
pub fn split(name: &str) -> Option<(usize, Option<u32>)> {
    let rest = ["xvd", "sd", "hd", "vd"].into_iter().find_map(|p| name.strip_prefix(p))?;
    let letters = rest.trim_end_matches(|c: char| c.is_ascii_digit());
    if letters.is_empty() || letters.len() > 4 || !letters.bytes().all(|c| c.is_ascii_lowercase()) {
        return None;
    }
    let position = letters.bytes().fold(0usize, |n, c| n * 26 + usize::from(c - b'a') + 1) - 1;
    match &rest[letters.len()..] {
        "" => Some((position, None)),
        number => Some((position, Some(number.parse().ok()?))),
    }
}

/// Undoes udev's `\x20` in names under /dev/disk.
fn udev_unescape(name: &str) -> String {
    let mut out = String::new();
    let mut rest = name;
    while let Some((before, after)) = rest.split_once("\\x") {
        out.push_str(before);
        match after.get(..2).and_then(|h| u8::from_str_radix(h, 16).ok()).filter(u8::is_ascii) {
            Some(c) => {
                out.push(char::from(c));
                rest = &after[2..];
            }
            None => {
                out.push_str("\\x");
                rest = after;
            }
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use imgcore::storage::MemStorage;

    use crate::volume::GuestDisk;

    #[test]
    fn entries() {
        let text = b"# c\n\nproc /proc proc defaults 0 0\n/dev/xvda1 none swap sw 0 0\n\t/dev/xvda2\t/\text4 noatime,x 0 1\nLABEL=a\\040b /mnt/a\\040b\n short\n";
        let parsed = parse(text);
        let view: Vec<(usize, &[u8], &[u8])> = parsed.iter().map(|e| (e.line, e.spec.as_slice(), e.path.as_slice())).collect();
        assert_eq!(
            view,
            [
                (3, b"proc".as_slice(), b"/proc".as_slice()),
                (4, b"/dev/xvda1", b"none"),
                (5, b"/dev/xvda2", b"/"),
                (6, b"LABEL=a b", b"/mnt/a b")
            ]
        );
        assert_eq!(parsed[3].kind, b"auto");
        let points: Vec<_> = parsed.iter().map(|e| e.mount_point().map(|p| String::from_utf8(p).unwrap())).collect();
        assert_eq!(points, [None, None, Some("/".to_string()), Some("/mnt/a b".to_string())]);
        assert_eq!(parse(b"/dev/sda1 ///home//users/ ext4")[0].mount_point().unwrap(), b"/home/users");
        assert_eq!(parse(b"/dev/cdrom /cd auto")[0].mount_point(), None);
        assert!(parsed[1].is_swap());
    }

    #[test]
    fn red_hat_6_calls_sda_xvde() {
        let disk = |name: &str| {
            let image = imgcore::raw::Raw::create(Arc::new(MemStorage::new("disk", 0)), 1 << 20).unwrap();
            GuestDisk { name: name.into(), image: Arc::new(image) }
        };
        let names = ["sda1", "sda2", "xvdf1"];
        let volumes = Volumes::open(names.map(disk).into()).unwrap();
        let found = |text: &str| {
            let mut fstab = parse(text.as_bytes());
            fstab.iter_mut().for_each(|entry| entry.volume = resolve(&volumes, &entry.spec));
            resolve_moved(&volumes, &mut fstab);
            fstab.iter().map(|entry| entry.volume.map(|index| volumes.volumes[index].device.clone())).collect::<Vec<_>>()
        };
        let device = |name: &str| Some(format!("/dev/{name}"));
        let others = "/dev/xvde2 /data ext4\n/dev/xvdf1 /x ext4\n/dev/sde2 /y ext4\n";
        assert_eq!(found(&format!("/dev/xvde1 / ext4\n{others}")), [device("sda1"), device("sda2"), device("xvdf1"), None]);
        // Where the root has another name, xvde is a disk that is not there.
        assert_eq!(found(&format!("UUID=1 / ext4\n{others}")), [None, None, device("xvdf1"), None]);
    }

    #[test]
    fn links_of_hardware() {
        for (link, wanted) in [
            ("disk/by-id/ata-QEMU_HARDDISK_QM00002-part5", Some((Some(1), Some(5)))),
            ("disk/by-id/ata-QEMU_HARDDISK_QM00000", Some((None, None))),
            ("disk/by-id/scsi-36001405-part1", Some((None, Some(1)))),
            ("disk/by-path/xen-vbd-51728-part3", Some((Some(1), Some(3)))),
            ("disk/by-path/xen-vbd-51713", Some((Some(0), Some(1)))),
            ("disk/by-path/xen-vbd-99999999-part3", Some((None, Some(3)))),
            ("disk/by-id/dm-uuid-LVM-a", None),
            ("disk/by-uuid/a", None),
        ] {
            assert_eq!(of_hardware(link), wanted, "{link}");
        }
    }

    #[test]
    fn device_names() {
        assert_eq!(split("xvda2"), Some((0, Some(2))));
        assert_eq!(split("sdb"), Some((1, None)));
        assert_eq!(split("hdaa10"), Some((26, Some(10))));
        assert_eq!(split("sd"), None);
        assert_eq!(split("sdA1"), None);
        assert_eq!(split("mapper/x"), None);
        assert_eq!(udev_unescape("a\\x20b\\xzz"), "a b\\xzz");
    }
}
