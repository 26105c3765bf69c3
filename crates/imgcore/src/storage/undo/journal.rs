//! The file beside an image that holds what the image was, for as long as it is being changed.
//!
//! `IMAGE.guestlift-undo`, little endian: a header (magic, whether the change is done, the image's size before it, and, if other files are
//! changed together with it, the journal that decides for all of them; CRC-32C of all but the first two) and records (kind, offset,
//! length, content, CRC-32C). A record is durable before the image is written at its place: of one that was cut off nothing was needed.
//!
//! Whoever changes the image holds the journal (flock); one that nobody holds was left by a program that did not come to its end.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Timespec, Timestamps, UTIME_NOW, flock, futimens};
use rustix::io::Errno;

use crate::{Error, Result, Storage};

const SUFFIX: &str = ".guestlift-undo";
const MAGIC: [u8; 8] = *b"GLundo1\n";
/// Where the header says that the change is done.
const DONE_AT: u64 = MAGIC.len() as u64;
/// What is kept in one record at most.
const PIECE: u64 = 1 << 20;
const MAX_PATH: usize = 4096;
/// Old bytes, bytes that were a hole, the journal of another file of the same change.
const DATA: u8 = 0;
const HOLE: u8 = 1;
const MEMBER: u8 = 2;
/// How often a journal's own time is set while its image is written.
const BEAT: Duration = Duration::from_secs(1);
/// An image that is younger than its journal by more was written by somebody else since.
const SLACK: Duration = Duration::from_secs(60);

/// Where the journal of the image that is called `name` belongs; nowhere if that is not a file.
pub(super) fn place(name: &str) -> Option<PathBuf> {
    let real = Path::new(name).canonicalize().ok()?;
    let with_suffix = |path: PathBuf| {
        let mut path = path.into_os_string();
        path.push(SUFFIX);
        path.into()
    };
    real.metadata().ok()?.is_file().then(|| with_suffix(real))
}

/// What stands beside an image.
pub(super) enum Found {
    /// No journal.
    Nothing,
    /// One that is being written.
    Live,
    /// One of a change that is done, or had not begun.
    Over(Journal),
    /// One of a change that was cut short.
    Cut(Journal),
}

/// Looks for a journal, without changing anything.
pub(super) fn look(path: &Path) -> Result<Found> {
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        file => file.map_err(|e| failed(path, "open", e))?,
    };
    // Where the filesystem has no locks, there is nobody to be seen.
    if flock(&file, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK) {
        return Ok(Found::Live);
    }
    let header = Header::read(&file).map_err(|e| failed(path, "read", e))?;
    let Some(header) = header else { return Ok(Found::Over(Journal::found(path, file, 0, 0))) };
    let decided = match &header.leader {
        None => header.done,
        Some(leader) => File::open(leader).ok().and_then(|f| Header::read(&f).ok()?).is_some_and(|leader| leader.done),
    };
    let journal = Journal::found(path, file, header.size, header.len);
    Ok(if decided { Found::Over(journal) } else { Found::Cut(journal) })
}

struct Header {
    done: bool,
    size: u64,
    leader: Option<PathBuf>,
    /// Its own length.
    len: u64,
}

impl Header {
    fn bytes(size: u64, leader: Option<&Path>) -> Vec<u8> {
        let leader = leader.map_or(&b""[..], |path| path.as_os_str().as_bytes());
        let mut body = size.to_le_bytes().to_vec();
        body.extend((leader.len() as u16).to_le_bytes());
        body.extend(leader);
        let sum = crc32c::crc32c(&body);
        [&MAGIC[..], &[0], &body, &sum.to_le_bytes()].concat()
    }

    /// `None` for one that is not whole.
    fn read(file: &File) -> io::Result<Option<Self>> {
        let mut head = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, 32 + MAX_PATH as u64), &mut head)?;
        let parse = || {
            let (magic, rest) = head.split_at_checked(MAGIC.len())?;
            let (done, body) = rest.split_first()?;
            let (size, rest) = body.split_first_chunk()?;
            let (leader_len, rest) = rest.split_first_chunk()?;
            let (leader, rest) = rest.split_at_checked(u16::from_le_bytes(*leader_len).into())?;
            let sum = u32::from_le_bytes(*rest.first_chunk()?);
            let body_len = size.len() + leader_len.len() + leader.len();
            let whole = magic == MAGIC && crc32c::crc32c(body.get(..body_len)?) == sum;
            whole.then(|| Header {
                done: *done != 0,
                size: u64::from_le_bytes(*size),
                leader: (!leader.is_empty()).then(|| OsStr::from_bytes(leader).into()),
                len: (MAGIC.len() + 1 + body_len + 4) as u64,
            })
        };
        Ok(parse())
    }
}

