//! Content of files, held against the checksums that btrfs keeps of it. (btrfs documentation, EXTENT_CSUM)

use super::Btrfs;
use super::inode::Inode;
use super::tree::Key;
use crate::Result;
use crate::bytes::{crc32c, le32};

const CHECKSUM_TREE: u64 = 7;
/// The object whose items are the checksums, and their kind.
const CHECKSUMS: u64 = 10u64.wrapping_neg();
const EXTENT_CSUM: u8 = 128;
/// The flag of a file that has no checksums.
const NODATASUM: u64 = 1;
/// Checked at once; whole sectors of any size.
const PIECE: u64 = 256 << 10;

/// Reads bytes of a file's extent from the first copy that is what it was.
pub(super) fn read(fs: &Btrfs, inode: &Inode, logical: u64, buf: &mut [u8]) -> Result<()> {
    if inode.flags() & NODATASUM != 0 || !fs.nodes.superblock.crc32c {
        return fs.nodes.read(logical, 0, buf);
    }
    let sector = u64::from(fs.nodes.superblock.sector_size);
    let (mut at, mut rest) = (logical, buf);
    while !rest.is_empty() {
        let begin = at / sector * sector;
        let skip = (at - begin) as usize;
        let len = (skip as u64 + rest.len() as u64).next_multiple_of(sector).min(PIECE.max(sector));
        let sectors = checked(fs, begin, len as usize)?;
        let (now, later) = rest.split_at_mut(rest.len().min(sectors.len() - skip));
        now.copy_from_slice(&sectors[skip..skip + now.len()]);
        at = at.saturating_add(now.len() as u64);
        rest = later;
    }
    Ok(())
}

/// Whole sectors.
fn checked(fs: &Btrfs, begin: u64, len: usize) -> Result<Vec<u8>> {
    let mut sectors = vec![0; len];
    fs.nodes.read(begin, 0, &mut sectors)?;
    let size = fs.nodes.superblock.sector_size as usize;
    let sums = sums(fs, begin, len / size)?;
    let copies = fs.nodes.chunks.at(begin).map_or(1, |(_, chunk)| chunk.copies.len());
    for (index, (sector, sum)) in sectors.chunks_exact_mut(size).zip(sums).enumerate() {
        let Some(sum) = sum else { continue };
        let is_sound = |sector: &[u8]| !crc32c(!0, sector) == sum;
        let at = begin + (index * size) as u64;
        let mut copy = 1;
        while !is_sound(sector) {
            if copy >= copies {
                return Err(fs.nodes.window.corrupt(format!("the content at {at:#x} is not what was written: its checksum differs")));
            }
            fs.nodes.read(at, copy, sector)?;
            copy += 1;
        }
    }
    Ok(sectors)
}

/// The checksums of so many sectors; `None` for those that have none.
fn sums(fs: &Btrfs, begin: u64, count: usize) -> Result<Vec<Option<u32>>> {
    let tree = fs.tree(CHECKSUM_TREE)?;
    let size = u64::from(fs.nodes.superblock.sector_size);
    let mut sums = Vec::with_capacity(count);
    while sums.len() < count {
        let at = begin.saturating_add(sums.len() as u64 * size);
        let found = fs.nodes.find(tree, Key::new(CHECKSUMS, EXTENT_CSUM, at))?;
        let slot = found.slot.filter(|slot| (found.key(*slot).object, found.key(*slot).kind) == (CHECKSUMS, EXTENT_CSUM));
        let here = slot.map_or(&[][..], |slot| {
            let skip = usize::try_from((at - found.key(slot).offset) / size * 4).unwrap_or(usize::MAX);
            found.item(slot).get(skip..).unwrap_or_default()
        });
        let before = sums.len();
        sums.extend(here.chunks_exact(4).take(count - before).map(|sum| Some(le32(sum, 0))));
        if sums.len() == before {
            sums.push(None);
        }
    }
    Ok(sums)
}
