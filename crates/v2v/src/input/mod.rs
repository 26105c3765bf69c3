//! Where guests come from: one file and one line in [`INPUTS`] for each kind of source.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imgcore::{Formats, ImageMut, Progress};

use crate::guest::devices;
use crate::source::Source;
use crate::{Error, Result};

mod autostart;
pub mod disk;
pub mod images;
mod left_out;
pub mod libvirt;
pub mod ovf;
pub mod remote;
mod running;
pub mod sr;
#[cfg(test)]
mod testing;
pub mod value;
pub mod xen_config;
pub mod xen_disk;
pub mod xen_vif;
pub mod xenserver;
pub mod xl;
pub mod xm;
pub mod xva;

/// One kind of source.
pub struct Input {
    /// Its name behind `-i`.
    pub mode: &'static str,
    /// What it reads, in one line.
    pub about: &'static str,
    /// Whether the guest looks like one of this kind.
    pub probe: fn(&Probe<'_>) -> bool,
    /// Reads it.
    pub read: fn(&Request<'_>) -> Result<Opened>,
}

/// All kinds, in the order in which they are probed.
pub const INPUTS: &[Input] = &[xenserver::INPUT, xva::INPUT, ovf::INPUT, libvirt::INPUT, xen_config::INPUT, sr::INPUT, disk::INPUT];

/// What a source can be told by.
#[derive(Clone, Copy, Debug)]
pub struct Probe<'a> {
    /// The file or folder; `-` for standard input.
    pub path: &'a Path,
    /// Whether it is a folder.
    pub is_folder: bool,
    /// Its first 4096 bytes, or less; empty for a folder and for standard input.
    pub head: &'a [u8],
}

impl Probe<'_> {
    /// Whether the guest comes over standard input.
    pub fn is_stdin(&self) -> bool {
        self.path == Path::new("-")
    }
}

/// What a user asked to be read.
#[derive(Clone)]
pub struct Request<'a> {
    /// The file or folder; `-` for standard input.
    pub guest: &'a Path,
    /// The image formats that are known.
    pub formats: &'a Formats,
    /// Folders that images may name files in, beside their own.
    pub allow: &'a [PathBuf],
    /// The name or UUID of the machine that is meant, where there are several.
    pub machine: Option<&'a str>,
    /// Disks that the user names: they replace a configuration's disk of the same name.
    pub disks: &'a [DiskFile],
    /// VDIs of a storage repository, by uuid, with the guest's name of the disk before a `=` where it is known.
    pub vdis: &'a [String],
    /// Where the host's kernel and ramdisk are, when not where the configuration says.
    pub kernel: Option<&'a Path>,
    /// As `kernel`.
    pub ramdisk: Option<&'a Path>,
    /// How a server is reached that the guest lies on.
    pub remote: &'a remote::Remote,
    /// Take a source that is in use.
    pub in_use: bool,
}

impl<'a> Request<'a> {
    /// A source as it is, with nothing said besides.
    pub fn new(guest: &'a Path, formats: &'a Formats) -> Self {
        Request {
            guest,
            formats,
            allow: &[],
            machine: None,
            disks: &[],
            vdis: &[],
            kernel: None,
            ramdisk: None,
            remote: &remote::Remote::DEFAULT,
            in_use: false,
        }
    }
}

/// A disk that the user names: `--disk xvda2=FILE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskFile {
    /// The guest's name of it; the next free one when `None`.
    pub target: Option<String>,
    /// The image.
    pub file: PathBuf,
    /// Its format; probed when `None`.
    pub format: Option<String>,
}

impl DiskFile {
    /// Whether it stands in for the disk of this name; `xvdb` does for a XenServer's position `1` too.
    pub fn is_for(&self, target: &str) -> bool {
        let is_position = target.bytes().all(|b| b.is_ascii_digit());
        self.target.as_deref().is_some_and(|own| own == target || is_position && devices::parse(own) == devices::parse(target))
    }

    /// Reads `FILE`, `xvda2=FILE`, either with `,format=raw` behind it.
    pub fn parse(text: &str) -> Result<Self> {
        let bad =
            |what: &str| Error::Invalid(format!("--disk {text}: {what}; write FILE or xvda2=FILE, and ,format=raw behind it if need be"));
        let (rest, format) = match text.rsplit_once(",format=") {
            Some((_, "")) => return Err(bad("the format is empty")),
            Some((rest, format)) => (rest, Some(format.to_owned())),
            None => (text, None),
        };
        let (target, file) = match rest.split_once('=') {
            Some((target, file)) if xen_disk::is_device(target) => (Some(target.trim_start_matches("/dev/").to_owned()), file),
            Some((target, _)) if !target.contains(['/', '.']) => return Err(bad(&format!("'{target}' is no name of a disk"))),
            _ => (None, rest),
        };
        if file.is_empty() {
            return Err(bad("the file is missing"));
        }
        Ok(DiskFile { target, file: file.into(), format })
    }
}

