//! Where a guest's disks come from: `-a` with image files, devices, containers and NBD servers, `-d` with a libvirt domain.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{ArgMatches, Args, Command, FromArgMatches};
use guestfs::volume::letters;
use guestfs::{GuestDisk, GuestDiskMut};
use imgcore::formats::Located;
use imgcore::nbd::uri::Uri;
use imgcore::storage::{Undo, undo};
use imgcore::{Image, ImageMut, OpenOptions, TreeGate};

use super::confine::Confinement;
use super::domain::Domain;
use crate::common::{Failure, formats};

/// The flags as they are declared; see [`Sources`].
#[derive(Args)]
struct Flags {
    /// Add a disk of the guest: an image, FILE#DISK for a disk of a container or FILE for all of them, a device, or
    /// nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH (may be repeated)
    #[arg(short, long, value_name = "FILE|URI")]
    add: Vec<OsString>,
    /// Add the disks of a libvirt domain: an XML file, or a name that virsh knows
    #[arg(short, long, value_name = "XMLFILE|NAME")]
    domain: Vec<OsString>,
    /// Ask this libvirt for the domain
    #[arg(short, long, value_name = "URI", requires = "domain")]
    connect: Option<String>,
    /// Format of the images that -a names from here on, instead of looking; without FMT look again
    #[arg(long, value_name = "FMT", num_args = 0..=1, require_equals = true, default_missing_value = "auto", action = clap::ArgAction::Append)]
    format: Vec<String>,
    /// Size of the sectors of the disks that -a names from here on, 512 or 4096: found out by itself, and taken for scripts
    #[arg(long, value_name = "BYTES", num_args = 0..=1, require_equals = true, default_missing_value = "512", value_parser = ["512", "4096"], action = clap::ArgAction::Append, hide = true)]
    blocksize: Vec<String>,
    /// Read disks even while somebody writes them, as they are at that moment
    #[arg(long)]
    ro: bool,
    /// Let images name files below this folder (may be repeated)
    #[arg(long, value_name = "DIR")]
    allow_path: Vec<PathBuf>,
}

/// What the user named, in its order.
pub(in crate::virt) struct Sources {
    /// Each with its format, where one was given.
    added: Vec<(OsString, Option<String>)>,
    domains: Vec<OsString>,
    connect: Option<String>,
    ro: bool,
    allow_path: Vec<PathBuf>,
}

impl FromArgMatches for Sources {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let Flags { add, domain, connect, format, ro, allow_path, blocksize: _ } = Flags::from_arg_matches(matches)?;
        let places = |name: &str| matches.indices_of(name).into_iter().flatten().collect::<Vec<_>>();
        let (formats, adds) = (places("format"), places("add"));
        let format_of = |index: &usize| {
            let mut before = formats.iter().zip(&format).filter(|(at, _)| *at < index);
            before.next_back().map(|(_, name)| name.clone()).filter(|name| name != "auto")
        };
        let added = add.into_iter().zip(adds.iter().map(format_of)).collect();
        Ok(Sources { added, domains: domain, connect, ro, allow_path })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Sources {
    fn augment_args(command: Command) -> Command {
        Flags::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Flags::augment_args_for_update(command)
    }
}

/// A disk that the user named.
pub(super) struct DiskArg {
    /// What the guest calls it.
    name: String,
    place: Place,
    format: Option<String>,
}

/// Where it is.
pub(super) enum Place {
    /// An image, a device, or `FILE#DISK`.
    File(PathBuf),
    /// An export of a server.
    Nbd(Uri),
}

impl DiskArg {
    pub(super) fn new(name: String, place: Place, format: Option<String>) -> Self {
        DiskArg { name, place, format }
    }
}

impl Place {
    /// What `-a` named.
    fn parse(text: &OsStr) -> Result<Self, Failure> {
        match text.to_str().and_then(|text| Some((text, text.split_once("://")?.0))) {
            // A file may have any name.
            Some((text, scheme)) if !Path::new(text).exists() && scheme.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'+') => {
                match scheme {
                    "file" => Ok(Place::File(text["file://".len()..].into())),
                    _ => Ok(Place::Nbd(Uri::parse(text)?)),
                }
            }
            _ => Ok(Place::File(text.into())),
        }
    }
}

/// A guest's disks, and what it is called.
pub(in crate::virt) struct Named {
    /// The domain's name, or the first file's with a `+` for each other disk.
    pub name: String,
    /// The domain's UUID.
    pub uuid: Option<String>,
    disks: Vec<DiskArg>,
}

impl Named {
    /// The files that the disks are in; `None` for what is in none.
    pub(super) fn files(&self) -> impl Iterator<Item = Option<PathBuf>> {
        self.disks.iter().map(|disk| match &disk.place {
            Place::File(path) => Some(match formats().locate(path) {
                Located::File(path) | Located::Disk(path, _) => path,
            }),
            Place::Nbd(_) => None,
        })
    }
}

impl Sources {
    /// Only reads, as with `--ro`: opens images even while others write them.
    pub(super) fn share(&mut self) {
        self.ro = true;
    }

    /// Other disks, named in the same way; the last format is theirs, too.
    pub(super) fn instead(&self, add: Vec<OsString>, domains: Vec<OsString>) -> Self {
        let format = self.added.last().and_then(|(_, format)| format.clone());
        let added = add.into_iter().map(|text| (text, format.clone())).collect();
        Sources { added, domains, connect: self.connect.clone(), ro: self.ro, allow_path: self.allow_path.clone() }
    }

