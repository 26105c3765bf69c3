//! A small monitor on KVM, for exactly one machine: the appliance's. One processor, an ELF kernel, virtio devices over MMIO
//! that the kernel's command line names, a serial port for what it says when it dies, and nothing else.

#![deny(unsafe_code)]

mod boot;
pub mod bus;
mod error;
mod layout;
mod legacy;
mod machine;
mod memory;
pub mod probe;
pub mod sandbox;
mod saved;
mod sys;
pub mod virtio;

pub use boot::bzimage;
pub use error::{Crash, Error, Result};
pub use machine::{Config, Devices, Ending, Files, Machine};
pub use sys::inherited;
