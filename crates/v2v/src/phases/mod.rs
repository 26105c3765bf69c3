//! Two phases for a short downtime: the disks are copied while the guest runs; when it is shut down, only what has changed since.
//!
//! The copy is a spool, as of a stream, in the folder `NAME.copy` beside the result, with a [`State`] that tells what it is a copy of. What
//! has changed is put onto it from the start each time: part of a difference does no harm, since all that it changed is part of the next.

mod files;
mod state;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imgcore::ImageMut;

use crate::convert::input_request;
use crate::input::{self, xenserver};
use crate::options::{Host, Request};
use crate::output::names;
use crate::report::Clock;
use crate::source::Source;
use crate::stream::{self, Place, Spool};
use crate::{Error, Result};
use state::{Base, State};

/// What is done of a conversion in two phases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The disks are copied, or what changed since they were.
    Copy,
    /// What changed is copied, and the guest is converted.
    Finish,
    /// The copy is removed, and the snapshot that was kept for it.
    Forget,
}

/// What the first phase did.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Copied {
    /// Where the copy is.
    pub folder: PathBuf,
    /// Only what changed since an earlier copy was copied.
    pub again: bool,
    /// What the user should look at.
    pub warnings: Vec<String>,
}

/// A whole copy that waits to be finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Bytes of its disks but the largest, which the result's largest is made of.
    pub others: u64,
}

/// What was copied of the guest of this name into this folder, where that came to its end.
pub fn kept(out: &Path, name: &str) -> Result<Option<Kept>> {
    let folder = place(out, name);
    let state = State::read(&folder)?.filter(|state| is_there(state, &folder));
    Ok(state.map(|state| {
        let sizes = state.sizes();
        let all = sizes.iter().fold(0_u64, |sum, size| sum.saturating_add(*size));
        Kept { others: all - sizes.iter().max().unwrap_or(&0) }
    }))
}

/// The copy of a guest, whether it is there or not, and whole or not.
pub fn place(out: &Path, name: &str) -> PathBuf {
    out.join(format!("{name}.copy"))
}

/// A copy that this process works on.
pub(crate) struct Copy {
    folder: PathBuf,
    state: State,
    /// Holds the lock until it is closed.
    _lock: File,
}

/// Copies the disks, or puts onto an earlier copy what changed since.
pub fn copy(request: &Request, host: &Host<'_>) -> Result<Copied> {
    let mut clock = Clock::new(host.events);
    let folder = folder(request, host)?;
    if !request.force
        && let Some(mut copy) = Copy::open(&folder)?
    {
        let warnings = copy.update(request, host, &mut clock, true)?.warnings;
        return Ok(Copied { folder, again: true, warnings });
    }
    std::fs::create_dir_all(&request.out).map_err(|e| failed(&request.out, "create", e))?;
    let _lock = state::lock(&folder)?;
    let input = input_request(request, host);
    if let Some(Base::Xenserver(old)) = State::read(&folder)?.map(|s| s.base) {
        // Of a copy that is not whole, or not wanted any more.
        xenserver::forget(&input, &old)?;
    }
    state::empty(&folder)?;
    let unfinished = Unfinished(Some(&folder));
    let warnings = if is_server(request) {
        let (opened, begun) = clock.stage("Taking a snapshot", || xenserver::begin(&input))?;
        let source = opened.source;
        // Whoever comes after a crash shall know of the snapshot.
        State::new(&source, Base::Xenserver(begun.base.clone()), false).write(&folder)?;
        let stream = opened.stream.ok_or_else(|| Error::Invalid(format!("{}: no stream came", source.name)))?;
        clock.stage("Copying the disks", || stream::receive(stream, &source, &Place::Folder(&folder), host))?;
        State::new(&source, Base::Xenserver(begun.keep()), true).write(&folder)?;
        source.warnings
    } else {
        let opened = clock.stage("Reading the source", || input::read(&request.input, &input))?;
        let source = opened.source;
        if opened.stream.is_some() {
            return Err(Error::Invalid(format!(
                "{}: an export does not change any more: convert it in one phase",
                request.guest.display()
            )));
        }
        // As they are before they are read: what is written meanwhile makes them others.
        let base = Base::Files(files::identify(&source.disks));
        clock.stage("Copying the disks", || stream::copy(&source, &folder, host))?;
        State::new(&source, base, true).write(&folder)?;
        source.warnings
    };
    unfinished.keep();
    Ok(Copied { folder, again: false, warnings })
}

