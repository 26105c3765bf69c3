//! `virt-filesystems`: filesystems, partitions and disks of a guest.

use std::process::ExitCode;

use clap::{Args, FromArgMatches};
use guestfs::lvm::{Group, LogicalVolume, PhysicalVolume};
use guestfs::volume::{Place, partition_name};
use guestfs::{Volume, Volumes};
use imgcore::partition::{Partition, PartitionType};

use super::Entry;
use super::options::GuestArgs;
use super::show::{Out, Table, human};
use crate::common::{Failure, json};

/// This command's line in the table.
pub(super) const ENTRY: Entry = Entry {
    name: "filesystems",
    arguments: |command| Filesystems::augment_args(command).disable_help_flag(true).arg(super::help_flag()),
    run: |matches| run(&Filesystems::from_arg_matches(matches)?),
};

/// List filesystems, partitions and disks of a guest.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  virt-filesystems -a disk.qcow2\n  virt-filesystems -a disk.qcow2 --all --long --uuid -h\n  virt-filesystems -d guest.xml --parts --blkdevs --csv -l"
)]
struct Filesystems {
    #[command(flatten)]
    guest: GuestArgs,
    /// Everything: filesystems, swap, partitions and disks
    #[arg(long)]
    all: bool,
    /// Filesystems (what is shown without any such flag)
    #[arg(long)]
    filesystems: bool,
    /// Swap and what was not recognised, too
    #[arg(long)]
    extra: bool,
    /// Logical volumes
    #[arg(long, visible_aliases = ["lvs", "lv"], alias = "logvols")]
    logical_volumes: bool,
    /// Volume groups
    #[arg(long, visible_aliases = ["vgs", "vg"], alias = "volgroups")]
    volume_groups: bool,
    /// Physical volumes
    #[arg(long, visible_aliases = ["pvs", "pv"], alias = "physvols")]
    physical_volumes: bool,
    /// Partitions
    #[arg(long, alias = "parts")]
    partitions: bool,
    /// Disks
    #[arg(long, aliases = ["blkdevs", "block-device"])]
    block_devices: bool,
    /// Several columns, with a title
    #[arg(short, long)]
    long: bool,
    /// Sizes for people
    #[arg(short, long)]
    human_readable: bool,
    /// A column of UUIDs
    #[arg(long, alias = "uuids")]
    uuid: bool,
    /// Comma-separated values
    #[arg(long)]
    csv: bool,
    /// JSON, with all that is known
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// No title
    #[arg(long)]
    no_title: bool,
}

/// A line of the output. What does not apply is `None`.
#[derive(Default, serde::Serialize)]
struct Row {
    name: String,
    #[serde(rename = "type")]
    kind: &'static str,
    vfs: Option<String>,
    label: Option<String>,
    mbr: Option<String>,
    size: u64,
    parent: Option<String>,
    uuid: Option<String>,
}

fn run(args: &Filesystems) -> Result<ExitCode, Failure> {
    let (guest, keys) = (args.guest.sources.guest()?, args.guest.keys()?);
    args.guest.confine([&guest], false)?;
    let volumes = args.guest.volumes(args.guest.sources.open(&guest)?, &keys)?;
    let lvm = args.logical_volumes || args.volume_groups || args.physical_volumes;
    let nothing = !(args.filesystems || args.extra || args.partitions || args.block_devices || lvm);
    let extra = args.all || args.extra;
    let filesystems = args.all || args.filesystems || args.extra || nothing;
    let partitions = args.all || args.partitions;
    let devices = args.all || args.block_devices;
    let mut rows = Vec::new();
    if filesystems {
        // What is a part of something else is no filesystem, whatever is asked for.
        let listed = volumes.listed().into_iter().filter_map(|index| volumes.volumes.get(index));
        let wanted = listed.filter(|v| v.is_filesystem() || extra && !v.is_part());
        rows.extend(wanted.map(|v| filesystem(&volumes, v)));
    }
    if args.all || args.logical_volumes {
        rows.extend(volumes.groups.iter().flat_map(|group| group.volumes.iter().map(|volume| logical(group, volume))));
    }
    if args.all || args.volume_groups {
        rows.extend(volumes.groups.iter().map(|group| volume_group(&volumes, group)));
    }
    if args.all || args.physical_volumes {
        rows.extend(volumes.groups.iter().flat_map(|group| physical(&volumes, group)));
    }
    if partitions {
        rows.extend(self::partitions(&volumes));
    }
    if devices {
        rows.extend(volumes.disks.iter().map(|d| Row {
            name: format!("/dev/{}", d.name),
            kind: "device",
            size: d.image.size(),
            ..Row::default()
        }));
    }
    if args.json {
        json::print(&rows);
        return Ok(ExitCode::SUCCESS);
    }
    args.print(&rows, filesystems, partitions, partitions || lvm || args.all || (args.long && filesystems))?;
    Ok(ExitCode::SUCCESS)
}

fn filesystem(volumes: &Volumes, volume: &Volume) -> Row {
    let content = volume.content.as_ref();
    Row {
        name: volume.device.clone(),
        kind: "filesystem",
        vfs: Some(content.map_or("unknown", |c| c.kind).to_string()),
        label: content.and_then(|c| c.label.clone()),
        size: usable(volumes, volume).unwrap_or(volume.len),
        // Of what lies on others, libguestfs tells so of arrays alone.
        parent: matches!(volume.place, Place::Array { .. }).then(|| names(volumes, &volumes.below(volume))),
        uuid: content.and_then(|c| c.uuid.clone()),
        ..Row::default()
    }
}

