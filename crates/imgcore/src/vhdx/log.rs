//! The log: finding what it holds that is not in its place yet (MS-VHDX 2.3).

use std::collections::HashMap;

use super::header::Header;
use super::patches::{Patches, Source};
use super::{FORMAT, MIB, guid_at};
use crate::le::{u32_at, u64_at};
use crate::storage::read_padded;
use crate::{Error, Result, Storage};

const SECTOR: u64 = 4096;
const ENTRY_HEADER_LEN: u64 = 64;
const DESCRIPTOR_LEN: u64 = 32;
/// Descriptors of one replay: those of 4 GiB of data sectors.
const MAX_DESCRIPTORS: u64 = 1 << 20;
/// How often over the bytes of a log may be checked: entries that lie on top of each other are hostile.
const MAX_PASSES: u64 = 16;

/// A valid log entry.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Where it begins in the log.
    offset: u64,
    len: u64,
    sequence_number: u64,
    /// Where the oldest entry begins that was still needed when this one was written.
    tail: u64,
    descriptors: u64,
    flushed_file_offset: u64,
    last_file_offset: u64,
}

/// What a replay does.
#[derive(Debug)]
pub(super) struct Replay {
    pub patches: Patches,
    /// The least size of the file afterwards.
    pub file_size: u64,
}

/// The log of a file.
struct Log<'a> {
    storage: &'a dyn Storage,
    header: &'a Header,
    len: u64,
}

/// Reads the log of a file whose header says that there is one. The file is not changed. A log without a valid
/// sequence was cut off before it held anything: nothing is to be done.
pub(super) fn read(storage: &dyn Storage, header: &Header) -> Result<Replay> {
    let log = Log { storage, header, len: u64::from(header.log_length) };
    let size = storage.size()?;
    let mut replay = Replay { patches: Patches::default(), file_size: size };
    let entries = log.valid_entries()?;
    let Some((tail, head)) = active_sequence(&entries, log.len) else { return Ok(replay) };
    if head.flushed_file_offset > size {
        let what = format!("the file has {size} bytes, and {} when its log was written: it was cut off", head.flushed_file_offset);
        return Err(Error::corrupt(storage.name(), FORMAT, log.at(head.offset), what));
    }
    replay.file_size = size.max(head.last_file_offset);
    let mut at = tail;
    let mut descriptors = 0u64;
    loop {
        descriptors += at.descriptors;
        if descriptors > MAX_DESCRIPTORS {
            return Err(Error::unsupported(storage.name(), FORMAT, "replaying a log of more than a million changes"));
        }
        log.collect(&at, &mut replay)?;
        if at.offset == head.offset {
            return Ok(replay);
        }
        match entries.get(&((at.offset + at.len) % log.len)) {
            Some(next) => at = *next,
            None => return Ok(replay),
        }
    }
}

/// The first and the last entry to be replayed: of the sequences whose last entry's tail lies within them, the one with
/// the highest sequence number.
fn active_sequence(entries: &HashMap<u64, Entry>, log_len: u64) -> Option<(Entry, Entry)> {
    // For each entry the last one of its sequence, found from the highest number down.
    let mut heads: HashMap<u64, u64> = HashMap::new();
    let mut by_number: Vec<&Entry> = entries.values().collect();
    by_number.sort_by_key(|entry| (std::cmp::Reverse(entry.sequence_number), entry.offset));
    for entry in &by_number {
        let next = entries.get(&((entry.offset + entry.len) % log_len));
        let next = next.filter(|next| entry.sequence_number.checked_add(1) == Some(next.sequence_number));
        let head = next.and_then(|next| heads.get(&next.offset)).copied().unwrap_or(entry.offset);
        heads.insert(entry.offset, head);
    }
    let heads_first = by_number.into_iter().filter(|entry| heads.get(&entry.offset) == Some(&entry.offset));
    heads_first
        .filter_map(|head| Some((*entries.get(&head.tail)?, *head)))
        .find(|(tail, head)| heads.get(&tail.offset) == Some(&head.offset))
}

