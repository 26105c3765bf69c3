//! What a monitor gives up before its guest runs: everything that it does not need. A guest that takes the monitor over has its disks
//! and its port, as before, and nothing else of the host.
//!
//! Four walls, each of which holds alone: no privilege is ever gained, no core is ever dumped, no file is opened and no port reached
//! (landlock), and few system calls are left (seccomp), fewer on the threads of devices than on the processor's, which starts
//! those. A forbidden call ends the process by SIGSYS, which its parent sees.

use std::collections::BTreeMap;
use std::io;
use std::sync::OnceLock;

use landlock::{ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus, Scope};
use libc::c_long;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::set_no_new_privs;
use seccompiler::SeccompCmpArgLen::{Dword, Qword};
use seccompiler::SeccompCmpOp::{Eq, MaskedEq};
use seccompiler::{BpfProgram, SeccompAction, SeccompCondition, SeccompFilter, SeccompRule, TargetArch};

use crate::error::{Error, Result};
use crate::sys::heap;

/// The newest rules that are asked for; an older kernel keeps those that it knows.
const LANDLOCK: ABI = ABI::V6;

/// `_IO(KVMIO, 0x80)`.
const KVM_RUN: u64 = 0xae80;
/// `_IOR(KVMIO, 0x81, struct kvm_regs)`: where a guest died.
const KVM_GET_REGS: u64 = 0x8090_ae81;

/// Memory, locks, open descriptors, the thread's own end, and what a panic takes to tell of itself.
const EVERY_THREAD: [c_long; 38] = [
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_futex,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// What it takes to start a device besides.
const PROCESSOR: [c_long; 5] = [libc::SYS_clone3, libc::SYS_epoll_create1, libc::SYS_eventfd2, libc::SYS_dup, libc::SYS_seccomp];

/// Reading and writing of files that are open.
const FILES: [c_long; 13] = [
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_lseek,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_newfstatat,
    libc::SYS_flock,
];

/// What disks are read from and written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disks {
    /// Sockets.
    Served,
    /// Files of this process's own, open already.
    Files,
}

/// The rest of the filter for threads of devices, once there is a sandbox.
static NARROW: OnceLock<BpfProgram> = OnceLock::new();

/// Locks this process in for good. Says whether the host's kernel has landlock; where it has not, the other walls stand.
///
/// # Errors
/// [`Error::Host`] when a wall cannot be put up, or when there are other threads already, for which not all of them would hold.
pub fn enter(disks: Disks) -> Result<bool> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads > 1 {
        let error = io::Error::other(format!("{threads} threads run already"));
        return Err(Error::Host { what: "cannot enter the sandbox", error });
    }
    heap::one_for_all();
    no_privileges()?;
    no_core()?;
    let landlocked = no_files()?;
    few_calls(disks)?;
    Ok(landlocked)
}

/// Gives up, on this thread, what only the processor's needs. To be called as the first of a device's thread.
///
/// # Errors
/// The host's refusal.
pub fn narrow() -> io::Result<()> {
    NARROW.get().map_or(Ok(()), |filter| seccompiler::apply_filter(filter).map_err(io::Error::other))
}

fn no_privileges() -> Result<()> {
    set_no_new_privs(true).map_err(|e| Error::Host { what: "cannot renounce privileges", error: e.into() })
}

/// Neither a core file nor a debugger shall show a guest's memory.
fn no_core() -> Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .and_then(|()| set_dumpable_behavior(DumpableBehavior::NotDumpable))
        .map_err(|e| Error::Host { what: "cannot switch core dumps off", error: e.into() })
}

fn no_files() -> Result<bool> {
    let locked = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(LANDLOCK)))
        .and_then(|rules| rules.scope(Scope::from_all(LANDLOCK)))
        .and_then(Ruleset::create)
        .and_then(|rules| rules.restrict_self());
    let status = locked.map_err(|e| Error::Host { what: "cannot renounce all files", error: io::Error::other(e) })?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

