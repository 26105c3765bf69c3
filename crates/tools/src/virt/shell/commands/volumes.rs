//! Commands about disks, partitions, volumes and filesystems as wholes.

use guestfs::probe::Content;
use guestfs::{MountRequest, Volume, Volumes};
use imgcore::partition::{Partition, PartitionType, Table, TableKind};

use super::{Arguments, Command, device};
use crate::common::Failure;
use crate::virt::launched::checked;
use crate::virt::shell::Shell;

/// A command that is a program of the appliance's, whose words are made of the arguments.
macro_rules! tool {
    ($names:expr, $usage:expr, $help:expr, |$shell:ident, $a:ident| $words:expr) => {
        Command {
            names: $names,
            usage: $usage,
            help: $help,
            run: |$shell, $a| {
                let words: Vec<Vec<u8>> = $words;
                $shell.guest()?.tool(&words, false).map(drop)
            },
        }
    };
}

/// A command that prints something of what a device holds.
macro_rules! content {
    ($names:expr, $help:expr, $what:expr) => {
        Command {
            names: $names,
            usage: "DEVICE",
            help: $help,
            run: |shell, a| {
                let what: fn(&Content) -> Option<String> = $what;
                let text = volume(shell, a, 0)?.content.as_ref().and_then(what).unwrap_or_default();
                shell.out.line(text.as_bytes())
            },
        }
    };
}

/// A command that prints something of a partition.
macro_rules! partition {
    ($names:expr, $help:expr, $what:expr) => {
        Command {
            names: $names,
            usage: "DISK NUMBER",
            help: $help,
            run: |shell, a| {
                let what: fn(&Partition) -> Option<String> = $what;
                let number: u32 = a.unsigned(1)?;
                let table = table(shell, a)?;
                let partition = table.partitions.into_iter().find(|p| p.number == number);
                let partition = partition.ok_or_else(|| Failure::new(format!("there is no partition {number}")))?;
                let text = what(&partition).ok_or_else(|| Failure::new("partition tables of this kind do not tell that"))?;
                shell.out.line(text.as_bytes())
            },
        }
    };
}

