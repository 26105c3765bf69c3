//! What can go wrong: on the host, with what it is to start, and in the guest.

use vmm_sys_util::errno;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why there is no machine, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host's KVM refused a call.
    #[error("KVM cannot {call}: {error}")]
    Kvm {
        /// What it was to do.
        call: &'static str,
        /// Its answer.
        error: errno::Error,
    },
    /// The host's KVM lacks something.
    #[error("KVM has no {0} here")]
    Missing(&'static str),
    /// The kernel cannot be started.
    #[error("the kernel cannot be started: {0}")]
    Kernel(String),
    /// The parts do not fit into the guest's memory.
    #[error("{what} takes more than the guest's {memory_mib} MiB of memory")]
    Memory {
        /// What does not fit.
        what: &'static str,
        /// The size of the guest's memory.
        memory_mib: u64,
    },
    /// The command line is longer than the kernel reads. Each device takes some of it.
    #[error("a kernel's command line of {0} bytes is too long")]
    CommandLine(usize),
    /// KVM does not give a register's value, or not take it back.
    #[error("KVM cannot keep the register {0}")]
    Register(&'static str),
    /// A saved machine does not fit to what it is to continue with.
    #[error("the saved machine cannot continue: {0}")]
    Saved(&'static str),
    /// Something else of the host's.
    #[error("{what}: {error}")]
    Host {
        /// What failed.
        what: &'static str,
        /// How.
        error: std::io::Error,
    },
    /// The guest is dead.
    #[error("the guest died: {0}")]
    Crashed(#[from] Crash),
}

/// What a guest died of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Crash {
    /// An exception within the handling of an exception, without a handler.
    #[error("triple fault")]
    TripleFault,
    /// KVM does not know how to go on, usually for an instruction that it had to emulate and cannot.
    #[error("KVM's internal error {suberror} at {rip:#x} (1: an instruction that it cannot emulate)")]
    Internal {
        /// Which, of `KVM_INTERNAL_ERROR_*`.
        suberror: u32,
        /// The guest's instruction pointer then.
        rip: u64,
    },
    /// The processor refuses the guest's state.
    #[error("the processor does not enter the guest (reason {0:#x})")]
    Entry(u64),
    /// KVM returned for a reason that this machine has no use for.
    #[error("unexpected exit {0} from KVM")]
    Exit(u32),
}

/// Names the call that failed.
pub(crate) trait Context<T> {
    /// `call` completes "KVM cannot …".
    fn kvm(self, call: &'static str) -> Result<T>;
}

impl<T> Context<T> for std::result::Result<T, errno::Error> {
    fn kvm(self, call: &'static str) -> Result<T> {
        self.map_err(|error| Error::Kvm { call, error })
    }
}
