//! An archive read once from front to end: one thread reads, workers verify, the caller's thread hands over in order.

use std::collections::BTreeSet;
use std::io::{BufReader, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use imgcore::{Error, Progress, Result};

use crate::XVA;
use crate::archive::{Member, parse_table};
use crate::bytes::{Input, Pipe};
use crate::chunks::Mapper;
use crate::disk::{check, wrong_size};
use crate::model::{Appliance, Form};
use crate::modern::parse_ova;
use crate::sums::{MAX_TEXT, Sum, SumKind};
use crate::tar::Tar;
use crate::wrap::{Wrap, unwrap};
use crate::xmlrpc::MAX_XML;

/// The longest chunk that is read; real ones have 1 MiB.
pub(crate) const MAX_CHUNK: u64 = 16 << 20;
/// Chunks between the reader and the sink.
const DEPTH: usize = 16;
/// Bytes of a legacy chunk that are handed over at a time.
const PIECE: usize = 1 << 20;
/// What may follow the end mark, unpacked.
const MAX_REST: u64 = 64 << 20;

/// Takes what a stream holds.
pub trait StreamSink {
    /// Bytes of disk `disk` (an index in [`Appliance::disks`]) at `offset`, verified where the archive has inline
    /// checksums. A disk's pieces come in ascending order, one disk after the other. What never comes is
    /// zeroes. An error stops the reading.
    fn data(&mut self, disk: usize, offset: u64, data: &[u8]) -> Result<()>;
}

/// An archive that arrives, packed or not, of which the description was read.
pub struct Stream<'a> {
    name: Arc<str>,
    appliance: Appliance,
    tar: Tar<Pipe<Box<dyn Read + Send + 'a>>>,
    packed: bool,
}

impl<'a> Stream<'a> {
    /// Reads `input` up to the end of `ova.xml`; `name` is for messages.
    pub fn open(input: impl Read + Send + 'a, name: &str) -> Result<Self> {
        let (wrap, reader) = unwrap(input, name)?;
        let mut tar = Tar::new(Pipe::new(reader, name), name);
        loop {
            let Some(entry) = tar.next()? else {
                return Err(Error::corrupt(name, XVA, None, "the archive holds no ova.xml: it is not an XVA"));
            };
            let (_, file) = entry.split();
            match Member::parse(file) {
                Member::Ova if entry.regular => {
                    let appliance = parse_ova(&tar.read_all(MAX_XML, "ova.xml")?, name)?;
                    // A packed archive's positions say nothing about the file.
                    return Ok(Stream { name: name.into(), appliance, tar, packed: wrap != Wrap::None });
                }
                Member::Other => {}
                _ => {
                    return Err(Error::unsupported(
                        name,
                        XVA,
                        "a stream whose disk data comes before ova.xml: save it as a file, and give the file",
                    ));
                }
            }
        }
    }

    /// What it describes.
    pub fn appliance(&self) -> &Appliance {
        &self.appliance
    }

    /// Reads the rest to the end. The description that it gives back may have more warnings.
    ///
    /// Memory is bounded by a few chunks. Nothing that was handed over counts before this returns `Ok`: that an archive
    /// is truncated or damaged may show last.
    pub fn read(self, sink: &mut dyn StreamSink, progress: &dyn Progress) -> Result<Appliance> {
        let workers = std::thread::available_parallelism().map_or(1, usize::from).clamp(1, 8);
        let (items, queue) = sync_channel(DEPTH);
        let (jobs, job_queue) = sync_channel::<Job>(DEPTH);
        let job_queue = Mutex::new(job_queue);
        let (recycle, spare) = channel();
        let Stream { name, appliance, tar, packed } = self;
        let name = &*name;
        let state = State::new(&appliance);
        progress.total(appliance.disks.iter().map(|d| d.size).fold(0, u64::saturating_add));
        std::thread::scope(|scope| {
            let job_queue = &job_queue;
            for _ in 0..workers {
                // Ends when the reader has dropped its end.
                scope.spawn(move || {
                    loop {
                        let job = job_queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                        let Ok(job) = job else { return };
                        job.run(name);
                    }
                });
            }
            scope.spawn(move || {
                let mut reader = Reader { name, items: items.clone(), jobs, spare, state };
                if let Err(Stop::Error(e)) = reader.run(tar, packed) {
                    let _ = items.send(Err(e));
                }
            });
            deliver(appliance, queue, &recycle, sink, progress, name)
        })
    }
}

