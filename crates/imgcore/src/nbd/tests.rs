//! The server against libnbd's and QEMU's clients, and against clients that break the protocol.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use super::proto::*;
use super::{Address, Content, DirtyBitmap, Export, Server, serve};
use crate::testing::TestImage;

const SIZE: u64 = 8 << 20;

struct Served {
    image: Arc<TestImage>,
    server: Server,
    _folder: tempfile::TempDir,
}

impl Served {
    fn new(image: TestImage) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = Arc::new(image);
        let exports = vec![Export::new("disk", Content::Writable(image.clone())), Export::new("frozen", Content::ReadOnly(image.clone()))];
        let server = serve(&Address::Unix(folder.path().join("s")), exports).unwrap();
        Served { image, server, _folder: folder }
    }

    fn path(&self) -> PathBuf {
        let Some(Address::Unix(path)) = self.server.address() else { unreachable!() };
        path.clone()
    }

    fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.path().display())
    }

    /// A connection past the handshake of an old client, ready for requests.
    fn connect(&self, export: &str) -> UnixStream {
        let mut stream = UnixStream::connect(self.path()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).unwrap();
        let mut hello = 3u32.to_be_bytes().to_vec();
        hello.extend(option(NBD_OPT_EXPORT_NAME, export.as_bytes()));
        stream.write_all(&hello).unwrap();
        let mut reply = [0; 10];
        stream.read_exact(&mut reply).unwrap();
        assert_eq!(reply[..8], SIZE.to_be_bytes());
        stream
    }
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = IHAVEOPT.to_be_bytes().to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

