//! An export as it arrives, and what is done when the connection is cut in the middle.
//!
//! A XenServer makes an export while it sends it: there is no middle to go on from, and what came so far is thrown away. Only where the
//! answer says that it may be asked for in parts (`Accept-Ranges`, and an `ETag` to know it by) is the rest asked for.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use imgcore::{ImageMut, NoProgress, Progress};
use ureq::BodyReader;
use xva::Stream;

use super::session::Session;
use super::snapshot::Snapshot;
use crate::input::xva::Arriving;
use crate::input::{DiskStream, Opened};
use crate::source::Source;
use crate::{Error, Result};

/// So often a file is asked for before it is given up.
const ATTEMPTS: u32 = 3;
/// What a host that may be restarting gets before it is asked again, and twice that the next time.
const PAUSE: Duration = Duration::from_secs(1);

/// A file of a server's that can be read from its start as often as need be.
pub(super) struct Remote {
    pub session: Arc<Session>,
    /// With its query.
    pub path: String,
    /// For messages.
    pub name: String,
}

impl Remote {
    /// Asks for it.
    pub fn open(&self) -> Result<Body> {
        let answer = self.session.get(&self.path, None)?;
        let strong = |tag: &&str| tag.starts_with('"');
        let version = answer.header("etag").filter(strong).filter(|_| answer.header("accept-ranges") == Some("bytes")).map(str::to_owned);
        Ok(Body {
            session: self.session.clone(),
            path: self.path.clone(),
            version,
            position: 0,
            resumed: 0,
            reader: answer.into_reader(),
            ending: Ending::default(),
        })
    }

    /// Does something with the whole of it, again from its start when the connection was cut: not when what came is damaged. `tried` is how
    /// often that was done already.
    pub fn repeated<T>(&self, tried: u32, progress: &dyn Progress, work: &mut dyn FnMut(Body) -> Result<T>) -> Result<T> {
        let mut attempt = tried;
        loop {
            if attempt > 0 {
                pause(attempt, progress);
            }
            attempt += 1;
            let mut ending = None;
            let outcome = self.open().and_then(|body| {
                ending = Some(body.ending.clone());
                work(body)
            });
            // A host that cannot be reached at first is none; one that could be before may be back in a moment.
            let is_cut = ending.as_ref().map_or(attempt > 1, Ending::is_over);
            match outcome {
                Err(error) if is_cut && !progress.cancelled() => {
                    if attempt >= ATTEMPTS {
                        return Err(self.given_up(error, attempt));
                    }
                }
                outcome => return outcome,
            }
        }
    }

    fn given_up(&self, error: Error, attempts: u32) -> Error {
        let often = if attempts == 1 { "once".into() } else { format!("{attempts} times") };
        let error = error.to_string();
        let what = error.strip_prefix(&format!("{}: ", self.name)).unwrap_or(&error);
        Error::Invalid(format!("{}: asked for {often}, and it never came whole: {what}", self.name))
    }
}

fn pause(attempt: u32, progress: &dyn Progress) {
    let end = Instant::now() + PAUSE * (1 << attempt.min(8)) / 2;
    while Instant::now() < end && !progress.cancelled() {
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Whether a body has come to an end, expected or not.
#[derive(Clone, Default)]
struct Ending(Arc<AtomicBool>);

impl Ending {
    fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Nothing more comes: what misses something was cut off.
    fn is_over(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The bytes of a file while they come.
pub(super) struct Body {
    session: Arc<Session>,
    path: String,
    /// What it is known by, where a part of it can be asked for.
    version: Option<String>,
    position: u64,
    resumed: u32,
    reader: BodyReader<'static>,
    ending: Ending,
}

impl Body {
    /// Asks for the rest, where that is possible.
    fn resume(&mut self) -> bool {
        let Some(version) = self.version.as_deref().filter(|_| self.resumed < ATTEMPTS) else { return false };
        self.resumed += 1;
        let Ok(answer) = self.session.get(&self.path, Some((self.position, version))) else { return false };
        let begins = answer.header("content-range").and_then(|r| r.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
        if answer.status().as_u16() != 206 || begins != Some(self.position) || answer.header("etag").is_some_and(|tag| tag != version) {
            return false;
        }
        self.reader = answer.into_reader();
        true
    }
}

impl Read for Body {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let error = match self.reader.read(buf) {
                // An export has no length: whether this is its end is told by what it holds.
                Ok(0) if !buf.is_empty() => {
                    self.ending.set();
                    return Ok(0);
                }
                Ok(n) => {
                    self.position += n as u64;
                    return Ok(n);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => e,
            };
            if !self.resume() {
                self.ending.set();
                return Err(io::Error::other(self.session.client.cut(&error, self.position)));
            }
        }
    }
}

/// An export of which the disks are still to come.
pub(super) struct Exported {
    arriving: Option<Arriving>,
    ending: Ending,
    remote: Remote,
    /// What is exported, where it was made for that.
    _snapshot: Option<Snapshot>,
}

impl Exported {
    /// Asks for the export, and reads its description. `source` makes a source of it.
    pub fn open(
        remote: Remote,
        snapshot: Option<Snapshot>,
        source: impl FnOnce(&Stream<'_>) -> Result<(Source, Vec<Option<usize>>)>,
    ) -> Result<Opened> {
        let (stream, ending) = remote.repeated(0, &NoProgress, &mut |body| {
            let ending = body.ending.clone();
            Ok((Stream::open(body, &remote.name)?, ending))
        })?;
        let (source, order) = source(&stream)?;
        let arriving = Some(Arriving { stream, order });
        Ok(Opened { stream: Some(Box::new(Exported { arriving, ending, remote, _snapshot: snapshot })), ..source.into() })
    }
}

impl DiskStream for Exported {
    fn receive(mut self: Box<Self>, targets: &[Arc<dyn ImageMut>], progress: &dyn Progress) -> Result<()> {
        let Some(first) = self.arriving.take() else { return Ok(()) };
        let (order, disks) = (first.order.clone(), first.stream.appliance().disks.clone());
        match Box::new(first).receive(targets, progress) {
            Err(_) if self.ending.is_over() && !progress.cancelled() => {}
            outcome => return outcome,
        }
        self.remote.repeated(1, progress, &mut |body| {
            let stream = Stream::open(body, &self.remote.name)?;
            let now = &stream.appliance().disks;
            if now.len() != disks.len() || now.iter().zip(&disks).any(|(a, b)| (&a.id, a.size) != (&b.id, b.size)) {
                return Err(Error::Invalid("its disks are others now".into()));
            }
            // What came so far is forgotten: another time other blocks may be left out as zeroes.
            targets.iter().try_for_each(|target| target.discard(0, target.size()))?;
            Box::new(Arriving { stream, order: order.clone() }).receive(targets, progress)
        })
    }
}
