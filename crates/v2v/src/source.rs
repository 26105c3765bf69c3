//! What an input tells of a guest, in one form for all inputs.

use std::path::PathBuf;
use std::sync::Arc;

use imgcore::Image;

/// A guest as its source describes it.
pub struct Source {
    /// Its name, as the source writes it.
    pub name: String,
    /// Its UUID, where it has one.
    pub uuid: Option<String>,
    /// What its owner wrote about it.
    pub description: String,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Virtual processors.
    pub vcpus: u32,
    /// How it started on Xen.
    pub boot: Boot,
    /// Its disks, in the source's order, without CD drives.
    pub disks: Vec<SourceDisk>,
    /// Its NICs, in the source's order.
    pub nics: Vec<Nic>,
    /// Its clock runs in local time, not in UTC.
    pub local_time: bool,
    /// How its host treats it.
    pub policy: Policy,
    /// Things that the user should know, found while reading the source.
    pub warnings: Vec<String>,
    /// The input's words for itself: `xl config /etc/xen/web.cfg`.
    pub origin: String,
}

/// How a guest started on Xen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Boot {
    /// Paravirtual or PVH: the kernel was started directly.
    Direct {
        /// Files of the Xen host, if the configuration names them; `None` when a boot loader read them from the guest.
        kernel: Option<PathBuf>,
        /// As `kernel`.
        ramdisk: Option<PathBuf>,
        /// The whole kernel command line that the source gives; empty when it comes from the guest's boot loader.
        cmdline: String,
        /// PVH rather than PV.
        pvh: bool,
    },
    /// Fully virtual with a BIOS: the guest has a boot loader of its own.
    Bios,
    /// Fully virtual with UEFI.
    Uefi,
}

/// How a host treats a guest, beside what the guest is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Policy {
    /// It is started with the host.
    pub autostart: bool,
    /// Its turn then: lower ones first.
    pub start_order: Option<u32>,
    /// Seconds that the next one waits for it.
    pub start_delay: Option<u32>,
}

/// One virtual disk of the source. It may hold a partition table, a whole filesystem, or be a single partition.
pub struct SourceDisk {
    /// The name that the guest saw: `xvda`, `xvda2`, `sda1`; or the bare position `0`, `1`, … where no more is known.
    pub target: String,
    /// Its content. `None` until a stream has been read.
    pub image: Option<Arc<dyn Image>>,
    /// Size in bytes.
    pub size: u64,
    /// The guest may not write it.
    pub read_only: bool,
    /// Marked as the one to boot from.
    pub bootable: bool,
    /// The file, device or name in a container, for messages.
    pub origin: String,
}

/// One network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nic {
    /// `00:16:3e:…` in lower case; `None` where the source lets Xen choose one at each start.
    pub mac: Option<String>,
    /// The one that it had on Xen, where the user asks for another.
    pub old_mac: Option<String>,
    /// The host's bridge.
    pub bridge: Option<String>,
    /// libvirt's or XenServer's network name.
    pub network: Option<String>,
    /// How it was attached, where that was to neither: `by vif-route`.
    pub attached: Option<String>,
    /// Addresses that the configuration names.
    pub ip: Vec<String>,
    /// The emulated model, for fully virtual guests.
    pub model: Option<String>,
    /// The number by which Xen calls it (`vif-2`), where that is not its place among the others.
    pub device: Option<u32>,
}

impl Nic {
    /// The number by which Xen calls the NIC of this index.
    pub fn number(&self, index: usize) -> usize {
        self.device.and_then(|n| usize::try_from(n).ok()).unwrap_or(index)
    }
}
