//! Finds the distribution's kernel, for a host that has none of ours, and packs the modules that it needs.
//!
//! Such a kernel has its drivers and filesystems as modules, and finds its devices over PCI only. A second archive
//! behind the agent's, which the kernel unpacks over the first, brings the modules and an [`INDEX`] of them; the agent
//! loads the drivers at once and all else when the kernel calls for it.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use guestfs::{Error, Result};

use crate::initramfs::Initramfs;

/// Names the kernel to boot, before our own: a distribution's, or an ELF file that is built like ours.
pub const VARIABLE: &str = "GUESTLIFT_KERNEL";

/// Where the appliance has the modules.
pub const DIR: &str = "modules";
/// In that directory: a line for each name that the kernel may ask for, which goes before the files to load for it,
/// in that order. A name may have several lines.
pub const INDEX: &str = "index";
/// The name of the line with the drivers that are loaded first.
pub const START: &str = "start";

/// Drivers of the disks and of the port to the host.
const DRIVERS: &[&str] = &["virtio_pci", "virtio_blk", "virtio_console"];
/// What is loaded when it is asked for. A module that the kernel lacks is built in, or never asked for.
#[rustfmt::skip]
const LAZY: &[&str] = &[
    // Filesystems and the character sets of their names.
    "ext4", "xfs", "btrfs", "vfat", "isofs", "squashfs", "jfs", "reiserfs", "nls_cp437", "nls_ascii", "nls_iso8859_1", "nls_utf8",
    // Volumes: LVM, MD, LUKS.
    "dm_mod", "dm_snapshot", "dm_thin_pool", "dm_mirror", "dm_raid", "dm_crypt", "raid0", "raid1", "raid10", "raid456", "linear",
    // Checksums and ciphers.
    "crc32c_generic", "crc32c_intel", "sha256_generic", "sha512_generic", "blake2b_generic", "xxhash_generic", "aes_generic", "xts",
    "cbc", "ecb", "essiv", "af_alg", "algif_hash", "algif_skcipher",
];

/// Most bytes of a module, unpacked.
const MAX_MODULE: u64 = 64 << 20;
/// Most bytes of a list of modules.
const MAX_LIST: u64 = 64 << 20;

/// A kernel to boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Its file.
    pub file: PathBuf,
    /// The directory of its modules; `None` when it needs none.
    pub modules: Option<PathBuf>,
}

/// The kernel that the user named by [`VARIABLE`].
pub fn named() -> Result<Option<Kernel>> {
    match std::env::var_os(VARIABLE).filter(|v| !v.is_empty()) {
        None => Ok(None),
        Some(file) => kernel(Path::new(&file), Path::new("/lib/modules")).map(Some),
    }
}

/// The newest kernel of this host that has its modules and may be read. If none may be, the error says so.
pub fn newest() -> Result<Option<Kernel>> {
    newest_in(Path::new("/boot"), Path::new("/lib/modules"))
}

fn newest_in(boot: &Path, modules: &Path) -> Result<Option<Kernel>> {
    let mut found: Vec<(String, PathBuf)> = Vec::new();
    for entry in fs::read_dir(modules).into_iter().flatten().flatten() {
        let Ok(version) = entry.file_name().into_string() else { continue };
        // Fedora and others have the kernel among its modules.
        let places = [boot.join(format!("vmlinuz-{version}")), entry.path().join("vmlinuz")];
        found.extend(places.into_iter().filter(|p| p.is_file()).map(|p| (version.clone(), p)));
    }
    found.sort_by_key(|(version, _)| std::cmp::Reverse(sort_key(version)));
    let mut failure = None;
    for (_, file) in found {
        match kernel(&file, modules) {
            Ok(kernel) => return Ok(Some(kernel)),
            Err(e) => drop(failure.get_or_insert(e)),
        }
    }
    failure.map_or(Ok(None), Err)
}

/// Numbers in a version compare as numbers.
fn sort_key(version: &str) -> Vec<(u64, String)> {
    let parts = version.split(|c: char| !c.is_ascii_alphanumeric());
    parts.map(|p| (p.parse().unwrap_or(0), p.to_string())).collect()
}

