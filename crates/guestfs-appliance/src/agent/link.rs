//! The agent's end of the port: one exchange at a time, and a sign of life while it works.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;

use super::failure::{Result, other};
use super::pages::Pages;
use crate::protocol::{self, CHUNK, Failure, Kind, Reply, Request};

/// How often the agent says that it is at work.
const ALIVE_EVERY: Duration = Duration::from_secs(1);
/// The stack of the thread that does, in bytes.
const STACK: usize = 128 << 10;

/// What the agent and its sign of life share.
struct Out {
    port: Box<dyn Write + Send>,
    /// A shorter way for what lies in files, where there is one.
    pages: Option<Pages>,
    /// The request that is worked on.
    working: Option<u32>,
}

/// The connection to the host.
pub struct Link {
    port: Box<dyn Read>,
    out: Arc<Mutex<Out>>,
    /// Ends the thread that says so when it goes.
    alive: Option<Sender<()>>,
    payload: Vec<u8>,
}

fn lock(out: &Mutex<Out>) -> MutexGuard<'_, Out> {
    out.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Out {
    /// Sends a piece of a file as a data frame, without copying it, and says how many bytes that was; none at the file's end. `None`
    /// where it cannot be done so, and nothing was sent.
    fn send_pages(&mut self, id: u32, file: &File, offset: u64, len: usize) -> Result<Option<usize>, Trouble> {
        let Some(pages) = &self.pages else { return Ok(None) };
        let len = match pages.read(file, offset, len) {
            Ok(0) => return Ok(Some(0)),
            Ok(len) => len,
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => return Ok(None),
            Err(e) => return Err(Trouble::File(e)),
        };
        self.port.write_all(&protocol::header(id, Kind::Data, len)?)?;
        let lost = pages.send(len)?;
        let mut again = vec![0; lost];
        file.read_exact_at(&mut again, offset + (len - lost) as u64)?;
        self.port.write_all(&again)?;
        Ok(Some(len))
    }
}

/// What went wrong with a piece of a file.
enum Trouble {
    /// It cannot be read.
    File(io::Error),
    /// A part of a frame is on its way.
    Port(io::Error),
}

impl From<io::Error> for Trouble {
    fn from(e: io::Error) -> Self {
        Trouble::Port(e)
    }
}

impl Link {
    /// Speaks over these two halves.
    pub fn new(port: Box<dyn Read>, out: Box<dyn Write + Send>, pages: Option<Pages>) -> Self {
        let out = Arc::new(Mutex::new(Out { port: out, pages, working: None }));
        Link { port, out, alive: None, payload: Vec::new() }
    }

    /// Starts to say now and then that a request is worked on.
    fn stay_alive(&mut self) -> io::Result<()> {
        let (alive, gone) = channel::<()>();
        let out = self.out.clone();
        std::thread::Builder::new().stack_size(STACK).spawn(move || {
            while let Err(RecvTimeoutError::Timeout) = gone.recv_timeout(ALIVE_EVERY) {
                let mut out = lock(&out);
                if let Some(id) = out.working
                    && protocol::send(&mut out.port, id, Kind::Alive, &[]).is_err()
                {
                    return;
                }
            }
        })?;
        self.alive = Some(alive);
        Ok(())
    }

    /// Waits for a request, hands it to `handle`, and answers. An error means that the host is gone or talks nonsense.
    pub fn exchange(&mut self, handle: impl FnOnce(Request, &mut Exchange<'_>) -> Result<Reply>) -> io::Result<()> {
        let (id, kind) = protocol::receive(&mut self.port, &mut self.payload)?;
        if kind != Kind::Request {
            return Err(protocol::broken("a request was expected"));
        }
        let request: Request = protocol::decode(&self.payload)?;
        lock(&self.out).working = Some(id);
        let mut exchange = Exchange { id, open: request.has_stream(), lost: None, link: self };
        let reply = handle(request, &mut exchange);
        exchange.drain()?;
        let reply = reply.unwrap_or_else(Reply::Failed);
        let mut out = lock(&self.out);
        out.working = None;
        protocol::send_message(&mut out.port, id, Kind::Reply, &reply)?;
        drop(out);
        // The first request is answered at once; while the host thinks of the second there is time for this.
        if self.alive.is_none() {
            self.stay_alive()?;
        }
        Ok(())
    }
}

/// Sends data of a request that is being answered.
#[derive(Clone)]
pub struct Outlet {
    id: u32,
    out: Arc<Mutex<Out>>,
}

impl Outlet {
    /// Sends bytes to the host.
    pub fn send_data(&mut self, data: &[u8]) -> io::Result<()> {
        protocol::send(&mut lock(&self.out).port, self.id, Kind::Data, data)
    }

