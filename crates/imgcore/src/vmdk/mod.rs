//! VMDK, the format of VMware, after its technical note *Virtual Disk Format* 1.1 and 5.0.
//!
//! A disk is a [`descriptor`] that names extents: flat files, zeroes, and sparse extents, whose grains are found through a
//! directory of tables. The descriptor is a file of its own or lies inside the only extent. In a *streamOptimized*
//! extent the grains are compressed, and markers tell what follows, so that it is written and read in one pass.
//!
//! Written are single files: streams, once and in order ([`stream`]), and monolithicSparse images, at any place.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use crate::formats::OpenContext;
use crate::image::check_range;
use crate::layers::{extents_below, read_below, read_stored, stored_extents, unstored};
use crate::storage::read_padded;
use crate::{Error, Extent, ExtentKind, Image, ImageInfo, PartInfo, Reference, Result, Storage};

mod check;
mod create;
mod descriptor;
mod driver;
mod extent;
mod header;
mod sparse;
mod stream;
mod write;

pub use driver::VmdkDriver;

use descriptor::Descriptor;
use extent::{Body, DiskExtent};
use header::Header;
use sparse::Mapping;

const FORMAT: &str = "vmdk";
const SECTOR: u64 = 512;
/// Bytes of a grain in what is written.
const GRAIN_SIZE: u64 = 64 << 10;

/// An open VMDK image.
pub struct Vmdk {
    storage: Arc<dyn Storage>,
    file: Arc<str>,
    descriptor: Descriptor,
    extents: Vec<DiskExtent>,
    parent: Option<Arc<dyn Image>>,
    writer: Option<write::Writer>,
}

/// Reads the descriptor in `storage`, and the header where that is a sparse extent. One without a descriptor, such as a part
/// of a split disk, has an empty one.
fn read_descriptor(storage: &dyn Storage) -> Result<(Option<Header>, Descriptor)> {
    let mut magic = [0; 4];
    read_padded(storage, &mut magic, 0)?;
    if magic != *header::MAGIC && magic != *header::COWD_MAGIC {
        let mut text = vec![0; storage.size()?.min(descriptor::MAX_LEN) as usize];
        read_padded(storage, &mut text, 0)?;
        return Ok((None, Descriptor::parse(storage.name(), &text)?));
    }
    let header = Header::read(storage)?;
    let Some((offset, len)) = header.descriptor else {
        return Ok((Some(header), Descriptor { parent_cid: descriptor::NO_PARENT, ..Descriptor::default() }));
    };
    if len > descriptor::MAX_LEN {
        return Err(Error::corrupt(storage.name(), FORMAT, 36, format!("a descriptor of {len} bytes")));
    }
    let mut text = vec![0; len as usize];
    read_padded(storage, &mut text, offset)?;
    let descriptor = Descriptor::parse(storage.name(), &text)?;
    // A header without capacity does no more than hold the descriptor.
    let holds_data = header.capacity > 0 || descriptor.extents.iter().all(|extent| extent.sectors == 0);
    Ok((Some(header).filter(|_| holds_data), descriptor))
}

impl Vmdk {
    /// Opens the image in `storage`, and the other files that it names, for reading.
    pub fn open(storage: Arc<dyn Storage>, context: &OpenContext<'_>) -> Result<Self> {
        let mut image = Self::open_layer(storage, context)?;
        if context.options.backing {
            image.parent = image.open_parent(context)?;
        }
        Ok(image)
    }

    /// Opens an image without its parent.
    fn open_layer(storage: Arc<dyn Storage>, context: &OpenContext<'_>) -> Result<Self> {
        let (header, descriptor) = read_descriptor(&*storage)?;
        let file: Arc<str> = storage.name().into();
        let extents = match header {
            Some(header) => extent::own(storage.clone(), header)?,
            None => extent::open_all(&file, &descriptor, context)?,
        };
        Ok(Vmdk { storage, file, descriptor, extents, parent: None, writer: None })
    }

    fn open_parent(&self, context: &OpenContext<'_>) -> Result<Option<Arc<dyn Image>>> {
        let expected = self.descriptor.parent_cid;
        let Some(target) = self.parent_path() else {
            if expected == descriptor::NO_PARENT {
                return Ok(None);
            }
            return Err(Error::corrupt(&self.file, FORMAT, None, format!("its parent's CID is {expected:08x}, and no file is named")));
        };
        let reference = Reference { from: &self.file, target: &target, role: "parent" };
        let (_, parent) = read_descriptor(&*context.options.gate.open(&reference)?)?;
        if parent.cid != expected {
            let what = format!("its parent {target} was changed or is another one: its CID is {:08x}, not {expected:08x}", parent.cid);
            return Err(Error::corrupt(&self.file, FORMAT, None, what));
        }
        Ok(Some(context.open_reference(&reference, Some(FORMAT))?))
    }

    /// The parent's path; one of another system is looked for beside the image.
    fn parent_path(&self) -> Option<String> {
        let hint = self.descriptor.parent()?;
        Some(hint.rsplit('\\').next().unwrap_or(hint).to_owned())
    }

