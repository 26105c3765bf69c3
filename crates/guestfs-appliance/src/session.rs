//! A booted appliance, seen from the host: every operation is a request to its agent.
//!
//! What comes from the agent is as hostile as the guest's filesystems that its kernel reads: it is checked against
//! what was asked. A connection that failed once is given up, and the machine with it.

use std::io::{self, Read, Write};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use guestfs::engine::{Command, GuestExec, Output, Relay, Session, Terminal, TerminalSize};
use guestfs::{Attributes, DirEntry, Error, FileType, GuestFs, GuestFsMut, Result, Stat, StatFs, Time, Unpack};
use imgcore::ImageMut;

use crate::connection::{Connection, Limits, OnTerminal, Outlet, Trouble};
use crate::monitor::Monitor;
use crate::protocol::{self, Failure, OUTPUT_LIMIT, Place, Reply, Request, WireEntry, WirePiece};
use crate::relay::Carrier;
use crate::tools::{Borrowed, Tools};

/// Most bytes of one directory's listing, and of one file's attributes.
const LISTING_LIMIT: usize = 256 << 20;
/// How long a machine may take from the agent's last word to its end.
const POWER_OFF: Duration = Duration::from_secs(60);

/// A running appliance.
pub struct ApplianceSession {
    inner: Mutex<Inner>,
    limits: Limits,
    /// Written to at the end: nothing of theirs may stay in a cache.
    writable: Vec<Arc<dyn ImageMut>>,
    tools: Tools,
    /// Whether its disks are `sda`, … inside, which callers know as `vda`, ….
    scsi: bool,
}

struct Inner {
    connection: Connection,
    monitor: Monitor,
    /// What ended it.
    dead: Option<String>,
}

/// What an operation is about, for its errors.
#[derive(Clone, Copy)]
struct About<'a> {
    path: &'a [u8],
    action: &'static str,
}

/// How a command's exchange is held: with what it is about, where its output goes, and its time limit.
type Exchanging<'e> = dyn FnMut(&ApplianceSession, About<'_>, &mut dyn FnMut(&[u8]) -> io::Result<()>, Duration) -> Result<Reply> + 'e;

impl ApplianceSession {
    pub(crate) fn new(monitor: Monitor, connection: Connection, limits: Limits, writable: Vec<Arc<dyn ImageMut>>, scsi: bool) -> Self {
        let inner = Mutex::new(Inner { connection, monitor, dead: None });
        ApplianceSession { inner, limits, writable, tools: Tools::default(), scsi }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The version of the kernel inside, told by the first exchange.
    pub(crate) fn hello(&self, request: &Request, patience: Duration) -> Result<String> {
        let about = About { path: b"/", action: "start" };
        match self.exchange(about, request, &mut io::empty(), &mut no_data, patience)? {
            Reply::Hello { version: protocol::VERSION, kernel } => Ok(kernel),
            Reply::Hello { version, .. } => Err(Error::Appliance {
                what: format!(
                    "the appliance's agent speaks version {version} of the protocol and this program version {}: rebuild it with scripts/build-agent",
                    protocol::VERSION
                ),
                console: String::new(),
            }),
            _ => Err(self.nonsense()),
        }
    }

    /// Makes an agent that continues a template look for its disks.
    pub(crate) fn find_disks(&self, count: usize, patience: Duration) -> Result<()> {
        let about = About { path: b"/dev", action: "find its disks in" };
        let request = Request::FindDisks { count: u8::try_from(count).unwrap_or(u8::MAX) };
        let reply = self.exchange(about, &request, &mut io::empty(), &mut no_data, patience)?;
        self.done(reply)
    }

    /// It is up: the agent may be silent for as long as it works.
    pub(crate) fn connected(&self) -> Result<()> {
        let mut inner = self.lock();
        let set = inner.connection.set_silence(self.limits.silence);
        set.map_err(|e| inner.monitor.error(&format!("the appliance's socket: {e}")))
    }

    /// The monitor's process, for tests that harm it.
    #[doc(hidden)]
    pub fn process(&self) -> rustix::process::Pid {
        self.lock().monitor.pid()
    }

    fn exchange(
        &self,
        about: About<'_>,
        request: &Request,
        stream: &mut dyn Read,
        take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
        limit: Duration,
    ) -> Result<Reply> {
        self.over(about, |connection| connection.exchange(request, stream, take, limit))
    }

    /// Does something over the connection, and gives that up when it fails.
    fn over(&self, about: About<'_>, exchange: impl FnOnce(&mut Connection) -> Result<Reply, Trouble>) -> Result<Reply> {
        let mut inner = self.lock();
        if let Some(why) = &inner.dead {
            return Err(Error::Appliance { what: format!("the appliance is gone: {why}"), console: String::new() });
        }
        let guest = |what: String| Error::Guest { path: about.path.to_vec(), action: about.action, what };
        match exchange(&mut inner.connection) {
            Ok(Reply::Failed(failure)) => Err(match failure {
                Failure::NotFound => Error::NotFound(about.path.to_vec()),
                Failure::WrongType(wrong) => Error::WrongType { path: about.path.to_vec(), what: wrong.words() },
                Failure::Other(what) => guest(match inner.monitor.first_disk_error() {
                    Some(disk) => format!("{} ({disk})", guestfs::show(what.as_bytes())),
                    None => guestfs::show(what.as_bytes()),
                }),
            }),
            Ok(reply) => Ok(reply),
            Err(Trouble::Source(e)) => Err(guest(format!("the content cannot be read: {e}"))),
            Err(Trouble::Lost(e)) => {
                let what = match e.kind() {
                    io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => "the appliance does not answer".to_string(),
                    io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                        "the appliance died".to_string()
                    }
                    _ => format!("the appliance's agent talks nonsense: {e}"),
                };
                let what = format!("{what}, asked to {} {}", about.action, guestfs::show(about.path));
                let error = inner.monitor.error(&what);
                inner.monitor.kill();
                inner.dead = Some(what);
                Err(error)
            }
        }
    }

