//! The header of a qcow2 image: parsed, checked against QEMU's limits, and written.
//!
//! Source: QEMU's `docs/interop/qcow2.txt`, sections "Header", "Header extensions".

use std::ops::RangeInclusive;

use crate::storage::read_padded;
use crate::{Error, Result, Storage};

pub(super) const FORMAT: &str = "qcow2";
pub(super) const MAGIC: [u8; 4] = *b"QFI\xfb";

pub(super) const MAX_L1_BYTES: u64 = 32 << 20;
pub(super) const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
pub(super) const MAX_SNAPSHOTS: u32 = 65_536;
const MAX_BACKING_NAME: u32 = 1023;
/// Offsets in tables have 56 bits.
pub(super) const MAX_OFFSET: u64 = 1 << 56;

pub(super) const DIRTY: u64 = 1;
pub(super) const CORRUPT: u64 = 1 << 1;
pub(super) const DATA_FILE: u64 = 1 << 2;
pub(super) const COMPRESSION: u64 = 1 << 3;
pub(super) const EXTENDED_L2: u64 = 1 << 4;
pub(super) const LAZY_REFCOUNTS: u64 = 1;

const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_FEATURES: u32 = 0x6803_f857;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;
const EXTENSION_BITMAPS: u32 = 0x2385_2875;
/// Set while persistent bitmaps are up to date.
pub(super) const BITMAPS: u64 = 1;
/// Set while the external data file is valid as a raw image of its own.
pub(super) const DATA_FILE_RAW: u64 = 1 << 1;
pub(super) const MAX_BITMAPS: u32 = 65_535;
const MAX_BITMAP_DIRECTORY: u64 = 64 << 20;
/// Bytes of the header that are known: those of version 2, and of version 3 with the compression type.
const LEN_V2: usize = 72;
const LEN_V3: usize = 112;
/// Where the size stands, before which lies nothing that a change of structure touches.
const FIELD_SIZE: usize = 24;
/// In smaller clusters there is no room for the names of features.
const MIN_CLUSTER_WITH_NAMES: u64 = 4096;

/// Where persistent bitmaps are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bitmaps {
    pub count: u32,
    pub directory_size: u64,
    pub directory_offset: u64,
}

/// How clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompressionType {
    /// Raw deflate with a window of 4 KiB.
    Zlib,
    /// One zstd frame for each cluster.
    Zstd,
}

impl CompressionType {
    /// The levels that clusters can be compressed at, from fast to small.
    pub fn levels(self) -> RangeInclusive<u32> {
        match self {
            CompressionType::Zlib => 1..=9,
            CompressionType::Zstd => 1..=19,
        }
    }
}

/// A checked header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub version: u32,
    pub cluster_bits: u32,
    /// Virtual size in bytes.
    pub size: u64,
    /// Entries of the active L1 table.
    pub l1_size: u32,
    pub l1_table_offset: u64,
    pub refcount_table_offset: u64,
    pub refcount_table_clusters: u32,
    pub nb_snapshots: u32,
    pub snapshots_offset: u64,
    pub incompatible: u64,
    pub compatible: u64,
    pub autoclear: u64,
    /// log2 of the bits of a reference count.
    pub refcount_order: u32,
    pub compression: CompressionType,
    pub backing_file: Option<String>,
    pub backing_format: Option<String>,
    pub data_file: Option<String>,
    pub bitmaps: Option<Bitmaps>,
    /// Fields behind those known here, kept as they are.
    pub unknown_fields: Vec<u8>,
    /// Header extensions not known here, kept as they are: type and data.
    pub unknown_extensions: Vec<(u32, Vec<u8>)>,
}

pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes)
}

pub(super) fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_be_bytes)
}

impl Header {
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    pub fn has(&self, incompatible: u64) -> bool {
        self.incompatible & incompatible != 0
    }

    /// Bytes of one L2 entry.
    pub fn l2_entry_size(&self) -> u64 {
        if self.has(EXTENDED_L2) { 16 } else { 8 }
    }

    /// Bytes that are stored, zero or left to the image below as one: a part of a cluster with extended L2 entries.
    pub fn subcluster_size(&self) -> u64 {
        if self.has(EXTENDED_L2) { self.cluster_size() / 32 } else { self.cluster_size() }
    }

