//! Reads tar archives: V7, ustar, GNU's and pax, with what they say of long names, attributes and sparse files.
//!
//! Whoever wrote the archive is not trusted: names that lead out of the target are errors, and memory is bounded.

use std::io::{self, Read};
use std::ops::Range;

use guestfs::{Attributes, FileType, Node, Time, Unpack, What, Xattrs};
use tar::{EntryType, GnuExtSparseHeader, Header};

use super::{BLOCK, XATTR, padding};
use crate::common::Failure;

/// The longest name or list of records that is read.
const EXTENSION: u64 = 4 << 20;
/// Runs of data that a sparse file may have.
const RUNS: usize = 1 << 20;

/// An archive being read.
pub(in super::super) struct Reader<'i> {
    input: &'i mut dyn Read,
    /// Data of the current member that was not read yet.
    left: u64,
    /// Zeroes behind it.
    padding: usize,
    /// The current member's runs of data, if it is sparse.
    runs: Option<Vec<Range<u64>>>,
    /// Its size with all holes.
    size: u64,
    /// Whether a name began with a slash that was taken off.
    pub(in super::super) absolute: bool,
}

/// What stands before a member and changes what its header says.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<Time>,
    atime: Option<Time>,
    xattrs: Xattrs,
    sparse: Sparse,
}

/// What pax records say of a sparse file.
#[derive(Default)]
struct Sparse {
    major: Option<u64>,
    name: Option<Vec<u8>>,
    size: Option<u64>,
    numbers: Vec<u64>,
}

impl<'i> Reader<'i> {
    pub(in super::super) fn new(input: &'i mut dyn Read) -> Self {
        Reader { input, left: 0, padding: 0, runs: None, size: 0, absolute: false }
    }

    /// The next member; `None` at the archive's end mark.
    pub(in super::super) fn next(&mut self) -> Result<Option<Node>, Failure> {
        let mut extension = Extension::default();
        loop {
            self.skip()?;
            let Some(header) = self.header()? else { return Ok(None) };
            match header.entry_type() {
                EntryType::XHeader => extension.records(&self.extension(&header)?)?,
                EntryType::GNULongName => extension.path = Some(until_nul(self.extension(&header)?)),
                EntryType::GNULongLink => extension.link = Some(until_nul(self.extension(&header)?)),
                // What is said for all members at once is nothing that these programs use; a volume's label is no file.
                EntryType::XGlobalHeader => drop(self.extension(&header)?),
                kind if kind.as_byte() == b'V' => drop(self.extension(&header)?),
                _ => return self.member(&header, extension).map(Some),
            }
        }
    }

    /// Hands over the current member's content.
    pub(in super::super) fn content(&mut self, sink: &mut dyn Unpack) -> Result<(), Failure> {
        let size = self.size;
        let runs = self.runs.take().unwrap_or_else(|| std::iter::once(0..size).collect());
        let mut buf = vec![0; 256 << 10];
        let mut at = 0;
        for run in runs {
            if run.start > at {
                sink.hole(run.start - at)?;
            }
            at = run.start;
            while at < run.end {
                let want = buf.len().min(usize::try_from(run.end - at).unwrap_or(usize::MAX));
                self.read(&mut buf[..want])?;
                self.left = self.left.saturating_sub(want as u64);
                sink.data(&buf[..want])?;
                at += want as u64;
            }
        }
        if at < size {
            sink.hole(size - at)?;
        }
        Ok(())
    }

