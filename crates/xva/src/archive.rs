//! An open archive or folder: its model, and where every disk's bytes lie. Headers are read, disk data is not.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imgcore::{Error, Image, Progress, Result};

use crate::XVA;
use crate::bytes::{Bytes, HostFile, Walk};
use crate::chunks::Mapper;
use crate::disk::{DiskImage, LegacyData, ModernData, Place};
use crate::gunzip::Gunzip;
use crate::legacy::chunk_number;
use crate::model::{Appliance, Form};
use crate::modern::parse_ova;
use crate::sums::{MAX_TEXT, Sum, SumKind};
use crate::tar::Tar;
use crate::wrap::{Wrap, spool};
use crate::xmlrpc::{self, MAX_XML};

/// Chunks of all disks together: 32 TiB of chunks of 1 MiB.
const MAX_CHUNKS: usize = 32 << 20;
/// Checkpoints of all gzips of an archive together: about 90 MB.
pub(crate) const MAX_POINTS: usize = 2048;
const TABLE: &str = "checksum.xml";
const OVA: &str = "ova.xml";

/// How to open an archive.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// A folder for unpacking a compressed archive into an unnamed file, as large as the archive unpacked. Needed for
    /// zstd; makes random reads of gzip faster.
    pub spool: Option<PathBuf>,
}

/// An open appliance: an archive, a compressed archive or a folder.
pub struct Xva {
    name: Arc<str>,
    appliance: Appliance,
    wrap: &'static str,
    /// By index of [`Appliance::disks`]: the data, or why there is none.
    disks: Vec<Result<Arc<Data>, String>>,
}

/// One disk's data.
pub(crate) enum Data {
    Modern(ModernData),
    Legacy(LegacyData),
}

/// A chunk as an index finds it.
#[derive(Clone, Copy)]
pub(crate) struct RawChunk {
    pub number: u64,
    pub len: u64,
    pub place: u64,
    pub sum: Option<RawSum>,
}

/// Where a chunk's checksum is: its text, of this many bytes.
#[derive(Clone, Copy)]
pub(crate) struct RawSum {
    pub kind: SumKind,
    pub place: u64,
    pub len: u8,
}

/// What an index found, by folder.
#[derive(Default)]
struct Found {
    chunks: HashMap<String, Vec<RawChunk>>,
    /// Checksums that do not follow their chunk.
    loose: Vec<(String, u64, RawSum)>,
    count: usize,
    ova: Option<Vec<u8>>,
    table: Option<Vec<u8>>,
}

impl Xva {
    /// Opens an archive or a folder that holds `ova.xml`.
    ///
    /// An archive that is truncated is an error. A disk that is incomplete or missing, as in an export of metadata only,
    /// is one when it is [asked for](Xva::disk).
    pub fn open(path: impl AsRef<Path>, options: &Options) -> Result<Self> {
        let path = path.as_ref();
        let name: Arc<str> = path.display().to_string().into();
        if path.is_dir() {
            return Self::from_folder(path, name);
        }
        let file = HostFile::open(path)?;
        let mut head = [0; 4];
        let got = file.read_some(&mut head, 0)?;
        let wrap = Wrap::detect(&head[..got]);
        let bytes: Arc<dyn Bytes> = match (wrap, &options.spool) {
            (Wrap::None, _) => Arc::new(file),
            (_, Some(folder)) => Arc::new(HostFile::spooled(spool(file.into_file(), &name, folder)?, &name)),
            (Wrap::Gzip, None) => {
                let len = file.len()?;
                Arc::new(Gunzip::new(Arc::new(file), 0..len, &name, MAX_POINTS))
            }
            (Wrap::Zstd, None) => {
                return Err(Error::unsupported(
                    &name,
                    XVA,
                    "random access to an archive packed by zstd: name a folder with room for all of it unpacked with --spool DIR, or give the archive as a stream",
                ));
            }
        };
        let found = Found::in_archive(&*bytes, &name)?;
        let mut xva = Self::assemble(name, found, |_| Place::Archive(bytes.clone()))?;
        xva.wrap = wrap.name();
        Ok(xva)
    }

