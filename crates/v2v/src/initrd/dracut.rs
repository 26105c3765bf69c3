//! dracut, of Red Hat's family from 6, SUSE's from 12, and others.

use guestfs::Ext;
use guestfs::engine::Command;

use super::{Builder, has_program, modular};
use crate::Result;
use crate::guest::drivers::fitting;
use crate::guest::kernels::Kernel;
use crate::guest::text::{Line, word_list};
use crate::step::Context;

pub(super) const BUILDER: Builder = Builder {
    name: "dracut",
    is_there: |cx| has_program(cx, "dracut"),
    configure,
    build,
    by_udev: true,
    waits_for_disks: true,
    copies: None,
};

const FOLDER: &str = "/etc/dracut.conf.d";
/// Ours.
const SETTINGS: &str = "/etc/dracut.conf.d/50-guestlift.conf";
/// The program, a script.
const PROGRAMS: [&str; 4] = ["/usr/bin/dracut", "/usr/sbin/dracut", "/sbin/dracut", "/bin/dracut"];
/// Lists of modules.
const LISTS: [&str; 4] = ["add_drivers", "force_drivers", "drivers", "omit_drivers"];

fn configure(cx: &mut Context<'_>) -> Result<()> {
    let (target, wanted) = (cx.options.target, cx.drivers().initrd);
    let names = cx.names(FOLDER).into_iter().map(|name| [FOLDER.as_bytes(), b"/", &name[..]].concat());
    for file in std::iter::once(b"/etc/dracut.conf".to_vec()).chain(names).collect::<Vec<_>>() {
        cx.edit_lines(file, |line| {
            let Some(list) = word_list(line).filter(|list| LISTS.contains(&list.name)) else { return Line::Keep };
            let mut words = fitting(list.words.iter().copied(), &[], target);
            if list.name == "omit_drivers" {
                words.retain(|w| !wanted.contains(&w.replace('-', "_").as_str()));
            }
            match words.is_empty() && !list.words.is_empty() {
                // dracut takes blanks alone for a list, and would read the modules' names from its terminal.
                true => Line::Drop,
                false => Line::of((words != list.words).then(|| list.with(&words))),
            }
        })?;
    }
    // Old ones have the file only, and no folder.
    if cx.fs.is_dir(FOLDER.as_bytes()) && !cx.fs.exists(SETTINGS.as_bytes()) {
        // The blanks are part of the list: without them the words of two files would become one.
        cx.fs.put(SETTINGS.as_bytes(), format!("add_drivers+=\" {} \"\n", wanted.join(" ")).as_bytes(), None)?;
    }
    Ok(())
}

fn build(cx: &Context<'_>, kernel: &Kernel, initrd: &str) -> Option<Command> {
    let drivers = modular(cx, kernel, cx.drivers_of(kernel).initrd).join(" ");
    let program = PROGRAMS.iter().find_map(|program| cx.text(program).ok().flatten());
    let knows = |word: &str| program.as_ref().is_some_and(|text| text.contains(word));
    // The host that it would make an initrd for is the appliance. Old ones know only the other way, and need to be asked for it.
    let options = ["--no-hostonly", "--nostrip"].into_iter().filter(|option| knows(option));
    let compressor = compressor(cx, kernel, &knows).filter(|_| knows("--compress"));
    let compress = compressor.into_iter().flat_map(|command| ["--compress", command]);
    let words = ["dracut", "--force"].into_iter().chain(options).chain(compress);
    Some(Command::new(words.chain(["--add-drivers", &drivers, initrd, &kernel.version])))
}

/// What packs this one initrd quickly, and the kernel can unpack: what dracut takes by itself (`gzip -9`, `xz`) is most of its time in translation. The
/// guest's next one is packed as its settings say.
fn compressor(cx: &Context<'_>, kernel: &Kernel, knows: &dyn Fn(&str) -> bool) -> Option<&'static str> {
    let config = cx.text(format!("/boot/config-{}", kernel.version)).ok().flatten();
    let unpacks = |setting: &str| config.as_ref().map(|text| text.lines().any(|line| line == setting));
    if has_program(cx, "zstd") && knows("zstd") && unpacks("CONFIG_RD_ZSTD=y") == Some(true) {
        return Some("zstd -1 -q");
    }
    // All kernels could, until they could be asked.
    (has_program(cx, "gzip") && unpacks("CONFIG_RD_GZIP=y").unwrap_or(true)).then_some("gzip -1 -n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::Step;
    use crate::testing::{MemFs, run_step};

    const STEP: Step = Step { name: "dracut", about: "", run: configure };

    #[test]
    fn lists_lose_xens_drivers_and_gain_virtios() {
        let base = MemFs::new().file("/etc/dracut.conf", "# add_drivers+=\" xen-blkfront \"\nhostonly=\"yes\"\n").file(
            "/etc/dracut.conf.d/xen.conf",
            "add_drivers+=\" xen-vbd xen-vnif ext4 \" # for Xen\nforce_drivers+=\" xen-blkfront \"\nomit_drivers+=' virtio_blk floppy '\n",
        );
        run_step(&base, &STEP, |cx| {
            assert_eq!(cx.show("/etc/dracut.conf"), "# add_drivers+=\" xen-blkfront \"\nhostonly=\"yes\"\n");
            assert_eq!(cx.show("/etc/dracut.conf.d/xen.conf"), "add_drivers+=\" ext4 \" # for Xen\nomit_drivers+=' floppy '\n");
            assert_eq!(cx.show(SETTINGS), "add_drivers+=\" virtio_pci virtio_blk virtio_scsi virtio_net \"\n");
        });
        run_step(&MemFs::new(), &STEP, |cx| assert!(cx.fs.is_unchanged()));
    }

    #[test]
    fn packing_is_quick_where_the_kernel_can_unpack_it() {
        let dep = ("/lib/modules/6.1/modules.dep", "a/virtio_pci.ko:\na/virtio_blk.ko:\n");
        let guest = || MemFs::new().file(dep.0, dep.1).file("/usr/bin/gzip", "").file("/usr/bin/zstd", "");
        let kernel = Kernel { version: "6.1".into(), image: "/boot/vmlinuz-6.1".into(), initrd: None, unfit: None, pending: false };
        let (old, new) = ("# dracut 004: --no-compress", "# dracut 059: --no-hostonly --nostrip --compress zstd");
        let start = "dracut --force --no-hostonly --nostrip --compress";
        let end = "--add-drivers 'virtio_pci virtio_blk' /boot/initramfs-6.1.img 6.1";
        for (script, config, command) in [
            (new, "CONFIG_RD_GZIP=y\nCONFIG_RD_ZSTD=y\n", format!("{start} 'zstd -1 -q' {end}")),
            (new, "CONFIG_RD_GZIP=y\n", format!("{start} 'gzip -1 -n' {end}")),
            (new, "", format!("dracut --force --no-hostonly --nostrip {end}")),
            (old, "CONFIG_RD_GZIP=y\n", format!("dracut --force {end}")),
        ] {
            let guest = guest().file("/usr/bin/dracut", script).file("/boot/config-6.1", config);
            run_step(&guest, &Step { name: "build", about: "", run: |_| Ok(()) }, |cx| {
                let build = build(cx, &kernel, "/boot/initramfs-6.1.img").unwrap();
                cx.fs.command("test", build);
                assert_eq!(cx.fs.commands()[0].shown(), command);
            });
        }
    }
}
