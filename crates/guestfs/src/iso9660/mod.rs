//! ISO 9660 with Rock Ridge or Joliet, or plain. Where a disc has both, Rock Ridge counts, as in the kernel.

mod record;
mod rock_ridge;

use std::sync::Arc;

use imgcore::Image;

use self::record::{Record, SECTOR};
use self::rock_ridge::Fields;
use crate::bytes::{cut, le32};
use crate::directory::{Directories, Directory, SIZE_LIMIT, is_name};
use crate::reader::{FsReader, fill};
use crate::{DirEntry, Error, FileType, Result, Stat, StatFs, Window};

/// The first volume descriptor's sector, and how many are looked at.
const FIRST_DESCRIPTOR: u64 = 16;
const DESCRIPTORS: u64 = 64;
/// Parts of one file; each but the last has nearly 4 GiB.
const PARTS: usize = 4096;

/// How names are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Names {
    /// Capital letters with a version.
    Plain,
    /// UTF-16.
    Joliet,
    /// POSIX's, in fields behind so many bytes of each record's system use area.
    RockRidge(usize),
}

/// An open filesystem. A file's number is the place of its first record; a directory's, of its own record in itself.
pub(crate) struct Iso9660 {
    window: Window,
    root: u64,
    blocks: u32,
    names: Names,
    directories: Directories,
}

/// A file with all that its records say.
struct File {
    /// Its parts, which lie one behind the other in the file.
    parts: Vec<Record>,
    fields: Fields,
    kind: FileType,
    size: u64,
}

/// Opens the filesystem in `len` bytes of an image from byte `start`.
pub(crate) fn open(image: Arc<dyn Image>, start: u64, len: u64) -> Result<Arc<dyn FsReader>> {
    let window = Window::new(image, start, len, "ISO 9660");
    let (mut primary, mut joliet) = (None, None);
    for sector in FIRST_DESCRIPTOR..FIRST_DESCRIPTOR + DESCRIPTORS {
        let descriptor = window.bytes(sector * SECTOR, SECTOR as usize)?;
        if cut(&descriptor, 1, 5) != b"CD001" {
            break;
        }
        // The root's record, whose name says nothing.
        let root = u64::from(le32(&descriptor, 156 + 2)) * SECTOR;
        let blocks = le32(&descriptor, 80);
        match descriptor[0] {
            1 if primary.is_none() => primary = Some((root, blocks)),
            2 if matches!(cut(&descriptor, 88, 3), b"%/@" | b"%/C" | b"%/E") => joliet = Some(root),
            255 => break,
            _ => {}
        }
        if le32(&descriptor, 128) & 0xffff != SECTOR as u32 && matches!(descriptor[0], 1 | 2) {
            return Err(Error::Unsupported { filesystem: "ISO 9660", what: "logical blocks that are not of 2048 bytes".into() });
        }
    }
    let (root, blocks) = primary.ok_or_else(|| window.corrupt("there is no primary volume descriptor".into()))?;
    let own = Record::read(&window, root)?.map(|(record, _)| record);
    let (root, names) = match (own.as_ref().and_then(rock_ridge::announced), joliet) {
        (Some(skip), _) => (root, Names::RockRidge(skip)),
        (None, Some(joliet)) => (joliet, Names::Joliet),
        (None, None) => (root, Names::Plain),
    };
    Ok(Arc::new(Iso9660 { window, root, blocks, names, directories: Directories::default() }))
}

impl Iso9660 {
    fn record(&self, place: u64) -> Result<Record> {
        let missing = || self.window.corrupt(format!("there is no record at {place:#x}"));
        Ok(Record::read(&self.window, place)?.ok_or_else(missing)?.0)
    }

    fn fields(&self, record: &Record) -> Result<Fields> {
        match self.names {
            Names::RockRidge(skip) => rock_ridge::fields(&self.window, record, skip),
            _ => Ok(Fields::default()),
        }
    }

    fn file(&self, place: u64) -> Result<File> {
        let mut parts = vec![self.record(place)?];
        let mut at = place;
        while parts.last().is_some_and(|p| p.more) && parts.len() < PARTS {
            at = self.next(at)?;
            parts.push(self.record(at)?);
        }
        let fields = self.fields(&parts[0])?;
        let kind = match fields.posix.and_then(|(mode, ..)| FileType::of_mode(mode as u16)) {
            _ if parts[0].is_directory => FileType::Directory,
            Some(FileType::Directory) | None => FileType::Regular,
            Some(kind) => kind,
        };
        let size = parts.iter().map(|p| u64::from(p.size)).sum();
        Ok(File { parts, fields, kind, size })
    }

    /// Where the next record begins.
    fn next(&self, place: u64) -> Result<u64> {
        let len = Record::read(&self.window, place)?.map_or(0, |(_, len)| len as u64);
        let after = place + len;
        let sector_end = (place / SECTOR + 1) * SECTOR;
        Ok(if len == 0 || after >= sector_end || Record::read(&self.window, after)?.is_none() { sector_end } else { after })
    }

    fn directory(&self, place: u64) -> Result<Arc<Directory>> {
        self.directories.get(place, || self.read_directory(place))
    }

