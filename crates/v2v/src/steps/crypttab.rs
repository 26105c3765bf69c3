//! `/etc/crypttab` names encrypted volumes by UUID, else by their new device name.

use crate::guest::text::{Line, fields, replaced};
use crate::step::{Context, Step};

pub(super) const STEP: Step = Step { name: "crypttab", about: "encrypted volumes have other device names on the new machine", run };

fn run(cx: &mut Context<'_>) -> crate::Result<()> {
    // Arch's initrds have the other.
    for path in ["/etc/crypttab", "/etc/crypttab.initramfs"] {
        edit(cx, path)?;
    }
    Ok(())
}

fn edit(cx: &mut Context<'_>, path: &str) -> crate::Result<()> {
    let devices = cx.devices.clone();
    cx.edit_lines(path, |line| {
        let words = fields(line);
        let (Some((_, name)), Some((range, device))) = (words.first().cloned(), words.get(1).cloned()) else { return Line::Keep };
        if name.starts_with('#') {
            return Line::Keep;
        }
        // Swap with a random key is made anew at each boot: it keeps no UUID.
        let fresh = words.get(2).is_some_and(|w| w.1.starts_with("/dev/") && w.1.ends_with("random"));
        let new = if fresh { devices.plain(device) } else { devices.stable(device) };
        Line::of(new.map(|new| replaced(line, range, &new)))
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{MemFs, ROOT_UUID, run_step};

    #[test]
    fn by_uuid_but_random_swap_by_name() {
        let old = "# <target> <source device> <key file> <options>\ndata\t/dev/xvda2  none  luks\ncswap /dev/xvda1 /dev/urandom swap,cipher=aes\nx UUID=7 none\n#y /dev/xvda2\n";
        run_step(&MemFs::new().file("/etc/crypttab", old), &STEP, |cx| {
            let new = old.replace("data\t/dev/xvda2", &format!("data\tUUID={ROOT_UUID}")).replace("/dev/xvda1", "/dev/vda1");
            assert_eq!(cx.show("/etc/crypttab"), new);
        });
    }
}
