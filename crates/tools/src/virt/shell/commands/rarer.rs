//! Commands that scripts use now and then.

use std::time::Duration;

use guestfs::Ext;

use super::volumes::{inside, list, volume};
use super::{Command, device};
use crate::common::Failure;
use crate::virt::shell::Shell;

/// Files that are taken as a whole are no larger.
const LIMIT: u64 = 1 << 30;

/// A command that always has this answer, of a root that was found.
macro_rules! always {
    ($name:expr, $help:expr, $answer:expr) => {
        Command { names: &[$name], usage: "ROOT", help: $help, run: |shell, _| shell.out.line($answer.as_bytes()) }
    };
}

/// A command that is a program of the appliance's: its words, then the device at a position.
macro_rules! on_device {
    ($names:expr, $usage:expr, $at:expr, $help:expr, |$a:ident| $words:expr) => {
        Command {
            names: $names,
            usage: $usage,
            help: $help,
            run: |shell, $a| {
                let mut words: Vec<Vec<u8>> = $words;
                words.push(inside(shell, $a, $at)?);
                shell.guest()?.tool(&words, false).map(drop)
            },
        }
    };
}

pub(super) const COMMANDS: &[Command] = &[
    Command {
        names: &["sleep"],
        usage: "SECONDS",
        help: "wait for some seconds",
        run: |_, a| {
            std::thread::sleep(Duration::from_secs(a.unsigned::<u32>(0)?.into()));
            Ok(())
        },
    },
    Command {
        names: &["ping-daemon"],
        usage: "",
        help: "end with an error if the guest is not launched",
        run: |shell, _| shell.guest().map(drop),
    },
    Command {
        names: &["is-config"],
        usage: "",
        help: "tell whether disks can still be added",
        run: |shell, _| {
            let waits = shell.guest.is_none();
            shell.out.text(if waits { "true\n" } else { "false\n" })
        },
    },
    Command {
        names: &["filesystem-available"],
        usage: "TYPE",
        help: "tell whether a type of filesystem can be read",
        run: |shell, a| {
            let there = guestfs::reader::READERS.iter().any(|(kind, _)| kind.as_bytes() == a.word(0));
            shell.out.text(if there { "true\n" } else { "false\n" })
        },
    },
    Command {
        names: &["equal"],
        usage: "PATH PATH",
        help: "tell whether two files have the same content",
        run: |shell, a| {
            let fs = shell.guest()?.fs()?;
            let equal = fs.read(a.path(0)?, LIMIT)? == fs.read(a.path(1)?, LIMIT)?;
            shell.out.text(if equal { "true\n" } else { "false\n" })
        },
    },
    Command {
        names: &["pwrite"],
        usage: "PATH CONTENT OFFSET",
        help: "write bytes to a place in a file, and print how many",
        run: |shell, a| {
            let (offset, new): (u64, &[u8]) = (a.unsigned(2)?, a.word(1));
            let end = offset.checked_add(new.len() as u64).filter(|end| *end <= LIMIT);
            let end = end.ok_or_else(|| Failure::new("this command makes files of 1 GiB at most"))?;
            let session = shell.guest()?.tree_mut()?;
            let mut content = session.read(a.path(0)?, LIMIT)?;
            content.resize(content.len().max(usize::try_from(end)?), 0);
            content.get_mut(usize::try_from(offset)?..usize::try_from(end)?).unwrap_or_default().copy_from_slice(new);
            session.write(a.path(0)?, &mut content.as_slice(), None)?;
            shell.out.text(&format!("{}\n", new.len()))
        },
    },
    Command {
        names: &["lvuuid"],
        usage: "DEVICE",
        help: "print a logical volume's UUID",
        run: |shell, a| {
            let name = volume(shell, a, 0)?.device;
            let volumes = shell.guest()?.volumes()?;
            let mut all = volumes
                .groups
                .iter()
                .flat_map(|group| group.volumes.iter().map(move |v| (format!("/dev/{}/{}", group.name, v.name), &v.uuid)));
            let uuid = all.find(|(device, _)| *device == name).map(|(_, uuid)| uuid.clone());
            answer(shell, uuid, "it is no logical volume")
        },
    },
    Command {
        names: &["vguuid"],
        usage: "GROUP",
        help: "print a volume group's UUID",
        run: |shell, a| {
            let uuid =
                shell.guest()?.volumes()?.groups.iter().find(|group| group.name.as_bytes() == a.word(0)).map(|group| group.uuid.clone());
            answer(shell, uuid, "there is no such group")
        },
    },
    Command {
        names: &["pvuuid"],
        usage: "DEVICE",
        help: "print a physical volume's UUID",
        run: |shell, a| {
            let volume = volume(shell, a, 0)?;
            let uuid = volume.content.filter(|content| content.kind == "LVM2_member").and_then(|content| content.uuid);
            answer(shell, uuid, "it is no physical volume")
        },
    },
    Command {
        names: &["vgpvuuids"],
        usage: "GROUP",
        help: "list the UUIDs of a group's physical volumes",
        run: |shell, a| {
            let volumes = shell.guest()?.volumes()?;
            let group = volumes.groups.iter().find(|group| group.name.as_bytes() == a.word(0));
            let group = group.ok_or_else(|| Failure::new("there is no such group"))?;
            let members = group.physical.iter().filter_map(|pv| volumes.volumes.get(pv.position)?.content.as_ref()?.uuid.clone());
            let lines: Vec<String> = members.collect();
            lines.iter().try_for_each(|line| shell.out.line(line.as_bytes()))
        },
    },
    Command {
        names: &["max-disks"],
        usage: "",
        help: "print how many disks there can be",
        run: |shell, _| list(shell, |_| vec!["255".into()]),
    },
    always!("inspect-get-format", "print whether a system is installed", "installed"),
    always!("inspect-is-live", "tell whether a system is one of a live disk: none that is found", "false"),
    always!("inspect-is-netinst", "tell whether a system is an installer: none that is found", "false"),
    always!("inspect-is-multipart", "tell whether a system is on several disks of an installer: none that is found", "false"),
    on_device!(&["zero-device"], "DEVICE", 0, "overwrite all of a device with zeroes", |_a| words(&["blkdiscard", "-z", "-f"])),
    on_device!(&["mkswap-L"], "LABEL DEVICE", 1, "make a swap space with a label", |a| [
        words(&["mkswap", "-L"]),
        vec![a.word(0).to_vec()]
    ]
    .concat()),
    on_device!(&["mkswap-U"], "UUID DEVICE", 1, "make a swap space with a UUID", |a| [words(&["mkswap", "-U"]), vec![a.word(0).to_vec()]]
        .concat()),
    on_device!(&["mke2fs"], "DEVICE [fstype:..] [blocksize:..] [label:..] [uuid:..]", 0, "make an ext filesystem", |a| {
        let options = [("fstype", "-t"), ("blocksize", "-b"), ("label", "-L"), ("uuid", "-U")];
        let given = options.into_iter().filter_map(|(option, flag)| Some([flag.into(), a.option(option)?.to_vec()]));
        words(&["mke2fs", "-F", "-q"]).into_iter().chain(given.flatten()).collect()
    }),
    Command {
        names: &["mkfs-btrfs"],
        usage: "DEVICES [label:..]",
        help: "make a btrfs on one or several devices",
        run: |shell, a| {
            let mut all = words(&["mkfs.btrfs", "-f", "-q"]);
            if let Some(label) = a.option("label") {
                all.extend([b"-L".to_vec(), label.to_vec()]);
            }
            for name in a.list(0)? {
                all.push(shell.guest()?.inside(&device(&name)?)?.into_bytes());
            }
            shell.guest()?.tool(&all, false).map(drop)
        },
    },
];

fn words(words: &[&str]) -> Vec<Vec<u8>> {
    words.iter().map(|word| word.as_bytes().to_vec()).collect()
}

fn answer(shell: &mut Shell<'_>, found: Option<String>, without: &str) -> Result<(), Failure> {
    shell.out.line(found.ok_or_else(|| Failure::new(without))?.as_bytes())
}