pub(super) const COMMANDS: &[Command] = &[
    Command {
        names: &["list-devices"],
        usage: "",
        help: "list the disks",
        run: |shell, _| list(shell, |volumes| volumes.disks.iter().map(|d| format!("/dev/{}", d.name)).collect()),
    },
    Command {
        names: &["list-partitions"],
        usage: "",
        help: "list the partitions",
        run: |shell, _| {
            list(shell, |volumes| {
                let names = volumes.disks.iter().enumerate().flat_map(|(position, disk)| {
                    volumes.partitions(position).map(|p| format!("/dev/{}", guestfs::volume::partition_name(&disk.name, p.number)))
                });
                names.collect()
            })
        },
    },
    Command {
        names: &["list-filesystems"],
        usage: "",
        help: "list the filesystems and swap spaces, and what they are",
        run: |shell, _| {
            list(shell, |volumes| {
                let shown = volumes.volumes.iter().filter(|v| !v.is_part());
                shown.map(|v| format!("{}: {}", v.device, if v.kind().is_empty() { "unknown" } else { v.kind() })).collect()
            })
        },
    },
    Command {
        names: &["lvs"],
        usage: "",
        help: "list LVM's logical volumes",
        run: |shell, _| {
            list(shell, |volumes| {
                let mut names: Vec<String> =
                    volumes.groups.iter().flat_map(|g| g.volumes.iter().map(|v| format!("/dev/{}/{}", g.name, v.name))).collect();
                names.sort();
                names
            })
        },
    },
    Command {
        names: &["vgs"],
        usage: "",
        help: "list LVM's volume groups",
        run: |shell, _| list(shell, |volumes| volumes.groups.iter().map(|g| g.name.clone()).collect()),
    },
    Command {
        names: &["pvs"],
        usage: "",
        help: "list LVM's physical volumes",
        run: |shell, _| {
            list(shell, |volumes| volumes.volumes.iter().filter(|v| v.kind() == "LVM2_member").map(|v| v.device.clone()).collect())
        },
    },
    Command { names: &["mount"], usage: "DEVICE PATH", help: "mount a filesystem in the tree", run: |shell, a| mount(shell, a, 0, "", "") },
    Command {
        names: &["mount-ro"],
        usage: "DEVICE PATH",
        help: "mount a filesystem in the tree, for reading",
        run: |shell, a| mount(shell, a, 0, "ro", ""),
    },
    Command {
        names: &["mount-options"],
        usage: "OPTIONS DEVICE PATH",
        help: "mount a filesystem with options",
        run: |shell, a| mount(shell, a, 1, a.text(0)?, ""),
    },
    Command {
        names: &["mount-vfs"],
        usage: "OPTIONS TYPE DEVICE PATH",
        help: "mount a filesystem of a type with options",
        run: |shell, a| mount(shell, a, 2, a.text(0)?, a.text(1)?),
    },
    Command {
        names: &["umount", "unmount"],
        usage: "PATH-OR-DEVICE",
        help: "unmount a filesystem",
        run: |shell, a| {
            let name = a.text(0)?.to_string();
            let wanted = device(a.word(0)).unwrap_or_default();
            let guest = shell.guest()?;
            if !guest.mounts().iter().any(|m| m.path == name || m.device == wanted) {
                return Err(Failure::new(format!("{name}: not mounted")));
            }
            guest.unmount(|m| m.path == name || m.device == wanted)
        },
    },
    Command {
        names: &["umount-all", "unmount-all"],
        usage: "",
        help: "unmount everything",
        run: |shell, _| shell.guest()?.unmount(|_| true),
    },
    Command {
        names: &["mounts"],
        usage: "",
        help: "list the mounted devices",
        run: |shell, _| {
            let lines: Vec<String> = shell.guest()?.mounts().iter().map(|m| m.device.clone()).collect();
            lines.iter().try_for_each(|line| shell.out.line(line.as_bytes()))
        },
    },
    Command {
        names: &["mountpoints"],
        usage: "",
        help: "list the mounted devices and where they are mounted",
        run: |shell, _| {
            let lines: Vec<String> = shell.guest()?.mounts().iter().map(|m| format!("{}: {}", m.device, m.path)).collect();
            lines.iter().try_for_each(|line| shell.out.line(line.as_bytes()))
        },
    },
    content!(&["vfs-type"], "print what a device holds", |c| Some(c.kind.to_string())),
    content!(&["vfs-label", "get-e2label"], "print a filesystem's label", |c| c.label.clone()),
    content!(&["vfs-uuid", "get-e2uuid"], "print a filesystem's UUID", |c| c.uuid.clone()),
    content!(&["blkid"], "print what is known of what a device holds", |c| {
        let fields = [("LABEL", c.label.clone()), ("UUID", c.uuid.clone()), ("TYPE", Some(c.kind.to_string()))];
        Some(fields.into_iter().filter_map(|(name, value)| Some(format!("{name}: {}", value?))).collect::<Vec<_>>().join("\n"))
    }),
    Command {
        names: &["blockdev-getsize64"],
        usage: "DEVICE",
        help: "print a device's size in bytes",
        run: |shell, a| {
            let size = size(shell, a, 0)?;
            shell.out.text(&format!("{size}\n"))
        },
    },
    Command {
        names: &["blockdev-getsz"],
        usage: "DEVICE",
        help: "print a device's size in sectors of 512 bytes",
        run: |shell, a| {
            let size = size(shell, a, 0)?;
            shell.out.text(&format!("{}\n", size / 512))
        },
    },
    Command {
        names: &["blockdev-getss"],
        usage: "DEVICE",
        help: "print the size of a device's sectors",
        run: |shell, a| {
            size(shell, a, 0)?;
            shell.out.text("512\n")
        },
    },
    Command {
        names: &["part-list"],
        usage: "DISK",
        help: "list a disk's partitions with their places",
        run: |shell, a| {
            let table = table(shell, a)?;
            for (index, p) in table.partitions.iter().enumerate() {
                let end = p.start.saturating_add(p.len).saturating_sub(1);
                let (number, start, len) = (p.number, p.start, p.len);
                shell.out.text(&format!(
                    "[{index}] = {{\n  part_num: {number}\n  part_start: {start}\n  part_end: {end}\n  part_size: {len}\n}}\n"
                ))?;
            }
            Ok(())
        },
    },
    Command {
        names: &["part-get-parttype"],
        usage: "DISK",
        help: "print the kind of a disk's partition table",
        run: |shell, a| {
            let kind = if table(shell, a)?.kind == TableKind::Gpt { "gpt" } else { "msdos" };
            shell.out.line(kind.as_bytes())
        },
    },
    partition!(&["part-get-bootable"], "tell whether a partition is marked for starting from", |p| Some(p.bootable.to_string())),
    partition!(&["part-get-mbr-id"], "print the type of an MBR's partition", |p| match p.kind {
        PartitionType::Mbr(id) => Some(format!("0x{id:x}")),
        _ => None,
    }),
    partition!(&["part-get-gpt-type"], "print the type of a GPT's partition", |p| match p.kind {
        PartitionType::Gpt(guid) => Some(guid.to_string().to_uppercase()),
        _ => None,
    }),
    partition!(&["part-get-gpt-guid"], "print the UUID of a GPT's partition", |p| Some(p.uuid.to_uppercase())),
    partition!(&["part-get-gpt-attributes"], "print the attributes of a GPT's partition", |p| Some(p.attributes.to_string())),
    partition!(&["part-get-mbr-part-type"], "tell whether a partition is primary, extended or logical", |p| Some(
        if p.kind.is_extended() {
            "extended"
        } else if p.is_logical() {
            "logical"
        } else {
            "primary"
        }
        .to_string()
    )),
    partition!(&["part-get-name"], "print the name of a GPT's partition", |p| Some(p.name.clone())),
    Command {
        names: &["part-to-dev"],
        usage: "PARTITION",
        help: "print the disk of a partition",
        run: |shell, a| {
            let partition = a.device(0)?;
            let (disk, _) = split(&partition)?;
            shell.out.line(disk.as_bytes())
        },
    },
    Command {
        names: &["part-to-partnum"],
        usage: "PARTITION",
        help: "print the number of a partition",
        run: |shell, a| {
            let (_, number) = split(&a.device(0)?)?;
            shell.out.line(number.to_string().as_bytes())
        },
    },
    Command {
        names: &["part-init"],
        usage: "DISK KIND",
        help: "make an empty partition table: mbr or gpt",
        run: |shell, a| sfdisk(shell, a, &[], &format!("label: {}\n", label(a.text(1)?)?)),
    },
    Command {
        names: &["part-disk"],
        usage: "DISK KIND",
        help: "make a partition table (mbr or gpt) with one partition",
        run: |shell, a| {
            let sectors = size(shell, a, 0)? / 512;
            let len = sectors.checked_sub(255).filter(|len| *len > 0).ok_or_else(|| Failure::new("the disk is too small for that"))?;
            sfdisk(shell, a, &[], &format!("label: {}\nstart=128, size={len}\n", label(a.text(1)?)?))
        },
    },
    Command {
        names: &["part-add"],
        usage: "DISK KIND START END",
        help: "add a partition: p, e or l; from and to these sectors, -N from the end",
        run: |shell, a| {
            let sectors = i64::try_from(size(shell, a, 0)? / 512)?;
            let place = |at: usize| a.number(at).map(|n| if n < 0 { sectors + n } else { n });
            let (start, end) = (place(2)?, place(3)?);
            if start < 0 || end < start {
                return Err(Failure::new("a partition ends behind its start"));
            }
            let kind = match a.text(1)? {
                "p" | "primary" => "",
                "l" | "logical" => "",
                "e" | "extended" => ", type=5",
                other => return Err(Failure::new(format!("{other}: neither p, e nor l"))),
            };
            sfdisk(shell, a, &["--append"], &format!("start={start}, size={}{kind}\n", end - start + 1))
        },
    },
    Command {
        names: &["part-del"],
        usage: "DISK NUMBER",
        help: "remove a partition from the table",
        run: |shell, a| {
            let number: u32 = a.unsigned(1)?;
            sfdisk(shell, a, &["--delete"], &number.to_string())
        },
    },
    Command {
        names: &["part-set-bootable"],
        usage: "DISK NUMBER BOOL",
        help: "mark a partition for starting from",
        run: |shell, a| {
            let number: u32 = a.unsigned(1)?;
            let number = if a.yes(2)? { number.to_string() } else { "-".into() };
            sfdisk(shell, a, &["--activate"], &number)
        },
    },
    Command {
        names: &["part-set-mbr-id"],
        usage: "DISK NUMBER ID",
        help: "set the type of an MBR's partition (0x83 is hexadecimal)",
        run: |shell, a| {
            let (number, id): (u32, u8) = (a.unsigned(1)?, a.unsigned(2)?);
            sfdisk(shell, a, &["--part-type"], &format!("{number} {id:x}"))
        },
    },
    Command {
        names: &["part-set-gpt-type"],
        usage: "DISK NUMBER GUID",
        help: "set the type of a GPT's partition",
        run: |shell, a| {
            let number: u32 = a.unsigned(1)?;
            sfdisk(shell, a, &["--part-type"], &format!("{number} {}", a.text(2)?))
        },
    },
    Command {
        names: &["part-set-name"],
        usage: "DISK NUMBER NAME",
        help: "set the name of a GPT's partition",
        run: |shell, a| {
            let number: u32 = a.unsigned(1)?;
            sfdisk(shell, a, &["--part-label"], &format!("{number} {}", a.text(2)?))
        },
    },
    Command { names: &["mkfs", "mkfs-opts"], usage: "TYPE DEVICE [label:..] [blocksize:..]", help: "make a filesystem", run: mkfs },
    Command {
        names: &["mkswap", "mkswap-opts"],
        usage: "DEVICE [label:..] [uuid:..]",
        help: "make a swap space",
        run: |shell, a| {
            let mut words = vec![b"mkswap".to_vec()];
            for (option, flag) in [("label", "-L"), ("uuid", "-U")] {
                words.extend(a.option(option).map(|value| [flag.into(), value.to_vec()]).into_iter().flatten());
            }
            words.push(inside(shell, a, 0)?);
            shell.guest()?.tool(&words, false).map(drop)
        },
    },
    Command {
        names: &["fsck"],
        usage: "TYPE DEVICE",
        help: "check a filesystem and mend what is safe to mend, and print the program's exit code",
        run: |shell, a| {
            let words = [format!("fsck.{}", a.text(0)?).into_bytes(), b"-a".to_vec(), inside(shell, a, 1)?];
            let status = shell.guest()?.try_tool(&words, b"", false)?.status;
            shell.out.text(&format!("{status}\n"))
        },
    },
    Command {
        names: &["e2fsck"],
        usage: "DEVICE [correct:..] [forceall:..]",
        help: "check an ext filesystem, and mend it if asked",
        run: |shell, a| {
            let how = if a.flag("forceall")? {
                "-y"
            } else if a.flag("correct")? {
                "-p"
            } else {
                "-n"
            };
            e2fsck(shell, a, how)
        },
    },
    Command {
        names: &["e2fsck-f"],
        usage: "DEVICE",
        help: "check an ext filesystem and mend what is safe to mend",
        run: |shell, a| e2fsck(shell, a, "-p"),
    },
    tool!(&["set-label", "set-e2label"], "DEVICE LABEL", "set an ext filesystem's label", |shell, a| vec![
        b"e2label".to_vec(),
        inside(shell, a, 0)?,
        a.word(1).to_vec()
    ]),
    tool!(&["set-uuid", "set-e2uuid"], "DEVICE UUID", "set an ext filesystem's UUID", |shell, a| vec![
        b"tune2fs".to_vec(),
        b"-U".to_vec(),
        a.word(1).to_vec(),
        inside(shell, a, 0)?
    ]),
    tool!(&["resize2fs"], "DEVICE", "make an ext filesystem as large as its device", |shell, a| vec![
        b"resize2fs".to_vec(),
        inside(shell, a, 0)?
    ]),
    tool!(&["resize2fs-size"], "DEVICE SIZE", "set an ext filesystem's size", |shell, a| {
        let kib = a.unsigned::<u64>(1)? / 1024;
        vec![b"resize2fs".to_vec(), inside(shell, a, 0)?, format!("{kib}K").into_bytes()]
    }),
    tool!(&["resize2fs-M"], "DEVICE", "make an ext filesystem as small as it can be", |shell, a| vec![
        b"resize2fs".to_vec(),
        b"-M".to_vec(),
        inside(shell, a, 0)?
    ]),
    tool!(&["pvcreate"], "DEVICE", "make a physical volume of LVM", |shell, a| lvm(&["pvcreate", "-y", "-ff"], vec![inside(shell, a, 0)?])),
    tool!(&["pvremove"], "DEVICE", "take LVM's mark from a device", |shell, a| lvm(&["pvremove", "-y", "-ff"], vec![inside(shell, a, 0)?])),
    tool!(&["vgcreate"], "GROUP DEVICES", "make a volume group of physical volumes", |shell, a| {
        let mut words = vec![a.word(0).to_vec()];
        for name in a.list(1)? {
            words.push(shell.guest()?.inside(&device(&name)?)?.into_bytes());
        }
        lvm(&["vgcreate"], words)
    }),
    tool!(&["vgremove"], "GROUP", "remove a volume group", |shell, a| lvm(&["vgremove", "-f"], vec![a.word(0).to_vec()])),
    Command {
        names: &["lvcreate"],
        usage: "NAME GROUP MEBIBYTES",
        help: "make a logical volume",
        run: |shell, a| {
            let size = format!("{}M", a.unsigned::<u64>(2)?).into_bytes();
            let what = vec![size, b"-n".to_vec(), a.word(0).to_vec(), a.word(1).to_vec()];
            let guest = shell.guest()?;
            guest.tool(&lvm(&["lvcreate", "-y", "-Wn", "-Zn", "-L"], what), false)?;
            // What lay there before is no filesystem of the new volume's.
            Ok(guest.session()?.write_device(&format!("/dev/{}/{}", a.text(1)?, a.text(0)?), 0, &[0; 4096])?)
        },
    },
    tool!(&["lvremove"], "DEVICE", "remove a logical volume", |shell, a| lvm(&["lvremove", "-f"], vec![a.word(0).to_vec()])),
    tool!(&["lvresize"], "DEVICE MEBIBYTES", "set the size of a logical volume", |shell, a| {
        lvm(&["lvresize", "-f", "-L"], vec![format!("{}M", a.unsigned::<u64>(1)?).into_bytes(), a.word(0).to_vec()])
    }),
    tool!(&["vg-activate-all"], "BOOL", "make the logical volumes appear, or go", |shell, a| lvm(
        &["vgchange", if a.yes(0)? { "-aay" } else { "-an" }],
        vec![]
    )),
    tool!(&["vg-activate"], "BOOL GROUPS", "make the logical volumes of some groups appear, or go", |shell, a| {
        lvm(&["vgchange", if a.yes(0)? { "-ay" } else { "-an" }], a.list(1)?)
    }),
    tool!(&["vgscan", "lvm-scan"], "", "look for volume groups again", |_shell, _a| lvm(&["vgscan"], vec![])),
];

