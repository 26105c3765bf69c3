//! `virt-log`: a guest's journal or its plain log files.

use std::process::ExitCode;

use clap::{Args, FromArgMatches};
use guestfs::journal::{Entry as JournalEntry, Journal};
use guestfs::{Ext, GuestFs};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::Entry;
use super::options::GuestArgs;
use super::show::{Out, read_file};
use crate::common::Failure;

/// This command's line in the table.
pub(super) const ENTRY: Entry = Entry { name: "log", arguments: Log::augment_args, run: |matches| run(&Log::from_arg_matches(matches)?) };

const JOURNAL: &[u8] = b"/var/log/journal";
const LOG_FILES: &[&str] = &["/var/log/syslog", "/var/log/messages"];
const PRIORITIES: &[&str] = &["emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"];
/// What an entry is that does not say: info.
const PRIORITY: usize = 6;

/// Print a guest's log: the journal of systemd, else syslog or messages.
#[derive(Args)]
#[command(after_help = "Examples:\n  virt-log -a disk.qcow2 | less\n  virt-log -d guest.xml | grep 'dhclient.*bound to'")]
struct Log {
    #[command(flatten)]
    guest: GuestArgs,
}

fn run(args: &Log) -> Result<ExitCode, Failure> {
    let guest = args.guest.open_confined()?;
    let mut out = Out::new();
    let complaints = print(guest.fs(), &mut out)?;
    out.finish()?;
    guest.shutdown()?;
    for complaint in &complaints {
        eprintln!("virt-log: {complaint}");
    }
    Ok(if complaints.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints what there is, and returns what of it is damaged.
fn print(fs: &dyn GuestFs, out: &mut Out) -> Result<Vec<String>, Failure> {
    let mut any = false;
    let mut complaints = Vec::new();
    if fs.is_dir(JOURNAL) {
        let mut journal = Journal::open(fs, JOURNAL)?;
        any = !journal.is_empty();
        let zone = TimeZone::system();
        for entry in journal.by_ref() {
            line(&entry, &zone, out)?;
        }
        complaints = journal.complaints;
    }
    let plain = if any { None } else { LOG_FILES.iter().find(|file| fs.is_file(file.as_bytes())) };
    if let Some(file) = plain {
        any = true;
        let mut end = b'\n';
        read_file(fs, file.as_bytes(), &mut |piece| {
            end = piece.last().copied().unwrap_or(end);
            out.lines(piece)
        })?;
        if end != b'\n' {
            out.bytes(b"\n")?;
        }
    }
    if any || !complaints.is_empty() {
        return Ok(complaints);
    }
    Err(Failure::new(format!("the guest has no {}, {}", String::from_utf8_lossy(JOURNAL), LOG_FILES.join(" or ")))
        .hint("virt-ls -R lists what is in /var/log; virt-cat prints other files"))
}

/// `Nov 14 22:13:20 sshd[100] info: session opened`
fn line(entry: &JournalEntry, zone: &TimeZone, out: &mut Out) -> Result<(), Failure> {
    let time = i64::try_from(entry.realtime).ok().and_then(|t| Timestamp::from_microsecond(t).ok());
    let time = time.map_or_else(|| "(no time)".into(), |t| t.to_zoned(zone.clone()).strftime("%b %d %H:%M:%S").to_string());
    out.bytes(time.as_bytes())?;
    if let Some(name) = entry.field("SYSLOG_IDENTIFIER").or(entry.field("_COMM")) {
        out.bytes(b" ")?;
        out.name(name)?;
    }
    if let Some(pid) = entry.field("_PID") {
        out.bytes(b"[")?;
        out.name(pid)?;
        out.bytes(b"]")?;
    }
    let priority = entry.field("PRIORITY").and_then(|p| std::str::from_utf8(p).ok()?.parse().ok()).unwrap_or(PRIORITY);
    out.bytes(format!(" {}:", PRIORITIES.get(priority).unwrap_or(&"info")).as_bytes())?;
    if let Some(message) = entry.field("MESSAGE") {
        out.bytes(b" ")?;
        out.lines(message)?;
    }
    out.bytes(b"\n")
}
