//! LUKS: encrypted volumes, unlocked in this process with a passphrase (LUKS1 On-Disk Format 1.2.3, LUKS2 On-Disk Format 1.1.2).
//!
//! The keys are wiped from memory when they are no longer needed, and no message has one.

mod cipher;
mod image;
mod keyslot;
mod stretch;
mod v1;
mod v2;

use std::sync::Arc;
use std::time::{Duration, Instant};

use imgcore::Image;
use zeroize::Zeroizing;

use self::cipher::Cipher;
use self::image::Decrypted;
use self::keyslot::{Digest, Slot};
use crate::keys::Secret;

const SECTOR: u64 = 512;
/// Of all the slots that a header may have, as many are tried as this allows.
const PATIENCE: Duration = Duration::from_secs(90);

/// An encrypted volume's header.
pub(crate) struct Header {
    /// The ones that can be tried, in their order.
    slots: Vec<Slot>,
    /// Why another one cannot be tried.
    unusable: Option<String>,
    digests: Vec<Digest>,
    segment: Segment,
}

/// Where and how the content lies.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Segment {
    start: u64,
    /// To the volume's end if `None`.
    len: Option<u64>,
    /// dm-crypt's name: `aes-xts-plain64`.
    cipher: String,
    /// Added to a sector's number for its initialisation vector.
    iv_tweak: u64,
    /// Bytes that are encrypted together.
    sector_size: u64,
    /// Its number in the header.
    number: u32,
}

/// Why a volume stays locked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Locked {
    /// The passphrase is of no slot.
    WrongKey,
    /// The header is damaged or of a kind that is not supported.
    Header(String),
}

impl From<String> for Locked {
    fn from(what: String) -> Self {
        Locked::Header(what)
    }
}

impl From<&str> for Locked {
    fn from(what: &str) -> Self {
        Locked::Header(what.into())
    }
}

/// An unlocked volume.
#[derive(Clone)]
pub(crate) struct Unlocked {
    /// Bytes.
    pub len: u64,
    /// Its content, or why only the appliance can read it.
    pub image: Result<Arc<dyn Image>, String>,
    segment: Segment,
    key: Arc<Secret>,
}

impl Header {
    /// Reads a volume's header.
    pub fn read(image: &dyn Image) -> Result<Self, Locked> {
        let start = bytes(image, 0, 8)?;
        let header = match start.get(..8) {
            Some(b"LUKS\xba\xbe\x00\x01") => v1::read(image),
            // The second copy stands in for a first one that is damaged, its magic included.
            _ => v2::read(image),
        }?;
        if header.segment.start == 0 || header.segment.start >= image.size() {
            return Err("it is a detached header, whose content is on another device: give a device that has both".into());
        }
        Ok(header)
    }

    /// Unlocks the volume with a passphrase.
    pub fn unlock(&self, image: &Arc<dyn Image>, passphrase: &[u8]) -> Result<Unlocked, Locked> {
        let started = Instant::now();
        let mut failure = self.unusable.clone();
        for slot in &self.slots {
            if started.elapsed() > PATIENCE {
                return Err("its key slots take too long to be tried".into());
            }
            let candidate = match slot.open(image.as_ref(), passphrase) {
                Ok(candidate) => candidate,
                Err(what) => {
                    failure = Some(what);
                    continue;
                }
            };
            let proof = self.digests.iter().find(|d| d.slots.contains(&slot.number) && d.segments.contains(&self.segment.number));
            if proof.is_some_and(|digest| digest.matches(&candidate)) {
                return Ok(self.segment.unlocked(image, candidate)?);
            }
        }
        // A passphrase may well be of the one slot that could not be tried.
        Err(failure.map_or(Locked::WrongKey, Locked::Header))
    }
}

impl Segment {
    fn unlocked(&self, volume: &Arc<dyn Image>, key: Secret) -> Result<Unlocked, String> {
        let room = volume.size().checked_sub(self.start).ok_or("its content begins past its end")?;
        let len = self.len.unwrap_or(room);
        if len > room {
            return Err(format!("its content of {len} bytes ends past its end"));
        }
        let len = len - len % self.sector_size;
        let cipher = Cipher::new(&self.cipher, &key);
        let image = cipher.map(|cipher| Arc::new(Decrypted::new(volume.clone(), self, len, cipher)) as Arc<dyn Image>);
        Ok(Unlocked { len, image, segment: self.clone(), key: Arc::new(key) })
    }
}

impl Unlocked {
    /// What dm-crypt has to be told to show the content of `device`: a secret, since the key is in it.
    pub fn table(&self, device: &str) -> Secret {
        let Segment { start, cipher, iv_tweak, sector_size, .. } = &self.segment;
        let mut table = Zeroizing::new(Vec::with_capacity(256 + 2 * self.key.len()));
        table.extend(format!("0 {} crypt {cipher} ", self.len / SECTOR).as_bytes());
        for byte in self.key.iter() {
            table.extend([byte >> 4, byte & 15].map(|digit| b"0123456789abcdef"[usize::from(digit)]));
        }
        table.extend(format!(" {iv_tweak} {device} {}", start / SECTOR).as_bytes());
        if *sector_size != SECTOR {
            table.extend(format!(" 1 sector_size:{sector_size}").as_bytes());
        }
        table.push(b'\n');
        table
    }
}

/// Bytes of a volume; what lies past its end is an error in words.
fn bytes(image: &dyn Image, at: u64, len: usize) -> Result<Vec<u8>, String> {
    if at.checked_add(len as u64).is_none_or(|end| end > image.size()) {
        return Err(format!("{len} bytes at {at:#x} lie past its end"));
    }
    let mut bytes = vec![0; len];
    image.read_at(&mut bytes, at).map_err(|e| e.to_string())?;
    Ok(bytes)
}
