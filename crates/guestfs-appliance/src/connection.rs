//! The host's end of the agent's port: one exchange at a time, every wait with a deadline.

use std::io::{self, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use guestfs::engine::{Terminal, TerminalInput, TerminalSize};

use crate::protocol::{self, CHUNK, Kind, Reply, Request};

/// How long the host waits.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the start to the agent's first answer.
    pub boot: Duration,
    /// For any sign of life while the agent works; it gives one every second.
    pub silence: Duration,
    /// For one operation.
    pub operation: Duration,
    /// For one command.
    pub command: Duration,
}

impl Default for Limits {
    /// Far beyond what a loaded machine needs.
    fn default() -> Self {
        Limits {
            boot: Duration::from_secs(60),
            silence: Duration::from_secs(60),
            operation: Duration::from_secs(1800),
            command: Duration::from_secs(3600),
        }
    }
}

/// Why an exchange failed.
pub enum Trouble {
    /// The connection is of no use any more.
    Lost(io::Error),
    /// The caller's own stream failed; the connection is sound.
    Source(io::Error),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Trouble::Lost(error)
    }
}

/// A connection to the agent.
pub struct Connection {
    reader: BufReader<Patient>,
    writer: UnixStream,
    payload: Vec<u8>,
    next: u32,
}

impl Connection {
    /// Speaks over this socket.
    pub fn new(stream: UnixStream, silence: Duration) -> io::Result<Self> {
        stream.set_write_timeout(Some(silence))?;
        let patient = Patient { stream: stream.try_clone()?, silence, until: Instant::now() };
        Ok(Connection { reader: BufReader::with_capacity(CHUNK, patient), writer: stream, payload: Vec::new(), next: 1 })
    }

    /// Lets the agent answer something: then all that comes before that has happened in its machine.
    pub fn once_answered(stream: UnixStream, patience: Duration) -> io::Result<Self> {
        let mut connection = Connection::new(stream, patience)?;
        let none = &mut |_: &[u8]| Err(io::ErrorKind::InvalidData.into());
        match connection.exchange(&Request::Devices, &mut io::empty(), none, patience) {
            Ok(Reply::Devices(_)) => Ok(connection),
            Ok(_) => Err(io::ErrorKind::InvalidData.into()),
            Err(Trouble::Lost(e) | Trouble::Source(e)) => Err(e),
        }
    }

    /// How long the agent may be silent from now on.
    pub fn set_silence(&mut self, silence: Duration) -> io::Result<()> {
        self.reader.get_mut().silence = silence;
        self.writer.set_write_timeout(Some(silence))
    }

    /// Sends a request with its stream, if it has one, and hands what comes back to `take` until the reply.
    pub fn exchange(
        &mut self,
        request: &Request,
        stream: &mut dyn Read,
        take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
        limit: Duration,
    ) -> Result<Reply, Trouble> {
        self.exchange_filled(request, &mut |outlet| outlet.copy(stream), take, limit)
    }

    /// The same with a stream that is written.
    pub fn exchange_filled(
        &mut self,
        request: &Request,
        fill: &mut dyn FnMut(&mut Outlet<'_>) -> io::Result<()>,
        take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
        limit: Duration,
    ) -> Result<Reply, Trouble> {
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        let until = Instant::now().checked_add(limit).ok_or(io::ErrorKind::InvalidInput).map_err(io::Error::from)?;
        self.reader.get_mut().until = until;
        protocol::send_message(&mut self.writer, id, Kind::Request, request)?;
        let mut source = None;
        if request.has_stream() {
            source = self.send_stream(id, fill, until)?;
        }
        loop {
            let (of, kind) = protocol::receive(&mut self.reader, &mut self.payload)?;
            match kind {
                Kind::Alive => {}
                _ if of != id => return Err(protocol::broken("an answer to something else").into()),
                Kind::Data => take(&self.payload)?,
                Kind::Reply => {
                    let reply = protocol::decode(&self.payload)?;
                    return source.map_or(Ok(reply), |e| Err(Trouble::Source(e)));
                }
                _ => return Err(protocol::broken("a frame that only the host sends").into()),
            }
        }
    }

    /// Sends a request and carries a conversation until the agent ends it; what comes between that and the reply is handed to `take`.
    pub fn converse(
        &mut self,
        request: &Request,
        conversation: &dyn Conversation,
        take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
        limit: Duration,
    ) -> io::Result<Reply> {
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        self.reader.get_mut().until = Instant::now().checked_add(limit).ok_or(io::ErrorKind::InvalidInput)?;
        protocol::send_message(&mut self.writer, id, Kind::Request, request)?;
        let (writer, reader, payload) = (&mut self.writer, &mut self.reader, &mut self.payload);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                if speak(writer, id, conversation).is_err() {
                    // Nothing can be said any more: the other direction is to hear of that.
                    let _ = writer.shutdown(Shutdown::Both);
                }
            });
            let reply = listen(reader, payload, id, conversation, take);
            conversation.stop();
            reply
        })
    }

    /// Sends the whole stream; gives the error that the stream itself had.
    fn send_stream(
        &mut self,
        id: u32,
        fill: &mut dyn FnMut(&mut Outlet<'_>) -> io::Result<()>,
        until: Instant,
    ) -> io::Result<Option<io::Error>> {
        let mut outlet = Outlet { to: &mut self.writer, id, until, buf: Vec::with_capacity(CHUNK), lost: None };
        let filled = fill(&mut outlet).and_then(|()| outlet.flush());
        if let Some(lost) = outlet.lost {
            return Err(lost);
        }
        let kind = if filled.is_ok() { Kind::End } else { Kind::Abort };
        protocol::send(&mut self.writer, id, kind, &[])?;
        Ok(filled.err())
    }
}

