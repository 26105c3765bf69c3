//! Writes a guest's files as a tar archive.

use std::collections::HashMap;
use std::io::Write;
use std::ops::Range;

use guestfs::{FileType, GuestFs, Stat, Time};
use tar::{EntryType, Header};

use super::{BLOCK, XATTR, padding};
use crate::common::Failure;

/// Runs of data that a sparse file's map may list; a file with more is stored whole.
const RUNS: usize = 1 << 20;

/// An archive being written.
pub(in super::super) struct Writer<'o> {
    out: &'o mut dyn Write,
    /// The first name of every file that has several.
    names: HashMap<(u64, u64), Vec<u8>>,
    buf: Vec<u8>,
}

impl<'o> Writer<'o> {
    pub(in super::super) fn new(out: &'o mut dyn Write) -> Self {
        Writer { out, names: HashMap::new(), buf: vec![0; 1 << 20] }
    }

    /// Adds the file `path` of a guest under `name`.
    pub(in super::super) fn add(&mut self, fs: &dyn GuestFs, path: &[u8], name: &[u8], stat: &Stat) -> Result<(), Failure> {
        let mut records = Records::default();
        let mut header = Header::new_ustar();
        header.set_mode(stat.mode & 0o7777);
        header.set_uid(u64::from(stat.uid));
        header.set_gid(u64::from(stat.gid));
        header.set_mtime(u64::try_from(stat.mtime.sec).unwrap_or(0));
        header.set_size(0);
        if stat.mtime.nsec != 0 || stat.mtime.sec < 0 {
            records.add(b"mtime", decimal(stat.mtime).as_bytes());
        }
        for (key, value) in fs.xattrs(path)? {
            // '=' would end the record's key early.
            if !key.contains(&b'=') {
                records.add(&[XATTR.as_bytes(), &key].concat(), &value);
            }
        }
        if stat.kind != FileType::Directory && stat.nlink > 1 {
            if let Some(first) = self.names.get(&(stat.dev, stat.ino)) {
                let first = first.clone();
                set_link(&mut header, &mut records, &first);
                return self.head(&mut header, records, name, EntryType::Link);
            }
            self.names.insert((stat.dev, stat.ino), name.to_vec());
        }
        match stat.kind {
            FileType::Regular => self.regular(fs, path, name, stat, header, records),
            FileType::Directory => self.head(&mut header, records, &[name, b"/"].concat(), EntryType::Directory),
            FileType::Symlink => {
                set_link(&mut header, &mut records, &fs.readlink(path)?);
                self.head(&mut header, records, name, EntryType::Symlink)
            }
            FileType::Fifo => self.head(&mut header, records, name, EntryType::Fifo),
            FileType::CharDevice | FileType::BlockDevice => {
                header.set_device_major(stat.rdev.0)?;
                header.set_device_minor(stat.rdev.1)?;
                let kind = if stat.kind == FileType::CharDevice { EntryType::Char } else { EntryType::Block };
                self.head(&mut header, records, name, kind)
            }
            FileType::Socket => {
                eprintln!("{}: left out, since an archive has no sockets", guestfs::show(path));
                Ok(())
            }
        }
    }

