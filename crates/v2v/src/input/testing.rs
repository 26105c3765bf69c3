//! Configurations and the files that they name, for tests.

use std::path::Path;

use imgcore::Formats;

use super::{Request, read};
use crate::Result;
use crate::source::Source;

/// A folder with files of 4096 zero bytes, removed at the end.
pub struct Folder(tempfile::TempDir);

impl Folder {
    /// Makes it.
    pub fn new(files: &[&str]) -> Self {
        let folder = Folder(tempfile::tempdir().unwrap());
        for file in files {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, [0; 4096]).unwrap();
        }
        folder
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

/// Writes a configuration, in which `DIR` is the folder, and reads it as the program does with `-i auto`.
pub fn read_in(folder: &Folder, name: &str, config: &str) -> Result<Source> {
    let path = folder.path().join(name);
    std::fs::write(&path, config.replace("DIR", folder.path().to_str().unwrap())).unwrap();
    let formats = Formats::new();
    read("auto", &Request::new(&path, &formats)).map(|opened| opened.source)
}
