//! The NBD server: a client that sends any bytes gets an answer or an end, and the next one is served.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use imgcore::nbd::{Address, Content, DirtyBitmap, Export, serve};
use imgcore::raw::Raw;
use imgcore::storage::MemStorage;

/// Takes `data` as all that a client sends.
pub fn run(data: &[u8]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let disk = Arc::new(Raw::open(Arc::new(MemStorage::new("disk", 1 << 20))).expect("a raw disk"));
    let bitmaps = vec![DirtyBitmap { name: "dirty".into(), dirty: vec![4096..8192, 65536..65537] }];
    let exports = vec![
        Export::new("disk", Content::Writable(disk.clone())).bitmaps(bitmaps),
        Export::new("frozen", Content::ReadOnly(disk)).description("text"),
    ];
    let socket = folder.path().join("s");
    let _server = serve(&Address::Unix(socket.clone()), exports).expect("a server");
    let mut client = UnixStream::connect(&socket).expect("a connection");
    let mut replies = client.try_clone().expect("a second handle");
    replies.set_read_timeout(Some(Duration::from_secs(15))).expect("a timeout");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // The server may have hung up already.
            let _ = client.write_all(data);
            let _ = client.shutdown(Shutdown::Write);
        });
        let mut buf = vec![0; 64 << 10];
        loop {
            match replies.read(&mut buf) {
                Ok(0) => break,
                Ok(_) => {}
                Err(e) => {
                    assert!(!matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut), "the server hangs");
                    break;
                }
            }
        }
    });
    let mut greeting = [0; 8];
    let mut next = UnixStream::connect(&socket).expect("a further connection");
    next.read_exact(&mut greeting).expect("a greeting");
    assert_eq!(&greeting, b"NBDMAGIC");
}
