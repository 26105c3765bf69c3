//! A virtual machine of KVM's: its memory, its interrupt controllers, and one processor.

use std::sync::Arc;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, MsrList, kvm_irqchip, kvm_userspace_memory_region, kvm_xsave};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::Bus;
use crate::error::{Context, Crash, Error, Result};
use crate::layout;
use crate::virtio::Memory;

/// What of KVM this machine is built of.
const NEEDED: [(Cap, &str); 6] = [
    (Cap::Irqchip, "interrupt controllers (KVM_CAP_IRQCHIP)"),
    (Cap::Irqfd, "interrupts by file descriptor (KVM_CAP_IRQFD)"),
    (Cap::Ioeventfd, "notifications by file descriptor (KVM_CAP_IOEVENTFD)"),
    (Cap::TscDeadlineTimer, "timer of the time stamp counter (KVM_CAP_TSC_DEADLINE_TIMER)"),
    (Cap::GetTscKhz, "frequency of the time stamp counter (KVM_CAP_GET_TSC_KHZ)"),
    (Cap::ImmediateExit, "immediate exit (KVM_CAP_IMMEDIATE_EXIT)"),
];

/// Why the processor came out of the guest.
pub enum Exit {
    /// It reached a device, which has answered.
    Device,
    /// A signal came.
    Signal,
}

/// A virtual machine with one processor.
///
/// Fields are dropped in order: the memory is unmapped after the processor and the machine are closed.
pub struct Vm {
    vcpu: VcpuFd,
    vm: VmFd,
    supported: CpuId,
    msrs: MsrList,
    memory: Memory,
}

impl Vm {
    /// A machine on `memory`, with interrupt controllers in the kernel and a processor that has not started.
    pub fn new(memory: GuestMemoryMmap<()>) -> Result<Self> {
        let kvm = Kvm::new().kvm("be opened (/dev/kvm)")?;
        if let Some((_, missing)) = NEEDED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(Error::Missing(missing));
        }
        let vm = kvm.create_vm().kvm("create a machine")?;
        let pages = layout::KVM_PAGES;
        vm.set_identity_map_address(pages).kvm("place its map of identity")?;
        vm.set_tss_address(usize::try_from(pages + 0x1000).expect("a 64-bit host")).kvm("place its task state segment")?;
        vm.create_irq_chip().kvm("create interrupt controllers")?;
        for (slot, region) in (0..).zip(memory.iter()) {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the region is mapped as long as `memory` lives, which this value owns and drops after the machine. Regions
            // do not overlap: GuestMemoryMmap sees to it.
            unsafe { vm.set_user_memory_region(region) }.kvm("take the guest's memory")?;
        }
        let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).kvm("tell its processor's features")?;
        let msrs = kvm.get_msr_index_list().kvm("tell its processor's registers")?;
        let vcpu = vm.create_vcpu(0).kvm("create a processor")?;
        Ok(Vm { vcpu, vm, supported, msrs, memory: Arc::new(memory) })
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The features that KVM offers a guest.
    pub fn supported_cpuid(&self) -> CpuId {
        self.supported.clone()
    }

    /// Whether KVM keeps this register of a guest's.
    pub fn has_msr(&self, index: u32) -> bool {
        self.msrs.as_slice().contains(&index)
    }

    /// The state of the interrupt controllers: two of a PC's, and the I/O APIC.
    pub fn irqchips(&self) -> Result<[kvm_irqchip; 3]> {
        let mut chips: [kvm_irqchip; 3] = Default::default();
        for (id, chip) in (0..).zip(&mut chips) {
            chip.chip_id = id;
            self.vm.get_irqchip(chip).kvm("tell the interrupt controllers' state")?;
        }
        Ok(chips)
    }

    /// Gives the interrupt controllers a state.
    pub fn set_irqchips(&self, chips: &[kvm_irqchip; 3]) -> Result<()> {
        chips.iter().try_for_each(|chip| self.vm.set_irqchip(chip)).kvm("set the interrupt controllers' state")
    }

    /// Gives the processor its extended registers.
    pub fn set_xsave(&self, xsave: &kvm_xsave) -> Result<()> {
        // SAFETY: KVM reads more than the structure has only if the process has asked for larger registers for its guests
        // (ARCH_REQ_XCOMP_GUEST_PERM), which this one does not.
        unsafe { self.vcpu.set_xsave(xsave) }.kvm("set the processor's extended registers")
    }

    /// The processor, to be set up.
    pub fn vcpu(&self) -> &VcpuFd {
        &self.vcpu
    }

    /// The processor, to be run by itself.
    pub fn vcpu_mut(&mut self) -> &mut VcpuFd {
        &mut self.vcpu
    }

    /// What is written to `event` is an interrupt in line `irq`.
    pub fn interrupt(&self, event: &EventFd, irq: u32) -> Result<()> {
        self.vm.register_irqfd(event, irq).kvm("connect an interrupt")
    }

    /// When the guest writes the 32-bit `value` to `address`, that sets `event`, and the processor goes on.
    pub fn notification(&self, event: &EventFd, address: u64, value: u32) -> Result<()> {
        self.vm.register_ioevent(event, &IoEventAddress::Mmio(address), value).kvm("connect a notification")
    }

    /// Runs the guest until it reaches a device or a signal comes.
    pub fn run(&mut self, ports: &Bus, mmio: &Bus) -> Result<Exit> {
        let crash = match self.vcpu.run() {
            Ok(VcpuExit::IoIn(port, data)) => {
                ports.read(port.into(), data);
                return Ok(Exit::Device);
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                ports.write(port.into(), data);
                return Ok(Exit::Device);
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                mmio.read(address, data);
                return Ok(Exit::Device);
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                mmio.write(address, data);
                return Ok(Exit::Device);
            }
            Ok(VcpuExit::Intr) => return Ok(Exit::Signal),
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => return Ok(Exit::Signal),
            Err(error) => return Err(Error::Kvm { call: "run the guest", error }),
            Ok(VcpuExit::Shutdown) => Crash::TripleFault,
            Ok(VcpuExit::FailEntry(reason, _)) => Crash::Entry(reason),
            Ok(VcpuExit::InternalError) => {
                // SAFETY: the exit's reason says that this member of the union was filled; any bits of it are a number.
                let suberror = unsafe { self.vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror };
                Crash::Internal { suberror, rip: self.vcpu.get_regs().map_or(0, |regs| regs.rip) }
            }
            Ok(_) => Crash::Exit(self.vcpu.get_kvm_run().exit_reason),
        };
        Err(crash.into())
    }
}
