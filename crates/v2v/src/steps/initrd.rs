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
    if modular.is_empty() {
        cx.note(format!("{} has {} built in", kernel.image, needed.join(" and ")));
        return Ok(());
    }
    let Some(path) = &kernel.initrd.clone().filter(|path| cx.fs.is_file(path.as_bytes())) else { return without_initrd(cx, &kernel) };
    let bytes = cx.fs.read(path.as_bytes(), LIMIT)?;
    let has_all = |c: &Contents| modular.iter().all(|m| c.modules.contains(*m));
    let missing: Vec<&str> = match cpio::scan(&bytes, &has_all) {
        Ok(contents) if has_all(&contents) => {
            let Some(settings) = changed_settings(cx) else {
                cx.note(format!("{path} has {}: no rebuild", modular.join(" and ")));
                return Ok(());
            };
            match rebuild(cx, &kernel, path) {
                Some(command) => queue(cx, &kernel, path, format!("{path} has a copy of {settings} with Xen's disks"), command)?,
                None => cx.warn(format!(
                    "{path} has a copy of {settings} with Xen's disks, and the guest has no tool to rebuild it: it may not find its root"
                )),
            }
            return Ok(());
        }
        Ok(contents) => {
            cx.note(format!("{path} holds {} modules", contents.modules.len()));
            let missing: Vec<&str> = modular.into_iter().filter(|m| !contents.modules.contains(*m)).collect();
            if initrd::of_guest(cx).is_some_and(|builder| takes_drivers(cx, builder, &contents)) {
                // Seconds, where the tool takes minutes; what it builds later has them by its settings.
                return append(cx, &kernel, path, bytes, &missing, "udev loads them");
            }
            missing
        }
        Err(what) => {
            cx.note(format!("{path} cannot be looked into ({what})"));
            modular
        }
    };
    match rebuild(cx, &kernel, path) {
        Some(command) => queue(cx, &kernel, path, format!("{path} lacks {}", missing.join(" and ")), command),
        None => append(cx, &kernel, path, bytes, &missing, "as the guest has no tool to rebuild it"),
    }
}

/// Whether an initrd finds its root with nothing but more drivers.
fn takes_drivers(cx: &Context<'_>, builder: &Builder, contents: &Contents) -> bool {
    builder.by_udev && contents.udev && !contents.waits_for_xen && !contents.lz4 && changed_settings(cx).is_none()
}

/// Puts modules behind what an initrd holds: the kernel unpacks one archive after the other.
fn append(cx: &mut Context<'_>, kernel: &Kernel, path: &str, bytes: Vec<u8>, missing: &[&str], why: &str) -> Result<()> {
    let extra = supplement(cx, kernel, missing)?;
    let length = bytes.len();
    let mut whole = bytes;
    // The kernel skips zeroes between archives and wants each at a multiple of four; newer ones know lz4's end by four of them.
    whole.resize((whole.len() + 4).next_multiple_of(512), 0);
    whole.extend_from_slice(&extra);
    cx.fs.put(path.as_bytes(), &whole, None)?;
    // update-initramfs, until Debian 11, does not touch what has another sum than it wrote here.
    cx.edit(format!("/var/lib/initramfs-tools/{}", kernel.version), |sum| sum.replace(&sha1(&whole[..length]), &sha1(&whole)))?;
    cx.note(format!("{path} lacked {}: modules are appended, {why}", missing.join(" and ")));
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
    let changed = |path: &str| cx.fs.changes().iter().any(|c| c.op.path() == path.as_bytes());
    COPIED.iter().find(|(layer, path)| layers.contains(layer) && changed(path)).map(|(_, path)| *path)
}

/// How the guest's own tool builds this initrd; `None` where it has none, or no modules to put there.
fn rebuild(cx: &Context<'_>, kernel: &Kernel, initrd: &str) -> Option<Command> {
    let builder = initrd::of_guest(cx).filter(|_| kernels::has_modules(&cx.fs, &kernel.version))?;
    (builder.build)(cx, kernel, initrd)
}

