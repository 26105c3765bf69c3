//! Finds the volumes: on disks first, then those that lie on other volumes, layer by layer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imgcore::Image;
use imgcore::partition::{self, Table};

use super::{Place, Step, Volume, Volumes, partition_name};
use crate::keys::KeyRing;
use crate::luks::{Header, Locked};
use crate::lvm;
use crate::md::{self, Array, Member};
use crate::probe::{Content, probe};
use crate::{Result, show};

/// Layers that lie on each other: LVM on LUKS on an array on partitions has four.
const MAX_ROUNDS: usize = 8;
/// Volumes of one guest.
const MAX_VOLUMES: usize = 4096;
/// The number of the first array, as Linux gives it to one that is not its own.
const FIRST_ARRAY: usize = 127;

/// Which volumes are done with: something lies on them, or nothing can.
type Used = BTreeSet<usize>;

impl Volumes {
    pub(super) fn add_disks(&mut self) -> Result<()> {
        for index in 0..self.disks.len() {
            let (name, image) = (self.disks[index].name.clone(), self.disks[index].image.clone());
            let whole = probe(image.as_ref(), 0, image.size());
            let table = table(image.as_ref(), whole.as_ref())?;
            self.add_parts(&name, &image, whole, table.as_ref(), |start| Place::Disk { disk: index, start });
            self.tables.push(table);
        }
        Ok(())
    }

    /// The partitions of a device, or all of it where it has none.
    fn add_parts(
        &mut self,
        name: &str,
        image: &Arc<dyn Image>,
        whole: Option<Content>,
        table: Option<&Table>,
        place: impl Fn(u64) -> Place,
    ) {
        let volume = |name: &str, start: u64, len: u64, content| Volume {
            device: format!("/dev/{name}"),
            aliases: Vec::new(),
            place: place(start),
            partition: None,
            len,
            content,
            only_in_appliance: false,
        };
        match table {
            None => self.volumes.push(volume(name, 0, image.size(), whole)),
            Some(table) => {
                // A label that cannot be read leaves its partition as it is.
                let nested = partition::read_nested(image.as_ref(), table).unwrap_or_default();
                let partitions = table.partitions.iter().filter(|p| !p.kind.is_extended()).chain(nested.iter().map(|(_, p)| p));
                self.volumes.extend(partitions.map(|p| {
                    // What begins where its label's first partition does is that one's.
                    let holds_others = nested.iter().any(|(outer, _)| *outer == p.number);
                    let content = if holds_others { None } else { probe(image.as_ref(), p.start, p.len) };
                    Volume { partition: Some(p.clone()), ..volume(&partition_name(name, p.number), p.start, p.len, content) }
                }));
            }
        }
    }

    /// Puts together what lies on volumes until nothing is left. What is whole goes first: a part of it may come to light yet, on
    /// a volume that is unlocked later.
    pub(super) fn stack(&mut self, keys: Option<&dyn KeyRing>) {
        let mut used = Used::new();
        for _ in 0..MAX_ROUNDS {
            let before = self.volumes.len();
            self.unlock(keys, &mut used);
            for whole in [true, false] {
                self.add_arrays(whole, &mut used);
                if self.volumes.len() == before {
                    self.add_groups(whole, &mut used);
                }
                if self.volumes.len() > before {
                    break;
                }
            }
            if self.volumes.len() == before {
                return;
            }
            if self.volumes.len() > MAX_VOLUMES {
                self.volumes.truncate(MAX_VOLUMES);
                return self.complaints.push(format!("there are more than {MAX_VOLUMES} volumes, of which the others are left out"));
            }
        }
        self.complaints.push(format!("what lies deeper than {MAX_ROUNDS} volumes on each other is left out"));
    }

    /// The volumes of a kind that nothing lies on yet.
    fn unused(&self, kind: &str, used: &Used) -> Vec<usize> {
        self.volumes.iter().enumerate().filter(|(index, v)| v.kind() == kind && !used.contains(index)).map(|(index, _)| index).collect()
    }

    fn unlock(&mut self, keys: Option<&dyn KeyRing>, used: &mut Used) {
        for index in self.unused("crypto_LUKS", used) {
            used.insert(index);
            let volume = self.volumes[index].clone();
            let uuid = volume.content.as_ref().and_then(|c| c.uuid.clone()).unwrap_or_default();
            let keys = keys.map_or(Vec::new(), |keys| keys.keys(&volume.device, &uuid));
            if keys.is_empty() {
                self.locked.push(index);
                continue;
            }
            let unlocked = self.image(&volume).map_err(|e| Locked::Header(e.to_string())).and_then(|image| {
                let header = Header::read(image.as_ref())?;
                let mut outcome = Err(Locked::WrongKey);
                for key in &keys {
                    outcome = header.unlock(&image, key);
                    if outcome.is_ok() {
                        break;
                    }
                }
                outcome
            });
            let unlocked = match unlocked {
                Ok(unlocked) => unlocked,
                Err(why) => {
                    self.locked.push(index);
                    self.complaints.push(match why {
                        Locked::WrongKey => format!("{} stays locked: the key is not one of its", volume.device),
                        Locked::Header(what) => format!("{} stays locked: {what}", volume.device),
                    });
                    continue;
                }
            };
            let content = unlocked.image.as_ref().ok().and_then(|image| probe(image.as_ref(), 0, image.size()));
            self.volumes.push(Volume {
                device: format!("/dev/mapper/luks-{}", file_name(&uuid).unwrap_or(&index.to_string())),
                aliases: Vec::new(),
                place: Place::Unlocked { volume: index },
                partition: None,
                len: unlocked.len,
                content,
                only_in_appliance: unlocked.image.is_err(),
            });
            self.unlocked.push((index, unlocked));
            self.steps.push(Step::Unlocked(index));
        }
    }

