//! The appliance: a small virtual machine with our kernel and agent that touches guests' filesystems.
#![deny(unsafe_code)]

pub mod agent;
pub mod initramfs;
pub mod protocol;
