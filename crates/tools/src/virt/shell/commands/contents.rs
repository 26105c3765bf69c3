//! Commands that show what is in a file besides its text, and that make files of a pattern.

use std::fmt::Write as _;
use std::io::{Read, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use guestfs::{DirEntry, Ext, FileType};

use super::looking::real;
use super::{Arguments, Command, copying};
use crate::common::Failure;
use crate::virt::ls;
use crate::virt::shell::Shell;
use crate::virt::show::{join, read_file};

/// Files that are taken as a whole are no larger.
const LIMIT: u64 = 1 << 30;
/// Bytes in a line of hexdump's.
const ROW: usize = 16;

pub(super) const COMMANDS: &[Command] = &[
    Command {
        names: &["file"],
        usage: "PATH",
        help: "tell what kind of file a path is, in file(1)'s words",
        run: |shell, a| {
            let word = match shell.guest()?.fs()?.lstat(a.path(0)?)?.kind {
                FileType::Directory => "directory",
                FileType::Symlink => "symbolic link",
                FileType::CharDevice => "character device",
                FileType::BlockDevice => "block device",
                FileType::Fifo => "FIFO",
                FileType::Socket => "socket",
                FileType::Regular => {
                    // The program looks at hostile files: not in this process's reach.
                    let path = inside(shell, a.path(0)?)?;
                    let words: [&[u8]; 4] = [b"file", b"-b", b"--", &path];
                    let output = shell.guest()?.tool(&words, true)?;
                    return shell.out.line(output.stdout.trim_ascii());
                }
            };
            shell.out.line(word.as_bytes())
        },
    },
    Command {
        names: &["hexdump"],
        usage: "PATH",
        help: "print a file as hexdump -C does",
        run: |shell, a| {
            let content = shell.guest()?.fs()?.read(a.path(0)?, LIMIT)?;
            let text = hexdump(&content);
            shell.out.line(text.as_bytes())
        },
    },
    Command {
        names: &["pread"],
        usage: "PATH COUNT OFFSET",
        help: "print some bytes of a file from a place in it",
        run: |shell, a| {
            let mut bytes = vec![0; a.unsigned::<usize>(1)?.min(LIMIT as usize)];
            let (offset, mut done): (u64, usize) = (a.unsigned(2)?, 0);
            let fs = shell.guest()?.fs()?;
            while done < bytes.len() {
                match fs.read_at(a.path(0)?, offset.saturating_add(done as u64), &mut bytes[done..])? {
                    0 => break,
                    n => done += n,
                }
            }
            shell.out.bytes(&bytes[..done])
        },
    },
    Command {
        names: &["readdir"],
        usage: "DIR",
        help: "list a directory's entries with their inodes and kinds",
        run: |shell, a| {
            let fs = shell.guest()?.fs()?;
            let mut entries = fs.read_dir(a.path(0)?)?;
            for name in [&b"."[..], b".."] {
                let ino = fs.stat(&join(a.path(0)?, name))?.ino;
                entries.push(DirEntry { name: name.to_vec(), kind: FileType::Directory, ino });
            }
            entries.sort_by(|a, b| a.name.cmp(&b.name));
            for (index, entry) in entries.iter().enumerate() {
                let kind = match entry.kind {
                    FileType::Regular => 'r',
                    FileType::Directory => 'd',
                    FileType::Symlink => 'l',
                    FileType::CharDevice => 'c',
                    FileType::BlockDevice => 'b',
                    FileType::Fifo => 'f',
                    FileType::Socket => 's',
                };
                let name = String::from_utf8_lossy(&entry.name);
                shell.out.line(format!("[{index}] = {{\n  ino: {}\n  ftyp: {kind}\n  name: {name}\n}}", entry.ino).as_bytes())?;
            }
            Ok(())
        },
    },
    Command {
        names: &["ls0"],
        usage: "DIR LOCALFILE",
        help: "list a directory into a file, each name ended by a zero byte",
        run: |shell, a| {
            let names = ls::sorted_names(shell.guest()?.fs()?, a.path(0)?)?;
            let mut file = copying::local_output(a.word(1))?;
            names.iter().try_for_each(|name| file.write_all(&[name, &b"\0"[..]].concat()))?;
            Ok(file.flush()?)
        },
    },
    Command {
        names: &["is-zero"],
        usage: "PATH",
        help: "tell whether a file has nothing but zeroes",
        run: |shell, a| {
            let fs = shell.guest()?.fs()?;
            fs.stat(a.path(0)?)?;
            let mut zero = true;
            read_file(fs, a.path(0)?, &mut |piece| {
                zero &= piece.iter().all(|b| *b == 0);
                Ok(())
            })?;
            shell.out.text(if zero { "true\n" } else { "false\n" })
        },
    },
    Command {
        names: &["base64-out"],
        usage: "PATH LOCALFILE",
        help: "write a file into a file of this machine, in base64",
        run: |shell, a| {
            let content = shell.guest()?.fs()?.read(a.path(0)?, LIMIT)?;
            let text = STANDARD.encode(content);
            let mut file = copying::local_output(a.word(1))?;
            text.as_bytes().chunks(76).try_for_each(|line| file.write_all(&[line, b"\n"].concat()))?;
            Ok(file.flush()?)
        },
    },
    Command {
        names: &["base64-in"],
        usage: "LOCALFILE PATH",
        help: "make a file of a file of this machine that is in base64",
        run: |shell, a| {
            let mut text = Vec::new();
            copying::local_input(a.word(0))?.take(LIMIT).read_to_end(&mut text)?;
            text.retain(|b| !b.is_ascii_whitespace());
            let content = STANDARD.decode(&text).map_err(|e| Failure::new(format!("{}: {e}", guestfs::show(a.word(0)))))?;
            Ok(shell.guest()?.tree_mut()?.write(a.path(1)?, &mut content.as_slice(), None)?)
        },
    },
    Command {
        names: &["fill"],
        usage: "BYTE LENGTH PATH",
        help: "make a file of so many times a byte",
        run: |shell, a| {
            let byte: u8 = a.unsigned(0)?;
            filled(shell, a, std::io::repeat(byte))
        },
    },
    Command {
        names: &["fill-pattern"],
        usage: "TEXT LENGTH PATH",
        help: "make a file of so many bytes of a text that is repeated",
        run: |shell, a| {
            if a.word(0).is_empty() {
                return Err(Failure::new("an empty text fills nothing"));
            }
            filled(shell, a, Repeated { text: a.word(0).to_vec(), at: 0 })
        },
    },
    Command {
        names: &["more", "less"],
        usage: "PATH",
        help: "show a file page by page, by this machine's $PAGER",
        run: |shell, a| {
            let content = shell.guest()?.fs()?.read(a.path(0)?, LIMIT)?;
            let pager = std::env::var("PAGER").ok().filter(|pager| !pager.is_empty()).unwrap_or_else(|| "more".into());
            shell.page(pager.as_bytes())?;
            shell.out.bytes(&content)
        },
    },
    Command {
        names: &["removexattr", "lremovexattr"],
        usage: "NAME PATH",
        help: "remove an extended attribute of a file",
        run: |shell, a| {
            let path = inside(shell, a.path(1)?)?;
            shell.guest()?.tree_mut()?;
            let words: [&[u8]; 6] = [b"setfattr", b"-h", b"-x", a.word(0), b"--", &path];
            shell.guest()?.tool(&words, false).map(drop)
        },
    },
    Command {
        names: &["fstrim"],
        usage: "MOUNTPOINT",
        help: "give a mounted filesystem's free space back to its disk",
        run: |shell, a| {
            let path = inside(shell, a.path(0)?)?;
            shell.guest()?.tool(&[&b"fstrim"[..], &path], false).map(drop)
        },
    },
    Command {
        names: &["xfs-growfs"],
        usage: "MOUNTPOINT",
        help: "make a mounted XFS as large as its device",
        run: |shell, a| {
            let path = inside(shell, a.path(0)?)?;
            shell.guest()?.tool(&[&b"xfs_growfs"[..], &path], false).map(drop)
        },
    },
    Command {
        names: &["btrfs-filesystem-resize"],
        usage: "MOUNTPOINT",
        help: "make a mounted btrfs as large as its device",
        run: |shell, a| btrfs(shell, &["filesystem", "resize", "max"], a.path(0)?).map(drop),
    },
    Command {
        names: &["btrfs-subvolume-create"],
        usage: "PATH",
        help: "make a subvolume of btrfs",
        run: |shell, a| btrfs(shell, &["subvolume", "create"], a.path(0)?).map(drop),
    },
    Command {
        names: &["btrfs-subvolume-delete"],
        usage: "PATH",
        help: "remove a subvolume of btrfs",
        run: |shell, a| btrfs(shell, &["subvolume", "delete"], a.path(0)?).map(drop),
    },
    Command {
        names: &["btrfs-subvolume-snapshot"],
        usage: "PATH PATH [ro:..]",
        help: "make a snapshot of a subvolume of btrfs at the second path",
        run: |shell, a| {
            let from = inside(shell, a.path(0)?)?;
            let mut words = vec!["subvolume", "snapshot"];
            if a.flag("ro")? {
                words.push("-r");
            }
            let from = String::from_utf8(from).map_err(|_| Failure::new("a path that is not UTF-8"))?;
            words.push(&from);
            btrfs(shell, &words, a.path(1)?).map(drop)
        },
    },
    Command {
        names: &["btrfs-subvolume-list"],
        usage: "MOUNTPOINT",
        help: "list the subvolumes of a mounted btrfs",
        run: |shell, a| {
            let listed = btrfs(shell, &["subvolume", "list"], a.path(0)?)?;
            // ID 256 gen 7 top level 5 path NAME
            let rows = listed.lines().filter_map(|line| {
                let (numbers, path) = line.split_once(" path ")?;
                let mut words = numbers.split(' ').filter(|w| w.parse::<u64>().is_ok());
                let (id, _, top) = (words.next()?, words.next()?, words.next()?);
                Some((id.to_string(), top.to_string(), path.to_string()))
            });
            rows.enumerate().try_for_each(|(index, (id, top, path))| {
                let text = format!(
                    "[{index}] = {{\n  btrfssubvolume_id: {id}\n  btrfssubvolume_top_level_id: {top}\n  btrfssubvolume_path: {path}\n}}"
                );
                shell.out.line(text.as_bytes())
            })
        },
    },
];

fn btrfs(shell: &mut Shell<'_>, words: &[&str], path: &[u8]) -> Result<String, Failure> {
    shell.guest()?.tree_mut()?;
    // What is to be made is not there yet: its folder is.
    let path = match inside(shell, path) {
        Ok(path) => path,
        Err(_) => {
            let at = path.iter().rposition(|b| *b == b'/').unwrap_or(0);
            join(&inside(shell, &path[..at.max(1)])?, &path[at + 1..])
        }
    };
    let words: Vec<&[u8]> = [&b"btrfs"[..]].into_iter().chain(words.iter().map(|w| w.as_bytes())).chain([&path[..]]).collect();
    Ok(String::from_utf8_lossy(&shell.guest()?.tool(&words, false)?.stdout).into_owned())
}

/// Where the appliance's own programs find a file of the guest's: no link on the way leads out of it.
fn inside(shell: &mut Shell<'_>, path: &[u8]) -> Result<Vec<u8>, Failure> {
    let path = real(shell.guest()?.fs()?, path)?;
    Ok([guestfs::engine::GUEST_ROOT.as_bytes(), &path].concat())
}

fn filled(shell: &mut Shell<'_>, a: &Arguments, bytes: impl Read) -> Result<(), Failure> {
    let len: u64 = a.unsigned(1)?;
    Ok(shell.guest()?.tree_mut()?.write(a.path(2)?, &mut bytes.take(len), None)?)
}

/// A text, again and again.
struct Repeated {
    text: Vec<u8>,
    at: usize,
}

impl Read for Repeated {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        for byte in buf.iter_mut() {
            *byte = self.text[self.at];
            self.at = (self.at + 1) % self.text.len();
        }
        Ok(buf.len())
    }
}

