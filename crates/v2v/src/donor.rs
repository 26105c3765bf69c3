//! A kernel from another guest: its image, its modules, and the initrd where the guest cannot build one itself.

use guestfs::{Attributes, Error as GuestError, Ext, FileType, GuestFs, GuestFsMut};

use crate::Result;
use crate::guest::kernels::{self, Kernel};
use crate::initrd;
use crate::staged::path::join;
use crate::step::{Context, Donor};

/// All of a kernel's files together are no larger.
const LIMIT: u64 = 2 << 30;
/// Folders in folders of modules.
const DEPTH: usize = 32;
/// What a filesystem wants to have free besides.
const SPARE: u64 = 64 << 20;

/// Puts the donor's best kernel into the guest.
pub fn take(cx: &mut Context<'_>, donor: &Donor<'_>) -> Result<Kernel> {
    let fail = |cx: &Context<'_>, what: String| cx.fail(format!("--kernel-from {}: {what}", donor.name));
    let kernels = kernels::find(donor.fs, cx.options.target);
    let Some(kernel) = kernels.iter().find(|k| k.unfit.is_none() && kernels::has_modules(donor.fs, &k.version)) else {
        let why = kernels.first().map_or("there is none in its /boot".into(), |k| {
            let why = k.unfit.clone().unwrap_or_else(|| format!("/lib/modules/{} is missing", k.version));
            format!("{}: {why}", k.image)
        });
        let target = cx.options.target.name();
        return Err(fail(cx, format!("it has no kernel that starts on {target} ({why}): name another guest")));
    };
    let arch = guestfs::inspect::arch(donor.fs);
    if arch != cx.arch && cx.arch != "unknown" {
        return Err(fail(cx, format!("its programs are for {arch}, and the guest's for {}: name a guest like it", cx.arch)));
    }
    let release = guestfs::inspect::release(donor.fs)?;
    if (&release.id, release.major) != (&cx.release.id, cx.release.major) {
        cx.warn(format!(
            "the kernel {} comes from {}, another system than the guest's: see that its programs go with it",
            kernel.version,
            if release.product_name.is_empty() { &release.id } else { &release.product_name }
        ));
    }

    let mut copy = Copy { from: donor.fs, left: LIMIT, modules: Vec::new() };
    copy.list(&format!("/lib/modules/{}", kernel.version).into_bytes(), DEPTH)?;
    let mut boot: Vec<String> = vec![kernel.image.clone()];
    boot.extend(["config", "System.map"].map(|name| format!("/boot/{name}-{}", kernel.version)));
    let has_tool = initrd::of_guest(cx).is_some();
    boot.extend(kernel.initrd.clone().filter(|_| !has_tool));
    boot.retain(|path| donor.fs.is_file(path.as_bytes()));
    let size = |path: &String| donor.fs.stat(path.as_bytes()).map_or(0, |s| s.size);
    room(cx, "/lib/modules", LIMIT - copy.left)?;
    room(cx, "/boot", boot.iter().map(size).sum())?;

    for path in &boot {
        cx.fs.put(path.as_bytes(), &donor.fs.read(path.as_bytes(), LIMIT)?, Some(Attributes::root(0o644)))?;
    }
    cx.fs.tree(format!("/lib/modules/{}", kernel.version).as_bytes())?;
    // /lib may be a link to usr/lib in one guest and a folder in the other.
    for module in &copy.modules {
        match module {
            Node::Folder(path) => cx.fs.mkdir_all(path)?,
            Node::File(path) => cx.fs.put(path, &donor.fs.read(path, LIMIT)?, Some(Attributes::root(0o644)))?,
            Node::Link(path, target) if cx.fs.lstat(path).is_err() => cx.fs.symlink(target, path)?,
            Node::Link(..) => {}
        }
    }
    cx.note(format!("{} and its modules come from {}", kernel.image, donor.name));
    let mut taken = kernel.clone();
    if has_tool {
        // It is not there yet: step `initrd` has it built.
        taken.initrd = Some((cx.family.initrd)(cx, kernel));
    }
    Ok(taken)
}

fn room(cx: &Context<'_>, folder: &str, needed: u64) -> Result<()> {
    let free = cx.fs.statfs(folder.as_bytes()).or_else(|_| cx.fs.statfs(b"/")).map(|s| s.blocks_available.saturating_mul(s.block_size))?;
    let needed = needed.saturating_add(SPARE);
    if free >= needed {
        return Ok(());
    }
    let human = imgcore::size::human;
    Err(cx.fail(format!("{folder} has {} free, and the other guest's kernel needs {}: make room in the guest", human(free), human(needed))))
}

enum Node {
    Folder(Vec<u8>),
    File(Vec<u8>),
    Link(Vec<u8>, Vec<u8>),
}

/// A tree that is being listed.
struct Copy<'a> {
    from: &'a dyn GuestFs,
    /// What files may still hold.
    left: u64,
    modules: Vec<Node>,
}

