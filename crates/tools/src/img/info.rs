//! `img info`: what an image is.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::{Args, FromArgMatches};
use imgcore::formats::{DiskSet, Located};
use imgcore::{BitmapInfo, Formats, ImageInfo, PartInfo, Reference, SnapshotInfo, size};
use jiff::{Timestamp, tz::TimeZone};
use serde_json::{Map, Value, json};

use super::Entry;
use super::args::{ImageArgs, ImageSpec, Output, only};
use crate::common::{self, Failure, json};

/// This command's line in the table.
pub(super) const ENTRY: Entry = Entry { name: "info", arguments: Info::augment_args, run: |matches| run(Info::from_arg_matches(matches)?) };

const MAX_CHAIN: usize = 200;

/// Display information about an image, or the disks of a container such as an XVA.
#[derive(Args)]
#[command(after_help = "Examples:\n  img info disk.qcow2\n  img info --output=json --backing-chain top.qcow2\n  img info export.xva")]
struct Info {
    #[command(flatten)]
    image: ImageArgs,
    /// How to print
    #[arg(long, value_enum, default_value_t = Output::Human)]
    output: Output,
    /// Show the images below, too
    #[arg(short, long)]
    backing_chain: bool,
    /// Read the image even while another program writes it
    #[arg(short = 'U', long)]
    force_share: bool,
    /// The image, container, or disk of a container as FILE#DISK
    #[arg(value_name = "FILENAME")]
    files: Vec<OsString>,
}

fn run(args: Info) -> Result<ExitCode, Failure> {
    let formats = common::formats();
    let image = args.image.image(only("info", &args.files)?)?.force_share(args.force_share);
    if let Located::File(path) = formats.locate(&image.path)
        && image.format.is_none()
        && let Some(container) = formats.container(&path).map_err(|e| image.failure(&formats, e))?
    {
        show_container(&args, &path, container.name(), &*container.open(&path)?);
        return Ok(ExitCode::SUCCESS);
    }
    let chain = collect(&formats, image, args.backing_chain)?;
    match args.output {
        Output::Human => {
            let texts: Vec<String> = chain.iter().map(|(info, full)| human(info, full.as_deref())).collect();
            print!("{}", texts.join("\n"));
        }
        Output::Json if args.backing_chain => {
            json::print(&chain.iter().map(|(info, full)| as_json(info, full.as_deref())).collect::<Vec<_>>())
        }
        Output::Json => chain.iter().for_each(|(info, full)| json::print(&as_json(info, full.as_deref()))),
    }
    Ok(ExitCode::SUCCESS)
}

/// The image and, if asked, those below; each with the path of the image below it.
fn collect(formats: &Formats, first: ImageSpec, whole: bool) -> Result<Vec<(ImageInfo, Option<String>)>, Failure> {
    let mut chain = Vec::new();
    let mut seen = HashSet::new();
    let mut image = first;
    loop {
        let info = image.clone().without_backing().open(formats)?.info();
        let full = match &info.backing_file {
            Some(target) => Some(Reference { from: &info.file, target, role: "backing file" }.path()),
            None => None,
        };
        let format = info.backing_format.clone();
        let shown = full.as_ref().and_then(|path| path.as_ref().ok()).map(|p| p.display().to_string());
        chain.push((info, shown));
        let Some(next) = full.filter(|_| whole) else { return Ok(chain) };
        if !seen.insert(image.path.canonicalize().unwrap_or_else(|_| image.path.clone())) || chain.len() > MAX_CHAIN {
            return Err(Failure::new(format!("Backing file '{}' creates an infinite loop.", image.path.display())));
        }
        image = ImageSpec::file(next?, format).force_share(image.force_share);
    }
}

