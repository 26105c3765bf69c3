//! Decryption of sectors as dm-crypt encrypts them: AES in XTS or CBC mode.

use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit, consts::U16};
use aes::{Aes128, Aes192, Aes256};

use super::SECTOR;
use super::stretch::Hash;

type Block = Array<u8, U16>;

/// AES with a key of any of its lengths. It wipes itself.
enum Aes {
    Small(Aes128),
    Middle(Aes192),
    Large(Aes256),
}

impl Aes {
    fn new(key: &[u8]) -> Option<Self> {
        Some(match key.len() {
            16 => Aes::Small(Aes128::new_from_slice(key).ok()?),
            24 => Aes::Middle(Aes192::new_from_slice(key).ok()?),
            32 => Aes::Large(Aes256::new_from_slice(key).ok()?),
            _ => return None,
        })
    }

    fn encrypt(&self, block: &mut Block) {
        match self {
            Aes::Small(aes) => aes.encrypt_block(block),
            Aes::Middle(aes) => aes.encrypt_block(block),
            Aes::Large(aes) => aes.encrypt_block(block),
        }
    }

    fn decrypt(&self, blocks: &mut [Block]) {
        match self {
            Aes::Small(aes) => aes.decrypt_blocks(blocks),
            Aes::Middle(aes) => aes.decrypt_blocks(blocks),
            Aes::Large(aes) => aes.decrypt_blocks(blocks),
        }
    }
}

/// What a sector's initialisation vector is made of.
enum Vector {
    /// The sector's number, the low 32 bits of it, or that encrypted.
    Plain64,
    Plain,
    Essiv(Box<Aes>),
}

enum Mode {
    /// The second key encrypts the vectors.
    Xts(Box<Aes>),
    Cbc,
}

/// A cipher with its keys.
pub(super) struct Cipher {
    aes: Aes,
    mode: Mode,
    vector: Vector,
}

impl Cipher {
    /// By dm-crypt's name: `aes-xts-plain64`.
    pub fn new(name: &str, key: &[u8]) -> Result<Self, String> {
        let unsupported = || format!("the cipher {} with a key of {} bits", name.escape_default(), key.len() * 8);
        let mut parts = name.splitn(3, '-');
        let (cipher, mode, vector) = (parts.next(), parts.next(), parts.next());
        let (key, mode) = match (cipher, mode) {
            (Some("aes"), Some("xts")) if matches!(key.len(), 32 | 64) => {
                let (content, tweak) = key.split_at(key.len() / 2);
                (content, Mode::Xts(Box::new(Aes::new(tweak).ok_or_else(unsupported)?)))
            }
            (Some("aes"), Some("cbc")) => (key, Mode::Cbc),
            _ => return Err(unsupported()),
        };
        let vector = match vector {
            Some("plain64") => Vector::Plain64,
            Some("plain") => Vector::Plain,
            Some("essiv:sha256") => Vector::Essiv(Box::new(Aes::new(&Hash::Sha256.digest(&[key])).ok_or_else(unsupported)?)),
            _ => return Err(unsupported()),
        };
        Ok(Cipher { aes: Aes::new(key).ok_or_else(unsupported)?, mode, vector })
    }

    /// Decrypts whole sectors of `sector_size` bytes, the first of which has the number `first`, counted in 512 bytes.
    pub fn decrypt(&self, sectors: &mut [u8], first: u64, sector_size: usize) {
        let step = (sector_size as u64 / SECTOR).max(1);
        for (index, sector) in (0u64..).zip(sectors.chunks_exact_mut(sector_size)) {
            let vector = self.vector(first.wrapping_add(index.wrapping_mul(step)));
            let (blocks, _) = Block::slice_as_chunks_mut(sector);
            match &self.mode {
                Mode::Xts(tweaks) => self.xts(blocks, tweaks, vector),
                Mode::Cbc => self.cbc(blocks, vector),
            }
        }
    }

    fn vector(&self, sector: u64) -> Block {
        let mut vector = Block::default();
        let number = if matches!(self.vector, Vector::Plain) { sector & u64::from(u32::MAX) } else { sector };
        vector[..8].copy_from_slice(&number.to_le_bytes());
        if let Vector::Essiv(aes) = &self.vector {
            aes.encrypt(&mut vector);
        }
        vector
    }

    /// IEEE 1619: each block has a mask of its own, the one before it times x in GF(2^128).
    fn xts(&self, blocks: &mut [Block], tweaks: &Aes, mut vector: Block) {
        tweaks.encrypt(&mut vector);
        let start = u128::from_le_bytes(vector.into());
        let next = |mask: u128| mask << 1 ^ if mask >> 127 == 1 { 0x87 } else { 0 };
        let apply = |blocks: &mut [Block]| {
            let mut mask = start;
            for block in blocks {
                xor(block, &mask.to_le_bytes());
                mask = next(mask);
            }
        };
        apply(blocks);
        self.aes.decrypt(blocks);
        apply(blocks);
    }

    fn cbc(&self, blocks: &mut [Block], mut vector: Block) {
        let encrypted = blocks.to_vec();
        self.aes.decrypt(blocks);
        for (block, encrypted) in blocks.iter_mut().zip(encrypted) {
            xor(block, &vector);
            vector = encrypted;
        }
    }
}

fn xor(block: &mut Block, with: &[u8]) {
    block.iter_mut().zip(with).for_each(|(b, w)| *b ^= w);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn the_vectors_of_ieee_1619() {
        // Vector 4 (128 bit) begins with data unit 0, and has 512 bytes; its first two blocks.
        let key = hex("2718281828459045235360287471352631415926535897932384626433832795");
        let plain: Vec<u8> = (0..=255u8).chain(0..=255).collect();
        let mut sector = hex("27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c");
        sector.resize(512, 0);
        Cipher::new("aes-xts-plain64", &key).unwrap().decrypt(&mut sector, 0, 512);
        assert_eq!(sector[..32], plain[..32]);
    }

    #[test]
    fn other_ciphers_are_for_the_appliance() {
        for (name, key) in [("serpent-xts-plain64", 64), ("aes-xts-plain64", 48), ("aes-lrw-benbi", 48), ("aes-cbc-tcw", 32), ("aes", 32)] {
            assert!(Cipher::new(name, &vec![1; key]).is_err(), "{name}");
        }
    }
}