impl Log<'_> {
    /// The place in the file of byte `offset` of the log.
    fn at(&self, offset: u64) -> u64 {
        self.header.log_offset + offset % self.len
    }

    fn sector(&self, offset: u64) -> Result<[u8; SECTOR as usize]> {
        let mut sector = [0; SECTOR as usize];
        read_padded(self.storage, &mut sector, self.at(offset))?;
        Ok(sector)
    }

    /// All valid entries, by offset.
    fn valid_entries(&self) -> Result<HashMap<u64, Entry>> {
        let mut entries = HashMap::new();
        let mut checked = 0;
        let mut chunk = vec![0; MIB as usize];
        // The length is in whole MiB.
        for start in (0..self.len).step_by(MIB as usize) {
            read_padded(self.storage, &mut chunk, self.at(start))?;
            for (index, sector) in chunk.chunks_exact(SECTOR as usize).enumerate() {
                let Some(entry) = self.entry_header(sector, start + index as u64 * SECTOR) else { continue };
                checked += entry.len;
                if checked > self.len.saturating_mul(MAX_PASSES) {
                    return Err(Error::corrupt(self.storage.name(), FORMAT, self.at(entry.offset), "log entries lie on top of each other"));
                }
                if self.is_valid(&entry)? {
                    entries.insert(entry.offset, entry);
                }
            }
        }
        Ok(entries)
    }

    /// The entry whose header may be this sector, as far as that can be told from it.
    fn entry_header(&self, sector: &[u8], offset: u64) -> Option<Entry> {
        let entry = Entry {
            offset,
            len: u64::from(u32_at(sector, 8)),
            tail: u64::from(u32_at(sector, 12)),
            sequence_number: u64_at(sector, 16),
            descriptors: u64::from(u32_at(sector, 24)),
            flushed_file_offset: u64_at(sector, 48),
            last_file_offset: u64_at(sector, 56),
        };
        let sound = sector.starts_with(b"loge")
            && guid_at(sector, 32) == self.header.log_guid
            && entry.sequence_number > 0
            && (SECTOR..=self.len).contains(&entry.len)
            && entry.len.is_multiple_of(SECTOR)
            && entry.tail < self.len
            && entry.tail.is_multiple_of(SECTOR)
            && entry.descriptor_sectors() * SECTOR <= entry.len;
        sound.then_some(entry)
    }

    /// Whether checksum, descriptors and data sectors of an entry belong together.
    fn is_valid(&self, entry: &Entry) -> Result<bool> {
        let (mut sum, mut expected) = (0, 0);
        let mut data_sectors = 0;
        let mut descriptors = entry.descriptors;
        for index in 0..entry.len / SECTOR {
            let mut sector = self.sector(entry.offset + index * SECTOR)?;
            if index == 0 {
                expected = u32_at(&sector, 4);
                sector[4..8].fill(0);
            }
            sum = crc32c::crc32c_append(sum, &sector);
            if index < entry.descriptor_sectors() {
                let first = if index == 0 { ENTRY_HEADER_LEN } else { 0 };
                for descriptor in sector[first as usize..].chunks_exact(DESCRIPTOR_LEN as usize) {
                    if descriptors == 0 {
                        break;
                    }
                    descriptors -= 1;
                    data_sectors += u64::from(descriptor.starts_with(b"desc"));
                    let known = descriptor.starts_with(b"desc") || descriptor.starts_with(b"zero");
                    if !known || u64_at(descriptor, 24) != entry.sequence_number {
                        return Ok(false);
                    }
                }
            } else if data_sectors > 0 {
                data_sectors -= 1;
                let number = u64::from(u32_at(&sector, 4)) << 32 | u64::from(u32_at(&sector, SECTOR as usize - 4));
                if !sector.starts_with(b"data") || number != entry.sequence_number {
                    return Ok(false);
                }
            }
        }
        Ok(sum == expected && data_sectors == 0)
    }

    /// Adds what a valid entry changes to `replay`.
    fn collect(&self, entry: &Entry, replay: &mut Replay) -> Result<()> {
        let mut data = entry.offset + entry.descriptor_sectors() * SECTOR;
        let mut sector = [0; SECTOR as usize];
        for index in 0..entry.descriptors {
            // The entry's header takes the place of two descriptors.
            let at = entry.offset + (index * DESCRIPTOR_LEN + ENTRY_HEADER_LEN) / SECTOR * SECTOR;
            let within = (index * DESCRIPTOR_LEN + ENTRY_HEADER_LEN) % SECTOR;
            if index == 0 || within == 0 {
                sector = self.sector(at)?;
            }
            let descriptor = sector.get(within as usize..).unwrap_or_default();
            let offset = u64_at(descriptor, 16);
            let (len, source) = if descriptor.starts_with(b"desc") {
                let source = Source::Sector { at: self.at(data), leading: u64_at(descriptor, 8), trailing: u32_at(descriptor, 4) };
                data += SECTOR;
                (SECTOR, source)
            } else {
                (u64_at(descriptor, 8), Source::Zero)
            };
            let limit = replay.file_size.checked_next_multiple_of(SECTOR).unwrap_or(u64::MAX);
            let end = offset.checked_add(len).filter(|end| *end <= limit);
            let log = self.header.log_offset..self.header.log_offset + self.len;
            let sound = offset >= MIB && offset.is_multiple_of(SECTOR) && len.is_multiple_of(SECTOR);
            match end {
                Some(end) if sound && (end <= log.start || offset >= log.end) => replay.patches.insert(offset..end, source),
                _ => {
                    let what = format!("a log entry changes {len:#x} bytes at {offset:#x}, where it may not");
                    return Err(Error::corrupt(self.storage.name(), FORMAT, self.at(at) + within, what));
                }
            }
        }
        Ok(())
    }
}

impl Entry {
    /// Sectors at its start that hold header and descriptors.
    fn descriptor_sectors(&self) -> u64 {
        (ENTRY_HEADER_LEN + self.descriptors * DESCRIPTOR_LEN).div_ceil(SECTOR)
    }
}
