//! `virt-mount`: a guest's tree mounted on this machine through FUSE, for reading.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::{Args, FromArgMatches};
use fuser::{Config, MountOption, Session, SessionACL};
use guestfs::Access;
use rustix::mount::{UnmountFlags, unmount};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use self::files::Files;
use self::filesystem::{Mounted, Owners};
use super::Entry;
use super::options::GuestArgs;
use crate::common::Failure;

mod background;
mod files;
mod filesystem;
mod nodes;

/// This command's line in the table.
pub(super) const ENTRY: Entry = Entry {
    name: "mount",
    arguments: |command| Mount::augment_args(command).mut_arg("ro", |ro| ro.short('r')).mut_arg("trace", |trace| trace.alias("trace")),
    run: |matches| run(&Mount::from_arg_matches(matches)?),
};

/// Mount a guest's filesystems on this machine, for reading.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  virt-mount -a disk.qcow2 /mnt\n  virt-mount -a export.xva#Ref:10 -m /dev/sda2 --no-fork /mnt\n  fusermount3 -u /mnt\n\n\
                  Nothing can be changed in it: virt-edit, virt-copy-in and virt-shell do that.\n\
                  Symbolic links are shown as they are in the guest and followed by this machine: an absolute one leads to a file of this\n\
                  machine, not of the guest. Use virt-cat, virt-copy-out or virt-tar-out where that matters.\n\
                  Devices and set-id bits have no effect. Only you see the mount, without regard to the guest's owners and modes;\n\
                  with -o allow_other all users see it, each what those owners and modes allow."
)]
struct Mount {
    #[command(flatten)]
    guest: GuestArgs,
    /// Mount what inspection finds (so it is without -m)
    #[arg(short, long, conflicts_with = "mount")]
    inspector: bool,
    /// Options of the mount: allow_other, allow_root, default_permissions, noexec, noatime, fsname=NAME, subtype=NAME, uid=N, gid=N
    #[arg(short, long, value_name = "OPTION", value_delimiter = ',')]
    option: Vec<String>,
    /// Stay in the foreground
    #[arg(long)]
    no_fork: bool,
    /// Write the process's number to this file once the mount is there
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Where to mount it: a folder of this machine
    #[arg(value_name = "FOLDER")]
    mountpoint: PathBuf,
}

