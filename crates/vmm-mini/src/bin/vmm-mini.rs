//! Runs one machine of vmm-mini's. The appliance starts it as a process of its own and hands it sockets, so that it opens no file of
//! the user's; by hand it opens images itself.

use std::fs::File;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use imgcore::{Formats, LocalGate, OpenOptions, nbd};
use vmm_mini::virtio::VirtioDevice;
use vmm_mini::virtio::blk::{Block, FirstError};
use vmm_mini::virtio::console::Console;
use vmm_mini::virtio::rng::Rng;
use vmm_mini::{Config, Devices, Ending, Files, Machine, sandbox};

/// Starts a kernel on KVM; its serial port is this program's output. Ends well when the guest switches itself off.
#[derive(Parser)]
#[command(name = "vmm-mini", version)]
struct Arguments {
    /// The kernel: an ELF file or a bzImage, with CONFIG_PVH
    #[arg(long, value_name = "FILE", required_unless_present = "restore")]
    kernel: Option<PathBuf>,
    /// The archive of its first files
    #[arg(long, value_name = "FILE", required_unless_present = "restore")]
    initramfs: Option<PathBuf>,
    /// What the kernel is told besides what the machine demands
    #[arg(long, value_name = "TEXT", default_value = "")]
    append: String,
    /// The guest's memory
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    memory: u64,
    /// A disk, in any format; with ",ro" behind it one that the guest cannot write
    #[arg(long = "disk", value_name = "FILE[,ro]")]
    disks: Vec<String>,
    /// A disk whose NBD server is at the other end of this socket
    #[arg(long = "disk-fd", value_name = "FD", conflicts_with = "disks")]
    disk_fds: Vec<RawFd>,
    /// The other end of the agent's port: a socket
    #[arg(long, value_name = "FD")]
    port_fd: Option<RawFd>,
    /// The same, by the name of a listening socket
    #[arg(long, value_name = "SOCKET", conflicts_with = "port_fd")]
    port: Option<PathBuf>,
    /// Places for devices, which are more if it has more; a saved machine continues with as many
    #[arg(long, value_name = "N", default_value_t = 9)]
    places: usize,
    /// On SIGUSR1, saves the machine to the files "memory" and "state" in this folder, and ends
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
    /// Continues a machine that was saved
    #[arg(long, value_name = "DIR", conflicts_with_all = ["save", "kernel", "initramfs"])]
    restore: Option<PathBuf>,
    /// Say what the sandbox is made of
    #[arg(short, long)]
    verbose: bool,
}

type Result<T> = std::result::Result<T, String>;

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            eprintln!("vmm-mini: {what}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let mut errors = Vec::new();
    let devices = Devices { places: places(&arguments, &mut errors)?, serial: Box::new(io::stdout()) };
    let mut machine = match (&arguments.restore, &arguments.kernel, &arguments.initramfs) {
        (Some(folder), ..) => Machine::restore(saved(folder, |file| File::open(file))?, devices),
        (None, Some(kernel), Some(initramfs)) => Machine::new(Config {
            kernel: open(kernel)?,
            initramfs: open(initramfs)?,
            command_line: arguments.append,
            memory_mib: arguments.memory,
            devices,
        }),
        _ => return Err("it needs a kernel and an initramfs".into()),
    }
    .map_err(|e| e.to_string())?;
    let Some(folder) = arguments.save else {
        let disks = if arguments.disks.is_empty() { sandbox::Disks::Served } else { sandbox::Disks::Files };
        let landlocked = sandbox::enter(disks).map_err(|e| e.to_string())?;
        if arguments.verbose {
            let walls = if landlocked { "landlock and seccomp" } else { "seccomp alone: this host's kernel has no landlock" };
            eprintln!("vmm-mini: locked in by {walls}");
        }
        let ended = machine.run().map(drop).map_err(|e| e.to_string());
        // The guest knows of them only that there were some.
        errors.iter().filter_map(|error| error.get()).for_each(|error| eprintln!("vmm-mini: {error}"));
        return ended;
    };
    // Outside of the sandbox, whose walls keep from saving. A guest that is saved as a template has met nobody yet.
    let files = saved(&folder, |file| File::create_new(file))?;
    machine.pause_by_signal().map_err(|e| e.to_string())?;
    match machine.run().map_err(|e| e.to_string())? {
        Ending::Paused => machine.save(&files).map_err(|e| e.to_string()),
        Ending::PowerOff => Err("the guest ended before it was saved".into()),
    }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| format!("{}: {e}", path.display()))
}

fn saved(folder: &Path, open: impl Fn(&Path) -> io::Result<File>) -> Result<Files> {
    let open = |name| open(&folder.join(name)).map_err(|e| format!("{}: {e}", folder.join(name).display()));
    Ok(Files { memory: open("memory")?, state: open("state")? })
}

/// The agent's port, the disks, empty places, and a source of entropy in the last. What goes wrong with the disks will be in `errors`.
fn places(arguments: &Arguments, errors: &mut Vec<FirstError>) -> Result<Vec<Option<Box<dyn VirtioDevice>>>> {
    let port = match (&arguments.port, arguments.port_fd) {
        (Some(socket), _) => Some(UnixStream::connect(socket).map_err(|e| format!("{}: {e}", socket.display()))?),
        (None, Some(number)) => Some(inherited(number)?.into()),
        (None, None) => None,
    };
    let mut disks = arguments.disks.iter().map(|disk| open_disk(disk)).collect::<Result<Vec<_>>>()?;
    for &number in &arguments.disk_fds {
        let client = nbd::Client::new(inherited(number)?, "", "disk").map_err(|e| e.to_string())?;
        disks.push(Block::new(std::sync::Arc::new(client), ""));
    }
    let mut places: Vec<Option<Box<dyn VirtioDevice>>> = vec![port.map(|port| Box::new(Console::new(port)) as _)];
    for disk in disks {
        errors.push(disk.first_error());
        places.push(Some(Box::new(disk)));
    }
    places.resize_with((places.len() + 1).max(arguments.places) - 1, || None);
    places.push(Some(Box::new(Rng::new())));
    Ok(places)
}

fn inherited(number: RawFd) -> Result<OwnedFd> {
    vmm_mini::inherited(number).map_err(|e| format!("descriptor {number}: {e}"))
}

fn open_disk(named: &str) -> Result<Block> {
    let (formats, options) = (Formats::new(), OpenOptions::new(&LocalGate));
    let disk = match named.strip_suffix(",ro") {
        Some(file) => formats.open(file, &options).map(|image| Block::read_only(image, "")),
        None => formats.open_mut(named, &options).map(|image| Block::new(image, "")),
    };
    disk.map_err(|e| e.to_string())
}
