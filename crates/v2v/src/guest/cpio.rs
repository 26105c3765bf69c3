//! Initrds: concatenated cpio archives, each plain or compressed, as the kernel unpacks them (`buffer-format.rst` of its documentation).

use std::collections::BTreeSet;
use std::io::Read;

use super::compressed::decoder;
use super::kernels::module_name;

/// Unpacked bytes that are looked at; a larger initrd could not be unpacked into a guest's memory either.
const UNPACKED_LIMIT: u64 = 4 << 30;
/// Longest name that the kernel takes.
const NAME_LIMIT: u64 = 4096;
/// How lz4's legacy format begins.
const LZ4: [u8; 4] = 0x184c_2102_u32.to_le_bytes();
/// Length of a header of the `newc` format.
const HEADER: usize = 110;

/// Where initramfs-tools' initrds have the encrypted volumes, until Debian 9 and since.
const CRYPTROOT: [&str; 2] = ["conf/conf.d/cryptroot", "cryptroot/crypttab"];
const CRYPTROOT_LIMIT: u64 = 1 << 16;

/// What an initrd holds, as far as drivers go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Names of kernel modules, with `_` for `-`.
    pub modules: BTreeSet<String>,
    /// Where those lie below `lib/modules/RELEASE`.
    pub files: BTreeSet<String>,
    /// Releases that it has modules of.
    pub releases: BTreeSet<String>,
    /// It has files of systemd-udevd or udevd, which loads drivers by itself.
    pub udev: bool,
    /// Its scripts wait for a disk by the name that it had on Xen (dracut's `devexists-\\x2fdev\\x2fxvda2.sh`).
    pub waits_for_xen: bool,
    /// What initramfs-tools' scripts open encrypted volumes by: paths and texts.
    pub cryptroot: Vec<(String, String)>,
    /// It is packed by lz4, whose end kernels before 5.8 do not see: what comes behind it is lost.
    pub lz4: bool,
}

/// Reads an initrd until `enough` says so.
///
/// # Errors
/// Words that say what is wrong with it, or that its compression is not known.
pub fn scan(initrd: &[u8], enough: &dyn Fn(&Contents) -> bool) -> Result<Contents, String> {
    let mut contents = Contents::default();
    let mut rest = initrd;
    let mut budget = UNPACKED_LIMIT;
    while let Some(skip) = rest.iter().position(|&b| b != 0) {
        rest = &rest[skip..];
        let offset = initrd.len() - rest.len();
        let fail = |e: String| format!("at offset {offset:#x}: {e}");
        if rest.starts_with(b"0707") {
            let before = rest.len();
            if archive(&mut rest, &mut contents, &mut budget, enough).map_err(fail)? {
                return Ok(contents);
            }
            if before == rest.len() {
                break;
            }
            continue;
        }
        contents.lz4 |= rest.starts_with(&LZ4);
        let Some(mut unpacked) = decoder(&mut rest).map_err(|e| fail(e.to_string()))? else {
            return Err(fail("neither a cpio archive nor a known compression".into()));
        };
        if archives(&mut unpacked, &mut contents, &mut budget, enough).map_err(fail)? {
            return Ok(contents);
        }
    }
    Ok(contents)
}

/// Archives one after the other until the stream's end.
fn archives(read: &mut dyn Read, contents: &mut Contents, budget: &mut u64, enough: &dyn Fn(&Contents) -> bool) -> Result<bool, String> {
    loop {
        let mut first = [0u8];
        // Archives are padded with zeroes.
        loop {
            match read.read(&mut first).map_err(|e| e.to_string())? {
                0 => return Ok(false),
                _ if first[0] != 0 => break,
                _ => {}
            }
        }
        if archive(&mut (&first[..]).chain(&mut *read), contents, budget, enough)? {
            return Ok(true);
        }
    }
}

