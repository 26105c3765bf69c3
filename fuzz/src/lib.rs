//! What every fuzz target runs, in one place: libFuzzer's targets (`fuzz_targets/`) and the driver that runs on stable
//! Rust in CI (`crates/tools/tests/fuzz`) are both handed this table.
//!
//! A body takes any bytes and must come back: an error is a fine end, a panic, an abort for want of memory or a hang is
//! a finding. Bodies also assert what must hold of whatever could be opened at all.

mod archive;
pub mod filesystem;
mod image;
mod mend;
mod nbd;
mod partitions;

/// One parser under test.
pub struct Target {
    /// Its name: `qcow2`.
    pub name: &'static str,
    /// Takes input to it.
    pub run: fn(&[u8]),
    /// Sets the checksums in an input right, so that changes to it get past them.
    pub mend: fn(&mut [u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "qcow2", run: |data| image::run("qcow2", data), mend: |_| {} },
    Target { name: "vhd", run: image::run_vhd, mend: mend::vhd },
    Target { name: "vhdx", run: |data| image::run("vhdx", data), mend: mend::vhdx },
    Target { name: "vmdk", run: |data| image::run("vmdk", data), mend: |_| {} },
    Target { name: "vdi", run: |data| image::run("vdi", data), mend: |_| {} },
    Target { name: "probed", run: image::run_probed, mend: |_| {} },
    Target { name: "xva", run: archive::run, mend: mend::tar },
    Target { name: "xva-legacy", run: archive::run, mend: mend::tar },
    Target { name: "partitions", run: partitions::run, mend: mend::gpt },
    Target { name: "nbd", run: nbd::run, mend: |_| {} },
    Target { name: "appliance-host", run: guestfs_appliance::fuzzing::host, mend: |_| {} },
    Target { name: "appliance-agent", run: guestfs_appliance::fuzzing::agent, mend: |_| {} },
    Target { name: "ext4", run: |data| filesystem::run("ext4", data), mend: |_| {} },
    Target { name: "xfs", run: |data| filesystem::run("xfs", data), mend: |_| {} },
    Target { name: "btrfs", run: |data| filesystem::run("btrfs", data), mend: filesystem::mend_btrfs },
    Target { name: "vfat", run: |data| filesystem::run("vfat", data), mend: |_| {} },
    Target { name: "ntfs", run: |data| filesystem::run("ntfs", data), mend: |_| {} },
    Target { name: "iso9660", run: |data| filesystem::run("iso9660", data), mend: |_| {} },
    Target { name: "squashfs", run: |data| filesystem::run("squashfs", data), mend: |_| {} },
    Target { name: "ufs", run: |data| filesystem::run("ufs", data), mend: |_| {} },
];

/// The target called `name`.
pub fn target(name: &str) -> &'static Target {
    TARGETS.iter().find(|t| t.name == name).unwrap_or_else(|| panic!("no fuzz target is called {name}"))
}
