//! Rows of bytes that are read at an offset or from front to end, whatever lies below: a file, a gzip, a pipe.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use imgcore::{Error, Result};
use rustix::fs::{Mode, OFlags};

/// Bytes readable at any offset, whose length may not be known before the end was read.
pub(crate) trait Bytes: Send + Sync {
    /// How the user named them.
    fn name(&self) -> &str;

    /// Fills `buf` from `offset`; gives fewer bytes only at the end.
    fn read_some(&self, buf: &mut [u8], offset: u64) -> Result<usize>;

    /// Whether offsets are those of the file called [`name`](Self::name).
    fn is_plain(&self) -> bool;

    /// Fills all of `buf` from `offset`.
    fn read_exact(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let want = buf.len();
        let got = self.read_some(buf, offset)?;
        if got < want {
            return Err(Error::corrupt(
                self.name(),
                crate::XVA,
                offset,
                format!("the file ends {} bytes too early: it is truncated, or has shrunk since it was opened", want - got),
            ));
        }
        Ok(())
    }
}

/// A file of the host.
pub(crate) struct HostFile {
    file: File,
    name: String,
    plain: bool,
}

impl HostFile {
    /// Opens a regular file or block device for reading.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|e| Error::io(&name, "open", None, e))?;
        Ok(HostFile { file, name, plain: true })
    }

    /// Opens a regular file that an appliance's folder holds. A link, device or pipe in its place is refused, for it
    /// could lead anywhere.
    pub fn open_member(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| Error::io(&name, "open", None, e.into()))?;
        let file = File::from(fd);
        let kind = file.metadata().map_err(|e| Error::io(&name, "examine", None, e))?;
        if !kind.is_file() {
            return Err(Error::corrupt(&name, crate::XVA, None, "not a regular file"));
        }
        Ok(HostFile { file, name, plain: true })
    }

    /// An unnamed file that holds what `name` unpacks to.
    pub fn spooled(file: File, name: &str) -> Self {
        HostFile { file, name: name.into(), plain: false }
    }

    /// The file itself.
    pub fn into_file(self) -> File {
        self.file
    }

    /// Its length in bytes.
    pub fn len(&self) -> Result<u64> {
        Ok(self.file.metadata().map_err(|e| Error::io(&self.name, "examine", None, e))?.len())
    }
}

impl Bytes for HostFile {
    fn name(&self) -> &str {
        &self.name
    }

    fn read_some(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|r| !r.is_empty()) {
            let at = offset.saturating_add(done as u64);
            match self.file.read_at(rest, at) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io(&self.name, "read", Some(at), e)),
            }
        }
        Ok(done)
    }

    fn is_plain(&self) -> bool {
        self.plain
    }
}

/// Reads bytes from front to end, and passes over what nobody wants.
pub(crate) trait Input {
    /// Fills `buf`; gives fewer bytes only at the end.
    fn fill(&mut self, buf: &mut [u8]) -> Result<usize>;

    /// Passes over `n` bytes. An end before them shows at the next [`fill`](Self::fill), which then gives nothing.
    fn skip(&mut self, n: u64) -> Result<()>;
}

/// Walks over bytes, reading a little ahead so that neighbouring headers cost one read.
pub(crate) struct Walk<'a> {
    bytes: &'a dyn Bytes,
    position: u64,
    ahead: Vec<u8>,
    ahead_at: u64,
}

/// A chunk's padding, the header and block of its checksum, and the next header.
const READ_AHEAD: usize = 2048;

impl<'a> Walk<'a> {
    /// Starts at the front.
    pub fn new(bytes: &'a dyn Bytes) -> Self {
        Walk { bytes, position: 0, ahead: Vec::new(), ahead_at: 0 }
    }
}

impl Input for Walk<'_> {
    fn fill(&mut self, buf: &mut [u8]) -> Result<usize> {
        let cached = |w: &Self| -> Option<usize> {
            let start = usize::try_from(w.position.checked_sub(w.ahead_at)?).ok()?;
            (start.checked_add(buf.len())? <= w.ahead.len()).then_some(start)
        };
        if cached(self).is_none() && buf.len() < READ_AHEAD {
            self.ahead.resize(READ_AHEAD, 0);
            self.ahead_at = self.position;
            let got = self.bytes.read_some(&mut self.ahead, self.position)?;
            self.ahead.truncate(got);
        }
        let got = match cached(self) {
            Some(start) => {
                buf.copy_from_slice(&self.ahead[start..start + buf.len()]);
                buf.len()
            }
            None => self.bytes.read_some(buf, self.position)?,
        };
        self.position = self.position.saturating_add(got as u64);
        Ok(got)
    }

    fn skip(&mut self, n: u64) -> Result<()> {
        self.position = self.position.saturating_add(n);
        Ok(())
    }
}

/// Reads a pipe from front to end.
pub(crate) struct Pipe<R> {
    reader: R,
    name: String,
    position: u64,
}

impl<R: Read> Pipe<R> {
    /// `name` is for messages.
    pub fn new(reader: R, name: &str) -> Self {
        Pipe { reader, name: name.into(), position: 0 }
    }
}

impl<R: Read> Input for Pipe<R> {
    fn fill(&mut self, buf: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|r| !r.is_empty()) {
            match self.reader.read(rest) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(read_error(&self.name, self.position, e)),
            }
        }
        self.position = self.position.saturating_add(done as u64);
        Ok(done)
    }

    fn skip(&mut self, mut n: u64) -> Result<()> {
        let mut scratch = vec![0; usize::try_from(n).unwrap_or(usize::MAX).min(256 << 10)];
        while n > 0 {
            let want = usize::try_from(n).unwrap_or(usize::MAX).min(scratch.len());
            let got = self.fill(&mut scratch[..want])?;
            if got == 0 {
                break;
            }
            n -= got as u64;
        }
        Ok(())
    }
}

/// What a failed read of a stream means: decoders tell of damage by these kinds, the host by others.
pub(crate) fn read_error(name: &str, position: u64, e: std::io::Error) -> Error {
    use std::io::ErrorKind::{InvalidData, InvalidInput, Other, UnexpectedEof};
    match e.kind() {
        UnexpectedEof => {
            Error::corrupt(name, crate::XVA, None, format!("truncated: the compressed data ends after {position} bytes unpacked"))
        }
        InvalidData | InvalidInput => {
            Error::corrupt(name, crate::XVA, None, format!("the compressed data is damaged after {position} bytes unpacked: {e}"))
        }
        Other if e.raw_os_error().is_none() => {
            Error::corrupt(name, crate::XVA, None, format!("the compressed data is damaged after {position} bytes unpacked: {e}"))
        }
        _ => Error::io(name, "read", Some(position), e),
    }
}
