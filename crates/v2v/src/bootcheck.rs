//! The boot check: starts a result and watches its serial console until a login prompt, or says where it stopped.

use std::time::{Duration, Instant};

use guestfs::machine::{MachineRunner, MachineSpec};
use serde::Serialize;

use crate::Result;

/// Console output that is kept for the report, in bytes.
const KEPT: usize = 256 << 10;
/// Lines of the last screen in a report.
const SCREEN_LINES: usize = 24;
/// A boot loader answers the firmware within seconds even in emulation; this long without a byte is a stall.
const FIRMWARE_PATIENCE: Duration = Duration::from_secs(60);

/// What Linux says when an emulated machine got so little of a busy host that its timer seemed dead: no fault of the guest.
const STARVED: &str = "IO-APIC + timer doesn't work";
/// Times that a starved machine is started again.
const RESTARTS: u32 = 3;

/// How far a boot came, in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Not a byte on the console.
    #[default]
    Silent,
    /// The firmware spoke.
    Firmware,
    /// The boot loader spoke.
    BootLoader,
    /// The kernel started.
    Kernel,
    /// The initramfs looks for the root filesystem.
    Initramfs,
    /// The guest's own init runs.
    Init,
    /// A login prompt is there.
    Login,
}

/// What the check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BootReport {
    /// A login prompt appeared.
    pub booted: bool,
    /// How far it came.
    pub stage: Stage,
    /// Seconds from the start to the prompt, or to giving up.
    pub seconds: u64,
    /// In words: what was reached, or where it stopped and what that mostly means.
    pub what: String,
    /// Units that systemd called failed on the console.
    pub failed_units: Vec<String>,
    /// The console's last lines, control sequences removed.
    pub screen: Vec<String>,
}

/// Starts the machine and watches it. `seen` gets the console's lines as they come, without control sequences: what a hostile guest
/// writes must not drive the terminal that shows it.
///
/// # Errors
///
/// The machine could not be started. That it does not boot is a report, not an error.
pub fn check(runner: &dyn MachineRunner, spec: &MachineSpec, deadline: Duration, seen: &mut dyn FnMut(&[u8])) -> Result<BootReport> {
    let start = Instant::now();
    let mut machine = runner.start(spec)?;
    let mut watch = Watch::default();
    let mut restarts = 0;
    let mut last_output = Instant::now();
    let what = loop {
        let left = deadline.saturating_sub(start.elapsed());
        if left.is_zero() {
            break watch.stalled(&format!("within {} s", deadline.as_secs()));
        }
        match machine.read_console(left.min(Duration::from_secs(1))) {
            Ok(bytes) if bytes.is_empty() => {
                if watch.stage <= Stage::Firmware && last_output.elapsed() >= FIRMWARE_PATIENCE {
                    break watch.stalled(&format!("for {} s", FIRMWARE_PATIENCE.as_secs()));
                }
            }
            Ok(bytes) => {
                last_output = Instant::now();
                watch.feed(&bytes);
                watch.show(seen, false);
                if restarts < RESTARTS && watch.text.contains(STARVED) {
                    restarts += 1;
                    watch = Watch::default();
                    drop(machine);
                    machine = runner.start(spec)?;
                    continue;
                }
                if let Some(what) = watch.verdict() {
                    break what;
                }
            }
            Err(e) => break format!("the machine ended before a login prompt: {e}"),
        }
    };
    watch.show(seen, true);
    Ok(watch.report(start, what))
}

/// The console's text so far and what it shows.
#[derive(Default)]
struct Watch {
    text: String,
    /// Up to here the text was shown.
    shown: usize,
    escape: Escape,
    /// The beginning of a letter whose other bytes are still to come.
    letter: Vec<u8>,
    stage: Stage,
    booted: bool,
}

/// Where in a terminal control sequence the console is.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Escape {
    #[default]
    None,
    Started,
    Parameters,
    String,
}

/// What on the console shows that a stage was reached. Later stages first.
const SIGNS: &[(Stage, &[&str])] = &[
    (Stage::Init, &["systemd[1]:", "INIT: version", "Welcome to Debian", "Starting version ", "OpenRC", "[  OK  ]", "Reached target "]),
    (Stage::Initramfs, &["Loading, please wait...", "Begin: ", "Run /init as init process", "dracut", "(initramfs)"]),
    (Stage::Kernel, &["Linux version ", "] Command line: ", "Kernel panic", "Decompressing Linux"]),
    (Stage::BootLoader, &["GRUB", "grub>", "grub rescue>", "ISOLINUX", "EXTLINUX", "Booting `", "Loading Linux"]),
    (Stage::Firmware, &["SeaBIOS", "Booting from", "No bootable device", "BdsDxe", "iPXE"]),
];

