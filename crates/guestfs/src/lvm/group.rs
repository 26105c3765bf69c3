//! A volume group: its logical volumes, each as an image where linear and striped segments are all it has.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use imgcore::{Image, Joined, Slice};

use super::pv::Label;
use super::text::{Section, Value};
use crate::stripes::Stripes;

const SECTOR: u64 = 512;

/// A volume group.
#[derive(Clone)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its UUID, with dashes.
    pub uuid: String,
    /// Rises with each change of the metadata.
    pub seqno: u64,
    /// Bytes of an extent.
    pub extent_size: u64,
    /// The physical volumes that are there.
    pub physical: Vec<PhysicalVolume>,
    /// How many of them are not there.
    pub missing: usize,
    /// The volumes that are to be seen.
    pub volumes: Vec<LogicalVolume>,
    /// What no volume uses of the physical ones, in bytes from their beginnings.
    pub free: Vec<(PhysicalVolume, Range<u64>)>,
}

/// A physical volume of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhysicalVolume {
    /// Its position in [`Volumes::volumes`](crate::Volumes::volumes).
    pub position: usize,
    /// Bytes of its extents.
    pub len: u64,
}

/// A logical volume.
#[derive(Clone)]
pub struct LogicalVolume {
    /// Its name in the group.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// Bytes.
    pub len: u64,
    /// Its content, or why only the appliance can read it.
    pub image: Result<Arc<dyn Image>, String>,
}

/// A physical volume as the group's metadata has it.
struct Physical {
    image: Option<Arc<dyn Image>>,
    /// Where its first extent begins, in bytes.
    start: u64,
}

impl Group {
    pub(super) fn parse(text: &[u8], found: &[(usize, Arc<dyn Image>, Label)]) -> Result<Self, String> {
        let text = Section::parse(text)?;
        // The one section beside what tells who wrote it.
        let (name, vg) = text.sections().next().ok_or("there is no group in it")?;
        let extent_size = vg.number("extent_size")?.checked_mul(SECTOR).filter(|size| *size > 0).ok_or("extents of an impossible size")?;
        let mut physical = HashMap::new();
        let mut present = Vec::new();
        for (key, pv) in vg.section("physical_volumes").into_iter().flat_map(Section::sections) {
            let id = pv.text("id")?.replace('-', "");
            let here = found.iter().find(|(.., volume)| volume.id == id);
            let len = pv.number("pe_count")?.saturating_mul(extent_size);
            present.extend(here.map(|(position, ..)| PhysicalVolume { position: *position, len }));
            let start = pv.number("pe_start")?.checked_mul(SECTOR).ok_or("extents past the end of all")?;
            physical.insert(key, Physical { image: here.map(|(_, image, _)| image.clone()), start });
        }
        let mut group = Group {
            name: name.to_string(),
            uuid: vg.text("id")?.to_string(),
            seqno: vg.number("seqno")?,
            extent_size,
            missing: physical.len().saturating_sub(present.len()),
            physical: present,
            volumes: Vec::new(),
            free: Vec::new(),
        };
        for (name, lv) in vg.section("logical_volumes").into_iter().flat_map(Section::sections) {
            if lv.list("status").contains(&Value::Text("VISIBLE".into())) {
                let volume = group.volume(name, lv, &physical)?;
                group.volumes.push(volume);
            }
        }
        group.free = group.unused(vg, found)?;
        Ok(group)
    }

