//! Writing where this image has no bytes of its own yet: new clusters, and what is copied up around the new bytes.
//!
//! Only as much is copied as makes whole subclusters, unless the old place is given up: then all that is stored there
//! moves.

use std::ops::Range;

use super::Qcow2;
use super::entry::{Cluster, Place, subclusters};
use crate::{Image, Result};

/// New clusters taken at once, in bytes: between them, other writers get their turn.
pub(super) const MAX_NEW: u64 = 64 << 20;
/// Up to so many bytes, a copied-up head and tail are written together with the data.
const JOIN: u64 = 256 << 10;

/// Where bytes go: into clusters that adjoin in the file.
pub(super) struct Target {
    /// Guest offset of the first cluster.
    start: u64,
    /// Its place in the file.
    pub host: u64,
    /// Whether nothing was ever written there.
    fresh: bool,
}

impl Cluster {
    /// Whether it already has a place that may be written.
    fn own_host(&self) -> Option<u64> {
        match self.place {
            Place::Host { offset, own: true } => Some(offset),
            _ => None,
        }
    }

    /// The subclusters that would be lost with the place.
    fn tied(&self) -> u32 {
        match self.place {
            Place::Host { own: true, .. } => 0,
            Place::Compressed { .. } => u32::MAX,
            _ => self.stored,
        }
    }

    fn is_stored(&self, sub: u64) -> bool {
        self.own_host().is_some() && self.stored >> sub & 1 == 1
    }
}

impl Qcow2 {
    /// Writes the first part of `data` where this image stores nothing of its own and gives its length; 0 when another
    /// thread made the place meanwhile.
    pub(super) fn write_new(&self, data: &[u8], guest: u64) -> Result<usize> {
        let cluster_size = self.cluster_size();
        let span = self.header.l2_span();
        let end = (guest + data.len() as u64).min((guest / span + 1) * span).min(guest + MAX_NEW);
        let first = guest / cluster_size;
        let start = first * cluster_size;
        let _lock = self.writer()?.ranges.lock(first..end.div_ceil(cluster_size));
        let Some((head, target, clusters)) = self.place_for(guest, end)? else { return Ok(0) };
        let stop = end.min(start + (clusters.end - clusters.start) * cluster_size);
        let last = (stop - 1) / cluster_size;
        let tail = if last == first { head } else { self.cluster(last)? };
        let whole = self.head_start(&head, guest)..self.tail_end(&tail, stop);
        // A data file is no longer than the disk.
        let end = if self.external() { whole.end.min(self.size()) } else { whole.end };
        let written = self.fill(&data[..(stop - guest) as usize], guest, &(whole.start..end), &target);
        let mut allocation = self.allocation()?;
        if let Err(e) = written {
            if head.own_host().is_none() && !self.external() {
                allocation.refcounts.free_later(clusters, false);
            }
            return Err(e);
        }
        let unit = self.header.subcluster_size();
        let entries = (first..=last).map(|number| {
            let base = number * cluster_size;
            let old = match number {
                _ if number == first => head,
                _ if number == last => tail,
                // All of it is covered.
                _ => Cluster { place: Place::Nowhere, stored: 0, zero: 0 },
            };
            let (from, to) = (whole.start.max(base) - base, whole.end.min(base + cluster_size) - base);
            let covered = subclusters(from / unit, to.div_ceil(unit));
            let kept = if old.own_host().is_some() { old.stored } else { 0 };
            let place = Place::Host { offset: target.host + (base - start), own: true };
            Cluster { place, stored: kept | covered, zero: old.zero & !covered }
        });
        self.link(&mut allocation, first, entries, false)?;
        Ok((stop - guest) as usize)
    }