impl Copy<'_> {
    fn list(&mut self, dir: &[u8], depth: usize) -> Result<()> {
        let odd = |what: String| GuestError::Guest { path: dir.to_vec(), action: "read the kernel's modules", what };
        let Some(depth) = depth.checked_sub(1) else { return Err(odd("folders lie too deep in each other".into()).into()) };
        self.modules.push(Node::Folder(dir.to_vec()));
        let mut entries = self.from.read_dir(dir)?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        for entry in entries {
            let path = join(dir, &entry.name);
            match entry.kind {
                FileType::Directory => self.list(&path, depth)?,
                FileType::Regular => {
                    let size = self.from.lstat(&path)?.size;
                    let left = self.left.checked_sub(size);
                    self.left = left.ok_or_else(|| odd(format!("they are larger than {}", imgcore::size::human(LIMIT))))?;
                    self.modules.push(Node::File(path));
                }
                // `build` and `source` lead to headers that stay behind.
                FileType::Symlink if !matches!(&entry.name[..], b"build" | b"source") => {
                    let target = self.from.readlink(&path)?;
                    self.modules.push(Node::Link(path, target));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::staged::Staged;
    use crate::step::Options;
    use crate::testing::{MemFs, bzimage, xen_tools_guest};

    const KERNEL: &crate::step::Step = &crate::steps::STEPS[0];

    fn donor() -> MemFs {
        MemFs::new()
            .file("/etc/os-release", "ID=sles\nVERSION_ID=12.5\nPRETTY_NAME=\"SLES 12\"\n")
            .file("/boot/vmlinuz-4.12-xen", [0x1f; 0x300])
            .file("/boot/vmlinuz-4.12-default", bzimage("4.12-default"))
            .file("/boot/initrd-4.12-default", "initrd")
            .file("/boot/config-4.12-default", "CONFIG_VIRTIO_PCI=m\nCONFIG_VIRTIO_BLK=m\n")
            .file("/lib/modules/4.12-default/modules.dep", "kernel/virtio_blk.ko:\n")
            .file("/lib/modules/4.12-default/kernel/virtio_blk.ko", "elf")
            .link_to("/lib/modules/4.12-default/build", "/usr/src/linux")
            .link_to("/lib/modules/4.12-default/weak-updates", "../x")
    }

    fn run(guest: &MemFs, donor: &MemFs, check: impl FnOnce(Result<()>, &mut Context<'_>)) {
        let (source, layout) = xen_tools_guest();
        let options = Options::default();
        let mut cx = Context::new(&source, &layout, &options, Staged::new(guest)).unwrap();
        cx.donor = Some(Donor { name: "other.cfg", fs: donor });
        let outcome = cx.run(KERNEL);
        check(outcome, &mut cx);
    }

    #[test]
    fn kernel_and_modules_and_an_initrd_where_nothing_can_make_one() {
        let guest = MemFs::new().file("/etc/SuSE-release", "SUSE Linux Enterprise Server 12 (x86_64)\nVERSION = 12\n").dir("/boot");
        run(&guest, &donor(), |outcome, cx| {
            outcome.unwrap();
            let kernel = cx.facts.kernel.clone().unwrap();
            assert_eq!(
                (kernel.image.as_str(), kernel.initrd.as_deref()),
                ("/boot/vmlinuz-4.12-default", Some("/boot/initrd-4.12-default"))
            );
            assert_eq!(cx.fs.read(b"/lib/modules/4.12-default/kernel/virtio_blk.ko", 9).unwrap(), b"elf");
            assert_eq!(cx.fs.readlink(b"/lib/modules/4.12-default/weak-updates").unwrap(), b"../x");
            assert!(cx.fs.exists(b"/boot/config-4.12-default") && cx.fs.lstat(b"/lib/modules/4.12-default/build").is_err());
            assert!(cx.reports[0].warnings.is_empty(), "{:?}", cx.reports[0].warnings);
        });
        let with_tool = guest.file("/sbin/mkinitrd", "").file("/etc/sysconfig/kernel", "INITRD_MODULES=\"\"\n");
        let built_in = donor()
            .file("/boot/config-4.12-default", "CONFIG_VIRTIO_PCI=y\nCONFIG_VIRTIO_BLK=y\n")
            .file("/lib/modules/4.12-default/modules.dep", "kernel/ext4.ko:\n");
        for (donor, why) in [(donor(), "has virtio_blk only as a module and no initrd yet"), (built_in, "has no initrd yet")] {
            run(&with_tool, &donor, |outcome, cx| {
                outcome.unwrap();
                assert!(!cx.fs.exists(b"/boot/initrd-4.12-default"), "its own tool makes one");
                cx.run(crate::steps::STEPS.iter().find(|s| s.name == "initrd").unwrap()).unwrap();
                let command = &cx.fs.commands()[0];
                assert_eq!(command.shown(), "mkinitrd -k vmlinuz-4.12-default -i initrd-4.12-default");
                assert_eq!(command.why, format!("/boot/vmlinuz-4.12-default {why}"));
                assert_eq!(cx.facts.kernel.as_ref().unwrap().initrd.as_deref(), Some("/boot/initrd-4.12-default"));
            });
        }
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let guest = MemFs::new().file("/etc/redhat-release", "CentOS release 5.11 (Final)\n").dir("/boot");
        run(&guest, &donor(), |outcome, cx| {
            outcome.unwrap();
            assert!(cx.reports[0].warnings[0].contains("4.12-default comes from SLES 12"), "{:?}", cx.reports[0].warnings);
        });
        let xen_only = MemFs::new().file("/boot/vmlinuz-4.12-xen", [0x1f; 0x300]).dir("/lib/modules/4.12-xen");
        run(&guest, &xen_only, |outcome, _| {
            let error = outcome.unwrap_err().to_string();
            assert!(
                error.contains("--kernel-from other.cfg: it has no kernel that starts on KVM (/boot/vmlinuz-4.12-xen: only Xen"),
                "{error}"
            );
        });
        let mut full = guest;
        full.free_blocks = 100;
        run(&full, &donor(), |outcome, _| {
            let error = outcome.unwrap_err().to_string();
            assert!(error.contains("/lib/modules has 400 KiB free"), "{error}");
        });
    }
}
