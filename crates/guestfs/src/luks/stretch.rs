//! Passphrases made into keys, at a price that the header sets and we bound.

use argon2::{Algorithm, Argon2, Params, Version};
use sha1::Sha1;
use sha2::digest::Digest as _;
use sha2::{Sha256, Sha512};
use zeroize::Zeroizing;

use super::Secret;

/// cryptsetup chooses what takes two seconds where the volume was made: some millions on fast machines. Each piece of a key as long
/// as a digest costs as much.
const MAX_ROUNDS: u64 = 100_000_000;
/// cryptsetup's own default limit.
const MAX_MEMORY_KIB: u32 = 1 << 20;
/// KiB that all passes together go over: 16 passes over the most memory.
const MAX_WORK_KIB: u64 = 16 << 20;

/// A hash that LUKS uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hash {
    Sha1,
    Sha256,
    Sha512,
}

impl Hash {
    pub fn named(name: &str) -> Result<Self, String> {
        match name {
            "sha1" => Ok(Hash::Sha1),
            "sha256" => Ok(Hash::Sha256),
            "sha512" => Ok(Hash::Sha512),
            other => Err(format!("the hash {} is not supported", other.escape_default())),
        }
    }

    /// The digest of all pieces.
    pub fn digest(self, pieces: &[&[u8]]) -> Secret {
        fn over<D: sha2::Digest>(pieces: &[&[u8]]) -> Secret {
            let mut hasher = D::new();
            pieces.iter().for_each(|piece| hasher.update(piece));
            Zeroizing::new(hasher.finalize().to_vec())
        }
        match self {
            Hash::Sha1 => over::<Sha1>(pieces),
            Hash::Sha256 => over::<Sha256>(pieces),
            Hash::Sha512 => over::<Sha512>(pieces),
        }
    }

    /// Bytes of a digest.
    pub fn len(self) -> usize {
        match self {
            Hash::Sha1 => Sha1::output_size(),
            Hash::Sha256 => Sha256::output_size(),
            Hash::Sha512 => Sha512::output_size(),
        }
    }
}

/// How a passphrase becomes a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stretch {
    Pbkdf2 { hash: Hash, rounds: u32, salt: Vec<u8> },
    Argon2 { kind: Algorithm, passes: u32, memory_kib: u32, lanes: u32, salt: Vec<u8> },
}

impl Stretch {
    /// A key of `len` bytes.
    pub fn key(&self, passphrase: &[u8], len: usize) -> Result<Secret, String> {
        let mut key = Zeroizing::new(vec![0; len]);
        match self {
            Stretch::Pbkdf2 { hash, rounds, salt } => {
                let pieces = len.div_ceil(hash.len()) as u64;
                if pieces * u64::from(*rounds) > MAX_ROUNDS {
                    return Err(format!("a key slot that takes {rounds} rounds is not tried"));
                }
                match hash {
                    Hash::Sha1 => pbkdf2::pbkdf2_hmac::<Sha1>(passphrase, salt, *rounds, &mut key),
                    Hash::Sha256 => pbkdf2::pbkdf2_hmac::<Sha256>(passphrase, salt, *rounds, &mut key),
                    Hash::Sha512 => pbkdf2::pbkdf2_hmac::<Sha512>(passphrase, salt, *rounds, &mut key),
                }
            }
            Stretch::Argon2 { kind, passes, memory_kib, lanes, salt } => {
                if *memory_kib > MAX_MEMORY_KIB || u64::from(*memory_kib) * u64::from(*passes) > MAX_WORK_KIB {
                    return Err(format!("a key slot that takes {passes} passes over {memory_kib} KiB of memory is not tried"));
                }
                let params = Params::new(*memory_kib, *passes, *lanes, Some(len)).map_err(|e| format!("a key slot: {e}"))?;
                let argon = Argon2::new(*kind, Version::V0x13, params);
                argon.hash_password_into(passphrase, salt, &mut key).map_err(|e| format!("a key slot: {e}"))?;
            }
        }
        Ok(key)
    }
}
