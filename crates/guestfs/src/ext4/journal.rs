//! Replay of a journal that was not checkpointed: which blocks have a newer content there. Nothing is copied: the
//! result says where in the journal each block lies. (ext4 documentation, 3.6; kernel, fs/jbd2/recovery.c)

use std::collections::BTreeMap;

use super::device::Device;
use super::inode::Inode;
use super::{corrupt, map};
use crate::bytes::{be16, be32, be64, crc32c, cut};
use crate::{Error, Result};

const MAGIC: u32 = 0xc03b_3998;
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCK_V1: u32 = 3;
const SUPERBLOCK_V2: u32 = 4;
const REVOKE: u32 = 5;

/// mke2fs makes no larger journal, in blocks; a list of them is kept in memory.
const MAX_LEN: u64 = 10_240_000;

const COMPAT_CHECKSUM: u32 = 0x1;
const INCOMPAT_64BIT: u32 = 0x2;
const INCOMPAT_CSUM_V2: u32 = 0x8;
const INCOMPAT_CSUM_V3: u32 = 0x10;
const INCOMPAT_FAST_COMMIT: u32 = 0x20;
/// REVOKE, 64BIT, ASYNC_COMMIT, CSUM_V2, CSUM_V3, FAST_COMMIT.
const INCOMPAT_KNOWN: u32 = 0x3f;

const TAG_ESCAPE: u32 = 1;
const TAG_SAME_UUID: u32 = 2;
const TAG_LAST: u32 = 8;

/// Where a block's newest content lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Replayed {
    /// The block of the device, inside the journal.
    pub block: u64,
    /// Its first four bytes were the journal's magic and are stored as zeroes.
    escaped: bool,
    /// The checksum that it must have, how much of it is kept, and the seed with the transaction's number in it.
    checksum: Option<(u32, u32, u32)>,
}

impl Replayed {
    /// Turns the block in the journal into what it stands for.
    pub(crate) fn restore(&self, number: u64, content: &mut [u8]) -> Result<()> {
        if let Some((expected, mask, seed)) = self.checksum {
            let actual = crc32c(seed, content) & mask;
            if actual != expected {
                return Err(journal_corrupt(format!("block {number} has checksum {actual:#x}, expected {expected:#x}")));
            }
        }
        if let Some(first) = content.get_mut(..4).filter(|_| self.escaped) {
            first.copy_from_slice(&MAGIC.to_be_bytes());
        }
        Ok(())
    }
}

fn journal_corrupt(what: String) -> Error {
    corrupt(format!("journal: {what}"))
}

/// A descriptor or revoke block of a whole transaction.
struct Record<'a> {
    kind: u32,
    sequence: u32,
    block: &'a [u8],
    /// The journal block behind it: a descriptor's first data block.
    next: u64,
}

struct Tag {
    block: u64,
    flags: u32,
    checksum: u32,
}

struct Journal<'a> {
    device: &'a Device,
    /// Device blocks of the journal's blocks.
    blocks: Vec<u64>,
    /// First block of the log, behind the superblock.
    first: u64,
    /// One behind the log's last block, where it continues at `first`.
    end: u64,
    compat: u32,
    incompat: u32,
    seed: u32,
}

/// What replaying the journal in `inode` would write.
pub(crate) fn replay(device: &Device, inode: &Inode) -> Result<BTreeMap<u64, Replayed>> {
    let mut head = vec![0; device.block_size as usize];
    let first_run = map::run(device, inode, 0)?;
    let Some(first_block) = first_run.physical else { return Err(journal_corrupt("its superblock is a hole".into())) };
    device.read(first_block, 0, &mut head)?;
    let kind = be32(&head, 4);
    if be32(&head, 0) != MAGIC || !matches!(kind, SUPERBLOCK_V1 | SUPERBLOCK_V2) {
        return Err(journal_corrupt(format!("no superblock at block {first_block}")));
    }
    if be32(&head, 0xc) != device.block_size {
        return Err(journal_corrupt(format!("blocks of {} bytes, the filesystem's have {}", be32(&head, 0xc), device.block_size)));
    }
    let (compat, incompat) = if kind == SUPERBLOCK_V2 { (be32(&head, 0x24), be32(&head, 0x28)) } else { (0, 0) };
    if incompat & !INCOMPAT_KNOWN != 0 {
        return Err(Error::Unsupported { filesystem: "ext4", what: format!("a journal with features {:#x}", incompat & !INCOMPAT_KNOWN) });
    }
    let (sequence, start) = (be32(&head, 0x18), u64::from(be32(&head, 0x1c)));
    let (len, first) = (u64::from(be32(&head, 0x10)), u64::from(be32(&head, 0x14)));
    let available = inode.size / u64::from(device.block_size);
    if len > MAX_LEN {
        return Err(journal_corrupt(format!("{len} blocks, more than {MAX_LEN}")));
    }
    if len > available || first == 0 || first >= len {
        return Err(journal_corrupt(format!("{len} blocks from {first} on, in a file of {available}")));
    }
    let mut end = len;
    if incompat & INCOMPAT_FAST_COMMIT != 0 {
        let fast = match be32(&head, 0x54) {
            0 => 256,
            n => u64::from(n),
        };
        end = len.checked_sub(fast).filter(|e| *e > first).ok_or_else(|| journal_corrupt(format!("{fast} fast-commit blocks of {len}")))?;
    }
    if start == 0 && incompat & INCOMPAT_FAST_COMMIT == 0 {
        return Ok(BTreeMap::new());
    }
    if start != 0 && !(first..end).contains(&start) {
        return Err(journal_corrupt(format!("starts at block {start}, outside {first} to {end}")));
    }
    let mut blocks = Vec::new();
    while (blocks.len() as u64) < len {
        let run = map::run(device, inode, blocks.len() as u64)?;
        let Some(physical) = run.physical else { return Err(journal_corrupt(format!("block {} is a hole", blocks.len()))) };
        let take = run.len.min(len - blocks.len() as u64);
        blocks.extend(physical..physical + take);
    }
    let seed = crc32c(!0, cut(&head, 0x30, 16));
    let journal = Journal { device, blocks, first, end, compat, incompat, seed };
    let mut replayed = BTreeMap::new();
    let mut next = sequence;
    if start != 0 {
        let last = journal.scan(start, sequence)?;
        let revoked = journal.revoked(start, sequence, last)?;
        journal.collect(start, sequence, last, &revoked, &mut replayed)?;
        next = last;
    }
    if incompat & INCOMPAT_FAST_COMMIT != 0 {
        journal.refuse_fast_commits(next)?;
    }
    Ok(replayed)
}