/// One record.
struct Record<'a> {
    kind: u8,
    offset: u64,
    len: u64,
    content: &'a [u8],
}

/// A journal that is being written, or one that was found.
pub(super) struct Journal {
    file: File,
    path: PathBuf,
    /// The image's size before the change.
    size: u64,
    /// Where the records begin and end.
    records: Range<u64>,
    kept: Kept,
    beat: Instant,
}

impl Journal {
    /// Makes the journal of an image of `size` bytes.
    pub(super) fn begin(path: &Path, size: u64, leader: Option<&Path>) -> Result<Self> {
        if leader.is_some_and(|leader| leader.as_os_str().len() > MAX_PATH) {
            return Err(Error::Invalid(format!("{}: the path is too long", path.display())));
        }
        let create = || {
            let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(path)?;
            let _ = flock(&file, FlockOperation::NonBlockingLockExclusive);
            let header = Header::bytes(size, leader);
            file.write_all_at(&header, 0)?;
            file.sync_data()?;
            sync_folder(path)?;
            Ok((file, header.len() as u64))
        };
        let (file, start) = create().map_err(|e| failed(path, "create", e))?;
        Ok(Journal { file, path: path.into(), size, records: start..start, kept: Kept::default(), beat: Instant::now() })
    }

    fn found(path: &Path, file: File, size: u64, start: u64) -> Self {
        Journal { file, path: path.into(), size, records: start..u64::MAX, kept: Kept::default(), beat: Instant::now() }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps what `image` holds in these ranges, so far as it is not kept already; returns when that is durable.
    pub(super) fn keep(&mut self, image: &dyn Storage, ranges: impl IntoIterator<Item = Range<u64>>) -> Result<()> {
        let before = self.records.end;
        for range in ranges {
            for gap in self.kept.add(range.start..range.end.min(self.size)) {
                self.keep_part(image, gap)?;
            }
        }
        if self.records.end != before {
            self.sync()?;
        }
        if self.beat.elapsed() > BEAT {
            self.beat = Instant::now();
            let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
            futimens(&self.file, &Timestamps { last_access: now, last_modification: now })
                .map_err(|e| failed(&self.path, "touch", e.into()))?;
        }
        Ok(())
    }

    fn keep_part(&mut self, image: &dyn Storage, range: Range<u64>) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            let data = image.next_data(at)?.unwrap_or(range.end..range.end);
            let start = data.start.clamp(at, range.end);
            if start > at {
                self.append(HOLE, at, start - at, &[])?;
            }
            at = start;
            let end = data.end.clamp(at, range.end);
            while at < end {
                let mut old = vec![0; (end - at).min(PIECE) as usize];
                image.read_at(&mut old, at)?;
                self.append(DATA, at, old.len() as u64, &old)?;
                at += old.len() as u64;
            }
        }
        Ok(())
    }

    fn append(&mut self, kind: u8, offset: u64, len: u64, content: &[u8]) -> Result<()> {
        let mut record = [&[kind][..], &offset.to_le_bytes(), &len.to_le_bytes(), content].concat();
        record.extend(crc32c::crc32c(&record).to_le_bytes());
        self.file.write_all_at(&record, self.records.end).map_err(|e| failed(&self.path, "write", e))?;
        self.records.end += record.len() as u64;
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| failed(&self.path, "sync", e))
    }

    /// The change is done, here and in the files of these journals.
    pub(super) fn mark_done(&mut self, members: &[Journal]) -> Result<()> {
        for member in members {
            let name = member.path.as_os_str().as_bytes();
            self.append(MEMBER, 0, name.len() as u64, name)?;
        }
        self.sync()?;
        self.file.write_all_at(&[1], DONE_AT).map_err(|e| failed(&self.path, "write", e))?;
        self.sync()
    }

    /// Removes it, and those of its members before it.
    pub(super) fn remove_with_members(self) -> Result<()> {
        let mut members = Vec::new();
        self.each(&mut |record| {
            if record.kind == MEMBER {
                members.push(PathBuf::from(OsStr::from_bytes(record.content)));
            }
            Ok(())
        })?;
        for member in members {
            // Whose header names this one as its leader.
            let ours = File::open(&member).ok().and_then(|f| Header::read(&f).ok()?).is_some_and(|h| h.leader.as_ref() == Some(&self.path));
            if ours {
                std::fs::remove_file(&member).map_err(|e| failed(&member, "remove", e))?;
            }
        }
        self.remove()
    }

    /// Removes it.
    pub(super) fn remove(self) -> Result<()> {
        std::fs::remove_file(&self.path).and_then(|()| sync_folder(&self.path)).map_err(|e| failed(&self.path, "remove", e))
    }

    /// Makes the image what it was, durably.
    pub(super) fn put_back(&self, image: &dyn Storage) -> Result<()> {
        self.each(&mut |record| match record.kind {
            DATA => image.write_at(record.content, record.offset),
            HOLE => image.zero_at(record.offset, record.len),
            _ => Ok(()),
        })?;
        image.set_size(self.size)?;
        image.sync()
    }

    /// The records up to the first that is not whole.
    fn each(&self, take: &mut dyn FnMut(&Record<'_>) -> Result<()>) -> Result<()> {
        let mut at = self.records.start;
        loop {
            let read = |len: u64, at: u64| {
                let mut bytes = vec![0; len as usize];
                match self.file.read_exact_at(&mut bytes, at) {
                    Ok(()) => Ok(Some(bytes)),
                    Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
                    Err(e) => Err(failed(&self.path, "read", e)),
                }
            };
            let Some(head) = read(17, at)? else { return Ok(()) };
            let (kind, numbers) = head.split_first().unwrap_or((&u8::MAX, &[]));
            let number = |at: usize| numbers.get(at..).and_then(|n| n.first_chunk()).map_or(u64::MAX, |n| u64::from_le_bytes(*n));
            let (offset, len) = (number(0), number(8));
            let content = if *kind == HOLE { 0 } else { len };
            let inside = *kind == MEMBER || offset.checked_add(len).is_some_and(|end| end <= self.size);
            if *kind > MEMBER || content > PIECE || !inside {
                return Ok(());
            }
            let Some(rest) = read(content + 4, at + 17)? else { return Ok(()) };
            let Some((content, sum)) = rest.split_last_chunk() else { return Ok(()) };
            if crc32c::crc32c_append(crc32c::crc32c(&head), content) != u32::from_le_bytes(*sum) {
                return Ok(());
            }
            take(&Record { kind: *kind, offset, len, content })?;
            at += 17 + rest.len() as u64;
        }
    }

    /// Refuses an image that somebody else wrote to since the change was cut short: old bytes would do harm then.
    pub(super) fn check_unchanged(&self, image: &File, name: &str) -> Result<()> {
        let time = |file: &File| file.metadata().and_then(|m| m.modified());
        let (ours, theirs) = (
            time(&self.file).map_err(|e| failed(&self.path, "look at", e))?,
            time(image).map_err(|e| Error::io(name, "look at", None, e))?,
        );
        if theirs.duration_since(ours).is_ok_and(|later| later > SLACK) {
            return Err(Error::Invalid(format!(
                "{name}: a change to it was cut short, and it was written by something else since; it is left as it is. \
                 If that is how it should stay, remove {}",
                self.path.display()
            )));
        }
        Ok(())
    }
}

