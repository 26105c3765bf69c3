//! Checksums of a guest's files.

use clap::ValueEnum;
use guestfs::GuestFs;
use sha1::Digest;

use super::show::read_file;
use crate::common::Failure;

/// What the tools offer, by libguestfs's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Algorithm {
    Crc,
    Md5,
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

pub(super) fn of_file(fs: &dyn GuestFs, path: &[u8], algorithm: Algorithm) -> Result<String, Failure> {
    match algorithm {
        Algorithm::Crc => cksum(fs, path),
        Algorithm::Md5 => digest::<md5::Md5>(fs, path),
        Algorithm::Sha1 => digest::<sha1::Sha1>(fs, path),
        Algorithm::Sha224 => digest::<sha2::Sha224>(fs, path),
        Algorithm::Sha256 => digest::<sha2::Sha256>(fs, path),
        Algorithm::Sha384 => digest::<sha2::Sha384>(fs, path),
        Algorithm::Sha512 => digest::<sha2::Sha512>(fs, path),
    }
}

fn digest<D: Digest>(fs: &dyn GuestFs, path: &[u8]) -> Result<String, Failure> {
    let mut sum = D::new();
    read_file(fs, path, &mut |piece| {
        sum.update(piece);
        Ok(())
    })?;
    Ok(sum.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

/// cksum(1)'s CRC, with the length behind the content.
fn cksum(fs: &dyn GuestFs, path: &[u8]) -> Result<String, Failure> {
    let (mut crc, mut len) = (0u32, 0u64);
    read_file(fs, path, &mut |piece| {
        crc = piece.iter().fold(crc, |crc, b| step(crc, *b));
        len += piece.len() as u64;
        Ok(())
    })?;
    while len != 0 {
        crc = step(crc, (len & 0xff) as u8);
        len >>= 8;
    }
    Ok((!crc).to_string())
}

fn step(crc: u32, byte: u8) -> u32 {
    let mut crc = crc ^ u32::from(byte) << 24;
    for _ in 0..8 {
        crc = if crc & 0x8000_0000 != 0 { (crc << 1) ^ 0x04c1_1db7 } else { crc << 1 };
    }
    crc
}
