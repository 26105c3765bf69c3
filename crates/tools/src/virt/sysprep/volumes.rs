//! `fs-uuids` and `lvm-uuids`: filesystems and LVM's volumes get other UUIDs, so that clones' disks can meet on one machine.

use std::io::Read;

use guestfs::lvm;
use guestfs::{Ext, Volume};
use imgcore::partition::Guid;

use crate::common::Failure;
use crate::virt::customize::Context;

/// Text files that name filesystems by their UUIDs.
const NAMERS: [&str; 16] = [
    "/etc/fstab",
    "/etc/crypttab",
    "/etc/default/grub",
    "/etc/default/grub.d/*",
    "/etc/kernel/cmdline",
    "/etc/initramfs-tools/conf.d/*",
    "/etc/dracut.conf.d/*",
    "/etc/lilo.conf",
    "/boot/grub/grub.cfg",
    "/boot/grub/menu.lst",
    "/boot/grub/device.map",
    "/boot/grub2/grub.cfg",
    "/boot/grub2/grubenv",
    "/boot/loader/entries/*.conf",
    "/boot/extlinux/extlinux.conf",
    "/boot/efi/EFI/*/grub.cfg",
];

/// Begins GRUB's name of a logical volume, which is made of UUIDs.
const GRUBS_NAME: &[u8] = b"lvmid/";

/// What sets a filesystem's UUID: a program, and what stands before the UUID.
fn setter(kind: &str) -> Option<&'static [&'static str]> {
    Some(match kind {
        "ext2" | "ext3" | "ext4" => &["tune2fs", "-f", "-U"],
        "xfs" => &["xfs_admin", "-U"],
        "btrfs" => &["btrfstune", "-f", "-U"],
        "swap" => &["swaplabel", "-U"],
        _ => return None,
    })
}

/// Every filesystem gets another UUID; where the guest's own files name the old one, they name the new one.
pub(super) fn new_filesystem_uuids(c: &mut Context<'_>) -> Result<(), Failure> {
    let mut changes: Vec<(String, &Volume, &'static [&'static str], String)> = Vec::new();
    for volume in &c.volumes.volumes {
        let known = volume.content.as_ref().and_then(|content| Some((content.uuid.clone()?, setter(content.kind)?)));
        if let Some((old, setter)) = known {
            changes.push((old, volume, setter, random_uuid()?));
        }
    }
    for pattern in NAMERS {
        for path in c.matching(pattern.as_bytes())? {
            if !c.session.is_file(&path) {
                continue;
            }
            let old = String::from_utf8(c.read(&path)?);
            let Ok(old) = old else { continue };
            let new = changes.iter().fold(old.clone(), |text, (from, _, _, to)| text.replace(from.as_str(), to));
            if new != old {
                c.write(&path, new.as_bytes())?;
            }
        }
    }
    grub_names_groups(c)?;
    c.session.unmount_all()?;
    for (_, volume, setter, uuid) in changes {
        let device = c.session.name_inside(&volume.appliance_device());
        let words: Vec<&str> = setter.iter().copied().chain([uuid.as_str(), device.as_str()]).collect();
        if setter[0] == "tune2fs" {
            // It wants a filesystem that was checked lately.
            let output = c.session.run_tool(&guestfs::engine::Command::new(["e2fsck", "-fp", &device]))?;
            if output.status > 1 {
                return Err(
                    Failure::new(format!("{}: the filesystem has errors", volume.device)).hint("mend it first: virt-rescue, e2fsck")
                );
            }
        }
        c.tool(&words)?;
    }
    Ok(())
}

/// Physical volumes and groups of LVM get other UUIDs. Their names stay, and it is by names that guests find them.
pub(super) fn new_lvm_uuids(c: &mut Context<'_>) -> Result<(), Failure> {
    if c.volumes.groups.is_empty() {
        return Ok(());
    }
    if grub_names_groups(c)? {
        c.say("  left as they are: the boot loader finds /boot by them");
        return Ok(());
    }
    c.session.unmount_all()?;
    for words in [&["vgchange", "-an"][..], &["pvchange", "--uuid", "--all"], &["vgchange", "--uuid"], &["vgchange", "-ay"]] {
        c.tool(&lvm::command(words.iter().copied()).argv)?;
    }
    Ok(())
}

/// Whether GRUB knows volumes by the UUIDs of their groups. It is looked for while files can still be read.
fn grub_names_groups(c: &mut Context<'_>) -> Result<bool, Failure> {
    if let Some(known) = c.grub_names_groups {
        return Ok(known);
    }
    let mut names = false;
    for file in ["/boot/grub/grub.cfg", "/boot/grub2/grub.cfg"] {
        names |= c.read_or_empty(file.as_bytes())?.windows(GRUBS_NAME.len()).any(|word| word == GRUBS_NAME);
    }
    c.grub_names_groups = Some(names);
    Ok(names)
}

fn random_uuid() -> Result<String, Failure> {
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut bytes))?;
    Ok(Guid::from_random(bytes).to_string())
}
