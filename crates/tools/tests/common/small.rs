//! A guest of a few MiB that can be converted, and the program `v2v` on it.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

pub const ROOT_UUID: &str = "0b4cd4c2-6e6b-4f2a-9d0a-3f1f0d6b8a11";
const VERSION: &str = "6.1.0-1-amd64";

/// A guest as xen-create-image lays it out, with just enough in it to be converted. It could not really boot.
pub struct Small {
    pub dir: tempfile::TempDir,
}

impl Small {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        let put = |path: &str, content: &[u8]| {
            let path = tree.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        let mut kernel = vec![0; 0x400];
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        kernel[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
        let version = format!("{VERSION} (builder@host) #1 SMP");
        kernel[0x300..0x300 + version.len()].copy_from_slice(version.as_bytes());
        put(&format!("boot/vmlinuz-{VERSION}"), &kernel);
        put(
            &format!("lib/modules/{VERSION}/modules.builtin"),
            b"kernel/drivers/block/virtio_blk.ko\nkernel/drivers/virtio/virtio_pci.ko\n",
        );
        put(
            "boot/grub/menu.lst",
            format!("default 0\ntitle Debian\nroot (hd0,1)\nkernel /boot/vmlinuz-{VERSION} root=/dev/xvda2 ro\n").as_bytes(),
        );
        put("etc/fstab", b"/dev/xvda2 / ext4 defaults 0 1\n/dev/xvda1 none swap sw 0 0\n");
        put("etc/os-release", b"ID=debian\nVERSION_ID=12\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n");
        put("etc/hostname", b"small\n");
        put("etc/network/interfaces", b"auto eth0\niface eth0 inet dhcp\n");
        put("bin/true", b"");
        let root = dir.path().join("disk.img");
        tool("mke2fs", &["-q", "-t", "ext4", "-U", ROOT_UUID, "-d", tree.to_str().unwrap(), root.to_str().unwrap(), "48M"]);
        let swap = dir.path().join("swap.img");
        fs::File::create(&swap).unwrap().set_len(4 << 20).unwrap();
        tool("mkswap", &["-q", swap.to_str().unwrap()]);
        fs::remove_dir_all(tree).unwrap();
        let small = Small { dir };
        small.config("small.cfg", "");
        small
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A configuration with more settings behind it.
    pub fn config(&self, name: &str, more: &str) -> PathBuf {
        let text = format!(
            "bootloader = 'pygrub'\nname = 'small'\nmemory = 128\nvif = [ 'mac=00:16:3e:00:00:01,bridge=xenbr0' ]\n\
             disk = [ 'file:{0}/disk.img,xvda2,w', 'file:{0}/swap.img,xvda1,w' ]\n{more}\n",
            self.dir.path().display()
        );
        fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    pub fn v2v(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_v2v"));
        command.stdin(Stdio::null()).current_dir(self.dir.path());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.v2v().args(arguments).output().unwrap()
    }

    pub fn names(&self, dir: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(dir)) else { return Vec::new() };
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

pub fn tool(program: &str, arguments: &[&str]) -> String {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program).args(arguments).env("PATH", path).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// What a program that succeeded has printed.
pub fn success(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// What a program that failed with exit code 1 has said.
pub fn failure(output: &Output) -> String {
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{message}");
    message
}
