//! The console device (VIRTIO 1.2, section 5.3) with a single port, which is no console but a named channel: what QEMU calls
//! virtserialport. Its bytes pass between guest and host through one buffer, and who does not read makes the other wait.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use vmm_sys_util::epoll::EventSet;

use super::ring::{Ring, take};
use super::worker::{self, Wakes};
use super::{Running, VirtioDevice, config_bytes};

/// The name under which the guest finds the port, in /sys/class/virtio-ports.
pub const PORT_NAME: &str = "guestlift.agent";

/// VIRTIO_CONSOLE_F_MULTIPORT: without it, ports have no names.
const F_MULTIPORT: u64 = 1 << 1;

/// The port's number; only consoles are found without being announced.
const PORT: u32 = 0;

/// Bytes on their way between guest and host.
const BUFFER: usize = 64 << 10;

// Queues (section 5.3.2), as the device sees them.
const TO_GUEST: usize = 0;
const FROM_GUEST: usize = 1;
const CONTROL_TO_GUEST: usize = 2;
const CONTROL_FROM_GUEST: usize = 3;
const QUEUE_SIZES: [u16; 4] = [128, 128, 32, 32];

// Control messages (section 5.3.6.2).
const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const PORT_OPEN: u16 = 6;
const PORT_NAMED: u16 = 7;

/// A named channel to the guest.
pub struct Console {
    shared: Arc<Shared>,
}

struct Shared {
    stream: UnixStream,
    /// Its thread has it for as long as the device runs.
    state: Mutex<State>,
}

/// What driver and device have told each other. What is still to be said follows from it: there is no queue that could grow.
#[derive(Debug, Default, Serialize, Deserialize)]
struct State {
    /// The driver is there, and does not know the port.
    to_add: bool,
    /// The driver has the port, and does not know its name.
    to_name: bool,
    port_ready: bool,
    /// What the driver knows about the host's side, if anything.
    told_open: Option<bool>,
    /// A program in the guest has the port open.
    guest_open: bool,
    /// Bytes at the front of the next chain from the guest that the host has already.
    sent: usize,
}

impl Console {
    /// A channel between `port` and the guest's port [`PORT_NAME`].
    pub fn new(port: UnixStream) -> Self {
        Console { shared: Arc::new(Shared { stream: port, state: Mutex::default() }) }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl VirtioDevice for Console {
    fn id(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        F_MULTIPORT
    }

    fn config(&self, offset: u64, data: &mut [u8]) {
        // struct virtio_console_config: columns and rows of a console, then max_nr_ports.
        config_bytes(&[0, 0, 0, 0, 1, 0, 0, 0], offset, data);
    }

    fn start(&self, running: Running) -> io::Result<Box<dyn Send + Sync>> {
        let shared = self.shared.clone();
        worker::spawn("console", running, move |running, wakes| {
            let port = Port { stream: &shared.stream, state: &mut shared.state(), host_open: true, buffer: vec![0; BUFFER] };
            port.run(running, wakes)
        })
    }

    fn reset(&self) {
        *self.shared.state() = State::default();
    }

    fn save(&self) -> Vec<u8> {
        // A structure of plain fields has no way to fail.
        postcard::to_stdvec(&*self.shared.state()).unwrap_or_default()
    }

    fn restore(&self, state: &[u8]) -> io::Result<()> {
        *self.shared.state() = postcard::from_bytes(state).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(())
    }
}

/// How a step went.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Something was done, and there may be more.
    Done,
    /// The driver has to offer something first, and will kick.
    Driver,
    /// The host's end of the stream has to do something first.
    Host,
}

/// The port while its device runs.
struct Port<'a> {
    stream: &'a UnixStream,
    state: &'a mut State,
    host_open: bool,
    buffer: Vec<u8>,
}

