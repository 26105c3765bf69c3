//! Which kernel modules are Xen's, and what KVM has in their place.

/// What an initrd needs for its root and its network.
pub const VIRTIO: [&str; 4] = ["virtio_pci", "virtio_blk", "virtio_scsi", "virtio_net"];

/// Whether a module is of use only on Xen. Names may be written with `-` for `_`.
pub fn is_xens(module: &str) -> bool {
    let name = module.replace('-', "_");
    name.starts_with("xen_")
        || matches!(name.as_str(), "xenblk" | "xennet" | "xenfs" | "xenbus" | "evtchn" | "gntdev" | "blktap" | "netbk" | "netloop")
}

/// The words of a list without Xen's modules, and with those of `wanted` that it lacks.
pub fn for_kvm<'a>(words: impl IntoIterator<Item = &'a str>, wanted: &[&'a str]) -> Vec<&'a str> {
    let mut words: Vec<&str> = words.into_iter().filter(|w| !is_xens(w)).collect();
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

    #[test]
    fn xens_go_and_what_is_missing_comes() {
        assert_eq!(
            for_kvm(["ext3", "xen-blkfront", "virtio-blk", "xenblk"], &["virtio_blk", "virtio_net"]),
            ["ext3", "virtio-blk", "virtio_net"]
        );
        assert!(is_xens("xen-vbd") && is_xens("xennet") && !is_xens("xenon"));
    }
}