    fn read(&mut self, buf: &mut [u8]) -> Result<(), Failure> {
        self.input.read_exact(buf).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => bad("it ends too early: it was cut off"),
            _ => Failure::new(format!("the archive cannot be read: {e}")),
        })
    }

    /// Goes to the next header.
    fn skip(&mut self) -> Result<(), Failure> {
        let mut buf = [0; 16 << 10];
        let mut left = self.left + self.padding as u64;
        while left > 0 {
            let want = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            self.read(&mut buf[..want])?;
            left -= want as u64;
        }
        (self.left, self.padding) = (0, 0);
        Ok(())
    }

    /// The next header; `None` for a block of zeroes, which is the end.
    fn header(&mut self) -> Result<Option<Header>, Failure> {
        let mut header = Header::new_old();
        self.read(header.as_mut_bytes())?;
        let bytes = header.as_bytes();
        if bytes.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let sum = bytes.iter().enumerate().map(|(at, b)| if (148..156).contains(&at) { 32 } else { u32::from(*b) }).sum::<u32>();
        match header.cksum() {
            Ok(said) if said == sum => Ok(Some(header)),
            _ => Err(bad("a header's checksum is wrong; is it compressed?")),
        }
    }

    fn extension(&mut self, header: &Header) -> Result<Vec<u8>, Failure> {
        let size = header.entry_size().map_err(|e| bad(&e.to_string()))?;
        if size > EXTENSION {
            return Err(bad("a name or a list of attributes is too long"));
        }
        let mut content = vec![0; size as usize];
        self.read(&mut content)?;
        self.padding = padding(size);
        Ok(content)
    }

    fn member(&mut self, header: &Header, extension: Extension) -> Result<Node, Failure> {
        let Extension { path, link, size, uid, gid, mtime, atime, xattrs, sparse } = extension;
        let field = |n: io::Result<u64>| n.map_err(|e| bad(&e.to_string()));
        let path = sparse.name.clone().or(path).unwrap_or_else(|| header.path_bytes().into_owned());
        let stored = size.map_or_else(|| field(header.entry_size()), Ok)?;
        let mut what = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => What::File,
            EntryType::Directory => What::Directory,
            EntryType::Symlink | EntryType::Link => {
                let target = link.or_else(|| header.link_name_bytes().map(|l| l.into_owned())).unwrap_or_default();
                match header.entry_type() {
                    EntryType::Symlink => What::Symlink(target),
                    _ => What::Link(self.below(&target)?),
                }
            }
            EntryType::Fifo => What::Special(FileType::Fifo, (0, 0)),
            kind @ (EntryType::Char | EntryType::Block) => {
                let number = |n: io::Result<Option<u32>>| n.map(Option::unwrap_or_default).map_err(|e| bad(&e.to_string()));
                let kind = if kind == EntryType::Char { FileType::CharDevice } else { FileType::BlockDevice };
                What::Special(kind, (number(header.device_major())?, number(header.device_minor())?))
            }
            other => return Err(bad(&format!("'{}' is of a kind that is not known: {:?}", guestfs::show(&path), other.as_byte() as char))),
        };
        // As archives were before there were directories in them.
        if what == What::File && path.ends_with(b"/") {
            what = What::Directory;
        }
        // Only files have content, whatever the header of another says.
        let stored = if matches!(what, What::File) { stored } else { 0 };
        (self.left, self.padding, self.size, self.runs) = (stored, padding(stored), stored, None);
        if what == What::File {
            self.sparse(header, sparse)?;
        }
        let id = |said: Option<u64>, field: io::Result<u64>| {
            said.map_or(field, Ok).ok().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| bad("an owner's number is too large"))
        };
        let mode = header.mode().map_err(|e| bad(&e.to_string()))? & 0o7777;
        let attributes = Attributes { mode, uid: id(uid, header.uid())?, gid: id(gid, header.gid())? };
        let mtime = match mtime {
            Some(mtime) => mtime,
            None => Time { sec: i64::try_from(field(header.mtime())?).map_err(|_| bad("a time is too far away"))?, nsec: 0 },
        };
        let node = Node { path: self.below(&path)?, what, attributes, times: (atime.unwrap_or(mtime), mtime), xattrs };
        Ok(node)
    }

    /// A member's path without what does not belong to it: slashes in front and `.`.
    fn below(&mut self, path: &[u8]) -> Result<Vec<u8>, Failure> {
        self.absolute |= path.starts_with(b"/");
        let words: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|w| !w.is_empty() && *w != b".").collect();
        if words.contains(&&b".."[..]) {
            return Err(bad(&format!("'{}' leads out of the folder that it is unpacked in", guestfs::show(path))));
        }
        Ok(words.join(&b'/'))
    }

    /// Learns where a sparse file's data belongs, in any of GNU tar's four ways.
    fn sparse(&mut self, header: &Header, said: Sparse) -> Result<(), Failure> {
        let (numbers, size) = if header.entry_type() == EntryType::GNUSparse {
            let gnu = header.as_gnu().ok_or_else(|| bad("a sparse file in a header of another kind"))?;
            let mut numbers = Vec::new();
            let mut add = |parts: &[tar::GnuSparseHeader]| {
                for part in parts.iter().filter(|part| !part.is_empty()) {
                    numbers.push(part.offset()?);
                    numbers.push(part.length()?);
                }
                io::Result::Ok(numbers.len())
            };
            add(&gnu.sparse)?;
            let mut more = gnu.is_extended();
            while more {
                let mut next = GnuExtSparseHeader::new();
                self.read(next.as_mut_bytes())?;
                more = next.is_extended();
                if add(next.sparse())? > 2 * RUNS {
                    return Err(bad("too many runs"));
                }
            }
            (numbers, gnu.real_size()?)
        } else if said.major == Some(1) {
            (self.map()?, said.size.ok_or_else(|| bad("a sparse file without its size"))?)
        } else if let (Some(size), false) = (said.size, said.numbers.is_empty()) {
            (said.numbers, size)
        } else {
            return Ok(());
        };
        let mut runs: Vec<Range<u64>> = Vec::new();
        let mut stored = 0u64;
        for pair in numbers.chunks(2) {
            let [start, len] = *pair else { return Err(bad("a sparse file's map lacks a number")) };
            let end = start.checked_add(len).filter(|end| *end <= size && runs.last().is_none_or(|last| last.end <= start));
            let end = end.ok_or_else(|| bad("a sparse file's map is out of order"))?;
            stored += len;
            runs.push(start..end);
        }
        if stored != self.left || runs.len() > RUNS {
            return Err(bad("a sparse file's map does not match its data"));
        }
        (self.runs, self.size) = (Some(runs), size);
        Ok(())
    }

    /// The map at the start of a sparse file's data: numbers in lines, to the end of a block.
    fn map(&mut self) -> Result<Vec<u64>, Failure> {
        let mut numbers = Vec::new();
        let mut number: Option<u64> = None;
        let mut wanted = 1;
        while numbers.len() < wanted {
            let mut block = [0; BLOCK];
            self.left = self.left.checked_sub(BLOCK as u64).ok_or_else(|| bad("a sparse file without its map"))?;
            self.read(&mut block)?;
            for byte in block {
                match byte {
                    b'0'..=b'9' => {
                        let more = number.unwrap_or(0).checked_mul(10).and_then(|n| n.checked_add(u64::from(byte - b'0')));
                        number = Some(more.ok_or_else(|| bad("a number in a sparse file's map is too large"))?);
                    }
                    b'\n' if numbers.len() < wanted => {
                        numbers.push(number.take().ok_or_else(|| bad("a sparse file's map has an empty line"))?);
                        if numbers.len() == 1 {
                            let runs = numbers[0];
                            wanted = usize::try_from(runs).ok().filter(|n| *n <= RUNS).ok_or_else(|| bad("too many runs"))? * 2 + 1;
                        }
                    }
                    0 | b'\n' if numbers.len() >= wanted => break,
                    _ => return Err(bad("a sparse file's map is no list of numbers")),
                }
            }
        }
        Ok(numbers.split_off(1))
    }
}

