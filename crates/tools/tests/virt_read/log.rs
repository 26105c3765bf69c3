//! virt-log beside libguestfs's and journalctl, on journals that systemd wrote.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::phony::{Filesystem, Guest, program, run, similar};

/// Begins an entry of systemd's export format.
fn begin(out: &mut Vec<u8>, at: u64) {
    let (realtime, monotonic) = (1_700_000_000_000_000 + at * 1_500_000, at * 1_500_000 + 5_000_000);
    write!(out, "__REALTIME_TIMESTAMP={realtime}\n__MONOTONIC_TIMESTAMP={monotonic}\n_BOOT_ID=0123456789abcdef0123456789abcdef\n").unwrap();
}

fn entry(out: &mut Vec<u8>, at: u64, fields: &[(&str, &[u8])]) {
    begin(out, at);
    for (name, value) in fields {
        if value.iter().any(|b| *b < b' ') {
            writeln!(out, "{name}").unwrap();
            out.extend((value.len() as u64).to_le_bytes());
        } else {
            write!(out, "{name}=").unwrap();
        }
        out.extend(*value);
        out.push(b'\n');
    }
    out.push(b'\n');
}

/// Entries of every kind, beginning so many steps after the first.
fn export(offset: u64, sessions: u64) -> Vec<u8> {
    let mut out = Vec::new();
    for n in 0..sessions {
        let (message, pid) = (format!("session {n} opened"), (100 + n).to_string());
        let fields: [(&str, &[u8]); 5] = [
            ("_HOSTNAME", b"web"),
            ("SYSLOG_IDENTIFIER", b"sshd"),
            ("_PID", pid.as_bytes()),
            ("PRIORITY", b"6"),
            ("MESSAGE", message.as_bytes()),
        ];
        entry(&mut out, offset + 2 * n, &fields);
    }
    let long = [b"long ".to_vec(), b"abcdefghij ".repeat(300)].concat();
    let late: [&[(&str, &[u8])]; 8] = [
        &[("SYSLOG_IDENTIFIER", b"kernel"), ("PRIORITY", b"3"), ("MESSAGE", b"Linux version 6.1"), ("_TRANSPORT", b"kernel")],
        &[("_COMM", b"bash"), ("_PID", b"77"), ("MESSAGE", b"no identifier\nsecond line\n\tthird line")],
        &[("SYSLOG_IDENTIFIER", b"app"), ("SYSLOG_PID", b"42"), ("MESSAGE", &long), ("PRIORITY", b"4")],
        &[("SYSLOG_IDENTIFIER", b"bin"), ("MESSAGE", b"with \x01\x1b[31mred\x00 bytes \xff\xfe"), ("PRIORITY", b"2")],
        &[("MESSAGE", b"no host and no name")],
        &[("SYSLOG_IDENTIFIER", b"nomessage"), ("_PID", b"5")],
        &[("SYSLOG_IDENTIFIER", b"utf"), ("_PID", b"5"), ("MESSAGE", "Grüße ☃ aus 東京".as_bytes())],
        &[("SYSLOG_IDENTIFIER", b"empty"), ("_PID", b"5"), ("MESSAGE", b"")],
    ];
    for (n, fields) in late.iter().enumerate() {
        entry(&mut out, offset + 2 * sessions.max(42) + 16 + n as u64, fields);
    }
    out
}

/// Has systemd write a journal of these entries.
fn journal(guest: &Guest, name: &str, entries: &[u8], new: bool) -> Vec<u8> {
    let (path, flag) = (guest.path(name), if new { "1" } else { "0" });
    guest.write("entries", entries);
    run(Command::new("/usr/lib/systemd/systemd-journal-remote")
        .env("SYSTEMD_JOURNAL_COMPACT", flag)
        .env("SYSTEMD_JOURNAL_KEYED_HASH", flag)
        .args(["--compress=yes", "-o"])
        .args([&path, &guest.path("entries")]));
    std::fs::read(path).unwrap()
}

fn log(guest: &Guest, files: &[(&str, &[u8])]) -> std::process::Output {
    let elf = program(62);
    let system: [(&str, &[u8]); 3] = [("bin/ls", &elf), ("etc/fstab", b""), ("etc/os-release", b"ID=debian\nVERSION_ID=12\n")];
    guest.disk("disk.img", &[Filesystem { label: "", files: &[&system[..], files].concat(), number: 1, size: 64 << 20 }]);
    let mut virt = Command::new(env!("CARGO_BIN_EXE_virt"));
    virt.args(["log", "-a", "disk.img"]).env("TZ", "UTC").current_dir(guest.dir.path()).stdin(Stdio::null()).output().unwrap()
}

