//! dracut, of Red Hat's family from 6, SUSE's from 12, and others.

use guestfs::Ext;
use guestfs::engine::Command;

use super::{Builder, has_program, modular};
use crate::Result;
use crate::guest::drivers::fitting;
use crate::guest::kernels::Kernel;
use crate::guest::text::{Line, word_list};
use crate::step::Context;

pub(super) const BUILDER: Builder = Builder { name: "dracut", is_there: |cx| has_program(cx, "dracut"), configure, build };

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
            Line::of((words != list.words).then(|| list.with(&words)))
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
    // The host that it would make an initrd for is the appliance. Old ones know only the other way, and need to be asked for it.
    let generic = PROGRAMS.iter().any(|program| cx.text(program).is_ok_and(|t| t.is_some_and(|t| t.contains("--no-hostonly"))));
    let words = ["dracut", "--force"].into_iter().chain(generic.then_some("--no-hostonly"));
    Some(Command::new(words.chain(["--add-drivers", &drivers, initrd, &kernel.version])))
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
            "add_drivers+=\" xen-vbd xen-vnif ext4 \" # for Xen\nomit_drivers+=' virtio_blk floppy '\n",
        );
        run_step(&base, &STEP, |cx| {
            assert_eq!(cx.show("/etc/dracut.conf"), "# add_drivers+=\" xen-blkfront \"\nhostonly=\"yes\"\n");
            assert_eq!(cx.show("/etc/dracut.conf.d/xen.conf"), "add_drivers+=\" ext4 \" # for Xen\nomit_drivers+=' floppy '\n");
            assert_eq!(cx.show(SETTINGS), "add_drivers+=\" virtio_pci virtio_blk virtio_scsi virtio_net \"\n");
        });
        run_step(&MemFs::new(), &STEP, |cx| assert!(cx.fs.is_unchanged()));
    }
}
