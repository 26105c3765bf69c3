//! `img bench`: how fast an image is read or written, with many requests at once.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::Instant;

use clap::{Args, FromArgMatches};
use imgcore::{Error, Image, ImageMut};

use super::Entry;
use super::args::{CacheMode, ImageArgs, host_words, numbers, only};
use crate::common::{self, Failure};

/// This command's line in the table.
pub(super) const ENTRY: Entry =
    Entry { name: "bench", arguments: Bench::augment_args, run: |matches| run(Bench::from_arg_matches(matches)?) };

/// More would only wait for one another.
const MAX_THREADS: u64 = 64;
const MAX: u64 = i32::MAX as u64;

/// Measure how fast an image is read or written.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  img bench -c 100000 -d 16 disk.qcow2\n  img bench -w -t none --flush-interval 64 -d 64 scratch.qcow2\n  \
                        img bench --random 7 -c 100000 -s 4k disk.qcow2"
)]
struct Bench {
    #[command(flatten)]
    image: ImageArgs,
    /// Cache mode of the image
    #[arg(short = 't', long, value_name = "CACHE")]
    cache: Option<String>,
    /// Number of requests
    #[arg(short, long, value_name = "COUNT", default_value = "75000")]
    count: String,
    /// Bytes of each request
    #[arg(short = 's', long, value_name = "SIZE", default_value = "4096")]
    buffer_size: String,
    /// Requests at once
    #[arg(short, long, value_name = "DEPTH", default_value = "64")]
    depth: String,
    /// Where the first request begins
    #[arg(short, long, value_name = "OFFSET", default_value = "0")]
    offset: String,
    /// From the start of a request to that of the next; the size of a request when not given
    #[arg(short = 'S', long, value_name = "SIZE")]
    step_size: Option<String>,
    /// Accepted as qemu-img does: threads, native or io_uring
    #[arg(short = 'i', long, value_name = "AIO")]
    aio: Option<String>,
    /// Accepted as qemu-img does: native AIO
    #[arg(short = 'n', long)]
    native: bool,
    /// Write instead of reading
    #[arg(short = 'w', long)]
    write: bool,
    /// The byte that is written
    #[arg(long, value_name = "BYTE", default_value = "0")]
    pattern: String,
    /// Flush after so many requests
    #[arg(long, value_name = "COUNT")]
    flush_interval: Option<String>,
    /// Go on with requests while flushing
    #[arg(long)]
    no_drain: bool,
    /// Requests begin at random multiples of their size; the same seed gives the same places
    #[arg(long, value_name = "SEED", num_args = 0..=1, default_missing_value = "0", require_equals = true)]
    random: Option<u64>,
    /// Requests begin at the offsets in this file, one a line, again and again
    #[arg(long, value_name = "FILE", conflicts_with = "random")]
    offsets: Option<PathBuf>,
    /// Accepted as qemu-img does, which prints all the same
    #[arg(short, long)]
    quiet: bool,
    /// Read the image even while it is in use
    #[arg(short = 'U', long)]
    force_share: bool,
    /// The image
    #[arg(value_name = "FILENAME")]
    files: Vec<OsString>,
}

fn run(args: Bench) -> Result<ExitCode, Failure> {
    args.image.check()?;
    CacheMode::parse(args.cache.as_deref(), "").map_err(|_| Failure::new("Invalid cache mode"))?;
    if let Some(aio) = args.aio.as_deref().filter(|aio| !["threads", "native", "io_uring"].contains(aio)) {
        return Err(Failure::new(format!("Invalid aio option: {aio}")));
    }
    let size = numbers::size("buffer size", &args.buffer_size, 1..=MAX)?;
    let step = args.step_size.as_deref().map_or(Ok(0), |text| numbers::size("step size", text, 0..=MAX))?;
    let count = numbers::count("request count", &args.count, 1..=MAX)?;
    let depth = numbers::count("queue depth", &args.depth, 1..=MAX)?;
    let offset = numbers::size("offset", &args.offset, 0..=numbers::MAX)?;
    let pattern = numbers::count("pattern byte", &args.pattern, 0..=255)? as u8;
    let flush = args.flush_interval.as_deref().map_or(Ok(0), |text| numbers::count("flush interval", text, 0..=MAX))?;
    let file = only("bench", &args.files)?;
    if !args.write && flush > 0 {
        return Err(Failure::new("--flush-interval is only available in write tests"));
    }
    if flush > 0 && flush < depth {
        return Err(Failure::new("Flush interval can't be smaller than depth"));
    }

    let formats = common::formats();
    let spec = args.image.image(file)?.force_share(args.force_share);
    let target = if args.write {
        let image = spec.open_mut(&formats)?;
        Target::Write(image, vec![pattern; size as usize])
    } else {
        Target::Read(spec.open(&formats)?)
    };
    let step = if step == 0 { size } else { step };
    let image_size = target.size();
    let places = match (args.random, &args.offsets) {
        (Some(seed), _) => Places::Random { seed, slots: (image_size / size).max(1), size },
        (None, Some(path)) => Places::List(read_offsets(path)?),
        (None, None) => Places::Steps { offset, step, wrap: image_size.max(1) },
    };
    let kind = if args.write { "write" } else { "read" };
    println!("Sending {count} {kind} requests, {size} bytes each, {depth} in parallel (starting at offset {offset}, step size {step})");
    if flush > 0 {
        println!("Sending flush every {flush} requests");
    }
    let threads = depth.min(MAX_THREADS).min(count) as usize;
    let bench = Run { target, places, size, count, flush, drain: !args.no_drain, next: AtomicU64::new(0), failure: Mutex::new(None) };
    let started = Instant::now();
    bench.all(threads).map_err(|e| Failure::new(format!("Failed request: {}", Failure::from(e).message())))?;
    if let Target::Write(image, _) = &bench.target {
        image.flush()?;
    }
    println!("Run completed in {:.3} seconds.", started.elapsed().as_secs_f64());
    Ok(ExitCode::SUCCESS)
}

