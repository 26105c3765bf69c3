//! A queue as the thread of its device works on it (VIRTIO 1.2, section 2.7). An error is the driver's: the ring makes no sense, and
//! the device needs a reset.

use std::io::{self, Read};
use std::sync::{MutexGuard, PoisonError};

use virtio_queue::{Error, Queue, QueueOwnedT, QueueT, Reader, Writer};
use vm_memory::GuestMemoryMmap;

use super::worker::Wakes;
use super::{Interrupt, Running};

/// A chain of buffers that the driver offers. Reader and writer reach nothing but the guest's memory; they end early where the chain
/// makes no sense.
pub(super) struct Offer<'a> {
    /// Names the chain in [`Ring::done`].
    pub head: u16,
    /// What the driver tells.
    pub reader: Reader<'a>,
    /// Where it wants to be told.
    pub writer: Writer<'a>,
}

/// One queue, taken for as long as its device runs.
pub(super) struct Ring<'a> {
    memory: &'a GuestMemoryMmap<()>,
    queue: MutexGuard<'a, Queue>,
    interrupt: &'a dyn Interrupt,
}

impl<'a> Ring<'a> {
    /// The queue at `index`.
    pub fn new(running: &'a Running, index: usize) -> io::Result<Self> {
        let queue = running.queues.get(index).ok_or_else(|| io::Error::other("the device has not so many queues"))?;
        let queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Ring { memory: &running.memory, queue, interrupt: running.interrupt.as_ref() })
    }

    /// Takes what the driver offers next. A chain that is too long, or has a buffer outside of the memory, goes back at once and
    /// counts as none: a driver that offers nothing else cannot keep us from looking up.
    pub fn next(&mut self) -> io::Result<Option<Offer<'a>>> {
        let Some(chain) = self.queue.iter(self.memory).map_err(senseless)?.next() else { return Ok(None) };
        let head = chain.head_index();
        // No chain is longer than its queue (section 2.7.5.3.1); an indirect table could make us walk 65535 descriptors.
        let limit = usize::from(self.queue.max_size());
        if chain.clone().take(limit + 1).count() > limit {
            return self.done(head, 0).map(|()| None);
        }
        match (chain.clone().reader(self.memory), chain.writer(self.memory)) {
            (Ok(reader), Ok(writer)) => Ok(Some(Offer { head, reader, writer })),
            _ => self.done(head, 0).map(|()| None),
        }
    }

    /// Leaves what was taken last for later.
    pub fn put_back(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Gives a chain back with `written` bytes in it, and tells the driver if it wants to know.
    pub fn done(&mut self, head: u16, written: u32) -> io::Result<()> {
        self.queue.add_used(self.memory, head, written).map_err(senseless)?;
        if self.queue.needs_notification(self.memory).map_err(senseless)? {
            self.interrupt.used()?;
        }
        Ok(())
    }

    /// Asks for a kick at the next offer; false if that is there already.
    pub fn await_kick(&mut self) -> io::Result<bool> {
        Ok(!self.queue.enable_notification(self.memory).map_err(senseless)?)
    }
}

fn senseless(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Serves the only queue of a device: `handle` gets each chain and says how many bytes it wrote, or `None` when it was stopped on the
/// way and the chain is to be handled anew when the device runs again.
pub(super) fn serve(
    running: &Running,
    wakes: &Wakes,
    mut handle: impl FnMut(&mut Reader<'_>, &mut Writer<'_>) -> Option<u32>,
) -> io::Result<()> {
    let mut ring = Ring::new(running, 0)?;
    while !wakes.stopped() {
        match ring.next()? {
            Some(mut offer) => match handle(&mut offer.reader, &mut offer.writer) {
                Some(written) => ring.done(offer.head, written)?,
                None => ring.put_back(),
            },
            None if ring.await_kick()? => wakes.wait(&running.kicks, None)?,
            None => {}
        }
    }
    Ok(())
}

/// Takes a field of a request.
pub(super) fn take<const N: usize>(reader: &mut Reader<'_>) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}
