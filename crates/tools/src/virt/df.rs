//! `virt-df`: how full guests' filesystems are.

use std::process::ExitCode;

use clap::{Args, FromArgMatches};
use guestfs::StatFs;
use serde_json::json;

use super::Entry;
use super::options::GuestArgs;
use super::show::{Out, Table, human};
use crate::common::{Failure, json};

/// This command's line in the table.
pub(super) const ENTRY: Entry = Entry {
    name: "df",
    arguments: |command| Df::augment_args(command).disable_help_flag(true).arg(super::help_flag()),
    run: |matches| run(&Df::from_arg_matches(matches)?),
};

/// Show how full the filesystems of guests are.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  virt-df -a disk.qcow2 -h\n  virt-df -d web.xml -d db.xml --csv\n  virt-df -a disk.qcow2 --key /dev/sda3:file:passphrase -i\n\n\
                  The disks of all -a belong to one guest; each -d is another."
)]
struct Df {
    #[command(flatten)]
    guest: GuestArgs,
    /// Sizes for people
    #[arg(short, long, conflicts_with = "csv")]
    human_readable: bool,
    /// Inodes instead of space
    #[arg(short, long)]
    inodes: bool,
    /// UUIDs instead of names, for domains that have one
    #[arg(long)]
    uuid: bool,
    /// Comma-separated values
    #[arg(long)]
    csv: bool,
    /// JSON, with all numbers in bytes
    #[arg(long, conflicts_with_all = ["csv", "human_readable"])]
    json: bool,
    /// As it is anyway: for scripts
    #[arg(long, hide = true)]
    one_per_guest: bool,
}

/// A filesystem of a guest.
struct Row {
    guest: String,
    device: String,
    space: StatFs,
}

fn run(args: &Df) -> Result<ExitCode, Failure> {
    let mut out = Out::new();
    let mut all = Vec::new();
    let mut titled = false;
    let (guests, keys) = (args.guest.sources.guests()?, args.guest.keys()?);
    args.guest.confine(&guests, true)?;
    for guest in guests {
        let volumes = args.guest.volumes(args.guest.sources.open(&guest)?, &keys)?;
        let name = guest.uuid.filter(|_| args.uuid).unwrap_or(guest.name);
        for (index, space) in args.guest.statfs(&volumes, &keys)? {
            let Some(volume) = volumes.volumes.get(index) else { continue };
            let row = Row { guest: name.clone(), device: volume.device.clone(), space };
            if args.json {
                all.push(row.value());
                continue;
            }
            if !titled {
                out.bytes(args.title().as_bytes())?;
                titled = true;
            }
            out.name(&args.line(&row))?;
            out.bytes(b"\n")?;
        }
    }
    if args.json {
        json::print(&all);
    } else if !titled {
        out.bytes(args.title().as_bytes())?;
    }
    out.finish()?;
    Ok(ExitCode::SUCCESS)
}

impl Df {
    fn title(&self) -> String {
        let names = match (self.inodes, self.human_readable) {
            (true, _) => ["Inodes", "IUsed", "IFree", "IUse%"],
            (_, true) => ["Size", "Used", "Available", "Use%"],
            _ => ["1K-blocks", "Used", "Available", "Use%"],
        };
        if self.csv {
            format!("VirtualMachine,Filesystem,{}\n", names.join(","))
        } else {
            columns("Filesystem", &names.map(String::from)) + "\n"
        }
    }

    fn line(&self, row: &Row) -> Vec<u8> {
        let (total, used, available) = if self.inodes { row.inodes() } else { row.bytes() };
        let part = if total == 0 { 0.0 } else { 100.0 * used as f64 / total as f64 };
        let number = |n: u64| match (self.inodes, self.human_readable) {
            (true, _) => n.to_string(),
            (_, true) => human(n),
            _ => (n / 1024).to_string(),
        };
        let numbers = [total, used, available].map(number);
        if self.csv {
            let mut line = Table::row(true);
            line.bytes(row.guest.as_bytes());
            line.bytes(row.device.as_bytes());
            numbers.iter().for_each(|n| line.field(n));
            line.field(&format!("{part:.1}"));
            return line.content().to_vec();
        }
        let [total, used, available] = numbers;
        columns(&format!("{}:{}", row.guest, row.device), &[total, used, available, format!("{:.0}%", part.ceil())]).into_bytes()
    }
}

/// A line as libguestfs aligns it: a long name has the numbers behind it all the same.
fn columns(name: &str, numbers: &[String; 4]) -> String {
    let [a, b, c, d] = numbers;
    format!("{name:<36}{a:>10} {b:>10} {c:>10} {d:>5}")
}

impl Row {
    /// All, used, and left for who is not root.
    fn bytes(&self) -> (u64, u64, u64) {
        let s = &self.space;
        let bytes = |blocks: u64| blocks.saturating_mul(s.block_size);
        (bytes(s.blocks), bytes(s.blocks.saturating_sub(s.blocks_free)), bytes(s.blocks_available))
    }

    fn inodes(&self) -> (u64, u64, u64) {
        let s = &self.space;
        (s.files, s.files.saturating_sub(s.files_free), s.files_free)
    }

    fn value(&self) -> serde_json::Value {
        let (size, used, available) = self.bytes();
        let (inodes, inodes_used, inodes_free) = self.inodes();
        json!({
            "guest": self.guest, "filesystem": self.device, "size": size, "used": used, "available": available,
            "inodes": inodes, "inodes_used": inodes_used, "inodes_free": inodes_free,
        })
    }
}
