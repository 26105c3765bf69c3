//! The machine: what it is made of, and its life from the kernel's entry to power-off.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::boot::{self, Payload};
use crate::bus::Bus;
use crate::error::{Context, Error, Result};
use crate::layout;
use crate::legacy::{Cmos, Power, SerialPort, Silent};
use crate::sys::{Exit, Vm};
use crate::virtio::VirtioDevice;
use crate::virtio::mmio::{QUEUE_NOTIFY, Transport};

/// What every kernel here is told: its console, that a reset by the keyboard controller is the machine's end and a panic one,
/// too, and not to measure or check clocks that are known to be right.
const COMMAND_LINE: &str = "console=ttyS0 reboot=k panic=-1 no_timer_check tsc=reliable random.trust_cpu=on";

/// What a machine is made of.
pub struct Config {
    /// An ELF file or a bzImage with an entry for PVH.
    pub kernel: File,
    /// An archive of its first files.
    pub initramfs: File,
    /// What the kernel is told besides what this machine demands.
    pub command_line: String,
    /// The guest's memory in MiB.
    pub memory_mib: u64,
    /// Its virtio devices, in the order in which the guest finds them.
    pub devices: Vec<Box<dyn VirtioDevice>>,
    /// Gets what the guest writes to its serial port, whole lines at a time.
    pub serial: Box<dyn Write + Send>,
}

/// Why a guest no longer runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It switched itself off, or its kernel panicked, which it says on the serial port.
    PowerOff,
}

/// A machine that has not ended.
pub struct Machine {
    vm: Vm,
    ports: Bus,
    mmio: Bus,
    power: Arc<Power>,
}

impl Machine {
    /// Puts it together and loads its kernel.
    pub fn new(config: Config) -> Result<Self> {
        let too_large = Error::Memory { what: "the host's address space", memory_mib: config.memory_mib };
        let Some(memory_bytes) = config.memory_mib.checked_mul(1 << 20) else { return Err(too_large) };
        let mut ranges = Vec::new();
        for (start, len) in layout::memory(memory_bytes) {
            let Ok(len) = usize::try_from(len) else { return Err(too_large) };
            ranges.push((start, len));
        }
        let memory = GuestMemoryMmap::from_ranges(&ranges)
            .map_err(|e| Error::Host { what: "cannot map the guest's memory", error: std::io::Error::other(e) })?;
        let vm = Vm::new(memory)?;
        let mut ports = Bus::default();
        let (port, irq) = layout::SERIAL;
        let interrupt = event()?;
        vm.interrupt(&interrupt, irq)?;
        let power = Arc::new(Power::default());
        ports.add(port, 8, Arc::new(SerialPort::new(interrupt, config.serial)));
        ports.add(0x40, 4, Arc::new(Silent));
        ports.add(0x61, 1, Arc::new(Silent));
        ports.add(0x64, 1, power.clone());
        ports.add(0x70, 2, Arc::new(Cmos::default()));
        let mut mmio = Bus::default();
        let khz = vm.vcpu().get_tsc_khz().kvm("tell the processor's frequency")?;
        let mut command_line = format!("{COMMAND_LINE} tsc_early_khz={khz} {}", config.command_line);
        for (number, device) in (0..).zip(config.devices) {
            let (address, irq) = layout::device(number);
            let transport = connect(&vm, device, address, irq)?;
            mmio.add(address, layout::DEVICE_SIZE, transport);
            command_line.push_str(&format!(" virtio_mmio.device={}@{address:#x}:{irq}", layout::DEVICE_SIZE));
        }
        if command_line.len() >= layout::COMMAND_LINE_SIZE {
            return Err(Error::CommandLine(command_line.len()));
        }
        boot::prepare(&vm, Payload { kernel: config.kernel, initramfs: config.initramfs, command_line }, memory_bytes)?;
        Ok(Machine { vm, ports, mmio, power })
    }

    /// Runs the guest on this thread.
    ///
    /// # Errors
    /// [`Error::Crashed`] when the guest cannot go on.
    pub fn run(&mut self) -> Result<Ending> {
        loop {
            match self.vm.run(&self.ports, &self.mmio)? {
                Exit::Device if self.power.is_off() => return Ok(Ending::PowerOff),
                Exit::Device | Exit::Signal => {}
            }
        }
    }
}

/// A device with its interrupt, and its queues' notifications as events that do not stop the processor.
fn connect(vm: &Vm, device: Box<dyn VirtioDevice>, address: u64, irq: u32) -> Result<Arc<Transport>> {
    let interrupt = event()?;
    vm.interrupt(&interrupt, irq)?;
    let transport = Transport::new(device, vm.memory().clone(), interrupt).map_err(no_event)?;
    for (queue, kick) in (0..).zip(transport.kicks()) {
        vm.notification(kick, address + QUEUE_NOTIFY, queue)?;
    }
    Ok(transport)
}

fn event() -> Result<EventFd> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(no_event)
}

fn no_event(error: std::io::Error) -> Error {
    Error::Host { what: "cannot make an event descriptor", error }
}
