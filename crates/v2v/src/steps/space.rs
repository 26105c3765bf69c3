//! The guest's filesystems have room for all that is written: known before anything is copied.

use std::collections::BTreeMap;

use guestfs::{Ext, FileType, GuestFs};

use crate::Result;
use crate::staged::path::parent;
use crate::step::{Context, Step};

pub(super) const STEP: Step = Step { name: "space", about: "a filesystem that is full would end the conversion halfway", run };

/// What a command that builds an initrd may need besides: so many times the largest one that is there, for another machine's may be larger than
/// this one's, within these bounds.
const INITRDS: u64 = 3;
const LEAST: u64 = 24 << 20;
const MOST: u64 = 160 << 20;
/// For directories and the like.
const SPARE: u64 = 1 << 20;
const BLOCK: u64 = 4096;

fn run(cx: &mut Context<'_>) -> Result<()> {
    let mut needs: BTreeMap<u64, (Vec<u8>, i64)> = BTreeMap::new();
    for (path, old, new) in cx.fs.sizes() {
        let dir = existing(cx, &path);
        let Ok(stat) = cx.fs.stat(&dir) else { continue };
        let blocks = |size: u64| i64::try_from(size.next_multiple_of(BLOCK)).unwrap_or(i64::MAX);
        let need = &mut needs.entry(stat.dev).or_insert((dir, 0)).1;
        *need = need.saturating_add(blocks(new)).saturating_sub(blocks(old));
    }
    let builds = cx.fs.commands().iter().any(|c| matches!(c.step, "initrd" | "kernel"));
    if builds && let Ok(stat) = cx.fs.stat(b"/boot") {
        let need = &mut needs.entry(stat.dev).or_insert((b"/boot".to_vec(), 0)).1;
        *need = need.saturating_add(for_an_initrd(cx) as i64);
    }
    for (dir, need) in needs.into_values() {
        let Ok(need) = u64::try_from(need) else { continue };
        let Ok(fs) = cx.fs.statfs(&dir) else { continue };
        let free = fs.blocks_available.saturating_mul(fs.block_size);
        if need.saturating_add(SPARE) > free {
            return Err(cx.fail(format!(
                "the guest's filesystem with {} has {} free, and the conversion needs {}: make room in the guest (old kernels, apt-get clean)",
                guestfs::show(&dir),
                imgcore::size::human(free),
                imgcore::size::human(need + SPARE)
            )));
        }
    }
    Ok(())
}

/// What an initrd that is built may need in /boot.
fn for_an_initrd(cx: &Context<'_>) -> u64 {
    let names = cx.names("/boot").into_iter().filter(|name| name.starts_with(b"initr"));
    let sizes = names.filter_map(|name| cx.fs.stat(&[b"/boot/", &name[..]].concat()).ok()).map(|stat| stat.size);
    sizes.max().map_or(MOST, |largest| largest.saturating_mul(INITRDS).clamp(LEAST, MOST))
}

/// The nearest directory above that the guest has.
fn existing(cx: &Context<'_>, path: &[u8]) -> Vec<u8> {
    let ups = std::iter::successors(parent(path), |p| parent(p));
    ups.into_iter().find(|p| cx.fs.is_dir(p) && cx.fs.is_in_guest(p)).unwrap_or(b"/").to_vec()
}

impl crate::staged::Staged<'_> {
    /// Regular files that are written, with their size before and after.
    fn sizes(&self) -> Vec<(Vec<u8>, u64, u64)> {
        let mut paths: Vec<&[u8]> = self.changes().iter().map(|c| c.op.path()).collect();
        paths.sort();
        paths.dedup();
        let size = |stat: guestfs::Result<guestfs::Stat>| stat.ok().filter(|s| s.kind == FileType::Regular).map_or(0, |s| s.size);
        paths.into_iter().map(|p| (p.to_vec(), size(self.before(p)), size(self.lstat(p)))).collect()
    }

    fn is_in_guest(&self, path: &[u8]) -> bool {
        self.before(path).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::staged::Staged;
    use crate::step::Options;
    use crate::testing::{MemFs, xen_tools_guest};

    #[test]
    fn too_much_is_told_before_anything_is_written() {
        // The guest in memory has 2 GiB free.
        let base = MemFs::new().file("/boot/old", vec![0; 1 << 20]);
        let (source, layout) = xen_tools_guest();
        let options = Options::default();
        let mut cx = Context::new(&source, &layout, &options, Staged::new(&base)).unwrap();
        cx.fs.put(b"/boot/new/kernel", &[1; 5000], None).unwrap();
        cx.run(&STEP).unwrap();
        assert_eq!(cx.fs.sizes(), [(b"/boot/new".to_vec(), 0, 0), (b"/boot/new/kernel".to_vec(), 0, 5000)]);
        cx.fs.put(b"/boot/old", b"", None).unwrap();
        assert_eq!(cx.fs.sizes()[2], (b"/boot/old".to_vec(), 1 << 20, 0));
        assert_eq!(existing(&cx, b"/boot/new/kernel"), b"/boot");
        for (initrds, wanted) in [(&[][..], MOST), (&[3 << 20], LEAST), (&[1 << 20, 20 << 20], 60 << 20), (&[90 << 20], MOST)] {
            let base = initrds.iter().fold(MemFs::new().dir("/boot"), |fs, size| fs.file(&format!("/boot/initrd-{size}"), vec![0; *size]));
            let cx = Context::new(&source, &layout, &options, Staged::new(&base)).unwrap();
            assert_eq!(for_an_initrd(&cx), wanted);
        }
        let mut full = MemFs::new().dir("/boot");
        full.free_blocks = 200;
        let mut cx = Context::new(&source, &layout, &options, Staged::new(&full)).unwrap();
        cx.fs.put(b"/boot/new", &[1; 500_000], None).unwrap();
        let error = cx.run(&STEP).unwrap_err().to_string();
        assert!(error.contains("with /boot has 800 KiB free, and the conversion needs 1.48 MiB"), "{error}");
    }
}
