//! The place of a small monitor of our own on KVM: **not written yet**. Nothing here starts a machine.
//!
//! What it is to be: a monitor for exactly the machine that `guestfs-appliance` now gets from QEMU's microvm (one
//! processor, an uncompressed ELF kernel, virtio-mmio devices named on the kernel's command line, one port to the
//! agent), so that kernel, initramfs, agent and protocol stay one; and a probe that tells a KVM which runs guest
//! kernels on the processor from one that emulates them. Until then every appliance runs under QEMU's translator.
