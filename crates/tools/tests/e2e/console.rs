//! A converted guest running in plain QEMU, and a person at its serial console.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Longest boot that is waited for; emulated, on a busy machine.
const BOOT: Duration = Duration::from_secs(400);

/// How the disks are used.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    /// Thrown away.
    Discarded,
    /// Kept: the next boot sees them.
    Kept,
}

/// What QEMU is to start.
pub struct Hardware<'a> {
    /// qcow2 disks in order.
    pub disks: Vec<PathBuf>,
    /// A raw file as one more disk.
    pub extra: Option<&'a Path>,
    /// A socket that leads to the guest's agent.
    pub agent: Option<PathBuf>,
    /// NICs' addresses.
    pub macs: Vec<&'a str>,
    /// What becomes of writes to `disks`.
    pub writes: Writes,
}

/// A running guest.
pub struct Console {
    qemu: Command,
    child: Child,
    keys: ChildStdin,
    output: Receiver<Vec<u8>>,
    /// All that came, control characters included.
    text: String,
    /// Up to here the text was consumed.
    at: usize,
    /// Where in the text the last boot lies.
    boot: std::ops::Range<usize>,
    /// How many times as long as usual it is waited for.
    patience: u32,
}

impl Console {
    /// Starts QEMU without KVM, as any machine can.
    pub fn start(hardware: &Hardware<'_>) -> Console {
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args("-accel tcg -m 512 -nodefaults -display none -machine pc,graphics=off -serial stdio -monitor none".split(' '));
        for disk in &hardware.disks {
            let mut drive = format!("file={},format=qcow2,if=virtio", disk.display());
            if hardware.writes == Writes::Discarded {
                drive += ",snapshot=on";
            } else {
                drive += ",cache=unsafe";
            }
            qemu.arg("-drive").arg(drive);
        }
        if let Some(extra) = hardware.extra {
            qemu.arg("-drive").arg(format!("file={},format=raw,if=virtio,readonly=on", extra.display()));
        }
        if let Some(agent) = &hardware.agent {
            qemu.arg("-chardev").arg(format!("socket,id=agent,server=on,wait=off,path={}", agent.display()));
            qemu.args("-device virtio-serial-pci -device virtserialport,chardev=agent,name=org.qemu.guest_agent.0".split(' '));
        }
        for (i, mac) in hardware.macs.iter().enumerate() {
            qemu.arg("-netdev").arg(format!("user,restrict=on,id=n{i}"));
            qemu.arg("-device").arg(format!("virtio-net-pci,netdev=n{i},mac={mac}"));
        }
        Console::of(qemu)
    }

    /// Starts the script that came with a result, as a person does: with its own machine and firmware.
    pub fn of_script(script: &Path, arguments: &[&str]) -> Console {
        let mut qemu = Command::new(script);
        qemu.env("ACCEL", "tcg").env("MEMORY", "512").args(arguments);
        Console::of(qemu)
    }

