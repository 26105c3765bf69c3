//! Swap headers: what mkswap writes.

use imgcore::partition::Guid;

use crate::{Error, Result};

const PAGE: u64 = 4096;
const SIGNATURE: &[u8; 10] = b"SWAPSPACE2";
/// A swap of fewer pages is refused by the kernel.
const MIN_PAGES: u64 = 10;

/// The first page of a swap space of `len` bytes: what belongs at its byte 0.
///
/// The layout is `union swap_header` of Linux's `include/linux/swap.h`, version 1, for pages of 4096 bytes.
pub fn header(len: u64, uuid: Option<&str>, label: Option<&str>) -> Result<Vec<u8>> {
    let pages = len / PAGE;
    if pages < MIN_PAGES {
        return Err(Error::Invalid(format!("{len} bytes are too few for a swap space")));
    }
    let mut page = vec![0; PAGE as usize];
    page[1024..1028].copy_from_slice(&1u32.to_le_bytes());
    // The kernel counts in 32 bits; what is larger stays unused.
    let last = u32::try_from(pages - 1).unwrap_or(u32::MAX - 1);
    page[1028..1032].copy_from_slice(&last.to_le_bytes());
    if let Some(uuid) = uuid {
        // Stored as it is printed, unlike a GPT's.
        let text: String = uuid.split('-').collect();
        uuid.parse::<Guid>()?;
        let bits = u128::from_str_radix(&text, 16).map_err(|_| Error::Invalid(format!("'{uuid}' is not a UUID")))?;
        page[1036..1052].copy_from_slice(&bits.to_be_bytes());
    }
    if let Some(label) = label {
        let bytes = label.as_bytes();
        let len = bytes.len().min(16);
        page[1052..1052 + len].copy_from_slice(&bytes[..len]);
    }
    page[PAGE as usize - SIGNATURE.len()..].copy_from_slice(SIGNATURE);
    Ok(page)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn mkswap_writes_the_same() {
        const UUID: &str = "8b0d5f6e-1c2a-4e3b-9f00-0123456789ab";
        if Command::new("mkswap").arg("--version").output().is_err() {
            assert!(std::env::var_os("CI").is_none(), "mkswap is missing");
            eprintln!("skipped: mkswap is missing");
            return;
        }
        let folder = std::env::temp_dir().join(format!("swap-{}", std::process::id()));
        std::fs::write(&folder, vec![0; 1_234_567]).unwrap();
        let output = Command::new("mkswap").args(["-q", "-U", UUID, "-L", "a swap"]).arg(&folder).output().unwrap();
        let made = std::fs::read(&folder).unwrap();
        std::fs::remove_file(&folder).unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(header(1_234_567, Some(UUID), Some("a swap")).unwrap() == made[..4096]);
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(header(9 * 4096, None, None).is_err());
        assert!(header(1 << 20, Some("not a uuid"), None).is_err());
        assert!(header(1 << 60, None, Some("a label that is far too long")).is_ok());
    }
}
