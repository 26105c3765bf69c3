//! What a volume holds, told by its superblock, with blkid's names.

use imgcore::Image;

use crate::bytes::{be16, be32, cut, le16, le32, le64, text, uuid};
use crate::ufs;

/// What a volume is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// Files.
    Filesystem,
    /// Swap space.
    Swap,
    /// A part of something larger: a physical volume, a member of an array.
    Member,
    /// Something encrypted.
    Crypto,
}

/// What a superblock tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// blkid's TYPE: `ext4`, `swap`, `LVM2_member`.
    pub kind: &'static str,
    /// What it is for.
    pub usage: Usage,
    /// Its UUID, written as blkid does.
    pub uuid: Option<String>,
    /// Its label, if not empty.
    pub label: Option<String>,
    /// Bytes that the filesystem says it has.
    pub size: Option<u64>,
}

impl Content {
    fn new(kind: &'static str, usage: Usage) -> Self {
        Content { kind, usage, uuid: None, label: None, size: None }
    }

    fn uuid(mut self, bytes: &[u8]) -> Self {
        self.uuid = bytes.iter().any(|b| *b != 0).then(|| uuid(bytes));
        self
    }

    fn label(mut self, bytes: &[u8]) -> Self {
        self.label = Some(text(bytes)).filter(|l| !l.is_empty());
        self
    }

    fn size(mut self, bytes: u64) -> Self {
        self.size = Some(bytes);
        self
    }
}

/// A window on a volume. What can't be read is no superblock.
struct Window<'a> {
    image: &'a dyn Image,
    start: u64,
    len: u64,
}

impl Window<'_> {
    fn read(&self, offset: u64, len: usize) -> Option<Vec<u8>> {
        let end = offset.checked_add(len as u64)?;
        let mut bytes = vec![0; len];
        (end <= self.len && self.image.read_at(&mut bytes, self.start.checked_add(offset)?).is_ok()).then_some(bytes)
    }
}

