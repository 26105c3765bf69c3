//! Commands that look into the mounted tree.

use std::io::Write;

use guestfs::{Error, Ext, FileType, GuestFs};
use regex::bytes::RegexBuilder;

use super::{Arguments, Command};
use crate::common::Failure;
use crate::virt::shell::Shell;
use crate::virt::show::{human, join};
use crate::virt::walk::walk;
use crate::virt::{checksum, long, ls};

/// Files that are taken as a whole are no larger.
const LIMIT: u64 = 1 << 30;

/// A command that prints true or false.
macro_rules! test {
    ($names:expr, $help:expr, $kind:pat, $follow:expr) => {
        Command {
            names: $names,
            usage: "PATH [followsymlinks:..]",
            help: $help,
            run: |shell, a| {
                let kind = kind(shell, a, $follow || a.flag("followsymlinks")?)?;
                shell.out.text(if kind.is_some_and(|kind| matches!(kind, $kind)) { "true\n" } else { "false\n" })
            },
        }
    };
}

/// A command that prints the lines which match.
macro_rules! grep {
    ($names:expr, $help:expr, $how:expr) => {
        Command {
            names: $names,
            usage: "REGEX PATH [insensitive:..] [fixed:..] [extended:..]",
            help: $help,
            run: |shell, a| grep(shell, a, $how),
        }
    };
}

#[derive(Clone, Copy)]
struct Grep {
    fixed: bool,
    insensitive: bool,
}