    /// The extent that holds byte `guest`, where that lies, and how many bytes (at most `len`) follow it in the same way.
    fn lookup(&self, guest: u64, len: u64) -> Result<(&DiskExtent, Mapping, u64)> {
        let index = self.extents.partition_point(|extent| extent.end() <= guest);
        let Some(extent) = self.extents.get(index) else {
            return Err(Error::Invalid(format!("{}: byte {guest:#x} is past the end of the image", self.file)));
        };
        let at = guest - extent.start;
        let len = len.min(extent.len - at);
        let (mapping, run) = match &extent.body {
            Body::Zero => (Mapping::Zero, len),
            Body::Flat(_, offset) => (Mapping::Data(offset + at), len),
            // The descriptor may give it more than it has.
            Body::Sparse(sparse) if at >= sparse.header.capacity => (Mapping::Absent, len),
            Body::Sparse(sparse) => sparse.lookup(at, len.min(sparse.header.capacity - at))?,
        };
        Ok((extent, mapping, run))
    }

    /// Bytes of a grain, if the disk has any.
    fn grain_size(&self) -> Option<u64> {
        self.extents.iter().find_map(|extent| match &extent.body {
            Body::Sparse(sparse) => Some(sparse.header.grain_size),
            _ => None,
        })
    }

    /// The files that hold the extents, each once.
    fn files(&self) -> Vec<&Arc<dyn Storage>> {
        let mut files = vec![&self.storage];
        for storage in self.extents.iter().filter_map(DiskExtent::storage) {
            if files.iter().all(|known| known.name() != storage.name()) {
                files.push(storage);
            }
        }
        files
    }
}

impl Image for Vmdk {
    fn size(&self) -> u64 {
        self.extents.last().map_or(0, DiskExtent::end)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(&self.file, self.size(), offset, buf.len() as u64)?;
        let mut done = 0;
        while done < buf.len() {
            let guest = offset + done as u64;
            let (extent, mapping, run) = self.lookup(guest, (buf.len() - done) as u64)?;
            let part = &mut buf[done..done + run as usize];
            match (mapping, &extent.body) {
                (Mapping::Absent, _) => read_below(self.backing(), part, guest)?,
                (Mapping::Data(host), Body::Flat(storage, _)) => read_stored(&**storage, FORMAT, part, host)?,
                (Mapping::Data(host), Body::Sparse(sparse)) => read_stored(&*sparse.storage, FORMAT, part, host)?,
                (Mapping::Compressed(host), Body::Sparse(sparse)) => {
                    sparse.read_compressed(part, host, (guest - extent.start) % sparse.header.grain_size)?;
                }
                _ => part.fill(0),
            }
            done += run as usize;
        }
        Ok(())
    }

    fn extents(&self, range: Range<u64>, visit: &mut dyn FnMut(Extent) -> ControlFlow<()>) -> Result<()> {
        check_range(&self.file, self.size(), range.start, range.end.saturating_sub(range.start))?;
        let mut at = range.start;
        while at < range.end {
            let (extent, mapping, mut run) = self.lookup(at, range.end - at)?;
            // Adjoining compressed grains are one extent: no host offset tells them apart.
            while let (Mapping::Compressed(_), true) = (mapping, at + run < range.end) {
                match self.lookup(at + run, range.end - at - run)? {
                    (_, Mapping::Compressed(_), more) => run += more,
                    _ => break,
                }
            }
            let part = at..at + run;
            let flow = match (mapping, extent.storage(), &extent.file) {
                (Mapping::Absent, ..) => extents_below(self.backing(), part, visit)?,
                (Mapping::Data(host), Some(storage), Some(file)) if matches!(extent.body, Body::Flat(..)) => {
                    stored_extents(&**storage, file, part, host, visit)?
                }
                (Mapping::Data(host), _, file) => {
                    visit(Extent { host_offset: Some(host), file: file.clone(), ..unstored(part, ExtentKind::Data) })
                }
                (Mapping::Compressed(_), ..) => visit(unstored(part, ExtentKind::Compressed)),
                (Mapping::Zero, ..) => visit(unstored(part, ExtentKind::Zero)),
            };
            if flow.is_break() {
                break;
            }
            at += run;
        }
        Ok(())
    }

    fn info(&self) -> ImageInfo {
        let files = self.files();
        let parts = self.extents.iter().map(|extent| {
            let sparse = if let Body::Sparse(sparse) = &extent.body { Some(&sparse.header) } else { None };
            PartInfo {
                file: extent.file.as_deref().unwrap_or_default().to_owned(),
                virtual_size: extent.len,
                cluster_size: sparse.map(|header| header.grain_size),
                format: extent.kind.clone(),
                is_compressed: sparse.is_some_and(|header| header.is_compressed),
                file_size: extent.storage().and_then(|storage| storage.size().ok()),
                actual_size: extent.storage().and_then(|storage| storage.allocated()),
            }
        });
        ImageInfo {
            format: FORMAT,
            file: self.file.to_string(),
            virtual_size: self.size(),
            actual_size: files.iter().map(|storage| storage.allocated()).sum(),
            cluster_size: self.grain_size(),
            backing_file: self.parent_path(),
            backing_format: self.descriptor.parent().map(|_| FORMAT.to_owned()),
            file_size: self.storage.size().ok(),
            parts: parts.collect(),
            details: vec![
                ("cid".into(), self.descriptor.cid.to_string()),
                ("parent cid".into(), self.descriptor.parent_cid.to_string()),
                ("create type".into(), self.descriptor.create_type.clone()),
            ],
            ..ImageInfo::default()
        }
    }

    fn backing(&self) -> Option<&dyn Image> {
        self.parent.as_deref()
    }
}
