//! The table of internal snapshots.
//!
//! Source: `docs/interop/qcow2.txt`, section "Snapshots".

use super::header::{FORMAT, Header, be32, be64};
use crate::storage::read_padded;
use crate::{Error, Result, SnapshotInfo, Storage};

const FIXED: usize = 40;
const MAX_EXTRA: u32 = 1024;
const MAX_TABLE: u64 = 64 << 20;
pub(super) const MAX_L1_BYTES: u64 = 32 << 20;
/// Bytes of extra data that are known: size of the machine state, size of the disk, instruction count.
const EXTRA: usize = 24;
const NO_ICOUNT: u64 = u64::MAX;

/// One entry of the table.
#[derive(Clone)]
pub(super) struct Snapshot {
    pub info: SnapshotInfo,
    /// The disk's size then, where it is recorded.
    pub disk_size: Option<u64>,
    /// Extra data behind what is known here, kept as it is.
    pub unknown_extra: Vec<u8>,
    pub l1_table_offset: u64,
    pub l1_size: u32,
    /// Bytes of the entry in the table.
    pub entry_len: u64,
}

/// Reads the snapshot table, and checks where the L1 tables lie.
pub(super) fn read(storage: &dyn Storage, header: &Header) -> Result<Vec<Snapshot>> {
    let snapshots = read_unchecked(storage, header)?;
    for (index, Snapshot { l1_table_offset, l1_size, .. }) in snapshots.iter().enumerate() {
        if u64::from(*l1_size) * 8 > MAX_L1_BYTES || !l1_table_offset.is_multiple_of(header.cluster_size()) {
            let what = format!("the L1 table of snapshot {index} cannot have {l1_size} entries at {l1_table_offset:#x}");
            return Err(Error::corrupt(storage.name(), FORMAT, header.snapshots_offset, what));
        }
    }
    Ok(snapshots)
}

/// Reads the snapshot table, with bounds on all that it counts.
pub(super) fn read_unchecked(storage: &dyn Storage, header: &Header) -> Result<Vec<Snapshot>> {
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
        let info = SnapshotInfo {
            id: String::from_utf8_lossy(id).into_owned(),
            name: String::from_utf8_lossy(name).into_owned(),
            date_sec: be32(&fixed, 16),
            date_nsec: be32(&fixed, 20),
            vm_clock_nsec: be64(&fixed, 24),
            vm_state_size: number(0, u64::from(be32(&fixed, 32))),
            icount: (extra.len() >= EXTRA).then(|| be64(extra, 16)).filter(|count| *count != NO_ICOUNT),
        };
        let disk_size = (extra.len() >= 16).then(|| be64(extra, 8));
        let unknown_extra = extra.get(EXTRA..).unwrap_or_default().to_vec();
        snapshots.push(Snapshot { info, disk_size, unknown_extra, l1_table_offset, l1_size, entry_len });
        at += entry_len;
        if at - header.snapshots_offset > MAX_TABLE {
            return Err(corrupt(header.snapshots_offset, format!("the snapshot table is larger than {MAX_TABLE} bytes")));
        }
    }
    Ok(snapshots)
}

impl Snapshot {
    /// Appends the entry to a table. The disk's size is `size` where none is recorded.
    fn put(&self, table: &mut Vec<u8>, size: u64) -> Result<()> {
        let info = &self.info;
        let short = |text: &str| u16::try_from(text.len()).map_err(|_| Error::Invalid(format!("'{text}': the name is too long")));
        let extra_len = (EXTRA + self.unknown_extra.len()) as u32;
        table.extend(self.l1_table_offset.to_be_bytes());
        table.extend(self.l1_size.to_be_bytes());
        table.extend(short(&info.id)?.to_be_bytes());
        table.extend(short(&info.name)?.to_be_bytes());
        table.extend(info.date_sec.to_be_bytes());
        table.extend(info.date_nsec.to_be_bytes());
        table.extend(info.vm_clock_nsec.to_be_bytes());
        // The 64-bit size follows in the extra data.
        table.extend(((info.vm_state_size & u64::from(u32::MAX)) as u32).to_be_bytes());
        table.extend(extra_len.to_be_bytes());
        table.extend(info.vm_state_size.to_be_bytes());
        table.extend(self.disk_size.unwrap_or(size).to_be_bytes());
        table.extend(info.icount.unwrap_or(NO_ICOUNT).to_be_bytes());
        table.extend(&self.unknown_extra);
        table.extend(info.id.as_bytes());
        table.extend(info.name.as_bytes());
        table.resize(table.len().next_multiple_of(8), 0);
        Ok(())
    }
}

/// The bytes of a table of `snapshots`, in an image whose disk has `size` bytes.
pub(super) fn serialize(snapshots: &[Snapshot], size: u64) -> Result<Vec<u8>> {
    let mut table = Vec::new();
    snapshots.iter().try_for_each(|snapshot| snapshot.put(&mut table, size))?;
    if table.len() as u64 > MAX_TABLE {
        return Err(Error::Invalid(format!("the snapshot table would be larger than {MAX_TABLE} bytes")));
    }
    Ok(table)
}

/// Where the snapshot with this id is or, if there is none, this name.
pub(super) fn find(snapshots: &[Snapshot], id_or_name: &str) -> Option<usize> {
    let by = |part: fn(&SnapshotInfo) -> &str| snapshots.iter().position(|s| part(&s.info) == id_or_name);
    by(|info| &info.id).or_else(|| by(|info| &info.name))
}

/// Makes `header` that of the disk as it was at a snapshot.
pub(super) fn select(storage: &dyn Storage, header: &mut Header, id_or_name: &str) -> Result<()> {
    let snapshots = read(storage, header)?;
    let Some(snapshot) = find(&snapshots, id_or_name).and_then(|at| snapshots.get(at)) else {
        return Err(Error::Invalid(format!("{}: there is no snapshot '{id_or_name}'", storage.name())));
    };
    let mapped = u64::from(snapshot.l1_size).saturating_mul(header.l2_span());
    header.size = snapshot.disk_size.unwrap_or(header.size.min(mapped));
    (header.l1_table_offset, header.l1_size) = (snapshot.l1_table_offset, snapshot.l1_size);
    header.check(storage.name())
}