/// Removes a copy, and the snapshot that was kept for it.
pub fn forget(request: &Request, host: &Host<'_>) -> Result<PathBuf> {
    let folder = folder(request, host)?;
    if !folder.exists() {
        return Err(Error::Invalid(format!("{}: no copy is there", folder.display())));
    }
    let _lock = state::lock(&folder)?;
    if let Some(Base::Xenserver(base)) = State::read(&folder)?.map(|state| state.base) {
        xenserver::forget(&input_request(request, host), &base)?;
    }
    state::remove(&folder)?;
    Ok(folder)
}

/// Whether the source is a server that tells itself what has changed.
fn is_server(request: &Request) -> bool {
    request.input == xenserver::INPUT.mode || (request.input == "auto" && input::remote::is_url(&request.guest))
}

/// Where the copy of the guest is.
fn folder(request: &Request, host: &Host<'_>) -> Result<PathBuf> {
    let input = input_request(request, host);
    let name = match &request.name {
        Some(name) => names::chosen(name)?,
        None if is_server(request) => names::safe(&xenserver::name(&input)?),
        None => names::safe(&input::read(&request.input, &input)?.source.name),
    };
    Ok(place(&request.out, &name))
}

/// Whether a state is that of a copy which can be finished.
fn is_there(state: &State, folder: &Path) -> bool {
    state.whole && folder.join(stream::FILE).exists()
}

impl Copy {
    /// The copy that the request wants to be finished.
    pub fn wanted(request: &Request, host: &Host<'_>) -> Result<Option<Self>> {
        if request.phase != Some(Phase::Finish) {
            return Ok(None);
        }
        let folder = folder(request, host)?;
        let copy = Copy::open(&folder)?;
        copy.ok_or_else(|| Error::Invalid(format!("{}: no whole copy is there: '--phase copy' makes one", folder.display()))).map(Some)
    }

    fn open(folder: &Path) -> Result<Option<Self>> {
        if !State::read(folder)?.is_some_and(|state| is_there(&state, folder)) {
            return Ok(None);
        }
        let lock = state::lock(folder)?;
        // What it was before it was locked does not count.
        Ok(State::read(folder)?.filter(|state| is_there(state, folder)).map(|state| Copy { folder: folder.to_owned(), state, _lock: lock }))
    }

    /// Puts what has changed onto the copy, and gives the guest as it is now, with its disks in the copy's order and without content.
    /// With `again` it may go on running, for there will be another update.
    pub fn update(&mut self, request: &Request, host: &Host<'_>, clock: &mut Clock<'_>, again: bool) -> Result<Source> {
        let input = input_request(request, host);
        let mut source = match self.state.base.clone() {
            Base::Xenserver(base) => {
                let mut differences = clock.stage("Asking what has changed", || xenserver::differences(&input, &base, again))?;
                self.fit(&mut differences.source)?;
                clock.stage("Copying what has changed", || {
                    self.each(host, |index, target| {
                        let device = self.state.disks.get(index).map_or("", |d| &d.target);
                        differences.apply(device, target.as_ref(), host.progress).map(|_| ())
                    })
                })?;
                if let Some(begun) = differences.begun.take() {
                    // From here on the old snapshot is not needed, and what comes next differs from the new one.
                    self.state.base = Base::Xenserver(begun.keep());
                    self.state.write(&self.folder)?;
                    xenserver::forget(&input, &base)?;
                }
                differences.source
            }
            Base::Files(copied) => {
                let mut source = clock.stage("Reading the source", || input::read(&request.input, &input))?.source;
                self.fit(&mut source)?;
                let now = files::identify(&source.disks);
                // Part of this difference on the copy would be none of another one's: whoever comes after a crash compares all.
                self.state.base = Base::Files(vec![Default::default(); now.len()]);
                self.state.write(&self.folder)?;
                clock.stage("Copying what has changed", || {
                    self.each(host, |index, target| {
                        let image = source.disks.get(index).and_then(|d| d.image.as_ref());
                        match (image, copied.get(index)) {
                            (Some(image), Some(copied)) => files::update(image, copied, target, host.progress),
                            _ => Err(Error::Invalid(format!("{}: disk {index} cannot be read", source.name))),
                        }
                    })
                })?;
                self.state.base = Base::Files(now);
                self.state.write(&self.folder)?;
                source
            }
        };
        source.disks.iter_mut().for_each(|disk| disk.image = None);
        Ok(source)
    }

