//! The flags that all these programs share, and the guest that they open.

mod calls;
mod confine;
mod domain;
mod keys;
mod several;
mod sources;

use clap::{Args, ValueEnum};
use guestfs::engine::{Disk, Engine, Session};
use guestfs::{EngineChoice, Guest, GuestDisk, GuestDiskMut, MountRequest, StatFs, Volumes};
use guestfs_appliance::{Accel, Appliance};
use imgcore::storage::Undo;

use self::keys::KeyArgs;
pub(super) use self::keys::Ring;
use self::sources::Named;
pub(super) use self::sources::Sources;
use crate::common::{Failure, signals};

/// Which guest, and how to open it.
#[derive(Args)]
pub(super) struct GuestArgs {
    #[command(flatten)]
    pub(super) sources: Sources,
    /// Mount DEV[:MNT[:OPTS[:FSTYPE]]] instead of what inspection finds (may be repeated)
    #[arg(short, long, value_name = "DEV")]
    mount: Vec<String>,
    /// The operating system to take where there are several
    #[arg(long, value_name = "DEV")]
    root: Option<String>,
    /// Who works on the filesystems: this process or the appliance
    #[arg(long, value_enum, default_value = "auto")]
    engine: EngineArg,
    /// What runs the appliance: kvm, tcg (QEMU's translator) or auto; the environment's GUESTLIFT_ACCEL says so, too
    #[arg(long, value_name = "ACCEL")]
    accel: Option<Accel>,
    #[command(flatten)]
    keys: KeyArgs,
    /// Say what is done and why
    #[arg(short, long)]
    verbose: bool,
    /// Say every step
    #[arg(short = 'x')]
    trace: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum EngineArg {
    Auto,
    Direct,
    Appliance,
}

/// An appliance that says how it runs when it is started, with `-v`.
pub(super) struct Announced {
    appliance: Appliance,
    verbose: bool,
}

impl Announced {
    pub(super) fn new(accel: Option<Accel>, verbose: bool) -> Self {
        let note = if verbose { |line: &str| eprintln!("{line}") } else { |_: &str| {} };
        Announced { appliance: Appliance { accel, note, ..Appliance::new() }, verbose }
    }
}

impl Engine for Announced {
    fn start(&self, disks: Vec<Disk>, tools: bool) -> guestfs::Result<Box<dyn Session>> {
        if self.verbose {
            eprintln!("The appliance runs in {}.", self.appliance.describe());
        }
        self.appliance.start(disks, tools)
    }

    fn check(&self) -> guestfs::Result<()> {
        self.appliance.check()
    }
}

impl GuestArgs {
    /// The guest's disks, opened for reading.
    pub(super) fn disks(&self) -> Result<Vec<GuestDisk>, Failure> {
        self.sources.disks()
    }

    /// The same, opened for writing.
    pub(super) fn disks_mut(&self, undo: &Undo) -> Result<Vec<GuestDiskMut>, Failure> {
        self.sources.disks_mut(undo)
    }

    /// Whether the user says what to mount.
    pub(super) fn has_mounts(&self) -> bool {
        !self.mount.is_empty()
    }

    /// The operating system that the user chose.
    pub(super) fn root(&self) -> Option<&str> {
        self.root.as_deref()
    }

    /// Who is to work on the filesystems.
    pub(super) fn engine(&self) -> EngineChoice {
        match self.engine {
            EngineArg::Auto => EngineChoice::Auto,
            EngineArg::Direct => EngineChoice::Direct,
            EngineArg::Appliance => EngineChoice::Appliance,
        }
    }

    /// The keys that are given, and a user who is asked for others.
    pub(super) fn asked_keys(&self) -> Result<Ring, Failure> {
        self.keys.ring(true)
    }

    /// The keys that are given, for programs that list what is there and ask nobody.
    pub(super) fn keys(&self) -> Result<Ring, Failure> {
        self.keys.ring(false)
    }

    /// What is on disks, unlocked as far as there are keys.
    pub(super) fn volumes(&self, disks: Vec<GuestDisk>, keys: &Ring) -> Result<Volumes, Failure> {
        let volumes = Volumes::open_with(disks, Some(keys))?;
        warn(&volumes);
        Ok(volumes)
    }

    /// How full the filesystems are, by their positions.
    pub(super) fn statfs(&self, volumes: &Volumes, keys: &Ring) -> Result<Vec<(usize, StatFs)>, Failure> {
        let (appliance, log) = (self.appliance(), |line: &str| self.say(line));
        Ok(guestfs::space::statfs(volumes, &self.options(&appliance, keys, &log))?)
    }

