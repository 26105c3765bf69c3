//! Debian package files: which kernel one brings, and what it needs.

use std::collections::BTreeSet;
use std::io::Read;

use super::compressed::decoder;
use super::packages::{BroughtKernel, PackageFile};

const MAGIC: &[u8] = b"!<arch>\n";
/// Entries of a package that are looked at: a kernel's image is among the first files.
const ENTRY_LIMIT: usize = 50_000;
const CONTROL_LIMIT: u64 = 4 << 20;
const UNIT_LIMIT: u64 = 64 << 10;

/// Reads a package.
///
/// # Errors
/// Words that say why it is no package.
pub fn read(package: &[u8]) -> Result<PackageFile, String> {
    let (mut control, mut files) = (None, BTreeSet::new());
    find(package, b"control.tar", |path, content| {
        let mut text = String::new();
        let read = matches!(path, b"./control" | b"./md5sums") && content.take(CONTROL_LIMIT).read_to_string(&mut text).is_ok();
        match (read, path) {
            (true, b"./control") => control = Some(text),
            (true, _) => files.extend(text.lines().filter_map(|l| Some(format!("/{}", l.split_once("  ")?.1)))),
            (false, _) => {}
        }
        None::<()>
    })?;
    let text = control.ok_or("it has no control file")?;
    // Long fields go on in lines that begin with a blank.
    let text = text.replace("\n ", " ");
    let field = |name: &str| text.lines().find_map(|l| Some(l.strip_prefix(name)?.strip_prefix(':')?.trim().to_string()));
    let list = |name: &str| field(name).map_or(Vec::new(), |f| relations(&f));
    let (mut static_units, mut kernel) = (Vec::new(), None);
    // A kernel's other files are those of its checksums: it has many.
    let is_listed = !files.is_empty();
    find(package, b"data.tar", |path, content| {
        let path = String::from_utf8_lossy(path.strip_prefix(b".").filter(|p| *p != b"/")?).into_owned();
        let mut unit = String::new();
        if path.contains("/lib/systemd/system/")
            && path.ends_with(".service")
            && content.take(UNIT_LIMIT).read_to_string(&mut unit).is_ok()
            && !unit.lines().any(is_installed)
        {
            static_units.push(path.clone());
        }
        if kernel.is_none()
            && let Some(release) = path.strip_prefix("/boot/vmlinuz-")
        {
            kernel = Some(BroughtKernel { release: release.into(), image: path.clone() });
        }
        files.insert(path);
        (is_listed && kernel.is_some()).then_some(())
    })?;
    Ok(PackageFile {
        name: field("Package").ok_or("its control file names no package")?,
        provides: list("Provides").into_iter().flatten().collect(),
        files: files.into_iter().collect(),
        depends: [list("Pre-Depends"), list("Depends")].concat(),
        kernel,
        static_units,
        // Each kernel's package has a name of its own.
        beside_others: false,
    })
}

/// Whether a unit says by this line what enabling it is; Debian's agent has the section for that, and nothing in it.
fn is_installed(line: &str) -> bool {
    const KEYS: [&str; 5] = ["WantedBy", "RequiredBy", "UpheldBy", "Alias", "Also"];
    line.split_once('=').is_some_and(|(key, value)| KEYS.contains(&key.trim()) && !value.trim().is_empty())
}

/// The names in a relationship field (`a (>= 1) | b, c:any`): alternatives by row.
fn relations(field: &str) -> Vec<Vec<String>> {
    let name = |r: &str| r.split(['(', '[', '<', ':']).next().unwrap_or("").trim().to_string();
    field.split(',').map(|row| row.split('|').map(name).filter(|n| !n.is_empty()).collect()).filter(|r: &Vec<_>| !r.is_empty()).collect()
}