/// Newer in the ring of transaction numbers, or the same.
fn at_least(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).cast_signed() >= 0
}

impl Journal<'_> {
    fn read(&self, at: u64) -> Result<Vec<u8>> {
        let block =
            usize::try_from(at).ok().and_then(|i| self.blocks.get(i)).ok_or_else(|| journal_corrupt(format!("has no block {at}")))?;
        let mut content = vec![0; self.device.block_size as usize];
        self.device.read(*block, 0, &mut content)?;
        Ok(content)
    }

    fn after(&self, at: u64) -> u64 {
        if at + 1 >= self.end { self.first } else { at + 1 }
    }

    fn checksummed(&self) -> bool {
        self.incompat & (INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3) != 0
    }

    /// Whether the last four bytes of a descriptor or revoke block are right.
    fn tail_is_right(&self, block: &[u8]) -> bool {
        if !self.checksummed() {
            return true;
        }
        let body = block.len() - 4;
        let crc = crc32c(crc32c(self.seed, &block[..body]), &[0; 4]);
        crc == be32(block, body)
    }

    fn commit_is_right(&self, block: &[u8]) -> bool {
        if !self.checksummed() {
            return true;
        }
        let crc = [cut(block, 0, 0x10), &[0; 4], cut(block, 0x14, block.len())].into_iter().fold(self.seed, crc32c);
        crc == be32(block, 0x10)
    }

    fn tags(&self, block: &[u8]) -> Vec<Tag> {
        let wide = self.incompat & INCOMPAT_64BIT != 0;
        let v3 = self.incompat & INCOMPAT_CSUM_V3 != 0;
        let tag_size = match (v3, self.incompat & INCOMPAT_CSUM_V2 != 0, wide) {
            (true, ..) => 16,
            (false, csum, wide) => 8 + if csum { 2 } else { 0 } + if wide { 4 } else { 0 },
        };
        let end = block.len() - if self.checksummed() { 4 } else { 0 };
        let mut tags = Vec::new();
        let mut at = 12;
        while at + tag_size <= end {
            let low = u64::from(be32(block, at));
            let high = if wide { u64::from(be32(block, at + 8)) << 32 } else { 0 };
            let (flags, checksum) = if v3 {
                (be32(block, at + 4), be32(block, at + 12))
            } else {
                (u32::from(be16(block, at + 6)), u32::from(be16(block, at + 4)))
            };
            tags.push(Tag { block: low | high, flags, checksum });
            at += tag_size + if flags & TAG_SAME_UUID == 0 { 16 } else { 0 };
            if flags & TAG_LAST != 0 {
                break;
            }
        }
        tags
    }

    /// Walks the log's transactions from `sequence` up to, without, `last`.
    fn walk(&self, start: u64, sequence: u32, last: u32, visit: &mut dyn FnMut(Record<'_>) -> Result<()>) -> Result<()> {
        let (mut at, mut sequence, mut budget) = (start, sequence, self.blocks.len());
        while sequence != last {
            budget = budget.checked_sub(1).ok_or_else(|| journal_corrupt("runs in a circle".into()))?;
            let block = self.read(at)?;
            at = self.after(at);
            match be32(&block, 4) {
                kind @ DESCRIPTOR => {
                    visit(Record { kind, sequence, block: &block, next: at })?;
                    for _ in self.tags(&block) {
                        at = self.after(at);
                        budget = budget.saturating_sub(1);
                    }
                }
                kind @ REVOKE => visit(Record { kind, sequence, block: &block, next: at })?,
                _ => sequence = sequence.wrapping_add(1),
            }
        }
        Ok(())
    }

    /// Finds the first transaction that is not whole.
    fn scan(&self, start: u64, sequence: u32) -> Result<u32> {
        let (mut at, mut next, mut budget) = (start, sequence, self.blocks.len());
        let mut last_commit_time = 0;
        // A descriptor or revoke block with a wrong checksum: damage, or a stale block of an earlier round.
        let mut suspicious = false;
        let mut sum = !0u32;
        while budget > 0 {
            budget -= 1;
            let block = self.read(at)?;
            if be32(&block, 0) != MAGIC || be32(&block, 8) != next {
                break;
            }
            at = self.after(at);
            match be32(&block, 4) {
                DESCRIPTOR => {
                    suspicious |= !self.tail_is_right(&block);
                    if self.compat & COMPAT_CHECKSUM != 0 {
                        sum = crc32_be(sum, &block);
                    }
                    for _ in self.tags(&block) {
                        if self.compat & COMPAT_CHECKSUM != 0 {
                            sum = crc32_be(sum, &self.read(at)?);
                        }
                        at = self.after(at);
                        budget = budget.saturating_sub(1);
                    }
                }
                REVOKE => suspicious |= !self.tail_is_right(&block),
                COMMIT => {
                    let time = be64(&block, 0x30);
                    if suspicious {
                        if time >= last_commit_time {
                            return Err(journal_corrupt(format!("transaction {next} has a block with a wrong checksum")));
                        }
                        break;
                    }
                    let summed = self.compat & COMPAT_CHECKSUM != 0 && block.get(0xc..0xe) == Some(&[1, 4]);
                    if !self.commit_is_right(&block) || summed && be32(&block, 0x10) != sum {
                        break;
                    }
                    sum = !0;
                    last_commit_time = time;
                    next = next.wrapping_add(1);
                }
                _ => break,
            }
        }
        Ok(next)
    }

    /// The newest transaction in which each block was revoked.
    fn revoked(&self, start: u64, sequence: u32, last: u32) -> Result<BTreeMap<u64, u32>> {
        let mut revoked = BTreeMap::new();
        let wide = self.incompat & INCOMPAT_64BIT != 0;
        let record = if wide { 8 } else { 4 };
        self.walk(start, sequence, last, &mut |Record { kind, sequence, block, .. }| {
            if kind == REVOKE {
                let used = (be32(block, 12) as usize).min(block.len());
                for at in (16..used).step_by(record).filter(|at| at + record <= used) {
                    let number = if wide { be64(block, at) } else { u64::from(be32(block, at)) };
                    let newest = revoked.entry(number).or_insert(sequence);
                    if at_least(sequence, *newest) {
                        *newest = sequence;
                    }
                }
            }
            Ok(())
        })?;
        Ok(revoked)
    }

    fn collect(
        &self,
        start: u64,
        sequence: u32,
        last: u32,
        revoked: &BTreeMap<u64, u32>,
        replayed: &mut BTreeMap<u64, Replayed>,
    ) -> Result<()> {
        self.walk(start, sequence, last, &mut |Record { kind, sequence, block, next: mut at }| {
            if kind != DESCRIPTOR {
                return Ok(());
            }
            for tag in self.tags(block) {
                let place = usize::try_from(at).ok().and_then(|i| self.blocks.get(i).copied());
                at = self.after(at);
                if revoked.get(&tag.block).is_some_and(|r| at_least(*r, sequence)) {
                    continue;
                }
                let block = place.ok_or_else(|| journal_corrupt(format!("has no block {at}")))?;
                let mask = if self.incompat & INCOMPAT_CSUM_V3 != 0 { !0 } else { 0xffff };
                let checksum = self.checksummed().then(|| (tag.checksum, mask, crc32c(self.seed, &sequence.to_be_bytes())));
                replayed.insert(tag.block, Replayed { block, escaped: tag.flags & TAG_ESCAPE != 0, checksum });
            }
            Ok(())
        })
    }

    /// Fast commits change inodes and directories by rules of their own; the kernel in the appliance knows them.
    fn refuse_fast_commits(&self, expected: u32) -> Result<()> {
        const TAG_HEAD: u16 = 9;
        let Some(first) = usize::try_from(self.end).ok().filter(|i| *i < self.blocks.len()) else { return Ok(()) };
        let block = self.read(first as u64)?;
        // A head names its transaction; a stale area belongs to an older one.
        if crate::bytes::le16(&block, 0) == TAG_HEAD && crate::bytes::le32(&block, 8) == expected {
            return Err(Error::Unsupported { filesystem: "ext4", what: "a journal with fast commits that were not yet applied".into() });
        }
        Ok(())
    }
}

/// CRC-32 with the highest bit first, as commit records of old journals have it.
fn crc32_be(crc: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(crc, |mut crc, b| {
        crc ^= u32::from(*b) << 24;
        for _ in 0..8 {
            crc = if crc & 0x8000_0000 != 0 { (crc << 1) ^ 0x04c1_1db7 } else { crc << 1 };
        }
        crc
    })
}
