//! The machine: what it is made of, and its life from the kernel's entry to power-off.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::boot::{self, Payload};
use crate::bus::Bus;
use crate::error::{Context, Error, Result};
use crate::layout;
use crate::legacy::{Cmos, Power, SerialPort, Silent};
use crate::memory;
use crate::saved::{Processor, Saved};
use crate::sys::{Exit, Vm, pause};
use crate::virtio::VirtioDevice;
use crate::virtio::mmio::{self, QUEUE_NOTIFY, Transport};

/// What every kernel here is told: its console, that a reset by the keyboard controller is the machine's end and a panic one,
/// too, and not to measure or check clocks that are known to be right.
const COMMAND_LINE: &str = "console=ttyS0 reboot=k panic=-1 no_timer_check tsc=reliable random.trust_cpu=on";

/// The signal that pauses a machine.
const PAUSE: libc::c_int = libc::SIGUSR1;

/// Bytes that a saved state may have at most; it has some 10 KiB.
const MAX_STATE: u64 = 1 << 20;

/// What is around a guest.
pub struct Devices {
    /// The places for virtio devices, in the order in which the guest finds them. Those of a machine that is saved may be empty, and
    /// be filled when it continues.
    pub places: Vec<Option<Box<dyn VirtioDevice>>>,
    /// Gets what the guest writes to its serial port, whole lines at a time.
    pub serial: Box<dyn Write + Send>,
}

/// What a machine is started with.
pub struct Config {
    /// An ELF file or a bzImage with an entry for PVH.
    pub kernel: File,
    /// An archive of its first files.
    pub initramfs: File,
    /// What the kernel is told besides what this machine demands.
    pub command_line: String,
    /// The guest's memory in MiB.
    pub memory_mib: u64,
    /// What is around it.
    pub devices: Devices,
}

/// A machine at rest.
pub struct Files {
    /// Its memory.
    pub memory: File,
    /// All else.
    pub state: File,
}

/// Why a guest no longer runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It switched itself off, or its kernel panicked, which it says on the serial port.
    PowerOff,
    /// A signal [paused](Machine::pause_by_signal) it.
    Paused,
}

/// A machine that has not ended.
pub struct Machine {
    vm: Vm,
    ports: Bus,
    mmio: Bus,
    power: Arc<Power>,
    places: Vec<Option<Arc<Transport>>>,
    /// The state of devices that have not gone on yet. They do on [`run`](Machine::run): their threads come after the sandbox.
    resting: Vec<(Arc<Transport>, mmio::State)>,
    memory_bytes: u64,
}

impl Machine {
    /// Puts a machine together and loads its kernel.
    pub fn new(config: Config) -> Result<Self> {
        let too_large = Error::Memory { what: "the host's address space", memory_mib: config.memory_mib };
        let memory_bytes = config.memory_mib.checked_mul(1 << 20).ok_or(too_large)?;
        let machine = Self::assemble(memory_bytes, None, config.devices)?;
        let khz = machine.vm.vcpu().get_tsc_khz().kvm("tell the processor's frequency")?;
        let mut command_line = format!("{COMMAND_LINE} tsc_early_khz={khz} {}", config.command_line);
        for (number, _) in (0..).zip(&machine.places) {
            let (address, irq) = layout::device(number);
            command_line.push_str(&format!(" virtio_mmio.device={}@{address:#x}:{irq}", layout::DEVICE_SIZE));
        }
        if command_line.len() >= layout::COMMAND_LINE_SIZE {
            return Err(Error::CommandLine(command_line.len()));
        }
        let payload = Payload { kernel: config.kernel, initramfs: config.initramfs, command_line };
        boot::prepare(&machine.vm, payload, memory_bytes)?;
        Ok(machine)
    }