    /// The guest with its filesystems mounted for reading.
    pub(super) fn open(&self) -> Result<Guest, Failure> {
        Ok(self.open_disks(self.disks()?, &self.mounts()?, &self.keys.ring(true)?, self.root.as_deref())?)
    }

    /// The same for a program that only reads, and opens nothing else from here on: it gives up what that does not need.
    pub(super) fn open_confined(&self) -> Result<Guest, Failure> {
        // The user may name files with keys and domains.
        let (keys, guest, mounts) = (self.keys.ring(true)?, self.sources.guest()?, self.mounts()?);
        let confinement = self.sources.confinement([&guest]);
        match self.engine {
            EngineArg::Direct => self.note(confinement.reading()?),
            EngineArg::Auto | EngineArg::Appliance => self.note(confinement.with_appliance()?),
        }
        let opened = self.open_disks(self.sources.open(&guest)?, &mounts, &keys, self.root.as_deref())?;
        if !opened.is_in_appliance() {
            confinement.reading()?;
        }
        Ok(opened)
    }

    fn open_disks(&self, disks: Vec<GuestDisk>, mounts: &[MountRequest], keys: &Ring, root: Option<&str>) -> guestfs::Result<Guest> {
        let (appliance, log) = (self.appliance(), |line: &str| self.say(line));
        let options = guestfs::OpenOptions { root, ..self.options(&appliance, keys, &log) };
        let guest = if mounts.is_empty() { Guest::open(disks, &options)? } else { Guest::open_with_mounts(disks, mounts, &options)? };
        warn(&guest.volumes);
        Ok(guest)
    }

    /// Gives up what a program does not need that only looks at these guests' volumes, or with an appliance at their filesystems too.
    pub(super) fn confine<'a>(&self, guests: impl IntoIterator<Item = &'a Named>, appliance: bool) -> Result<(), Failure> {
        let confinement = self.sources.confinement(guests);
        let direct = !appliance || matches!(self.engine, EngineArg::Direct);
        self.note(if direct { confinement.reading()? } else { confinement.with_appliance()? });
        Ok(())
    }

    fn note(&self, enforced: bool) {
        if !enforced {
            self.say("This host's kernel has no landlock: the program could open other files than the guest's.");
        }
    }

    /// The guest in an appliance that changes it: its disks are as they were until it is shut down, and a signal that comes
    /// while they are written waits for the end of that.
    pub(super) fn open_writable(&self) -> Result<Guest, Failure> {
        if self.sources.only_reads() {
            return Err(Failure::new("--ro is for reading: this command changes the guest"));
        }
        signals::clean_up();
        let (appliance, log) = (self.appliance(), |line: &str| self.say(line));
        let keys = self.keys.ring(true)?;
        let options = self.options(&appliance, &keys, &log);
        let undo = Undo::default();
        let guest = Guest::open_writable(self.sources.disks_mut(&undo)?, undo, &self.mounts()?, &options)?;
        warn(&guest.volumes);
        Ok(guest)
    }

    fn options<'a>(&'a self, appliance: &'a dyn Engine, keys: &'a Ring, log: &'a dyn Fn(&str)) -> guestfs::OpenOptions<'a> {
        guestfs::OpenOptions { engine: self.engine(), appliance: Some(appliance), root: self.root.as_deref(), keys: Some(keys), log }
    }

    /// Whether the user wants to hear of every step.
    pub(super) fn traces(&self) -> bool {
        self.trace
    }

    /// Whether the user wants to hear what is done.
    pub(super) fn talks(&self) -> bool {
        self.verbose || self.trace
    }

    /// Tells the user with `-v` or `-x`.
    pub(super) fn say(&self, line: &str) {
        if self.talks() {
            eprintln!("{line}");
        }
    }

    /// What starts appliances.
    pub(super) fn appliance(&self) -> Announced {
        Announced::new(self.accel, self.talks())
    }

    /// What `-m` asks for.
    pub(super) fn mounts(&self) -> Result<Vec<MountRequest>, Failure> {
        let parse = |text: &String| {
            let mut parts = text.splitn(4, ':');
            let mut next = || parts.next().unwrap_or_default().to_string();
            let request = MountRequest { device: next(), path: next(), options: next(), filesystem: next() };
            let path = if request.path.is_empty() { "/".into() } else { request.path };
            if !path.starts_with('/') {
                return Err(Failure::new(format!("'{text}': the mount point must begin with /")));
            }
            Ok(MountRequest { path, ..request })
        };
        self.mount.iter().map(parse).collect()
    }
}

/// Tells of what is damaged or missing.
fn warn(volumes: &Volumes) {
    volumes.complaints.iter().for_each(|complaint| eprintln!("warning: {complaint}"));
}
