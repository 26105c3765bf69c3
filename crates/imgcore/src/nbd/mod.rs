//! An NBD server on a unix socket: how a virtual machine, or any NBD client, reaches our images.
//!
//! The protocol is [NBD](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md), fixed newstyle
//! handshake with simple replies. Each connection has a thread of its own; several connections to one export see
//! each other's writes (`NBD_FLAG_CAN_MULTI_CONN`). Clients are not trusted: a request is 32 MiB at most, and one
//! that breaks the protocol loses its connection and nothing else.

mod handshake;
mod proto;
mod transmission;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::{Error, Image, ImageMut, Result};

/// Connections that one server holds at a time; more are closed at once.
const MAX_CONNECTIONS: usize = 64;

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

/// An image and the name under which clients ask for it.
#[derive(Clone)]
pub struct Export {
    /// The export's name, at most 4096 bytes. A client that asks for the empty name gets the first export.
    pub name: String,
    /// The image.
    pub content: Content,
}

/// A running server. Dropping it ends all connections, waits for requests under way and removes the socket.
pub struct Server {
    path: PathBuf,
    listener: Arc<UnixListener>,
    accepting: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
}

/// What the threads of one server share.
struct Shared {
    exports: Vec<Export>,
    connections: Mutex<Connections>,
    first_error: Mutex<Option<String>>,
}

#[derive(Default)]
struct Connections {
    closing: bool,
    next: u64,
    open: HashMap<u64, (UnixStream, Option<JoinHandle<()>>)>,
}

/// Serves `exports` on a new unix socket at `socket`.
///
/// Whoever may open the socket may use the exports: put it in a folder of your own. A unix socket's path is
/// limited to 107 bytes by the kernel.
///
/// # Errors
/// [`Error::Io`] when the socket can't be made, for instance because the path exists.
pub fn serve(socket: &Path, exports: Vec<Export>) -> Result<Server> {
    if exports.is_empty() {
        return Err(Error::Invalid("an NBD server needs an export".into()));
    }
    let io = |source| Error::io(&socket.display().to_string(), "listen on", None, source);
    let listener = Arc::new(UnixListener::bind(socket).map_err(io)?);
    let shared = Arc::new(Shared { exports, connections: Mutex::default(), first_error: Mutex::default() });
    let accepting = std::thread::Builder::new().name("nbd-accept".into()).spawn({
        let (listener, shared) = (listener.clone(), shared.clone());
        move || accept(&listener, &shared)
    });
    match accepting {
        Ok(thread) => Ok(Server { path: socket.into(), listener, accepting: Some(thread), shared }),
        Err(source) => {
            let _ = std::fs::remove_file(socket);
            Err(io(source))
        }
    }
}

impl Server {
    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The first failure of an image that a client was told of only as an error number.
    pub fn first_error(&self) -> Option<String> {
        lock(&self.shared.first_error).clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // On Linux this wakes a thread in accept(2), which then fails.
        let _ = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both);
        if let Some(thread) = self.accepting.take() {
            let _ = thread.join();
        }
        let open = {
            let mut connections = lock(&self.shared.connections);
            connections.closing = true;
            std::mem::take(&mut connections.open)
        };
        for (stream, _) in open.values() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        for (_, thread) in open.into_values() {
            let _ = thread.map(JoinHandle::join);
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>) {
    loop {
        match listener.accept() {
            Ok((stream, _)) => start(stream, shared),
            Err(e) if matches!(e.raw_os_error().map(rustix::io::Errno::from_raw_os_error), Some(e) if passing(e)) => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            Err(_) => return,
        }
    }
}

/// Failures of accept(2) after which the next one may succeed.
fn passing(error: rustix::io::Errno) -> bool {
    use rustix::io::Errno;
    matches!(error, Errno::INTR | Errno::CONNABORTED | Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)
}

fn start(stream: UnixStream, shared: &Arc<Shared>) {
    let Ok(handle) = stream.try_clone() else { return };
    let mut connections = lock(&shared.connections);
    if connections.closing || connections.open.len() >= MAX_CONNECTIONS {
        return;
    }
    let id = connections.next;
    connections.next += 1;
    // The entry is there before the thread: its last act is to remove it.
    connections.open.insert(id, (handle, None));
    let of_thread = shared.clone();
    let thread = std::thread::Builder::new().name("nbd".into()).spawn(move || {
        let _entry = Entry { shared: &of_thread, id };
        connection(stream, &of_thread);
    });
    if thread.is_err() {
        connections.open.remove(&id);
    }
    // The thread waits for the lock before it takes its entry away, so the entry is still there.
    connections.open.entry(id).and_modify(|entry| entry.1 = thread.ok());
}

/// Takes a connection off the list when its thread ends, however it ends.
struct Entry<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        lock(&self.shared.connections).open.remove(&self.id);
    }
}

/// One client, from handshake to end. A failure of the connection ends it; there is nobody else to tell.
fn connection(stream: UnixStream, shared: &Shared) {
    // The default of 208 KiB would cost a switch to the client and back for each 208 KiB of an answer.
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&stream, proto::SOCKET_BUFFER);
    let mut client = handshake::Client::new(stream);
    if let Ok(Some(export)) = handshake::negotiate(&mut client, &shared.exports) {
        let report = |what: String| {
            lock(&shared.first_error).get_or_insert(what);
        };
        let _ = transmission::serve(&mut client, export, &report);
    }
}