/// Signs that the boot will go no further, and what they mean.
const ENDS: &[(&str, &str)] = &[
    ("grub rescue>", "GRUB cannot find its files: the prefix in its core image names another partition than the one with /boot/grub"),
    ("grub>", "GRUB found no configuration: /boot/grub/grub.cfg is missing or empty"),
    ("No bootable device", "the firmware found nothing to boot: no disk has a boot loader"),
    (
        "VFS: Unable to mount root fs",
        "the kernel found no root filesystem: the initramfs was not loaded or lacks the disk's driver, or root= names a device of Xen",
    ),
    ("Kernel panic - not syncing", "the kernel gave up"),
    (
        "(initramfs)",
        "the initramfs found no root filesystem and opened a shell: root= names a device that is not there, or a driver is missing",
    ),
    (
        "dracut:/#",
        "the initramfs found no root filesystem and opened a shell: root= names a device that is not there, or a driver is missing",
    ),
    ("You are in emergency mode", "systemd went to emergency mode: a filesystem of /etc/fstab is not there or does not mount"),
    (
        "Give root password for maintenance",
        "the guest asks for the root password for maintenance: a filesystem did not mount or needs checking",
    ),
    ("Cannot open access to console, the root account is locked", "emergency mode, with root's account locked"),
];

/// What initramfs-tools, systemd (dracut) and mkinitcpio ask of those who start a machine with an encrypted disk.
const PASSPHRASE: &[&str] = &["Please unlock disk ", "Please enter passphrase for disk ", "Enter passphrase for /dev/"];

impl Watch {
    fn feed(&mut self, bytes: &[u8]) {
        self.letter.extend_from_slice(bytes);
        let bytes = std::mem::take(&mut self.letter);
        let (whole, begun) = bytes.split_at(whole_letters(&bytes));
        self.letter = begun.to_vec();
        for c in String::from_utf8_lossy(whole).chars() {
            self.escape = match (self.escape, c) {
                (Escape::None, '\x1b') => Escape::Started,
                (Escape::None, '\n') => {
                    self.text.push('\n');
                    Escape::None
                }
                (Escape::None, c) => {
                    if !c.is_control() || c == '\t' {
                        self.text.push(c);
                    }
                    Escape::None
                }
                (Escape::Started, '[') => Escape::Parameters,
                (Escape::Started, ']' | 'P' | '^' | '_') => Escape::String,
                (Escape::Started, '(' | ')' | '#' | '%') => Escape::Started,
                (Escape::Started, _) => Escape::None,
                (Escape::Parameters, 'H' | 'f') => {
                    // A full-screen menu goes from line to line by its own means.
                    if !self.text.ends_with('\n') {
                        self.text.push('\n');
                    }
                    Escape::None
                }
                (Escape::Parameters, '@'..='~') => Escape::None,
                (Escape::Parameters, _) => Escape::Parameters,
                (Escape::String, '\x07' | '\x1b') => Escape::None,
                (Escape::String, _) => Escape::String,
            };
        }
        if self.text.len() > KEPT {
            let mut cut = self.text.len() - KEPT / 2;
            while !self.text.is_char_boundary(cut) {
                cut += 1;
            }
            self.text.drain(..cut);
            self.shown = self.shown.saturating_sub(cut);
        }
        let reached =
            SIGNS.iter().find(|(_, signs)| signs.iter().any(|s| self.text.contains(s))).map_or(Stage::Firmware, |&(stage, _)| stage);
        if !self.text.trim().is_empty() {
            self.stage = self.stage.max(reached);
        }
        self.booted = self.text.lines().any(is_login_prompt);
        if self.booted {
            self.stage = Stage::Login;
        }
        // Further it comes only with a person.
        self.booted |= self.asks_for_passphrase();
    }

    /// Gives the lines that came since the last time, the unfinished one only at the `end`; without a menu's frames.
    fn show(&mut self, seen: &mut dyn FnMut(&[u8]), end: bool) {
        while let Some(rest) = self.text.get(self.shown..) {
            let len = match rest.find('\n') {
                Some(at) => at + 1,
                None if end && !rest.is_empty() => rest.len(),
                None => return,
            };
            let line = rest[..len].trim_end();
            if says_something(line) {
                seen(line.as_bytes());
                seen(b"\n");
            }
            self.shown += len;
        }
    }

    /// In words, once it is clear how the boot ends.
    fn verdict(&self) -> Option<String> {
        if self.asks_for_passphrase() {
            return Some("asks for the passphrase of its disk, which is not typed here: its kernel and initrd have started".into());
        }
        if self.booted {
            return Some("reached its login prompt".into());
        }
        // Prompts count at the start of a line only: a kernel's command line or a menu may quote them.
        let (sign, meaning) = ENDS.iter().find(|(sign, _)| {
            let prompt = sign.ends_with('>') || sign.ends_with(')') || sign.ends_with('#');
            if prompt { self.text.lines().any(|l| l.trim_start().starts_with(sign)) } else { self.text.contains(sign) }
        })?;
        Some(format!("stopped at \"{sign}\": {meaning}"))
    }

