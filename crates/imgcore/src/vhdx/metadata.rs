//! The metadata region: the disk's parameters and where its parent is (MS-VHDX 2.6).

use super::header::Region;
use super::{FORMAT, MIB, guid_at};
use crate::le::{u16_at, u32_at, u64_at};
use crate::partition::Guid;
use crate::storage::read_padded;
use crate::{Error, Result, Storage};

const TABLE_LEN: u64 = 64 << 10;
const MAX_ITEMS: u16 = 2047;
/// No known item is larger but by hostile intent; paths have at most 32 Ki characters.
const MAX_ITEM_LEN: u32 = 1 << 20;
pub(super) const MAX_DISK_SIZE: u64 = 64 << 40;
pub(super) const BLOCK_SIZES: std::ops::RangeInclusive<u64> = MIB..=256 * MIB;

const FILE_PARAMETERS: Guid = Guid::from_printed(0xcaa16737_fa36_4d43_b3b6_33f0aa44e76b);
const VIRTUAL_DISK_SIZE: Guid = Guid::from_printed(0x2fa54224_cd1b_4876_b211_5dbed83bf4b8);
const VIRTUAL_DISK_ID: Guid = Guid::from_printed(0xbeca12ab_b2e6_4523_93ef_c309e000c746);
const LOGICAL_SECTOR_SIZE: Guid = Guid::from_printed(0x8141bf1d_a96f_4709_ba47_f233a8faab5f);
const PHYSICAL_SECTOR_SIZE: Guid = Guid::from_printed(0xcda348c7_445d_4471_9cc9_e9885251c556);
const PARENT_LOCATOR: Guid = Guid::from_printed(0xa8d35f2d_b30b_454d_abf7_d3d84834ab0c);
/// The one type of parent locator that there is.
const VHDX_LOCATOR: Guid = Guid::from_printed(0xb04aefb7_d19e_4a81_b789_25b8e9445913);

const IS_USER: u32 = 1;
const IS_VIRTUAL_DISK: u32 = 2;
const IS_REQUIRED: u32 = 4;

const LEAVE_BLOCKS_ALLOCATED: u32 = 1;
const HAS_PARENT: u32 = 2;

/// What the metadata says of the disk, checked.
#[derive(Clone, Debug)]
pub(super) struct Metadata {
    pub block_size: u64,
    /// Every block has its place: a fixed disk.
    pub leave_blocks_allocated: bool,
    pub size: u64,
    pub logical_sector_size: u64,
    pub parent: Option<ParentLocator>,
}

/// Where the parent is, as key and value.
#[derive(Clone, Debug, Default)]
pub(super) struct ParentLocator(Vec<(String, String)>);

impl ParentLocator {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    /// Whether the parent's data write GUID is the one meant.
    pub fn matches(&self, parent: Guid) -> bool {
        let given = ["parent_linkage", "parent_linkage2"].into_iter().filter_map(|key| self.get(key));
        given.filter_map(|text| text.trim_matches(['{', '}']).parse::<Guid>().ok()).any(|guid| guid == parent)
    }

    /// Paths to try, in order: the relative one, then the file names of the others beside the child.
    pub fn paths(&self) -> Vec<String> {
        let relative = self.get("relative_path").map(|path| path.replace('\\', "/"));
        let beside = ["volume_path", "absolute_win32_path"].into_iter().filter_map(|key| self.get(key)?.rsplit('\\').next());
        let mut paths: Vec<String> = relative.into_iter().chain(beside.map(str::to_owned)).filter(|path| !path.is_empty()).collect();
        paths.dedup();
        paths
    }
}

struct Item {
    guid: Guid,
    offset: u64,
    len: u32,
}

impl Metadata {
    pub fn read(storage: &dyn Storage, region: Region) -> Result<Self> {
        let items = Items::read(storage, region)?;
        let parameters = items.need(FILE_PARAMETERS, "file parameters", 8)?;
        let (block_size, flags) = (u64::from(u32_at(&parameters, 0)), u32_at(&parameters, 4));
        let size = u64_at(&items.need(VIRTUAL_DISK_SIZE, "virtual disk size", 8)?, 0);
        let logical_sector_size = u64::from(u32_at(&items.need(LOGICAL_SECTOR_SIZE, "logical sector size", 4)?, 0));
        let bad = |what: String| Err(Error::corrupt(storage.name(), FORMAT, region.offset, what));
        if !block_size.is_power_of_two() || !BLOCK_SIZES.contains(&block_size) {
            return bad(format!("a block size of {block_size} bytes: it must be a power of two from 1 MiB to 256 MiB"));
        }
        if !matches!(logical_sector_size, 512 | 4096) {
            return bad(format!("a logical sector size of {logical_sector_size} bytes: it must be 512 or 4096"));
        }
        if size > MAX_DISK_SIZE || !size.is_multiple_of(logical_sector_size) {
            return bad(format!("a virtual disk size of {size} bytes: it must be whole sectors and at most 64 TiB"));
        }
        let parent = if flags & HAS_PARENT == 0 { None } else { Some(items.parent()?) };
        Ok(Metadata { block_size, leave_blocks_allocated: flags & LEAVE_BLOCKS_ALLOCATED != 0, size, logical_sector_size, parent })
    }

