//! MAC addresses of the result's NICs: the source's, those that the user asks for, or made up ones.

use crate::input::xen_vif;
use crate::source::{Nic, Source};
use crate::{Error, Result};

/// `--mac OLD=NEW` or `--mac INDEX=NEW`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MacRule {
    which: Which,
    new: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Which {
    Mac(String),
    Index(usize),
}

impl MacRule {
    /// Reads a rule.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = |what: &str| Error::Invalid(format!("--mac {}: {what}; write OLD=NEW, or 0=NEW for the first NIC", text.escape_debug()));
        let (which, new) = text.split_once('=').ok_or_else(|| bad("the new address is missing"))?;
        let new = xen_vif::mac(new).ok_or_else(|| bad("the new one is no MAC address"))?;
        let is_group = u8::from_str_radix(new.get(..2).unwrap_or_default(), 16).is_ok_and(|first| first & 1 == 1);
        if is_group || new == "00:00:00:00:00:00" {
            return Err(bad("the new address is not one that a NIC can have"));
        }
        let which = match (xen_vif::mac(which), which.parse()) {
            (Some(mac), _) => Which::Mac(mac),
            (None, Ok(index)) => Which::Index(index),
            (None, Err(_)) => return Err(bad("the old one is neither a MAC address nor a number")),
        };
        Ok(MacRule { which, new })
    }
}

/// Gives every NIC its address: a rule's, else its own, else a made up one, of which the source's warnings tell.
pub fn assign(source: &mut Source, rules: &[MacRule]) -> Result<()> {
    for rule in rules {
        let is_it = |(index, nic): (usize, &Nic)| match &rule.which {
            Which::Mac(mac) => nic.old_mac.as_ref().or(nic.mac.as_ref()) == Some(mac),
            Which::Index(wanted) => index == *wanted,
        };
        let Some(index) = source.nics.iter().enumerate().position(is_it) else {
            let known: Vec<_> = source.nics.iter().map(|n| n.mac.as_deref().unwrap_or("(none)")).collect();
            return Err(Error::Invalid(format!(
                "{}: --mac names a NIC that is not there; its NICs have {}",
                source.name,
                known.join(", ")
            )));
        };
        let nic = &mut source.nics[index];
        nic.old_mac = nic.mac.replace(rule.new.clone());
    }
    let seed = format!("{}\n{}", source.name, source.uuid.as_deref().unwrap_or_default());
    for (index, nic) in source.nics.iter_mut().enumerate().filter(|(_, n)| n.mac.is_none()) {
        let mac = made_up(&seed, index);
        source.warnings.push(format!("NIC {index} has no fixed MAC address on Xen: it gets {mac}"));
        nic.mac = Some(mac);
    }
    for (index, nic) in source.nics.iter().enumerate() {
        if source.nics[..index].iter().any(|before| before.mac == nic.mac) {
            let mac = nic.mac.as_deref().unwrap_or_default();
            return Err(Error::Invalid(format!(
                "{}: two NICs would have the address {mac}: give one another with --mac {index}=…",
                source.name
            )));
        }
    }
    Ok(())
}

/// A MAC address of QEMU's range that follows from the guest, so that converting it twice gives the same: FNV-1a.
fn made_up(seed: &str, index: usize) -> String {
    let text = format!("{seed}\n{index}");
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
    let bytes = (hash ^ hash >> 32).to_be_bytes();
    format!("52:54:00:{:02x}:{:02x}:{:02x}", bytes[5], bytes[6], bytes[7])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assigned(macs: &[Option<&str>], rules: &[&str]) -> Result<Vec<String>, String> {
        let (mut source, _) = crate::testing::xen_tools_guest();
        source.nics = macs.iter().map(|mac| Nic { mac: mac.map(Into::into), ..Nic::default() }).collect();
        let rules = rules.iter().map(|r| MacRule::parse(r)).collect::<Result<Vec<_>>>().map_err(|e| e.to_string())?;
        assign(&mut source, &rules).map_err(|e| e.to_string())?;
        Ok(source.nics.into_iter().filter_map(|n| n.mac).collect())
    }

    #[test]
    fn rules_go_by_address_and_by_number() {
        let (one, two) = ("00:16:3e:00:00:01", "00:16:3e:00:00:02");
        assert_eq!(assigned(&[Some(one), Some(two)], &[]).unwrap(), [one, two]);
        let swapped = assigned(&[Some(one), Some(two)], &["00:16:3E:00:00:01=00-16-3e-00-00-02", "1=00:16:3e:00:00:01"]).unwrap();
        assert_eq!(swapped, [two, one]);
        let made_up = assigned(&[None, Some(two)], &[]).unwrap();
        assert!(made_up[0].starts_with("52:54:00:") && made_up == assigned(&[None, Some(two)], &[]).unwrap());
        assert_eq!(assigned(&[None], &["0=00:16:3e:00:00:09"]).unwrap(), ["00:16:3e:00:00:09"]);
    }

    #[test]
    fn what_cannot_be_is_an_error() {
        let one = "00:16:3e:00:00:01";
        for (rule, error) in [
            (
                "00:16:3e:00:00:09=00:16:3e:00:00:03",
                "web: --mac names a NIC that is not there; its NICs have 00:16:3e:00:00:01, 00:16:3e:00:00:02",
            ),
            ("0=00:16:3e:00:00:02", "two NICs would have the address 00:16:3e:00:00:02"),
            ("0=01:16:3e:00:00:03", "not one that a NIC can have"),
            ("0=00:16", "the new one is no MAC address"),
            ("eth0=00:16:3e:00:00:03", "neither a MAC address nor a number"),
            ("0", "the new address is missing"),
        ] {
            let message = assigned(&[Some(one), Some("00:16:3e:00:00:02")], &[rule]).unwrap_err();
            assert!(message.contains(error), "{rule}: {message}");
        }
    }
}
