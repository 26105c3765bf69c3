//! The initrd can find the target's disks: looked at first, and extended or rebuilt only when it can't.

use guestfs::engine::Command;
use guestfs::{Ext, GuestFs, GuestFsMut};
use sha1::{Digest, Sha1};

use crate::Result;
use crate::guest::cpio::{self, Contents, Writer};
use crate::guest::kernels::{self, Kernel, module_name};
use crate::initrd::{self, Builder};
use crate::stack::{Layer, holder};
use crate::step::{Context, Step};

pub(super) const STEP: Step =
    Step { name: "initrd", about: "the initrd must drive the new disks, or the root is not found; most can already", run };

/// Larger initrds are not read.
const LIMIT: u64 = 512 << 20;

fn run(cx: &mut Context<'_>) -> Result<()> {
    let Some(kernel) = cx.facts.kernel.clone() else { return Ok(()) };
    if kernel.pending {
        cx.note("the packages' hooks build it, with the new disks' drivers in their settings");
        return Ok(());
    }
    let needed = cx.drivers_of(&kernel).disk;
    let modular: Vec<&str> = needed.iter().copied().filter(|m| !kernels::is_builtin(&cx.fs, &kernel.version, m)).collect();
    let Some(path) = &kernel.initrd.clone().filter(|path| cx.fs.is_file(path.as_bytes())) else {
        // What menus name must be there, whatever is built in: another guest's kernel has got the name of one.
        let is_named = kernel.initrd.is_some();
        return if modular.is_empty() && !is_named { built_in(cx, &kernel, needed) } else { without_initrd(cx, &kernel) };
    };
    let builder = initrd::of_guest(cx);
    let may_wait = builder.is_some_and(|builder| builder.waits_for_disks);
    let bytes = cx.fs.read(path.as_bytes(), LIMIT)?;
    let has_all = |c: &Contents| modular.iter().all(|m| c.modules.contains(*m));
    let opens = has_changed(cx, "/etc/crypttab");
    let contents = cpio::scan(&bytes, &|c| has_all(c) && !may_wait && !opens).unwrap_or_else(|what| {
        cx.note(format!("{path} cannot be looked into ({what})"));
        Contents::default()
    });
    let missing: Vec<&str> = modular.iter().copied().filter(|m| !contents.modules.contains(*m)).collect();
    let stale = match changed_settings(cx) {
        Some(settings) => Some(format!("has a copy of {settings} with Xen's disks")),
        None => contents.waits_for_xen.then(|| "waits for a disk by the name that it had on Xen".to_string()),
    };
    let mut copies = builder.map(|builder| copies(cx, builder)).transpose()?.unwrap_or_default();
    copies.extend(contents.cryptroot.iter().filter_map(|(name, text)| Some((name.clone(), reopened(cx, text)?.into_bytes()))));
    if missing.is_empty() && stale.is_none() {
        if !copies.is_empty() && contents.lz4 {
            cx.warn(format!(
                "{path} has copies of settings that changed: where it waits for a disk of Xen's, have the guest build it anew"
            ));
        } else if !copies.is_empty() {
            append(cx, &kernel, path, bytes, &copies)?;
            cx.note(format!("{path}: settings that it has copies of are appended"));
        } else if modular.is_empty() {
            built_in(cx, &kernel, needed)?;
        } else {
            cx.note(format!("{path} has {}: no rebuild", modular.join(" and ")));
        }
        return Ok(());
    }
    let drivers = missing.join(" and ");
    if !missing.is_empty() {
        cx.note(format!("{path} holds {} modules", contents.modules.len()));
    }
    // Appending takes seconds, where the tool takes minutes; what that builds later has them by its settings.
    let by_udev = stale.is_none() && contents.udev && !contents.lz4 && builder.is_some_and(|builder| builder.by_udev);
    if !by_udev && let Some(command) = rebuild(cx, &kernel, path) {
        return queue(cx, &kernel, path, format!("{path} {}", stale.unwrap_or(format!("lacks {drivers}"))), command);
    }
    if let Some(stale) = stale {
        cx.warn(format!("{path} {stale}, and the guest has no tool to rebuild it: it may not find its root"));
    }
    if missing.is_empty() {
        return Ok(());
    }
    if !contents.udev {
        cx.warn(format!(
            "no udev is seen in {path}: if its scripts load drivers by name only, it does not find its root, and has to be built anew with {drivers}"
        ));
    }
    let files = [supplement(cx, &kernel, &missing, &contents)?, copies].concat();
    append(cx, &kernel, path, bytes, &files)?;
    let why = if by_udev { "udev loads them" } else { "as the guest has no tool to rebuild it" };
    cx.note(format!("{path} lacked {drivers}: modules are appended, {why}"));
    Ok(())
}