pub(super) const COMMANDS: &[Command] = &[
    Command {
        names: &["cat"],
        usage: "PATH",
        help: "print a file, and a line end",
        run: |shell, a| {
            let content = shell.guest()?.fs()?.read(a.path(0)?, LIMIT)?;
            shell.out.line(&content)
        },
    },
    Command {
        names: &["read-file"],
        usage: "PATH",
        help: "print a file as it is",
        run: |shell, a| {
            let content = shell.guest()?.fs()?.read(a.path(0)?, LIMIT)?;
            shell.out.bytes(&content)
        },
    },
    Command { names: &["read-lines"], usage: "PATH", help: "print a file's lines", run: |shell, a| each_line(shell, a, 0, |lines| lines) },
    Command {
        names: &["head"],
        usage: "PATH",
        help: "print a file's first 10 lines",
        run: |shell, a| each_line(shell, a, 0, |l| first(l, 10)),
    },
    Command {
        names: &["head-n"],
        usage: "N PATH",
        help: "print a file's first lines; with -N all but the last N",
        run: |shell, a| {
            let n = a.number(0)?;
            each_line(shell, a, 1, move |lines| first(lines, n))
        },
    },
    Command {
        names: &["tail"],
        usage: "PATH",
        help: "print a file's last 10 lines",
        run: |shell, a| each_line(shell, a, 0, |l| last(l, 10)),
    },
    Command {
        names: &["tail-n"],
        usage: "N PATH",
        help: "print a file's last lines; with -N from line N on",
        run: |shell, a| {
            let n = a.number(0)?;
            each_line(shell, a, 1, move |lines| last(lines, n))
        },
    },
    grep!(&["grep"], "print the lines of a file that match", Grep { fixed: false, insensitive: false }),
    grep!(&["egrep"], "print the lines of a file that match", Grep { fixed: false, insensitive: false }),
    grep!(&["fgrep"], "print the lines of a file that contain a text", Grep { fixed: true, insensitive: false }),
    grep!(&["grepi", "egrepi"], "print the lines of a file that match, whatever the case", Grep { fixed: false, insensitive: true }),
    grep!(&["fgrepi"], "print the lines of a file that contain a text, whatever the case", Grep { fixed: true, insensitive: true }),
    Command {
        names: &["ls"],
        usage: "DIR",
        help: "list a directory",
        run: |shell, a| {
            let names = ls::sorted_names(shell.guest()?.fs()?, a.path(0)?)?;
            names.iter().try_for_each(|name| shell.out.line(name))
        },
    },
    Command {
        names: &["ll"],
        usage: "PATH",
        help: "list a directory with modes, owners, sizes and times",
        run: |shell, a| {
            let path = a.path(0)?;
            let rows = long::rows(shell.guest()?.fs()?, path, false)?;
            // As libguestfs has it: the text with its last line end, and one more.
            rows.iter().map(Vec::as_slice).chain([&b""[..]]).try_for_each(|row| shell.out.line(row))
        },
    },
    Command {
        names: &["find"],
        usage: "DIR",
        help: "list all below a directory",
        run: |shell, a| {
            let found = below(shell.guest()?.fs()?, a.path(0)?)?;
            found.iter().try_for_each(|name| shell.out.line(name))
        },
    },
    Command {
        names: &["find0"],
        usage: "DIR LOCALFILE",
        help: "list all below a directory into a file, each name ended by a zero byte",
        run: |shell, a| {
            let found = below(shell.guest()?.fs()?, a.path(0)?)?;
            let mut file = super::copying::local_output(a.word(1))?;
            found.iter().try_for_each(|name| file.write_all(&[name, &b"\0"[..]].concat()))?;
            Ok(file.flush()?)
        },
    },
    Command { names: &["stat"], usage: "PATH", help: "print what stat(2) tells", run: |shell, a| stat(shell, a, true, false) },
    Command { names: &["lstat"], usage: "PATH", help: "print what lstat(2) tells", run: |shell, a| stat(shell, a, false, false) },
    Command {
        names: &["statns"],
        usage: "PATH",
        help: "print what stat(2) tells, with nanoseconds",
        run: |shell, a| stat(shell, a, true, true),
    },
    Command {
        names: &["lstatns"],
        usage: "PATH",
        help: "print what lstat(2) tells, with nanoseconds",
        run: |shell, a| stat(shell, a, false, true),
    },
    Command {
        names: &["statvfs"],
        usage: "PATH",
        help: "print what statvfs(2) tells",
        run: |shell, a| {
            let s = shell.guest()?.fs()?.statfs(a.path(0)?)?;
            for (name, value) in [
                ("bsize", s.block_size),
                ("frsize", s.block_size),
                ("blocks", s.blocks),
                ("bfree", s.blocks_free),
                ("bavail", s.blocks_available),
                ("files", s.files),
                ("ffree", s.files_free),
                ("favail", s.files_free),
                ("namemax", 255),
            ] {
                shell.out.text(&format!("{name}: {value}\n"))?;
            }
            Ok(())
        },
    },
    Command {
        names: &["readlink"],
        usage: "PATH",
        help: "print where a symbolic link leads",
        run: |shell, a| {
            let target = shell.guest()?.fs()?.readlink(a.path(0)?)?;
            shell.out.line(&target)
        },
    },
    Command {
        names: &["realpath"],
        usage: "PATH",
        help: "print a path without symbolic links",
        run: |shell, a| {
            let path = real(shell.guest()?.fs()?, a.path(0)?)?;
            shell.out.line(&path)
        },
    },
    Command {
        names: &["case-sensitive-path"],
        usage: "PATH",
        help: "print a path as the guest writes it, whatever the case of the letters",
        run: |shell, a| {
            let path = cased(shell.guest()?.fs()?, a.path(0)?)?;
            shell.out.line(&path)
        },
    },
    test!(&["exists"], "tell whether a path is there", _, false),
    test!(&["is-file"], "tell whether a path is a regular file", FileType::Regular, false),
    test!(&["is-dir"], "tell whether a path is a directory", FileType::Directory, false),
    test!(&["is-symlink"], "tell whether a path is a symbolic link", FileType::Symlink, false),
    test!(&["is-fifo"], "tell whether a path is a pipe", FileType::Fifo, false),
    test!(&["is-socket"], "tell whether a path is a socket", FileType::Socket, false),
    test!(&["is-blockdev"], "tell whether a path is a block device", FileType::BlockDevice, false),
    test!(&["is-chardev"], "tell whether a path is a character device", FileType::CharDevice, false),
    Command {
        names: &["filesize"],
        usage: "PATH",
        help: "print a file's size in bytes",
        run: |shell, a| {
            let size = shell.guest()?.fs()?.stat(a.path(0)?)?.size;
            shell.out.text(&format!("{size}\n"))
        },
    },
    Command {
        names: &["du"],
        usage: "PATH",
        help: "print the space that all below a path takes, in KiB",
        run: |shell, a| {
            let fs = shell.guest()?.fs()?;
            let mut seen = std::collections::HashSet::new();
            let mut blocks = 0u64;
            walk(fs, a.path(0)?, &mut |_, stat| {
                if stat.nlink < 2 || stat.kind == FileType::Directory || seen.insert((stat.dev, stat.ino)) {
                    blocks = blocks.saturating_add(stat.blocks);
                }
                Ok(())
            })?;
            shell.out.text(&format!("{}\n", blocks.div_ceil(2)))
        },
    },
    Command { names: &["df"], usage: "", help: "print how full the mounted filesystems are, in KiB", run: |shell, _| df(shell, false) },
    Command {
        names: &["df-h"],
        usage: "",
        help: "print how full the mounted filesystems are, for people",
        run: |shell, _| df(shell, true),
    },
    Command {
        names: &["checksum"],
        usage: "TYPE PATH",
        help: "print a file's checksum: crc, md5, sha1, sha224, sha256, sha384, sha512",
        run: |shell, a| {
            let kind = <checksum::Algorithm as clap::ValueEnum>::from_str(a.text(0)?, false).map_err(|e| Failure::new(e.to_string()))?;
            let sum = checksum::of_file(shell.guest()?.fs()?, a.path(1)?, kind)?;
            shell.out.line(sum.as_bytes())
        },
    },
    Command {
        names: &["wc-l"],
        usage: "PATH",
        help: "count a file's lines",
        run: |shell, a| count(shell, a, |c| c.iter().filter(|b| **b == b'\n').count()),
    },
    Command {
        names: &["wc-w"],
        usage: "PATH",
        help: "count a file's words",
        run: |shell, a| count(shell, a, |c| c.split(u8::is_ascii_whitespace).filter(|w| !w.is_empty()).count()),
    },
    Command { names: &["wc-c"], usage: "PATH", help: "count a file's bytes", run: |shell, a| count(shell, a, <[u8]>::len) },
    Command {
        names: &["getxattr", "lgetxattr"],
        usage: "PATH NAME",
        help: "print an extended attribute of a file",
        run: |shell, a| {
            let all = shell.guest()?.fs()?.xattrs(a.path(0)?)?;
            let value = all.into_iter().find(|(name, _)| name == a.word(1)).map(|(_, value)| value);
            shell.out.bytes(&value.ok_or_else(|| Failure::new(format!("{}: no such attribute", guestfs::show(a.word(1)))))?)
        },
    },
    Command {
        names: &["getxattrs", "lgetxattrs"],
        usage: "PATH",
        help: "print the extended attributes of a file",
        run: |shell, a| {
            let mut all = shell.guest()?.fs()?.xattrs(a.path(0)?)?;
            all.sort();
            for (index, (name, value)) in all.iter().enumerate() {
                let [name, value] = [name, value].map(|v| String::from_utf8_lossy(v).into_owned());
                shell.out.line(format!("[{index}] = {{\n  attrname: {name}\n  attrval: {value}\n}}").as_bytes())?;
            }
            Ok(())
        },
    },
    Command {
        names: &["strings"],
        usage: "PATH",
        help: "print the texts of four characters and more in a file",
        run: |shell, a| {
            let content = shell.guest()?.fs()?.read(a.path(0)?, LIMIT)?;
            let texts = content.split(|b| !matches!(b, b' '..=b'~' | b'\t')).filter(|text| text.len() >= 4);
            texts.into_iter().try_for_each(|text| shell.out.line(text))
        },
    },
];

