//! An NBD server: how a virtual machine, or any NBD client, reaches our images. And a [client](Client), whose image is an export.
//!
//! The protocol is [NBD](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md): the fixed newstyle
//! handshake, structured replies with holes, and what blocks are (`base:allocation`, `qemu:allocation-depth` and
//! `qemu:dirty-bitmap:NAME`). There is no TLS. Several connections to one export see each other's writes
//! (`NBD_FLAG_CAN_MULTI_CONN`), and each carries out several requests at a time.
//!
//! Clients are not trusted: the handshake has a time limit, payloads and threads of a connection are bounded, and one that
//! breaks the protocol loses its connection and nothing else.

mod client;
mod handshake;
mod meta;
mod proto;
mod reply;
mod socket;
mod transmission;
pub mod uri;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::net::{Shutdown, SocketFlags, accept_with, shutdown};

use crate::ranges::RangeLocks;
use crate::{Error, Image, ImageMut, Result};
pub use client::Client;
use socket::{Reader, Socket};

/// Connections that one server holds at a time; more are closed at once.
const MAX_CONNECTIONS: usize = 64;
/// How long the other side may take until an export is chosen.
const HANDSHAKE_TIME: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 10 });

/// What is served under a name.
#[derive(Clone)]
pub enum Content {
    /// Writes are refused with `EPERM`.
    ReadOnly(Arc<dyn Image>),
    /// Writes go to the image.
    Writable(Arc<dyn ImageMut>),
}

impl Content {
    fn image(&self) -> &dyn Image {
        match self {
            Content::ReadOnly(image) => image.as_ref(),
            Content::Writable(image) => image.as_ref(),
        }
    }

    fn writable(&self) -> Option<&dyn ImageMut> {
        match self {
            Content::ReadOnly(_) => None,
            Content::Writable(image) => Some(image.as_ref()),
        }
    }
}

/// A dirty bitmap as it was when the export was made.
#[derive(Clone, Debug)]
pub struct DirtyBitmap {
    /// Its name.
    pub name: String,
    /// The dirty bytes: ascending, not empty, not overlapping.
    pub dirty: Vec<Range<u64>>,
}

/// An image and the name under which clients ask for it.
#[derive(Clone)]
pub struct Export {
    name: String,
    description: String,
    content: Content,
    bitmaps: Vec<DirtyBitmap>,
    writes: Arc<RangeLocks>,
}

impl Export {
    /// Serves `content` as `name`, at most 4096 bytes. A client that asks for the empty name gets the first export.
    pub fn new(name: impl Into<String>, content: Content) -> Self {
        Export { name: name.into(), description: String::new(), content, bitmaps: Vec::new(), writes: Arc::default() }
    }

    /// The same with a text for people.
    pub fn description(self, description: impl Into<String>) -> Self {
        Export { description: description.into(), ..self }
    }

    /// The same with dirty bitmaps, which clients find as `qemu:dirty-bitmap:NAME`.
    pub fn bitmaps(self, bitmaps: Vec<DirtyBitmap>) -> Self {
        Export { bitmaps, ..self }
    }
}

/// Where a server listens.
#[derive(Clone, Debug)]
pub enum Address {
    /// A unix socket. Whoever may open it may use the exports: put it in a folder of your own. A socket that nobody
    /// listens on any more is replaced. The kernel limits the path to 107 bytes.
    Unix(PathBuf),
    /// A TCP address and port; the system chooses port 0. Whoever reaches it may use the exports.
    Tcp(SocketAddr),
}

/// A running server. Dropping it ends all connections, waits for requests under way and removes a unix socket.
pub struct Server {
    /// Where new connections come from, if they do.
    listening: Option<Listening>,
    shared: Arc<Shared>,
}

struct Listening {
    address: Address,
    listener: Arc<OwnedFd>,
    accepting: JoinHandle<()>,
}

/// What the threads of one server share.
struct Shared {
    exports: Vec<Export>,
    connections: Mutex<Connections>,
    /// Something in the connections changed that [`Server::wait`] waits for.
    changed: Condvar,
    first_error: Mutex<Option<String>>,
}

#[derive(Default)]
struct Connections {
    closing: bool,
    next: u64,
    open: HashMap<u64, (Arc<Socket>, JoinHandle<()>)>,
    /// Connections that are past the handshake.
    clients: usize,
    /// Whether there has been one.
    served: bool,
}

/// Serves `exports` at `address`.
///
/// # Errors
/// [`Error::Io`] when the socket can't be made, for instance because the path exists or the port is taken.
pub fn serve(address: &Address, exports: Vec<Export>) -> Result<Server> {
    if exports.is_empty() {
        return Err(Error::Invalid("an NBD server needs an export".into()));
    }
    let shared = Shared::new(exports);
    let (listener, address) = listen(address)?;
    let listener = Arc::new(listener);
    let accepting = std::thread::Builder::new().name("nbd-accept".into()).spawn({
        let (listener, shared) = (listener.clone(), shared.clone());
        move || accept(&listener, &shared)
    });
    match accepting {
        Ok(accepting) => Ok(Server { listening: Some(Listening { address, listener, accepting }), shared }),
        Err(source) => {
            forget(&address);
            Err(Error::io("NBD server", "start", None, source))
        }
    }
}

/// Serves `export` to the one client at the other end of `socket`, which may take its time to begin: it is a process of the
/// caller's own, say, that is yet to start.
///
/// # Errors
/// [`Error::Io`] when no thread can be had for it.
pub fn serve_connected(socket: impl Into<OwnedFd>, export: Export) -> Result<Server> {
    let shared = Shared::new(vec![export]);
    start(socket.into(), &shared, None).map_err(|source| Error::io("NBD server", "start", None, source))?;
    Ok(Server { listening: None, shared })
}

