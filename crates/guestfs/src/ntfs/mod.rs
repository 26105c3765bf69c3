//! NTFS, read only: compressed and sparse files, attribute lists, links. Encrypted files, those that Windows compressed
//! for itself (WOF) or moved elsewhere, and volumes whose log is to be replayed are left to the appliance.

mod ea;
mod index;
mod lznt1;
mod record;
mod reparse;
mod stream;

use std::ops::Range;
use std::sync::Arc;

use imgcore::Image;

use self::record::{ATTRIBUTE_LIST, Body, DATA, FILE_NAME, REPARSE_POINT, Record, STANDARD_INFORMATION};
use self::stream::{Clusters, Stream};
use crate::bytes::{cut, le16, le32, le64};
use crate::directory::{Directories, Directory};
use crate::reader::{FsReader, fill, first_data};
use crate::window::Cache;
use crate::{DirEntry, Error, FileType, Result, Stat, StatFs, Time, Window};

const MFT: u64 = 0;
const LOG_FILE: u64 = 2;
const ROOT: u64 = 5;
const VOLUME_BITMAP: u64 = 6;

/// Units of compressed files that are kept, in bytes.
const UNPACKED: usize = 4 << 20;
/// An attribute list is no larger, as Windows has it.
const LIST_LIMIT: u64 = 256 << 10;
/// Data of a reparse point.
const REPARSE_LIMIT: u64 = 16 << 10;
/// Read at once when clusters are counted.
const COUNT_PIECE: usize = 64 << 10;
/// Seconds from 1601 to 1970.
const EPOCH: i64 = 11_644_473_600;
const ATTRIBUTE_READ_ONLY: u32 = 0x1;
const NAMESPACE_DOS: u8 = 2;

/// An open filesystem.
pub(crate) struct Ntfs {
    window: Window,
    cluster_size: u64,
    clusters: u64,
    record_size: usize,
    mft: Stream,
    directories: Directories,
    units: Cache<(u64, u64)>,
}