fn logical(group: &Group, volume: &LogicalVolume) -> Row {
    Row {
        name: format!("/dev/{}/{}", group.name, volume.name),
        kind: "lv",
        size: volume.len,
        parent: Some(format!("/dev/{}", group.name)),
        uuid: Some(volume.uuid.clone()),
        ..Row::default()
    }
}

fn volume_group(volumes: &Volumes, group: &Group) -> Row {
    let parents: Vec<usize> = group.physical.iter().map(|pv| pv.position).collect();
    Row {
        name: format!("/dev/{}", group.name),
        kind: "vg",
        size: group.physical.iter().map(|pv| pv.len).fold(0, u64::saturating_add),
        parent: Some(names(volumes, &parents)),
        uuid: Some(undashed(&group.uuid)),
        ..Row::default()
    }
}

fn physical(volumes: &Volumes, group: &Group) -> Vec<Row> {
    let row = |pv: &PhysicalVolume| {
        let volume = volumes.volumes.get(pv.position)?;
        let uuid = volume.content.as_ref().and_then(|c| c.uuid.as_deref()).map(undashed);
        Some(Row { name: volume.device.clone(), kind: "pv", size: pv.len, uuid, ..Row::default() })
    };
    group.physical.iter().filter_map(row).collect()
}

/// The devices at these positions, in one field.
fn names(volumes: &Volumes, positions: &[usize]) -> String {
    let names: Vec<&str> = positions.iter().filter_map(|p| volumes.volumes.get(*p)).map(|v| v.device.as_str()).collect();
    names.join(",")
}

/// UUIDs of groups and physical volumes stand here without the dashes of LVM's own tools, those of logical volumes with them.
fn undashed(uuid: &str) -> String {
    uuid.replace('-', "")
}

/// The room in a filesystem, as statvfs(3) counts it.
fn usable(volumes: &Volumes, volume: &Volume) -> Option<u64> {
    let reader = guestfs::reader::open(volume.kind(), volumes.image(volume).ok()?, 0, volume.len).ok()?;
    let statfs = reader.statfs().ok()?;
    statfs.blocks.checked_mul(statfs.block_size)
}

/// All partitions, of disks and of arrays.
fn partitions(volumes: &Volumes) -> Vec<Row> {
    let of_disks = volumes
        .disks
        .iter()
        .enumerate()
        .flat_map(|(position, disk)| volumes.partitions(position).map(|p| partition(&format!("/dev/{}", disk.name), p)));
    let of_arrays = volumes.volumes.iter().filter_map(|volume| {
        let Place::Array { array, .. } = volume.place else { return None };
        Some(partition(&volumes.arrays.get(array)?.device(), volume.partition.as_ref()?))
    });
    of_disks.chain(of_arrays).collect()
}

fn partition(device: &str, partition: &Partition) -> Row {
    Row {
        name: partition_name(device, partition.number),
        kind: "partition",
        mbr: match partition.kind {
            PartitionType::Mbr(byte) => Some(format!("{byte:02x}")),
            PartitionType::Gpt(_) | PartitionType::Nested(_) => None,
        },
        // Of one that only holds others, Linux shows the two sectors of their table.
        size: if partition.kind.is_extended() { partition.len.min(1024) } else { partition.len },
        parent: Some(device.to_string()),
        ..Row::default()
    }
}

impl Filesystems {
    fn print(&self, rows: &[Row], filesystems: bool, partitions: bool, parents: bool) -> Result<(), Failure> {
        let mut columns = vec!["Name"];
        if self.long {
            columns.push("Type");
            columns.extend(filesystems.then_some(["VFS", "Label"]).into_iter().flatten());
            columns.extend(partitions.then_some("MBR"));
            columns.push("Size");
            columns.extend((parents || self.block_devices).then_some("Parent"));
        }
        columns.extend(self.uuid.then_some("UUID"));
        let cells = |row: &Row| -> Vec<String> { columns.iter().map(|c| self.cell(row, c)).collect() };
        let mut lines: Vec<Vec<String>> = rows.iter().map(cells).collect();
        if self.long && !self.no_title {
            lines.insert(0, columns.iter().map(|c| c.to_string()).collect());
        }
        let widths: Vec<usize> = (0..columns.len()).map(|i| lines.iter().map(|l| l[i].chars().count()).max().unwrap_or(0)).collect();
        // As libguestfs: two blanks between columns where they fit on a line of 80.
        let room = widths.iter().sum::<usize>() + 2 * (columns.len() - 1);
        let between = if room < 72 { "  " } else { " " };
        let mut out = Out::new();
        for line in lines {
            if self.csv {
                let mut row = Table::row(true);
                line.iter().for_each(|cell| row.bytes(cell.as_bytes()));
                out.name(row.content())?;
            } else {
                let padded: Vec<String> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
                out.name(padded.join(between).trim_end().as_bytes())?;
            }
            out.bytes(b"\n")?;
        }
        out.finish()
    }

    fn cell(&self, row: &Row, column: &str) -> String {
        let value = match column {
            "Name" => Some(row.name.clone()),
            "Type" => Some(row.kind.to_string()),
            "VFS" => row.vfs.clone(),
            "Label" => row.label.clone(),
            "MBR" => row.mbr.clone(),
            "Size" => Some(if self.human_readable { human(row.size) } else { row.size.to_string() }),
            "Parent" => row.parent.clone(),
            _ => row.uuid.clone(),
        };
        value.unwrap_or_else(|| if self.csv { String::new() } else { "-".into() })
    }
}