impl Shared {
    fn new(exports: Vec<Export>) -> Arc<Self> {
        Arc::new(Shared { exports, connections: Mutex::default(), changed: Condvar::new(), first_error: Mutex::default() })
    }
}

/// A listening socket, and its address with the port that it got.
fn listen(address: &Address) -> Result<(OwnedFd, Address)> {
    match address {
        Address::Unix(path) => {
            let listener = match UnixListener::bind(path) {
                Err(e) if e.kind() == std::io::ErrorKind::AddrInUse && is_abandoned(path) => {
                    std::fs::remove_file(path).and_then(|()| UnixListener::bind(path))
                }
                other => other,
            };
            let listener = listener.map_err(|e| Error::io(&path.display().to_string(), "listen on", None, e))?;
            Ok((listener.into(), address.clone()))
        }
        Address::Tcp(wanted) => {
            let fail = |e| Error::io(&wanted.to_string(), "listen on", None, e);
            let listener = TcpListener::bind(wanted).map_err(fail)?;
            let address = Address::Tcp(listener.local_addr().map_err(fail)?);
            Ok((listener.into(), address))
        }
    }
}

/// Whether a socket's server ended without removing it.
fn is_abandoned(path: &Path) -> bool {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    is_socket && UnixStream::connect(path).is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
}

impl Server {
    /// Where it listens, if it does; for TCP with the real port.
    pub fn address(&self) -> Option<&Address> {
        self.listening.as_ref().map(|listening| &listening.address)
    }

    /// The first failure of an image that a client was told of only as an error number.
    pub fn first_error(&self) -> Option<String> {
        lock(&self.shared.first_error).clone()
    }

    /// Waits until [`stop`](Server::stop) is called or, unless it is `persistent`, the last client has left.
    pub fn wait(&self, persistent: bool) {
        let connections = lock(&self.shared.connections);
        let goes_on = |c: &mut Connections| !c.closing && (persistent || !c.served || c.clients > 0);
        drop(self.shared.changed.wait_while(connections, goes_on).unwrap_or_else(PoisonError::into_inner));
    }

    /// Has [`wait`](Server::wait) return, in whatever thread it is, and takes no more connections.
    pub fn stop(&self) {
        lock(&self.shared.connections).closing = true;
        self.shared.changed.notify_all();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        if let Some(Listening { address, listener, accepting }) = self.listening.take() {
            // On Linux this wakes a thread in accept(2), which then fails.
            let _ = shutdown(&listener, Shutdown::Both);
            let _ = accepting.join();
            forget(&address);
        }
        let open = std::mem::take(&mut lock(&self.shared.connections).open);
        for (socket, _) in open.values() {
            socket.shut_down();
        }
        for (_, thread) in open.into_values() {
            let _ = thread.join();
        }
    }
}

/// Removes a socket's name.
fn forget(address: &Address) {
    if let Address::Unix(path) = address {
        let _ = std::fs::remove_file(path);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn accept(listener: &OwnedFd, shared: &Arc<Shared>) {
    loop {
        match accept_with(listener, SocketFlags::CLOEXEC) {
            Ok(socket) => {
                // Without a thread for it the client sees an end; there is nobody else to tell.
                let _ = start(socket, shared, Some(HANDSHAKE_TIME));
            }
            Err(e) if passing(e) => std::thread::sleep(Duration::from_millis(10)),
            Err(_) => return,
        }
    }
}

/// Failures of accept(2) after which the next one may succeed.
fn passing(error: rustix::io::Errno) -> bool {
    use rustix::io::Errno;
    matches!(error, Errno::INTR | Errno::CONNABORTED | Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)
}

/// Serves a connection from a thread of its own.
fn start(socket: OwnedFd, shared: &Arc<Shared>, patience: Option<Duration>) -> std::io::Result<()> {
    let mut connections = lock(&shared.connections);
    if connections.closing || connections.open.len() >= MAX_CONNECTIONS {
        return Ok(());
    }
    let socket = Arc::new(Socket::new(socket));
    let id = connections.next;
    connections.next += 1;
    let of_thread = (shared.clone(), socket.clone());
    let thread = std::thread::Builder::new().name("nbd".into()).spawn(move || {
        let (shared, socket) = of_thread;
        let mut entry = Entry { shared: &shared, id, is_client: false };
        connection(socket, patience, &mut entry);
    })?;
    // The thread's last act is to remove the entry, for which it waits until we let go of the list.
    connections.open.insert(id, (socket, thread));
    Ok(())
}

/// Takes a connection off the list when its thread ends, however it ends.
struct Entry<'a> {
    shared: &'a Shared,
    id: u64,
    /// Whether it is counted as a client.
    is_client: bool,
}

impl Entry<'_> {
    fn becomes_client(&mut self) {
        let mut connections = lock(&self.shared.connections);
        connections.clients += 1;
        connections.served = true;
        self.is_client = true;
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        let mut connections = lock(&self.shared.connections);
        connections.open.remove(&self.id);
        connections.clients -= usize::from(self.is_client);
        self.shared.changed.notify_all();
    }
}

/// One client, from handshake to end. A failure of the connection ends it; there is nobody else to tell.
fn connection(socket: Arc<Socket>, patience: Option<Duration>, entry: &mut Entry<'_>) {
    let shared = entry.shared;
    let mut client = Reader::new(socket, patience.map(|p| Instant::now() + p));
    if let Ok(Some(agreed)) = handshake::negotiate(&mut client, &shared.exports)
        && client.lift_deadline().is_ok()
    {
        entry.becomes_client();
        let report = |what: String| {
            lock(&shared.first_error).get_or_insert(what);
        };
        transmission::serve(client, &agreed, &report);
    }
}