/// UTF-16 as it is stored.
fn text(bytes: &[u8]) -> String {
    let units = bytes.chunks_exact(2).map(|c| u16::from_le_bytes([c[0], c[1]]));
    char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

/// Opens the filesystem in `len` bytes of an image from byte `start`.
pub(crate) fn open(image: Arc<dyn Image>, start: u64, len: u64) -> Result<Arc<dyn FsReader>> {
    let window = Window::new(image, start, len, "NTFS");
    let boot = window.bytes(0, 512)?;
    let bad = |what: String| window.corrupt(format!("boot sector: {what}"));
    let sector = u64::from(le16(&boot, 11));
    // Above 128 it is a power of two, negated.
    let per_cluster = match boot[13] {
        few @ 0..=0x80 => u64::from(few),
        log => 1u64 << (0u8.wrapping_sub(log)).min(31),
    };
    let cluster_size = sector * per_cluster;
    if !sector.is_power_of_two() || !(512..=4096).contains(&sector) || !cluster_size.is_power_of_two() || cluster_size > 2 << 20 {
        return Err(bad(format!("sectors of {sector} bytes, {per_cluster} in a cluster")));
    }
    let record_size = match boot[64].cast_signed() {
        clusters @ 1.. => u64::from(clusters.cast_unsigned()) * cluster_size,
        log => 1u64 << log.unsigned_abs().min(31),
    };
    if !record_size.is_power_of_two() || !(512..=65536).contains(&record_size) {
        return Err(bad(format!("records of {record_size} bytes")));
    }
    let place = le64(&boot, 48).checked_mul(cluster_size).ok_or_else(|| bad("the table of files lies behind the volume".into()))?;
    let first = Record::parse(MFT, &window.bytes(place, record_size as usize)?, &window)?;
    let mut fs = Ntfs {
        clusters: le64(&boot, 40) / per_cluster.max(1),
        cluster_size,
        record_size: record_size as usize,
        mft: Stream::Resident(Vec::new()),
        directories: Directories::default(),
        units: Cache::new(UNPACKED),
        window,
    };
    // What the first record has of the table leads to the rest of it.
    fs.mft = fs.own_stream(&first, DATA, b"")?.ok_or_else(|| fs.window.corrupt("the table of files has no content".into()))?;
    if first.attributes.iter().any(|a| a.kind == ATTRIBUTE_LIST) {
        fs.mft = fs.stream(&first, DATA, b"")?.ok_or_else(|| fs.window.corrupt("the table of files has no content".into()))?;
    }
    if !fs.log_is_clean()? {
        return Err(Error::Unsupported { filesystem: "NTFS", what: "it was not unmounted, and its log is to be replayed".into() });
    }
    Ok(Arc::new(fs))
}

impl Ntfs {
    fn record(&self, number: u64) -> Result<Record> {
        let (size, missing) = (self.record_size as u64, || self.window.corrupt(format!("there is no record {number}")));
        let offset = number.checked_mul(size).ok_or_else(missing)?;
        match self.mft.place(self.cluster_size, offset, size) {
            Some(place) => Record::parse(number, &self.window.cached(place, self.record_size)?, &self.window),
            None => {
                let mut raw = vec![0; self.record_size];
                let n = fill(offset, &mut raw, |at, rest| self.mft.piece(self, MFT, at, rest))?;
                if n < raw.len() { Err(missing()) } else { Record::parse(number, &raw, &self.window) }
            }
        }
    }

    /// An attribute's content, as far as the record itself has it.
    fn own_stream(&self, record: &Record, kind: u32, name: &[u8]) -> Result<Option<Stream>> {
        let mut clusters: Option<Clusters> = None;
        for attribute in record.attributes.iter().filter(|a| a.kind == kind && a.name == name) {
            match &attribute.body {
                Body::Resident(value) => return Ok(Some(Stream::Resident(value.clone()))),
                Body::NonResident { .. } => self.add(&mut clusters, attribute)?,
            }
        }
        Ok(clusters.map(Stream::Clusters))
    }

    fn add(&self, clusters: &mut Option<Clusters>, attribute: &record::Attribute) -> Result<()> {
        let Body::NonResident { first_vcn, unit_log, size, initialized, total, ref runs, .. } = attribute.body else { return Ok(()) };
        let clusters = clusters.get_or_insert_with(|| {
            // Only the first part tells the sizes.
            Clusters { size, initialized: initialized.min(size), total, flags: attribute.flags, unit_log, ..Clusters::default() }
        });
        clusters.add(first_vcn, runs, &self.window)
    }

    /// An attribute's content, wherever the parts of it are.
    fn stream(&self, record: &Record, kind: u32, name: &[u8]) -> Result<Option<Stream>> {
        let Some(list) = self.own_stream(record, ATTRIBUTE_LIST, b"")? else { return self.own_stream(record, kind, name) };
        let list = self.all(record, &list, LIST_LIMIT)?;
        let bad = |what: &str| self.window.corrupt(format!("record {}: its list of attributes {what}", record.number));
        let mut clusters = None;
        let mut rest = list.as_slice();
        while rest.len() >= 26 {
            let len = usize::from(le16(rest, 4));
            let entry = rest.get(..len).filter(|_| len >= 26).ok_or_else(|| bad("is cut"))?;
            rest = &rest[len..];
            let entry_name = cut(entry, usize::from(entry[7]), usize::from(entry[6]) * 2);
            if le32(entry, 0) != kind || entry_name != name {
                continue;
            }
            let (number, id) = (le64(entry, 16) & 0xffff_ffff_ffff, le16(entry, 24));
            let other = if number == record.number { None } else { Some(self.record(number)?) };
            let attributes = &other.as_ref().unwrap_or(record).attributes;
            let attribute = attributes.iter().find(|a| a.kind == kind && a.id == id && a.name == name);
            let attribute = attribute.ok_or_else(|| bad("names one that is not there"))?;
            match &attribute.body {
                Body::Resident(value) => return Ok(Some(Stream::Resident(value.clone()))),
                Body::NonResident { .. } => self.add(&mut clusters, attribute)?,
            }
        }
        Ok(clusters.map(Stream::Clusters))
    }

    /// All of a stream that must not be larger than `limit`.
    fn all(&self, record: &Record, stream: &Stream, limit: u64) -> Result<Vec<u8>> {
        if stream.size() > limit {
            return Err(self.window.corrupt(format!("record {}: an attribute of {} bytes", record.number, stream.size())));
        }
        let mut all = vec![0; stream.size() as usize];
        fill(0, &mut all, |at, rest| stream.piece(self, record.number, at, rest))?;
        Ok(all)
    }

    fn content(&self, record: &Record, kind: u32, name: &[u8], limit: u64) -> Result<Option<Vec<u8>>> {
        self.stream(record, kind, name)?.map(|stream| self.all(record, &stream, limit)).transpose()
    }

    /// The data of a reparse point, if the file is one.
    fn reparse(&self, record: &Record) -> Result<Option<Vec<u8>>> {
        self.content(record, REPARSE_POINT, b"", REPARSE_LIMIT)
    }

    /// Extended attributes.
    fn extended(&self, record: &Record) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        Ok(self.content(record, ea::EA, b"", ea::LIMIT)?.map_or(Vec::new(), |bytes| ea::parse(&bytes)))
    }

    /// Whether Windows wrote its log out, or somebody emptied it.
    fn log_is_clean(&self) -> Result<bool> {
        const NO_CLIENT: u16 = 0xffff;
        const CLEAN: u16 = 2;
        let Some(log) = self.stream(&self.record(LOG_FILE)?, DATA, b"")? else { return Ok(false) };
        let page = |offset: u64| {
            let mut page = vec![0; 4096];
            fill(offset, &mut page, |at, rest| log.piece(self, LOG_FILE, at, rest)).map(|_| page)
        };
        let first = page(0)?;
        if first.iter().all(|b| *b == 0xff) {
            return Ok(true);
        }
        // Two restart pages, of which the later one counts.
        let pages = [first, page(4096)?];
        let restart = pages.iter().filter(|p| cut(p, 0, 4) == b"RSTR").map(|p| cut(p, usize::from(le16(p, 24)), 64));
        let latest = restart.max_by_key(|area| le64(area, 0));
        Ok(latest.is_some_and(|area| le16(area, 12) == NO_CLIENT || le16(area, 14) & CLEAN != 0))
    }

    fn directory(&self, number: u64) -> Result<Arc<Directory>> {
        self.directories.get(number, || {
            let record = self.record(number)?;
            if !record.is_directory {
                return Err(self.window.corrupt(format!("record {number} is not a directory")));
            }
            index::read(self, &record)
        })
    }
}