    /// One other disk alone, found in the same way.
    pub(in crate::virt) fn with_disk(&self, disk: OsString, format: Option<String>) -> Self {
        Sources { added: vec![(disk, format)], domains: Vec::new(), connect: None, ro: self.ro, allow_path: self.allow_path.clone() }
    }

    /// Whether nothing is named.
    pub(in crate::virt) fn is_empty(&self) -> bool {
        self.added.is_empty() && self.domains.is_empty()
    }

    /// The guest's disks, opened for reading.
    pub(in crate::virt) fn disks(&self) -> Result<Vec<GuestDisk>, Failure> {
        self.open(&self.guest()?)
    }

    /// The same of one of [`guests`](Sources::guests).
    pub(in crate::virt) fn open(&self, guest: &Named) -> Result<Vec<GuestDisk>, Failure> {
        let open = |disk: &DiskArg| {
            let image: Arc<dyn Image> = match &disk.place {
                Place::Nbd(server) => Arc::new(server.connect(disk.format.as_deref())?),
                Place::File(path) => formats().open(path, &self.options(&self.gate(path), disk))?,
            };
            Ok(GuestDisk { name: disk.name.clone(), image })
        };
        guest.disks.iter().map(open).collect()
    }

    /// The guest's disks, opened for writing, too: as one change.
    pub(in crate::virt) fn disks_mut(&self, undo: &Undo) -> Result<Vec<GuestDiskMut>, Failure> {
        self.put_back()?;
        let open = |disk: &DiskArg| {
            let image: Arc<dyn ImageMut> = match &disk.place {
                Place::Nbd(server) => Arc::new(server.connect_writable(disk.format.as_deref())?),
                Place::File(path) => formats().open_mut(path, &self.options(&self.gate(path), disk).undo(undo))?,
            };
            Ok(GuestDiskMut { name: disk.name.clone(), image })
        };
        let disks = self.guest()?.disks.iter().map(open).collect::<Result<_, Failure>>()?;
        undo.keep_so_far()?;
        Ok(disks)
    }

    /// Puts disks back that a change left half done, for programs that change them again.
    pub(in crate::virt) fn put_back(&self) -> Result<(), Failure> {
        for file in self.guest()?.files().flatten() {
            if undo::recover(&file)? {
                eprintln!("warning: {}: a change to it had been cut short; it was made what it was before that", file.display());
            }
        }
        Ok(())
    }

    /// What a program needs that only reads these guests.
    pub(super) fn confinement<'a>(&self, guests: impl IntoIterator<Item = &'a Named>) -> Confinement {
        let files: Vec<Option<PathBuf>> = guests.into_iter().flat_map(Named::files).collect();
        let network = files.contains(&None);
        let folders = self.allow_path.iter().map(|folder| folder.join("."));
        Confinement::new(files.into_iter().flatten().chain(folders), network)
    }

    fn options<'a>(&self, gate: &'a TreeGate, disk: &'a DiskArg) -> OpenOptions<'a> {
        let options = OpenOptions::new(gate).format(disk.format.as_deref());
        if self.ro { options.force_share(true) } else { options.exclusive() }
    }

    /// Whether nothing may be changed.
    pub(in crate::virt) fn only_reads(&self) -> bool {
        self.ro
    }

    fn gate(&self, path: &Path) -> TreeGate {
        TreeGate::new(path, self.allow_path.iter().cloned())
    }

    /// The one guest that is named.
    pub(in crate::virt) fn guest(&self) -> Result<Named, Failure> {
        let mut guests = self.guests()?;
        match (guests.pop(), guests.is_empty()) {
            (Some(guest), true) => Ok(guest),
            _ => Err(Failure::new("several guests are named").hint("name one guest, by -d or by its disks with -a")),
        }
    }

    /// The guests that are named: the disks of all `-a` are one's, each `-d` is another's.
    pub(in crate::virt) fn guests(&self) -> Result<Vec<Named>, Failure> {
        let mut guests = Vec::new();
        if !self.added.is_empty() {
            guests.push(self.added()?);
        }
        for domain in &self.domains {
            let Domain { name, uuid, disks } = Domain::find(domain, self.connect.as_deref())?;
            guests.push(Named { name, uuid, disks });
        }
        if guests.is_empty() {
            return Err(Failure::new("no disk was named").hint("add the guest's disk images with -a FILE, or a libvirt domain with -d"));
        }
        Ok(guests)
    }

    fn added(&self) -> Result<Named, Failure> {
        let mut disks = Vec::new();
        for (text, format) in &self.added {
            for place in all_disks(Place::parse(text)?)? {
                disks.push(DiskArg::new(format!("sd{}", letters(disks.len())), place, format.clone()));
            }
        }
        let first = self.added.first().map(|(text, _)| Path::new(text).file_name().unwrap_or(text).to_string_lossy().into_owned());
        let name = first.unwrap_or_default() + &"+".repeat(disks.len().saturating_sub(1));
        Ok(Named { name, uuid: None, disks })
    }
}

/// The disks of a container that is named as a whole; else the one disk.
fn all_disks(place: Place) -> Result<Vec<Place>, Failure> {
    let Place::File(path) = &place else { return Ok(vec![place]) };
    let formats = formats();
    let Located::File(file) = formats.locate(path) else { return Ok(vec![place]) };
    let Some(container) = formats.container(&file)? else { return Ok(vec![place]) };
    let names = container.open(&file)?.disks();
    if names.is_empty() {
        return Err(Failure::new(format!("{}: there is no disk in it", file.display())));
    }
    let named = |disk: imgcore::formats::NamedDisk| {
        let mut path = file.clone().into_os_string();
        path.push(format!("#{}", disk.name));
        Place::File(path.into())
    };
    Ok(names.into_iter().map(named).collect())
}
