//! What host and agent say to each other: frames over a byte stream, and the messages in them.
//!
//! A frame is a header of 12 bytes (payload length, request number, kind, three zero bytes; little endian) and a
//! payload of [`MAX_PAYLOAD`] bytes at most. The host sends [`Kind::Request`]s one at a time, each followed by the
//! [`Kind::Data`] frames and the [`Kind::End`] that the request announces. The agent answers with any number of
//! `Data` frames and exactly one [`Kind::Reply`]; while it works it says [`Kind::Alive`] now and then. All frames
//! of an exchange carry the request's number. Nobody buffers: who has no room stops reading, and the other waits.
//!
//! Each side takes the other for hostile: lengths are checked before anything is allocated, and a frame that does
//! not fit ends the connection.

use std::io::{self, Read, Write};

use guestfs::{DirEntry, FileType, Stat, StatFs, Time};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Both sides must be of one version: they are built and shipped together.
pub const VERSION: u32 = 4;

/// The name of the agent's port.
pub const PORT_NAME: &str = "guestlift.agent";

/// Largest payload of a frame, in bytes.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// Payload of the data frames that we send, in bytes.
pub const CHUNK: usize = 256 << 10;

/// Most output of a command that is kept, in bytes for each stream.
pub const OUTPUT_LIMIT: usize = 1 << 20;

/// Bytes that may be under way to the appliance in one [`Relayed`] connection.
pub const RELAY_WINDOW: usize = 256 << 10;

/// Relayed connections that may be open at once.
pub const RELAY_CONNECTIONS: usize = 64;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Host to agent: a [`Request`].
    Request,
    /// Agent to host: the [`Reply`] that ends the exchange.
    Reply,
    /// Bytes of a stream, either way.
    Data,
    /// The stream is whole. From the agent: the program on a terminal has ended.
    End,
    /// Host to agent: the stream failed at its source; forget what came.
    Abort,
    /// Agent to host: still at work.
    Alive,
}

const KINDS: [Kind; 6] = [Kind::Request, Kind::Reply, Kind::Data, Kind::End, Kind::Abort, Kind::Alive];

impl Kind {
    fn code(self) -> u8 {
        match self {
            Kind::Request => 1,
            Kind::Reply => 2,
            Kind::Data => 3,
            Kind::End => 4,
            Kind::Abort => 5,
            Kind::Alive => 6,
        }
    }
}

/// Sends one frame.
pub fn send(to: &mut dyn Write, id: u32, kind: Kind, payload: &[u8]) -> io::Result<()> {
    let header = header(id, kind, payload.len())?;
    // One write for small frames: each write is an exit of the virtual machine.
    if payload.len() <= 4000 {
        let mut whole = Vec::with_capacity(12 + payload.len());
        whole.extend_from_slice(&header);
        whole.extend_from_slice(payload);
        to.write_all(&whole)
    } else {
        to.write_all(&header)?;
        to.write_all(payload)
    }
}

/// What stands before a payload of `len` bytes.
pub fn header(id: u32, kind: Kind, len: usize) -> io::Result<[u8; 12]> {
    let len = u32::try_from(len).ok().filter(|_| len <= MAX_PAYLOAD);
    let len = len.ok_or_else(|| broken("a frame that is too large to send"))?;
    let mut header = [0; 12];
    header[..4].copy_from_slice(&len.to_le_bytes());
    header[4..8].copy_from_slice(&id.to_le_bytes());
    header[8] = kind.code();
    Ok(header)
}

/// Sends a message as one frame.
pub fn send_message<M: Serialize>(to: &mut dyn Write, id: u32, kind: Kind, message: &M) -> io::Result<()> {
    send(to, id, kind, &encode(message)?)
}

/// Receives one frame into `payload`.
pub fn receive(from: &mut dyn Read, payload: &mut Vec<u8>) -> io::Result<(u32, Kind)> {
    let mut header = [0; 12];
    from.read_exact(&mut header)?;
    let [l0, l1, l2, l3, i0, i1, i2, i3, kind, z0, z1, z2] = header;
    let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    let kind = KINDS.into_iter().find(|k| k.code() == kind);
    let Some(kind) = kind.filter(|_| len <= MAX_PAYLOAD && [z0, z1, z2] == [0; 3]) else {
        return Err(broken("bytes that are no frame"));
    };
    payload.clear();
    payload.resize(len, 0);
    from.read_exact(payload)?;
    Ok((u32::from_le_bytes([i0, i1, i2, i3]), kind))
}

