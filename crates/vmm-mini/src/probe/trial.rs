//! A machine of one processor in 64-bit mode that runs the probe's programs.

use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment};
use kvm_ioctls::{Kvm, VcpuExit};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::signal::block_signal;

use super::{Kicked, Report, Verdict};
use crate::sys::probe::{self as sys, Arena, DONE, Program};

// Where things lie in the guest's memory, each on a page of its own, mapped at its own address.
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const PT: u64 = 0x4000;
const GDT: u64 = 0x5000;
const IDT: u64 = 0x6000;
const CODE: u64 = 0x7000;
const STACK_END: u64 = 0x9000;
const SCRATCH: u64 = 0x9000;
const FIRST: u64 = 0xa000;
const SECOND: u64 = 0xb000;
const SIZE: u64 = 0x10000;
/// An address behind the memory that a program maps to [`FIRST`] and [`SECOND`].
const WINDOW: u64 = 0x1f_f000;

/// Selectors in the GDT.
const CODE_SELECTOR: u16 = 8;
const DATA_SELECTOR: u16 = 16;

/// Bits of page-table entries: present, writable, accessed, dirty.
const PAGE: u64 = 0x63;

/// How a program did not end.
#[derive(Debug)]
pub(super) enum Failure {
    /// KVM has to do in software what the processor should do, and cannot.
    NotEmulated,
    /// A result that no processor gives.
    Wrong(&'static str),
    /// The machine ended, or came out of the program in another way.
    Ended(String),
    /// The run was stopped from outside.
    Stopped,
}

impl Failure {
    /// What that means for KVM.
    pub(super) fn report(&self) -> Report {
        let unusable = |reason: String| Report::new(Verdict::Unusable, reason);
        match self {
            Failure::NotEmulated => {
                let reason = "KVM is here, but the host emulates guests' kernels instead of running them, and cannot do all instructions";
                Report::new(Verdict::Emulated, reason)
            }
            Failure::Wrong(what) => unusable(format!("a guest's processor gets {what} wrong")),
            Failure::Ended(how) => unusable(format!("a guest's processor fails: {how}")),
            Failure::Stopped => unusable("a guest's processor was stopped".into()),
        }
    }
}

/// The machine.
pub(super) struct Trial {
    arena: Arena,
}

impl Trial {
    /// Makes one for the calling thread, to be called back by a signal.
    pub(super) fn new(kvm: &Kvm, kicked: &Kicked) -> io::Result<Self> {
        block_signal(kicked.signal).map_err(|e| io::Error::other(format!("a signal cannot be blocked: {e}")))?;
        kicked.ready.store(true, Ordering::Release);
        let vm = kvm.create_vm()?;
        // Intel's processors want a place for these even where they are not used; below the end of the address space nothing else is.
        vm.set_tss_address(0xfffb_d000)?;
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), SIZE as usize)]).map_err(io::Error::other)?;
        let mut arena = Arena::new(&vm, memory)?;
        fill(arena.memory()).map_err(io::Error::other)?;
        let vcpu = arena.vcpu();
        sys::end_runs_by(vcpu, kicked.signal)?;
        vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
        let mut sregs = vcpu.get_sregs()?;
        sregs.cs = segment(CODE_SELECTOR, 0xb);
        sregs.cs.l = 1;
        sregs.cs.db = 0;
        let data = segment(DATA_SELECTOR, 0x3);
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        (sregs.gdt.base, sregs.gdt.limit) = (GDT, 23);
        (sregs.idt.base, sregs.idt.limit) = (IDT, 4095);
        // CR0: PG, WP, NE, MP, PE; CR4: OSXMMEXCPT, OSFXSR, PAE; EFER: LMA, LME.
        sregs.cr0 = 0x8001_0023;
        sregs.cr4 = 0x620;
        sregs.cr3 = PML4;
        sregs.efer = 0x500;
        vcpu.set_sregs(&sregs)?;
        Ok(Trial { arena })
    }

    /// Runs a program for `count` turns, and says how long that took.
    pub(super) fn run(&mut self, program: Program, count: u64) -> io::Result<Result<Duration, Failure>> {
        let (rdi, rsi) = match program {
            Program::Map => (WINDOW, PT + WINDOW / 0x1000 * 8),
            _ => (SCRATCH, 0),
        };
        let rip = CODE + program.offset();
        let vcpu = self.arena.vcpu();
        vcpu.set_regs(&kvm_regs {
            rip,
            rdi,
            rsi,
            rcx: count,
            r8: FIRST | PAGE,
            r9: SECOND | PAGE,
            rsp: STACK_END,
            rflags: 2,
            ..Default::default()
        })?;
        let started = Instant::now();
        loop {
            return Ok(match vcpu.run() {
                Ok(VcpuExit::IoOut(DONE, data)) => match data.first() {
                    Some(0) => Ok(started.elapsed()),
                    Some(1) => Err(Failure::Wrong("SSE")),
                    Some(2) => Err(Failure::Wrong("cmpxchg16b")),
                    Some(3) => Err(Failure::Wrong("int3")),
                    Some(4) => Err(Failure::Wrong("invlpg")),
                    _ => Err(Failure::Wrong("out")),
                },
                Ok(VcpuExit::IoOut(..)) => continue,
                Ok(VcpuExit::InternalError) => Err(Failure::NotEmulated),
                Ok(VcpuExit::FailEntry(reason, _)) => Err(Failure::Ended(format!("the processor refuses to enter it, reason {reason:#x}"))),
                Ok(VcpuExit::Shutdown) => Err(Failure::Ended("it ends in a triple fault".into())),
                Ok(other) => Err(Failure::Ended(format!("it ends with {other:?}"))),
                Err(e) if e.errno() == libc::EINTR => Err(Failure::Stopped),
                Err(e) if e.errno() == libc::EAGAIN => continue,
                Err(e) => return Err(e.into()),
            });
        }
    }
}

/// Writes tables, descriptors and programs.
fn fill(memory: &GuestMemoryMmap<()>) -> Result<(), vm_memory::GuestMemoryError> {
    let put = |address: u64, value: u64| memory.write_obj(value, GuestAddress(address));
    put(PML4, PDPT | PAGE)?;
    put(PDPT, PD | PAGE)?;
    put(PD, PT | PAGE)?;
    for page in (0..SIZE).step_by(0x1000) {
        put(PT + page / 0x1000 * 8, page | PAGE)?;
    }
    // 64-bit code, and data, both of ring 0 and accessed.
    put(GDT + u64::from(CODE_SELECTOR), 0x00af_9b00_0000_ffff)?;
    put(GDT + u64::from(DATA_SELECTOR), 0x00cf_9300_0000_ffff)?;
    // An interrupt gate: offset in three parts, selector, type 14, present.
    let handler = CODE + Program::Breakpoint.offset();
    put(IDT + 3 * 16, handler & 0xffff | u64::from(CODE_SELECTOR) << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48)?;
    put(FIRST, 1)?;
    put(SECOND, 2)?;
    memory.write_slice(sys::code(), GuestAddress(CODE))
}

/// A flat segment of ring 0.
fn segment(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment { selector, type_, limit: u32::MAX, present: 1, s: 1, g: 1, db: 1, ..Default::default() }
}
