//! What each NIC was called on Xen, as the guest's own configuration tells.

use std::collections::BTreeSet;

use guestfs::GuestFs;

use crate::Result;
use crate::guest::grub::{GRUB_CFG, MENU_LST, SYSLINUX};
use crate::guest::kernels::compare_versions;
use crate::source::Boot;
use crate::step::Context;

/// The first systemd that knows Xen's NICs, and calls them enX0 (systemd.net-naming-scheme(7)).
const NAMES_XEN: u32 = 250;

/// Folders of Red Hat's and SUSE's files for an interface each.
const IFCFG: [&str; 2] = ["/etc/sysconfig/network-scripts", "/etc/sysconfig/network"];
/// Folders of systemd's `.link` files, the first one that has a file of a name wins.
const LINKS: [&str; 3] = ["/etc/systemd/network", "/usr/lib/systemd/network", "/lib/systemd/network"];
/// Files of ifupdown, Gentoo's netifrc, Slackware's scripts and dhcpcd.
const FILES: [&str; 4] = ["/etc/network/interfaces", "/etc/conf.d/net", "/etc/rc.d/rc.inet1.conf", "/etc/dhcpcd.conf"];
const KEYFILES: &str = "/etc/NetworkManager/system-connections";
const NETPLAN: &str = "/etc/netplan";

/// The name of a NIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name {
    pub name: String,
    /// The guest gives it by MAC address itself.
    pub is_given: bool,
}

/// What each NIC was called on Xen.
pub(super) fn names(cx: &Context<'_>, macs: &[Option<String>], systemd: Option<u32>) -> Result<Vec<Name>> {
    let configured = configured(cx)?;
    let with = |prefix: &str| configured.iter().any(|n| n.starts_with(prefix));
    let by_kernel = with("eth") || with("enX");
    let by_systemd = systemd.is_some_and(|v| v >= NAMES_XEN) && !keeps_the_kernels(cx)?;
    let xen_names = with("enX") || !with("eth") && by_systemd;
    // Names by an emulated NIC's slot: with as many of them as there are NICs it is clear which is whose.
    let mut by_slot: Vec<&String> = configured.iter().filter(|n| is_by_slot(n)).collect();
    by_slot.sort_by(|a, b| compare_versions(a, b));
    by_slot.retain(|_| !by_kernel);
    let mut names = Vec::new();
    for (i, mac) in macs.iter().enumerate() {
        let own = |name: String, is_given| Name { name, is_given };
        let known = match mac {
            Some(mac) => match given(cx, mac)? {
                Some(name) => Some(own(name, true)),
                None => said(cx, mac)?.map(|name| own(name, false)),
            },
            None => None,
        };
        let slot = by_slot.get(i).filter(|_| by_slot.len() == macs.len()).map(|name| own(name.to_string(), false));
        // systemd takes the number of Xen's; the kernel counts.
        let kernels = || {
            own(if xen_names { format!("enX{}", cx.source.nics.get(i).map_or(i, |nic| nic.number(i))) } else { format!("eth{i}") }, false)
        };
        names.push(known.or(slot).unwrap_or_else(kernels));
    }
    Ok(names)
}