fn kernel(file: &Path, modules: &Path) -> Result<Kernel> {
    match read_version(file) {
        Ok(Header::Elf) => Ok(Kernel { file: file.into(), modules: None }),
        Ok(Header::BzImage(version)) => {
            let dir = modules.join(&version);
            if !dir.join("modules.dep").is_file() {
                let what = format!("{}: its modules are missing: there is no {}/modules.dep", file.display(), dir.display());
                return Err(failed(what));
            }
            Ok(Kernel { file: file.into(), modules: Some(dir) })
        }
        Err(e) => Err(unreadable(file, &e)),
    }
}

fn unreadable(file: &Path, error: &io::Error) -> Error {
    let name = file.display();
    failed(match error.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "{name} could be the appliance's kernel, but only root may read it: run `sudo chmod +r {name}`, or install the guestlift package, \
             which has a kernel of its own"
        ),
        _ => format!("{name} cannot be the appliance's kernel: {error}"),
    })
}

fn failed(what: String) -> Error {
    Error::Missing(what)
}

enum Header {
    /// An uncompressed kernel, which says nothing of modules.
    Elf,
    /// A kernel in the form of the boot protocol (`Documentation/arch/x86/boot.rst`), with its release.
    BzImage(String),
}

fn read_version(file: &Path) -> io::Result<Header> {
    let mut file = File::open(file)?;
    let mut start = [0; 0x210];
    file.read_exact(&mut start)?;
    if start.starts_with(b"\x7fELF") {
        return Ok(Header::Elf);
    }
    if &start[0x202..0x206] != b"HdrS" {
        return Err(io::Error::other("it is no Linux kernel"));
    }
    // kernel_version: where the text begins, less 0x200.
    let offset = u64::from(u16::from_le_bytes([start[0x20e], start[0x20f]])) + 0x200;
    file.seek(SeekFrom::Start(offset))?;
    let mut text = Vec::new();
    file.take(128).read_to_end(&mut text)?;
    let release = text.split(|b| *b == b' ' || *b == 0).next().unwrap_or_default();
    match std::str::from_utf8(release) {
        // It becomes part of a path.
        Ok(release) if !release.is_empty() && !release.contains('/') && !release.starts_with('.') => Ok(Header::BzImage(release.into())),
        _ => Err(io::Error::other("it does not say its version")),
    }
}

/// The kernel within a packed one, if QEMU can start that without its packing: that takes a fraction of the time that
/// the kernel takes to unpack itself in the translator.
pub fn unpacked(file: &Path) -> Result<Option<Vec<u8>>> {
    let image = fs::read(file).map_err(|e| unreadable(file, &e))?;
    Ok(vmm_mini::bzimage::unpack(&image).ok().filter(|kernel| can_start(kernel)))
}

/// Whether it has the note XEN_ELFNOTE_PHYS32_ENTRY (18), of 4 or 8 bytes.
fn can_start(kernel: &[u8]) -> bool {
    let note = |size: u8| [4, 0, 0, 0, size, 0, 0, 0, 18, 0, 0, 0, b'X', b'e', b'n', 0];
    let (short, long) = (note(4), note(8));
    kernel
        .chunks(4)
        .zip(0..)
        .any(|(word, n)| word == [4, 0, 0, 0] && kernel.get(n * 4..n * 4 + 16).is_some_and(|w| w == short || w == long))
}

/// The archive with the modules and their index.
pub fn pack(modules: &Path) -> Result<Vec<u8>> {
    let read_list = |name: &str| read_limited(&modules.join(name), MAX_LIST);
    let known = Known::parse(&read_list("modules.dep")?);
    let aliases = read_list("modules.alias")?;
    let mut index = String::new();
    let mut packed = HashSet::new();
    let mut files = Vec::new();
    let mut add = |name: &str, wanted: &[&str]| {
        let mut order = Vec::new();
        wanted.iter().for_each(|module| known.add(module, &mut order));
        index.push_str(name);
        for module in order {
            index.push(' ');
            index.push_str(module);
            if packed.insert(module.to_string()) {
                files.push(module.to_string());
            }
        }
        index.push('\n');
    };
    add(START, DRIVERS);
    let lazy: HashSet<&str> = LAZY.iter().copied().filter(|m| known.files.contains_key(*m)).collect();
    LAZY.iter().filter(|m| lazy.contains(**m)).for_each(|module| add(module, &[module]));
    for line in aliases.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["alias", alias, module] = words[..]
            && lazy.contains(module)
            && !alias.contains(['*', '?', '['])
        {
            add(&plain(alias), &[module]);
        }
    }
    let mut archive = Initramfs::new();
    archive.dir(DIR, 0o755);
    archive.file(&format!("{DIR}/{INDEX}"), 0o644, index.as_bytes());
    for name in files {
        let content = read_module(&modules.join(&known.files[name.as_str()].0))?;
        archive.file(&format!("{DIR}/{name}"), 0o644, &content);
    }
    Ok(archive.finish())
}

