//! `img serve`: an image as an NBD export.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;

use clap::{Args, FromArgMatches};
use imgcore::nbd::{self, Address, Content, DirtyBitmap, Export};
use imgcore::{ImageMut, LocalGate, OpenOptions, Overlay};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::Entry;
use crate::common::{self, Failure};

/// This command's line in the table.
pub(super) const ENTRY: Entry =
    Entry { name: "serve", arguments: Serve::augment_args, run: |matches| run(Serve::from_arg_matches(matches)?) };

/// The port that is NBD's own.
const PORT: u16 = 10809;
/// Set for the process that --fork leaves in the background.
const BACKGROUND: &str = "GUESTLIFT_SERVE_IN_BACKGROUND";

/// Serve an image to NBD clients: QEMU, nbdcopy, nbd-client. Whoever reaches the socket may use the image; there is no TLS.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  img serve --socket /tmp/disk.sock disk.qcow2\n  img serve --writable --persistent --port 10809 disk.vhd\n  \
                        img serve --fork --pid-file serve.pid --socket s export.xva#Ref:10\n  img serve --snapshot before-update --socket s disk.qcow2\n\n\
                        Then, for instance: qemu-img convert -f raw -O qcow2 'nbd+unix:///?socket=/tmp/disk.sock' copy.qcow2"
)]
struct Serve {
    /// Format of the image; found out when not given
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,
    /// Listen on this unix socket
    #[arg(short = 'k', long, value_name = "PATH", conflicts_with_all = ["port", "bind"])]
    socket: Option<PathBuf>,
    /// Listen on this TCP port; 0 takes a free one
    #[arg(short, long, value_name = "PORT", default_value_t = PORT)]
    port: u16,
    /// Listen on this address of the host; everybody on the network can reach 0.0.0.0
    #[arg(short, long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    bind: String,
    /// Name of the export
    #[arg(short = 'x', long, visible_alias = "export-name", value_name = "NAME", default_value = "")]
    name: String,
    /// What the export is, for people
    #[arg(short = 'D', long, value_name = "TEXT", default_value = "")]
    description: String,
    /// Serve the image read-only, which is the default
    #[arg(short, long, conflicts_with_all = ["writable", "overlay"])]
    read_only: bool,
    /// Let clients write to the image
    #[arg(short, long, conflicts_with = "overlay")]
    writable: bool,
    /// Let clients write, but to a temporary layer in the folder for temporary files; it is gone afterwards
    #[arg(long)]
    overlay: bool,
    /// Serve this internal snapshot, by id or name
    #[arg(short, long, visible_short_alias = 'l', visible_alias = "load-snapshot", value_name = "SNAPSHOT", conflicts_with = "writable")]
    snapshot: Option<String>,
    /// Tell clients of this persistent bitmap only (may be repeated); else they can ask for all of an image that is served read-only
    #[arg(short = 'B', long, value_name = "NAME", conflicts_with_all = ["writable", "overlay", "snapshot"])]
    bitmap: Vec<String>,
    /// Go on after the last client has left
    #[arg(short = 't', long)]
    persistent: bool,
    /// Read the image even while another program writes it
    #[arg(short = 'U', long, conflicts_with = "writable")]
    force_share: bool,
    /// Return when the server runs; it goes on in the background
    #[arg(long)]
    fork: bool,
    /// Write the server's process id to this file
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// The image; FILE#DISK for a disk of a container
    filename: PathBuf,
}

fn run(args: Serve) -> Result<ExitCode, Failure> {
    let background = std::env::var_os(BACKGROUND).is_some();
    if args.fork && !background {
        return run_in_background();
    }
    let (content, target) = match args.open()? {
        Opened::ReadOnly(content) => (content, None),
        Opened::Writable(image) => (Content::Writable(image.clone()), Some(image)),
    };
    let bitmaps = args.bitmaps(&content)?;
    let export = Export::new(args.name.as_str(), content).description(args.description.as_str()).bitmaps(bitmaps);
    // Signals are ours before there is anything that they must remove.
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    let server = nbd::serve(&args.address()?, vec![export])?;
    let _pid_file = args.pid_file.as_deref().map(PidFile::write).transpose()?;
    if let Some(address) = server.address() {
        println!("{}", uri(address, &args.name));
    }
    if background {
        detach()?;
    }
    let handle = signals.handle();
    std::thread::scope(|scope| {
        let server = &server;
        scope.spawn(move || signals.forever().for_each(|_| server.stop()));
        server.wait(args.persistent);
        handle.close();
    });
    let failure = server.first_error();
    drop(server);
    if let Some(image) = target {
        image.flush()?;
    }
    match failure {
        Some(what) => Err(Failure::new(format!("clients were told of a failure: {what}"))),
        None => Ok(ExitCode::SUCCESS),
    }
}

