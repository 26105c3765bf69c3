//! The compression around a whole archive: told by magic bytes, unpacked from front to end.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use imgcore::{Error, Result};

use crate::bytes::read_error;

/// How an archive is wrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wrap {
    None,
    Gzip,
    Zstd,
}

impl Wrap {
    /// By the first bytes.
    pub fn detect(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Wrap::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Wrap::Zstd,
            // Skippable frames before the first, as pzstd writes them.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Wrap::Zstd,
            _ => Wrap::None,
        }
    }

    /// Its name; `tar` without compression.
    pub fn name(self) -> &'static str {
        match self {
            Wrap::None => "tar",
            Wrap::Gzip => "gzip",
            Wrap::Zstd => "zstd",
        }
    }
}

/// Unpacks what `reader` gives, whatever it is wrapped in.
pub(crate) fn unwrap<'a>(reader: impl Read + Send + 'a, name: &str) -> Result<(Wrap, Box<dyn Read + Send + 'a>)> {
    let mut reader = BufReader::with_capacity(1 << 20, reader);
    let io = |e| Error::io(name, "read", Some(0), e);
    // A pipe may give a single byte first, and `fill_buf` does not ask again: the rest is put behind it.
    let mut head = Vec::new();
    while head.len() < 4 {
        let part = reader.fill_buf().map_err(io)?;
        let n = part.len().min(4 - head.len());
        if n == 0 {
            break;
        }
        head.extend_from_slice(&part[..n]);
        reader.consume(n);
    }
    let wrap = Wrap::detect(&head);
    let whole = BufReader::with_capacity(256 << 10, std::io::Cursor::new(head).chain(reader));
    Ok(match wrap {
        Wrap::None => (wrap, Box::new(whole)),
        Wrap::Gzip => (wrap, Box::new(flate2::bufread::MultiGzDecoder::new(whole))),
        Wrap::Zstd => (wrap, Box::new(zstd::Decoder::with_buffer(whole).map_err(io)?)),
    })
}

/// Unpacks `file` into an unnamed file in `folder`. Blocks of zeroes become holes.
pub(crate) fn spool(file: File, name: &str, folder: &Path) -> Result<File> {
    let place = folder.display().to_string();
    let no_room = |e| Error::io(&place, "spool into", None, e);
    let (_, mut reader) = unwrap(file, name)?;
    let mut out = tempfile::tempfile_in(folder).map_err(no_room)?;
    let mut buf = vec![0; 256 << 10];
    let mut total = 0u64;
    loop {
        let n = match reader.read(&mut buf) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(read_error(name, total, e)),
        };
        total += n as u64;
        if buf[..n].iter().all(|b| *b == 0) {
            out.seek(SeekFrom::Current(n as i64)).map_err(no_room)?;
        } else {
            out.write_all(&buf[..n]).map_err(no_room)?;
        }
    }
    out.set_len(total).map_err(no_room)?;
    Ok(out)
}
