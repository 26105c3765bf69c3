//! A legacy archive: `<appliance version="0.1">` and gzips of 10^9 bytes of a disk each (XenServer SDK guide, 3.5.1).

use std::collections::BTreeSet;
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::{ControlFlow, Range};
use std::path::PathBuf;

use imgcore::copy::is_zero;
use imgcore::formats::SourceDisk;
use imgcore::{Error, Image, Progress, Result};

use super::envelope::{Envelope, Packed, Trailer};
use super::machine::{Machine, Start};
use super::ordered::{Give, ordered};
use super::output::Output;
use super::{pieces, tar};
use imgcore::xml::escape;

/// Bytes of a disk in one file.
const FILE: u64 = 1_000_000_000;
/// Bytes that are packed at once: a file holds a whole number of them.
const PIECE: u64 = 1_000_000;
/// Devices are called `xvda` to `xvdz`.
const MAX_DISKS: usize = 26;

/// How an archive is made.
pub(super) struct Legacy {
    pub envelope: Envelope,
    pub threads: usize,
    /// Where a packed file waits until its length is known.
    pub spool: PathBuf,
}

/// Writes the archive.
pub(super) fn write(machine: &Machine, disks: &[SourceDisk], how: &Legacy, out: &mut Output<'_>, progress: &dyn Progress) -> Result<()> {
    let sizes = disks.iter().map(|d| pieces::virtual_size(&*d.image)).collect::<Result<Vec<_>>>()?;
    progress.total(sizes.iter().copied().fold(0, u64::saturating_add));
    let mut member = Vec::new();
    tar::member(&mut member, "ova.xml", description(machine, &sizes)?.as_bytes());
    out.write(&member)?;
    // The order of the names as strings, which the importer goes by.
    for (position, (disk, size)) in disks.iter().zip(sizes).enumerate() {
        for number in 0..size.div_ceil(FILE) {
            let range = number * FILE..size.min((number + 1) * FILE);
            let mut packed = how.file(&*disk.image, range, progress)?;
            let len = packed.stream_position().map_err(|e| how.failed(e))?;
            out.write(&tar::header(&format!("{}/chunk-{number:09}.gz", device(position)), len))?;
            packed.seek(SeekFrom::Start(0)).map_err(|e| how.failed(e))?;
            let mut buf = vec![0; 1 << 20];
            loop {
                match packed.read(&mut buf).map_err(|e| how.failed(e))? {
                    0 => break,
                    n => out.write(&buf[..n])?,
                }
            }
            out.write(&tar::END[..tar::padding(len)])?;
        }
    }
    out.write(&tar::END)
}

impl Legacy {
    /// A gzip of a range of a disk, in an unnamed file that stands at its end.
    fn file(&self, image: &dyn Image, range: Range<u64>, progress: &dyn Progress) -> Result<std::fs::File> {
        let mut file = tempfile::tempfile_in(&self.spool).map_err(|e| self.failed(e))?;
        let mut put = |bytes: &[u8]| file.write_all(bytes).map_err(|e| self.failed(e));
        // Disks are mostly empty, and zeroes are always packed to the same.
        let zeroes = self.envelope.pack(vec![0; PIECE as usize])?;
        let mut trailer = Trailer::default();
        put(self.envelope.head())?;
        ordered(
            self.threads,
            |give| feed(image, range, give),
            |piece| self.piece(image, piece, &zeroes),
            |(packed, len): (Packed, u64)| {
                if progress.cancelled() {
                    return Err(Error::Cancelled);
                }
                trailer.add(&packed);
                progress.advance(len);
                put(&packed.bytes)
            },
        )?;
        put(&self.envelope.tail(trailer))?;
        Ok(file)
    }

    fn piece(&self, image: &dyn Image, piece: Piece, zeroes: &Packed) -> Result<(Packed, u64)> {
        let len = piece.range.end - piece.range.start;
        if len == PIECE && !piece.may_hold_data {
            return Ok((zeroes.clone(), len));
        }
        // At most a piece.
        let mut data = vec![0; len as usize];
        pieces::read(image, piece.range.start, &mut data)?;
        let packed = if len == PIECE && is_zero(&data) { zeroes.clone() } else { self.envelope.pack(data)? };
        Ok((packed, len))
    }

    fn failed(&self, e: std::io::Error) -> Error {
        Error::io(&self.spool.display().to_string(), "spool into", None, e)
    }
}

/// A part of a disk that is packed at once.
struct Piece {
    range: Range<u64>,
    may_hold_data: bool,
}

fn feed(image: &dyn Image, range: Range<u64>, give: Give<'_, Piece>) -> Result<()> {
    // A thousand at most: no file holds more.
    let mut with_data = BTreeSet::new();
    let known = range.start.min(image.size())..range.end.min(image.size());
    image.extents(known, &mut |extent| {
        if !extent.kind.reads_zero() && extent.len > 0 {
            with_data.extend(extent.start / PIECE..=extent.start.saturating_add(extent.len - 1) / PIECE);
        }
        ControlFlow::Continue(())
    })?;
    let mut at = range.start;
    while at < range.end {
        let end = range.end.min(at + PIECE);
        if give(Piece { range: at..end, may_hold_data: with_data.contains(&(at / PIECE)) }).is_break() {
            break;
        }
        at = end;
    }
    Ok(())
}

/// The place of a disk in the machine, and the folder of its files.
fn device(position: usize) -> String {
    // No more than 26.
    format!("xvd{}", char::from(b'a' + position as u8))
}

fn description(machine: &Machine, sizes: &[u64]) -> Result<String> {
    if sizes.len() > MAX_DISKS {
        return Err(Error::Invalid(format!("{} disks: a legacy appliance has at most {MAX_DISKS}", sizes.len())));
    }
    let (hvm, args) = match &machine.start {
        Start::Hvm { uefi: false } => (true, ""),
        Start::Pv { pvh: false, kernel, args, .. } if kernel.is_empty() => (false, args.as_str()),
        _ => return Err(Error::Invalid("a legacy appliance starts by boot=bios, or by boot=pv from its own disk".into())),
    };
    let mut xml = format!(
        "<?xml version=\"1.0\"?>\n<appliance version=\"0.1\">\n  <vm name=\"vm\">\n    <label>{}</label>\n    <shortdesc>{}</shortdesc>\n    \
         <config mem_set=\"{}\" vcpus=\"{}\"/>\n    <hacks is_hvm=\"{hvm}\" kernel_boot_cmdline=\"{}\"/>\n",
        escape(&machine.name),
        escape(&machine.description),
        machine.memory,
        machine.vcpus,
        escape(args)
    );
    for position in 0..sizes.len() {
        let device = device(position);
        let function = if position == 0 { "root" } else { "data" };
        xml += &format!("    <vbd device=\"{device}\" function=\"{function}\" mode=\"w\" vdi=\"vdi_{device}\"/>\n");
    }
    xml += "  </vm>\n";
    for (position, size) in sizes.iter().enumerate() {
        let device = device(position);
        let variety = if position == 0 { "system" } else { "user" };
        xml += &format!(
            "  <vdi name=\"vdi_{device}\" size=\"{size}\" source=\"file://{device}\" type=\"dir-gzipped-chunks\" variety=\"{variety}\"/>\n"
        );
    }
    Ok(xml + "</appliance>\n")
}