pub(super) fn list(shell: &mut Shell<'_>, what: fn(&Volumes) -> Vec<String>) -> Result<(), Failure> {
    let lines = what(shell.guest()?.volumes()?);
    lines.iter().try_for_each(|line| shell.out.line(line.as_bytes()))
}

fn mount(shell: &mut Shell<'_>, a: &Arguments, at: usize, options: &str, filesystem: &str) -> Result<(), Failure> {
    let path = std::str::from_utf8(a.path(at + 1)?).map_err(|_| Failure::new("a mount point that is not UTF-8"))?;
    let request = MountRequest { device: a.device(at)?, path: path.into(), options: options.into(), filesystem: filesystem.into() };
    shell.guest()?.mount(request)
}

pub(super) fn volume(shell: &mut Shell<'_>, a: &Arguments, at: usize) -> Result<Volume, Failure> {
    let name = a.device(at)?;
    let volumes = shell.guest()?.volumes()?;
    let found = volumes.find(name.as_bytes()).and_then(|index| volumes.volumes.get(index));
    found.cloned().ok_or_else(|| Failure::new(format!("{name}: no such device")))
}

/// A device's size, be it a volume or a disk.
pub(super) fn size(shell: &mut Shell<'_>, a: &Arguments, at: usize) -> Result<u64, Failure> {
    let name = a.device(at)?;
    let volumes = shell.guest()?.volumes()?;
    let disk = volumes.disks.iter().find(|d| name.strip_prefix("/dev/") == Some(&d.name)).map(|d| d.image.size());
    disk.map_or_else(|| volume(shell, a, at).map(|v| v.len), Ok)
}

