//! Writing an image to a pipe: all of the layout is known before the first byte.
//!
//! Header, refcount table, refcount blocks, L1 table, L2 tables and data follow each other without a gap, so every
//! cluster up to the end is used once. What holds data is found in a first pass over the source.

use std::ops::{ControlFlow, Range};

use super::create::settings;
use super::entry::{COPIED, Cluster, Place};
use super::header::{DATA_FILE, EXTENDED_L2, FORMAT, Header, MAX_OFFSET};
use super::measure::refcount_layout;
use super::refcount::set_count;
use crate::copy::is_zero;
use crate::formats::CreateOptions;
use crate::stream::Stream;
use crate::{Error, Image, Preallocation, Progress, Result};

/// Bytes that are looked at together for zeroes.
const PIECE: u64 = 1 << 20;

pub(super) fn write_stream(
    source: &dyn Image,
    options: &CreateOptions,
    out: &mut dyn std::io::Write,
    progress: &dyn Progress,
) -> Result<()> {
    let settings = settings(source.size(), options)?;
    let mut header = settings.header;
    if header.has(DATA_FILE) || header.backing_file.is_some() || settings.preallocation != Preallocation::Off {
        let what = "a backing file, a data file or preallocation in an image that is written to a pipe";
        return Err(Error::unsupported("the output", FORMAT, what));
    }
    let data = data_clusters(source, &header, progress)?;
    let cluster_size = header.cluster_size();
    let per_table = header.l2_span() / cluster_size;
    let tables = tables(&data, per_table);
    let l1_clusters = (u64::from(header.l1_size) * 8).div_ceil(cluster_size);
    let count: u64 = data.iter().map(|run| run.end - run.start).sum();
    let (table_clusters, blocks) = refcount_layout(&header, 1 + l1_clusters + tables.len() as u64 + count);
    let l1_start = 1 + table_clusters + blocks;
    let l2_start = l1_start + l1_clusters;
    let data_start = l2_start + tables.len() as u64;
    let end = data_start + count;
    if end > MAX_OFFSET >> header.cluster_bits {
        return Err(Error::Invalid("the image is too large".into()));
    }
    header.l1_table_offset = l1_start * cluster_size;
    header.refcount_table_clusters = u32::try_from(table_clusters).unwrap_or(u32::MAX);
    header.check("the output")?;
    progress.total(count * cluster_size);

    let mut stream = Stream::new(out, progress);
    let cluster = |mut bytes: Vec<u8>| {
        bytes.resize(bytes.len().next_multiple_of(cluster_size as usize), 0);
        bytes
    };
    let numbers = |words: &mut dyn Iterator<Item = u64>| cluster(words.flat_map(u64::to_be_bytes).collect());
    stream.write(&cluster(header.serialize()?))?;
    stream.write(&numbers(&mut (0..blocks).map(|block| (1 + table_clusters + block) * cluster_size)))?;
    for block in 0..blocks {
        stream.write(&count_block(&header, block * header.refcounts_per_block(), end))?;
    }
    let mut l1 = vec![0; header.l1_size as usize];
    for (number, place) in tables.iter().zip(l2_start..) {
        if let Some(entry) = l1.get_mut(*number as usize) {
            *entry = (place * cluster_size) | COPIED;
        }
    }
    stream.write(&numbers(&mut l1.into_iter()))?;
    write_l2_tables(&mut stream, &header, &data, data_start)?;
    for run in &data {
        let (start, end) = (run.start * cluster_size, run.end * cluster_size);
        let there = end.min(source.size());
        stream.copy(source, start..there)?;
        stream.zeroes(end - there)?;
        progress.advance(end - start);
    }
    stream.finish()
}

/// The clusters of `source` that are not all zeroes, in ascending runs.
fn data_clusters(source: &dyn Image, header: &Header, progress: &dyn Progress) -> Result<Vec<Range<u64>>> {
    let cluster_size = header.cluster_size();
    let mut maybe: Vec<Range<u64>> = Vec::new();
    source.extents(0..source.size(), &mut |extent| {
        if !extent.kind.reads_zero() {
            add(&mut maybe, extent.start / cluster_size..(extent.start + extent.len).div_ceil(cluster_size));
        }
        ControlFlow::Continue(())
    })?;
    let mut data = Vec::new();
    let piece = (PIECE / cluster_size).max(1);
    let mut buf = vec![0; (piece * cluster_size) as usize];
    for run in maybe {
        let mut first = run.start;
        while first < run.end {
            if progress.cancelled() {
                return Err(Error::Cancelled);
            }
            let end = run.end.min(first + piece);
            let len = (end * cluster_size).min(source.size()) - first * cluster_size;
            let bytes = &mut buf[..len as usize];
            source.read_at(bytes, first * cluster_size)?;
            for (cluster, bytes) in (first..).zip(bytes.chunks(cluster_size as usize)) {
                if !is_zero(bytes) {
                    add(&mut data, cluster..cluster + 1);
                }
            }
            first = end;
        }
    }
    Ok(data)
}

/// Adds a run that starts no earlier than the last one.
fn add(runs: &mut Vec<Range<u64>>, run: Range<u64>) {
    match runs.last_mut() {
        Some(last) if last.end >= run.start => last.end = last.end.max(run.end),
        _ => runs.push(run),
    }
}

/// The numbers of the L2 tables that `data` needs.
fn tables(data: &[Range<u64>], per_table: u64) -> Vec<u64> {
    let mut tables: Vec<u64> = data.iter().flat_map(|run| run.start / per_table..(run.end - 1) / per_table + 1).collect();
    tables.dedup();
    tables
}

/// The refcount block for clusters from `first` on, of which all up to `end` are used once.
fn count_block(header: &Header, first: u64, end: u64) -> Vec<u8> {
    let mut block = vec![0; header.cluster_size() as usize];
    let used = end.saturating_sub(first).min(header.refcounts_per_block());
    (0..used).for_each(|place| set_count(&mut block, place, header.refcount_order, 1));
    block
}

/// Writes the L2 tables for `data`, which lies from cluster `place` on in the file.
fn write_l2_tables(stream: &mut Stream<'_>, header: &Header, data: &[Range<u64>], mut place: u64) -> Result<()> {
    let cluster_size = header.cluster_size();
    let per_table = header.l2_span() / cluster_size;
    let stored = if header.has(EXTENDED_L2) { u32::MAX } else { 1 };
    let mut current: Option<(u64, Vec<u8>)> = None;
    for cluster in data.iter().cloned().flatten() {
        let number = cluster / per_table;
        if current.as_ref().is_none_or(|(table, _)| *table != number)
            && let Some((_, full)) = current.replace((number, vec![0; cluster_size as usize]))
        {
            stream.write(&full)?;
        }
        let place_of = Place::Host { offset: place * cluster_size, own: true };
        let (entry, bitmap) = Cluster { place: place_of, stored, zero: 0 }.encode(header);
        let at = (cluster % per_table * header.l2_entry_size()) as usize;
        let bytes = [entry.to_be_bytes(), bitmap.to_be_bytes()].concat();
        if let Some(slot) = current.as_mut().and_then(|(_, table)| table.get_mut(at..at + header.l2_entry_size() as usize)) {
            slot.copy_from_slice(&bytes[..slot.len()]);
        }
        place += 1;
    }
    current.map_or(Ok(()), |(_, last)| stream.write(&last))
}
