//! Tables made by sfdisk, sgdisk and mkfs, tables that they judge, and hostile ones.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use super::*;
use crate::testing::TestImage;

const MIB: u64 = 1 << 20;

/// Whether a reference tool is there; a test without it says so, and fails where everything must be installed.
fn has(tool: &str) -> bool {
    let found = Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        assert!(std::env::var_os("CI").is_none(), "{tool} is missing");
        eprintln!("skipped: {tool} is missing");
    }
    found
}

fn run(command: &mut Command, input: &str) -> String {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {text}");
    text
}

/// A sparse file of `size` bytes on which a tool did its work.
fn made_by(size: u64, work: impl FnOnce(&Path)) -> TestImage {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(size).unwrap();
    work(file.path());
    TestImage::with(size, &[(0, &std::fs::read(file.path()).unwrap())])
}

fn sfdisk(size: u64, script: &str) -> TestImage {
    made_by(size, |path| {
        run(Command::new("sfdisk").arg("-q").arg(path), script);
    })
}

/// What a tool says of an image of ours.
fn judge(image: &TestImage, command: &[&str]) -> String {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&image.bytes()).unwrap();
    run(Command::new(command[0]).args(&command[1..]).arg(file.path()), "")
}

fn new(number: u32, start: u64, len: u64, purpose: Purpose) -> NewPartition {
    NewPartition { number, start, len, purpose, bootable: number == 1, guid: Guid::from_random([number as u8; 16]) }
}

#[test]
fn an_mbr_with_logical_partitions_reads_as_sfdisk_made_it() {
    if !has("sfdisk") {
        return;
    }
    let script = "label: dos\nlabel-id: 0x1a2b3c4d\nstart=2048, size=8192, type=83, bootable\nstart=10240, size=40960, type=5\n\
                  start=12288, size=4096, type=83\nstart=18432, size=4096, type=82\nstart=24576, size=8192, type=8e\n";
    // sfdisk counts the extended partition as 2, then leaves 3 and 4 out.
    let script = script
        .replace("start=12288", "5 : start=12288")
        .replace("start=18432", "6 : start=18432")
        .replace("start=24576", "7 : start=24576");
    let table = read(&sfdisk(32 * MIB, &script)).unwrap().unwrap();
    assert_eq!((table.kind, table.id.as_str(), table.warnings.len()), (TableKind::Mbr, "1a2b3c4d", 0));
    let rows: Vec<_> = table.partitions.iter().map(|p| (p.number, p.start / 512, p.len / 512, p.kind, p.bootable)).collect();
    assert_eq!(
        rows,
        [
            (1, 2048, 8192, PartitionType::Mbr(0x83), true),
            (2, 10240, 40960, PartitionType::Mbr(5), false),
            (5, 12288, 4096, PartitionType::Mbr(0x83), false),
            (6, 18432, 4096, PartitionType::Mbr(0x82), false),
            (7, 24576, 8192, PartitionType::Mbr(0x8e), false),
        ]
    );
    assert_eq!(table.partitions[3].uuid, "1a2b3c4d-06");
}

fn sgdisk_made() -> TestImage {
    made_by(16 * MIB, |path| {
        let words =
            ["-U", "11111111-2222-3333-4444-555555555555", "-n", "2:2048:+2M", "-t", "2:8300", "-c", "2:wörld", "-A", "2:set:2", "-n"];
        let more = ["5:8192:+1M", "-t", "5:8200", "-u", "5:aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"];
        run(Command::new("sgdisk").args(words).args(more).arg(path), "");
    })
}

fn check_sgdisk_made(table: &Table) {
    assert_eq!((table.kind, table.id.as_str(), table.sector_size), (TableKind::Gpt, "11111111-2222-3333-4444-555555555555", 512));
    let rows: Vec<_> = table.partitions.iter().map(|p| (p.number, p.start, p.len, p.name.as_str(), p.bootable)).collect();
    assert_eq!(rows, [(2, MIB, 2 * MIB, "wörld", true), (5, 4 * MIB, MIB, "", false)]);
    assert_eq!(table.partitions[1].uuid, "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee");
    let swap = "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f".parse().unwrap();
    assert_eq!(table.partitions[1].kind, PartitionType::Gpt(swap));
}