fn built_in(cx: &mut Context<'_>, kernel: &Kernel, drivers: &[&str]) -> Result<()> {
    cx.note(format!("{} has {} built in", kernel.image, drivers.join(" and ")));
    Ok(())
}

/// A file of an initrd: its path there, and what it holds.
type File = (String, Vec<u8>);

/// Settings that changed and that the tool's initrds have copies of, as files of theirs.
fn copies(cx: &Context<'_>, builder: &Builder) -> Result<Vec<File>> {
    let Some((from, to)) = builder.copies else { return Ok(Vec::new()) };
    let mut files = Vec::new();
    for name in cx.names(from) {
        let path = [from.as_bytes(), b"/", &name[..]].concat();
        if has_changed(cx, &path) {
            files.push((format!("{to}/{}", String::from_utf8_lossy(&name)), cx.fs.read(&path, 1 << 20)?));
        }
    }
    Ok(files)
}

/// What says which encrypted volumes are opened, where it names disks of Xen's (`target=root,source=/dev/xvda2`).
fn reopened(cx: &Context<'_>, text: &str) -> Option<String> {
    let word = |word: &str| {
        let (key, device) = word.split_once("source=").map_or(("", word), |(_, device)| ("source=", device));
        let new = cx.devices.stable(device).filter(|_| device.starts_with("/dev/"))?;
        // Older scripts know no `UUID=` there.
        Some(format!("{key}{}", new.replace("UUID=", "/dev/disk/by-uuid/")))
    };
    let is_end = |c: char| c == ',' || c.is_ascii_whitespace();
    let new: String = text
        .split_inclusive(is_end)
        .map(|piece| {
            let own = piece.trim_end_matches(is_end);
            word(own).map_or(piece.into(), |new| new + &piece[own.len()..])
        })
        .collect();
    (new != text).then_some(new)
}

fn has_changed(cx: &Context<'_>, path: impl AsRef<[u8]>) -> bool {
    cx.fs.changes().iter().any(|change| change.op.path() == path.as_ref())
}

/// Puts files behind what an initrd holds: the kernel unpacks one archive after the other.
fn append(cx: &mut Context<'_>, kernel: &Kernel, path: &str, bytes: Vec<u8>, files: &[File]) -> Result<()> {
    let length = bytes.len();
    let mut whole = bytes;
    // The kernel skips zeroes between archives and wants each at a multiple of four; newer ones know lz4's end by four of them.
    whole.resize((whole.len() + 4).next_multiple_of(512), 0);
    whole.extend_from_slice(&archive(files));
    cx.fs.put(path.as_bytes(), &whole, None)?;
    // update-initramfs, until Debian 11, does not touch what has another sum than it wrote here.
    cx.edit(format!("/var/lib/initramfs-tools/{}", kernel.version), |sum| sum.replace(&sha1(&whole[..length]), &sha1(&whole)))?;
    Ok(())
}

