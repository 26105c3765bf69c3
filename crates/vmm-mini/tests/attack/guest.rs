//! A kernel that attacks the monitor under it: through the devices' registers, with rings that no driver would make, and by dying.
//! Its command line says how: `attack=rings seed=1 rounds=3500`. What it has to say goes to the serial port.

#![no_std]
#![no_main]

use core::arch::{asm, global_asm};
use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::ptr::{read_volatile, write_volatile};

#[path = "../../src/virtio/tests/random.rs"]
mod random;

use random::Random;

global_asm!(include_str!("boot.s"), options(att_syntax));

/// The machine's memory, which is in one piece.
const MEMORY: u64 = 64 << 20;
/// Where the devices are, one after the other.
const DEVICES: u64 = 0xd000_0000;
const DEVICE_SIZE: u64 = 0x200;
/// Rings of the queues of the device under attack, and what they point to.
const RINGS: u64 = 32 << 20;
const RING_SPACE: u64 = 0x1_0000;
const BUFFERS: u64 = 33 << 20;

const BLOCK: u32 = 2;
const CONSOLE: u32 = 3;
const ENTROPY: u32 = 4;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| out(0x3f8, byte));
        Ok(())
    }
}

macro_rules! say {
    ($($what:tt)*) => { let _ = writeln!(Serial, $($what)*); };
}

fn out(port: u16, value: u8) {
    unsafe { asm!("out dx, al", in("dx") port, in("al") value) }
}