fn few_calls(disks: Disks) -> Result<()> {
    let failed = |e: &dyn std::fmt::Display| Error::Host { what: "cannot renounce system calls", error: io::Error::other(e.to_string()) };
    let files: &[c_long] = if disks == Disks::Files { &FILES } else { &[] };
    let mut rules: BTreeMap<c_long, Vec<SeccompRule>> = EVERY_THREAD.iter().chain(files).map(|call| (*call, Vec::new())).collect();
    let when = |argument, operation, value| {
        let condition = SeccompCondition::new(argument, Dword, operation, value).map_err(|e| failed(&e))?;
        SeccompRule::new(vec![condition]).map_err(|e| failed(&e))
    };
    let all = |arguments: &[(u8, u64)]| {
        let conditions = arguments.iter().map(|(argument, value)| SeccompCondition::new(*argument, Qword, Eq, *value));
        conditions.collect::<Result<_, _>>().and_then(SeccompRule::new).map_err(|e| failed(&e))
    };
    // Data never becomes code.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![when(2, MaskedEq(libc::PROT_EXEC as u64), 0)?]);
    }
    // Of signals, only to die by, and none for other processes of this user.
    rules.insert(libc::SYS_tgkill, vec![all(&[(0, u64::from(std::process::id())), (2, libc::SIGABRT as u64)])?]);
    // A thread asks how large its stack may be; nobody sets a limit, this process's or another's.
    rules.insert(libc::SYS_prlimit64, vec![all(&[(0, 0), (2, 0)])?]);
    // The standard library asks so whether a descriptor is open; an image's lock is given back so.
    let mut descriptors = vec![when(1, Eq, libc::F_GETFD as u64)?];
    if disks == Disks::Files {
        descriptors.push(when(1, Eq, libc::F_OFD_SETLK as u64)?);
    }
    rules.insert(libc::SYS_fcntl, descriptors.clone());
    let narrow = compile(rules.clone(), SeccompAction::KillProcess, SeccompAction::Allow).map_err(|e| failed(&e))?;

    rules.extend(PROCESSOR.iter().map(|call| (*call, Vec::new())));
    rules.insert(libc::SYS_ioctl, vec![when(1, Eq, KVM_RUN)?, when(1, Eq, KVM_GET_REGS)?]);
    descriptors.push(when(1, Eq, libc::F_DUPFD_CLOEXEC as u64)?);
    rules.insert(libc::SYS_fcntl, descriptors);
    let thread = (libc::CLONE_VM | libc::CLONE_THREAD) as u64;
    rules.insert(libc::SYS_clone, vec![when(0, MaskedEq(thread), thread)?]);
    let (name, no_new_privs) = (libc::PR_SET_NAME as u64, libc::PR_SET_NO_NEW_PRIVS as u64);
    rules.insert(libc::SYS_prctl, vec![when(0, Eq, name)?, when(0, Eq, no_new_privs)?]);
    // The flags of clone3 lie in memory, where no filter sees them: the C library is told to use clone.
    let clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let no_clone3 = compile(clone3, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32)).map_err(|e| failed(&e))?;
    let processor = compile(rules, SeccompAction::KillProcess, SeccompAction::Allow).map_err(|e| failed(&e))?;

    // Before there is a filter: threads that start later find it.
    let _ = NARROW.set(narrow);
    seccompiler::apply_filter(&no_clone3).and_then(|()| seccompiler::apply_filter(&processor)).map_err(|e| failed(&e))
}