#[test]
fn a_gpt_reads_as_sgdisk_made_it_from_either_copy() {
    if !has("sgdisk") {
        return;
    }
    let image = sgdisk_made();
    let table = read(&image).unwrap().unwrap();
    check_sgdisk_made(&table);
    assert_eq!(table.warnings, [""; 0]);

    // A flipped bit in the primary's header, in its entries, or no primary at all.
    for (offset, byte) in [(512 + 40, 0xff), (1024 + 128 + 32, 0xff), (512, 0)] {
        let image = TestImage::with(16 * MIB, &[(0, &image.bytes()), (offset, &[byte])]);
        let table = read(&image).unwrap().unwrap();
        check_sgdisk_made(&table);
        assert!(table.warnings[0].starts_with("the primary GPT is damaged, its backup is used"), "{:?}", table.warnings);
    }

    let both = TestImage::with(16 * MIB, &[(0, &image.bytes()), (512 + 40, &[0xff]), (16 * MIB - 512 + 17, &[1])]);
    let message = read(&both).unwrap_err().to_string();
    assert!(message.starts_with("test: corrupt GPT: primary header at 0x200: its checksum is"), "{message}");
    assert!(message.contains("backup header at 0xfffe00"), "{message}");
}

#[test]
fn a_gpt_of_4096_byte_sectors_is_read() {
    if !has("fdisk") {
        return;
    }
    let image = made_by(16 * MIB, |path| {
        run(Command::new("fdisk").args(["-b", "4096"]).arg(path), "g\nn\n3\n256\n767\nw\n");
    });
    let table = read(&image).unwrap().unwrap();
    assert_eq!((table.sector_size, table.warnings.len()), (4096, 0));
    let p = &table.partitions[0];
    assert_eq!((p.number, p.start, p.len), (3, MIB, 2 * MIB));
}

#[test]
fn filesystems_that_fill_a_disk_are_no_table() {
    for (tool, words) in [("mkfs.vfat", &["-F", "16"][..]), ("mkfs.ext4", &["-q", "-F"]), ("mkswap", &["-q"])] {
        if has(tool) {
            let image = made_by(16 * MIB, |path| {
                run(Command::new(tool).args(words).arg(path), "");
            });
            assert_eq!(read(&image).unwrap(), None, "{tool}");
        }
    }
    assert_eq!(read(&TestImage::new(16 * MIB)).unwrap(), None);
    assert_eq!(read(&TestImage::new(100)).unwrap(), None);
    let ntfs = TestImage::with(MIB, &[(0, b"\xebR\x90NTFS    "), (510, &[0x55, 0xaa])]);
    assert_eq!(read(&ntfs).unwrap(), None);
    // Boot code that happens to end well but whose flags make no sense.
    assert_eq!(read(&TestImage::with(MIB, &[(0x1be, &[0x12]), (510, &[0x55, 0xaa])])).unwrap(), None);
}

#[test]
fn sfdisk_reads_the_mbr_that_we_write() {
    if !has("sfdisk") {
        return;
    }
    let image = TestImage::with(64 * MIB, &[(0, &[0x90; 512])]);
    write_mbr(&image, 0x1a2b_3c4d, &[new(2, 33 * MIB, 31 * MIB, Purpose::Linux), new(1, MIB, 32 * MIB, Purpose::Swap)]).unwrap();
    let dump = judge(&image, &["sfdisk", "-d"]);
    for part in [
        "label: dos",
        "label-id: 0x1a2b3c4d",
        "1 : start=        2048, size=       65536, type=82, bootable",
        "2 : start=       67584, size=       63488, type=83",
    ] {
        assert!(dump.contains(part), "{part} is missing in {dump}");
    }
    assert_eq!(image.bytes()[..440], [0x90; 440]);
    let table = read(&image).unwrap().unwrap();
    assert_eq!(table.partitions.iter().map(|p| (p.number, p.start)).collect::<Vec<_>>(), [(1, MIB), (2, 33 * MIB)]);
}

