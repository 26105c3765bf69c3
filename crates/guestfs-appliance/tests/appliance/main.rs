//! The appliance does what it promises: the same tests on each engine that can run it.
//!
//! Here they run on the engine that is chosen, which `make test` makes QEMU. [`engines`] takes this very program to a host with a true /dev/kvm, where they run on vmm-mini.

mod commands;
mod common;
mod distro_kernel;
mod engines;
mod files;
mod lvm;
mod machine;
mod templates;
mod trouble;
mod volumes;
