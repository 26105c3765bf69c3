//! GRUB's files in the guest's tree.

use guestfs::{Attributes, Ext, FileType, GuestFs, GuestFsMut};

use super::{BootPlace, Grub, config, order};
use crate::Result;
use crate::guest::kernels::Kernel;

/// Where the boot loader's menu comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Configured {
    /// The guest's own `grub.cfg`, which its `update-grub` makes.
    GrubCfg,
    /// The guest's own `menu.lst`, which its `update-grub` makes: GRUB 2 reads it.
    MenuLst,
    /// The guest's own `extlinux.conf`, which a tool of its own makes: GRUB 2 reads it.
    Syslinux,
    /// A `grub.cfg` of ours that looks for kernels whenever the guest starts.
    FindsKernels,
}

/// What a configuration of ours starts.
#[derive(Clone, Copy, Debug)]
pub struct Menu<'a> {
    /// The value of the kernel's `root=`: `UUID=…`.
    pub root: &'a str,
    /// The rest of its command line.
    pub options: &'a str,
    /// The chosen kernel.
    pub kernel: Option<&'a Kernel>,
    /// Images in /boot that cannot start.
    pub unfit: &'a [String],
    /// syslinux's configuration, where that is the guest's own and stays the menu.
    pub syslinux: Option<&'a str>,
    /// The name of GRUB legacy's in `/boot/grub`, likewise.
    pub menu_lst: Option<&'a str>,
}

/// Puts GRUB's modules for a BIOS into `/boot/grub/i386-pc` of the guest, and a `grub.cfg` beside them where the guest has none.
pub fn install_files(fs: &mut dyn GuestFsMut, grub: &Grub, place: &BootPlace, wanted: &Menu<'_>) -> Result<Configured> {
    make_dirs(fs, if grub.is_for_bios() { b"/boot/grub/i386-pc" } else { b"/boot/grub" })?;
    let modules = if grub.is_for_bios() { grub.module_names()? } else { Vec::new() };
    for name in modules {
        let content = grub.read(&name)?;
        let path = [b"/boot/grub/i386-pc/", name.as_bytes()].concat();
        fs.write(&path, &mut content.as_slice(), Some(Attributes::root(0o644)))?;
    }
    let read = |path: &[u8]| fs.read(path, 1 << 20).map(|c| String::from_utf8_lossy(&c).into_owned()).unwrap_or_default();
    let has_entries =
        |text: &str| text.lines().any(|l| matches!(l.split_whitespace().next(), Some("menuentry" | "blscfg" | "linux" | "configfile")));
    let ours = |text: &str| text.starts_with(config::MARK);
    let existing = read(b"/boot/grub/grub.cfg");
    if has_entries(&existing) && !ours(&existing) {
        return Ok(Configured::GrubCfg);
    }
    let (text, configured) = if let Some(path) = wanted.syslinux {
        let seen = path.strip_prefix("/boot").map_or(path.to_owned(), |rest| format!("{}{rest}", place.boot_dir));
        (config::for_syslinux(place, &seen), Configured::Syslinux)
    } else if let Some(name) = wanted.menu_lst {
        (config::for_menu_lst(place, name), Configured::MenuLst)
    } else {
        let named = wanted.kernel.filter(|kernel| !config::is_found(kernel) || !order::starts(fs, kernel, wanted.unfit));
        (config::finds_kernels(place, wanted, named), Configured::FindsKernels)
    };
    fs.write(b"/boot/grub/grub.cfg", &mut text.as_bytes(), Some(Attributes::root(0o644)))?;
    Ok(configured)
}

fn make_dirs(fs: &mut dyn GuestFsMut, path: &[u8]) -> Result<()> {
    let ends = (1..path.len()).filter(|i| path[*i] == b'/').chain([path.len()]);
    for end in ends {
        match GuestFs::stat(fs, &path[..end]) {
            Ok(stat) if stat.kind == FileType::Directory => {}
            Err(guestfs::Error::NotFound(_)) => fs.mkdir(&path[..end], Attributes::root(0o755))?,
            Ok(_) => return Err(guestfs::Error::WrongType { path: path[..end].to_vec(), what: "not a directory" }.into()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
