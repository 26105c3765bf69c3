//! One extent of a disk, of any kind, and opening those that a descriptor names.

use std::sync::Arc;

use super::descriptor::{Descriptor, ExtentLine};
use super::header::Header;
use super::sparse::Sparse;
use super::{FORMAT, SECTOR};
use crate::formats::OpenContext;
use crate::{Error, Reference, Result, Storage};

/// A part of the disk.
pub(super) struct DiskExtent {
    /// Its first byte on the disk.
    pub start: u64,
    pub len: u64,
    pub body: Body,
    /// The type in the descriptor's line; empty for an extent that holds its own descriptor.
    pub kind: String,
    /// The file that holds it, as messages and maps name it.
    pub file: Option<Arc<str>>,
}

/// Where an extent's bytes are.
pub(super) enum Body {
    Zero,
    /// In the file as they are, from this offset on.
    Flat(Arc<dyn Storage>, u64),
    Sparse(Box<Sparse>),
}

impl DiskExtent {
    pub fn end(&self) -> u64 {
        self.start + self.len
    }

    pub fn storage(&self) -> Option<&Arc<dyn Storage>> {
        match &self.body {
            Body::Zero => None,
            Body::Flat(storage, _) => Some(storage),
            Body::Sparse(sparse) => Some(&sparse.storage),
        }
    }
}

/// The one extent of a disk whose descriptor is inside it.
pub(super) fn own(storage: Arc<dyn Storage>, header: Header) -> Result<Vec<DiskExtent>> {
    let file = Some(storage.name().into());
    let len = header.capacity;
    let sparse = Sparse::open(storage, header)?;
    Ok(vec![DiskExtent { start: 0, len, body: Body::Sparse(Box::new(sparse)), kind: String::new(), file }])
}

/// Opens the extents that the descriptor in the file `from` names.
pub(super) fn open_all(from: &str, descriptor: &Descriptor, context: &OpenContext<'_>) -> Result<Vec<DiskExtent>> {
    let mut extents = Vec::new();
    let mut start: u64 = 0;
    for line in &descriptor.extents {
        let len = line.sectors.checked_mul(SECTOR);
        let end = len.and_then(|len| start.checked_add(len)).filter(|end| *end <= i64::MAX as u64);
        let (Some(len), Some(end)) = (len, end) else {
            return Err(Error::corrupt(from, FORMAT, None, format!("its extents are larger than any disk: {} sectors", line.sectors)));
        };
        let (body, file) = open(from, line, context)?;
        extents.push(DiskExtent { start, len, body, kind: line.kind.clone(), file });
        start = end;
    }
    if extents.is_empty() {
        return Err(Error::corrupt(from, FORMAT, None, "its descriptor names no extent"));
    }
    Ok(extents)
}

fn open(from: &str, line: &ExtentLine, context: &OpenContext<'_>) -> Result<(Body, Option<Arc<str>>)> {
    let Some(target) = line.file.as_deref() else { return Ok((Body::Zero, None)) };
    let storage = context.open_part(&Reference { from, target, role: "extent" })?;
    let file: Arc<str> = storage.name().into();
    let unsupported = |what: String| Err(Error::unsupported(&file, FORMAT, what));
    let body = match line.kind.as_str() {
        "FLAT" | "VMFS" => match line.offset.checked_mul(SECTOR).filter(|offset| *offset <= i64::MAX as u64) {
            Some(offset) => Body::Flat(storage, offset),
            None => return Err(Error::corrupt(from, FORMAT, None, format!("extent {target} begins at sector {}", line.offset))),
        },
        "SPARSE" | "VMFSSPARSE" => {
            let header = Header::read(&*storage)?;
            if header.is_cowd != (line.kind == "VMFSSPARSE") {
                return unsupported(format!("an extent of another kind than {}", line.kind));
            }
            Body::Sparse(Box::new(Sparse::open(storage, header)?))
        }
        "SESPARSE" => return unsupported("space-efficient sparse extents: consolidate the snapshots first".into()),
        other => return unsupported(format!("extents of the type {other}")),
    };
    Ok((body, Some(file)))
}
