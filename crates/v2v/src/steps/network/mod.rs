//! Every NIC keeps the name that the guest's configuration uses, by its MAC address.

mod names;
#[cfg(test)]
mod tests;

use guestfs::Ext;

use crate::Result;
use crate::guest::text::{Line, add_line};
use crate::step::{Context, Step};

pub(super) const STEP: Step = Step {
    name: "network",
    about: "a NIC on the new machine would get another name, and its addresses be lost: names are kept by MAC address",
    run,
};

/// Where udev's rules of old give names.
const RULES: &str = "/etc/udev/rules.d/70-persistent-net.rules";

fn run(cx: &mut Context<'_>) -> Result<()> {
    let macs: Vec<Option<String>> = cx.source.nics.iter().map(|n| n.mac.as_ref().map(|m| m.to_ascii_lowercase())).collect();
    other_drivers(cx, &macs)?;
    let names = names::names(cx, &macs, systemd_version(cx))?;
    // Names by the slot in which an emulated NIC sits are the guest's own business: only Xen's change.
    cx.facts.kernel_nic_names = !names.is_empty() && names.iter().all(|n| n.name.starts_with("eth"));
    for (i, (mac, names::Name { name, is_given })) in macs.iter().zip(&names).enumerate() {
        let Some(mac) = mac else {
            cx.warn(format!("NIC {i} has no MAC address in {}: it is {name} only if it stays the first of its kind", cx.source.origin));
            continue;
        };
        if !has_udev(cx) {
            cx.note(format!("{name} is the NIC with {mac}, as the kernel counts: there is no udev to tell"));
            continue;
        }
        if *is_given {
            // The guest's own file says it, by MAC address.
        } else if uses_rules(cx) {
            by_rule(cx, mac, name)?;
        } else {
            by_link(cx, mac, name)?;
        }
        cx.note(format!("{name} is the NIC with {mac}"));
    }
    Ok(())
}

/// Whether anything in the guest gives names; BusyBox's mdev does not.
fn has_udev(cx: &Context<'_>) -> bool {
    ["/etc/udev", "/lib/udev", "/usr/lib/udev", "/lib/systemd", "/usr/lib/systemd"].iter().any(|dir| cx.fs.is_dir(dir.as_bytes()))
        || ["udev", "systemd"].iter().any(|package| cx.packages.has(package))
}

/// Whether names are given by a file of udev rules, as before systemd's `.link` files or where Debian kept its generator (until 8).
fn uses_rules(cx: &Context<'_>) -> bool {
    let generator = |dir: &str| cx.fs.exists(format!("{dir}/udev/rules.d/75-persistent-net-generator.rules").as_bytes());
    generator("/lib") || generator("/usr/lib") || systemd_version(cx).map_or(!cx.fs.is_file(b"/lib/systemd/systemd-udevd"), |v| v < 209)
}

/// The version of systemd's udev: its package's, or the one in the name of the library that its programs share.
fn systemd_version(cx: &Context<'_>) -> Option<u32> {
    let library = |dir: &str| {
        let version =
            |name: Vec<u8>| std::str::from_utf8(&name).ok()?.strip_prefix("libsystemd-shared-")?.split(['.', '-']).next()?.parse().ok();
        cx.names(dir).into_iter().find_map(version)
    };
    let package = cx.packages.major("udev").or_else(|| cx.packages.major("systemd"));
    package.or_else(|| ["/usr/lib/systemd", "/lib/systemd", "/usr/lib64/systemd"].into_iter().find_map(library))
}

fn by_link(cx: &mut Context<'_>, mac: &str, name: &str) -> Result<()> {
    let path = format!("/etc/systemd/network/10-{name}.link");
    if cx.text(&path)?.is_some_and(|t| t.to_ascii_lowercase().contains(mac)) {
        return Ok(());
    }
    // Bridges and VLANs carry the MAC of their NIC: the driver tells them apart.
    let driver = cx.drivers().nic_in_udev;
    let text = format!("[Match]\nMACAddress={mac}\nDriver={driver}\n\n[Link]\nName={name}\n");
    cx.fs.put(path.as_bytes(), text.as_bytes(), None)?;
    Ok(())
}

