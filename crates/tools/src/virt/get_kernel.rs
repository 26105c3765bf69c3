//! `virt-get-kernel`: a guest's newest kernel and its initial ramdisk.

use std::cmp::Ordering;
use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, FromArgMatches};
use guestfs::{Ext, FileType, GuestFs};

use super::Entry;
use super::options::GuestArgs;
use super::show::read_file;
use crate::common::Failure;

/// This command's line in the table.
pub(super) const ENTRY: Entry =
    Entry { name: "get-kernel", arguments: GetKernel::augment_args, run: |matches| run(&GetKernel::from_arg_matches(matches)?) };

/// Kernels' names before their version.
const KERNELS: &[&str] = &["vmlinuz-", "vmlinux-", "kernel-", "Image-", "zImage-"];
/// Initial ramdisks' names before and after a version.
const RAMDISKS: &[(&str, &str)] =
    &[("initrd.img-", ""), ("initramfs-", ".img"), ("initramfs-", ""), ("initrd-", ""), ("initrd-", ".img"), ("initramfs.img-", "")];
/// Boot entries by the Boot Loader Specification, and the folders that their paths may begin in.
const ENTRIES: &[(&str, &[&str])] =
    &[("/boot/loader/entries", &["/boot", ""]), ("/boot/efi/loader/entries", &["/boot/efi", ""]), ("/efi/loader/entries", &["/efi", ""])];
/// No kernel or ramdisk is larger.
const LIMIT: u64 = 4 << 30;
/// A boot entry is a few lines.
const ENTRY_LIMIT: u64 = 64 << 10;

/// Copy a guest's newest kernel and its initial ramdisk out.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  virt-get-kernel -a disk.qcow2\n  virt-get-kernel -d guest.xml -o boot --unversioned-names\n  virt-get-kernel -a disk.qcow2 --prefix mydistro"
)]
struct GetKernel {
    #[command(flatten)]
    guest: GuestArgs,
    /// The folder to write to, instead of this one
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    output: PathBuf,
    /// Write PREFIX-vmlinuz-VERSION and so on
    #[arg(long)]
    prefix: Option<String>,
    /// Leave versions out of the files' names
    #[arg(long)]
    unversioned_names: bool,
    /// Don't say what is copied
    #[arg(short, long)]
    quiet: bool,
}

/// A kernel of the guest.
#[derive(Debug, PartialEq, Eq)]
struct Kernel {
    version: Vec<u8>,
    path: Vec<u8>,
    ramdisk: Option<Vec<u8>>,
}

fn run(args: &GetKernel) -> Result<ExitCode, Failure> {
    let guest = args.guest.open()?;
    let fs = guest.fs();
    let newest = kernels(fs)?.into_iter().max_by(|a, b| by_version(&a.version, &b.version));
    let Some(kernel) = newest else {
        return Err(Failure::new("the guest has no kernel in /boot").hint("guests of some Xen hosts are started with the host's"));
    };
    for path in std::iter::once(&kernel.path).chain(&kernel.ramdisk) {
        let target = args.output.join(OsStr::from_bytes(&args.name(path)));
        if !args.quiet {
            println!("download: {} -> {}", guestfs::show(path), guestfs::show(target.as_os_str().as_bytes()));
        }
        copy(fs, path, &target)?;
    }
    if kernel.ramdisk.is_none() {
        eprintln!("virt-get-kernel: {} has no initial ramdisk", guestfs::show(&kernel.path));
    }
    guest.shutdown()?;
    Ok(ExitCode::SUCCESS)
}

impl GetKernel {
    /// A file's name in the folder.
    fn name(&self, path: &[u8]) -> Vec<u8> {
        let name = path.rsplit(|b| *b == b'/').next().unwrap_or_default();
        let end = if self.unversioned_names { name.iter().position(|b| *b == b'-') } else { None };
        let name = &name[..end.unwrap_or(name.len())];
        match &self.prefix {
            Some(prefix) => [prefix.as_bytes(), b"-", name].concat(),
            None => name.to_vec(),
        }
    }
}

/// All kernels: files of /boot, and what boot entries name.
fn kernels(fs: &dyn GuestFs) -> Result<Vec<Kernel>, Failure> {
    let mut found = Vec::new();
    let names: Vec<Vec<u8>> = if fs.is_dir(b"/boot") { fs.read_dir(b"/boot")?.into_iter().map(|e| e.name).collect() } else { Vec::new() };
    for name in &names {
        let Some(version) = KERNELS.iter().find_map(|prefix| name.strip_prefix(prefix.as_bytes())) else { continue };
        let path = [b"/boot/", &name[..]].concat();
        if is_extra(version) || !fs.is_file(&path) {
            continue;
        }
        let ramdisk = RAMDISKS.iter().map(|(before, after)| [before.as_bytes(), version, after.as_bytes()].concat());
        let ramdisk = ramdisk.map(|name| [b"/boot/", &name[..]].concat()).find(|path| fs.is_file(path));
        found.push(Kernel { version: version.to_vec(), path, ramdisk });
    }
    for (folder, starts) in ENTRIES {
        if !fs.is_dir(folder.as_bytes()) {
            continue;
        }
        for entry in fs.read_dir(folder.as_bytes())? {
            if entry.name.ends_with(b".conf") && entry.kind == FileType::Regular {
                let text = fs.read(&[folder.as_bytes(), b"/", &entry.name].concat(), ENTRY_LIMIT)?;
                found.extend(boot_entry(fs, &String::from_utf8_lossy(&text), starts));
            }
        }
    }
    Ok(found)
}

