//! Debian package files: which kernel one brings.

use super::compressed::decoder;

const MAGIC: &[u8] = b"!<arch>\n";
/// Entries of a package that are looked at: a kernel's image is among the first files.
const ENTRY_LIMIT: usize = 50_000;

/// The kernel release whose image a package holds; `None` for other packages.
///
/// # Errors
/// Words that say why it is no package.
pub fn kernel_of(package: &[u8]) -> Result<Option<String>, String> {
    let mut data = data_member(package)?;
    let mut plain = data;
    let reader = decoder(&mut data).map_err(|e| e.to_string())?;
    let reader: Box<dyn std::io::Read + '_> = match reader {
        Some(reader) => reader,
        None => Box::new(&mut plain),
    };
    let mut archive = tar::Archive::new(reader);
    for entry in archive.entries().map_err(|e| e.to_string())?.take(ENTRY_LIMIT) {
        let entry = entry.map_err(|e| e.to_string())?;
        let path = entry.path_bytes();
        let Some(version) = path.strip_prefix(b"./boot/vmlinuz-".as_slice()) else { continue };
        return Ok(String::from_utf8(version.to_vec()).ok());
    }
    Ok(None)
}

/// The `data.tar.*` member of the `ar` archive that a package is (deb(5)).
fn data_member(package: &[u8]) -> Result<&[u8], String> {
    let mut rest = package.strip_prefix(MAGIC).ok_or("not a Debian package: it has no ar header")?;
    while let Some((header, body)) = rest.split_at_checked(60) {
        let size = std::str::from_utf8(&header[48..58]).ok().and_then(|t| t.trim().parse::<usize>().ok());
        let (Some(size), b"`\n") = (size, &header[58..60]) else { return Err("a member's ar header is damaged".into()) };
        let member = body.get(..size).ok_or("the file is cut off")?;
        if header.starts_with(b"data.tar") {
            return Ok(member);
        }
        rest = body.get(size.saturating_add(size & 1)..).unwrap_or(&[]);
    }
    Err("it has no data.tar member".into())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A package with these files, its data.tar compressed by gzip.
    pub(crate) fn package(files: &[&str]) -> Vec<u8> {
        let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
        for file in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(3);
            header.set_mode(0o644);
            // The crate's own path setter drops the leading "./".
            header.as_old_mut().name[..file.len()].copy_from_slice(file.as_bytes());
            header.set_cksum();
            tar.append(&header, &b"abc"[..]).unwrap();
        }
        let data = tar.into_inner().unwrap().finish().unwrap();
        let mut deb = MAGIC.to_vec();
        for (name, body) in [("debian-binary", &b"2.0\n"[..]), ("control.tar.gz", b"odd"), ("data.tar.gz", &data)] {
            deb.extend(format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100644, body.len()).as_bytes());
            deb.extend(body);
            deb.extend(vec![b'\n'; body.len() & 1]);
        }
        deb
    }

    #[test]
    fn a_kernel_package_tells_its_release() {
        assert_eq!(kernel_of(&package(&["./boot/System.map-6.1", "./boot/vmlinuz-6.1.0-13-amd64"])), Ok(Some("6.1.0-13-amd64".into())));
        assert_eq!(kernel_of(&package(&["./usr/bin/cpio"])), Ok(None));
    }

    #[test]
    fn broken_packages_are_errors() {
        let deb = package(&["./boot/vmlinuz-1"]);
        assert!(kernel_of(b"\x7fELF").unwrap_err().contains("no ar header"));
        assert!(kernel_of(&deb[..deb.len() - 20]).unwrap_err().contains("cut off"));
        let mut damaged = deb.clone();
        damaged[8 + 48] = b'x';
        assert!(kernel_of(&damaged).unwrap_err().contains("damaged"));
    }
}