    fn read_directory(&self, place: u64) -> Result<Directory> {
        let own = self.record(place)?;
        let too_large = || Error::Unsupported { filesystem: "ISO 9660", what: format!("a directory of {} bytes", own.size) };
        if !own.is_directory || own.start != place {
            return Err(self.window.corrupt(format!("the record at {place:#x} does not begin a directory")));
        }
        if u64::from(own.size) > SIZE_LIMIT {
            return Err(too_large());
        }
        let end = place + u64::from(own.size);
        let mut directory = Directory::default();
        let (mut at, mut goes_on) = (place, false);
        while at < end {
            let Some((record, len)) = Record::read(&self.window, at)? else {
                at = (at / SECTOR + 1) * SECTOR;
                continue;
            };
            at += len as u64;
            let is_part = std::mem::replace(&mut goes_on, record.more);
            if record.is_dot() || is_part {
                continue;
            }
            let fields = self.fields(&record)?;
            if fields.relocated {
                continue;
            }
            let name = self.name(&record, &fields);
            if !is_name(&name) {
                return Err(self.window.corrupt(format!("{:#x}: a file cannot be called '{}'", record.place, crate::error::show(&name))));
            }
            let (kind, number) = match fields.child {
                Some(sector) => (FileType::Directory, u64::from(sector) * SECTOR),
                None if record.is_directory => (FileType::Directory, record.start),
                None => (self.file(record.place)?.kind, record.place),
            };
            directory.add(&name, kind, number, number);
            if directory.is_full() {
                return Err(too_large());
            }
        }
        Ok(directory)
    }

    fn name(&self, record: &Record, fields: &Fields) -> Vec<u8> {
        match (&fields.name, self.names) {
            (Some(name), _) => name.clone(),
            (None, Names::Joliet) => {
                let units = record.name.chunks_exact(2).map(|c| u16::from_be_bytes([c[0], c[1]]));
                let name: String = char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
                without_version(&name, ";1").replace('/', "_").into_bytes()
            }
            (None, _) => {
                let name = String::from_utf8_lossy(&record.name).to_ascii_lowercase();
                let name = name.strip_suffix(".;1").unwrap_or_else(|| without_version(&name, ";1"));
                name.replace([';', '/'], ".").into_bytes()
            }
        }
    }
}

/// A name without its version and the dot of an empty extension.
fn without_version<'a>(name: &'a str, version: &str) -> &'a str {
    let name = name.strip_suffix(version).unwrap_or(name);
    let trimmed = name.trim_end_matches('.');
    if trimmed.is_empty() { name } else { trimmed }
}

impl FsReader for Iso9660 {
    fn root(&self) -> u64 {
        self.root
    }

    fn stat(&self, ino: u64) -> Result<Stat> {
        let file = self.file(ino)?;
        let time = file.parts[0].time;
        let [atime, mtime, ctime] = file.fields.times.map(|t| t.unwrap_or(time));
        // Discs without owners belong to root, and everyone may read and run all that is on them.
        let (mode, nlink, uid, gid) = file.fields.posix.unwrap_or((0o555, 1, 0, 0));
        let target = file.fields.target.as_ref().map_or(0, Vec::len) as u64;
        let device = matches!(file.kind, FileType::CharDevice | FileType::BlockDevice);
        let size = match file.kind {
            FileType::Symlink => target,
            FileType::Regular | FileType::Directory => file.size,
            _ => 0,
        };
        Ok(Stat {
            kind: file.kind,
            mode: mode & 0o7777,
            uid,
            gid,
            size,
            nlink: nlink.into(),
            ino,
            dev: 0,
            rdev: if device { file.fields.device.unwrap_or_default() } else { (0, 0) },
            blocks: file.size.div_ceil(512),
            atime,
            mtime,
            ctime,
        })
    }

    fn lookup(&self, dir: u64, name: &[u8]) -> Result<Option<u64>> {
        let directory = self.directory(dir)?;
        Ok(if matches!(self.names, Names::RockRidge(_)) { directory.lookup(name) } else { directory.lookup_any_case(name) })
    }

    fn read_dir(&self, dir: u64) -> Result<Vec<DirEntry>> {
        Ok(self.directory(dir)?.entries.clone())
    }

    fn readlink(&self, ino: u64) -> Result<Vec<u8>> {
        let target = self.file(ino)?.fields.target;
        target.ok_or_else(|| self.window.corrupt(format!("the record at {ino:#x} has no link's target")))
    }

    fn read_at(&self, ino: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let file = self.file(ino)?;
        let unsupported = |what: &str| Err(Error::Unsupported { filesystem: "ISO 9660", what: what.into() });
        if file.fields.compressed {
            return unsupported("compressed files (zisofs)");
        }
        if file.parts.iter().any(|p| p.interleaved) {
            return unsupported("interleaved files");
        }
        fill(offset, buf, |at, rest| {
            let mut skip = at;
            for part in &file.parts {
                if skip < u64::from(part.size) {
                    let take = usize::try_from(u64::from(part.size) - skip).unwrap_or(usize::MAX).min(rest.len());
                    self.window.read(part.start + skip, &mut rest[..take])?;
                    return Ok(take);
                }
                skip -= u64::from(part.size);
            }
            Ok(0)
        })
    }

    fn xattrs(&self, _: u64) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        Ok(Vec::new())
    }

    fn statfs(&self) -> Result<StatFs> {
        Ok(StatFs { block_size: SECTOR, blocks: self.blocks.into(), ..StatFs::default() })
    }
}
