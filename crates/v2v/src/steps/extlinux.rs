//! syslinux's configurations: `append` lines, and the settings from which extlinux-update makes them.

use crate::Result;
use crate::guest::cmdline::Rewrite;
use crate::guest::grub::SYSLINUX;
use crate::guest::text::{Line, fields};
use crate::step::{Context, Step};

pub(super) const STEP: Step = Step { name: "extlinux", about: "extlinux's entries name the new devices and consoles", run };

fn run(cx: &mut Context<'_>) -> Result<()> {
    let devices = cx.devices.clone();
    let words =
        Rewrite { devices: &devices, target: cx.options.target, kernel_nic_names: cx.facts.kernel_nic_names, root: None, by_name: false };
    for path in SYSLINUX {
        cx.edit_lines(path, |line| {
            let parts = fields(line);
            let Some((range, _)) = parts.first().filter(|w| w.1.eq_ignore_ascii_case("append")) else { return Line::Keep };
            let new = format!("{}{}", &line[..range.end], words.whole(&line[range.end..]));
            Line::of((new != line).then_some(new))
        })?;
    }
    cx.edit_lines("/etc/default/extlinux", |line| {
        let Some((name, value)) = line.split_once('=') else { return Line::Keep };
        let inner = value.trim_matches('"');
        let new = match name {
            "EXTLINUX_PARAMETERS" => words.whole(inner),
            "EXTLINUX_ROOT" => words.part(inner),
            _ => return Line::Keep,
        };
        Line::of((new != inner).then(|| format!("{name}=\"{new}\"")))
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{MemFs, ROOT_UUID, run_step};

    #[test]
    fn entries_and_settings() {
        let base = MemFs::new()
            .file("/boot/extlinux/extlinux.conf", "default l0\nlabel l0\n\tlinux /boot/vmlinuz-3.2\n\tinitrd /boot/initrd.img-3.2\n\tappend root=/dev/xvda2 ro console=hvc0\n")
            .file("/etc/default/extlinux", "EXTLINUX_UPDATE=\"true\"\nEXTLINUX_ROOT=\"root=/dev/xvda2\"\nEXTLINUX_PARAMETERS=\"ro quiet\"\n");
        run_step(&base, &STEP, |cx| {
            assert!(
                cx.show("/boot/extlinux/extlinux.conf")
                    .ends_with(&format!("\tappend root=UUID={ROOT_UUID} ro console=tty0 console=ttyS0,115200n8\n"))
            );
            assert_eq!(
                cx.show("/etc/default/extlinux"),
                format!(
                    "EXTLINUX_UPDATE=\"true\"\nEXTLINUX_ROOT=\"root=UUID={ROOT_UUID}\"\nEXTLINUX_PARAMETERS=\"ro quiet console=tty0 console=ttyS0,115200n8\"\n"
                )
            );
        });
    }
}
