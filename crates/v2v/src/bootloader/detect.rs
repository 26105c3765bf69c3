//! Telling whether a BIOS can start a disk.

use imgcore::Image;
use imgcore::partition;

use crate::Result;

const SECTOR: u64 = 512;

/// Words by which boot sectors are known, at any place of their code.
const GRUB_WORDS: &[u8] = b"GRUB \0Geom\0Hard Disk\0Read\0 Error";
const SYSLINUX_WORDS: [&[u8]; 3] = [b"Missing operating system", b"Operating system load error", b"Multiple active partitions"];

/// The boot loader that a BIOS would start from this disk; `None` when there is none, or none that is surely whole.
///
/// It is looked at from outside only: a GRUB 2 whose core image is where its boot sector says, a GRUB legacy whose next stage is there, a
/// LILO, or code that hands over to an active partition which starts with code of its own.
pub fn starts_by_itself(image: &dyn Image) -> Result<Option<&'static str>> {
    let Some(sector) = sector(image, 0)? else { return Ok(None) };
    let Some(table) = partition::read(image)? else { return Ok(None) };
    if has(&sector[..440], GRUB_WORDS) {
        return grub(image, &sector);
    }
    if sector[2..].starts_with(b"LILO") || sector[6..].starts_with(b"LILO") {
        return Ok(Some("LILO"));
    }
    if SYSLINUX_WORDS.iter().any(|words| has(&sector[..440], words)) {
        let active = table.partitions.iter().find(|p| p.bootable);
        let Some(active) = active else { return Ok(None) };
        let starts = self::sector(image, active.start)?.is_some_and(|s| s[510..] == [0x55, 0xaa] && s[..3] != [0; 3]);
        return Ok(starts.then_some("the active partition's"));
    }
    Ok(None)
}

fn grub(image: &dyn Image, boot: &[u8; 512]) -> Result<Option<&'static str>> {
    // GRUB legacy's stage 1 has its version 3.2 where GRUB 2 has room for a BIOS's parameters.
    if boot[0x3e..0x40] == [3, 2] {
        let at = u64::from(u32::from_le_bytes([boot[0x44], boot[0x45], boot[0x46], boot[0x47]]));
        let next = if at == 0 { None } else { sector(image, at * SECTOR)? };
        return Ok(next.filter(|s| s.iter().any(|b| *b != 0)).map(|_| "GRUB legacy"));
    }
    let at = u64::from_le_bytes(std::array::from_fn(|i| boot[0x5c + i]));
    let core = if at == 0 { None } else { at.checked_mul(SECTOR).map(|o| sector(image, o)).transpose()?.flatten() };
    let Some(core) = core else { return Ok(None) };
    // diskboot.img says what it is doing, and lists where the rest of the core image lies: not empty, within the disk.
    let list = u64::from_le_bytes(std::array::from_fn(|i| core[0x1f4 + i]));
    let sectors = u64::from(u16::from_le_bytes([core[0x1fc], core[0x1fd]]));
    let end = list.checked_add(sectors).and_then(|end| end.checked_mul(SECTOR));
    let whole = has(&core, b"loading") && list != 0 && sectors != 0 && end.is_some_and(|end| end <= image.size());
    if !whole {
        return Ok(None);
    }
    let rest = sector(image, list * SECTOR)?;
    Ok(rest.filter(|s| s.iter().any(|b| *b != 0)).map(|_| "GRUB 2"))
}

fn has(bytes: &[u8], words: &[u8]) -> bool {
    bytes.windows(words.len()).any(|w| w == words)
}

fn sector(image: &dyn Image, offset: u64) -> Result<Option<[u8; 512]>> {
    if offset.checked_add(SECTOR).is_none_or(|end| end > image.size()) {
        return Ok(None);
    }
    let mut sector = [0; SECTOR as usize];
    image.read_at(&mut sector, offset)?;
    Ok(Some(sector))
}