/// The caller's part: everything in order.
fn deliver(
    mut appliance: Appliance,
    queue: Receiver<Result<Item>>,
    recycle: &Sender<Vec<u8>>,
    sink: &mut dyn StreamSink,
    progress: &dyn Progress,
    name: &str,
) -> Result<Appliance> {
    // For a table at the archive's end.
    let mut sums = Vec::new();
    let mut last = (0, 0);
    for item in queue {
        match item? {
            Item::Data { disk, number, offset, len, ready } => {
                let (data, sum) = ready.recv().map_err(|_| Error::Invalid(format!("{name}: a worker stopped")))??;
                sink.data(disk, offset, data.get(..len).unwrap_or(&data))?;
                if let Some(sum) = sum {
                    sums.push((disk, number, sum));
                }
                let end = offset.saturating_add(len as u64);
                progress.advance(if last.0 == disk { end.saturating_sub(last.1) } else { end });
                last = (disk, end);
                let _ = recycle.send(data);
                if progress.cancelled() {
                    return Err(Error::Invalid(format!("{name}: stopped")));
                }
            }
            Item::End { table, warnings } => {
                if let Some(raw) = table.filter(|_| !sums.is_empty()) {
                    let table = parse_table(&raw, name)?;
                    for (disk, number, sum) in sums {
                        let entry = format!("{}/{number:08}", appliance.disks.get(disk).map_or("", |d| &d.id));
                        match table.get(&entry) {
                            Some(expected) if *expected == sum => {}
                            Some(expected) => {
                                let what = format!(
                                    "wrong checksum of {entry}: its data gives {sum}, the archive says {expected}. The archive is damaged: copy or export it again"
                                );
                                return Err(Error::corrupt(name, XVA, None, what));
                            }
                            None => return Err(Error::corrupt(name, XVA, None, format!("{entry} has no checksum in the archive's table"))),
                        }
                    }
                }
                appliance.warnings.extend(warnings);
                return Ok(appliance);
            }
        }
    }
    Err(Error::Invalid(format!("{name}: the reader stopped")))
}

enum Item {
    Data { disk: usize, number: u64, offset: u64, len: usize, ready: Receiver<Result<(Vec<u8>, Option<Sum>)>> },
    End { table: Option<Vec<u8>>, warnings: Vec<String> },
}

struct Job {
    data: Vec<u8>,
    work: Work,
    reply: SyncSender<Result<(Vec<u8>, Option<Sum>)>>,
}

enum Work {
    Nothing,
    /// For a table that comes later.
    Compute,
    Check {
        sum: Sum,
        entry: String,
        at: u64,
        disk_offset: u64,
    },
}

impl Job {
    fn run(self, name: &str) {
        let result = match self.work {
            Work::Nothing => Ok(None),
            Work::Compute => Ok(Some(SumKind::Sha1.compute(&self.data))),
            Work::Check { sum, entry, at, disk_offset } => check(&self.data, sum, name, Some(at), &entry, disk_offset).map(|()| None),
        };
        let _ = self.reply.send(result.map(|sum| (self.data, sum)));
    }
}

/// Why the reader ends early.
enum Stop {
    Error(Error),
    /// Nobody listens any more: the sink failed.
    Unheard,
}

impl From<Error> for Stop {
    fn from(e: Error) -> Self {
        Stop::Error(e)
    }
}

struct Reader<'a> {
    name: &'a str,
    items: SyncSender<Result<Item>>,
    jobs: SyncSender<Job>,
    spare: Receiver<Vec<u8>>,
    state: State,
}

/// What is known since `ova.xml` was read.
struct State {
    form: Form,
    ids: Vec<String>,
    sizes: Vec<u64>,
    /// Modern: by disk.
    mappers: Vec<Mapper>,
    /// Legacy: by disk, the next chunk's number and offset.
    legacy: Vec<(u64, u64)>,
    /// Waits for its checksum.
    pending: Option<Pending>,
    any_sum: bool,
    /// The first chunk that has no checksum.
    without_sum: Option<String>,
    any_data: bool,
    strangers: BTreeSet<String>,
    table: Option<Vec<u8>>,
}

struct Pending {
    disk: usize,
    number: u64,
    data: Vec<u8>,
    /// Offset on the disk and bytes of it; `None` for an empty chunk.
    place: Option<(u64, u64)>,
    entry: String,
    at: u64,
}

