//! A driver written from the specification, without a processor: it sets devices up through their registers as Linux does, and puts
//! chains into rings in the guest's memory.

mod blk;
mod console;
mod hostile;
mod mmio;
mod random;
mod rng;

use std::collections::VecDeque;
use std::sync::Arc;

use virtio_bindings::virtio_mmio::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use self::random::Random;
use super::mmio::{State, Transport};
use super::{Memory, VirtioDevice};
use crate::bus::BusDevice;

/// Memory is two regions of this size with a hole of this size between them.
const REGION: u64 = 2 << 20;
/// Room for the rings of each queue; they lie one after the other from this address.
const RINGS: u64 = 0x1_0000;
/// Where buffers lie: the whole second region.
const BUFFERS: u64 = 2 * REGION;
/// What the driver sets until DRIVER_OK.
const READY: u32 = 1 | 2 | 8 | 4;
const NEEDS_RESET: u32 = 64;
/// A device that has not answered within this time hangs.
const DEADLINE: i32 = 20_000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Where a queue's parts lie, and how far the driver is.
#[derive(Clone, Debug)]
struct Rings {
    size: u16,
    descriptors: u64,
    avail: u64,
    used: u64,
    next_avail: u16,
    next_used: u16,
}

/// A guest with one device.
struct Guest {
    transport: Arc<Transport>,
    memory: Memory,
    irq: EventFd,
    queues: Vec<Rings>,
    /// The next free byte for a buffer.
    free: u64,
    offered: VecDeque<Offered>,
}

/// A chain that the device has not used yet.
#[derive(Clone, Debug)]
struct Offered {
    queue: usize,
    head: u16,
    /// Where the device writes, and how much.
    buffers: Vec<(u64, usize)>,
}

