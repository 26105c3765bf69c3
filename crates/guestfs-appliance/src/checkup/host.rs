//! What the host gives: room, memory, and ways to lock a process in.

use std::fs;
use std::path::Path;

use landlock::{ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr};

use super::{Finding, State};
use crate::locate;

/// Overlays of read-only disks and what is being converted want at least this.
const LEAST_ROOM: u64 = 1 << 30;
/// The appliance has up to 1 GiB, of which a small job uses a part.
const LEAST_MEMORY: u64 = 512 << 20;

pub(super) fn temporary() -> Finding {
    let dir = std::env::temp_dir();
    let fix = "export TMPDIR=/a/folder/with/room";
    match room(&dir) {
        Ok(Room { detail, free }) if free < LEAST_ROOM => {
            Finding::bad("temporary files", State::Warning, format!("little room: {detail}"), fix)
        }
        Ok(Room { detail, .. }) => Finding::ok("temporary files", detail),
        Err(e) => Finding::bad("temporary files", State::Missing, e, fix),
    }
}

pub(super) fn cache() -> Finding {
    let bad = |detail| {
        Finding::bad("cache", State::Warning, format!("{detail}: every start is a slow one"), "export XDG_CACHE_HOME=/a/folder/of/yours")
    };
    let Some(dir) = locate::cache() else { return bad("neither HOME nor XDG_CACHE_HOME is set".into()) };
    // It is made with its first use, in the folder above that is there.
    match dir.ancestors().find(|d| d.exists()).map_or(Err("no folder is there".into()), room) {
        Ok(Room { free, .. }) => Finding::ok("cache", format!("{}, {} free", dir.display(), mebibytes(free))),
        Err(e) => bad(e),
    }
}

struct Room {
    detail: String,
    free: u64,
}

/// Whether a file can be made, and what is left for it.
fn room(dir: &Path) -> Result<Room, String> {
    let failed = |e: std::io::Error| format!("{}: no file can be made: {e}", dir.display());
    tempfile::tempfile_in(dir).map_err(failed)?;
    let stat = rustix::fs::statvfs(dir).map_err(|e| failed(e.into()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let kind = filesystem(dir).map_or(String::new(), |kind| format!(" on {kind}"));
    Ok(Room { detail: format!("{}{kind}, {} free", dir.display(), mebibytes(free)), free })
}

/// The filesystem of the mount that has `dir`, from mountinfo(5).
fn filesystem(dir: &Path) -> Option<String> {
    let device = rustix::fs::stat(dir).ok()?.st_dev;
    let number = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some(&number))?;
    line.split_once(" - ")?.1.split(' ').next().map(str::to_string)
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

pub(super) fn memory() -> Finding {
    let Some(free) = fs::read_to_string("/proc/meminfo").ok().and_then(|text| available(&text)) else {
        return Finding::bad("memory", State::Warning, "/proc/meminfo does not tell what is free", "mount proc on /proc");
    };
    let detail = format!("{} available", mebibytes(free));
    if free < LEAST_MEMORY {
        Finding::bad("memory", State::Warning, detail, "end other programs, or add swap")
    } else {
        Finding::ok("memory", detail)
    }
}

/// MemAvailable of proc_meminfo(5), in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

pub(super) fn sandbox() -> Finding {
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement).handle_access(AccessFs::from_all(ABI::V1));
    let landlock = ruleset.and_then(Ruleset::create).is_ok();
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    let seccomp = actions.split_whitespace().any(|action| action == "kill_process");
    let lacking: Vec<&str> =
        [(seccomp, "seccomp"), (landlock, "landlock")].into_iter().filter(|(has, _)| !has).map(|(_, name)| name).collect();
    if lacking.is_empty() {
        return Finding::ok("sandbox", "seccomp and landlock");
    }
    let detail = format!("the kernel lacks {}: a guest that breaks out of its machine finds less in its way", lacking.join(" and "));
    Finding::bad(
        "sandbox",
        State::Warning,
        detail,
        "use a kernel of 5.13 or later with both, and name landlock in its lsm= if that is given",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read() {
        assert_eq!(available("MemTotal: 10 kB\nMemAvailable:   24066948 kB\n"), Some(24_066_948 * 1024));
        assert_eq!(available("MemTotal: 10 kB\n"), None);
        assert_eq!(available("MemAvailable: 99999999999999999999 kB\n"), None);
    }

    #[test]
    fn room_is_told_of_folders_only() {
        let dir = tempfile::tempdir().unwrap();
        let found = room(dir.path()).unwrap_or_else(|e| panic!("{e}"));
        assert!(found.free > 0 && found.detail.contains(" on ") && found.detail.ends_with(" MiB free"), "{}", found.detail);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(room(&dir.path().join("none")).is_err_and(|e| e.contains("no file can be made")));
    }
}
