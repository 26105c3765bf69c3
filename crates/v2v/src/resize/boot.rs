//! What points at sectors by their numbers, once they are elsewhere: boot loaders, and the boot sectors of FAT and NTFS.

use imgcore::{Image, ImageMut};

use super::plan::Piece;
use crate::Result;

const SECTOR: u64 = 512;
const GRUB_WORDS: &[u8] = b"GRUB \0Geom\0Hard Disk\0Read\0 Error";
/// In GRUB 2's boot.img: the LBA of its core image.
const KERNEL_SECTOR: usize = 0x5c;
/// In GRUB legacy's stage 1: its version, and the LBA of the next stage.
const LEGACY_VERSION: usize = 0x3e;
const LEGACY_STAGE: usize = 0x44;
/// In the core image's first sector: the last of the lists of where the rest lies, the others before it. 12 bytes each.
const LAST_LIST: usize = 0x1f4;
const FIRST_LIST: usize = 0x150;
/// In a boot sector of FAT or NTFS: the sectors before the partition.
const HIDDEN_SECTORS: usize = 0x1c;

/// A partition that is copied, and what is known of it.
pub struct Moved<'a> {
    /// Where it was, and where it is.
    pub piece: &'a Piece,
    /// What it holds, as blkid says.
    pub kind: &'a str,
}

