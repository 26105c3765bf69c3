//! One disk of a Xen configuration: xl-disk-configuration(5), with the older forms that it still takes.

/// A disk as its specification says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spec {
    /// The file or block device, as written, without prefixes; empty for an empty drive.
    pub target: String,
    /// `raw`, `qcow2`, `qcow`, `vhd`, `qed`; `None` where the specification leaves it open.
    pub format: Option<String>,
    /// The guest's name, without `/dev/`: `xvda2`.
    pub vdev: String,
    /// The guest may not write it.
    pub read_only: bool,
    /// Other guests may write it as well.
    pub shared: bool,
    /// A CD drive.
    pub cdrom: bool,
    /// A block device of the host (`phy:`): a relative target lies in /dev.
    pub phy: bool,
    /// Why it can't be found here by its target, in words that a colon may follow.
    pub elsewhere: Option<String>,
}

/// Prefixes that say where the target lies or who serves it. A format follows from some.
const PREFIXES: &[(&str, Option<&str>)] = &[
    ("tap2:", None),
    ("tap:", None),
    ("tapdisk:", None),
    ("aio:", None),
    ("ioemu:", None),
    ("file:", None),
    ("phy:", None),
    ("raw:", Some("raw")),
    ("qcow2:", Some("qcow2")),
    ("qcow:", Some("qcow")),
    ("vhd:", Some("vhd")),
];
/// Prefixes of targets that a script of the Xen host would set up.
const SCRIPTS: &[&str] = &["iscsi:", "drbd:", "nbd:", "enbd:", "e:"];
const FORMATS: &[&str] = &["raw", "qcow", "qcow2", "vhd", "qed", "empty"];

/// Whether this is a name of a disk or partition that Xen takes: `xvda2`, `/dev/sdb`, `hdc`, `d0p1`.
pub fn is_device(name: &str) -> bool {
    device(name).is_some()
}

/// The plain name: without `/dev/`, and `d0p2` as `xvda2`.
fn device(name: &str) -> Option<String> {
    let name = name.strip_prefix("/dev/").unwrap_or(name);
    let digits = |s: &str| s.len() <= 3 && s.bytes().all(|b| b.is_ascii_digit());
    if let Some(rest) = ["xvd", "vd", "sd", "hd"].iter().find_map(|p| name.strip_prefix(p)) {
        let letters = rest.bytes().take_while(u8::is_ascii_lowercase).count();
        return ((1..=3).contains(&letters) && digits(&rest[letters..])).then(|| name.to_owned());
    }
    let (disk, partition) = name.strip_prefix('d')?.split_once('p').unwrap_or((name.get(1..)?, "0"));
    if disk.is_empty() || partition.is_empty() || !digits(disk) || !digits(partition) {
        return None;
    }
    let number: u32 = disk.parse().ok()?;
    let letter = |n: u32| char::from(b'a' + u8::try_from(n % 26).unwrap_or(0));
    let letters = match number {
        0..26 => letter(number).to_string(),
        26..702 => format!("{}{}", letter(number / 26 - 1), letter(number)),
        _ => return None,
    };
    Some(format!("xvd{letters}{}", if partition == "0" { "" } else { partition }))
}