fn read_offsets(path: &Path) -> Result<Vec<u64>, Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| Failure::new(format!("{}: {}", path.display(), host_words(&e))))?;
    let offsets: Vec<u64> =
        text.split_whitespace().map(|word| numbers::size("offset", word, 0..=numbers::MAX)).collect::<Result<_, _>>()?;
    if offsets.is_empty() { Err(Failure::new(format!("{}: holds no offsets", path.display()))) } else { Ok(offsets) }
}

/// Where requests begin.
enum Places {
    Steps { offset: u64, step: u64, wrap: u64 },
    Random { seed: u64, slots: u64, size: u64 },
    List(Vec<u64>),
}

impl Places {
    fn of(&self, number: u64) -> u64 {
        match self {
            // Only what comes after the first one wraps, as in qemu-img.
            Places::Steps { offset, .. } if number == 0 => *offset,
            Places::Steps { offset, step, wrap } => {
                ((u128::from(*offset) + u128::from(number) * u128::from(*step)) % u128::from(*wrap)) as u64
            }
            Places::Random { seed, slots, size } => mixed(seed.wrapping_add(number)) % slots * size,
            Places::List(offsets) => offsets[(number % offsets.len() as u64) as usize],
        }
    }
}

/// SplitMix64: numbers in any order, without shared state.
fn mixed(number: u64) -> u64 {
    let mut x = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

enum Target {
    Read(Arc<dyn Image>),
    /// With the bytes of a request.
    Write(Arc<dyn ImageMut>, Vec<u8>),
}

impl Target {
    fn size(&self) -> u64 {
        match self {
            Target::Read(image) => image.size(),
            Target::Write(image, _) => image.size(),
        }
    }
}

/// A run in progress.
struct Run {
    target: Target,
    places: Places,
    size: u64,
    count: u64,
    /// Requests between flushes; 0 for none.
    flush: u64,
    /// Whether no request is under way while flushing.
    drain: bool,
    next: AtomicU64,
    failure: Mutex<Option<Error>>,
}

impl Run {
    fn all(&self, threads: usize) -> Result<(), Error> {
        let barrier = Barrier::new(threads);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| self.thread(&barrier));
            }
        });
        self.failure.lock().unwrap_or_else(|e| e.into_inner()).take().map_or(Ok(()), Err)
    }

    fn thread(&self, barrier: &Barrier) {
        let mut buffer = if let Target::Read(_) = self.target { vec![0; self.size as usize] } else { Vec::new() };
        if self.flush == 0 || !self.drain {
            return self.until(self.count, &mut buffer);
        }
        let mut end = 0;
        while end < self.count {
            end = self.count.min(end + self.flush);
            self.until(end, &mut buffer);
            // All are done with this round; one of them flushes; then all go on.
            if barrier.wait().is_leader() {
                self.next.store(end, Ordering::Relaxed);
                if end.is_multiple_of(self.flush) {
                    self.keep(self.flush());
                }
            }
            barrier.wait();
        }
    }

    /// Takes requests below number `end`.
    fn until(&self, end: u64, buffer: &mut [u8]) {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= end {
                return;
            }
            let offset = self.places.of(number);
            let done = match &self.target {
                Target::Read(image) => image.read_at(buffer, offset),
                Target::Write(image, bytes) => image.write_at(bytes, offset),
            };
            self.keep(done);
            if self.flush > 0 && !self.drain && (number + 1).is_multiple_of(self.flush) {
                self.keep(self.flush());
            }
        }
    }

    fn flush(&self) -> Result<(), Error> {
        match &self.target {
            Target::Read(_) => Ok(()),
            Target::Write(image, _) => image.flush(),
        }
    }

    /// Keeps the first failure, after which no more requests are sent.
    fn keep(&self, result: Result<(), Error>) {
        if let Err(error) = result {
            self.next.store(self.count, Ordering::Relaxed);
            self.failure.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_follow_the_rules() {
        let steps = Places::Steps { offset: 4096, step: 4096, wrap: 12288 };
        assert_eq!((0..4).map(|n| steps.of(n)).collect::<Vec<_>>(), [4096, 8192, 0, 4096]);
        let random = Places::Random { seed: 1, slots: 1000, size: 4096 };
        let places: Vec<_> = (0..1000).map(|n| random.of(n)).collect();
        assert!(places.iter().all(|at| at % 4096 == 0 && *at < 4_096_000));
        assert!(places.iter().collect::<std::collections::HashSet<_>>().len() > 550, "spread over the disk");
        assert_eq!(Places::List(vec![5, 7]).of(3), 7);
    }
}
