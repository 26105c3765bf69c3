//! The transport of virtio over MMIO (VIRTIO 1.2, section 4.2.2), modern only. The driver may touch any register at any time; what
//! the specification forbids it is ignored, or ends in a device that needs a reset.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueState, QueueT};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Interrupt, Memory, Running, VirtioDevice};
use crate::bus::BusDevice;

/// Addresses that a device takes on the bus.
pub const LEN: u64 = 0x200;

/// Where the driver says that a queue has something new; the value is the queue's number.
pub const QUEUE_NOTIFY: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// "virt".
const MAGIC: u32 = 0x7472_6976;
/// Version 1 is the legacy interface.
const VERSION: u32 = 2;
/// What the transport and its rings can do, whatever the device.
const TRANSPORT_FEATURES: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;
/// Without the first, a driver speaks the legacy interface.
const NEEDED_FEATURES: u64 = 1 << VIRTIO_F_VERSION_1;
/// Status bits that a driver sets to say how far it has come.
const PROGRESS: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;

/// A device and its registers.
pub struct Transport {
    device: Box<dyn VirtioDevice>,
    memory: Memory,
    kicks: Vec<EventFd>,
    line: Arc<Line>,
    registers: Mutex<Registers>,
}

/// What the device's threads share with the registers. No thread ever waits for the registers' lock: a reset holds it while it waits
/// for the threads.
struct Line {
    irq: EventFd,
    status: AtomicU32,
    interrupt_status: AtomicU32,
    config_generation: AtomicU32,
}

/// Registers that only the driver changes, and what runs by them.
#[derive(Default)]
struct Registers {
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    rings: Vec<Ring>,
    running: Option<Live>,
}

/// A started device.
struct Live {
    queues: Vec<Arc<Mutex<Queue>>>,
    _threads: Box<dyn Send + Sync>,
}

/// A queue as the driver describes it. Nothing of it is checked before the device is started.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Ring {
    size: u16,
    ready: bool,
    descriptors: u64,
    driver: u64,
    device: u64,
    next_avail: u16,
    next_used: u16,
}

/// A transport and its device at rest, as [`Transport::save`] finds them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    status: u32,
    interrupt_status: u32,
    config_generation: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    rings: Vec<Ring>,
    device: Vec<u8>,
}

