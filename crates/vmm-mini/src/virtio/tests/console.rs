//! The channel: the driver's side as Linux's virtio_console does it, the host's side a stream.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::*;
use crate::virtio::console::{Console, PORT_NAME};

const TO_GUEST: usize = 0;
const FROM_GUEST: usize = 1;
const CONTROL_TO_GUEST: usize = 2;
const CONTROL_FROM_GUEST: usize = 3;
/// Small, so that a test fills them soon.
const PAGE: usize = 4096;

fn pair() -> (UnixStream, Console) {
    let (host, port) = UnixStream::pair().unwrap();
    host.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    host.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    (host, Console::new(port))
}

fn control(id: u32, event: u16, value: u16) -> Vec<u8> {
    [&id.to_le_bytes()[..], &event.to_le_bytes(), &value.to_le_bytes()].concat()
}

impl Guest {
    fn control(&mut self, id: u32, event: u16, value: u16) {
        self.ask(CONTROL_FROM_GUEST, &[&control(id, event, value)], &[]);
    }

    /// The next control message from the device.
    fn told(&mut self) -> Vec<u8> {
        self.offer(CONTROL_TO_GUEST, &[], &[64]);
        let (mut bytes, len) = self.answer(CONTROL_TO_GUEST);
        bytes.truncate(len as usize);
        bytes
    }

    /// From DRIVER_OK to an open port.
    pub(super) fn open_port(&mut self) {
        self.start();
        self.control(u32::MAX, 0, 1);
        assert_eq!(self.told(), control(0, 1, 1), "PORT_ADD");
        self.control(0, 3, 1);
        assert_eq!(self.told(), [&control(0, 7, 1), PORT_NAME.as_bytes()].concat(), "PORT_NAME");
        assert_eq!(self.told(), control(0, 6, 1), "PORT_OPEN");
        self.control(0, 6, 1);
    }

    pub(super) fn hears(&mut self) -> Vec<u8> {
        self.offer(TO_GUEST, &[], &[PAGE]);
        let (mut bytes, len) = self.answer(TO_GUEST);
        bytes.truncate(len as usize);
        bytes
    }
}

#[test]
fn bytes_go_both_ways() {
    let (mut host, console) = pair();
    let mut guest = Guest::new(console);
    assert_eq!(guest.get(0x104), 1, "max_nr_ports");
    guest.open_port();
    host.write_all(b"request").unwrap();
    assert_eq!(guest.hears(), b"request");
    let long: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
    let reader = std::thread::spawn(move || {
        let mut bytes = vec![0; 300_000];
        host.read_exact(&mut bytes).unwrap();
        (host, bytes)
    });
    guest.ask(FROM_GUEST, &[&long[..1], &long[1..70_000], &[], &long[70_000..]], &[]);
    let (mut host, bytes) = reader.join().unwrap();
    assert!(bytes == long);
    host.write_all(&long[..10_000]).unwrap();
    let mut heard = Vec::new();
    while heard.len() < 10_000 {
        heard.extend(guest.hears());
    }
    assert!(heard == long[..10_000]);
}

#[test]
fn nothing_is_said_before_the_guest_listens() {
    let (mut host, console) = pair();
    let mut guest = Guest::new(console);
    guest.start();
    host.write_all(b"early").unwrap();
    guest.offer(TO_GUEST, &[], &[PAGE]);
    guest.offer(CONTROL_TO_GUEST, &[], &[64]);
    guest.control(0, 99, 1);
    guest.control(7, 6, 1);
    assert_eq!(guest.used(TO_GUEST), None);
    assert_eq!(guest.used(CONTROL_TO_GUEST), None, "no port before DEVICE_READY");
    guest.open_port();
    assert_eq!(guest.hears(), b"early", "kept in the stream, over a reset");
}

#[test]
fn a_host_that_leaves_is_told() {
    let (mut host, console) = pair();
    let mut guest = Guest::new(console);
    guest.open_port();
    host.write_all(b"last words").unwrap();
    drop(host);
    assert_eq!(guest.hears(), b"last words");
    guest.offer(TO_GUEST, &[], &[PAGE]);
    assert_eq!(guest.told(), control(0, 6, 0));
    // Nobody hears it, and the guest need not wait.
    for _ in 0..200 {
        guest.ask(FROM_GUEST, &[&[1; PAGE]], &[]);
    }
    assert_eq!(guest.used(TO_GUEST), None);
}

