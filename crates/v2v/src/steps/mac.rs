//! Where NICs get other MAC addresses, the guest's configuration names the new ones.

use guestfs::{FileType, GuestFs, GuestFsMut};

use crate::Result;
use crate::step::{Context, Step};

pub(super) const STEP: Step =
    Step { name: "mac", about: "NICs get other MAC addresses: configurations that name the old ones have to follow", run };

/// Files and folders in which a MAC address stands.
const PLACES: [&str; 11] = [
    "/etc/network/interfaces",
    "/etc/network/interfaces.d",
    "/etc/iftab",
    "/etc/udev/rules.d",
    "/etc/systemd/network",
    "/etc/netplan",
    "/etc/NetworkManager/system-connections",
    "/etc/sysconfig/network-scripts",
    "/etc/sysconfig/network",
    "/etc/sysconfig/SuSEfirewall2",
    "/etc/cloud/cloud.cfg.d",
];

fn run(cx: &mut Context<'_>) -> Result<()> {
    let changed = |nic: &crate::source::Nic| Some((nic.old_mac.clone()?, nic.mac.clone()?));
    let changed: Vec<_> = cx.source.nics.iter().filter_map(changed).filter(|(old, new)| old != new).collect();
    if changed.is_empty() {
        return Ok(());
    }
    for (old, new) in &changed {
        cx.note(format!("{old} becomes {new}"));
    }
    for place in PLACES {
        cx.edit(place, |text| replaced(text, &changed))?;
        for name in cx.names(place) {
            cx.edit([place.as_bytes(), b"/", &name[..]].concat(), |text| replaced(text, &changed))?;
        }
        rename(cx, place, &changed)?;
    }
    Ok(())
}

/// Files that have an address in their name, as SUSE's had (`ifcfg-eth-id-00:16:3e:…`): all at once, too.
fn rename(cx: &mut Context<'_>, dir: &str, changed: &[(String, String)]) -> Result<()> {
    let mut renamed = Vec::new();
    for name in cx.names(dir) {
        let Ok(old) = String::from_utf8(name) else { continue };
        let new = replaced(&old, changed);
        let is_file = || cx.fs.lstat(format!("{dir}/{old}").as_bytes()).is_ok_and(|stat| stat.kind != FileType::Directory);
        if new != old && is_file() {
            let aside = format!("{dir}/{old}.guestlift");
            cx.fs.rename(format!("{dir}/{old}").as_bytes(), aside.as_bytes())?;
            renamed.push((aside, format!("{dir}/{new}")));
        }
    }
    for (aside, new) in renamed {
        if cx.fs.lstat(new.as_bytes()).is_ok() {
            cx.warn(format!("{new} was there, for a NIC that is none of the source's, and is replaced"));
        }
        cx.fs.rename(aside.as_bytes(), new.as_bytes())?;
    }
    Ok(())
}

/// The text with every old address replaced, all at once: two NICs may have changed theirs for each other's.
fn replaced(text: &str, changed: &[(String, String)]) -> String {
    // ASCII only: as long as the text itself, and byte by byte.
    let lower = text.to_ascii_lowercase();
    let (mut out, mut at) = (String::with_capacity(text.len()), 0);
    while let Some(rest) = lower.get(at..) {
        let found = changed.iter().filter_map(|(old, new)| Some((rest.find(old.as_str())?, old, new))).min_by_key(|(place, ..)| *place);
        let Some((place, old, new)) = found else { break };
        out.push_str(text.get(at..at + place).unwrap_or_default());
        out.push_str(new);
        at += place + old.len();
    }
    out + text.get(at..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Nic;
    use crate::staged::Staged;
    use crate::testing::{MemFs, xen_tools_guest};

    #[test]
    fn configurations_follow() {
        let (one, two) = ("00:16:3e:00:00:01", "00:16:3e:00:00:02");
        let (mut source, layout) = xen_tools_guest();
        let nic = |old: &str, new: &str| Nic { mac: Some(new.into()), old_mac: Some(old.into()), ..Nic::default() };
        source.nics = vec![nic(one, two), nic(two, one)];
        let base = MemFs::new()
            .file("/etc/sysconfig/network-scripts/ifcfg-eth0", "DEVICE=eth0\nHWADDR=00:16:3E:00:00:01\nONBOOT=yes\n")
            .file("/etc/netplan/50.yaml", "macaddress: \"00:16:3e:00:00:02\"\n")
            .file("/etc/sysconfig/network/ifcfg-eth-id-00:16:3e:00:00:01", "IPADDR=10.0.0.1/24\n")
            .file("/etc/sysconfig/network/ifcfg-eth-id-00:16:3e:00:00:02", "IPADDR=10.0.0.2/24\n")
            .file("/etc/systemd/network/20-00:16:3e:00:00:01.network.d/x.conf", "[Network]\n")
            .file("/etc/network/interfaces", "auto eth0\n");
        let options = crate::step::Options::default();
        let mut cx = Context::new(&source, &layout, &options, Staged::new(&base)).unwrap();
        cx.run(&STEP).unwrap();
        assert_eq!(cx.show("/etc/sysconfig/network-scripts/ifcfg-eth0"), format!("DEVICE=eth0\nHWADDR={two}\nONBOOT=yes\n"));
        assert_eq!(cx.show("/etc/netplan/50.yaml"), format!("macaddress: \"{one}\"\n"));
        assert_eq!(cx.show(&format!("/etc/sysconfig/network/ifcfg-eth-id-{two}")), "IPADDR=10.0.0.1/24\n");
        assert_eq!(cx.show(&format!("/etc/sysconfig/network/ifcfg-eth-id-{one}")), "IPADDR=10.0.0.2/24\n");
        assert!(cx.reports[0].changed.iter().all(|path| !path.ends_with(".guestlift")), "{:?}", cx.reports[0].changed);
        // The names stay with the NICs, by their new addresses.
        cx.run(&super::super::network::STEP).unwrap();
        let network: String = cx.fs.diff().iter().map(|d| d.text.clone()).collect();
        assert!(network.contains(two), "{network}");
        let last = cx.reports.last().unwrap();
        assert!(last.notes.iter().any(|n| n.starts_with(&format!("eth0 is the NIC with {two}"))), "{:?}", last.notes);
    }

    #[test]
    fn nothing_changes_without_a_rule() {
        crate::testing::run_step(&MemFs::new().file("/etc/iftab", "eth0 mac 00:16:3e:00:00:01\n"), &STEP, |cx| {
            assert!(cx.fs.is_unchanged())
        });
    }
}
