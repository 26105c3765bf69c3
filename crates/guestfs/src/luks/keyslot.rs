//! Key slots: the volume's key, split over many stripes and encrypted with a passphrase.

use imgcore::Image;
use zeroize::Zeroizing;

use super::cipher::Cipher;
use super::stretch::{Hash, Stretch};
use super::{SECTOR, Secret, bytes};

/// The largest key that there is has 64 bytes; LUKS2 allows more for ciphers with authentication.
const MAX_KEY: usize = 256;
/// cryptsetup always makes 4000.
const MAX_STRIPES: u32 = 8192;

/// A place for the volume's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub number: u32,
    pub stretch: Stretch,
    /// Where its stripes begin.
    pub start: u64,
    pub cipher: String,
    /// Bytes of the key that encrypts the stripes.
    pub area_key: usize,
    /// Bytes of the volume's key.
    pub key: usize,
    pub stripes: u32,
    pub split_hash: Hash,
}

/// What a volume's key is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Digest {
    pub slots: Vec<u32>,
    pub segments: Vec<u32>,
    pub stretch: Stretch,
    pub value: Vec<u8>,
}

impl Slot {
    /// The key that it has for a passphrase, which is the volume's if the passphrase is right.
    pub fn open(&self, image: &dyn Image, passphrase: &[u8]) -> Result<Secret, String> {
        if !(1..=MAX_KEY).contains(&self.key) || !(1..=MAX_KEY).contains(&self.area_key) || !(1..=MAX_STRIPES).contains(&self.stripes) {
            return Err(format!("a key slot of {} stripes of {} bytes", self.stripes, self.key));
        }
        let len = self.key * self.stripes as usize;
        let mut area = Zeroizing::new(bytes(image, self.start, len.next_multiple_of(SECTOR as usize))?);
        let area_key = self.stretch.key(passphrase, self.area_key)?;
        Cipher::new(&self.cipher, &area_key)?.decrypt(&mut area, 0, SECTOR as usize);
        area.truncate(len);
        Ok(self.merge(&area))
    }

    /// Undoes the splitting: each stripe is mixed into what the ones before it gave (TKS1's `AFmerge`).
    fn merge(&self, area: &[u8]) -> Secret {
        let mut mixed = Zeroizing::new(vec![0; self.key]);
        let mut stripes = area.chunks(self.key).peekable();
        while let Some(stripe) = stripes.next() {
            mixed.iter_mut().zip(stripe).for_each(|(m, s)| *m ^= s);
            if stripes.peek().is_some() {
                mixed = self.diffuse(&mixed);
            }
        }
        mixed
    }

    /// Each piece as long as a digest becomes the digest of its number and itself.
    fn diffuse(&self, block: &[u8]) -> Secret {
        let mut out = Zeroizing::new(Vec::with_capacity(block.len() + self.split_hash.len()));
        for (number, piece) in (0u32..).zip(block.chunks(self.split_hash.len())) {
            let digest = self.split_hash.digest(&[&number.to_be_bytes(), piece]);
            out.extend_from_slice(digest.get(..piece.len()).unwrap_or(&digest));
        }
        out
    }
}

impl Digest {
    /// Whether this is the volume's key.
    pub fn matches(&self, key: &[u8]) -> bool {
        // One that is too short matches too much.
        let whole = (16..=MAX_KEY).contains(&self.value.len());
        whole && self.stretch.key(key, self.value.len()).is_ok_and(|digest| *digest == self.value)
    }
}
