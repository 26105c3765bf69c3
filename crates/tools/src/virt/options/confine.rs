//! What a program that only reads gives up before it looks at what a guest may have written: privileges, other files, other programs.
//!
//! Landlock lets a process name what it will still open; everything else is refused from then on, to it and to what it starts. A guest
//! that takes the reader over finds the images that were named for reading, a place for temporary files, and its output; no port of the
//! network unless a server has one of the disks, and no process of the user's but its own.
//!
//! 1. Before the first image is opened: its folder may be read, since it may name others there, temporary files may be made, and nothing
//!    else be opened or started. That is all where no appliance can be wanted.
//! 2. Where one can, the programs and files that it is made of stay open to reading and starting, and its cache to writing, until
//!    the guest turns out to be readable in this process. Then they are given up as well.
//!
//!    Few system calls are left then (seccomp): none that starts a program, and no socket unless a server has a disk.
//!
//! Kernels without landlock refuse no file; the rest holds there, too.

use std::path::{Path, PathBuf};

use guestfs_appliance::locate;
use imgcore::overlay;
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
    path_beneath_rules,
};
use rustix::thread::set_no_new_privs;

use super::calls;
use crate::common::Failure;

/// The newest rules that are asked for; an older kernel keeps those that it knows.
const LANDLOCK: ABI = ABI::V6;

/// What the host's programs, their libraries and their settings lie in.
const SYSTEM: [&str; 9] = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc", "/boot", "/opt"];
/// What of the kernel's they look at.
const KERNELS: [&str; 2] = ["/proc", "/sys"];
/// Whoever shows times reads these.
const TIME_ZONES: [&str; 2] = ["/etc/localtime", "/usr/share/zoneinfo"];

/// What stays open.
pub(in crate::virt) struct Confinement {
    /// The paths that a program was given, and their folders.
    folders: Vec<PathBuf>,
    /// Whether disks are on servers.
    network: bool,
}

impl Confinement {
    pub(super) fn new(paths: impl IntoIterator<Item = PathBuf>, network: bool) -> Self {
        let mut folders = Vec::new();
        for path in paths {
            // What a link leads to lies elsewhere.
            for path in std::fs::canonicalize(&path).into_iter().chain([path]) {
                let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_path_buf();
                folders.extend([parent, path]);
            }
        }
        Confinement { folders, network }
    }

    /// From now on only these folders are read, and few system calls are left. Says whether the kernel sees to that.
    pub(super) fn reading(&self) -> Result<bool, Failure> {
        let enforced = self.enter(&[])?;
        calls::few(self.network)?;
        Ok(enforced)
    }

    /// From now on only these folders are read, and what an appliance takes to start.
    pub(super) fn with_appliance(&self) -> Result<bool, Failure> {
        let cache = locate::cache();
        let mut programs: Vec<PathBuf> = SYSTEM.iter().map(PathBuf::from).collect();
        let files = locate::files().ok();
        programs.extend(files.into_iter().flat_map(|f| [Some(f.kernel), Some(f.initramfs), f.modules]).flatten());
        programs.extend(locate::monitor());
        programs.extend(cache.clone());
        let kernels: Vec<PathBuf> = KERNELS.iter().map(PathBuf::from).collect();
        let templates = std::env::var_os("GUESTLIFT_TEMPLATES").map(PathBuf::from);
        let written: Vec<PathBuf> = cache.into_iter().chain(templates).chain(["/dev".into()]).collect();
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        self.enter(&[(programs, read | AccessFs::Execute), (kernels, read | AccessFs::WriteFile), (written, write())])
    }

    fn enter(&self, more: &[(Vec<PathBuf>, BitFlags<AccessFs>)]) -> Result<bool, Failure> {
        let failed = |e: &dyn std::fmt::Display| Failure::new(format!("cannot give up what reading does not need: {e}"));
        set_no_new_privs(true).map_err(|e| failed(&e))?;
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        let temporary = [std::env::temp_dir(), overlay::folder()];
        let rules = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(LANDLOCK))
            .and_then(|rules| if self.network { Ok(rules) } else { rules.handle_access(AccessNet::from_all(LANDLOCK)) })
            .and_then(|rules| rules.scope(Scope::from_all(LANDLOCK)))
            .and_then(Ruleset::create)
            // A device tells its size by a call that is a right of its own.
            .and_then(|rules| rules.add_rules(path_beneath_rules(&self.folders, read | AccessFs::IoctlDev)))
            .and_then(|rules| rules.add_rules(path_beneath_rules(TIME_ZONES, read)))
            .and_then(|rules| rules.add_rules(path_beneath_rules(["/dev/tty", "/dev/null"], write())))
            .and_then(|rules| rules.add_rules(path_beneath_rules(temporary, write())));
        let rules = more.iter().fold(rules, |rules, (paths, access)| rules?.add_rules(path_beneath_rules(paths, *access)));
        let status = rules.and_then(|rules| rules.restrict_self()).map_err(|e| failed(&e))?;
        Ok(status.ruleset != RulesetStatus::NotEnforced)
    }
}