/// Parses one specification. An error says what is wrong, not where.
pub fn parse(text: &str) -> Result<Spec, String> {
    let mut spec = Spec::default();
    let mut access = None;
    let mut vdev = None;
    // Positional parameters come in this order; an old prefix leaves out the format.
    let mut position = 0;
    let mut rest = Some(text);
    while let Some(all) = rest {
        let all = all.trim_start();
        let (parameter, behind) = all.split_once(',').map_or((all, None), |(p, r)| (p, Some(r)));
        let parameter = parameter.trim();
        rest = behind;
        let keyed =
            parameter.split_once('=').filter(|(key, _)| key.bytes().all(|b| b.is_ascii_lowercase() || b == b'-') && !key.is_empty());
        match keyed {
            Some(("target", _)) => {
                // It takes the rest of the string.
                spec.target = all.split_once('=').map_or("", |(_, t)| t).trim().to_owned();
                break;
            }
            Some(("format", value)) => spec.format = Some(value.to_owned()),
            Some(("vdev", value)) => vdev = Some(value.to_owned()),
            Some(("access", value)) => access = Some(value.to_owned()),
            Some(("devtype", value)) => spec.cdrom = value == "cdrom",
            Some(("script", value)) => {
                spec.elsewhere = Some(format!("script={value} sets it up on the Xen host"));
            }
            Some(("backend", value)) if value != "0" && value != "Domain-0" => {
                spec.elsewhere = Some(format!("it lies in another domain (backend={value})"));
            }
            Some((
                "backend" | "backendtype" | "discard" | "direct-io-safe" | "colo-host" | "specification" | "transport" | "trusted",
                _,
            )) => {}
            Some((key, _)) => return Err(format!("unknown parameter '{key}='")),
            None => match parameter {
                "cdrom" => spec.cdrom = true,
                "direct-io-safe" | "discard" | "no-discard" => {}
                _ => {
                    if position == 0 {
                        let (target, format, old) = strip_prefixes(parameter);
                        if let Some(script) = SCRIPTS.iter().find(|s| target.starts_with(**s)) {
                            spec.elsewhere = Some(format!("a script of the Xen host sets '{script}' up"));
                        }
                        let old = old || spec.elsewhere.is_some();
                        spec.phy = old && parameter.contains("phy:");
                        spec.target = target.to_owned();
                        spec.format = spec.format.or(format.map(Into::into));
                        // Also without a prefix when what follows is a device, as old configurations have it.
                        let next = behind.unwrap_or("").split(',').next().unwrap_or("").trim();
                        let next = next.split(':').next().unwrap_or("");
                        position = if old || (is_device(next) && !FORMATS.contains(&next)) { 2 } else { 1 };
                        continue;
                    }
                    match position {
                        1 if !parameter.is_empty() => spec.format = Some(parameter.to_owned()),
                        2 if !parameter.is_empty() => vdev = Some(parameter.to_owned()),
                        3 if !parameter.is_empty() => access = Some(parameter.to_owned()),
                        4.. if !parameter.is_empty() => return Err(format!("'{parameter}' is one parameter too many")),
                        _ => {}
                    }
                    position += 1;
                }
            },
        }
    }
    match spec.format.as_deref() {
        None => {}
        Some("empty") => (spec.format, spec.target) = (None, String::new()),
        Some(format) if FORMATS.contains(&format) => {}
        Some("aio") => spec.format = Some("raw".into()),
        Some(other) => return Err(format!("'{other}' is no format: use one of {}", FORMATS.join(", "))),
    }
    let vdev = vdev.ok_or("it does not say how the guest calls it (vdev=xvda)")?;
    let vdev = vdev.strip_prefix("ioemu:").unwrap_or(&vdev);
    let name = match vdev.split_once(':') {
        Some((name, "cdrom")) => {
            spec.cdrom = true;
            name
        }
        Some((name, "disk")) => name,
        Some((_, other)) => return Err(format!("':{other}' behind the device must be ':cdrom' or ':disk'")),
        None => vdev,
    };
    spec.vdev = device(name).ok_or_else(|| format!("'{name}' is no name of a disk: xvda, sda1, hdb and the like are"))?;
    spec.read_only = match access.as_deref() {
        None | Some("rw" | "w" | "w!" | "rw!") => spec.cdrom,
        Some("r" | "ro") => true,
        Some(other) => return Err(format!("access '{other}' must be r, ro, w or rw")),
    };
    spec.shared = access.as_deref().is_some_and(|access| access.ends_with('!'));
    if spec.target.is_empty() && !spec.cdrom {
        return Err("it names no file or device (target=)".into());
    }
    Ok(spec)
}

