//! Which of btrfs' subvolumes is a root: the default one, or the one that its own fstab names. Snapshots of a root are
//! not further operating systems: their fstab names the original.

use super::{Inspection, inspect};
use crate::{FileType, GuestFs, Result, Volumes};

/// The number that every subvolume's root directory has.
const SUBVOLUME: u64 = 256;
/// Subvolumes of one filesystem that are looked at.
const LIMIT: usize = 256;
/// What distributions call the subvolume of their root, should no fstab tell.
const USUAL: [&str; 3] = ["@", "@rootfs", "root"];

/// Mounts a volume with these options, and hands it to what looks at it.
pub(crate) type Mounted<'a> = dyn FnMut(&str, &mut dyn FnMut(&dyn GuestFs)) -> Result<()> + 'a;

/// The operating systems on a volume, which `mounted` shows as often as it takes.
pub(crate) fn roots(volumes: &Volumes, index: usize, mounted: &mut Mounted<'_>) -> Result<Vec<Inspection>> {
    let mut default = None;
    mounted("", &mut |fs| default = inspect(fs, volumes, index, None))?;
    if let Some(root) = default {
        return Ok(vec![root?]);
    }
    if volumes.volumes.get(index).is_none_or(|v| v.kind() != "btrfs") {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    mounted("subvolid=5", &mut |top| names = subvolumes(top))?;
    let mut found = Vec::new();
    for name in names {
        let mut outcome = None;
        let look = &mut |fs: &dyn GuestFs| outcome = inspect(fs, volumes, index, Some(&name));
        mounted(&format!("subvol={name}"), look)?;
        if let Some(root) = outcome {
            found.push((name, root?));
        }
    }
    Ok(choose(found))
}

/// The subvolumes at the top of a filesystem, by name.
fn subvolumes(top: &dyn GuestFs) -> Vec<String> {
    let directories = top.read_dir(b"/").unwrap_or_default().into_iter().filter(|e| e.kind == FileType::Directory);
    // A comma would end the mount option that names it.
    let names = directories.filter_map(|e| String::from_utf8(e.name).ok()).filter(|n| !n.contains(','));
    let mut names: Vec<String> =
        names.filter(|n| top.lstat(&[b"/", n.as_bytes()].concat()).is_ok_and(|s| s.ino == SUBVOLUME)).take(LIMIT).collect();
    names.sort();
    names
}

/// Of the subvolumes with an operating system, those that boot: they say so themselves, or they have the usual name.
fn choose(found: Vec<(String, Inspection)>) -> Vec<Inspection> {
    let names_itself = |(name, root): &(String, Inspection)| {
        let entry = root.fstab.iter().find(|e| e.path == b"/");
        let named = entry.and_then(|e| e.options.split(|b| *b == b',').find_map(|o| o.strip_prefix(b"subvol=")));
        named.is_some_and(|n| n.strip_prefix(b"/").unwrap_or(n) == name.as_bytes())
    };
    let is_usual = |(name, _): &(String, Inspection)| USUAL.contains(&name.as_str());
    for test in [&names_itself as &dyn Fn(&(String, Inspection)) -> bool, &is_usual] {
        if found.iter().any(test) {
            return found.into_iter().filter(test).map(|(_, root)| root).collect();
        }
    }
    found.into_iter().map(|(_, root)| root).collect()
}

/// The mount options that choose a subvolume, of all that there are.
pub(crate) fn selection(options: &[u8]) -> Vec<&[u8]> {
    options.split(|b| *b == b',').filter(|o| o.starts_with(b"subvol=") || o.starts_with(b"subvolid=")).collect()
}

/// A root's mount options such that they lead to this subvolume, or to the default one.
pub(crate) fn leading_to(options: &[u8], subvolume: Option<&str>) -> Vec<u8> {
    let chosen = subvolume.map(|name| format!("subvol={name}").into_bytes());
    let all = selection(options);
    let others = options.split(|b| *b == b',').filter(|o| !o.is_empty() && !all.contains(o)).map(<[u8]>::to_vec);
    others.chain(chosen).collect::<Vec<_>>().join(&b","[..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_lead_to_the_subvolume_that_was_looked_at() {
        assert_eq!(leading_to(b"noatime,subvol=@,subvolid=256", Some("@")), b"noatime,subvol=@");
        assert_eq!(leading_to(b"subvol=/@,defaults", None), b"defaults");
        assert_eq!(leading_to(b"defaults", Some("root")), b"defaults,subvol=root");
        assert_eq!(selection(b"rw,subvol=/a b,subvolid=7,subvolume"), [&b"subvol=/a b"[..], b"subvolid=7"]);
    }
}