    fn from_folder(path: &Path, name: Arc<str>) -> Result<Self> {
        let ova = HostFile::open_member(&path.join(OVA))?;
        let raw = read_whole(&ova, ova.len()?)?;
        let appliance = parse_ova(&raw, &name)?;
        let mut found = Found { ova: Some(raw), ..Found::default() };
        for disk in &appliance.disks {
            found.in_folder(&path.join(&disk.id), &disk.id)?;
        }
        if path.join(TABLE).exists() {
            let table = HostFile::open_member(&path.join(TABLE))?;
            found.table = Some(read_whole(&table, table.len()?)?);
        }
        let mut xva = Self::assemble(name, found, |id| Place::Folder(path.join(id)))?;
        xva.wrap = "folder";
        Ok(xva)
    }

    fn assemble(name: Arc<str>, mut found: Found, place: impl Fn(&str) -> Place) -> Result<Self> {
        let Some(ova) = found.ova.take() else {
            return Err(Error::corrupt(&name, XVA, None, "the archive holds no ova.xml: it is not an XVA"));
        };
        let mut appliance = parse_ova(&ova, &name)?;
        found.join_loose();
        let any_sum = found.chunks.values().flatten().any(|c| c.sum.is_some());
        let table = match (appliance.form, &found.table) {
            (Form::Modern { .. }, Some(raw)) if !any_sum => Some(parse_table(raw, &name)?),
            _ => None,
        };
        let total = found.count;
        let mut disks = Vec::new();
        for disk in &appliance.disks {
            let mut chunks = found.chunks.remove(&disk.id).unwrap_or_default();
            chunks.sort_by_key(|c| c.number);
            let place = place(&disk.id);
            disks.push(match (appliance.form, total) {
                (_, 0) if disk.size > 0 => {
                    Err("the archive holds no disk data: it is an export of metadata only. Export the machine with its disks".into())
                }
                (Form::Modern { .. }, _) => {
                    modern(disk.size, &disk.id, &chunks, place, any_sum, table.as_ref()).map(|d| Arc::new(Data::Modern(d)))
                }
                (Form::Legacy, _) => LegacyData::new(&name, disk, chunks, place, total)?.map(|d| Arc::new(Data::Legacy(d))),
            });
        }
        for (folder, chunks) in &found.chunks {
            if chunks.iter().any(|c| c.len > 0) {
                appliance.warnings.push(format!("the archive holds data of {folder}, which no drive refers to: it is left out"));
            }
        }
        if matches!(appliance.form, Form::Modern { .. }) && total > 0 && !any_sum && table.is_none() {
            appliance.warnings.push("the archive holds no checksums: damage to disk data cannot be noticed".into());
        }
        Ok(Xva { name, appliance, wrap: "", disks })
    }

    /// What the archive describes.
    pub fn appliance(&self) -> &Appliance {
        &self.appliance
    }

    /// How it is stored: `tar`, `gzip`, `zstd` or `folder`.
    pub fn wrapping(&self) -> &'static str {
        self.wrap
    }

    /// The disk of index `disk` in [`Appliance::disks`].
    pub fn disk(&self, disk: usize) -> Result<Arc<dyn Image>> {
        Ok(Arc::new(self.image(disk)?))
    }

    /// The disk with this [id](crate::Disk::id).
    pub fn disk_by_id(&self, id: &str) -> Result<Arc<dyn Image>> {
        let disk = self.appliance.disk(id).ok_or_else(|| {
            let known: Vec<_> = self.appliance.disks.iter().map(|d| d.id.as_str()).collect();
            Error::Invalid(format!("{}: holds no disk '{id}'; it has {}", self.name, known.join(", ")))
        })?;
        self.disk(disk)
    }

    /// Reads every disk whole and verifies all that can be: checksums, or the sums inside gzip.
    pub fn verify(&self, progress: &dyn Progress) -> Result<()> {
        let images = (0..self.disks.len()).map(|d| self.image(d)).collect::<Result<Vec<_>>>()?;
        progress.total(images.iter().map(DiskImage::stored_bytes).sum());
        images.iter().try_for_each(|image| image.verify(progress))
    }

    fn image(&self, disk: usize) -> Result<DiskImage> {
        let (Some(data), Some(model)) = (self.disks.get(disk), self.appliance.disks.get(disk)) else {
            return Err(Error::Invalid(format!("{}: has no disk of index {disk}", self.name)));
        };
        match data {
            Ok(data) => Ok(DiskImage::new(self.name.clone(), model.clone(), data.clone())),
            Err(what) => Err(Error::corrupt(&self.name, XVA, None, format!("disk {}: {what}", model.id))),
        }
    }
}

