//! A machine of one processor in 64-bit mode that runs the probe's programs.

use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kvm_bindings::{kvm_regs, kvm_segment};
use kvm_ioctls::VcpuExit;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{Kicked, Report, Verdict};
use crate::error::{Context, Error, Result};
use crate::sys::probe::{self as sys, DONE, Program};
use crate::sys::{Vm, pause};

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

/// The machine: as the monitor makes it, but for what it starts with.
pub(super) struct Trial {
    vm: Vm,
    signal: libc::c_int,
}

impl Trial {
    /// Makes one for the calling thread, to be called back by a signal.
    pub(super) fn new(kicked: &Kicked) -> Result<Self> {
        let host = |what| move |error| Error::Host { what, error };
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), SIZE as usize)]).map_err(io::Error::other);
        let vm = Vm::new(memory.map_err(host("cannot map the guest's memory"))?)?;
        fill(vm.memory()).map_err(io::Error::other).map_err(host("cannot fill the guest's memory"))?;
        let vcpu = vm.vcpu();
        pause::prepare(vcpu, kicked.signal)?;
        kicked.ready.store(true, Ordering::Release);
        // Its clock is one that a guest can rely on.
        vcpu.get_tsc_khz().kvm("tell the processor's frequency")?;
        vcpu.set_cpuid2(&vm.supported_cpuid()).kvm("set the processor's features")?;
        let mut sregs = vcpu.get_sregs().kvm("tell the processor's registers")?;
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
        vcpu.set_sregs(&sregs).kvm("set the processor's registers")?;
        Ok(Trial { vm, signal: kicked.signal })
    }

    /// Runs a program for `count` turns, and says how long that took.
    pub(super) fn run(&mut self, program: Program, count: u64) -> Result<Result<Duration, Failure>> {
        let (rdi, rsi) = match program {
            Program::Map => (WINDOW, PT + WINDOW / 0x1000 * 8),
            _ => (SCRATCH, 0),
        };
        let rip = CODE + program.offset();
        let vcpu = self.vm.vcpu_mut();
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
        })
        .kvm("set the processor's registers")?;
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
                Err(e) if e.errno() == libc::EINTR && pause::requested(self.signal) => Err(Failure::Stopped),
                // A signal that is for others.
                Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => continue,
                Err(error) => return Err(Error::Kvm { call: "run the guest", error }),
            });
        }
    }
}

/// Writes tables, descriptors and programs.
fn fill(memory: &GuestMemoryMmap<()>) -> std::result::Result<(), vm_memory::GuestMemoryError> {
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
