//! The table of internal snapshots.
//!
//! Source: `docs/interop/qcow2.txt`, section "Snapshots".

use super::header::{FORMAT, Header, be32, be64};
use crate::storage::read_padded;
use crate::{Error, Result, SnapshotInfo, Storage};

const FIXED: usize = 40;
const MAX_EXTRA: u32 = 1024;
const MAX_TABLE: u64 = 64 << 20;
const MAX_L1_BYTES: u64 = 32 << 20;

/// One entry of the table.
pub(super) struct Snapshot {
    pub info: SnapshotInfo,
    pub l1_table_offset: u64,
    pub l1_size: u32,
    /// Bytes of the entry in the table.
    pub entry_len: u64,
}

/// Reads the snapshot table, with bounds on all that it counts.
pub(super) fn read(storage: &dyn Storage, header: &Header) -> Result<Vec<Snapshot>> {
    let corrupt = |at: u64, what: String| Error::corrupt(storage.name(), FORMAT, at, what);
    let mut snapshots = Vec::new();
    let mut at = header.snapshots_offset;
    for index in 0..header.nb_snapshots {
        let mut fixed = [0; FIXED];
        read_padded(storage, &mut fixed, at)?;
        let id_len = u16::from_be_bytes([fixed[12], fixed[13]]);
        let name_len = u16::from_be_bytes([fixed[14], fixed[15]]);
        let extra_len = be32(&fixed, 36);
        if extra_len > MAX_EXTRA {
            return Err(corrupt(at + 36, format!("snapshot {index} has {extra_len} bytes of extra data, allowed are {MAX_EXTRA}")));
        }
        let mut rest = vec![0; extra_len as usize + usize::from(id_len) + usize::from(name_len)];
        read_padded(storage, &mut rest, at + FIXED as u64)?;
        let (extra, names) = rest.split_at(extra_len as usize);
        let (id, name) = names.split_at(usize::from(id_len));
        let number = |from: usize, fallback: u64| if extra.len() >= from + 8 { be64(extra, from) } else { fallback };
        let entry_len = ((FIXED + rest.len()) as u64).next_multiple_of(8);
        let l1_table_offset = be64(&fixed, 0);
        let l1_size = be32(&fixed, 8);
        if u64::from(l1_size) * 8 > MAX_L1_BYTES || !l1_table_offset.is_multiple_of(header.cluster_size()) {
            return Err(corrupt(at, format!("the L1 table of snapshot {index} cannot have {l1_size} entries at {l1_table_offset:#x}")));
        }
        let info = SnapshotInfo {
            id: String::from_utf8_lossy(id).into_owned(),
            name: String::from_utf8_lossy(name).into_owned(),
            date_sec: be32(&fixed, 16),
            date_nsec: be32(&fixed, 20),
            vm_clock_nsec: be64(&fixed, 24),
            vm_state_size: number(0, u64::from(be32(&fixed, 32))),
            icount: (extra.len() >= 24).then(|| be64(extra, 16)).filter(|count| *count != u64::MAX),
        };
        snapshots.push(Snapshot { info, l1_table_offset, l1_size, entry_len });
        at += entry_len;
        if at - header.snapshots_offset > MAX_TABLE {
            return Err(corrupt(header.snapshots_offset, format!("the snapshot table is larger than {MAX_TABLE} bytes")));
        }
    }
    Ok(snapshots)
}