impl Found {
    fn in_archive(bytes: &dyn Bytes, name: &str) -> Result<Self> {
        let mut found = Found::default();
        let mut tar = Tar::new(Walk::new(bytes), name);
        while let Some(entry) = tar.next()? {
            let (folder, file) = entry.split();
            let member = Member::parse(file);
            if !entry.regular && !matches!(member, Member::Other) {
                return Err(Error::corrupt(name, XVA, entry.data, format!("{} is a link or a device, not a file", entry.name)));
            }
            match member {
                Member::Ova if found.ova.is_none() => found.ova = Some(tar.read_all(MAX_XML, OVA)?),
                Member::Table => found.table = Some(tar.read_all(MAX_XML, TABLE)?),
                member => found.add(name, folder, member, entry.size, entry.data)?,
            }
        }
        // A gzip ends with a checksum of its own.
        if !bytes.is_plain() {
            let mut at = tar.position();
            let mut scratch = vec![0; 64 << 10];
            loop {
                match bytes.read_some(&mut scratch, at)? {
                    0 => break,
                    n => at += n as u64,
                }
            }
        }
        Ok(found)
    }

    fn in_folder(&mut self, path: &Path, id: &str) -> Result<()> {
        let name = path.display().to_string();
        let io = |e| Error::io(&name, "list", None, e);
        match std::fs::symlink_metadata(path) {
            Ok(m) if m.is_dir() => {}
            Ok(_) => return Err(Error::corrupt(&name, XVA, None, "not a folder")),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(io(e)),
        }
        for entry in std::fs::read_dir(path).map_err(io)? {
            let entry = entry.map_err(io)?;
            let file = entry.file_name();
            let Some(file) = file.to_str() else { continue };
            let member = Member::parse(file);
            let meta = entry.metadata().map_err(io)?;
            if !meta.is_file() && !matches!(member, Member::Other) {
                return Err(Error::corrupt(&name, XVA, None, format!("{file} is a link or a device, not a file")));
            }
            // In a folder, a file's place is its number: see `Place`. Legacy names have two forms.
            let place = match member {
                Member::Chunk(n) | Member::Sum(n, _) => n,
                Member::Legacy(_) => u64::from(file.starts_with("chunk-")),
                _ => 0,
            };
            self.add(&name, id, member, meta.len(), place)?;
        }
        Ok(())
    }

    fn add(&mut self, name: &str, folder: &str, member: Member, len: u64, place: u64) -> Result<()> {
        let number = match member {
            Member::Chunk(n) | Member::Legacy(n) => n,
            Member::Sum(number, kind) => {
                let Some(len) = u8::try_from(len).ok().filter(|l| u64::from(*l) <= MAX_TEXT) else {
                    return Err(Error::corrupt(name, XVA, place, format!("the checksum of {folder}/{number:08} has {len} bytes")));
                };
                let sum = RawSum { kind, place, len };
                match self.chunks.get_mut(folder).and_then(|c| c.last_mut()).filter(|c| c.number == number) {
                    Some(chunk) => chunk.sum = Some(sum),
                    None => {
                        self.bound(name)?;
                        self.loose.push((folder.into(), number, sum));
                    }
                }
                return Ok(());
            }
            _ => return Ok(()),
        };
        self.bound(name)?;
        if !self.chunks.contains_key(folder) {
            self.chunks.insert(folder.into(), Vec::new());
        }
        if let Some(chunks) = self.chunks.get_mut(folder) {
            chunks.push(RawChunk { number, len, place, sum: None });
        }
        Ok(())
    }