fn run(args: &Mount) -> Result<ExitCode, Failure> {
    let folder = &args.mountpoint;
    let folder = folder.canonicalize().map_err(|e| Failure::new(format!("{}: {e}", folder.display())).hint("make the folder first"))?;
    if !folder.is_dir() {
        return Err(Failure::new(format!("{}: not a folder", folder.display())));
    }
    let options = Options::parse(&args.option)?;
    let stays = background::is_worker();
    if !stays && !args.no_fork && !args.guest.traces() {
        return background::start();
    }
    // Before it detaches: paths of the command line are relative to where it was started.
    let pid_file = args.pid_file.as_ref().map(std::path::absolute).transpose()?;
    let guest = args.guest.open()?;
    if stays {
        background::detach()?;
    }
    let ready = || {
        if let Some(file) = &pid_file {
            std::fs::write(file, format!("{}\n", std::process::id())).map_err(|e| Failure::new(format!("{}: {e}", file.display())))?;
        }
        if stays { background::ready() } else { Ok(()) }
    };
    let talks = args.guest.talks();
    let log = move |line: &str| {
        if talks {
            eprintln!("virt-mount: {line}");
        }
    };
    match guest.into_access() {
        Access::Direct(tree) => serve(Mounted::new(tree, options.owners, Box::new(log))?, &folder, &options.config, ready)?,
        Access::Appliance(session) => serve(Mounted::new(session, options.owners, Box::new(log))?, &folder, &options.config, ready)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Mounts, says that it is ready, and answers the kernel until it is unmounted.
fn serve<F: Files>(files: Mounted<F>, folder: &Path, config: &Config, ready: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    // Before the mount: a signal that comes in between must not leave it there.
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let mut session = Session::new(files, folder, config).map_err(|e| cannot_mount(folder, &e))?;
    let mut unmounter = session.unmount_callable();
    let place = folder.to_path_buf();
    std::thread::spawn(move || {
        if signals.forever().next().is_some() && unmounter.unmount().is_err() {
            // In use: it goes from sight now, and its users get errors.
            detach(&place);
            std::process::exit(0);
        }
    });
    ready()?;
    session.run().map_err(|e| Failure::new(format!("{}: the mount failed: {e}", folder.display())))
}

/// Takes a mount away that is in use.
fn detach(folder: &Path) {
    if unmount(folder, UnmountFlags::DETACH).is_err() {
        let _ = Command::new("fusermount3").arg("-uz").arg("--").arg(folder).status();
    }
}

fn cannot_mount(folder: &Path, error: &std::io::Error) -> Failure {
    let failure = Failure::new(format!("{}: cannot mount: {}", folder.display(), error.to_string().trim_end()));
    if !Path::new("/dev/fuse").exists() {
        return failure
            .hint("this machine has no /dev/fuse: load the kernel's module with 'modprobe fuse', or give the container that device");
    }
    match error.kind() {
        std::io::ErrorKind::NotFound => failure.hint("install the package fuse3, or run it as root"),
        std::io::ErrorKind::PermissionDenied => failure.hint("the folder must be yours, and /dev/fuse open to you"),
        _ => failure,
    }
}

/// What `-o` asks for.
#[derive(Debug)]
struct Options {
    config: Config,
    owners: Owners,
}

impl Options {
    fn parse(options: &[String]) -> Result<Self, Failure> {
        let mut config = Config::default();
        config.mount_options = vec![MountOption::RO, MountOption::NoDev, MountOption::NoSuid];
        let mut named = (MountOption::FSName("virt-mount".into()), None);
        let mut owners = Owners::default();
        for option in options {
            let (name, value) = option.split_once('=').map_or((option.as_str(), None), |(name, value)| (name, Some(value)));
            let number = || {
                value
                    .and_then(|v| v.parse().ok())
                    .ok_or_else(|| Failure::new(format!("-o {option}: a number must follow, as in {name}=1000")))
            };
            match (name, value) {
                // The guest's /etc/shadow is not for everybody: its modes count when others look.
                ("allow_other", None) => config.acl = SessionACL::All,
                ("allow_root", None) => config.acl = SessionACL::RootAndOwner,
                ("default_permissions", None) => config.mount_options.push(MountOption::DefaultPermissions),
                ("noexec", None) => config.mount_options.push(MountOption::NoExec),
                ("noatime", None) => config.mount_options.push(MountOption::NoAtime),
                ("fsname", Some(value)) => named.0 = MountOption::FSName(value.into()),
                ("subtype", Some(value)) => named.1 = Some(MountOption::Subtype(value.into())),
                ("uid", _) => owners.uid = Some(number()?),
                ("gid", _) => owners.gid = Some(number()?),
                // So it is in any case.
                ("ro" | "nodev" | "nosuid" | "use_ino" | "kernel_cache", None) => {}
                _ => return Err(Failure::new(format!("-o {option}: not an option of this mount")).hint("'virt mount --help' lists them")),
            }
        }
        if config.acl != SessionACL::Owner && !config.mount_options.contains(&MountOption::DefaultPermissions) {
            config.mount_options.push(MountOption::DefaultPermissions);
        }
        config.mount_options.push(named.0);
        config.mount_options.extend(named.1);
        Ok(Options { config, owners })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Options, Failure> {
        Options::parse(&text.split(',').filter(|o| !o.is_empty()).map(str::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn a_mount_is_always_harmless_and_shown_to_others_only_as_the_guest_would() {
        for text in ["", "allow_other", "uid=5,gid=6,fsname=web", "ro,nodev,nosuid"] {
            let options = parse(text).unwrap();
            for always in [MountOption::RO, MountOption::NoDev, MountOption::NoSuid] {
                assert!(options.config.mount_options.contains(&always), "{text}");
            }
            let others = options.config.acl != SessionACL::Owner;
            assert_eq!(others, text == "allow_other");
            assert_eq!(options.config.mount_options.contains(&MountOption::DefaultPermissions), others);
        }
        assert_eq!(parse("uid=5,gid=6").unwrap().owners, Owners { uid: Some(5), gid: Some(6) });
        for bad in ["rw", "dev", "suid", "uid", "uid=x", "frob", "allow_other=1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