    /// Starts a program that gives a guest's console on its standard input and output.
    pub fn of(mut qemu: Command) -> Console {
        qemu.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = qemu.spawn().expect("qemu-system-x86_64 starts");
        let keys = child.stdin.take().expect("stdin is piped");
        let mut stdout = child.stdout.take().expect("stdout is piped");
        let (sender, output) = channel();
        std::thread::spawn(move || {
            let mut buf = [0; 4096];
            while let Ok(n) = stdout.read(&mut buf) {
                if n == 0 || sender.send(buf[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Console { qemu, child, keys, output, text: String::new(), at: 0, boot: 0..0, patience: 1 }
    }

    /// Waits so many times as long as usual for everything.
    pub fn patient(mut self, times: u32) -> Console {
        self.patience = times;
        self
    }

    /// Reads until `wanted` comes, and returns what came before it. Panics with the console's end when it doesn't.
    pub fn expect(&mut self, wanted: &str, patience: Duration) -> String {
        let from = self.at;
        self.wait_for(&[wanted], patience);
        self.text[from..self.at - wanted.len()].to_owned()
    }

    /// Reads until one of the texts comes, and returns which.
    fn wait_for(&mut self, wanted: &[&str], patience: Duration) -> usize {
        let patience = patience * self.patience;
        let deadline = Instant::now() + patience;
        loop {
            for (which, text) in wanted.iter().enumerate() {
                if let Some(found) = self.text[self.at..].find(text) {
                    self.at += found + text.len();
                    return which;
                }
            }
            match self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.text += &String::from_utf8_lossy(&bytes).replace('\r', ""),
                Err(RecvTimeoutError::Timeout) => panic!("no {wanted:?} within {patience:?}; the console ended with:\n{}", self.tail()),
                Err(RecvTimeoutError::Disconnected) => panic!("QEMU ended before {wanted:?}; the console ended with:\n{}", self.tail()),
            }
        }
    }

    fn tail(&self) -> String {
        let lines: Vec<&str> = self.text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    fn type_keys(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).and_then(|()| self.keys.flush()).expect("QEMU takes keys");
    }

    /// Waits until a starting guest asks this.
    fn boot_to(&mut self, prompt: &str) {
        for _ in 0..3 {
            // An emulated machine that gets little of a busy host may take its timer for dead: no fault of the guest.
            if self.wait_for(&[prompt, "IO-APIC + timer doesn't work"], BOOT) == 0 {
                return;
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
            let qemu = std::mem::replace(&mut self.qemu, Command::new("true"));
            *self = Console::of(qemu).patient(self.patience);
        }
    }

    /// Waits until a starting guest asks this, and answers.
    pub fn answer(&mut self, prompt: &str, answer: &str) {
        self.boot_to(prompt);
        self.type_keys(&format!("{answer}\n"));
    }

    /// Waits for the login prompt of `host` and logs in as root.
    pub fn login(&mut self, host: &str, password: &str) {
        let start = self.at;
        self.boot_to(&format!("{host} login:"));
        self.boot = start.min(self.at)..self.at;
        self.type_keys("root\n");
        self.expect("Password:", Duration::from_secs(60));
        self.type_keys(&format!("{password}\n"));
        self.expect("# ", Duration::from_secs(60));
        // The marker is typed in two parts, so that the echo of the command is not taken for its output.
        self.type_keys("stty -echo; export TERM=dumb SYSTEMD_PAGER=cat LC_ALL=C; PS1= PS2=; dmesg -n 1; echo rea''dy\n");
        self.expect("ready\n", Duration::from_secs(60));
    }

    /// What the console showed of the last boot, up to the login.
    pub fn boot(&self) -> &str {
        &self.text[self.boot.clone()]
    }

    /// Runs a shell command: its output and exit code.
    pub fn run(&mut self, command: &str, patience: Duration) -> (String, i32) {
        self.type_keys(&format!("{{ {command}\n}} 2>&1; echo \"=exit:$?=\"\n"));
        let output = self.expect("=exit:", patience);
        let code = self.expect("=", patience);
        (output, code.parse().expect("the shell prints a number"))
    }

    /// Runs a command that has to succeed.
    pub fn ok(&mut self, command: &str) -> String {
        let (output, code) = self.run(command, Duration::from_secs(600));
        assert_eq!(code, 0, "{command} failed in the guest:\n{output}");
        output
    }

    /// Waits until the guest has settled: systemd has no job left.
    pub fn settle(&mut self) {
        self.run("systemctl is-system-running --wait", Duration::from_secs(600));
    }

    /// Has the guest restart.
    pub fn restart(&mut self) {
        self.type_keys("reboot\n");
    }

    /// Restarts the guest, up to its next login.
    pub fn reboot(&mut self, host: &str, password: &str) {
        self.restart();
        self.login(host, password);
    }

    /// Powers the guest off and waits for QEMU to end.
    pub fn power_off(mut self) {
        self.type_keys("poweroff\n");
        let deadline = Instant::now() + Duration::from_secs(120);
        while self.child.try_wait().expect("QEMU can be waited for").is_none() {
            assert!(Instant::now() < deadline, "the guest does not power off; the console ended with:\n{}", self.tail());
            std::thread::sleep(Duration::from_millis(50));
            while self.output.try_recv().is_ok() {}
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