    /// The extents that no segment of any volume has, hidden ones included.
    fn unused(&self, vg: &Section, found: &[(usize, Arc<dyn Image>, Label)]) -> Result<Vec<(PhysicalVolume, Range<u64>)>, String> {
        let mut used: HashMap<&str, Vec<Range<u64>>> = HashMap::new();
        let volumes = vg.section("logical_volumes").into_iter().flat_map(Section::sections);
        for segment in volumes.flat_map(|(_, lv)| lv.sections()).map(|(_, segment)| segment) {
            let count = segment.number("extent_count")?;
            // Whatever the kind of the segment: where a physical volume is named, an extent stands behind it.
            for pair in segment.lists().flat_map(|list| list.windows(2)) {
                if let [Value::Text(name), Value::Number(extent)] = pair {
                    used.entry(name).or_default().push(*extent..extent.saturating_add(count));
                }
            }
        }
        let mut free = Vec::new();
        for (key, pv) in vg.section("physical_volumes").into_iter().flat_map(Section::sections) {
            let id = pv.text("id")?.replace('-', "");
            let Some((position, ..)) = found.iter().find(|(.., label)| label.id == id) else { continue };
            let (start, count) = (pv.number("pe_start")?, pv.number("pe_count")?);
            let volume = PhysicalVolume { position: *position, len: count.saturating_mul(self.extent_size) };
            let mut used = used.remove(key).unwrap_or_default();
            used.sort_by_key(|r| r.start);
            used.push(count..count);
            let mut at = 0;
            for range in used {
                if at < range.start.min(count) {
                    let byte = |extent: u64| extent.checked_mul(self.extent_size)?.checked_add(start.checked_mul(SECTOR)?);
                    free.extend(byte(at).zip(byte(range.start.min(count))).map(|(from, to)| (volume, from..to)));
                }
                at = at.max(range.end);
            }
        }
        Ok(free)
    }

    fn volume(&self, name: &str, lv: &Section, physical: &HashMap<&str, Physical>) -> Result<LogicalVolume, String> {
        let segments = lv.sections().map(|(_, segment)| Ok((segment.number("start_extent")?, segment.number("extent_count")?, segment)));
        let mut segments = segments.collect::<Result<Vec<_>, String>>()?;
        segments.sort_by_key(|(start, ..)| *start);
        let mut end = 0u64;
        let mut parts = Ok(Vec::new());
        for (start, count, segment) in segments {
            if start != end {
                return Err(format!("{name} has no extent {end}"));
            }
            end = start.checked_add(count).ok_or_else(|| format!("{name} has too many extents"))?;
            parts = parts.and_then(|mut parts: Vec<Arc<dyn Image>>| {
                parts.push(self.segment(segment, count, physical)?);
                Ok(parts)
            });
        }
        let len = end.checked_mul(self.extent_size).ok_or_else(|| format!("{name} has too many extents"))?;
        let image = parts.and_then(|parts| Joined::new(parts).map_err(|e| e.to_string())).map(|image| Arc::new(image) as Arc<dyn Image>);
        Ok(LogicalVolume { name: name.to_string(), uuid: lv.text("id")?.to_string(), len, image })
    }

    /// The bytes of a segment of `count` extents.
    fn segment(&self, segment: &Section, count: u64, physical: &HashMap<&str, Physical>) -> Result<Arc<dyn Image>, String> {
        let kind = segment.text("type")?;
        if kind != "striped" && kind != "linear" {
            return Err(format!("a segment of type {kind}"));
        }
        let areas = segment.list("stripes").as_chunks().0;
        let per_area = u64::try_from(areas.len()).ok().filter(|n| *n > 0 && count.is_multiple_of(*n)).map(|n| count / n);
        let per_area = per_area.ok_or("a segment whose places do not share its extents")?;
        let len = per_area.checked_mul(self.extent_size).ok_or("a segment past the end of all")?;
        let area = |[pv, extent]: &[Value; 2]| -> Result<Arc<dyn Image>, String> {
            let (Value::Text(pv), Value::Number(extent)) = (pv, extent) else { return Err("a segment's place that is none".into()) };
            let physical = physical.get(pv.as_str()).ok_or_else(|| format!("a segment on {pv}, which the group does not have"))?;
            let image = physical.image.clone().ok_or_else(|| format!("the physical volume {pv} is on none of the disks"))?;
            let start =
                extent.checked_mul(self.extent_size).and_then(|at| at.checked_add(physical.start)).ok_or("a place past the end of all")?;
            Ok(Arc::new(Slice::new(image, start, len).map_err(|e| e.to_string())?))
        };
        let mut areas = areas.iter().map(area).collect::<Result<Vec<_>, _>>()?;
        match areas.len() {
            1 => Ok(areas.remove(0)),
            _ => Ok(Arc::new(Stripes::new(areas, segment.number("stripe_size")?.saturating_mul(SECTOR))?)),
        }
    }
}