/// Units of 100 ns since 1601.
fn time(stored: u64) -> Time {
    let sec = (stored / 10_000_000).cast_signed() - EPOCH;
    Time { sec, nsec: (stored % 10_000_000) as u32 * 100 }
}

impl FsReader for Ntfs {
    fn root(&self) -> u64 {
        ROOT
    }

    fn stat(&self, ino: u64) -> Result<Stat> {
        let record = self.record(ino)?;
        let standard = record.resident(STANDARD_INFORMATION).unwrap_or_default();
        let reparse = self.reparse(&record)?;
        let target = reparse.as_deref().and_then(reparse::target);
        let names = record.attributes.iter().filter(|a| a.kind == FILE_NAME);
        let names = names.filter(|a| !matches!(&a.body, Body::Resident(name) if name.get(65) == Some(&NAMESPACE_DOS)));
        let kind = match &target {
            Some(_) => FileType::Symlink,
            None if record.is_directory => FileType::Directory,
            None => FileType::Regular,
        };
        let data = if kind == FileType::Regular { self.stream(&record, DATA, b"")? } else { None };
        let (size, taken) = match (&target, &data) {
            (Some(target), _) => (target.len() as u64, 0),
            (None, Some(Stream::Clusters(clusters))) => (clusters.size, clusters.total),
            (None, Some(Stream::Resident(value))) => (value.len() as u64, 0),
            (None, None) => (0, 0),
        };
        let posix = ea::posix(&self.extended(&record)?);
        let kind = posix.and_then(|(_, _, mode, _)| FileType::of_mode(mode as u16)).unwrap_or(kind);
        let read_only = le32(standard, 32) & ATTRIBUTE_READ_ONLY != 0 && kind == FileType::Regular;
        let device = matches!(kind, FileType::CharDevice | FileType::BlockDevice);
        Ok(Stat {
            kind,
            // What Linux did not make has no such modes: root's, and runnable for everyone, as the kernel mounts it.
            mode: match posix {
                Some((_, _, mode, _)) => mode & 0o7777,
                None if read_only => 0o555,
                None if ino == ROOT || kind == FileType::Symlink => 0o777,
                None => 0o755,
            },
            uid: posix.map_or(0, |(uid, ..)| uid),
            gid: posix.map_or(0, |(_, gid, ..)| gid),
            size,
            nlink: if record.is_directory { 1 } else { names.count().max(1) as u64 },
            ino,
            dev: 0,
            rdev: posix.filter(|_| device).map_or((0, 0), |(_, _, _, rdev)| (rdev >> 20, rdev & 0xf_ffff)),
            blocks: taken / 512,
            atime: time(le64(standard, 24)),
            mtime: time(le64(standard, 8)),
            ctime: time(le64(standard, 16)),
        })
    }

