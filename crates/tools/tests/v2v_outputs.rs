//! Where `v2v` hands results over: servers of qemu-nbd and nbdkit, KubeVirt's manifest, Proxmox's script.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::small::{Small, failure, success, tool};

/// A server that ends with the test.
struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    /// Starts a server that makes `socket`.
    fn start(socket: PathBuf, command: &mut Command) -> Self {
        let child = command.stdin(Stdio::null()).spawn().unwrap_or_else(|e| panic!("{command:?}: {e}: scripts/setup installs it"));
        let start = Instant::now();
        while !socket.exists() {
            assert!(start.elapsed() < Duration::from_secs(60), "{command:?} does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Server { child, socket }
    }

    fn qemu(small: &Small, name: &str, file: &Path, options: &[&str]) -> Self {
        let socket = small.path(&format!("{name}.sock"));
        Self::start(socket.clone(), Command::new("qemu-nbd").args(["-t", "-f", "raw", "-k"]).arg(&socket).args(options).arg(file))
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn file(small: &Small, name: &str, mib: u64) -> PathBuf {
    fs::File::create(small.path(name)).unwrap().set_len(mib << 20).unwrap();
    small.path(name)
}

fn sectors(path: &Path) -> serde_json::Value {
    serde_json::from_str(&tool("sfdisk", &["--json", path.to_str().unwrap()])).unwrap()
}

#[test]
fn a_disk_on_a_server_of_qemus_is_the_same_as_in_a_file() {
    let small = Small::new();
    success(&small.run(&["small.cfg", "-os", "files", "-of", "raw"]));
    let size = small.path("files/small-vda.raw").metadata().unwrap().len();
    let disk = file(&small, "disk.nbd", (size >> 20) + 1);
    let server = Server::qemu(&small, "qemu", &disk, &[]);
    let said = success(&small.run(&["small.cfg", "-os", "out", "-o", "nbd", "--nbd", &server.uri()]));
    assert!(said.contains("small.xml"), "{said}");
    assert_eq!(small.names("out"), ["small-run.sh", "small.xml"]);
    let table = |path: &Path| {
        sectors(path)["partitiontable"]["partitions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| (p["start"].clone(), p["size"].clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(table(&disk), table(&small.path("files/small-vda.raw")));
    let root = format!("{}?offset={}", disk.display(), table(&disk)[1].0.as_u64().unwrap() * 512);
    tool("e2fsck", &["-fn", &root]);
    let xml = fs::read_to_string(small.path("out/small.xml")).unwrap();
    assert!(xml.contains("<source protocol=\"nbd\"") && xml.contains(&format!("socket=\"{}\"", server.socket.display())), "{xml}");
    assert!(fs::read_to_string(small.path("out/small-run.sh")).unwrap().contains(&format!("file={},format=raw", server.uri())));

    // What is there is not overwritten, unless that is said.
    let before = fs::read(&disk).unwrap();
    let message = failure(&small.run(&["small.cfg", "-os", "other", "-o", "nbd", "--nbd", &server.uri()]));
    assert!(message.contains("holds data already; --force overwrites it"), "{message}");
    assert!(fs::read(&disk).unwrap() == before && !small.path("other").exists());
    success(&small.run(&["small.cfg", "-os", "other", "-o", "nbd", "--nbd", &server.uri(), "--force"]));
    assert_eq!(table(&disk), table(&small.path("files/small-vda.raw")));
}

#[test]
fn servers_that_do_not_fit_or_break() {
    let small = Small::new();
    let tiny = file(&small, "tiny.nbd", 8);
    let server = Server::qemu(&small, "tiny", &tiny, &[]);
    let message = failure(&small.run(&["small.cfg", "-os", "out", "-o", "nbd", "--nbd", &server.uri()]));
    assert!(message.contains("has 8388608 bytes, and vda needs") && message.contains("make it larger"), "{message}");
    let message = failure(&small.run(&["small.cfg", "-os", "out", "-o", "nbd"]));
    assert!(message.contains("give --nbd URI once for each, in this order: vda with"), "{message}");
    let locked = file(&small, "locked.nbd", 128);
    let server = Server::qemu(&small, "locked", &locked, &["-r"]);
    let message = failure(&small.run(&["small.cfg", "-os", "out", "-o", "nbd", "--nbd", &server.uri()]));
    assert!(message.contains("lets nobody write"), "{message}");
    let message = failure(&small.run(&["small.cfg", "-os", "out", "-o", "nbd", "--nbd", "nbd+unix:///?socket=/nonexistent"]));
    assert!(message.contains("/nonexistent: cannot connect"), "{message}");

    // A server whose disk breaks after some writes: nothing on it looks like a disk, and no description is there.
    let broken = file(&small, "broken.nbd", 128);
    let socket = small.path("nbdkit.sock");
    let mut nbdkit = Command::new("nbdkit");
    nbdkit.args(["-f", "-U"]).arg(&socket).args(["--filter=error", "file"]).arg(&broken);
    nbdkit.args(["error-pwrite=ENOSPC", "error-pwrite-rate=30%"]).stderr(Stdio::null());
    let server = Server::start(socket, &mut nbdkit);
    let message = failure(&small.run(&["small.cfg", "-os", "out", "-o", "nbd", "--nbd", &server.uri()]));
    assert!(message.contains("nbdkit.sock"), "{message}");
    drop(server);
    assert!(fs::read(&broken).unwrap()[..1 << 20].iter().all(|b| *b == 0), "a disk that is not whole has a beginning");
    assert!(!small.path("out").exists());

    // The same server when it is well, and asks for nothing but what it must have.
    let socket = small.path("well.sock");
    let mut nbdkit = Command::new("nbdkit");
    let server = Server::start(socket.clone(), nbdkit.args(["-f", "-U"]).arg(&socket).args(["--filter=nozero", "memory", "128M"]));
    success(&small.run(&["small.cfg", "-os", "out", "-o", "nbd", "--nbd", &server.uri()]));
    let back = small.path("back.raw");
    tool("qemu-img", &["convert", "-O", "raw", &server.uri(), back.to_str().unwrap()]);
    assert_eq!(sectors(&back)["partitiontable"]["partitions"].as_array().unwrap().len(), 2);
}

#[test]
fn manifests_and_scripts_stand_beside_their_disks() {
    let small = Small::new();
    let said = success(&small.run(&["small.cfg", "-os", "kube", "-o", "kubevirt", "--network", "xenbr0:pod"]));
    assert!(said.contains("kubectl apply -f"), "{said}");
    assert_eq!(small.names("kube"), ["small-kubevirt.yaml", "small-vda.qcow2"]);
    let script = "import sys, yaml\n\
                  volume, machine = yaml.safe_load_all(open(sys.argv[1]))\n\
                  devices = machine['spec']['template']['spec']['domain']['devices']\n\
                  print(volume['spec']['storage']['resources']['requests']['storage'], devices['interfaces'][0]['macAddress'], machine['metadata']['name'])";
    let size = serde_json::from_str::<serde_json::Value>(&tool(
        "qemu-img",
        &["info", "--output=json", small.path("kube/small-vda.qcow2").to_str().unwrap()],
    ));
    let line = tool("python3", &["-c", script, small.path("kube/small-kubevirt.yaml").to_str().unwrap()]);
    assert_eq!(line.trim(), format!("{} 00:16:3e:00:00:01 small", size.unwrap()["virtual-size"]));

    let said = success(&small.run(&["small.cfg", "-os", "pve", "-o", "proxmox", "--bridge", "vmbr3"]));
    assert!(said.contains("small-qm.sh"), "{said}");
    assert_eq!(small.names("pve"), ["small-qm.sh", "small-vda.qcow2"]);
    tool("shellcheck", &[small.path("pve/small-qm.sh").to_str().unwrap()]);
    assert!(
        fs::read_to_string(small.path("pve/small-qm.sh"))
            .unwrap()
            .contains("virtio=00:16:3e:00:00:01,bridge=\"${BRIDGE0:-${BRIDGE:-vmbr3}}\"")
    );
    let message = failure(&small.run(&["small.cfg", "-os", "pve", "-o", "proxmox"]));
    assert!(message.contains("is there already"), "{message}");
}
