//! What lies beneath the safe interfaces: the only `unsafe` of this crate.
#![allow(unsafe_code)]

pub(crate) mod heap;
mod inherited;
pub(crate) mod pause;
pub(crate) mod probe;
mod vm;

pub use inherited::inherited;
pub use vm::{Exit, Vm};
