//! `/etc/sysconfig`: what Red Hat's and SUSE's tools put into the boot entries of kernels that come later.

use crate::Result;
use crate::guest::text::{Line, word_list};
use crate::step::{Context, Step};

pub(super) const STEP: Step = Step {
    name: "sysconfig",
    about: "later kernels' boot entries are made by these settings: a kernel for Xen is not to become the default, nor Xen's options its own",
    run,
};

const KERNEL: &str = "/etc/sysconfig/kernel";
/// perl-Bootloader's.
const BOOT_LOADER: &str = "/etc/sysconfig/bootloader";

fn run(cx: &mut Context<'_>) -> Result<()> {
    let release = cx.facts.kernel.as_ref().map(|kernel| kernel.version.clone()).unwrap_or_default();
    // The package of which a newer one becomes the default; Red Hat's own split it with 8, Fedora with 21.
    let package = match (cx.release.major, cx.release.id.as_str()) {
        _ if release.ends_with("PAE") => "kernel-PAE",
        (21.., "fedora") => "kernel-core",
        (8.., id) if id != "fedora" => "kernel-core",
        _ => "kernel",
    };
    cx.edit_lines(KERNEL, |line| {
        let Some(value) = line.strip_prefix("DEFAULTKERNEL=") else { return Line::Keep };
        Line::of(value.trim_matches(['"', '\'']).starts_with("kernel-xen").then(|| format!("DEFAULTKERNEL={package}")))
    })?;
    let words = cx.rewrite();
    let (whole, part) = (|line: &str| words.whole(line), |line: &str| words.part(line));
    let Some(old) = cx.text(BOOT_LOADER)? else { return Ok(()) };
    let new = crate::guest::text::map_lines(&old, |line| {
        let Some(list) = word_list(line) else { return Line::Keep };
        let options = list.words.join(" ");
        let new = match list.name {
            "DEFAULT_APPEND" => whole(&options),
            "FAILSAFE_APPEND" => part(&options),
            // The hypervisor's, where the guest was once a host.
            _ => return Line::Keep,
        };
        Line::of((new != options).then(|| list.with(&new.split_ascii_whitespace().collect::<Vec<_>>())))
    });
    cx.edit(BOOT_LOADER, |_| new)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{MemFs, SWAP_UUID, run_step};

    /// RHEL 5's, as its installer writes it.
    const RHEL5: &str = "# UPDATEDEFAULT specifies if new-kernel-pkg should make\n# new kernels the default\nUPDATEDEFAULT=yes\n\n\
        # DEFAULTKERNEL specifies the default kernel package type\nDEFAULTKERNEL=kernel-xen\n";

    #[test]
    fn the_kernel_for_xen_is_no_longer_the_default() {
        for (release, package) in [
            ("ID=centos\nVERSION_ID=5\n", "kernel"),
            ("ID=rhel\nVERSION_ID=7.9\n", "kernel"),
            ("ID=rocky\nVERSION_ID=8.9\n", "kernel-core"),
            ("ID=fedora\nVERSION_ID=14\n", "kernel"),
            ("ID=fedora\nVERSION_ID=40\n", "kernel-core"),
        ] {
            run_step(&MemFs::new().file("/etc/os-release", release).file(KERNEL, RHEL5), &STEP, |cx| {
                assert_eq!(cx.show(KERNEL), RHEL5.replace("kernel-xen", package));
            });
        }
        run_step(&MemFs::new().file(KERNEL, RHEL5.replace("kernel-xen", "kernel-uek")), &STEP, |cx| assert!(cx.fs.is_unchanged()));
    }

    #[test]
    fn suses_settings_for_new_entries() {
        let old = "## Path:\tSystem/Bootloader\n## Type:\tlist(grub,lilo,none)\nLOADER_TYPE=\"grub\"\nLOADER_LOCATION=\"mbr\"\n\
            DEFAULT_APPEND=\"resume=/dev/xvda1 splash=silent showopts console=hvc0\"\nFAILSAFE_APPEND=\"showopts ide=nodma apm=off console=hvc0\"\n\
            XEN_KERNEL_APPEND=\"resume=/dev/xvda1 splash=silent showopts\"\nXEN_APPEND=\"\"\n";
        run_step(&MemFs::new().file(BOOT_LOADER, old), &STEP, |cx| {
            let new = old
                .replace(
                    "DEFAULT_APPEND=\"resume=/dev/xvda1 splash=silent showopts console=hvc0\"",
                    &format!("DEFAULT_APPEND=\"resume=UUID={SWAP_UUID} splash=silent showopts console=tty0 console=ttyS0,115200n8\""),
                )
                .replace("apm=off console=hvc0", "apm=off");
            assert_eq!(cx.show(BOOT_LOADER), new);
        });
    }
}
