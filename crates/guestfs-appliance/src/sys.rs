//! The few things that the host side does beneath the safe interfaces.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};

/// Makes the kernel kill the command's process when the thread that spawned it ends, however it ends, and keeps from it what
/// this process has inherited itself.
pub fn die_with_parent(command: &mut Command) {
    let parent = getpid();
    // SAFETY: between fork and exec the closure only makes system calls, and it allocates nothing.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // Kernels before 5.11 do not know the flag; there only what we opened ourselves is closed.
            libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
            // The parent may have gone before the line above.
            if getppid() != Some(parent) { Err(io::Error::from_raw_os_error(rustix::io::Errno::CHILD.raw_os_error())) } else { Ok(()) }
        });
    }
}

/// Lets the command's process inherit a descriptor, under the number that it has here. It stays open here as long as the
/// command exists.
pub fn inherit(command: &mut Command, fd: OwnedFd) {
    // SAFETY: as above.
    unsafe {
        command.pre_exec(move || Ok(fcntl_setfd(&fd, FdFlags::empty())?));
    }
}

/// The frequency of the host's time stamp counter in kHz, to a tenth of a percent. The guest's counter under TCG is
/// the host's; telling the kernel saves it a quarter of a second of measuring.
pub fn tsc_khz() -> u64 {
    // SAFETY: every 64-bit x86 processor has RDTSC.
    let counter = || unsafe { std::arch::x86_64::_rdtsc() };
    let (from, started) = (counter(), Instant::now());
    while started.elapsed() < Duration::from_millis(2) {
        std::hint::spin_loop();
    }
    let (to, elapsed) = (counter(), started.elapsed());
    u64::try_from(u128::from(to.wrapping_sub(from)) * 1_000_000 / elapsed.as_nanos().max(1)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_counter_runs_at_a_processors_pace() {
        let khz = super::tsc_khz();
        assert!((500_000..8_000_000).contains(&khz), "{khz}");
    }
}
