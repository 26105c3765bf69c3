//! The state of a machine that rests, beside its memory: what [`Machine::save`](crate::Machine::save) writes.

use kvm_bindings::{
    Msrs, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
    kvm_xsave,
};
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};
use crate::sys::Vm;
use crate::virtio::mmio;

/// Registers outside of the other sets, by their numbers (Intel SDM volume 4, AMD APM volume 2 appendix A), in the order in
/// which they are set again: the timer runs against the counter, so it comes last.
#[rustfmt::skip]
const MSRS: [(u32, &str); 16] = [
    (0x10, "IA32_TIME_STAMP_COUNTER"), (0x3b, "IA32_TSC_ADJUST"), (0x48, "IA32_SPEC_CTRL"),
    (0x174, "IA32_SYSENTER_CS"), (0x175, "IA32_SYSENTER_ESP"), (0x176, "IA32_SYSENTER_EIP"),
    (0x1a0, "IA32_MISC_ENABLE"), (0x277, "IA32_PAT"), (0x2ff, "IA32_MTRR_DEF_TYPE"), (0xda0, "IA32_XSS"),
    (0xc000_0081, "STAR"), (0xc000_0082, "LSTAR"), (0xc000_0084, "FMASK"),
    (0xc000_0102, "KERNEL_GS_BASE"), (0xc000_0103, "TSC_AUX"), (0x6e0, "IA32_TSC_DEADLINE"),
];

/// A machine, less its memory. It means something only to the same program on the same host.
#[derive(Serialize, Deserialize)]
pub struct Saved {
    /// The size of the memory.
    pub memory_bytes: u64,
    /// The processor.
    pub processor: Processor,
    /// The interrupt controllers.
    pub irqchips: [kvm_irqchip; 3],
    /// The devices by place; nothing where a place was empty.
    pub places: Vec<Option<mmio::State>>,
}

/// A processor between two instructions.
#[derive(Serialize, Deserialize)]
pub struct Processor {
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<(u32, u64)>,
    events: kvm_vcpu_events,
}

impl Processor {
    /// The state of the machine's processor, which rests.
    pub fn save(vm: &Vm) -> Result<Self> {
        const SAVE: &str = "tell the processor's state";
        let vcpu = vm.vcpu();
        // First: asking for it finishes what the local APIC has pending.
        let mp_state = vcpu.get_mp_state().kvm(SAVE)?;
        let mut msrs = Vec::new();
        for (index, name) in MSRS.iter().filter(|(index, _)| vm.has_msr(*index)) {
            let mut msr = list(*index, 0)?;
            match vcpu.get_msrs(&mut msr).kvm(SAVE)? {
                1 => msrs.extend(msr.as_slice().iter().map(|entry| (entry.index, entry.data))),
                _ => return Err(Error::Register(name)),
            }
        }
        Ok(Processor {
            mp_state,
            regs: vcpu.get_regs().kvm(SAVE)?,
            sregs: vcpu.get_sregs().kvm(SAVE)?,
            xsave: vcpu.get_xsave().kvm(SAVE)?,
            xcrs: vcpu.get_xcrs().kvm(SAVE)?,
            debug: vcpu.get_debug_regs().kvm(SAVE)?,
            lapic: vcpu.get_lapic().kvm(SAVE)?,
            msrs,
            events: vcpu.get_vcpu_events().kvm(SAVE)?,
        })
    }

    /// Gives a new machine's processor this state. Its features are set already.
    pub fn restore(&self, vm: &Vm) -> Result<()> {
        const RESTORE: &str = "set the processor's state";
        let vcpu = vm.vcpu();
        vcpu.set_mp_state(self.mp_state).kvm(RESTORE)?;
        vcpu.set_regs(&self.regs).kvm(RESTORE)?;
        // They say where the local APIC is, which therefore follows.
        vcpu.set_sregs(&self.sregs).kvm(RESTORE)?;
        vm.set_xsave(&self.xsave)?;
        vcpu.set_xcrs(&self.xcrs).kvm(RESTORE)?;
        vcpu.set_debug_regs(&self.debug).kvm(RESTORE)?;
        vcpu.set_lapic(&self.lapic).kvm(RESTORE)?;
        for (index, value) in &self.msrs {
            if vcpu.set_msrs(&list(*index, *value)?).kvm(RESTORE)? != 1 {
                return Err(Error::Register(MSRS.iter().find(|(known, _)| known == index).map_or("unknown", |(_, name)| name)));
            }
        }
        vcpu.set_vcpu_events(&self.events).kvm(RESTORE)
    }
}

fn list(index: u32, data: u64) -> Result<Msrs> {
    let entry = kvm_msr_entry { index, data, ..Default::default() };
    Msrs::from_entries(&[entry])
        .map_err(|e| Error::Host { what: "cannot ask for a register", error: std::io::Error::other(format!("{e:?}")) })
}