/// One archive up to its trailer; true when enough was seen.
fn archive<R: Read + ?Sized>(
    read: &mut R,
    contents: &mut Contents,
    budget: &mut u64,
    enough: &dyn Fn(&Contents) -> bool,
) -> Result<bool, String> {
    loop {
        let mut header = [0; HEADER];
        read.read_exact(&mut header).map_err(|e| format!("cut off in a cpio header: {e}"))?;
        if !matches!(&header[..6], b"070701" | b"070702") {
            return Err("a cpio header without its magic".into());
        }
        let field = |n: usize| {
            let text = std::str::from_utf8(&header[6 + 8 * n..14 + 8 * n]).unwrap_or("");
            u64::from_str_radix(text, 16).map_err(|_| format!("a cpio header whose field {n} is no number"))
        };
        let (size, name_size) = (field(6)?, field(11)?);
        if name_size == 0 || name_size > NAME_LIMIT {
            return Err(format!("a cpio name of {name_size} bytes"));
        }
        let spent = HEADER as u64 + name_size + size;
        *budget = budget.checked_sub(spent).ok_or("it unpacks to more than 4 GiB")?;
        let mut name = vec![0; name_size as usize];
        read.read_exact(&mut name).map_err(|e| format!("cut off in a cpio name: {e}"))?;
        skip(read, padding(HEADER as u64 + name_size))?;
        name.pop();
        let name = String::from_utf8_lossy(&name);
        if name == "TRAILER!!!" {
            return Ok(false);
        }
        contents.see(&name);
        if enough(contents) {
            return Ok(true);
        }
        let name = name.trim_start_matches("./");
        if CRYPTROOT.contains(&name) && size <= CRYPTROOT_LIMIT {
            let mut text = vec![0; size as usize];
            read.read_exact(&mut text).map_err(|e| format!("cut off in a cpio file: {e}"))?;
            contents.cryptroot.push((name.into(), String::from_utf8_lossy(&text).into_owned()));
            skip(read, padding(size))?;
            continue;
        }
        skip(read, size + padding(size))?;
    }
}

impl Contents {
    fn see(&mut self, name: &str) {
        let name = name.trim_start_matches("./").trim_start_matches('/');
        if let Some(release) = name.split_once("lib/modules/").and_then(|(_, rest)| rest.split('/').next()) {
            self.releases.insert(release.into());
        }
        if let Some(module) = module_name(name) {
            self.modules.insert(module);
            let below = name.split_once("lib/modules/").and_then(|(_, rest)| rest.split_once('/'));
            self.files.extend(below.map(|(_, file)| file.to_string()));
        }
        self.waits_for_xen |= name.contains("devexists-") && name.contains("xvd");
        self.udev |= name.ends_with("/systemd-udevd") || name.ends_with("bin/udevd") || name.ends_with("bin/udevadm");
    }
}

fn padding(len: u64) -> u64 {
    len.wrapping_neg() & 3
}

fn skip<R: Read + ?Sized>(read: &mut R, len: u64) -> Result<(), String> {
    let skipped = std::io::copy(&mut Read::take(&mut *read, len), &mut std::io::sink()).map_err(|e| e.to_string())?;
    if skipped == len { Ok(()) } else { Err("cut off in a cpio file".into()) }
}

/// Writes an archive.
#[derive(Default)]
pub struct Writer {
    bytes: Vec<u8>,
    ino: u32,
}

impl Writer {
    /// Adds a directory.
    pub fn directory(&mut self, name: &str) {
        self.entry(name, 0o40755, &[]);
    }

    /// Adds a file.
    pub fn file(&mut self, name: &str, data: &[u8]) {
        self.entry(name, 0o100644, data);
    }

