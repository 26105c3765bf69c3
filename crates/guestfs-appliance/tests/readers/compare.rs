//! Everything that two readers of one filesystem say, held against each other.

use std::path::Path;
use std::sync::Arc;

use guestfs::engine::{Engine, Session};
use guestfs::{DirEntry, Error, Ext, FileType, GuestFs, Stat, Tree};
use guestfs_appliance::Appliance;
use imgcore::Image;
use imgcore::raw::Raw;
use imgcore::storage::FileStorage;

use crate::common::*;

/// Larger directories are compared name by name, and only every 97th of their files as a whole.
const MANY: usize = 500;

/// What a filesystem cannot tell, so that the kernel makes it up.
#[derive(Clone, Copy, Default)]
pub struct Spared {
    pub ino: bool,
    pub ctime: bool,
    pub atime: bool,
    /// Size, links and space of directories.
    pub directories: bool,
    pub blocks: bool,
}

/// Opens a file's filesystem in this process.
pub fn open(path: &Path, kind: &str) -> guestfs::Result<Tree> {
    let image: Arc<dyn Image> = Arc::new(Raw::open(Arc::new(FileStorage::open(path).unwrap())).unwrap());
    let len = image.size();
    Ok(Tree::new(guestfs::reader::open(kind, image, 0, len)?))
}

/// Starts an appliance.
pub fn start(disks: Vec<guestfs::engine::Disk>) -> Box<dyn Session> {
    Engine::start(&Appliance::new(), disks, false).unwrap_or_else(|e| panic!("{e}"))
}

/// A filesystem on a whole disk, filled by `fill` in the appliance, and then compared with the kernel's own view.
pub fn filled(path: &Path, kind: &str, options: &str, spared: Spared, more: Option<&Path>, fill: impl FnOnce(&mut dyn Session)) -> Tree {
    let disks = std::iter::once(writable(path)).chain(more.map(read_only)).collect();
    let mut session = start(disks);
    session.mount("/dev/vda", b"/", kind, options).unwrap();
    fill(session.as_mut());
    session.unmount_all().unwrap();
    let tree = same_as_kernel(session.as_mut(), path, kind, options, spared);
    session.shutdown().unwrap();
    tree
}

/// A filesystem that a mkfs filled, compared with the kernel's view of it.
pub fn ready_made(path: &Path, kind: &str, options: &str, spared: Spared) -> Tree {
    let mut session = start(vec![read_only(path)]);
    let tree = same_as_kernel(session.as_mut(), path, kind, options, spared);
    session.shutdown().unwrap();
    tree
}

fn same_as_kernel(session: &mut dyn Session, path: &Path, kind: &str, options: &str, spared: Spared) -> Tree {
    session.mount("/dev/vda", b"/", kind, &format!("ro,{options}")).unwrap();
    let tree = open(path, if kind == "ntfs3" { "ntfs" } else { kind }).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let files = same(&tree, session.as_fs(), spared);
    assert!(files > 5, "{}: there were only {files} files to compare", path.display());
    tree
}

/// Compares two trees whole; how many files they have.
pub fn same(ours: &dyn GuestFs, theirs: &dyn GuestFs, spared: Spared) -> usize {
    let mut pending = vec![b"/".to_vec()];
    let mut files = 0;
    while let Some(path) = pending.pop() {
        files += 1;
        if same_file(ours, theirs, &path, spared).kind != FileType::Directory {
            continue;
        }
        let sorted = |fs: &dyn GuestFs| {
            let mut entries = fs.read_dir(&path).unwrap_or_else(|e| panic!("{}: {e}", guestfs::show(&path)));
            entries.sort_by(|a, b| a.name.cmp(&b.name));
            entries.iter_mut().for_each(|e| e.ino = if spared.ino { 0 } else { e.ino });
            entries
        };
        let (left, right): (Vec<DirEntry>, Vec<DirEntry>) = (sorted(ours), sorted(theirs));
        if left != right {
            let ours = left.iter().find(|e| !right.contains(e));
            let theirs = right.iter().find(|e| !left.contains(e));
            panic!(
                "{}: {} names here, such as {ours:?}; {} in the kernel, such as {theirs:?}",
                guestfs::show(&path),
                left.len(),
                right.len()
            );
        }
        let step = if left.len() > MANY { 97 } else { 1 };
        let base = if path == b"/" { Vec::new() } else { path.clone() };
        pending.extend(left.iter().step_by(step).map(|e| [base.as_slice(), b"/", &e.name].concat()));
    }
    let (mut left, right) = (ours.statfs(b"/").unwrap(), theirs.statfs(b"/").unwrap());
    if spared.blocks {
        // What the kernel keeps back for itself differs from version to version.
        let near = |a: u64, b: u64| a.abs_diff(b) <= right.blocks / 20 + 64;
        assert!(near(left.blocks_free, right.blocks_free) && near(left.blocks_available, right.blocks_available), "{left:?} {right:?}");
        (left.blocks_free, left.blocks_available) = (right.blocks_free, right.blocks_available);
    }
    assert_eq!(left, right);
    files
}