/// What a path is, if it is there.
fn kind(shell: &mut Shell<'_>, a: &Arguments, follow: bool) -> Result<Option<FileType>, Failure> {
    let fs = shell.guest()?.fs()?;
    match if follow { fs.stat(a.path(0)?) } else { fs.lstat(a.path(0)?) } {
        Ok(stat) => Ok(Some(stat.kind)),
        Err(Error::NotFound(_) | Error::WrongType { .. }) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn lines(content: &[u8]) -> Vec<&[u8]> {
    content.strip_suffix(b"\n").unwrap_or(content).split(|b| *b == b'\n').filter(|_| !content.is_empty()).collect()
}

fn each_line(
    shell: &mut Shell<'_>,
    a: &Arguments,
    at: usize,
    choose: impl for<'l> Fn(&'l [&'l [u8]]) -> &'l [&'l [u8]],
) -> Result<(), Failure> {
    let content = shell.guest()?.fs()?.read(a.path(at)?, LIMIT)?;
    choose(&lines(&content)).iter().try_for_each(|line| shell.out.line(line))
}

fn first<'l>(lines: &'l [&'l [u8]], n: i64) -> &'l [&'l [u8]] {
    let count = usize::try_from(n.unsigned_abs()).unwrap_or(usize::MAX);
    &lines[..if n < 0 { lines.len().saturating_sub(count) } else { count.min(lines.len()) }]
}

fn last<'l>(lines: &'l [&'l [u8]], n: i64) -> &'l [&'l [u8]] {
    let count = usize::try_from(n.unsigned_abs()).unwrap_or(usize::MAX);
    &lines[if n < 0 { count.saturating_sub(1).min(lines.len()) } else { lines.len().saturating_sub(count) }..]
}

fn grep(shell: &mut Shell<'_>, a: &Arguments, how: Grep) -> Result<(), Failure> {
    let pattern = if how.fixed || a.flag("fixed")? { regex::escape(a.text(0)?) } else { a.text(0)?.to_string() };
    let insensitive = how.insensitive || a.flag("insensitive")?;
    let regex = RegexBuilder::new(&pattern).case_insensitive(insensitive).unicode(false).size_limit(1 << 22).build()?;
    let content = shell.guest()?.fs()?.read(a.path(1)?, LIMIT)?;
    lines(&content).into_iter().filter(|line| regex.is_match(line)).try_for_each(|line| shell.out.line(line))
}

fn count(shell: &mut Shell<'_>, a: &Arguments, what: impl Fn(&[u8]) -> usize) -> Result<(), Failure> {
    let content = shell.guest()?.fs()?.read(a.path(0)?, LIMIT)?;
    shell.out.text(&format!("{}\n", what(&content)))
}

/// Paths of all below a directory, without its own as it was written: as libguestfs has it.
fn below(fs: &dyn GuestFs, top: &[u8]) -> Result<Vec<Vec<u8>>, Failure> {
    let slash: &[u8] = if top.ends_with(b"/") { b"" } else { b"/" };
    let mut found = Vec::new();
    walk(fs, top, &mut |below, _| {
        if !below.is_empty() {
            found.push([slash, below].concat());
        }
        Ok(())
    })?;
    found.sort();
    Ok(found)
}

fn stat(shell: &mut Shell<'_>, a: &Arguments, follow: bool, nanoseconds: bool) -> Result<(), Failure> {
    let fs = shell.guest()?.fs()?;
    let s = if follow { fs.stat(a.path(0)?)? } else { fs.lstat(a.path(0)?)? };
    let kind = match s.kind {
        FileType::Fifo => 0o010000,
        FileType::CharDevice => 0o020000,
        FileType::Directory => 0o040000,
        FileType::BlockDevice => 0o060000,
        FileType::Regular => 0o100000,
        FileType::Symlink => 0o120000,
        FileType::Socket => 0o140000,
    };
    let device = rustix::fs::makedev(s.rdev.0, s.rdev.1);
    let mut rows: Vec<(&str, i128)> = vec![
        ("dev", s.dev.into()),
        ("ino", s.ino.into()),
        ("mode", (kind | s.mode).into()),
        ("nlink", s.nlink.into()),
        ("uid", s.uid.into()),
        ("gid", s.gid.into()),
        ("rdev", device.into()),
        ("size", s.size.into()),
        ("blksize", fs.statfs(a.path(0)?).map_or(4096, |s| s.block_size).into()),
        ("blocks", s.blocks.into()),
    ];
    let times = [
        (["atime", "atime_sec", "atime_nsec"], s.atime),
        (["mtime", "mtime_sec", "mtime_nsec"], s.mtime),
        (["ctime", "ctime_sec", "ctime_nsec"], s.ctime),
    ];
    for ([plain, sec, nsec], time) in times {
        if nanoseconds {
            rows.extend([(sec, time.sec.into()), (nsec, time.nsec.into())]);
        } else {
            rows.push((plain, time.sec.into()));
        }
    }
    if nanoseconds {
        rows.extend(["spare1", "spare2", "spare3", "spare4", "spare5", "spare6"].map(|name| (name, 0)));
    }
    let prefix = if nanoseconds { "st_" } else { "" };
    rows.iter().try_for_each(|(name, value)| shell.out.text(&format!("{prefix}{name}: {value}\n")))
}

/// A path with every link on it followed.
pub(super) fn real(fs: &dyn GuestFs, path: &[u8]) -> Result<Vec<u8>, Failure> {
    let words =
        |path: &[u8]| path.split(|b| *b == b'/').filter(|w| !w.is_empty() && *w != b".").rev().map(<[u8]>::to_vec).collect::<Vec<_>>();
    // Whether it leads anywhere, and through too many links, is the tree's to say.
    fs.stat(path)?;
    let mut pending = words(path);
    let mut done: Vec<Vec<u8>> = Vec::new();
    while let Some(word) = pending.pop() {
        if word == b".." {
            done.pop();
            continue;
        }
        done.push(word);
        let here = [b"/", done.join(&b'/').as_slice()].concat();
        if fs.lstat(&here)?.kind == FileType::Symlink {
            let target = fs.readlink(&here)?;
            if target.starts_with(b"/") {
                done.clear();
            } else {
                done.pop();
            }
            pending.extend(words(&target));
        }
    }
    Ok([b"/", done.join(&b'/').as_slice()].concat())
}

/// A path in the guest's own letters. The last word may be missing.
fn cased(fs: &dyn GuestFs, path: &[u8]) -> Result<Vec<u8>, Failure> {
    let words: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|w| !w.is_empty()).collect();
    let mut found = b"/".to_vec();
    for (position, word) in words.iter().enumerate() {
        let names: Vec<Vec<u8>> = fs.read_dir(&found)?.into_iter().map(|e| e.name).collect();
        let name = names.iter().find(|name| name == word).or_else(|| names.iter().find(|name| name.eq_ignore_ascii_case(word)));
        let name = match name {
            Some(name) => name.as_slice(),
            None if position + 1 == words.len() => word,
            None => return Err(Error::NotFound(join(&found, word)).into()),
        };
        found = join(&found, name);
    }
    Ok(found)
}

fn df(shell: &mut Shell<'_>, people: bool) -> Result<(), Failure> {
    let guest = shell.guest()?;
    let fs = guest.fs()?;
    let rows = guest.mounts().iter().map(|mount| Ok((mount.device.clone(), mount.path.clone(), fs.statfs(mount.path.as_bytes())?)));
    let rows = rows.collect::<Result<Vec<_>, Error>>()?;
    let title = if people { "Size" } else { "1K-blocks" };
    shell.out.text(&format!("{:<20} {title:>10} {:>10} {:>10} {:>4} Mounted on\n", "Filesystem", "Used", "Available", "Use%"))?;
    for (device, path, s) in rows {
        let shown = |blocks: u64| {
            let bytes = blocks.saturating_mul(s.block_size);
            if people { human(bytes) } else { (bytes / 1024).to_string() }
        };
        let used = s.blocks.saturating_sub(s.blocks_free);
        let percent = (u128::from(used) * 100).div_ceil(u128::from(used.saturating_add(s.blocks_available)).max(1));
        let row =
            format!("{device:<20} {:>10} {:>10} {:>10} {percent:>3}% {path}", shown(s.blocks), shown(used), shown(s.blocks_available));
        shell.out.line(row.as_bytes())?;
    }
    Ok(())
}
