//! Partition tables: read, and what was read held against the disk's size.

use std::sync::Arc;

use imgcore::raw::Raw;
use imgcore::storage::MemStorage;
use imgcore::{Image, partition};

/// Takes `data` as a disk with a partition table.
pub fn run(data: &[u8]) {
    let Ok(disk) = Raw::open(Arc::new(MemStorage::from_bytes("fuzzed", data))) else { return };
    if let Ok(Some(table)) = partition::read(&disk) {
        for part in table.partitions.iter() {
            let end = part.start.checked_add(part.len).expect("a partition's end");
            assert!(part.len > 0 && end <= disk.size(), "partition {} ends at {end} of {}", part.number, disk.size());
        }
    }
}
