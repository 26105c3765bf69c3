//! An array: which of its members count, and its content where that is a mirror's or a linear array's.

use std::collections::BTreeMap;
use std::sync::Arc;

use imgcore::{Image, Joined, Slice};

use super::mirror::Mirror;
use super::superblock::{Role, Superblock};
use crate::stripes::Stripes;

/// The largest number of an array's device.
const MAX_NUMBER: usize = 511;

/// A volume that is a part of an array.
#[derive(Clone)]
pub(crate) struct Member {
    /// Its position in [`Volumes::volumes`](crate::Volumes::volumes).
    pub position: usize,
    pub image: Arc<dyn Image>,
    pub superblock: Superblock,
}

/// An array of several volumes.
#[derive(Clone)]
pub struct Array {
    /// The number of its device: 127 for `/dev/md127`.
    pub number: usize,
    /// The name in its superblocks, `HOST:NAME` or NAME; the number of its device in those of version 0.90.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// -1 for linear, 0, 1, 4, 5, 6, 10.
    pub level: i32,
    /// Its members that are here, spares and outdated ones too, by position in [`Volumes::volumes`](crate::Volumes::volumes).
    pub members: Vec<usize>,
    /// How many members are missing, or do not have what was written last.
    pub missing: usize,
    /// Bytes.
    pub len: u64,
    /// Its content, or why only the appliance can read it.
    pub image: Result<Arc<dyn Image>, String>,
}

impl Array {
    /// The array of these members, which have one UUID and are not none.
    pub(crate) fn new(number: usize, members: &[Member]) -> Result<Self, String> {
        let newest = members.iter().max_by_key(|m| m.superblock.events).ok_or("an array without members")?;
        let known = &newest.superblock;
        let slots = current(members, known.events);
        let len = len(known, members).ok_or_else(|| format!("the array {} is larger than can be", known.name))?;
        let image = match &known.unusual {
            Some(what) => Err(what.clone()),
            None => content(known, &slots),
        };
        Ok(Array {
            number,
            name: known.name.clone(),
            uuid: known.uuid.clone(),
            level: known.level,
            members: members.iter().map(|m| m.position).collect(),
            missing: (known.members as usize).saturating_sub(slots.len()),
            len: image.as_ref().map_or(len, |image| image.size()),
            image,
        })
    }

    /// Whether all that an array needs to be whole is among these members.
    pub(crate) fn is_whole(members: &[Member]) -> bool {
        members.iter().max_by_key(|m| m.superblock.events).is_some_and(|newest| {
            let slots = current(members, newest.superblock.events);
            usize::try_from(newest.superblock.members).is_ok_and(|wanted| slots.len() >= wanted)
        })
    }

    /// The number that its device must have, or the array would be another's afterwards.
    pub(crate) fn own_number(members: &[Member]) -> Option<usize> {
        let newest = members.iter().max_by_key(|m| m.superblock.events)?;
        usize::try_from(newest.superblock.minor?).ok().filter(|number| *number <= MAX_NUMBER)
    }

    /// Its device.
    pub fn device(&self) -> String {
        format!("/dev/md{}", self.number)
    }

    /// The names that its guest may call it by besides.
    pub(crate) fn aliases(&self) -> Vec<String> {
        let name = self.name.rsplit(':').next().unwrap_or_default();
        if name.is_empty() || name.contains(['/', '\0']) || name.starts_with('.') {
            return Vec::new();
        }
        let folder = [format!("/dev/md/{name}"), format!("/dev/disk/by-id/md-name-{}", self.name)];
        let number = name.bytes().all(|c| c.is_ascii_digit()).then(|| format!("/dev/md{name}"));
        // A name like md0 or d0 of old configurations is a device's.
        let device = name.strip_prefix("md").filter(|n| n.bytes().all(|c| c.is_ascii_digit())).map(|n| format!("/dev/md{n}"));
        folder.into_iter().chain(number).chain(device).collect()
    }
}

/// The members that have what was written last, by slot.
fn current(members: &[Member], events: u64) -> BTreeMap<u32, &Member> {
    let slot = |m: &Member| match m.superblock.role {
        Role::Active(slot) if m.superblock.events == events => Some(slot),
        _ => None,
    };
    members.iter().filter_map(|m| Some((slot(m)?, m))).collect()
}

fn content(known: &Superblock, slots: &BTreeMap<u32, &Member>) -> Result<Arc<dyn Image>, String> {
    let part = |member: &Member, len: u64| -> Result<Arc<dyn Image>, String> {
        let (image, start) = (member.image.clone(), member.superblock.data_start);
        Ok(Arc::new(Slice::new(image, start, len).map_err(|e| e.to_string())?))
    };
    match known.level {
        1 => {
            let copies = slots.values().map(|member| part(member, known.used)).collect::<Result<Vec<_>, _>>()?;
            Ok(Arc::new(Mirror::new(copies).ok_or("none of its members has all that was written")?))
        }
        -1 | 0 => {
            let parts = (0..known.members).map(|slot| {
                let member = slots.get(&slot).ok_or_else(|| format!("its member {slot} is on none of the disks"))?;
                part(member, in_chunks(member.superblock.data_len, known.chunk))
            });
            let parts = parts.collect::<Result<Vec<_>, _>>()?;
            if known.level == -1 {
                return Ok(Arc::new(Joined::new(parts).map_err(|e| e.to_string())?));
            }
            // What is left over of larger members has a layout of its own.
            if parts.iter().any(|part| part.size() != parts[0].size()) {
                return Err("an array of level 0 with members of different sizes".into());
            }
            Ok(Arc::new(Stripes::new(parts, known.chunk)?))
        }
        level => Err(format!("an array of level {level}")),
    }
}

fn in_chunks(len: u64, chunk: u64) -> u64 {
    if chunk == 0 { len } else { len - len % chunk }
}

/// Bytes of an array, members that are missing counted like the ones that are there.
fn len(known: &Superblock, members: &[Member]) -> Option<u64> {
    let all = u64::from(known.members);
    let used = in_chunks(known.used, known.chunk);
    match known.level {
        1 => Some(known.used),
        4 | 5 => used.checked_mul(all.checked_sub(1)?),
        6 => used.checked_mul(all.checked_sub(2)?),
        10 => {
            let copies = u64::from(known.layout & 0xff) * u64::from(known.layout >> 8 & 0xff);
            let chunks = (used.checked_div(known.chunk)?).checked_mul(all)?.checked_div(copies)?;
            chunks.checked_mul(known.chunk)
        }
        _ => members.iter().try_fold(0u64, |sum, m| sum.checked_add(in_chunks(m.superblock.data_len, known.chunk))),
    }
}