#[test]
fn sgdisk_finds_no_fault_in_the_gpt_that_we_write() {
    if !has("sgdisk") {
        return;
    }
    let image = TestImage::new(64 * MIB);
    let id: Guid = "11111111-2222-4333-8444-555555555555".parse().unwrap();
    let partitions =
        [new(3, MIB, MIB, Purpose::BiosGrub), new(1, 2 * MIB, 32 * MIB, Purpose::Linux), new(2, 34 * MIB, 29 * MIB, Purpose::Lvm)];
    write_gpt(&image, id, &partitions).unwrap();
    let verdict = judge(&image, &["sgdisk", "-v"]);
    assert!(verdict.contains("No problems found"), "{verdict}");
    let print = judge(&image, &["sgdisk", "-p"]);
    for part in ["EF02  BIOS boot", "8300", "8E00", "11111111-2222-4333-8444-555555555555"] {
        assert!(print.contains(part), "{part} is missing in {print}");
    }
    let table = read(&image).unwrap().unwrap();
    assert_eq!(
        table.partitions.iter().map(|p| (p.number, p.start, p.len)).collect::<Vec<_>>(),
        [(1, 2 * MIB, 32 * MIB), (2, 34 * MIB, 29 * MIB), (3, MIB, MIB)]
    );
    assert!(table.warnings.is_empty());
}

#[test]
fn an_mbr_with_logical_partitions_is_written_as_it_was_read() {
    if !has("sfdisk") {
        return;
    }
    let script = "label: dos\nlabel-id: 0x1a2b3c4d\n1 : start=2048, size=8192, type=83, bootable\n2 : start=10240, size=49152, type=f\n\
                  5 : start=12288, size=4096, type=83\n6 : start=18432, size=4096, type=82\n7 : start=24576, size=8192, type=8e\n";
    let original = sfdisk(32 * MIB, script);
    let mut table = read(&original).unwrap().unwrap();
    let image = TestImage::with(32 * MIB, &[(0, &[0x90; 440]), (10240 * 512, &[0x91; 440])]);
    write(&image, &table).unwrap();
    assert_eq!(read(&image).unwrap().unwrap(), table);
    let rows = |image: &TestImage| -> Vec<String> {
        judge(image, &["sfdisk", "-d"]).lines().filter_map(|l| Some(l.split_once(" : ")?.1.to_string())).collect()
    };
    assert_eq!(rows(&image), rows(&original));
    assert_eq!((&image.bytes()[..440], &image.bytes()[10240 * 512..][..440]), (&[0x90; 440][..], &[0x91; 440][..]));

    // The chain's order is that of the numbers, not that of the disk.
    for (number, start) in [(5, 24576), (6, 12288), (7, 20480)] {
        let p = table.partitions.iter_mut().find(|p| p.number == number).unwrap();
        (p.start, p.len) = (start * 512, 2048 * 512);
    }
    write(&image, &table).unwrap();
    assert_eq!(read(&image).unwrap().unwrap(), table);
    assert!(judge(&image, &["sfdisk", "-V"]).contains("No errors"));

    for (number, start, len) in [(6, 2048, 512), (6, 10241, 1024), (5, 10240, 1024), (9, 16384, 512), (6, 24000, 600)] {
        let mut bad = table.clone();
        let p = bad.partitions.iter_mut().find(|p| p.number == number.min(7)).unwrap();
        (p.number, p.start, p.len) = (number, start * 512, len * 512);
        let before = image.bytes();
        assert!(matches!(write(&image, &bad), Err(Error::Invalid(_))), "{number} at {start}");
        assert!(image.bytes() == before);
    }
    table.partitions.retain(|p| !p.is_logical());
    write(&image, &table).unwrap();
    assert_eq!(read(&image).unwrap().unwrap(), table);
}

#[test]
fn a_gpt_is_written_as_it_was_read() {
    if !has("sgdisk") {
        return;
    }
    let mut table = read(&sgdisk_made()).unwrap().unwrap();
    table.partitions[1].attributes = 1 << 60 | 1;
    // A larger disk: the backup goes to its new end.
    let image = TestImage::new(64 * MIB);
    write(&image, &table).unwrap();
    assert_eq!(read(&image).unwrap().unwrap(), table);
    let verdict = judge(&image, &["sgdisk", "-v"]);
    assert!(verdict.contains("No problems found"), "{verdict}");
    let info = judge(&image, &["sgdisk", "-i", "5"]);
    assert!(info.contains("AAAAAAAA-BBBB-CCCC-DDDD-EEEEEEEEEEEE") && info.contains("Attribute flags: 1000000000000001"), "{info}");
    table.partitions[0].number = 200;
    write(&image, &table).unwrap();
    assert_eq!(read(&image).unwrap().unwrap().partitions[1].number, 200);

    let large = Table { sector_size: 4096, first_usable: 6 * 4096, ..table };
    write(&image, &large).unwrap();
    let again = read(&image).unwrap().unwrap();
    assert_eq!((again.sector_size, again.first_usable, again.partitions.len()), (4096, 9 * 4096, 2));
}

