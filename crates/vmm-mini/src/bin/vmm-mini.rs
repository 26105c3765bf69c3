//! Runs a machine of vmm-mini's by itself, for looking into it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use imgcore::{Formats, LocalGate, OpenOptions};
use vmm_mini::virtio::VirtioDevice;
use vmm_mini::virtio::blk::Block;
use vmm_mini::{Config, Machine};

/// Starts a kernel on KVM; its serial port is this program's output. Ends well when the guest switches itself off.
#[derive(Parser)]
#[command(name = "vmm-mini", version)]
struct Arguments {
    /// The kernel: an ELF file or a bzImage, with CONFIG_PVH
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// The archive of its first files
    #[arg(long, value_name = "FILE")]
    initramfs: PathBuf,
    /// What the kernel is told besides what the machine demands
    #[arg(long, value_name = "TEXT", default_value = "")]
    append: String,
    /// The guest's memory
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    memory: u64,
    /// A disk, in any format; with ",ro" behind it one that the guest cannot write
    #[arg(long = "disk", value_name = "FILE[,ro]")]
    disks: Vec<String>,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            eprintln!("vmm-mini: {what}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<(), String> {
    let open = |path: &Path| File::open(path).map_err(|e| format!("{}: {e}", path.display()));
    let config = Config {
        kernel: open(&arguments.kernel)?,
        initramfs: open(&arguments.initramfs)?,
        command_line: arguments.append,
        memory_mib: arguments.memory,
        devices: arguments.disks.iter().map(|disk| open_disk(disk)).collect::<Result<_, _>>()?,
        serial: Box::new(std::io::stdout()),
    };
    let mut machine = Machine::new(config).map_err(|e| e.to_string())?;
    machine.run().map(drop).map_err(|e| e.to_string())
}

fn open_disk(named: &str) -> Result<Box<dyn VirtioDevice>, String> {
    let (formats, options) = (Formats::new(), OpenOptions::new(&LocalGate));
    let disk = match named.strip_suffix(",ro") {
        Some(file) => formats.open(file, &options).map(|image| Block::read_only(image, "")),
        None => formats.open_mut(named, &options).map(|image| Block::new(image, "")),
    };
    disk.map(|disk| Box::new(disk) as Box<dyn VirtioDevice>).map_err(|e| e.to_string())
}
