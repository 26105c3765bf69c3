//! Attributes' content: in the record, or in runs of clusters, which may be sparse or compressed. (Linux-NTFS
//! documentation, "Data Runs", "Compression")

use std::sync::Arc;

use super::Ntfs;
use super::record::{COMPRESSED, ENCRYPTED};
use crate::window::Cache;
use crate::{Error, Result, Window};

/// A file has no more pieces: a list of them is kept in memory.
const RUNS_LIMIT: usize = 1 << 20;
/// Clusters that are compressed together, in bytes.
const UNIT_LIMIT: u64 = 1 << 20;

/// Clusters that lie together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    vcn: u64,
    len: u64,
    /// `None` for zeroes.
    lcn: Option<u64>,
}

/// Content that can be read at any place.
#[derive(Clone, Debug)]
pub(crate) enum Stream {
    Resident(Vec<u8>),
    Clusters(Clusters),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Clusters {
    pub size: u64,
    pub initialized: u64,
    /// Bytes that it takes on the volume.
    pub total: u64,
    pub flags: u16,
    pub unit_log: u16,
    pub runs: Vec<Run>,
}

impl Clusters {
    /// Takes up the mapping pairs of one attribute, which go on from what is known.
    pub(crate) fn add(&mut self, first_vcn: u64, pairs: &[u8], window: &Window) -> Result<()> {
        let bad = |what: &str| window.corrupt(format!("a list of runs {what}"));
        let (mut vcn, mut lcn) = (first_vcn, 0i64);
        if self.runs.last().map_or(0, |r| r.vcn + r.len) != vcn {
            return Err(bad("does not go on where the one before ends"));
        }
        let mut rest = pairs;
        while let [header, after @ ..] = rest
            && *header != 0
        {
            let (len_size, offset_size) = (usize::from(header & 0xf), usize::from(header >> 4));
            let (Some(len), Some(offset)) = (after.get(..len_size), after.get(len_size..len_size + offset_size)) else {
                return Err(bad("is cut"));
            };
            if len_size > 8 || offset_size > 8 || self.runs.len() >= RUNS_LIMIT {
                return Err(bad("is not sane"));
            }
            let len = len.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
            let end = vcn.checked_add(len).filter(|e| len > 0 && *e <= i64::MAX as u64).ok_or_else(|| bad("has an impossible length"))?;
            let place = if offset_size == 0 {
                None
            } else {
                let negative = offset[offset_size - 1] & 0x80 != 0;
                let start = if negative { -1i64 } else { 0 };
                let delta = offset.iter().rev().fold(start, |n, b| n << 8 | i64::from(*b));
                lcn = lcn.checked_add(delta).filter(|l| *l >= 0).ok_or_else(|| bad("leads before the volume"))?;
                Some(lcn.cast_unsigned())
            };
            self.runs.push(Run { vcn, len, lcn: place });
            vcn = end;
            rest = &after[len_size + offset_size..];
        }
        Ok(())
    }

    /// What holds a cluster, and for how many clusters from there on.
    fn run(&self, vcn: u64) -> (Option<u64>, u64) {
        let after = self.runs.partition_point(|r| r.vcn <= vcn);
        match after.checked_sub(1).and_then(|i| self.runs.get(i)) {
            Some(run) if vcn - run.vcn < run.len => (run.lcn.map(|l| l.saturating_add(vcn - run.vcn)), run.len - (vcn - run.vcn)),
            _ => (None, self.runs.get(after).map_or(u64::MAX, |next| next.vcn - vcn)),
        }
    }

    /// One piece, up to the end of a run or of the buffer, whatever the stream's size.
    fn raw_piece(&self, window: &Window, cluster_size: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let (lcn, len) = self.run(offset / cluster_size);
        let skip = offset % cluster_size;
        let take = usize::try_from(len.saturating_mul(cluster_size) - skip).unwrap_or(usize::MAX).min(buf.len());
        match lcn {
            None => buf[..take].fill(0),
            Some(lcn) => {
                let place = lcn.checked_mul(cluster_size).and_then(|p| p.checked_add(skip));
                let place = place.ok_or_else(|| window.corrupt(format!("cluster {lcn} lies behind the volume's end")))?;
                window.read(place, &mut buf[..take])?;
            }
        }
        Ok(take)
    }
}

impl Stream {
    pub(crate) fn size(&self) -> u64 {
        match self {
            Stream::Resident(value) => value.len() as u64,
            Stream::Clusters(clusters) => clusters.size,
        }
    }

