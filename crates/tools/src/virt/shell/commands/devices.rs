//! Commands about the bytes of devices, about volumes by their UUIDs, and about encrypted ones; and new disk images.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use guestfs::volume::Place;
use guestfs::{Volume, Volumes};
use imgcore::formats::{CreateOptions, NewImage};

use super::volumes::{inside, list, lvm, size, table, volume};
use super::{Arguments, Command, copying};
use crate::common::{Failure, formats};
use crate::virt::shell::Shell;

/// Bytes that are read or written at once.
const PIECE: u64 = 1 << 20;
/// Bytes that are printed, at most.
const LIMIT: usize = 1 << 30;

/// A command that is a program of the appliance's with a device as its last word.
macro_rules! on_device {
    ($name:expr, $help:expr, $words:expr) => {
        Command {
            names: &[$name],
            usage: "DEVICE",
            help: $help,
            run: |shell, a| {
                let words: &[&str] = $words;
                let device = inside(shell, a, 0)?;
                let all: Vec<&[u8]> = words.iter().map(|w| w.as_bytes()).chain([&device[..]]).collect();
                shell.guest()?.tool(&all, false).map(drop)
            },
        }
    };
}

pub(super) const COMMANDS: &[Command] = &[
    Command {
        names: &["pread-device"],
        usage: "DEVICE COUNT OFFSET",
        help: "print some bytes of a device from a place on it",
        run: |shell, a| {
            let (count, offset): (usize, u64) = (a.unsigned(1)?, a.unsigned(2)?);
            let mut bytes = Vec::new();
            bytes_of(shell, a, offset, (count.min(LIMIT)) as u64, &mut |piece| {
                bytes.extend_from_slice(piece);
                Ok(())
            })?;
            shell.out.bytes(&bytes)
        },
    },
    Command {
        names: &["pwrite-device"],
        usage: "DEVICE CONTENT OFFSET",
        help: "write bytes to a place on a device, and print how many",
        run: |shell, a| {
            let offset: u64 = a.unsigned(2)?;
            let end = offset.checked_add(a.word(1).len() as u64);
            if end.is_none_or(|end| end > size(shell, a, 0).unwrap_or(0)) {
                return Err(Failure::new("the device ends before that"));
            }
            write_device(shell, a, 0, offset, a.word(1))?;
            shell.out.text(&format!("{}\n", a.word(1).len()))
        },
    },
    Command {
        names: &["zero"],
        usage: "DEVICE",
        help: "overwrite what a device begins with, so that nothing is found on it",
        run: |shell, a| {
            let len = size(shell, a, 0)?.min(32 * 4096);
            write_device(shell, a, 0, 0, &vec![0; usize::try_from(len)?])
        },
    },
    Command {
        names: &["is-zero-device"],
        usage: "DEVICE",
        help: "tell whether a device has nothing but zeroes",
        run: |shell, a| {
            let (mut zero, size) = (true, size(shell, a, 0)?);
            bytes_of(shell, a, 0, size, &mut |piece| {
                zero &= piece.iter().all(|b| *b == 0);
                Ok(())
            })?;
            shell.out.text(if zero { "true\n" } else { "false\n" })
        },
    },
    Command {
        names: &["download-device"],
        usage: "DEVICE LOCALFILE",
        help: "copy a device to a file of this machine",
        run: |shell, a| {
            let size = size(shell, a, 0)?;
            let mut file = copying::local_output(a.word(1))?;
            bytes_of(shell, a, 0, size, &mut |piece| Ok(file.write_all(piece)?))?;
            Ok(file.flush()?)
        },
    },
    on_device!("wipefs", "take all marks of filesystems from a device", &["wipefs", "-a", "-f"]),
    on_device!("blkdiscard", "give all of a device back to the disk: what is on it is lost", &["blkdiscard", "-f"]),
    on_device!("xfs-repair", "mend an XFS", &["xfs_repair"]),
    on_device!("ntfsfix", "mend what is safe to mend of an NTFS", &["ntfsfix"]),
    on_device!("ntfsresize", "make an NTFS as large as its device", &["ntfsresize", "-f", "-f"]),
    on_device!("zerofree", "overwrite what an ext filesystem does not use", &["zerofree"]),
    on_device!("set-uuid-random", "give an ext filesystem another UUID", &["tune2fs", "-f", "-U", "random"]),
    on_device!("pvresize", "make a physical volume as large as its device", &["lvm", "pvresize"]),
    Command {
        names: &["tune2fs-l"],
        usage: "DEVICE",
        help: "print the settings of an ext filesystem",
        run: |shell, a| {
            let device = inside(shell, a, 0)?;
            let words: [&[u8]; 3] = [b"tune2fs", b"-l", &device];
            let output = shell.guest()?.tool(&words, true)?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let rows = text.lines().filter_map(|line| line.split_once(':')).map(|(name, value)| {
                let value = value.trim();
                format!("{name}: {}", if matches!(value, "<not available>" | "<none>") { "" } else { value })
            });
            rows.into_iter().try_for_each(|row| shell.out.line(row.as_bytes()))
        },
    },
    Command {
        names: &["list-md-devices"],
        usage: "",
        help: "list the arrays of Linux's",
        run: |shell, _| list(shell, |volumes| volumes.arrays.iter().map(guestfs::md::Array::device).collect()),
    },
    Command {
        names: &["list-dm-devices"],
        usage: "",
        help: "list what is decrypted",
        run: |shell, _| {
            list(shell, |volumes| {
                let decrypted = volumes.volumes.iter().filter(|v| matches!(v.place, Place::Unlocked { .. }));
                decrypted.map(|v| v.device.clone()).collect()
            })
        },
    },
    Command {
        names: &["nr-devices"],
        usage: "",
        help: "print how many disks there are",
        run: |shell, _| list(shell, |v| vec![v.disks.len().to_string()]),
    },
    Command {
        names: &["device-index"],
        usage: "DISK",
        help: "print which disk a disk is, from 0 on",
        run: |shell, a| {
            let name = a.device(0)?;
            let volumes = shell.guest()?.volumes()?;
            let at = volumes.disks.iter().position(|disk| name.strip_prefix("/dev/") == Some(&disk.name));
            let at = at.ok_or_else(|| Failure::new(format!("{name}: no such disk")))?;
            shell.out.text(&format!("{at}\n"))
        },
    },
    Command {
        names: &["canonical-device-name"],
        usage: "DEVICE",
        help: "print the name that this shell has for a device",
        run: |shell, a| {
            let name = a.device(0)?;
            shell.out.line(name.as_bytes())
        },
    },
    Command {
        names: &["is-lv"],
        usage: "DEVICE",
        help: "tell whether a device is a logical volume",
        run: |shell, a| {
            let is = matches!(volume(shell, a, 0).map(|v| v.place), Ok(Place::Logical { .. }));
            shell.out.text(if is { "true\n" } else { "false\n" })
        },
    },
    Command {
        names: &["is-whole-device"],
        usage: "DEVICE",
        help: "tell whether a device is a whole disk",
        run: |shell, a| {
            let name = a.device(0)?;
            let is = shell.guest()?.volumes()?.disks.iter().any(|disk| name.strip_prefix("/dev/") == Some(&disk.name));
            shell.out.text(if is { "true\n" } else { "false\n" })
        },
    },
    Command {
        names: &["lvm-canonical-lv-name"],
        usage: "DEVICE",
        help: "print a logical volume's name as /dev/GROUP/NAME",
        run: |shell, a| {
            let name = volume(shell, a, 0)?.device;
            shell.out.line(name.as_bytes())
        },
    },
    Command {
        names: &["findfs-uuid"],
        usage: "UUID",
        help: "print the device of a filesystem's UUID",
        run: |shell, a| find(shell, a, "UUID"),
    },
    Command {
        names: &["findfs-label"],
        usage: "LABEL",
        help: "print the device of a filesystem's label",
        run: |shell, a| find(shell, a, "LABEL"),
    },
    Command {
        names: &["lvrename"],
        usage: "DEVICE DEVICE",
        help: "give a logical volume another name",
        run: |shell, a| shell.guest()?.tool(&lvm(&["lvrename"], vec![a.word(0).to_vec(), a.word(1).to_vec()]), false).map(drop),
    },
    Command {
        names: &["vgrename"],
        usage: "GROUP GROUP",
        help: "give a volume group another name",
        run: |shell, a| shell.guest()?.tool(&lvm(&["vgrename"], vec![a.word(0).to_vec(), a.word(1).to_vec()]), false).map(drop),
    },
    Command {
        names: &["lvresize-free"],
        usage: "DEVICE PERCENT",
        help: "make a logical volume larger by so much of its group's free space",
        run: |shell, a| {
            let more = format!("+{}%FREE", a.unsigned::<u8>(1)?).into_bytes();
            shell.guest()?.tool(&lvm(&["lvresize", "-l"], vec![more, a.word(0).to_vec()]), false).map(drop)
        },
    },
    Command {
        names: &["part-get-disk-guid"],
        usage: "DISK",
        help: "print the UUID of a disk with a GPT",
        run: |shell, a| {
            let id = table(shell, a)?.id.to_uppercase();
            shell.out.line(id.as_bytes())
        },
    },
    Command {
        names: &["luks-uuid"],
        usage: "DEVICE",
        help: "print the UUID of an encrypted device",
        run: |shell, a| {
            let uuid = encrypted(shell, a)?.content.and_then(|content| content.uuid).unwrap_or_default();
            shell.out.line(uuid.as_bytes())
        },
    },
    Command {
        names: &["cryptsetup-open", "luks-open", "luks-open-ro"],
        usage: "DEVICE NAME [readonly:..] [crypttype:..]",
        help: "call what is in an encrypted device /dev/mapper/NAME (its key is given or asked for at the start: --key)",
        run: |shell, a| {
            encrypted(shell, a)?;
            let (device, name) = (a.device(0)?, format!("/dev/mapper/{}", a.text(1)?));
            shell.guest()?.name_unlocked(&device, name)
        },
    },
    Command {
        names: &["cryptsetup-close", "luks-close"],
        usage: "DEVICE",
        help: "end the use of what is in an encrypted device (unmount it before)",
        run: |shell, a| {
            let device = volume(shell, a, 0)?.device;
            match shell.guest()?.mounts().iter().find(|mount| mount.device == device || mount.device == a.text(0).unwrap_or_default()) {
                Some(mount) => Err(Failure::new(format!("{device} is mounted on {}", mount.path))),
                None => Ok(()),
            }
        },
    },
    Command {
        names: &["sparse"],
        usage: "LOCALFILE SIZE",
        help: "make an empty disk image of this machine, and add it",
        run: |shell, a| {
            new_image(a, 0, "raw", 1)?;
            shell.add(a.word(0), Some("raw".into()), false)
        },
    },
    Command {
        names: &["alloc", "allocate"],
        usage: "LOCALFILE SIZE",
        help: "make an empty disk image that takes its room at once, and add it",
        run: |shell, a| {
            let path = new_image(a, 0, "raw", 1)?;
            let file = File::options().write(true).open(&path)?;
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, a.unsigned(1)?)?;
            shell.add(a.word(0), Some("raw".into()), false)
        },
    },
    Command {
        names: &["disk-create"],
        usage: "LOCALFILE FORMAT SIZE",
        help: "make an empty disk image of this machine",
        run: |_, a| new_image(a, 0, a.text(1)?, 2).map(drop),
    },
    Command {
        names: &["disk-format"],
        usage: "LOCALFILE",
        help: "print the format of a disk image of this machine",
        run: |shell, a| {
            let format = image(a)?.info().format;
            shell.out.line(format.as_bytes())
        },
    },
    Command {
        names: &["disk-virtual-size"],
        usage: "LOCALFILE",
        help: "print how large the disk in an image of this machine is, in bytes",
        run: |shell, a| {
            let size = image(a)?.size();
            shell.out.text(&format!("{size}\n"))
        },
    },
];

