//! One NIC of a Xen configuration: xl-network-configuration(5).

use super::left_out;
use crate::source::Nic;

/// Parses one specification. An error says what is wrong, not where.
pub fn parse(text: &str) -> Result<Nic, String> {
    let mut nic = Nic::default();
    for parameter in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let Some((key, value)) = parameter.split_once('=') else {
            return Err(format!("'{parameter}' must be key=value"));
        };
        let value = value.trim();
        if value.is_empty() {
            continue;
        }
        match key.trim() {
            "mac" => nic.mac = Some(mac(value).ok_or_else(|| format!("mac={value} is no MAC address"))?),
            "bridge" => nic.bridge = Some(value.to_owned()),
            "ip" => nic.ip = value.split_whitespace().map(Into::into).collect(),
            "model" => nic.model = Some(value.to_owned()),
            "script" if !is_bridges(value) => nic.attached = Some(format!("by {value}")),
            "gatewaydev" | "netdev" => nic.attached = Some(format!("to {value} of its Xen host")),
            "backend" if !["0", "Domain-0"].contains(&value) => nic.attached = Some(format!("to the domain {value}")),
            "devid" => nic.device = Some(value.parse().map_err(|_| format!("devid={value} is no number"))?),
            // What these say concerns the Xen host only.
            _ => {}
        }
    }
    Ok(nic)
}

/// What a specification says of the NIC's place that no output can say, as warnings.
pub fn left_out(index: usize, text: &str) -> Vec<String> {
    let parameters = text.split(',').filter_map(|p| p.split_once('=')).map(|(key, value)| (key.trim(), value.trim()));
    let warning = |(key, value): (&str, &str)| match key {
        "vlan" => Some(left_out::vlan(index, value)),
        "script" if value.ends_with("vif-openvswitch") => Some(left_out::open_vswitch(index)),
        _ => None,
    };
    parameters.filter(|(_, value)| !value.is_empty()).filter_map(warning).collect()
}

/// Whether a script attaches to a bridge, which is named besides or Xen's own.
fn is_bridges(script: &str) -> bool {
    ["vif-bridge", "vif-openvswitch"].contains(&script.rsplit('/').next().unwrap_or(script))
}

/// A MAC address in the form of the outputs: lower case, colons.
pub fn mac(text: &str) -> Option<String> {
    let parts: Vec<&str> = text.split([':', '-']).collect();
    let part = |p: &&str| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit());
    (parts.len() == 6 && parts.iter().all(part)).then(|| parts.join(":").to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specifications() {
        let nic = |mac: Option<&str>, bridge: Option<&str>, ip: &[&str]| Nic {
            mac: mac.map(Into::into),
            bridge: bridge.map(Into::into),
            ip: ip.iter().map(|i| (*i).to_owned()).collect(),
            ..Nic::default()
        };
        for (text, expected) in [
            ("", nic(None, None, &[])),
            ("ip=192.168.77.10 ,mac=00:16:3E:77:00:10", nic(Some("00:16:3e:77:00:10"), None, &["192.168.77.10"])),
            ("mac=00:16:3e:0a:0b:0c,bridge=xenbr0,script=vif-bridge", nic(Some("00:16:3e:0a:0b:0c"), Some("xenbr0"), &[])),
            ("ip=10.0.0.1 10.0.0.2, vifname=web.0, rate=10Mb/s", nic(None, None, &["10.0.0.1", "10.0.0.2"])),
            ("bridge=", nic(None, None, &[])),
        ] {
            assert_eq!(parse(text).as_ref(), Ok(&expected), "{text}");
        }
        assert_eq!(parse("type=ioemu,model=e1000").unwrap().model.as_deref(), Some("e1000"));
        for (text, warning) in [
            ("bridge=xenbr0,vlan=10", "NIC 3 was in VLAN 10: "),
            ("bridge=ovsbr0, script=vif-openvswitch", "NIC 3 was on a bridge of Open vSwitch: "),
        ] {
            let warnings = left_out(3, text);
            assert!(matches!(&warnings[..], [one] if one.starts_with(warning)), "{text}: {warnings:?}");
        }
        assert_eq!(parse("script=/etc/xen/scripts/vif-route").unwrap().attached.as_deref(), Some("by /etc/xen/scripts/vif-route"));
        assert_eq!(parse("backend=router").unwrap().attached.as_deref(), Some("to the domain router"));
        assert!(left_out(0, "mac=00:16:3e:0a:0b:0c,bridge=xenbr0,script=vif-bridge,vlan=").is_empty());
        assert_eq!(parse("devid=2").unwrap().device, Some(2));
        for text in ["devid=x", "mac=00:16:3e", "mac=00:16:3e:00:00:0g", "dhcp"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