/// The partition table of the disk that is the first argument.
pub(super) fn table(shell: &mut Shell<'_>, a: &Arguments) -> Result<Table, Failure> {
    let name = a.device(0)?;
    let volumes = shell.guest()?.volumes()?;
    let disk = volumes.disks.iter().position(|d| name.strip_prefix("/dev/") == Some(&d.name));
    let disk = disk.ok_or_else(|| Failure::new(format!("{name}: no such disk")))?;
    volumes.tables.get(disk).cloned().flatten().ok_or_else(|| Failure::new(format!("{name}: has no partition table")))
}

/// A partition's disk and number.
fn split(partition: &str) -> Result<(&str, u32), Failure> {
    let disk = partition.trim_end_matches(|c: char| c.is_ascii_digit());
    let number = partition.get(disk.len()..).and_then(|digits| digits.parse().ok());
    number.map(|number| (disk, number)).ok_or_else(|| Failure::new(format!("{partition}: not a partition")))
}

pub(super) fn inside(shell: &mut Shell<'_>, a: &Arguments, at: usize) -> Result<Vec<u8>, Failure> {
    Ok(shell.guest()?.inside(&a.device(at)?)?.into_bytes())
}

fn label(kind: &str) -> Result<&'static str, Failure> {
    match kind {
        "mbr" | "msdos" => Ok("dos"),
        // All that the table leaves free may be used.
        "gpt" | "efi" => Ok("gpt\nfirst-lba: 34"),
        other => Err(Failure::new(format!("{other}: neither mbr nor gpt"))),
    }
}