/// What only helps when the real ones fail, and what is not Linux.
fn is_extra(version: &[u8]) -> bool {
    [&b"rescue"[..], b"kdump", b"xen"].iter().any(|word| version.windows(word.len()).any(|w| w == *word))
}

/// A boot entry's kernel: lines of a key and a value.
fn boot_entry(fs: &dyn GuestFs, text: &str, starts: &[&str]) -> Option<Kernel> {
    let value = |key: &str| text.lines().find_map(|l| l.trim().strip_prefix(key)?.strip_prefix([' ', '\t']).map(str::trim));
    let file = |path: &str| {
        let path = path.trim_start_matches('/');
        starts.iter().map(|start| format!("{start}/{path}").into_bytes()).find(|path| fs.is_file(path))
    };
    let path = file(value("linux")?)?;
    let name = String::from_utf8_lossy(path.rsplit(|b| *b == b'/').next().unwrap_or_default()).into_owned();
    let version = value("version").map(str::to_string).or_else(|| Some(name.split_once('-')?.1.to_string())).unwrap_or_default();
    if is_extra(version.as_bytes()) || is_extra(name.as_bytes()) {
        return None;
    }
    // One that names a variable of GRUB's is not read.
    Some(Kernel { version: version.into_bytes(), path, ramdisk: value("initrd").and_then(file) })
}

/// Numbers as numbers; a candidate (`-rc1`) before what it is a candidate for.
fn by_version(a: &[u8], b: &[u8]) -> Ordering {
    let (a, b) = (parts(a), parts(b));
    for index in 0..a.len().max(b.len()) {
        let order = match (a.get(index), b.get(index)) {
            (Some(a), Some(b)) => a.cmp(b),
            (Some(a), None) => {
                if a.is_candidate() {
                    Ordering::Less
                } else {
                    Ordering::Greater
                }
            }
            (None, Some(b)) => {
                if b.is_candidate() {
                    Ordering::Greater
                } else {
                    Ordering::Less
                }
            }
            (None, None) => Ordering::Equal,
        };
        if order.is_ne() {
            return order;
        }
    }
    Ordering::Equal
}

/// A part of a version; words come before numbers.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part<'a> {
    Word(&'a [u8]),
    /// By its count of digits, then by them: any length is well.
    Number(usize, &'a [u8]),
}

impl Part<'_> {
    fn is_candidate(&self) -> bool {
        matches!(self, Part::Word(b"rc"))
    }
}

fn parts(version: &[u8]) -> Vec<Part<'_>> {
    let same = |a: &u8, b: &u8| (a.is_ascii_digit(), a.is_ascii_alphanumeric()) == (b.is_ascii_digit(), b.is_ascii_alphanumeric());
    let runs = version.chunk_by(same).filter(|run| run.first().is_some_and(u8::is_ascii_alphanumeric));
    runs.map(|run| {
        if !run.first().is_some_and(u8::is_ascii_digit) {
            return Part::Word(run);
        }
        let zeros = run.iter().take_while(|b| **b == b'0').count();
        let digits = run.get(zeros..).unwrap_or_default();
        Part::Number(digits.len(), digits)
    })
    .collect()
}

/// Copies a file out, to another name until it is whole.
fn copy(fs: &dyn GuestFs, path: &[u8], target: &Path) -> Result<(), Failure> {
    let folder = target.parent().unwrap_or(Path::new("."));
    let failure = |e: std::io::Error| Failure::new(format!("{}: cannot write: {e}", target.display()));
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failure)?;
    let mut len = 0;
    read_file(fs, path, &mut |piece| {
        len += piece.len() as u64;
        if len > LIMIT {
            return Err(Failure::new(format!("{}: it is larger than any kernel or ramdisk", guestfs::show(path))));
        }
        file.write_all(piece).map_err(failure)
    })?;
    file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644)).map_err(failure)?;
    file.persist(target).map_err(|e| failure(e.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_in_order() {
        let order = ["5.10.0-30-amd64", "6.1.0-rc2", "6.1.0", "6.1.0-9-amd64", "6.1.0-10-amd64", "6.1.10-1", "6.10.1-1"];
        for pair in order.windows(2) {
            assert_eq!(by_version(pair[0].as_bytes(), pair[1].as_bytes()), Ordering::Less, "{pair:?}");
        }
        assert_eq!(by_version(b"6.01", b"6.1"), Ordering::Equal);
        assert!(by_version(b"", b"lts").is_lt());
    }
}
