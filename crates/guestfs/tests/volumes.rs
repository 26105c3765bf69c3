//! Superblocks of arrays and headers of encrypted volumes that are damaged in every place: what is found may be wrong, but something is
//! said, soon and without much memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use guestfs::{GuestDisk, Keys, Volumes};
use imgcore::raw::Raw;
use imgcore::storage::MemStorage;
use imgcore::{Image, ImageMut};
use sha2::{Digest, Sha256};

const MIB: usize = 1 << 20;

/// Numbers that are as good as random.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % limit
    }

    /// What hostile fields hold.
    fn byte(&mut self) -> u8 {
        [0, 1, 2, 0x7f, 0x80, 0xff, self.below(256) as u8][self.below(7)]
    }
}

fn open(disks: &[&[u8]], keys: &Keys) -> Volumes {
    let disk = |(index, bytes): (usize, &&[u8])| {
        let image = Raw::create(Arc::new(MemStorage::new("disk", 0)), bytes.len() as u64).unwrap();
        image.write_at(bytes, 0).unwrap();
        GuestDisk { name: format!("sd{}", guestfs::volume::letters(index)), image: Arc::new(image) as Arc<dyn Image> }
    };
    Volumes::open_with(disks.iter().enumerate().map(disk).collect(), Some(keys)).unwrap()
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// A member of a mirror of two, with metadata of version 1.2.
fn member(slot: u16) -> Vec<u8> {
    let mut disk = vec![0; 2 * MIB];
    let sb = &mut disk[4096..5120];
    put(sb, 0, &0xa92b_4efc_u32.to_le_bytes());
    put(sb, 4, &1u32.to_le_bytes());
    put(sb, 16, b"an array's id...");
    put(sb, 32, b"box:0");
    put(sb, 72, &1u32.to_le_bytes());
    put(sb, 80, &2048u64.to_le_bytes());
    put(sb, 92, &2u32.to_le_bytes());
    put(sb, 128, &2048u64.to_le_bytes());
    put(sb, 136, &2048u64.to_le_bytes());
    put(sb, 144, &8u64.to_le_bytes());
    put(sb, 160, &u32::from(slot).to_le_bytes());
    put(sb, 200, &7u64.to_le_bytes());
    put(sb, 220, &2u32.to_le_bytes());
    put(sb, 256, &[0, 0, 1, 0]);
    seal_member(&mut disk);
    disk
}

/// Makes the checksum right again.
fn seal_member(disk: &mut [u8]) {
    let roles = u32::from_le_bytes(disk[4096 + 220..4096 + 224].try_into().unwrap()).min(384) as usize;
    put(disk, 4096 + 216, &[0; 4]);
    let words = disk[4096..4096 + 256 + 2 * roles].chunks(4);
    let sum: u64 = words.map(|w| u64::from(u32::from_le_bytes([w[0], w[1], *w.get(2).unwrap_or(&0), *w.get(3).unwrap_or(&0)]))).sum();
    put(disk, 4096 + 216, &(sum as u32).wrapping_add((sum >> 32) as u32).to_le_bytes());
}

/// A volume of LUKS2 whose key slot nobody's passphrase opens.
fn encrypted() -> Vec<u8> {
    let json = r#"{"keyslots":{"0":{"type":"luks2","key_size":64,"af":{"type":"luks1","stripes":4000,"hash":"sha256"},
        "area":{"type":"raw","offset":"32768","size":"258048","encryption":"aes-xts-plain64","key_size":64},
        "kdf":{"type":"pbkdf2","hash":"sha256","iterations":10,"salt":"c2FsdHNhbHRzYWx0c2FsdA=="}}},
        "tokens":{},"segments":{"0":{"type":"crypt","offset":"1048576","size":"dynamic","iv_tweak":"0","encryption":"aes-xts-plain64","sector_size":512}},
        "digests":{"0":{"type":"pbkdf2","keyslots":["0"],"segments":["0"],"hash":"sha256","iterations":10,
        "salt":"c2FsdHNhbHRzYWx0c2FsdA==","digest":"ZGlnZXN0ZGlnZXN0ZGlnZXN0ZGlnZXN0ZGlnZXN0ZGc="}},
        "config":{"json_size":"12288","keyslots_size":"1015808"}}"#;
    let mut disk = vec![0; 2 * MIB];
    put(&mut disk, 0, b"LUKS\xba\xbe\x00\x02");
    put(&mut disk, 8, &0x4000u64.to_be_bytes());
    put(&mut disk, 72, b"sha256");
    put(&mut disk, 168, b"0f3c7a52-0000-4000-8000-000000000001");
    put(&mut disk, 4096, json.as_bytes());
    seal_encrypted(&mut disk);
    disk
}

