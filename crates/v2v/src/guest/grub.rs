//! GRUB: how it names the target's volumes, and which of a guest's configurations is the true one.

use guestfs::{Ext, GuestFs};

use super::packages::Packages;
use crate::layout::{Layout, Table, Volume};

/// The volume that holds /boot, as GRUB names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootDevice {
    /// Index of the target disk.
    pub disk: usize,
    /// Partition, from 1.
    pub partition: Option<u32>,
    /// The disk has a GPT, not an MBR.
    pub gpt: bool,
    /// The disk's table is the source's, and so are all names in the guest's own configuration.
    pub kept: bool,
}

impl BootDevice {
    /// Where a volume lies.
    pub fn of(layout: &Layout, volume: &Volume) -> Option<Self> {
        let (disk, target) =
            layout.disks.iter().enumerate().find(|(_, d)| d.volumes.iter().any(|v| v.target_device == volume.target_device))?;
        Some(BootDevice {
            disk,
            partition: volume.partition,
            gpt: target.table == Table::NewGpt,
            kept: matches!(target.table, Table::Keep { .. }),
        })
    }

    /// GRUB legacy's name, with partitions from 0: `(hd0,1)`.
    pub fn legacy(&self) -> String {
        match self.partition {
            Some(number) => format!("(hd{},{})", self.disk, number.saturating_sub(1)),
            None => format!("(hd{})", self.disk),
        }
    }

    /// GRUB 2's name: `hd0,msdos2`.
    pub fn grub2(&self) -> String {
        match self.partition {
            Some(number) => format!("hd{},{}{number}", self.disk, if self.gpt { "gpt" } else { "msdos" }),
            None => format!("hd{}", self.disk),
        }
    }
}

/// The configuration that says what the guest starts, and that the guest keeps up to date itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Truth {
    /// GRUB 2's `grub.cfg`.
    GrubCfg(String),
    /// GRUB legacy's `menu.lst` or `grub.conf`.
    MenuLst(String),
    /// `extlinux.conf` or `syslinux.cfg`.
    Syslinux(String),
    /// There is none.
    Nothing,
}

/// Places of grub.cfg, in pygrub's order; then those on an ESP, where Red Hat's family has the menu for UEFI until 8 (Oracle's in redhat's folder),
/// and Fedora until 33. What people turned CentOS into comes before it.
pub const GRUB_CFG: &[&str] = &[
    "/boot/grub/grub.cfg",
    "/grub/grub.cfg",
    "/boot/grub2/grub.cfg",
    "/grub2/grub.cfg",
    "/boot/efi/EFI/rocky/grub.cfg",
    "/boot/efi/EFI/almalinux/grub.cfg",
    "/boot/efi/EFI/redhat/grub.cfg",
    "/boot/efi/EFI/centos/grub.cfg",
    "/boot/efi/EFI/scientific/grub.cfg",
    "/boot/efi/EFI/fedora/grub.cfg",
];
/// Where those distributions mount the ESP.
const ESP: &str = "/boot/efi/";
/// Places of GRUB legacy's configuration, in pygrub's order.
pub const MENU_LST: &[&str] = &["/boot/grub/menu.lst", "/boot/grub/grub.conf", "/grub/menu.lst", "/grub/grub.conf"];
/// Places of syslinux's configuration, in pygrub's order.
pub const SYSLINUX: &[&str] = &[
    "/boot/isolinux/isolinux.cfg",
    "/boot/extlinux/extlinux.conf",
    "/boot/extlinux.conf",
    "/extlinux/extlinux.conf",
    "/extlinux.conf",
    "/boot/syslinux/syslinux.cfg",
];