    /// Gives the guest its copied disks. What is converted may take the copy's file for its own with `may_take`.
    pub fn attach(&self, source: &mut Source, host: &Host<'_>, may_take: bool) -> Result<Spool> {
        let mut spool = Spool::open(&self.folder, &self.state.sizes(), host)?;
        spool.may_take = may_take;
        spool.attach(source)?;
        Ok(spool)
    }

    fn done(self, request: &Request, host: &Host<'_>) {
        let forgotten = match &self.state.base {
            Base::Xenserver(base) => xenserver::forget(&input_request(request, host), base),
            Base::Files(_) => Ok(()),
        };
        if let Err(e) = forgotten.and_then(|()| state::remove(&self.folder)) {
            host.events.warning(&format!("the guest is converted, but something of its copy is left: {e}; '--phase forget' removes it"));
        }
    }

    /// Does something with each copied disk.
    fn each(&self, host: &Host<'_>, mut work: impl FnMut(usize, &Arc<dyn ImageMut>) -> Result<()>) -> Result<()> {
        let spool = Spool::open(&self.folder, &self.state.sizes(), host)?;
        for (index, size) in self.state.sizes().into_iter().enumerate() {
            let target: Arc<dyn ImageMut> = Arc::new(spool.disk(index, size)?);
            work(index, &target)?;
        }
        spool.flush()
    }

    /// Sees to it that the source has the disks that were copied, in their order.
    fn fit(&self, source: &mut Source) -> Result<()> {
        let place = |target: &str| self.state.disks.iter().position(|d| d.target == target);
        source.disks.sort_by_key(|disk| place(&disk.target));
        let now: Vec<_> = source.disks.iter().map(|d| (d.target.as_str(), d.size)).collect();
        let then: Vec<_> = self.state.disks.iter().map(|d| (d.target.as_str(), d.size)).collect();
        if now == then {
            return Ok(());
        }
        let list =
            |disks: &[(&str, u64)]| disks.iter().map(|(target, size)| format!("{target} of {size} bytes")).collect::<Vec<_>>().join(", ");
        Err(Error::Invalid(format!(
            "{}: it has other disks than the copy in {}: {} now, {} then: begin anew with --phase copy --force",
            source.name,
            self.folder.display(),
            list(&now),
            list(&then)
        )))
    }
}

/// The conversion is whole: neither the copy nor a snapshot is needed any more, but after a rehearsal.
pub(crate) fn done(copy: Option<Copy>, request: &Request, host: &Host<'_>) {
    if let Some(copy) = copy.filter(|_| !request.discard) {
        copy.done(request, host);
    }
}

/// A copy that is being made, which is removed unless it becomes whole.
struct Unfinished<'a>(Option<&'a Path>);

impl Unfinished<'_> {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some(folder) = self.0 {
            let _ = state::remove(folder);
        }
    }
}

fn failed(path: &Path, action: &'static str, source: std::io::Error) -> Error {
    Error::Io { file: path.display().to_string(), action, source }
}
