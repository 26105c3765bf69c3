//! `virt-rescue`: a shell in the appliance, on the user's terminal.

use std::process::ExitCode;

use clap::{Args, FromArgMatches};
use guestfs::engine;
use imgcore::storage::Undo;

use self::terminal::{EscapeKey, Screen};
use super::Entry;
use super::launched::{Launched, ShellDisk};
use super::options::GuestArgs;
use crate::common::{Failure, signals};

mod terminal;

/// This command's line in the table.
pub(super) const ENTRY: Entry = Entry {
    name: "rescue",
    arguments: |command| Rescue::augment_args(command).mut_arg("ro", |ro| ro.short('r')),
    run: |matches| run(&Rescue::from_arg_matches(matches)?),
};

/// What is there to work with, as far as this machine has it. The guest's own programs are there after 'chroot /sysroot'.
const PROGRAMS: &[&str] = &[
    "bash",
    "sh",
    "cat",
    "ls",
    "cp",
    "mv",
    "rm",
    "mkdir",
    "rmdir",
    "ln",
    "chmod",
    "chown",
    "chroot",
    "mount",
    "umount",
    "mountpoint",
    "grep",
    "sed",
    "awk",
    "find",
    "xargs",
    "less",
    "more",
    "vi",
    "nano",
    "head",
    "tail",
    "sort",
    "uniq",
    "wc",
    "cut",
    "tr",
    "df",
    "du",
    "dd",
    "sync",
    "touch",
    "stat",
    "readlink",
    "blkid",
    "lsblk",
    "blockdev",
    "fdisk",
    "sfdisk",
    "parted",
    "mke2fs",
    "e2fsck",
    "resize2fs",
    "tune2fs",
    "debugfs",
    "dumpe2fs",
    "e2label",
    "mkswap",
    "mkfs.xfs",
    "xfs_repair",
    "mkfs.btrfs",
    "btrfs",
    "mkfs.vfat",
    "fsck.vfat",
    "lvm",
    "lvs",
    "vgchange",
    "cryptsetup",
    "mdadm",
    "hexdump",
    "od",
    "diff",
    "cmp",
    "tar",
    "gzip",
    "xz",
    "zstd",
    "md5sum",
    "sha256sum",
    "ps",
    "kill",
    "sleep",
    "id",
    "uname",
    "date",
    "dmesg",
    "env",
    "clear",
    "tty",
    "stty",
    "true",
    "false",
    "test",
    "echo",
    "printf",
    "basename",
    "dirname",
];

/// Repair a guest by hand, in a shell of the appliance.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  virt-rescue -a disk.qcow2 -i\n  virt-rescue --ro -a disk.qcow2 -m /dev/sda2\n  virt-rescue -a blank.img\n\n\
                  The guest's disks are /dev/vda, /dev/vdb, …, its filesystems below /sysroot; 'chroot /sysroot' enters it.\n\
                  The programs are this machine's. What is changed is written to the disks when the shell has ended and all is unmounted;\n\
                  if the appliance fails before that, the disks are as they were. Ctrl-] and then q ends the shell at once, ? tells more."
)]
struct Rescue {
    #[command(flatten)]
    guest: GuestArgs,
    /// Find the operating system and mount its filesystems
    #[arg(short, long, conflicts_with = "mount")]
    inspector: bool,
    /// Keep changes (as it is without --ro)
    #[arg(short = 'w', long, conflicts_with = "ro")]
    rw: bool,
    #[command(flatten)]
    ignored: Ignored,
    /// Only print the commands that would mount the guest's filesystems
    #[arg(long)]
    suggest: bool,
    /// The key that commands to this program begin with: ^x for Ctrl and x, or none
    #[arg(short, value_name = "KEY", default_value = "^]")]
    escape: EscapeKey,
}

/// Flags of libguestfs's that are about its own machine: taken for scripts' sake.
#[derive(Args)]
struct Ignored {
    #[arg(long, hide = true, value_name = "OPTIONS")]
    append: Option<String>,
    #[arg(long, hide = true, value_name = "MB")]
    memsize: Option<u32>,
    #[arg(long, hide = true, value_name = "N")]
    smp: Option<u32>,
    #[arg(long, hide = true)]
    selinux: bool,
}

fn run(args: &Rescue) -> Result<ExitCode, Failure> {
    let ro = args.guest.sources.only_reads() || args.suggest;
    let undo = Undo::default();
    let disks = if ro {
        args.guest.disks()?.into_iter().map(|disk| ShellDisk::ReadOnly(disk.image)).collect()
    } else {
        args.guest.disks_mut(&undo)?.into_iter().map(|disk| ShellDisk::Writable(disk.image)).collect()
    };
    let mut guest = Launched::new("virt-rescue", &args.guest, disks, undo)?;
    let options = if ro { "ro" } else { "" };
    for mut mount in args.guest.mounts()? {
        if mount.options.is_empty() {
            mount.options = options.into();
        }
        guest.mount(mount)?;
    }
    if args.inspector || args.suggest {
        guest.mount_root(options)?;
    }
    if args.suggest {
        return suggest(&mut guest);
    }
    // Before the appliance is started: without a terminal there is nothing to do in it.
    let screen = Screen::open(args.escape)?;
    let session = guest.session()?;
    session.lend(PROGRAMS)?;
    screen.lend_description(session)?;
    println!(
        "The guest's filesystems are below /sysroot, its disks are /dev/vda, …; 'exit' ends{}.",
        if ro { ", and forgets all changes" } else { ", and then its changes are written" }
    );
    let mut command = engine::Command::new(["bash", "--norc", "-i"]);
    command.env = vec![(b"PS1".to_vec(), b"><rescue> ".to_vec()), (b"TERM".to_vec(), screen.kind().as_bytes().to_vec())];
    let status = {
        let _raw = screen.raw()?;
        session.run_on_terminal(&command, &screen)
    };
    let status = status?;
    // From here on changes are being committed, which a signal is not to cut.
    signals::clean_up();
    guest.finish()?;
    Ok(ExitCode::from(u8::try_from(status).unwrap_or(1)))
}

/// The commands that would do what inspection did.
fn suggest(guest: &mut Launched<'_>) -> Result<ExitCode, Failure> {
    let mounts = guest.mounts().to_vec();
    println!("# In virt-rescue these commands mount the guest's filesystems:");
    for mount in &mounts {
        let device = guest.volumes()?.find(mount.device.as_bytes()).and_then(|index| guest.known().volumes.get(index).cloned());
        let device = device.map_or(mount.device.clone(), |volume| volume.appliance_device());
        println!("mount {device} /sysroot{}", guestfs::show(mount.path.trim_end_matches('/').as_bytes()));
    }
    println!(
        "mount --rbind /dev /sysroot/dev\nmount --rbind /proc /sysroot/proc\nmount --rbind /sys /sysroot/sys\ncd /sysroot\nchroot /sysroot"
    );
    Ok(ExitCode::SUCCESS)
}
