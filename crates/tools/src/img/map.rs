//! `img map`: where each part of an image lies.

use std::ffi::OsString;
use std::io::{BufWriter, StdoutLock, Write, stdout};
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, FromArgMatches};
use imgcore::storage::NewFile;
use imgcore::{Extent, ExtentKind, Image, Storage};

mod picture;
mod svg;
mod terminal;

use self::picture::Picture;
use super::Entry;
use super::args::{ImageArgs, Output, numbers, only};
use crate::common::{self, Failure};

/// This command's line in the table.
pub(super) const ENTRY: Entry = Entry { name: "map", arguments: Map::augment_args, run: |matches| run(Map::from_arg_matches(matches)?) };

/// Show where the parts of an image lie, in it and in the images below.
#[derive(Args)]
#[command(after_help = "Examples:\n  img map disk.qcow2\n  img map --output=json --start-offset 1G --max-length 64M disk.qcow2\n  \
                        img map --picture disk.svg disk.qcow2\n  img map --picture - disk.qcow2")]
struct Map {
    #[command(flatten)]
    image: ImageArgs,
    /// How to print
    #[arg(long, value_enum, default_value_t = Output::Human)]
    output: Output,
    /// Begin here
    #[arg(short, long, value_name = "OFFSET", default_value = "0")]
    start_offset: String,
    /// Show no more than so many bytes
    #[arg(short = 'l', long, value_name = "LENGTH")]
    max_length: Option<String>,
    /// Read the image even while it is in use
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Draw the map instead: into this SVG file, or on the terminal for '-'
    #[arg(long, value_name = "FILE", conflicts_with = "output")]
    picture: Option<PathBuf>,
    /// The image
    #[arg(value_name = "FILENAME")]
    files: Vec<OsString>,
}

fn run(args: Map) -> Result<ExitCode, Failure> {
    let start = numbers::size("start offset", &args.start_offset, 0..=numbers::MAX)?;
    let length = args.max_length.as_deref().map_or(Ok(numbers::MAX), |text| numbers::size("max length", text, 0..=numbers::MAX))?;
    let image = args.image.image(only("map", &args.files)?)?.force_share(args.force_share).in_order().open(&common::formats())?;
    let end = start.saturating_add(length).min(image.size());
    if let Some(target) = &args.picture {
        draw(&*image, start.min(end)..end, target)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut printer = Printer { out: BufWriter::new(stdout().lock()), output: args.output, first: true };
    printer.map(&*image, start, end)?;
    Ok(ExitCode::SUCCESS)
}

fn draw(image: &dyn Image, range: Range<u64>, target: &Path) -> Result<(), Failure> {
    let title = image.info().file;
    if target == Path::new("-") {
        let abilities = terminal::Abilities::found();
        let picture = Picture::of(image, range, abilities.columns(), terminal::ROWS)?;
        let mut out = BufWriter::new(stdout().lock());
        terminal::draw(&picture, &title, abilities, &mut out)?;
        return Ok(out.flush()?);
    }
    let drawing = svg::draw(&Picture::of(image, range, svg::COLUMNS, svg::ROWS)?, &title)?;
    let file = NewFile::create(target)?;
    file.storage().write_at(drawing.as_bytes(), 0)?;
    Ok(file.commit()?)
}

fn joins(before: &Extent, next: &Extent) -> bool {
    before.kind == next.kind
        && before.depth == next.depth
        && before.file == next.file
        && before.host_offset.map(|offset| offset + before.len) == next.host_offset
}

struct Printer {
    out: BufWriter<StdoutLock<'static>>,
    output: Output,
    first: bool,
}

impl Printer {
    fn map(&mut self, image: &dyn Image, start: u64, end: u64) -> Result<(), Failure> {
        match self.output {
            Output::Human => writeln!(self.out, "{:<16}{:<16}{:<16}File", "Offset", "Length", "Mapped to")?,
            Output::Json => write!(self.out, "[")?,
        }
        let mut pending: Option<Extent> = None;
        let mut printed = Ok(());
        if start < end {
            image.extents(start..end, &mut |extent| {
                match &mut pending {
                    Some(before) if joins(before, &extent) => before.len += extent.len,
                    _ => {
                        if let Some(done) = pending.replace(extent) {
                            printed = self.print(&done);
                        }
                    }
                }
                if printed.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
        }
        printed?;
        match (pending, self.output) {
            (Some(last), _) => self.print(&last)?,
            // qemu-img has an entry without length for nothing.
            (None, Output::Json) => self.entry(&[start, 0, 0], [false; 4], None)?,
            (None, Output::Human) => {}
        }
        if self.output == Output::Json {
            writeln!(self.out, "]")?;
        }
        Ok(self.out.flush()?)
    }

    fn print(&mut self, extent: &Extent) -> Result<(), Failure> {
        let Extent { start, len, kind, depth, host_offset, file } = extent;
        match (self.output, host_offset, file) {
            (Output::Json, offset, _) => {
                let (zero, compressed) = (kind.reads_zero(), *kind == ExtentKind::Compressed);
                let data = !zero || *kind == ExtentKind::Hole;
                let present = *kind != ExtentKind::Unallocated;
                self.entry(&[*start, *len, u64::from(*depth)], [present, zero, data, compressed], *offset)?;
            }
            (Output::Human, Some(offset), Some(file)) if *kind == ExtentKind::Data => {
                writeln!(self.out, "{:<16}{:<16}{:<16}{file}", hex(*start), hex(*len), hex(*offset))?;
            }
            (Output::Human, None, _) if !kind.reads_zero() => {
                self.out.flush()?;
                let what = "File contains external, encrypted or compressed clusters.";
                return Err(Failure::new(what).hint("'--output=json' shows them all"));
            }
            (Output::Human, ..) => {}
        }
        Ok(())
    }

    fn entry(&mut self, [start, len, depth]: &[u64; 3], flags: [bool; 4], offset: Option<u64>) -> std::io::Result<()> {
        let [present, zero, data, compressed] = flags;
        if !std::mem::take(&mut self.first) {
            writeln!(self.out, ",")?;
        }
        let offset = offset.map_or(String::new(), |offset| format!(", \"offset\": {offset}"));
        write!(
            self.out,
            "{{ \"start\": {start}, \"length\": {len}, \"depth\": {depth}, \"present\": {present}, \"zero\": {zero}, \"data\": {data}, \
             \"compressed\": {compressed}{offset}}}"
        )
    }
}

/// As C's `%#x`, which gives zero no prefix.
fn hex(number: u64) -> String {
    if number == 0 { "0".into() } else { format!("{number:#x}") }
}