    /// Guest bytes that one L2 table maps.
    pub fn l2_span(&self) -> u64 {
        self.cluster_size() / self.l2_entry_size() * self.cluster_size()
    }

    /// Reference counts in one refcount block.
    pub fn refcounts_per_block(&self) -> u64 {
        (self.cluster_size() * 8) >> self.refcount_order
    }

    /// The largest reference count that fits.
    pub fn max_refcount(&self) -> u64 {
        u64::MAX >> (64 - (1u32 << self.refcount_order))
    }

    /// Reads and checks the header.
    pub fn read(storage: &dyn Storage) -> Result<Self> {
        let name = storage.name();
        let corrupt = |offset: u64, what: String| Error::corrupt(name, FORMAT, offset, what);
        let mut fixed = [0; 112];
        read_padded(storage, &mut fixed, 0)?;
        if fixed[..4] != MAGIC {
            return Err(corrupt(0, format!("the first bytes are {:02x?}, expected {MAGIC:02x?}", &fixed[..4])));
        }
        let version = be32(&fixed, 4);
        if !matches!(version, 2 | 3) {
            return Err(Error::unsupported(name, FORMAT, format!("version {version}; only 2 and 3 are known")));
        }
        let cluster_bits = be32(&fixed, 20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(corrupt(20, format!("cluster_bits is {cluster_bits}, allowed are 9 to 21")));
        }
        let cluster_size = 1u64 << cluster_bits;
        let header_length = if version == 2 { 72 } else { be32(&fixed, 100) };
        if version == 3 && (header_length < 104 || u64::from(header_length) > cluster_size || header_length % 8 != 0) {
            return Err(corrupt(100, format!("header_length is {header_length}, allowed are 104 to {cluster_size} in steps of 8")));
        }
        let v3 = |value: u64| if version == 3 { value } else { 0 };
        let mut header = Header {
            version,
            cluster_bits,
            size: be64(&fixed, 24),
            l1_size: be32(&fixed, 36),
            l1_table_offset: be64(&fixed, 40),
            refcount_table_offset: be64(&fixed, 48),
            refcount_table_clusters: be32(&fixed, 56),
            nb_snapshots: be32(&fixed, 60),
            snapshots_offset: be64(&fixed, 64),
            incompatible: v3(be64(&fixed, 72)),
            compatible: v3(be64(&fixed, 80)),
            autoclear: v3(be64(&fixed, 88)),
            refcount_order: if version == 3 { be32(&fixed, 96) } else { 4 },
            compression: CompressionType::Zlib,
            backing_file: None,
            backing_format: None,
            data_file: None,
            bitmaps: None,
            unknown_fields: Vec::new(),
            unknown_extensions: Vec::new(),
        };
        let mut first = vec![0; cluster_size as usize];
        read_padded(storage, &mut first, 0)?;
        if version == 3 {
            header.unknown_fields = first.get(LEN_V3..header_length as usize).unwrap_or_default().to_vec();
        }
        let features = header.read_extensions(name, &first, header_length)?;
        header.check_features(name, &features)?;
        if header.has(COMPRESSION) || (version == 3 && header_length > 104) {
            header.compression = match fixed[104] {
                0 => CompressionType::Zlib,
                1 => CompressionType::Zstd,
                other => {
                    return Err(Error::unsupported(
                        name,
                        FORMAT,
                        format!("compression type {other}; only zlib (0) and zstd (1) are known"),
                    ));
                }
            };
            if header.has(COMPRESSION) != (header.compression != CompressionType::Zlib) {
                return Err(corrupt(104, "the compression type and its feature bit disagree".into()));
            }
        }
        match be32(&fixed, 32) {
            0 => {}
            1 => return Err(Error::unsupported(name, FORMAT, "AES encryption; decrypt it with 'qemu-img convert' first")),
            2 => return Err(Error::unsupported(name, FORMAT, "LUKS encryption; decrypt it with 'qemu-img convert' first")),
            other => return Err(corrupt(32, format!("crypt_method is {other}, allowed are 0, 1 and 2"))),
        }
        header.check(name)?;
        let (at, len) = (be64(&fixed, 8), be32(&fixed, 16));
        if at != 0 && len != 0 {
            if len > MAX_BACKING_NAME || at.checked_add(len.into()).is_none_or(|end| end > cluster_size) {
                return Err(corrupt(
                    8,
                    format!("the backing file's name ({len} bytes at {at:#x}) is too long or leaves the first cluster"),
                ));
            }
            header.backing_file = Some(text(name, &first, at as usize, len as usize)?);
        }
        Ok(header)
    }

