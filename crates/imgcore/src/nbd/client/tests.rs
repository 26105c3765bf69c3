//! The client against QEMU's server, nbdkit's and ours, and against servers that break the protocol.

use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::tests::{has, pattern, run};
use super::super::{Content, Export, Server, serve_connected};
use super::*;
use crate::testing::TestImage;

const SIZE: u64 = 8 << 20;

fn served(image: Arc<TestImage>) -> (Server, Client) {
    let (host, guest) = UnixStream::pair().unwrap();
    let server = serve_connected(host, Export::new("disk", Content::Writable(image))).unwrap();
    (server, Client::new(guest, "disk", "d").unwrap())
}

fn kinds(image: &dyn Image, range: Range<u64>) -> Vec<(u64, u64, ExtentKind)> {
    let mut list = Vec::new();
    image
        .extents(range, &mut |e| {
            list.push((e.start, e.len, e.kind));
            ControlFlow::Continue(())
        })
        .unwrap();
    list
}

/// Every call there is, against whatever serves `client`, whose export has [`SIZE`] bytes, all zeroes. Gives the bytes that it has then.
fn exercise(client: &Client) -> Vec<u8> {
    assert_eq!(client.size(), SIZE);
    client.write_at(&pattern(), 0).unwrap();
    client.zero_at(65536, 131072).unwrap();
    client.discard(1 << 20, 65536).unwrap();
    client.write_at(b"odd", 4097).unwrap();
    client.flush().unwrap();
    let mut expected = pattern();
    expected[65536..65536 + 131072].fill(0);
    expected[1 << 20..(1 << 20) + 65536].fill(0);
    expected[4097..4100].copy_from_slice(b"odd");
    let mut bytes = vec![1; SIZE as usize];
    client.read_at(&mut bytes, 0).unwrap();
    assert!(bytes == expected);
    let mut few = [0; 5];
    client.read_at(&mut few, 4096).unwrap();
    assert_eq!(few, expected[4096..4101]);
    client.read_at(&mut [], SIZE).unwrap();
    assert!(matches!(client.read_at(&mut few, SIZE - 4), Err(Error::Invalid(_))));
    assert!(matches!(client.write_at(&few, u64::MAX), Err(Error::Invalid(_))));
    expected
}

#[test]
fn our_own_server_over_a_pair_of_sockets() {
    let image = Arc::new(TestImage::new(SIZE));
    let (server, client) = served(image.clone());
    assert!(exercise(&client) == image.bytes());
    assert_eq!(
        kinds(&client, 4096..SIZE - 4096),
        [
            (4096, 61440, ExtentKind::Data),
            (65536, 131072, ExtentKind::Unallocated),
            (196608, 851968, ExtentKind::Data),
            (1 << 20, 65536, ExtentKind::Unallocated),
            (1114112, SIZE - 4096 - 1114112, ExtentKind::Data)
        ]
    );
    drop(server);
    assert!(client.flush().is_err());
}

#[test]
fn an_error_names_file_and_offset_and_repeats_the_servers_words() {
    let mut image = TestImage::new(SIZE);
    image.bad = Some(8192..8193);
    let (_server, client) = served(Arc::new(image));
    let error = client.read_at(&mut [0; 4096], 6000).unwrap_err().to_string();
    assert_eq!(error, "d: cannot read at offset 0x1770: test: cannot read at offset 0x2000: bad block");
    client.read_at(&mut [0; 4096], 0).unwrap();
}

#[test]
fn a_read_only_export_is_not_written() {
    let (host, guest) = UnixStream::pair().unwrap();
    let _server = serve_connected(host, Export::new("", Content::ReadOnly(Arc::new(TestImage::new(SIZE))))).unwrap();
    let client = Client::new(guest, "", "d").unwrap();
    assert!(client.is_read_only());
    assert!(matches!(client.write_at(&[1], 0), Err(Error::Invalid(_))));
    client.flush().unwrap();
}

