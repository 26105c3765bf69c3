//! Creating an image: its options, and the first clusters of the file.

use std::sync::Arc;

use super::Qcow2;
use super::header::{COMPRESSION, CompressionType, DATA_FILE, DATA_FILE_RAW, EXTENDED_L2, Header, LAZY_REFCOUNTS};
use super::refcount::set_count;
use crate::formats::{CreateOptions, FormatOption};
use crate::{Error, Preallocation, Result, Storage, size};

pub(super) const OPTIONS: &[FormatOption] = &[
    FormatOption { name: "backing_file", value: "<str>", help: "File name of a base image" },
    FormatOption { name: "backing_fmt", value: "<str>", help: "Image format of the base image" },
    FormatOption { name: "cluster_size", value: "<size>", help: "qcow2 cluster size" },
    FormatOption { name: "compat", value: "<str>", help: "Compatibility level (v2 [0.10] or v3 [1.1])" },
    FormatOption {
        name: "compression_level",
        value: "<num>",
        help: "How hard to compress: zlib 1 to 9, zstd 1 to 19 (not kept in the image)",
    },
    FormatOption { name: "compression_type", value: "<str>", help: "Compression method used for image cluster compression" },
    FormatOption { name: "data_file", value: "<str>", help: "File name of an external data file" },
    FormatOption { name: "data_file_raw", value: "<bool (on/off)>", help: "The external data file must stay valid as a raw image" },
    FormatOption { name: "extended_l2", value: "<bool (on/off)>", help: "Extended L2 tables" },
    FormatOption { name: "lazy_refcounts", value: "<bool (on/off)>", help: "Postpone refcount updates" },
    FormatOption { name: "preallocation", value: "<str>", help: "Preallocation mode (allowed values: off, metadata, falloc, full)" },
    FormatOption { name: "refcount_bits", value: "<num>", help: "Width of a reference count entry in bits" },
];

/// The smallest clusters that have room for 32 subclusters of a sector.
const MIN_EXTENDED_CLUSTER: u64 = 16 << 10;

/// The options, checked.
pub(super) struct Settings {
    pub header: Header,
    pub preallocation: Preallocation,
    compression_level: Option<u32>,
}

