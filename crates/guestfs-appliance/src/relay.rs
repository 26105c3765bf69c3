//! The host's end of the connections that a guest's programs make while a command runs.
//!
//! Each is a pair of sockets: the relay serves one end, and what comes out of the other is carried to the agent, no more at
//! a time than the agent takes.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use guestfs::engine::Relay;

use crate::connection::Conversation;
use crate::protocol::{self, RELAY_CONNECTIONS, RELAY_WINDOW, RelayEvent, Relayed};

/// Bytes that one message carries to the agent.
const PIECE: usize = 64 << 10;
/// How long a relay may leave what a guest's program sent unread. Package managers ask for much and send little.
const UNREAD: Duration = Duration::from_secs(60);
const STACK: usize = 256 << 10;

/// All connections of one command.
pub struct Carrier {
    relay: Arc<dyn Relay>,
    open: Arc<Open>,
    messages: Mutex<Receiver<Option<Vec<u8>>>>,
}

/// What the threads share.
struct Open {
    connections: Mutex<BTreeMap<u32, Connection>>,
    /// Rung when a window opens, or a connection is gone.
    changed: Condvar,
    /// To the agent; `None` when it is over.
    messages: Sender<Option<Vec<u8>>>,
}

struct Connection {
    /// Our end of the pair.
    socket: UnixStream,
    /// Bytes that the agent takes now.
    window: usize,
}

impl Carrier {
    pub fn new(relay: Arc<dyn Relay>) -> Self {
        let (sender, messages) = channel();
        let open = Open { connections: Mutex::default(), changed: Condvar::new(), messages: sender };
        Carrier { relay, open: Arc::new(open), messages: Mutex::new(messages) }
    }

    fn opened(&self, number: u32) -> io::Result<()> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_write_timeout(Some(UNREAD))?;
        let reading = ours.try_clone()?;
        {
            let mut connections = self.open.lock();
            if connections.len() >= RELAY_CONNECTIONS || connections.contains_key(&number) {
                return Err(protocol::broken("a connection too many"));
            }
            connections.insert(number, Connection { socket: ours, window: RELAY_WINDOW });
        }
        let (relay, open) = (self.relay.clone(), self.open.clone());
        thread::Builder::new().stack_size(STACK).spawn(move || relay.serve(theirs))?;
        thread::Builder::new().stack_size(STACK).spawn(move || open.carry(number, reading))?;
        Ok(())
    }
}

impl Open {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Connection>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries what the relay says in a connection to the agent, until the relay ends it.
    fn carry(&self, number: u32, mut socket: UnixStream) {
        let mut buf = vec![0; PIECE];
        while let Some(room) = self.room(number) {
            let room = room.min(PIECE);
            match socket.read(&mut buf[..room]) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(n) if n > 0 => {
                    if let Some(connection) = self.lock().get_mut(&number) {
                        connection.window = connection.window.saturating_sub(n);
                    }
                    self.send(number, RelayEvent::Data(buf[..n].to_vec()));
                }
                _ => break,
            }
        }
        self.lock().remove(&number);
        self.send(number, RelayEvent::Closed);
    }

    /// Waits until the agent takes more; `None` when the connection is gone.
    fn room(&self, number: u32) -> Option<usize> {
        let mut connections = self.lock();
        loop {
            match connections.get(&number)?.window {
                0 => connections = self.changed.wait(connections).unwrap_or_else(PoisonError::into_inner),
                room => return Some(room),
            }
        }
    }

    fn send(&self, connection: u32, event: RelayEvent) {
        if let Ok(message) = protocol::encode(&Relayed { connection, event }) {
            // When nobody listens it is over.
            let _ = self.messages.send(Some(message));
        }
    }
}

impl Conversation for Carrier {
    fn next(&self) -> Option<io::Result<Vec<u8>>> {
        let messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        messages.recv().ok().flatten().map(Ok)
    }

    fn take(&self, message: &[u8]) -> io::Result<()> {
        let Relayed { connection: number, event } = protocol::decode(message)?;
        match event {
            RelayEvent::Opened => return self.opened(number),
            RelayEvent::Data(data) => {
                let socket = self.open.lock().get(&number).and_then(|c| c.socket.try_clone().ok());
                // A relay that has ended the connection reads no more.
                if socket.is_some_and(|mut socket| socket.write_all(&data).is_err()) {
                    self.open.lock().remove(&number);
                    self.open.changed.notify_all();
                }
            }
            RelayEvent::Taken(n) => {
                if let Some(connection) = self.open.lock().get_mut(&number) {
                    connection.window = connection.window.saturating_add(n as usize).min(RELAY_WINDOW);
                }
                self.open.changed.notify_all();
            }
            RelayEvent::Closed => {
                if let Some(connection) = self.open.lock().get(&number) {
                    let _ = connection.socket.shutdown(Shutdown::Write);
                }
            }
        }
        Ok(())
    }

    fn stop(&self) {
        for connection in std::mem::take(&mut *self.open.lock()).into_values() {
            let _ = connection.socket.shutdown(Shutdown::Both);
        }
        self.open.changed.notify_all();
        let _ = self.open.messages.send(None);
    }
}
