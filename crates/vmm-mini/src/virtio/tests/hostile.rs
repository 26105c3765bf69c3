//! Rings that no driver would make: whatever lies in them, the device neither panics nor hangs, and works again after a reset. That it
//! reaches nothing but the guest's memory is the compiler's part: there is no unsafe code in the devices.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use imgcore::raw::Raw;
use imgcore::storage::MemStorage;

use super::*;
use crate::virtio::blk::Block;
use crate::virtio::console::Console;
use crate::virtio::rng::Rng;

/// A reset waits for the request at hand, and for no more.
const RESET_WITHIN: Duration = Duration::from_secs(10);

/// How often a device is set up anew, with four rings in each of its queues. GUESTLIFT_FUZZ_SECONDS makes it more.
const ROUNDS: u32 = 3000;

fn disk() -> Block {
    Block::new(Arc::new(Raw::create(Arc::new(MemStorage::new("disk", 0)), 1 << 20).unwrap()), "hostile")
}

/// How a device takes what was done to it.
#[derive(Debug, PartialEq)]
enum Outcome {
    /// It gave the chain back, with so many bytes.
    Used(u32),
    /// It went out of service.
    NeedsReset,
}

/// A request to read sector 0, in descriptors 0 to 2.
fn good_request(guest: &mut Guest) -> u64 {
    let table = guest.queues[0].descriptors;
    let data = guest.allocate(4096);
    guest.memory.write_slice(&[0; 16], GuestAddress(data)).unwrap();
    guest.descriptor(table, 0, data, 16, NEXT, 1);
    guest.descriptor(table, 1, data + 512, 512, NEXT | WRITE, 2);
    guest.descriptor(table, 2, data + 1024, 1, WRITE, 0);
    table
}