    /// Puts a machine together that continues where another was saved. The memory's file is mapped, never changed.
    ///
    /// # Errors
    /// [`Error::Saved`] when a device is missing, or the number of places is another.
    pub fn restore(files: Files, devices: Devices) -> Result<Self> {
        let mut state = Vec::new();
        files.state.take(MAX_STATE).read_to_end(&mut state).map_err(|error| Error::Host { what: "cannot read the saved state", error })?;
        let saved: Saved = postcard::from_bytes(&state).map_err(|_| Error::Saved("its state is damaged"))?;
        let mut machine = Self::assemble(saved.memory_bytes, Some(files.memory), devices)?;
        if saved.places.len() != machine.places.len() {
            return Err(Error::Saved("it has another number of places for devices"));
        }
        boot::set_cpuid(&machine.vm)?;
        saved.processor.restore(&machine.vm)?;
        machine.vm.set_irqchips(&saved.irqchips)?;
        for (state, place) in saved.places.into_iter().zip(&machine.places) {
            match (state, place) {
                (Some(state), Some(transport)) => machine.resting.push((transport.clone(), state)),
                (Some(_), None) => return Err(Error::Saved("a place for a device is empty now")),
                (None, _) => {}
            }
        }
        Ok(machine)
    }

    fn assemble(memory_bytes: u64, memory: Option<File>, devices: Devices) -> Result<Self> {
        let vm = Vm::new(memory::map(memory_bytes, memory)?)?;
        let mut ports = Bus::default();
        let (port, irq) = layout::SERIAL;
        let interrupt = event()?;
        vm.interrupt(&interrupt, irq)?;
        let power = Arc::new(Power::default());
        ports.add(port, 8, Arc::new(SerialPort::new(interrupt, devices.serial)));
        ports.add(0x40, 4, Arc::new(Silent));
        ports.add(0x61, 1, Arc::new(Silent));
        ports.add(0x64, 1, power.clone());
        ports.add(0x70, 2, Arc::new(Cmos::default()));
        let mut mmio = Bus::default();
        let mut places = Vec::new();
        for (number, device) in (0..).zip(devices.places) {
            let (address, irq) = layout::device(number);
            let transport = device.map(|device| connect(&vm, device, address, irq)).transpose()?;
            if let Some(transport) = &transport {
                mmio.add(address, layout::DEVICE_SIZE, transport.clone());
            }
            places.push(transport);
        }
        Ok(Machine { vm, ports, mmio, power, places, resting: Vec::new(), memory_bytes })
    }

    /// Makes SIGUSR1 pause the guest, which then has to [run](Self::run) on this thread. Threads that were started before should
    /// have the signal blocked.
    pub fn pause_by_signal(&self) -> Result<()> {
        pause::prepare(self.vm.vcpu(), PAUSE)
    }

    /// Runs the guest on this thread.
    ///
    /// # Errors
    /// [`Error::Crashed`] when the guest cannot go on.
    pub fn run(&mut self) -> Result<Ending> {
        for (transport, state) in self.resting.drain(..) {
            transport.restore(&state).map_err(|error| Error::Host { what: "a saved device cannot continue", error })?;
        }
        loop {
            match self.vm.run(&self.ports, &self.mmio)? {
                Exit::Device if self.power.is_off() => return Ok(Ending::PowerOff),
                Exit::Signal if pause::requested(PAUSE) => return Ok(Ending::Paused),
                Exit::Device | Exit::Signal => {}
            }
        }
    }

    /// Writes a paused machine to two empty files, and ends it.
    pub fn save(self, files: &Files) -> Result<()> {
        // Devices first: they write to the memory and raise interrupts until they rest.
        let places = self.places.iter().map(|place| place.as_ref().map(|transport| transport.save())).collect();
        let saved = Saved { memory_bytes: self.memory_bytes, processor: Processor::save(&self.vm)?, irqchips: self.vm.irqchips()?, places };
        memory::save(self.vm.memory(), &files.memory)?;
        let failed = |error| Error::Host { what: "cannot save the machine's state", error };
        let state = postcard::to_stdvec(&saved).map_err(|e| failed(std::io::Error::other(e)))?;
        (&files.state).write_all(&state).map_err(failed)
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
