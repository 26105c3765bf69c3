//! Keeps the probe's report until the host starts anew or its device changes.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::{DEVICE, Report, Verdict, open, probe};

/// The file's name.
const FILE: &str = "kvm-probe";
/// The file is smaller; another would be no file of ours.
const LIMIT: u64 = 4096;
/// How long it holds that KVM does not work: what was in its way may have gone.
const DOUBT: Duration = Duration::from_secs(600);

/// A report, and what it is about.
#[derive(Serialize, Deserialize)]
struct Kept {
    subject: String,
    report: Report,
}

/// The report, from a directory of this user's, which is made where it is missing, or else by [`probe`].
///
/// Whether the device can be opened is always tried. What it can is believed if it was found since the host started, on the same device, by
/// this version, and by this user.
pub fn cached(directory: &Path) -> Report {
    let device = Path::new(DEVICE);
    if let Err(report) = open(device) {
        return report;
    }
    let Ok(subject) = subject(device) else { return probe() };
    let file = directory.join(FILE);
    if let Some(report) = read(&file, &subject) {
        return report;
    }
    let report = probe();
    // A report that cannot be kept is found again.
    let _ = write(directory, &Kept { subject, report: report.clone() });
    report
}

/// What a report is about: this version's view of one device since the host started. A module that is loaded anew makes its device anew.
fn subject(device: &Path) -> io::Result<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let meta = fs::metadata(device)?;
    let (version, boot) = (env!("CARGO_PKG_VERSION"), boot.trim_ascii());
    Ok(format!("{version} {boot} {}:{} {}.{} {}", meta.dev(), meta.ino(), meta.ctime(), meta.ctime_nsec(), meta.rdev()))
}

fn read(file: &Path, subject: &str) -> Option<Report> {
    let file = File::open(file).ok()?;
    let meta = file.metadata().ok()?;
    if !meta.is_file() || meta.uid() != rustix::process::geteuid().as_raw() || meta.mode() & 0o022 != 0 {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(LIMIT).read_to_end(&mut bytes).ok()?;
    let kept: Kept = postcard::from_bytes(&bytes).ok()?;
    let age = SystemTime::now().duration_since(meta.modified().ok()?).ok()?;
    (kept.subject == subject && (kept.report.verdict == Verdict::Works || age < DOUBT)).then_some(kept.report)
}

/// Under a name of its own first: a reader sees a whole file or none.
fn write(directory: &Path, kept: &Kept) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let bytes = postcard::to_stdvec(kept).map_err(io::Error::other)?;
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(&bytes)?;
    file.persist(directory.join(FILE))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn kept(subject: &str, verdict: Verdict) -> Kept {
        Kept { subject: subject.into(), report: Report::new(verdict, "kept") }
    }

    #[test]
    fn a_report_is_believed_for_its_subject_only() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("new");
        write(&folder, &kept("here and now", Verdict::Works)).unwrap();
        let file = folder.join(FILE);
        assert_eq!(read(&file, "here and now"), Some(Report::new(Verdict::Works, "kept")));
        assert_eq!(read(&file, "here and later"), None);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn what_others_could_have_written_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &kept("s", Verdict::Works)).unwrap();
        let file = dir.path().join(FILE);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(read(&file, "s"), None);
    }

    #[test]
    fn damaged_files_are_none() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &kept("subject", Verdict::Works)).unwrap();
        let file = dir.path().join(FILE);
        let whole = fs::read(&file).unwrap();
        for len in 0..whole.len() {
            fs::write(&file, &whole[..len]).unwrap();
            assert_eq!(read(&file, "subject"), None, "{len} bytes");
        }
    }

    #[test]
    fn doubt_goes_with_time() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &kept("s", Verdict::Unusable)).unwrap();
        let file = dir.path().join(FILE);
        assert!(read(&file, "s").is_some());
        let old = SystemTime::now() - 2 * DOUBT;
        File::options().write(true).open(&file).unwrap().set_modified(old).unwrap();
        assert_eq!(read(&file, "s"), None);
    }

    #[test]
    fn the_cache_says_what_the_probe_says() {
        let dir = tempfile::tempdir().unwrap();
        let first = cached(dir.path());
        let second = cached(dir.path());
        assert_eq!(first.verdict, probe().verdict);
        // Kept with the time that it took; only a device that cannot be opened is tried again.
        assert!(first == second || !dir.path().join(FILE).exists(), "{first}; {second}");
    }
}
