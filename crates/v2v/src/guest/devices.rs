//! Old device names and what they become: by UUID where one exists, else the new name.

use std::collections::{BTreeSet, HashMap};

use guestfs::inspect::fstab::of_hardware;

use crate::layout::{Layout, Table, Volume};
use crate::source::{Boot, Source};

/// What devices become. Names are told apart by disk letter and partition number only: the guest may say `sda2` where the
/// configuration says `xvda2`, as the kernel's driver changed over the years.
#[derive(Clone, Debug, Default)]
pub struct Devices {
    volumes: HashMap<(u32, Option<u32>), Volume>,
    disks: HashMap<u32, String>,
    /// Disks that the configuration calls `sda` and so on.
    scsi: BTreeSet<u32>,
}

/// Red Hat 6's kernel calls Xen's `sda` xvde, as it keeps the first four names for IDE's (`xen_blkfront.sda_is_xvda`).
const SCSI_OFFSET: u32 = 4;

impl Devices {
    /// The table of a layout.
    pub fn new(source: &Source, layout: &Layout) -> Self {
        // Other sources' names are made up by position.
        let by_xen = matches!(source.boot, Boot::Direct { .. });
        let scsi = source.disks.iter().filter(|disk| by_xen && disk.target.starts_with("sd"));
        let scsi = scsi.filter_map(|disk| Some(parse(&disk.target)?.0));
        let mut devices = Devices { scsi: scsi.collect(), ..Devices::default() };
        for volume in layout.volumes() {
            if let Some(key) = parse(&volume.source_device) {
                devices.volumes.insert(key, volume.clone());
            }
        }
        for disk in &layout.disks {
            if let Table::Keep { disk: index } = disk.table
                && let Some(old) = source.disks.get(index)
                && let Some((letter, None)) = parse(&old.target)
            {
                devices.disks.insert(letter, disk.device.clone());
            }
        }
        devices
    }

    /// Whether this is a name that Xen or an emulated disk gives: `/dev/xvda2`, `/dev/sda`, `hdc1`.
    pub fn is_disk_name(name: &str) -> bool {
        let name = name.strip_prefix("/dev/").unwrap_or(name);
        ["xvd", "sd", "hd", "vd"].iter().any(|p| name.starts_with(p)) && parse(name).is_some()
    }

    /// Whether this is a link to a disk by its serial number or its place, which are others on the new machine.
    pub fn is_hardware(name: &str) -> bool {
        of_hardware(name.strip_prefix("/dev/").unwrap_or(name)).is_some()
    }

    /// Disk and partition of an old name, with or without `/dev/`.
    fn place(&self, name: &str) -> Option<(u32, Option<u32>)> {
        let name = name.strip_prefix("/dev/").unwrap_or(name);
        let letters: BTreeSet<u32> = self.volumes.keys().map(|key| key.0).chain(self.disks.keys().copied()).collect();
        let Some((disk, number)) = of_hardware(name) else {
            let (letter, number) = parse(name).filter(|_| Self::is_disk_name(name))?;
            let scsi = letter.checked_sub(SCSI_OFFSET).filter(|disk| self.scsi.contains(disk) && name.starts_with("xvd"));
            return Some((scsi.filter(|_| !letters.contains(&letter)).unwrap_or(letter), number));
        };
        // A single disk needs no name.
        let single = letters.first().filter(|_| letters.len() == 1).copied();
        Some((disk.and_then(|disk| u32::try_from(disk).ok()).or(single)?, number))
    }

    /// The volume of an old name, with or without `/dev/`.
    pub fn volume(&self, name: &str) -> Option<&Volume> {
        self.volumes.get(&self.place(name)?)
    }

    /// `UUID=…` where the volume has one that no other has, else the new name with `/dev/`.
    pub fn stable(&self, name: &str) -> Option<String> {
        match self.volume(name) {
            Some(volume) => Some(self.stable_of(volume)),
            None => self.plain(name),
        }
    }

    /// As [`stable`](Self::stable), for a volume.
    pub fn stable_of(&self, volume: &Volume) -> String {
        match &volume.uuid {
            Some(uuid) if self.volumes.values().filter(|v| v.uuid.as_ref() == Some(uuid)).count() == 1 => format!("UUID={uuid}"),
            _ => format!("/dev/{}", volume.target_device),
        }
    }

    /// The new name with `/dev/`; whole disks too.
    pub fn plain(&self, name: &str) -> Option<String> {
        if let Some(volume) = self.volume(name) {
            return Some(format!("/dev/{}", volume.target_device));
        }
        match self.place(name)? {
            (letter, None) => self.disks.get(&letter).map(|d| format!("/dev/{d}")),
            _ => None,
        }
    }

    /// Options of a mount with the devices that some of them name by path, by their new names; `None` where none is known.
    pub fn in_options(&self, options: &str) -> Option<String> {
        const WITH_DEVICE: [&str; 5] = ["device", "logdev", "rtdev", "journal_path", "x-systemd.requires"];
        let renamed = |option: &str| {
            let (key, device) = option.split_once('=').filter(|(key, _)| WITH_DEVICE.contains(key))?;
            Some(format!("{key}={}", self.plain(device)?))
        };
        let new: Vec<String> = options.split(',').map(|option| renamed(option).unwrap_or_else(|| option.into())).collect();
        Some(new.join(",")).filter(|new| new != options)
    }