/// A message's bytes.
pub fn encode<M: Serialize>(message: &M) -> io::Result<Vec<u8>> {
    postcard::to_stdvec(message).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))
}

/// A message from bytes; all of them must belong to it.
pub fn decode<M: DeserializeOwned>(bytes: &[u8]) -> io::Result<M> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        Ok(_) => Err(broken("a message with bytes left over")),
        Err(e) => Err(broken(&format!("a message that cannot be read: {e}"))),
    }
}

/// The other side broke the protocol.
pub fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("protocol: {what}"))
}

/// A path or name, as bytes.
pub type Bytes = Vec<u8>;

/// What the host asks for. Fields are those of the [`guestfs`] method of the same name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the traits'")]
pub enum Request {
    /// The first request. `clock` is the host's, `seed` is for the random pool.
    Hello {
        version: u32,
        clock: WireTime,
        seed: Bytes,
    },
    Mount {
        device: String,
        path: Bytes,
        filesystem: String,
        options: String,
    },
    UnmountAll,
    Lstat {
        path: Bytes,
    },
    Stat {
        path: Bytes,
    },
    /// Answered by data frames, each a batch of [`WireEntry`].
    ReadDir {
        path: Bytes,
    },
    Readlink {
        path: Bytes,
    },
    /// Answered by data frames of `len` bytes at most in all.
    Read {
        path: Bytes,
        offset: u64,
        len: u64,
    },
    /// The next bytes of a file that are no hole.
    NextData {
        path: Bytes,
        offset: u64,
    },
    /// Answered by data frames, each a batch of name and value.
    Xattrs {
        path: Bytes,
    },
    Statfs {
        path: Bytes,
    },
    /// Followed by the content.
    Write {
        path: Bytes,
        attributes: Option<WireAttributes>,
    },
    Mkdir {
        path: Bytes,
        attributes: WireAttributes,
    },
    Symlink {
        target: Bytes,
        path: Bytes,
    },
    Link {
        existing: Bytes,
        path: Bytes,
    },
    Mknod {
        path: Bytes,
        kind: WireType,
        rdev: (u32, u32),
        attributes: WireAttributes,
    },
    Rename {
        from: Bytes,
        to: Bytes,
    },
    Remove {
        path: Bytes,
    },
    SetAttributes {
        path: Bytes,
        attributes: WireAttributes,
    },
    SetTimes {
        path: Bytes,
        atime: WireTime,
        mtime: WireTime,
    },
    SetXattr {
        path: Bytes,
        name: Bytes,
        value: Bytes,
    },
    /// Makes files below a directory. Followed by [`WirePiece`]s, each behind its length in four bytes (little endian).
    Unpack {
        path: Bytes,
    },
    /// Followed by the standard input. Answered by two runs of data frames, standard output first, whose lengths
    /// the reply tells.
    Run {
        argv: Vec<Bytes>,
        env: Vec<(Bytes, Bytes)>,
        place: Place,
        timeout_ms: u64,
    },
    /// Runs a command in the guest's root, without input, and carries what its programs connect to at
    /// [`RELAY_PORT`](guestfs::engine::RELAY_PORT). Followed by [`Relayed`] messages, one in each data frame. Answered by such
    /// messages and an end when the command has ended; then comes the host's end, and what answers [`Request::Run`].
    RunRelayed {
        argv: Vec<Bytes>,
        env: Vec<(Bytes, Bytes)>,
        timeout_ms: u64,
    },
    /// A program of the appliance's own on a terminal. Followed by [`TerminalInput`]s, one in each data frame. Answered by
    /// what the terminal shows and an end when the program has ended; then comes the host's end, and the reply. A host that
    /// ends first ends the program.
    Terminal {
        argv: Vec<Bytes>,
        env: Vec<(Bytes, Bytes)>,
        rows: u16,
        columns: u16,
    },
    /// Puts a file into the appliance's own root. Followed by the content.
    Install {
        path: Bytes,
        mode: u32,
    },
    /// Makes the kernel look for disks in this many of the machine's places, from the second on: they were empty when
    /// it started.
    FindDisks {
        count: u8,
    },
    Devices,
    /// Answered by data frames of `len` bytes in all.
    ReadDevice {
        device: String,
        offset: u64,
        len: u64,
    },
    /// Followed by the bytes to write.
    WriteDevice {
        device: String,
        offset: u64,
    },
    RereadPartitions {
        device: String,
    },
    Sync,
    /// Unmounts, writes out, answers, and then powers off.
    PowerOff,
}