/// The encrypted device that is the first argument.
fn encrypted(shell: &mut Shell<'_>, a: &Arguments) -> Result<Volume, Failure> {
    let found = volume(shell, a, 0)?;
    if found.kind() == "crypto_LUKS" { Ok(found) } else { Err(Failure::new(format!("{}: it is not encrypted", found.device))) }
}

fn find(shell: &mut Shell<'_>, a: &Arguments, by: &str) -> Result<(), Failure> {
    let spec = [by.as_bytes(), b"=", a.word(0)].concat();
    let found = |volumes: &Volumes| volumes.find(&spec).and_then(|index| Some(volumes.volumes.get(index)?.device.clone()));
    let device = found(shell.guest()?.volumes()?).ok_or_else(|| Failure::new(format!("{}: there is none", guestfs::show(&spec))))?;
    shell.out.line(device.as_bytes())
}

/// Hands bytes of the device that is the first argument to `take`, in order.
fn bytes_of(
    shell: &mut Shell<'_>,
    a: &Arguments,
    offset: u64,
    count: u64,
    take: &mut dyn FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let end = size(shell, a, 0)?.min(offset.saturating_add(count));
    let guest = shell.guest()?;
    let name = a.device(0)?;
    let volumes = guest.volumes()?;
    let disk = volumes.disks.iter().find(|disk| name.strip_prefix("/dev/") == Some(&disk.name)).map(|disk| disk.image.clone());
    let image = match disk {
        Some(image) => image,
        None => {
            let volume = volumes.find(name.as_bytes()).and_then(|index| volumes.volumes.get(index));
            volumes.image(volume.ok_or_else(|| Failure::new(format!("{name}: no such device")))?)?
        }
    };
    let mut at = offset;
    while at < end {
        let mut piece = vec![0; usize::try_from((end - at).min(PIECE))?];
        image.read_at(&mut piece, at)?;
        take(&piece)?;
        at += piece.len() as u64;
    }
    Ok(())
}

fn write_device(shell: &mut Shell<'_>, a: &Arguments, at: usize, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
    let guest = shell.guest()?;
    let inside = guest.outside_name(&a.device(at)?)?;
    guest.session()?.write_device(&inside, offset, bytes)?;
    guest.changed();
    Ok(())
}

/// Makes an image of this machine; nothing is overwritten.
fn new_image(a: &Arguments, at: usize, format: &str, size_at: usize) -> Result<PathBuf, Failure> {
    let path = PathBuf::from(OsString::from_vec(a.word(at).to_vec()));
    if path.exists() {
        return Err(Failure::new(format!("{}: is there already", path.display())));
    }
    let formats = formats();
    let driver = formats.driver(format)?;
    NewImage::create(driver, &path, a.unsigned(size_at)?, &CreateOptions::default())?.commit()?;
    Ok(path)
}

fn image(a: &Arguments) -> Result<std::sync::Arc<dyn imgcore::Image>, Failure> {
    let path = PathBuf::from(OsString::from_vec(a.word(0).to_vec()));
    let gate = imgcore::TreeGate::new(&path, []);
    Ok(formats().open(&path, &imgcore::OpenOptions::new(&gate).force_share(true))?)
}
