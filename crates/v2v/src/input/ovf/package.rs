//! Where the files of a package lie: beside the descriptor, or in an OVA. None of them is outside.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imgcore::raw::Raw;
use imgcore::storage::{FileStorage, ImageStorage};
use imgcore::{Gate, Image, Reference, Slice, Storage, TreeGate};
use xva::{GzipImage, Member};

use super::FORMAT;
use crate::{Error, Result};

/// A descriptor is no larger.
pub(super) const DESCRIPTOR_LIMIT: u64 = 16 << 20;

/// A package.
pub(super) struct Package {
    /// The descriptor or the archive, as the user named it.
    path: PathBuf,
    descriptor: String,
    place: Place,
}

enum Place {
    Folder(TreeGate),
    Archive { image: Arc<dyn Image>, members: Vec<Member> },
}

/// The one descriptor in a folder.
pub(super) fn descriptor_in(folder: &Path) -> Option<PathBuf> {
    let is_descriptor = |p: &PathBuf| p.extension().is_some_and(|e| e.eq_ignore_ascii_case("ovf")) && p.is_file();
    let mut found = folder.read_dir().ok()?.filter_map(|entry| Some(entry.ok()?.path())).filter(is_descriptor);
    let first = found.next()?;
    found.next().is_none().then_some(first)
}

impl Package {
    /// `allow` are folders in which links may lead besides the package's own.
    pub fn open(path: &Path, allow: &[PathBuf]) -> Result<Self> {
        let path = match path.is_dir() {
            false => path.to_owned(),
            true => descriptor_in(path)
                .ok_or_else(|| Error::Invalid(format!("{}: has not one descriptor (.ovf): name the one that is meant", path.display())))?,
        };
        if !is_archive(&path)? {
            let descriptor = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            let gate = TreeGate::new(&path, allow.iter().cloned());
            return Ok(Package { path, descriptor, place: Place::Folder(gate) });
        }
        let members = xva::members(&path, "OVA")?;
        let descriptor = members.iter().find(|m| m.name.to_ascii_lowercase().ends_with(".ovf")).map(|m| m.name.clone());
        let descriptor =
            descriptor.ok_or_else(|| Error::Invalid(format!("{}: no descriptor (.ovf) is in it: this is no OVA", path.display())))?;
        let image: Arc<dyn Image> = Arc::new(Raw::open(Arc::new(FileStorage::open(&path)?))?);
        Ok(Package { path, descriptor, place: Place::Archive { image, members } })
    }

    /// The descriptor's name.
    pub fn descriptor(&self) -> &str {
        &self.descriptor
    }

    /// A file's name for messages.
    pub fn shown(&self, name: &str) -> String {
        match &self.place {
            Place::Folder(_) => self.path.with_file_name(name).display().to_string(),
            Place::Archive { .. } => format!("{}#{name}", self.path.display()),
        }
    }

    /// Whether there is such a file.
    pub fn has(&self, name: &str) -> bool {
        match &self.place {
            Place::Folder(_) => self.path.with_file_name(name).is_file(),
            Place::Archive { members, .. } => members.iter().any(|m| m.name == name),
        }
    }

    /// The bytes of a file. Names are relative URIs: `%20` may stand for a blank.
    pub fn storage(&self, name: &str) -> Result<Arc<dyn Storage>> {
        let decoded = percent_decoded(name);
        let name = if self.has(name) { name } else { &decoded };
        let path = self.path.to_string_lossy();
        Ok(self.open(&Reference { from: &path, target: name, role: "file" })?)
    }

    fn member(&self, name: &str) -> Option<&Member> {
        match &self.place {
            Place::Folder(_) => None,
            Place::Archive { members, .. } => members.iter().find(|m| m.name == name),
        }
    }

    /// What a gzipped file unpacks to.
    pub fn unpacked(&self, name: &str) -> Result<Arc<dyn Image>> {
        let storage = self.storage(name)?;
        let (file, range) = match self.member(name) {
            Some(member) => (self.path.clone(), member.range.clone()),
            None => (storage.name().into(), 0..storage.size()?),
        };
        Ok(Arc::new(GzipImage::open(&file, range, &self.shown(name))?))
    }

    /// All of a small file.
    pub fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        let storage = self.storage(name)?;
        let len = storage.size()?;
        if len > limit {
            return Err(Error::Invalid(format!("{}: has {len} bytes; more than {limit} are not read", self.shown(name))));
        }
        let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
        storage.read_at(&mut bytes, 0)?;
        Ok(bytes)
    }
}

/// What disks name in turn is in the package, too.
impl Gate for Package {
    fn open(&self, reference: &Reference<'_>) -> imgcore::Result<Arc<dyn Storage>> {
        let (image, members) = match &self.place {
            Place::Folder(gate) => return gate.open(reference),
            Place::Archive { image, members } => (image, members),
        };
        let Some(member) = members.iter().find(|m| m.name == reference.target) else {
            let what = format!("{}: the {} '{}' is not in it", self.path.display(), reference.role, reference.target);
            return Err(imgcore::Error::Invalid(what));
        };
        let part = Slice::new(image.clone(), member.range.start, member.range.end - member.range.start)?;
        Ok(Arc::new(ImageStorage::new(Arc::new(part), self.shown(&member.name))))
    }
}

/// Whether a file is a tar, and no XML.
fn is_archive(path: &Path) -> Result<bool> {
    let mut head = [0; 512];
    let failed = |source| Error::Io { file: path.display().to_string(), action: "open", source };
    let mut file = File::open(path).map_err(failed)?;
    match std::io::Read::read_exact(&mut file, &mut head) {
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(false),
        read => read.map_err(failed)?,
    }
    // XML has no NUL, and in UTF-16 it begins with a mark.
    Ok(head.contains(&0) && !head.starts_with(&[0xff, 0xfe]) && !head.starts_with(&[0xfe, 0xff]))
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).filter(|_| *first == b'%').and_then(|d| std::str::from_utf8(d).ok());
        let escaped = digits.and_then(|d| u8::from_str_radix(d, 16).ok());
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { after.get(2..).unwrap_or_default() } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What is wrong with a file of the package.
pub(super) fn corrupt(shown: &str, what: String) -> Error {
    imgcore::Error::corrupt(shown, FORMAT, None, what).into()
}