/// Which configuration is the true one: pygrub's choice, but of the boot loader whose package is installed before one that is left over.
///
/// A menu on the ESP is for UEFI alone, and goes first then. One that only hands over to another has no entries, and is passed over.
pub fn truth(fs: &dyn GuestFs, packages: &Packages, by_uefi: bool) -> Truth {
    let with = |paths: &[&str], words: &[&str]| {
        let starts = |path: &str| {
            let text = fs.read(path.as_bytes(), 4 << 20).unwrap_or_default();
            let text = String::from_utf8_lossy(&text).into_owned();
            text.lines().any(|l| l.split_ascii_whitespace().next().is_some_and(|w| words.iter().any(|x| w.eq_ignore_ascii_case(x))))
        };
        paths.iter().find(|p| fs.is_file(p.as_bytes()) && starts(p)).map(|p| p.to_string())
    };
    let menu_lst = with(MENU_LST, &["kernel"]);
    let (on_esp, others): (Vec<&str>, Vec<&str>) = GRUB_CFG.iter().copied().partition(|path| path.starts_with(ESP));
    let menus = if by_uefi { [on_esp, others].concat() } else { others };
    let grub_cfg = with(&menus, &["linux", "linux16", "linuxefi", "blscfg"]);
    // Arch's and Alpine's package "grub" is GRUB 2.
    let is_legacys = || matches!(packages.format, "deb" | "rpm") && !packages.names().any(|name| name.starts_with("grub2"));
    let legacy_only = packages.has("grub-legacy") || packages.has("grub") && is_legacys();
    match (grub_cfg, with(SYSLINUX, &["linux", "kernel"]), menu_lst) {
        (_, _, Some(menu)) if legacy_only => Truth::MenuLst(menu),
        (Some(cfg), _, _) => Truth::GrubCfg(cfg),
        (None, Some(syslinux), _) => Truth::Syslinux(syslinux),
        (None, None, Some(menu)) => Truth::MenuLst(menu),
        (None, None, None) => Truth::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{MemFs, xen_tools_guest};

    #[test]
    fn devices_have_both_grubs_names() {
        let (_, layout) = xen_tools_guest();
        let of = |i: usize| BootDevice::of(&layout, layout.volumes().nth(i).unwrap()).unwrap();
        assert_eq!((of(0).legacy(), of(0).grub2(), of(0).kept), ("(hd0,1)".into(), "hd0,msdos2".into(), false));
        assert_eq!((of(2).legacy(), of(2).kept), ("(hd1,0)".into(), true));
        let whole = BootDevice { disk: 0, partition: None, gpt: false, kept: true };
        assert_eq!((whole.legacy(), whole.grub2()), ("(hd0)".into(), "hd0".into()));
    }

    #[test]
    fn the_true_configuration() {
        let none = Packages::default();
        let status = "Package: grub-legacy\nStatus: install ok installed\nVersion: 0.97\n";
        let legacy = Packages::read(&MemFs::new().file("/var/lib/dpkg/status", status));
        let menu = MemFs::new().file("/boot/grub/menu.lst", "title x\nkernel /boot/vmlinuz\n");
        let both = menu.clone().file("/boot/grub/grub.cfg", "menuentry x {\n\tlinux /boot/vmlinuz\n}\n");
        let empty = menu.clone().file("/boot/grub/grub.cfg", "legacy_configfile /boot/grub/menu.lst\n");
        assert_eq!(truth(&menu, &none, false), Truth::MenuLst("/boot/grub/menu.lst".into()));
        assert_eq!(truth(&both, &none, false), Truth::GrubCfg("/boot/grub/grub.cfg".into()));
        assert_eq!(truth(&both, &legacy, false), Truth::MenuLst("/boot/grub/menu.lst".into()));
        let dpkg = |names: &[&str]| {
            let status: String =
                names.iter().map(|name| format!("Package: {name}\nStatus: install ok installed\nVersion: 1\n\n")).collect();
            Packages::read(&MemFs::new().file("/var/lib/dpkg/status", status))
        };
        assert_eq!(truth(&both, &dpkg(&["grub"]), false), Truth::MenuLst("/boot/grub/menu.lst".into()));
        assert_eq!(truth(&both, &dpkg(&["grub", "grub2"]), false), Truth::GrubCfg("/boot/grub/grub.cfg".into()));
        let alpine = Packages::read(&MemFs::new().file("/lib/apk/db/installed", "P:grub\nV:2.12-r5\nA:x86_64\n\n"));
        assert!(alpine.has("grub") && alpine.format == "apk");
        assert_eq!(truth(&both, &alpine, false), Truth::GrubCfg("/boot/grub/grub.cfg".into()));
        assert_eq!(truth(&empty, &none, false), Truth::MenuLst("/boot/grub/menu.lst".into()));
        assert_eq!(truth(&MemFs::new(), &legacy, false), Truth::Nothing);
        let syslinux = MemFs::new().file("/boot/extlinux/extlinux.conf", "default l\nlabel l\n\tkernel /vmlinuz\n");
        assert_eq!(truth(&syslinux, &none, false), Truth::Syslinux("/boot/extlinux/extlinux.conf".into()));
    }

    #[test]
    fn menus_on_an_esp_are_uefis() {
        const ESPS: &str = "/boot/efi/EFI/centos/grub.cfg";
        const BIOSS: &str = "/boot/grub2/grub.cfg";
        let entry = "menuentry 'CentOS Linux' {\n\tlinuxefi /vmlinuz-3.10.0-1160.el7.x86_64 ro\n}\n";
        // As Red Hat's family has it from 9 on, Debian, and Ubuntu.
        let stubs = [
            "search --root-dev-only --fs-uuid --set=dev 5f1f\nset prefix=($dev)/grub2\nexport $prefix\nconfigfile $prefix/grub.cfg\n",
            "search.fs_uuid 5f1f root hd0,gpt2 \nset prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n",
        ];
        let none = Packages::default();
        let cfg = |path: &str| Truth::GrubCfg(path.into());
        let alone = MemFs::new().file(ESPS, entry);
        assert_eq!((truth(&alone, &none, true), truth(&alone, &none, false)), (cfg(ESPS), Truth::Nothing));
        let both = alone.clone().file(BIOSS, entry);
        assert_eq!((truth(&both, &none, true), truth(&both, &none, false)), (cfg(ESPS), cfg(BIOSS)));
        let bls = both.clone().file(ESPS, "insmod blscfg\nblscfg\n");
        assert_eq!(truth(&bls, &none, true), cfg(ESPS));
        for stub in stubs {
            assert_eq!(truth(&both.clone().file(ESPS, stub), &none, true), cfg(BIOSS));
            assert_eq!(truth(&MemFs::new().file(ESPS, stub), &none, true), Truth::Nothing);
        }
        let became = both.file("/boot/efi/EFI/rocky/grub.cfg", entry);
        assert_eq!(truth(&became, &none, true), cfg("/boot/efi/EFI/rocky/grub.cfg"));
    }
}