fn seal_encrypted(disk: &mut [u8]) {
    put(disk, 448, &[0; 64]);
    let digest = Sha256::digest(&disk[..0x4000]);
    put(disk, 448, &digest);
}

/// Damages 1 to 3 bytes of a range.
fn damage(disk: &mut [u8], range: std::ops::Range<usize>, numbers: &mut Numbers) {
    for _ in 0..=numbers.below(3) {
        disk[range.start + numbers.below(range.len())] = numbers.byte();
    }
}

#[test]
fn damaged_superblocks_of_arrays() {
    let whole = [member(0), member(1)];
    let volumes = open(&[&whole[0], &whole[1]], &Keys::default());
    let array = volumes.volumes.last().unwrap();
    assert_eq!((array.device.as_str(), array.len), ("/dev/md127", MIB as u64));
    assert_eq!(volumes.complaints, [] as [String; 0]);
    let mut numbers = Numbers(1);
    let started = Instant::now();
    for _ in 0..3000 {
        let mut disk = whole[0].clone();
        damage(&mut disk, 4096..4096 + 264, &mut numbers);
        seal_member(&mut disk);
        let volumes = open(&[&disk, &whole[1]], &Keys::default());
        for volume in &volumes.volumes {
            if let Ok(image) = volumes.image(volume) {
                let _ = image.read_at(&mut vec![0; 4096.min(image.size() as usize)], 0);
            }
        }
    }
    assert!(started.elapsed() < Duration::from_secs(60));
}

#[test]
fn damaged_headers_of_encrypted_volumes() {
    let whole = encrypted();
    let mut keys = Keys::default();
    keys.add("all:key:nobody's").unwrap();
    assert_eq!(open(&[&whole], &keys).complaints, ["/dev/sda stays locked: the key is not one of its"]);
    let mut numbers = Numbers(2);
    let json = whole[4096..].iter().position(|b| *b == 0).unwrap();
    for _ in 0..2000 {
        let mut disk = whole.clone();
        damage(&mut disk, 4096..4096 + json, &mut numbers);
        // Numbers are where it hurts.
        if let Some(digit) = disk[4096..4096 + json].iter().skip(numbers.below(json)).position(u8::is_ascii_digit) {
            disk[4096 + digit] = b'9';
        }
        seal_encrypted(&mut disk);
        let volumes = open(&[&disk], &keys);
        assert_eq!(volumes.locked.len() + volumes.complaints.len(), 2 * volumes.locked.len());
    }
    // Costs that nobody asks for in earnest are not paid.
    for (from, to) in [
        (r#""iterations":10,"salt""#, r#""iterations":4294967295,"salt""#),
        (
            r#""kdf":{"type":"pbkdf2","hash":"sha256","iterations":10,"#,
            r#""kdf":{"type":"argon2id","time":4,"memory":4294967295,"cpus":4,"#,
        ),
        (
            r#""kdf":{"type":"pbkdf2","hash":"sha256","iterations":10,"#,
            r#""kdf":{"type":"argon2id","time":4294967295,"memory":65536,"cpus":4,"#,
        ),
        (r#""stripes":4000"#, r#""stripes":4000000000"#),
        (r#""key_size":64,"af""#, r#""key_size":640000000,"af""#),
    ] {
        let text = String::from_utf8(whole[4096..4096 + json].to_vec()).unwrap();
        assert!(text.contains(from), "{from}");
        let mut disk = whole.clone();
        disk[4096..0x4000].fill(0);
        put(&mut disk, 4096, text.replacen(from, to, 1).as_bytes());
        seal_encrypted(&mut disk);
        let started = Instant::now();
        let complaints = open(&[&disk], &keys).complaints;
        assert!(complaints[0].contains("key slot") && started.elapsed() < Duration::from_secs(5), "{to}: {complaints:?}");
    }
}
