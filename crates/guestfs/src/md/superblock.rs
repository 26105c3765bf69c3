//! An array member's superblock: version 0.90 (the kernel's `md_p.h`, `mdp_superblock_s`) and 1.x (`mdp_superblock_1`).

use imgcore::Image;

use crate::bytes::{cut, le16, le32, le64, text, uuid};
use crate::probe::uuid_of_090;

const SECTOR: u64 = 512;
const MAGIC: u32 = 0xa92b_4efc;
/// Version 0.90's superblock lies in the last whole 64 KiB, and is 4 KiB long.
const RESERVED_0: u64 = 64 << 10;
const LEN_0: usize = 4096;
/// Version 1's superblock, before the roles of the members.
const LEN_1: usize = 256;
/// Members that version 1 allows.
const MAX_MEMBERS: u32 = 1920;

/// Features of version 1 that change nothing for a reader of whole members: a bitmap, a rebuild that is told of by the member's own
/// `recovery_offset`, a bitmap of a cluster, and the note that the layout of level 0 is one of two, for members of different sizes.
const HARMLESS: u32 = 0x1 | 0x2 | 0x100 | 0x1000;
const RECOVERY_OFFSET: u32 = 0x2;

/// What a member is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Has the content of this slot.
    Active(u32),
    /// A spare, a failed one, one that is being rebuilt, or a journal: nothing to be read.
    Idle,
}

/// What a superblock tells, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// The array's UUID, 16 bytes written as any other.
    pub uuid: String,
    /// The array's name, `HOST:NAME` or NAME; version 0.90 has the number of its device only.
    pub name: String,
    /// The number of its device, which version 0.90 has, and which Linux overwrites when the array gets another.
    pub minor: Option<u32>,
    /// -1 linear, 0, 1, 4, 5, 6, 10.
    pub level: i32,
    /// Near and far copies of level 10.
    pub layout: u32,
    /// Bytes of a chunk; 0 where there are none.
    pub chunk: u64,
    /// Members that the whole array has.
    pub members: u32,
    /// Bytes that each member gives to a mirror or a level with parity.
    pub used: u64,
    /// Where the content begins in this member.
    pub data_start: u64,
    /// Its length in this member.
    pub data_len: u64,
    /// Rises with each change: the member with the highest count knows best.
    pub events: u64,
    /// What this member is.
    pub role: Role,
    /// Why only the appliance can read it, whatever the level.
    pub unusual: Option<String>,
}

pub(super) fn read(image: &dyn Image) -> Result<Superblock, String> {
    let size = image.size();
    let ends = [Some(0), Some(4096), size.checked_sub(8192).map(|at| at & !4095)];
    for at in ends.into_iter().flatten() {
        if let Some(head) = bytes(image, at, LEN_1)
            && le32(&head, 0) == MAGIC
            && le32(&head, 4) == 1
            && le64(&head, 144) == at / SECTOR
        {
            return version_1(image, at, &head);
        }
    }
    let at = (size & !(RESERVED_0 - 1)).checked_sub(RESERVED_0).ok_or("it is too small for an array's member")?;
    let block = bytes(image, at, LEN_0).filter(|b| le32(b, 0) == MAGIC && le32(b, 4) == 0);
    version_0(at, &block.ok_or("it has no superblock")?)
}

fn bytes(image: &dyn Image, at: u64, len: usize) -> Option<Vec<u8>> {
    let end = at.checked_add(len as u64)?;
    let mut bytes = vec![0; len];
    (end <= image.size() && image.read_at(&mut bytes, at).is_ok()).then_some(bytes)
}

/// The sum of all words but the one at `skipped`, folded to 32 bits.
fn sum(bytes: &[u8], skipped: usize) -> u32 {
    let words = bytes.chunks(4).enumerate().filter(|(index, _)| *index != skipped / 4);
    let sum: u64 = words.map(|(_, word)| u64::from(if word.len() == 4 { le32(word, 0) } else { le16(word, 0).into() })).sum();
    (sum as u32).wrapping_add((sum >> 32) as u32)
}

fn version_1(image: &dyn Image, at: u64, head: &[u8]) -> Result<Superblock, String> {
    let count = le32(head, 220);
    if count > MAX_MEMBERS {
        return Err(format!("its superblock at {at:#x} has room for {count} members"));
    }
    let whole = bytes(image, at, LEN_1 + 2 * count as usize).ok_or("its superblock ends past its end")?;
    if sum(&whole, 216) != le32(&whole, 216) {
        return Err(format!("the checksum of its superblock at {at:#x} is wrong"));
    }
    let features = le32(&whole, 8);
    let number = le32(&whole, 160);
    let roles = whole.get(LEN_1..).unwrap_or_default();
    let slot = if number < count { le16(roles, 2 * number as usize) } else { 0xffff };
    let rebuilt = features & RECOVERY_OFFSET != 0;
    let sectors = |field: usize| le64(&whole, field).checked_mul(SECTOR).ok_or("its superblock tells of more bytes than there can be");
    let unusual = features & !HARMLESS;
    Ok(Superblock {
        uuid: uuid(cut(&whole, 16, 16)),
        name: text(cut(&whole, 32, 32)),
        minor: None,
        level: le32(&whole, 72) as i32,
        layout: le32(&whole, 76),
        chunk: u64::from(le32(&whole, 88)) * SECTOR,
        members: le32(&whole, 92),
        used: sectors(80)?,
        data_start: sectors(128)?,
        data_len: sectors(136)?,
        events: le64(&whole, 200),
        role: if rebuilt || slot >= 0xff00 { Role::Idle } else { Role::Active(slot.into()) },
        unusual: (unusual != 0).then(|| format!("features {unusual:#x} of its superblocks")),
    })
}

fn version_0(at: u64, block: &[u8]) -> Result<Superblock, String> {
    if sum(block, 38 * 4) != le32(block, 38 * 4) {
        return Err(format!("the checksum of its superblock at {at:#x} is wrong"));
    }
    let word = |index: usize| le32(block, index * 4);
    // The last of the 32 descriptions of members is its own; what counts is what the array says of it.
    let number = word(992).min(26) as usize;
    let of = 128 + number * 32;
    let (faulty, active, sync) = (word(of + 4) & 1 != 0, word(of + 4) & 2 != 0, word(of + 4) & 4 != 0);
    // 0.91 is 0.90 in the middle of being reshaped.
    let reshaped = word(2) != 90;
    Ok(Superblock {
        uuid: uuid(&uuid_of_090(block)),
        name: word(11).to_string(),
        minor: Some(word(11)),
        level: word(7) as i32,
        layout: word(64),
        chunk: word(65).into(),
        members: word(10),
        used: u64::from(word(8)) * 1024,
        data_start: 0,
        data_len: at,
        events: u64::from(word(40)) << 32 | u64::from(word(39)),
        role: if active && sync && !faulty { Role::Active(word(of + 3)) } else { Role::Idle },
        unusual: reshaped.then(|| "an array that is being reshaped".to_string()),
    })
}