#[test]
fn tables_that_cannot_be_are_refused() {
    let image = TestImage::new(8 * MIB);
    let linux = |number, start, len| new(number, start, len, Purpose::Linux);
    for partitions in [
        vec![linux(1, MIB, 8 * MIB)],
        vec![linux(1, u64::MAX - 511, 512)],
        vec![linux(1, 0, MIB)],
        vec![linux(1, MIB + 1, MIB)],
        vec![linux(1, MIB, 0)],
        vec![linux(5, MIB, MIB)],
        vec![linux(1, MIB, 2 * MIB), linux(2, 2 * MIB, MIB)],
        vec![linux(1, MIB, MIB), linux(1, 2 * MIB, MIB)],
        vec![new(1, MIB, MIB, Purpose::BiosGrub)],
    ] {
        assert!(matches!(write_mbr(&image, 1, &partitions), Err(Error::Invalid(_))), "{partitions:?}");
    }
    // The backup's room is not for partitions.
    assert!(write_gpt(&image, Guid::default(), &[linux(1, MIB, 7 * MIB)]).is_err());
    assert!(write_gpt(&TestImage::new(512 * 60), Guid::default(), &[]).is_err());
    assert!(image.bytes().iter().all(|b| *b == 0));
}

/// A boot record of these entries: (slot, type, start, sectors).
fn record(entries: &[(usize, u8, u32, u32)]) -> Vec<u8> {
    let mut sector = vec![0; 512];
    for (slot, kind, start, sectors) in entries {
        let entry = &mut sector[0x1be + 16 * slot..][..16];
        entry[4] = *kind;
        entry[8..12].copy_from_slice(&start.to_le_bytes());
        entry[12..16].copy_from_slice(&sectors.to_le_bytes());
    }
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

#[test]
fn hostile_chains_of_boot_records_end() {
    let loops = TestImage::with(
        MIB,
        &[
            (0, &record(&[(0, 5, 100, 1000)])),
            (100 * 512, &record(&[(0, 0x83, 1, 10), (1, 5, 50, 100)])),
            (150 * 512, &record(&[(0, 0x83, 1, 10), (1, 5, 0, 100)])),
        ],
    );
    let table = read(&loops).unwrap().unwrap();
    assert_eq!(table.partitions.iter().map(|p| p.number).collect::<Vec<_>>(), [1, 5, 6]);
    assert!(table.warnings[0].contains("comes back to sector 100"), "{:?}", table.warnings);

    let outside = TestImage::with(
        MIB,
        &[
            (0, &record(&[(0, 0x83, 1, u32::MAX), (1, 0x83, u32::MAX, u32::MAX), (2, 5, 100, u32::MAX)])),
            (100 * 512, &record(&[(0, 0x83, u32::MAX, u32::MAX), (1, 5, u32::MAX, u32::MAX)])),
        ],
    );
    let table = read(&outside).unwrap().unwrap();
    assert_eq!(table.partitions.iter().map(|p| (p.number, p.start + p.len)).collect::<Vec<_>>(), [(1, MIB), (3, MIB)]);
    assert_eq!(table.warnings.len(), 5, "{:?}", table.warnings);
}

#[test]
fn hostile_gpt_headers_are_bounded() {
    let image = TestImage::new(MIB);
    write_gpt(&image, Guid::default(), &[]).unwrap();
    let good = image.bytes();
    // (offset in the header, bytes): each with a right checksum, so that only the value itself is in the way.
    for (at, value) in
        [(12, 0u32), (12, 513), (80, u32::MAX), (80, 0), (84, 127), (84, 129), (84, 1 << 31), (72, u32::MAX), (24, 7), (48, u32::MAX)]
    {
        let mut bytes = good.clone();
        bytes[MIB as usize - 512..].fill(0);
        bytes[512 + at..512 + at + 4].copy_from_slice(&value.to_le_bytes());
        let size = if at == 12 && value < 513 { value as usize } else { 92 };
        bytes[512 + 16..512 + 20].fill(0);
        let crc = crc32fast::hash(&bytes[512..512 + size]);
        bytes[512 + 16..512 + 20].copy_from_slice(&crc.to_le_bytes());
        let result = read(&TestImage::with(MIB, &[(0, &bytes)]));
        assert!(matches!(result, Err(Error::Corrupt { .. })), "{at} {value}: {result:?}");
    }
}