fn same_file(ours: &dyn GuestFs, theirs: &dyn GuestFs, path: &[u8], spared: Spared) -> Stat {
    let shown = guestfs::show(path);
    let stat = |fs: &dyn GuestFs| {
        let mut stat = fs.lstat(path).unwrap_or_else(|e| panic!("{shown}: {e}"));
        stat.dev = 0;
        let directory = stat.kind == FileType::Directory && spared.directories;
        (stat.size, stat.nlink) = if directory { (0, 0) } else { (stat.size, stat.nlink) };
        stat.blocks = if directory || spared.blocks { 0 } else { stat.blocks };
        if (stat.ino, stat.size, stat.blocks) == (2, 0, 0) {
            // It stands for a subvolume that is not there, and the kernel gives it the time of the day.
            (stat.atime, stat.mtime, stat.ctime) = Default::default();
        }
        stat.ino = if spared.ino { 0 } else { stat.ino };
        stat.ctime = if spared.ctime { stat.mtime } else { stat.ctime };
        stat.atime = if spared.atime { stat.mtime } else { stat.atime };
        stat
    };
    let left = stat(ours);
    assert_eq!(left, stat(theirs), "{shown}");
    let xattrs = |fs: &dyn GuestFs| {
        let mut all = fs.xattrs(path).unwrap_or_else(|e| panic!("{shown}: {e}"));
        // The same list as system.posix_acl_access, in XFS's form; and what ntfs3 makes up.
        all.retain(|(name, _)| {
            !name.starts_with(b"trusted.SGI_ACL") && !name.starts_with(b"system.dos") && !name.starts_with(b"system.ntfs")
        });
        all.sort();
        all
    };
    let (a, b) = (xattrs(ours), xattrs(theirs));
    assert!(a == b, "{shown}: attributes {:?} here, {:?} in the kernel", names(&a), names(&b));
    match left.kind {
        FileType::Regular => same_content(ours, theirs, path, left.size),
        FileType::Symlink => assert_eq!(
            guestfs::show(&ours.readlink(path).unwrap_or_else(|e| panic!("{shown}: {e}"))),
            guestfs::show(&theirs.readlink(path).unwrap()),
            "{shown}"
        ),
        _ => {}
    }
    left
}

fn names(attributes: &[(Vec<u8>, Vec<u8>)]) -> Vec<(String, usize)> {
    attributes.iter().map(|(name, value)| (guestfs::show(name), value.len())).collect()
}

/// The places of a file that are told to have data, each hole between them held against the kernel's reading of it.
pub fn data(ours: &dyn GuestFs, theirs: &dyn GuestFs, path: &[u8], size: u64) -> Vec<std::ops::Range<u64>> {
    let mut found: Vec<std::ops::Range<u64>> = Vec::new();
    let mut at = 0;
    loop {
        let next = ours.next_data(path, at).unwrap_or_else(|e| panic!("{}: {e}", guestfs::show(path)));
        let hole = at..next.as_ref().map_or(size, |data| data.start);
        for place in [hole.start, hole.end.saturating_sub(4096).max(hole.start)] {
            let mut bytes = vec![0; usize::try_from((hole.end - place).min(4096)).unwrap()];
            theirs.read_at(path, place, &mut bytes).unwrap();
            assert!(bytes.iter().all(|b| *b == 0), "{}: no hole at {place}", guestfs::show(path));
        }
        let Some(data) = next else { return found };
        assert!(at <= data.start && data.start < data.end && data.end <= size, "{}: {data:?} behind {at}", guestfs::show(path));
        at = data.end;
        found.push(data);
    }
}

/// All of a small file; of a large one its ends, its middle, and some places between.
fn same_content(ours: &dyn GuestFs, theirs: &dyn GuestFs, path: &[u8], size: u64) {
    let shown = guestfs::show(path);
    data(ours, theirs, path, size);
    if size <= 16 << 20 {
        let whole = ours.read(path, 16 << 20).unwrap_or_else(|e| panic!("{shown}: {e}"));
        assert!(whole == theirs.read(path, 16 << 20).unwrap(), "{shown} differs");
        return;
    }
    for i in 0..=16 {
        let offset = (size / 16 * i).saturating_sub(70_000);
        let read = |fs: &dyn GuestFs| {
            let mut buf = vec![0; 140_000];
            let n = fs.read_at(path, offset, &mut buf).unwrap_or_else(|e| panic!("{shown}: {e}"));
            buf.truncate(n);
            buf
        };
        let (a, b) = (read(ours), read(theirs));
        let common = a.len().min(b.len());
        assert!(common > 0 && a[..common] == b[..common], "{shown} differs near {offset}");
    }
}

/// A refusal that sends the caller to the appliance.
pub fn unsupported(outcome: guestfs::Result<Tree>) -> String {
    match outcome {
        Err(e @ Error::Unsupported { .. }) => e.to_string(),
        Err(e) => panic!("another failure: {e}"),
        Ok(_) => panic!("it was read"),
    }
}