    fn bound(&mut self, name: &str) -> Result<()> {
        self.count += 1;
        match self.count > MAX_CHUNKS {
            true => Err(Error::unsupported(name, XVA, format!("an archive of more than {MAX_CHUNKS} chunks"))),
            false => Ok(()),
        }
    }

    /// Gives checksums to chunks that they did not follow, as in an archive that was packed anew or a folder.
    fn join_loose(&mut self) {
        if self.loose.is_empty() {
            return;
        }
        for chunks in self.chunks.values_mut() {
            chunks.sort_by_key(|c| c.number);
        }
        for (folder, number, sum) in std::mem::take(&mut self.loose) {
            let Some(chunks) = self.chunks.get_mut(&folder) else { continue };
            if let Ok(i) = chunks.binary_search_by_key(&number, |c| c.number)
                && let Some(chunk) = chunks.get_mut(i)
            {
                chunk.sum = Some(sum);
            }
        }
    }
}

/// What a file in an archive is, by its own name.
#[derive(Clone, Copy)]
pub(crate) enum Member {
    Ova,
    Table,
    Chunk(u64),
    Sum(u64, SumKind),
    Legacy(u64),
    Other,
}

impl Member {
    pub fn parse(file: &str) -> Self {
        let number = |digits: &str| -> Option<u64> {
            (digits.len() >= 8 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
        };
        match file {
            OVA => return Member::Ova,
            TABLE => return Member::Table,
            _ => {}
        }
        if let Some(n) = number(file) {
            return Member::Chunk(n);
        }
        if let Some((digits, extension)) = file.split_once('.')
            && let (Some(n), Some(kind)) = (number(digits), SumKind::of_extension(extension))
        {
            return Member::Sum(n, kind);
        }
        chunk_number(file).map_or(Member::Other, Member::Legacy)
    }
}

fn modern(
    size: u64,
    id: &str,
    chunks: &[RawChunk],
    place: Place,
    any_sum: bool,
    table: Option<&HashMap<String, Sum>>,
) -> Result<ModernData, String> {
    let mut mapper = Mapper::new(size);
    let mut data = ModernData::new(place);
    for chunk in chunks {
        let Some((offset, len)) = mapper.place(chunk.number, chunk.len)? else { continue };
        if any_sum && chunk.sum.is_none() {
            return Err(format!("chunk {:08} has no checksum, though the archive has checksums", chunk.number));
        }
        let known = match table {
            None => None,
            Some(table) => Some(
                *table
                    .get(&format!("{id}/{:08}", chunk.number))
                    .ok_or_else(|| format!("chunk {:08} has no checksum in the archive's table", chunk.number))?,
            ),
        };
        data.push(*chunk, offset, len, known)?;
    }
    mapper.finish()?;
    data.block = mapper.block();
    Ok(data)
}

/// Reads the table of checksums at the end of an archive with `export_vsn` 0 or 1: a struct of names and SHA-1 sums.
pub(crate) fn parse_table(raw: &[u8], name: &str) -> Result<HashMap<String, Sum>> {
    let bad = || Error::corrupt(name, XVA, None, format!("{TABLE} is not a table of SHA-1 checksums"));
    let text = std::str::from_utf8(raw).map_err(|_| bad())?;
    let value = xmlrpc::value(xmlrpc::document(text, name)?.root_element(), name)?;
    let mut table = HashMap::new();
    for (member, sum) in value.members() {
        table.insert(member.clone(), SumKind::Sha1.parse(sum.text().as_bytes()).ok_or_else(bad)?);
    }
    Ok(table)
}

fn read_whole(file: &HostFile, len: u64) -> Result<Vec<u8>> {
    if len > MAX_XML {
        return Err(Error::unsupported(file.name(), XVA, format!("a description of {len} bytes: at most {MAX_XML} are read")));
    }
    let mut raw = vec![0; usize::try_from(len).unwrap_or(0)];
    file.read_exact(&mut raw, 0)?;
    Ok(raw)
}
