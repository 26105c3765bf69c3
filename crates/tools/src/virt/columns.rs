//! The line that virt-ls and virt-diff print for a file: libguestfs's columns, of which the flags choose.

use clap::Args;
use guestfs::{FileType, GuestFs, Stat, Time, Xattrs};

use super::paths::Found;
use super::show::{Out, Table, human};
use super::{checksum, long, time};
use crate::common::Failure;

/// Which columns, and how they look.
#[derive(Args)]
pub(super) struct Columns {
    /// Sizes for people
    #[arg(short, long)]
    pub(super) human_readable: bool,
    /// Comma-separated values
    #[arg(long)]
    pub(super) csv: bool,
    /// Checksums of files (crc, md5, sha1, sha224, sha256, sha384, sha512)
    #[arg(long, alias = "checksums", value_name = "ALGORITHM", num_args = 0..=1, require_equals = true, default_missing_value = "md5")]
    pub(super) checksum: Option<checksum::Algorithm>,
    /// Device, inode, links, device number and blocks
    #[arg(long, alias = "extra-stat")]
    extra_stats: bool,
    /// Owner and group
    #[arg(long, alias = "uid")]
    uids: bool,
    /// Times of access, modification and change
    #[arg(long, alias = "time")]
    times: bool,
    /// Times in days before now
    #[arg(long)]
    time_days: bool,
    /// Times in seconds before now
    #[arg(long)]
    time_relative: bool,
    /// Times in seconds since 1970
    #[arg(long)]
    time_t: bool,
    /// Whether the time of access is left out.
    #[arg(skip)]
    pub(super) without_atime: bool,
}

/// A file with what is told of it besides its attributes.
pub(super) struct Details {
    pub(super) path: Vec<u8>,
    pub(super) stat: Stat,
    /// A symbolic link's target.
    pub(super) target: Option<Vec<u8>>,
    /// A regular file's checksum, if it is wanted.
    pub(super) checksum: Option<String>,
}

impl Columns {
    /// Reads what the line tells of a file.
    pub(super) fn details(&self, fs: &dyn GuestFs, found: Found) -> Result<Details, Failure> {
        let Found { path, stat } = found;
        let target = if stat.kind == FileType::Symlink { Some(fs.readlink(&path)?) } else { None };
        let algorithm = self.checksum.filter(|_| stat.kind == FileType::Regular);
        let checksum = algorithm.map(|a| checksum::of_file(fs, &path, a)).transpose()?;
        Ok(Details { path, stat, target, checksum })
    }

    /// All columns that cost nothing.
    pub(super) fn show_all(&mut self) {
        (self.extra_stats, self.uids, self.times) = (true, true, true);
    }

    /// Whether times are shown.
    fn with_times(&self) -> bool {
        self.times || self.time_t || self.time_relative || self.time_days
    }

    /// Prints a file's line, with a mark before it and extended attributes behind.
    pub(super) fn print(&self, mark: Option<&str>, file: &Details, xattrs: &Xattrs, out: &mut Out) -> Result<(), Failure> {
        let stat = &file.stat;
        // libguestfs's virt-ls pads numbers in CSV as well, its virt-diff does not.
        let padded = !self.csv || mark.is_none();
        let mut row = Table::row(self.csv);
        if let Some(mark) = mark {
            row.field(mark);
        }
        row.field(long::letter(stat.kind, "-"));
        row.field(&format!("{:04o}", stat.mode));
        let size = if self.human_readable { human(stat.size) } else { stat.size.to_string() };
        row.field(&if self.csv { size } else { format!("{size:>10}") });
        if self.uids {
            let width = if padded { 4 } else { 0 };
            for id in [stat.uid, stat.gid] {
                row.field(&format!("{id:>width$}"));
            }
        }
        if self.with_times() {
            for t in [stat.atime, stat.mtime, stat.ctime].into_iter().skip(usize::from(self.without_atime)) {
                row.field(&self.time(t, padded));
            }
        }
        if self.extra_stats {
            row.field(&format!("0:{}", stat.dev));
            row.field(&stat.ino.to_string());
            row.field(&stat.nlink.to_string());
            row.field(&format!("{}:{}", stat.rdev.0, stat.rdev.1));
            row.field(&stat.blocks.to_string());
        }
        match &file.checksum {
            Some(checksum) => row.field(checksum),
            None if self.csv && self.checksum.is_some() => row.field(""),
            None => {}
        }
        out.bytes(row.content())?;
        row = Table::row(self.csv);
        row.bytes(&file.path);
        if let Some(target) = &file.target {
            if self.csv {
                row.bytes(target);
            } else {
                row.raw(b" -> ");
                row.raw(target);
            }
        }
        for (name, value) in xattrs {
            row.bytes(name);
            row.bytes(&printable(value));
        }
        out.bytes(if self.csv { b"," } else { b" " })?;
        out.name(row.content())?;
        out.bytes(b"\n")
    }

    fn time(&self, t: Time, padded: bool) -> String {
        let ago = time::now().saturating_sub(t.sec);
        let (number, width) = if self.time_days {
            (ago.div_euclid(86400), 3)
        } else if self.time_relative {
            (ago, 8)
        } else if self.time_t {
            (t.sec, 10)
        } else {
            return time::text(t.sec);
        };
        let width = if padded { width } else { 0 };
        format!("{number:>width$}")
    }
}

/// Bytes that are no text as `\x00`.
fn printable(value: &[u8]) -> Vec<u8> {
    value.iter().fold(Vec::new(), |mut text, byte| {
        if matches!(byte, b' '..=b'~') {
            text.push(*byte);
        } else {
            text.extend(format!("\\x{byte:02x}").bytes());
        }
        text
    })
}
