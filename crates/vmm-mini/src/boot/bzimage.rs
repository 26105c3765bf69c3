//! The kernel within a bzImage (`Documentation/arch/x86/boot.rst`).
//!
//! Started as it is, a bzImage unpacks itself in the guest; here that takes a fraction of the time.

use std::io::{self, Read};

/// Most bytes of an unpacked kernel.
const MAX_KERNEL: usize = 256 << 20;
/// A block of lz4's legacy format unpacks to no more than this.
const LZ4_BLOCK: usize = 8 << 20;

/// The ELF file that `image` has as its payload (boot protocol 2.08 and later).
pub fn unpack(image: &[u8]) -> io::Result<Vec<u8>> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what);
    if image.get(0x202..0x206) != Some(b"HdrS") {
        return Err(invalid("it is neither an ELF file nor a bzImage"));
    }
    let packed = payload(image).ok_or_else(|| invalid("its payload lies outside of it"))?;
    let kernel = match packed {
        [0x1f, 0x8b, ..] => read(flate2::bufread::GzDecoder::new(packed)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => read(liblzma::bufread::XzDecoder::new(packed)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => read(zstd::stream::read::Decoder::with_buffer(packed)?.single_frame()),
        [0x02, 0x21, 0x4c, 0x18, blocks @ ..] => lz4(blocks),
        [0x7f, b'E', b'L', b'F', ..] => Ok(packed.to_vec()),
        _ => return Err(invalid("its kind of compression is not known: gzip, xz, zstd and lz4 are")),
    }?;
    if kernel.starts_with(b"\x7fELF") { Ok(kernel) } else { Err(invalid("its payload is no ELF file")) }
}

/// `payload_offset` (0x248) counts from the part in protected mode, which comes after the boot sector and `setup_sects`
/// (0x1f1) more, where 0 stands for 4.
fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| image.get(at..at + 4)?.first_chunk().map(|word| u32::from_le_bytes(*word) as usize);
    let sectors = match *image.get(0x1f1)? {
        0 => 4,
        n => usize::from(n),
    };
    let from = ((sectors + 1) * 512).checked_add(word(0x248)?)?;
    image.get(from..from.checked_add(word(0x24c)?)?)
}

fn read(decoder: impl Read) -> io::Result<Vec<u8>> {
    let mut kernel = Vec::new();
    decoder.take(MAX_KERNEL as u64).read_to_end(&mut kernel)?;
    Ok(kernel)
}

/// lz4's legacy format: blocks, each behind its length. The kernel's own length stands behind the last, where another
/// block's would.
fn lz4(mut blocks: &[u8]) -> io::Result<Vec<u8>> {
    let mut kernel = Vec::new();
    while let Some((len, rest)) = blocks.split_first_chunk::<4>()
        && !rest.is_empty()
    {
        let cut = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let (block, behind) = rest.split_at_checked(u32::from_le_bytes(*len) as usize).ok_or_else(cut)?;
        let start = kernel.len();
        if start + LZ4_BLOCK > MAX_KERNEL {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        kernel.resize(start + LZ4_BLOCK, 0);
        let n = lz4_flex::block::decompress_into(block, &mut kernel[start..]).map_err(io::Error::other)?;
        kernel.truncate(start + n);
        blocks = behind;
    }
    Ok(kernel)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::Command;

    use super::*;

    /// Packed by programs that are not ours.
    fn packed(tool: &[&str], content: &[u8]) -> Vec<u8> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        let output = Command::new(tool[0]).args(&tool[1..]).arg(file.path()).output().unwrap_or_else(|e| panic!("{tool:?}: {e}"));
        assert!(output.status.success());
        output.stdout
    }

    fn image(packed: &[u8], len: usize) -> Vec<u8> {
        let mut image = vec![0; 1024 + 16];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&u32::try_from(len).unwrap().to_le_bytes());
        image.extend_from_slice(packed);
        image
    }

    fn kernel(len: usize) -> Vec<u8> {
        b"\x7fELF".iter().copied().chain((0_u32..).flat_map(|n| (n % 9973).to_le_bytes())).take(len).collect()
    }

    #[test]
    fn every_kind_of_packing_is_undone_and_damage_is_an_error() {
        for tool in [&["gzip", "-c"][..], &["xz", "--check=crc32", "-c"], &["zstd", "-q", "-c"], &["lz4", "-l", "-q", "-c"], &["cat"]] {
            let kernel = kernel(if tool[0] == "lz4" { LZ4_BLOCK * 3 / 2 } else { 100_000 });
            let mut packed = packed(tool, &kernel);
            // The kernel's build adds the size, except where gzip has done it.
            if !matches!(tool[0], "gzip" | "cat") {
                packed.extend_from_slice(&u32::try_from(kernel.len()).unwrap().to_le_bytes());
            }
            assert!(unpack(&image(&packed, packed.len())).unwrap() == kernel, "{tool:?}");
            assert!(unpack(&image(&packed, packed.len() + 1)).is_err(), "{tool:?}: beyond the file");
            if tool[0] != "cat" {
                assert!(unpack(&image(&packed[..packed.len() / 2], packed.len() / 2)).is_err(), "{tool:?}: cut");
            }
        }
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        for image in [vec![], vec![0; 0x210], image(b"#!/bin/sh\n", 10), image(&packed(&["gzip", "-c"], b"text"), 24)] {
            assert!(unpack(&image).is_err());
        }
    }
}