    fn asks_for_passphrase(&self) -> bool {
        let last = self.text.lines().last().unwrap_or_default().trim_start();
        !self.text.ends_with('\n') && PASSPHRASE.iter().any(|prompt| last.contains(prompt)) && last.trim_end().ends_with(':')
    }

    fn stalled(&self, how_long: &str) -> String {
        let last = self.text.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or_default().trim();
        match self.stage {
            Stage::Silent => format!("nothing came on the serial console {how_long}"),
            Stage::Firmware if self.text.contains("Booting from Hard Disk") => {
                format!("stopped at \"Booting from Hard Disk\": the disk's boot loader did not start {how_long}")
            }
            Stage::Firmware => format!("the firmware came no further {how_long}; its last line: {last}"),
            Stage::BootLoader => format!(
                "no kernel spoke on the serial console {how_long}: it did not start, or its command line lacks console=ttyS0; last line: {last}"
            ),
            stage => format!("no login prompt {how_long}; it came to the stage {stage:?}, last line: {last}"),
        }
    }

    fn report(&self, start: Instant, what: String) -> BootReport {
        let mut failed_units: Vec<String> = Vec::new();
        for line in self.text.lines() {
            if let Some((_, unit)) = line.split_once("[FAILED] Failed to start ") {
                failed_units.push(unit.trim().trim_end_matches('.').to_owned());
            }
        }
        let lines: Vec<&str> = self.text.lines().map(str::trim_end).filter(|l| says_something(l)).collect();
        let screen = lines.iter().skip(lines.len().saturating_sub(SCREEN_LINES)).map(|l| (*l).to_owned()).collect();
        BootReport { booted: self.booted, stage: self.stage, seconds: start.elapsed().as_secs(), what, failed_units, screen }
    }
}

/// Up to where bytes are whole letters of UTF-8, or none at all: one that may go on is not among them.
fn whole_letters(bytes: &[u8]) -> usize {
    match bytes.utf8_chunks().last() {
        Some(last) if !last.invalid().is_empty() => match std::str::from_utf8(last.invalid()) {
            Err(e) if e.error_len().is_none() => bytes.len() - last.invalid().len(),
            _ => bytes.len(),
        },
        _ => bytes.len(),
    }
}

/// Whether there is more in a line than a menu's frame.
fn says_something(line: &str) -> bool {
    line.contains(|c: char| !c.is_whitespace() && !"+-|\u{2500}\u{2502}\u{250c}\u{2510}\u{2514}\u{2518}".contains(c))
}

