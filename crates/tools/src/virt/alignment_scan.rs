//! `virt-alignment-scan`: whether guests' partitions begin where storage likes it.

use std::process::ExitCode;

use clap::{Args, FromArgMatches};
use serde_json::json;

use super::Entry;
use super::options::GuestArgs;
use super::show::Out;
use crate::common::{Failure, json};

/// Some partition is not on a boundary of 64 KiB; not even of 4 KiB.
const BELOW_64K: u8 = 2;
const BELOW_4K: u8 = 3;

/// This command's line in the table.
pub(super) const ENTRY: Entry = Entry {
    name: "alignment-scan",
    arguments: AlignmentScan::augment_args,
    run: |matches| run(&AlignmentScan::from_arg_matches(matches)?),
};

/// Tell whether partitions begin on boundaries that storage likes.
#[derive(Args)]
#[command(after_help = "Examples:\n  virt-alignment-scan -a disk.qcow2\n  virt-alignment-scan -q -d guest.xml || echo 'misaligned'\n\n\
                  The exit code is 0 when all partitions are well, 2 when one is aligned to less than 64K and 3 when to less than 4K.")]
struct AlignmentScan {
    #[command(flatten)]
    guest: GuestArgs,
    /// No output, only the exit code
    #[arg(short, long)]
    quiet: bool,
    /// UUIDs instead of names, where several guests are scanned
    #[arg(long)]
    uuid: bool,
    /// JSON
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
}

fn run(args: &AlignmentScan) -> Result<ExitCode, Failure> {
    let mut out = Out::new();
    let mut all = Vec::new();
    let mut worst = u64::MAX;
    let guests = args.guest.sources.guests()?;
    let several = guests.len() > 1;
    args.guest.confine(&guests, false)?;
    for guest in guests {
        let disks = args.guest.sources.open(&guest)?;
        let name = guest.uuid.filter(|_| args.uuid).unwrap_or(guest.name);
        for disk in &disks {
            let table = imgcore::partition::read(disk.image.as_ref())?;
            for partition in table.iter().flat_map(|table| &table.partitions) {
                let device = format!("/dev/{}", guestfs::volume::partition_name(&disk.name, partition.number));
                let alignment = alignment(partition.start);
                worst = worst.min(alignment);
                if args.json {
                    let ok = verdict(alignment).is_none();
                    all.push(json!({ "guest": name, "partition": device, "start": partition.start, "alignment": alignment, "ok": ok }));
                } else if !args.quiet {
                    let device = if several { format!("{name}:{device}") } else { device };
                    out.name(line(&device, partition.start).as_bytes())?;
                    out.bytes(b"\n")?;
                }
            }
        }
    }
    if args.json {
        json::print(&all);
    }
    out.finish()?;
    Ok(verdict(worst).map_or(ExitCode::SUCCESS, |(code, _)| code.into()))
}

/// The largest power of two that divides a partition's start; the one at the very beginning is on every boundary.
fn alignment(start: u64) -> u64 {
    if start == 0 { u64::MAX } else { 1 << start.trailing_zeros() }
}

/// The exit code and the words for what is not well.
fn verdict(alignment: u64) -> Option<(u8, &'static str)> {
    match alignment {
        0..4096 => Some((BELOW_4K, "alignment < 4K")),
        4096..65536 => Some((BELOW_64K, "alignment < 64K")),
        _ => None,
    }
}

fn line(device: &str, start: u64) -> String {
    let alignment = alignment(start);
    let words = verdict(alignment).map_or("ok".to_string(), |(_, why)| format!("bad ({why})"));
    match alignment {
        u64::MAX => format!("{device} {start:>12} - {words}"),
        bytes if bytes < 1024 => format!("{device} {start:>12} {bytes:>12}    {words}"),
        bytes => format!("{device} {start:>12} {:>12}K   {words}", bytes >> 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_libguestfss() {
        // What virt-alignment-scan 1.48 printed, and its manual's example.
        for (start, printed) in [
            (1048576, "/dev/sda1      1048576         1024K   ok"),
            (69206016, "/dev/sda1     69206016         2048K   ok"),
            (154624000, "/dev/sda1    154624000            8K   bad (alignment < 64K)"),
            (32256, "/dev/sda1        32256          512    bad (alignment < 4K)"),
            (0, "/dev/sda1            0 - ok"),
        ] {
            assert_eq!(line("/dev/sda1", start), printed);
        }
    }
}