impl Request {
    /// Whether data frames and an end follow the request.
    pub fn has_stream(&self) -> bool {
        matches!(
            self,
            Request::Write { .. }
                | Request::Unpack { .. }
                | Request::Run { .. }
                | Request::RunRelayed { .. }
                | Request::Terminal { .. }
                | Request::Install { .. }
                | Request::WriteDevice { .. }
        )
    }
}

/// Where a command runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// In the guest's root.
    Guest,
    /// In the appliance's own.
    Appliance,
}

/// What happens in a connection that is carried between guest and host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relayed {
    /// Its number; none is used twice while a command runs.
    pub connection: u32,
    /// What happens.
    pub event: RelayEvent,
}

/// See [`Relayed`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RelayEvent {
    /// Agent to host: a program of the guest has made it.
    Opened,
    /// Bytes, either way.
    Data(Bytes),
    /// Agent to host: so many bytes were taken, and as many more may come; [`RELAY_WINDOW`] at first.
    Taken(u32),
    /// Nothing more comes from this side.
    Closed,
}

/// What is done at a terminal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TerminalInput {
    /// These bytes are typed.
    Keys(Bytes),
    /// Its window is as large as this now.
    Size {
        /// Lines.
        rows: u16,
        /// Characters in a line.
        columns: u16,
    },
}

/// How an exchange ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each answers the request of its name")]
pub enum Reply {
    Done,
    Hello {
        version: u32,
        kernel: String,
    },
    Stat(WireStat),
    Link(Bytes),
    Statfs(WireStatFs),
    Ran {
        status: i32,
        stdout: u64,
        stderr: u64,
        timed_out: bool,
    },
    Devices(Vec<(String, u64)>),
    /// Where bytes begin and end.
    Range(Option<(u64, u64)>),
    Failed(Failure),
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// The path is not there.
    NotFound,
    /// The path is something else than the request needs.
    WrongType(Wrong),
    /// The kernel's or the agent's words.
    Other(String),
}

/// What a path should have been, or should not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the words below say it")]
pub enum Wrong {
    NotDirectory,
    IsDirectory,
    NotSymlink,
    NotRegular,
}

impl Wrong {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Wrong::NotDirectory => "not a directory",
            Wrong::IsDirectory => "is a directory",
            Wrong::NotSymlink => "not a symbolic link",
            Wrong::NotRegular => "not a regular file",
        }
    }
}

/// [`guestfs::Attributes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are guestfs's")]
pub struct WireAttributes {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// [`guestfs::Time`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are guestfs's")]
pub struct WireTime {
    pub sec: i64,
    pub nsec: u32,
}

/// [`guestfs::FileType`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are guestfs's")]
pub enum WireType {
    Regular,
    Directory,
    Symlink,
    CharDevice,
    BlockDevice,
    Fifo,
    Socket,
}

/// [`guestfs::Stat`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are guestfs's")]
pub struct WireStat {
    pub kind: WireType,
    pub attributes: WireAttributes,
    pub size: u64,
    pub nlink: u64,
    pub ino: u64,
    pub dev: u64,
    pub rdev: (u32, u32),
    pub blocks: u64,
    pub atime: WireTime,
    pub mtime: WireTime,
    pub ctime: WireTime,
}

/// [`guestfs::StatFs`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are guestfs's")]
pub struct WireStatFs {
    pub block_size: u64,
    pub blocks: u64,
    pub blocks_free: u64,
    pub blocks_available: u64,
    pub files: u64,
    pub files_free: u64,
}

/// [`guestfs::DirEntry`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are guestfs's")]
pub struct WireEntry {
    pub name: Bytes,
    pub kind: WireType,
    pub ino: u64,
}

/// A step of an unpacking.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WirePiece {
    /// The next file.
    Node(WireNode),
    /// So many bytes of its content, which follow; [`MAX_PAYLOAD`] at most.
    Data(u32),
    /// So many zeroes in it.
    Hole(u64),
}

