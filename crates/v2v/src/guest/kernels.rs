//! A guest's kernels: which there are, which of them start on the target, and which is the best.

use std::cmp::Ordering;

use guestfs::{Ext, FileType, GuestFs};

use super::drivers::{Drivers, config_symbol};
use super::menus::{self, Named};
use crate::target::Target;

/// A kernel configuration larger than this is none.
const CONFIG_LIMIT: u64 = 4 << 20;

/// One kernel of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Its release, as `uname -r` says and /lib/modules has it: `6.1.0-13-amd64`.
    pub version: String,
    /// The image, as a path in the guest: `/boot/vmlinuz-6.1.0-13-amd64`.
    pub image: String,
    /// The initrd, likewise.
    pub initrd: Option<String>,
    /// Why it can't start on the target.
    pub unfit: Option<String>,
    /// It is not there yet: a package that will be installed brings it, with its initrd.
    pub pending: bool,
}

/// How kernels' names begin. A release follows, or with Alpine and Arch the name of a package: `vmlinuz-virt`, `vmlinuz-linux-lts`.
const NAMES: [&str; 4] = ["vmlinuz-", "vmlinux-", "kernel-", "bzImage-"];
/// What those are called that have no release in their names, and their initrds.
const BARE: ([&str; 3], [&str; 5]) =
    (["vmlinuz", "bzImage", "kernel"], ["initrd", "initrd.img", "initrd.gz", "initramfs", "initramfs.img"]);
/// How the name of a signed copy ends, which the menus of Ubuntu 12.04 to 17.10 start by UEFI: it has no release, modules or initrd of its own.
const SIGNED: &str = ".efi.signed";
/// The first kernel whose bus has virtio's devices; the disk's driver came with the one before. Distributions gave it to older ones as modules.
pub const VIRTIO_SINCE: &str = "2.6.25";
/// The release in a bzImage's header lies before this.
const HEAD: usize = 0x1_0300;

/// All kernels in /boot, the best first: those that start on the target, release before debug builds, newer before older.
///
/// They are known by their names, or by a boot menu that names them.
pub fn find(fs: &dyn GuestFs, target: Target) -> Vec<Kernel> {
    let menus = menus::named(fs);
    let mut images: Vec<String> = Vec::new();
    for entry in fs.read_dir(b"/boot").unwrap_or_default() {
        let Ok(name) = String::from_utf8(entry.name) else { continue };
        let is_kernels = BARE.0.contains(&name.as_str()) || NAMES.iter().any(|p| name.strip_prefix(p).is_some_and(|v| !is_leftover(v)));
        images.extend(is_kernels.then(|| format!("/boot/{name}")));
    }
    for entry in &menus {
        if !images.contains(&entry.image) {
            images.push(entry.image.clone());
        }
    }
    let mut kernels: Vec<Kernel> = images.into_iter().filter_map(|image| kernel(fs, target, image, &menus)).collect();
    kernels.sort_by(|a, b| {
        let rank = |k: &Kernel| (k.unfit.is_some(), is_debug(&k.version), !has_modules(fs, &k.version));
        // Of a kernel's copies the one with an initrd, and with a name that later ones will not take.
        let copy = |k: &Kernel| (k.initrd.is_none(), !k.image.contains(&k.version), k.image.ends_with(SIGNED));
        rank(a).cmp(&rank(b)).then_with(|| compare_versions(&b.version, &a.version)).then_with(|| copy(a).cmp(&copy(b)))
    });
    kernels
}

/// The kernel that an image is.
fn kernel(fs: &dyn GuestFs, target: Target, image: String, menus: &[Named]) -> Option<Kernel> {
    let kind = fs.lstat(image.as_bytes()).ok()?.kind;
    if !matches!(kind, FileType::Regular | FileType::Symlink) || !fs.is_file(image.as_bytes()) {
        return None;
    }
    let name = image.strip_prefix("/boot/")?;
    let suffix = NAMES.iter().find_map(|p| name.strip_prefix(p));
    let (version, initrd) = match suffix.filter(|suffix| suffix.starts_with(|c: char| c.is_ascii_digit())) {
        Some(version) => {
            let version = version.strip_suffix(SIGNED).unwrap_or(version);
            (version.to_string(), initrd_of(fs, version))
        }
        None => {
            // Links are other names of kernels that are found anyway.
            let version = (kind == FileType::Regular).then(|| version_of(fs, &image)).flatten()?;
            (version, suffix.and_then(|suffix| initrd_by_name(fs, suffix)))
        }
    };
    let in_menu = || menus.iter().find(|entry| entry.image == image)?.initrd.clone();
    let bare = || BARE.1.iter().map(|n| format!("/boot/{n}")).find(|path| fs.is_file(path.as_bytes()));
    let initrd = initrd.or_else(in_menu).or_else(|| if BARE.0.contains(&name) { bare() } else { None });
    Some(Kernel { unfit: why_unfit(fs, target, &version, &image), initrd, version, image, pending: false })
}

