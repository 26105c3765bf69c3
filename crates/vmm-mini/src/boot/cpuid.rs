//! What the guest's processor says of itself: KVM's offer, less what this machine lacks.

use kvm_bindings::kvm_cpuid_entry2;

use crate::error::{Context, Result};
use crate::sys::Vm;

/// Sets the processor's features.
pub fn set(vm: &Vm) -> Result<()> {
    let mut cpuid = vm.supported_cpuid();
    cpuid.retain(|entry| !matches!(entry.function, 0x4000_0000..=0x4fff_ffff));
    cpuid.as_mut_slice().iter_mut().for_each(filter);
    vm.vcpu().set_cpuid2(&cpuid).kvm("set the processor's features")
}

/// One processor without power management, performance counters, or virtualisation of its own.
fn filter(entry: &mut kvm_cpuid_entry2) {
    const fn bits(numbers: &[u32]) -> u32 {
        let (mut mask, mut i) = (0, 0);
        while i < numbers.len() {
            mask |= 1 << numbers[i];
            i += 1;
        }
        mask
    }
    match entry.function {
        // Features: APIC number 0, one logical processor.
        0x1 => {
            entry.ebx = entry.ebx & 0xffff | 1 << 16;
            // MONITOR, DS-CPL, VMX, SMX, EIST, TM2, PDCM, DCA
            entry.ecx &= !bits(&[3, 4, 5, 6, 7, 8, 15, 18]);
            // The TSC deadline timer, which KVM leaves to us, and the sign of a hypervisor.
            entry.ecx |= bits(&[24, 31]);
            // MCE, MCA, ACPI, HTT, TM
            entry.edx &= !bits(&[7, 14, 22, 28, 29]);
        }
        // Caches: no other processor shares them.
        0x4 | 0x8000_001d => entry.eax &= 0x3fff,
        // Power: the APIC's timer always runs (ARAT).
        0x6 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (bits(&[2]), 0, 0, 0),
        // Structured features: no SGX, HLE, RTM.
        0x7 if entry.index == 0 => entry.ebx &= !bits(&[2, 4, 11]),
        // Performance counters, topology, SGX, AMD's SVM, topology, performance counters: none.
        0xa | 0xb | 0x12 | 0x1f | 0x8000_000a | 0x8000_001e | 0x8000_0022 => {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
        }
        // AMD's features: CmpLegacy, SVM, IBS, SKINIT, WDT, TopologyExtensions, performance counters.
        0x8000_0001 => entry.ecx &= !bits(&[1, 2, 10, 12, 13, 22, 23, 24, 28]),
        // Sizes: one core.
        0x8000_0008 => entry.ecx = 0,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_processor_without_virtualisation_is_left() {
        let all = |function| kvm_cpuid_entry2 { function, eax: !0, ebx: !0, ecx: !0, edx: !0, ..Default::default() };
        let filtered = |function| {
            let mut entry = all(function);
            filter(&mut entry);
            entry
        };
        let features = filtered(1);
        assert_eq!((features.ebx >> 16, features.ecx >> 5 & 1, features.ecx >> 24 & 1, features.edx >> 28 & 1), (1, 0, 1, 0));
        assert_eq!(filtered(0x8000_0001).ecx >> 2 & 1, 0, "SVM");
        assert_eq!(filtered(6).eax, 4, "ARAT");
        assert_eq!(filtered(0xd), all(0xd), "what the guest's registers need is left alone");
    }
}