    fn read_extensions(&mut self, name: &str, first: &[u8], header_length: u32) -> Result<Vec<(u8, u8, String)>> {
        let mut features = Vec::new();
        let backing_at = be64(first, 8);
        let end = if backing_at == 0 { first.len() as u64 } else { backing_at.min(first.len() as u64) };
        let mut at = u64::from(header_length);
        while at + 8 <= end {
            let (kind, len) = (be32(first, at as usize), be32(first, at as usize + 4));
            at += 8;
            if kind == EXTENSION_END {
                break;
            }
            if u64::from(len) > end - at {
                return Err(Error::corrupt(
                    name,
                    FORMAT,
                    at - 4,
                    format!("header extension {kind:#x} has {len} bytes, {} are left", end - at),
                ));
            }
            match kind {
                EXTENSION_BACKING_FORMAT => self.backing_format = Some(text(name, first, at as usize, len as usize)?),
                EXTENSION_DATA_FILE => self.data_file = Some(text(name, first, at as usize, len as usize)?),
                EXTENSION_BITMAPS if self.autoclear & BITMAPS != 0 => {
                    let field = |from: u64| (at + from) as usize;
                    let bitmaps = Bitmaps {
                        count: be32(first, field(0)),
                        directory_size: be64(first, field(8)),
                        directory_offset: be64(first, field(16)),
                    };
                    if len < 24 || bitmaps.count > MAX_BITMAPS || bitmaps.directory_size > MAX_BITMAP_DIRECTORY {
                        return Err(Error::corrupt(name, FORMAT, at, format!("the bitmaps extension is wrong: {bitmaps:?}")));
                    }
                    self.bitmaps = Some(bitmaps);
                }
                EXTENSION_FEATURES => {
                    for entry in first[at as usize..at as usize + len as usize].chunks_exact(48) {
                        let label = entry[2..].split(|b| *b == 0).next().unwrap_or_default();
                        features.push((entry[0], entry[1], String::from_utf8_lossy(label).into_owned()));
                    }
                }
                // Bitmaps that were not kept up to date are stale.
                EXTENSION_BITMAPS => {}
                _ => {
                    let data = first.get(at as usize..(at + u64::from(len)) as usize).unwrap_or_default();
                    self.unknown_extensions.push((kind, data.to_vec()));
                }
            }
            at += u64::from(len).next_multiple_of(8);
        }
        Ok(features)
    }

    fn check_features(&self, name: &str, features: &[(u8, u8, String)]) -> Result<()> {
        let unknown = self.incompatible & !(DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2);
        if unknown != 0 {
            // Those that the image names, in its order, then the others.
            let named = || features.iter().filter(|(kind, bit, _)| *kind == 0 && *bit < 64 && unknown >> bit & 1 == 1);
            let nameless = named().fold(unknown, |left, (_, bit, _)| left & !(1 << bit));
            let mut labels: Vec<_> = named().map(|(_, _, label)| label.clone()).collect();
            if nameless != 0 {
                labels.push(format!("Unknown incompatible feature: {nameless:x}"));
            }
            return Err(Error::unsupported(name, FORMAT, format!("feature(s): {}", labels.join(", "))));
        }
        if self.has(EXTENDED_L2) && self.cluster_bits < 14 {
            return Err(Error::corrupt(name, FORMAT, 20, "extended L2 entries need clusters of 16 KiB or more"));
        }
        Ok(())
    }