fn is_leftover(version: &str) -> bool {
    [".old", ".bak", "~", ".dpkg-bak", ".dpkg-new", ".dpkg-tmp"].iter().any(|end| version.ends_with(end))
}

fn is_debug(version: &str) -> bool {
    ["-dbg", "debug", "-rescue"].iter().any(|part| version.contains(part))
}

/// Whether the guest has modules for this release.
pub fn has_modules(fs: &dyn GuestFs, version: &str) -> bool {
    fs.is_dir(format!("/lib/modules/{version}").as_bytes())
}

/// The initrd of a release, by the names that distributions use.
pub fn initrd_of(fs: &dyn GuestFs, version: &str) -> Option<String> {
    let names =
        [format!("initrd.img-{version}"), format!("initramfs-{version}.img"), format!("initrd-{version}"), format!("initrd-{version}.img")];
    names.into_iter().map(|n| format!("/boot/{n}")).find(|p| fs.is_file(p.as_bytes()))
}

/// The initrd of a kernel that is called by its package: `initramfs-virt`, `initramfs-linux.img`.
fn initrd_by_name(fs: &dyn GuestFs, package: &str) -> Option<String> {
    let names = [format!("/boot/initramfs-{package}"), format!("/boot/initramfs-{package}.img")];
    names.into_iter().find(|path| fs.is_file(path.as_bytes()))
}

/// The release that an image says it is.
fn version_of(fs: &dyn GuestFs, image: &str) -> Option<String> {
    let mut head = vec![0; HEAD];
    let mut len = 0;
    while len < HEAD {
        match fs.read_at(image.as_bytes(), len as u64, &mut head[len..]).ok()? {
            0 => break,
            n => len += n,
        }
    }
    bzimage_version(&head[..len])
}

/// Why a kernel can't start on the target; `None` when it can as far as can be seen.
fn why_unfit(fs: &dyn GuestFs, target: Target, version: &str, image: &str) -> Option<String> {
    let mut head = vec![0; 0x206];
    if fs.read_at(image.as_bytes(), 0, &mut head).ok() == Some(head.len()) && !is_bzimage(&head) {
        return Some("only Xen can start it: it has no boot header".into());
    }
    let config = fs.read(format!("/boot/config-{version}").as_bytes(), CONFIG_LIMIT).ok();
    if let Some(config) = config {
        let config = String::from_utf8_lossy(&config);
        let set = |name: &str| config.lines().any(|l| l.strip_prefix(name).is_some_and(|v| v == "=y" || v == "=m"));
        if let Some(xen) = ["CONFIG_X86_XEN", "CONFIG_X86_64_XEN"].into_iter().find(|c| set(c)) {
            return Some(format!("built for Xen only ({xen} in /boot/config-{version})"));
        }
        // What the best way lacks is what the message names.
        let missing = |d: &Drivers| d.disk.iter().map(|m| config_symbol(m)).find(|c| !set(c));
        let missing: Option<Vec<String>> = target.drivers().iter().map(missing).collect();
        let missing = missing.and_then(|m| m.into_iter().next());
        return missing.map(|m| format!("it has no driver for {}'s disks ({m} is not set in /boot/config-{version})", target.name()));
    }
    if is_xens(version) {
        return Some("its name says that it is for Xen only".into());
    }
    let best = &target.drivers()[0];
    let is_driven = || target.drivers().iter().any(|d| has_module(fs, version, d.block()));
    (has_modules(fs, version) && !is_driven()).then(|| format!("neither its modules nor its built-ins have {}", best.block()))
}

/// Whether a release's name says that it was built for Xen only.
pub fn is_xens(version: &str) -> bool {
    // RHEL 4 and 5, Debian 3.1 and XenSource's own, SUSE and Fedora.
    ["el5xen", "ELxenU", "-xenU", "-xen0"].iter().any(|n| version.contains(n))
        || version.ends_with("-xen")
        || version.ends_with("xen") && version.starts_with("2.6.")
}

/// Whether a bzImage's boot protocol header is there.
pub fn is_bzimage(head: &[u8]) -> bool {
    head.get(0x202..0x206) == Some(b"HdrS")
}