    /// Where `len` bytes lie on the volume, if they lie together.
    pub(crate) fn place(&self, cluster_size: u64, offset: u64, len: u64) -> Option<u64> {
        let Stream::Clusters(clusters) = self else { return None };
        let (lcn, count) = clusters.run(offset / cluster_size);
        let skip = offset % cluster_size;
        let together = count.saturating_mul(cluster_size) - skip >= len && offset.checked_add(len)? <= clusters.initialized;
        lcn.filter(|_| together)?.checked_mul(cluster_size)?.checked_add(skip)
    }

    /// Whether there is a hole at a place, and for how many bytes it goes on so.
    pub(crate) fn run_of(&self, cluster_size: u64, offset: u64) -> (bool, u64) {
        let Stream::Clusters(clusters) = self else { return (false, u64::MAX) };
        if offset >= clusters.initialized {
            return (true, u64::MAX);
        }
        let written = clusters.initialized - offset;
        // A unit that is compressed may end with clusters that are not there; one that begins so is a hole.
        let log = if clusters.flags & COMPRESSED == 0 { 0 } else { u32::from(clusters.unit_log).min(UNIT_LIMIT.ilog2()) };
        let unit = cluster_size << log;
        let begin = offset / unit * unit;
        let (lcn, len) = clusters.run(begin / cluster_size);
        let whole = if log == 0 {
            len.saturating_mul(cluster_size)
        } else if lcn.is_some() {
            unit
        } else {
            (len >> log).max(1).saturating_mul(unit)
        };
        (lcn.is_none(), whole.saturating_sub(offset - begin).max(1).min(written))
    }

    /// One piece: up to the end of a run, of the stream or of the buffer. `owner` and its offset are what unpacked
    /// content is kept by.
    pub(crate) fn piece(&self, fs: &Ntfs, owner: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let left = usize::try_from(self.size().saturating_sub(offset)).unwrap_or(usize::MAX).min(buf.len());
        let buf = &mut buf[..left];
        if buf.is_empty() {
            return Ok(0);
        }
        let clusters = match self {
            Stream::Resident(value) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX).min(value.len());
                buf.copy_from_slice(&value[from..from + left]);
                return Ok(left);
            }
            Stream::Clusters(clusters) => clusters,
        };
        if clusters.flags & ENCRYPTED != 0 {
            return Err(Error::Unsupported { filesystem: "NTFS", what: "encrypted files".into() });
        }
        let written = clusters.initialized.saturating_sub(offset);
        if written == 0 {
            buf.fill(0);
            return Ok(left);
        }
        let buf = &mut buf[..left.min(usize::try_from(written).unwrap_or(usize::MAX))];
        if clusters.flags & COMPRESSED == 0 || clusters.unit_log == 0 {
            return clusters.raw_piece(&fs.window, fs.cluster_size, offset, buf);
        }
        let unit = fs.cluster_size.checked_shl(clusters.unit_log.into()).filter(|u| (1..=UNIT_LIMIT).contains(u));
        let unit = unit.ok_or_else(|| fs.window.corrupt(format!("2^{} clusters are compressed together", clusters.unit_log)))?;
        let content = unpacked(fs, clusters, &fs.units, owner, offset / unit, unit)?;
        let skip = (offset % unit) as usize;
        let part = content.get(skip..).unwrap_or_default();
        let take = part.len().min(buf.len());
        buf[..take].copy_from_slice(&part[..take]);
        Ok(take)
    }
}

/// A whole unit of a compressed stream: as it stands where all its clusters are there, unpacked where some are missing.
fn unpacked(fs: &Ntfs, clusters: &Clusters, cache: &Cache<(u64, u64)>, owner: u64, index: u64, unit: u64) -> Result<Arc<[u8]>> {
    cache.get((owner, index), || {
        let begin = index * unit;
        let (mut vcn, end) = (begin / fs.cluster_size, (begin + unit) / fs.cluster_size);
        let mut stored = 0;
        while vcn < end {
            let (lcn, len) = clusters.run(vcn);
            let len = len.min(end - vcn);
            if lcn.is_none() {
                break;
            }
            stored += len * fs.cluster_size;
            vcn += len;
        }
        let mut raw = vec![0; stored as usize];
        crate::reader::fill(begin, &mut raw, |at, rest| clusters.raw_piece(&fs.window, fs.cluster_size, at, rest))?;
        let bad = || fs.window.corrupt(format!("record {owner}: compressed content at {begin} is damaged"));
        let mut content = if stored == unit || stored == 0 { raw } else { super::lznt1::unpack(&raw, unit as usize).ok_or_else(bad)? };
        content.resize(unit as usize, 0);
        Ok(content.into())
    })
}