    /// An exchange without streams.
    fn ask(&self, path: &[u8], action: &'static str, request: &Request) -> Result<Reply> {
        self.exchange(About { path, action }, request, &mut io::empty(), &mut no_data, self.limits.operation)
    }

    /// One whose only answer is that it is done.
    fn order(&self, path: &[u8], action: &'static str, request: &Request) -> Result<()> {
        self.ask(path, action, request).and_then(|reply| self.done(reply))
    }

    fn done(&self, reply: Reply) -> Result<()> {
        if reply == Reply::Done { Ok(()) } else { Err(self.nonsense()) }
    }

    /// Gives an agent up that answers something else than it was asked.
    fn nonsense(&self) -> Error {
        let mut inner = self.lock();
        let error = inner.monitor.error("the appliance's agent answers something else than it was asked");
        inner.monitor.kill();
        inner.dead = Some("it talked nonsense".into());
        error
    }

    /// An exchange that fills `buf`; how much of it was filled.
    fn fill(&self, path: &[u8], request: &Request, buf: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        let mut take = |data: &[u8]| {
            let room = buf.get_mut(filled..filled + data.len()).ok_or_else(|| protocol::broken("more data than was asked for"))?;
            room.copy_from_slice(data);
            filled += data.len();
            Ok(())
        };
        let reply = self.exchange(About { path, action: "read" }, request, &mut io::empty(), &mut take, self.limits.operation)?;
        self.done(reply)?;
        Ok(filled)
    }

    /// An exchange that sends `stream`.
    fn send(&self, path: &[u8], request: &Request, stream: &mut dyn Read) -> Result<()> {
        let about = About { path, action: "write" };
        let reply = self.exchange(about, request, stream, &mut no_data, self.limits.operation)?;
        self.done(reply)
    }

    fn execute(&self, command: &Command, place: Place) -> Result<Output> {
        let request = Request::Run { argv: command.argv.clone(), env: command.env.clone(), place, timeout_ms: self.command_ms() };
        self.output_of(command, &mut |session, about, take, limit| {
            session.exchange(about, &request, &mut command.stdin.as_slice(), take, limit)
        })
    }

    fn command_ms(&self) -> u64 {
        u64::try_from(self.limits.command.as_millis()).unwrap_or(u64::MAX)
    }

    /// Collects what a command wrote, as an exchange brings it.
    fn output_of(&self, command: &Command, exchange: &mut Exchanging<'_>) -> Result<Output> {
        let program = command.argv.first().cloned().unwrap_or_default();
        let about = About { path: &program, action: "run" };
        let mut both = Vec::new();
        let mut take = |data: &[u8]| {
            both.extend_from_slice(data);
            if both.len() > 2 * OUTPUT_LIMIT { Err(protocol::broken("more output than there may be")) } else { Ok(()) }
        };
        // The agent's own limit comes first; this one is for an agent that forgot.
        let limit = self.limits.command.saturating_add(self.limits.silence);
        let reply = exchange(self, about, &mut take, limit)?;
        let Reply::Ran { status, stdout, stderr, timed_out } = reply else { return Err(self.nonsense()) };
        let split = usize::try_from(stdout).ok().filter(|n| *n <= both.len() && stdout.checked_add(stderr) == Some(both.len() as u64));
        let Some(split) = split else { return Err(self.nonsense()) };
        let stderr = both.split_off(split);
        if timed_out {
            let what = format!("did not end within {} s", self.limits.command.as_secs());
            return Err(Error::Guest { path: program, action: "run", what });
        }
        Ok(Output { status, stdout: both, stderr })
    }

