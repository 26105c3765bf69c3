//! The programs, thin: parse the command line, call the libraries, print.

#![forbid(unsafe_code)]

pub mod common;
pub mod img;
pub mod v2v;
pub mod virt;
