//! What a Linux guest's configuration is made of, read and rewritten without losing anything that a person wrote.

pub mod cmdline;
pub mod compressed;
pub mod cpio;
pub mod deb;
pub mod devices;
pub mod drivers;
pub mod grub;
pub mod grubenv;
pub mod kernels;
pub mod menus;
pub mod mounts;
pub mod packages;
pub mod pkginfo;
pub mod rpm;
pub mod sysv;
pub mod text;

use guestfs::{Ext, GuestFs};

/// Whether a guest has a program where an administrator's shell looks.
pub fn has_program(fs: &dyn GuestFs, program: &str) -> bool {
    ["/usr/sbin/", "/sbin/", "/usr/bin/", "/bin/"].iter().any(|dir| fs.is_file(format!("{dir}{program}").as_bytes()))
}
