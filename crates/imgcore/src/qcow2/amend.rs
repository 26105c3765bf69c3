//! Changing what creation options had set: version, width of counts, lazy counts, size, the data file's name.
//!
//! All that must be refused is refused before anything is changed, in qemu-img's words.

use std::collections::BTreeMap;

use super::Qcow2;
use super::create::OPTIONS;
use super::entry::{COMPRESSED, COPIED, OFFSET, ZERO};
use super::header::{COMPRESSION, CompressionType, DATA_FILE, DATA_FILE_RAW, EXTENDED_L2, Header, LAZY_REFCOUNTS};
use super::shadow::Shadow;
use super::snapshot::{self, Snapshot};
use crate::formats::{CreateOptions, FormatOption};
use crate::{Error, Preallocation, Progress, Result, size};

/// Options that qemu-img knows, but for encryption.
pub(super) const AMENDABLE: &[FormatOption] = &[
    FormatOption { name: "backing_file", value: "<str>", help: "File name of a base image" },
    FormatOption { name: "backing_fmt", value: "<str>", help: "Image format of the base image" },
    FormatOption { name: "compat", value: "<str>", help: "Compatibility level (v2 [0.10] or v3 [1.1])" },
    FormatOption { name: "data_file", value: "<str>", help: "File name of an external data file" },
    FormatOption { name: "data_file_raw", value: "<bool (on/off)>", help: "The external data file must stay valid as a raw image" },
    FormatOption { name: "lazy_refcounts", value: "<bool (on/off)>", help: "Postpone refcount updates" },
    FormatOption { name: "refcount_bits", value: "<num>", help: "Width of a reference count entry in bits" },
    FormatOption { name: "size", value: "<size>", help: "Virtual disk size" },
];

/// What an image shall become.
struct Wanted {
    version: u32,
    refcount_order: u32,
    lazy: bool,
    size: Option<u64>,
    data_file: Option<String>,
    data_file_raw: bool,
}

impl Qcow2 {
    pub(super) fn amend_options(&mut self, options: &CreateOptions, progress: &dyn Progress) -> Result<()> {
        let wanted = self.wanted(options)?;
        self.store_bitmaps()?;
        progress.total(1);
        if wanted.version > self.header.version {
            self.upgrade()?;
        }
        if wanted.refcount_order != self.header.refcount_order {
            let mut shadow = self.shadow()?;
            shadow.set_refcount_order(wanted.refcount_order)?;
            self.commit(shadow)?;
        }
        if let Some(bytes) = wanted.size {
            self.resize_to(bytes, Preallocation::Off)?;
        }
        if wanted.version < self.header.version {
            self.expand_zeroes()?;
        }
        let mut header = Header { version: wanted.version, ..self.current_header() };
        if wanted.version == 3 {
            header.compatible = self.header.compatible & !LAZY_REFCOUNTS | if wanted.lazy { LAZY_REFCOUNTS } else { 0 };
            header.autoclear = self.header.autoclear & !DATA_FILE_RAW | if wanted.data_file_raw { DATA_FILE_RAW } else { 0 };
            header.data_file = wanted.data_file;
        } else {
            (header.compatible, header.autoclear, header.bitmaps) = (0, 0, None);
            header.unknown_fields.clear();
        }
        if header != self.header {
            self.write_header(header)?;
        }
        progress.advance(1);
        Ok(())
    }

    /// What `options` ask for, if it can be done.
    fn wanted(&self, options: &CreateOptions) -> Result<Wanted> {
        let invalid = |what: &str| Err(Error::Invalid(what.into()));
        if let Some((name, _)) = options.iter().find(|(name, _)| AMENDABLE.iter().all(|o| o.name != *name)) {
            let hint = if OPTIONS.iter().any(|o| o.name == name) { "\nThis option is only supported for image creation" } else { "" };
            return Err(Error::Invalid(format!("Invalid parameter '{name}'{hint}")));
        }
        let header = &self.header;
        let version = match options.get("compat") {
            None => header.version,
            Some("0.10" | "v2") => 2,
            Some("1.1" | "v3") => 3,
            Some(other) => return Err(Error::Invalid(format!("Unknown compatibility level {other}"))),
        };
        let refcount_order = match options.get("refcount_bits").map(str::parse::<u32>) {
            None => header.refcount_order,
            Some(Ok(bits)) if bits.is_power_of_two() && bits <= 64 => bits.trailing_zeros(),
            Some(_) => return invalid("Refcount width must be a power of two and may not exceed 64 bits"),
        };
        let some = |name: &str| options.get(name).map(str::to_owned);
        let (backing, format) = (some("backing_file"), some("backing_fmt"));
        if (backing.is_some() || format.is_some()) && (backing, format) != (header.backing_file.clone(), header.backing_format.clone()) {
            return invalid("Cannot amend the backing file\nYou can use 'img rebase' instead.");
        }
        let flag = |name: &str, now: bool| if options.get(name).is_some() { options.flag(name) } else { Ok(now) };
        let lazy_now = header.compatible & LAZY_REFCOUNTS != 0;
        let lazy = flag("lazy_refcounts", lazy_now)?;
        let raw_now = header.autoclear & DATA_FILE_RAW != 0;
        let data_file_raw = flag("data_file_raw", raw_now)?;
        if version == 2 && refcount_order != 4 {
            return invalid(match options.get("refcount_bits") {
                None => "compat=0.10 requires refcount_bits=16",
                Some(_) => "Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)",
            });
        }
        if data_file_raw && !raw_now {
            return invalid("data-file-raw cannot be set on existing images");
        }
        if options.get("data_file").is_some() && !header.has(DATA_FILE) {
            return invalid("data-file can only be set for images that use an external data file");
        }
        if version == 2 && lazy && (!lazy_now || options.get("lazy_refcounts").is_some()) {
            return invalid("Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)");
        }
        let size = options.get("size").map(size::parse).transpose()?;
        if version < header.version {
            self.check_downgrade(size.unwrap_or(header.size))?;
        }
        let data_file = some("data_file").or_else(|| header.data_file.clone());
        Ok(Wanted { version, refcount_order, lazy, size, data_file, data_file_raw })
    }