impl Guest {
    fn new(device: impl VirtioDevice + 'static) -> Self {
        let ranges = [(GuestAddress(0), REGION as usize), (GuestAddress(BUFFERS), REGION as usize)];
        Self::with_memory(device, Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap()))
    }

    fn with_memory(device: impl VirtioDevice + 'static, memory: Memory) -> Self {
        let sizes = device.queue_sizes().to_vec();
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let transport = Transport::new(Box::new(device), memory.clone(), irq.try_clone().unwrap()).unwrap();
        let queues = (1..).zip(sizes).map(|(n, size)| {
            let at = n * RINGS;
            Rings { size, descriptors: at, avail: at + 0x8000, used: at + 0xa000, next_avail: 0, next_used: 0 }
        });
        Guest { transport, memory, irq, queues: queues.collect(), free: BUFFERS, offered: VecDeque::new() }
    }

    /// The same guest on a new device, from a saved state.
    fn moved(&self, device: impl VirtioDevice + 'static, state: &State) -> std::io::Result<Self> {
        let mut guest = Guest::with_memory(device, self.memory.clone());
        guest.queues.clone_from(&self.queues);
        guest.offered.clone_from(&self.offered);
        guest.free = self.free;
        guest.transport.restore(state)?;
        Ok(guest)
    }

    fn get(&self, register: u32) -> u32 {
        let mut data = [0; 4];
        self.transport.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    fn set(&self, register: u32, value: u32) {
        self.transport.write(register.into(), &value.to_le_bytes());
    }

    fn status(&self) -> u32 {
        self.get(VIRTIO_MMIO_STATUS)
    }

    fn offered_features(&self) -> u64 {
        self.set(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
        let low = self.get(VIRTIO_MMIO_DEVICE_FEATURES);
        self.set(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
        u64::from(low) | u64::from(self.get(VIRTIO_MMIO_DEVICE_FEATURES)) << 32
    }

    fn take_features(&self, features: u64) {
        self.set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
        self.set(VIRTIO_MMIO_DRIVER_FEATURES, features as u32);
        self.set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
        self.set(VIRTIO_MMIO_DRIVER_FEATURES, (features >> 32) as u32);
    }

    /// Resets the device and negotiates up to FEATURES_OK, without features in `refuse`.
    fn negotiate(&mut self, refuse: u64) {
        self.set(VIRTIO_MMIO_STATUS, 0);
        assert_eq!(self.status(), 0);
        let _ = self.irq.read();
        self.offered.clear();
        self.free = BUFFERS;
        self.set(VIRTIO_MMIO_STATUS, 1);
        self.set(VIRTIO_MMIO_STATUS, 1 | 2);
        self.take_features(self.offered_features() & !refuse);
        self.set(VIRTIO_MMIO_STATUS, 1 | 2 | 8);
        assert_eq!(self.status(), 1 | 2 | 8, "the device takes what it offers");
    }

    fn describe(&self, index: usize, rings: &Rings) {
        self.set(VIRTIO_MMIO_QUEUE_SEL, index as u32);
        self.set(VIRTIO_MMIO_QUEUE_NUM, rings.size.into());
        for (low, address) in [
            (VIRTIO_MMIO_QUEUE_DESC_LOW, rings.descriptors),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, rings.avail),
            (VIRTIO_MMIO_QUEUE_USED_LOW, rings.used),
        ] {
            self.set(low, address as u32);
            self.set(low + 4, (address >> 32) as u32);
        }
        self.set(VIRTIO_MMIO_QUEUE_READY, 1);
    }

    /// Sets the device up anew, as a driver does that knows what it does.
    fn start(&mut self) {
        self.start_without(0);
    }

    fn start_without(&mut self, refuse: u64) {
        self.negotiate(refuse);
        for index in 0..self.queues.len() {
            let rings = &mut self.queues[index];
            (rings.next_avail, rings.next_used) = (0, 0);
            self.memory.write_slice(&[0; RINGS as usize], GuestAddress(rings.descriptors)).unwrap();
            self.describe(index, &self.queues[index]);
        }
        self.set(VIRTIO_MMIO_STATUS, READY);
        assert_eq!(self.status(), READY, "the device runs");
    }

    fn store<T: vm_memory::ByteValued>(&self, address: u64, value: T) {
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
    }

    fn load<T: vm_memory::ByteValued>(&self, address: u64) -> T {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    fn descriptor(&self, table: u64, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = table + 16 * u64::from(index);
        self.store(at, address);
        self.store(at + 8, len);
        self.store(at + 12, flags);
        self.store(at + 14, next);
    }

    fn allocate(&mut self, len: usize) -> u64 {
        let at = self.free;
        self.free += len as u64;
        assert!(self.free <= BUFFERS + REGION, "the test's buffers are too large");
        at
    }

    /// Puts a head into the available ring and kicks.
    fn publish(&mut self, queue: usize, head: u16) {
        let Rings { size, avail, next_avail, .. } = self.queues[queue];
        self.store(avail + 4 + 2 * u64::from(next_avail % size), head);
        self.queues[queue].next_avail = next_avail.wrapping_add(1);
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        self.store(avail + 2, next_avail.wrapping_add(1));
        self.set(VIRTIO_MMIO_QUEUE_NOTIFY, queue as u32);
    }

    /// Offers a chain: buffers that the device reads, then sizes of those that it writes. Descriptors are taken in turn.
    fn offer(&mut self, queue: usize, read: &[&[u8]], write: &[usize]) {
        let Rings { size, descriptors, next_avail, .. } = self.queues[queue];
        let count = (read.len() + write.len()) as u16;
        let head = next_avail.wrapping_mul(count) % size;
        let mut buffers = Vec::new();
        for (n, (bytes, len)) in read.iter().map(|b| (Some(b), b.len())).chain(write.iter().map(|&len| (None, len))).enumerate() {
            let address = self.allocate(len);
            match bytes {
                Some(bytes) => self.memory.write_slice(bytes, GuestAddress(address)).unwrap(),
                None => buffers.push((address, len)),
            }
            let last = n + 1 == usize::from(count);
            let flags = if bytes.is_none() { WRITE } else { 0 } | if last { 0 } else { NEXT };
            let index = (head + n as u16) % size;
            self.descriptor(descriptors, index, address, len as u32, flags, (index + 1) % size);
        }
        self.offered.push_back(Offered { queue, head, buffers });
        self.publish(queue, head);
    }

    /// What the device has used next of a queue, if it has: head and length.
    fn used(&mut self, queue: usize) -> Option<(u16, u32)> {
        let Rings { size, avail, used, next_used, .. } = self.queues[queue];
        // used_event: the next one is to interrupt.
        self.store(avail + 4 + 2 * u64::from(size), next_used);
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        if self.load::<u16>(used + 2) == next_used {
            return None;
        }
        let entry = used + 4 + 8 * u64::from(next_used % size);
        self.queues[queue].next_used = next_used.wrapping_add(1);
        Some((self.load::<u32>(entry) as u16, self.load(entry + 4)))
    }

    /// Waits for the device's interrupt until `done` gives something.
    fn wait_for<T>(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        let epoll = Epoll::new().unwrap();
        epoll.ctl(ControlOperation::Add, std::os::fd::AsRawFd::as_raw_fd(&self.irq), EpollEvent::new(EventSet::IN, 0)).unwrap();
        loop {
            if let Some(value) = done(self) {
                return value;
            }
            assert_eq!(epoll.wait(DEADLINE, &mut [EpollEvent::default()]).unwrap(), 1, "no interrupt for {what}");
            self.irq.read().unwrap();
            let bits = self.get(VIRTIO_MMIO_INTERRUPT_STATUS);
            self.set(VIRTIO_MMIO_INTERRUPT_ACK, bits);
        }
    }

    /// Waits for the chain that was offered first: what the device wrote into its buffers, and the length that it told.
    fn answer(&mut self, queue: usize) -> (Vec<u8>, u32) {
        let (head, len) = self.wait_for("used buffers", |guest| guest.used(queue));
        let place = self.offered.iter().position(|offered| (offered.queue, offered.head) == (queue, head));
        let buffers = self.offered.remove(place.expect("the device used what was not offered")).unwrap().buffers;
        let mut bytes = Vec::new();
        for (address, len) in buffers {
            let mut part = vec![0; len];
            self.memory.read_slice(&mut part, GuestAddress(address)).unwrap();
            bytes.extend(part);
        }
        if self.offered.is_empty() {
            self.free = BUFFERS;
        }
        (bytes, len)
    }

    /// One request and its answer.
    fn ask(&mut self, queue: usize, read: &[&[u8]], write: &[usize]) -> (Vec<u8>, u32) {
        self.offer(queue, read, write);
        self.answer(queue)
    }
}