    /// Ends the archive.
    pub(in super::super) fn finish(self) -> Result<(), Failure> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        Ok(self.out.flush()?)
    }

    fn regular(
        &mut self,
        fs: &dyn GuestFs,
        path: &[u8],
        name: &[u8],
        stat: &Stat,
        mut header: Header,
        mut records: Records,
    ) -> Result<(), Failure> {
        let whole = 0..stat.size;
        let sparse = stat.blocks.saturating_mul(512) < stat.size;
        let runs = if sparse { runs(fs, path, stat.size)? } else { None };
        let Some(runs) = runs.filter(|runs| runs.as_slice() != [whole.clone()]) else {
            header.set_size(stat.size);
            self.head(&mut header, records, name, EntryType::Regular)?;
            self.data(fs, path, whole)?;
            return self.pad(stat.size);
        };
        let map = map(&runs, stat.size);
        let stored = runs.iter().map(|run| run.end - run.start).sum::<u64>();
        for (key, value) in [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", &stat.size.to_string())] {
            records.add(key.as_bytes(), value.as_bytes());
        }
        records.add(b"GNU.sparse.name", name);
        header.set_size(map.len() as u64 + stored);
        // The name that a program sees which does not know of sparse files.
        let (folder, file) = name.iter().rposition(|b| *b == b'/').map_or((&b"."[..], name), |at| (&name[..at], &name[at + 1..]));
        self.head(&mut header, records, &[folder, b"/GNUSparseFile.0/", file].concat(), EntryType::Regular)?;
        self.out.write_all(&map)?;
        runs.into_iter().try_for_each(|run| self.data(fs, path, run))?;
        self.pad(stored)
    }

    /// The header, behind another one with the records that it has no room for.
    fn head(&mut self, header: &mut Header, mut records: Records, name: &[u8], kind: EntryType) -> Result<(), Failure> {
        let fits = |field: &mut [u8], text: &[u8]| match field.get_mut(..text.len()) {
            Some(start) => {
                start.copy_from_slice(text);
                true
            }
            None => false,
        };
        let ustar = header.as_ustar_mut().ok_or_else(|| Failure::new("a header of the wrong kind"))?;
        if !fits(&mut ustar.name, name) {
            records.add(b"path", name);
            fits(&mut ustar.name, name.get(..100).unwrap_or_default());
        }
        header.set_entry_type(kind);
        header.set_cksum();
        if !records.0.is_empty() {
            let mut before = Header::new_ustar();
            before.as_ustar_mut().map(|ustar| fits(&mut ustar.name, b"././@PaxHeader"));
            before.set_mode(0o644);
            before.set_size(records.0.len() as u64);
            before.set_entry_type(EntryType::XHeader);
            before.set_cksum();
            self.out.write_all(before.as_bytes())?;
            self.out.write_all(&records.0)?;
            self.pad(records.0.len() as u64)?;
        }
        Ok(self.out.write_all(header.as_bytes())?)
    }

    fn data(&mut self, fs: &dyn GuestFs, path: &[u8], range: Range<u64>) -> Result<(), Failure> {
        let mut at = range.start;
        while at < range.end {
            let want = self.buf.len().min(usize::try_from(range.end - at).unwrap_or(usize::MAX));
            let n = fs.read_at(path, at, &mut self.buf[..want])?;
            if n == 0 {
                return Err(Failure::new(format!("{}: ends at {at} instead of {}", guestfs::show(path), range.end)));
            }
            self.out.write_all(&self.buf[..n])?;
            at += n as u64;
        }
        Ok(())
    }

    fn pad(&mut self, len: u64) -> Result<(), Failure> {
        Ok(self.out.write_all(&[0; BLOCK][..padding(len)])?)
    }
}

/// The runs of data of a sparse file; `None` if they are too many.
fn runs(fs: &dyn GuestFs, path: &[u8], size: u64) -> Result<Option<Vec<Range<u64>>>, Failure> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    let mut at = 0;
    while let Some(run) = fs.next_data(path, at)?.filter(|run| run.start < size) {
        let run = run.start.max(at)..run.end.min(size);
        if run.is_empty() || runs.len() >= RUNS {
            return Ok(None);
        }
        at = run.end;
        match runs.last_mut() {
            Some(last) if last.end == run.start => last.end = run.end,
            _ => runs.push(run),
        }
    }
    Ok(Some(runs))
}

/// GNU tar's map of a sparse file, version 1.0: numbers in lines, to the end of a block.
fn map(runs: &[Range<u64>], size: u64) -> Vec<u8> {
    // A file that ends with a hole has a last run of no bytes.
    let last = (runs.last().is_none_or(|run| run.end < size)).then_some(size..size);
    let mut map = format!("{}\n", runs.len() + usize::from(last.is_some()));
    for run in runs.iter().chain(&last) {
        map += &format!("{}\n{}\n", run.start, run.end - run.start);
    }
    let mut map = map.into_bytes();
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    map
}

fn set_link(header: &mut Header, records: &mut Records, target: &[u8]) {
    match header.as_ustar_mut().and_then(|ustar| ustar.linkname.get_mut(..target.len())) {
        Some(field) => field.copy_from_slice(target),
        None => records.add(b"linkpath", target),
    }
}

/// Seconds with their fraction.
fn decimal(time: Time) -> String {
    let nanoseconds = i128::from(time.sec) * 1_000_000_000 + i128::from(time.nsec);
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let whole = nanoseconds.unsigned_abs();
    let text = format!("{sign}{}.{:09}", whole / 1_000_000_000, whole % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

/// The records of a pax header: each its own length, a key and a value.
#[derive(Default)]
struct Records(Vec<u8>);

impl Records {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut len = rest + 1;
        while rest + len.to_string().len() != len {
            len = rest + len.to_string().len();
        }
        self.0.extend_from_slice(format!("{len} ").as_bytes());
        self.0.extend_from_slice(key);
        self.0.push(b'=');
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
    }
}