#[test]
fn threads_share_a_client() {
    let image = Arc::new(TestImage::with(SIZE, &[(0, &pattern())]));
    let (_server, client) = served(image.clone());
    let expected = pattern();
    std::thread::scope(|scope| {
        for thread in 0..6u64 {
            let (client, expected) = (&client, &expected);
            scope.spawn(move || {
                for round in 0..300 {
                    let at = (thread * 1_300_000 + round * 4001) as usize;
                    let mut bytes = vec![0; 1 + (round as usize * 977) % 100_000];
                    client.read_at(&mut bytes, at as u64).unwrap();
                    assert!(bytes == expected[at..at + bytes.len()], "{thread} {round}");
                    client.write_at(&bytes, at as u64).unwrap();
                }
            });
        }
    });
    assert!(image.bytes() == expected);
}

#[test]
fn one_connection_has_several_requests_under_way() {
    let mut image = TestImage::new(SIZE);
    // Reads end only when four of them are there.
    image.meet = Some(std::sync::Barrier::new(4));
    let (_server, client) = served(Arc::new(image));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| client.read_at(&mut [0; 512], 0).unwrap());
        }
    });
}

/// A server of somebody else's, ended with the test.
struct Foreign(Child);

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Foreign {
    fn start(command: &mut Command, socket: &Path) -> (Self, UnixStream) {
        let server = Foreign(command.spawn().unwrap());
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            match UnixStream::connect(socket) {
                Ok(stream) => return (server, stream),
                Err(e) => assert!(Instant::now() < until, "{command:?}: {e}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn qemus_server() {
    if !has("qemu-nbd") || !has("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (file, socket) = (dir.path().join("f.qcow2"), dir.path().join("s"));
    run(Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&file).arg(SIZE.to_string()));
    let mut command = Command::new("qemu-nbd");
    command.args(["-f", "qcow2", "-x", "disk", "--discard=unmap", "-k"]).args([&socket, &file]);
    let (server, stream) = Foreign::start(&mut command, &socket);
    let client = Client::new(stream, "disk", "d").unwrap();
    assert_eq!(kinds(&client, 0..SIZE), [(0, SIZE, ExtentKind::Unallocated)]);
    let expected = exercise(&client);
    assert!(kinds(&client, 0..SIZE).iter().any(|(start, _, kind)| (*start, kind.reads_zero()) == (65536, true)));
    drop((client, server));
    let raw = dir.path().join("raw");
    run(Command::new("qemu-img").args(["convert", "-f", "qcow2", "-O", "raw"]).args([&file, &raw]));
    assert!(std::fs::read(raw).unwrap() == expected);
}

#[test]
fn nbdkits_server_without_structured_replies() {
    if !has("nbdkit") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let mut command = Command::new("nbdkit");
    command.args(["-f", "--no-sr", "-U"]).arg(&socket).args(["memory", &SIZE.to_string()]);
    let (_server, stream) = Foreign::start(&mut command, &socket);
    let client = Client::new(stream, "", "d").unwrap();
    assert_eq!(kinds(&client, 1..SIZE), [(1, SIZE - 1, ExtentKind::Data)]);
    exercise(&client);
}

#[test]
fn a_refused_export_is_an_error_with_its_reason() {
    let (host, guest) = UnixStream::pair().unwrap();
    let _server = serve_connected(host, Export::new("disk", Content::ReadOnly(Arc::new(TestImage::new(SIZE))))).unwrap();
    let error = Client::new(guest, "other", "d").map(drop).unwrap_err().to_string();
    assert!(error.contains("no such export"), "{error}");
}

/// Plays a server by hand, up to the transmission phase.
fn play(structured: bool, act: impl FnOnce(&mut UnixStream) + Send + 'static) -> Result<Client> {
    let (mut host, guest) = UnixStream::pair().unwrap();
    std::thread::spawn(move || {
        let mut hello = NBDMAGIC.to_be_bytes().to_vec();
        hello.extend(IHAVEOPT.to_be_bytes());
        hello.extend(3u16.to_be_bytes());
        host.write_all(&hello).unwrap();
        host.read_exact(&mut [0; 4]).unwrap();
        loop {
            let mut head = [0; 16];
            host.read_exact(&mut head).unwrap();
            let option = u32::from_be_bytes(head[8..12].try_into().unwrap());
            let mut data = vec![0; u32::from_be_bytes(head[12..].try_into().unwrap()) as usize];
            host.read_exact(&mut data).unwrap();
            let mut reply = |kind: u32, data: &[u8]| {
                let mut bytes = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
                [option, kind, data.len() as u32].iter().for_each(|n| bytes.extend(n.to_be_bytes()));
                bytes.extend(data);
                host.write_all(&bytes).unwrap();
            };
            if option == NBD_OPT_GO {
                reply(NBD_REP_INFO, &[&[0, 0][..], &SIZE.to_be_bytes(), &[0, 1]].concat());
                reply(NBD_REP_ACK, &[]);
                break;
            }
            if option == NBD_OPT_SET_META_CONTEXT {
                reply(NBD_REP_META_CONTEXT, b"\0\0\0\x09base:allocation");
            }
            reply(if structured { NBD_REP_ACK } else { NBD_REP_ERR_UNSUP }, &[]);
        }
        act(&mut host);
        // Held open: a client that waits for more than it may ask for would hang here, not fail.
        let _ = host.read_to_end(&mut Vec::new());
    });
    Client::new(guest, "disk", "d")
}

/// A structured chunk in answer to the first request.
fn chunk(flags: u16, kind: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = STRUCTURED_REPLY_MAGIC.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(1u64.to_be_bytes());
    bytes.extend((body.len() as u32).to_be_bytes());
    bytes.extend(body);
    bytes
}

fn at(offset: u64, rest: &[u8]) -> Vec<u8> {
    [&offset.to_be_bytes(), rest].concat()
}

#[test]
fn replies_that_break_the_rules_lose_the_connection() {
    const DATA: u16 = NBD_REPLY_TYPE_OFFSET_DATA;
    const HOLE: u16 = NBD_REPLY_TYPE_OFFSET_HOLE;
    // 64 bytes are read from 4096.
    let answers: Vec<(&str, Vec<u8>)> = vec![
        ("magic", vec![0; 32]),
        ("nothing that was asked", [&SIMPLE_REPLY_MAGIC.to_be_bytes()[..], &[0; 12]].concat()),
        ("a structured one is due", [&SIMPLE_REPLY_MAGIC.to_be_bytes()[..], &[0; 11], &[1]].concat()),
        ("outside", chunk(1, DATA, &at(4095, &[1; 64]))),
        ("outside", chunk(1, DATA, &at(4097, &[1; 64]))),
        ("outside", chunk(1, DATA, &at(u64::MAX, &[1; 64]))),
        ("outside", chunk(1, HOLE, &at(4096, &u32::MAX.to_be_bytes()))),
        ("came already", [chunk(0, HOLE, &at(4096, &64u32.to_be_bytes())), chunk(1, DATA, &at(4159, &[1]))].concat()),
        ("came already", [chunk(0, DATA, &at(4100, &[1])), chunk(1, HOLE, &at(4096, &64u32.to_be_bytes()))].concat()),
        ("less than", chunk(1, DATA, &at(4096, &[1; 63]))),
        ("less than", chunk(1, NBD_REPLY_TYPE_NONE, &[])),
        ("not asked for", chunk(1, NBD_REPLY_TYPE_BLOCK_STATUS, &[0; 12])),
        ("not asked for", chunk(1, 77, &[])),
        ("not asked for", chunk(1, NBD_REPLY_TYPE_ERROR, &[0; 8192])),
        ("error's words", chunk(1, NBD_REPLY_TYPE_ERROR, &[0, 0, 0, 5, 0, 9, b'x'])),
    ];
    for (words, answer) in answers {
        let client = play(true, move |host| host.write_all(&answer).unwrap()).unwrap();
        let error = client.read_at(&mut [0; 64], 4096).unwrap_err().to_string();
        assert!(
            error.starts_with("d: cannot read at offset 0x1000: the connection is lost: ") && error.contains(words),
            "{words}: {error}"
        );
        assert!(client.flush().is_err(), "{words}");
    }
}

#[test]
fn chunks_may_come_in_any_order_and_errors_among_them() {
    let parts = [
        chunk(0, NBD_REPLY_TYPE_OFFSET_DATA, &at(4128, &[2; 32])),
        chunk(0, NBD_REPLY_TYPE_OFFSET_HOLE, &at(4096, &16u32.to_be_bytes())),
        chunk(1, NBD_REPLY_TYPE_OFFSET_DATA, &at(4112, &[1; 16])),
    ];
    let client = play(true, move |host| host.write_all(&parts.concat()).unwrap()).unwrap();
    let mut bytes = [9; 64];
    client.read_at(&mut bytes, 4096).unwrap();
    assert_eq!((&bytes[..16], &bytes[16..32], &bytes[32..]), (&[0; 16][..], &[1; 16][..], &[2; 32][..]));

    let parts = [
        chunk(0, NBD_REPLY_TYPE_ERROR + 1, &[&[0, 0, 0, 28, 0, 4][..], b"fu\x1bl", &[0; 8]].concat()),
        chunk(1, NBD_REPLY_TYPE_OFFSET_DATA, &at(4096, &[1; 32])),
        chunk(0, NBD_REPLY_TYPE_ERROR, &[0; 6]),
    ];
    let client = play(true, move |host| host.write_all(&parts.concat()).unwrap()).unwrap();
    let error = client.read_at(&mut bytes, 4096).unwrap_err();
    assert_eq!(error.to_string(), "d: cannot read at offset 0x1000: ful");
    assert!(matches!(error, Error::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull));
}

#[test]
fn blocks_that_break_the_rules_lose_the_connection_and_long_ones_are_cut() {
    let blocks = |context: u32, words: &[u32]| {
        let body: Vec<u8> = [context].iter().chain(words).flat_map(|w| w.to_be_bytes()).collect();
        chunk(1, NBD_REPLY_TYPE_BLOCK_STATUS, &body)
    };
    for answer in [blocks(8, &[4096, 0]), blocks(9, &[0, 0]), blocks(9, &[]), blocks(9, &[1]), chunk(1, NBD_REPLY_TYPE_NONE, &[])] {
        let client = play(true, move |host| host.write_all(&answer).unwrap()).unwrap();
        assert!(client.extents(0..8192, &mut |_| ControlFlow::Continue(())).is_err());
    }
    let answer = blocks(9, &[4096, 3, u32::MAX, 2, 4096, 0]);
    let client = play(true, move |host| host.write_all(&answer).unwrap()).unwrap();
    assert_eq!(kinds(&client, 0..8192), [(0, 4096, ExtentKind::Unallocated), (4096, 4096, ExtentKind::Zero)]);
}

#[test]
fn a_lost_connection_is_an_error_for_everyone_who_waits() {
    let client = play(false, |host| {
        host.read_exact(&mut [0; 28 * 3]).unwrap();
        host.shutdown(std::net::Shutdown::Both).unwrap();
    })
    .unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| assert!(client.read_at(&mut [0; 64], 0).is_err()));
        }
    });
}

#[test]
fn handshakes_that_break_the_rules_are_errors() {
    let greeting = |flags: u16| [&NBDMAGIC.to_be_bytes()[..], &IHAVEOPT.to_be_bytes(), &flags.to_be_bytes()].concat();
    let reply = |option: u32, kind: u32, len: u32| {
        let numbers = [option, kind, len].map(u32::to_be_bytes).concat();
        [greeting(3), OPTION_REPLY_MAGIC.to_be_bytes().to_vec(), numbers].concat()
    };
    let endless = [greeting(3), reply(8, NBD_REP_INFO, 0)[18..].repeat(1000)].concat();
    for bytes in [vec![1; 64], greeting(0), reply(7, NBD_REP_ACK, 0), reply(8, NBD_REP_ACK, u32::MAX), endless, greeting(3)] {
        let (mut host, guest) = UnixStream::pair().unwrap();
        host.write_all(&bytes).unwrap();
        host.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(Client::new(guest, "disk", "d").is_err(), "{bytes:?}");
    }
}