type Case = (&'static str, fn(&mut Guest, u64), Outcome);

/// Each is done to a good request in the table given; then descriptor 0 is offered.
const CASES: &[Case] = &[
    ("nothing wrong", |_, _| {}, Outcome::Used(513)),
    // The table's 256 descriptors are walked once, 171 of them to write, and the sum is no multiple of a sector.
    ("a chain that loops", |guest, table| guest.descriptor(table, 2, BUFFERS, 1, NEXT | WRITE, 0), Outcome::Used(1)),
    ("a chain of itself", |guest, table| guest.descriptor(table, 0, BUFFERS, 16, NEXT, 0), Outcome::Used(0)),
    ("a buffer in the hole", |guest, table| guest.descriptor(table, 1, REGION, 512, NEXT | WRITE, 2), Outcome::Used(0)),
    ("a buffer into the hole", |guest, table| guest.descriptor(table, 1, REGION - 256, 512, NEXT | WRITE, 2), Outcome::Used(0)),
    ("a buffer behind the memory", |guest, table| guest.descriptor(table, 1, 3 * REGION - 511, 512, NEXT | WRITE, 2), Outcome::Used(0)),
    ("a buffer that wraps", |guest, table| guest.descriptor(table, 1, u64::MAX - 10, 512, NEXT | WRITE, 2), Outcome::Used(0)),
    ("a buffer of 4 GiB", |guest, table| guest.descriptor(table, 1, BUFFERS, u32::MAX, NEXT | WRITE, 2), Outcome::Used(0)),
    ("a header outside", |guest, table| guest.descriptor(table, 0, 1 << 60, 16, NEXT, 1), Outcome::Used(0)),
    ("no bytes at all", |guest, table| (0..3).for_each(|n| guest.descriptor(table, n, BUFFERS, 0, NEXT | WRITE, n + 1)), Outcome::Used(0)),
    ("a header to write", |guest, table| guest.descriptor(table, 0, BUFFERS, 16, NEXT | WRITE, 1), Outcome::Used(1)),
    (
        "data and status to read",
        |guest, table| (1..3).for_each(|n| guest.descriptor(table, n, BUFFERS, 512, NEXT, n + 1)),
        Outcome::Used(0),
    ),
    ("next behind the table", |guest, table| guest.descriptor(table, 1, BUFFERS, 512, NEXT | WRITE, 256), Outcome::Used(1)),
    ("next far behind the table", |guest, table| guest.descriptor(table, 0, BUFFERS, 16, NEXT, u16::MAX), Outcome::Used(0)),
    ("an indirect table of no size", |guest, table| guest.descriptor(table, 0, table, 0, INDIRECT, 0), Outcome::Used(0)),
    ("an indirect table cut short", |guest, table| guest.descriptor(table, 0, table, 47, INDIRECT, 0), Outcome::Used(0)),
    ("an indirect table too long", |guest, table| guest.descriptor(table, 0, table, 16 << 16, INDIRECT, 0), Outcome::Used(0)),
    ("an indirect table outside", |guest, table| guest.descriptor(table, 0, REGION, 48, INDIRECT, 0), Outcome::Used(0)),
    ("an indirect table into the hole", |guest, table| guest.descriptor(table, 0, REGION - 16, 48, INDIRECT, 0), Outcome::Used(0)),
    ("an indirect table that wraps", |guest, table| guest.descriptor(table, 0, !15, 48, INDIRECT, 0), Outcome::Used(0)),
    ("an indirect table that is itself", |guest, table| guest.descriptor(table, 0, table, 48, INDIRECT, 0), Outcome::Used(0)),
    (
        "indirect within indirect",
        |guest, table| {
            guest.descriptor(BUFFERS, 0, BUFFERS, 48, INDIRECT, 0);
            guest.descriptor(table, 0, BUFFERS, 48, INDIRECT, 0);
        },
        Outcome::Used(0),
    ),
    (
        "an indirect table of 65535 that loops",
        |guest, table| {
            guest.descriptor(BUFFERS, 0, BUFFERS + 0x1000, 1, NEXT | WRITE, 0);
            guest.descriptor(table, 0, BUFFERS, 16 * 65535, INDIRECT, 0);
        },
        Outcome::Used(0),
    ),
    (
        "more than 4 GiB in one chain",
        |guest, table| {
            (0..256).for_each(|n| guest.descriptor(BUFFERS + 16, n, BUFFERS, REGION as u32, NEXT | WRITE, n));
            guest.descriptor(BUFFERS, 0, 0, 16, NEXT, 1);
            guest.descriptor(BUFFERS, 1, 0, REGION as u32, NEXT | WRITE, 1);
            guest.descriptor(table, 0, BUFFERS, 16 * 65535, INDIRECT, 0);
        },
        Outcome::Used(0),
    ),
    ("data over the descriptors", |guest, table| guest.descriptor(table, 1, table, 512, NEXT | WRITE, 2), Outcome::Used(513)),
    (
        "data over the available ring",
        |guest, table| {
            let avail = guest.queues[0].avail;
            guest.descriptor(table, 1, avail, 512, NEXT | WRITE, 2);
        },
        Outcome::NeedsReset,
    ),
    ("a head outside of the table", |guest, _| guest.store(guest.queues[0].avail + 4 + 2, 256u16), Outcome::NeedsReset),
    ("an index that jumps", |guest, _| guest.store(guest.queues[0].avail + 2, 300u16), Outcome::NeedsReset),
    ("an index that goes back", |guest, _| guest.store(guest.queues[0].avail + 2, u16::MAX), Outcome::NeedsReset),
];

#[test]
fn crafted_rings_end_as_they_should() {
    let mut guest = Guest::new(disk());
    for (what, spoil, expected) in CASES {
        guest.start();
        let table = good_request(&mut guest);
        spoil(&mut guest, table);
        // What the cases put into the available ring lies in front of, or instead of, the offer.
        let Rings { avail, .. } = guest.queues[0];
        match guest.load::<u16>(avail + 2) {
            0 if guest.load::<u16>(avail + 6) != 0 => {
                guest.store(avail + 2, 2u16);
                guest.set(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
            }
            0 => guest.publish(0, 0),
            _ => guest.set(VIRTIO_MMIO_QUEUE_NOTIFY, 0),
        }
        let mut used = None;
        let outcome = guest.wait_for(what, |guest| {
            used = used.or_else(|| guest.used(0));
            match used {
                _ if guest.status() & NEEDS_RESET != 0 => Some(Outcome::NeedsReset),
                Some((0, len)) if *expected != Outcome::NeedsReset => Some(Outcome::Used(len)),
                _ => None,
            }
        });
        assert_eq!(outcome, *expected, "{what}");
        works(&mut guest);
    }
}

/// Reads a sector after a reset.
fn works(guest: &mut Guest) {
    guest.start();
    let (bytes, len) = guest.ask(0, &[&[0; 16]], &[512, 1]);
    assert_eq!((len, bytes[512]), (513, 0));
}

/// Values that are just right, just wrong, or anything.
struct Spoiler(Random);

impl Spoiler {
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.0.below(from.len() as u64) as usize]
    }

    fn address(&mut self) -> u64 {
        let near = self.0.below(0x1000);
        let any = self.0.next();
        self.pick(&[
            BUFFERS + near,
            BUFFERS + near * 16,
            BUFFERS + near * 16,
            RINGS + near * 16,
            near,
            REGION - near,
            REGION + near,
            3 * REGION - near,
            u64::MAX - near,
            any,
        ])
    }

    fn len(&mut self) -> u32 {
        let any = self.0.next() as u32;
        self.pick(&[0, 1, 8, 16, 16, 48, 64, 511, 512, 513, 4096, 65536, REGION as u32, 16 * 65535, 16 << 16, u32::MAX, any])
    }

    /// Any descriptor, or one of a chain that might be good.
    fn descriptor(&mut self, guest: &Guest, table: u64, index: u16, size: u16) {
        let flags = self.pick(&[0, NEXT, NEXT, NEXT | WRITE, NEXT | WRITE, WRITE, INDIRECT, INDIRECT | NEXT, 7, u16::MAX]);
        let far = self.0.next() as u16;
        let next = self.pick(&[index.wrapping_add(1), index.wrapping_add(1), index, 0, size - 1, size, far % size, far]);
        let (address, len) = (self.address(), self.len());
        guest.descriptor(table, index, address, len, flags, next);
    }

    /// What the devices take for requests or control messages.
    fn message(&mut self, guest: &Guest, at: u64) {
        let sector = self.pick(&[0, 1, 2047, 2048, u64::MAX, 1 << 55]);
        let kind = self.pick(&[0u32, 1, 4, 8, 11, 13, 99]);
        let event = self.pick(&[0u16, 3, 6, 99]);
        let bytes = if self.0.below(2) == 0 {
            [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
        } else {
            [&0u32.to_le_bytes()[..], &event.to_le_bytes(), &self.pick(&[0u16, 1, 2]).to_le_bytes(), &[0; 8]].concat()
        };
        guest.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
    }

    /// One ring spoilt, offered, and kicked.
    fn round(&mut self, guest: &mut Guest) {
        for n in 0..16 {
            let step = self.pick(&[16, 256]);
            self.message(guest, BUFFERS + n * step);
        }
        for queue in 0..guest.queues.len() {
            let Rings { size, descriptors, avail, used, .. } = guest.queues[queue];
            for index in 0..self.pick(&[1, 4, size]).min(size) {
                self.descriptor(guest, descriptors, index, size);
            }
            // Tables for those that are indirect.
            for index in 0..16 {
                let table = BUFFERS + 0x8000 + 16 * self.0.below(64);
                self.descriptor(guest, table, index, 16);
            }
            for n in 0..u64::from(size) {
                let head = self.pick(&[0, 0, n as u16 % size, size - 1]);
                let head = if self.0.below(500) == 0 { self.0.next() as u16 } else { head };
                guest.store(avail + 4 + 2 * n, head);
            }
            guest.store(avail + 4 + 2 * u64::from(size), self.0.next() as u16);
            guest.store(used + 2, self.pick(&[0, 0, 1, u16::MAX]));
            guest.store(avail + 2, self.pick(&[1, 1, 2, size / 2, size, size + 1, u16::MAX]));
            guest.set(VIRTIO_MMIO_QUEUE_NOTIFY, queue as u32);
        }
        guest.set(VIRTIO_MMIO_QUEUE_NOTIFY, self.0.next() as u32);
    }

    /// Sets queues up where the driver should not: over each other, over themselves, at the memory's edges.
    fn set_up(&mut self, guest: &mut Guest) {
        guest.negotiate(self.pick(&[0, 1 << 29]));
        for index in 0..guest.queues.len() {
            let good = guest.queues[index].clone();
            let mut rings = good.clone();
            match self.0.below(12) {
                0 => rings.used = rings.descriptors,
                1 => rings.avail = rings.used,
                2 => rings.descriptors = self.address() & !15,
                3 => rings.avail = self.address() & !1,
                4 => rings.used = self.address() & !3,
                5 => rings.size = self.pick(&[0, 1, 2, 3, 32768, u16::MAX]),
                6 => (rings.descriptors, rings.avail, rings.used) = (BUFFERS, BUFFERS, BUFFERS),
                _ => {}
            }
            guest.describe(index, &rings);
        }
        guest.set(VIRTIO_MMIO_STATUS, READY);
    }
}

/// A number from the environment, as docs/fuzzing.md has it.
fn setting(name: &str) -> u64 {
    std::env::var(name).map_or(0, |value| value.parse().unwrap())
}

/// Does rounds to a device, some of them with memory that changes all the time; `works` proves that it is well.
fn torment(seed: u64, mut guest: Guest, mut works: impl FnMut(&mut Guest)) {
    let seed = seed ^ setting("GUESTLIFT_FUZZ_SEED") << 32;
    let end = Instant::now() + Duration::from_secs(setting("GUESTLIFT_FUZZ_SECONDS"));
    let mut spoiler = Spoiler(Random(seed));
    for round in (0u32..).take_while(|&round| round < ROUNDS || Instant::now() < end) {
        spoiler.set_up(&mut guest);
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            if round % 16 == 0 {
                let (memory, over) = (guest.memory.clone(), &over);
                let mut random = Random(seed ^ u64::from(round));
                scope.spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        let at = [RINGS, BUFFERS][random.below(2) as usize] + random.below(0x4_0000 - 8);
                        memory.write_obj(random.next(), GuestAddress(at)).unwrap();
                    }
                });
            }
            for _ in 0..4 {
                spoiler.round(&mut guest);
            }
            let since = Instant::now();
            guest.set(VIRTIO_MMIO_STATUS, 0);
            over.store(true, Ordering::Relaxed);
            assert!(since.elapsed() < RESET_WITHIN, "round {round}: a reset took {:?}", since.elapsed());
        });
        if round % 8 == 0 || round % 16 == 1 {
            works(&mut guest);
        }
    }
}

#[test]
fn a_disk_survives_any_ring() {
    torment(1, Guest::new(disk()), works);
}

#[test]
fn entropy_survives_any_ring() {
    torment(2, Guest::new(Rng::new()), |guest| {
        guest.start();
        assert_eq!(guest.ask(0, &[], &[32]).1, 32);
    });
}

#[test]
fn a_channel_survives_any_ring() {
    let (mut host, port) = UnixStream::pair().unwrap();
    host.set_nonblocking(true).unwrap();
    let mut drain = move |then: &[u8]| {
        let mut bytes = vec![0; 1 << 16];
        while host.read(&mut bytes).is_ok_and(|n| n > 0) {}
        // Full when the guest has not read for long.
        let _ = host.write(then);
    };
    torment(3, Guest::new(Console::new(port)), |guest| {
        drain(b"something");
        guest.open_port();
        assert!(!guest.hears().is_empty());
        guest.ask(1, &[b"back"], &[]);
    });
}