    /// The archive with its trailer.
    pub fn finish(mut self) -> Vec<u8> {
        self.ino = 0;
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.ino += 1;
        let nlink = if mode & 0o170000 == 0o40000 { 2 } else { 1 };
        let size = data.len() as u32;
        let fields = [self.ino, mode, 0, 0, nlink, 0, size, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    const NEVER: &dyn Fn(&Contents) -> bool = &|_| false;

    fn sample(module: &str) -> Vec<u8> {
        let mut cpio = Writer::default();
        cpio.directory("usr/lib/modules/6.1");
        cpio.file(&format!("usr/lib/modules/6.1/kernel/{module}"), &[7; 1001]);
        cpio.file("usr/bin/udevadm", b"x");
        cpio.finish()
    }

    fn modules(initrd: &[u8]) -> Vec<String> {
        scan(initrd, NEVER).unwrap().modules.into_iter().collect()
    }

    #[test]
    fn concatenated_archives_plain_and_compressed() {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&sample("virtio-blk.ko")).unwrap();
        let mut initrd = sample("early.ko.xz");
        initrd.resize(initrd.len() + 1000, 0);
        initrd.extend(gz.finish().unwrap());
        initrd.extend([0; 3]);
        initrd.extend(zstd::encode_all(&sample("virtio_net.ko.zst")[..], 1).unwrap());
        assert_eq!(modules(&initrd), ["early", "virtio_blk", "virtio_net"]);
        let found = scan(&initrd, &|c| c.modules.contains("virtio_blk")).unwrap();
        assert!(!found.modules.contains("virtio_net"), "it stops when it has seen enough");
        assert!(found.udev && !found.waits_for_xen);
        for (disk, waits) in [(r"\x2fdev\x2fxvda2", true), (r"\x2fdev\x2fdisk\x2fby-uuid\x2f0", false)] {
            let mut cpio = Writer::default();
            cpio.file(&format!("lib/dracut/hooks/initqueue/finished/devexists-{disk}.sh"), b"x");
            assert_eq!(scan(&cpio.finish(), NEVER).unwrap().waits_for_xen, waits, "{disk}");
        }
        assert_eq!(found.releases.iter().collect::<Vec<_>>(), ["6.1"]);
    }

    /// Every compressor's own program, so that no format is only understood by the library that wrote it.
    #[test]
    fn what_real_compressors_write() {
        for argv in [
            &["gzip", "-c"][..],
            &["xz", "-c", "--check=crc32"],
            &["lzma", "-c"],
            &["bzip2", "-c"],
            &["zstd", "-c", "-q"],
            &["lz4", "-l", "-c", "-q"],
        ] {
            let Ok(mut child) = Command::new(argv[0]).args(&argv[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn() else {
                assert!(std::env::var_os("CI").is_none(), "{} is not installed", argv[0]);
                println!("skipped: {} is not installed", argv[0]);
                continue;
            };
            child.stdin.take().unwrap().write_all(&sample("virtio_blk.ko")).unwrap();
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success());
            let found = scan(&output.stdout, NEVER).unwrap();
            assert_eq!(found.modules.iter().collect::<Vec<_>>(), ["virtio_blk"], "{}", argv[0]);
            assert_eq!(found.lz4, argv[0] == "lz4");
        }
    }

    #[test]
    fn cpio_itself_reads_what_we_write() {
        let Ok(mut child) = Command::new("cpio").args(["-it", "--quiet"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn() else {
            assert!(std::env::var_os("CI").is_none(), "cpio is not installed");
            return println!("skipped: cpio is not installed");
        };
        child.stdin.take().unwrap().write_all(&sample("a.ko")).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "usr/lib/modules/6.1\nusr/lib/modules/6.1/kernel/a.ko\nusr/bin/udevadm\n");
    }

    #[test]
    fn broken_initrds_are_errors() {
        let whole = sample("a.ko");
        for cut in [5, 100, 130, 200, whole.len() - 200] {
            assert!(scan(&whole[..cut], NEVER).is_err(), "cut at {cut}");
        }
        let mut bad = whole.clone();
        bad[6 + 8 * 11..14 + 8 * 11].copy_from_slice(b"FFFFFFFF");
        assert!(scan(&bad, NEVER).unwrap_err().contains("name of 4294967295 bytes"));
        let mut huge = whole.clone();
        huge[6 + 8 * 6..14 + 8 * 6].copy_from_slice(b"FFFFFFFF");
        assert!(scan(&huge, NEVER).unwrap_err().contains("more than 4 GiB"));
        assert!(scan(b"ELF and so on", NEVER).unwrap_err().contains("neither a cpio"));
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&whole).unwrap();
        let gz = gz.finish().unwrap();
        assert!(scan(&gz[..gz.len() / 2], NEVER).is_err());
        assert_eq!(scan(&[], NEVER), Ok(Contents::default()));
    }
}