/// Everything but starting programs.
fn write() -> BitFlags<AccessFs> {
    AccessFs::from_all(LANDLOCK) & !AccessFs::Execute
}

#[cfg(test)]
mod tests {
    use std::fs::{File, read_to_string};
    use std::io::ErrorKind;
    use std::net::TcpStream;
    use std::process::Command;

    use rustix::io::Errno;
    use rustix::process::test_kill_process;

    use super::*;

    /// What a taken reader would try: each says whether it was refused.
    fn deeds(folder: &Path) -> Vec<(&'static str, bool)> {
        let refused = |outcome: std::io::Result<()>| outcome.is_err_and(|e| e.kind() == ErrorKind::PermissionDenied);
        vec![
            ("read the image", refused(read_to_string(folder.join("image")).map(drop))),
            ("read a file beside its folder", refused(read_to_string(folder.with_extension("secret")).map(drop))),
            ("read the users", refused(read_to_string("/etc/passwd").map(drop))),
            ("write the image", refused(File::options().write(true).open(folder.join("image")).map(drop))),
            ("make a file beside it", refused(File::create(folder.join("new")).map(drop))),
            ("make a temporary file", refused(tempfile::tempfile().map(drop))),
            ("reach a port", refused(TcpStream::connect("127.0.0.1:1").map(drop))),
            ("end its parent", rustix::process::getppid().is_some_and(|pid| test_kill_process(pid) == Err(Errno::PERM))),
            ("make a pair of sockets", refused(std::os::unix::net::UnixStream::pair().map(drop))),
            ("start a program", refused(Command::new("/bin/true").status().map(drop))),
        ]
    }

    /// Runs in a process of its own, which is confined afterwards: says what was refused.
    #[test]
    fn deed() {
        let Some(folder) = std::env::var_os("GUESTLIFT_TEST_FOLDER").map(PathBuf::from) else { return };
        let confinement = Confinement::new([folder.join("image")], false);
        let enforced = if std::env::var_os("GUESTLIFT_TEST_APPLIANCE").is_some() {
            confinement.with_appliance().unwrap()
        } else {
            confinement.reading().unwrap()
        };
        println!("enforced {enforced}");
        deeds(&folder).iter().filter(|(_, refused)| *refused).for_each(|(what, _)| println!("refused: {what}"));
    }

    fn refused(folder: &Path, appliance: bool) -> Option<Vec<String>> {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "virt::options::confine::tests::deed", "--nocapture", "--test-threads=1"]);
        command.env("GUESTLIFT_TEST_FOLDER", folder).env("TMPDIR", folder.with_extension("tmp"));
        if appliance {
            command.env("GUESTLIFT_TEST_APPLIANCE", "yes");
        }
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        if text.contains("enforced false") {
            return None;
        }
        assert!(text.contains("enforced true"), "{text}");
        Some(text.lines().filter_map(|l| Some(l.split_once("refused: ")?.1.to_string())).collect())
    }

    #[test]
    fn a_reader_opens_and_starts_nothing_but_what_it_was_given() {
        // Not in the folder for temporary files, where all is allowed.
        let dir = tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
        let folder = dir.path().join("images");
        std::fs::create_dir(&folder).unwrap();
        std::fs::create_dir(folder.with_extension("tmp")).unwrap();
        std::fs::write(folder.join("image"), "image").unwrap();
        std::fs::write(folder.with_extension("secret"), "secret").unwrap();
        let Some(strict) = refused(&folder, false) else {
            assert!(std::env::var_os("CI").is_none(), "this kernel has no landlock");
            eprintln!("skipped: this kernel has no landlock");
            return;
        };
        let always = ["read a file beside its folder", "write the image", "make a file beside it", "reach a port", "end its parent"];
        let others = ["read the users", "start a program", "make a pair of sockets"];
        let mut expected: Vec<&str> = always.into_iter().chain(others).collect();
        expected.sort_unstable();
        let sorted = |mut names: Vec<String>| {
            names.sort();
            names
        };
        assert_eq!(sorted(strict), expected);
        // With an appliance that may be wanted, the host's programs are still there.
        let mut expected = always.to_vec();
        expected.sort_unstable();
        assert_eq!(sorted(refused(&folder, true).unwrap()), expected);
    }
}