    fn add_arrays(&mut self, whole: bool, used: &mut Used) {
        let mut found: BTreeMap<String, Vec<Member>> = BTreeMap::new();
        for position in self.unused("linux_raid_member", used) {
            let volume = &self.volumes[position];
            let image = self.image(volume).map_err(|e| e.to_string());
            match image.and_then(|image| Ok((md::superblock(image.as_ref())?, image))) {
                Ok((superblock, image)) => {
                    found.entry(superblock.uuid.clone()).or_default().push(Member { position, image, superblock });
                }
                Err(what) => {
                    self.complaints.push(format!("{}, a member of an array: {what}", volume.device));
                    used.insert(position);
                }
            }
        }
        // In the order of their first members.
        let mut found: Vec<Vec<Member>> = found.into_values().filter(|members| !whole || Array::is_whole(members)).collect();
        found.sort_by_key(|members| members.first().map(|m| m.position));
        for members in found {
            used.extend(members.iter().map(|m| m.position));
            let position = self.arrays.len();
            let free = |number: &usize| self.arrays.iter().all(|known| known.number != *number);
            let Some(number) = Array::own_number(&members).filter(free).or_else(|| (0..=FIRST_ARRAY).rev().find(free)) else {
                return self.complaints.push(format!("there are more than {FIRST_ARRAY} arrays, of which the others are left out"));
            };
            match Array::new(number, &members) {
                Ok(array) => self.add_array(position, array),
                Err(what) => self.complaints.push(what),
            }
        }
    }

    fn add_array(&mut self, position: usize, array: Array) {
        let first = self.volumes.len();
        let place = |start| Place::Array { array: position, start };
        match &array.image {
            Ok(image) => {
                let content = probe(image.as_ref(), 0, image.size());
                // A table that cannot be read leaves the array as it is.
                let table = table(image.as_ref(), content.as_ref()).ok().flatten();
                self.add_parts(&array.device()[5..], image, content, table.as_ref(), place);
            }
            Err(_) => self.volumes.push(Volume {
                device: array.device(),
                aliases: Vec::new(),
                place: place(0),
                partition: None,
                len: array.len,
                content: None,
                only_in_appliance: true,
            }),
        }
        for volume in &mut self.volumes[first..] {
            let number = volume.partition.as_ref().map(|p| p.number);
            let named = |alias: String| number.map_or(alias.clone(), |number| partition_name(&alias, number));
            volume.aliases = array.aliases().into_iter().map(named).collect();
        }
        if array.missing > 0 {
            self.complaints.push(format!("{} ({}) lacks {} of its members", array.device(), show(array.name.as_bytes()), array.missing));
        }
        self.arrays.push(array);
        self.steps.push(Step::Array(position));
    }

    fn add_groups(&mut self, whole: bool, used: &mut Used) {
        // As LVM itself, which does not look for groups in logical volumes.
        let physical = self.unused("LVM2_member", used).into_iter().filter(|i| !matches!(self.volumes[*i].place, Place::Logical { .. }));
        let members: Vec<(usize, Arc<dyn Image>)> = physical.filter_map(|i| Some((i, self.image(&self.volumes[i]).ok()?))).collect();
        let (groups, complaints) = lvm::groups(&members);
        if !whole {
            self.complaints.extend(complaints);
            used.extend(members.iter().map(|(position, _)| *position));
        }
        for group in groups.into_iter().filter(|group| !whole || group.missing == 0) {
            used.extend(group.physical.iter().map(|pv| pv.position));
            let position = self.groups.len();
            if self.groups.iter().any(|known| known.name == group.name) {
                self.complaints.push(format!("a second volume group {} is left out", show(group.name.as_bytes())));
                continue;
            }
            if group.missing > 0 {
                let what = "of the volume group {} are on none of the disks";
                self.complaints.push(format!("{} physical volumes {}", group.missing, what.replace("{}", &show(group.name.as_bytes()))));
            }
            self.volumes.extend(group.volumes.iter().enumerate().map(|(volume, logical)| Volume {
                device: format!("/dev/{}/{}", group.name, logical.name),
                aliases: lvm::aliases(&group, logical),
                place: Place::Logical { group: position, volume },
                partition: None,
                len: logical.len,
                content: logical.image.as_ref().ok().and_then(|image| probe(image.as_ref(), 0, image.size())),
                only_in_appliance: logical.image.is_err(),
            }));
            self.groups.push(group);
            self.steps.push(Step::Group(position));
        }
    }
}

/// A device's partition table, unless what it holds as a whole only looks like one.
fn table(image: &dyn Image, whole: Option<&Content>) -> Result<Option<Table>> {
    // The first sectors of these two end like an MBR, with code where its table would be.
    if whole.is_some_and(|c| matches!(c.kind, "vfat" | "ntfs")) {
        return Ok(None);
    }
    let table = partition::read(image)?.filter(|t| !t.partitions.is_empty() || whole.is_none());
    Ok(table.filter(|table| match whole {
        // A member with its superblock at its end begins with the array's own table. If it is the last partition that ends there,
        // then that is the member.
        Some(whole) if whole.kind == "linux_raid_member" => {
            table.partitions.iter().any(|p| probe(image, p.start, p.len).is_some_and(|part| part.uuid == whole.uuid))
        }
        _ => true,
    }))
}

/// A name that a file can have.
fn file_name(name: &str) -> Option<&str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    Some(name).filter(|n| !n.is_empty() && n.len() < 100 && n.chars().all(plain) && !n.starts_with('.'))
}
