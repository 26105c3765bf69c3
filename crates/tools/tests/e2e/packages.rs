//! Packages by name: the guest's own apt-get, a mirror, and the one way between them.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::booted::{CONVERSION, scratch};
use crate::guest::{finish, guest, run, tool};

/// A package that needs another one, and the mirror's list of both.
fn mirror(dir: &Path) {
    let mut list = String::new();
    for (name, depends) in [("mended-tool", "Depends: mended-lib\n"), ("mended-lib", "")] {
        let tree = dir.join(name);
        std::fs::create_dir_all(tree.join("DEBIAN")).expect("the scratch directory can be written");
        std::fs::create_dir_all(tree.join("opt")).expect("the scratch directory can be written");
        let control = format!(
            "Package: {name}\nVersion: 1.0\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\n{depends}Description: a test\n"
        );
        std::fs::write(tree.join("DEBIAN/control"), &control).expect("the scratch directory can be written");
        std::fs::write(tree.join("opt").join(name), name).expect("the scratch directory can be written");
        let deb = dir.join(format!("{name}.deb"));
        tool("dpkg-deb", ["--root-owner-group".as_ref(), "-b".as_ref(), tree.as_os_str(), deb.as_os_str()]);
        let sum = tool("sha256sum", [&deb]);
        let size = deb.metadata().expect("the package is there").len();
        list += &format!("{control}Filename: ./{name}.deb\nSize: {size}\nSHA256: {}\n\n", &sum[..64]);
    }
    std::fs::write(dir.join("Packages"), list).expect("the scratch directory can be written");
}

/// Serves the files of a folder for as long as the test runs.
fn serve(dir: &Path) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let port = listener.local_addr().expect("it has an address").port();
    let dir = dir.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let dir = dir.clone();
            std::thread::spawn(move || {
                let mut stream = stream;
                let mut head = vec![0; 16 << 10];
                let n = stream.read(&mut head).unwrap_or(0);
                let head = String::from_utf8_lossy(&head[..n]).into_owned();
                let path = head.split(' ').nth(1).unwrap_or_default().trim_start_matches("/./").trim_start_matches('/').to_owned();
                let answer = match std::fs::read(dir.join(path)) {
                    Ok(body) => [format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(), &body].concat(),
                    Err(_) => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
                };
                let _ = stream.write_all(&answer);
            });
        }
    });
    port
}

#[test]
fn packages_are_fetched_from_the_guests_mirror_and_from_nowhere_else() {
    let Some(guest) = guest("bookworm", "pygrub") else { return };
    let dir = scratch();
    let repository = dir.path().join("repository");
    mirror(&repository);
    let port = serve(&repository);
    let disk = dir.path().join("disk.qcow2");
    let create: [&std::ffi::OsStr; 7] = [
        "create".as_ref(),
        "-q".as_ref(),
        "-fqcow2".as_ref(),
        "-Fraw".as_ref(),
        "-b".as_ref(),
        guest.disks[0].as_os_str(),
        disk.as_os_str(),
    ];
    tool("qemu-img", create);
    let customize = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_virt"));
        command.args(["customize", "-a"]).arg(&disk).arg("--allow-path").arg(guest.disks[0].parent().expect("a folder")).args(words);
        command
    };
    let sources = format!("/etc/apt/sources.list:deb [trusted=yes] http://127.0.0.1:{port}/ ./\n");
    run(&mut customize(&["--write", &sources]), None, CONVERSION);
    let refused = |words: &[&str]| {
        let output = finish(&mut customize(words), None, Duration::from_secs(300));
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let message = refused(&["--install", "mended-tool"]);
    assert!(message.contains("--network"), "{message}");
    // The settings are the guest's, and so they do not lead to this host unless the user says so.
    let message = refused(&["--network", "--install", "mended-tool"]);
    assert!(message.contains(&format!("127.0.0.1:{port}: it is an address of this host; name it with --mirror")), "{message}");

    let named = format!("127.0.0.1:{port}");
    run(
        &mut customize(&["--network", "--mirror", &named, "--install", "mended-tool", "--run-command", "cat /opt/mended-* >/opt/both"]),
        None,
        CONVERSION,
    );
    let mut cat = Command::new(env!("CARGO_BIN_EXE_virt"));
    cat.args(["cat", "-a"]).arg(&disk).arg("--allow-path").arg(guest.disks[0].parent().expect("a folder")).arg("/opt/both");
    assert_eq!(run(&mut cat, None, CONVERSION).stdout, b"mended-libmended-tool");
}
