//! A signal that stops the processor at a moment when its state is whole, and is never lost.
//!
//! It is blocked everywhere except within KVM_RUN, which ends with it, having finished what it was doing with devices. No
//! handler runs. Nothing is lost when it comes a moment earlier: then KVM_RUN ends at once.

use std::mem::MaybeUninit;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::{errno, ioctl_iow_nr, signal};

use crate::error::{Context, Error, Result};

/// `struct kvm_signal_mask`, whose set has the size of the kernel's, 8 bytes.
#[repr(C)]
struct SignalMask {
    len: u32,
    blocked: [u8; 8],
}

// The size in its number is that of the head alone.
ioctl_iow_nr!(KVM_SET_SIGNAL_MASK, kvm_bindings::KVMIO, 0x8b, u32);

/// Makes `signal` stop the processor, which runs on this thread. Threads that this one starts do not see it.
pub fn prepare(vcpu: &VcpuFd, signal: libc::c_int) -> Result<()> {
    signal::block_signal(signal)
        .map_err(|e| Error::Host { what: "cannot block a signal", error: std::io::Error::other(format!("{e:?}")) })?;
    let mask = SignalMask { len: 8, blocked: [0; 8] };
    // SAFETY: the call reads `len` and as many bytes behind it, all of which `mask` has.
    let done = unsafe { ioctl_with_ref(vcpu, KVM_SET_SIGNAL_MASK(), &mask) };
    if done == 0 { Ok(()) } else { Err(errno::Error::last()).kvm("set the processor's signals") }
}

/// Whether `signal` has come.
pub fn requested(signal: libc::c_int) -> bool {
    let mut pending = MaybeUninit::uninit();
    // SAFETY: the first call fills the set, which the second only reads, and only then.
    unsafe { libc::sigpending(pending.as_mut_ptr()) == 0 && libc::sigismember(pending.as_ptr(), signal) == 1 }
}