fn compile(
    rules: BTreeMap<c_long, Vec<SeccompRule>>,
    others: SeccompAction,
    these: SeccompAction,
) -> Result<BpfProgram, seccompiler::BackendError> {
    SeccompFilter::new(rules, others, these, TargetArch::x86_64)?.try_into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, ExitStatus};

    use rustix::process::{Signal, getppid, kill_process};

    use super::*;

    /// What a process does behind the walls, by name; run in a process of its own, since the walls stay.
    const DEEDS: [(&str, fn()); 14] = [
        ("work", work),
        ("open a file", || drop(std::fs::File::open("/etc/passwd"))),
        ("make a file", || drop(std::fs::write("/tmp/guestlift-sandbox", "x"))),
        ("make a socket", || drop(UnixStream::pair())),
        ("reach the network", || drop(std::net::TcpStream::connect("127.0.0.1:9"))),
        ("start a program", || drop(Command::new("/bin/true").status())),
        ("another ioctl", || assert!(rustix::io::ioctl_fionbio(io::stdout(), false).is_ok())),
        ("kill the parent", || assert!(kill_process(getppid().unwrap(), Signal::HUP).is_ok())),
        ("abort the parent", abort_parent),
        ("limit itself", || assert!(setrlimit(Resource::Nofile, Rlimit { current: Some(0), maximum: Some(0) }).is_ok())),
        ("executable memory", executable),
        ("a device starts a thread", || drop(on_device_thread(|| std::thread::spawn(|| ()).join()))),
        ("a device makes an event", || drop(on_device_thread(|| vmm_sys_util::eventfd::EventFd::new(0).map(drop)))),
        ("a device opens a file", || drop(on_device_thread(|| std::fs::File::open("/etc/passwd")))),
    ];

    /// What a monitor does: threads, memory, descriptors that it has.
    fn work() {
        let event = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
        let other = event.try_clone().unwrap();
        on_device_thread(move || {
            other.write(7).unwrap();
            println!("{}", vec![1u8; 5 << 20].len());
        });
        assert_eq!(event.read().unwrap(), 7);
        assert!(std::panic::catch_unwind(|| panic!("to be seen")).is_err());
    }

    fn abort_parent() {
        let parent = getppid().unwrap().as_raw_pid();
        // SAFETY: the call reads no memory.
        #[allow(unsafe_code)]
        let _ = unsafe { libc::syscall(libc::SYS_tgkill, parent, parent, libc::SIGABRT) };
    }

    fn executable() {
        use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
        // SAFETY: memory that nobody else has.
        #[allow(unsafe_code)]
        let _ = unsafe { mmap_anonymous(std::ptr::null_mut(), 4096, ProtFlags::READ | ProtFlags::EXEC, MapFlags::PRIVATE) };
    }

    fn on_device_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        let device = move || {
            narrow().unwrap();
            work()
        };
        std::thread::Builder::new().name("device".into()).spawn(device).unwrap().join().unwrap()
    }

    /// Not a test by itself: does the deed that the environment names.
    ///
    /// The harness runs tests on threads of their own, behind which a sandbox for the whole process is too late: it is put up by parts.
    #[test]
    fn deed() {
        let Ok(wanted) = std::env::var("GUESTLIFT_TEST_DEED") else { return };
        no_privileges().unwrap();
        no_core().unwrap();
        if wanted == "landlock" {
            let there = no_files().unwrap();
            let refused = std::fs::File::open("/etc/passwd").is_err_and(|e| e.kind() == io::ErrorKind::PermissionDenied);
            assert_eq!(there, refused);
            println!("landlock {there}");
            return;
        }
        few_calls(Disks::Served).unwrap();
        DEEDS.iter().find(|(name, _)| *name == wanted).unwrap().1();
        println!("done");
        // The harness around it does what no monitor does.
        std::process::exit(0);
    }

    fn commit(deed: &str) -> (ExitStatus, String) {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sandbox::tests::deed", "--nocapture", "--test-threads=1"])
            .env("GUESTLIFT_TEST_DEED", deed)
            // A backtrace reads files.
            .env_remove("RUST_BACKTRACE")
            .output()
            .unwrap();
        (output.status, String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    }

    #[test]
    fn the_monitors_work_goes_on_and_every_other_deed_ends_the_process() {
        for (deed, _) in DEEDS {
            let (status, text) = commit(deed);
            if deed == "work" {
                assert!(status.success() && text.contains("done"), "{deed}: {status}\n{text}");
            } else {
                assert_eq!(status.signal(), Some(libc::SIGSYS), "{deed}: {status}\n{text}");
                assert!(!status.core_dumped(), "{deed}");
            }
        }
    }

    #[test]
    fn without_seccomp_landlock_refuses_files_where_the_kernel_has_it() {
        let (status, text) = commit("landlock");
        assert!(status.success(), "{text}");
        if text.contains("landlock false") {
            eprintln!("skipped: this kernel has no landlock");
        }
    }

    #[test]
    fn other_threads_would_stay_outside() {
        let error = enter(Disks::Served).unwrap_err().to_string();
        assert!(error.contains("threads run already"), "{error}");
    }
}
