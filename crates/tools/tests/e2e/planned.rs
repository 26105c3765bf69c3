//! What a plan names is what the conversion then changes: both trees are read whole, and every file is compared.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use guestfs::volume::GuestDisk;
use guestfs::{Ext, FileType, GuestFs, OpenOptions, Stat};
use imgcore::storage::FileStorage;
use imgcore::{Formats, NoGate};

use crate::booted::{CONVERSION, converted};
use crate::guest::{Guest, run, v2v};

/// The disks of a conversion with these options that did what its plan says, and no more.
pub fn planned(guest: &Guest, dir: &Path, options: &[&str]) -> Vec<PathBuf> {
    let disks = converted(guest, &guest.cfg, dir, options);
    as_planned(guest, options, &disks);
    disks
}

/// Demands that `v2v OPTIONS --plan` on a guest names the paths in which the converted `disks` differ from it, and no others.
pub fn as_planned(guest: &Guest, options: &[&str], disks: &[PathBuf]) {
    let output = run(v2v().args(["--plan", "--json"]).arg(&guest.cfg).args(options), None, CONVERSION);
    let plan: serde_json::Value = serde_json::from_slice(&output.stdout).expect("the plan is JSON");
    let list = |of: &str, name: &str| -> Vec<String> {
        let items = plan[of].as_array().expect("a list").iter().flat_map(|item| match &item[name] {
            serde_json::Value::Array(paths) => paths.clone(),
            path => vec![path.clone()],
        });
        items.map(|path| path.as_str().expect("a path").to_owned()).collect()
    };
    let named: BTreeSet<String> = list("files", "path").into_iter().chain(list("commands", "makes")).collect();
    let changed = changed(&guest.disks, disks);
    let below = |dir: &str, path: &str| dir.ends_with('/') && (path.starts_with(dir) || path == dir.trim_end_matches('/'));
    let unnamed: Vec<_> = changed.iter().filter(|path| !named.contains(*path) && !named.iter().any(|dir| below(dir, path))).collect();
    assert!(unnamed.is_empty(), "changed, but not in the plan: {unnamed:#?}");
    let unchanged: Vec<_> = named.iter().filter(|name| !changed.contains(*name) && !changed.iter().any(|path| below(name, path))).collect();
    assert!(unchanged.is_empty(), "in the plan, but not changed: {unchanged:#?}");
    assert!(!changed.is_empty(), "a conversion changes something");
}

/// The paths at which two guests differ.
fn changed(old: &[PathBuf], new: &[PathBuf]) -> BTreeSet<String> {
    let (old, new) = (open(old), open(new));
    let (before, after) = (tree(old.fs()), tree(new.fs()));
    let paths: BTreeSet<&Vec<u8>> = before.keys().chain(after.keys()).collect();
    let differs = |path: &&&Vec<u8>| match (before.get(**path), after.get(**path)) {
        (Some(a), Some(b)) => !same(old.fs(), new.fs(), path, a, b),
        _ => true,
    };
    let differing: BTreeSet<String> = paths.iter().filter(differs).map(|path| guestfs::show(path)).collect();
    // openSUSE's root is one of the subvolumes below /.snapshots, where it is seen once more.
    let at_root = |path: &str| path.strip_prefix("/.snapshots/").and_then(|path| Some(path.split_once("/snapshot")?.1.to_owned()));
    differing.iter().filter(|path| at_root(path).is_none_or(|path| !differing.contains(&path))).cloned().collect()
}

fn open(disks: &[PathBuf]) -> guestfs::Guest {
    let disk = |(i, path): (usize, &PathBuf)| {
        let storage = Arc::new(FileStorage::open(path as &Path).expect("a disk"));
        let image = Formats::new().open_storage(storage, &imgcore::OpenOptions::new(&NoGate)).expect("an image");
        GuestDisk { name: format!("vd{}", char::from(b'a' + u8::try_from(i).expect("few disks"))), image }
    };
    guestfs::Guest::open(disks.iter().enumerate().map(disk).collect(), &OpenOptions::default())
        .expect("a guest that is read in this process")
}

fn tree(fs: &dyn GuestFs) -> BTreeMap<Vec<u8>, Stat> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![Vec::new()];
    while let Some(dir) = dirs.pop() {
        for entry in fs.read_dir(if dir.is_empty() { b"/" } else { &dir }).expect("a directory") {
            let path = [&dir[..], b"/", &entry.name].concat();
            let stat = fs.lstat(&path).expect("what a directory lists");
            if stat.kind == FileType::Directory {
                dirs.push(path.clone());
            }
            found.insert(path, stat);
        }
    }
    found
}

/// Kind, mode, owner, attributes, and what it holds; times don't count.
fn same(old: &dyn GuestFs, new: &dyn GuestFs, path: &[u8], a: &Stat, b: &Stat) -> bool {
    let plain = |s: &Stat| (s.kind, s.mode, s.uid, s.gid, s.rdev);
    if plain(a) != plain(b) {
        return false;
    }
    // Every change of a file leaves another time of change: the others need not be read.
    if (a.ino, a.ctime, a.size) == (b.ino, b.ctime, b.size) {
        return true;
    }
    let xattrs = |fs: &dyn GuestFs| fs.xattrs(path).expect("attributes").into_iter().collect::<BTreeMap<_, _>>();
    let content = || match a.kind {
        FileType::Regular => {
            let read = |fs: &dyn GuestFs| fs.read(path, 1 << 30).expect("a file");
            a.size == b.size && read(old) == read(new)
        }
        FileType::Symlink => old.readlink(path).expect("a link") == new.readlink(path).expect("a link"),
        _ => true,
    };
    xattrs(old) == xattrs(new) && content()
}
