//! Conversion of guests from Xen to KVM, or from paravirtual to fully virtual: inputs → source description → inspection → plan → steps → outputs → boot check.

#![forbid(unsafe_code)]

pub mod batch;
pub mod bootcheck;
pub mod bootloader;
pub mod convert;
mod copy_only;
pub mod disk_build;
#[cfg(test)]
mod distributions;
mod donor;
mod error;
pub mod esp;
pub mod family;
mod finish;
pub mod foreign;
pub mod grow;
pub mod guest;
mod health;
pub mod initrd;
pub mod input;
pub mod layout;
pub mod macs;
pub mod options;
pub mod output;
pub mod phases;
pub mod plan;
pub mod report;
pub mod resize;
mod room;
pub mod source;
pub mod stack;
pub mod staged;
pub mod step;
pub mod steps;
mod stream;
pub mod target;
#[cfg(test)]
pub(crate) mod testing;

pub use error::{Error, Result};
