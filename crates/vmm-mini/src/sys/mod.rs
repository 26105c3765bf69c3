//! What lies beneath the safe interfaces: the only `unsafe` of this crate.
#![allow(unsafe_code)]

pub(crate) mod probe;
mod vm;

pub use vm::{Exit, Vm};