const FOLDER: &str = "var/log/journal/ffffffffffffffffffffffffffffffff";

fn path(name: &str) -> String {
    format!("{FOLDER}/{name}")
}

/// What journalctl tells of the same files, in virt-log's form.
fn journalctl(guest: &Guest, names: &[&str]) -> Vec<u8> {
    let mut command = Command::new("journalctl");
    command.args(names.iter().map(|name| format!("--file={}", guest.path(name).display())));
    let json = run(command.args(["--utc", "--all", "-o", "json"]));
    let mut out = Vec::new();
    for line in json.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
        let value: serde_json::Value = serde_json::from_slice(line).unwrap();
        let bytes = |name: &str| match &value[name] {
            serde_json::Value::String(text) => Some(text.clone().into_bytes()),
            serde_json::Value::Array(bytes) => Some(bytes.iter().map(|b| b.as_u64().unwrap() as u8).collect()),
            _ => None,
        };
        let number = |name: &str| bytes(name).map(|b| String::from_utf8(b).unwrap().parse::<i64>().unwrap());
        let time = jiff::Timestamp::from_microsecond(number("__REALTIME_TIMESTAMP").unwrap()).unwrap();
        out.extend(time.strftime("%b %d %H:%M:%S").to_string().bytes());
        if let Some(name) = bytes("SYSLOG_IDENTIFIER").or(bytes("_COMM")) {
            out.extend([b" ", &name[..]].concat());
        }
        if let Some(pid) = bytes("_PID") {
            out.extend([b"[", &pid[..], b"]"].concat());
        }
        let names = ["emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"];
        out.extend(format!(" {}:", names[number("PRIORITY").unwrap_or(6) as usize]).bytes());
        if let Some(message) = bytes("MESSAGE") {
            out.extend([b" ", &message[..]].concat());
        }
        out.push(b'\n');
    }
    out
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn journals_are_printed_in_the_order_of_time() {
    let guest = Guest::empty();
    let old = journal(&guest, "old.journal", &export(0, 8), false);
    let new = journal(&guest, "new.journal", &export(1, 4), true);
    let (old_path, new_path) = (path("system@1.journal"), path("system.journal"));
    let output = log(&guest, &[(&old_path, &old), (&new_path, &new)]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    similar("journalctl", &text(&output.stdout), &text(&journalctl(&guest, &["old.journal", "new.journal"])));
    // libguestfs's words end at a NUL.
    let recorded = include_str!("libguestfs/log.txt").replace("\x1b[31mred\n", &text(b"\x1b[31mred\x00 bytes \xff\xfe\n"));
    // Entries of the same moment stand as their hashes have it, which are other ones in each journal.
    let sorted = |text: &str| {
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        lines.join("\n")
    };
    similar("libguestfs", &sorted(&text(&output.stdout)), &sorted(&recorded));
}

#[test]
fn long_journals_and_damaged_ones() {
    let guest = Guest::empty();
    let mut whole = journal(&guest, "long.journal", &export(0, 5000), true);
    let long_path = path("system.journal");
    let output = log(&guest, &[(&long_path, &whole)]);
    similar("journalctl", &text(&output.stdout), &text(&journalctl(&guest, &["long.journal"])));
    assert!(output.stdout.len() > 5000 * 40);

    // What comes before the damage is printed, and the damage is told.
    let at = whole.windows(18).rposition(|w| w == b"session 2500 opene").unwrap() - 80;
    whole[at..at + 16].fill(0xff);
    let output = log(&guest, &[(&long_path, &whole), ("var/log/syslog", b"not this\n")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("corrupt journal: /var/log/journal"), "{}", text(&output.stderr));
    assert!(text(&output.stdout).ends_with("session 2499 opened\n"));
}

#[test]
fn without_a_journal_the_first_plain_file_is_printed() {
    let guest = Guest::empty();
    let output = log(&guest, &[("var/log/messages", b"messages\n"), ("var/log/syslog", b"syslog")]);
    assert_eq!(text(&output.stdout), "syslog\n");
    let output = log(&guest, &[("var/log/messages", b"messages\n")]);
    assert_eq!(text(&output.stdout), "messages\n");
    let output = log(&guest, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("virt-ls -R"), "{}", text(&output.stderr));
}
