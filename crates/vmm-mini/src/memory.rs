//! The guest's memory: new, or as a saved machine left it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use vm_memory::mmap::{GuestRegionMmap, MmapRegion};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::error::{Error, Result};
use crate::layout;

/// What is looked at and written at once when memory is saved.
const PAGE: usize = 4096;
/// Pages that are read at once.
const CHUNK: usize = 256 * PAGE;

/// Memory of `bytes`: zeroes, or what [`save`] has put into `file`. That stays as it is: what the guest changes is its own, and
/// what it does not change is shared by all who map the file.
pub fn map(bytes: u64, file: Option<File>) -> Result<GuestMemoryMmap<()>> {
    let failed = |error| Error::Host { what: "cannot map the guest's memory", error };
    // Touching what a file does not have kills a process.
    if let Some(file) = &file
        && file.metadata().map_err(failed)?.len() != bytes
    {
        return Err(Error::Saved("its memory is cut"));
    }
    let mut regions = Vec::new();
    let mut offset = 0;
    for (start, len) in layout::memory(bytes) {
        let size = usize::try_from(len).map_err(|e| failed(io::Error::other(e)))?;
        let part = match &file {
            Some(file) => Some(FileOffset::new(file.try_clone().map_err(failed)?, offset)),
            None => None,
        };
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_NORESERVE | libc::MAP_PRIVATE);
        let anonymous = if part.is_none() { libc::MAP_ANONYMOUS } else { 0 };
        let region = MmapRegion::build(part, size, protection, flags | anonymous).map_err(|e| failed(io::Error::other(e)))?;
        regions.push(GuestRegionMmap::new(region, start).ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?);
        offset += len;
    }
    GuestMemoryMmap::from_regions(regions).map_err(|e| failed(io::Error::other(e)))
}

/// Writes the memory to an empty file, leaving holes where it is zero.
pub fn save(memory: &GuestMemoryMmap<()>, file: &File) -> Result<()> {
    write(memory, file).map_err(|error| Error::Host { what: "cannot save the guest's memory", error })
}

fn write(memory: &GuestMemoryMmap<()>, file: &File) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut offset = 0;
    for region in memory.iter() {
        let mut done = 0;
        while done < region.len() {
            let n = CHUNK.min(usize::try_from(region.len() - done).unwrap_or(CHUNK));
            let chunk = &mut chunk[..n];
            memory.read_slice(chunk, GuestAddress(region.start_addr().0 + done)).map_err(io::Error::other)?;
            let mut at = offset + done;
            for run in chunk.chunks(PAGE).collect::<Vec<_>>().chunk_by(|a, b| is_zero(a) == is_zero(b)) {
                if !is_zero(run[0]) {
                    file.write_all_at(&run.concat(), at)?;
                }
                at += run.iter().map(|page| page.len() as u64).sum::<u64>();
            }
            done += n as u64;
        }
        offset += region.len();
    }
    file.set_len(offset)
}

fn is_zero(page: &[u8]) -> bool {
    page.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn what_is_saved_is_mapped_again_and_never_changed() {
        let file = tempfile::tempfile().unwrap();
        let memory = map(8 << 20, None).unwrap();
        let places = [0, 4095, 1 << 20, (3 << 20) + 5000, (8 << 20) - 3];
        places.iter().for_each(|place| memory.write_slice(b"abc", GuestAddress(*place)).unwrap());
        save(&memory, &file).unwrap();
        let meta = file.metadata().unwrap();
        assert_eq!(meta.len(), 8 << 20);
        assert!(meta.blocks() * 512 < 1 << 20, "holes are left: {} blocks", meta.blocks());

        for _ in 0..2 {
            let again = map(8 << 20, Some(file.try_clone().unwrap())).unwrap();
            let (mut whole, mut expected) = (vec![0; 8 << 20], vec![0; 8 << 20]);
            memory.read_slice(&mut expected, GuestAddress(0)).unwrap();
            again.read_slice(&mut whole, GuestAddress(0)).unwrap();
            assert!(whole == expected);
            again.write_slice(&[7; 10_000], GuestAddress(4000)).unwrap();
        }
        assert!(map(9 << 20, Some(file)).is_err(), "more than the file has");
    }
}
