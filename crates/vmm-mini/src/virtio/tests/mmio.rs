//! The transport's registers, with a device that does nothing but give its buffers back.

use super::*;
use crate::virtio::ring;
use crate::virtio::{Running, worker};

/// Gives every chain back, with its length written.
struct Echo;

impl VirtioDevice for Echo {
    fn id(&self) -> u32 {
        42
    }

    fn queue_sizes(&self) -> &[u16] {
        &[16]
    }

    fn features(&self) -> u64 {
        1 << 3
    }

    fn config(&self, offset: u64, data: &mut [u8]) {
        crate::virtio::config_bytes(&[1, 2, 3, 4, 5], offset, data);
    }

    fn start(&self, running: Running) -> std::io::Result<Box<dyn Send + Sync>> {
        worker::spawn("echo", running, |running, wakes| ring::serve(running, wakes, |reader, _| Some(reader.available_bytes() as u32)))
    }
}

const VERSION_1: u64 = 1 << 32;

#[test]
fn what_a_driver_finds() {
    let guest = Guest::new(Echo);
    assert_eq!(guest.get(VIRTIO_MMIO_MAGIC_VALUE).to_le_bytes(), *b"virt");
    assert_eq!(guest.get(VIRTIO_MMIO_VERSION), 2);
    assert_eq!(guest.get(VIRTIO_MMIO_DEVICE_ID), 42);
    assert_eq!(guest.offered_features(), 1 << 3 | 1 << 28 | 1 << 29 | VERSION_1);
    assert_eq!(guest.get(VIRTIO_MMIO_QUEUE_NUM_MAX), 16);
    guest.set(VIRTIO_MMIO_QUEUE_SEL, 1);
    assert_eq!(guest.get(VIRTIO_MMIO_QUEUE_NUM_MAX), 0, "there is no second queue");
    guest.set(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
    assert_eq!(guest.get(VIRTIO_MMIO_DEVICE_FEATURES), 0, "there are 64 bits");
    assert_eq!(guest.get(VIRTIO_MMIO_SHM_LEN_LOW), u32::MAX);
    let mut config = [9; 8];
    guest.transport.read(0x102, &mut config);
    assert_eq!(config, [3, 4, 5, 0, 0, 0, 0, 0]);
    let mut wide = [9; 8];
    guest.transport.read(0, &mut wide);
    assert_eq!(wide, [0; 8], "registers have 32 bits");
}

#[test]
fn features_are_agreed_on_once() {
    let guest = Guest::new(Echo);
    guest.set(VIRTIO_MMIO_STATUS, 1 | 2);
    for wrong in [0, 1 << 3, VERSION_1 | 1 << 5, u64::MAX] {
        guest.take_features(wrong);
        guest.set(VIRTIO_MMIO_STATUS, 1 | 2 | 8);
        assert_eq!(guest.status(), 1 | 2, "{wrong:#x}");
    }
    guest.take_features(VERSION_1);
    guest.set(VIRTIO_MMIO_STATUS, 1 | 2 | 8);
    guest.take_features(u64::MAX);
    guest.set(VIRTIO_MMIO_STATUS, 1 | 2 | 8 | 4 | 64);
    assert_eq!(guest.status() & 8, 8);
}

#[test]
fn a_driver_that_skips_steps_starts_nothing() {
    let guest = Guest::new(Echo);
    guest.take_features(VERSION_1);
    guest.set(VIRTIO_MMIO_STATUS, 8);
    assert_eq!(guest.status(), 0, "neither acknowledged nor a driver");
    guest.describe(0, &guest.queues[0]);
    assert_eq!(guest.get(VIRTIO_MMIO_QUEUE_READY), 0, "features are not agreed on");
    guest.set(VIRTIO_MMIO_STATUS, 1 | 2 | 4);
    assert_eq!(guest.status(), 1 | 2);
}

#[test]
fn queues_that_cannot_be_end_in_needs_reset() {
    let mut guest = Guest::new(Echo);
    let good = guest.queues[0].clone();
    let wrong = [
        ("size 0", Rings { size: 0, ..good }),
        ("size 12", Rings { size: 12, ..good }),
        ("size 32 of 16", Rings { size: 32, ..good }),
        ("descriptors unaligned", Rings { descriptors: good.descriptors + 8, ..good }),
        ("available ring unaligned", Rings { avail: good.avail + 1, ..good }),
        ("used ring unaligned", Rings { used: good.used + 2, ..good }),
        ("descriptors in the hole", Rings { descriptors: REGION, ..good }),
        ("descriptors into the hole", Rings { descriptors: REGION - 16, ..good }),
        ("available ring behind the memory", Rings { avail: 3 * REGION - 2, ..good }),
        ("used ring far away", Rings { used: !0xfff, ..good }),
        ("used ring wraps", Rings { used: u64::MAX - 3, ..good }),
    ];
    for (what, rings) in wrong {
        guest.negotiate(0);
        guest.describe(0, &rings);
        guest.set(VIRTIO_MMIO_STATUS, READY);
        assert_eq!(guest.status(), READY | NEEDS_RESET, "{what}");
        assert_eq!(guest.get(VIRTIO_MMIO_INTERRUPT_STATUS), 2, "{what}");
        guest.start();
        assert_eq!(guest.ask(0, &[b"abc"], &[]).1, 3, "after {what}");
    }
    guest.negotiate(0);
    guest.set(VIRTIO_MMIO_STATUS, READY);
    assert_eq!(guest.status(), READY | NEEDS_RESET, "no queue is ready");
}

#[test]
fn a_running_queue_stays_as_it_is() {
    let mut guest = Guest::new(Echo);
    guest.start();
    guest.describe(0, &Rings { size: 4, descriptors: 0, avail: 0, used: 0, next_avail: 0, next_used: 0 });
    for n in 0..100 {
        assert_eq!(guest.ask(0, &[&vec![0; n]], &[]).1, n as u32);
    }
    guest.set(VIRTIO_MMIO_STATUS, READY | 128);
    assert_eq!(guest.status(), READY | 128, "the driver gave up");
    guest.set(VIRTIO_MMIO_STATUS, READY | 128 | 4);
    guest.start();
    assert_eq!(guest.ask(0, &[b"again"], &[]).1, 5);
}

#[test]
fn interrupts_are_acknowledged_bit_by_bit() {
    let mut guest = Guest::new(Echo);
    guest.start();
    guest.offer(0, &[b"x"], &[]);
    while guest.get(VIRTIO_MMIO_INTERRUPT_STATUS) == 0 {
        std::thread::yield_now();
    }
    guest.set(VIRTIO_MMIO_INTERRUPT_ACK, 2);
    assert_eq!(guest.get(VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    guest.set(VIRTIO_MMIO_INTERRUPT_ACK, 1);
    assert_eq!(guest.get(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

#[test]
fn a_saved_device_goes_on_elsewhere() {
    let mut guest = Guest::new(Echo);
    guest.start();
    for _ in 0..21 {
        guest.ask(0, &[b"before"], &[]);
    }
    guest.offer(0, &[b"on the way"], &[]);
    guest.transport.save();
    guest.transport.resume();
    guest.answer(0);
    assert_eq!(guest.ask(0, &[b"still here"], &[]).1, 10, "saving is no end");
    let state = guest.transport.save();
    guest.offer(0, &[b"not lost"], &[]);
    let mut moved = guest.moved(Echo, &state).unwrap();
    drop(guest);
    assert_eq!(moved.get(VIRTIO_MMIO_INTERRUPT_STATUS) & 2, 2, "the driver is told to look at the configuration");
    assert_eq!(moved.answer(0).1, 8);
    for n in 0..40 {
        assert_eq!(moved.ask(0, &[&vec![0; n]], &[]).1, n as u32);
    }
}

#[test]
fn a_state_of_another_device_is_refused() {
    let mut guest = Guest::new(Echo);
    guest.start();
    let state = guest.transport.save();
    let disk = imgcore::raw::Raw::create(Arc::new(imgcore::storage::MemStorage::new("disk", 0)), 1 << 20).unwrap();
    let error = guest.moved(crate::virtio::blk::Block::new(Arc::new(disk), "disk"), &state).err().expect("refused");
    assert!(error.to_string().contains("features"), "{error}");
}

/// Every register, any value, any width, in any order; then the device works.
#[test]
fn accesses_without_sense_are_harmless() {
    let mut random = Random(7);
    let mut guest = Guest::new(Echo);
    for round in 0..200 {
        for _ in 0..200 {
            let offset = random.below(0x220);
            let width = [1, 2, 4, 4, 4, 8][random.below(6) as usize];
            let value = [random.next(), random.below(256), 0, u64::MAX][random.below(4) as usize].to_le_bytes();
            if random.below(3) == 0 {
                guest.transport.read(offset, &mut [0; 8][..width]);
            } else {
                guest.transport.write(offset & !3, &value[..width]);
            }
        }
        guest.start();
        assert_eq!(guest.ask(0, &[&vec![1; round]], &[]).1, round as u32);
    }
}