    fn check_downgrade(&self, size: u64) -> Result<()> {
        if self.header.has(DATA_FILE) {
            return Err(Error::Invalid("Cannot downgrade an image with a data file".into()));
        }
        // Other readers of version 2 need not know of a size that a snapshot records.
        let fits = |row: &Snapshot| row.disk_size.is_none_or(|then| then == size) && row.info.vm_state_size <= u64::from(u32::MAX);
        if !snapshot::read(&*self.storage, &self.header)?.iter().all(fits) {
            return Err(Error::Invalid("Internal snapshots prevent downgrade of image".into()));
        }
        let features = self.header.incompatible & (EXTENDED_L2 | COMPRESSION);
        if features != 0 || self.header.compression != CompressionType::Zlib {
            return Err(Error::Invalid(format!("Cannot downgrade an image with incompatible features {features:#x} set")));
        }
        Ok(())
    }

    pub(super) fn write_header(&mut self, header: Header) -> Result<()> {
        header.write(&*self.storage)?;
        self.header = header;
        self.reload()
    }

    /// Makes it version 3, in which snapshots must record the disk's size.
    fn upgrade(&mut self) -> Result<()> {
        let mut shadow = self.shadow()?;
        let rows = snapshot::read(&*self.storage, &self.header)?;
        if rows.iter().any(|row| row.disk_size.is_none()) {
            self.write_rows(&mut shadow, &rows)?;
            self.commit(shadow)?;
        }
        self.write_header(Header { version: 3, ..self.current_header() })
    }

    /// Replaces clusters that are marked as zeroes, which version 2 cannot: by nothing or, over a backing file, by stored
    /// zeroes. The disk and its snapshots read as before.
    fn expand_zeroes(&mut self) -> Result<()> {
        let mut shadow = self.shadow()?;
        let mut rows = snapshot::read(&*self.storage, &self.header)?;
        let mut l1s = vec![self.l1_table()];
        for row in &rows {
            l1s.push(self.snapshot_l1(row)?);
        }
        let mut users: BTreeMap<u64, u64> = BTreeMap::new();
        for l1 in &l1s {
            self.l2_tables(l1)?.into_iter().for_each(|(offset, times)| *users.entry(offset).or_insert(0) += times);
        }
        let mut moved = BTreeMap::new();
        for (offset, times) in users {
            if let Some(new) = self.expand_table(&mut shadow, offset, times)? {
                moved.insert(offset, new);
            }
        }
        if moved.is_empty() {
            return Ok(());
        }
        for (number, l1) in l1s.iter_mut().enumerate() {
            l1.iter_mut().for_each(|entry| *entry = moved.get(&(*entry & OFFSET)).map_or(*entry, |new| new | (*entry & COPIED)));
            let place = shadow.write_table(l1)?;
            let old = match number.checked_sub(1).and_then(|row| rows.get_mut(row)) {
                Some(row) => std::mem::replace(&mut row.l1_table_offset, place),
                None => std::mem::replace(&mut shadow.header.l1_table_offset, place),
            };
            shadow.release(old, l1.len() as u64 * 8)?;
        }
        self.write_rows(&mut shadow, &rows)?;
        self.commit(shadow)
    }

    /// Writes the L2 table at `offset` anew without zero flags, if it has any.
    fn expand_table(&self, shadow: &mut Shadow, offset: u64, times: u64) -> Result<Option<u64>> {
        let cluster_size = self.cluster_size();
        let mut table = self.read_l2(offset)?;
        let flagged = |entry: &u64| entry & COMPRESSED == 0 && entry & ZERO != 0;
        if !table.iter().any(flagged) {
            return Ok(None);
        }
        for entry in table.iter_mut().filter(|entry| flagged(entry)) {
            let host = *entry & OFFSET;
            if host != 0 {
                shadow.drop(host / cluster_size..host / cluster_size + 1, times)?;
            }
            *entry = 0;
            if self.header.backing_file.is_some() {
                let place = shadow.new_zeroes()?;
                shadow.add(place / cluster_size..place / cluster_size + 1, times - 1)?;
                *entry = place | if times == 1 { COPIED } else { 0 };
            }
        }
        let new = shadow.write_table(&table)?;
        shadow.add(new / cluster_size..new / cluster_size + 1, times - 1)?;
        shadow.drop(offset / cluster_size..offset / cluster_size + 1, times)?;
        Ok(Some(new))
    }
}
