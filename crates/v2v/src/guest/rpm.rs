//! rpm package files: which kernel one brings, and what it needs.

use guestfs::inspect::packages::RpmFile;

use super::packages::{BroughtKernel, PackageFile};

/// Reads a package.
///
/// # Errors
/// Words that say why it is no package.
pub fn read(package: &[u8]) -> Result<PackageFile, String> {
    Ok(describe(RpmFile::parse(package)?))
}

fn describe(file: RpmFile) -> PackageFile {
    // Conditions in parentheses are left to rpm.
    let needs = file.requires.into_iter().filter(|name| !name.starts_with('(') && !name.starts_with("rpmlib("));
    let kernel = kernel_of(&file.files);
    let provides = file.application.provides;
    let beside_others = provides.iter().any(|p| p.starts_with("installonlypkg(") || p.starts_with("multiversion(kernel"));
    let depends = needs.map(|name| vec![name]).collect();
    PackageFile { name: file.application.name, provides, files: file.files, depends, kernel, static_units: Vec::new(), beside_others }
}

/// The image is in /boot, or among the modules: then the package's scripts, or kernel-install, copy it there.
fn kernel_of(files: &[String]) -> Option<BroughtKernel> {
    let among_modules = |f: &str| {
        let rest = f.strip_prefix("/usr").unwrap_or(f).strip_prefix("/lib/modules/")?;
        rest.strip_suffix("/vmlinuz").filter(|release| !release.contains('/')).map(String::from)
    };
    let in_boot = |f: &str| f.strip_prefix("/boot/vmlinuz-").filter(|r| r.starts_with(|c: char| c.is_ascii_digit())).map(String::from);
    let release = files.iter().find_map(|f| in_boot(f)).or_else(|| files.iter().find_map(|f| among_modules(f)))?;
    Some(BroughtKernel { image: format!("/boot/vmlinuz-{release}"), release })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A package without a payload: name, files, needs, provides.
    pub(crate) fn package(name: &str, files: &[&str], requires: &[&str], provides: &[&str]) -> Vec<u8> {
        let header = |tags: &[(u32, u32, u32, Vec<u8>)]| {
            let (mut index, mut data) = (Vec::new(), Vec::new());
            for (tag, kind, count, bytes) in tags {
                for field in [*tag, *kind, data.len() as u32, *count] {
                    index.extend(field.to_be_bytes());
                }
                data.extend(bytes);
            }
            let mut out = vec![0x8e, 0xad, 0xe8, 0x01, 0, 0, 0, 0];
            out.extend((tags.len() as u32).to_be_bytes());
            out.extend((data.len() as u32).to_be_bytes());
            [out, index, data].concat()
        };
        let list = |texts: &[&str]| texts.iter().flat_map(|t| [t.as_bytes(), b"\0"].concat()).collect::<Vec<u8>>();
        let mut lead = vec![0xed, 0xab, 0xee, 0xdb, 3, 0];
        lead.resize(96, 0);
        let signatures = header(&[(1000, 6, 1, b"abc\0".to_vec())]);
        let gap = vec![0; signatures.len().next_multiple_of(8) - signatures.len()];
        let tags = [
            (1000, 6, 1, list(&[name])),
            (1027, 8, files.len() as u32, list(files)),
            (1047, 8, provides.len() as u32, list(provides)),
            (1049, 8, requires.len() as u32, list(requires)),
        ];
        [lead, signatures, gap, header(&tags), b"payload".to_vec()].concat()
    }

    #[test]
    fn kernels_of_all_times() {
        for (files, release) in [
            (&["/boot/System.map-2.6.18-398.el5", "/boot/vmlinuz-2.6.18-398.el5"][..], "2.6.18-398.el5"),
            (&["/lib/modules/5.14.0-70.el9.x86_64/vmlinuz", "/boot/vmlinuz-5.14.0-70.el9.x86_64"], "5.14.0-70.el9.x86_64"),
            (&["/usr/lib/modules/6.4.0-150600.21-default/vmlinuz", "/usr/lib/modules/x/build/vmlinuz"], "6.4.0-150600.21-default"),
        ] {
            let file = read(&package("kernel", files, &["/bin/sh", "(a if b)"], &["kernel-x"])).unwrap();
            let kernel = file.kernel.clone().unwrap();
            assert_eq!((kernel.release.as_str(), kernel.image), (release, format!("/boot/vmlinuz-{release}")));
            assert_eq!(file.depends, [["/bin/sh"]]);
            assert!(file.is("kernel-x") && file.is("kernel"));
        }
        let other = read(&package("dracut", &["/usr/bin/dracut", "/boot/vmlinuz"], &[], &[])).unwrap();
        assert!(other.kernel.is_none() && other.is("/usr/bin/dracut") && !other.beside_others);
        let modules = read(&package("kernel-modules", &[], &[], &["installonlypkg(kernel-module)"])).unwrap();
        assert!(modules.beside_others);
    }

    #[test]
    fn broken_packages_are_errors() {
        let whole = package("kernel", &["/boot/vmlinuz-1"], &[], &[]);
        assert!(read(b"!<arch>\n").unwrap_err().contains("no lead"));
        for length in [4, 95, 100, 120, 140, whole.len() - 40] {
            assert!(read(&whole[..length]).is_err(), "{length}");
        }
        let mut endless = whole.clone();
        endless[104..112].fill(0xff);
        assert!(read(&endless).unwrap_err().contains("cut off"));
    }
}
