//! Names that a guest gives to volumes itself: encrypted ones in /etc/crypttab, arrays in mdadm's configuration.

use super::{CONFIG_LIMIT, fstab};
use crate::volume::Place;
use crate::{Ext, GuestFs, Volumes};

/// Device names and the volumes that they mean, by position in [`Volumes::volumes`].
pub(super) struct Names(Vec<(String, usize)>);

impl Names {
    /// What this root calls its volumes.
    pub(super) fn read(fs: &dyn GuestFs, volumes: &Volumes) -> Self {
        let text =
            |path: &[u8]| fs.read(path, CONFIG_LIMIT).map(|content| String::from_utf8_lossy(&content).into_owned()).unwrap_or_default();
        let mut names = encrypted(&text(b"/etc/crypttab"), volumes);
        for file in [&b"/etc/mdadm.conf"[..], b"/etc/mdadm/mdadm.conf"] {
            names.extend(arrays(&text(file), volumes));
        }
        Names(names)
    }

    /// The volume that a device name means.
    pub(super) fn find(&self, device: &[u8]) -> Option<usize> {
        self.0.iter().find(|(name, _)| name.as_bytes() == device).map(|(_, volume)| *volume)
    }
}

/// Lines of a name, a device, and what does not matter here.
fn encrypted(crypttab: &str, volumes: &Volumes) -> Vec<(String, usize)> {
    let parse = |line: &str| {
        let mut words = line.split_whitespace();
        let (name, device) = (words.next().filter(|name| !name.starts_with('#'))?, words.next()?);
        let below = fstab::resolve(volumes, device.as_bytes())?;
        let above = volumes.volumes.iter().position(|v| v.place == Place::Unlocked { volume: below })?;
        Some((format!("/dev/mapper/{name}"), above))
    };
    crypttab.lines().filter_map(parse).collect()
}

/// Lines like `ARRAY /dev/md0 metadata=1.2 UUID=01234567:89abcdef:…`.
fn arrays(configuration: &str, volumes: &Volumes) -> Vec<(String, usize)> {
    let digits = |uuid: &str| uuid.chars().filter(char::is_ascii_hexdigit).collect::<String>().to_ascii_lowercase();
    let parse = |line: &str| {
        let mut words = line.split_whitespace();
        words.next().filter(|word| word.eq_ignore_ascii_case("array"))?;
        let name = words.next()?;
        let uuid = words.find_map(|word| word.strip_prefix("UUID=").or(word.strip_prefix("uuid=")))?;
        let array = volumes.arrays.iter().position(|array| digits(&array.uuid) == digits(uuid))?;
        let device = if name.starts_with('/') { name.to_string() } else { format!("/dev/{name}") };
        let parts =
            volumes.volumes.iter().enumerate().filter(move |(_, v)| matches!(v.place, Place::Array { array: of, .. } if of == array));
        let named = move |number: Option<u32>| number.map_or(device.clone(), |number| crate::volume::partition_name(&device, number));
        Some(parts.map(move |(index, v)| (named(v.partition.as_ref().map(|p| p.number)), index)).collect::<Vec<_>>())
    };
    configuration.lines().filter_map(parse).flatten().collect()
}