fn sha1(bytes: &[u8]) -> String {
    Sha1::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Has a command build an initrd that is there.
fn queue(cx: &mut Context<'_>, kernel: &Kernel, path: &str, why: String, command: Command) -> Result<()> {
    // The tool updates only what it made itself, and creates only what is not there.
    if command.argv.iter().any(|w| w == b"-c") {
        cx.fs.remove(path.as_bytes())?;
    }
    let makes = initrd::made(cx, path, kernel);
    cx.fs.command(why, command);
    cx.fs.makes(makes);
    Ok(())
}

/// Settings that initrds have copies of, and that were changed, where the root is put together by them.
fn changed_settings(cx: &Context<'_>) -> Option<&'static str> {
    const COPIED: [(Layer, &str); 4] = [
        (Layer::Array, "/etc/mdadm/mdadm.conf"),
        (Layer::Array, "/etc/mdadm.conf"),
        (Layer::Group, "/etc/lvm/lvm.conf"),
        (Layer::Group, "/etc/lvm/devices/system.devices"),
    ];
    let layers = &holder(&cx.mounts, "/")?.layers;
    COPIED.iter().find(|(layer, path)| layers.contains(layer) && has_changed(cx, path)).map(|(_, path)| *path)
}

/// How the guest's own tool builds this initrd; `None` where it has none, or no modules to put there.
fn rebuild(cx: &Context<'_>, kernel: &Kernel, initrd: &str) -> Option<Command> {
    let builder = initrd::of_guest(cx).filter(|_| kernels::has_modules(&cx.fs, &kernel.version))?;
    (builder.build)(cx, kernel, initrd)
}

fn without_initrd(cx: &mut Context<'_>, kernel: &Kernel) -> Result<()> {
    let (modules, drivers) = (kernels::module_table(&cx.fs, &kernel.version), cx.drivers_of(kernel));
    let is_module = |driver: &&&str| modules.iter().any(|(file, _)| module_name(file).as_deref() == Some(**driver));
    let why = match (drivers.disk.iter().rfind(is_module), &kernel.initrd) {
        (Some(driver), _) => format!("{} has {driver} only as a module and no initrd yet", kernel.image),
        (None, Some(_)) => format!("{} has no initrd yet", kernel.image),
        (None, None) => {
            cx.warn(format!(
                "{} starts without an initrd: it must have {} and the root's filesystem built in, which cannot be seen",
                kernel.image,
                drivers.block()
            ));
            return Ok(());
        }
    };
    let image = kernel.initrd.clone().unwrap_or_else(|| (cx.family.initrd)(cx, kernel));
    let with_initrd = Kernel { initrd: Some(image.clone()), ..kernel.clone() };
    let Some(command) = rebuild(cx, kernel, &image) else {
        return Err(cx.fail(format!(
            "{why}, and the guest has no tool to make one: give it a kernel with such a tool by --kernel-package, or another guest's by --kernel-from"
        )));
    };
    let makes = initrd::made(cx, &image, kernel);
    cx.fs.command(why, command);
    cx.fs.makes(makes);
    cx.facts.kernel = Some(with_initrd.clone());
    if let Some(first) = cx.facts.kernels.first_mut() {
        *first = with_initrd;
    }
    Ok(())
}

/// Modules that an initrd lacks, what they need, and the lists by which udev and modprobe find them.
fn supplement(cx: &Context<'_>, kernel: &Kernel, missing: &[&str], contents: &Contents) -> Result<Vec<File>> {
    let version = &kernel.version;
    let base = format!("/lib/modules/{version}");
    let table = kernels::module_table(&cx.fs, version);
    let mut paths: Vec<&str> = Vec::new();
    for module in missing {
        let Some((file, needs)) = table.iter().find(|(f, _)| module_name(f).as_deref() == Some(*module)) else {
            return Err(cx.fail(format!(
                "{} lacks {module}, and {base} in the guest does not have it: give the guest a kernel of its own with --kernel-package or --kernel-from",
                kernel.initrd.as_deref().unwrap_or_default()
            )));
        };
        paths.extend(needs.iter().chain([file]).map(String::as_str));
    }
    // The lists name modules as the guest has them: those that the tool unpacked, or put elsewhere, come once more.
    let is_elsewhere = |file: &str| {
        let below = file.strip_prefix(&format!("{base}/")).unwrap_or(file);
        !contents.files.contains(below) && module_name(file).is_some_and(|name| contents.modules.contains(&name))
    };
    paths.extend(table.iter().map(|(file, _)| file.as_str()).filter(|file| is_elsewhere(file)));
    let mut lists: Vec<String> = cx.fs.read_dir(base.as_bytes())?.into_iter().filter_map(|e| String::from_utf8(e.name).ok()).collect();
    lists.retain(|n| n.starts_with("modules."));
    lists.sort();
    let mut files: Vec<File> = Vec::new();
    for path in paths.into_iter().chain(lists.iter().map(String::as_str)) {
        let whole = if path.starts_with('/') { path.trim_start_matches('/').to_string() } else { format!("lib/modules/{version}/{path}") };
        if !files.iter().any(|(there, _)| *there == whole) {
            let bytes = cx.fs.read(format!("/{whole}").as_bytes(), 64 << 20)?;
            files.push((whole, bytes));
        }
    }
    Ok(files)
}

/// An archive of files with the folders that they need.
fn archive(files: &[File]) -> Vec<u8> {
    let mut cpio = Writer::default();
    let mut made: Vec<&str> = Vec::new();
    for (path, bytes) in files {
        // No entry for /lib itself: where that is a link in the initrd, a directory would take its place.
        for (at, _) in path.match_indices('/').skip(1) {
            let dir = &path[..at];
            if !made.contains(&dir) {
                cpio.directory(dir);
                made.push(dir);
            }
        }
        cpio.file(path, bytes);
    }
    cpio.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::Options;
    use crate::testing::{MemFs, ROOT_UUID, bzimage, run_step, xen_tools_guest};

    fn initrd(modules: &[&str]) -> Vec<u8> {
        let mut cpio = Writer::default();
        for module in modules {
            cpio.file(&format!("usr/lib/modules/6.1/kernel/{module}.ko"), b"elf");
        }
        cpio.finish()
    }

    fn guest(modules: &[&str]) -> MemFs {
        MemFs::new()
            .file("/boot/vmlinuz-6.1", bzimage("6.1"))
            .file("/boot/initrd.img-6.1", initrd(modules))
            .file(
                "/lib/modules/6.1/modules.dep",
                "kernel/drivers/virtio/virtio.ko:\nkernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio.ko\n\
                 kernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio.ko\n",
            )
            .file("/lib/modules/6.1/modules.alias", "alias virtio:d00000002v* virtio_blk\n")
            .file("/lib/modules/6.1/kernel/drivers/virtio/virtio.ko", "virtio")
            .file("/lib/modules/6.1/kernel/drivers/virtio/virtio_pci.ko", "pci")
            .file("/lib/modules/6.1/kernel/drivers/block/virtio_blk.ko", "blk")
    }

    fn run_after_kernel(base: &MemFs, check: impl FnOnce(&mut Context<'_>)) {
        run_step(base, &super::super::kernel::STEP, |cx| {
            cx.run(&STEP).unwrap();
            check(cx);
        });
    }

    #[test]
    fn virtio_inside_means_no_rebuild() {
        run_after_kernel(&guest(&["virtio_blk", "virtio_pci", "ext4"]), |cx| {
            assert!(cx.fs.is_unchanged());
            assert_eq!(cx.reports[1].notes, ["/boot/initrd.img-6.1 has virtio_pci and virtio_blk: no rebuild"]);
        });
        let builtin = guest(&[]).file("/lib/modules/6.1/modules.builtin", "kernel/virtio_pci.ko\nkernel/virtio-blk.ko\n");
        run_after_kernel(&builtin, |cx| assert!(cx.fs.is_unchanged()));
    }

    #[test]
    fn the_guests_own_tool_rebuilds() {
        run_after_kernel(&guest(&["xen-blkfront"]).file("/usr/sbin/update-initramfs", "#!/bin/sh"), |cx| {
            assert_eq!(cx.reports[1].commands, ["update-initramfs -c -k 6.1"]);
            assert_eq!(cx.fs.commands()[0].why, "/boot/initrd.img-6.1 lacks virtio_pci and virtio_blk");
        });
        let known = guest(&[]).file("/usr/sbin/update-initramfs", "").file("/var/lib/initramfs-tools/6.1", "sum");
        run_after_kernel(&known, |cx| assert_eq!(cx.reports[1].commands, ["update-initramfs -u -k 6.1"]));
    }

    #[test]
    fn udev_takes_what_is_appended() {
        let with = |file: &str| {
            let mut cpio = Writer::default();
            cpio.file("lib/systemd/systemd-udevd", b"elf");
            cpio.file(file, b"");
            cpio.finish()
        };
        let (plain, waits) = (with("init"), with(r"lib/dracut/hooks/initqueue/finished/devexists-\x2fdev\x2fxvda2.sh"));
        let guest = |initrd: &[u8], tool: &str| guest(&[]).file("/boot/initrd.img-6.1", initrd).file(tool, "");
        let known = guest(&plain, "/usr/sbin/update-initramfs")
            .file("/var/lib/initramfs-tools/6.1", format!("{}  /boot/initrd.img-6.1\n", sha1(&plain)));
        run_after_kernel(&known, |cx| {
            assert_eq!(
                cx.reports[1].notes[1],
                "/boot/initrd.img-6.1 lacked virtio_pci and virtio_blk: modules are appended, udev loads them"
            );
            let sum = sha1(&cx.fs.read(b"/boot/initrd.img-6.1", 1 << 20).unwrap());
            assert_eq!(cx.show("/var/lib/initramfs-tools/6.1"), format!("{sum}  /boot/initrd.img-6.1\n"));
        });
        for (initrd, tool) in [(&waits, "/usr/bin/dracut"), (&plain, "/sbin/mkinitrd")] {
            run_after_kernel(&guest(initrd, tool), |cx| assert_eq!(cx.reports[1].commands.len(), 1, "{tool}"));
        }
    }

    /// What the lists that are appended name must be there: mkinitcpio unpacks modules, and once put all into one folder.
    #[test]
    fn modules_that_lie_elsewhere_come_once_more() {
        let mut cpio = Writer::default();
        cpio.file("usr/bin/udevadm", b"elf");
        cpio.file("usr/lib/modules/6.1/kernel/ext4.ko", b"unpacked");
        cpio.file("usr/lib/modules/6.1/kernel/drivers/block/xen-blkfront.ko", b"elf");
        let base = guest(&[])
            .file("/boot/initrd.img-6.1", cpio.finish())
            .file("/usr/bin/mkinitcpio", "")
            .file(
                "/lib/modules/6.1/modules.dep",
                "kernel/drivers/virtio/virtio.ko:\nkernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio.ko\n\
                 kernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio.ko\nkernel/drivers/block/xen-blkfront.ko:\n\
                 kernel/fs/ext4/ext4.ko.zst:\nkernel/fs/xfs/xfs.ko.zst:\n",
            )
            .file("/lib/modules/6.1/kernel/fs/ext4/ext4.ko.zst", "packed");
        run_after_kernel(&base, |cx| {
            let found = cpio::scan(&cx.fs.read(b"/boot/initrd.img-6.1", 1 << 20).unwrap(), &|_| false).unwrap();
            assert!(found.files.contains("kernel/fs/ext4/ext4.ko.zst") && !found.modules.contains("xfs"), "{found:?}");
        });
    }

    /// update-initramfs copies where the guest wakes from into the initrd, which would wait for it.
    #[test]
    fn settings_in_an_initrd_follow() {
        let base = guest(&["virtio_blk", "virtio_pci"])
            .file("/usr/sbin/update-initramfs", "")
            .file("/etc/initramfs-tools/conf.d/resume", "RESUME=/dev/xvda1\n");
        run_step(&base, &super::super::kernel::STEP, |cx| {
            cx.run(&super::super::resume::STEP).unwrap();
            cx.run(&STEP).unwrap();
            let whole = cx.fs.read(b"/boot/initrd.img-6.1", 1 << 20).unwrap();
            let text = String::from_utf8_lossy(&whole).into_owned();
            assert!(text.contains("conf/conf.d/resume\0") && text.contains("RESUME=UUID="), "{:?}", cx.reports[2]);
            assert!(cx.fs.commands().is_empty());
        });
    }

    #[test]
    fn encrypted_volumes_in_an_initrd_follow() {
        let mut cpio = Writer::default();
        for module in ["virtio_blk", "virtio_pci"] {
            cpio.file(&format!("lib/modules/6.1/kernel/{module}.ko"), b"elf");
        }
        cpio.file("conf/conf.d/cryptroot", b"target=root_crypt,source=/dev/xvda2,key=none,rootdev\ntarget=x,source=UUID=1,key=none\n");
        let base = guest(&[])
            .file("/boot/initrd.img-6.1", cpio.finish())
            .file("/usr/sbin/update-initramfs", "")
            .file("/etc/crypttab", "root_crypt /dev/xvda2 none luks\n");
        run_step(&base, &super::super::kernel::STEP, |cx| {
            cx.run(&super::super::crypttab::STEP).unwrap();
            cx.run(&STEP).unwrap();
            let found = cpio::scan(&cx.fs.read(b"/boot/initrd.img-6.1", 1 << 20).unwrap(), &|_| false).unwrap();
            let new = format!("target=root_crypt,source=/dev/disk/by-uuid/{ROOT_UUID},key=none,rootdev\ntarget=x,source=UUID=1,key=none\n");
            assert_eq!(found.cryptroot.last(), Some(&("conf/conf.d/cryptroot".to_string(), new)));
        });
    }

    #[test]
    fn without_a_tool_the_modules_are_appended() {
        run_after_kernel(&guest(&["virtio_pci"]), |cx| {
            let whole = cx.fs.read(b"/boot/initrd.img-6.1", 1 << 20).unwrap();
            let found = cpio::scan(&whole, &|_| false).unwrap();
            let modules: Vec<_> = found.modules.iter().map(String::as_str).collect();
            assert_eq!(modules, ["virtio", "virtio_blk", "virtio_pci"]);
            let text = String::from_utf8_lossy(&whole).into_owned();
            assert!(text.contains("lib/modules/6.1/modules.alias") && !text.contains("\0lib\0"));
            let warning = "no udev is seen in /boot/initrd.img-6.1: if its scripts load drivers by name only";
            assert!(cx.reports[1].warnings[0].starts_with(warning), "{:?}", cx.reports[1].warnings);
        });
    }

    #[test]
    fn a_module_that_is_nowhere_is_an_error() {
        let base = MemFs::new().file("/boot/vmlinuz-6.1", bzimage("6.1")).file("/boot/initrd.img-6.1", initrd(&["xen-blkfront"]));
        let (source, layout) = xen_tools_guest();
        let options = Options::default();
        let mut cx = Context::new(&source, &layout, &options, crate::staged::Staged::new(&base)).unwrap();
        cx.run(&super::super::kernel::STEP).unwrap();
        let error = cx.run(&STEP).unwrap_err().to_string();
        assert!(error.contains("/boot/initrd.img-6.1 lacks virtio_pci, and /lib/modules/6.1 in the guest does not have it"), "{error}");
    }
}
