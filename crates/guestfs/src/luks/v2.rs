//! LUKS2's header: a binary part with a checksum, and JSON; both there twice.

use std::collections::BTreeMap;

use argon2::Algorithm;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use imgcore::Image;
use serde::Deserialize;

use super::keyslot::{Digest, Slot};
use super::stretch::{Hash, Stretch};
use super::{Header, Locked, Segment, bytes};
use crate::bytes::{be16, be64, cut, text};

const BINARY: usize = 4096;
const CHECKSUM: usize = 448;
/// The sizes that a header may have, which are also where the second one may begin.
const SIZES: [u64; 9] = [0x4000, 0x8000, 0x1_0000, 0x2_0000, 0x4_0000, 0x8_0000, 0x10_0000, 0x20_0000, 0x40_0000];
const SECTOR_SIZES: [u64; 4] = [512, 1024, 2048, 4096];

#[derive(Deserialize)]
struct Metadata {
    keyslots: BTreeMap<String, Keyslot>,
    segments: BTreeMap<String, DataSegment>,
    digests: BTreeMap<String, KeyDigest>,
    #[serde(default)]
    config: Config,
}

#[derive(Default, Deserialize)]
struct Config {
    #[serde(default)]
    requirements: Requirements,
}

#[derive(Default, Deserialize)]
struct Requirements {
    #[serde(default)]
    mandatory: Vec<String>,
}

#[derive(Deserialize)]
struct Keyslot {
    #[serde(rename = "type")]
    kind: String,
    key_size: usize,
    af: Option<Split>,
    area: Option<Area>,
    kdf: Option<Kdf>,
    priority: Option<u8>,
}

#[derive(Deserialize)]
struct Split {
    stripes: u32,
    hash: String,
}

#[derive(Deserialize)]
struct Area {
    offset: String,
    encryption: String,
    key_size: usize,
}

#[derive(Deserialize)]
struct Kdf {
    #[serde(rename = "type")]
    kind: String,
    salt: String,
    hash: Option<String>,
    iterations: Option<u32>,
    time: Option<u32>,
    memory: Option<u32>,
    cpus: Option<u32>,
}

