//! Which bytes of a volume nothing uses: what can be given back to the host without being missed.

use std::ops::Range;
use std::sync::Arc;

use imgcore::Image;

use crate::ext4::Ext4;
use crate::probe::Content;
use crate::{Error, Result};

/// What lies at the beginning of a swap, its header and what some write before it, for pages of up to 64 KiB.
const SWAP_HEAD: u64 = 64 << 10;

/// Calls `visit` with the byte ranges of a volume that its content does not use: ascending. Nothing is ever visited that is in use.
///
/// # Errors
/// [`Error::Unsupported`] for content whose free space only the kernel can tell, or that must be checked first; [`Error::Corrupt`] where
/// what tells of free space contradicts itself. What was visited until then is right all the same.
pub fn visit(content: &Content, image: &Arc<dyn Image>, visit: &mut dyn FnMut(Range<u64>)) -> Result<()> {
    match content.kind {
        "ext2" | "ext3" | "ext4" => Ext4::open(image.clone(), 0, image.size())?.free(visit),
        // What a machine that sleeps has written there has another name.
        "swap" => {
            if SWAP_HEAD < image.size() {
                visit(SWAP_HEAD..image.size());
            }
            Ok(())
        }
        kind => Err(Error::Unsupported { filesystem: kind, what: "finding free space without the appliance".into() }),
    }
}