/// What is in a journal already: starts with their ends.
#[derive(Default)]
struct Kept(BTreeMap<u64, u64>);

impl Kept {
    /// Adds a range; gives those of its parts that were not in it.
    fn add(&mut self, range: Range<u64>) -> Vec<Range<u64>> {
        if range.is_empty() {
            return Vec::new();
        }
        let touching = self.0.range(..=range.end).rev().take_while(|(_, end)| **end >= range.start);
        let touching: Vec<(u64, u64)> = touching.map(|(start, end)| (*start, *end)).collect();
        let (mut gaps, mut at, mut whole) = (Vec::new(), range.start, range.clone());
        for (start, end) in touching.into_iter().rev() {
            if start > at {
                gaps.push(at..start.min(range.end));
            }
            at = at.max(end);
            whole = whole.start.min(start)..whole.end.max(end);
            self.0.remove(&start);
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
        self.0.insert(whole.start, whole.end);
        gaps
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

fn failed(path: &Path, action: &'static str, e: io::Error) -> Error {
    Error::io(&path.display().to_string(), action, None, e)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_kept_once() {
        let mut kept = Kept::default();
        for (range, gaps) in [
            (10..20, &[(10, 20)][..]),
            (40..50, &[(40, 50)]),
            (12..18, &[]),
            (5..45, &[(5, 10), (20, 40)]),
            (45..60, &[(50, 60)]),
            (60..61, &[(60, 61)]),
            (7..7, &[]),
        ] {
            let added: Vec<(u64, u64)> = kept.add(range.clone()).into_iter().map(|gap| (gap.start, gap.end)).collect();
            assert_eq!(added, gaps, "{range:?}");
        }
        assert_eq!(kept.0, BTreeMap::from([(5, 61)]));
    }
}
