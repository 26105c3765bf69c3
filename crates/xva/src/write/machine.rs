//! The machine that an appliance describes, as its creation options say.

use std::fmt::Write;
use std::path::Path;

use imgcore::formats::{CreateOptions, SourceDisk};
use imgcore::{Error, Result, size};
use sha1::{Digest, Sha1};

/// The most disks that a machine of XenServer has.
const MAX_DISKS: usize = 255;

/// A machine with all that its records need.
pub(super) struct Machine {
    pub name: String,
    pub description: String,
    pub memory: u64,
    pub vcpus: u64,
    pub start: Start,
    /// MAC addresses.
    pub nics: Vec<String>,
    pub bridge: String,
    pub network: String,
    /// What ids are derived from.
    seed: Vec<u8>,
}

/// How it starts.
pub(super) enum Start {
    Hvm { uefi: bool },
    Pv { pvh: bool, kernel: String, ramdisk: String, args: String },
}

impl Machine {
    /// Reads the options that describe the machine.
    pub fn new(disks: &[SourceDisk], options: &CreateOptions) -> Result<Self> {
        let text = |name: &str, default: &str| options.get(name).unwrap_or(default).to_string();
        if disks.len() > MAX_DISKS {
            return Err(Error::Invalid(format!("{} disks: an appliance has at most {MAX_DISKS}", disks.len())));
        }
        let stem = disks.first().and_then(|d| Path::new(&d.name).file_stem()?.to_str()).unwrap_or("machine");
        let mut machine = Machine {
            name: text("name", stem),
            description: text("description", ""),
            memory: size::parse(options.get("memory").unwrap_or("1G"))?,
            vcpus: number("vcpus", options.get("vcpus").unwrap_or("1"), 1..=1024)?,
            start: start(options)?,
            nics: Vec::new(),
            bridge: text("bridge", "xenbr0"),
            network: text("network", "Pool-wide network associated with eth0"),
            seed: seed(disks, options),
        };
        if machine.memory < 1 << 20 {
            return Err(Error::Invalid(format!("memory={} is too little: give a size such as 2G", text("memory", ""))));
        }
        machine.nics = match options.get("mac") {
            None => vec![machine.mac()],
            Some("none") => Vec::new(),
            Some(list) => list.split('/').map(mac).collect::<Result<_>>()?,
        };
        Ok(machine)
    }

    /// A UUID for a part of the machine: the same for the same options and disk sizes.
    pub fn uuid(&self, part: &str) -> String {
        let d = self.digest(part);
        // Version 5 (made from a SHA-1) of the usual variant.
        let [v, n] = [d[6] & 0x0f | 0x50, d[8] & 0x3f | 0x80];
        let hex = |bytes: &[u8]| {
            bytes.iter().fold(String::new(), |mut text, b| {
                let _ = write!(text, "{b:02x}");
                text
            })
        };
        format!("{}-{}-{}-{}-{}", hex(&d[..4]), hex(&d[4..6]), hex(&[v, d[7]]), hex(&[n, d[9]]), hex(&d[10..16]))
    }

    /// A MAC address of Xen's own range.
    fn mac(&self) -> String {
        let d = self.digest("mac");
        format!("00:16:3e:{:02x}:{:02x}:{:02x}", d[0] & 0x7f, d[1], d[2])
    }

    fn digest(&self, part: &str) -> [u8; 20] {
        Sha1::new().chain_update(&self.seed).chain_update(part).finalize().into()
    }
}

fn start(options: &CreateOptions) -> Result<Start> {
    let kind = options.get("boot").unwrap_or("bios");
    let start = match kind {
        "bios" => Start::Hvm { uefi: false },
        "uefi" => Start::Hvm { uefi: true },
        "pv" | "pvh" => {
            let text = |name| options.get(name).unwrap_or_default().to_string();
            Start::Pv { pvh: kind == "pvh", kernel: text("kernel"), ramdisk: text("ramdisk"), args: text("args") }
        }
        other => return Err(Error::Invalid(format!("boot={other} is none of bios, uefi, pv, pvh"))),
    };
    match &start {
        Start::Hvm { .. } => {
            if let Some(name) = ["kernel", "ramdisk", "args"].into_iter().find(|n| options.get(n).is_some()) {
                return Err(Error::Invalid(format!("{name}= is for boot=pv and boot=pvh: other machines start from their disk")));
            }
        }
        Start::Pv { kernel, ramdisk, .. } if kernel.is_empty() && !ramdisk.is_empty() => {
            return Err(Error::Invalid("ramdisk= needs kernel=, else both are taken from the disk".into()));
        }
        Start::Pv { .. } => {}
    }
    Ok(start)
}

/// A whole number in a range.
pub(super) fn number(name: &str, text: &str, range: std::ops::RangeInclusive<u64>) -> Result<u64> {
    text.parse()
        .ok()
        .filter(|n| range.contains(n))
        .ok_or_else(|| Error::Invalid(format!("{name}={text}: it must be a number from {} to {}", range.start(), range.end())))
}

fn mac(text: &str) -> Result<String> {
    let parts: Vec<_> = text.split(':').collect();
    match parts.len() == 6 && parts.iter().all(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit())) {
        true => Ok(text.to_ascii_lowercase()),
        false => Err(Error::Invalid(format!("mac={text}: write 00:16:3e:12:34:56, several with / between them, or none"))),
    }
}

fn seed(disks: &[SourceDisk], options: &CreateOptions) -> Vec<u8> {
    let mut seed = b"guestlift appliance\0".to_vec();
    // However it is packed, it is the same machine.
    let packing = |name: &str| matches!(name, "checksum" | "compression" | "compression_level");
    for (name, value) in options.iter().filter(|(name, _)| !packing(name)) {
        seed.extend_from_slice(format!("{name}={value}\0").as_bytes());
    }
    for disk in disks {
        seed.extend_from_slice(format!("{}\0{}\0", disk.name, disk.image.size()).as_bytes());
    }
    seed
}