    /// Checks sizes and places of tables, so that nothing is allocated from unchecked numbers.
    pub fn check(&self, name: &str) -> Result<()> {
        let corrupt = |offset: u64, what: String| Err(Error::corrupt(name, FORMAT, offset, what));
        let aligned = |offset: u64| offset.is_multiple_of(self.cluster_size()) && offset < MAX_OFFSET;
        if self.refcount_order > 6 {
            return corrupt(96, format!("refcount_order is {}, allowed are 0 to 6", self.refcount_order));
        }
        if self.size > i64::MAX as u64 {
            return corrupt(24, format!("the virtual size {} is too large", self.size));
        }
        if u64::from(self.l1_size) * 8 > MAX_L1_BYTES {
            return corrupt(36, format!("the L1 table has {} entries, allowed are {}", self.l1_size, MAX_L1_BYTES / 8));
        }
        let needed = self.size.div_ceil(self.l2_span());
        if u64::from(self.l1_size) < needed {
            return corrupt(36, format!("the L1 table has {} entries, the virtual size needs {needed}", self.l1_size));
        }
        if !aligned(self.l1_table_offset) || (self.l1_size > 0 && self.l1_table_offset == 0) {
            return corrupt(40, format!("the L1 table cannot lie at {:#x}", self.l1_table_offset));
        }
        let table = u64::from(self.refcount_table_clusters) * self.cluster_size();
        if table > MAX_REFCOUNT_TABLE_BYTES {
            return corrupt(56, format!("the refcount table has {table} bytes, allowed are {MAX_REFCOUNT_TABLE_BYTES}"));
        }
        if self.refcount_table_clusters == 0 {
            return corrupt(56, "the image has no refcount table".into());
        }
        if !aligned(self.refcount_table_offset) || self.refcount_table_offset == 0 {
            return corrupt(48, format!("the refcount table cannot lie at {:#x}", self.refcount_table_offset));
        }
        if self.nb_snapshots > MAX_SNAPSHOTS {
            return corrupt(60, format!("{} snapshots, allowed are {MAX_SNAPSHOTS}", self.nb_snapshots));
        }
        if !aligned(self.snapshots_offset) || (self.nb_snapshots > 0 && self.snapshots_offset == 0) {
            return corrupt(64, format!("the snapshot table cannot lie at {:#x}", self.snapshots_offset));
        }
        Ok(())
    }

    /// The fields up to the header's length, all of which lie in the first sector.
    fn fields(&self) -> Vec<u8> {
        let mut out = vec![0; if self.version == 2 { LEN_V2 } else { LEN_V3 }];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC);
        put(4, &self.version.to_be_bytes());
        put(20, &self.cluster_bits.to_be_bytes());
        put(24, &self.size.to_be_bytes());
        put(36, &self.l1_size.to_be_bytes());
        put(40, &self.l1_table_offset.to_be_bytes());
        put(48, &self.refcount_table_offset.to_be_bytes());
        put(56, &self.refcount_table_clusters.to_be_bytes());
        put(60, &self.nb_snapshots.to_be_bytes());
        put(64, &self.snapshots_offset.to_be_bytes());
        if self.version == 3 {
            put(72, &self.incompatible.to_be_bytes());
            put(80, &self.compatible.to_be_bytes());
            put(88, &self.autoclear.to_be_bytes());
            put(96, &self.refcount_order.to_be_bytes());
            put(100, &((LEN_V3 + self.unknown_fields.len()) as u32).to_be_bytes());
            put(104, &[u8::from(self.compression == CompressionType::Zstd)]);
            out.extend(&self.unknown_fields);
        }
        out
    }

    /// The bytes that the first cluster begins with: fields, extensions, and the backing file's name.
    ///
    /// # Errors
    /// [`Error::Invalid`] when they do not fit.
    pub fn serialize(&self) -> Result<Vec<u8>> {
        let mut out = self.fields();
        let mut extension = |kind: u32, data: &[u8]| {
            out.extend(kind.to_be_bytes());
            out.extend((data.len() as u32).to_be_bytes());
            out.extend(data);
            out.resize(out.len().next_multiple_of(8), 0);
        };
        if let Some(format) = &self.backing_format {
            extension(EXTENSION_BACKING_FORMAT, format.as_bytes());
        }
        if let Some(data_file) = &self.data_file {
            extension(EXTENSION_DATA_FILE, data_file.as_bytes());
        }
        if self.version == 3 && self.cluster_size() >= MIN_CLUSTER_WITH_NAMES {
            extension(EXTENSION_FEATURES, &feature_names());
        }
        if let Some(bitmaps) = &self.bitmaps {
            extension(EXTENSION_BITMAPS, &bitmaps.to_bytes());
        }
        for (kind, data) in &self.unknown_extensions {
            extension(*kind, data);
        }
        extension(EXTENSION_END, &[]);
        if let Some(backing) = &self.backing_file {
            let (at, len) = (out.len() as u64, backing.len() as u32);
            out[8..16].copy_from_slice(&at.to_be_bytes());
            out[16..20].copy_from_slice(&len.to_be_bytes());
            out.extend(backing.as_bytes());
            if len > MAX_BACKING_NAME || out.len() as u64 > self.cluster_size() {
                return Err(Error::Invalid(format!("'{backing}': the backing file's name is too long")));
            }
        }
        if out.len() as u64 > self.cluster_size() {
            return Err(Error::Invalid("the header does not fit into the first cluster".into()));
        }
        Ok(out)
    }
}

