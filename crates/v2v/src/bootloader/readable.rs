//! Whether GRUB can read the filesystem that it is to start from.

use imgcore::Image;

use crate::{Error, Result};

/// ext4's incompatible features that GRUB 2.06 to 2.12 refuses, of those that mke2fs can set on a filesystem with a system on it.
const EXT: [(u32, &str); 3] = [(0x400, "ea_inode"), (0x8000, "inline_data"), (0x2_0000, "casefold")];
/// Of the features that are harmless for reading, but not for GRUB: clusters are taken for blocks.
const BIGALLOC: (u32, &str) = (0x200, "bigalloc");

/// XFS's incompatible features that GRUB knows: ftype, sparse inodes, metadata UUID, bigtime, needsrepair, nrext64.
const XFS_KNOWN: u32 = 0x3f;
/// Those that came later. `grub-fstest` of 2.06 and 2.12 takes such a filesystem for none at all.
const XFS_LATER: [(u32, &str); 4] = [(0x40, "exchange"), (0x80, "parent"), (0x100, "metadir"), (0x200, "zoned")];

/// Looks at the filesystem at byte `start` of a disk; `Ok` for those that have no such features.
///
/// # Errors
/// [`Error::Invalid`] with the feature that is in the way, and what to do about it.
pub fn check_readable(image: &dyn Image, start: u64) -> Result<()> {
    let mut bytes = [0; 2048];
    if start.checked_add(bytes.len() as u64).is_none_or(|end| end > image.size()) {
        return Ok(());
    }
    image.read_at(&mut bytes, start)?;
    let (xfs, ext) = bytes.split_at(1024);
    let refused = if ext[0x38..0x3a] == [0x53, 0xef] {
        refused_ext(ext).map(|feature| ("ext4", feature.to_string()))
    } else if xfs.starts_with(b"XFSB") {
        refused_xfs(xfs).map(|feature| ("XFS", feature))
    } else {
        None
    };
    match refused {
        None => Ok(()),
        Some((kind, feature)) => Err(Error::Invalid(format!(
            "GRUB cannot start from this {kind} filesystem, for it does not know its feature '{feature}': put /boot on a filesystem without it first"
        ))),
    }
}

fn refused_ext(superblock: &[u8]) -> Option<&'static str> {
    let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| superblock[at + i]));
    let (incompatible, read_only) = (u32_at(0x60), u32_at(0x64));
    let refused = EXT.iter().find(|(bit, _)| incompatible & bit != 0);
    refused.or(Some(&BIGALLOC).filter(|(bit, _)| read_only & bit != 0)).map(|(_, name)| *name)
}

fn refused_xfs(superblock: &[u8]) -> Option<String> {
    // sb_versionnum; only version 5 has such features, in sb_features_incompat.
    let incompatible = u32::from_be_bytes(std::array::from_fn(|i| superblock[0xd8 + i]));
    if superblock[0x65] & 0xf != 5 || incompatible & !XFS_KNOWN == 0 {
        return None;
    }
    let named = XFS_LATER.iter().find(|(bit, _)| incompatible & bit != 0).map(|(_, name)| (*name).to_string());
    Some(named.unwrap_or_else(|| format!("{:#x}", incompatible & !XFS_KNOWN)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::process::{Command, Stdio};
    use std::sync::Arc;

    use imgcore::raw::Raw;
    use imgcore::storage::FileStorage;

    use super::*;

    /// GRUB's own word for it.
    fn grub_reads(file: &std::path::Path) -> bool {
        let output = Command::new("grub-fstest").arg(file).args(["ls", "(loop0)"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains("loop0"), "{said}");
        said.contains("Filesystem type xfs")
    }

    #[test]
    fn grub_agrees_on_xfs() {
        let there = |tool: &str| Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
        if let Some(tool) = ["mkfs.xfs", "grub-fstest"].into_iter().find(|t| !there(t)) {
            assert!(std::env::var_os("CI").is_none(), "{tool} is missing");
            return eprintln!("skipped: {tool} is missing");
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("xfs");
        std::fs::File::create(&file).unwrap().set_len(300 << 20).unwrap();
        assert!(Command::new("mkfs.xfs").arg("-q").arg(&file).status().unwrap().success());
        for (features, name) in [(0x0b, None), (0x2b, None), (0x4b, Some("exchange")), (0x8b, Some("parent")), (0x10b, Some("metadir"))] {
            let writable = std::fs::OpenOptions::new().write(true).open(&file).unwrap();
            writable.write_all_at(&u32::to_be_bytes(features), 0xd8).unwrap();
            let verdict = check_readable(&Raw::open(Arc::new(FileStorage::open(&file).unwrap())).unwrap(), 0);
            assert_eq!(verdict.is_ok(), grub_reads(&file), "{features:#x}");
            assert_eq!(name, verdict.err().map(|e| e.to_string()).and_then(|e| e.split('\'').nth(1).map(String::from)).as_deref());
        }
    }
}
