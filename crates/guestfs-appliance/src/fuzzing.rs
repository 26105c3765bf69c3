//! Both ends of the agent's port for the fuzz targets: each hears what any other end might say.

use std::io::{self, Cursor, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::agent::link::Link;
use crate::connection::{Connection, Trouble};
use crate::protocol::{self, Bytes, Failure, Reply, Request, TerminalInput, WireEntry};
use crate::session;

/// Far more than an answer that is there may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// The host, whose agent says `bytes` and then nothing more.
pub fn host(bytes: &[u8]) {
    let (ours, mut agent) = UnixStream::pair().expect("a pair of sockets");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // The host may have given the agent up already.
            let _ = agent.write_all(bytes);
            let _ = agent.shutdown(Shutdown::Write);
        });
        let mut connection = Connection::new(ours, PATIENCE).expect("a connection");
        let requests = [
            Request::Devices,
            Request::ReadDir { path: b"/".into() },
            Request::Xattrs { path: b"/".into() },
            Request::Lstat { path: b"/".into() },
        ];
        for request in requests.iter().cycle() {
            let mut received = 0;
            let mut take = |data: &[u8]| {
                received += data.len();
                match request {
                    Request::ReadDir { .. } => {
                        let entries: Vec<WireEntry> = protocol::decode(data)?;
                        entries.into_iter().try_for_each(|e| session::entry(e).map(|e| assert!(!e.name.contains(&b'/'))))
                    }
                    Request::Xattrs { .. } => protocol::decode::<(Bytes, Bytes)>(data).map(drop),
                    _ => Err(protocol::broken("data that was not asked for")),
                }
            };
            let answer = connection.exchange(request, &mut io::empty(), &mut take, PATIENCE);
            assert!(received <= bytes.len(), "no more than was said");
            match answer {
                Ok(Reply::Stat(stat)) => assert!(guestfs::Stat::from(stat).mtime.nsec < 1_000_000_000),
                Ok(reply) => {
                    assert_eq!(protocol::decode::<Reply>(&protocol::encode(&reply).expect("it was decoded")).expect("sent back"), reply)
                }
                Err(Trouble::Source(e)) => panic!("there is no source: {e}"),
                Err(Trouble::Lost(e)) => {
                    assert!(e.kind() != io::ErrorKind::TimedOut, "the host waits for an agent that has hung up");
                    return;
                }
            }
        }
    });
}

/// The agent, whose host says `bytes` and then nothing more.
pub fn agent(bytes: &[u8]) {
    let mut link = Link::new(Box::new(Cursor::new(bytes.to_vec())), Box::new(io::sink()), None);
    let mut ended = false;
    while !ended {
        let exchanged = link.exchange(|request, exchange| {
            let mut streamed = 0;
            // Some requests fail before their stream is read.
            while !matches!(request, Request::Install { .. })
                && let Some(data) = exchange.next_data()?
            {
                streamed += data.len();
                assert!(streamed <= bytes.len(), "no more than was said");
                if let (Request::Terminal { .. }, Ok(input)) = (&request, protocol::decode::<TerminalInput>(data)) {
                    assert!(protocol::encode(&input).is_ok_and(|sent| sent.len() <= data.len() + 8));
                }
                exchange.send_data(&[0; 3])?;
            }
            let sent = protocol::encode(&request).map_err(|e| Failure::Other(e.to_string()))?;
            assert!(protocol::decode::<Request>(&sent).is_ok_and(|again| again == request));
            Ok(Reply::Done)
        });
        ended = exchanged.is_err();
    }
}

/// What an agent says in answer to [`host`], and a host to [`agent`]: seeds.
pub fn conversations() -> io::Result<(Vec<u8>, Vec<u8>)> {
    use crate::protocol::{Kind, Place, WireAttributes, WireStat, WireTime, WireType, send, send_message};

    let (mut from_agent, mut from_host) = (Vec::new(), Vec::new());
    let attributes = WireAttributes { mode: 0o644, uid: 1, gid: 2 };
    let time = WireTime { sec: 1_700_000_000, nsec: 5 };
    let stat = WireStat {
        kind: WireType::Regular,
        attributes,
        size: 9,
        nlink: 1,
        ino: 2,
        dev: 3,
        rdev: (0, 0),
        blocks: 8,
        atime: time,
        mtime: time,
        ctime: time,
    };
    send_message(&mut from_agent, 1, Kind::Reply, &Reply::Devices(vec![("/dev/vda".into(), 1 << 30)]))?;
    send(&mut from_agent, 2, Kind::Alive, &[])?;
    send_message(&mut from_agent, 2, Kind::Data, &[WireEntry { name: b"etc".into(), kind: WireType::Directory, ino: 7 }].as_slice())?;
    send_message(&mut from_agent, 2, Kind::Reply, &Reply::Done)?;
    send_message(&mut from_agent, 3, Kind::Data, &(b"user.note".as_slice(), b"text".as_slice()))?;
    send_message(&mut from_agent, 3, Kind::Reply, &Reply::Done)?;
    send_message(&mut from_agent, 4, Kind::Reply, &Reply::Stat(stat))?;
    send_message(&mut from_agent, 5, Kind::Reply, &Reply::Failed(Failure::NotFound))?;

    let requests = [
        Request::Hello { version: protocol::VERSION, clock: time, seed: vec![1; 64] },
        Request::Mount { device: "/dev/vda1".into(), path: b"/".into(), filesystem: String::new(), options: "ro".into() },
        Request::Write { path: b"/file".into(), attributes: Some(attributes) },
        Request::Install { path: b"/bin/sh".into(), mode: 0o755 },
        Request::Run { argv: vec![b"sh".into()], env: vec![(b"A".into(), b"B".into())], place: Place::Guest, timeout_ms: 1000 },
        Request::Terminal { argv: vec![b"sh".into()], env: vec![(b"TERM".into(), b"xterm".into())], rows: 25, columns: 80 },
        Request::PowerOff,
    ];
    for (id, request) in (1..).zip(&requests) {
        send_message(&mut from_host, id, Kind::Request, request)?;
        if request.has_stream() {
            send(&mut from_host, id, Kind::Data, b"some content")?;
            send(&mut from_host, id, if id == 4 { Kind::Abort } else { Kind::End }, &[])?;
        }
    }
    Ok((from_agent, from_host))
}

#[cfg(test)]
mod tests {
    #[test]
    fn seeds_are_understood_to_their_end() {
        let (from_agent, from_host) = super::conversations().unwrap();
        super::host(&from_agent);
        super::agent(&from_host);
        for cut in 0..from_agent.len().min(from_host.len()) {
            super::host(&from_agent[..cut]);
            super::agent(&from_host[..cut]);
        }
    }
}