/// The release that a bzImage says it is.
pub fn bzimage_version(image: &[u8]) -> Option<String> {
    if !is_bzimage(image) {
        return None;
    }
    let pointer = u16::from_le_bytes([*image.get(0x20e)?, *image.get(0x20f)?]);
    let text = image.get(usize::from(pointer) + 0x200..)?;
    let end = text.iter().take(128).position(|&b| b == 0 || b == b' ')?;
    let version = std::str::from_utf8(&text[..end]).ok()?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "._+~-".contains(c);
    (version.starts_with(|c: char| c.is_ascii_digit()) && version.chars().all(plain)).then(|| version.into())
}

/// A module's name as the kernel has it: file endings dropped, `_` for `-`.
pub fn module_name(file: &str) -> Option<String> {
    let name = file.rsplit('/').next()?;
    let stem = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"].iter().find_map(|end| name.strip_suffix(end))?;
    Some(stem.replace('-', "_"))
}

/// Files of modules that a release has in the guest, with what each needs, from modules.dep.
pub fn module_table(fs: &dyn GuestFs, version: &str) -> Vec<(String, Vec<String>)> {
    let dep = fs.read(format!("/lib/modules/{version}/modules.dep").as_bytes(), 32 << 20).unwrap_or_default();
    let line = |line: &str| {
        let (file, needs) = line.split_once(':')?;
        Some((file.trim().to_string(), needs.split_ascii_whitespace().map(Into::into).collect()))
    };
    String::from_utf8_lossy(&dep).lines().filter_map(line).collect()
}

/// Whether a driver is built into a release.
pub fn is_builtin(fs: &dyn GuestFs, version: &str, module: &str) -> bool {
    let listed = fs.read(format!("/lib/modules/{version}/modules.builtin").as_bytes(), 4 << 20).unwrap_or_default();
    if String::from_utf8_lossy(&listed).lines().any(|l| module_name(l.trim()).as_deref() == Some(module)) {
        return true;
    }
    let config = fs.read(format!("/boot/config-{version}").as_bytes(), CONFIG_LIMIT).unwrap_or_default();
    let wanted = format!("{}=y", config_symbol(module));
    String::from_utf8_lossy(&config).lines().any(|l| l == wanted)
}

/// Whether a release has a driver, as a module or built in.
pub fn has_module(fs: &dyn GuestFs, version: &str, module: &str) -> bool {
    module_table(fs, version).iter().any(|(f, _)| module_name(f).as_deref() == Some(module)) || is_builtin(fs, version, module)
}