    /// Writes the region of a new file without a parent.
    pub fn write(&self, storage: &dyn Storage, region: Region, disk_id: Guid) -> Result<()> {
        let flags = if self.leave_blocks_allocated { LEAVE_BLOCKS_ALLOCATED } else { 0 };
        let parameters = [(self.block_size as u32).to_le_bytes(), flags.to_le_bytes()].concat();
        let sector = (self.logical_sector_size as u32).to_le_bytes();
        let disk = IS_VIRTUAL_DISK | IS_REQUIRED;
        let items: [(Guid, u32, &[u8]); 5] = [
            (FILE_PARAMETERS, IS_REQUIRED, &parameters),
            (VIRTUAL_DISK_SIZE, disk, &self.size.to_le_bytes()),
            (VIRTUAL_DISK_ID, disk, &disk_id.0),
            (LOGICAL_SECTOR_SIZE, disk, &sector),
            (PHYSICAL_SECTOR_SIZE, disk, &sector),
        ];
        let mut table = [&b"metadata"[..], &[0; 2], &(items.len() as u16).to_le_bytes(), &[0; 20]].concat();
        let mut values = Vec::new();
        for (guid, flags, value) in items {
            table.extend_from_slice(&guid.0);
            for number in [TABLE_LEN as u32 + values.len() as u32, value.len() as u32, flags, 0] {
                table.extend_from_slice(&number.to_le_bytes());
            }
            values.extend_from_slice(value);
        }
        storage.write_at(&table, region.offset)?;
        storage.write_at(&values, region.offset + TABLE_LEN)
    }
}

/// The metadata table, checked.
struct Items<'a> {
    storage: &'a dyn Storage,
    region: Region,
    items: Vec<Item>,
}

impl<'a> Items<'a> {
    fn read(storage: &'a dyn Storage, region: Region) -> Result<Self> {
        let corrupt = |at: u64, what: String| Err(Error::corrupt(storage.name(), FORMAT, at, what));
        let mut table = vec![0; TABLE_LEN as usize];
        read_padded(storage, &mut table, region.offset)?;
        let count = u16_at(&table, 10);
        if !table.starts_with(b"metadata") || count > MAX_ITEMS {
            return corrupt(region.offset, format!("no metadata table, or one of {count} items where {MAX_ITEMS} are allowed"));
        }
        let mut items: Vec<Item> = Vec::new();
        for (index, entry) in table[32..].chunks_exact(32).take(usize::from(count)).enumerate() {
            let at = region.offset + 32 + index as u64 * 32;
            let (guid, offset, len) = (guid_at(entry, 0), u64::from(u32_at(entry, 16)), u32_at(entry, 20));
            let flags = u32_at(entry, 24);
            let known = [FILE_PARAMETERS, VIRTUAL_DISK_SIZE, VIRTUAL_DISK_ID, LOGICAL_SECTOR_SIZE, PHYSICAL_SECTOR_SIZE, PARENT_LOCATOR];
            if flags & IS_USER != 0 || !known.contains(&guid) {
                if flags & IS_REQUIRED != 0 {
                    return Err(Error::unsupported(storage.name(), FORMAT, format!("the required metadata item {guid}")));
                }
                continue;
            }
            if offset < TABLE_LEN || offset + u64::from(len) > region.len || len > MAX_ITEM_LEN {
                return corrupt(at, format!("metadata item {guid} has {len} bytes at {offset:#x}, outside its region"));
            }
            if items.iter().any(|item| item.guid == guid) {
                return corrupt(at, format!("metadata item {guid} is there twice"));
            }
            items.push(Item { guid, offset, len });
        }
        Ok(Items { storage, region, items })
    }

    fn get(&self, guid: Guid) -> Result<Option<Vec<u8>>> {
        let Some(item) = self.items.iter().find(|item| item.guid == guid) else { return Ok(None) };
        let mut bytes = vec![0; item.len as usize];
        read_padded(self.storage, &mut bytes, self.region.offset + item.offset)?;
        Ok(Some(bytes))
    }

    fn need(&self, guid: Guid, name: &str, len: usize) -> Result<Vec<u8>> {
        let found = self.get(guid)?;
        found.filter(|bytes| bytes.len() >= len).ok_or_else(|| self.corrupt(format!("the metadata lacks the {name}")))
    }

    fn corrupt(&self, what: impl Into<String>) -> Error {
        Error::corrupt(self.storage.name(), FORMAT, self.region.offset, what)
    }

    fn parent(&self) -> Result<ParentLocator> {
        let bytes = self.need(PARENT_LOCATOR, "parent locator", 20)?;
        let kind = guid_at(&bytes, 0);
        if kind != VHDX_LOCATOR {
            return Err(Error::unsupported(self.storage.name(), FORMAT, format!("a parent located by the type {kind}")));
        }
        let count = usize::from(u16_at(&bytes, 18));
        let mut found = Vec::new();
        for entry in bytes[20..].chunks_exact(12).take(count) {
            let text = |offset: u32, len: u16| {
                let bytes = bytes.get(offset as usize..)?.get(..usize::from(len))?;
                String::from_utf16(&bytes.chunks_exact(2).map(|c| u16_at(c, 0)).collect::<Vec<_>>()).ok()
            };
            let key = text(u32_at(entry, 0), u16_at(entry, 8));
            let value = text(u32_at(entry, 4), u16_at(entry, 10));
            let (Some(key), Some(value)) = (key, value) else {
                return Err(self.corrupt("an entry of the parent locator is no text within it"));
            };
            found.push((key, value.trim_end_matches('\0').to_owned()));
        }
        let locator = ParentLocator(found);
        if locator.get("parent_linkage").is_none() || locator.paths().is_empty() {
            return Err(self.corrupt("the parent locator lacks the parent's identity or path"));
        }
        Ok(locator)
    }
}
