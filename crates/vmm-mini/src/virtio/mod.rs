//! Virtio devices over MMIO (VIRTIO 1.2, section 4.2): the transport is one for all, a device is one file.

#![forbid(unsafe_code)]

pub mod blk;
pub mod console;
pub mod mmio;
mod ring;
pub mod rng;
#[cfg(test)]
mod tests;
mod worker;

use std::io;
use std::sync::Arc;

use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

/// The guest's memory.
pub type Memory = Arc<GuestMemoryMmap<()>>;

/// What a device is, before and between its lives: a driver may reset it and start it again.
pub trait VirtioDevice: Send + Sync {
    /// Its number in the specification (section 5).
    fn id(&self) -> u32;
    /// The largest size of each of its queues.
    fn queue_sizes(&self) -> &[u16];
    /// Feature bits that it offers; the transport adds its own.
    fn features(&self) -> u64;
    /// Fills `data` with its configuration space from `offset`; zeroes behind its end.
    fn config(&self, offset: u64, data: &mut [u8]);
    /// Starts it on queues that the driver has set up. What is returned stops its threads, waiting for them, when it is dropped.
    ///
    /// # Errors
    /// What the host lacks to run it.
    fn start(&self, running: Running) -> io::Result<Box<dyn Send + Sync>>;
    /// Forgets what the driver told it. It is not running.
    fn reset(&self) {}
    /// What it knows from the driver beside its queues. It is not running.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }
    /// Takes what [`save`](Self::save) gave, before it is started.
    ///
    /// # Errors
    /// The state is no state of this device.
    fn restore(&self, state: &[u8]) -> io::Result<()> {
        if state.is_empty() { Ok(()) } else { Err(io::Error::new(io::ErrorKind::InvalidData, "the device keeps no state")) }
    }
}

/// What a started device works with.
pub struct Running {
    /// The guest's memory, in which the queues lie. Nothing in it can be trusted, and all of it changes at any time.
    pub memory: Memory,
    /// The queues in order, ready and checked against the memory's size. Position in them is kept over a snapshot.
    pub queues: Vec<Arc<std::sync::Mutex<Queue>>>,
    /// For each queue, what the guest's notifications set.
    pub kicks: Vec<EventFd>,
    /// Feature bits that the driver took.
    pub features: u64,
    /// Tells the driver of used buffers or of a changed configuration.
    pub interrupt: Arc<dyn Interrupt>,
}

/// A device's line to the driver.
pub trait Interrupt: Send + Sync {
    /// Buffers were used.
    fn used(&self) -> io::Result<()>;
    /// The configuration space has changed.
    fn config_changed(&self) -> io::Result<()>;
    /// The device cannot go on until it is reset (DEVICE_NEEDS_RESET, section 2.1.2).
    fn needs_reset(&self);
}

/// Fills `data` from `offset` of a configuration space; zeroes behind its end.
fn config_bytes(space: &[u8], offset: u64, data: &mut [u8]) {
    let rest = usize::try_from(offset).ok().and_then(|offset| space.get(offset..)).unwrap_or_default();
    data.fill(0);
    data.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
}
