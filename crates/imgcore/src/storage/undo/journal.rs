//! The file beside an image that holds what the image was, for as long as it is being changed.
//!
//! `IMAGE.guestlift-undo`, little endian: a header (magic, whether the change is done, which file the image is, its time and size before the
//! change, and, if other files are changed together with it, the journal that decides for all of them; CRC-32C of all but the first two) and
//! records (kind, offset, length, content, CRC-32C). A record is durable before the image is written at its place: of one that was cut off
//! nothing was needed.
//!
//! Whoever changes the image holds the journal (flock); one that nobody holds was left by a program that did not come to its end. A journal is
//! believed only if it is a file of root's, of the user's or of the image's owner.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{FlockOperation, OFlags, Timespec, Timestamps, UTIME_NOW, flock, futimens};
use rustix::io::Errno;
use rustix::process::geteuid;

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
const SLACK: Duration = Duration::from_secs(10);
/// What a folder's entry may have for a name.
const MAX_NAME: usize = 255;

/// Where the journal of the image that is called `name` belongs; nowhere if that is not a file.
pub(super) fn place(name: &str) -> Option<PathBuf> {
    let real = Path::new(name).canonicalize().ok()?;
    let fits = real.file_name()?.len() + SUFFIX.len() <= MAX_NAME;
    let with_suffix = |path: PathBuf| {
        let mut path = path.into_os_string();
        path.push(SUFFIX);
        path.into()
    };
    (fits && real.metadata().ok()?.is_file()).then(|| with_suffix(real))
}

/// The image that a journal is about.
fn image_of(journal: &Path) -> PathBuf {
    let mut name = journal.as_os_str().as_bytes().to_vec();
    name.truncate(name.len().saturating_sub(SUFFIX.len()));
    std::ffi::OsString::from_vec(name).into()
}

/// Opens a journal that somebody may have put there to do harm; `None` if there is none.
fn open(path: &Path) -> Result<Option<File>> {
    let refused = |what: &str| Error::Invalid(format!("{}: {what}; remove it if no program of yours made it", path.display()));
    if !path.as_os_str().as_bytes().ends_with(SUFFIX.as_bytes()) {
        return Err(refused("it is named as a journal of changes, and has another name"));
    }
    // A pipe would be waited for.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound && path.parent().is_some_and(Path::is_dir) => return Ok(None),
        file => file.map_err(|e| failed(path, "open", e))?,
    };
    let meta = file.metadata().map_err(|e| failed(path, "look at", e))?;
    let image = std::fs::metadata(image_of(path));
    if !meta.is_file() {
        return Err(refused("it is in the place of a journal of changes, and is no file"));
    }
    if ![0, geteuid().as_raw()].contains(&meta.uid()) && image.is_ok_and(|image| image.uid() != meta.uid()) {
        return Err(refused("it is a journal of changes that another user made"));
    }
    Ok(Some(file))
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
    let Some(file) = open(path)? else { return Ok(Found::Nothing) };
    // Where the filesystem has no locks, there is nobody to be seen.
    if flock(&file, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK) {
        return Ok(Found::Live);
    }
    let header = Header::read(&file, path)?;
    let Some(header) = header else { return Ok(Found::Over(Journal::found(path, file, Header::default()))) };
    let decided = match &header.leader {
        None => header.done,
        Some((leader, identity)) => match open(leader)? {
            // One that was put back is gone; what has its name now is about another change.
            None => false,
            Some(file) => Identity::of_file(&file, leader)? == *identity && Header::read(&file, leader)?.is_some_and(|leader| leader.done),
        },
    };
    let journal = Journal::found(path, file, header);
    Ok(if decided { Found::Over(journal) } else { Found::Cut(journal) })
}

/// What tells a file from another that has its name later: its number, and when it was made, where the filesystem says so.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Identity {
    number: u64,
    made: u64,
}

impl Identity {
    fn of(meta: &Metadata) -> Self {
        Identity { number: meta.ino(), made: meta.created().map_or(0, nanoseconds) }
    }

    fn of_file(file: &File, path: &Path) -> Result<Self> {
        file.metadata().map(|meta| Self::of(&meta)).map_err(|e| failed(path, "look at", e))
    }
}