impl Transport {
    /// A device that is reset, with `irq` as its interrupt.
    ///
    /// # Errors
    /// The process has no file descriptors left.
    pub fn new(device: Box<dyn VirtioDevice>, memory: Memory, irq: EventFd) -> io::Result<Arc<Self>> {
        let kicks = device.queue_sizes().iter().map(|_| EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)).collect::<Result<_, _>>()?;
        let line = Line { irq, status: 0.into(), interrupt_status: 0.into(), config_generation: 0.into() };
        let transport = Transport { device, memory, kicks, line: Arc::new(line), registers: Mutex::default() };
        transport.reset(&mut transport.registers());
        Ok(Arc::new(transport))
    }

    /// For each queue, what a write of its number to [`QUEUE_NOTIFY`] sets.
    pub fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    /// The state for [`restore`](Self::restore). The device rests from then on, so that the memory can be saved as it is, until it is
    /// [resumed](Self::resume). That the processor rests too is the caller's part.
    pub fn save(&self) -> State {
        let mut registers = self.registers();
        registers.stop();
        let line = &self.line;
        State {
            status: line.status.load(Ordering::SeqCst),
            interrupt_status: line.interrupt_status.load(Ordering::SeqCst),
            config_generation: line.config_generation.load(Ordering::SeqCst),
            device_features_sel: registers.device_features_sel,
            driver_features_sel: registers.driver_features_sel,
            driver_features: registers.driver_features,
            queue_sel: registers.queue_sel,
            rings: registers.rings.clone(),
            device: self.device.save(),
        }
    }

    /// Lets a device that was saved go on.
    pub fn resume(&self) {
        let mut registers = self.registers();
        let status = self.line.status.load(Ordering::SeqCst);
        let live = VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_NEEDS_RESET | VIRTIO_CONFIG_S_FAILED;
        if status & live == VIRTIO_CONFIG_S_DRIVER_OK && registers.running.is_none() {
            self.start(&mut registers);
        }
    }

    /// Makes a new transport what another was, once the memory is what it was, and lets it go on. The device may have another
    /// configuration than then; the driver is told to look.
    ///
    /// # Errors
    /// The state is not one of such a device, or its driver relies on features that this one lacks.
    pub fn restore(&self, state: &State) -> io::Result<()> {
        let invalid = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        let mut registers = self.registers();
        if state.rings.len() != self.kicks.len() {
            return Err(invalid("the saved device has other queues"));
        }
        if state.status & VIRTIO_CONFIG_S_FEATURES_OK != 0 && !self.accepts(state.driver_features) {
            return Err(invalid("the driver of the saved device uses features that this one lacks"));
        }
        self.reset(&mut registers);
        self.device.restore(&state.device)?;
        registers.device_features_sel = state.device_features_sel;
        registers.driver_features_sel = state.driver_features_sel;
        registers.driver_features = state.driver_features;
        registers.queue_sel = state.queue_sel;
        registers.rings.clone_from(&state.rings);
        self.line.interrupt_status.store(state.interrupt_status, Ordering::SeqCst);
        self.line.config_generation.store(state.config_generation, Ordering::SeqCst);
        self.line.status.store(state.status, Ordering::SeqCst);
        drop(registers);
        self.resume();
        if state.status & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.line.config_changed()?;
        }
        Ok(())
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn features(&self) -> u64 {
        self.device.features() | TRANSPORT_FEATURES
    }

    fn accepts(&self, features: u64) -> bool {
        features & !self.features() == 0 && features & NEEDED_FEATURES == NEEDED_FEATURES
    }

    fn reset(&self, registers: &mut Registers) {
        registers.stop();
        let rings = self.device.queue_sizes().iter().map(|&size| Ring { size, ..Ring::default() }).collect();
        *registers = Registers { rings, ..Registers::default() };
        self.line.status.store(0, Ordering::SeqCst);
        self.line.interrupt_status.store(0, Ordering::SeqCst);
        self.device.reset();
    }

    /// Starts the device on the queues that the driver has described.
    fn start(&self, registers: &mut Registers) {
        match self.try_start(registers) {
            Ok(live) => registers.running = Some(live),
            // An address outside of the memory, a size that is no power of two, or a host without threads: the driver learns
            // that it has no device.
            Err(_) => self.line.needs_reset(),
        }
    }

    fn try_start(&self, registers: &Registers) -> io::Result<Live> {
        let event_idx = registers.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let sizes = self.device.queue_sizes();
        let queues =
            registers.rings.iter().zip(sizes).map(|(ring, &max)| Ok(Arc::new(Mutex::new(ring.open(max, event_idx, &self.memory)?))));
        let queues = queues.collect::<io::Result<Vec<_>>>()?;
        let threads = self.device.start(Running {
            memory: self.memory.clone(),
            queues: queues.clone(),
            kicks: self.kicks.iter().map(EventFd::try_clone).collect::<Result<_, _>>()?,
            features: registers.driver_features,
            interrupt: self.line.clone(),
        })?;
        Ok(Live { queues, _threads: threads })
    }

    fn read_register(&self, offset: u32) -> u32 {
        let registers = self.registers();
        match offset {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.device.id(),
            VIRTIO_MMIO_DEVICE_FEATURES => half(self.features(), registers.device_features_sel),
            VIRTIO_MMIO_QUEUE_NUM_MAX => {
                let index = usize::try_from(registers.queue_sel).ok();
                index.and_then(|index| self.device.queue_sizes().get(index)).map_or(0, |&size| size.into())
            }
            VIRTIO_MMIO_QUEUE_READY => registers.ring().is_some_and(|ring| ring.ready).into(),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.line.interrupt_status.load(Ordering::SeqCst),
            VIRTIO_MMIO_STATUS => self.line.status.load(Ordering::SeqCst),
            // No region of shared memory: its length is all ones (section 4.2.2).
            VIRTIO_MMIO_SHM_LEN_LOW | VIRTIO_MMIO_SHM_LEN_HIGH | VIRTIO_MMIO_SHM_BASE_LOW | VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            VIRTIO_MMIO_CONFIG_GENERATION => self.line.config_generation.load(Ordering::SeqCst),
            _ => 0,
        }
    }

    fn write_register(&self, offset: u32, value: u32) {
        let mut registers = self.registers();
        let status = self.line.status.load(Ordering::SeqCst);
        match offset {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => registers.device_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => registers.driver_features_sel = value,
            // What was agreed on stays (section 3.1.1).
            VIRTIO_MMIO_DRIVER_FEATURES if status & VIRTIO_CONFIG_S_FEATURES_OK == 0 => {
                let sel = registers.driver_features_sel;
                set_half(&mut registers.driver_features, sel, value);
            }
            VIRTIO_MMIO_QUEUE_SEL => registers.queue_sel = value,
            VIRTIO_MMIO_QUEUE_NOTIFY => {
                if let Some(kick) = usize::try_from(value).ok().and_then(|index| self.kicks.get(index)) {
                    // Fails only when it is full, and then the device wakes already.
                    let _ = kick.write(1);
                }
            }
            VIRTIO_MMIO_INTERRUPT_ACK => {
                self.line.interrupt_status.fetch_and(!value, Ordering::SeqCst);
            }
            VIRTIO_MMIO_STATUS => self.write_status(&mut registers, status, value),
            // Queues are described between the agreement on features and the start.
            _ if status & (VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK) == VIRTIO_CONFIG_S_FEATURES_OK => {
                if let Some(ring) = registers.ring_mut() {
                    ring.write(offset, value);
                }
            }
            _ => {}
        }
    }

    /// The device's initialization, section 3.1.1. Zero resets; else bits are only ever added.
    fn write_status(&self, registers: &mut Registers, status: u32, value: u32) {
        if value == 0 {
            return self.reset(registers);
        }
        let mut added = value & !status & (PROGRESS | VIRTIO_CONFIG_S_FAILED);
        let met = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
        if (status | added) & met != met || !self.accepts(registers.driver_features) {
            added &= !VIRTIO_CONFIG_S_FEATURES_OK;
        }
        if (status | added) & VIRTIO_CONFIG_S_FEATURES_OK == 0 || status & (VIRTIO_CONFIG_S_NEEDS_RESET | VIRTIO_CONFIG_S_FAILED) != 0 {
            added &= !VIRTIO_CONFIG_S_DRIVER_OK;
        }
        self.line.status.fetch_or(added, Ordering::SeqCst);
        if added & VIRTIO_CONFIG_S_FAILED != 0 {
            registers.stop();
        } else if added & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.start(registers);
        }
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        // Threads end before the memory that they work on.
        self.registers().stop();
    }
}

