//! Looking at the source's disks: tables, superblocks, and which volume is the root.

use std::sync::Arc;

use guestfs::probe::{Content, probe};
use guestfs::{Ext, GuestFs, Tree, reader};
use imgcore::Image;
use imgcore::partition::{self, Table};

use crate::source::{Source, SourceDisk};
use crate::{Error, Result};

/// The largest fstab that is read.
const FSTAB_LIMIT: u64 = 1 << 20;

/// What one disk of the source holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskContents {
    /// Bytes of the disk.
    pub size: u64,
    /// Its partition table. One without partitions counts as none: it is boot code.
    pub table: Option<Table>,
    /// Its partitions, or the whole disk.
    pub volumes: Vec<Found>,
}

/// A volume as it was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Partition number; `None` for the whole disk.
    pub number: Option<u32>,
    /// First byte on the disk.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// What its superblock tells.
    pub content: Option<Content>,
    /// Its `/etc/fstab` (empty when there is none) if it is the root of a Linux system, as far as this process can read it.
    pub root_fstab: Option<String>,
}

/// Looks at all disks. Their images must be known.
pub fn examine(source: &Source) -> Result<Vec<DiskContents>> {
    source.disks.iter().map(disk_contents).collect()
}

fn disk_contents(disk: &SourceDisk) -> Result<DiskContents> {
    let image =
        disk.image.as_ref().ok_or_else(|| Error::Invalid(format!("disk {} ({}) has not been read yet", disk.target, disk.origin)))?;
    // A device that the guest saw as a partition has no partitions, whatever its first sector says.
    let is_partition = crate::guest::devices::parse(&disk.target).is_some_and(|(_, number)| number.is_some());
    let table = if is_partition { None } else { partition::read(image.as_ref())?.filter(|t| !t.partitions.is_empty()) };
    let volumes = match &table {
        None => vec![found(image, None, 0, image.size())],
        Some(table) => {
            let inner = table.partitions.iter().filter(|p| !p.kind.is_extended());
            inner.map(|p| found(image, Some(p.number), p.start, p.len)).collect()
        }
    };
    Ok(DiskContents { size: image.size(), table, volumes })
}

fn found(image: &Arc<dyn Image>, number: Option<u32>, start: u64, len: u64) -> Found {
    let content = probe(image.as_ref(), start, len);
    let root_fstab = content.as_ref().and_then(|content| root_fstab(content, image.clone(), start, len));
    Found { number, start, len, content, root_fstab }
}

/// A damaged filesystem is no root here; the steps that need its files will say what is wrong with it.
fn root_fstab(content: &Content, image: Arc<dyn Image>, start: u64, len: u64) -> Option<String> {
    let tree = Tree::new(reader::open(content.kind, image, start, len).ok()?);
    // A link /bin may be absolute: it leads to usr/bin of this tree, or into another volume.
    let is_root = tree.is_dir(b"/etc") && tree.lstat(b"/bin").is_ok() && (tree.is_file(b"/etc/fstab") || tree.is_file(b"/etc/hosts"));
    is_root.then(|| String::from_utf8_lossy(&tree.read(b"/etc/fstab", FSTAB_LIMIT).unwrap_or_default()).into_owned())
}