/// What modules.dep tells: by a module's name its file, and the names of what it needs.
struct Known {
    files: HashMap<String, (String, Vec<String>)>,
}

impl Known {
    fn parse(list: &str) -> Self {
        let lines = list.lines().filter_map(|line| line.split_once(':'));
        let entry =
            |(file, needs): (&str, &str)| (module_name(file), (file.to_string(), needs.split_whitespace().map(module_name).collect()));
        Known { files: lines.map(entry).collect() }
    }

    /// Adds a module behind what it needs, unless it is there or built in.
    fn add<'a>(&'a self, name: &str, order: &mut Vec<&'a str>) {
        let Some((name, (_, needs))) = self.files.get_key_value(name) else { return };
        // The list of each module is complete, but its order is not promised; a needed module's own list is shorter.
        let mut needs: Vec<&String> = needs.iter().filter(|n| self.files.contains_key(*n)).collect();
        needs.sort_by_key(|n| self.files[*n].1.len());
        for module in needs.into_iter().chain([name]) {
            if !order.contains(&module.as_str()) {
                order.push(module);
            }
        }
    }
}

/// `dm_mod` of `kernel/drivers/md/dm-mod.ko.xz`.
fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    plain(name.split(".ko").next().unwrap_or(name))
}

/// The kernel takes the two for one.
pub fn plain(name: &str) -> String {
    name.replace('-', "_")
}

fn read_limited(path: &Path, limit: u64) -> Result<String> {
    let mut text = String::new();
    let read = File::open(path).and_then(|f| f.take(limit).read_to_string(&mut text));
    read.map_err(|e| failed(format!("{}: {e}", path.display())))?;
    Ok(text)
}