impl Extension {
    /// Takes the records of a pax header in.
    fn records(&mut self, mut content: &[u8]) -> Result<(), Failure> {
        let wrong = || bad("a record of a pax header is damaged");
        while !content.is_empty() {
            let blank = content.iter().position(|b| *b == b' ').ok_or_else(wrong)?;
            let len = number(&content[..blank]).and_then(|n| usize::try_from(n).ok()).ok_or_else(wrong)?;
            let record = content.get(blank + 1..len).and_then(|r| r.strip_suffix(b"\n")).ok_or_else(wrong)?;
            content = &content[len..];
            let equals = record.iter().position(|b| *b == b'=').ok_or_else(wrong)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            let Ok(key) = std::str::from_utf8(key) else { continue };
            match key {
                "path" => self.path = Some(value.to_vec()),
                "linkpath" => self.link = Some(value.to_vec()),
                "size" => self.size = Some(number(value).ok_or_else(wrong)?),
                "uid" => self.uid = Some(number(value).ok_or_else(wrong)?),
                "gid" => self.gid = Some(number(value).ok_or_else(wrong)?),
                "mtime" => self.mtime = Some(time(value).ok_or_else(wrong)?),
                "atime" => self.atime = Some(time(value).ok_or_else(wrong)?),
                // GNU tar's own place for labels.
                "RHT.security.selinux" => self.xattrs.push((b"security.selinux".to_vec(), value.to_vec())),
                "GNU.sparse.major" => self.sparse.major = number(value),
                "GNU.sparse.name" => self.sparse.name = Some(value.to_vec()),
                "GNU.sparse.size" | "GNU.sparse.realsize" => self.sparse.size = Some(number(value).ok_or_else(wrong)?),
                "GNU.sparse.offset" | "GNU.sparse.numbytes" => self.sparse.numbers.push(number(value).ok_or_else(wrong)?),
                "GNU.sparse.map" => {
                    let numbers = value.split(|b| *b == b',').map(number).collect::<Option<Vec<u64>>>();
                    self.sparse.numbers = numbers.ok_or_else(wrong)?;
                }
                _ => {
                    if let Some(name) = key.strip_prefix(XATTR) {
                        self.xattrs.push((name.into(), value.to_vec()));
                    }
                }
            }
        }
        Ok(())
    }
}

fn bad(what: &str) -> Failure {
    Failure::new(format!("the archive is not as it should be: {what}"))
}

fn until_nul(mut name: Vec<u8>) -> Vec<u8> {
    name.truncate(name.iter().position(|b| *b == 0).unwrap_or(name.len()));
    name
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds with a fraction.
fn time(text: &[u8]) -> Option<Time> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let sec: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nsec: u32 = digits.parse().ok()?;
    // The fraction goes away from zero, and nanoseconds count up.
    Some(if whole.starts_with('-') && nsec > 0 {
        Time { sec: sec.checked_sub(1)?, nsec: 1_000_000_000 - nsec }
    } else {
        Time { sec, nsec }
    })
}
