//! How much memory and room conversions take, and how much there is.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::phase::{self, Phase};
use super::plan::{Facts, Guest, Plan};
use crate::phases;

const MIB: u64 = 1 << 20;
/// The appliance's memory, and what the conversion takes beside it.
const CONVERSION: u64 = 1280 * MIB;
/// What a copy takes, for which no appliance is needed.
const COPY: u64 = 256 * MIB;
/// What QEMU takes beside the guest's own memory in a boot check.
const QEMU: u64 = 192 * MIB;
/// The boot check gives a guest that much, as `convert` does.
const CHECKED: std::ops::RangeInclusive<u64> = 256 * MIB..=2048 * MIB;
/// A boot loader, an initrd and a kernel that come new to a disk, and images' metadata.
const NEW_FILES: u64 = 128 * MIB;
/// What a guest may write while it boots once.
const BOOT_WRITES: u64 = 256 * MIB;

/// What one conversion takes at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes on the filesystem of `out`.
    pub disk: u64,
    /// Where its result goes.
    pub out: PathBuf,
    /// Where it lies until it is whole.
    work: PathBuf,
}

impl Need {
    /// What a guest of the plan takes. One of which nothing is known takes no room: its conversion will say what is wrong.
    pub fn of(plan: &Plan, guest: &Guest, facts: Option<Facts>, phase: Option<Phase>) -> Need {
        let out = phase::out(plan, guest);
        // A copy that cannot be read is as none: its guest's turn will say what is wrong.
        let kept = phase::kept(plan, guest).ok().flatten();
        if phase.is_some_and(Phase::is_before_conversion) {
            // What has changed since mostly lies where something lay before.
            let data = if kept.is_some() { 0 } else { facts.map_or(0, |f| f.data) };
            return Need { memory: COPY, disk: data.saturating_add(data / 512), work: phases::place(&out, &guest.name), out };
        }
        let checked = guest.options.is_given("check-boot");
        let facts = facts.unwrap_or_default();
        let memory = if checked { CONVERSION.max(facts.memory.clamp(*CHECKED.start(), *CHECKED.end()) + QEMU) } else { CONVERSION };
        let copied = match guest.options.value("allocation") {
            Some("preallocated") => facts.size,
            _ => facts.data,
        };
        // A stream lies there twice when its disks cannot be made of what was received.
        let twice = facts.stream && (guest.options.value("format") == Some("raw") || guest.options.value("allocation").is_some());
        let copied = match kept {
            // The copy lies there already, and the largest disk is made of it where its format allows that.
            Some(kept) if guest.options.value("format") != Some("raw") && !guest.options.is_given("allocation") => copied.min(kept.others),
            Some(_) => copied,
            None if twice => copied.saturating_add(facts.data),
            None => copied,
        };
        let disk = copied.saturating_add(copied / 512).saturating_add(NEW_FILES).saturating_add(if checked { BOOT_WRITES } else { 0 });
        let work = out.join(format!(".{}.v2v", guest.name));
        Need { memory, disk: if facts == Facts::default() { 0 } else { disk }, out, work }
    }

    /// Bytes that it will still take.
    fn left(&self) -> u64 {
        let written: u64 = fs::read_dir(&self.work)
            .map(|entries| {
                entries.filter_map(|e| e.ok()?.metadata().ok()).map(|m| m.blocks().saturating_mul(512)).fold(0, u64::saturating_add)
            })
            .unwrap_or(0);
        self.disk.saturating_sub(written)
    }
}

/// Bytes that can be written on the filesystem of a folder, which need not be there yet, and which filesystem that is.
pub fn free(folder: &Path) -> Option<(u64, u64)> {
    let there = std::path::absolute(folder).ok()?.ancestors().find(|p| p.is_dir())?.to_owned();
    let stat = rustix::fs::statvfs(&there).ok()?;
    Some((there.metadata().ok()?.dev(), stat.f_bavail.saturating_mul(stat.f_frsize)))
}

/// Why a conversion cannot begin now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Short {
    /// Others take the memory.
    Memory,
    /// Others, or what lies there, take the room: so many bytes are left.
    Disk(u64),
}

/// Whether one more conversion can begin beside the running ones.
pub fn fits(need: &Need, running: &BTreeMap<usize, Need>, memory: u64, keep_free: u64) -> Result<(), Short> {
    let used = running.values().map(|n| n.memory).fold(0, u64::saturating_add);
    if !running.is_empty() && used.saturating_add(need.memory) > memory {
        return Err(Short::Memory);
    }
    let Some((filesystem, free_now)) = free(&need.out).filter(|_| need.disk > 0) else { return Ok(()) };
    let promised = running.values().filter(|n| free(&n.out).is_some_and(|(f, _)| f == filesystem)).map(Need::left);
    let left = free_now.saturating_sub(keep_free).saturating_sub(promised.fold(0, u64::saturating_add));
    if need.disk > left { Err(Short::Disk(left)) } else { Ok(()) }
}