/// A module's content, unpacked here, where that is fast: Debian 12 has `.ko`, Debian 13 `.ko.xz`, Ubuntu and Fedora
/// `.ko.zst` and `.ko.xz`.
fn read_module(path: &Path) -> Result<Vec<u8>> {
    let open = || -> io::Result<Vec<u8>> {
        let file = File::open(path)?;
        let reader: Box<dyn Read> = match path.extension().and_then(|e| e.to_str()) {
            Some("xz") => Box::new(liblzma::read::XzDecoder::new(file)),
            Some("zst") => Box::new(zstd::Decoder::new(file)?),
            Some("ko") => Box::new(file),
            _ => return Err(io::Error::other("a kind of compression that is not known")),
        };
        let mut content = Vec::new();
        reader.take(MAX_MODULE).read_to_end(&mut content)?;
        Ok(content)
    };
    open().map_err(|e| failed(format!("{}: {e}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2/jbd2.ko.zst kernel/lib/crc16.ko\nkernel/fs/jbd2/jbd2.ko.zst: \
                       kernel/lib/crc16.ko\nkernel/lib/crc16.ko:\nkernel/drivers/virtio/virtio-pci.ko:\n";
    const ALIAS: &str = "# comment\nalias fs-ext4 ext4\nalias pci:v00001AF4d*sv* ext4\nalias fs-xfs xfs\n";

    fn image(dir: &Path, version: &str) {
        let mut image = vec![0; 0x400];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        let text = format!("{version} (builder)\0");
        image[0x300..0x300 + text.len()].copy_from_slice(text.as_bytes());
        fs::write(dir.join(format!("vmlinuz-{version}")), image).unwrap();
    }

    #[test]
    fn the_newest_kernel_with_modules_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let (boot, modules) = (dir.path(), dir.path().join("modules"));
        assert_eq!(newest_in(boot, &modules).unwrap(), None);
        for version in ["6.1.0-9-amd64", "6.1.0-56-amd64", "6.12.1-amd64"] {
            image(boot, version);
        }
        for version in ["6.1.0-9-amd64", "6.1.0-56-amd64"] {
            fs::create_dir_all(modules.join(version)).unwrap();
            fs::write(modules.join(version).join("modules.dep"), "").unwrap();
        }
        let found = newest_in(boot, &modules).unwrap().unwrap();
        assert_eq!(found.modules, Some(modules.join("6.1.0-56-amd64")));
        assert_eq!(found.file, boot.join("vmlinuz-6.1.0-56-amd64"));
        let error = kernel(&boot.join("vmlinuz-6.12.1-amd64"), &modules).unwrap_err().to_string();
        assert!(error.contains("6.12.1-amd64/modules.dep"), "{error}");
        fs::write(boot.join("vmlinuz-6.1.0-56-amd64"), vec![0; 4096]).unwrap();
        assert_eq!(
            newest_in(boot, &modules).unwrap().unwrap().file,
            boot.join("vmlinuz-6.1.0-9-amd64"),
            "the next one when that is damaged"
        );
    }

    #[test]
    fn a_kernel_for_root_only_names_the_way_out() {
        let error = unreadable(Path::new("/boot/vmlinuz-6.8.0"), &io::ErrorKind::PermissionDenied.into()).to_string();
        assert!(error.contains("sudo chmod +r /boot/vmlinuz-6.8.0") && error.contains("guestlift package"), "{error}");
    }

    /// Packed by a program that is not ours.
    fn pressed(tool: &str, content: &[u8]) -> Vec<u8> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        io::Write::write_all(&mut file, content).unwrap();
        let output = std::process::Command::new(tool).arg("-c").arg(file.path()).output().unwrap_or_else(|e| panic!("{tool}: {e}"));
        assert!(output.status.success());
        output.stdout
    }

    #[test]
    fn a_packed_kernel_is_unpacked_if_it_can_start_so() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("vmlinuz");
        let kernel = [&b"\x7fELF"[..], &[7; 4096], &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0], b"Xen\0", &[1, 2, 3, 4]].concat();
        let write = |packed: &[u8], len: usize| {
            let mut image = vec![0; 1024];
            image[0x1f1] = 1;
            image[0x202..0x206].copy_from_slice(b"HdrS");
            image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
            image[0x24c..0x250].copy_from_slice(&u32::try_from(len).unwrap().to_le_bytes());
            // The size stands behind what is packed.
            fs::write(&file, [&image, &[0; 16][..], packed, &[0x14, 0x10, 0, 0]].concat()).unwrap();
        };
        for tool in ["xz", "zstd"] {
            let packed = pressed(tool, &kernel);
            write(&packed, packed.len() + 4);
            assert!(unpacked(&file).unwrap().as_deref() == Some(&kernel[..]), "{tool}");
            write(&packed, packed.len() + 5);
            assert_eq!(unpacked(&file).unwrap(), None, "{tool}: more than the file has");
            write(&packed[..packed.len() / 2], packed.len() / 2);
            assert_eq!(unpacked(&file).unwrap(), None, "{tool}: cut");
        }
        let packed = pressed("xz", &kernel[..4096]);
        write(&packed, packed.len());
        assert_eq!(unpacked(&file).unwrap(), None, "without the note");
    }

    #[test]
    fn modules_come_in_order_and_unpacked() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            path
        };
        fs::write(at("modules.dep"), DEP).unwrap();
        fs::write(at("modules.alias"), ALIAS).unwrap();
        for (name, content) in [("kernel/lib/crc16.ko", "plain"), ("kernel/drivers/virtio/virtio-pci.ko", "pci")] {
            fs::write(at(name), content).unwrap();
        }
        fs::write(at("kernel/fs/ext4/ext4.ko.xz"), pressed("xz", b"by xz")).unwrap();
        fs::write(at("kernel/fs/jbd2/jbd2.ko.zst"), pressed("zstd", b"by zstd")).unwrap();
        let archive = String::from_utf8(pack(dir.path()).unwrap()).unwrap();
        for text in ["start virtio_pci\n", "ext4 crc16 jbd2 ext4\n", "fs_ext4 crc16 jbd2 ext4\n", "by xz", "by zstd", "plain"] {
            assert!(archive.contains(text), "{text}");
        }
        assert!(!archive.contains("pci:v") && !archive.contains("xfs"));
    }
}
