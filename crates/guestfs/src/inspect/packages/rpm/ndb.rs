//! ndb, rpm's own format: slots that name the blocks of each package's header. (rpm's lib/backend/ndb/rpmpkg.c)

use super::{HEADER_LIMIT, Take, corrupt};
use crate::bytes::le32;
use crate::cached::CachedFile;
use crate::{GuestFs, Result};

const PAGE: usize = 4096;
const SLOT: usize = 16;
/// Units of a blob's place and length.
const BLOCK: u64 = 16;
/// The file's header takes the room of the first slots.
const HEADER: usize = 32;

const MAGIC: &[u8] = b"RpmP";
const SLOT_MAGIC: &[u8] = b"Slot";
const BLOB_MAGIC: &[u8] = b"BlbS";

pub(super) fn each_header(file: &CachedFile<'_>, _: &dyn GuestFs, _: &[u8], take: &mut Take<'_>) -> Result<()> {
    let head = file.read(0, HEADER)?;
    if !head.starts_with(MAGIC) || le32(&head, 4) != 0 {
        return Err(corrupt(file, "it is no ndb database of version 0"));
    }
    // Blobs don't overlap: together they are no longer than the file, whatever the slots say.
    let mut room = file.size();
    for page in 0..u64::from(le32(&head, 12)).min(file.size() / PAGE as u64) {
        let slots = file.read(page * PAGE as u64, PAGE)?;
        let first = if page == 0 { HEADER } else { 0 };
        for slot in slots.get(first..).unwrap_or_default().chunks_exact(SLOT) {
            let (package, start, blocks) = (le32(slot, 4), u64::from(le32(slot, 8)) * BLOCK, u64::from(le32(slot, 12)) * BLOCK);
            if !slot.starts_with(SLOT_MAGIC) {
                return Err(corrupt(file, format_args!("page {page} holds no slots")));
            }
            if package == 0 || start == 0 {
                continue;
            }
            let head = file.read(start, 16)?;
            let len = u64::from(le32(&head, 12));
            let whole = head.starts_with(BLOB_MAGIC) && le32(&head, 4) == package && len <= blocks;
            let Some(len) = usize::try_from(len).ok().filter(|len| whole && *len <= HEADER_LIMIT) else {
                return Err(corrupt(file, format_args!("package {package} has no header at {start:#x}")));
            };
            room = room.checked_sub(len as u64).ok_or_else(|| corrupt(file, "its packages overlap"))?;
            take(&file.read(start + 16, len)?);
        }
    }
    Ok(())
}
