//! Which kernel modules drive the devices of each target, and which are of no use there.

use guestfs::GuestFs;

use super::kernels::{has_module, has_modules};
use crate::target::Target;

/// Modules by which a kernel drives a target's devices.
#[derive(Debug, PartialEq, Eq)]
pub struct Drivers {
    /// All that the initrd needs for the root's disk; the last one is the disk's own.
    pub disk: &'static [&'static str],
    /// The NIC's.
    pub nic: &'static str,
    /// What settings name, so that every initrd the guest builds later has it.
    pub initrd: &'static [&'static str],
    /// What udev calls the NIC's driver.
    pub nic_in_udev: &'static str,
}

/// virtio.
pub const KVM: [Drivers; 1] = [Drivers {
    disk: &["virtio_pci", "virtio_blk"],
    nic: "virtio_net",
    initrd: &["virtio_pci", "virtio_blk", "virtio_scsi", "virtio_net"],
    nic_in_udev: "virtio_net",
}];

/// Xen's paravirtual drivers as Linux has them, as old kernels of Red Hat's and SUSE's have them; then the emulated devices that such drivers
/// replace.
pub const XEN_HVM: [Drivers; 4] = [
    Drivers {
        disk: &["xen_blkfront"],
        nic: "xen_netfront",
        initrd: &["xen_blkfront", "xen_netfront"],
        // Of the bus: the driver has no name of its own.
        nic_in_udev: "vif",
    },
    Drivers {
        disk: &["xen_platform_pci", "xen_vbd"],
        nic: "xen_vnif",
        initrd: &["xen_platform_pci", "xen_vbd", "xen_vnif"],
        nic_in_udev: "vif",
    },
    Drivers { disk: &["ata_piix"], nic: "8139cp", initrd: &["ata_piix", "8139cp"], nic_in_udev: "8139cp" },
    Drivers { disk: &["piix"], nic: "8139cp", initrd: &["piix", "8139cp"], nic_in_udev: "8139cp" },
];

impl Drivers {
    /// The disk's own driver.
    pub fn block(&self) -> &'static str {
        self.disk.last().copied().unwrap_or_default()
    }
}

/// Those that a kernel of the guest has; the best where nothing is known of it.
pub fn of_kernel(fs: &dyn GuestFs, target: Target, version: &str) -> &'static Drivers {
    let all = target.drivers();
    let best = &all[0];
    if all.len() == 1 || !has_modules(fs, version) {
        return best;
    }
    all.iter().find(|drivers| drivers.disk.iter().all(|module| has_module(fs, version, module))).unwrap_or(best)
}

/// The setting of a kernel's configuration by which it has a module.
pub fn config_symbol(module: &str) -> String {
    match module {
        "xen_blkfront" => "CONFIG_XEN_BLKDEV_FRONTEND".into(),
        "xen_netfront" => "CONFIG_XEN_NETDEV_FRONTEND".into(),
        "xen_platform_pci" | "xen_vbd" | "xen_vnif" => "CONFIG_XEN_PV_ON_HVM".into(),
        "piix" => "CONFIG_BLK_DEV_PIIX".into(),
        other => format!("CONFIG_{}", other.to_ascii_uppercase()),
    }
}

/// Whether a target has no use for a module: Xen's outside of Xen; there, those that only a paravirtual kernel or a host can load.
pub fn is_useless(module: &str, target: Target) -> bool {
    let name = module.replace('-', "_");
    let classic = matches!(name.as_str(), "xenblk" | "xennet" | "blktap" | "netbk" | "netloop");
    classic || !target.is_xen() && (name.starts_with("xen_") || matches!(name.as_str(), "xenfs" | "xenbus" | "evtchn" | "gntdev"))
}

/// The words of a list without those that are useless, and with those of `wanted` that it lacks.
pub fn fitting<'a>(words: impl IntoIterator<Item = &'a str>, wanted: &[&'a str], target: Target) -> Vec<&'a str> {
    let mut words: Vec<&str> = words.into_iter().filter(|w| !is_useless(w, target)).collect();
    for module in wanted {
        if !words.iter().any(|w| w.replace('-', "_") == *module) {
            words.push(module);
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::MemFs;

    #[test]
    fn xens_go_and_what_is_missing_comes() {
        assert_eq!(
            fitting(["ext3", "xen-blkfront", "virtio-blk", "xenblk"], &["virtio_blk", "virtio_net"], Target::Kvm),
            ["ext3", "virtio-blk", "virtio_net"]
        );
        assert_eq!(fitting(["ext3", "xen-blkfront", "xenblk"], &["xen_blkfront"], Target::XenHvm), ["ext3", "xen-blkfront"]);
        let useless = |module| is_useless(module, Target::Kvm);
        assert!(useless("xen-vbd") && useless("xennet") && !useless("xenon"));
    }

    #[test]
    fn a_kernel_is_driven_by_what_it_has() {
        let driven = |modules: &str| {
            let fs = MemFs::new().file("/lib/modules/1/modules.dep", modules);
            (of_kernel(&fs, Target::XenHvm, "1").block(), of_kernel(&fs, Target::Kvm, "1").block())
        };
        assert_eq!(driven("kernel/drivers/block/xen-blkfront.ko:\nkernel/drivers/ata/ata_piix.ko:\n"), ("xen_blkfront", "virtio_blk"));
        let red_hat_5 =
            "kernel/drivers/xenpv_hvm/blkfront/xen-vbd.ko:\nkernel/drivers/xenpv_hvm/platform-pci/xen-platform-pci.ko:\na/ata_piix.ko:\n";
        assert_eq!(driven(red_hat_5).0, "xen_vbd");
        assert_eq!(driven("kernel/drivers/ata/ata_piix.ko.xz:\n").0, "ata_piix");
        assert_eq!(driven("kernel/fs/ext4.ko:\n").0, "xen_blkfront");
        assert_eq!(of_kernel(&MemFs::new(), Target::XenHvm, "1").block(), "xen_blkfront");
    }
}
