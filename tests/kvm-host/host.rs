//! Included by tests that need a true /dev/kvm, whatever this machine has.

use std::process::Command;

/// `tests/kvm-host/run`, which boots a host for one command.
pub fn host() -> Command {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/kvm-host/run"));
    command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap()));
    command
}