    /// The volume of a UUID.
    pub fn by_uuid(&self, uuid: &str) -> Option<&Volume> {
        self.volumes.values().find(|v| v.uuid.as_deref().is_some_and(|u| u.eq_ignore_ascii_case(uuid)))
    }
}

/// Disk letter, from 0, and partition number of `xvda2`, `sdb`, or a bare position `0`.
pub(crate) fn parse(name: &str) -> Option<(u32, Option<u32>)> {
    if let Ok(position) = name.parse::<u32>() {
        return Some((position, None));
    }
    let rest = ["xvd", "vd", "sd", "hd"].iter().find_map(|p| name.strip_prefix(p))?;
    let letters = &rest[..rest.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(rest.len())];
    if letters.is_empty() || letters.len() > 3 {
        return None;
    }
    let letter = letters.bytes().fold(0, |n, b| n * 26 + u32::from(b - b'a') + 1) - 1;
    match &rest[letters.len()..] {
        "" => Some((letter, None)),
        digits if digits.bytes().all(|b| b.is_ascii_digit()) => Some((letter, Some(digits.parse().ok()?))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn red_hat_6_calls_sda_xvde() {
        let (mut source, layout) = testing::xen_tools_guest();
        source.disks.iter_mut().for_each(|disk| disk.target = disk.target.replace("xvd", "sd"));
        let devices = Devices::new(&source, &layout);
        let xen = Devices::new(&testing::xen_tools_guest().0, &layout);
        assert_eq!(
            (devices.plain("/dev/xvde2").as_deref(), devices.plain("/dev/xvda2").as_deref()),
            (Some("/dev/vda2"), Some("/dev/vda2"))
        );
        assert_eq!((devices.plain("/dev/sde2"), xen.plain("/dev/xvde2")), (None, None));
    }

    #[test]
    fn names_become_uuids_else_new_names() {
        let (source, layout) = testing::xen_tools_guest();
        let devices = Devices::new(&source, &layout);
        for name in ["/dev/xvda2", "xvda2", "/dev/sda2", "/dev/hda2"] {
            assert_eq!(devices.stable(name).unwrap(), format!("UUID={}", testing::ROOT_UUID), "{name}");
            assert_eq!(devices.plain(name).unwrap(), "/dev/vda2");
        }
        assert_eq!(devices.stable("/dev/xvdb1").as_deref(), Some("/dev/vdb1"));
        assert_eq!(devices.stable("/dev/xvdb").as_deref(), Some("/dev/vdb"));
        for name in ["/dev/xvdc1", "/dev/xvda9", "/dev/xvda", "/dev/mapper/a", "UUID=1", "proc", "/dev/sr0", "/dev/xvda2x"] {
            assert_eq!(devices.stable(name), None, "{name}");
        }
    }

    #[test]
    fn links_by_serial_number_and_place() {
        let (source, mut layout) = testing::xen_tools_guest();
        let devices = Devices::new(&source, &layout);
        let root = format!("UUID={}", testing::ROOT_UUID);
        for (name, wanted) in [
            ("/dev/disk/by-id/ata-QEMU_HARDDISK_QM00001-part2", Some(root.as_str())),
            ("/dev/disk/by-id/scsi-SATA_QEMU_HARDDISK_QM00001-part2", Some(&root)),
            ("/dev/disk/by-id/ata-QEMU_HARDDISK_QM00002", Some("/dev/vdb")),
            ("/dev/disk/by-path/xen-vbd-51714-part1", Some(&root)),
            ("/dev/disk/by-path/xen-vbd-51728-part1", Some("/dev/vdb1")),
            ("/dev/disk/by-id/wwn-0x600-part2", None),
            ("/dev/disk/by-id/ata-QEMU_HARDDISK_QM00003-part1", None),
            ("/dev/disk/by-path/xen-vbd-99999999999-part1", None),
        ] {
            assert_eq!(devices.stable(name).as_deref(), wanted, "{name}");
            assert!(Devices::is_hardware(name));
        }
        layout.disks.truncate(1);
        let devices = Devices::new(&source, &layout);
        assert_eq!(devices.stable("/dev/disk/by-id/wwn-0x600-part2"), Some(root));
        assert!(!Devices::is_hardware("/dev/disk/by-uuid/x"));
    }

    #[test]
    fn equal_uuids_do_not_tell_volumes_apart() {
        let (source, mut layout) = testing::xen_tools_guest();
        layout.disks[1].volumes[0].uuid = Some(testing::ROOT_UUID.into());
        let devices = Devices::new(&source, &layout);
        assert_eq!(devices.stable("/dev/xvda2").as_deref(), Some("/dev/vda2"));
    }

    #[test]
    fn letters_count_past_z() {
        assert_eq!(parse("xvdz"), Some((25, None)));
        assert_eq!(parse("xvdaa1"), Some((26, Some(1))));
        assert_eq!(parse("7"), Some((7, None)));
        assert_eq!(parse("xvd"), None);
        assert_eq!(parse("xvdaaaa"), None);
        assert_eq!(parse("xvda99999999999"), None);
    }
}