    /// Gives the appliance files of the host's.
    fn install(&self, files: Vec<Borrowed>) -> Result<()> {
        for file in files {
            let mut content = std::fs::File::open(&file.path)
                .map_err(|e| Error::Invalid(format!("{}: {e}, but the appliance needs it", file.path.display())))?;
            let path = file.path.into_os_string().into_encoded_bytes();
            self.send(&path, &Request::Install { path: path.clone(), mode: file.mode }, &mut content)?;
        }
        Ok(())
    }

    fn inside(&self, device: &str) -> String {
        match device.strip_prefix("/dev/vd") {
            Some(rest) if self.scsi => format!("/dev/sd{rest}"),
            _ => device.to_string(),
        }
    }

    fn outside(&self, device: String) -> String {
        match device.strip_prefix("/dev/sd") {
            Some(rest) if self.scsi => format!("/dev/vd{rest}"),
            _ => device,
        }
    }
}

fn no_data(_: &[u8]) -> io::Result<()> {
    Err(protocol::broken("data that was not asked for"))
}

/// Collects messages from data frames, within a limit on their bytes.
fn collector<'v, M: serde::de::DeserializeOwned, T>(
    into: &'v mut Vec<T>,
    each: impl Fn(M) -> io::Result<Vec<T>> + 'v,
) -> impl FnMut(&[u8]) -> io::Result<()> + 'v {
    let mut bytes = 0;
    move |data| {
        bytes += data.len();
        if bytes > LISTING_LIMIT {
            return Err(protocol::broken("a list without an end"));
        }
        into.extend(each(protocol::decode(data)?)?);
        Ok(())
    }
}

/// An entry of a directory, if files can have its name.
pub(crate) fn entry(entry: WireEntry) -> io::Result<DirEntry> {
    let name = entry.name.as_slice();
    if name.is_empty() || name.len() > 255 || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
        return Err(protocol::broken("a name that no file can have"));
    }
    Ok(entry.into())
}

/// Writes files into the stream of [`Request::Unpack`].
struct Packer<'o, 'c>(&'o mut Outlet<'c>);

impl Packer<'_, '_> {
    fn piece(&mut self, piece: &WirePiece) -> Result<()> {
        let sent = protocol::encode(piece).and_then(|message| {
            let len = u32::try_from(message.len()).ok().filter(|_| message.len() <= protocol::MAX_PAYLOAD);
            let len = len.ok_or_else(|| io::Error::other("a file's name and attributes are too long"))?;
            self.0.write_all(&len.to_le_bytes())?;
            self.0.write_all(&message)
        });
        sent.map_err(stopped)
    }
}

/// The connection keeps the reason: this error is not seen.
fn stopped(error: io::Error) -> Error {
    Error::Invalid(format!("the appliance takes no more: {error}"))
}

impl Unpack for Packer<'_, '_> {
    fn node(&mut self, node: &guestfs::Node) -> Result<()> {
        self.piece(&WirePiece::Node(node.into()))
    }

    fn data(&mut self, data: &[u8]) -> Result<()> {
        for part in data.chunks(protocol::MAX_PAYLOAD) {
            self.piece(&WirePiece::Data(u32::try_from(part.len()).unwrap_or(u32::MAX)))?;
            self.0.write_all(part).map_err(stopped)?;
        }
        Ok(())
    }

    fn hole(&mut self, len: u64) -> Result<()> {
        self.piece(&WirePiece::Hole(len))
    }
}

impl GuestFs for ApplianceSession {
    fn lstat(&self, path: &[u8]) -> Result<Stat> {
        match self.ask(path, "stat", &Request::Lstat { path: path.to_vec() })? {
            Reply::Stat(stat) => Ok(stat.into()),
            _ => Err(self.nonsense()),
        }
    }

    fn stat(&self, path: &[u8]) -> Result<Stat> {
        match self.ask(path, "stat", &Request::Stat { path: path.to_vec() })? {
            Reply::Stat(stat) => Ok(stat.into()),
            _ => Err(self.nonsense()),
        }
    }