fn request(kind: u16, flags: u16, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(7u64.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

fn error_of(stream: &mut UnixStream) -> u32 {
    let mut reply = [0; 16];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply[..4], SIMPLE_REPLY_MAGIC.to_be_bytes());
    assert_eq!(reply[8..], 7u64.to_be_bytes());
    u32::from_be_bytes(reply[4..8].try_into().unwrap())
}

/// Whether a reference tool is there; a test without it says so, and fails where everything must be installed.
pub(super) fn has(tool: &str) -> bool {
    let found = Command::new(tool).arg("--version").output().is_ok();
    if !found {
        assert!(std::env::var_os("CI").is_none(), "{tool} is missing");
        eprintln!("skipped: {tool} is missing");
    }
    found
}

pub(super) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub(super) fn pattern() -> Vec<u8> {
    (0..SIZE as u32 / 4).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

#[test]
fn libnbd_lists_the_exports_with_their_sizes() {
    if !has("nbdinfo") {
        return;
    }
    let served = Served::new(TestImage::new(SIZE));
    let json = run(Command::new("nbdinfo").args(["--json", "--list", &served.uri("")]));
    for part in ["\"export-name\": \"disk\"", "\"export-name\": \"frozen\"", "\"export-size\": 8388608", "\"can_multi_conn\": true"] {
        assert!(json.contains(part), "{part} is missing in {json}");
    }
    let frozen = run(Command::new("nbdinfo").args(["--json", &served.uri("frozen")]));
    assert!(frozen.contains("\"is_read_only\": true"), "{frozen}");
}

#[test]
fn libnbd_copies_an_image_out_and_in() {
    if !has("nbdcopy") {
        return;
    }
    let content = pattern();
    let from = Served::new(TestImage::with(SIZE, &[(0, &content)]));
    let to = Served::new(TestImage::new(SIZE));
    run(Command::new("nbdcopy").args(["--flush", &from.uri("frozen"), &to.uri("disk")]));
    assert!(to.image.bytes() == content);
}

#[test]
fn qemu_reads_writes_trims_and_zeroes() {
    if !has("qemu-io") {
        return;
    }
    let served = Served::new(TestImage::with(SIZE, &[(0, &pattern())]));
    let commands =
        ["write -P 7 4096 8192", "write -z 65536 65536", "discard 262144 4096", "read -P 7 4096 8192", "read -P 0 65536 65536", "flush"];
    let mut qemu_io = Command::new("qemu-io");
    qemu_io.args(["-f", "raw"]);
    for command in commands {
        qemu_io.args(["-c", command]);
    }
    run(qemu_io.arg(served.uri("disk")));
    let mut expected = pattern();
    expected[4096..12288].fill(7);
    expected[65536..131072].fill(0);
    expected[262144..266240].fill(0);
    assert!(served.image.bytes() == expected);
}

#[test]
fn an_image_failure_is_an_errno_for_the_client_and_words_for_the_owner() {
    let mut image = TestImage::new(SIZE);
    image.bad = Some(8192..8193);
    let served = Served::new(image);
    let mut client = served.connect("disk");
    client.write_all(&request(NBD_CMD_READ, 0, 4096, 8192)).unwrap();
    assert_eq!(error_of(&mut client), NBD_EIO);
    client.write_all(&request(NBD_CMD_READ, 0, 0, 0)).unwrap();
    assert_eq!(error_of(&mut client), 0);
    assert_eq!(served.server.first_error().unwrap(), "test: cannot read at offset 0x2000: bad block");
}

#[test]
fn requests_outside_the_rules_are_refused_and_the_connection_goes_on() {
    let served = Served::new(TestImage::new(SIZE));
    let mut client = served.connect("disk");
    for (kind, flags, offset, len, number) in [
        (NBD_CMD_READ, 0, SIZE, 1, NBD_EINVAL),
        (NBD_CMD_READ, 0, u64::MAX, 2, NBD_EINVAL),
        (NBD_CMD_READ, 0, 0, MAX_PAYLOAD + 1, NBD_EINVAL),
        (NBD_CMD_READ, 1 << 9, 0, 1, NBD_EINVAL),
        (NBD_CMD_WRITE_ZEROES, 0, SIZE - 1, 2, NBD_ENOSPC),
        (NBD_CMD_TRIM, 0, u64::MAX - 1, 1, NBD_EINVAL),
        (77, 0, 0, 1, NBD_EINVAL),
        (NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE, 0, SIZE as u32, 0),
    ] {
        client.write_all(&request(kind, flags, offset, len)).unwrap();
        assert_eq!(error_of(&mut client), number, "{kind} {offset} {len}");
    }
    let mut frozen = served.connect("frozen");
    let mut write = request(NBD_CMD_WRITE, 0, 0, 3);
    write.extend([1, 2, 3]);
    frozen.write_all(&write).unwrap();
    assert_eq!(error_of(&mut frozen), NBD_EPERM);
    assert!(served.image.bytes().iter().all(|b| *b == 0));
}

#[test]
fn broken_clients_lose_their_connection_only() {
    let served = Served::new(TestImage::new(SIZE));
    let mut huge_option = 3u32.to_be_bytes().to_vec();
    huge_option.extend(IHAVEOPT.to_be_bytes());
    huge_option.extend([0, 0, 0, 7, 255, 255, 255, 255]);
    let mut unknown = 3u32.to_be_bytes().to_vec();
    unknown.extend(option(NBD_OPT_EXPORT_NAME, b"nope"));
    for hello in [vec![255; 64], huge_option, unknown, vec![0; 12]] {
        let mut stream = UnixStream::connect(served.path()).unwrap();
        stream.write_all(&hello).unwrap();
        let mut rest = Vec::new();
        // Either an end or a reset, never an answer beyond the greeting.
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.len() <= 18, "{hello:?}");
    }
    for bytes in [vec![0; 28], request(NBD_CMD_WRITE, 0, 0, u32::MAX)] {
        let mut client = served.connect("disk");
        client.write_all(&bytes).unwrap();
        let _ = client.read_to_end(&mut Vec::new());
    }
    served.connect("disk");
}

#[test]
fn malformed_go_and_unknown_options_are_answered() {
    let served = Served::new(TestImage::new(SIZE));
    let mut stream = UnixStream::connect(served.path()).unwrap();
    stream.read_exact(&mut [0; 18]).unwrap();
    stream.write_all(&3u32.to_be_bytes()).unwrap();
    for (number, data, kind) in [
        (NBD_OPT_GO, &b"\xff\xff\xff\xffdisk\0\0"[..], NBD_REP_ERR_INVALID),
        (NBD_OPT_GO, b"\0\0\0\x04disk\0\x01", NBD_REP_ERR_INVALID),
        (NBD_OPT_INFO, b"\0\0\0\x02no\0\0", NBD_REP_ERR_UNKNOWN),
        (NBD_OPT_LIST, b"x", NBD_REP_ERR_INVALID),
        (99, b"", NBD_REP_ERR_UNSUP),
        (NBD_OPT_ABORT, b"", NBD_REP_ACK),
    ] {
        stream.write_all(&option(number, data)).unwrap();
        let mut reply = [0; 20];
        stream.read_exact(&mut reply).unwrap();
        assert_eq!(reply[12..16], kind.to_be_bytes(), "{number}");
        let len = u32::from_be_bytes(reply[16..].try_into().unwrap());
        stream.read_exact(&mut vec![0; len as usize]).unwrap();
    }
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn dropping_the_server_ends_clients_and_removes_the_socket() {
    let served = Served::new(TestImage::new(SIZE));
    let mut client = served.connect("disk");
    let path = served.path();
    drop(served.server);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    assert!(!path.exists());
}

#[test]
fn connections_see_each_others_writes() {
    let served = Served::new(TestImage::new(SIZE));
    let (mut one, mut two) = (served.connect("disk"), served.connect("frozen"));
    let mut write = request(NBD_CMD_WRITE, NBD_CMD_FLAG_FUA, 5, 3);
    write.extend(b"abc");
    one.write_all(&write).unwrap();
    assert_eq!(error_of(&mut one), 0);
    two.write_all(&request(NBD_CMD_READ, 0, 4, 5)).unwrap();
    assert_eq!(error_of(&mut two), 0);
    let mut bytes = [9; 5];
    two.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"\0abc\0");
}

/// A client that has agreed on structured replies and, where asked for, metadata contexts.
fn structured(served: &Served, contexts: &[&str]) -> UnixStream {
    let mut stream = UnixStream::connect(served.path()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.read_exact(&mut [0; 18]).unwrap();
    stream.write_all(&3u32.to_be_bytes()).unwrap();
    let string = |text: &str| [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat();
    let mut set = [string("disk"), (contexts.len() as u32).to_be_bytes().to_vec()].concat();
    contexts.iter().for_each(|c| set.extend(string(c)));
    let go = [string("disk"), vec![0, 0]].concat();
    for (number, data) in [(NBD_OPT_STRUCTURED_REPLY, vec![]), (NBD_OPT_SET_META_CONTEXT, set), (NBD_OPT_GO, go)] {
        stream.write_all(&option(number, &data)).unwrap();
        loop {
            let mut head = [0; 20];
            stream.read_exact(&mut head).unwrap();
            stream.read_exact(&mut vec![0; u32::from_be_bytes(head[16..].try_into().unwrap()) as usize]).unwrap();
            if head[12..16] == NBD_REP_ACK.to_be_bytes() {
                break;
            }
        }
    }
    stream
}

/// The next chunk: its flags, type and body.
fn chunk(stream: &mut UnixStream) -> (u16, u16, Vec<u8>) {
    let mut head = [0; 20];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(head[..4], STRUCTURED_REPLY_MAGIC.to_be_bytes());
    let mut body = vec![0; u32::from_be_bytes(head[16..].try_into().unwrap()) as usize];
    stream.read_exact(&mut body).unwrap();
    (u16::from_be_bytes([head[4], head[5]]), u16::from_be_bytes([head[6], head[7]]), body)
}

#[test]
fn holes_are_not_sent() {
    let served = Served::new(TestImage::with(SIZE, &[(1 << 20, &[7; 4096])]));
    let mut client = structured(&served, &[]);
    client.write_all(&request(NBD_CMD_READ, 0, 0, 2 << 20)).unwrap();
    let chunks: Vec<_> = (0..3).map(|_| chunk(&mut client)).collect();
    assert_eq!(
        chunks.iter().map(|(flags, kind, body)| (*flags, *kind, body.len())).collect::<Vec<_>>(),
        [
            (0, NBD_REPLY_TYPE_OFFSET_HOLE, 12),
            (0, NBD_REPLY_TYPE_OFFSET_DATA, 8 + 4096),
            (NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_OFFSET_HOLE, 12)
        ]
    );
    client.write_all(&request(NBD_CMD_READ, NBD_CMD_FLAG_DF, 0, 2 << 20)).unwrap();
    assert_eq!(chunk(&mut client).2.len(), 8 + (2 << 20));
    client.write_all(&request(NBD_CMD_READ, 0, SIZE, 1)).unwrap();
    let (_, kind, body) = chunk(&mut client);
    assert_eq!((kind, &body[..4], &body[6..]), (NBD_REPLY_TYPE_ERROR, &NBD_EINVAL.to_be_bytes()[..], &b"past the end of the export"[..]));
}

#[test]
fn dirty_bitmaps_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let bitmap = DirtyBitmap { name: "b".into(), dirty: vec![0..4096, 65536..131072, SIZE - 512..SIZE] };
    let export = Export::new("disk", Content::ReadOnly(Arc::new(TestImage::new(SIZE)))).bitmaps(vec![bitmap]);
    let server = serve(&Address::Unix(folder.path().join("s")), vec![export]).unwrap();
    let served = Served { image: Arc::new(TestImage::new(0)), server, _folder: folder };
    let mut client = structured(&served, &["qemu:dirty-bitmap:b", "qemu:dirty-bitmap:c", "nonsense"]);
    for (flags, offset, len, expected) in [
        (0, 0, SIZE as u32, &[4096, 1, 61440, 0, 65536, 1, 8257024, 0, 512, 1][..]),
        (0, 70000, 1000, &[1000, 1]),
        (NBD_CMD_FLAG_REQ_ONE, 4000, 100_000, &[96, 1]),
        (0, 4096, 4096, &[4096, 0]),
    ] {
        client.write_all(&request(NBD_CMD_BLOCK_STATUS, flags, offset, len)).unwrap();
        let (_, kind, body) = chunk(&mut client);
        let words: Vec<_> = body.as_chunks().0.iter().map(|w| u32::from_be_bytes(*w)).collect();
        assert_eq!((kind, words[0], &words[1..]), (NBD_REPLY_TYPE_BLOCK_STATUS, 2, expected));
    }
    if has("nbdinfo") {
        let totals = run(Command::new("nbdinfo").args(["--map=qemu:dirty-bitmap:b", "--totals", &served.uri("disk")]));
        assert!(totals.contains("dirty"), "{totals}");
    }
}

#[test]
fn requests_of_one_client_run_in_parallel() {
    let mut image = TestImage::new(SIZE);
    // Reads end only when four of them are there.
    image.meet = Some(std::sync::Barrier::new(4));
    let served = Served::new(image);
    let mut client = served.connect("disk");
    for _ in 0..4 {
        client.write_all(&request(NBD_CMD_READ, 0, 0, 0)).unwrap();
    }
    for _ in 0..4 {
        assert_eq!(error_of(&mut client), 0);
    }
}

#[test]
fn a_silent_client_is_dropped_in_the_handshake_only() {
    let served = Served::new(TestImage::new(SIZE));
    let mut patient = served.connect("disk");
    let mut silent = UnixStream::connect(served.path()).unwrap();
    let mut slow = UnixStream::connect(served.path()).unwrap();
    silent.read_to_end(&mut Vec::new()).unwrap();
    // One byte a time does not buy more of it.
    for byte in option(NBD_OPT_ABORT, &[0; 4000]) {
        if slow.write_all(&[byte]).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut rest = Vec::new();
    let _ = slow.read_to_end(&mut rest);
    assert_eq!(rest.len(), 18);
    patient.write_all(&request(NBD_CMD_READ, 0, 0, 0)).unwrap();
    assert_eq!(error_of(&mut patient), 0);
}

#[test]
fn noise_after_the_handshake_hurts_nobody() {
    let served = Served::new(TestImage::new(SIZE));
    let mut random = 1u64;
    for round in 0..200 {
        let mut client = structured(&served, &["base:allocation"]);
        for _ in 0..20 {
            let mut next = || {
                random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                random >> 33
            };
            // Mostly requests with odd numbers, small enough to be carried out; at times bytes without sense.
            let mut bytes = request(next() as u16 % 9, next() as u16 & 31, next() % (SIZE + 9), next() as u32 % 70_000);
            if next() % 20 == 0 {
                bytes.truncate(next() as usize % 28);
            }
            if client.write_all(&bytes).is_err() {
                break;
            }
        }
        if round % 2 == 0 {
            let _ = client.shutdown(std::net::Shutdown::Write);
            let _ = client.read_to_end(&mut Vec::new());
        }
    }
    served.connect("disk");
}