impl Reader<'_> {
    fn run(&mut self, mut tar: Tar<impl Input>, packed: bool) -> Result<(), Stop> {
        while let Some(entry) = tar.next()? {
            let (folder, file) = entry.split();
            let member = Member::parse(file);
            if !entry.regular && !matches!(member, Member::Other) {
                return Err(self.corrupt(entry.data, format!("{} is a link or a device, not a file", entry.name)).into());
            }
            if !matches!(member, Member::Sum(..)) {
                self.flush(None)?;
            }
            match member {
                Member::Other | Member::Ova => {}
                Member::Table if !self.state.any_sum => self.state.table = Some(tar.read_all(MAX_XML, "checksum.xml")?),
                Member::Table => {}
                Member::Chunk(number) => self.chunk(&mut tar, folder, number, entry.size, if packed { 0 } else { entry.data })?,
                Member::Sum(number, kind) => self.checksum(&mut tar, folder, number, kind)?,
                Member::Legacy(number) => self.legacy(&mut tar, folder, number)?,
            }
        }
        self.flush(None)?;
        // The sums inside gzip and zstd come last.
        let mut input = tar.into_input();
        let (mut rest, mut buf) = (0, vec![0; 64 << 10]);
        loop {
            match input.fill(&mut buf)? {
                0 => break,
                n => rest += n as u64,
            }
            if rest > MAX_REST {
                return Err(self.corrupt(None, format!("more than {MAX_REST} bytes follow the archive's end")).into());
            }
        }
        self.finish()
    }

    fn corrupt(&self, at: impl Into<Option<u64>>, what: String) -> Error {
        Error::corrupt(self.name, XVA, at, what)
    }

    /// The disk that a folder's data belongs to; others are noted and passed over.
    fn disk(&mut self, folder: &str) -> Option<usize> {
        let state = &mut self.state;
        let disk = state.ids.iter().position(|id| id == folder);
        if disk.is_none() && state.strangers.len() < 100 {
            state.strangers.insert(folder.into());
        }
        disk
    }

    fn chunk(&mut self, tar: &mut Tar<impl Input>, folder: &str, number: u64, size: u64, at: u64) -> Result<(), Stop> {
        let Some(disk) = self.disk(folder) else { return Ok(()) };
        let entry = format!("{folder}/{number:08}");
        let offset = Some(at).filter(|a| *a > 0);
        if size > MAX_CHUNK {
            return Err(self.corrupt(offset, format!("{entry} has {size} bytes: more than {MAX_CHUNK} are not read")).into());
        }
        let state = &mut self.state;
        state.any_data = true;
        let place = state.mappers.get_mut(disk).map_or(Ok(None), |m| m.place(number, size));
        let place = place.map_err(|what| self.corrupt(offset, format!("disk {folder}: {what}")))?;
        let mut data = self.spare.try_recv().unwrap_or_default();
        data.resize(usize::try_from(size).unwrap_or(0), 0);
        tar.read(&mut data)?;
        self.state.pending = Some(Pending { disk, number, data, place, entry, at });
        Ok(())
    }

    fn checksum(&mut self, tar: &mut Tar<impl Input>, folder: &str, number: u64, kind: SumKind) -> Result<(), Stop> {
        let text = tar.read_all(MAX_TEXT, "a checksum")?;
        let entry = format!("{folder}/{number:08}");
        if self.disk(folder).is_none() {
            return Ok(());
        }
        if self.state.pending.as_ref().is_none_or(|p| p.entry != entry) {
            let what = format!("a stream in which the checksum of {entry} does not follow it: save it as a file, and give the file");
            return Err(Error::unsupported(self.name, XVA, what).into());
        }
        let sum = kind.parse(&text).ok_or_else(|| self.corrupt(None, format!("{entry}.{} holds no checksum", kind.extension())))?;
        self.flush(Some(sum))
    }

    /// Sends the pending chunk on, with its checksum if it has one.
    fn flush(&mut self, sum: Option<Sum>) -> Result<(), Stop> {
        let state = &mut self.state;
        let Some(pending) = state.pending.take() else { return Ok(()) };
        state.any_sum |= sum.is_some();
        let Some((offset, len)) = pending.place else { return Ok(()) };
        if sum.is_none() && state.without_sum.is_none() {
            state.without_sum = Some(pending.entry.clone());
        }
        if state.any_sum
            && let Some(entry) = &state.without_sum
        {
            let what = format!("{entry} has no checksum, though the archive has checksums");
            return Err(self.corrupt(None, what).into());
        }
        let work = match sum {
            Some(sum) => Work::Check { sum, entry: pending.entry, at: pending.at, disk_offset: offset },
            None if matches!(state.form, Form::Modern { export_vsn: 0 }) => Work::Compute,
            None => Work::Nothing,
        };
        self.send(pending.disk, pending.number, offset, usize::try_from(len).unwrap_or(0), pending.data, work)
    }

    fn send(&self, disk: usize, number: u64, offset: u64, len: usize, data: Vec<u8>, work: Work) -> Result<(), Stop> {
        let (reply, ready) = sync_channel(1);
        self.items.send(Ok(Item::Data { disk, number, offset, len, ready })).map_err(|_| Stop::Unheard)?;
        self.jobs.send(Job { data, work, reply }).map_err(|_| Stop::Unheard)
    }

    fn legacy(&mut self, tar: &mut Tar<impl Input>, folder: &str, number: u64) -> Result<(), Stop> {
        let Some(disk) = self.disk(folder) else { return Ok(()) };
        let state = &mut self.state;
        state.any_data = true;
        let (Some((next, mut offset)), Some(size)) = (state.legacy.get(disk).copied(), state.sizes.get(disk).copied()) else {
            return Ok(());
        };
        if number != next {
            let what = format!(
                "a stream in which chunk {number} of disk {folder} comes where {next} should: save it as a file, and give the file"
            );
            return Err(Error::unsupported(self.name, XVA, what).into());
        }
        let mut gzip = flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(64 << 10, MemberReader(tar)));
        loop {
            let mut data = self.spare.try_recv().unwrap_or_default();
            data.resize(PIECE, 0);
            let mut done = 0;
            while let Some(rest) = data.get_mut(done..).filter(|r| !r.is_empty()) {
                match gzip.read(rest) {
                    Ok(0) => break,
                    Ok(n) => done += n,
                    Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(e) => {
                        // Either the archive's own error, passed through the decoder, or the decoder's.
                        return Err(match e.downcast::<Error>() {
                            Ok(own) => own,
                            Err(e) => self.corrupt(None, format!("disk {folder}: chunk {number} is damaged: gzip: {e}")),
                        }
                        .into());
                    }
                }
            }
            if done == 0 {
                break;
            }
            data.truncate(done);
            if size.checked_sub(offset).is_none_or(|left| left < done as u64) {
                return Err(self.corrupt(None, format!("disk {folder}: its chunks hold more than its size of {size} bytes")).into());
            }
            self.send(disk, number, offset, done, data, Work::Nothing)?;
            offset += done as u64;
        }
        if let Some(slot) = self.state.legacy.get_mut(disk) {
            *slot = (next + 1, offset);
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), Stop> {
        let name = self.name;
        let state = &mut self.state;
        if !state.any_data && state.sizes.iter().any(|s| *s > 0) {
            let what = "the archive holds no disk data: it is an export of metadata only. Export the machine with its disks";
            return Err(self.corrupt(None, what.into()).into());
        }
        for (i, (id, size)) in state.ids.iter().zip(&state.sizes).enumerate() {
            let whole = match state.form {
                Form::Modern { .. } => state.mappers.get(i).map_or(Ok(()), Mapper::finish),
                Form::Legacy => state.legacy.get(i).filter(|(_, end)| end != size).map_or(Ok(()), |(_, end)| Err(wrong_size(*end, *size))),
            };
            whole.map_err(|what| Error::corrupt(name, XVA, None, format!("disk {id}: {what}")))?;
        }
        let mut warnings: Vec<_> = state
            .strangers
            .iter()
            .map(|folder| format!("the archive holds data of {folder}, which no drive refers to: it is left out"))
            .collect();
        if matches!(state.form, Form::Modern { .. }) && state.any_data && !state.any_sum && state.table.is_none() {
            warnings.push("the archive holds no checksums: damage to disk data cannot be noticed".into());
        }
        let _ = self.items.send(Ok(Item::End { table: state.table.take(), warnings }));
        Ok(())
    }
}

impl State {
    fn new(appliance: &Appliance) -> Self {
        State {
            form: appliance.form,
            ids: appliance.disks.iter().map(|d| d.id.clone()).collect(),
            sizes: appliance.disks.iter().map(|d| d.size).collect(),
            mappers: appliance.disks.iter().map(|d| Mapper::new(d.size)).collect(),
            legacy: vec![(0, 0); appliance.disks.len()],
            pending: None,
            any_sum: false,
            without_sum: None,
            any_data: false,
            strangers: BTreeSet::new(),
            table: None,
        }
    }
}

/// The rest of a tar member, for a decoder.
struct MemberReader<'a, I>(&'a mut Tar<I>);

impl<I: Input> Read for MemberReader<'_, I> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.0.read_part(buf).map_err(std::io::Error::other)
    }
}