pub(super) fn settings(bytes: u64, options: &CreateOptions) -> Result<Settings> {
    let invalid = |what: String| Err(Error::Invalid(what));
    let cluster_size = size::parse(options.get("cluster_size").unwrap_or("64k"))?;
    if !cluster_size.is_power_of_two() || !(512..=2 << 20).contains(&cluster_size) {
        return invalid("Cluster size must be a power of two between 512 and 2048k".into());
    }
    let version = match options.get("compat") {
        None | Some("1.1" | "v3") => 3,
        Some("0.10" | "v2") => 2,
        Some(other) => return invalid(format!("Parameter 'version' does not accept value '{other}'")),
    };
    let refcount_bits = match options.get("refcount_bits").map(str::parse::<u32>) {
        None => 16,
        Some(Ok(bits)) if bits.is_power_of_two() && bits <= 64 => bits,
        Some(_) => return invalid("Refcount width must be a power of two and may not exceed 64 bits".into()),
    };
    if version == 2 && refcount_bits != 16 {
        return invalid(
            "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)".into(),
        );
    }
    let lazy = options.flag("lazy_refcounts")?;
    if version == 2 && lazy {
        return invalid("Lazy refcounts only supported with compatibility level 1.1 and above (use version=v3 or greater)".into());
    }
    let extended = options.flag("extended_l2")?;
    if version == 2 && extended {
        return invalid("Extended L2 entries are only supported with compatibility level 1.1 and above (use version=v3 or greater)".into());
    }
    if extended && cluster_size < MIN_EXTENDED_CLUSTER {
        return invalid(format!("Extended L2 entries are only supported with cluster sizes of at least {MIN_EXTENDED_CLUSTER} bytes"));
    }
    let compression = match options.get("compression_type") {
        None | Some("zlib") => CompressionType::Zlib,
        Some("zstd") if version == 3 => CompressionType::Zstd,
        Some("zstd") => {
            return invalid(
                "Non-zlib compression type is only supported with compatibility level 1.1 and above (use version=v3 or greater)".into(),
            );
        }
        Some(other) => return invalid(format!("Parameter 'compression-type' does not accept value '{other}'")),
    };
    let compression_level = match options.get("compression_level").map(str::parse::<u32>) {
        None => None,
        Some(Ok(level)) if compression.levels().contains(&level) => Some(level),
        Some(_) => {
            let (least, most) = compression.levels().into_inner();
            return invalid(format!("compression_level is a number from {least} to {most} with this compression_type"));
        }
    };
    let preallocation: Preallocation = options.get("preallocation").unwrap_or("off").parse()?;
    let backing_file = options.get("backing_file").map(str::to_owned);
    let data_file = options.get("data_file").map(str::to_owned);
    let data_file_raw = options.flag("data_file_raw")?;
    if version == 2 && data_file.is_some() {
        return invalid("External data files are only supported with compatibility level 1.1 and above (use version=v3 or greater)".into());
    }
    if data_file_raw && data_file.is_none() {
        return invalid("data-file-raw requires data-file".into());
    }
    if data_file_raw && backing_file.is_some() {
        return invalid("Backing file and data-file-raw cannot be used at the same time".into());
    }
    // A reader that looks at the tables must find all of the data that one without them sees.
    let preallocation = if data_file_raw { preallocation.max(Preallocation::Metadata) } else { preallocation };
    if backing_file.is_some() && preallocation != Preallocation::Off && !extended {
        return invalid("Backing file and preallocation can only be used at the same time if extended_l2 is on".into());
    }
    let bits = |bits: &[(bool, u64)]| bits.iter().filter(|(on, _)| *on).fold(0, |all, (_, bit)| all | bit);
    let mut header = Header {
        version,
        cluster_bits: cluster_size.trailing_zeros(),
        size: bytes.checked_next_multiple_of(512).ok_or_else(|| Error::Invalid("the image is too large".into()))?,
        l1_size: 0,
        l1_table_offset: 0,
        refcount_table_offset: cluster_size,
        refcount_table_clusters: 1,
        nb_snapshots: 0,
        snapshots_offset: 0,
        incompatible: bits(&[
            (data_file.is_some(), DATA_FILE),
            (compression != CompressionType::Zlib, COMPRESSION),
            (extended, EXTENDED_L2),
        ]),
        compatible: bits(&[(lazy, LAZY_REFCOUNTS)]),
        autoclear: bits(&[(data_file_raw, DATA_FILE_RAW)]),
        refcount_order: refcount_bits.trailing_zeros(),
        compression,
        backing_file,
        backing_format: options.get("backing_fmt").map(str::to_owned),
        data_file,
        bitmaps: None,
        unknown_fields: Vec::new(),
        unknown_extensions: Vec::new(),
    };
    let l1_size = header.size.div_ceil(header.l2_span()).max(1);
    header.l1_size = u32::try_from(l1_size).unwrap_or(u32::MAX);
    lay_out(&mut header);
    let too_large = "The image size is too large for file format 'qcow2' (try using a larger cluster size)";
    header.check("new image").map_err(|_| Error::Invalid(too_large.into()))?;
    Ok(Settings { header, preallocation, compression_level })
}

/// Places header, refcount table, refcount blocks and L1 table one behind the other; gives the number of blocks.
fn lay_out(header: &mut Header) -> u64 {
    let cluster_size = header.cluster_size();
    let l1_clusters = (u64::from(header.l1_size) * 8).div_ceil(cluster_size);
    let (mut table, mut blocks) = (1, 1);
    loop {
        let needed = (1 + table + blocks + l1_clusters).div_ceil(header.refcounts_per_block());
        let needed_table = (needed * 8).div_ceil(cluster_size);
        if (needed, needed_table) == (blocks, table) {
            break;
        }
        (blocks, table) = (needed.max(blocks), needed_table.max(table));
    }
    header.refcount_table_clusters = u32::try_from(table).unwrap_or(u32::MAX);
    header.l1_table_offset = (1 + table + blocks) * cluster_size;
    blocks
}