/// [`guestfs::Node`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are guestfs's")]
pub struct WireNode {
    pub path: Bytes,
    pub what: WireWhat,
    pub attributes: WireAttributes,
    pub times: (WireTime, WireTime),
    pub xattrs: Vec<(Bytes, Bytes)>,
}

/// [`guestfs::What`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are guestfs's")]
pub enum WireWhat {
    Directory,
    File,
    Symlink(Bytes),
    Link(Bytes),
    Special(WireType, (u32, u32)),
}

impl From<&guestfs::Node> for WireNode {
    fn from(node: &guestfs::Node) -> Self {
        let what = match &node.what {
            guestfs::What::Directory => WireWhat::Directory,
            guestfs::What::File => WireWhat::File,
            guestfs::What::Symlink(target) => WireWhat::Symlink(target.clone()),
            guestfs::What::Link(existing) => WireWhat::Link(existing.clone()),
            guestfs::What::Special(kind, rdev) => WireWhat::Special((*kind).into(), *rdev),
        };
        let times = (node.times.0.into(), node.times.1.into());
        WireNode { path: node.path.clone(), what, attributes: node.attributes.into(), times, xattrs: node.xattrs.clone() }
    }
}

impl From<guestfs::Attributes> for WireAttributes {
    fn from(a: guestfs::Attributes) -> Self {
        WireAttributes { mode: a.mode & 0o7777, uid: a.uid, gid: a.gid }
    }
}

impl From<Time> for WireTime {
    fn from(t: Time) -> Self {
        WireTime { sec: t.sec, nsec: t.nsec }
    }
}

impl From<WireTime> for Time {
    fn from(t: WireTime) -> Self {
        Time { sec: t.sec, nsec: t.nsec.min(999_999_999) }
    }
}

impl From<FileType> for WireType {
    fn from(t: FileType) -> Self {
        match t {
            FileType::Regular => WireType::Regular,
            FileType::Directory => WireType::Directory,
            FileType::Symlink => WireType::Symlink,
            FileType::CharDevice => WireType::CharDevice,
            FileType::BlockDevice => WireType::BlockDevice,
            FileType::Fifo => WireType::Fifo,
            FileType::Socket => WireType::Socket,
        }
    }
}

impl From<WireType> for FileType {
    fn from(t: WireType) -> Self {
        match t {
            WireType::Regular => FileType::Regular,
            WireType::Directory => FileType::Directory,
            WireType::Symlink => FileType::Symlink,
            WireType::CharDevice => FileType::CharDevice,
            WireType::BlockDevice => FileType::BlockDevice,
            WireType::Fifo => FileType::Fifo,
            WireType::Socket => FileType::Socket,
        }
    }
}

impl From<WireStat> for Stat {
    fn from(s: WireStat) -> Self {
        Stat {
            kind: s.kind.into(),
            mode: s.attributes.mode & 0o7777,
            uid: s.attributes.uid,
            gid: s.attributes.gid,
            size: s.size,
            nlink: s.nlink,
            ino: s.ino,
            dev: s.dev,
            rdev: s.rdev,
            blocks: s.blocks,
            atime: s.atime.into(),
            mtime: s.mtime.into(),
            ctime: s.ctime.into(),
        }
    }
}

impl From<WireStatFs> for StatFs {
    fn from(s: WireStatFs) -> Self {
        StatFs {
            block_size: s.block_size,
            blocks: s.blocks,
            blocks_free: s.blocks_free,
            blocks_available: s.blocks_available,
            files: s.files,
            files_free: s.files_free,
        }
    }
}