/// Registers have 32 bits and are taken whole; the configuration space behind them is bytes (section 4.2.2.2).
impl BusDevice for Transport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(VIRTIO_MMIO_CONFIG.into()) {
            return self.device.config(offset, data);
        }
        let value = match (u32::try_from(offset), data.len()) {
            (Ok(offset), 4) => self.read_register(offset),
            _ => 0,
        };
        data.fill(0);
        data.iter_mut().zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        // No device of ours has a configuration that can be written.
        if let (Ok(offset @ ..VIRTIO_MMIO_CONFIG), Ok(bytes)) = (u32::try_from(offset), data.try_into()) {
            self.write_register(offset, u32::from_le_bytes(bytes));
        }
    }
}

impl Interrupt for Line {
    fn used(&self) -> io::Result<()> {
        self.raise(VIRTIO_MMIO_INT_VRING)
    }

    fn config_changed(&self) -> io::Result<()> {
        self.config_generation.fetch_add(1, Ordering::SeqCst);
        self.raise(VIRTIO_MMIO_INT_CONFIG)
    }

    fn needs_reset(&self) {
        self.status.fetch_or(VIRTIO_CONFIG_S_NEEDS_RESET, Ordering::SeqCst);
        // A driver that is not told finds the bit all the same.
        let _ = self.raise(VIRTIO_MMIO_INT_CONFIG);
    }
}

impl Line {
    fn raise(&self, bits: u32) -> io::Result<()> {
        self.interrupt_status.fetch_or(bits, Ordering::SeqCst);
        self.irq.write(1)
    }
}

impl Registers {
    fn ring(&self) -> Option<&Ring> {
        self.rings.get(usize::try_from(self.queue_sel).ok()?)
    }

    fn ring_mut(&mut self) -> Option<&mut Ring> {
        self.rings.get_mut(usize::try_from(self.queue_sel).ok()?)
    }

    /// Ends the device's threads; where they were in the queues is kept.
    fn stop(&mut self) {
        let Some(Live { queues, _threads }) = self.running.take() else { return };
        drop(_threads);
        for (ring, queue) in self.rings.iter_mut().zip(queues) {
            let queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
            (ring.next_avail, ring.next_used) = (queue.next_avail(), queue.next_used());
        }
    }
}

impl Ring {
    fn write(&mut self, offset: u32, value: u32) {
        if offset == VIRTIO_MMIO_QUEUE_READY {
            self.ready = value & 1 != 0;
            return;
        }
        // A queue that is ready stays as it is (section 4.2.2.2).
        if self.ready {
            return;
        }
        match offset {
            // No queue has the size 0: that is as wrong as what does not fit.
            VIRTIO_MMIO_QUEUE_NUM => self.size = value.try_into().unwrap_or(0),
            VIRTIO_MMIO_QUEUE_DESC_LOW => set_half(&mut self.descriptors, 0, value),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => set_half(&mut self.descriptors, 1, value),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_half(&mut self.driver, 0, value),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_half(&mut self.driver, 1, value),
            VIRTIO_MMIO_QUEUE_USED_LOW => set_half(&mut self.device, 0, value),
            VIRTIO_MMIO_QUEUE_USED_HIGH => set_half(&mut self.device, 1, value),
            _ => {}
        }
    }

    /// The queue, if it is one: a size that is allowed, addresses that are aligned and in the memory.
    fn open(&self, max_size: u16, event_idx_enabled: bool, memory: &Memory) -> io::Result<Queue> {
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
        let queue = Queue::try_from(QueueState {
            max_size,
            next_avail: self.next_avail,
            next_used: self.next_used,
            event_idx_enabled,
            size: self.size,
            ready: self.ready,
            desc_table: self.descriptors,
            avail_ring: self.driver,
            used_ring: self.device,
        })
        .map_err(invalid)?;
        if queue.is_valid(memory.as_ref()) { Ok(queue) } else { Err(invalid(virtio_queue::Error::QueueNotReady)) }
    }
}

/// The half of `value` that a selector names; there are two.
fn half(value: u64, sel: u32) -> u32 {
    match sel {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_half(value: &mut u64, sel: u32, half: u32) {
    match sel {
        0 => *value = *value & !0xffff_ffff | u64::from(half),
        1 => *value = *value & 0xffff_ffff | u64::from(half) << 32,
        _ => {}
    }
}
