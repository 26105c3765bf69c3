//! Conversion of guests from Xen to KVM: inputs → source description → inspection → plan → steps → outputs → boot check.

#![forbid(unsafe_code)]

mod error;
pub mod layout;
pub mod source;
pub mod staged;
pub mod step;

pub use error::{Error, Result};