    fn read_dir(&self, path: &[u8]) -> Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        let mut take = collector(&mut entries, |batch: Vec<WireEntry>| batch.into_iter().map(entry).collect());
        let request = Request::ReadDir { path: path.to_vec() };
        let about = About { path, action: "list" };
        let reply = self.exchange(about, &request, &mut io::empty(), &mut take, self.limits.operation)?;
        drop(take);
        self.done(reply)?;
        Ok(entries)
    }

    fn readlink(&self, path: &[u8]) -> Result<Vec<u8>> {
        match self.ask(path, "read", &Request::Readlink { path: path.to_vec() })? {
            Reply::Link(target) => Ok(target),
            _ => Err(self.nonsense()),
        }
    }

    fn read_at(&self, path: &[u8], offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.fill(path, &Request::Read { path: path.to_vec(), offset, len: buf.len() as u64 }, buf)
    }

    fn next_data(&self, path: &[u8], offset: u64) -> Result<Option<Range<u64>>> {
        match self.ask(path, "read", &Request::NextData { path: path.to_vec(), offset })? {
            Reply::Range(None) => Ok(None),
            Reply::Range(Some((start, end))) if offset <= start && start < end => Ok(Some(start..end)),
            _ => Err(self.nonsense()),
        }
    }

    fn xattrs(&self, path: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut attributes = Vec::new();
        let mut take = collector(&mut attributes, |one: (Vec<u8>, Vec<u8>)| Ok(vec![one]));
        let request = Request::Xattrs { path: path.to_vec() };
        let about = About { path, action: "read the attributes of" };
        let reply = self.exchange(about, &request, &mut io::empty(), &mut take, self.limits.operation)?;
        drop(take);
        self.done(reply)?;
        Ok(attributes)
    }

    fn statfs(&self, path: &[u8]) -> Result<StatFs> {
        match self.ask(path, "statfs", &Request::Statfs { path: path.to_vec() })? {
            Reply::Statfs(statfs) => Ok(statfs.into()),
            _ => Err(self.nonsense()),
        }
    }
}

impl GuestFsMut for ApplianceSession {
    fn write(&mut self, path: &[u8], content: &mut dyn Read, attributes: Option<Attributes>) -> Result<()> {
        self.send(path, &Request::Write { path: path.to_vec(), attributes: attributes.map(Into::into) }, content)
    }

    fn mkdir(&mut self, path: &[u8], attributes: Attributes) -> Result<()> {
        self.order(path, "mkdir", &Request::Mkdir { path: path.to_vec(), attributes: attributes.into() })
    }

    fn symlink(&mut self, target: &[u8], path: &[u8]) -> Result<()> {
        self.order(path, "symlink", &Request::Symlink { target: target.to_vec(), path: path.to_vec() })
    }

    fn link(&mut self, existing: &[u8], path: &[u8]) -> Result<()> {
        self.order(path, "link", &Request::Link { existing: existing.to_vec(), path: path.to_vec() })
    }

    fn mknod(&mut self, path: &[u8], kind: FileType, rdev: (u32, u32), attributes: Attributes) -> Result<()> {
        self.order(path, "mknod", &Request::Mknod { path: path.to_vec(), kind: kind.into(), rdev, attributes: attributes.into() })
    }

    fn rename(&mut self, from: &[u8], to: &[u8]) -> Result<()> {
        self.order(from, "rename", &Request::Rename { from: from.to_vec(), to: to.to_vec() })
    }

    fn remove(&mut self, path: &[u8]) -> Result<()> {
        self.order(path, "remove", &Request::Remove { path: path.to_vec() })
    }

    fn set_attributes(&mut self, path: &[u8], attributes: Attributes) -> Result<()> {
        self.order(path, "change", &Request::SetAttributes { path: path.to_vec(), attributes: attributes.into() })
    }

    fn set_times(&mut self, path: &[u8], atime: Time, mtime: Time) -> Result<()> {
        self.order(path, "change the times of", &Request::SetTimes { path: path.to_vec(), atime: atime.into(), mtime: mtime.into() })
    }

    fn set_xattr(&mut self, path: &[u8], name: &[u8], value: &[u8]) -> Result<()> {
        let request = Request::SetXattr { path: path.to_vec(), name: name.to_vec(), value: value.to_vec() };
        self.order(path, "change the attributes of", &request)
    }
}

impl GuestExec for ApplianceSession {
    fn run(&mut self, command: &Command) -> Result<Output> {
        self.execute(command, Place::Guest)
    }

    fn run_relayed(&mut self, command: &Command, relay: Arc<dyn Relay>) -> Result<Output> {
        let request = Request::RunRelayed { argv: command.argv.clone(), env: command.env.clone(), timeout_ms: self.command_ms() };
        let carrier = Carrier::new(relay);
        self.output_of(command, &mut |session, about, take, limit| {
            session.over(about, |connection| Ok(connection.converse(&request, &carrier, take, limit)?))
        })
    }

