//! Which volume is mounted where, by `/etc/fstab`.

use super::devices::Devices;
use super::text::fields;
use crate::layout::{Layout, Volume};

/// The volume that a device specification of fstab or of a kernel command line means, in old or new names.
pub fn volume<'a>(spec: &str, layout: &'a Layout, devices: &Devices) -> Option<&'a Volume> {
    let by_uuid = |uuid: &str| layout.volumes().find(|v| v.uuid.as_deref().is_some_and(|u| u.eq_ignore_ascii_case(uuid)));
    let by_label = |label: &str| layout.volumes().find(|v| v.label.as_deref() == Some(label));
    let unquoted = |s: &str| s.trim_matches('"').to_string();
    for (prefix, find) in [("UUID=", &by_uuid as &dyn Fn(&str) -> _), ("LABEL=", &by_label)] {
        if let Some(value) = spec.strip_prefix(prefix) {
            return find(&unquoted(value));
        }
    }
    if let Some(uuid) = spec.strip_prefix("/dev/disk/by-uuid/") {
        return by_uuid(uuid);
    }
    if let Some(label) = spec.strip_prefix("/dev/disk/by-label/") {
        return by_label(label);
    }
    let name = spec.strip_prefix("/dev/")?;
    let by_name = |name: &str| layout.volumes().find(|v| v.target_device == name);
    // On Xen again a disk is called as before: what is written by now is its new name.
    by_name(name).or_else(|| by_name(&devices.volume(name)?.target_device))
}

/// The device specification that fstab mounts on a path.
pub fn spec_of<'a>(fstab: &'a str, path: &str) -> Option<&'a str> {
    fstab.lines().find_map(|line| {
        let words = fields(line);
        let spec = words.first()?.1;
        (!spec.starts_with('#') && words.get(1)?.1 == path).then_some(spec)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{ROOT_UUID, xen_tools_guest};

    #[test]
    fn specifications_lead_to_volumes() {
        let (source, mut layout) = xen_tools_guest();
        layout.disks[1].volumes[0].label = Some("data".into());
        let devices = Devices::new(&source, &layout);
        let of = |spec: &str| volume(spec, &layout, &devices).map(|v| v.target_device.as_str());
        for spec in [
            "/dev/xvda2",
            "/dev/sda2",
            "/dev/vda2",
            &format!("UUID={}", ROOT_UUID.to_uppercase()),
            &format!("/dev/disk/by-uuid/{ROOT_UUID}"),
        ] {
            assert_eq!(of(spec), Some("vda2"), "{spec}");
        }
        assert_eq!(of("LABEL=data"), Some("vdb1"));
        for spec in ["/dev/mapper/a", "proc", "UUID=1", "/dev/vdz1"] {
            assert_eq!(of(spec), None);
        }
        assert_eq!(spec_of("# / x\n/dev/vdb1 /boot ext2\nUUID=1 / ext4\n", "/"), Some("UUID=1"));
    }
}
