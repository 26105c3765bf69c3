//! systemd's journal: the entries of all files of a folder, in the order of time.

use std::cmp::Ordering;

use crate::{Error, FileType, GuestFs, Result};

mod file;
mod unpack;

use file::File;

/// Fields that are printed; the others are not read.
const WANTED: &[&str] = &["MESSAGE", "SYSLOG_IDENTIFIER", "_COMM", "_PID", "PRIORITY"];

/// One entry, with as many of its fields as it takes to print it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Microseconds since 1970, as the machine's clock told.
    pub realtime: u64,
    /// Microseconds since it was started.
    pub monotonic: u64,
    boot: [u8; 16],
    sequence: u64,
    /// Of its data: what systemd orders by when nothing else tells.
    hash: u64,
    fields: Vec<(&'static str, std::rc::Rc<[u8]>)>,
}

impl Entry {
    /// The first value of a field.
    pub fn field(&self, name: &str) -> Option<&[u8]> {
        self.fields.iter().find(|(n, _)| *n == name).map(|(_, value)| &**value)
    }
}

/// The journal below a folder such as `/var/log/journal`.
pub struct Journal<'a> {
    files: Vec<File<'a>>,
    /// Each file's next entry.
    heads: Vec<Option<Entry>>,
    /// Files that are damaged or of a form that is not read, and what is wrong with them.
    pub complaints: Vec<String>,
}

impl<'a> Journal<'a> {
    /// Opens all files of the folder and of those in it.
    ///
    /// # Errors
    /// When the folder itself cannot be read.
    pub fn open(fs: &'a dyn GuestFs, folder: &[u8]) -> Result<Self> {
        let mut journal = Journal { files: Vec::new(), heads: Vec::new(), complaints: Vec::new() };
        for entry in sorted(fs, folder)? {
            let path = [folder, b"/", &entry.0].concat();
            match entry.1 {
                FileType::Directory => {
                    for (name, _) in sorted(fs, &path)? {
                        journal.add(fs, &[&path[..], b"/", &name].concat());
                    }
                }
                _ => journal.add(fs, &path),
            }
        }
        Ok(journal)
    }

    /// Whether there is any file.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    fn add(&mut self, fs: &'a dyn GuestFs, path: &[u8]) {
        // What a crash left behind ends with a tilde.
        if !path.ends_with(b".journal") && !path.ends_with(b".journal~") {
            return;
        }
        match File::open(fs, path) {
            Ok(mut file) => {
                let head = file.next().unwrap_or_else(|e| self.complain(&e));
                self.heads.push(head);
                self.files.push(file);
            }
            Err(e) => drop(self.complain(&e)),
        }
    }

    /// A damaged file ends where the damage is.
    fn complain(&mut self, error: &Error) -> Option<Entry> {
        self.complaints.push(error.to_string());
        None
    }
}

fn sorted(fs: &dyn GuestFs, folder: &[u8]) -> Result<Vec<(Vec<u8>, FileType)>> {
    let mut names: Vec<(Vec<u8>, FileType)> = fs.read_dir(folder)?.into_iter().map(|e| (e.name, e.kind)).collect();
    names.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(names)
}

impl Iterator for Journal<'_> {
    type Item = Entry;

    /// The earliest entry of all files. What of them is damaged is told in [`complaints`](Journal::complaints).
    fn next(&mut self) -> Option<Entry> {
        let mut first: Option<usize> = None;
        for (index, head) in self.heads.iter().enumerate() {
            let Some(head) = head else { continue };
            let earlier = first.and_then(|f| Some((self.files.get(f)?, self.heads.get(f)?.as_ref()?)));
            let sooner = earlier.is_none_or(|(file, entry)| self.files.get(index).is_some_and(|own| order(own, head, file, entry).is_lt()));
            if sooner {
                first = Some(index);
            }
        }
        let first = first?;
        let next = match self.files.get_mut(first)?.next() {
            Ok(next) => next,
            Err(e) => self.complain(&e),
        };
        std::mem::replace(self.heads.get_mut(first)?, next)
    }
}

/// By number where one writer counted both, by the machine's own clock within a boot, else by the time of day.
fn order(a_file: &File<'_>, a: &Entry, b_file: &File<'_>, b: &Entry) -> Ordering {
    if a_file.writer == b_file.writer && a.sequence != b.sequence {
        a.sequence.cmp(&b.sequence)
    } else if a.boot == b.boot && a.monotonic != b.monotonic {
        a.monotonic.cmp(&b.monotonic)
    } else {
        (a.realtime, a.hash).cmp(&(b.realtime, b.hash))
    }
}
