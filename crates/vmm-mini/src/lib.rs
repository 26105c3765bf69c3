//! A small monitor on KVM, for exactly one machine: the appliance's. One processor, an uncompressed ELF kernel, virtio devices over MMIO
//! that the kernel's command line names, a serial port for what it says when it dies, and nothing else.

#![deny(unsafe_code)]

pub mod bus;
pub mod probe;
mod sys;
pub mod virtio;