/// Makes what points at moved sectors point at where they are now. Gives sentences on what may not start any more.
pub fn mend(target: &dyn ImageMut, moved: &[Moved<'_>]) -> Result<Vec<String>> {
    let mut doubts = Vec::new();
    let changes = |m: &&Moved<'_>| m.piece.old != m.piece.new;
    for m in moved.iter().filter(|m| m.piece.old.start != m.piece.new.start && matches!(m.kind, "vfat" | "ntfs")) {
        hidden_sectors(target, m)?;
        if m.kind == "ntfs" {
            doubts.push(format!(
                "/dev/sda{} holds NTFS and moved: a Windows that starts from an MBR finds it by its place, and may ask for repair",
                m.piece.number
            ));
        }
    }
    if !moved.iter().any(|m| changes(&m)) {
        return Ok(doubts);
    }
    let places = std::iter::once(0).chain(moved.iter().filter(|m| !m.piece.is_extended).map(|m| m.piece.new.start));
    for place in places {
        let Some(mut boot) = sector(target, place)? else { continue };
        if boot[2..].starts_with(b"LILO") || boot[6..].starts_with(b"LILO") {
            doubts.push("LILO finds its files by the numbers of their sectors: run lilo in the guest before it starts by itself".into());
        } else if has(&boot[..440], GRUB_WORDS) && boot[LEGACY_VERSION..LEGACY_VERSION + 2] == [3, 2] {
            let stage = u64::from(u32::from_le_bytes(std::array::from_fn(|i| boot[LEGACY_STAGE + i])));
            if let Some(m) = holder(moved, stage).filter(changes) {
                doubts.push(format!(
                    "GRUB's next stage lies in /dev/sda{}, which changed: install it again if it does not start",
                    m.piece.number
                ));
            }
        } else if has(&boot[..440], GRUB_WORDS) {
            doubts.extend(grub2(target, &mut boot, place, moved)?);
        }
    }
    Ok(doubts)
}

/// GRUB 2: the boot sector points at the core image's first sector, which lists where the rest lies.
fn grub2(target: &dyn ImageMut, boot: &mut [u8; 512], place: u64, moved: &[Moved<'_>]) -> Result<Option<String>> {
    let core = u64::from_le_bytes(std::array::from_fn(|i| boot[KERNEL_SECTOR + i]));
    // Before the first partition, nothing moves.
    let Some(m) = holder(moved, core).filter(|m| m.piece.old != m.piece.new) else { return Ok(None) };
    let now = |lba: u64| holder(moved, lba).map(|m| lba - m.piece.old.start / SECTOR + m.piece.new.start / SECTOR);
    let doubt = (!m.kind.is_empty()).then(|| {
        format!(
            "GRUB's core image is a file of the filesystem on /dev/sda{}, which changed: run grub-install if it does not start",
            m.piece.number
        )
    });
    let unsure = || format!("GRUB's core image in /dev/sda{} does not lie where its boot sector says: run grub-install", m.piece.number);
    let Some(at) = now(core).and_then(|lba| lba.checked_mul(SECTOR)) else { return Ok(Some(unsure())) };
    let Some(mut first) = sector(target, at)?.filter(|s| has(s, b"loading")) else { return Ok(Some(unsure())) };
    boot[KERNEL_SECTOR..KERNEL_SECTOR + 8].copy_from_slice(&(at / SECTOR).to_le_bytes());
    for list in (FIRST_LIST..=LAST_LIST).rev().step_by(12) {
        let (start, len) =
            (u64::from_le_bytes(std::array::from_fn(|i| first[list + i])), u16::from_le_bytes([first[list + 8], first[list + 9]]));
        if len == 0 {
            break;
        }
        let Some(start) = now(start) else { return Ok(Some(unsure())) };
        first[list..list + 8].copy_from_slice(&start.to_le_bytes());
    }
    // The core first: a boot sector never points at what is not there.
    target.write_at(&first, at)?;
    target.write_at(boot, place)?;
    Ok(doubt)
}

/// The copied partition that held a sector of the source.
fn holder<'a, 'b>(moved: &'a [Moved<'b>], lba: u64) -> Option<&'a Moved<'b>> {
    let at = lba.checked_mul(SECTOR)?;
    let holds = |m: &&Moved<'_>| !m.piece.is_extended && m.piece.old.contains(&at) && at - m.piece.old.start < m.piece.new_len();
    moved.iter().find(holds)
}

/// Tells a FAT or NTFS, and its copy of the boot sector, where its partition begins.
fn hidden_sectors(target: &dyn ImageMut, m: &Moved<'_>) -> Result<()> {
    let (Ok(old), Ok(new)) = (u32::try_from(m.piece.old.start / SECTOR), u32::try_from(m.piece.new.start / SECTOR)) else { return Ok(()) };
    let Some(boot) = sector(target, m.piece.new.start)? else { return Ok(()) };
    let copy = match m.kind {
        "ntfs" => u64::from_le_bytes(std::array::from_fn(|i| boot[0x28 + i])),
        _ => u64::from(u16::from_le_bytes([boot[0x32], boot[0x33]])),
    };
    let copy = copy.checked_mul(SECTOR).filter(|at| *at > 0 && *at < m.piece.new_len());
    for at in std::iter::once(0).chain(copy).map(|at| m.piece.new.start + at) {
        let Some(mut sector) = sector(target, at)? else { continue };
        let field = &mut sector[HIDDEN_SECTORS..HIDDEN_SECTORS + 4];
        // A filesystem that was never told has another number there, and keeps it.
        if *field == old.to_le_bytes() {
            field.copy_from_slice(&new.to_le_bytes());
            target.write_at(&sector, at)?;
        }
    }
    Ok(())
}

fn has(bytes: &[u8], words: &[u8]) -> bool {
    bytes.windows(words.len()).any(|w| w == words)
}

fn sector(image: &dyn ImageMut, at: u64) -> Result<Option<[u8; 512]>> {
    if at.checked_add(SECTOR).is_none_or(|end| end > Image::size(image)) {
        return Ok(None);
    }
    let mut sector = [0; SECTOR as usize];
    image.read_at(&mut sector, at)?;
    Ok(Some(sector))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use imgcore::raw::Raw;
    use imgcore::storage::MemStorage;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn piece(number: u32, old: u64, new: u64) -> Piece {
        Piece { number, new_number: number, old: old..old + MIB, new: new..new + MIB, is_extended: false }
    }

    fn disk() -> Raw {
        Raw::create(Arc::new(MemStorage::new("disk", 0)), 16 * MIB).unwrap()
    }

    fn boot(fields: &[(usize, &[u8])]) -> [u8; 512] {
        let mut sector = [0; 512];
        sector[0x180..0x180 + GRUB_WORDS.len()].copy_from_slice(GRUB_WORDS);
        for (at, bytes) in fields {
            sector[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        sector
    }

    #[test]
    fn grub_finds_its_core_image_in_a_partition_that_moved() {
        let disk = disk();
        disk.write_at(&boot(&[(KERNEL_SECTOR, &2048u64.to_le_bytes())]), 0).unwrap();
        let mut core = [0; 512];
        core[..7].copy_from_slice(b"loading");
        for (at, start, len) in [(LAST_LIST, 2049u64, 3u16), (LAST_LIST - 12, 2060, 5)] {
            core[at..at + 8].copy_from_slice(&start.to_le_bytes());
            core[at + 8..at + 10].copy_from_slice(&len.to_le_bytes());
        }
        disk.write_at(&core, 5 * MIB).unwrap();
        let moved = piece(1, MIB, 5 * MIB);
        assert!(mend(&disk, &[Moved { piece: &moved, kind: "" }]).unwrap().is_empty());
        let word = |at: u64| {
            let mut bytes = [0; 8];
            disk.read_at(&mut bytes, at).unwrap();
            u64::from_le_bytes(bytes)
        };
        assert_eq!(word(KERNEL_SECTOR as u64), 10240);
        assert_eq!((word(5 * MIB + LAST_LIST as u64), word(5 * MIB + LAST_LIST as u64 - 12)), (10241, 10252));
    }

    #[test]
    fn what_cannot_be_mended_is_told() {
        let moved = piece(1, MIB, 5 * MIB);
        let told = |sector: &[u8]| {
            let disk = disk();
            disk.write_at(sector, 0).unwrap();
            mend(&disk, &[Moved { piece: &moved, kind: "ext4" }]).unwrap().concat()
        };
        assert!(told(b"\xeb\x3e\0\0\0\0LILO").contains("LILO"));
        assert!(told(&boot(&[(LEGACY_VERSION, &[3, 2]), (LEGACY_STAGE, &2050u32.to_le_bytes())])).contains("next stage"));
        assert!(told(&boot(&[(KERNEL_SECTOR, &2048u64.to_le_bytes())])).contains("run grub-install"));
        // In the gap before the first partition nothing changes.
        assert_eq!(told(&boot(&[(KERNEL_SECTOR, &1u64.to_le_bytes())])), "");
        assert_eq!(told(&boot(&[(LEGACY_VERSION, &[3, 2]), (LEGACY_STAGE, &1u32.to_le_bytes())])), "");
    }

    #[test]
    fn fat_and_ntfs_are_told_where_they_begin() {
        let disk = disk();
        let (fat, ntfs) = (piece(1, MIB, 5 * MIB), piece(2, 2 * MIB, 8 * MIB));
        for (at, start, copy) in [(5 * MIB, 2048u32, (0x32, 6u64)), (8 * MIB, 4096, (0x28, 2047))] {
            let mut sector = [0; 512];
            sector[HIDDEN_SECTORS..HIDDEN_SECTORS + 4].copy_from_slice(&start.to_le_bytes());
            sector[copy.0..copy.0 + 2].copy_from_slice(&copy.1.to_le_bytes()[..2]);
            disk.write_at(&sector, at).unwrap();
            disk.write_at(&sector, at + copy.1 * 512).unwrap();
        }
        let doubts = mend(&disk, &[Moved { piece: &fat, kind: "vfat" }, Moved { piece: &ntfs, kind: "ntfs" }]).unwrap();
        assert!(doubts.len() == 1 && doubts[0].contains("Windows"), "{doubts:?}");
        let hidden = |at: u64| {
            let mut bytes = [0; 4];
            disk.read_at(&mut bytes, at + HIDDEN_SECTORS as u64).unwrap();
            u32::from_le_bytes(bytes)
        };
        assert_eq!([hidden(5 * MIB), hidden(5 * MIB + 3072), hidden(8 * MIB), hidden(8 * MIB + 2047 * 512)], [10240, 10240, 16384, 16384]);
    }
}