#[test]
fn a_host_that_does_not_read_holds_the_guest() {
    let (mut host, console) = pair();
    let mut guest = Guest::new(console);
    guest.open_port();
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut given = 0u32;
    let mut pattern = (0..).map(|n: u32| (n / 7) as u8);
    // Until a chain stays for a while: the stream is full.
    let mut quiet = Instant::now();
    let mut outstanding = 0;
    while outstanding == 0 || quiet.elapsed() < Duration::from_millis(200) {
        assert!(Instant::now() < deadline, "{given} bytes went into a stream that nobody reads");
        if outstanding == 0 {
            let chunk: Vec<u8> = pattern.by_ref().take(10_000).collect();
            guest.offer(FROM_GUEST, &[&chunk], &[]);
            (outstanding, given) = (1, given + 10_000);
        } else if guest.used(FROM_GUEST).is_some() {
            guest.offered.clear();
            guest.free = BUFFERS;
            (outstanding, quiet) = (0, Instant::now());
        }
    }
    assert!(given < 4 << 20);
    // While it waits, the other way is free, and control messages pass.
    host.write_all(b"still there?").unwrap();
    assert_eq!(guest.hears(), b"still there?");
    guest.control(0, 99, 0);
    // A state taken now has a chain of which the host has a part.
    let state = guest.transport.save();
    guest.transport.resume();
    assert!(format!("{state:?}").contains("device: ["));
    let mut bytes = vec![0; given as usize];
    host.read_exact(&mut bytes).unwrap();
    assert!(bytes.iter().copied().eq((0..).map(|n: u32| (n / 7) as u8).take(given as usize)), "each byte once, in order");
    guest.wait_for("the chain that waited", |guest| guest.used(FROM_GUEST));
}

#[test]
fn a_guest_that_does_not_read_holds_the_host() {
    let (mut host, console) = pair();
    let mut guest = Guest::new(console);
    guest.open_port();
    host.set_nonblocking(true).unwrap();
    let mut given = 0;
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut quiet = Instant::now();
    while quiet.elapsed() < Duration::from_millis(200) {
        assert!(Instant::now() < deadline, "{given} bytes went to a guest that does not read");
        match host.write(&[5; 10_000]) {
            Ok(n) => (given, quiet) = (given + n, Instant::now()),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
    }
    assert!(given < 4 << 20);
    let mut heard = 0;
    while heard < given {
        let bytes = guest.hears();
        assert!(bytes.iter().all(|&byte| byte == 5));
        heard += bytes.len();
    }
    assert_eq!(heard, given);
}

#[test]
fn last_words_arrive() {
    for _ in 0..50 {
        let (mut host, console) = pair();
        let mut guest = Guest::new(console);
        guest.open_port();
        guest.offer(FROM_GUEST, &[b"good"], &[]);
        guest.offer(FROM_GUEST, &[b"bye"], &[]);
        drop(guest);
        let mut words = String::new();
        host.read_to_string(&mut words).unwrap();
        assert_eq!(words, "goodbye");
    }
}

#[test]
fn a_channel_moves_to_another_host() {
    let (mut host, console) = pair();
    let mut guest = Guest::new(console);
    guest.open_port();
    host.write_all(b"ping").unwrap();
    assert_eq!(guest.hears(), b"ping");
    let state = guest.transport.save();
    let (mut other, console) = pair();
    let mut moved = guest.moved(console, &state).unwrap();
    drop((guest, host));
    other.write_all(b"welcome").unwrap();
    assert_eq!(moved.hears(), b"welcome", "no handshake again");
    moved.ask(FROM_GUEST, &[b"thanks"], &[]);
    let mut bytes = [0; 6];
    other.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"thanks");
}

#[test]
fn a_driver_that_repeats_itself_is_answered_without_memory() {
    let (mut host, console) = pair();
    let mut guest = Guest::new(console);
    guest.open_port();
    for _ in 0..10_000 {
        guest.control(u32::MAX, 0, 1);
        guest.control(0, 3, 1);
    }
    assert_eq!(guest.told(), control(0, 1, 1));
    assert_eq!(guest.told(), [&control(0, 7, 1), PORT_NAME.as_bytes()].concat());
    assert_eq!(guest.told(), control(0, 6, 1));
    // Too small for the message: given back empty, and it is told again where there is room.
    guest.control(u32::MAX, 0, 1);
    assert_eq!(guest.ask(CONTROL_TO_GUEST, &[], &[7]).1, 0);
    assert_eq!(guest.told(), control(0, 1, 1));
    host.write_all(b"x").unwrap();
    assert_eq!(guest.ask(TO_GUEST, &[b"wrong direction"], &[]).1, 0);
    assert_eq!(guest.hears(), b"x");
}