enum Opened {
    ReadOnly(Content),
    /// To be flushed at the end.
    Writable(Arc<dyn ImageMut>),
}

impl Serve {
    fn open(&self) -> Result<Opened, Failure> {
        let formats = common::formats();
        let options = OpenOptions::new(&LocalGate)
            .format(self.format.as_deref())
            .snapshot(self.snapshot.as_deref())
            .force_share(self.force_share)
            .exclusive();
        if self.writable {
            return Ok(Opened::Writable(formats.open_mut(&self.filename, &options)?));
        }
        let image = formats.open(&self.filename, &options)?;
        Ok(Opened::ReadOnly(match self.overlay {
            true => Content::Writable(Arc::new(Overlay::in_folder(image, std::env::temp_dir())?)),
            false => Content::ReadOnly(image),
        }))
    }

    /// The bitmaps that still tell the truth while the image is served.
    fn bitmaps(&self, content: &Content) -> Result<Vec<DirtyBitmap>, Failure> {
        let Content::ReadOnly(image) = content else { return Ok(Vec::new()) };
        let names = match &self.bitmap[..] {
            _ if self.snapshot.is_some() => Vec::new(),
            [] => image.info().bitmaps.into_iter().filter(|b| !b.in_use).map(|b| b.name).collect(),
            wanted => wanted.to_vec(),
        };
        names.into_iter().map(|name| Ok(DirtyBitmap { dirty: image.dirty_ranges(&name)?, name })).collect()
    }

    fn address(&self) -> Result<Address, Failure> {
        if let Some(path) = &self.socket {
            return Ok(Address::Unix(std::path::absolute(path)?));
        }
        let host = (self.bind.as_str(), self.port).to_socket_addrs().map_err(|e| Failure::new(format!("{}: {e}", self.bind)))?.next();
        host.map(Address::Tcp).ok_or_else(|| Failure::new(format!("{}: no such address", self.bind)))
    }
}

/// How clients name the export.
fn uri(address: &Address, name: &str) -> String {
    let encode = |text: &[u8]| -> String {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~/".contains(&b);
        text.iter().map(|b| if plain(*b) { char::from(*b).to_string() } else { format!("%{b:02X}") }).collect()
    };
    match address {
        Address::Unix(path) => format!("nbd+unix:///{}?socket={}", encode(name.as_bytes()), encode(path.as_os_str().as_encoded_bytes())),
        Address::Tcp(address) => format!("nbd://{address}/{}", encode(name.as_bytes())),
    }
}

/// Starts this program again with the same arguments as the server, and waits until it serves.
fn run_in_background() -> Result<ExitCode, Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(std::env::args_os().skip(1)).env(BACKGROUND, "1").stdin(Stdio::null()).stdout(Stdio::piped());
    let mut server = command.spawn()?;
    let mut line = String::new();
    if let Some(out) = server.stdout.take() {
        BufReader::new(out).read_line(&mut line)?;
    }
    if line.is_empty() {
        // It has said itself why.
        let status = server.wait()?;
        return Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)));
    }
    print!("{line}");
    Ok(ExitCode::SUCCESS)
}

/// Leaves the session and the standard streams of whoever started this process.
fn detach() -> Result<(), Failure> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::process::setsid().map_err(std::io::Error::from)?;
    for redirect in [rustix::stdio::dup2_stdin, rustix::stdio::dup2_stdout, rustix::stdio::dup2_stderr] {
        redirect(&null).map_err(std::io::Error::from)?;
    }
    Ok(())
}

/// A file with the process's id, removed when dropped.
struct PidFile(PathBuf);

impl PidFile {
    fn write(path: &Path) -> Result<Self, Failure> {
        std::fs::write(path, format!("{}\n", std::process::id()))
            .map_err(|e| Failure::new(format!("{}: cannot write the process id: {e}", path.display())))?;
        Ok(PidFile(std::path::absolute(path)?))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_are_what_clients_understand() {
        let unix = Address::Unix("/tmp/a b/s".into());
        assert_eq!(uri(&unix, ""), "nbd+unix:///?socket=/tmp/a%20b/s");
        assert_eq!(uri(&Address::Tcp("127.0.0.1:1".parse().unwrap()), "dïsk"), "nbd://127.0.0.1:1/d%C3%AFsk");
    }
}
