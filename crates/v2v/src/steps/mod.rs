//! The steps of a conversion, in order: one file and one line in [`STEPS`] each.

mod agents;
mod bls;
mod bootloader;
mod clock;
mod console;
mod crypttab;
mod extlinux;
mod fstab;
mod grub2;
mod grub2_default;
mod grub_legacy;
mod initrd;
mod kernel;
mod lvm;
mod mac;
mod mdadm;
mod modules;
mod network;
mod resume;
mod selinux;
mod space;
mod sysconfig;
mod tls;
mod uefi;

use crate::Result;
use crate::step::{Context, Step};

/// All steps. Each sees what those before it changed.
pub const STEPS: &[Step] = &[
    kernel::STEP,
    fstab::STEP,
    crypttab::STEP,
    mdadm::STEP,
    lvm::STEP,
    resume::STEP,
    modules::STEP,
    mac::STEP,
    network::STEP,
    sysconfig::STEP,
    grub_legacy::STEP,
    grub2::STEP,
    grub2_default::STEP,
    bls::STEP,
    extlinux::STEP,
    uefi::STEP,
    bootloader::STEP,
    initrd::STEP,
    console::STEP,
    agents::STEP,
    clock::STEP,
    tls::STEP,
    selinux::STEP,
    space::STEP,
];

/// Runs all steps on the staged guest.
pub fn run_all(context: &mut Context<'_>) -> Result<()> {
    STEPS.iter().try_for_each(|step| context.run(step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_every_file() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/steps");
        let mut files: Vec<String> =
            std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap().replace(".rs", "")).collect();
        files.retain(|f| f != "mod");
        let mut names: Vec<String> = STEPS.iter().map(|s| s.name.replace('-', "_")).collect();
        files.sort();
        names.sort();
        assert_eq!(files, names, "a file in {folder} and its line in STEPS belong together");
    }
}