impl Header {
    /// Replaces the header in `storage`, durably.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it does not fit, before anything is written.
    pub fn write(&self, storage: &dyn Storage) -> Result<()> {
        let mut bytes = self.serialize()?;
        // Nothing of a longer one before it shall remain.
        bytes.resize(bytes.len().max(self.cluster_size().min(4096) as usize), 0);
        storage.write_at(&bytes, 0)?;
        storage.sync()
    }

    /// Replaces the fields from the size on, up to the compression type. They lie within one sector: a crash leaves all
    /// as they were, or all as they shall be.
    pub fn write_fields(&self, storage: &dyn Storage) -> Result<()> {
        let fields = self.fields();
        storage.write_at(fields.get(FIELD_SIZE..fields.len().min(LEN_V3)).unwrap_or_default(), FIELD_SIZE as u64)
    }
}

impl Bitmaps {
    fn to_bytes(self) -> [u8; 24] {
        let mut out = [0; 24];
        out[..4].copy_from_slice(&self.count.to_be_bytes());
        out[8..16].copy_from_slice(&self.directory_size.to_be_bytes());
        out[16..].copy_from_slice(&self.directory_offset.to_be_bytes());
        out
    }
}

fn feature_names() -> Vec<u8> {
    let names: [(u8, u8, &str); 8] = [
        (0, 0, "dirty bit"),
        (0, 1, "corrupt bit"),
        (0, 2, "external data file"),
        (0, 3, "compression type"),
        (0, 4, "extended L2 entries"),
        (1, 0, "lazy refcounts"),
        (2, 0, "bitmaps"),
        (2, 1, "raw external data"),
    ];
    let mut out = Vec::new();
    for (kind, bit, name) in names {
        let start = out.len();
        out.extend([kind, bit]);
        out.extend(name.as_bytes());
        out.resize(start + 48, 0);
    }
    out
}

