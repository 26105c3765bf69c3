//! A command whose programs reach the host's relay: connections to a port of the loopback, carried over the one port to the host.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, Scope};
use std::time::Duration;

use guestfs::engine::RELAY_PORT;

use super::exec::{self, Ran, end_everything};
use super::failure::{Result, because, other};
use super::link::{Exchange, Outlet};
use super::sys;
use crate::protocol::{self, Place, RELAY_CONNECTIONS, RelayEvent, Relayed};

/// Bytes that one message carries to the host.
const PIECE: usize = 16 << 10;

/// Runs a command in the guest's root and carries its programs' connections until it has ended.
pub fn run(argv: &[Vec<u8>], env: &[(Vec<u8>, Vec<u8>)], timeout: Duration, exchange: &mut Exchange<'_>) -> Result<Ran> {
    sys::loopback_up().map_err(|e| because("starting the loopback (scripts/build-kernel makes a kernel that has one)", e))?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, RELAY_PORT)).map_err(|e| because("waiting for connections", e))?;
    let (open, mut outlet) = (Open::default(), exchange.outlet());
    thread::scope(|scope| {
        let (open, listener) = (&open, &listener);
        let ran = scope.spawn(move || {
            let ran = thread::scope(|carriers| {
                let accepting = outlet.clone();
                carriers.spawn(move || accept(carriers, listener, open, &accepting));
                let ran = exec::run(argv, env, Vec::new(), Place::Guest, timeout);
                // Wakes who waits at it.
                let _ = rustix::net::shutdown(listener, rustix::net::Shutdown::Both);
                open.close_all();
                ran
            });
            // An error means that the host is gone, which the other direction hears as well.
            let _ = outlet.send_end();
            ran
        });
        let carried = carry(exchange, open);
        if carried.is_err() {
            end_everything();
        }
        let ran = ran.join().map_err(|_| other("a thread failed"))?;
        carried?;
        ran
    })
}

/// The connections that are open.
#[derive(Default)]
struct Open(Mutex<BTreeMap<u32, Connection>>);

struct Connection {
    socket: TcpStream,
    /// To the thread that writes; no more than the window is on this way.
    writer: Sender<Vec<u8>>,
}

impl Open {
    fn with<T>(&self, work: impl FnOnce(&mut BTreeMap<u32, Connection>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn close_all(&self) {
        self.with(|open| {
            for connection in std::mem::take(open).into_values() {
                let _ = connection.socket.shutdown(Shutdown::Both);
            }
        });
    }
}

/// Takes connections until the listener is shut down.
fn accept<'s>(carriers: &'s Scope<'s, '_>, listener: &TcpListener, open: &'s Open, outlet: &Outlet) {
    let mut number = 0;
    while let Ok((socket, _)) = listener.accept() {
        let (Ok(reading), Ok(writing)) = (socket.try_clone(), socket.try_clone()) else { continue };
        number += 1;
        let (writer, pieces) = channel();
        let connection = Connection { socket, writer };
        let taken = open.with(|open| {
            let room = open.len() < RELAY_CONNECTIONS;
            if room {
                open.insert(number, connection);
            }
            room
        });
        if !taken {
            continue;
        }
        let (mut from_guest, mut to_guest) = (outlet.clone(), outlet.clone());
        // Said before any thread can speak of it.
        if from_guest.send_message(&Relayed { connection: number, event: RelayEvent::Opened }).is_err() {
            return;
        }
        carriers.spawn(move || drop(to_host(number, reading, &mut from_guest)));
        carriers.spawn(move || drop(from_host(number, writing, &pieces, &mut to_guest)));
    }
}

fn to_host(connection: u32, mut socket: TcpStream, outlet: &mut Outlet) -> io::Result<()> {
    let mut buf = [0; PIECE];
    loop {
        match socket.read(&mut buf) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Ok(n) if n > 0 => outlet.send_message(&Relayed { connection, event: RelayEvent::Data(buf[..n].to_vec()) })?,
            _ => return outlet.send_message(&Relayed { connection, event: RelayEvent::Closed }),
        }
    }
}

fn from_host(connection: u32, mut socket: TcpStream, pieces: &Receiver<Vec<u8>>, outlet: &mut Outlet) -> io::Result<()> {
    for piece in pieces {
        // A program that is gone reads no more, which is no concern of the host's.
        let _ = socket.write_all(&piece);
        let taken = u32::try_from(piece.len()).unwrap_or(u32::MAX);
        outlet.send_message(&Relayed { connection, event: RelayEvent::Taken(taken) })?;
    }
    // What was written is still to be read, and then the other direction ends as well.
    let _ = socket.shutdown(Shutdown::Write);
    Ok(())
}

/// Hands what the host sends to its connections, until the host's end.
fn carry(exchange: &mut Exchange<'_>, open: &Open) -> Result<()> {
    while let Some(data) = exchange.next_data()? {
        let Relayed { connection, event } = protocol::decode(data)?;
        match event {
            // One that is no longer there has nobody to hand it to.
            RelayEvent::Data(data) => open.with(|open| {
                if let Some(connection) = open.get(&connection) {
                    let _ = connection.writer.send(data);
                }
            }),
            RelayEvent::Closed => drop(open.with(|open| open.remove(&connection))),
            RelayEvent::Opened | RelayEvent::Taken(_) => return Err(other("a message that only the agent sends")),
        }
    }
    Ok(())
}
