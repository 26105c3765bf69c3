//! Which files of a folder are guests: xl and xm configurations, libvirt XML, XVAs as files and as folders, OVFs and OVAs.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::files::io_error;
use crate::Result;
use crate::input::{Input, Probe, libvirt, ovf, xen_config, xva};

/// Folders are searched so deep.
const MAX_DEPTH: usize = 8;
/// More entries than that are no folder of guests.
const MAX_ENTRIES: usize = 200_000;
/// A text larger than that is no configuration.
const CONFIG_LIMIT: u64 = 1 << 20;
/// Names by which a file that cannot be read as a configuration was meant to be one.
const CONFIG_NAMES: &[&str] = &["cfg", "xl", "xm", "pv", "hvm", "pvh"];

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// The guests' sources, by path.
    pub sources: Vec<Candidate>,
    /// Files that were passed over: disks, logs, anything.
    pub others: usize,
    /// What could not be read, and why.
    pub warnings: Vec<String>,
}

/// One guest's source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The file or folder.
    pub path: PathBuf,
    /// It is read once, front to back: looking into it takes as long as converting it.
    pub is_packed: bool,
}

/// Finds the guests in these folders; a file is taken as it is.
pub fn find(places: &[PathBuf]) -> Result<Found> {
    let mut walk = Walk::default();
    for place in places {
        let meta = place.metadata().map_err(|e| io_error(place, "open", e))?;
        if !walk.seen.insert((meta.dev(), meta.ino())) {
            continue;
        }
        if meta.is_dir() && !matches(&xva::INPUT, place) {
            walk.folder(place, 0)?;
        } else {
            walk.take(place);
        }
    }
    walk.found.sources.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(walk.found)
}

#[derive(Default)]
struct Walk {
    found: Found,
    /// Files and folders by device and inode: `/etc/xen/auto` holds links to the others.
    seen: BTreeSet<(u64, u64)>,
    entries: usize,
}

impl Walk {
    fn folder(&mut self, folder: &Path, depth: usize) -> Result<()> {
        let mut paths = Vec::new();
        for entry in fs::read_dir(folder).map_err(|e| io_error(folder, "list", e))? {
            paths.push(entry.map_err(|e| io_error(folder, "list", e))?.path());
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                let what = format!("{}: more than {MAX_ENTRIES} files: name the folders with the guests", folder.display());
                return Err(crate::Error::Invalid(what));
            }
        }
        // A file's own name before links to it.
        paths.sort_by_cached_key(|p| (p.is_dir(), p.is_symlink(), p.clone()));
        for path in paths {
            let is_hidden = path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
            let Ok(meta) = path.metadata() else { continue };
            // A link to a folder may lead anywhere, and round.
            let is_linked_folder = meta.is_dir() && path.is_symlink();
            if is_hidden || is_linked_folder || !(meta.is_file() || meta.is_dir()) || !self.seen.insert((meta.dev(), meta.ino())) {
                continue;
            }
            if meta.is_file() {
                if !self.guest(&path, meta.len()) {
                    self.found.others += 1;
                }
            } else if matches(&xva::INPUT, &path) {
                self.take(&path);
            } else if depth < MAX_DEPTH
                && let Err(e) = self.folder(&path, depth + 1)
            {
                self.found.warnings.push(e.to_string());
            }
        }
        Ok(())
    }

    /// Takes a file that is a guest's source.
    fn guest(&mut self, path: &Path, len: u64) -> bool {
        let is_guest =
            matches(&xva::INPUT, path) || matches(&ovf::INPUT, path) || (len <= CONFIG_LIMIT && (is_domain(path) || is_config(path)));
        if is_guest {
            self.take(path);
        }
        is_guest
    }

    fn take(&mut self, path: &Path) {
        self.found.sources.push(Candidate { path: path.into(), is_packed: is_packed(path) });
    }
}

/// Whether a file or folder looks like one of this kind.
fn matches(input: &Input, path: &Path) -> bool {
    let is_folder = path.is_dir();
    let head = if is_folder { Some(Vec::new()) } else { head(path) };
    head.is_some_and(|head| (input.probe)(&Probe { path, is_folder, head: &head }))
}

