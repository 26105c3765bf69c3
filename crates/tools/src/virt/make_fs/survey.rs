//! How large a filesystem must be for files that are to come: they are counted, and what each kind needs besides is known.

use std::ops::Range;

use guestfs::{Node, Result, Unpack, What};

use crate::virt::disks::Kind;

const MIB: u64 = 1 << 20;
/// Bytes of a block, of nearly all filesystems of this size.
const BLOCK: u64 = 4096;

/// Counts what it is handed.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Files of any kind.
    nodes: u64,
    /// Bytes of blocks with data.
    data: u64,
    /// Bytes of names, with what an entry takes besides.
    names: u64,
    /// Bytes of attributes.
    xattrs: u64,
    /// Where the file that came last ends, and the block of it that was counted last.
    at: u64,
    counted: Range<u64>,
}

impl Unpack for Survey {
    fn node(&mut self, node: &Node) -> Result<()> {
        (self.at, self.counted) = (0, 0..0);
        self.names += node.path.len().min(255) as u64 + 32;
        self.xattrs += node.xattrs.iter().map(|(name, value)| (name.len() + value.len() + 32) as u64).sum::<u64>();
        match &node.what {
            What::Link(_) => return Ok(()),
            What::Directory => self.data += BLOCK,
            What::Symlink(target) if target.len() > 59 => self.data += BLOCK,
            _ => {}
        }
        self.nodes += 1;
        Ok(())
    }

    fn data(&mut self, data: &[u8]) -> Result<()> {
        let range = self.at / BLOCK..(self.at + data.len() as u64).div_ceil(BLOCK);
        self.data += range.end.saturating_sub(range.start.max(self.counted.end)) * BLOCK;
        self.counted = range;
        self.at += data.len() as u64;
        Ok(())
    }

    fn hole(&mut self, len: u64) -> Result<()> {
        self.at = self.at.saturating_add(len);
        Ok(())
    }
}

impl Survey {
    /// Inodes that are enough, with some to spare.
    pub(super) fn inodes(&self) -> u64 {
        self.nodes + self.nodes / 16 + 32
    }

    /// Bytes that a filesystem of this kind with `more` free bytes has.
    pub(super) fn size(&self, kind: Kind, more: u64) -> u64 {
        let content = self.data + self.names + self.xattrs.next_multiple_of(BLOCK) + more;
        match kind {
            // Inodes of 256 bytes, block maps and bitmaps; and the journal, which grows with the whole.
            Kind::Ext2 | Kind::Ext3 | Kind::Ext4 => {
                let own = self.inodes() * 256 + content / 64 + MIB;
                own + content + if kind == Kind::Ext2 { 0 } else { journal(own + content) }
            }
            // mkfs.xfs makes none smaller, and a log of 64 MiB.
            Kind::Xfs => (content + self.nodes * 512 + content / 32 + 96 * MIB).max(300 * MIB + more),
            // All metadata is there twice, and room is given out in large pieces.
            Kind::Btrfs => content + 4 * (self.nodes * 512 + self.names) + content / 16 + 160 * MIB,
            // A file's last cluster, of 16 KiB at most, is half empty, and a table has its place twice.
            Kind::Vfat => content + self.nodes * 16384 + content / 128 + 2 * MIB,
            Kind::Ntfs => content + self.nodes * 1536 + content / 32 + 16 * MIB,
        }
    }
}

/// The journal that mke2fs gives a filesystem of so many bytes, with blocks of either size.
fn journal(size: u64) -> u64 {
    // Below these sizes in MiB, so many.
    const JOURNALS: [(u64, u64); 7] =
        [(128, 5), (1 << 10, 17), (2 << 10, 32), (16 << 10, 64), (32 << 10, 128), (128 << 10, 256), (256 << 10, 512)];
    JOURNALS.iter().find(|(below, _)| size < below * MIB).map_or(1024, |(_, mib)| *mib) * MIB
}

#[cfg(test)]
mod tests {
    use guestfs::{Attributes, Time};

    use super::*;

    fn node(path: &str, what: What) -> Node {
        let zero = Time { sec: 0, nsec: 0 };
        let attributes = Attributes { mode: 0o644, uid: 0, gid: 0 };
        Node { path: path.into(), what, attributes, times: (zero, zero), xattrs: Vec::new() }
    }

    #[test]
    fn blocks_are_counted_once_and_holes_not_at_all() {
        let mut survey = Survey::default();
        survey.node(&node("", What::Directory)).unwrap();
        survey.node(&node("a", What::File)).unwrap();
        for _ in 0..10 {
            survey.data(&[1; 1000]).unwrap();
        }
        survey.hole(1 << 40).unwrap();
        survey.data(&[1; 1]).unwrap();
        survey.node(&node("b", What::Link(b"a".to_vec()))).unwrap();
        assert_eq!((survey.nodes, survey.data), (2, BLOCK * (1 + 3 + 1)));
        assert!(survey.size(Kind::Ext2, 0) < 2 * MIB && survey.size(Kind::Ext2, 1 << 30) > 1 << 30);
    }
}
