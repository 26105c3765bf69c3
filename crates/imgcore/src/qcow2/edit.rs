//! Changes to the structure of an image, each in its own file; here is what they have in common, and the short ones.

use std::sync::Arc;

use super::Qcow2;
use super::entry::OFFSET;
use super::header::{DATA_FILE_RAW, Header};
use super::l2::words;
use super::shadow::Shadow;
use super::write::used_clusters;
use crate::formats::{CreateOptions, OpenContext};
use crate::storage::read_padded;
use crate::{Bitmaps, Error, ImageEdit, ImageMut, Preallocation, Progress, Result, Snapshots, Storage};

impl Qcow2 {
    /// Opens the image in `storage` for changes to its structure.
    ///
    /// # Errors
    /// As [`open_mut`](Qcow2::open_mut).
    pub fn open_edit(storage: Arc<dyn Storage>, context: &OpenContext<'_>) -> Result<Self> {
        let image = Self::open_mut(storage, context)?;
        image.end_laziness()?;
        Ok(image)
    }

    /// The L1 table of the disk as it is now.
    pub(super) fn l1_table(&self) -> Vec<u64> {
        self.l1.read().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// Drops all that `l1` refers to.
    pub(super) fn drop_tree(&self, shadow: &mut Shadow, l1: &[u64]) -> Result<()> {
        for (offset, times) in self.l2_tables(l1)? {
            for entry in self.own_entries(&self.read_l2(offset)?) {
                if let Some(clusters) = used_clusters(&self.header, entry) {
                    shadow.drop(clusters, times)?;
                }
            }
            let cluster = (offset & OFFSET) / self.cluster_size();
            shadow.drop(cluster..cluster + 1, times)?;
        }
        Ok(())
    }

    /// The words of the L2 table at `offset`, of which nothing is changed in memory.
    pub(super) fn read_l2(&self, offset: u64) -> Result<Vec<u64>> {
        let mut bytes = vec![0; self.cluster_size() as usize];
        read_padded(&*self.storage, &mut bytes, offset)?;
        Ok(words(&bytes).collect())
    }

    /// The entries of an L2 table, without the bitmaps of extended ones.
    pub(super) fn own_entries<'a>(&self, table: &'a [u64]) -> impl Iterator<Item = u64> + use<'a> {
        table.iter().copied().step_by((self.header.l2_entry_size() / 8) as usize)
    }
}

impl ImageEdit for Qcow2 {
    fn resize(&mut self, size: u64, preallocation: Preallocation) -> Result<()> {
        self.resize_to(size, preallocation)
    }

    fn set_backing(&mut self, file: Option<&str>, format: Option<&str>) -> Result<()> {
        if file.is_some() && self.header.autoclear & DATA_FILE_RAW != 0 {
            return Err(Error::Invalid(format!("{}: Cannot use a backing file with a raw external data file", self.file)));
        }
        let some = |text: Option<&str>| text.filter(|text| !text.is_empty()).map(str::to_owned);
        let header = Header { backing_file: some(file), backing_format: some(format), ..self.current_header() };
        self.flush()?;
        header.write(&*self.storage)?;
        self.header = header;
        Ok(())
    }

    fn make_empty(&mut self) -> Result<()> {
        let mut shadow = self.shadow()?;
        let l1 = self.l1_table();
        self.drop_tree(&mut shadow, &l1)?;
        shadow.header.l1_table_offset = shadow.write_table(&vec![0; l1.len()])?;
        shadow.release(self.header.l1_table_offset, l1.len() as u64 * 8)?;
        self.commit(shadow)
    }

    fn amend(&mut self, options: &CreateOptions, progress: &dyn Progress) -> Result<()> {
        self.amend_options(options, progress)
    }

    fn snapshots(&mut self) -> Result<&mut dyn Snapshots> {
        Ok(self)
    }

    fn bitmaps(&mut self) -> Result<&mut dyn Bitmaps> {
        self.store_bitmaps()?;
        Ok(self)
    }
}
