//! What an appliance holds, in one form for modern and legacy ones.

/// An appliance as its `ova.xml` describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appliance {
    /// Which kind of archive it is.
    pub form: Form,
    /// The product that wrote it: `XCP-ng 8.2.0`; empty when it doesn't say.
    pub product: String,
    /// Its virtual machines, the main ones first, then templates and snapshots.
    pub vms: Vec<Vm>,
    /// All disks whose data the archive should hold, in `ova.xml`'s order. [`Drive::disk`] is an index here.
    pub disks: Vec<Disk>,
    /// What is odd about it, in words for the user.
    pub warnings: Vec<String>,
}

/// The two kinds of archives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// XenServer 5.5 and later, XCP-ng, Xen Orchestra.
    Modern {
        /// 0: checksums in a table at the end, 1: inline and in the table, 2: inline.
        export_vsn: u64,
    },
    /// `<appliance version="0.1">`: gzipped chunks.
    Legacy,
}

/// A virtual disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The name of its folder in the archive: `Ref:10`, or `xvda` in a legacy one.
    pub id: String,
    /// Its owner's name for it.
    pub name: String,
    /// Its owner's description.
    pub description: String,
    /// Its UUID; empty when it has none.
    pub uuid: String,
    /// Size in bytes, as the guest sees it.
    pub size: u64,
    /// What it is for.
    pub role: Role,
}

/// What a virtual disk is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A disk of a guest.
    Disk,
    /// The memory of a suspended guest; no disk.
    Suspend,
}

/// A virtual machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vm {
    /// Its name.
    pub name: String,
    /// Its owner's description.
    pub description: String,
    /// Its UUID; empty when it has none.
    pub uuid: String,
    /// Memory in bytes; 0 when unknown.
    pub memory: u64,
    /// Virtual processors at start; 0 when unknown.
    pub vcpus: u64,
    /// How it starts.
    pub boot: Boot,
    /// Its disks, without CD drives, in order of position.
    pub drives: Vec<Drive>,
    /// Its network interfaces in order.
    pub nics: Vec<Nic>,
    /// It was suspended: its memory is in the archive or lost, and its filesystems are dirty.
    pub suspended: bool,
    /// It is a template.
    pub template: bool,
    /// It is a snapshot of another one.
    pub snapshot: bool,
    /// It has a TPM. Its secrets are not read.
    pub vtpm: bool,
    /// How its host treats it.
    pub host: HostPolicy,
}

/// How a machine's host treats it, beside what it is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostPolicy {
    /// It is started with the host, or kept running by high availability.
    pub autostart: bool,
    /// Its turn among the machines of its vApp or of high availability.
    pub order: Option<u64>,
    /// Seconds that the next one waits for it.
    pub start_delay: Option<u64>,
    /// Its clock differs from UTC by more than a minute: mostly a Windows in local time.
    pub local_time: bool,
    /// Names of what it uses of its host and of others: passed-through PCI devices, USB, GPUs.
    pub devices: Vec<&'static str>,
    /// CD drives with a disc: their place among the drives, and the disc's name.
    pub discs: Vec<(String, String)>,
}

/// How a virtual machine starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Boot {
    /// Fully virtual.
    Hvm {
        /// UEFI, else BIOS.
        uefi: bool,
        /// With secure boot.
        secure_boot: bool,
    },
    /// Paravirtual, or PVH.
    Pv {
        /// `pygrub` and the like, which take the kernel from the bootable disk.
        bootloader: Option<String>,
        /// A file of dom0, when there is no boot loader. It is not in the archive.
        kernel: Option<String>,
        /// A file of dom0, as `kernel`.
        ramdisk: Option<String>,
        /// Arguments of the kernel; appended to those of the guest's boot menu.
        args: String,
        /// PVH.
        pvh: bool,
    },
}

/// A disk's place in a virtual machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drive {
    /// Index in [`Appliance::disks`].
    pub disk: usize,
    /// The place as it is written: `0` … `15`, or `xvda`, `hda`, `sda1`.
    pub device: String,
    /// It starts from this one.
    pub bootable: bool,
    /// The guest must not write it.
    pub read_only: bool,
    /// Other machines may use it as well.
    pub shared: bool,
}

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nic {
    /// Its MAC address as written; empty when it has none.
    pub mac: String,
    /// Its network's bridge on the Xen host; may be empty.
    pub bridge: String,
    /// Its network's name; may be empty.
    pub network: String,
    /// The number by which Xen calls it: numbers of interfaces that were taken away stay free.
    pub device: Option<u32>,
}

impl Appliance {
    /// The machines that a user means: those that are neither templates nor snapshots; else those that are no snapshots;
    /// else all.
    pub fn main_vms(&self) -> Vec<&Vm> {
        let pick = |wanted: fn(&Vm) -> bool| self.vms.iter().filter(|v| wanted(v)).collect::<Vec<_>>();
        [pick(|v| !v.template && !v.snapshot), pick(|v| !v.snapshot)].into_iter().find(|v| !v.is_empty()).unwrap_or_else(|| pick(|_| true))
    }

    /// The index of a disk by its id.
    pub fn disk(&self, id: &str) -> Option<usize> {
        self.disks.iter().position(|d| d.id == id)
    }
}

impl Vm {
    /// The files of the Xen host that it starts with, which no archive holds: kernel, then ramdisk.
    pub fn dom0_files(&self) -> Vec<&str> {
        match &self.boot {
            Boot::Pv { bootloader: None, kernel: Some(kernel), ramdisk, .. } => {
                [Some(kernel.as_str()), ramdisk.as_deref()].into_iter().flatten().collect()
            }
            _ => Vec::new(),
        }
    }
}

impl Drive {
    /// Sorting key: bare numbers by value, names by bus, letters and partition.
    pub(crate) fn order(&self) -> (usize, u64, &str) {
        match self.device.parse() {
            Ok(n) => (0, n, ""),
            Err(_) => (self.device.len(), 0, &self.device),
        }
    }
}
