//! Taking, applying and deleting internal snapshots.
//!
//! A snapshot is an L1 table of its own on the clusters that it shares with the disk. What is shared may not be written
//! in place, which counts and copied flags say together: so each of these changes is made aside, see
//! [`shadow`](super::shadow).

use super::Qcow2;
use super::entry::{COMPRESSED, COPIED, OFFSET};
use super::header::{DATA_FILE, FORMAT, Header, MAX_SNAPSHOTS};
use super::shadow::Shadow;
use super::snapshot::{self, Snapshot};
use super::write::used_clusters;
use crate::storage::read_padded;
use crate::{Error, Result, SnapshotInfo, Snapshots};

/// As long as names may be in QEMU.
const MAX_NAME: usize = 255;

impl Snapshots for Qcow2 {
    fn list(&self) -> Vec<SnapshotInfo> {
        self.snapshots.clone()
    }

    fn create(&mut self, name: &str, date: (u32, u32)) -> Result<SnapshotInfo> {
        let info = SnapshotInfo {
            id: String::new(),
            name: name.into(),
            date_sec: date.0,
            date_nsec: date.1,
            vm_clock_nsec: 0,
            vm_state_size: 0,
            icount: None,
        };
        self.add(info)
    }

    fn add(&mut self, mut info: SnapshotInfo) -> Result<SnapshotInfo> {
        let (mut shadow, mut rows) = self.begin()?;
        if rows.len() >= MAX_SNAPSHOTS as usize {
            return Err(Error::Invalid(format!("{}: has {MAX_SNAPSHOTS} snapshots, which is as many as can be", self.file)));
        }
        if info.name.len() > MAX_NAME {
            return Err(Error::Invalid(format!("'{}': a snapshot's name has up to {MAX_NAME} bytes", info.name)));
        }
        if info.id.is_empty() {
            info.id = next_id(&rows);
        } else if rows.iter().any(|row| row.info.id == info.id) {
            return Err(Error::Invalid(format!("{}: there is a snapshot with id '{}' already", self.file, info.id)));
        }
        let l1 = self.share_tree(&mut shadow, &self.l1_table(), true)?;
        shadow.release(self.header.l1_table_offset, l1.len() as u64 * 8)?;
        shadow.header.l1_table_offset = shadow.write_table(&l1)?;
        rows.push(Snapshot {
            info: info.clone(),
            disk_size: Some(self.header.size),
            unknown_extra: Vec::new(),
            l1_table_offset: shadow.write_table(&l1)?,
            l1_size: self.header.l1_size,
            entry_len: 0,
        });
        self.write_rows(&mut shadow, &rows)?;
        self.commit(shadow)?;
        Ok(info)
    }

    fn apply(&mut self, id_or_name: &str) -> Result<()> {
        if self.header.bitmaps.is_some() {
            // They do not know what differs between the two states.
            return Err(Error::Invalid("Device has active dirty bitmaps".into()));
        }
        let (mut shadow, rows) = self.begin()?;
        let row = &rows[self.find(&rows, id_or_name)?];
        let size = row.disk_size.unwrap_or(self.header.size);
        let needed = u32::try_from(size.div_ceil(self.header.l2_span())).unwrap_or(u32::MAX);
        // Before a table is made as long as a damaged snapshot may say.
        let l1_size = row.l1_size.max(needed);
        Header { size, l1_size, ..self.header.clone() }.check(&self.file)?;
        let mut l1 = self.share_tree(&mut shadow, &self.snapshot_l1(row)?, false)?;
        l1.resize(l1_size as usize, 0);
        let old = self.l1_table();
        self.drop_tree(&mut shadow, &old)?;
        shadow.release(self.header.l1_table_offset, old.len() as u64 * 8)?;
        shadow.header.size = size;
        shadow.header.l1_size = l1.len() as u32;
        shadow.header.l1_table_offset = shadow.write_table(&l1)?;
        self.commit(shadow)
    }

    fn delete(&mut self, id_or_name: &str) -> Result<()> {
        let (mut shadow, mut rows) = self.begin()?;
        let row = rows.remove(self.find(&rows, id_or_name)?);
        let l1 = self.snapshot_l1(&row)?;
        self.drop_tree(&mut shadow, &l1)?;
        shadow.release(row.l1_table_offset, u64::from(row.l1_size) * 8)?;
        self.own_again(&mut shadow)?;
        self.write_rows(&mut shadow, &rows)?;
        self.commit(shadow)
    }
}

