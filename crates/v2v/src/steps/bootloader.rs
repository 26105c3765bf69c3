//! A boot loader that a BIOS can start, where the guest has none: Xen needed none.

use std::sync::Arc;

use guestfs::{FileType, GuestFs, GuestFsMut};
use imgcore::Image;

use crate::Result;
use crate::bootloader::{BootPlace, Configured, Grub, Menu, check_readable, install_files, is_found, starts_by_itself};
use crate::esp::Esp;
use crate::guest::cmdline::Rewrite;
use crate::guest::grub::{MENU_LST, Truth, truth};
use crate::guest::has_program;
use crate::guest::kernels::{self, Kernel, compare_versions};
use crate::layout::{Table, Volume};
use crate::source::Boot;
use crate::stack::{Layer, Mounted, holder};
use crate::step::{Context, Step};
use crate::steps::{bls, extlinux, grub_legacy, grub2, grub2_default};

pub(super) const STEP: Step = Step {
    name: "bootloader",
    about: "Xen started the kernel, or read the boot loader's configuration itself: a BIOS needs a boot loader on the disk",
    run,
};

const GRUB_CFG: &str = "/boot/grub/grub.cfg";

fn run(cx: &mut Context<'_>) -> Result<()> {
    let esp = cx.options.esp.as_ref();
    if cx.is_hvm() && esp.is_none() {
        cx.facts.boot_loader = "the guest's own, as on Xen".into();
        let by_uefi = cx.source.boot == Boot::Uefi;
        own_menu_starts(cx, &truth(&cx.fs, &cx.packages, by_uefi))?;
        return Ok(());
    }
    let (place, image) = match boot_place(cx)? {
        Found::Place(place, image) => (place, image),
        Found::NoTable(device) if esp.is_some() => {
            return Err(cx.fail(format!(
                "{device} has no partition table, so that UEFI cannot start from its disk: convert without '--layout keep'"
            )));
        }
        Found::NoTable(device) => {
            cx.facts.boot_loader = "none: the disk has no partition table".into();
            cx.warn(format!(
                "{device} has no partition table, so that no boot loader fits on its disk: the result does not start by itself; convert without \
                 '--layout keep'"
            ));
            return Ok(());
        }
    };
    if let Some(esp) = esp {
        return for_uefi(cx, esp, place, image);
    }
    let kept = cx.layout.disks.get(place.disk).and_then(|target| match target.table {
        Table::Keep { disk } => cx.source.disks.get(disk).and_then(|d| d.image.clone()).map(|image| (image, target)),
        _ => None,
    });
    if let Some((disk, _)) = &kept
        && let Some(loader) = starts_by_itself(disk.as_ref())?
    {
        cx.facts.boot_loader = format!("{loader} of the guest");
        cx.note(format!("the disk starts by itself: {loader}"));
        own_menu_starts(cx, &truth(&cx.fs, &cx.packages, false))?;
        return Ok(());
    }
    if let Some((image, start)) = &image {
        check_readable(image.as_ref(), *start).map_err(|e| cx.fail(e.to_string()))?;
    }
    let grub = match &cx.options.grub {
        Some(grub) => grub.clone(),
        None => Grub::find(None).map_err(|e| cx.fail(e.to_string()))?,
    };
    if let Some((disk, target)) = kept {
        let table = target.moved.as_ref().and_then(|plan| plan.table.as_ref());
        grub.check_room(disk.as_ref(), table, target.size, &place).map_err(|e| cx.fail(e.to_string()))?;
    }
    let menu = configure(cx, &grub, &place)?;
    cx.facts.boot_loader = format!("GRUB 2 on {}, {menu}", cx.layout.disks[place.disk].device);
    let note = cx.facts.boot_loader.clone();
    cx.note(note);
    cx.facts.boot_place = Some(place);
    cx.facts.grub = Some(grub);
    Ok(())
}

/// A loader on an ESP, which hands over to the same configuration.
fn for_uefi(cx: &mut Context<'_>, esp: &Esp, place: BootPlace, image: Option<(Arc<dyn Image>, u64)>) -> Result<()> {
    if esp.has_loader {
        cx.facts.boot_loader = format!("the one that the guest has on its ESP, {}", esp.device);
        own_menu_starts(cx, &truth(&cx.fs, &cx.packages, true))?;
        return has_efi(cx);
    }
    if let Some((image, start)) = &image {
        check_readable(image.as_ref(), *start).map_err(|e| cx.fail(e.to_string()))?;
    }
    let grub = Grub::find_efi().map_err(|e| cx.fail(e.to_string()))?;
    let menu = configure(cx, &grub, &place)?;
    has_efi(cx)?;
    cx.facts.loader = Some(grub.loader(&place).map_err(|e| cx.fail(e.to_string()))?);
    cx.facts.boot_loader = format!("GRUB 2 for UEFI on {}, {menu}", esp.device);
    let made = if esp.is_new { "a new ESP at the end of its disk, in a GPT" } else { "the guest's own ESP" };
    let note = format!("{} is {made}: GRUB 2 at \\EFI\\BOOT\\BOOTX64.EFI, {menu}", esp.device);
    cx.note(note);
    let fstab = cx.text("/etc/fstab")?;
    if esp.is_new && fstab.is_some_and(|t| t.contains("PARTUUID=")) {
        cx.warn("/etc/fstab names partitions by PARTUUID, which a new partition table changes: name them by UUID");
    }
    Ok(())
}