/// Where a request's stream goes.
pub struct Outlet<'c> {
    to: &'c mut UnixStream,
    id: u32,
    until: Instant,
    /// What is not sent yet, less than a whole frame.
    buf: Vec<u8>,
    /// Why the connection is of no use any more.
    lost: Option<io::Error>,
}

impl Outlet<'_> {
    fn copy(&mut self, stream: &mut dyn Read) -> io::Result<()> {
        let mut buf = vec![0; CHUNK];
        loop {
            match stream.read(&mut buf) {
                Ok(0) => return Ok(()),
                Ok(n) => self.write_all(&buf[..n])?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

impl Write for Outlet<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let n = data.len().min(CHUNK - self.buf.len());
        self.buf.extend_from_slice(&data[..n]);
        if self.buf.len() == CHUNK {
            self.flush()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buf.is_empty() {
            return Ok(());
        }
        let late = || Err(io::ErrorKind::TimedOut.into());
        let sent = if Instant::now() > self.until { late() } else { protocol::send(self.to, self.id, Kind::Data, &self.buf) };
        self.buf.clear();
        sent.map_err(|e| {
            let kind = e.kind();
            self.lost = Some(e);
            kind.into()
        })
    }
}

/// What host and agent say to each other while a program runs, one message in each data frame.
pub trait Conversation: Sync {
    /// Waits for the host's next message; `None` when it has no more to say, or after [`stop`](Conversation::stop).
    fn next(&self) -> Option<io::Result<Vec<u8>>>;
    /// Takes one of the agent's.
    fn take(&self, message: &[u8]) -> io::Result<()>;
    /// The program has ended: nobody waits any longer.
    fn stop(&self);
}

/// A person at a terminal.
pub struct OnTerminal<'t>(pub &'t dyn Terminal);

impl OnTerminal<'_> {
    /// No person sits there for longer. That the agent lives is heard every second.
    pub const LIMIT: Duration = Duration::from_secs(100 * 86_400);
}

impl Conversation for OnTerminal<'_> {
    fn next(&self) -> Option<io::Result<Vec<u8>>> {
        let input = match self.0.next()? {
            TerminalInput::Keys(keys) => protocol::TerminalInput::Keys(keys),
            TerminalInput::Size(TerminalSize { rows, columns }) => protocol::TerminalInput::Size { rows, columns },
        };
        Some(protocol::encode(&input))
    }

    fn take(&self, shown: &[u8]) -> io::Result<()> {
        self.0.show(shown)
    }

    fn stop(&self) {
        self.0.stop();
    }
}

/// Sends what the host has to say, and an end when that is all.
fn speak(writer: &mut UnixStream, id: u32, conversation: &dyn Conversation) -> io::Result<()> {
    while let Some(message) = conversation.next() {
        protocol::send(writer, id, Kind::Data, &message?)?;
    }
    protocol::send(writer, id, Kind::End, &[])
}

/// Hears what comes until the reply.
fn listen(
    reader: &mut impl Read,
    payload: &mut Vec<u8>,
    id: u32,
    conversation: &dyn Conversation,
    take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<Reply> {
    let mut over = false;
    loop {
        let (of, kind) = protocol::receive(reader, payload)?;
        match kind {
            Kind::Alive => {}
            _ if of != id => return Err(protocol::broken("an answer to something else")),
            Kind::Data if over => take(payload)?,
            Kind::Data => conversation.take(payload)?,
            Kind::End => {
                over = true;
                conversation.stop();
            }
            Kind::Reply => return protocol::decode(payload),
            _ => return Err(protocol::broken("a frame that only the host sends")),
        }
    }
}

/// Reads that neither wait longer than `silence` for a byte nor past `until`.
struct Patient {
    stream: UnixStream,
    silence: Duration,
    until: Instant,
}

impl Read for Patient {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left.min(self.silence)))?;
        match self.stream.read(buf) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(io::ErrorKind::TimedOut.into()),
            other => other,
        }
    }
}
