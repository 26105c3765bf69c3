//! The block device's requests against an image in memory.

use imgcore::storage::{FaultStorage, MemStorage, Operation};
use imgcore::{Image, ImageMut, raw::Raw};
use virtio_bindings::virtio_blk::*;

use super::*;
use crate::virtio::blk::Block;

const SECTOR: usize = 512;
const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;

fn image(size: u64) -> Arc<dyn ImageMut> {
    Arc::new(Raw::create(Arc::new(MemStorage::new("disk", 0)), size).unwrap())
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

/// Asks and checks the status; the bytes before it.
#[track_caller]
fn request(guest: &mut Guest, kind: u32, sector: u64, data: &[u8], room: usize, status: u32) -> Vec<u8> {
    let header = header(kind, sector);
    let read: &[&[u8]] = if data.is_empty() { &[&header] } else { &[&header, data] };
    let write: &[usize] = if room == 0 { &[1] } else { &[room, 1] };
    let (mut bytes, len) = guest.ask(0, read, write);
    assert_eq!(bytes.pop(), Some(status as u8));
    if status == VIRTIO_BLK_S_OK && kind == VIRTIO_BLK_T_IN {
        assert_eq!(len as usize, room + 1);
    }
    bytes
}

fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

fn read_all(image: &dyn Image) -> Vec<u8> {
    let mut bytes = vec![0; image.size() as usize];
    image.read_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn what_is_written_is_read() {
    let image = image(4 << 20);
    let mut guest = Guest::new(Block::new(image.clone(), "a serial number of more than 20 bytes"));
    guest.start();
    let mut random = Random(1);
    let mut expected = vec![0; 4 << 20];
    for _ in 0..300 {
        let len = SECTOR * (1 + random.below(1300) as usize);
        let sector = random.below((expected.len() - len) as u64 / SECTOR as u64);
        let at = sector as usize * SECTOR;
        if random.below(2) == 0 {
            let data: Vec<u8> = (0..len / 8).flat_map(|_| random.next().to_le_bytes()).collect();
            request(&mut guest, VIRTIO_BLK_T_OUT, sector, &data, 0, VIRTIO_BLK_S_OK);
            expected[at..][..len].copy_from_slice(&data);
        } else {
            assert!(request(&mut guest, VIRTIO_BLK_T_IN, sector, &[], len, VIRTIO_BLK_S_OK) == expected[at..][..len]);
        }
    }
    request(&mut guest, VIRTIO_BLK_T_FLUSH, 0, &[], 0, VIRTIO_BLK_S_OK);
    assert!(read_all(image.as_ref()) == expected);
    assert_eq!(request(&mut guest, VIRTIO_BLK_T_GET_ID, 0, &[], 20, VIRTIO_BLK_S_OK), b"a serial number of m");
    request(&mut guest, VIRTIO_BLK_T_GET_ID, 0, &[], 19, VIRTIO_BLK_S_IOERR);
    request(&mut guest, 77, 0, &[], 0, VIRTIO_BLK_S_UNSUPP);
}

#[test]
fn data_may_be_cut_anywhere() {
    let image = image(1 << 20);
    image.write_at(&[7; 1 << 20], 0).unwrap();
    let mut guest = Guest::new(Block::new(image.clone(), "x"));
    guest.start();
    // A request of many buffers, whose header and status lie with the data (section 2.7.4: no assumption on framing).
    let header = [header(VIRTIO_BLK_T_OUT, 3), vec![1; 100]].concat();
    let (bytes, _) = guest.ask(0, &[&header[..5], &header[5..60], &header[60..], &[2; 412]], &[1]);
    assert_eq!(bytes, [0]);
    assert_eq!(read_all(image.as_ref())[3 * SECTOR..4 * SECTOR], [vec![1; 100], vec![2; 412]].concat());
    let sizes = [vec![1; 200], vec![0, 312, 0], vec![SECTOR + 1]].concat();
    let (bytes, len) = guest.ask(0, &[&self::header(VIRTIO_BLK_T_IN, 2)], &sizes);
    assert_eq!((bytes.len(), len, bytes.last()), (1025, 1025, Some(&0)));
    assert_eq!(bytes[..SECTOR], [7; SECTOR]);
    assert_eq!(bytes[SECTOR..][..100], [1; 100]);
}

#[test]
fn capacity_and_limits_are_told() {
    let guest = Guest::new(Block::new(image((5 << 30) + 512), "x"));
    let sectors = u64::from(guest.get(0x100)) | u64::from(guest.get(0x104)) << 32;
    assert_eq!(sectors, (10 << 20) + 1);
    assert_eq!(guest.get(0x10c), 254, "seg_max");
    assert_eq!(guest.get(0x100 + 60), 0);
    assert_eq!(guest.offered_features() & 1 << VIRTIO_BLK_F_RO, 0);
}

#[test]
fn requests_that_cannot_be_are_refused() {
    let disk = image(1 << 20);
    let mut guest = Guest::new(Block::new(disk.clone(), "x"));
    guest.start();
    let end = (1 << 20) / 512;
    let io_error = VIRTIO_BLK_S_IOERR;
    for sector in [end, end - 1, u64::MAX, u64::MAX / 512, 1 << 55] {
        request(&mut guest, VIRTIO_BLK_T_IN, sector, &[], 2 * SECTOR, io_error);
        request(&mut guest, VIRTIO_BLK_T_OUT, sector, &[1; 2 * SECTOR], 0, io_error);
        request(&mut guest, VIRTIO_BLK_T_DISCARD, 0, &segment(sector, 2, 0), 0, io_error);
        request(&mut guest, VIRTIO_BLK_T_WRITE_ZEROES, 0, &segment(sector, 2, 0), 0, io_error);
    }
    request(&mut guest, VIRTIO_BLK_T_IN, 0, &[], 511, io_error);
    request(&mut guest, VIRTIO_BLK_T_OUT, 0, &[1; 513], 0, io_error);
    request(&mut guest, VIRTIO_BLK_T_DISCARD, 0, &[], 0, io_error);
    request(&mut guest, VIRTIO_BLK_T_DISCARD, 0, &[0; 15], 0, io_error);
    request(&mut guest, VIRTIO_BLK_T_DISCARD, 0, &segment(0, 1, 0).repeat(17), 0, io_error);
    request(&mut guest, VIRTIO_BLK_T_DISCARD, 0, &segment(0, 1 << 22, 0), 0, io_error);
    request(&mut guest, VIRTIO_BLK_T_DISCARD, 0, &segment(0, 1, 1), 0, VIRTIO_BLK_S_UNSUPP);
    request(&mut guest, VIRTIO_BLK_T_WRITE_ZEROES, 0, &segment(0, 1, 2), 0, VIRTIO_BLK_S_UNSUPP);
    // Too short for a header; no room for a status.
    assert_eq!(guest.ask(0, &[&[0; 15]], &[1]).0, [io_error as u8]);
    assert_eq!(guest.ask(0, &[&header(VIRTIO_BLK_T_OUT, 0), &[1; 512]], &[]).1, 0);
    assert!(read_all(disk.as_ref()).iter().all(|&byte| byte == 0), "nothing was written");
}

#[test]
fn ranges_are_cleared() {
    let disk = image(1 << 20);
    disk.write_at(&[7; 1 << 20], 0).unwrap();
    let mut guest = Guest::new(Block::new(disk.clone(), "x"));
    guest.start();
    request(&mut guest, VIRTIO_BLK_T_WRITE_ZEROES, 0, &[segment(1, 2, 1), segment(10, 1, 0)].concat(), 0, VIRTIO_BLK_S_OK);
    request(&mut guest, VIRTIO_BLK_T_DISCARD, 0, &[segment(100, 50, 0), segment(0, 0, 0)].concat(), 0, VIRTIO_BLK_S_OK);
    let bytes = read_all(disk.as_ref());
    for (sector, bytes) in bytes.chunks(SECTOR).enumerate() {
        let clear = matches!(sector, 1 | 2 | 10 | 100..150);
        assert_eq!(bytes, [if clear { 0 } else { 7 }; SECTOR], "sector {sector}");
    }
}

#[test]
fn a_disk_to_read_is_not_written() {
    let disk = image(1 << 20);
    disk.write_at(&[7; 1 << 20], 0).unwrap();
    let mut guest = Guest::new(Block::read_only(disk.clone(), "x"));
    guest.start();
    assert_ne!(guest.offered_features() & 1 << VIRTIO_BLK_F_RO, 0);
    request(&mut guest, VIRTIO_BLK_T_OUT, 0, &[1; 512], 0, VIRTIO_BLK_S_IOERR);
    request(&mut guest, VIRTIO_BLK_T_DISCARD, 0, &segment(0, 1, 0), 0, VIRTIO_BLK_S_IOERR);
    request(&mut guest, VIRTIO_BLK_T_WRITE_ZEROES, 0, &segment(0, 1, 0), 0, VIRTIO_BLK_S_IOERR);
    request(&mut guest, VIRTIO_BLK_T_FLUSH, 0, &[], 0, VIRTIO_BLK_S_OK);
    assert_eq!(request(&mut guest, VIRTIO_BLK_T_IN, 0, &[], 512, VIRTIO_BLK_S_OK), [7; 512]);
    assert!(read_all(disk.as_ref()).iter().all(|&byte| byte == 7));
}

#[test]
fn an_image_that_fails_is_a_status_and_a_message() {
    let storage = Arc::new(FaultStorage::new(Arc::new(MemStorage::new("bad disk", 1 << 20))));
    let block = Block::new(Arc::new(Raw::open(storage.clone()).unwrap()), "x");
    let first_error = block.first_error();
    let mut guest = Guest::new(block);
    guest.start();
    request(&mut guest, VIRTIO_BLK_T_IN, 0, &[], 512, VIRTIO_BLK_S_OK);
    assert!(first_error.get().is_none());
    storage.set_fail_reads(true);
    request(&mut guest, VIRTIO_BLK_T_IN, 8, &[], 512, VIRTIO_BLK_S_IOERR);
    storage.set_fail_reads(false);
    request(&mut guest, VIRTIO_BLK_T_IN, 8, &[], 512, VIRTIO_BLK_S_OK);
    let error = first_error.get().expect("remembered").to_string();
    assert!(error.contains("bad disk"), "{error}");
}

#[test]
fn without_flush_every_write_is_durable() {
    for (refuse, syncs) in [(0, 0), (FLUSH, 2)] {
        let storage = Arc::new(FaultStorage::new(Arc::new(MemStorage::new("disk", 1 << 20))).recording());
        let mut guest = Guest::new(Block::new(Arc::new(Raw::open(storage.clone()).unwrap()), "x"));
        guest.start_without(refuse);
        request(&mut guest, VIRTIO_BLK_T_OUT, 0, &[1; 512], 0, VIRTIO_BLK_S_OK);
        request(&mut guest, VIRTIO_BLK_T_WRITE_ZEROES, 0, &segment(0, 1, 0), 0, VIRTIO_BLK_S_OK);
        assert_eq!(storage.log().iter().filter(|op| **op == Operation::Sync).count(), syncs);
        request(&mut guest, VIRTIO_BLK_T_FLUSH, 0, &[], 0, VIRTIO_BLK_S_OK);
        assert_eq!(storage.log().iter().filter(|op| **op == Operation::Sync).count(), syncs + 1);
    }
}

/// Many requests at once, with and without EVENT_IDX and indirect descriptors.
#[test]
fn a_full_queue_is_served() {
    let disk = image(1 << 20);
    let mut guest = Guest::new(Block::new(disk.clone(), "x"));
    for refuse in [0, 1 << 29] {
        guest.start_without(refuse);
        for round in 0..20 {
            for n in 0..64u64 {
                guest.offer(0, &[&header(VIRTIO_BLK_T_OUT, n), &[round * 3 + n as u8; SECTOR]], &[1]);
            }
            for _ in 0..64 {
                assert_eq!(guest.answer(0).0, [0]);
            }
            let bytes = read_all(disk.as_ref());
            assert!((0..64).all(|n| bytes[n * SECTOR..][..SECTOR] == [round * 3 + n as u8; SECTOR]));
        }
    }
}

#[test]
fn an_indirect_table_is_a_chain() {
    let disk = image(1 << 20);
    disk.write_at(&[9; 512], 512).unwrap();
    let mut guest = Guest::new(Block::new(disk, "x"));
    guest.start();
    let (table, data) = (guest.allocate(64), guest.allocate(4096));
    guest.memory.write_slice(&header(VIRTIO_BLK_T_IN, 1), GuestAddress(data)).unwrap();
    guest.descriptor(table, 0, data, 16, NEXT, 2);
    guest.descriptor(table, 2, data + 512, 512, NEXT | WRITE, 1);
    guest.descriptor(table, 1, data + 1024, 1, WRITE, 0);
    guest.descriptor(guest.queues[0].descriptors, 5, table, 48, INDIRECT, 0);
    guest.publish(0, 5);
    assert_eq!(guest.wait_for("the request", |guest| guest.used(0)), (5, 513));
    let mut bytes = [1; 513];
    guest.memory.read_slice(&mut bytes, GuestAddress(data + 512)).unwrap();
    assert_eq!(bytes[..512], [9; 512]);
}

#[test]
fn a_disk_moves_with_requests_on_the_way() {
    let disk = image(1 << 20);
    let mut guest = Guest::new(Block::new(disk.clone(), "x"));
    guest.start();
    for n in 0..80 {
        guest.offer(0, &[&header(VIRTIO_BLK_T_OUT, n), &[n as u8; SECTOR]], &[1]);
    }
    let state = guest.transport.save();
    let mut moved = guest.moved(Block::new(disk.clone(), "x"), &state).unwrap();
    for _ in 0..80 {
        assert_eq!(moved.answer(0).0, [0]);
    }
    assert!((0..80).all(|n| read_all(disk.as_ref())[n * SECTOR..][..SECTOR] == [n as u8; SECTOR]));
}