/// Switches the machine off as a PC does it, by its keyboard controller.
fn power_off() -> ! {
    loop {
        out(0x64, 0xfe);
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    say!("attack failed: {info}");
    power_off()
}

/// What the compiler calls to fill and to copy.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, len: usize) -> *mut u8 {
    unsafe { asm!("rep stosb", inout("rdi") to => _, inout("rcx") len => _, in("al") value as u8) }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    unsafe { asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") len => _) }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    for n in 0..len {
        let (a, b) = unsafe { (read_volatile(a.add(n)), read_volatile(b.add(n))) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

fn store<T>(address: u64, value: T) {
    unsafe { write_volatile(address as *mut T, value) }
}

fn load<T>(address: u64) -> T {
    unsafe { read_volatile(address as *const T) }
}

#[unsafe(no_mangle)]
extern "C" fn main(start_info: u64) -> ! {
    // struct hvm_start_info: the command line's address is behind magic, version, flags, and the modules.
    let command_line: u64 = load(start_info + 24);
    let attack = argument(command_line, b"attack=");
    let seed = argument(command_line, b"seed=");
    let rounds = argument(command_line, b"rounds=");
    match attack {
        1 => rings(seed, rounds),
        2 => triple_fault(),
        3 => flood(),
        _ => panic!("no attack {attack}"),
    }
    power_off()
}

/// A number in the command line.
fn argument(mut at: u64, name: &[u8]) -> u64 {
    while load::<u8>(at) != 0 {
        if (0..name.len()).all(|n| load::<u8>(at + n as u64) == name[n]) {
            at += name.len() as u64;
            let mut value = 0;
            while load::<u8>(at).is_ascii_digit() {
                value = value * 10 + u64::from(load::<u8>(at) - b'0');
                at += 1;
            }
            return value;
        }
        at += 1;
    }
    0
}

fn triple_fault() {
    say!("attack: about to crash");
    let none = [0u8; 10];
    unsafe { asm!("lidt [{}]", "int3", in(reg) &none) }
}

impl Random {
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// A device by its registers (VIRTIO 1.2, section 4.2.2).
#[derive(Clone, Copy)]
struct Device {
    at: u64,
    id: u32,
    features: [u32; 2],
    queue_sizes: [u16; 4],
    queues: u32,
}

impl Device {
    /// The device at a place, if there is one. What it says of itself is kept: here, asking costs far more than knowing.
    fn find(number: u64) -> Option<Device> {
        let mut device = Device { at: DEVICES + number * DEVICE_SIZE, id: 0, features: [0; 2], queue_sizes: [0; 4], queues: 0 };
        if device.get(0) != u32::from_le_bytes(*b"virt") {
            return None;
        }
        device.id = device.get(8);
        for half in 0..2 {
            device.set(0x14, half);
            device.features[half as usize] = device.get(0x10);
        }
        for queue in 0..4 {
            device.set(0x30, queue);
            let size = device.get(0x34) as u16;
            device.queue_sizes[queue as usize] = size;
            device.queues += u32::from(size != 0);
        }
        Some(device)
    }

    fn get(&self, register: u64) -> u32 {
        load(self.at + register)
    }

    fn set(&self, register: u64, value: u32) {
        store(self.at + register, value);
    }

    fn queue_size(&self, queue: u32) -> u16 {
        self.queue_sizes[queue as usize]
    }

    fn kick(&self, queue: u32) {
        self.set(0x50, queue);
    }

    fn reset(&self) {
        self.set(0x70, 0);
        assert!(self.get(0x70) == 0, "a reset does not end");
    }

    /// From reset to FEATURES_OK.
    fn negotiate(&self) {
        self.reset();
        self.set(0x70, 3);
        for half in 0..2 {
            self.set(0x24, half);
            self.set(0x20, self.features[half as usize]);
        }
        self.set(0x70, 3 | 8);
    }

    fn describe(&self, queue: u32, size: u32, descriptors: u64, avail: u64, used: u64) {
        self.set(0x30, queue);
        self.set(0x38, size);
        for (register, address) in [(0x80, descriptors), (0x90, avail), (0xa0, used)] {
            self.set(register, address as u32);
            if address >> 32 != 0 {
                self.set(register + 4, (address >> 32) as u32);
            }
        }
        self.set(0x44, 1);
    }

    fn start(&self) {
        self.set(0x70, 3 | 8 | 4);
    }
}

fn table(queue: u32) -> u64 {
    RINGS + u64::from(queue) * RING_SPACE
}

fn avail(queue: u32) -> u64 {
    table(queue) + 0x4000
}

fn used(queue: u32) -> u64 {
    table(queue) + 0x8000
}

fn descriptor(table: u64, index: u64, address: u64, len: u32, flags: u16, next: u16) {
    let at = table + 16 * index;
    store(at, address);
    store(at + 8, len);
    store(at + 12, flags);
    store(at + 14, next);
}

/// All devices, in turn, until each has had its rounds.
fn rings(seed: u64, rounds: u64) {
    let mut attacker = Attacker { random: Random(seed) };
    let mut spoilt = 0;
    for number in 0.. {
        let Some(device) = Device::find(number) else { break };
        for round in 0..rounds {
            attacker.registers(&device);
            attacker.set_up(&device);
            for _ in 0..4 {
                attacker.spoil(&device);
                spoilt += u64::from(device.queues);
            }
            // While the device is at work on it.
            for _ in 0..attacker.random.below(100) {
                let at = attacker.random.pick(&[RINGS, BUFFERS]) + attacker.random.below(0x3_0000);
                store(at & !7, attacker.random.next());
            }
            if round % 16 == 0 {
                works(&device);
            }
        }
        works(&device);
        say!("attack: device {} is well", device.id);
    }
    say!("attack: {spoilt} rings survived");
}

struct Attacker {
    random: Random,
}

impl Attacker {
    /// Any value to any register, in any width.
    fn registers(&mut self, device: &Device) {
        for _ in 0..2 {
            let (offset, value) = (self.random.below(DEVICE_SIZE), self.random.next());
            match self.random.below(6) {
                0 => store(device.at + offset, value as u8),
                1 => store(device.at + (offset & !1), value as u16),
                2 => store(device.at + (offset & !3), value as u32),
                3 => store(device.at + (offset & !7), value),
                4 => _ = load::<u32>(device.at + (offset & !3)),
                _ => _ = load::<u64>(device.at + (offset & !7)),
            }
        }
    }

    fn address(&mut self) -> u64 {
        let (near, any) = (self.random.below(0x1000), self.random.next());
        let good = BUFFERS + near * 16;
        self.random.pick(&[
            good,
            good,
            good,
            BUFFERS + near,
            RINGS + near * 16,
            near,
            MEMORY - near,
            MEMORY + near,
            DEVICES + near,
            !near,
            any,
        ])
    }

    /// Queues as they should be, but for some: over each other, at the memory's end, in the devices.
    fn set_up(&mut self, device: &Device) {
        device.negotiate();
        for queue in 0..device.queues {
            let size = device.queue_size(queue);
            let (mut descriptors, mut driver, mut uses, mut entries) = (table(queue), avail(queue), used(queue), u32::from(size));
            match self.random.below(16) {
                0 => uses = descriptors,
                1 => driver = uses,
                2 => descriptors = self.address() & !15,
                3 => driver = self.address() & !1,
                4 => uses = self.address() & !3,
                5 => entries = self.random.pick(&[0, 1, 2, 3, 32768, 65536, u32::MAX]),
                _ => {}
            }
            device.describe(queue, entries, descriptors, driver, uses);
        }
        device.start();
    }

    /// A ring of descriptors that are right, wrong, or anything.
    fn spoil(&mut self, device: &Device) {
        for n in 0..16 {
            let at = BUFFERS + n * self.random.pick(&[16, 256]);
            if self.random.below(2) == 0 {
                // struct virtio_blk_req.
                store(at, self.random.pick(&[0u64, 1, 4, 8, 11, 13, 99]));
                store(at + 8, self.random.pick(&[0, 1, 127, 128, u64::MAX, 1 << 55]));
            } else {
                // struct virtio_console_control.
                store(at, self.random.pick(&[0u32, 0, 1, u32::MAX]));
                store(at + 4, self.random.pick(&[0u16, 3, 6, 99]));
                store(at + 6, self.random.pick(&[0u16, 1, 2]));
            }
        }
        for queue in 0..device.queues {
            let size = 128.min(device.queue_size(queue));
            for index in 0..self.random.pick(&[1, 4, 16]).min(u64::from(size)) {
                self.descriptor(table(queue), index);
                let indirect = BUFFERS + 0x8000 + 16 * self.random.below(64);
                self.descriptor(indirect, index);
            }
            let ring = avail(queue);
            for n in 0..16 {
                let head = self.random.pick(&[0, 0, n as u16 % size, size - 1]);
                store(ring + 4 + 2 * n, if self.random.below(200) == 0 { self.random.next() as u16 } else { head });
            }
            store(used(queue) + 2, self.random.pick(&[0u16, 0, 1, u16::MAX]));
            store(ring + 2, self.random.pick(&[1, 1, 2, 8, size, size + 1, u16::MAX]));
            device.kick(queue);
        }
        if self.random.below(8) == 0 {
            device.kick(self.random.next() as u32);
        }
    }

    fn descriptor(&mut self, table: u64, index: u64) {
        let flags = self.random.pick(&[0, NEXT, NEXT, NEXT | WRITE, NEXT | WRITE, WRITE, INDIRECT, INDIRECT | NEXT, 7, u16::MAX]);
        let (this, far) = (index as u16, self.random.next() as u16);
        let next = self.random.pick(&[this + 1, this + 1, this, 0, 127, 128, 256, far]);
        // Too much for any address: what ends at random would end in this program.
        let any = self.random.next() as u32 | MEMORY as u32;
        let len =
            self.random.pick(&[0, 1, 8, 16, 16, 48, 64, 511, 512, 513, 4096, 1 << 20, MEMORY as u32, 16 * 65535, 16 << 16, u32::MAX, any]);
        descriptor(table, index, self.address(), len, flags, next);
    }
}

/// Sets a device up as it should be.
fn set_up(device: &Device) {
    device.negotiate();
    for queue in 0..device.queues {
        unsafe { memset(table(queue) as *mut u8, 0, RING_SPACE as usize) };
        device.describe(queue, 8, table(queue), avail(queue), used(queue));
    }
    device.start();
    assert!(device.get(0x70) == 15, "the device does not start");
}

/// Offers one chain as the `n`th of a queue: 16 bytes to read, if any, then buffers to write, each in its own page.
fn offer(device: &Device, queue: u32, n: u16, message: Option<[u8; 16]>, len: u32, room: &[u32]) {
    let page = |index: u64| BUFFERS + u64::from(queue) * 0x10000 + index * 0x1000;
    let count = u64::from(message.is_some()) + room.len() as u64;
    let mut index = 0;
    let flags = |index: u64, base: u16| if index + 1 == count { base } else { base | NEXT };
    if let Some(message) = message {
        store(page(0), message);
        descriptor(table(queue), 0, page(0), len, flags(0, 0), 1);
        index += 1;
    }
    for &len in room {
        descriptor(table(queue), index, page(index), len, flags(index, WRITE), index as u16 + 1);
        index += 1;
    }
    store(avail(queue) + 4 + 2 * u64::from(n % 8), 0u16);
    store(avail(queue) + 2, n + 1);
    device.kick(queue);
}

/// Waits for the `n`th chain; its length.
fn wait(queue: u32, n: u16) -> u32 {
    for _ in 0..2_000_000_000u64 {
        if load::<u16>(used(queue) + 2) == n + 1 {
            return load(used(queue) + 4 + 8 * u64::from(n % 8) + 4);
        }
        unsafe { asm!("pause") };
    }
    panic!("queue {queue} does not answer");
}

fn ask(device: &Device, queue: u32, n: u16, message: Option<[u8; 16]>, len: u32, room: &[u32]) -> u32 {
    offer(device, queue, n, message, len, room);
    wait(queue, n)
}

/// What a device does for a driver that knows what it does.
fn works(device: &Device) {
    set_up(device);
    match device.id {
        BLOCK => {
            // Its serial number, which is empty.
            store(BUFFERS + 0x1000, [1u8; 20]);
            let mut request = [0; 16];
            request[0] = 8;
            assert!(ask(device, 0, 0, Some(request), 16, &[20, 1]) == 21, "the disk gives too little");
            assert!(load::<[u8; 20]>(BUFFERS + 0x1000) == [0; 20], "the disk has another name");
        }
        CONSOLE => {
            open_port(device);
        }
        ENTROPY => assert!(ask(device, 0, 0, None, 0, &[32]) == 32, "no entropy"),
        id => panic!("device {id} is not known"),
    }
    device.reset();
}

fn control(event: u16, value: u16) -> Option<[u8; 16]> {
    let mut message = [0; 16];
    message[4..6].copy_from_slice(&event.to_le_bytes());
    message[6..8].copy_from_slice(&value.to_le_bytes());
    Some(message)
}

/// The port's handshake: DEVICE_READY, PORT_ADD, PORT_READY, its name, and that both sides have it open.
fn open_port(device: &Device) {
    ask(device, 3, 0, control(0, 1), 8, &[]);
    assert!(ask(device, 2, 0, None, 0, &[64]) == 8, "no port");
    ask(device, 3, 1, control(3, 1), 8, &[]);
    let len = ask(device, 2, 1, None, 0, &[64]);
    assert!(len == 8 + 15 && load::<[u8; 15]>(BUFFERS + 0x2_0008) == *b"guestlift.agent", "the port has another name");
    ask(device, 3, 2, control(6, 1), 8, &[]);
}

/// Says no end of bytes that mean nothing, on the channel.
fn flood() {
    let mut number = 0;
    let device = loop {
        match Device::find(number) {
            Some(device) if device.id == CONSOLE => break device,
            Some(_) => number += 1,
            None => panic!("no channel"),
        }
    };
    set_up(&device);
    open_port(&device);
    say!("attack: floods");
    let mut random = Random(1);
    for at in (BUFFERS..BUFFERS + (1 << 20)).step_by(8) {
        store(at, random.next());
    }
    descriptor(table(1), 0, BUFFERS, 1 << 20, 0, 0);
    for n in 0u16.. {
        store(avail(1) + 4 + 2 * u64::from(n % 8), 0u16);
        store(avail(1) + 2, n.wrapping_add(1));
        device.kick(1);
        while load::<u16>(used(1) + 2) != n.wrapping_add(1) {
            unsafe { asm!("pause") };
        }
    }
}