impl Port<'_> {
    /// Takes one step after the other in each queue, so that none keeps the others waiting.
    fn run(mut self, running: &Running, wakes: &Wakes) -> io::Result<()> {
        let mut from_guest = Ring::new(running, FROM_GUEST)?;
        let mut to_guest = Ring::new(running, TO_GUEST)?;
        let mut control_from_guest = Ring::new(running, CONTROL_FROM_GUEST)?;
        let mut control_to_guest = Ring::new(running, CONTROL_TO_GUEST)?;
        while !wakes.stopped() {
            let heard = self.hear(&mut control_from_guest)?;
            let told = self.tell(&mut control_to_guest)?;
            let sent = self.send(&mut from_guest)?;
            let received = self.receive(&mut to_guest)?;
            if [heard, told, sent, received].contains(&Step::Done) {
                continue;
            }
            let mut events = EventSet::empty();
            events.set(EventSet::OUT, sent == Step::Host);
            events.set(EventSet::IN, received == Step::Host);
            wakes.wait(&running.kicks, (!events.is_empty()).then(|| (self.stream.as_raw_fd(), events)))?;
        }
        // A driver's write does not wait for the device: the guest may have ended since.
        while self.send(&mut from_guest)? == Step::Done {}
        Ok(())
    }

    /// A control message from the driver.
    fn hear(&mut self, ring: &mut Ring<'_>) -> io::Result<Step> {
        let Some(mut offer) = ring.next()? else { return idle(ring) };
        if let Ok(message) = take::<8>(&mut offer.reader) {
            let [i0, i1, i2, i3, e0, e1, v0, v1] = message;
            let (id, event, value) = (u32::from_le_bytes([i0, i1, i2, i3]), u16::from_le_bytes([e0, e1]), u16::from_le_bytes([v0, v1]));
            match (event, id, value) {
                (DEVICE_READY, _, 1) => self.state.to_add = true,
                (PORT_READY, PORT, 1) => (self.state.to_name, self.state.port_ready, self.state.told_open) = (true, true, None),
                (PORT_OPEN, PORT, open) => self.state.guest_open = open == 1,
                _ => {}
            }
        }
        ring.done(offer.head, 0)?;
        Ok(Step::Done)
    }

    /// The control message that the driver does not have yet.
    fn tell(&mut self, ring: &mut Ring<'_>) -> io::Result<Step> {
        let state = &mut *self.state;
        let (event, value, name) = if state.to_add {
            (PORT_ADD, 1, "")
        } else if state.to_name {
            (PORT_NAMED, 1, PORT_NAME)
        } else if state.port_ready && state.told_open != Some(self.host_open) {
            (PORT_OPEN, self.host_open.into(), "")
        } else {
            return Ok(Step::Driver);
        };
        let Some(mut offer) = ring.next()? else { return idle(ring) };
        let message = [&PORT.to_le_bytes()[..], &event.to_le_bytes(), &u16::to_le_bytes(value), name.as_bytes()].concat();
        if offer.writer.available_bytes() < message.len() {
            ring.done(offer.head, 0)?;
            return Ok(Step::Done);
        }
        offer.writer.write_all(&message)?;
        ring.done(offer.head, message.len() as u32)?;
        match event {
            PORT_ADD => state.to_add = false,
            PORT_NAMED => state.to_name = false,
            _ => state.told_open = Some(self.host_open),
        }
        Ok(Step::Done)
    }

    /// Bytes from the guest. A chain is given back when the host has all of it, or is gone.
    fn send(&mut self, ring: &mut Ring<'_>) -> io::Result<Step> {
        let Some(mut offer) = ring.next()? else { return idle(ring) };
        let step = match offer.reader.split_at(self.state.sent) {
            Ok(mut rest) if self.host_open && rest.available_bytes() > 0 => {
                let len = rest.read(&mut self.buffer)?;
                match send(self.stream, &self.buffer[..len], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                    Ok(sent) => {
                        self.state.sent += sent;
                        Some(Step::Done)
                    }
                    Err(Errno::AGAIN) => Some(Step::Host),
                    Err(Errno::INTR) => Some(Step::Done),
                    Err(_) => {
                        self.host_open = false;
                        None
                    }
                }
            }
            // Sent whole, or not to be sent, or not what it was when its front was sent.
            _ => None,
        };
        if let Some(step) = step {
            ring.put_back();
            return Ok(step);
        }
        self.state.sent = 0;
        ring.done(offer.head, 0)?;
        Ok(Step::Done)
    }

    /// Bytes from the host. They stay in the stream until a program in the guest has the port open and its driver has room.
    fn receive(&mut self, ring: &mut Ring<'_>) -> io::Result<Step> {
        if !self.host_open || !self.state.guest_open {
            return Ok(Step::Driver);
        }
        let Some(mut offer) = ring.next()? else { return idle(ring) };
        let room = offer.writer.available_bytes().min(BUFFER);
        if room == 0 {
            ring.done(offer.head, 0)?;
            return Ok(Step::Done);
        }
        let received = recv(self.stream, &mut self.buffer[..room], RecvFlags::DONTWAIT).map(|(len, _)| len);
        if let Ok(len @ 1..) = received {
            offer.writer.write_all(&self.buffer[..len])?;
            ring.done(offer.head, len as u32)?;
            return Ok(Step::Done);
        }
        ring.put_back();
        match received {
            Err(Errno::AGAIN) => return Ok(Step::Host),
            Err(Errno::INTR) => {}
            _ => self.host_open = false,
        }
        Ok(Step::Done)
    }
}

/// What to wait for when a queue has nothing.
fn idle(ring: &mut Ring<'_>) -> io::Result<Step> {
    Ok(if ring.await_kick()? { Step::Driver } else { Step::Done })
}
