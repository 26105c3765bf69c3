//! A tiny KVM monitor for the appliance. Its seam is `guestfs::engine`: until it is built, the appliance runs in QEMU.