#[derive(Deserialize)]
struct DataSegment {
    #[serde(rename = "type")]
    kind: String,
    offset: String,
    size: String,
    #[serde(default)]
    iv_tweak: String,
    #[serde(default)]
    encryption: String,
    sector_size: Option<u64>,
    integrity: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct KeyDigest {
    keyslots: Vec<String>,
    segments: Vec<String>,
    salt: String,
    digest: String,
    hash: String,
    iterations: u32,
}

pub(super) fn read(image: &dyn Image) -> Result<Header, Locked> {
    let first = copy(image, 0, b"LUKS\xba\xbe");
    let mut copies = first.as_ref().ok().cloned();
    if copies.is_none() {
        copies = SIZES.iter().find_map(|at| copy(image, *at, b"SKUL\xba\xbe").ok());
    }
    let json = copies.ok_or_else(|| first.err().unwrap_or_default())?;
    parse(&json)
}

/// The JSON of the header at `at`, if its checksum is right.
fn copy(image: &dyn Image, at: u64, magic: &[u8]) -> Result<Vec<u8>, String> {
    let binary = bytes(image, at, BINARY)?;
    if cut(&binary, 0, 6) != magic || be16(&binary, 6) != 2 || be64(&binary, 256) != at {
        return Err(format!("there is no header of LUKS2 at {at:#x}"));
    }
    let len = be64(&binary, 8);
    if !SIZES.contains(&len) {
        return Err(format!("its header at {at:#x} has {len} bytes"));
    }
    let hash = Hash::named(&text(cut(&binary, 72, 32)))?;
    let whole = bytes(image, at, len as usize)?;
    let (head, tail) = whole.split_at(CHECKSUM.min(whole.len()));
    let digest = hash.digest(&[head, &[0; 64], tail.get(64..).unwrap_or_default()]);
    if cut(&binary, CHECKSUM, hash.len()) != digest.as_slice() {
        return Err(format!("the checksum of its header at {at:#x} is wrong"));
    }
    let json = whole.get(BINARY..).unwrap_or_default();
    Ok(json.split(|b| *b == 0).next().unwrap_or_default().to_vec())
}

fn parse(json: &[u8]) -> Result<Header, Locked> {
    let metadata: Metadata = serde_json::from_slice(json).map_err(|e| format!("its metadata: {e}"))?;
    if let Some(requirement) = metadata.config.requirements.mandatory.first() {
        return Err(format!("it requires {}, which is not supported", requirement.escape_default()).into());
    }
    let mut segments = metadata.segments.iter();
    let (Some((number, segment)), None) = (segments.next(), segments.next()) else {
        return Err("it has not just one segment, as in the middle of being encrypted anew".into());
    };
    if segment.kind != "crypt" || segment.integrity.is_some() {
        return Err(format!("its segment of type {} is not supported, or has checksums of its own", segment.kind.escape_default()).into());
    }
    let (mut slots, mut unusable) = (Vec::new(), None);
    // Slots of other types are for other purposes; without priority a slot is only used when it is named.
    for (key, slot) in metadata.keyslots.iter().filter(|(_, slot)| slot.kind == "luks2" && slot.priority != Some(0)) {
        match number_of(key).and_then(|number| slot.parse(number)) {
            Ok(parsed) => slots.push((slot.priority.unwrap_or(1), parsed)),
            Err(what) => unusable = Some(what),
        }
    }
    slots.sort_by_key(|(priority, slot)| (u8::MAX - priority, slot.number));
    Ok(Header {
        slots: slots.into_iter().map(|(_, slot)| slot).collect(),
        unusable,
        digests: metadata.digests.values().map(KeyDigest::parse).collect::<Result<_, _>>()?,
        segment: segment.parse(number_of(number)?)?,
    })
}

fn number_of<N: std::str::FromStr>(text: &str) -> Result<N, String> {
    text.parse().map_err(|_| format!("its metadata has no number in '{}'", text.escape_default()))
}

fn base64(text: &str) -> Result<Vec<u8>, String> {
    BASE64_STANDARD.decode(text).map_err(|e| format!("its metadata: {e}"))
}

impl Keyslot {
    fn parse(&self, number: u32) -> Result<Slot, String> {
        let (Some(split), Some(area), Some(kdf)) = (&self.af, &self.area, &self.kdf) else {
            return Err(format!("its key slot {number} is not whole"));
        };
        Ok(Slot {
            number,
            stretch: kdf.parse()?,
            start: number_of(&area.offset)?,
            cipher: area.encryption.clone(),
            area_key: area.key_size,
            key: self.key_size,
            stripes: split.stripes,
            split_hash: Hash::named(&split.hash)?,
        })
    }
}

impl Kdf {
    fn parse(&self) -> Result<Stretch, String> {
        let kind = match self.kind.as_str() {
            "pbkdf2" => None,
            "argon2i" => Some(Algorithm::Argon2i),
            "argon2id" => Some(Algorithm::Argon2id),
            other => return Err(format!("the key derivation {} is not supported", other.escape_default())),
        };
        let missing = || "a key derivation that is not whole".to_string();
        let salt = base64(&self.salt)?;
        Ok(match kind {
            None => Stretch::Pbkdf2 {
                hash: Hash::named(self.hash.as_deref().ok_or_else(missing)?)?,
                rounds: self.iterations.ok_or_else(missing)?,
                salt,
            },
            Some(kind) => Stretch::Argon2 {
                kind,
                passes: self.time.ok_or_else(missing)?,
                memory_kib: self.memory.ok_or_else(missing)?,
                lanes: self.cpus.ok_or_else(missing)?,
                salt,
            },
        })
    }
}

impl DataSegment {
    fn parse(&self, number: u32) -> Result<Segment, String> {
        let sector_size = self.sector_size.unwrap_or(512);
        if !SECTOR_SIZES.contains(&sector_size) {
            return Err(format!("sectors of {sector_size} bytes"));
        }
        let len = if self.size == "dynamic" { None } else { Some(number_of(&self.size)?) };
        let iv_tweak = if self.iv_tweak.is_empty() { 0 } else { number_of(&self.iv_tweak)? };
        Ok(Segment { start: number_of(&self.offset)?, len, cipher: self.encryption.clone(), iv_tweak, sector_size, number })
    }
}

impl KeyDigest {
    fn parse(&self) -> Result<Digest, String> {
        let numbers = |texts: &[String]| texts.iter().map(|t| number_of(t)).collect::<Result<Vec<u32>, _>>();
        Ok(Digest {
            slots: numbers(&self.keyslots)?,
            segments: numbers(&self.segments)?,
            stretch: Stretch::Pbkdf2 { hash: Hash::named(&self.hash)?, rounds: self.iterations, salt: base64(&self.salt)? },
            value: base64(&self.digest)?,
        })
    }
}