/// `host login:`, alone or with a kernel message that fell into the same line. Not `Last login: …`.
fn is_login_prompt(line: &str) -> bool {
    let Some((host, rest)) = line.trim_start().split_once(" login:") else { return false };
    !host.is_empty()
        && !host.contains(char::is_whitespace)
        && host != "Last"
        && (rest.trim().is_empty() || rest.trim_start().starts_with('['))
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use guestfs::machine::Machine;

    use super::*;

    /// Says these pieces, then what `after` says: silence or the machine's end.
    struct Script {
        pieces: Vec<&'static [u8]>,
        dies: bool,
    }

    struct Playing(VecDeque<&'static [u8]>, bool);

    impl MachineRunner for Script {
        fn start(&self, _: &MachineSpec) -> guestfs::Result<Box<dyn Machine>> {
            Ok(Box::new(Playing(self.pieces.iter().copied().collect(), self.dies)))
        }
    }

    impl Machine for Playing {
        fn read_console(&mut self, timeout: Duration) -> guestfs::Result<Vec<u8>> {
            match self.0.pop_front() {
                Some(piece) => Ok(piece.to_vec()),
                None if self.1 => Err(guestfs::Error::Appliance { what: "QEMU exited".into(), console: String::new() }),
                None => {
                    std::thread::sleep(timeout);
                    Ok(Vec::new())
                }
            }
        }
        fn write_console(&mut self, _: &[u8]) -> guestfs::Result<()> {
            Ok(())
        }
    }

    fn run(pieces: &[&'static [u8]], dies: bool) -> BootReport {
        let spec = MachineSpec { memory_mib: 512, vcpus: 1, disks: Vec::new(), macs: Vec::new(), uefi: false, emulated: false };
        let runner = Script { pieces: pieces.to_vec(), dies };
        check(&runner, &spec, Duration::from_millis(300), &mut |_| {}).unwrap()
    }

    #[test]
    fn login_prompt_in_pieces_and_colours() {
        let r = run(
            &[
                b"SeaBIOS (version 1.16)\r\nBooting from Hard Disk...\r\n",
                b"\x1b[0m[\x1b[0;32m  OK  \x1b[0m] Reached target\r\n",
                b"web log",
                b"in: ",
            ],
            false,
        );
        assert!(r.booted, "{r:?}");
        assert_eq!(r.stage, Stage::Login);
        assert_eq!(r.screen.last().unwrap(), "web login:");
    }

    #[test]
    fn login_prompt_with_a_kernel_message_behind() {
        assert!(run(&[b"web login: [   20.123456] clocksource: switched\r\n"], false).booted);
        assert!(!run(&[b"Last login: Mon Nov 2 on ttyS0\r\n"], false).booted);
    }

    #[test]
    fn an_encrypted_disk_is_for_a_person() {
        let r = run(&[b"Linux version 6.1\r\nPlease unlock disk xvda2_crypt: "], false);
        assert!(r.booted && r.stage == Stage::Kernel && r.what.contains("passphrase"), "{r:?}");
        assert!(!run(&[b"Linux version 6.1\r\nPlease unlock disk xvda2_crypt: \r\n(initramfs) "], false).booted);
    }

    #[test]
    fn stall_behind_the_firmware_is_named() {
        let r = run(&[b"SeaBIOS (version 1.16)\r\n\r\nBooting from Hard Disk...\r\n"], false);
        assert!(!r.booted);
        assert_eq!(r.stage, Stage::Firmware);
        assert!(r.what.contains("Booting from Hard Disk"), "{}", r.what);
    }

    #[test]
    fn the_last_screen_has_whole_letters_and_no_frames() {
        let r = run(&[b"\xe2\x94\x82  \xe2\x94\x82\r\nUse the \xe2", b"\x86", b"\x91 key\r\n\xff\xe2", b"\xe2\x94\x94\r\n"], false);
        assert_eq!(r.screen, ["Use the \u{2191} key", "\u{fffd}\u{fffd}\u{2514}"]);
    }

    #[test]
    fn what_is_shown_has_no_control_sequences_and_no_frames() {
        let spec = MachineSpec { memory_mib: 512, vcpus: 1, disks: Vec::new(), macs: Vec::new(), uefi: false, emulated: false };
        let pieces: Vec<&[u8]> =
            vec![b"\x1b[2J\x1b[4;2H+------+\x1b[5;2H|\x1b[5;79H|\x1b[6;3H*Debian", b" 12\r\n\x1b]0;title\x07web login: "];
        let mut shown = Vec::new();
        check(&Script { pieces, dies: false }, &spec, Duration::from_secs(1), &mut |b| shown.extend_from_slice(b)).unwrap();
        assert_eq!(String::from_utf8(shown).unwrap(), "*Debian 12\nweb login:\n");
    }

    #[test]
    fn a_starved_machine_is_started_again_but_not_for_ever() {
        let r = run(&[b"Kernel panic - not syncing: IO-APIC + timer doesn't work!  Boot with apic=debug\r\n"], false);
        assert!(r.what.contains("Kernel panic"), "{r:?}");
    }

    #[test]
    fn known_ends_stop_at_once() {
        let cases: &[(&[u8], Stage, &str)] = &[
            (b"GRUB loading.\r\nerror: no such partition.\r\ngrub rescue> ", Stage::BootLoader, "grub rescue>"),
            (b"[    1.0] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)", Stage::Kernel, "VFS: Unable"),
            (b"ALERT!  /dev/xvda2 does not exist.  Dropping to a shell!\r\n(initramfs) ", Stage::Initramfs, "(initramfs)"),
            (b"systemd[1]: x\r\nYou are in emergency mode. After logging in", Stage::Init, "emergency"),
            (b"SeaBIOS\r\nBoot failed: not a bootable disk\r\n\r\nNo bootable device.\r\n", Stage::Firmware, "No bootable device"),
        ];
        for (output, stage, what) in cases {
            let start = Instant::now();
            let r = run(&[output], false);
            assert!(!r.booted);
            assert_eq!(r.stage, *stage, "{r:?}");
            assert!(r.what.contains(what), "{}", r.what);
            assert!(start.elapsed() < Duration::from_millis(250), "did not stop at once");
        }
    }

    #[test]
    fn silence_failed_units_and_a_dead_machine() {
        assert_eq!(run(&[], false).stage, Stage::Silent);
        let r = run(&[b"[FAILED] Failed to start Foo.\r\nweb login: "], false);
        assert_eq!(r.failed_units, ["Foo"]);
        let r = run(&[b"Linux version 6.1\r\n"], true);
        assert!(r.what.contains("QEMU exited"), "{}", r.what);
        assert_eq!(r.stage, Stage::Kernel);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut watch = Watch::default();
        for _ in 0..100 {
            watch.feed("é".repeat(10_000).as_bytes());
        }
        assert!(watch.text.len() <= KEPT);
    }
}
