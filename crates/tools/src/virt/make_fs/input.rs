//! What is put into a new filesystem: a folder, or a tar archive, compressed or not.

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use guestfs::{Error, Node, Unpack, What};

use crate::common::Failure;
use crate::virt::disks::Kind;
use crate::virt::{copy_in, tar_in};

/// The input, which can be handed over several times.
pub(super) struct Input {
    path: PathBuf,
    is_folder: bool,
}

impl Input {
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let metadata = std::fs::metadata(path).map_err(|e| at(path, e))?;
        if !metadata.is_dir() && !metadata.is_file() {
            return Err(Failure::new(format!("{}: is neither a folder nor a file", path.display())).hint("pipes cannot be read twice"));
        }
        Ok(Input { path: path.into(), is_folder: metadata.is_dir() })
    }

    /// Hands all files over.
    pub(super) fn hand_over(&self, kind: Kind, sink: &mut dyn Unpack) -> guestfs::Result<()> {
        let mut fitted = Fitted { sink, kind };
        let outcome = if self.is_folder {
            copy_in::pack(&self.path, b"", &mut fitted)
        } else {
            self.archive().and_then(|mut archive| tar_in::unpack(archive.as_mut(), &mut fitted))
        };
        outcome.map_err(|failure| Error::Invalid(failure.message().to_string()))
    }

    /// The archive's bytes, unpacked if they are packed.
    fn archive(&self) -> Result<Box<dyn Read>, Failure> {
        let mut file = File::open(&self.path).map_err(|e| at(&self.path, e))?;
        let mut head = Vec::new();
        (&mut file).take(6).read_to_end(&mut head).map_err(|e| at(&self.path, e))?;
        file.rewind().map_err(|e| at(&self.path, e))?;
        let file = BufReader::with_capacity(256 << 10, file);
        Ok(match head.as_slice() {
            [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
            [0xfd, b'7', b'z', b'X', b'Z', 0] => Box::new(liblzma::bufread::XzDecoder::new_multi_decoder(file)),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::stream::read::Decoder::with_buffer(file).map_err(|e| at(&self.path, e))?),
            _ => Box::new(file),
        })
    }
}

fn at(path: &Path, error: std::io::Error) -> Failure {
    Failure::new(format!("{}: {error}", path.display()))
}

/// Fits files to what the filesystem can hold.
struct Fitted<'a> {
    sink: &'a mut dyn Unpack,
    kind: Kind,
}

impl Unpack for Fitted<'_> {
    fn node(&mut self, node: &Node) -> guestfs::Result<()> {
        // A folder's files are below no name at all.
        let bare = |path: &[u8]| path.strip_prefix(b"/").unwrap_or(path).to_vec();
        let mut node = Node { path: bare(&node.path), ..node.clone() };
        if let What::Link(target) = &mut node.what {
            *target = bare(target);
        }
        if !self.kind.is_unix() {
            node.xattrs.clear();
            // The root is no file that could be changed.
            if node.path.is_empty() {
                return Ok(());
            }
        }
        self.sink.node(&node)
    }

    fn data(&mut self, data: &[u8]) -> guestfs::Result<()> {
        self.sink.data(data)
    }

    fn hole(&mut self, len: u64) -> guestfs::Result<()> {
        self.sink.hole(len)
    }
}
