//! Kernel command lines: what only Xen has goes, devices and consoles become the target's.

use super::devices::Devices;
use crate::target::Target;

/// The serial console that the result has.
pub const SERIAL_CONSOLE: &str = "console=ttyS0,115200n8";

/// How command lines change.
#[derive(Clone, Debug)]
pub struct Rewrite<'a> {
    /// Old device names and what they become.
    pub devices: &'a Devices,
    /// Where the guest goes.
    pub target: Target,
    /// Network interfaces keep the kernel's names: `net.ifnames=0 biosdevname=0`.
    pub kernel_nic_names: bool,
    /// The root device to name where the line names none that is known. Only for whole lines that are to start a system.
    pub root: Option<&'a str>,
    /// The kernel has no initrd, which alone understands UUIDs: the root is named by its device.
    pub by_name: bool,
}

/// Parameters that mean something only to a paravirtual guest. Those with `=` go whatever their value, others only as they stand.
const PARAVIRTUAL_ONLY: &[&str] =
    &["xencons=", "independent_wallclock=", "independent_wallclock", "earlyprintk=xen", "earlycon=xenboot", "xenfb", "video=xenfb"];

/// Parameters that name a device.
const DEVICES: &[&str] = &["root", "real_root", "resume", "real_resume", "boot", "cryptdevice", "cryptroot", "crypt_root"];

/// Parameters that mean something only on Xen, likewise.
const XEN_ONLY: &[&str] = &["clocksource=xen", "xen_emul_unplug=", "xen_blkfront.", "xen-blkfront.", "xen_netfront.", "xen-netfront."];

/// Consoles that only Xen has.
pub fn is_xen_console(tty: &str) -> bool {
    ["hvc", "xvc"].iter().any(|p| tty.strip_prefix(p).is_some_and(|n| n.starts_with(|c: char| c.is_ascii_digit())))
}

