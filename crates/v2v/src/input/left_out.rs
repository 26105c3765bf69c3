//! What a source says of its machine and no output can say, or should not: told by name, so that nobody finds out later.

/// Keys of xl's and xm's configurations, and what becomes of them.
pub(super) const XL: &[(&str, &str)] = &[
    ("pci", "the PCI devices that were passed through are those of the Xen host: add <hostdev> to the domain for the new one's"),
    ("usbdev", "USB devices of the Xen host are not passed through: add <hostdev> to the domain"),
    ("usbdevice", "USB devices of the Xen host are not passed through: add <hostdev> to the domain"),
    ("vtpm", "its content is not taken over: have recovery keys at hand if a disk is bound to it"),
    ("vfb", "the new machine has a VNC display of its own, without its password and port"),
    ("vncpasswd", "the new machine has a VNC display of its own, without that password"),
    ("vnuma", "the layout of its memory is not taken over"),
    ("cpus", "it runs on any of the new host's processors: pin it with <cputune>, where that is wanted"),
    ("cpus_soft", "it runs on any of the new host's processors: pin it with <cputune>, where that is wanted"),
    ("rdm", "reserved memory is not taken over"),
    ("device_model_args", "QEMU's own arguments are not taken over"),
    ("device_model_args_hvm", "QEMU's own arguments are not taken over"),
    ("channel", "its channels are not taken over, but for the guest agent's"),
    ("p9", "shared folders are not taken over: add <filesystem> to the domain"),
    ("vdispl", "virtual displays of Xen are not taken over"),
    ("vsnd", "virtual sound cards of Xen are not taken over"),
];

/// Devices of a libvirt domain, and what becomes of them.
pub(super) const LIBVIRT: &[(&str, &str)] = &[
    ("hostdev", "devices of the Xen host are not passed through: add <hostdev> to the domain for the new one's"),
    ("tpm", "its content is not taken over: have recovery keys at hand if a disk is bound to it"),
    ("filesystem", "shared folders are not taken over: add <filesystem> to the domain"),
    ("redirdev", "redirected devices are not taken over"),
    ("sound", "the sound card is not taken over: add it to the domain, where it is wanted"),
    ("watchdog", "the watchdog is not taken over: add it to the domain, where it is wanted"),
];

/// A CD drive, with or without a disc.
pub(super) fn cd_drive(name: &str, disc: &str) -> String {
    let disc = if disc.is_empty() { String::new() } else { format!(" with {disc}") };
    format!("{name}: the CD drive{disc} is not taken over: attach one with 'virsh attach-disk --type cdrom', where it is wanted")
}

/// A NIC in a VLAN of an Open vSwitch bridge, as xl's configurations have it: `ovsbr0.42`, `ovsbr0:10:20`.
pub(super) fn tagged(index: usize, bridge: &str) -> Option<String> {
    let (name, tags) = bridge.split_once([':', '.'])?;
    let is_tags = tags.split(':').all(|tag| !tag.is_empty() && tag.bytes().all(|b| b.is_ascii_digit()));
    is_tags.then(|| vlan(index, &format!("{} of {name}", tags.replace(':', " and "))))
}

/// A NIC in a VLAN that its host tagged.
pub(super) fn vlan(index: usize, which: &str) -> String {
    format!(
        "NIC {index} was in VLAN {which}: bridges of Linux know nothing of that; choose one that leads there with --bridge, or add <vlan> and \
         <virtualport> to the domain"
    )
}

/// A NIC on a bridge that is none of Linux's own.
pub(super) fn open_vswitch(index: usize) -> String {
    format!(
        "NIC {index} was on a bridge of Open vSwitch: add <virtualport type='openvswitch'/> to its interface where the new host's is one too"
    )
}

/// A disk that other guests write too.
pub(super) fn shared_disk(name: &str) -> String {
    format!(
        "{name} is shared with other guests: the copy is this guest's alone; where the others need it too, convert it once and add it to each \
         domain with <shareable/>"
    )
}

/// Memory that the guest could be given while it runs.
pub(super) fn more_memory(most_mib: u64, mib: u64) -> String {
    format!("the guest could be given up to {most_mib} MiB of memory: the new machine has {mib} MiB; raise <memory> where it needs more")
}