    /// The first guest cluster of `guest..end` as it is, and the place for as many of them as go together: the one that
    /// they have, or a new one. `None` when the byte at `guest` is stored there already.
    pub(super) fn place_for(&self, guest: u64, end: u64) -> Result<Option<(Cluster, Target, Range<u64>)>> {
        let cluster_size = self.cluster_size();
        let (first, after) = (guest / cluster_size, end.div_ceil(cluster_size));
        let start = first * cluster_size;
        let mut allocation = self.allocation()?;
        self.own_l2(&mut allocation, guest)?;
        let head = self.cluster(first)?;
        if head.is_stored((guest - start) / self.header.subcluster_size()) {
            return Ok(None);
        }
        let mut count = 1;
        while first + count < after && alike(&head, &self.cluster(first + count)?, count * cluster_size) {
            count += 1;
        }
        let there = head.own_host().or(self.external().then_some(start));
        if let Some(host) = there {
            let clusters = host / cluster_size..host / cluster_size + count;
            return Ok(Some((head, Target { start, host, fresh: false }, clusters)));
        }
        let clusters = allocation.refcounts.allocate(count)?;
        let fresh = allocation.refcounts.is_fresh(&clusters);
        Ok(Some((head, Target { start, host: clusters.start * cluster_size, fresh }, clusters)))
    }

    /// Where the bytes begin that must be written with those from `guest` on.
    fn head_start(&self, cluster: &Cluster, guest: u64) -> u64 {
        let unit = self.header.subcluster_size();
        let base = guest - guest % self.cluster_size();
        let sub = (guest - base) / unit;
        if cluster.is_stored(sub) {
            return guest;
        }
        base + sub.min(cluster.tied().trailing_zeros().into()) * unit
    }

    /// Where the bytes end that must be written with those up to `stop`.
    fn tail_end(&self, cluster: &Cluster, stop: u64) -> u64 {
        let unit = self.header.subcluster_size();
        let base = (stop - 1) - (stop - 1) % self.cluster_size();
        let after = (stop - base).div_ceil(unit);
        if cluster.is_stored(after - 1) {
            return stop;
        }
        let tied = u64::from(u32::BITS - cluster.tied().leading_zeros()).min(self.cluster_size() / unit);
        base + after.max(tied) * unit
    }

    /// Writes `data` for byte `guest` to its place, with what the guest has around it in `whole`.
    fn fill(&self, data: &[u8], guest: u64, whole: &Range<u64>, target: &Target) -> Result<()> {
        let stop = guest + data.len() as u64;
        let head = self.copied_up(whole.start..guest, target.fresh)?;
        let tail = self.copied_up(stop..whole.end, target.fresh)?;
        let at = target.host + (guest - target.start);
        if head.is_empty() && tail.is_empty() {
            return self.write_in_place(data, at);
        }
        if (head.len() + data.len() + tail.len()) as u64 <= JOIN {
            return self.write_in_place(&[&head[..], data, &tail[..]].concat(), at - head.len() as u64);
        }
        if !head.is_empty() {
            self.write_in_place(&head, at - head.len() as u64)?;
        }
        self.write_in_place(data, at)?;
        if tail.is_empty() { Ok(()) } else { self.write_in_place(&tail, at + data.len() as u64) }
    }

    /// What the guest reads in `range` of one cluster; empty where zeroes need not be written.
    fn copied_up(&self, range: Range<u64>, fresh: bool) -> Result<Vec<u8>> {
        if range.is_empty() || (fresh && self.reads_zero(range.clone())?) {
            return Ok(Vec::new());
        }
        let mut buf = vec![0; (range.end - range.start) as usize];
        let _reading = self.reads.read().unwrap_or_else(|e| e.into_inner());
        self.read_range(&mut buf, range.start)?;
        Ok(buf)
    }

    /// Whether metadata alone says that `range` reads as zeroes.
    fn reads_zero(&self, range: Range<u64>) -> Result<bool> {
        let mut at = range.start;
        while at < range.end {
            let (mapping, run) = self.lookup(at, range.end - at)?;
            if !self.is_zero(mapping, at) {
                return Ok(false);
            }
            at += run;
        }
        Ok(true)
    }
}

/// Whether `other`, `distance` bytes behind `head`, is written in one go with it: into the place both have, or a new one.
fn alike(head: &Cluster, other: &Cluster, distance: u64) -> bool {
    match (head.own_host(), other.own_host()) {
        (Some(a), Some(b)) => a.checked_add(distance) == Some(b),
        (None, None) => true,
        _ => false,
    }
}
