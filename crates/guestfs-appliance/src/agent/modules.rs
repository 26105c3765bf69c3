//! Loads the modules of a distribution's kernel. Our own kernel has none, and then there is nothing to do.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::system::finit_module;

use super::failure::{Result, because};
use crate::distro_kernel::{DIR, INDEX, START, plain};

/// Loads the drivers, and makes the agent the program that the kernel calls for every other module.
pub fn start() -> Result<()> {
    if !Path::new("/").join(DIR).is_dir() {
        return Ok(());
    }
    fs::write("/proc/sys/kernel/modprobe", "/init").map_err(|e| because("becoming the kernel's modprobe", e))?;
    load(START)
}

/// When the kernel calls this program as its modprobe, `-q -- NAME`, it loads the module and ends.
pub fn become_modprobe(args: &[OsString]) {
    if let [_, quiet, end, name] = args
        && quiet == "-q"
        && end == "--"
    {
        let loaded = load(&plain(&name.to_string_lossy()));
        std::process::exit(i32::from(loaded.is_err()));
    }
}

/// The filesystems that there are modules for.
pub fn filesystems() -> Vec<String> {
    let index = index().unwrap_or_default();
    let names = index.lines().filter_map(|line| line.split(' ').next()?.strip_prefix("fs_"));
    names.map(str::to_string).collect()
}

fn index() -> io::Result<String> {
    fs::read_to_string(Path::new("/").join(DIR).join(INDEX))
}

/// Loads what the index has for a name. It is an error when nothing of that could be.
fn load(name: &str) -> Result<()> {
    let index = index()?;
    let mut outcome = Err(because(&format!("loading {name}"), Errno::NOENT));
    for line in index.lines() {
        let mut words = line.split(' ');
        if words.next() == Some(name) {
            // A driver of instructions that the processor lacks refuses: the next line has the plain one.
            let loaded = words.try_for_each(load_file);
            if outcome.is_err() {
                outcome = loaded;
            }
        }
    }
    outcome
}

fn load_file(module: &str) -> Result<()> {
    let file = File::open(Path::new("/").join(DIR).join(module))?;
    match finit_module(&file, c"", 0) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(because(&format!("loading the kernel's module {module}"), e)),
    }
}