/// Whether the guest has udev leave the names that the kernel gives.
fn keeps_the_kernels(cx: &Context<'_>) -> Result<bool> {
    let masks = ["/etc/systemd/network/99-default.link", "/etc/udev/rules.d/80-net-setup-link.rules"];
    if masks.iter().any(|path| cx.fs.readlink(path.as_bytes()).is_ok_and(|to| to == b"/dev/null")) {
        return Ok(true);
    }
    let has = |text: &str| text.contains("net.ifnames=0");
    if matches!(&cx.source.boot, Boot::Direct { cmdline, .. } if has(cmdline)) {
        return Ok(true);
    }
    for menu in GRUB_CFG.iter().chain(MENU_LST).chain(SYSLINUX).chain(&["/etc/default/grub", "/etc/kernel/cmdline"]) {
        if cx.text(menu)?.is_some_and(|text| has(&text)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The name that the guest itself gives the NIC with a MAC: by a `.link` file, or by netplan, which makes one.
fn given(cx: &Context<'_>, mac: &str) -> Result<Option<String>> {
    for dir in LINKS {
        for file in cx.names(dir).into_iter().filter(|n| n.ends_with(b".link")) {
            let Some(text) = cx.text([dir.as_bytes(), b"/", &file[..]].concat())? else { continue };
            let value = |key: &str| text.lines().find_map(|l| Some(l.trim().strip_prefix(key)?.trim_start().strip_prefix('=')?.trim()));
            let is_its = |l: &str| {
                let (key, value) = l.split_once('=').unwrap_or((l, ""));
                let macs = value.split_ascii_whitespace().any(|m| m.eq_ignore_ascii_case(mac));
                matches!(key.trim(), "MACAddress" | "PermanentMACAddress") && macs
            };
            if text.lines().any(|l| is_its(l.trim()))
                && let Some(name) = value("Name").filter(|n| is_plain(n))
            {
                return Ok(Some(name.into()));
            }
        }
    }
    for file in cx.names(NETPLAN).into_iter().filter(|n| n.ends_with(b".yaml")) {
        let Some(text) = cx.text([NETPLAN.as_bytes(), b"/", &file[..]].concat())? else { continue };
        if let Some(name) = netplan_name(&text, mac) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// The `set-name` of the interface that netplan matches by a MAC: both stand in one block, which is indented more than its head.
fn netplan_name(text: &str, mac: &str) -> Option<String> {
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty() && !l.trim_start().starts_with('#')).collect();
    let indent = |l: &str| l.len() - l.trim_start().len();
    let value = |l: &str, key: &str| {
        let value = l.trim().strip_prefix(key)?.trim_start().strip_prefix(':')?.split(" #").next()?;
        Some(value.trim().trim_matches(['"', '\'']).to_string())
    };
    let is_match = |l: &str| l.trim().starts_with("match:");
    let is_its = |l: &str| {
        let inline = is_match(l) && l.to_ascii_lowercase().contains(mac);
        inline || value(l, "macaddress").is_some_and(|m| m.eq_ignore_ascii_case(mac))
    };
    let at = lines.iter().position(|l| is_its(l))?;
    // `macaddress` lies in `match`, and that in the interface's block.
    let up = |from: usize| lines[..from].iter().rposition(|l| indent(l) < indent(lines[from]));
    let matching = if is_match(lines[at]) { at } else { up(at).filter(|i| is_match(lines[*i]))? };
    let head = up(matching)?;
    let block = lines[head + 1..].iter().take_while(|l| indent(l) > indent(lines[head]));
    block.filter_map(|l| value(l, "set-name")).find(|n| is_plain(n))
}

/// The name that a configuration for a MAC uses, which needs the NIC to be called so.
fn said(cx: &Context<'_>, mac: &str) -> Result<Option<String>> {
    if let Some(name) = ruled(cx, mac)? {
        return Ok(Some(name));
    }
    if let Some(name) = by_ifcfg(cx, mac)? {
        return Ok(Some(name));
    }
    by_keyfile(cx, mac)
}

/// The name that a udev rule of the guest gives a MAC.
fn ruled(cx: &Context<'_>, mac: &str) -> Result<Option<String>> {
    for file in cx.names("/etc/udev/rules.d") {
        if !file.ends_with(b".rules") {
            continue;
        }
        let Some(text) = cx.text([b"/etc/udev/rules.d/", &file[..]].concat())? else { continue };
        let of_mac = |l: &&str| !l.trim_start().starts_with('#') && l.to_ascii_lowercase().contains(mac);
        let given = |l: &str| Some(l.split_once("NAME=\"").or(l.split_once("NAME:=\""))?.1.split_once('"')?.0.to_string());
        if let Some(name) = text.lines().filter(of_mac).find_map(given).filter(|name| is_plain(name)) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

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

/// The interface that a connection of NetworkManager's with a MAC is bound to.
fn by_keyfile(cx: &Context<'_>, mac: &str) -> Result<Option<String>> {
    for file in cx.names(KEYFILES) {
        let Some(text) = cx.text([KEYFILES.as_bytes(), b"/", &file[..]].concat())? else { continue };
        let value = |key: &str| text.lines().find_map(|l| Some(l.trim().strip_prefix(key)?.trim_start().strip_prefix('=')?.trim()));
        if value("mac-address").is_some_and(|m| m.eq_ignore_ascii_case(mac))
            && let Some(name) = value("interface-name").filter(|n| is_name(n) || is_by_slot(n))
        {
            return Ok(Some(name.into()));
        }
    }
    Ok(None)
}

/// Names of network interfaces that configuration files mention.
fn configured(cx: &Context<'_>) -> Result<BTreeSet<String>> {
    let mut files: Vec<Vec<u8>> = FILES.map(|file| file.as_bytes().to_vec()).to_vec();
    for dir in ["/etc/network/interfaces.d", NETPLAN, LINKS[0], KEYFILES, "/etc/netctl"] {
        files.extend(cx.names(dir).into_iter().map(|n| [dir.as_bytes(), b"/", &n[..]].concat()));
    }
    let mut names = BTreeSet::new();
    for file in files {
        let Some(text) = cx.text(file)? else { continue };
        for line in text.lines().filter(|l| !l.trim_start().starts_with('#')) {
            let words = line.split(|c: char| !c.is_ascii_alphanumeric());
            names.extend(words.filter(|word| is_name(word) || is_by_slot(word)).map(String::from));
        }
    }
    for file in IFCFG.into_iter().chain(["/etc/init.d"]).flat_map(|dir| cx.names(dir)) {
        // Gentoo has a link for each interface: net.eth0.
        let name = std::str::from_utf8(&file).ok().and_then(|name| name.strip_prefix("ifcfg-").or(name.strip_prefix("net.")));
        names.extend(name.filter(|name| is_name(name) || is_by_slot(name)).map(String::from));
    }
    Ok(names)
}

/// Whether the kernel, or systemd for a NIC of Xen's, gives such names: `eth0`, `enX0`.
fn is_name(word: &str) -> bool {
    ["eth", "enX"].iter().any(|p| word.strip_prefix(p).is_some_and(is_number))
}

/// Whether systemd gives such names by a NIC's place in the machine: `ens3`, `enp0s3`, `eno1`.
fn is_by_slot(word: &str) -> bool {
    let simple = ["ens", "eno"].iter().any(|p| word.strip_prefix(p).is_some_and(is_number));
    simple || word.strip_prefix("enp").and_then(|w| w.split_once('s')).is_some_and(|(bus, slot)| is_number(bus) && is_number(slot))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// A name of an interface that may stand in a file as it is.
fn is_plain(name: &str) -> bool {
    (1..16).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}
