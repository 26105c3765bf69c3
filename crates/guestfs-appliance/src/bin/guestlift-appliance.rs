//! Tries the appliance out and packs its agent; for people who build or package it, or whose appliance fails.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use guestfs::engine::{Disk, Session};
use guestfs_appliance::{Appliance, initramfs, locate};
use imgcore::raw::Raw;
use imgcore::storage::FileStorage;

const USAGE: &str = "usage: guestlift-appliance test [DISK]…    start it, with disks that are only read, and tell how long that took
       guestlift-appliance pack AGENT FILE  write an initramfs with this agent";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["test", disks @ ..] => test(disks),
        ["pack", agent, file] => pack(agent, file),
        _ => Err(USAGE.into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("guestlift-appliance: {e}");
            ExitCode::FAILURE
        }
    }
}

type Failed = Box<dyn std::error::Error>;

fn test(disks: &[&str]) -> Result<(), Failed> {
    let start = Instant::now();
    let appliance = Appliance { note: |why| println!("{why}"), ..Appliance::new() };
    let files = locate::files()?;
    println!("kernel     {}", files.kernel.display());
    println!("initramfs  {}", files.initramfs.display());
    println!("engine     {}", appliance.describe());
    let open = |path: &&str| -> Result<Disk, Failed> { Ok(Disk::ReadOnly(Arc::new(Raw::open(Arc::new(FileStorage::open(path)?))?))) };
    let mut session = appliance.boot(disks.iter().map(open).collect::<Result<_, _>>()?)?;
    println!("answered   after {:.3} s", start.elapsed().as_secs_f64());
    for (name, size) in session.devices()? {
        println!("{name}  {size} bytes");
    }
    Box::new(session).shutdown()?;
    println!("ended      after {:.3} s", start.elapsed().as_secs_f64());
    Ok(())
}

fn pack(agent: &str, file: &str) -> Result<(), Failed> {
    let content = std::fs::read(agent).map_err(|e| format!("{agent}: {e}"))?;
    let temporary = format!("{file}.new");
    std::fs::write(&temporary, initramfs::with_agent(&content)).map_err(|e| format!("{temporary}: {e}"))?;
    std::fs::rename(&temporary, file).map_err(|e| format!("{file}: {e}"))?;
    Ok(())
}