/// Not every kernel starts by UEFI.
fn has_efi(cx: &Context<'_>) -> Result<()> {
    if let Some(kernel) = &cx.facts.kernel
        && let Some(config) = cx.text(format!("/boot/config-{}", kernel.version))?
        && !config.lines().any(|l| l == "CONFIG_EFI=y")
    {
        return Err(cx.fail(format!("the kernel {} was built without CONFIG_EFI: convert without --firmware uefi", kernel.version)));
    }
    Ok(())
}

/// Where a menu of the guest's own is what starts, its default's kernel is the one that must find the disks. The steps before saw to it that the
/// default starts on the target.
fn own_menu_starts(cx: &mut Context<'_>, menu: &Truth) -> Result<()> {
    if let Some(kernel) = started_by(cx, menu)?
        && Some(&kernel) != cx.facts.kernel.as_ref()
    {
        cx.note(format!("{} starts: it is the default of the guest's own menu", kernel.image));
        cx.choose(kernel);
    }
    Ok(())
}

/// The kernel that a menu starts by default; the chosen one where that is not known, or was asked for.
fn started_by(cx: &Context<'_>, menu: &Truth) -> Result<Option<Kernel>> {
    let known = match menu {
        _ if cx.is_kernel_given() => None,
        Truth::GrubCfg(path) => grub2_default::default_kernel(cx, path)?,
        Truth::MenuLst(path) => grub_legacy::default_kernel(cx, path)?,
        Truth::Syslinux(path) => extlinux::default_kernel(cx, path)?,
        Truth::Nothing => None,
    };
    Ok(known.or_else(|| cx.facts.kernel.clone()))
}