fn human(info: &ImageInfo, full: Option<&str>) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        out += &text;
        out.push('\n');
    };
    line(format!("image: {}", info.file));
    line(format!("file format: {}", info.format));
    line(format!("virtual size: {} ({} bytes)", size::human(info.virtual_size), info.virtual_size));
    let actual = info.actual_size.map_or("unavailable".into(), size::human);
    line(format!("disk size: {actual}"));
    if let Some(bytes) = info.cluster_size {
        line(format!("cluster_size: {bytes}"));
    }
    if info.dirty {
        line("cleanly shut down: no".into());
    }
    if let Some(backing) = &info.backing_file {
        let actual = full.filter(|full| full != backing).map_or(String::new(), |full| format!(" (actual path: {full})"));
        line(format!("backing file: {backing}{actual}"));
    }
    if let Some(format) = &info.backing_format {
        line(format!("backing file format: {format}"));
    }
    let snapshots = snapshot_list(info);
    if !snapshots.is_empty() {
        line(snapshots.trim_end_matches('\n').into());
    }
    if !info.details.is_empty() {
        line("Format specific information:".into());
    }
    for (number, (name, value)) in info.details.iter().enumerate() {
        if number == bitmaps_place(info) {
            line("    bitmaps:".into());
            for (number, bitmap) in info.bitmaps.iter().enumerate() {
                line(format!("        [{number}]:\n            flags:"));
                for (number, flag) in bitmap_flags(bitmap).iter().enumerate() {
                    line(format!("                [{number}]: {flag}"));
                }
                line(format!("            name: {}\n            granularity: {}", bitmap.name, bitmap.granularity));
            }
        }
        line(format!("    {name}: {value}"));
    }
    if !info.parts.is_empty() {
        line("    extents:".into());
    }
    for (number, part) in info.parts.iter().enumerate() {
        line(format!("        [{number}]:"));
        for (name, value) in part_fields(part) {
            line(format!("            {name}: {value}"));
        }
    }
    for file in child_files(info) {
        line(format!("Child node '/{}':", file.node));
        line(format!("    filename: {}", file.name));
        line(format!("    protocol type: {}", protocol(file.name)));
        line(format!("    file length: {} ({} bytes)", size::human(file.length), file.length));
        line(format!("    disk size: {}", file.actual.map_or("unavailable".into(), size::human)));
    }
    out
}

/// What is shown of one part of an image.
fn part_fields(part: &PartInfo) -> Vec<(&'static str, String)> {
    [
        part.is_compressed.then(|| ("compressed", true.to_string())),
        Some(("virtual size", part.virtual_size.to_string())),
        Some(("filename", part.file.clone())),
        part.cluster_size.map(|bytes| ("cluster size", bytes.to_string())),
        Some(("format", part.format.clone())),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A file that an image lies in.
struct ChildFile<'a> {
    node: String,
    name: &'a str,
    /// In whole sectors, as qemu-img counts.
    length: u64,
    actual: Option<u64>,
}

/// The files of an image's parts, the last first as qemu-img has them, and its own.
fn child_files(info: &ImageInfo) -> Vec<ChildFile<'_>> {
    let parts: Vec<_> = info.parts.iter().enumerate().rev().filter(|(_, part)| part.file != info.file).collect();
    let of_parts: u64 = parts.iter().filter_map(|(_, part)| part.actual_size).sum();
    let own = info.file_size.map(|length| {
        let actual = info.actual_size.map(|all| all.saturating_sub(of_parts));
        ChildFile { node: "file".into(), name: &info.file, length: length.next_multiple_of(512), actual }
    });
    let parts = parts.into_iter().filter_map(|(number, part)| {
        let length = part.file_size?.next_multiple_of(512);
        Some(ChildFile { node: format!("extents.{number}"), name: &part.file, length, actual: part.actual_size })
    });
    parts.chain(own).collect()
}

fn protocol(file: &str) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    let device = std::fs::metadata(file).is_ok_and(|m| m.file_type().is_block_device());
    if device { "host_device" } else { "file" }
}

/// Before which detail the bitmaps are shown, if there are any.
fn bitmaps_place(info: &ImageInfo) -> usize {
    match info.details.iter().position(|(name, _)| name == "refcount bits") {
        Some(place) if !info.bitmaps.is_empty() => place,
        _ => usize::MAX,
    }
}

fn bitmap_flags(bitmap: &BitmapInfo) -> Vec<&'static str> {
    [(bitmap.in_use, "in-use"), (bitmap.auto, "auto")].into_iter().filter(|(set, _)| *set).map(|(_, name)| name).collect()
}

/// The table of snapshots; nothing when there are none.
pub(super) fn snapshot_list(info: &ImageInfo) -> String {
    if info.snapshots.is_empty() {
        return String::new();
    }
    let head = format!("Snapshot list:\n{}\n", snapshot_line("ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT"));
    let lines = info.snapshots.iter().map(|snapshot| {
        let icount = snapshot.icount.map_or("--".into(), |count| count.to_string());
        let vm_size = size::human(snapshot.vm_state_size);
        let clock = clock(snapshot.vm_clock_nsec);
        snapshot_line(&snapshot.id, &snapshot.name, &vm_size, &date(snapshot), &clock, &icount) + "\n"
    });
    head + &lines.collect::<String>()
}

fn snapshot_line(id: &str, tag: &str, vm_size: &str, date: &str, clock: &str, icount: &str) -> String {
    format!("{id:<7} {tag:<16} {vm_size:>8} {date:>19} {clock:>15} {icount:>10}")
}

/// In the local time zone.
fn date(snapshot: &SnapshotInfo) -> String {
    match Timestamp::from_second(i64::from(snapshot.date_sec)) {
        Ok(time) => time.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
        Err(_) => snapshot.date_sec.to_string(),
    }
}

