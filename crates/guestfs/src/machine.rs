//! The seam to a whole virtual machine with firmware, for checking that a result boots.

use std::sync::Arc;
use std::time::Duration;

use imgcore::ImageMut;

use crate::Result;

/// The machine that a converted guest is to be started in.
#[derive(Clone)]
pub struct MachineSpec {
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Virtual processors.
    pub vcpus: u32,
    /// Disks in order: throw-away overlays, since a boot writes.
    pub disks: Vec<Arc<dyn ImageMut>>,
    /// MAC addresses of the NICs, in order; they lead nowhere outside.
    pub macs: Vec<String>,
    /// UEFI instead of BIOS.
    pub uefi: bool,
    /// Disks and NICs as Xen emulates them (IDE, Realtek's) instead of virtio's.
    pub emulated: bool,
}

/// UEFI's code and the template of its variables, where distributions install them: firmware that asks for no signatures.
pub const UEFI: [(&str, &str); 6] = [
    // Debian and Ubuntu.
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    // Fedora and its children.
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    // SUSE.
    ("/usr/share/qemu/ovmf-x86_64-4m-code.bin", "/usr/share/qemu/ovmf-x86_64-4m-vars.bin"),
    ("/usr/share/qemu/ovmf-x86_64-code.bin", "/usr/share/qemu/ovmf-x86_64-vars.bin"),
    // Arch.
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
];

/// Starts whole machines.
pub trait MachineRunner: Send + Sync {
    /// Starts one; its first serial port is the console.
    fn start(&self, spec: &MachineSpec) -> Result<Box<dyn Machine>>;
}

/// A running machine. Dropping it ends it.
pub trait Machine: Send {
    /// Waits for more console output; empty when `timeout` passed, an error when the machine is gone.
    fn read_console(&mut self, timeout: Duration) -> Result<Vec<u8>>;
    /// Types on the console.
    fn write_console(&mut self, keys: &[u8]) -> Result<()>;
}