    fn run_tool(&mut self, command: &Command) -> Result<Output> {
        let files = self.tools.files_for(command.argv.first().map(Vec::as_slice).unwrap_or_default())?;
        self.install(files)?;
        self.execute(command, Place::Appliance)
    }

    fn lend(&mut self, programs: &[&str]) -> Result<()> {
        for program in programs {
            match self.tools.files_for(program.as_bytes()) {
                Err(Error::Missing(_)) => {}
                files => self.install(files?)?,
            }
        }
        Ok(())
    }

    fn run_on_terminal(&mut self, command: &Command, terminal: &dyn Terminal) -> Result<i32> {
        let about = About { path: command.argv.first().map(Vec::as_slice).unwrap_or_default(), action: "run" };
        let TerminalSize { rows, columns } = terminal.size();
        let request = Request::Terminal { argv: command.argv.clone(), env: command.env.clone(), rows, columns };
        match self.over(about, |connection| Ok(connection.converse(&request, &OnTerminal(terminal), &mut no_data, OnTerminal::LIMIT)?))? {
            Reply::Ran { status, .. } => Ok(status),
            _ => Err(self.nonsense()),
        }
    }
}

impl Session for ApplianceSession {
    fn mount(&mut self, device: &str, path: &[u8], filesystem: &str, options: &str) -> Result<()> {
        let request =
            Request::Mount { device: self.inside(device), path: path.to_vec(), filesystem: filesystem.into(), options: options.into() };
        self.order(path, "mount", &request)
    }

    fn unmount_all(&mut self) -> Result<()> {
        self.order(b"/", "unmount", &Request::UnmountAll)
    }

    fn read_device(&mut self, device: &str, offset: u64, buf: &mut [u8]) -> Result<()> {
        let wanted = buf.len();
        let request = Request::ReadDevice { device: self.inside(device), offset, len: wanted as u64 };
        let filled = self.fill(device.as_bytes(), &request, buf)?;
        if filled < wanted {
            let what = format!("it ends at {}, before {}", offset + filled as u64, offset + wanted as u64);
            return Err(Error::Guest { path: device.into(), action: "read", what });
        }
        Ok(())
    }

    fn write_device(&mut self, device: &str, offset: u64, mut data: &[u8]) -> Result<()> {
        self.send(device.as_bytes(), &Request::WriteDevice { device: self.inside(device), offset }, &mut data)
    }

    fn reread_partitions(&mut self, device: &str) -> Result<()> {
        self.order(device.as_bytes(), "reread", &Request::RereadPartitions { device: self.inside(device) })
    }

    fn devices(&mut self) -> Result<Vec<(String, u64)>> {
        match self.ask(b"/dev", "list", &Request::Devices)? {
            Reply::Devices(list) => Ok(list.into_iter().map(|(name, size)| (self.outside(name), size)).collect()),
            _ => Err(self.nonsense()),
        }
    }

    fn unpack(&mut self, directory: &[u8], fill: &mut dyn FnMut(&mut dyn Unpack) -> Result<()>) -> Result<()> {
        let request = Request::Unpack { path: directory.to_vec() };
        // The caller's own errors reach the caller as they are.
        let mut failed = None;
        let mut fill = |outlet: &mut Outlet<'_>| {
            fill(&mut Packer(outlet)).map_err(|e| {
                failed = Some(e);
                io::Error::other("the source failed")
            })
        };
        let about = About { path: directory, action: "unpack files in" };
        let outcome = self.over(about, |c| c.exchange_filled(&request, &mut fill, &mut no_data, self.limits.operation));
        match (outcome, failed) {
            (Err(Error::Guest { .. }), Some(e)) => Err(e),
            (outcome, _) => outcome.and_then(|reply| self.done(reply)),
        }
    }

    fn shutdown(self: Box<Self>) -> Result<()> {
        self.order(b"/", "power off", &Request::PowerOff)?;
        let mut inner = self.lock();
        if inner.monitor.wait(POWER_OFF).is_none() {
            return Err(inner.monitor.error("the appliance does not power off"));
        }
        if let Some(e) = inner.monitor.first_disk_error() {
            return Err(Error::Appliance { what: format!("a disk failed under the appliance: {e}"), console: inner.monitor.console() });
        }
        for image in &self.writable {
            image.flush()?;
        }
        Ok(())
    }

    fn name_inside(&self, device: &str) -> String {
        self.inside(device)
    }

    fn as_fs(&self) -> &dyn GuestFs {
        self
    }
}