/// A target without its prefixes, the format that they say, and whether there were any.
fn strip_prefixes(target: &str) -> (&str, Option<&'static str>, bool) {
    let (mut rest, mut format, mut any) = (target, None, false);
    while let Some((prefix, says)) = PREFIXES.iter().find(|(p, _)| rest.starts_with(p)) {
        rest = &rest[prefix.len()..];
        format = says.or(format);
        any = true;
    }
    (rest, format, any)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(target: &str, format: Option<&str>, vdev: &str, read_only: bool, cdrom: bool) -> Spec {
        Spec { target: target.into(), format: format.map(Into::into), vdev: vdev.into(), read_only, cdrom, ..Spec::default() }
    }

    #[test]
    fn specifications() {
        for (text, expected) in [
            // The examples of xl-disk-configuration(5).
            ("/dev/vg/guest-volume,,hda", spec("/dev/vg/guest-volume", None, "hda", false, false)),
            ("/dev/vg/guest-volume,raw,hda,rw", spec("/dev/vg/guest-volume", Some("raw"), "hda", false, false)),
            (
                "format=raw, vdev=hda, access=rw, target=/dev/vg/guest-volume",
                spec("/dev/vg/guest-volume", Some("raw"), "hda", false, false),
            ),
            ("raw:/dev/vg/guest-volume,hda,w", spec("/dev/vg/guest-volume", Some("raw"), "hda", false, false)),
            ("/root/image.iso,,hdc,cdrom", spec("/root/image.iso", None, "hdc", true, true)),
            (",,hdc,,cdrom", spec("", None, "hdc", true, true)),
            ("format=empty,vdev=hdc,devtype=cdrom", spec("", None, "hdc", true, true)),
            // Old forms.
            ("file:/srv/xen/disk.img,xvda2,w", spec("/srv/xen/disk.img", None, "xvda2", false, false)),
            ("phy:/dev/vg/root,/dev/sda1,r", spec("/dev/vg/root", None, "sda1", true, false)),
            ("tap:aio:/vm/x.img,xvda,w", spec("/vm/x.img", None, "xvda", false, false)),
            ("tap2:tapdisk:aio:/vm/x.img,xvda,w", spec("/vm/x.img", None, "xvda", false, false)),
            ("tap:qcow2:/vm/x.qcow2,ioemu:hda,w", spec("/vm/x.qcow2", Some("qcow2"), "hda", false, false)),
            ("tap:qcow2:/vm/x.qcow2,hda,w", spec("/vm/x.qcow2", Some("qcow2"), "hda", false, false)),
            ("phy:/dev/cdrom,hdc:cdrom,r", spec("/dev/cdrom", None, "hdc", true, true)),
            ("/vm/x.img,xvda,w", spec("/vm/x.img", None, "xvda", false, false)),
            ("phy:/dev/vg/x,xvdb,w!", Spec { shared: true, ..spec("/dev/vg/x", None, "xvdb", false, false) }),
            // Blanks, no access, `target=` with commas and equals signs.
            (" file:/vm/x.img , xvda2 , w ", spec("/vm/x.img", None, "xvda2", false, false)),
            ("phy:/dev/vg/x,xvdb", spec("/dev/vg/x", None, "xvdb", false, false)),
            ("vdev=xvda,target=/vm/a,b=c.img", spec("/vm/a,b=c.img", None, "xvda", false, false)),
            ("/vm/a=b.img,qcow2,xvda", spec("/vm/a=b.img", Some("qcow2"), "xvda", false, false)),
            ("/vm/x,raw,d0p2", spec("/vm/x", Some("raw"), "xvda2", false, false)),
            ("/vm/x,raw,d27", spec("/vm/x", Some("raw"), "xvdab", false, false)),
        ] {
            let phy = text.contains("phy:");
            assert_eq!(parse(text).as_ref(), Ok(&Spec { phy, ..expected }), "{text}");
        }
    }

    #[test]
    fn errors_say_what_is_wrong() {
        for (text, error) in [
            ("", "it does not say how the guest calls it (vdev=xvda)"),
            ("/vm/x", "it does not say how the guest calls it (vdev=xvda)"),
            ("vdev=xvda", "it names no file or device (target=)"),
            ("/vm/x,raw,nvme0n1", "'nvme0n1' is no name of a disk: xvda, sda1, hdb and the like are"),
            ("/vm/x,vmdk,xvda", "'vmdk' is no format: use one of raw, qcow, qcow2, vhd, qed, empty"),
            ("/vm/x,raw,xvda,x", "access 'x' must be r, ro, w or rw"),
            ("/vm/x,raw,xvda,w,1", "'1' is one parameter too many"),
            ("/vm/x,raw,xvda,colour=red", "unknown parameter 'colour='"),
        ] {
            assert_eq!(parse(text).unwrap_err(), error, "{text}");
        }
    }

    #[test]
    fn disks_that_the_xen_host_sets_up() {
        for (text, vdev, why) in [
            ("drbd:web,xvda,w", "xvda", "a script of the Xen host sets 'drbd:' up"),
            ("iscsi:iqn.2001-05.com,xvda,w", "xvda", "a script of the Xen host sets 'iscsi:' up"),
            ("vdev=xvdb,script=block-nbd,target=x", "xvdb", "script=block-nbd sets it up on the Xen host"),
            ("/vm/x,raw,xvda,backend=storage", "xvda", "it lies in another domain (backend=storage)"),
        ] {
            let spec = parse(text).unwrap();
            assert_eq!((spec.vdev.as_str(), spec.elsewhere.as_deref()), (vdev, Some(why)), "{text}");
        }
    }
}
