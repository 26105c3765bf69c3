//! The writing end of a copy: what has an order, and the bytes, which have none.

use std::ops::Range;

use super::runs::{Content, Run};
use super::{Copied, Options, PIECE};
use crate::{Compression, Error, ImageMut, Place, Placing, Result};

/// The target, and how it wants to be written.
pub(super) struct Target<'a> {
    pub image: &'a dyn ImageMut,
    /// Bytes that are read and written at once: whole clusters.
    pub piece: u64,
    /// Blocks that are looked at for zeroes; 0 for not at all.
    pub granule: u64,
    /// Where holes may begin and end, so that none cuts a cluster.
    pub unit: u64,
    pub compression: Option<&'a dyn Compression>,
    placing: Option<&'a dyn Placing>,
    is_zero: bool,
}

/// Bytes that have a place in the target's file and are still to be stored there.
pub(super) enum Stored {
    /// A part of the buffer.
    Data(Range<usize>, u64),
    /// Compressed clusters that lie one behind the other.
    Packed(Vec<u8>, u64),
}

impl<'a> Target<'a> {
    pub fn new(image: &'a dyn ImageMut, options: &Options) -> Result<Self> {
        let info = image.info();
        let compression = image.compression().filter(|c| options.compress || c.is_needed());
        if options.compress && compression.is_none() {
            return Err(Error::unsupported(
                &info.file,
                info.format,
                "compressed images of this kind: use qcow2, or vmdk with -o subformat=streamOptimized",
            ));
        }
        let cluster = Some(image.hole_unit()).filter(|size| size.is_power_of_two() && *size <= MAX_PIECE).unwrap_or(1);
        let piece = PIECE.max(cluster).max(compression.map_or(0, |c| c.cluster_size()));
        let granule = if options.sparse == 0 { 0 } else { options.sparse.max(cluster).min(piece) };
        Ok(Target { image, piece, granule, unit: cluster, compression, placing: image.placing(), is_zero: options.target_is_zero })
    }

    /// Does what has an order for `runs` of a buffer that belongs at `offset`; what is left can be stored at any time.
    pub fn place(&self, buf: &[u8], runs: Vec<Run>, offset: u64, copied: &mut Copied) -> Result<Vec<Stored>> {
        let mut stored = Vec::new();
        for run in runs {
            let (at, len) = (offset + run.range.start as u64, run.range.len() as u64);
            match run.content {
                Content::Zero => {
                    self.zero(at, len, copied)?;
                    continue;
                }
                Content::Packed(packed) => self.place_packed(packed, at, &mut stored)?,
                Content::Data => self.place_data(buf, run.range, at, &mut stored)?,
            }
            copied.data += len;
        }
        Ok(stored)
    }

    fn place_data(&self, buf: &[u8], mut range: Range<usize>, mut at: u64, stored: &mut Vec<Stored>) -> Result<()> {
        while !range.is_empty() {
            let Some(Place { host, len }) = (match self.placing {
                Some(placing) => placing.place(at, range.len() as u64)?,
                None => None,
            }) else {
                return self.image.write_at(&buf[range], at);
            };
            let end = range.start + (len as usize).min(range.len());
            stored.push(Stored::Data(range.start..end, host));
            at += len;
            range.start = end;
        }
        Ok(())
    }

    fn place_packed(&self, packed: Vec<u8>, at: u64, stored: &mut Vec<Stored>) -> Result<()> {
        let Some(compression) = self.compression else { return Ok(()) };
        let Some(host) = compression.place_packed(at, packed.len() as u64)? else { return compression.write_packed(&packed, at) };
        match stored.last_mut() {
            Some(Stored::Packed(bytes, start)) if *start + bytes.len() as u64 == host => bytes.extend(packed),
            _ => stored.push(Stored::Packed(packed, host)),
        }
        Ok(())
    }

    pub fn store(&self, buf: &[u8], piece: Stored) -> Result<()> {
        let Some(placing) = self.placing else { return Ok(()) };
        match piece {
            Stored::Data(range, host) => placing.store(&buf[range], host),
            Stored::Packed(bytes, host) => placing.store(&bytes, host),
        }
    }

    /// Places and stores in one go.
    pub fn write(&self, buf: &[u8], runs: Vec<Run>, offset: u64, copied: &mut Copied) -> Result<()> {
        self.place(buf, runs, offset, copied)?.into_iter().try_for_each(|piece| self.store(buf, piece))
    }

    pub fn zero(&self, offset: u64, len: u64, copied: &mut Copied) -> Result<()> {
        if !self.is_zero {
            self.image.zero_at(offset, len)?;
        }
        copied.zero += len;
        Ok(())
    }
}

/// Clusters larger than this are written in parts.
const MAX_PIECE: u64 = 4 << 20;