/// Everything that is recognised. Containers go first: a mirror's member looks like the filesystem in it.
const PROBES: &[fn(&Window<'_>) -> Option<Content>] =
    &[md, lvm2, luks, xfs, ext, btrfs, swap, bitlocker, ntfs, exfat, vfat, iso9660, squashfs, reiserfs, jfs, f2fs, erofs, hfsplus, ufs];

/// Looks at `len` bytes of an image from byte `start`.
pub fn probe(image: &dyn Image, start: u64, len: u64) -> Option<Content> {
    let len = len.min(image.size().saturating_sub(start));
    let window = Window { image, start, len };
    PROBES.iter().find_map(|probe| probe(&window))
}

fn md(w: &Window<'_>) -> Option<Content> {
    const MAGIC: u32 = 0xa92b_4efc;
    let member = || Content::new("linux_raid_member", Usage::Member);
    // Version 1.1 at the beginning, 1.2 at 4 KiB, 1.0 at 8 KiB before the end; 0.90 in the last 64 KiB.
    for at in [Some(0), Some(4096), w.len.checked_sub(8192).map(|a| a & !4095)].into_iter().flatten() {
        if let Some(b) = w.read(at, 256).filter(|b| le32(b, 0) == MAGIC && le32(b, 4) == 1 && le64(b, 144) == at / 512) {
            return Some(member().uuid(cut(&b, 16, 16)).label(cut(&b, 32, 32)));
        }
    }
    let b = w.read((w.len & !0xffff).checked_sub(0x10000)?, 256).filter(|b| le32(b, 0) == MAGIC && le32(b, 4) == 0)?;
    Some(member().uuid(&uuid_of_090(&b)))
}

/// Version 0.90 has the UUID as four numbers, which are shown as such: the first apart from the others.
pub(crate) fn uuid_of_090(superblock: &[u8]) -> [u8; 16] {
    let mut uuid = [0; 16];
    for (word, at) in uuid.chunks_exact_mut(4).zip([20, 52, 56, 60]) {
        word.copy_from_slice(&le32(superblock, at).to_be_bytes());
    }
    uuid
}

fn lvm2(w: &Window<'_>) -> Option<Content> {
    (0..4).find_map(|sector| {
        let b = w.read(sector * 512, 512)?;
        if cut(&b, 0, 8) != b"LABELONE" || cut(&b, 24, 8) != b"LVM2 001" {
            return None;
        }
        let id = text(cut(&b, le32(&b, 20) as usize, 32));
        let parts = [0..6, 6..10, 10..14, 14..18, 18..22, 22..26, 26..32].map(|r| id.get(r).unwrap_or_default());
        let mut content = Content::new("LVM2_member", Usage::Member);
        content.uuid = Some(parts.join("-"));
        Some(content)
    })
}

fn luks(w: &Window<'_>) -> Option<Content> {
    let b = w.read(0, 512).filter(|b| cut(b, 0, 6) == b"LUKS\xba\xbe")?;
    let mut content = Content::new("crypto_LUKS", Usage::Crypto);
    content.uuid = Some(text(cut(&b, 168, 40))).filter(|u| !u.is_empty());
    Some(if be16(&b, 6) == 2 { content.label(cut(&b, 24, 48)) } else { content })
}

fn xfs(w: &Window<'_>) -> Option<Content> {
    let b = w.read(0, 512).filter(|b| cut(b, 0, 4) == b"XFSB")?;
    let blocks = u64::from(be32(&b, 8)) << 32 | u64::from(be32(&b, 12));
    Some(
        Content::new("xfs", Usage::Filesystem)
            .uuid(cut(&b, 32, 16))
            .label(cut(&b, 108, 12))
            .size(blocks.saturating_mul(be32(&b, 4).into())),
    )
}

fn ext(w: &Window<'_>) -> Option<Content> {
    let b = w.read(1024, 1024).filter(|b| le16(b, 0x38) == 0xef53)?;
    let (compat, incompat, ro_compat) = (le32(&b, 0x5c), le32(&b, 0x60), le32(&b, 0x64));
    // blkid's rules: ext3 is ext2 with a journal, and anything that neither has makes it ext4.
    let kind = match (incompat & 0x8 != 0, compat & 0x4 != 0) {
        (true, _) => "jbd",
        (_, journal) if ro_compat & !0x7 != 0 || incompat & !0x16 != 0 || incompat & 0x4 != 0 && !journal => "ext4",
        (_, true) => "ext3",
        (_, false) => "ext2",
    };
    let blocks = u64::from(le32(&b, 4)) | if incompat & 0x80 != 0 { u64::from(le32(&b, 0x150)) << 32 } else { 0 };
    let usage = if kind == "jbd" { Usage::Member } else { Usage::Filesystem };
    let size = blocks.saturating_mul(1024 << le32(&b, 0x18).min(6));
    Some(Content::new(kind, usage).uuid(cut(&b, 0x68, 16)).label(cut(&b, 0x78, 16)).size(size))
}

fn btrfs(w: &Window<'_>) -> Option<Content> {
    let b = w.read(65536, 1024).filter(|b| cut(b, 0x40, 8) == b"_BHRfS_M")?;
    Some(Content::new("btrfs", Usage::Filesystem).uuid(cut(&b, 32, 16)).label(cut(&b, 0x12b, 256)).size(le64(&b, 0x70)))
}

fn swap(w: &Window<'_>) -> Option<Content> {
    [4096u64, 8192, 16384, 32768, 65536].into_iter().find_map(|page| {
        let magic = w.read(page - 10, 10)?;
        let kind = match magic.as_slice() {
            b"SWAPSPACE2" | b"SWAP-SPACE" => "swap",
            b"S1SUSPEND\0" | b"S2SUSPEND\0" | b"ULSUSPEND\0" | b"LINHIB0001" => "swsuspend",
            _ => return None,
        };
        let b = w.read(1024, 64)?;
        let content = Content::new(kind, Usage::Swap);
        if le32(&b, 0) != 1 {
            return Some(content);
        }
        Some(content.uuid(cut(&b, 12, 16)).label(cut(&b, 28, 16)).size((u64::from(le32(&b, 4)) + 1) * page))
    })
}

fn ntfs(w: &Window<'_>) -> Option<Content> {
    let b = w.read(0, 512).filter(|b| cut(b, 3, 8) == b"NTFS    ")?;
    let mut content = Content::new("ntfs", Usage::Filesystem).size(le64(&b, 40).saturating_mul(le16(&b, 11).into()));
    content.uuid = Some(format!("{:016X}", le64(&b, 72)));
    content.label = ntfs_label(w, &b).filter(|l| !l.is_empty());
    Some(content)
}

/// The name in the record of `$Volume`, the fourth of the table of files.
fn ntfs_label(w: &Window<'_>, boot: &[u8]) -> Option<String> {
    const VOLUME_NAME: u32 = 0x60;
    let cluster = u64::from(le16(boot, 11)) * u64::from(*boot.get(13)?);
    let size = match boot.get(64)?.cast_signed() {
        clusters @ 1.. => u64::from(clusters.cast_unsigned()) * cluster,
        log => 1 << log.unsigned_abs().min(16),
    };
    let record = w.read(le64(boot, 48).checked_mul(cluster)?.checked_add(size * 3)?, 1024)?;
    let mut at = usize::from(le16(&record, 20));
    while le32(&record, at) < VOLUME_NAME && le32(&record, at + 4) >= 16 {
        at = at.checked_add(le32(&record, at + 4) as usize).filter(|a| *a < record.len())?;
    }
    let value = cut(&record, at + usize::from(le16(&record, at + 20)), le32(&record, at + 16) as usize);
    (cut(&record, 0, 4) == b"FILE" && le32(&record, at) == VOLUME_NAME).then(|| utf16(value))
}

fn utf16(bytes: &[u8]) -> String {
    let units = bytes.chunks_exact(2).map(|c| u16::from_le_bytes([c[0], c[1]]));
    char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

fn bitlocker(w: &Window<'_>) -> Option<Content> {
    w.read(0, 512).filter(|b| cut(b, 3, 8) == b"-FVE-FS-").map(|_| Content::new("BitLocker", Usage::Crypto))
}

fn exfat(w: &Window<'_>) -> Option<Content> {
    /// The entry of a label, which is among the first ones.
    const LABEL: u8 = 0x83;
    let b = w.read(0, 512).filter(|b| cut(b, 3, 8) == b"EXFAT   ")?;
    let (sector, cluster) = (u32::from(b[108]), u32::from(b[109]));
    if !(9..=12).contains(&sector) || cluster > 25 - sector {
        return None;
    }
    let mut content = Content::new("exfat", Usage::Filesystem).size(le64(&b, 72).saturating_mul(1 << sector));
    let serial = le32(&b, 100);
    content.uuid = Some(format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff)).filter(|_| serial != 0);
    let root = (u64::from(le32(&b, 88)) << sector) + (u64::from(le32(&b, 96).saturating_sub(2)) << (sector + cluster));
    let entries = w.read(root, 512).unwrap_or_default();
    let label = entries.chunks_exact(32).find(|e| e[0] == LABEL).map(|e| utf16(cut(e, 2, usize::from(e[1].min(15)) * 2)));
    content.label = label.filter(|l| !l.is_empty());
    Some(content)
}

fn vfat(w: &Window<'_>) -> Option<Content> {
    let b = w.read(0, 512).filter(|b| cut(b, 510, 2) == [0x55, 0xaa])?;
    let at = match (cut(&b, 82, 8), cut(&b, 54, 5)) {
        (b"FAT32   ", _) => 67,
        (_, b"FAT12" | b"FAT16" | b"FAT  ") => 39,
        _ => return None,
    };
    let sector = u64::from(le16(&b, 11));
    let sectors = if le16(&b, 19) == 0 { le32(&b, 32) } else { le16(&b, 19).into() };
    let serial = le32(&b, at);
    let mut content = Content::new("vfat", Usage::Filesystem).label(cut(&b, at + 4, 11)).size(sector * u64::from(sectors));
    content.label = content.label.filter(|l| l != "NO NAME");
    content.uuid = Some(format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff)).filter(|_| serial != 0);
    Some(content)
}

fn iso9660(w: &Window<'_>) -> Option<Content> {
    let b = w.read(32768, 2048).filter(|b| cut(b, 1, 5) == b"CD001")?;
    let mut content = Content::new("iso9660", Usage::Filesystem).label(cut(&b, 40, 32)).size(u64::from(le32(&b, 80)) * 2048);
    // The time of modification, or of creation where there is none.
    let date = [830, 813].map(|at| text(cut(&b, at, 16))).into_iter().find(|d| d.len() == 16 && d.bytes().any(|c| c != b'0'));
    content.uuid = date.and_then(|d| {
        let parts: Option<Vec<&str>> = [0..4, 4..6, 6..8, 8..10, 10..12, 12..14, 14..16].into_iter().map(|r| d.get(r)).collect();
        Some(parts?.join("-"))
    });
    Some(content)
}

fn squashfs(w: &Window<'_>) -> Option<Content> {
    let b = w.read(0, 96).filter(|b| cut(b, 0, 4) == b"hsqs")?;
    Some(Content::new("squashfs", Usage::Filesystem).size(le64(&b, 40)))
}

fn reiserfs(w: &Window<'_>) -> Option<Content> {
    let b = w.read(65536, 512).filter(|b| matches!(cut(b, 0x34, 8), b"ReIsErFs" | b"ReIsEr2F" | b"ReIsEr3F"))?;
    Some(
        Content::new("reiserfs", Usage::Filesystem)
            .uuid(cut(&b, 84, 16))
            .label(cut(&b, 100, 16))
            .size(u64::from(le32(&b, 0)) * u64::from(le16(&b, 44))),
    )
}

fn jfs(w: &Window<'_>) -> Option<Content> {
    let b = w.read(32768, 256).filter(|b| cut(b, 0, 4) == b"JFS1")?;
    Some(Content::new("jfs", Usage::Filesystem).uuid(cut(&b, 136, 16)).label(cut(&b, 152, 16)))
}

fn f2fs(w: &Window<'_>) -> Option<Content> {
    let b = w.read(1024, 512).filter(|b| le32(b, 0) == 0xf2f5_2010)?;
    Some(Content::new("f2fs", Usage::Filesystem).uuid(cut(&b, 108, 16)))
}

fn erofs(w: &Window<'_>) -> Option<Content> {
    let b = w.read(1024, 128).filter(|b| le32(b, 0) == 0xe0f5_e1e2)?;
    let size = u64::from(le32(&b, 36)) << b[12].min(16);
    Some(Content::new("erofs", Usage::Filesystem).uuid(cut(&b, 48, 16)).label(cut(&b, 64, 16)).size(size))
}

/// The BSDs', in their order of bytes: version 2, then 1.
fn ufs(w: &Window<'_>) -> Option<Content> {
    let b = ufs::PLACES.iter().find_map(|(at, magic)| w.read(*at, ufs::SIZE).filter(|b| le32(b, ufs::MAGIC_AT) == *magic))?;
    let mut content = Content::new("ufs", Usage::Filesystem).label(cut(&b, 680, 32));
    content.uuid = Some(format!("{:08x}{:08x}", le32(&b, 144), le32(&b, 148))).filter(|_| le64(&b, 144) != 0);
    Some(content)
}

fn hfsplus(w: &Window<'_>) -> Option<Content> {
    let b = w.read(1024, 512).filter(|b| matches!(cut(b, 0, 4), b"H+\0\x04" | b"HX\0\x05"))?;
    Some(Content::new("hfsplus", Usage::Filesystem).size(u64::from(be32(&b, 44)) * u64::from(be32(&b, 40))))
}
