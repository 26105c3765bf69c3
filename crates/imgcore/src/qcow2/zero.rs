//! Zeroes and discards: by flags for whole subclusters, by stored zeroes for the rest.

use std::ops::Range;

use super::Qcow2;
use super::entry::{Cluster, Mapping, Place, subclusters};
use super::header::DATA_FILE_RAW;
use crate::{Image, Result};

impl Qcow2 {
    /// Makes a range that lies in the image read as zeroes.
    pub(super) fn zero_range(&self, range: Range<u64>) -> Result<()> {
        let Range { start, end } = range;
        if self.external() && self.header.autoclear & DATA_FILE_RAW != 0 && self.header.backing_file.is_none() {
            // The data file alone must read the same, and then no flag is needed.
            return self.zero_external(range);
        }
        let unit = self.header.subcluster_size();
        // What lies past the end of the image in its last cluster is nobody's.
        let whole_end = if end == self.size() { end.next_multiple_of(self.cluster_size()) } else { end - end % unit };
        let whole = start.next_multiple_of(unit)..whole_end;
        if whole.start >= whole.end || (self.header.version == 2 && self.has_backing_at(whole.start)) {
            return self.write_zeroes(start..end);
        }
        self.write_zeroes(start..whole.start.min(end))?;
        self.flag_zeroes(whole.clone())?;
        self.write_zeroes(whole.end.min(end)..end)
    }

    /// Makes whole subclusters read as zeroes.
    fn flag_zeroes(&self, range: Range<u64>) -> Result<()> {
        let span = self.header.l2_span();
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min((at / span + 1) * span);
            if self.l2_offset(at)?.is_some() || self.has_backing_at(at) {
                self.flag_in_table(at..end)?;
            }
            at = end;
        }
        Ok(())
    }

    /// The same within one L2 table.
    fn flag_in_table(&self, range: Range<u64>) -> Result<()> {
        let (cluster_size, unit) = (self.cluster_size(), self.header.subcluster_size());
        let numbers = range.start / cluster_size..range.end.div_ceil(cluster_size);
        let mut compressed = Vec::new();
        {
            let _lock = self.writer()?.ranges.lock(numbers.clone());
            let mut allocation = self.allocation()?;
            self.own_l2(&mut allocation, range.start)?;
            let mut new = Vec::with_capacity((numbers.end - numbers.start) as usize);
            let mut emptied: Option<Range<u64>> = None;
            for number in numbers.clone() {
                let base = number * cluster_size;
                let part = range.start.max(base)..range.end.min(base + cluster_size);
                let old = self.cluster(number)?;
                let bits = subclusters((part.start - base) / unit, (part.end - base) / unit);
                let all = part.end - part.start == cluster_size;
                let zero = if self.has_backing_at(part.start) { bits } else { 0 };
                new.push(match old.place {
                    Place::Compressed { .. } if !all => {
                        compressed.push(part.clone());
                        old
                    }
                    Place::Host { .. } if !all => Cluster { stored: old.stored & !bits, zero: old.zero | bits, ..old },
                    _ if all => Cluster { place: Place::Nowhere, stored: 0, zero },
                    _ => Cluster { zero: old.zero | zero, ..old },
                });
                if let (Place::Host { offset, .. }, true) = (old.place, self.external()) {
                    let place = offset + (part.start - base)..offset + (part.end - base);
                    match &mut emptied {
                        Some(run) if run.end == place.start => run.end = place.end,
                        _ => emptied.replace(place).map_or(Ok(()), |run| self.zero_external(run))?,
                    }
                }
            }
            emptied.map_or(Ok(()), |run| self.zero_external(run))?;
            self.link(&mut allocation, numbers.start, new.into_iter(), true)?;
        }
        compressed.into_iter().try_for_each(|part| self.write_zeroes(part.start..part.end.min(self.size())))
    }

    /// Makes a range of the external data file zeroes, up to its end.
    fn zero_external(&self, range: Range<u64>) -> Result<()> {
        let end = range.end.min(self.data.size()?);
        if range.start < end { self.data.zero_at(range.start, end - range.start) } else { Ok(()) }
    }

    /// Stores zeroes where the range does not read as zeroes already.
    pub(super) fn write_zeroes(&self, range: Range<u64>) -> Result<()> {
        let mut at = range.start;
        let zeroes = vec![0; (range.end - range.start).min(1 << 20) as usize];
        while at < range.end {
            let (mapping, run) = self.lookup(at, (range.end - at).min(zeroes.len() as u64))?;
            if !self.is_zero(mapping, at) {
                self.write_range(&zeroes[..run as usize], at)?;
            }
            at += run;
        }
        Ok(())
    }

    /// Whether what `lookup` found for byte `guest` reads as zeroes.
    pub(super) fn is_zero(&self, mapping: Mapping, guest: u64) -> bool {
        match mapping {
            Mapping::Zero { .. } => true,
            Mapping::Unallocated => !self.has_backing_at(guest),
            _ => false,
        }
    }

    pub(super) fn has_backing_at(&self, guest: u64) -> bool {
        // A backing file that was left closed may hold anything.
        match &self.backing {
            Some(backing) => guest < backing.size(),
            None => self.header.backing_file.is_some(),
        }
    }
}
