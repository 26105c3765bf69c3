//! What a copy is of, on disk beside it: `state.json` in its folder, which is locked while somebody works there.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::failed;
use super::files::Identity;
use crate::batch::files;
use crate::input::xenserver;
use crate::output;
use crate::source::Source;
use crate::{Error, Result, stream};

const FILE: &str = "state.json";
const VERSION: u32 = 1;

/// What a copy is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    version: u32,
    /// The guest, for whoever reads the file.
    guest: String,
    /// The first copy came to its end.
    pub whole: bool,
    /// In the order in which they lie in the spool.
    pub disks: Vec<Disk>,
    pub base: Base,
}

/// One copied disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Disk {
    pub target: String,
    pub size: u64,
}

/// What tells what has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Base {
    /// A snapshot on a server.
    Xenserver(xenserver::Base),
    /// The files or devices that the disks were, in the disks' order.
    Files(Vec<Identity>),
}

impl State {
    pub fn new(source: &Source, base: Base, whole: bool) -> Self {
        let disks = source.disks.iter().map(|d| Disk { target: d.target.clone(), size: d.size }).collect();
        State { version: VERSION, guest: source.origin.clone(), whole, disks, base }
    }

    pub fn sizes(&self) -> Vec<u64> {
        self.disks.iter().map(|d| d.size).collect()
    }

    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let file = folder.join(FILE);
        let Some(bytes) = files::read(&file)? else { return Ok(None) };
        let state: State = serde_json::from_slice(&bytes)
            .map_err(|e| Error::Invalid(format!("{}: is damaged ({e}): remove it, and begin anew", file.display())))?;
        if state.version != VERSION {
            return Err(Error::Invalid(format!(
                "{}: was written by another version of v2v: begin anew with --phase copy --force",
                file.display()
            )));
        }
        Ok(Some(state))
    }

    pub fn write(&self, folder: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::Invalid(format!("{}: {e}", folder.display())))?;
        files::write_whole(&folder.join(FILE), (text + "\n").as_bytes())
    }
}

/// Makes the folder, and holds it until the file is closed.
pub(super) fn lock(folder: &Path) -> Result<File> {
    // It may be a link to where there is room.
    output::folder::lock(&folder.canonicalize().unwrap_or_else(|_| folder.to_owned()))
        .map_err(|e| failed(folder, "create", e))?
        .ok_or_else(|| Error::Invalid(format!("{}: another v2v is at work on this copy: wait for it", folder.display())))
}

/// Removes what a copy consists of, the state first: a copy without it is none.
pub(super) fn empty(folder: &Path) -> Result<()> {
    for file in [FILE, stream::FILE] {
        match fs::remove_file(folder.join(file)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(&folder.join(file), "remove", e)),
            _ => {}
        }
    }
    Ok(())
}

/// Removes a copy.
pub(super) fn remove(folder: &Path) -> Result<()> {
    empty(folder)?;
    fs::remove_dir(folder).map_err(|e| failed(folder, "remove", e))
}
