//! What the programs share that make whole disks: the image that they write, and the appliance that works on it.

mod blank;
mod target;

use clap::Args;
use guestfs::GuestDisk;
use guestfs::engine::{Command, Disk, Engine, Session};
use guestfs_appliance::Accel;
pub(super) use v2v::resize::programs::mounted;

use super::options::Announced;
use crate::common::Failure;

pub(super) use self::blank::{Kind, PartitionArg, one_partition, random, table_overhead};
pub(super) use self::target::{Target, open_source, parse_size};

/// Runs a program of the appliance; one that does not end with 0 or `fine` is a failure in its own words.
pub(super) fn run(session: &mut dyn Session, command: &Command, fine: &[i32]) -> Result<Vec<u8>, Failure> {
    Ok(v2v::resize::programs::run(session, command, fine)?)
}

/// How the appliance runs, and how much is said of it.
#[derive(Args)]
pub(super) struct EngineArgs {
    /// What runs the appliance: kvm, tcg (QEMU's translator) or auto; the environment's GUESTLIFT_ACCEL says so, too
    #[arg(long, value_name = "ACCEL")]
    accel: Option<Accel>,
    /// Say what is done and why
    #[arg(short, long)]
    verbose: bool,
    /// Say every step
    #[arg(short = 'x')]
    trace: bool,
}

impl EngineArgs {
    /// Tells the user with `-v` or `-x`.
    pub(super) fn say(&self, line: impl AsRef<str>) {
        if self.verbose || self.trace {
            eprintln!("{}", line.as_ref());
        }
    }

    /// An appliance with these disks.
    pub(super) fn start(&self, disks: Vec<Disk>) -> Result<Box<dyn Session>, Failure> {
        Ok(Announced::new(self.accel, self.verbose || self.trace).start(disks, true)?)
    }
}

/// One disk as a guest of its own, whose volumes are called as libguestfs calls them.
pub(super) fn single(image: std::sync::Arc<dyn imgcore::Image>) -> Vec<GuestDisk> {
    vec![GuestDisk { name: "sda".into(), image }]
}
