//! The flags that all these programs share, and the guest that they open.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use guestfs::engine::{Disk, Engine, Session};
use guestfs::{EngineChoice, Guest, GuestDisk, GuestDiskMut, MountRequest};
use guestfs_appliance::{Accel, Appliance};
use imgcore::{Image, TreeGate};

use crate::common::{Failure, formats, signals};

/// Which guest, and how to open it.
#[derive(Args)]
pub(super) struct GuestArgs {
    /// Add a disk image of the guest; FILE#DISK for a disk of a container (may be repeated)
    #[arg(short, long, value_name = "FILE")]
    add: Vec<PathBuf>,
    /// Add the disks that a libvirt XML file names
    #[arg(short, long, value_name = "XMLFILE")]
    domain: Option<PathBuf>,
    /// Format of the images, instead of looking
    #[arg(long, value_name = "FMT", num_args = 0..=1, require_equals = true, default_missing_value = "auto")]
    format: Option<String>,
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
    /// Let images name files below this folder (may be repeated)
    #[arg(long, value_name = "DIR")]
    allow_path: Vec<PathBuf>,
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
struct Announced {
    appliance: Appliance,
    verbose: bool,
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

/// A disk that the user named.
struct DiskArg {
    /// What the guest calls it.
    name: String,
    path: PathBuf,
    format: Option<String>,
}

impl GuestArgs {
    /// The guest's disks, opened for reading.
    pub(super) fn disks(&self) -> Result<Vec<GuestDisk>, Failure> {
        let open = |d: DiskArg| {
            let gate = self.gate(&d.path);
            let options = imgcore::OpenOptions::new(&gate).format(d.format.as_deref()).exclusive();
            let image: Arc<dyn Image> = formats().open(&d.path, &options)?;
            Ok(GuestDisk { name: d.name, image })
        };
        self.list()?.into_iter().map(open).collect()
    }

    fn disks_mut(&self) -> Result<Vec<GuestDiskMut>, Failure> {
        let open = |d: DiskArg| {
            let gate = self.gate(&d.path);
            let options = imgcore::OpenOptions::new(&gate).format(d.format.as_deref()).exclusive();
            Ok(GuestDiskMut { name: d.name, image: formats().open_mut(&d.path, &options)? })
        };
        self.list()?.into_iter().map(open).collect()
    }

    fn gate(&self, path: &Path) -> TreeGate {
        TreeGate::new(path, self.allow_path.iter().cloned())
    }

    /// The guest with its filesystems mounted for reading.
    pub(super) fn open(&self) -> Result<Guest, Failure> {
        let (appliance, log) = (self.appliance(), |line: &str| self.say(line));
        let options = self.options(&appliance, &log);
        let mounts = self.mounts()?;
        let disks = self.disks()?;
        Ok(if mounts.is_empty() { Guest::open(disks, &options)? } else { Guest::open_with_mounts(disks, &mounts, &options)? })
    }

    /// The guest in an appliance that changes it: its disks are as they were until it is shut down, and a signal that comes
    /// while they are written waits for the end of that.
    pub(super) fn open_writable(&self) -> Result<Guest, Failure> {
        signals::clean_up();
        let (appliance, log) = (self.appliance(), |line: &str| self.say(line));
        let options = self.options(&appliance, &log);
        Ok(Guest::open_writable(self.disks_mut()?, &self.mounts()?, &options)?)
    }

    fn options<'a>(&'a self, appliance: &'a dyn Engine, log: &'a dyn Fn(&str)) -> guestfs::OpenOptions<'a> {
        let engine = match self.engine {
            EngineArg::Auto => EngineChoice::Auto,
            EngineArg::Direct => EngineChoice::Direct,
            EngineArg::Appliance => EngineChoice::Appliance,
        };
        guestfs::OpenOptions { engine, appliance: Some(appliance), root: self.root.as_deref(), log, ..guestfs::OpenOptions::default() }
    }

    /// Tells the user with `-v` or `-x`.
    pub(super) fn say(&self, line: &str) {
        if self.verbose || self.trace {
            eprintln!("{line}");
        }
    }

    fn appliance(&self) -> Announced {
        let verbose = self.verbose || self.trace;
        let note = if verbose { |line: &str| eprintln!("{line}") } else { |_: &str| {} };
        Announced { appliance: Appliance { accel: self.accel, note, ..Appliance::new() }, verbose }
    }

    fn list(&self) -> Result<Vec<DiskArg>, Failure> {
        let format = self.format.clone().filter(|f| f != "auto");
        let added = self.add.iter().enumerate().map(|(i, path)| DiskArg {
            name: format!("sd{}", guestfs::volume::letters(i)),
            path: path.clone(),
            format: format.clone(),
        });
        let mut disks: Vec<DiskArg> = added.collect();
        if let Some(xml) = &self.domain {
            disks.extend(domain_disks(xml)?);
        }
        if disks.is_empty() {
            return Err(Failure::new("no disk was named").hint("add the guest's disk images with -a FILE"));
        }
        Ok(disks)
    }

    fn mounts(&self) -> Result<Vec<MountRequest>, Failure> {
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

/// The disks of a libvirt domain, with the guest's names for them.
fn domain_disks(path: &Path) -> Result<Vec<DiskArg>, Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| Failure::new(format!("{}: cannot read: {e}", path.display())))?;
    let bad = |what: String| Failure::new(format!("{}: {what}", path.display())).hint("-d takes a file as 'virsh dumpxml' writes it");
    let document = roxmltree::Document::parse(&text).map_err(|e| bad(e.to_string()))?;
    let mut disks = Vec::new();
    let elements = document.descendants().filter(|n| n.has_tag_name("disk") && n.attribute("device").unwrap_or("disk") == "disk");
    for disk in elements {
        let child = |name: &str| disk.children().find(|c| c.has_tag_name(name));
        let source = child("source").and_then(|s| s.attribute("file").or(s.attribute("dev")));
        let Some(source) = source else { return Err(bad("a disk has neither a file nor a device as its source".into())) };
        let format = child("driver").and_then(|d| d.attribute("type")).map(|f| if f == "aio" { "raw" } else { f }.to_string());
        let name = child("target").and_then(|t| t.attribute("dev")).map(str::to_string);
        disks.push(DiskArg {
            name: name.unwrap_or_else(|| format!("sd{}", guestfs::volume::letters(disks.len()))),
            path: path.parent().unwrap_or(Path::new("")).join(source),
            format,
        });
    }
    if disks.is_empty() { Err(bad("there is no disk in it".into())) } else { Ok(disks) }
}