/// Memory that conversions may take, where the plan does not say: nine tenths of what is available now, here and in the control
/// group that this process is in.
pub fn available_memory() -> u64 {
    let host = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
        line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    });
    let group = |file: &str| fs::read_to_string(Path::new("/sys/fs/cgroup").join(file)).ok()?.trim().parse::<u64>().ok();
    let group = group("memory.max").map(|max| max.saturating_sub(group("memory.current").unwrap_or(0)));
    let available = [host, group].into_iter().flatten().min().unwrap_or(2 * CONVERSION);
    available / 10 * 9
}

/// Conversions at a time, where the plan does not say: each keeps about two processors busy.
pub fn default_jobs() -> usize {
    std::thread::available_parallelism().map_or(2, |n| n.get() / 2).clamp(2, 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::plan::Setting;

    fn need(memory: u64, disk: u64, out: &Path) -> Need {
        Need { memory, disk, out: out.into(), work: out.join("none") }
    }

    fn guest(options: &[(&str, &str)]) -> (Plan, Guest) {
        let mut guest = Guest {
            name: "web".into(),
            source: "web.cfg".into(),
            enabled: true,
            line: 1,
            facts: Some(Facts { data: 1 << 30, size: 4 << 30, memory: 8 << 30, stream: true }),
            options: Default::default(),
        };
        for (name, value) in options {
            guest.options.set(name, Setting::Value((*value).into()));
        }
        let plan = Plan {
            file: "/x/plan.toml".into(),
            jobs: None,
            memory: None,
            keep_free: 0,
            guests: vec![],
            slurm: Default::default(),
            kubernetes: Default::default(),
        };
        (plan, guest)
    }

    #[test]
    fn needs_follow_from_the_facts_and_the_options() {
        let of = |options: &[(&str, &str)]| {
            let (plan, guest) = guest(options);
            let need = Need::of(&plan, &guest, guest.facts, None);
            (need.memory / MIB, need.disk / MIB)
        };
        assert_eq!(of(&[]), (1280, 1024 + 2 + 128));
        assert_eq!(of(&[("check-boot", "60")]), (2048 + 192, 1024 + 2 + 128 + 256));
        assert_eq!(of(&[("format", "raw")]), (1280, 2048 + 4 + 128));
        assert_eq!(of(&[("allocation", "preallocated")]), (1280, 5120 + 10 + 128));
        let (plan, guest) = guest(&[("out", "vm")]);
        assert_eq!(Need::of(&plan, &guest, None, None).disk, 0);
        let copy = Need::of(&plan, &guest, guest.facts, Some(Phase::Copy));
        assert_eq!((copy.memory / MIB, copy.disk / MIB, copy.work.as_path()), (256, 1024 + 2, Path::new("/x/vm/web.copy")));
        assert_eq!(copy.out, Path::new("/x/vm"));
    }

    #[test]
    fn what_runs_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let (_, there) = free(dir.path()).unwrap();
        let fits = |one: Need, running: &[Need], keep| {
            let running: BTreeMap<_, _> = running.iter().cloned().enumerate().collect();
            fits(&one, &running, 3 << 30, keep)
        };
        let small = need(1 << 30, 1 << 20, dir.path());
        assert_eq!(fits(small.clone(), &[small.clone(), small.clone()], 0), Ok(()));
        assert_eq!(fits(small.clone(), &[small.clone(), small.clone(), small.clone()], 0), Err(Short::Memory));
        assert_eq!(fits(need(9 << 30, 1, dir.path()), &[], 0), Ok(()), "alone, it may take all there is");
        assert_eq!(fits(small.clone(), &[], u64::MAX), Err(Short::Disk(0)));
        let half = need(1, there / 3 * 2, &dir.path().join("not/there/yet"));
        assert_eq!(fits(half.clone(), &[], 0), Ok(()));
        assert!(matches!(fits(half.clone(), &[half], 0), Err(Short::Disk(_))));
    }

    #[test]
    fn what_is_written_already_is_not_needed_any_more() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("disk"), vec![1; 1 << 20]).unwrap();
        let need = Need { memory: 0, disk: 3 << 20, out: dir.path().into(), work: dir.path().into() };
        assert!(need.left() <= 2 << 20);
    }
}