/// Looks through a member's files until `look` has what it wants.
fn find<T, F>(package: &[u8], member: &[u8], mut look: F) -> Result<Option<T>, String>
where
    F: FnMut(&[u8], &mut dyn Read) -> Option<T>,
{
    let mut data = self::member(package, member)?;
    let mut plain = data;
    let reader = decoder(&mut data).map_err(|e| e.to_string())?;
    let reader: Box<dyn Read + '_> = match reader {
        Some(reader) => reader,
        None => Box::new(&mut plain),
    };
    let mut archive = tar::Archive::new(reader);
    for entry in archive.entries().map_err(|e| e.to_string())?.take(ENTRY_LIMIT) {
        let mut entry = entry.map_err(|e| e.to_string())?;
        let path = entry.path_bytes().into_owned();
        if let Some(found) = look(&path, &mut entry) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// A member of the `ar` archive that a package is (deb(5)): the first whose name begins so.
fn member<'a>(package: &'a [u8], name: &[u8]) -> Result<&'a [u8], String> {
    let mut rest = package.strip_prefix(MAGIC).ok_or("not a Debian package: it has no ar header")?;
    while let Some((header, body)) = rest.split_at_checked(60) {
        let size = std::str::from_utf8(&header[48..58]).ok().and_then(|t| t.trim().parse::<usize>().ok());
        let (Some(size), b"`\n") = (size, &header[58..60]) else { return Err("a member's ar header is damaged".into()) };
        let member = body.get(..size).ok_or("the file is cut off")?;
        if header.starts_with(name) {
            return Ok(member);
        }
        rest = body.get(size.saturating_add(size & 1)..).unwrap_or(&[]);
    }
    Err(format!("it has no {} member", String::from_utf8_lossy(name)))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn tar(files: &[(&str, &str)]) -> Vec<u8> {
        let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
        for (file, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            // The crate's own path setter drops the leading "./".
            header.as_old_mut().name[..file.len()].copy_from_slice(file.as_bytes());
            header.set_cksum();
            tar.append(&header, content.as_bytes()).unwrap();
        }
        tar.into_inner().unwrap().finish().unwrap()
    }

    /// A package with these files and this control file.
    pub(crate) fn package(files: &[&str], control: &str) -> Vec<u8> {
        packed(&tar(&files.iter().map(|f| (*f, "[Install]\nWantedBy=multi-user.target\n")).collect::<Vec<_>>()), control, SUMS)
    }

    const SUMS: &str = "d41d8cd98f00b204e9800998ecf8427e  usr/share/doc/x/copyright\n";

    fn packed(data: &[u8], control: &str, sums: &str) -> Vec<u8> {
        let control = tar(&[("./md5sums", sums), ("./control", control)]);
        let mut deb = MAGIC.to_vec();
        for (name, body) in [("debian-binary", &b"2.0\n"[..]), ("control.tar.gz", &control), ("data.tar.gz", data)] {
            deb.extend(format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100644, body.len()).as_bytes());
            deb.extend(body);
            deb.extend(vec![b'\n'; body.len() & 1]);
        }
        deb
    }

    #[test]
    fn a_package_tells_what_it_needs() {
        let text = "Package: linux-image\nVersion: 6.1\nPre-Depends: base (>= 1)\nDepends: kmod, linux-base (>= 4.3~),\n initramfs-tools | linux-initramfs-tool, python3:any\nProvides: wireguard-modules (= 1.0.0)\nDescription: x\n Depends: nothing\n";
        let file = read(&package(&["./", "./usr/bin/", "./usr/bin/cpio"], text)).unwrap();
        assert_eq!((file.name.as_str(), &file.provides[..], file.kernel), ("linux-image", &["wireguard-modules".to_string()][..], None));
        let rows: Vec<_> = file.depends.iter().map(|r| r.join("|")).collect();
        assert_eq!(file.files, ["/usr/bin/", "/usr/bin/cpio", "/usr/share/doc/x/copyright"]);
        assert_eq!(rows, ["base", "kmod", "linux-base", "initramfs-tools|linux-initramfs-tool", "python3"]);
        assert!(read(&package(&[], "Version: 1\n")).unwrap_err().contains("names no package"));
    }

    #[test]
    fn a_unit_that_something_else_starts_is_told() {
        let unit = |name: &str| format!("/lib/systemd/system/{name}.service");
        let data = [("a", "[Service]\n"), ("b", "[Service]\n[Install]\nWantedBy=x.target\n"), ("c", "[Service]\n[Install]\n")];
        let data = data.map(|(name, text)| (format!(".{}", unit(name)), text));
        let data: Vec<(&str, &str)> = data.iter().map(|(path, text)| (path.as_str(), *text)).collect();
        assert_eq!(read(&packed(&tar(&data), "Package: x\n", SUMS)).unwrap().static_units, [unit("a"), unit("c")]);
    }

    #[test]
    fn a_kernel_package_tells_its_release() {
        let file = read(&package(&["./boot/System.map-6.1", "./boot/vmlinuz-6.1.0-13-amd64"], "Package: x\n")).unwrap();
        assert_eq!(file.kernel.unwrap().release, "6.1.0-13-amd64");
    }

    #[test]
    fn without_checksums_all_files_are_looked_at() {
        let data = tar(&[("./boot/vmlinuz-2.6.18-6-686", "x"), ("./lib/modules/2.6.18-6-686/ext3.ko", "x")]);
        let file = read(&packed(&data, "Package: x\n", "")).unwrap();
        assert_eq!(file.files, ["/boot/vmlinuz-2.6.18-6-686", "/lib/modules/2.6.18-6-686/ext3.ko"]);
        assert_eq!(file.kernel.unwrap().release, "2.6.18-6-686");
    }

    #[test]
    fn broken_packages_are_errors() {
        let deb = package(&["./boot/vmlinuz-1"], "Package: x\n");
        assert!(read(b"\x7fELF").unwrap_err().contains("no ar header"));
        assert!(read(&deb[..deb.len() - 20]).unwrap_err().contains("cut off"));
        let mut damaged = deb.clone();
        damaged[8 + 48] = b'x';
        assert!(read(&damaged).unwrap_err().contains("damaged"));
    }
}
