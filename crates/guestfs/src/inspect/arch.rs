//! The architecture of a guest's programs, from an ELF header.

use crate::bytes::{be16, le16};
use crate::{Ext, GuestFs};

/// Programs that a root has, tried in this order.
const PROGRAMS: &[&str] =
    &["/bin/bash", "/bin/ls", "/bin/echo", "/bin/rm", "/bin/sh", "/bin/busybox", "/usr/lib/systemd/systemd", "/sbin/init"];

/// The architecture of a root's programs; `unknown` when there is none to look at.
pub fn detect(fs: &dyn GuestFs) -> &'static str {
    PROGRAMS.iter().find_map(|p| of_program(fs, p.as_bytes())).unwrap_or("unknown")
}

/// Which processors a program is for, if it is one.
pub fn of_program(fs: &dyn GuestFs, path: &[u8]) -> Option<&'static str> {
    if !fs.is_file(path) {
        return None;
    }
    let mut head = [0; 20];
    if fs.read_at(path, 0, &mut head).ok()? < 20 || !head.starts_with(b"\x7fELF") {
        return None;
    }
    let (wide, little) = (head[4] == 2, head[5] == 1);
    let machine = if little { le16(&head, 18) } else { be16(&head, 18) };
    Some(match (machine, wide, little) {
        (3, ..) => "i386",
        (62, ..) => "x86_64",
        (40, ..) => "arm",
        (183, ..) => "aarch64",
        (50, ..) => "ia64",
        (20, ..) => "ppc",
        (21, _, true) => "ppc64le",
        (21, _, false) => "ppc64",
        (22, true, _) => "s390x",
        (22, false, _) => "s390",
        (2 | 18, ..) => "sparc",
        (43, ..) => "sparc64",
        (243, true, _) => "riscv64",
        (243, false, _) => "riscv32",
        (258, ..) => "loongarch64",
        _ => return None,
    })
}