/// As hexdump -C has it: rows that are like the one before are a star.
fn hexdump(content: &[u8]) -> String {
    let mut text = String::new();
    let mut before: Option<&[u8]> = None;
    let mut starred = false;
    for (index, row) in content.chunks(ROW).enumerate() {
        if before == Some(row) {
            if !starred {
                text += "*\n";
            }
            starred = true;
            continue;
        }
        (before, starred) = (Some(row), false);
        let hex = |row: &[u8]| row.iter().fold(String::new(), |text, b| format!("{text}{b:02x} "));
        let (left, right) = row.split_at(row.len().min(8));
        let shown: String = row.iter().map(|b| if matches!(b, b' '..=b'~') { char::from(*b) } else { '.' }).collect();
        let _ = writeln!(text, "{:08x}  {:<25}{:<25}|{shown}|", index * ROW, hex(left), hex(right));
    }
    if !content.is_empty() {
        let _ = writeln!(text, "{:08x}", content.len());
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn hexdump_is_what_hexdump_prints() {
        let contents: [&[u8]; 5] = [b"", b"a", b"0123456789abcdef", &[0; 100], b"short\nlines\x7f\xff and more of them, and more"];
        for content in contents {
            let mut child = Command::new("hexdump").arg("-C").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("hexdump");
            child.stdin.take().unwrap().write_all(content).unwrap();
            let theirs = child.wait_with_output().unwrap();
            assert_eq!(super::hexdump(content), String::from_utf8(theirs.stdout).unwrap());
        }
    }
}
