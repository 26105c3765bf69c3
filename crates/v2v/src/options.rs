//! What a user asks of a conversion, and what the program lends it.

use std::path::PathBuf;
use std::time::Duration;

use guestfs::engine::Engine;
use guestfs::machine::MachineRunner;
use imgcore::{Formats, Progress};

use crate::input::DiskFile;
use crate::input::remote::Remote;
use crate::macs::MacRule;
use crate::output::{DiskFormat, Handover, PlugRule};
use crate::phases::Phase;
use crate::target::Target;

/// What a user asks for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Where it goes.
    pub target: Target,
    /// The source: a file or folder; `-` for standard input.
    pub guest: PathBuf,
    /// The input's mode; `auto` finds out.
    pub input: String,
    /// How a server is reached that the source lies on.
    pub remote: Remote,
    /// The name or UUID of the machine that is meant, where the source holds several.
    pub machine: Option<String>,
    /// Disks that the user names.
    pub disks: Vec<DiskFile>,
    /// VDIs of a storage repository.
    pub vdis: Vec<String>,
    /// Memory of the result; the source's when `None`.
    pub memory_mib: Option<u64>,
    /// Processors of the result; the source's when `None`.
    pub vcpus: Option<u32>,
    /// Folders that images may name files in, beside their own.
    pub allow: Vec<PathBuf>,
    /// The Xen host's kernel, when it is not where the configuration says.
    pub kernel: Option<PathBuf>,
    /// As `kernel`.
    pub ramdisk: Option<PathBuf>,
    /// Kernel packages to install, in order.
    pub kernel_packages: Vec<PathBuf>,
    /// Packages of KVM's agent to install, in order.
    pub agent_packages: Vec<PathBuf>,
    /// Another guest of the same distribution whose kernel is taken: a configuration or an image.
    pub kernel_from: Option<PathBuf>,
    /// The root filesystem, where there are several: `/dev/xvda2`.
    pub root: Option<String>,
    /// Leave every disk as it is.
    pub keep_layout: bool,
    /// Partitions start at multiples of so many bytes: a power of two, and no less than 64 KiB. Those of a table that is kept only if
    /// it is said.
    pub alignment: Option<u64>,
    /// Make the root larger by so many bytes.
    pub grow: Option<u64>,
    /// Passphrases of encrypted volumes.
    pub keys: guestfs::Keys,
    /// What the result is handed over as.
    pub handover: Handover,
    /// The folder of the result. May be missing for a plan.
    pub out: PathBuf,
    /// The format of its disks.
    pub format: DiskFormat,
    /// Take all room for its disks now.
    pub preallocated: bool,
    /// Its name; the source's when `None`.
    pub name: Option<String>,
    /// Replace a result that is there.
    pub force: bool,
    /// Take a source that is in use.
    pub in_use: bool,
    /// Do everything, and throw the result away: a rehearsal.
    pub discard: bool,
    /// The firmware of the result; the source's when `None`.
    pub firmware: Option<Firmware>,
    /// Copy the disks and describe the machine; change nothing in the guest.
    pub copy_only: bool,
    /// NICs that get other MAC addresses.
    pub macs: Vec<MacRule>,
    /// Where NICs are plugged in.
    pub plugs: Vec<PlugRule>,
    /// What is done of a conversion in two phases; all at once when `None`.
    pub phase: Option<Phase>,
    /// Start the result and wait so long for a login prompt.
    pub check_boot: Option<Duration>,
}

/// What starts a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// A BIOS.
    Bios,
    /// UEFI.
    Uefi,
}

/// What the program lends a conversion.
#[derive(Clone, Copy)]
pub struct Host<'a> {
    /// The image formats that are known.
    pub formats: &'a Formats,
    /// Starts the appliance.
    pub engine: &'a dyn Engine,
    /// Starts the result.
    pub machines: &'a dyn MachineRunner,
    /// Hears how far long work is, and says whether to stop.
    pub progress: &'a dyn Progress,
    /// Hears what happens.
    pub events: &'a dyn Events,
}

/// Hears what happens in a conversion. The library itself never prints.
pub trait Events: Send + Sync {
    /// A part of the work begins: `Copying the disks`.
    fn stage(&self, what: &str);
    /// A detail, for those who asked to hear all.
    fn detail(&self, what: &str);
    /// What the user should look at.
    fn warning(&self, what: &str);
    /// The console of the result while it boots.
    fn console(&self, bytes: &[u8]);
}
