//! The agent: the first and only program of the appliance. It takes requests from the host and carries them out.
//!
//! It trusts the host's intent but not its bytes, and a guest's files not at all.

mod devices;
mod exec;
mod failure;
pub(crate) mod link;
mod modules;
mod mounts;
mod pages;
mod relay;
mod sys;
mod terminal;
mod tree;
mod unpack;

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, reboot};
use rustix::time::{ClockId, Timespec, clock_settime};

use self::failure::{Result, because, other};
use self::link::{Exchange, Link};
use self::mounts::{Mounts, STUBS};
use self::pages::Pages;
use crate::protocol::{Failure, PORT_NAME, Place, Reply, Request, VERSION, WireTime};

/// Most bytes of a command's input.
const STDIN_LIMIT: usize = 64 << 20;
/// How long the agent waits for its port, and for the host on it.
const PORT_DEADLINE: Duration = Duration::from_secs(60);

/// What stands first in the PATH of commands in the guest. There are no modules here, so that loading one does
/// nothing; and no service of the guest is ever to start.
const STUB_PROGRAMS: [(&str, &str); 6] = [
    ("modprobe", "#!/bin/sh\nPATH=${PATH#*:}\nmodprobe \"$@\" || exit 0\n"),
    ("start-stop-daemon", "#!/bin/sh\nexit 0\n"),
    ("invoke-rc.d", "#!/bin/sh\nexit 0\n"),
    ("service", "#!/bin/sh\nexit 0\n"),
    ("initctl", "#!/bin/sh\nexit 0\n"),
    ("policy-rc.d", "#!/bin/sh\nexit 101\n"),
];

/// The agent's main function. It never returns while the appliance is up.
pub fn main(args: &[OsString]) {
    exec::become_command(args);
    modules::become_modprobe(args);
    if rustix::process::getpid() != rustix::process::Pid::INIT {
        eprintln!("guestlift-agent is the first program of the appliance; it does nothing elsewhere");
        std::process::exit(1);
    }
    if let Err(e) = serve() {
        eprintln!("agent: {e}");
    }
    rustix::fs::sync();
    // A restart is what ends the machine: QEMU runs with -no-reboot.
    let _ = reboot(RebootCommand::Restart);
}

fn serve() -> io::Result<()> {
    let none = MountFlags::empty();
    mount("devtmpfs", "/dev", "devtmpfs", none, c"mode=0755")?;
    mount("proc", "/proc", "proc", none, c"")?;
    mount("sysfs", "/sys", "sysfs", none, c"")?;
    modules::start().map_err(|failure| io::Error::other(format!("{failure:?}")))?;
    let port = open_port()?;
    let pages = Pages::new(port.try_clone()?)?;
    let first_wait = FirstWait { port: port.try_clone()?, until: Some(Instant::now() + PORT_DEADLINE) };
    let mut link = Link::new(Box::new(first_wait), Box::new(port), Some(pages));
    let mut state = State::default();
    while !state.over {
        link.exchange(|request, exchange| state.handle(request, exchange))?;
    }
    Ok(())
}

