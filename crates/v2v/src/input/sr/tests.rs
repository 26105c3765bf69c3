use std::path::PathBuf;

use imgcore::formats::{CreateOptions, Formats};
use imgcore::storage::FileStorage;

use super::*;
use crate::input;

const BASE: &str = "0b4cd4c2-6e6b-4f2a-9d0a-3f1f0d6b8a11";
const LEAF: &str = "7f1a9a34-58a4-4a4b-8f13-0d2b6c1e9c55";
const OTHER: &str = "c0ffee00-58a4-4a4b-8f13-0d2b6c1e9c55";

/// What a layer writes, it has to itself.
const CLUSTER: u64 = 64 << 10;

/// An image of 3 MiB with `byte` behind as many clusters, in a folder.
fn make(folder: &Path, file: &str, format: &str, backing: Option<&str>, byte: u8) -> PathBuf {
    let path = folder.join(file);
    let mut options = CreateOptions::new();
    if let Some(backing) = backing {
        options = options.set("backing_file", backing).set("backing_fmt", format);
    }
    let storage = Arc::new(FileStorage::create(&path).unwrap());
    let image = Formats::new().driver(format).unwrap().create(storage, 3 << 20, &options).unwrap();
    image.write_at(&[byte; 512], u64::from(byte) * CLUSTER).unwrap();
    image.flush().unwrap();
    path
}

fn read_sr(guest: &Path, vdis: &[&str]) -> Result<crate::source::Source, String> {
    let (formats, vdis) = (Formats::new(), vdis.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>());
    let request = Request { vdis: &vdis, ..Request::new(guest, &formats) };
    input::read("auto", &request).map(|o| o.source).map_err(|e| e.to_string())
}

/// The bytes at the beginnings of clusters 1, 2 and 3.
fn marks(source: &crate::source::Source, disk: usize) -> [u8; 3] {
    let image = source.disks[disk].image.as_ref().unwrap();
    [1, 2, 3].map(|cluster| {
        let mut byte = [0];
        image.read_at(&mut byte, cluster * CLUSTER).unwrap();
        byte[0]
    })
}

#[test]
fn vdis_of_a_folder_are_found_with_their_chains() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    // The names that qcow2 images have for their backing files are those of the Xen host.
    make(folder, &format!("{BASE}.qcow2"), "qcow2", None, 1);
    let host = folder.join("run");
    std::fs::create_dir(&host).unwrap();
    make(&host, &format!("{BASE}.qcow2"), "qcow2", None, 9);
    make(folder, &format!("{LEAF}.qcow2"), "qcow2", Some(&format!("run/{BASE}.qcow2")), 2);
    std::fs::remove_dir_all(&host).unwrap();
    let only = read_sr(folder, &[]).unwrap();
    assert_eq!((only.name.as_str(), only.disks[0].target.as_str(), marks(&only, 0)), (LEAF, "0", [1, 2, 0]));

    make(folder, &format!("{OTHER}.raw"), "raw", None, 3);
    let error = read_sr(folder, &[]).err().unwrap();
    assert!(error.contains("--vdi UUID") && error.contains(LEAF) && error.contains(OTHER) && !error.contains(BASE), "{error}");
    let two = read_sr(folder, &[&format!("xvda={OTHER}"), &LEAF.to_uppercase()]).unwrap();
    let targets: Vec<_> = two.disks.iter().map(|d| d.target.as_str()).collect();
    assert_eq!((targets, marks(&two, 0), marks(&two, 1)), (vec!["xvda", "1"], [0, 0, 3], [1, 2, 0]));
    let own = read_sr(&folder.join(format!("{LEAF}.qcow2")), &[OTHER]).unwrap();
    assert_eq!((marks(&own, 0), marks(&own, 1)), ([1, 2, 0], [0, 0, 3]));

    std::fs::remove_file(folder.join(format!("{BASE}.qcow2"))).unwrap();
    let error = read_sr(folder, &[LEAF]).err().unwrap();
    assert!(error.contains(&format!("{LEAF}.qcow2: its backing file 'run/{BASE}.qcow2' is missing")), "{error}");
    assert!(error.contains(&format!("VHD-{BASE}")), "{error}");
    let error = read_sr(folder, &[BASE]).err().unwrap();
    assert!(error.contains(&format!("has no VDI {BASE}: looked for {BASE}.vhd, ")), "{error}");
}

#[test]
fn parents_of_vhds_are_known_by_uuid_whatever_they_are_called() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    // As in a group's folder in /dev, but with another name for the parent: it was a file once.
    make(folder, &format!("{BASE}.vhd"), "vpc", None, 1);
    make(folder, &format!("VHD-{LEAF}"), "vpc", Some(&format!("{BASE}.vhd")), 2);
    std::fs::rename(folder.join(format!("{BASE}.vhd")), folder.join(format!("VHD-{BASE}"))).unwrap();
    let source = read_sr(&folder.join(format!("VHD-{LEAF}")), &[]).unwrap();
    assert_eq!((marks(&source, 0), source.disks[0].size), ([1, 2, 0], 3 << 20));
    // Two disks of one file are a mistake.
    assert!(read_sr(folder, &[LEAF, LEAF]).err().unwrap().contains("would be both disk"));
}

#[test]
fn other_folders_and_files_are_no_repositories() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), "web.vhd", "vpc", None, 1);
    assert!(read_sr(dir.path(), &[]).err().unwrap().contains("cannot tell what this is"));
    let formats = Formats::new();
    let web = dir.path().join("web.vhd");
    let error = input::read("sr", &Request::new(&web, &formats)).err().unwrap().to_string();
    assert!(error.contains("is no storage repository: no volume group VG_XenStorage-"), "{error}");
    let names = |name: &str| probe(&Probe { path: Path::new(name), is_folder: false, head: &[] });
    assert!(names(&format!("/x/{BASE}.raw")) && !names("/x/web.vhd") && !names("-"));
}