fn by_rule(cx: &mut Context<'_>, mac: &str, name: &str) -> Result<()> {
    let old = cx.text(RULES)?;
    let old = old.as_deref().unwrap_or("");
    let is_ours = |l: &str| !l.trim_start().starts_with('#') && l.to_ascii_lowercase().contains(mac);
    if old.lines().any(|l| is_ours(l) && l.contains(&format!("NAME=\"{name}\""))) {
        return Ok(());
    }
    // A rule that gives the name to another MAC belongs to a NIC that is no more.
    let stale = |l: &str| !l.trim_start().starts_with('#') && l.contains(&format!("NAME=\"{name}\""));
    let kept: String = old.split_inclusive('\n').filter(|l| !is_ours(l) && !stale(l)).collect();
    let rule = if has_sysfs_rules(cx)? {
        format!("SUBSYSTEM==\"net\", ACTION==\"add\", SYSFS{{address}}==\"{mac}\", SYSFS{{type}}==\"1\", NAME=\"{name}\"")
    } else {
        format!(
            "SUBSYSTEM==\"net\", ACTION==\"add\", DRIVERS==\"?*\", ATTR{{address}}==\"{mac}\", ATTR{{type}}==\"1\", KERNEL==\"eth*\", NAME=\"{name}\""
        )
    };
    cx.fs.put(RULES.as_bytes(), add_line(&kept, &rule).as_bytes(), None)?;
    Ok(())
}

/// Whether udev's rules call a device's attributes `SYSFS{…}`, as they did before its version 98 (RHEL 5, SLES 10): that one knows no other name.
fn has_sysfs_rules(cx: &Context<'_>) -> Result<bool> {
    let mut old = false;
    for file in cx.names("/etc/udev/rules.d").into_iter().filter(|f| f.ends_with(b".rules")) {
        let Some(text) = cx.text([b"/etc/udev/rules.d/", &file[..]].concat())? else { continue };
        let has = |key: &str| text.lines().any(|l| !l.trim_start().starts_with('#') && l.contains(key));
        if has("ATTR{") || has("ATTRS{") {
            return Ok(false);
        }
        old |= has("SYSFS{");
    }
    Ok(old)
}

/// Rules and settings that know a NIC by Xen's driver or bus.
fn other_drivers(cx: &mut Context<'_>, macs: &[Option<String>]) -> Result<()> {
    let new = cx.drivers().nic_in_udev;
    if new == "vif" {
        return Ok(());
    }
    for dir in ["/etc/systemd/network", "/etc/netplan"] {
        for name in cx.names(dir) {
            cx.edit_lines([dir.as_bytes(), b"/", &name[..]].concat(), |line| {
                let (key, value) = line.split_once(['=', ':']).unwrap_or((line, ""));
                let driver = value.trim().trim_matches('"');
                let xen = key.trim().eq_ignore_ascii_case("driver") && matches!(driver, "vif" | "xen_netfront" | "xen-netfront");
                Line::of(xen.then(|| line.replace(driver, new)))
            })?;
        }
    }
    let numbers: Vec<usize> = cx.source.nics.iter().enumerate().map(|(i, nic)| nic.number(i)).collect();
    for name in cx.names("/etc/udev/rules.d").into_iter().filter(|n| n.ends_with(b".rules")) {
        cx.edit([b"/etc/udev/rules.d/", &name[..]].concat(), |text| {
            let mut text = text.to_string();
            for (number, mac) in numbers.iter().zip(macs) {
                if let Some(mac) = mac {
                    text = text.replace(&format!("KERNELS==\"vif-{number}\""), &format!("ATTR{{address}}==\"{mac}\""));
                }
            }
            text.replace("DRIVERS==\"vif\"", &format!("DRIVERS==\"{new}\""))
        })?;
    }
    Ok(())
}