    fn lookup(&self, dir: u64, name: &[u8]) -> Result<Option<u64>> {
        Ok(self.directory(dir)?.lookup_any_case(name))
    }

    fn read_dir(&self, dir: u64) -> Result<Vec<DirEntry>> {
        Ok(self.directory(dir)?.entries.clone())
    }

    fn readlink(&self, ino: u64) -> Result<Vec<u8>> {
        let data = self.reparse(&self.record(ino)?)?.unwrap_or_default();
        reparse::target(&data).ok_or_else(|| self.window.corrupt(format!("record {ino} is no symbolic link")))
    }

    fn read_at(&self, ino: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let record = self.record(ino)?;
        if let Some(data) = self.reparse(&record)? {
            return Err(Error::Unsupported { filesystem: "NTFS", what: format!("a file with reparse tag {:#010x}", le32(&data, 0)) });
        }
        let Some(stream) = self.stream(&record, DATA, b"")? else { return Ok(0) };
        fill(offset, buf, |at, rest| stream.piece(self, ino, at, rest))
    }

    fn next_data(&self, ino: u64, offset: u64) -> Result<Option<Range<u64>>> {
        let Some(stream) = self.stream(&self.record(ino)?, DATA, b"")? else { return Ok(None) };
        first_data(offset, stream.size(), |at| Ok(stream.run_of(self.cluster_size, at)))
    }

    fn xattrs(&self, ino: u64) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        self.extended(&self.record(ino)?)
    }

    fn statfs(&self) -> Result<StatFs> {
        let bitmap = self.stream(&self.record(VOLUME_BITMAP)?, DATA, b"")?;
        let (mut used, mut at) = (0, 0);
        let mut piece = vec![0; COUNT_PIECE];
        let end = self.clusters.div_ceil(8);
        while let Some(bitmap) = bitmap.as_ref().filter(|b| at < end.min(b.size())) {
            let want = usize::try_from(end - at).unwrap_or(COUNT_PIECE).min(COUNT_PIECE);
            let n = bitmap.piece(self, VOLUME_BITMAP, at, &mut piece[..want])?;
            used += piece[..n].iter().map(|b| u64::from(b.count_ones())).sum::<u64>();
            at += n as u64;
        }
        // Bits behind the last cluster are set.
        let behind = at.saturating_mul(8).saturating_sub(self.clusters);
        let free = self.clusters.saturating_sub(used.saturating_sub(behind));
        Ok(StatFs { block_size: self.cluster_size, blocks: self.clusters, blocks_free: free, blocks_available: free, ..StatFs::default() })
    }
}