impl From<WireEntry> for DirEntry {
    fn from(e: WireEntry) -> Self {
        DirEntry { name: e.name, kind: e.kind.into(), ino: e.ino }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that depend on a seed alone.
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self, below: usize) -> usize {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (self.0 >> 33) as usize % below
        }
    }

    fn requests() -> Vec<Request> {
        let attributes = WireAttributes { mode: 0o755, uid: 1, gid: 2 };
        let time = WireTime { sec: -5, nsec: 7 };
        vec![
            Request::Hello { version: VERSION, clock: time, seed: vec![9; 64] },
            Request::Mount { device: "/dev/vda1".into(), path: b"/".to_vec(), filesystem: String::new(), options: "ro".into() },
            Request::Read { path: b"/etc/fstab".to_vec(), offset: u64::MAX, len: 1 },
            Request::Write { path: b"/x".to_vec(), attributes: Some(attributes) },
            Request::SetTimes { path: b"/x".to_vec(), atime: time, mtime: time },
            Request::NextData { path: b"/x".to_vec(), offset: 4096 },
            Request::Unpack { path: b"/srv".to_vec() },
            Request::Run { argv: vec![b"sh".to_vec()], env: vec![(b"A".to_vec(), b"B".to_vec())], place: Place::Guest, timeout_ms: 1 },
            Request::Terminal { argv: vec![b"sh".to_vec()], env: Vec::new(), rows: 25, columns: 80 },
            Request::PowerOff,
        ]
    }

    fn replies() -> Vec<Reply> {
        vec![
            Reply::Done,
            Reply::Link(b"../x".to_vec()),
            Reply::Range(Some((4096, 8192))),
            Reply::Devices(vec![("/dev/vda".into(), 1 << 40)]),
            Reply::Ran { status: 3, stdout: 1, stderr: 2, timed_out: false },
            Reply::Failed(Failure::WrongType(Wrong::IsDirectory)),
        ]
    }

    #[test]
    fn messages_come_back_as_they_were_sent() {
        for request in requests() {
            let mut wire = Vec::new();
            send_message(&mut wire, 7, Kind::Request, &request).unwrap();
            let mut payload = Vec::new();
            assert_eq!(receive(&mut wire.as_slice(), &mut payload).unwrap(), (7, Kind::Request));
            assert_eq!(decode::<Request>(&payload).unwrap(), request);
        }
        for reply in replies() {
            assert_eq!(decode::<Reply>(&encode(&reply).unwrap()).unwrap(), reply);
        }
    }

    #[test]
    fn a_frame_that_is_too_large_or_of_no_kind_is_refused_before_it_is_read() {
        let mut payload = Vec::new();
        assert!(send(&mut Vec::new(), 1, Kind::Data, &vec![0; MAX_PAYLOAD + 1]).is_err());
        let header = |len: u32, kind: u8, last: u8| {
            let mut bytes = len.to_le_bytes().to_vec();
            bytes.extend([1, 0, 0, 0, kind, 0, 0, last]);
            bytes
        };
        for bad in [header(u32::MAX, 3, 0), header(MAX_PAYLOAD as u32 + 1, 3, 0), header(0, 0, 0), header(0, 7, 0), header(0, 3, 1)] {
            let error = receive(&mut bad.as_slice(), &mut payload).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{bad:?}");
        }
        assert_eq!(payload.capacity(), 0, "nothing was allocated for a lie");
        assert_eq!(receive(&mut header(5, 3, 0).as_slice(), &mut payload).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn damaged_messages_are_refused_or_read_as_others_and_never_more() {
        let mut dice = Dice(1);
        let originals: Vec<Vec<u8>> =
            requests().iter().map(|r| encode(r).unwrap()).chain(replies().iter().map(|r| encode(r).unwrap())).collect();
        let mut refused = 0;
        for round in 0..40_000 {
            let mut bytes = originals[round % originals.len()].clone();
            for _ in 0..=dice.roll(3) {
                match dice.roll(3) {
                    0 if !bytes.is_empty() => {
                        let at = dice.roll(bytes.len());
                        bytes[at] = dice.roll(256) as u8;
                    }
                    1 => bytes.truncate(dice.roll(bytes.len() + 1)),
                    _ => bytes.insert(dice.roll(bytes.len() + 1), dice.roll(256) as u8),
                }
            }
            // Whatever is read back is a message of its own, which is sent as it was read.
            match decode::<Request>(&bytes) {
                Ok(request) => assert_eq!(decode::<Request>(&encode(&request).unwrap()).unwrap(), request),
                Err(_) => refused += 1,
            }
            match decode::<Reply>(&bytes) {
                Ok(reply) => assert_eq!(decode::<Reply>(&encode(&reply).unwrap()).unwrap(), reply),
                Err(_) => refused += 1,
            }
            let _ = decode::<Vec<WireEntry>>(&bytes);
            let _ = decode::<TerminalInput>(&bytes);
            let _ = receive(&mut bytes.as_slice(), &mut Vec::new());
        }
        assert!(refused > 10_000, "the damage is damage: {refused}");
    }
}