/// Gives GRUB its files in the guest; says where its menu comes from.
fn configure(cx: &mut Context<'_>, grub: &Grub, place: &BootPlace) -> Result<&'static str> {
    let truth = truth(&cx.fs, &cx.packages, false);
    let syslinux = match &truth {
        Truth::Syslinux(path) => Some(path.clone()),
        _ => None,
    };
    let given = match &syslinux {
        Some(path) => extlinux::default_args(cx, path)?,
        None => match unmaintained_menu(cx)? {
            None => elsewhere(cx)?,
            given => given,
        },
    };
    // One that was set aside gave its options; beside a menu that is kept up to date it is a leftover.
    let menu_lst = match &truth {
        Truth::MenuLst(path) if given.is_none() => path.strip_prefix("/boot/grub/"),
        _ => None,
    };
    let stays = syslinux.filter(|_| extlinux::is_maintained(cx) || !is_chosen_found(cx));
    set_leftovers_aside(cx)?;
    let (root, options) = cmdline(cx, given)?;
    let kernel = cx.facts.kernel.clone();
    let unfit = kernels::find(&cx.fs, cx.options.target).into_iter().filter(|k| k.unfit.is_some()).map(|k| k.image);
    let unfit: Vec<String> = unfit.filter(|image| kernel.as_ref().is_none_or(|kernel| kernel.image != *image)).collect();
    let menu = Menu { root: &root, options: &options, kernel: kernel.as_ref(), unfit: &unfit, syslinux: stays.as_deref(), menu_lst };
    let configured = install_files(&mut cx.fs, grub, place, &menu)?;
    if configured == Configured::GrubCfg {
        cx.edit(GRUB_CFG, with_timeout)?;
    }
    match configured {
        Configured::FindsKernels => {}
        Configured::GrubCfg => own_menu_starts(cx, &Truth::GrubCfg(GRUB_CFG.into()))?,
        Configured::MenuLst | Configured::Syslinux => own_menu_starts(cx, &truth)?,
    }
    Ok(match configured {
        Configured::GrubCfg => "with the guest's own grub.cfg",
        Configured::MenuLst => "which reads the guest's own menu.lst",
        Configured::Syslinux => "which reads the guest's own extlinux.conf",
        Configured::FindsKernels => "with a grub.cfg that finds the guest's kernels at each start",
    })
}

/// A menu that says nothing of it waits for a key for ever: nobody saw that where Xen read the file.
fn with_timeout(text: &str) -> String {
    if text.contains("timeout") { text.into() } else { format!("set timeout=5\n{text}") }
}

/// Where the guest can be started from.
enum Found {
    /// Here, with the filesystem as it is on the source: an image, and its first byte there.
    Place(BootPlace, Option<(Arc<dyn Image>, u64)>),
    /// On a disk without a partition table, which has this name.
    NoTable(String),
}

fn boot_place(cx: &Context<'_>) -> Result<Found> {
    let mount = holder(&cx.mounts, "/boot");
    if let Some(mount) = mount.filter(|m| !m.layers.is_empty()) {
        return on_layers(cx, mount);
    }
    let separate = cx.has_own_boot()?;
    let volume = match mount {
        Some(mount) => cx.layout.volumes().find(|v| mount.bottom == [(v.disk, v.source_offset)]).cloned(),
        None => cx.mounted("/boot")?.or_else(|| only_filesystem(cx)),
    };
    let Some(volume) = volume else {
        return Err(cx.fail(
            "/etc/fstab does not tell which volume the system starts from: a boot loader cannot be placed; put /boot on a partition of its own first",
        ));
    };
    if volume.partition.is_none() {
        return Ok(Found::NoTable(volume.target_device));
    }
    let image = cx.source.disks.get(volume.disk).and_then(|d| d.image.clone()).map(|image| (image, volume.source_offset));
    Ok(Found::Place(BootPlace::new(cx.layout, &volume, boot_dir(cx, mount, separate)?)?, image))
}

/// `/boot` on the filesystem that holds it.
fn boot_dir(cx: &Context<'_>, mount: Option<&Mounted>, separate: bool) -> Result<String> {
    let begins_at = match mount.map(|m| &m.begins_at) {
        None => "",
        Some(Ok(begins_at)) => begins_at,
        Some(Err(e)) => return Err(cx.fail(format!("where /boot lies on its filesystem is not known, and so GRUB cannot be told: {e}"))),
    };
    Ok(format!("{begins_at}{}", if separate { "" } else { "/boot" }))
}

/// The place of a /boot on a logical volume or an array: GRUB puts them together itself, and needs a disk to start from.
fn on_layers(cx: &Context<'_>, mount: &Mounted) -> Result<Found> {
    let aside = "put /boot on a partition of its own first";
    if mount.layers.contains(&Layer::Encrypted) {
        return Err(
            cx.fail(format!("/boot lies on {}, which is encrypted: GRUB is not installed to start from there; {aside}", mount.device))
        );
    }
    let image =
        mount.image.as_ref().map_err(|e| cx.fail(format!("GRUB cannot read {}, on which /boot lies ({e}); {aside}", mount.device)))?;
    let volumes = || cx.layout.volumes().filter(|v| mount.bottom.contains(&(v.disk, v.source_offset)));
    let disk_of = |v: &Volume| cx.layout.disks.iter().position(|d| d.volumes.iter().any(|w| w.target_device == v.target_device));
    let Some(disk) = volumes().filter(|v| v.partition.is_some()).filter_map(disk_of).min() else {
        return Ok(Found::NoTable(volumes().next().map_or(mount.device.clone(), |v| v.target_device.clone())));
    };
    let place = BootPlace {
        disk,
        partition: None,
        layers: mount.layers.clone(),
        filesystem: mount.filesystem.clone(),
        uuid: mount.uuid.clone(),
        boot_dir: boot_dir(cx, Some(mount), mount.path == "/boot")?,
    };
    Ok(Found::Place(place, Some((image.clone(), 0))))
}

/// The one volume with a filesystem, for a guest whose fstab does not name its root.
fn only_filesystem(cx: &Context<'_>) -> Option<Volume> {
    let mut found = cx
        .layout
        .volumes()
        .filter(|v| !v.recreate && (v.filesystem.starts_with("ext") || v.filesystem == "xfs" || v.filesystem == "btrfs"));
    let first = found.next()?;
    found.next().is_none().then(|| first.clone())
}

/// A grub.cfg beside the menu.lst that the guest really uses would win: it is kept under another name.
fn set_leftovers_aside(cx: &mut Context<'_>) -> Result<()> {
    if matches!(truth(&cx.fs, &cx.packages, false), Truth::MenuLst(_)) && cx.fs.lstat(GRUB_CFG.as_bytes()).is_ok() {
        let names = std::iter::once(format!("{GRUB_CFG}.xen")).chain((1..100).map(|n| format!("{GRUB_CFG}.xen.{n}")));
        let free = names.into_iter().find(|name| cx.fs.lstat(name.as_bytes()).is_err());
        let Some(kept) = free else {
            return Err(cx.fail(format!("{GRUB_CFG} is in the way, and a hundred copies of it are kept: remove some")));
        };
        cx.fs.rename(GRUB_CFG.as_bytes(), kept.as_bytes())?;
        cx.note(format!("{GRUB_CFG} is a leftover beside menu.lst: kept as {kept}"));
    }
    Ok(())
}

/// A menu.lst that nothing in the guest keeps up to date (Debian 13 has no grub-legacy) would start the kernel of today until that is removed: it
/// is kept under another name. Returns the command line of its default entry.
///
/// One whose default is not the newest kernel was made so by a person, and stays; so does one that starts what no name leads to.
fn unmaintained_menu(cx: &mut Context<'_>) -> Result<Option<String>> {
    let truth = truth(&cx.fs, &cx.packages, false);
    let Truth::MenuLst(path) = &truth else { return Ok(None) };
    // Debian's, Red Hat's, SUSE's.
    let updater = ["update-grub", "grubby", "update-bootloader"].iter().any(|program| has_program(&cx.fs, program));
    let newest = cx.facts.kernels.iter().max_by(|a, b| compare_versions(&a.version, &b.version));
    let Some(args) = grub_legacy::default_args(cx, path)? else { return Ok(None) };
    let starts = started_by(cx, &truth)?;
    if updater || starts.as_ref() != newest || !starts.as_ref().is_none_or(is_found) {
        return Ok(None);
    }
    let kept = set_aside(cx, path)?;
    cx.note(format!(
        "nothing in the guest keeps {path} up to date: it is kept as {kept}, and its default entry's options are used for every kernel"
    ));
    Ok(Some(args))
}

/// Sets a menu aside by all names that it has in its folder; returns what it is called then.
fn set_aside(cx: &mut Context<'_>, path: &str) -> Result<String> {
    let file = |name: &str| cx.fs.stat(name.as_bytes()).ok().map(|stat| (stat.dev, stat.ino));
    let folder = |name: &str| name.rsplit_once('/').map(|(folder, _)| folder.to_string());
    let is_it = |name: &&str| file(name) == file(path) && folder(name) == folder(path);
    let names: Vec<&str> = MENU_LST.iter().copied().filter(is_it).collect();
    let is_link = |name: &&str| cx.fs.lstat(name.as_bytes()).is_ok_and(|stat| stat.kind == FileType::Symlink);
    // A link to the other name would lead nowhere.
    let (links, files): (Vec<&str>, Vec<&str>) = names.into_iter().partition(is_link);
    let (gone, kept) = if files.is_empty() { (files, links) } else { (links, files) };
    for name in gone {
        cx.fs.remove(name.as_bytes())?;
    }
    for name in &kept {
        cx.fs.rename(name.as_bytes(), format!("{name}.xen").as_bytes())?;
    }
    Ok(format!("{}.xen", kept.first().unwrap_or(&path)))
}

/// Whether the names of the chosen kernel and its initrd tell what belongs together.
fn is_chosen_found(cx: &Context<'_>) -> bool {
    cx.facts.kernel.as_ref().is_none_or(is_found)
}

/// The command line of the default entry in a menu that GRUB as installed here does not read: Red Hat's and SUSE's is in /boot/grub2, and entries
/// that are files of their own need a GRUB that was made for them.
fn elsewhere(cx: &Context<'_>) -> Result<Option<String>> {
    match truth(&cx.fs, &cx.packages, false) {
        Truth::GrubCfg(path) if path != GRUB_CFG => match bls::default_args(cx)? {
            None => grub2_default::default_args(cx, &path),
            args => Ok(args),
        },
        _ => Ok(None),
    }
}

/// The root and the other words of the command line for a guest without a configuration of its own: what `given` or Xen's configuration said.
fn cmdline(cx: &Context<'_>, given: Option<String>) -> Result<(String, String)> {
    let by_name = cx.facts.kernel.as_ref().is_some_and(|kernel| grub2::initrd_of(cx, kernel).is_none());
    let spec = cx.root_spec()?;
    let spec = match (by_name, cx.mounted("/")?) {
        (true, Some(volume)) => Some(format!("/dev/{}", volume.target_device)),
        _ => spec,
    };
    let mut given = match (given, &cx.source.boot) {
        (Some(given), _) => given,
        (None, Boot::Direct { cmdline, .. }) if !cmdline.is_empty() => cmdline.clone(),
        _ => defaults(cx)?,
    };
    // The default subvolume needs no words.
    let root = holder(&cx.mounts, "/").filter(|root| !root.selection.is_empty() && !given.contains("rootflags="));
    if let Some(root) = root {
        given = format!("{given} rootflags={}", root.selection);
    }
    let line = Rewrite { root: spec.as_deref(), by_name, ..cx.rewrite() }.whole(&given);
    let (root, rest): (Vec<_>, Vec<_>) = line.split_ascii_whitespace().partition(|w| w.starts_with("root="));
    let root = root.last().and_then(|w| w.strip_prefix("root=")).map(String::from).or(spec);
    let Some(root) = root else {
        return Err(cx.fail("neither /etc/fstab nor the source says what the root filesystem is"));
    };
    // The configuration says `ro` itself.
    Ok((root, rest.into_iter().filter(|w| *w != "ro").collect::<Vec<_>>().join(" ")))
}

/// The words that the guest's own `grub-mkconfig` would give every kernel.
fn defaults(cx: &Context<'_>) -> Result<String> {
    let Some(text) = cx.text("/etc/default/grub")? else { return Ok(String::new()) };
    let value = |name: &str| {
        let mut values = text.lines().filter_map(|l| l.trim_start().strip_prefix(name)?.strip_prefix('='));
        values.next_back().map_or("", |v| v.trim().trim_matches(['"', '\'']))
    };
    let plain = |c: char| !matches!(c, '$' | '`' | '\\');
    let words = [value("GRUB_CMDLINE_LINUX"), value("GRUB_CMDLINE_LINUX_DEFAULT")].join(" ");
    Ok(words.split_ascii_whitespace().filter(|w| w.chars().all(plain)).collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use guestfs::Ext;

    use super::*;
    use crate::step::Options;
    use crate::testing::{MemFs, ROOT_UUID, bzimage, run_step_with};

    /// A folder that looks like the host's GRUB.
    fn options(folder: &std::path::Path) -> Options {
        for file in ["boot.img", "normal.mod", "moddep.lst"] {
            std::fs::write(folder.join(file), file).unwrap();
        }
        Options { grub: Some(Grub::find(Some(folder)).unwrap()), ..Options::default() }
    }

    fn run_on(base: &MemFs, check: impl FnOnce(&mut Context<'_>)) {
        let folder = tempfile::tempdir().unwrap();
        run_step_with(base, &options(folder.path()), &super::super::kernel::STEP, |cx| {
            cx.run(&STEP).unwrap();
            check(cx);
        });
    }

    fn guest() -> MemFs {
        MemFs::new()
            .file("/etc/fstab", "/dev/xvda2 / ext4 defaults 0 1\n")
            .file("/boot/vmlinuz-6.1", bzimage("6.1"))
            .file("/boot/initrd.img-6.1", "x")
    }

    #[test]
    fn a_menu_lst_is_read_by_grub2() {
        let base = guest().file("/boot/grub/menu.lst", "title x\nkernel /boot/vmlinuz-6.1\n").file("/usr/sbin/update-grub", "");
        run_on(&base, |cx| {
            assert!(cx.show(GRUB_CFG).contains("legacy_configfile /boot/grub/menu.lst"));
            assert!(cx.fs.exists(b"/boot/grub/i386-pc/normal.mod"));
            let place = cx.facts.boot_place.as_ref().unwrap();
            assert_eq!((place.disk, place.partition, place.boot_dir.as_str()), (0, Some(2), "/boot"));
        });
        let with_leftover = base
            .file(GRUB_CFG, "menuentry old {\nlinux /vmlinuz\n}\n")
            .file("/var/lib/dpkg/status", "Package: grub-legacy\nStatus: install ok installed\nVersion: 0.97\n");
        run_on(&with_leftover, |cx| {
            assert!(cx.show(GRUB_CFG).contains("legacy_configfile"));
            assert!(cx.show("/boot/grub/grub.cfg.xen").contains("menuentry old"));
        });
    }

    #[test]
    fn a_menu_without_a_timeout_does_not_wait_for_ever() {
        let menu = |head: &str| format!("{head}menuentry 'x' {{\n\tlinux /boot/vmlinuz-6.1\n}}\n");
        for (old, new) in [("", "set timeout=5\n"), ("set timeout=-1\n", "set timeout=-1\n")] {
            run_on(&guest().file(GRUB_CFG, menu(old)), |cx| assert_eq!(cx.show(GRUB_CFG), menu(new)));
        }
    }

    #[test]
    fn extlinux_conf_is_read_by_grub2_where_a_tool_updates_it() {
        let conf = "default l0\nlabel l0\n\tlinux /boot/vmlinuz-6.1\n\tappend root=/dev/xvda2 ro my.option=1\n";
        let base = guest().file("/boot/extlinux/extlinux.conf", conf);
        run_on(&base, |cx| {
            assert!(
                cx.show(GRUB_CFG).contains(" ro my.option=1 console=tty0"),
                "nothing updates it: its options are those of every kernel"
            );
            assert!(cx.facts.boot_loader.contains("finds the guest's kernels"));
        });
        run_on(&base.file("/usr/sbin/u-boot-update", ""), |cx| {
            assert!(cx.show(GRUB_CFG).contains("syslinux_configfile -s /boot/extlinux/extlinux.conf"));
        });
    }

    #[test]
    fn a_menu_lst_that_nobody_updates_gives_its_options() {
        let menu = "default 0\ntitle x\nroot (hd0,0)\nkernel /boot/vmlinuz-6.1 root=/dev/xvda2 ro my.option=1 console=hvc0\ninitrd /boot/initrd.img-6.1\n";
        let base = guest().file("/boot/grub/menu.lst", menu);
        run_on(&base, |cx| {
            assert!(cx.show(GRUB_CFG).contains("my.option=1 console=tty0"));
            assert!(cx.fs.exists(b"/boot/grub/menu.lst.xen") && !cx.fs.exists(b"/boot/grub/menu.lst"));
        });
        // As Gentoo has it.
        let linked = guest().file("/boot/grub/grub.conf", menu).link_to("/boot/grub/menu.lst", "grub.conf");
        run_on(&linked, |cx| {
            assert!(cx.show(GRUB_CFG).contains("my.option=1 console=tty0"));
            assert_eq!(cx.show("/boot/grub/grub.conf.xen"), menu);
            let gone = ["menu.lst", "grub.conf", "menu.lst.xen"];
            assert!(gone.iter().all(|name| cx.fs.lstat(format!("/boot/grub/{name}").as_bytes()).is_err()));
            assert!(
                cx.reports[1].notes.iter().any(|note| note.contains("/boot/grub/menu.lst") && note.contains("/boot/grub/grub.conf.xen"))
            );
        });
        let pinned = base.file("/boot/vmlinuz-6.2", bzimage("6.2"));
        let folder = tempfile::tempdir().unwrap();
        run_step_with(&pinned, &options(folder.path()), &super::super::kernel::STEP, |cx| {
            cx.run(&grub_legacy::STEP).unwrap();
            cx.run(&STEP).unwrap();
            assert!(cx.show(GRUB_CFG).contains("legacy_configfile"), "the default is an older kernel on purpose");
        });
    }

    #[test]
    fn a_menu_of_kernels_with_names_of_their_own_stays() {
        let menu = "title x\nkernel /boot/vmlinuz-huge root=/dev/xvda2\ninitrd /boot/initrd.gz\n";
        let base = MemFs::new()
            .file("/etc/fstab", "/dev/xvda2 / ext4 defaults 0 1\n")
            .file("/boot/vmlinuz-huge", bzimage("6.1"))
            .file("/boot/initrd.gz", "x");
        run_on(&base.clone().file("/boot/grub/grub.conf", menu), |cx| {
            assert!(cx.show(GRUB_CFG).contains("legacy_configfile /boot/grub/grub.conf"));
            assert_eq!(cx.facts.kernel.as_ref().and_then(|k| k.initrd.as_deref()), Some("/boot/initrd.gz"));
        });
        let conf = "label x\n kernel vmlinuz-huge\n append initrd=initrd.gz root=/dev/xvda2\n";
        run_on(&base.clone().file("/boot/extlinux.conf", conf), |cx| {
            assert!(cx.show(GRUB_CFG).contains("syslinux_configfile -s /boot/extlinux.conf"));
        });
        // No menu: the kernel is named in ours.
        let bare = base.file("/boot/vmlinuz", bzimage("6.2"));
        run_on(&bare, |cx| assert!(cx.show(GRUB_CFG).contains("\nadd /boot/vmlinuz 6.2 /boot/initrd.gz\n"), "{}", cx.show(GRUB_CFG)));
    }

    #[test]
    fn our_menu_starts_the_chosen_kernel() {
        let with = |kernels: &[(&str, Vec<u8>)]| {
            let base = MemFs::new().file("/etc/fstab", "/dev/xvda2 / ext4 defaults 0 1\n");
            kernels.iter().fold(base, |fs, (name, image)| {
                fs.file(&format!("/boot/vmlinuz-{name}"), image).file(&format!("/boot/initramfs-{name}.img"), "x")
            })
        };
        let arch = with(&[("linux", bzimage("6.9.1-arch1-1")), ("linux-lts", bzimage("6.6.30-1-lts"))]);
        let named = |name: &str| {
            format!(
                "\nfind_initrd {name}\nif [ -f /boot/vmlinuz-{name} ]; then\nadd /boot/vmlinuz-{name} {name} $initrd\nfi\nif [ -n \"$best\""
            )
        };
        run_on(&arch, |cx| assert!(cx.show(GRUB_CFG).contains(&named("linux")), "{}", cx.show(GRUB_CFG)));
        // The newer one has no driver: it is passed over, and later ones are not.
        let unfit = with(&[("6.1", bzimage("6.1")), ("6.2", bzimage("6.2"))]).file("/boot/config-6.2", "CONFIG_VIRTIO_PCI=y\n");
        run_on(&unfit, |cx| {
            let cfg = cx.show(GRUB_CFG);
            assert!(cfg.contains("\n  if [ \"$kernel\" = /boot/vmlinuz-6.2 ]; then continue; fi\n") && !cfg.contains("\nadd "), "{cfg}");
        });
        // What is first by itself stays so by itself.
        for other in ["2.6.26-2-xen-amd64", "2.6.26-2-amd64.debug", "2.6.26-1-amd64"] {
            let base = with(&[("2.6.26-2-amd64", bzimage("2.6.26-2-amd64")), (other, bzimage(other))]);
            let base = base.file("/boot/config-2.6.26-2-xen-amd64", "CONFIG_X86_64_XEN=y\n");
            run_on(&base, |cx| {
                assert_eq!(cx.facts.kernel.as_ref().unwrap().version, "2.6.26-2-amd64");
                assert!(!cx.show(GRUB_CFG).contains("\nadd ") && !cx.show(GRUB_CFG).contains("\"$kernel\" = /"), "{other}");
            });
        }
    }

    #[test]
    fn a_menu_in_grub2s_folder_gives_its_options() {
        let cfg = "set default=\"0\"\nmenuentry 'SLES' {\n\tlinux /boot/vmlinuz-6.1 root=/dev/xvda2 my.option=1 console=hvc0\n}\n";
        run_on(&guest().file("/boot/grub2/grub.cfg", cfg), |cx| {
            assert!(cx.show(GRUB_CFG).contains(" ro my.option=1 console=tty0"), "{}", cx.show(GRUB_CFG));
        });
        let entry = "title x\nlinux /boot/vmlinuz-6.1\noptions root=/dev/xvda2 ro my.option=2 $tuned_params\n";
        let base = guest().file("/boot/grub2/grub.cfg", "blscfg\n").file("/boot/loader/entries/1-6.1.conf", entry);
        run_on(&base, |cx| assert!(cx.show(GRUB_CFG).contains(" ro my.option=2 console=tty0"), "{}", cx.show(GRUB_CFG)));
    }

    /// EL 6 that became 7, SLES 11 that became 12.
    #[test]
    fn a_menu_lst_that_an_upgrade_left_is_no_menu() {
        let leftover = "default 1\ntitle new\nkernel /boot/vmlinuz-6.2\ntitle old\nkernel /boot/vmlinuz-6.1 old.option=1\n";
        let cfg = "set default=\"0\"\nmenuentry 'x' {\n\tlinux /boot/vmlinuz-6.2 root=/dev/xvda2 my.option=1\n}\n";
        for name in ["/boot/grub/menu.lst", "/boot/grub/grub.conf"] {
            let (version, notes) = chosen(MemFs::new(), &[(name, leftover), ("/boot/grub2/grub.cfg", cfg)], false);
            assert_eq!(version, "6.2");
            assert!(notes.iter().any(|note| note.contains("finds the guest's kernels")), "{notes:?}");
            let base = guest().file(name, leftover).file("/boot/grub2/grub.cfg", cfg.replace("6.2", "6.1"));
            run_on(&base, |cx| assert!(cx.show(GRUB_CFG).contains(" ro my.option=1 console=tty0"), "{}", cx.show(GRUB_CFG)));
        }
    }

    /// A guest of two kernels that a menu of its own starts, which is HVM or has this menu read by our GRUB; the kernel that is chosen.
    fn chosen(base: MemFs, menu: &[(&str, &str)], hvm: bool) -> (String, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        let options = options(folder.path());
        let (mut source, layout) = crate::testing::xen_tools_guest();
        if hvm {
            let has_esp = menu.iter().any(|(path, _)| path.starts_with("/boot/efi/"));
            source.boot = if has_esp { Boot::Uefi } else { Boot::Bios };
        }
        let base = ["6.1", "6.2"].into_iter().fold(base, |fs, version| {
            let fs = fs.file(&format!("/boot/vmlinuz-{version}"), bzimage(version));
            fs.file(&format!("/boot/initrd.img-{version}"), "x")
        });
        let base = base.file("/etc/fstab", "/dev/xvda2 / ext4 defaults 0 1\n");
        let base = menu.iter().fold(base, |fs, (path, text)| fs.file(path, text));
        let mut cx = Context::new(&source, &layout, &options, crate::staged::Staged::new(&base)).unwrap();
        let steps = [&super::super::kernel::STEP, &grub_legacy::STEP, &grub2_default::STEP, &bls::STEP, &extlinux::STEP, &STEP];
        steps.into_iter().for_each(|step| cx.run(step).unwrap());
        let kernel = cx.facts.kernel.clone().unwrap();
        assert_eq!(cx.facts.kernels.first(), Some(&kernel));
        assert_eq!(cx.facts.kernels.len(), 2);
        (kernel.version, cx.reports.pop().unwrap().notes)
    }

    #[test]
    fn the_kernel_that_the_guests_own_menu_starts_is_the_chosen_one() {
        let settings = "# GRUB Environment Block\nsaved_entry=1-6.1\n";
        let block = format!("{settings}{}", "#".repeat(1024 - settings.len()));
        let cfg = "set default=\"@\"\nmenuentry 'new' {\n\tlinux /boot/vmlinuz-6.2\n}\nmenuentry 'old' --id 1-6.1 {\n\tlinux /boot/vmlinuz-6.1\n}\n";
        let (first, second, remembered) = (cfg.replace('@', "0"), cfg.replace('@', "1"), cfg.replace('@', "${saved_entry}"));
        let conf = "default @\nlabel new\n\tlinux /boot/vmlinuz-6.2\nlabel old\n\tlinux /boot/vmlinuz-6.1\n".replace('@', "old");
        let menu = "default 1\ntitle new\nkernel /boot/vmlinuz-6.2\ntitle old\nkernel /boot/vmlinuz-6.1\n";
        let (new, old) = ("title new\nlinux /boot/vmlinuz-6.2\n", "title old\nlinux /boot/vmlinuz-6.1\n");
        let entries = [("/boot/loader/entries/1-6.2.conf", new), ("/boot/loader/entries/1-6.1.conf", old)];
        let bls = |setting| [&[("/boot/grub2/grub.cfg", setting), ("/boot/grub2/grubenv", block.as_str())][..], &entries].concat();
        let setting = "set default=\"${saved_entry}\"\nblscfg\n";
        // The one beside the menu is what GRUB reads.
        let (other, esps, esps_block) = (block.replace("1-6.1", "1-6.2"), "/boot/efi/EFI/centos/grub.cfg", "/boot/efi/EFI/centos/grubenv");
        type Files<'a> = Vec<(&'a str, &'a str)>;
        let cases: [(Files<'_>, bool, &str); 14] = [
            (vec![(esps, &second), ("/boot/grub2/grub.cfg", &first)], true, "6.1"),
            (vec![("/boot/grub2/grubenv", &other), (esps, &remembered), (esps_block, &block)], true, "6.1"),
            (vec![(esps, setting), (esps_block, &block), entries[0], entries[1]], true, "6.1"),
            (vec![(GRUB_CFG, &first)], true, "6.2"),
            (vec![(GRUB_CFG, &second)], true, "6.1"),
            (vec![(GRUB_CFG, &second)], false, "6.1"),
            (vec![("/boot/grub2/grub.cfg", &remembered), ("/boot/grub2/grubenv", &block)], true, "6.1"),
            (bls(setting), true, "6.1"),
            (bls("set default=0\nblscfg\n"), true, "6.2"),
            // Ours is what starts, and finds the newest.
            (bls(setting), false, "6.2"),
            (vec![("/boot/extlinux/extlinux.conf", &conf)], true, "6.1"),
            (vec![("/boot/extlinux/extlinux.conf", &conf), ("/usr/sbin/u-boot-update", "")], false, "6.1"),
            (vec![("/boot/grub/menu.lst", menu)], true, "6.1"),
            (vec![("/boot/grub/menu.lst", menu)], false, "6.1"),
        ];
        for (menu, hvm, expected) in cases {
            let (version, notes) = chosen(MemFs::new(), &menu, hvm);
            assert_eq!(version, expected, "{menu:?} {hvm}");
            let told = notes.iter().any(|n| n == "/boot/vmlinuz-6.1 starts: it is the default of the guest's own menu");
            assert_eq!(told, expected == "6.1", "{notes:?}");
        }
    }

    #[test]
    fn a_guest_without_any_configuration_gets_one_with_xens_command_line() {
        let folder = tempfile::tempdir().unwrap();
        let options = options(folder.path());
        let (mut source, layout) = crate::testing::xen_tools_guest();
        source.boot = Boot::Direct { kernel: None, ramdisk: None, cmdline: "root=/dev/xvda2 ro elevator=noop".into(), pvh: false };
        let base = guest();
        let mut cx = Context::new(&source, &layout, &options, crate::staged::Staged::new(&base)).unwrap();
        cx.run(&super::super::kernel::STEP).unwrap();
        cx.run(&STEP).unwrap();
        assert_eq!(cmdline(&cx, None).unwrap(), (format!("UUID={ROOT_UUID}"), "elevator=noop console=tty0 console=ttyS0,115200n8".into()));
        assert!(cx.show(GRUB_CFG).contains("elevator=noop"));
        assert!(cx.facts.boot_loader.contains("finds the guest's kernels"));
    }

    #[test]
    fn a_root_that_no_bios_reaches_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let options = options(folder.path());
        let (source, mut layout) = crate::testing::xen_tools_guest();
        for volume in layout.disks.iter_mut().flat_map(|d| &mut d.volumes) {
            volume.filesystem = "LVM2_member".into();
        }
        let base = MemFs::new().file("/etc/fstab", "/dev/mapper/vg-root / ext4 defaults 0 1\n");
        let mut cx = Context::new(&source, &layout, &options, crate::staged::Staged::new(&base)).unwrap();
        let error = cx.run(&STEP).unwrap_err().to_string();
        assert!(error.contains("does not tell which volume the system starts from"), "{error}");
    }
}
