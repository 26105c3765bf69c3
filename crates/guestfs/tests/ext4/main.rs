//! The ext2/3/4 reader against what e2fsprogs makes: every mke2fs variant, dirty journals, and damaged filesystems.

mod damage;
mod free;
mod journal;
mod make;
mod variants;

use guestfs::{Ext, FileType, GuestFs};

/// Everything that two trees have in common, or a message that names the first difference.
fn assert_same(a: &dyn GuestFs, b: &dyn GuestFs, path: &[u8]) {
    let shown = guestfs::show(path);
    let (left, right) = (a.lstat(path).unwrap(), b.lstat(path).unwrap());
    assert_eq!(
        (left.kind, left.mode, left.uid, left.gid, left.size, left.nlink, left.rdev, left.mtime),
        (right.kind, right.mode, right.uid, right.gid, right.size, right.nlink, right.rdev, right.mtime),
        "{shown}"
    );
    assert_eq!(a.xattrs(path).unwrap(), b.xattrs(path).unwrap(), "{shown}");
    match left.kind {
        FileType::Regular => assert!(a.read(path, 1 << 30).unwrap() == b.read(path, 1 << 30).unwrap(), "{shown} differs"),
        FileType::Symlink => assert_eq!(a.readlink(path).unwrap(), b.readlink(path).unwrap(), "{shown}"),
        FileType::Directory => {
            let names = |fs: &dyn GuestFs| {
                let mut names: Vec<_> = fs.read_dir(path).unwrap().into_iter().map(|e| (e.name, e.kind)).collect();
                names.sort_by(|x, y| x.0.cmp(&y.0));
                names
            };
            let entries = names(a);
            assert_eq!(entries, names(b), "{shown}");
            for (name, _) in entries {
                assert_same(a, b, &[path, b"/", &name].concat());
            }
        }
        _ => {}
    }
}