fn without_initrd(cx: &mut Context<'_>, kernel: &Kernel) -> Result<()> {
    let modules = kernels::module_table(&cx.fs, &kernel.version);
    if !modules.iter().any(|(file, _)| module_name(file).is_some_and(|name| cx.drivers_of(kernel).disk.contains(&name.as_str()))) {
        cx.warn(format!(
            "{} starts without an initrd: it must have {} and the root's filesystem built in, which cannot be seen",
            kernel.image,
            cx.drivers_of(kernel).block()
        ));
        return Ok(());
    }
    let image = kernel.initrd.clone().unwrap_or_else(|| (cx.family.initrd)(cx, kernel));
    let with_initrd = Kernel { initrd: Some(image.clone()), ..kernel.clone() };
    let Some(command) = rebuild(cx, kernel, &image) else {
        return Err(cx.fail(format!(
            "{} has {} only as a module, there is no initrd for it, and the guest has no tool to make one: give it a kernel with such a tool \
             by --kernel-package, or another guest's by --kernel-from",
            kernel.image,
            cx.drivers_of(kernel).block()
        )));
    };
    let makes = initrd::made(cx, &image, kernel);
    cx.fs.command(format!("{} has {} only as a module", kernel.image, cx.drivers_of(kernel).block()), command);
    cx.fs.makes(makes);
    cx.facts.kernel = Some(with_initrd.clone());
    if let Some(first) = cx.facts.kernels.first_mut() {
        *first = with_initrd;
    }
    Ok(())
}

/// An archive with modules that an initrd lacks, what they need, and the lists by which udev and modprobe find them.
fn supplement(cx: &Context<'_>, kernel: &Kernel, missing: &[&str]) -> Result<Vec<u8>> {
    let version = &kernel.version;
    let base = format!("/lib/modules/{version}");
    let table = kernels::module_table(&cx.fs, version);
    let mut files: Vec<&str> = Vec::new();
    for module in missing {
        let Some((file, needs)) = table.iter().find(|(f, _)| module_name(f).as_deref() == Some(*module)) else {
            return Err(cx.fail(format!(
                "{} lacks {module}, and {base} in the guest does not have it: give the guest a kernel of its own with --kernel-package or --kernel-from",
                kernel.initrd.as_deref().unwrap_or_default()
            )));
        };
        for file in needs.iter().chain([file]) {
            if !files.contains(&file.as_str()) {
                files.push(file);
            }
        }
    }
    let mut lists: Vec<String> = cx.fs.read_dir(base.as_bytes())?.into_iter().filter_map(|e| String::from_utf8(e.name).ok()).collect();
    lists.retain(|n| n.starts_with("modules."));
    lists.sort();
    let mut cpio = Writer::default();
    let mut made: Vec<String> = Vec::new();
    for file in files.iter().map(|f| f.to_string()).chain(lists) {
        // No entry for /lib itself: where that is a link in the initrd, a directory would take its place.
        let whole = if file.starts_with('/') { file.trim_start_matches('/').to_string() } else { format!("lib/modules/{version}/{file}") };
        let slashes: Vec<usize> = whole.match_indices('/').map(|m| m.0).skip(1).collect();
        for at in slashes {
            let dir = &whole[..at];
            if dir.contains("lib/modules") && !made.iter().any(|d| d == dir) {
                cpio.directory(dir);
                made.push(dir.into());
            }
        }
        cpio.file(&whole, &cx.fs.read(format!("/{whole}").as_bytes(), 64 << 20)?);
    }
    Ok(cpio.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::Options;
    use crate::testing::{MemFs, bzimage, run_step, xen_tools_guest};

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

    #[test]
    fn without_a_tool_the_modules_are_appended() {
        run_after_kernel(&guest(&["virtio_pci"]), |cx| {
            let whole = cx.fs.read(b"/boot/initrd.img-6.1", 1 << 20).unwrap();
            let found = cpio::scan(&whole, &|_| false).unwrap();
            let modules: Vec<_> = found.modules.iter().map(String::as_str).collect();
            assert_eq!(modules, ["virtio", "virtio_blk", "virtio_pci"]);
            let text = String::from_utf8_lossy(&whole).into_owned();
            assert!(text.contains("lib/modules/6.1/modules.alias") && !text.contains("\0lib\0"));
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
