//! The tools that build initrds in guests: which of them a guest has, how they are told of the target's drivers for good, how they are run.
//!
//! A new one is a new file and a line in [`BUILDERS`].

mod dracut;
mod initramfs_tools;
mod mkinitcpio;
mod mkinitfs;
mod mkinitrd_redhat;
mod mkinitrd_suse;

use guestfs::Ext;
use guestfs::engine::Command;

use crate::Result;
use crate::guest;
use crate::guest::kernels::{self, Kernel};
use crate::step::Context;

/// A tool that builds initrds.
pub struct Builder {
    /// Its name; where two have the same, with whose it is.
    pub name: &'static str,
    /// Whether the guest has it.
    pub is_there: fn(&Context<'_>) -> bool,
    /// Has its settings, where there are any, name the target's drivers, and none that are useless there.
    pub configure: fn(&mut Context<'_>) -> Result<()>,
    /// How it makes an initrd of this name; `None` where it can't.
    pub build: fn(&Context<'_>, &Kernel, &str) -> Option<Command>,
    /// In its initrds udev loads the driver of whatever is there: a driver that comes to them is used. In others scripts name drivers.
    pub by_udev: bool,
    /// Its initrds may wait for disks by the names that they had when they were built.
    pub waits_for_disks: bool,
    /// A folder of settings, and where its initrds have copies of the files.
    pub copies: Option<(&'static str, &'static str)>,
}

/// All of them. Of several in a guest the first one is its own: what comes later is what it replaced.
const BUILDERS: &[Builder] =
    &[initramfs_tools::BUILDER, dracut::BUILDER, mkinitcpio::BUILDER, mkinitfs::BUILDER, mkinitrd_suse::BUILDER, mkinitrd_redhat::BUILDER];

/// The guest's own.
pub fn of_guest(cx: &Context<'_>) -> Option<&'static Builder> {
    BUILDERS.iter().find(|builder| (builder.is_there)(cx))
}

/// Has every builder's settings changed: one that is not used today may be tomorrow.
pub fn configure(cx: &mut Context<'_>) -> Result<()> {
    BUILDERS.iter().try_for_each(|builder| (builder.configure)(cx))
}

/// What building an initrd writes: update-initramfs keeps the checksums of its own.
pub fn made(cx: &Context<'_>, initrd: &str, kernel: &Kernel) -> Vec<String> {
    let sums = cx.fs.is_dir(b"/var/lib/initramfs-tools").then(|| format!("/var/lib/initramfs-tools/{}", kernel.version));
    std::iter::once(initrd.to_string()).chain(sums).collect()
}

/// Whether the guest has a program where an administrator's shell looks.
fn has_program(cx: &Context<'_>, program: &str) -> bool {
    guest::has_program(&cx.fs, program)
}

/// Those of `modules` that a kernel has as modules: a tool that is asked for others fails.
fn modular<'a>(cx: &Context<'_>, kernel: &Kernel, modules: &[&'a str]) -> Vec<&'a str> {
    let known = kernels::module_table(&cx.fs, &kernel.version);
    let has = |module: &&&str| known.iter().any(|(file, _)| kernels::module_name(file).as_deref() == Some(**module));
    modules.iter().filter(has).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{MemFs, bzimage, run_step};

    #[test]
    fn the_table_names_every_file() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/initrd");
        let mut files: Vec<String> =
            std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap().replace(".rs", "")).collect();
        files.retain(|f| f != "mod");
        let mut names: Vec<String> = BUILDERS.iter().map(|b| b.name.replace('-', "_")).collect();
        files.sort();
        names.sort();
        assert_eq!(files, names);
    }

    /// The command that each distribution's guest is given.
    #[test]
    fn every_distribution_has_its_own() {
        let kernel = |fs: MemFs, id: &str, image: &str, version: &str| {
            let fs = fs.file("/etc/os-release", format!("ID={id}\n")).file(image, bzimage(version));
            let dep = "a/virtio.ko:\na/virtio_pci.ko: a/virtio.ko\na/virtio_blk.ko: a/virtio.ko\n";
            fs.file(&format!("/lib/modules/{version}/modules.dep"), dep)
        };
        let debian = MemFs::new().file("/usr/sbin/update-initramfs", "");
        let rocky = MemFs::new().file("/usr/bin/dracut", "").file("/sbin/mkinitrd", "");
        let centos5 =
            MemFs::new().file("/sbin/mkinitrd", "").file("/etc/sysconfig/kernel", "UPDATEDEFAULT=yes\nDEFAULTKERNEL=kernel-xen\n");
        let sles11 = MemFs::new().file("/sbin/mkinitrd", "").file("/etc/sysconfig/kernel", "INITRD_MODULES=\"xenblk jbd ext3\"\n");
        let alpine = MemFs::new().file("/sbin/mkinitfs", "");
        let arch = MemFs::new().file("/usr/bin/mkinitcpio", "");
        for (fs, id, image, version, command) in [
            (debian, "debian", "/boot/vmlinuz-6.1.0-9-amd64", "6.1.0-9-amd64", "update-initramfs -c -k 6.1.0-9-amd64"),
            (
                rocky,
                "rocky",
                "/boot/vmlinuz-5.14.0-70.el9.x86_64",
                "5.14.0-70.el9.x86_64",
                "dracut --force --add-drivers 'virtio_pci virtio_blk' /boot/initramfs-5.14.0-70.el9.x86_64.img 5.14.0-70.el9.x86_64",
            ),
            (
                centos5,
                "centos\nVERSION_ID=5",
                "/boot/vmlinuz-2.6.18-398.el5",
                "2.6.18-398.el5",
                "mkinitrd -f --with=virtio_pci --with=virtio_blk /boot/initrd-2.6.18-398.el5.img 2.6.18-398.el5",
            ),
            (
                sles11,
                "sles",
                "/boot/vmlinuz-3.0.101-63-default",
                "3.0.101-63-default",
                "mkinitrd -k vmlinuz-3.0.101-63-default -i initrd-3.0.101-63-default",
            ),
            (alpine, "alpine", "/boot/vmlinuz-virt", "6.6.14-0-virt", "mkinitfs -o /boot/initramfs-virt 6.6.14-0-virt"),
            (
                arch,
                "arch",
                "/boot/vmlinuz-linux",
                "6.9.1-arch1-1",
                "mkinitcpio -S autodetect -k 6.9.1-arch1-1 -g /boot/initramfs-linux.img",
            ),
        ] {
            run_step(&kernel(fs, id, image, version), &crate::steps::STEPS[0], |cx| {
                let kernel = cx.facts.kernel.clone().expect(image);
                assert_eq!((kernel.image.as_str(), kernel.version.as_str()), (image, version));
                let builder = of_guest(cx).expect(image);
                let path = (cx.family.initrd)(cx, &kernel);
                let build = (builder.build)(cx, &kernel, &path).expect(image);
                cx.fs.command("test", build);
                assert_eq!(cx.fs.commands()[0].shown(), command);
            });
        }
    }
}
