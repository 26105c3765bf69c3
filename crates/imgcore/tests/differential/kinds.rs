//! Random formats and creation options, and what can be done with such images.

use imgcore::Formats;

use crate::common::Random;

/// One image's format and options.
#[derive(Clone, Debug)]
pub struct Kind {
    pub format: &'static str,
    /// As both programs call them; without the image below.
    pub options: Vec<(&'static str, String)>,
    /// Bytes that are allocated, and compressed, together.
    pub cluster: u64,
    /// The virtual size is a multiple of it.
    pub unit: u64,
    /// Only a conversion can make such an image, and nothing can be written to it afterwards.
    pub only_converted: bool,
    pub compressible: bool,
    pub snapshots: bool,
    /// A discarded cluster reads as zeroes in QEMU, too.
    pub discards_to_zero: bool,
}

impl Kind {
    fn plain(format: &'static str) -> Self {
        Kind {
            format,
            options: Vec::new(),
            cluster: 65536,
            unit: 65536,
            only_converted: false,
            compressible: false,
            snapshots: false,
            discards_to_zero: false,
        }
    }

    fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.options.push((name, value.to_string()));
        self
    }

    pub fn has(&self, name: &str) -> bool {
        self.options.iter().any(|(option, _)| *option == name)
    }

    pub fn is(&self, name: &str, value: &str) -> bool {
        self.options.iter().any(|(option, of)| *option == name && of == value)
    }

    /// Whether imago 0.2 reads such images: of VMDKs those whose descriptor is a file of its own, and flat.
    pub fn known_to_imago(&self) -> bool {
        match self.format {
            "raw" => true,
            "qcow2" => !["extended_l2", "data_file"].iter().any(|o| self.has(o)) && !self.is("compression_type", "zstd"),
            "vmdk" => self.options.iter().any(|(_, subformat)| subformat.ends_with("Flat")),
            _ => false,
        }
    }

    /// The options as `-o` takes them.
    pub fn text(&self) -> String {
        self.options.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")
    }

    /// A kind for the first image of a chain, or for one on top of another.
    pub fn random(random: &mut Random, on_top: bool, data_file: &str) -> Kind {
        let known: Vec<_> = Formats::new().drivers().map(|d| d.name()).collect();
        // Half of all are the format with the most options, and the only one that goes on top of others.
        if on_top || random.below(2) == 0 {
            return qcow2(random, on_top, data_file);
        }
        match *random.pick(&known) {
            "raw" => Kind { unit: 512, ..Kind::plain("raw") },
            "qcow2" => qcow2(random, on_top, data_file),
            "vpc" => {
                let kind = Kind::plain("vpc").with("subformat", random.pick(&["dynamic", "fixed"]));
                kind.with("force_size", random.pick(&["on", "off"]))
            }
            "vhdx" => {
                let kind = Kind { unit: 1 << 20, ..Kind::plain("vhdx") }.with("subformat", random.pick(&["dynamic", "fixed"]));
                let kind = kind.with("block_size", 1u64 << (20 + random.below(4)));
                kind.with("block_state_zero", random.pick(&["on", "off"]))
            }
            "vmdk" => {
                let subformat =
                    *random.pick(&["monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "streamOptimized"]);
                Kind { only_converted: subformat == "streamOptimized", ..Kind::plain("vmdk") }.with("subformat", subformat)
            }
            "vdi" => Kind::plain("vdi").with("static", random.pick(&["on", "off"])),
            other => panic!("no options for the format {other}: add them here"),
        }
    }
}

fn qcow2(random: &mut Random, on_top: bool, data_file: &str) -> Kind {
    let cluster = *random.pick(&[512u64, 1024, 4096, 16384, 65536, 65536, 262_144, 2 << 20]);
    let mut kind = Kind { cluster, unit: 512, ..Kind::plain("qcow2") }.with("cluster_size", cluster);
    (kind.compressible, kind.snapshots) = (true, true);
    if random.below(5) == 0 {
        return kind.with("compat", "0.10");
    }
    kind.discards_to_zero = true;
    let bits = *random.pick(&[1, 2, 4, 8, 16, 16, 16, 32, 64]);
    // Many compressed clusters lie in one, and a snapshot counts each twice.
    kind.snapshots = bits > 2 && (bits >= 16 || random.below(2) == 0);
    kind.compressible = bits >= 16 || !kind.snapshots;
    kind = kind.with("compat", "1.1").with("refcount_bits", bits);
    let mut one_in = |parts| random.below(parts) == 0;
    let extended = cluster >= 16384 && one_in(3);
    if extended {
        kind = kind.with("extended_l2", "on");
    }
    if one_in(4) {
        kind = kind.with("lazy_refcounts", "on");
    }
    if one_in(3) {
        kind = kind.with("compression_type", "zstd");
    }
    if one_in(6) {
        (kind.compressible, kind.snapshots) = (false, false);
        kind = kind.with("data_file", data_file);
        if !on_top && one_in(2) {
            kind = kind.with("data_file_raw", "on");
        }
    }
    if !on_top && one_in(4) {
        kind = kind.with("preallocation", random.pick(&["metadata", "falloc", "full"]));
    }
    kind
}