/// Compares releases as people do: runs of digits by value, the rest by character, `~` before all. As with rpm, a number is newer than letters
/// in its place: `1160.119.1.el7` than `1160.el7`.
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        let text = |s: &[u8]| s.iter().position(u8::is_ascii_digit).unwrap_or(s.len());
        let (n, m) = (text(a), text(b));
        let weight = |s: &[u8], end: usize, i: usize| match s[..end].get(i) {
            Some(b'~') => 0u32,
            // A number follows.
            None if end < s.len() => 299,
            None => 1,
            Some(&c) if c.is_ascii_alphabetic() => u32::from(c) + 2,
            Some(&c) => u32::from(c) + 300,
        };
        for i in 0..n.max(m) {
            match weight(a, n, i).cmp(&weight(b, m, i)) {
                Ordering::Equal => {}
                other => return other,
            }
        }
        (a, b) = (&a[n..], &b[m..]);
        let digits = |s: &[u8]| s.iter().position(|c| !c.is_ascii_digit()).unwrap_or(s.len());
        let (n, m) = (digits(a), digits(b));
        let strip = |s: &[u8]| s.iter().skip_while(|&&c| c == b'0').copied().collect::<Vec<u8>>();
        let (x, y) = (strip(&a[..n]), strip(&b[..m]));
        match x.len().cmp(&y.len()).then_with(|| x.cmp(&y)) {
            Ordering::Equal => {}
            other => return other,
        }
        (a, b) = (&a[n..], &b[m..]);
        if a.is_empty() && b.is_empty() {
            return Ordering::Equal;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{MemFs, bzimage};

    const PVOPS: &str = "CONFIG_XEN=y\nCONFIG_VIRTIO_PCI=m\nCONFIG_VIRTIO_BLK=m\n";

    #[test]
    fn releases_compare_by_number() {
        for (old, new) in [
            ("6.1.0-9-amd64", "6.1.0-10-amd64"),
            ("6.9.1", "6.10.0"),
            ("2.6.32-5-xen-amd64", "3.2.0-4-amd64"),
            ("6.1.0~rc3", "6.1.0"),
            ("5.10.0-8-amd64", "5.10.0-8-amd64.1"),
            ("2.6.18-194.el5", "2.6.18-194.32.1.el5"),
            ("2.6.32-754.el6.x86_64", "2.6.32-754.35.1.el6.x86_64"),
            ("3.10.0-1160.el7.x86_64", "3.10.0-1160.119.1.el7.x86_64"),
            ("4.14.35-1818.el7uek.x86_64", "4.14.35-1818.3.3.el7uek.x86_64"),
            ("4.18.0-553.el8_10.x86_64", "4.18.0-553.16.1.el8_10.x86_64"),
            ("4.18.0-553.16.1.el8_10.x86_64", "4.18.0-554.el8_10.x86_64"),
            ("6.4.0-150600.21-default", "6.4.0-150600.21.3-default"),
            ("6.1-rc3", "6.1-3"),
        ] {
            assert_eq!(compare_versions(old, new), Ordering::Less, "{old} {new}");
            assert_eq!(compare_versions(new, old), Ordering::Greater);
        }
        assert_eq!(compare_versions("5.010", "5.10"), Ordering::Equal);
    }

    #[test]
    fn the_best_kernel_is_the_newest_that_starts_on_kvm() {
        let fs = MemFs::new()
            .file("/boot/vmlinuz-2.6.32-5-xen-686", bzimage("2.6.32-5-xen-686"))
            .file("/boot/config-2.6.32-5-xen-686", PVOPS)
            .file("/boot/vmlinuz-2.6.26-2-xen-686", [0x1f; 0x300])
            .file("/boot/vmlinuz-2.6.18-6-xen-686", bzimage("2.6.18-6-xen-686"))
            .file("/boot/config-2.6.18-6-xen-686", "CONFIG_X86_XEN=y\n")
            .file("/boot/vmlinuz-3.2.0-4-686-pae", bzimage("3.2.0-4-686-pae"))
            .file("/boot/config-3.2.0-4-686-pae", PVOPS)
            .file("/boot/initrd.img-3.2.0-4-686-pae", "x")
            .dir("/lib/modules/3.2.0-4-686-pae")
            .file("/boot/vmlinuz-3.16.0-4-686.dpkg-bak", bzimage("3.16.0"))
            .file("/boot/vmlinuz-4.9-dbg", bzimage("4.9-dbg"))
            .file("/boot/vmlinuz-4.1-tiny", bzimage("4.1-tiny"))
            .file("/boot/config-4.1-tiny", "CONFIG_VIRTIO_PCI=y\n")
            .file("/boot/memtest86+.bin", "x");
        let found = find(&fs, Target::Kvm);
        let names: Vec<_> = found.iter().map(|k| (k.version.as_str(), k.unfit.is_none())).collect();
        assert_eq!(
            names,
            [
                ("3.2.0-4-686-pae", true),
                ("2.6.32-5-xen-686", true),
                ("4.9-dbg", true),
                ("4.1-tiny", false),
                ("2.6.26-2-xen-686", false),
                ("2.6.18-6-xen-686", false)
            ]
        );
        assert_eq!(found[0].initrd.as_deref(), Some("/boot/initrd.img-3.2.0-4-686-pae"));
        assert!(found[3].unfit.as_ref().unwrap().contains("CONFIG_VIRTIO_BLK is not set"));
        assert!(found[4].unfit.as_ref().unwrap().contains("no boot header"));
        assert!(found[5].unfit.as_ref().unwrap().contains("CONFIG_X86_XEN"));
    }

    #[test]
    fn kernels_called_by_their_package_tell_their_release() {
        let fs = MemFs::new()
            .file("/boot/vmlinuz-virt", bzimage("6.6.14-0-virt"))
            .file("/boot/initramfs-virt", "x")
            .file("/boot/vmlinuz-linux-lts", bzimage("6.9.1-1-lts"))
            .file("/boot/initramfs-linux-lts.img", "x")
            .file("/boot/vmlinuz-6.1", bzimage("6.1"))
            .link_to("/boot/vmlinuz-default", "vmlinuz-6.1")
            .file("/boot/vmlinuz-nothing", "x");
        let found = find(&fs, Target::Kvm);
        let seen: Vec<_> = found.iter().map(|k| (k.version.as_str(), k.initrd.as_deref())).collect();
        let alpine = ("6.6.14-0-virt", Some("/boot/initramfs-virt"));
        assert_eq!(seen, [("6.9.1-1-lts", Some("/boot/initramfs-linux-lts.img")), alpine, ("6.1", None)]);
    }

    #[test]
    fn a_signed_copy_is_of_its_kernels_release() {
        let plain = "/boot/vmlinuz-4.4.0-210-generic";
        let signed = format!("{plain}.efi.signed");
        let initrd = "/boot/initrd.img-4.4.0-210-generic";
        let alone = MemFs::new()
            .file("/boot/grub/grub.cfg", format!("menuentry 'Ubuntu' {{\n\tlinux {signed} ro\n\tinitrd {initrd}\n}}\n"))
            .file(&signed, bzimage("4.4.0-210-generic"))
            .file("/boot/config-4.4.0-210-generic", PVOPS)
            .file(initrd, "x")
            .dir("/lib/modules/4.4.0-210-generic");
        let both = alone.clone().file(plain, bzimage("4.4.0-210-generic"));
        for (fs, images) in [(alone, &[signed.as_str()][..]), (both, &[plain, signed.as_str()])] {
            let found = find(&fs, Target::Kvm);
            let seen: Vec<&str> = found.iter().map(|k| k.image.as_str()).collect();
            assert_eq!(seen, images);
            let is_whole = |k: &Kernel| k.version == "4.4.0-210-generic" && k.initrd.as_deref() == Some(initrd) && k.unfit.is_none();
            assert!(found.iter().all(is_whole), "{found:?}");
        }
    }

    #[test]
    fn kernels_with_names_of_their_own_are_known_by_the_menu() {
        let menu =
            "title a\nkernel /boot/slack/linux-custom root=/dev/xvda1\ninitrd /boot/initrd.gz\ntitle b\nkernel /boot/kernel-6.1-gentoo\n";
        let fs = MemFs::new()
            .file("/boot/grub/menu.lst", menu)
            .file("/boot/slack/linux-custom", bzimage("6.5.1"))
            .file("/boot/vmlinuz-huge-6.5.1", bzimage("6.5.1"))
            .file("/boot/initrd.gz", "x")
            .file("/boot/kernel-6.1-gentoo", bzimage("6.1-gentoo"))
            .file("/boot/initramfs-6.1-gentoo.img", "x")
            .file("/boot/bzImage", bzimage("5.4"))
            .file("/boot/bzImage-5.4", bzimage("5.4"))
            .file("/boot/initrd-5.4", "x")
            .file("/boot/kernel", "x")
            .link_to("/boot/vmlinuz", "vmlinuz-huge-6.5.1");
        let found = find(&fs, Target::Kvm);
        let seen: Vec<_> = found.iter().map(|k| (k.image.as_str(), k.version.as_str(), k.initrd.as_deref())).collect();
        let wanted = [
            ("/boot/slack/linux-custom", "6.5.1", Some("/boot/initrd.gz")),
            ("/boot/vmlinuz-huge-6.5.1", "6.5.1", None),
            ("/boot/kernel-6.1-gentoo", "6.1-gentoo", Some("/boot/initramfs-6.1-gentoo.img")),
            ("/boot/bzImage-5.4", "5.4", Some("/boot/initrd-5.4")),
            ("/boot/bzImage", "5.4", Some("/boot/initrd.gz")),
        ];
        assert_eq!(seen, wanted);
    }

    #[test]
    fn a_bzimage_tells_its_release() {
        assert_eq!(bzimage_version(&bzimage("6.1.0-13-amd64")).as_deref(), Some("6.1.0-13-amd64"));
        let mut image = bzimage("6.1");
        image[0x20e] = 0xff;
        image[0x20f] = 0xff;
        assert_eq!(bzimage_version(&image), None);
        assert_eq!(bzimage_version(b"short"), None);
        assert_eq!(bzimage_version(&bzimage("../../etc/passwd")), None);
    }

    #[test]
    fn drivers_are_modules_or_built_in() {
        let fs = MemFs::new()
            .file("/lib/modules/6.1/modules.dep", "kernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio.ko\n")
            .file("/lib/modules/6.1/modules.builtin", "kernel/drivers/virtio/virtio-pci.ko\n")
            .file("/boot/config-6.1", "CONFIG_VIRTIO_NET=y\n# CONFIG_VIRTIO_SCSI is not set\n");
        let has = |m| has_module(&fs, "6.1", m);
        assert!(has("virtio_blk") && has("virtio_pci") && has("virtio_net") && !has("virtio_scsi"));
        assert!(!is_builtin(&fs, "6.1", "virtio_blk"));
        assert_eq!(module_table(&fs, "6.1")[0].1, ["kernel/drivers/virtio/virtio.ko"]);
    }
}
