//! LUKS1's header (`struct luks_phdr`), in the words of LUKS2.

use imgcore::Image;

use super::keyslot::{Digest, Slot};
use super::stretch::{Hash, Stretch};
use super::{Header, Locked, SECTOR, Segment, bytes};
use crate::bytes::{be32, cut, text};

const LEN: usize = 592;
const FIRST_SLOT: usize = 208;
const SLOT_LEN: usize = 48;
const SLOTS: u32 = 8;
const IN_USE: u32 = 0x00ac_71f3;

pub(super) fn read(image: &dyn Image) -> Result<Header, Locked> {
    let header = bytes(image, 0, LEN)?;
    let cipher = format!("{}-{}", text(cut(&header, 8, 32)), text(cut(&header, 40, 32)));
    let hash = Hash::named(&text(cut(&header, 72, 32)))?;
    let key = be32(&header, 108) as usize;
    let slots = (0..SLOTS).filter_map(|number| {
        let slot = cut(&header, FIRST_SLOT + number as usize * SLOT_LEN, SLOT_LEN);
        (be32(slot, 0) == IN_USE).then(|| Slot {
            number,
            stretch: Stretch::Pbkdf2 { hash, rounds: be32(slot, 4), salt: cut(slot, 8, 32).to_vec() },
            start: u64::from(be32(slot, 40)) * SECTOR,
            cipher: cipher.clone(),
            area_key: key,
            key,
            stripes: be32(slot, 44),
            split_hash: hash,
        })
    });
    let digest = Digest {
        slots: (0..SLOTS).collect(),
        segments: vec![0],
        stretch: Stretch::Pbkdf2 { hash, rounds: be32(&header, 164), salt: cut(&header, 132, 32).to_vec() },
        value: cut(&header, 112, 20).to_vec(),
    };
    let segment = Segment {
        start: u64::from(be32(&header, 104)) * SECTOR,
        len: None,
        cipher: cipher.clone(),
        iv_tweak: 0,
        sector_size: SECTOR,
        number: 0,
    };
    Ok(Header { slots: slots.collect(), unusable: None, digests: vec![digest], segment })
}
