//! Where a guest goes, as far as its insides must fit there.

use crate::guest::drivers::{self, Drivers};

/// Where a guest goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Target {
    /// KVM, with virtio's disks and NICs.
    #[default]
    Kvm,
    /// A fully virtual machine of Xen: a BIOS starts what lies on its emulated disk, then Xen's own drivers take over.
    XenHvm,
}

impl Target {
    /// Its name in sentences.
    pub fn name(self) -> &'static str {
        match self {
            Target::Kvm => "KVM",
            Target::XenHvm => "Xen HVM",
        }
    }

    /// How names of its disks begin.
    pub fn disk_prefix(self) -> &'static str {
        match self {
            Target::Kvm => "vd",
            Target::XenHvm => "xvd",
        }
    }

    /// Ways in which a kernel can drive its devices, the best first.
    pub fn drivers(self) -> &'static [Drivers] {
        match self {
            Target::Kvm => &drivers::KVM,
            Target::XenHvm => &drivers::XEN_HVM,
        }
    }

    /// Xen's agents and drivers have something to talk to there.
    pub fn is_xen(self) -> bool {
        self == Target::XenHvm
    }
}