/// Opens the port to the host, as soon as the kernel has found it.
fn open_port() -> io::Result<File> {
    let until = Instant::now() + PORT_DEADLINE;
    loop {
        // The first port of the only adapter that is no console: QEMU keeps number 0 for a console, vmm-mini does not.
        for port in ["vport0p1", "vport0p0"] {
            let name = fs::read_to_string(format!("/sys/class/virtio-ports/{port}/name")).unwrap_or_default();
            if name.trim_end() == PORT_NAME {
                return OpenOptions::new().read(true).write(true).open(Path::new("/dev").join(port));
            }
        }
        if Instant::now() > until {
            return Err(io::Error::other("no port to the host"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A port reads as ended until the kernel has heard that the host is connected: the first read waits for that.
struct FirstWait {
    port: File,
    until: Option<Instant>,
}

impl Read for FirstWait {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let n = self.port.read(buf)?;
            match self.until {
                Some(until) if n == 0 && !buf.is_empty() && Instant::now() < until => std::thread::sleep(Duration::from_millis(1)),
                _ => {
                    self.until = None;
                    return Ok(n);
                }
            }
        }
    }
}

#[derive(Default)]
struct State {
    mounts: Mounts,
    prepared: bool,
    over: bool,
}

impl State {
    fn handle(&mut self, request: Request, exchange: &mut Exchange<'_>) -> Result<Reply> {
        let done = |()| Reply::Done;
        let tree = || self.mounts.tree();
        match request {
            Request::Hello { version, clock, seed } => hello(version, clock, &seed),
            Request::Mount { device, path, filesystem, options } => self.mounts.mount(&device, &path, &filesystem, &options).map(done),
            Request::UnmountAll => self.mounts.unmount_all().map(done),
            Request::Lstat { path } => tree()?.lstat(&path).map(Reply::Stat),
            Request::Stat { path } => tree()?.stat(&path).map(Reply::Stat),
            Request::ReadDir { path } => tree()?.read_dir(&path, exchange).map(done),
            Request::Readlink { path } => tree()?.readlink(&path).map(Reply::Link),
            Request::Read { path, offset, len } => tree()?.read(&path, offset, len, exchange).map(done),
            Request::NextData { path, offset } => tree()?.next_data(&path, offset).map(Reply::Range),
            Request::Xattrs { path } => tree()?.xattrs(&path, exchange).map(done),
            Request::Statfs { path } => tree()?.statfs(&path).map(Reply::Statfs),
            Request::Write { path, attributes } => tree()?.write(&path, attributes, exchange).map(done),
            Request::Mkdir { path, attributes } => tree()?.mkdir(&path, attributes).map(done),
            Request::Symlink { target, path } => tree()?.symlink(&target, &path).map(done),
            Request::Link { existing, path } => tree()?.link(&existing, &path).map(done),
            Request::Mknod { path, kind, rdev, attributes } => tree()?.mknod(&path, kind, rdev, attributes).map(done),
            Request::Rename { from, to } => tree()?.rename(&from, &to).map(done),
            Request::Remove { path } => tree()?.remove(&path).map(done),
            Request::SetAttributes { path, attributes } => tree()?.set_attributes(&path, attributes).map(done),
            Request::SetTimes { path, atime, mtime } => tree()?.set_times(&path, atime, mtime).map(done),
            Request::SetXattr { path, name, value } => tree()?.set_xattr(&path, &name, &value).map(done),
            Request::Unpack { path } => unpack::unpack(tree()?, &path, exchange).map(done),
            Request::Run { argv, env, place, timeout_ms } => {
                let stdin = exchange.all_data(STDIN_LIMIT)?;
                self.prepare()?;
                let entered = if place == Place::Guest { Some(self.mounts.enter()?) } else { None };
                let ran = exec::run(&argv, &env, stdin, place, Duration::from_millis(timeout_ms))?;
                drop(entered);
                ran.tell(exchange)
            }
            Request::RunRelayed { argv, env, timeout_ms } => {
                self.prepare()?;
                let entered = self.mounts.enter()?;
                let ran = relay::run(&argv, &env, Duration::from_millis(timeout_ms), exchange)?;
                drop(entered);
                ran.tell(exchange)
            }
            Request::Terminal { argv, env, rows, columns } => {
                self.prepare()?;
                let status = terminal::run(&argv, &env, (rows, columns), exchange);
                // Whoever sat there may have mounted and unmounted at will.
                self.mounts = Mounts::default();
                terminal::unmount_everything()?;
                Ok(Reply::Ran { status: status?, stdout: 0, stderr: 0, timed_out: false })
            }
            Request::Install { path, mode } => install(path, mode, exchange).map(done),
            Request::FindDisks { count } => devices::find_disks(count).map(done),
            Request::Devices => devices::list().map(Reply::Devices),
            Request::ReadDevice { device, offset, len } => devices::read(&device, offset, len, exchange).map(done),
            Request::WriteDevice { device, offset } => devices::write(&device, offset, exchange).map(done),
            Request::RereadPartitions { device } => devices::reread_partitions(&device).map(done),
            Request::Sync => self.mounts.sync().map(done),
            Request::PowerOff => {
                self.over = true;
                self.mounts.unmount_all().map(done)
            }
        }
    }

    /// What commands need of the appliance, made when the first one comes.
    fn prepare(&mut self) -> Result<()> {
        if self.prepared {
            return Ok(());
        }
        for dir in ["/dev/pts", "/dev/shm", STUBS, "/root", "/tmp", "/var/tmp", "/run", "/etc"] {
            fs::create_dir_all(dir)?;
        }
        fs::set_permissions("/tmp", fs::Permissions::from_mode(0o1777))?;
        for (name, target) in
            [("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1"), ("stderr", "/proc/self/fd/2")]
        {
            let _ = std::os::unix::fs::symlink(target, Path::new("/dev").join(name));
        }
        let _ = std::os::unix::fs::symlink("/proc/mounts", "/etc/mtab");
        for (name, script) in STUB_PROGRAMS {
            let path = Path::new(STUBS).join(name);
            fs::write(&path, script)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        self.prepared = true;
        Ok(())
    }
}

fn hello(version: u32, clock: WireTime, seed: &[u8]) -> Result<Reply> {
    if version == VERSION {
        let time = Timespec { tv_sec: clock.sec, tv_nsec: clock.nsec.into() };
        clock_settime(ClockId::Realtime, time).map_err(|e| because("setting the clock", e))?;
        let random = OpenOptions::new().write(true).open("/dev/urandom")?;
        sys::reseed(&random, seed).map_err(|e| because("seeding the random pool", e))?;
    }
    Ok(Reply::Hello { version: VERSION, kernel: rustix::system::uname().release().to_string_lossy().into_owned() })
}

/// Puts one of the host's programs or libraries into the appliance's root, under the path that it has there.
fn install(path: Vec<u8>, mode: u32, exchange: &mut Exchange<'_>) -> Result<()> {
    let path = String::from_utf8(path).map_err(|_| other("a path that is not text"))?;
    let path = Path::new(&path);
    let dir = path.parent().filter(|_| path.is_absolute()).ok_or(Failure::NotFound)?;
    fs::create_dir_all(dir)?;
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode & 0o777).open(path)?;
    while let Some(data) = exchange.next_data()? {
        file.write_all(data)?;
    }
    Ok(())
}