fn nanoseconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

#[derive(Default)]
struct Header {
    done: bool,
    /// The image, when it was written last before the change, and its size then.
    image: Identity,
    modified: u64,
    size: u64,
    leader: Option<(PathBuf, Identity)>,
    /// Its own length.
    len: u64,
}

impl Header {
    /// Numbers before the leader's path.
    const NUMBERS: usize = 6;

    fn bytes(&self) -> Vec<u8> {
        let (leader, identity) =
            self.leader.as_ref().map_or((&b""[..], Identity::default()), |(path, i)| (path.as_os_str().as_bytes(), *i));
        let numbers = [self.image.number, self.image.made, self.modified, self.size, identity.number, identity.made];
        let mut body = numbers.map(u64::to_le_bytes).concat();
        body.extend((leader.len() as u16).to_le_bytes());
        body.extend(leader);
        let sum = crc32c::crc32c(&body);
        [&MAGIC[..], &[0], &body, &sum.to_le_bytes()].concat()
    }

    /// `None` for one that is not whole: nothing was changed yet.
    fn read(file: &File, path: &Path) -> Result<Option<Self>> {
        let mut head = Vec::new();
        let longest = MAGIC.len() + 1 + 8 * Self::NUMBERS + 2 + MAX_PATH + 4;
        io::Read::read_to_end(&mut io::Read::take(file, longest as u64), &mut head).map_err(|e| failed(path, "read", e))?;
        // What a cut wrote of it, or left as zeroes.
        if head.iter().zip(MAGIC).any(|(is, magic)| *is != magic && *is != 0) {
            return Err(Error::Invalid(format!(
                "{}: it is in the place of a journal of changes, and is none that this program knows",
                path.display()
            )));
        }
        let parse = || {
            let (magic, rest) = head.split_at_checked(MAGIC.len())?;
            let (done, body) = rest.split_first()?;
            let (numbers, rest) = body.split_at_checked(8 * Self::NUMBERS)?;
            let (leader_len, rest) = rest.split_first_chunk()?;
            let (leader, rest) = rest.split_at_checked(u16::from_le_bytes(*leader_len).into())?;
            let sum = u32::from_le_bytes(*rest.first_chunk()?);
            let body_len = numbers.len() + leader_len.len() + leader.len();
            let whole = magic == MAGIC && crc32c::crc32c(body.get(..body_len)?) == sum;
            let number = |n: usize| numbers.get(8 * n..).and_then(|n| n.first_chunk()).map_or(0, |n| u64::from_le_bytes(*n));
            let identity = |n: usize| Identity { number: number(n), made: number(n + 1) };
            whole.then(|| Header {
                done: *done != 0,
                image: identity(0),
                modified: number(2),
                size: number(3),
                leader: (!leader.is_empty()).then(|| (OsStr::from_bytes(leader).into(), identity(4))),
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
    header: Header,
    /// Where the records begin and end.
    records: Range<u64>,
    kept: Kept,
    beat: Instant,
}

impl Journal {
    /// Makes the journal of an image of `size` bytes; `leader` decides for it.
    pub(super) fn begin(path: &Path, size: u64, leader: Option<&Path>) -> Result<Self> {
        if leader.is_some_and(|leader| leader.as_os_str().len() > MAX_PATH) {
            return Err(Error::Invalid(format!("{}: the path is too long", path.display())));
        }
        let leader = leader.map(|leader| Ok((leader.into(), Identity::of(&leader.metadata().map_err(|e| failed(leader, "look at", e))?))));
        let leader = leader.transpose()?;
        let create = || {
            let image = std::fs::metadata(image_of(path))?;
            // First what may be refused.
            let folder = folder_of(path)?;
            let file = File::options().read(true).write(true).create_new(true).mode(image.mode() & 0o666).open(path)?;
            let header = Header {
                image: Identity::of(&image),
                modified: image.modified().map_or(0, nanoseconds),
                size,
                leader,
                ..Header::default()
            };
            let bytes = header.bytes();
            let begun = || {
                // Where the filesystem has no locks, there is nobody who asks for them.
                let _ = flock(&file, FlockOperation::LockExclusive);
                // Who may read the image hears why not now.
                let _ = fchown(&file, Some(image.uid()), Some(image.gid()));
                file.write_all_at(&bytes, 0)?;
                file.sync_data()?;
                folder.sync_all()
            };
            if let Err(e) = begun() {
                let _ = std::fs::remove_file(path);
                return Err(e);
            }
            Ok((file, Header { len: bytes.len() as u64, ..header }))
        };
        let (file, header) = create().map_err(|e| failed(path, "create", e))?;
        let start = header.len;
        Ok(Journal { file, path: path.into(), header, records: start..start, kept: Kept::default(), beat: Instant::now() })
    }

    fn found(path: &Path, file: File, header: Header) -> Self {
        Journal { file, path: path.into(), records: header.len..u64::MAX, header, kept: Kept::default(), beat: Instant::now() }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps what `image` holds in these ranges, so far as it is not kept already; returns when that is durable.
    pub(super) fn keep(&mut self, image: &dyn Storage, ranges: impl IntoIterator<Item = Range<u64>>) -> Result<()> {
        let before = self.records.end;
        for range in ranges {
            for gap in self.kept.add(range.start..range.end.min(self.header.size)) {
                self.keep_part(image, gap)?;
            }
        }
        if self.records.end != before {
            self.sync()?;
        }
        if self.beat.elapsed() > BEAT {
            self.beat = Instant::now();
            self.touch()?;
        }
        Ok(())
    }

    /// Says that what is written to the image now is this change's.
    fn touch(&self) -> Result<()> {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        futimens(&self.file, &times).map_err(|e| failed(&self.path, "touch", e.into()))
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
    pub(super) fn mark_done(&mut self, members: &[PathBuf]) -> Result<()> {
        for member in members {
            let name = member.as_os_str().as_bytes();
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
        let us = (self.path.clone(), Identity::of_file(&self.file, &self.path)?);
        for member in members {
            // Whose header names this one as its leader.
            let header = open(&member)?.map(|file| Header::read(&file, &member)).transpose()?.flatten();
            if header.is_some_and(|header| header.leader.as_ref() == Some(&us)) {
                std::fs::remove_file(&member).and_then(|()| sync_folder(&member)).map_err(|e| failed(&member, "remove", e))?;
            }
        }
        self.remove()
    }

    /// Removes it.
    pub(super) fn remove(self) -> Result<()> {
        std::fs::remove_file(&self.path).and_then(|()| sync_folder(&self.path)).map_err(|e| failed(&self.path, "remove", e))
    }

    /// Makes the image what it was, durably. That may be cut short as well, and begun again.
    pub(super) fn put_back(&self, image: &dyn Storage) -> Result<()> {
        self.touch()?;
        let mut beat = Instant::now();
        self.each(&mut |record| {
            if beat.elapsed() > BEAT {
                beat = Instant::now();
                self.touch()?;
            }
            match record.kind {
                DATA => image.write_at(record.content, record.offset),
                HOLE => image.zero_at(record.offset, record.len),
                _ => Ok(()),
            }
        })?;
        image.set_size(self.header.size)?;
        self.touch()?;
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
            let inside = *kind == MEMBER || offset.checked_add(len).is_some_and(|end| end <= self.header.size);
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

    /// Refuses an image that is another file now, or that somebody else wrote to since the change was cut short: old bytes would do harm then.
    pub(super) fn check_unchanged(&self, image: &Metadata, name: &str) -> Result<()> {
        let journal = self.file.metadata().and_then(|m| m.modified()).map_err(|e| failed(&self.path, "look at", e))?;
        let written = image.modified().map_or(0, nanoseconds);
        let ours = self.header.modified..=nanoseconds(journal + SLACK);
        if Identity::of(image) == self.header.image && ours.contains(&written) {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "{name}: a change to it was cut short, and it was replaced or written by something else since; it is left as it is. \
             If that is how it should stay, remove {}",
            self.path.display()
        )))
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

fn folder_of(path: &Path) -> io::Result<File> {
    File::open(path.parent().unwrap_or(Path::new("/")))
}

fn sync_folder(path: &Path) -> io::Result<()> {
    folder_of(path)?.sync_all()
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