fn clock(nanoseconds: u64) -> String {
    let seconds = nanoseconds / 1_000_000_000;
    let milliseconds = nanoseconds / 1_000_000 % 1000;
    format!("{:04}:{:02}:{:02}.{milliseconds:03}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn as_json(info: &ImageInfo, full: Option<&str>) -> Value {
    let mut out = Map::new();
    let children: Vec<Value> = child_files(info).iter().map(|file| json!({ "name": file.node, "info": file_json(file) })).collect();
    if !children.is_empty() {
        out.insert("children".into(), children.into());
    }
    let mut put = |name: &str, value: Option<Value>| drop(value.map(|value| out.insert(name.into(), value)));
    put("backing-filename-format", info.backing_format.clone().map(Value::from));
    if !info.snapshots.is_empty() {
        put("snapshots", Some(info.snapshots.iter().map(snapshot_json).collect()));
    }
    put("virtual-size", Some(info.virtual_size.into()));
    put("filename", Some(info.file.clone().into()));
    put("cluster-size", info.cluster_size.map(Value::from));
    put("format", Some(info.format.into()));
    put("actual-size", info.actual_size.map(Value::from));
    if !info.details.is_empty() {
        let object = |fields: &[(&str, &str)]| -> Map<String, Value> {
            fields.iter().map(|(name, value)| (name.replace(' ', "-"), detail(value))).collect()
        };
        let mut data = object(&info.details.iter().map(|(name, value)| (&**name, &**value)).collect::<Vec<_>>());
        if !info.parts.is_empty() {
            let fields = |part| object(&part_fields(part).iter().map(|(name, value)| (*name, &**value)).collect::<Vec<_>>());
            data.insert("extents".into(), info.parts.iter().map(fields).collect());
        }
        if !info.bitmaps.is_empty() {
            let bitmap = |b: &BitmapInfo| json!({ "flags": bitmap_flags(b), "name": b.name, "granularity": b.granularity });
            // They stand where qemu-img has them.
            let place = data.keys().position(|name| name == "refcount-bits").unwrap_or(data.len());
            data.shift_insert(place, "bitmaps".into(), info.bitmaps.iter().map(bitmap).collect());
        }
        put("format-specific", Some(json!({ "type": info.format, "data": data })));
    }
    put("full-backing-filename", full.map(Value::from));
    put("backing-filename", info.backing_file.clone().map(Value::from));
    put("dirty-flag", Some(info.dirty.into()));
    Value::Object(out)
}

fn file_json(file: &ChildFile<'_>) -> Value {
    json!({
        "children": [],
        "virtual-size": file.length,
        "filename": file.name,
        "format": protocol(file.name),
        "actual-size": file.actual,
        "format-specific": { "type": protocol(file.name), "data": {} },
        "dirty-flag": false
    })
}

/// Details are texts; in JSON, numbers and truth values stand as such.
fn detail(value: &str) -> Value {
    match value {
        "true" => true.into(),
        "false" => false.into(),
        text => text.parse::<u64>().map_or_else(|_| text.into(), Value::from),
    }
}

fn snapshot_json(snapshot: &SnapshotInfo) -> Value {
    let mut out = json!({
        "vm-clock-nsec": snapshot.vm_clock_nsec % 1_000_000_000,
        "name": snapshot.name,
        "date-sec": snapshot.date_sec,
        "date-nsec": snapshot.date_nsec,
        "vm-clock-sec": snapshot.vm_clock_nsec / 1_000_000_000,
        "id": snapshot.id,
        "vm-state-size": snapshot.vm_state_size
    });
    if let (Some(count), Some(map)) = (snapshot.icount, out.as_object_mut()) {
        map.insert("icount".into(), count.into());
    }
    out
}

fn show_container(args: &Info, file: &Path, kind: &str, disks: &dyn DiskSet) {
    if args.output == Output::Json {
        let list: Vec<Value> = disks.disks().iter().map(|d| json!({ "name": d.name, "virtual-size": d.size })).collect();
        // A name may be there several times: two drives, several warnings.
        let mut details: Map<String, Value> = Map::new();
        for (name, value) in disks.details() {
            let values = details.entry(name.replace(' ', "-")).or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(values) = values {
                values.push(value.into());
            }
        }
        return json::print(&json!({ "filename": file.display().to_string(), "format": kind, "disks": list, "format-specific": details }));
    }
    println!("image: {}\nfile format: {kind}", file.display());
    for (name, value) in disks.details() {
        println!("{name}: {value}");
    }
    println!("disks:");
    for disk in disks.disks() {
        println!("    {}#{}: {} ({} bytes)", file.display(), disk.name, size::human(disk.size), disk.size);
    }
}