/// A source that was read.
pub struct Opened {
    /// The guest.
    pub source: Source,
    /// Where its disks come from, when they can be read only once, in order. Its disks then have no image yet.
    pub stream: Option<Box<dyn DiskStream>>,
    /// Whether all of it is as it was exported, where the source has checksums of it: for those who go on to copy it.
    pub verify: Option<Verify>,
}

/// Reads a source to its end and checks it.
pub type Verify = Box<dyn FnOnce(&dyn Progress) -> Result<()> + Send>;

impl From<Source> for Opened {
    fn from(source: Source) -> Self {
        Opened { source, stream: None, verify: None }
    }
}

/// Disks that arrive one piece after the other and only once.
pub trait DiskStream: Send {
    /// Reads everything to the end and writes it: the disk `source.disks[i]` to `targets[i]`, which is as large as that
    /// disk and reads as zeroes. Progress counts bytes of the disks.
    ///
    /// # Errors
    /// The first damage or truncation that is found; what the targets hold then is unspecified.
    fn receive(self: Box<Self>, targets: &[Arc<dyn ImageMut>], progress: &dyn Progress) -> Result<()>;
}

/// Reads a guest. `mode` is a name of the table, or `auto`.
pub fn read(mode: &str, request: &Request<'_>) -> Result<Opened> {
    if mode != "auto" {
        let Some(input) = INPUTS.iter().find(|i| i.mode == mode) else {
            let known: Vec<_> = INPUTS.iter().map(|i| i.mode).collect();
            return Err(Error::Invalid(format!("-i {mode}: no such input; use auto, {}", known.join(", "))));
        };
        return (input.read)(request);
    }
    let head = head(request.guest)?;
    let probe = Probe { path: request.guest, is_folder: request.guest.is_dir(), head: &head };
    let Some(input) = INPUTS.iter().find(|i| (i.probe)(&probe)) else {
        return Err(Error::Invalid(format!(
            "{}: cannot tell what this is: say it with -i ({})",
            request.guest.display(),
            INPUTS.iter().map(|i| i.mode).collect::<Vec<_>>().join(", ")
        )));
    };
    (input.read)(request)
}

fn head(path: &Path) -> Result<Vec<u8>> {
    if path == Path::new("-") || remote::is_url(path) || path.is_dir() {
        return Ok(Vec::new());
    }
    let mut head = Vec::new();
    let fail = |source| Error::Io { file: path.display().to_string(), action: "open", source };
    File::open(path).map_err(fail)?.take(4096).read_to_end(&mut head).map_err(fail)?;
    Ok(head)
}

/// A configuration file larger than this is none.
const CONFIG_LIMIT: u64 = 1 << 20;

/// Reads a configuration file, in whatever encoding its comments are.
fn read_config(path: &Path) -> Result<String> {
    let name = path.display().to_string();
    let mut bytes = Vec::new();
    let fail = |source| Error::Io { file: name.clone(), action: "read", source };
    File::open(path).map_err(fail)?.take(CONFIG_LIMIT + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > CONFIG_LIMIT {
        return Err(Error::Invalid(format!("{name}: larger than 1 MiB: this is no configuration of a guest")));
    }
    Ok(match String::from_utf8(bytes) {
        Ok(text) => text,
        // Every byte is a letter in Latin-1.
        Err(e) => e.into_bytes().into_iter().map(char::from).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_on_the_command_line() {
        let disk = |target: Option<&str>, file: &str, format: Option<&str>| DiskFile {
            target: target.map(Into::into),
            file: file.into(),
            format: format.map(Into::into),
        };
        for (text, expected) in [
            ("disk.img", disk(None, "disk.img", None)),
            ("xvda2=/vm/disk.img", disk(Some("xvda2"), "/vm/disk.img", None)),
            ("/dev/sda1=x,format=raw", disk(Some("sda1"), "x", Some("raw"))),
            ("/vm/a=b.img", disk(None, "/vm/a=b.img", None)),
            ("xvda=a=b,c", disk(Some("xvda"), "a=b,c", None)),
        ] {
            assert_eq!(DiskFile::parse(text).unwrap(), expected, "{text}");
        }
        for text in ["", "xvda2=", "xvda2=x,format=", "root=x"] {
            assert!(DiskFile::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_disk_stands_in_for_one_of_its_name_or_position() {
        let own = DiskFile::parse("xvdb=x").unwrap();
        assert!(own.is_for("xvdb") && own.is_for("1"));
        assert!(["0", "xvdb1", "sdb", ""].iter().all(|other| !own.is_for(other)));
        assert!(!DiskFile::parse("xvdb1=x").unwrap().is_for("1"));
    }

    #[test]
    fn every_file_has_a_module() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/input");
        let this = include_str!("mod.rs");
        for entry in std::fs::read_dir(folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap().replace(".rs", "");
            assert!(name == "mod" || this.contains(&format!("mod {name};\n")), "{name} is not part of the crate");
        }
        for mode in ["xenserver", "xva", "ovf", "libvirtxml", "xlcfg", "sr", "disk"] {
            assert_eq!(INPUTS.iter().filter(|i| i.mode == mode).count(), 1, "{mode}");
        }
    }
}