/// One more than the largest number among the ids.
fn next_id(rows: &[Snapshot]) -> String {
    let number = |row: &Snapshot| {
        let digits = row.info.id.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        digits.parse::<u64>().unwrap_or(0)
    };
    rows.iter().map(number).max().unwrap_or(0).saturating_add(1).to_string()
}

impl Qcow2 {
    fn begin(&self) -> Result<(Shadow, Vec<Snapshot>)> {
        if self.header.has(DATA_FILE) {
            return Err(Error::unsupported(&self.file, FORMAT, "internal snapshots of an image with an external data file"));
        }
        Ok((self.shadow()?, snapshot::read(&*self.storage, &self.header)?))
    }

    fn find(&self, rows: &[Snapshot], id_or_name: &str) -> Result<usize> {
        snapshot::find(rows, id_or_name).ok_or_else(|| Error::Invalid(format!("{}: there is no snapshot '{id_or_name}'", self.file)))
    }

    pub(super) fn snapshot_l1(&self, row: &Snapshot) -> Result<Vec<u64>> {
        let mut bytes = vec![0; row.l1_size as usize * 8];
        read_padded(&*self.storage, &mut bytes, row.l1_table_offset)?;
        Ok(super::l2::words(&bytes).collect())
    }

    /// Replaces the table of snapshots.
    pub(super) fn write_rows(&self, shadow: &mut Shadow, rows: &[Snapshot]) -> Result<()> {
        let before = snapshot::read(&*self.storage, &self.header)?;
        if !before.is_empty() {
            shadow.release(self.header.snapshots_offset, before.iter().map(|row| row.entry_len).sum())?;
        }
        shadow.header.nb_snapshots = rows.len() as u32;
        shadow.header.snapshots_offset = match rows {
            [] => 0,
            _ => shadow.write_new(snapshot::serialize(rows, self.header.size)?)?,
        };
        Ok(())
    }

    /// Counts one more use of all that `l1` refers to, and gives the L1 table for it: one without copied flags, whose L2
    /// tables have none either. Where that needs a new L2 table, it is for one user or, when `l1` is given up for the
    /// result, for two.
    fn share_tree(&self, shadow: &mut Shadow, l1: &[u64], given_up: bool) -> Result<Vec<u64>> {
        let step = (self.header.l2_entry_size() / 8) as usize;
        let mut l1: Vec<u64> = l1.iter().map(|entry| entry & OFFSET).collect();
        for (offset, times) in self.l2_tables(&l1)? {
            let mut table = self.read_l2(offset)?;
            for entry in self.own_entries(&table) {
                if let Some(clusters) = used_clusters(&self.header, entry) {
                    shadow.add(clusters, times)?;
                }
            }
            let cluster = offset / self.cluster_size();
            if table.iter().step_by(step).all(|entry| entry & COPIED == 0) {
                shadow.add(cluster..cluster + 1, times)?;
                continue;
            }
            table.iter_mut().step_by(step).for_each(|entry| *entry &= !COPIED);
            let new = shadow.write_table(&table)?;
            let place = new / self.cluster_size();
            let mut users = times;
            if given_up {
                shadow.drop(cluster..cluster + 1, times)?;
                users *= 2;
            }
            shadow.add(place..place + 1, users - 1)?;
            l1.iter_mut().filter(|entry| **entry == offset).for_each(|entry| *entry = new);
        }
        Ok(l1)
    }

    /// Sets the copied flags of what only the disk as it is now still uses.
    fn own_again(&self, shadow: &mut Shadow) -> Result<()> {
        let (cluster_size, step) = (self.cluster_size(), (self.header.l2_entry_size() / 8) as usize);
        let mut l1 = self.l1_table();
        for (offset, _) in self.l2_tables(&l1)? {
            if shadow.get(offset / cluster_size)? != 1 {
                continue;
            }
            let mut table = self.read_l2(offset)?;
            let mut changed = false;
            for entry in table.iter_mut().step_by(step) {
                let host = *entry & OFFSET;
                if *entry & (COMPRESSED | COPIED) == 0 && host != 0 && shadow.get(host / cluster_size)? == 1 {
                    *entry |= COPIED;
                    changed = true;
                }
            }
            let mut place = offset;
            if changed {
                place = shadow.write_table(&table)?;
                shadow.release(offset, cluster_size)?;
            }
            l1.iter_mut().filter(|entry| **entry & OFFSET == offset).for_each(|entry| *entry = place | COPIED);
        }
        if l1 != self.l1_table() {
            shadow.release(self.header.l1_table_offset, l1.len() as u64 * 8)?;
            shadow.header.l1_table_offset = shadow.write_table(&l1)?;
        }
        Ok(())
    }
}