impl Rewrite<'_> {
    /// A part of a command line, to which nothing is added: an option list that is joined to others later.
    pub fn part(&self, line: &str) -> String {
        self.words(line, false)
    }

    /// A whole command line: messages go to the screen and the serial port, the login to the serial port.
    pub fn whole(&self, line: &str) -> String {
        self.words(line, true)
    }

    fn words(&self, line: &str, whole: bool) -> String {
        let mut words: Vec<String> = Vec::new();
        // After `--` come the init's own arguments.
        let (kernel, init) = match line.find(" -- ").or_else(|| line.ends_with(" --").then(|| line.len() - 3)) {
            Some(at) => line.split_at(at),
            None => (line, ""),
        };
        for word in kernel.split_ascii_whitespace() {
            if let Some(new) = self.word(word) {
                words.push(new);
            }
        }
        if whole {
            // The last console is /dev/console: where init writes and a login waits.
            if !words.iter().any(|w| w.starts_with("console=ttyS")) {
                words.retain(|w| w != "console=tty0");
                words.push("console=tty0".into());
                words.push(SERIAL_CONSOLE.into());
            }
            if self.kernel_nic_names {
                for name in ["net.ifnames", "biosdevname"] {
                    if !words.iter().any(|w| w.starts_with(&format!("{name}="))) {
                        words.push(format!("{name}=0"));
                    }
                }
            }
            if let Some(root) = self.root
                && !words.iter().any(|w| w.starts_with("root="))
            {
                words.insert(0, format!("root={root}"));
            }
        }
        let new = words.join(" ");
        let lead = &line[..line.len() - line.trim_start().len()];
        let trail = if init.is_empty() && !kernel.trim().is_empty() { &kernel[kernel.trim_end().len()..] } else { init };
        if !whole && words.iter().eq(kernel.split_ascii_whitespace().collect::<Vec<_>>().iter()) {
            return line.into();
        }
        format!("{lead}{new}{trail}")
    }

    fn word(&self, word: &str) -> Option<String> {
        let xen_only = XEN_ONLY.iter().filter(|_| !self.target.is_xen());
        if PARAVIRTUAL_ONLY.iter().chain(xen_only).any(|x| if x.ends_with(['=', '.']) { word.starts_with(x) } else { word == *x }) {
            return None;
        }
        if let Some(tty) = word.strip_prefix("console=") {
            return (!is_xen_console(tty)).then(|| word.into());
        }
        if let Some(options) = word.strip_prefix("rootflags=").and_then(|options| self.devices.in_options(options)) {
            return Some(format!("rootflags={options}"));
        }
        if let Some((name, value)) = word.split_once('=').filter(|(name, _)| DEVICES.contains(name)) {
            // mkinitcpio has the name of the opened volume behind its device.
            let (device, rest) = value.split_at(value.find(':').unwrap_or(value.len()));
            if let Some(new) = if self.by_name { self.devices.plain(device) } else { self.devices.stable(device) } {
                return Some(format!("{name}={new}{rest}"));
            }
        }
        Some(word.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{ROOT_UUID, SWAP_UUID, xen_tools_guest};

    fn with<T>(nic: bool, f: impl FnOnce(&Rewrite<'_>) -> T) -> T {
        let (source, layout) = xen_tools_guest();
        let devices = Devices::new(&source, &layout);
        f(&Rewrite { devices: &devices, target: Target::Kvm, kernel_nic_names: nic, root: None, by_name: false })
    }

    #[test]
    fn whole_lines() {
        with(false, |r| {
            for (old, new) in [
                (
                    "root=/dev/xvda2 ro elevator=noop ",
                    format!("root=UUID={ROOT_UUID} ro elevator=noop console=tty0 console=ttyS0,115200n8 "),
                ),
                ("root=/dev/sda2 ro console=hvc0 quiet", format!("root=UUID={ROOT_UUID} ro quiet console=tty0 console=ttyS0,115200n8")),
                (
                    "ro xencons=tty clocksource=xen independent_wallclock=1 console=tty0 console=xvc0 resume=/dev/xvda1 single",
                    format!("ro resume=UUID={SWAP_UUID} single console=tty0 console=ttyS0,115200n8"),
                ),
                ("root=/dev/mapper/vg-root ro console=ttyS0,9600", "root=/dev/mapper/vg-root ro console=ttyS0,9600".into()),
                (
                    "root=UUID=1 rootflags=subvol=@,device=/dev/xvda2,device=/dev/xvdb1 console=ttyS0",
                    "root=UUID=1 rootflags=subvol=@,device=/dev/vda2,device=/dev/vdb1 console=ttyS0".into(),
                ),
                ("root=/dev/xvdb1 -- splash", "root=/dev/vdb1 console=tty0 console=ttyS0,115200n8 -- splash".into()),
                ("", "console=tty0 console=ttyS0,115200n8".into()),
                (
                    "cryptdevice=/dev/xvda2:root:allow-discards root=/dev/mapper/root boot=/dev/xvda1 console=tty1 console=ttyS0",
                    format!(
                        "cryptdevice=UUID={ROOT_UUID}:root:allow-discards root=/dev/mapper/root boot=UUID={SWAP_UUID} console=tty1 console=ttyS0"
                    ),
                ),
            ] {
                assert_eq!(r.whole(old), new);
                assert_eq!(r.whole(&r.whole(old)), new, "twice is once");
            }
        });
    }

    #[test]
    fn parts_get_nothing_added_and_stay_untouched_where_nothing_is_xens() {
        with(true, |r| {
            assert_eq!(r.part("  quiet   splash "), "  quiet   splash ");
            assert_eq!(r.part("quiet console=hvc0"), "quiet");
            assert_eq!(r.part("console=hvc0"), "");
            assert_eq!(r.part(""), "");
        });
    }

    #[test]
    fn what_xens_drivers_understand_stays_on_xen() {
        with(false, |r| {
            let hvm = Rewrite { target: Target::XenHvm, ..r.clone() };
            let line = "xen_blkfront.max=64 clocksource=xen earlyprintk=xen console=hvc0 quiet";
            assert_eq!(hvm.part(line), "xen_blkfront.max=64 clocksource=xen quiet");
            assert_eq!(r.part(line), "quiet");
        });
    }

    #[test]
    fn nic_names_and_root_are_added_once() {
        with(true, |r| {
            assert_eq!(r.whole("ro net.ifnames=1"), "ro net.ifnames=1 console=tty0 console=ttyS0,115200n8 biosdevname=0");
            let root = Rewrite { root: Some("UUID=1"), ..r.clone() };
            assert_eq!(root.whole("ro"), "root=UUID=1 ro console=tty0 console=ttyS0,115200n8 net.ifnames=0 biosdevname=0");
        });
    }
}
