//! Blank disks: a partition that fills one, and an empty filesystem.

use std::ops::Range;

use clap::ValueEnum;
use guestfs::engine::{Command, Session};
use imgcore::partition::{self, Guid, NewPartition, PartitionType, Purpose, Table, TableKind};
use imgcore::{Image, ImageMut, size};

use super::run;
use crate::common::Failure;

const MIB: u64 = 1 << 20;
/// Microsoft's type of partitions with FAT or NTFS.
const BASIC_DATA: Guid = Guid::from_printed(0xebd0a0a2_b9e5_4433_87c0_68b6b72699c7);
/// From here on a disk gets a GPT if the user does not say.
const LARGE: u64 = 2 << 40;

/// The table that a disk gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::virt) enum PartitionArg {
    /// An MBR below 2 TiB, a GPT from there on
    Auto,
    #[value(alias = "efi")]
    Gpt,
    #[value(alias = "msdos")]
    Mbr,
    None,
}

/// A filesystem that can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::virt) enum Kind {
    Ext2,
    Ext3,
    Ext4,
    Xfs,
    Btrfs,
    Vfat,
    Ntfs,
}

impl Kind {
    /// Its name for the kernel.
    pub(in crate::virt) fn name(self) -> &'static str {
        match self {
            Kind::Ext2 => "ext2",
            Kind::Ext3 => "ext3",
            Kind::Ext4 => "ext4",
            Kind::Xfs => "xfs",
            Kind::Btrfs => "btrfs",
            Kind::Vfat => "vfat",
            Kind::Ntfs => "ntfs",
        }
    }

    /// Whether its files have owners, modes and attributes.
    pub(in crate::virt) fn is_unix(self) -> bool {
        !matches!(self, Kind::Vfat | Kind::Ntfs)
    }

    /// Makes an empty one on a device. `inodes` is for those that need to know how many files come.
    pub(in crate::virt) fn make(
        self,
        session: &mut dyn Session,
        device: &str,
        label: Option<&str>,
        inodes: Option<u64>,
    ) -> Result<(), Failure> {
        let inside = session.name_inside(device);
        let (words, flag): (&[&str], &str) = match self {
            Kind::Ext2 | Kind::Ext3 | Kind::Ext4 => (&["mke2fs", "-q", "-F", "-t", self.name()], "-L"),
            Kind::Xfs => (&["mkfs.xfs", "-q", "-f"], "-L"),
            Kind::Btrfs => (&["mkfs.btrfs", "-q", "-f"], "-L"),
            // -I: all of a disk may be one.
            Kind::Vfat => (&["mkfs.vfat", "-I"], "-n"),
            Kind::Ntfs => (&["mkfs.ntfs", "-q", "-Q", "-F"], "-L"),
        };
        let mut words: Vec<String> = words.iter().map(|w| w.to_string()).collect();
        if let Some(label) = label {
            words.extend([flag.into(), label.into()]);
        }
        if let (Some(inodes), Kind::Ext2 | Kind::Ext3 | Kind::Ext4) = (inodes, self) {
            // Nothing is kept back for root either: the size was reckoned for these files.
            words.extend(["-N".into(), inodes.to_string(), "-m".into(), "0".into()]);
        }
        words.push(inside);
        run(session, &Command::new(&words), &[]).map(drop)
    }
}

/// Writes a table with one partition that fills the disk, and gives the bytes of that. `kind` is what it will hold, if that is known.
pub(in crate::virt) fn one_partition(
    image: &dyn ImageMut,
    table: PartitionArg,
    kind: Option<Kind>,
    lvm: bool,
) -> Result<Range<u64>, Failure> {
    let disk = Image::size(image);
    let table_kind = match table {
        PartitionArg::None => return Ok(0..disk),
        PartitionArg::Gpt => TableKind::Gpt,
        PartitionArg::Auto if disk >= LARGE => TableKind::Gpt,
        PartitionArg::Mbr | PartitionArg::Auto => TableKind::Mbr,
    };
    let random = random()?;
    let id = match table_kind {
        TableKind::Gpt => Guid::from_random(random).to_string(),
        TableKind::Mbr => random.iter().take(4).map(|b| format!("{b:02x}")).collect(),
    };
    let empty = Table::new(table_kind, id, Vec::new());
    let range = partition_range(&empty, disk)?;
    let guid = Guid::from_random(self::random()?);
    let purpose = if lvm { Purpose::Lvm } else { Purpose::Linux };
    let new = NewPartition { number: 1, start: range.start, len: range.end - range.start, purpose, bootable: false, guid };
    let mut partition = new.partition(table_kind)?;
    partition.kind = match (table_kind, kind) {
        (TableKind::Mbr, Some(Kind::Vfat)) => PartitionType::Mbr(0x0c),
        (TableKind::Mbr, Some(Kind::Ntfs)) => PartitionType::Mbr(0x07),
        (TableKind::Gpt, Some(Kind::Vfat | Kind::Ntfs)) => PartitionType::Gpt(BASIC_DATA),
        _ => partition.kind,
    };
    partition::write(image, &Table { partitions: vec![partition], ..empty })?;
    Ok(range)
}

/// Where the one partition of a disk lies.
fn partition_range(table: &Table, disk: u64) -> Result<Range<u64>, Failure> {
    let unit = if disk >= 8 * MIB { MIB } else { 64 << 10 };
    let room = partition::room(table, disk)?;
    let range = room.start.next_multiple_of(unit)..room.end / unit * unit;
    if range.start < range.end { Ok(range) } else { Err(Failure::new(format!("{} are too small for a partition", size::human(disk)))) }
}

/// Bytes that a table takes besides its one partition, at most.
pub(in crate::virt) fn table_overhead(table: PartitionArg) -> u64 {
    if table == PartitionArg::None { 0 } else { 3 * MIB }
}

/// Bytes for new ids.
pub(in crate::virt) fn random() -> Result<[u8; 16], Failure> {
    use std::io::Read;
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut f| f.read_exact(&mut bytes))
        .map_err(|e| Failure::new(format!("/dev/urandom: {e}")))?;
    Ok(bytes)
}
