//! The appliance: a small virtual machine with our kernel and agent that touches guests' filesystems.
#![forbid(unsafe_code)]