/// Changes the partition table of the disk that is the first argument: by a script, or by what follows an option.
fn sfdisk(shell: &mut Shell<'_>, a: &Arguments, options: &[&str], text: &str) -> Result<(), Failure> {
    let guest = shell.guest()?;
    let disk = guest.inside(&a.device(0)?)?;
    let mut words = vec!["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", "--wipe", "always", "--wipe-partitions", "never"];
    words.extend(options);
    words.push(&disk);
    let script = options.is_empty() || options == ["--append"];
    if !script {
        words.extend(text.split(' '));
    }
    let output = guest.try_tool(&words, if script { text.as_bytes() } else { b"" }, false)?;
    checked("sfdisk", output)?;
    let outside = a.device(0)?.replacen("/dev/sd", "/dev/vd", 1);
    Ok(guest.session()?.reread_partitions(&outside)?)
}

fn mkfs(shell: &mut Shell<'_>, a: &Arguments) -> Result<(), Failure> {
    let kind = a.text(0)?;
    // Asks nothing; the label's and the block size's flags.
    let (quiet, label, block): (&[&str], &str, &str) = match kind {
        "ext2" | "ext3" | "ext4" => (&["-F", "-q"], "-L", "-b"),
        "xfs" => (&["-f", "-q"], "-L", "-bsize="),
        "btrfs" => (&["-f", "-q"], "-L", ""),
        "vfat" | "fat" | "msdos" => (&["-I"], "-n", ""),
        "ntfs" => (&["-F", "-Q", "-q"], "-L", ""),
        other => return Err(Failure::new(format!("{other}: this program makes ext2, ext3, ext4, xfs, btrfs, vfat and ntfs"))),
    };
    let mut words = vec![format!("mkfs.{}", if kind == "fat" || kind == "msdos" { "vfat" } else { kind }).into_bytes()];
    words.extend(quiet.iter().map(|w| w.as_bytes().to_vec()));
    if let Some(text) = a.option("label") {
        words.extend([label.into(), text.to_vec()]);
    }
    match (a.option("blocksize"), block) {
        (None, _) => {}
        (Some(_), "") => return Err(Failure::new(format!("{kind}: the block size cannot be chosen here"))),
        (Some(size), "-b") => words.extend([b"-b".to_vec(), size.to_vec()]),
        (Some(size), prefix) => words.push([prefix.as_bytes(), size].concat()),
    }
    words.push(inside(shell, a, 1)?);
    shell.guest()?.tool(&words, false).map(drop)
}

fn e2fsck(shell: &mut Shell<'_>, a: &Arguments, how: &str) -> Result<(), Failure> {
    let words = [b"e2fsck".to_vec(), b"-f".to_vec(), how.into(), inside(shell, a, 0)?];
    let output = shell.guest()?.try_tool(&words, b"", false)?;
    // 1: it was mended.
    if output.status == 1 { Ok(()) } else { checked("e2fsck", output).map(drop) }
}

/// A command of LVM's: its name, flags, and what they are about.
pub(super) fn lvm(words: &[&str], more: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    guestfs::lvm::command(words.iter().copied()).argv.into_iter().chain(more).collect()
}