    /// Sends a message as a data frame.
    pub fn send_message<M: Serialize>(&mut self, message: &M) -> io::Result<()> {
        protocol::send_message(&mut lock(&self.out).port, self.id, Kind::Data, message)
    }

    /// Says that there are no more.
    pub fn send_end(&mut self) -> io::Result<()> {
        protocol::send(&mut lock(&self.out).port, self.id, Kind::End, &[])
    }
}

/// One request that is being answered.
pub struct Exchange<'l> {
    id: u32,
    /// Whether data from the host is still to come.
    open: bool,
    /// Set when the connection failed under an operation.
    lost: Option<io::Error>,
    link: &'l mut Link,
}

impl Exchange<'_> {
    /// The next piece of the host's stream; `None` at its end.
    pub fn next_data(&mut self) -> Result<Option<&[u8]>> {
        if !self.open {
            return Ok(None);
        }
        match self.receive() {
            Ok(Kind::Data) => Ok(Some(&self.link.payload)),
            Ok(Kind::End) => Ok(None),
            Ok(_) => Err(other("the content could not be read on the host")),
            Err(e) => Err(self.lost(e)),
        }
    }

    fn receive(&mut self) -> io::Result<Kind> {
        let (id, kind) = protocol::receive(&mut self.link.port, &mut self.link.payload)?;
        self.open = kind == Kind::Data;
        match kind {
            Kind::Data | Kind::End | Kind::Abort if id == self.id => Ok(kind),
            _ => Err(protocol::broken("a piece of a stream was expected")),
        }
    }

    /// The host's whole stream, if it is not longer than `limit` bytes.
    pub fn all_data(&mut self, limit: usize) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        while let Some(data) = self.next_data()? {
            if all.len() + data.len() > limit {
                return Err(other(format!("more than {limit} bytes of input")));
            }
            all.extend_from_slice(data);
        }
        Ok(all)
    }

    /// Sends bytes to the host.
    pub fn send_data(&mut self, data: &[u8]) -> Result<()> {
        for piece in data.chunks(CHUNK) {
            let sent = protocol::send(&mut lock(&self.link.out).port, self.id, Kind::Data, piece);
            sent.map_err(|e| self.lost(e))?;
        }
        Ok(())
    }

    /// The connection failed.
    fn lost(&mut self, e: io::Error) -> Failure {
        let failure = other(e.to_string());
        self.lost = Some(e);
        failure
    }

    /// Another way out for this request's data, for another thread.
    pub fn outlet(&self) -> Outlet {
        Outlet { id: self.id, out: self.link.out.clone() }
    }

    /// Sends a message as a data frame.
    pub fn send_batch<M: Serialize>(&mut self, batch: &M) -> Result<()> {
        let bytes = protocol::encode(batch)?;
        let sent = protocol::send(&mut lock(&self.link.out).port, self.id, Kind::Data, &bytes);
        Ok(sent?)
    }

    /// Sends a range of a file, cut at its end.
    pub fn send_range(&mut self, file: &File, offset: u64, len: u64) -> Result<()> {
        let (mut buf, mut done) = (Vec::new(), 0);
        while done < len {
            let want = usize::try_from(len - done).unwrap_or(CHUNK).min(CHUNK);
            let position = offset.checked_add(done).ok_or_else(|| other("an offset beyond what files can have"))?;
            let sent = lock(&self.link.out).send_pages(self.id, file, position, want);
            let n = match sent {
                Ok(Some(n)) => n,
                Ok(None) => {
                    buf.resize(want, 0);
                    let n = file.read_at(&mut buf, position)?;
                    self.send_data(&buf[..n])?;
                    n
                }
                Err(Trouble::File(e)) => return Err(e.into()),
                Err(Trouble::Port(e)) => return Err(self.lost(e)),
            };
            if n == 0 {
                return Ok(());
            }
            done += n as u64;
        }
        Ok(())
    }

    /// Throws away what is left of the host's stream, so that the next request is where it is expected.
    fn drain(&mut self) -> io::Result<()> {
        if let Some(lost) = self.lost.take() {
            return Err(lost);
        }
        while self.open {
            self.receive()?;
        }
        Ok(())
    }
}