fn head(path: &Path) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    File::open(path).ok()?.take(4096).read_to_end(&mut head).ok()?;
    Some(head)
}

/// Whether this is an archive that can be read only from its beginning to its end.
pub fn is_packed(path: &Path) -> bool {
    path.is_file() && head(path).is_some_and(|h| ::xva::is_packed(&h)) && matches(&xva::INPUT, path)
}

/// Whether an XML describes a domain; libvirt's networks have an element of that name as well.
fn is_domain(path: &Path) -> bool {
    if !matches(&libvirt::INPUT, path) {
        return false;
    }
    let Ok(text) = fs::read(path).map(|t| String::from_utf8_lossy(&t).into_owned()) else { return false };
    let options = roxmltree::ParsingOptions { nodes_limit: 100_000, ..Default::default() };
    // What is not well-formed was meant as one: whoever looks at it says where it breaks.
    roxmltree::Document::parse_with_options(&text, options).map_or(true, |d| d.root_element().has_tag_name("domain"))
}

/// Whether a text describes a Xen guest: it can be read and names a disk or how to boot, or it cannot be read and is called as one.
fn is_config(path: &Path) -> bool {
    if !matches(&xen_config::INPUT, path) {
        return false;
    }
    let Ok(text) = fs::read(path).map(|t| String::from_utf8_lossy(&t).into_owned()) else { return false };
    match xen_config::parse(&path.display().to_string(), &text) {
        Ok(config) => ["disk", "kernel", "bootloader", "builder"].iter().any(|key| config.get(key).is_some()),
        Err(_) => path.extension().is_some_and(|e| CONFIG_NAMES.iter().any(|n| e.eq_ignore_ascii_case(n))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_are_told_from_other_files() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, content: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        put("web.cfg", "name = 'web'\nmemory = 128\ndisk = [ 'file:/x,xvda,w' ]\n");
        put("db", "kernel = '/boot/vmlinuz'\nmemory = 128\n");
        put("broken.cfg", "import os\ndisk = [ os.environ['x'] ]\n");
        put("xl.conf", "autoballoon=\"off\"\nvif.default.bridge=\"xenbr0\"\n");
        put("readme.txt", "a = b, but in English\n");
        put("lib/mail.xml", "<domain type='xen'><name>mail</name></domain>");
        put("lib/net.xml", "<network><name>default</name><domain name='x'/></network>");
        put("lib/disk.img", "\0\0\0=\0");
        put("vmware/mail.ovf", "<?xml version='1.0'?>\n<Envelope xmlns='http://schemas.dmtf.org/ovf/envelope/1'/>");
        put("vmware/mail-disk1.vmdk", "KDMV");
        put("vmware/mail.mf", "SHA1(mail.ovf)= 00\n");
        put("lib/.hidden.cfg", "disk = []\n");
        put("old/ova.xml", "<value/>");
        put("old/Ref_1/x.cfg", "disk = []\n");
        fs::create_dir(dir.path().join("auto")).unwrap();
        std::os::unix::fs::symlink("../web.cfg", dir.path().join("auto/web")).unwrap();
        std::os::unix::fs::symlink("..", dir.path().join("auto/loop")).unwrap();
        std::os::unix::fs::symlink("none", dir.path().join("auto/dangling")).unwrap();
        let found = find(&[dir.path().into()]).unwrap();
        let names: Vec<_> = found.sources.iter().map(|c| c.path.strip_prefix(dir.path()).unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["broken.cfg", "db", "lib/mail.xml", "old", "vmware/mail.ovf", "web.cfg"]);
        assert_eq!(found.others, 6);
        let one = find(&[dir.path().join("db"), dir.path().join("db")]).unwrap();
        assert_eq!(one.sources.len(), 1);
        assert!(find(&[dir.path().join("none")]).unwrap_err().to_string().contains("none: cannot open"));
    }
}
