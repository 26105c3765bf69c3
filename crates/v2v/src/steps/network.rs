//! Every NIC keeps the name that the guest's configuration uses, by its MAC address.

use std::collections::BTreeSet;

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
/// The first systemd that knows Xen's NICs, and calls them enX0 (systemd.net-naming-scheme(7)).
const NAMES_XEN: u32 = 250;

fn run(cx: &mut Context<'_>) -> Result<()> {
    let macs: Vec<Option<String>> = cx.source.nics.iter().map(|n| n.mac.as_ref().map(|m| m.to_ascii_lowercase())).collect();
    other_drivers(cx, &macs)?;
    let names = names(cx, &macs)?;
    // Names by the slot in which an emulated NIC sits are the guest's own business: only Xen's change.
    cx.facts.kernel_nic_names = !names.is_empty() && names.iter().all(|n| n.starts_with("eth"));
    for (i, (mac, name)) in macs.iter().zip(&names).enumerate() {
        let Some(mac) = mac else {
            cx.warn(format!("NIC {i} has no MAC address in {}: it is {name} only if it stays the first of its kind", cx.source.origin));
            continue;
        };
        if !has_udev(cx) {
            cx.note(format!("{name} is the NIC with {mac}, as the kernel counts: there is no udev to tell"));
            continue;
        }
        if uses_rules(cx) {
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

/// What each NIC was called on Xen.
fn names(cx: &Context<'_>, macs: &[Option<String>]) -> Result<Vec<String>> {
    let configured = configured(cx)?;
    let with = |prefix: &str| configured.iter().any(|n| n.starts_with(prefix));
    let xen_names = with("enX") || !with("eth") && systemd_version(cx).is_some_and(|v| v >= NAMES_XEN);
    let mut names = Vec::new();
    for (i, mac) in macs.iter().enumerate() {
        let known = match mac {
            Some(mac) => match ruled(cx, mac)? {
                Some(name) => Some(name),
                None => by_ifcfg(cx, mac)?,
            },
            None => None,
        };
        names.push(known.unwrap_or_else(|| if xen_names { format!("enX{i}") } else { format!("eth{i}") }));
    }
    Ok(names)
}

/// The name that a udev rule of the guest gives a MAC.
fn ruled(cx: &Context<'_>, mac: &str) -> Result<Option<String>> {
    for file in cx.names("/etc/udev/rules.d") {
        if !file.ends_with(b".rules") {
            continue;
        }
        let Some(text) = cx.text([b"/etc/udev/rules.d/", &file[..]].concat())? else { continue };
        let of_mac = |l: &&str| !l.trim_start().starts_with('#') && l.to_ascii_lowercase().contains(mac);
        let name = text.lines().filter(of_mac).find_map(|l| Some(l.split_once("NAME=\"")?.1.split_once('"')?.0.to_string()));
        if name.as_ref().is_some_and(|n| !n.is_empty() && n.chars().all(|c| c.is_ascii_alphanumeric())) {
            return Ok(name);
        }
    }
    Ok(None)
}

/// Folders of Red Hat's and SUSE's files for an interface each.
const IFCFG: [&str; 2] = ["/etc/sysconfig/network-scripts", "/etc/sysconfig/network"];

/// The interface whose file names a MAC: Red Hat's scripts rename the NIC with it, whatever it was called.
fn by_ifcfg(cx: &Context<'_>, mac: &str) -> Result<Option<String>> {
    for dir in IFCFG {
        for file in cx.names(dir) {
            let Some(name) = std::str::from_utf8(&file).ok().and_then(|name| name.strip_prefix("ifcfg-")) else { continue };
            let Some(text) = cx.text(format!("{dir}/ifcfg-{name}"))? else { continue };
            let value = |line: &str| Some(line.split_once('=')?.1.trim().trim_matches(['"', '\'']).to_ascii_lowercase());
            let is_its = |line: &str| ["HWADDR=", "LLADDR="].iter().any(|key| line.starts_with(key)) && value(line).as_deref() == Some(mac);
            // A backup is no interface, and a VLAN or bridge has the name of one.
            if is_name(name) && text.lines().any(is_its) {
                return Ok(Some(name.into()));
            }
        }
    }
    Ok(None)
}

/// Names of network interfaces that configuration files mention.
fn configured(cx: &Context<'_>) -> Result<BTreeSet<String>> {
    let mut files: Vec<Vec<u8>> = vec![b"/etc/network/interfaces".to_vec()];
    for dir in ["/etc/network/interfaces.d", "/etc/netplan", "/etc/systemd/network", "/etc/NetworkManager/system-connections"] {
        files.extend(cx.names(dir).into_iter().map(|n| [dir.as_bytes(), b"/", &n[..]].concat()));
    }
    let mut names = BTreeSet::new();
    for file in files {
        let Some(text) = cx.text(file)? else { continue };
        for line in text.lines().filter(|l| !l.trim_start().starts_with('#')) {
            names.extend(line.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| is_name(word)).map(String::from));
        }
    }
    for file in IFCFG.into_iter().flat_map(|dir| cx.names(dir)) {
        let name = std::str::from_utf8(&file).ok().and_then(|name| name.strip_prefix("ifcfg-"));
        names.extend(name.filter(|name| is_name(name)).map(String::from));
    }
    Ok(names)
}

/// Whether the kernel, or systemd for a NIC of Xen's, gives such names: `eth0`, `enX0`.
fn is_name(word: &str) -> bool {
    ["eth", "enX"].iter().any(|p| word.strip_prefix(p).is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit())))
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
    for name in cx.names("/etc/udev/rules.d").into_iter().filter(|n| n.ends_with(b".rules")) {
        cx.edit([b"/etc/udev/rules.d/", &name[..]].concat(), |text| {
            let mut text = text.to_string();
            for (i, mac) in macs.iter().enumerate() {
                if let Some(mac) = mac {
                    text = text.replace(&format!("KERNELS==\"vif-{i}\""), &format!("ATTR{{address}}==\"{mac}\""));
                }
            }
            text.replace("DRIVERS==\"vif\"", &format!("DRIVERS==\"{new}\""))
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{MemFs, run_step};

    const XEN_TOOLS: &str =
        "auto lo\niface lo inet loopback\n\n# The primary network interface\nauto eth0\niface eth0 inet static\n address 192.168.77.10\n";

    fn status(package: &str, version: &str) -> String {
        format!("Package: {package}\nStatus: install ok installed\nVersion: {version}\n")
    }

    #[test]
    fn bookworm_keeps_eth0_by_a_link_file() {
        let base = MemFs::new().file("/etc/network/interfaces", XEN_TOOLS).file("/var/lib/dpkg/status", status("udev", "252.39-1~deb12u1"));
        run_step(&base, &STEP, |cx| {
            assert_eq!(
                cx.show("/etc/systemd/network/10-eth0.link"),
                "[Match]\nMACAddress=00:16:3e:00:00:01\nDriver=virtio_net\n\n[Link]\nName=eth0\n"
            );
            assert!(cx.facts.kernel_nic_names);
            assert_eq!(cx.reports[0].changed, ["/etc/systemd/network/10-eth0.link"]);
        });
    }

    #[test]
    fn trixie_keeps_enx0_where_its_configuration_says_so() {
        let netplan = "network:\n  ethernets:\n    enX0:\n      match:\n        driver: xen_netfront\n      dhcp4: true\n";
        let base = MemFs::new().file("/etc/netplan/01.yaml", netplan).file("/var/lib/dpkg/status", status("systemd", "257.8-1"));
        run_step(&base, &STEP, |cx| {
            assert!(cx.show("/etc/systemd/network/10-enX0.link").ends_with("Name=enX0\n"));
            assert!(!cx.facts.kernel_nic_names);
            assert_eq!(cx.show("/etc/netplan/01.yaml"), netplan.replace("xen_netfront", "virtio_net"));
        });
        let base = MemFs::new().file("/etc/network/interfaces", XEN_TOOLS).file("/var/lib/dpkg/status", status("systemd", "257.8-1"));
        run_step(&base, &STEP, |cx| assert!(cx.show("/etc/systemd/network/10-eth0.link").ends_with("Name=eth0\n")));
        // Debian 12's knows them too.
        let base =
            MemFs::new().file("/etc/network/interfaces", "auto lo\n").file("/var/lib/dpkg/status", status("udev", "252.39-1~deb12u2"));
        run_step(&base, &STEP, |cx| assert!(cx.show("/etc/systemd/network/10-enX0.link").ends_with("Name=enX0\n")));
    }

    #[test]
    fn wheezy_and_jessie_get_a_rule() {
        let base = MemFs::new()
            .file("/etc/network/interfaces", XEN_TOOLS)
            .file("/lib/udev/rules.d/75-persistent-net-generator.rules", "")
            .file(RULES, "# kept\nSUBSYSTEM==\"net\", ATTR{address}==\"00:0c:29:00:00:09\", NAME=\"eth0\"\nSUBSYSTEM==\"net\", ATTR{address}==\"00:0c:29:00:00:08\", NAME=\"eth7\"\n");
        run_step(&base, &STEP, |cx| {
            let rules = cx.show(RULES);
            assert!(rules.starts_with("# kept\n") && rules.contains("eth7") && !rules.contains("00:0c:29:00:00:09"), "{rules}");
            assert!(
                rules.ends_with("ATTR{address}==\"00:16:3e:00:00:01\", ATTR{type}==\"1\", KERNEL==\"eth*\", NAME=\"eth0\"\n"),
                "{rules}"
            );
        });
    }

    #[test]
    fn a_rule_of_the_guest_says_the_name() {
        let rule = "SUBSYSTEM==\"net\", DRIVERS==\"?*\", ATTRS{address}==\"00:16:3E:00:00:01\", NAME=\"eth3\"\n";
        let base = MemFs::new().file(RULES, rule).file("/lib/udev/rules.d/75-persistent-net-generator.rules", "");
        run_step(&base, &STEP, |cx| {
            assert!(cx.fs.is_unchanged());
            assert_eq!(cx.reports[0].notes, ["eth3 is the NIC with 00:16:3e:00:00:01"]);
        });
    }

    #[test]
    fn red_hats_and_suses_files_say_the_name() {
        let mac = "00:16:3E:00:00:01";
        let centos7 = MemFs::new()
            .file("/etc/sysconfig/network-scripts/ifcfg-eth0", "DEVICE=eth0\nHWADDR=00:16:3E:00:00:09\n")
            .file("/etc/sysconfig/network-scripts/ifcfg-eth2", format!("DEVICE=eth2\nHWADDR=\"{mac}\"\nIPADDR=10.0.0.2\n"))
            .file("/lib/systemd/systemd-udevd", "");
        run_step(&centos7, &STEP, |cx| {
            assert!(cx.show("/etc/systemd/network/10-eth2.link").ends_with("Name=eth2\n"));
            assert!(cx.facts.kernel_nic_names);
        });
        let centos5 =
            MemFs::new().dir("/etc/udev/rules.d").file("/etc/sysconfig/network-scripts/ifcfg-eth0", "DEVICE=eth0\nBOOTPROTO=dhcp\n");
        run_step(&centos5, &STEP, |cx| assert!(cx.show(RULES).ends_with("NAME=\"eth0\"\n")));
        // Where systemd knows Xen's NICs, a configuration for eth0 says that it did not name them.
        for (file, name) in [("/etc/sysconfig/network/ifcfg-eth0", "eth0"), ("/etc/sysconfig/network/config", "enX0")] {
            let tumbleweed = MemFs::new().file(file, "BOOTPROTO='dhcp'\n").file("/usr/lib/systemd/libsystemd-shared-257.so", "");
            run_step(&tumbleweed, &STEP, |cx| assert!(cx.show(&format!("/etc/systemd/network/10-{name}.link")).contains(name)));
        }
    }

    #[test]
    fn rules_by_xens_bus_become_rules_by_mac() {
        let base = MemFs::new()
            .file("/etc/udev/rules.d/10-net.rules", "SUBSYSTEM==\"net\", KERNELS==\"vif-0\", NAME=\"lan\"\n")
            .file("/etc/systemd/network/a.network", "[Match]\nDriver=vif\n")
            .file("/var/lib/dpkg/status", status("udev", "247.3-7"));
        run_step(&base, &STEP, |cx| {
            assert_eq!(
                cx.show("/etc/udev/rules.d/10-net.rules"),
                "SUBSYSTEM==\"net\", ATTR{address}==\"00:16:3e:00:00:01\", NAME=\"lan\"\n"
            );
            assert_eq!(cx.show("/etc/systemd/network/a.network"), "[Match]\nDriver=virtio_net\n");
            assert!(cx.show("/etc/systemd/network/10-lan.link").contains("Name=lan"));
        });
    }
}