fn text(name: &str, bytes: &[u8], at: usize, len: usize) -> Result<String> {
    let bytes = at.checked_add(len).and_then(|end| bytes.get(at..end)).unwrap_or_default();
    String::from_utf8(bytes.into()).map_err(|_| Error::corrupt(name, FORMAT, at as u64, "a file name is not UTF-8"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::storage::MemStorage;

    pub fn sound() -> Header {
        Header {
            version: 3,
            cluster_bits: 16,
            size: 1 << 30,
            l1_size: 2,
            l1_table_offset: 3 << 16,
            refcount_table_offset: 1 << 16,
            refcount_table_clusters: 1,
            nb_snapshots: 0,
            snapshots_offset: 0,
            incompatible: 0,
            compatible: 0,
            autoclear: 0,
            refcount_order: 4,
            compression: CompressionType::Zlib,
            backing_file: Some("base.raw".into()),
            backing_format: Some("raw".into()),
            data_file: None,
            bitmaps: None,
            unknown_fields: Vec::new(),
            unknown_extensions: Vec::new(),
        }
    }

    fn read(bytes: &[u8]) -> Result<Header> {
        Header::read(&MemStorage::from_bytes("x.qcow2", bytes))
    }

    #[test]
    fn what_is_written_is_read_back() {
        let header = sound();
        assert_eq!(read(&header.serialize().unwrap()).unwrap(), header);
        let full = Header {
            nb_snapshots: 1,
            snapshots_offset: 5 << 16,
            incompatible: DATA_FILE,
            compatible: LAZY_REFCOUNTS,
            autoclear: BITMAPS | DATA_FILE_RAW,
            data_file: Some("data.raw".into()),
            bitmaps: Some(Bitmaps { count: 1, directory_size: 32, directory_offset: 6 << 16 }),
            unknown_fields: vec![7; 16],
            unknown_extensions: vec![(0x1234_5678, vec![1, 2, 3]), (0x1234_5679, vec![])],
            ..sound()
        };
        assert_eq!(read(&full.serialize().unwrap()).unwrap(), full);
        let v2 = Header { version: 2, cluster_bits: 9, size: 0, l1_size: 1, ..sound() };
        assert_eq!(read(&v2.serialize().unwrap()).unwrap(), v2);
    }

    /// One broken field, and the error that names it.
    #[test]
    fn hostile_headers_are_told_exactly() {
        let table: &[(usize, &[u8], &str)] = &[
            (0, b"QFI\xfa", "offset 0x0: the first bytes are [51, 46, 49, fa]"),
            (4, &[0, 0, 0, 4], "version 4; only 2 and 3"),
            (20, &[0, 0, 0, 8], "offset 0x14: cluster_bits is 8"),
            (20, &[0, 0, 0, 22], "offset 0x14: cluster_bits is 22"),
            (20, &[0xff; 4], "offset 0x14: cluster_bits is 4294967295"),
            (24, &[0x80], "offset 0x18: the virtual size"),
            (24, &[0x10], "offset 0x24: the L1 table has 2 entries, the virtual size needs"),
            (32, &[0, 0, 0, 1], "AES encryption"),
            (32, &[0, 0, 0, 2], "LUKS encryption"),
            (32, &[0, 0, 0, 9], "offset 0x20: crypt_method is 9"),
            (36, &[0x7f], "offset 0x24: the L1 table has 2130706434 entries"),
            (40, &[0, 0, 0, 0, 0, 3, 0, 1], "offset 0x28: the L1 table cannot lie at 0x30001"),
            (40, &[0xff], "offset 0x28: the L1 table cannot lie"),
            (40, &[0; 8], "offset 0x28: the L1 table cannot lie at 0x0"),
            (48, &[0xff], "offset 0x30: the refcount table cannot lie"),
            (56, &[0xff], "offset 0x38: the refcount table has"),
            (56, &[0; 4], "offset 0x38: the image has no refcount table"),
            (60, &[0xff], "offset 0x3c: 4278190080 snapshots"),
            (63, &[1], "offset 0x40: the snapshot table cannot lie at 0x0"),
            (72, &[0x80], "feature(s): Unknown incompatible feature: 8000000000000000"),
            (79, &[8], "offset 0x68: the compression type and its feature bit disagree"),
            (96, &[0, 0, 0, 7], "offset 0x60: refcount_order is 7"),
            (100, &[0, 0, 0, 96], "offset 0x64: header_length is 96"),
            (100, &[0xff], "offset 0x64: header_length is"),
            (104, &[7], "compression type 7"),
            (8, &[0xff], "offset 0x8: the backing file's name"),
            (16, &[0xff], "offset 0x8: the backing file's name"),
            (116, &[0x7f], "offset 0x74: header extension 0xe2792aca has"),
        ];
        let good = sound().serialize().unwrap();
        for (at, bytes, expected) in table {
            let mut broken = good.clone();
            broken[*at..*at + bytes.len()].copy_from_slice(bytes);
            let error = read(&broken).expect_err(expected).to_string();
            assert!(error.contains(expected), "byte {at}: '{error}' lacks '{expected}'");
        }
        assert!(read(b"QFI\xfb").is_err());
        assert!(read(b"").is_err());
    }
}