/// The options as they would be used, right or wrong, in qemu-img's order.
pub(super) fn effective_options(bytes: u64, options: &CreateOptions) -> Result<Vec<(&'static str, String)>> {
    let given = |name: &'static str| options.get(name).map(|value| (name, value.to_owned()));
    let or = |name: &'static str, default: &str| Some((name, options.get(name).unwrap_or(default).to_owned()));
    let cluster_size = size::parse(options.get("cluster_size").unwrap_or("64k"))?;
    Ok([
        Some(("cluster_size", cluster_size.to_string())),
        or("extended_l2", "off"),
        given("preallocation"),
        or("compression_type", "zlib"),
        given("compression_level"),
        Some(("size", bytes.to_string())),
        given("backing_file"),
        given("backing_fmt"),
        given("compat"),
        given("data_file"),
        given("data_file_raw"),
        or("lazy_refcounts", "off"),
        or("refcount_bits", "16"),
    ]
    .into_iter()
    .flatten()
    .collect())
}

impl Qcow2 {
    /// Makes an empty image of `bytes` bytes (rounded up to sectors), replacing all that is in `storage`. The header
    /// comes last, so that an interrupted creation leaves no image. A backing file is named but not opened: what is
    /// read from ranges never written is then unknown, see [`Qcow2::set_backing`].
    ///
    /// # Errors
    /// [`Error::Invalid`] for options that contradict each other or ask for a data file.
    pub fn create(storage: Arc<dyn Storage>, bytes: u64, options: &CreateOptions) -> Result<Self> {
        Self::create_parts(storage, None, bytes, options)
    }

    /// The same, with `data` as the external data file that `options` names, where they name one. All that is in it is
    /// replaced as well.
    pub fn create_parts(storage: Arc<dyn Storage>, data: Option<Arc<dyn Storage>>, bytes: u64, options: &CreateOptions) -> Result<Self> {
        let Settings { mut header, preallocation, compression_level } = settings(bytes, options)?;
        if data.is_some() != header.has(DATA_FILE) {
            return Err(Error::Invalid(format!("{}: an external data file must be both named and given", storage.name())));
        }
        if let Some(data) = &data {
            data.set_size(0)?;
            data.set_size(header.size)?;
            // A block device keeps what was on it.
            data.zero_at(0, header.size)?;
        }
        let first = header.serialize()?;
        let cluster_size = header.cluster_size();
        let blocks = lay_out(&mut header);
        let table = u64::from(header.refcount_table_clusters);
        let l1_clusters = (u64::from(header.l1_size) * 8).div_ceil(cluster_size);
        let used = 1 + table + blocks + l1_clusters;
        storage.set_size(0)?;
        storage.set_size(used * cluster_size)?;
        for block in 0..blocks {
            let mut counts = vec![0; cluster_size as usize];
            let from = block * header.refcounts_per_block();
            for cluster in from..used.min(from + header.refcounts_per_block()) {
                set_count(&mut counts, cluster - from, header.refcount_order, 1);
            }
            let offset = (1 + table + block) * cluster_size;
            storage.write_at(&counts, offset)?;
            storage.write_at(&offset.to_be_bytes(), header.refcount_table_offset + block * 8)?;
        }
        // A block device keeps what was on it.
        storage.zero_at(header.l1_table_offset, l1_clusters * cluster_size)?;
        storage.write_at(&first, 0)?;
        let mut image = Self::with_header(storage, header, None)?;
        if let Some(data) = data {
            image = image.with_data(data);
        }
        image.compression_level = compression_level;
        let image = image.into_writable()?;
        image.preallocate(0..image.header.size.div_ceil(cluster_size), preallocation)?;
        Ok(image)
    }

    /// Gives a newly created image the open image that it was created on top of.
    pub fn set_backing(&mut self, backing: Arc<dyn crate::Image>) {
        self.backing = Some(backing);
    }
}
