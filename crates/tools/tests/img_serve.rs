//! `img serve` against the clients of libnbd and QEMU.

#![allow(missing_docs)]

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{IMG, have, ok, run, sh};

/// A server in the foreground, killed when dropped.
struct Server {
    child: Child,
    uri: String,
}

impl Server {
    fn start(program: &str, args: &str, folder: &Path) -> Server {
        let mut child =
            Command::new(program).args(args.split(' ')).current_dir(folder).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut uri = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut uri).unwrap();
        Server { child, uri: uri.trim_end().into() }
    }

    fn img(args: &str, folder: &Path) -> Server {
        let server = Server::start(IMG, &format!("serve {args}"), folder);
        assert!(server.uri.starts_with("nbd"), "{}", server.uri);
        server
    }

    /// Waits for its end and gives its exit code.
    fn end(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap().success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A chain of two with data, zeroes, holes and compressed clusters.
fn images() -> Option<tempfile::TempDir> {
    if !["qemu-img", "qemu-io", "qemu-nbd", "nbdinfo", "nbdcopy"].iter().all(|t| have(t)) {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    sh("qemu-img", "create -q -f qcow2 base.qcow2 64M", folder);
    ok("qemu-io", &["-c", "write -P 1 1M 3M", "-c", "write -z 8M 1M", "-c", "write -P 3 20M 64k", "base.qcow2"], folder);
    sh("qemu-img", "create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2", folder);
    ok("qemu-io", &["-c", "write -P 5 2M 1M", "-c", "write -c -P 4 30M 64k", "top.qcow2"], folder);
    Some(dir)
}

#[test]
fn clients_see_what_qemu_nbd_shows_them() {
    let Some(dir) = images() else { return };
    let folder = dir.path();
    let ours = Server::img("--socket ours -x disk -D words -t top.qcow2", folder);
    let socket = folder.join("theirs").display().to_string();
    sh("qemu-nbd", &format!("--fork -r -A -x disk -D words -k {socket} --pid-file pid -t top.qcow2"), folder);
    let theirs = format!("nbd+unix:///disk?socket={socket}");
    for context in ["--map=base:allocation", "--map=qemu:allocation-depth", "--totals"] {
        let map = ["--map", context];
        let args = if context == "--totals" { &map[..] } else { &map[1..] };
        let of = |uri: &str| ok("nbdinfo", &[args, &[uri]].concat(), folder);
        assert_eq!(of(&ours.uri), of(&theirs), "{context}");
    }
    let info = |uri: &str| serde_json::from_str::<serde_json::Value>(&ok("nbdinfo", &["--json", "--list", uri], folder)).unwrap();
    let (a, b) = (info(&ours.uri), info(&theirs));
    for name in ["export-name", "description", "contexts", "is_read_only", "can_cache", "can_df", "export-size", "block_size_maximum"] {
        assert_eq!(a["exports"][0][name], b["exports"][0][name], "{name}");
    }
    assert_eq!(a["exports"][0]["can_multi_conn"], true);
    ok("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &ours.uri, "top.qcow2"], folder);
    sh("kill", std::fs::read_to_string(folder.join("pid")).unwrap().trim(), folder);
}

#[test]
fn persistent_bitmaps_are_told_as_by_qemu_nbd() {
    let Some(dir) = images() else { return };
    let folder = dir.path();
    for bitmap in ["one", "two"] {
        ok("qemu-img", &["bitmap", "--add", "top.qcow2", bitmap], folder);
        ok("qemu-io", &["-c", "write -P 5 10M 100k", "-c", "write -P 5 50M 1M", "top.qcow2"], folder);
    }
    let ours = Server::img("--socket ours -t top.qcow2", folder);
    let socket = folder.join("theirs").display().to_string();
    sh("qemu-nbd", &format!("--fork -r -B one -B two -k {socket} --pid-file pid -t top.qcow2"), folder);
    for bitmap in ["one", "two"] {
        let map = |uri: &str| ok("nbdinfo", &[&format!("--map=qemu:dirty-bitmap:{bitmap}"), uri], folder);
        let told = map(&ours.uri);
        assert!(told.contains("dirty"), "{told}");
        assert_eq!(told, map(&format!("nbd+unix:///?socket={socket}")), "{bitmap}");
    }
    sh("kill", std::fs::read_to_string(folder.join("pid")).unwrap().trim(), folder);
    let missing = run(IMG, &["serve", "--socket", "m", "-B", "three", "top.qcow2"], folder);
    assert!(missing.code == 1 && missing.err.contains("'three' not found"), "{}", missing.err);
}

#[test]
fn images_are_copied_out_and_in_by_several_connections() {
    let Some(dir) = images() else { return };
    let folder = dir.path();
    sh("qemu-img", "create -q -f qcow2 -o cluster_size=4k copy.qcow2 64M", folder);
    {
        let from = Server::img("--socket from -t -f qcow2 top.qcow2", folder);
        let to = Server::img("-k to -t --writable copy.qcow2", folder);
        ok("nbdcopy", &["--connections=4", "--requests=16", &from.uri, "out.raw"], folder);
        ok("nbdcopy", &["--connections=4", "--flush", &from.uri, &to.uri], folder);
        ok("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &from.uri, "converted.qcow2"], folder);
        to.signal("TERM");
        assert_eq!(to.end(), Some(0));
        assert!(!folder.join("to").exists());
    }
    for copy in ["out.raw", "copy.qcow2", "converted.qcow2"] {
        sh("qemu-img", &format!("compare {copy} top.qcow2"), folder);
    }
    sh("qemu-img", "check copy.qcow2", folder);
}

#[test]
fn writes_of_every_kind_arrive() {
    let Some(dir) = images() else { return };
    let folder = dir.path();
    sh("qemu-img", "convert -O qcow2 top.qcow2 same.qcow2", folder);
    let commands = "write -P 9 100k 300k;write -f -P 8 5M 64k;write -z 1M 64k;write -z -u 2M 1M;discard 20M 64k;aio_write -P 1 40M 2M;\
                    aio_write -P 2 42M 2M;aio_write -P 3 44M 77k;aio_flush;flush;write -P 7 64511k 1k";
    let commands: Vec<_> = commands.split(';').flat_map(|c| ["-c", c]).collect();
    let server = Server::img("--bind 127.0.0.1 --port 0 --writable top.qcow2", folder);
    ok("qemu-io", &[&["-f", "raw"], &commands[..], &[server.uri.as_str()]].concat(), folder);
    // The only client has left.
    assert_eq!(server.end(), Some(0));
    ok("qemu-io", &[&commands[..], &["same.qcow2"]].concat(), folder);
    sh("qemu-img", "compare top.qcow2 same.qcow2", folder);
    sh("qemu-img", "check top.qcow2", folder);
}

#[test]
fn images_are_read_only_unless_asked_and_locked_while_served() {
    let Some(dir) = images() else { return };
    let folder = dir.path();
    let before = std::fs::read(folder.join("top.qcow2")).unwrap();
    let write = |uri: &str| run("qemu-io", &["-f", "raw", "-c", "write -P 9 0 64k", "-c", "read -P 9 0 64k", uri], folder);
    {
        let server = Server::img("--socket s -t top.qcow2", folder);
        assert_ne!(write(&server.uri).code, 0);
        assert!(run("qemu-io", &["-c", "read 0 1", "top.qcow2"], folder).err.contains("\"write\" lock"));
        let overlay = Server::img("--socket o --overlay top.qcow2", folder);
        assert_eq!(write(&overlay.uri).code, 0);
        assert_eq!(overlay.end(), Some(0));
    }
    assert!(std::fs::read(folder.join("top.qcow2")).unwrap() == before);
}

#[test]
fn the_background_server_leaves_nothing_behind() {
    let Some(dir) = images() else { return };
    let folder = dir.path();
    // A socket that a killed server left is no obstacle.
    drop(std::os::unix::net::UnixListener::bind(folder.join("s")).unwrap());
    let uri = sh(IMG, "serve --fork --pid-file pid --socket s --persistent top.qcow2", folder);
    for _ in 0..2 {
        assert!(ok("nbdinfo", &["--size", uri.trim()], folder).starts_with("67108864"));
    }
    let again = run(IMG, &["serve", "--fork", "--socket", "s", "top.qcow2"], folder);
    assert!(again.code == 1 && again.err.contains("cannot listen on"), "{}", again.err);
    let pid = std::fs::read_to_string(folder.join("pid")).unwrap();
    sh("kill", pid.trim(), folder);
    for _ in 0..500 {
        if !folder.join("pid").exists() && !folder.join("s").exists() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("the socket or the pid file is still there");
}

#[test]
fn snapshots_and_disks_of_containers_are_served() {
    let Some(dir) = images() else { return };
    let folder = dir.path();
    sh("qemu-img", "convert -O qcow2 top.qcow2 snap.qcow2", folder);
    sh("qemu-img", "snapshot -c before snap.qcow2", folder);
    ok("qemu-io", &["-c", "write -P 77 0 1M", "snap.qcow2"], folder);
    let server = Server::img("--socket s --snapshot before snap.qcow2", folder);
    ok("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &server.uri, "top.qcow2"], folder);
    assert_eq!(server.end(), Some(0));
    sh(IMG, "convert -O xva top.qcow2 export.xva", folder);
    let info: serde_json::Value = serde_json::from_str(&sh(IMG, "info --output=json export.xva", folder)).unwrap();
    let disk = info["disks"][0]["name"].as_str().unwrap();
    let server = Server::img(&format!("--socket x export.xva#{disk}"), folder);
    ok("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &server.uri, "top.qcow2"], folder);
    assert_eq!(server.end(), Some(0));
}
