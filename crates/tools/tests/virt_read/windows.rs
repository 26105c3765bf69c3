//! virt-inspector beside libguestfs's, on phony guests of Windows and of the BSDs. Their hives are made by hivex.

use std::process::Command;

use crate::phony::{Filesystem, Guest, program, run};

const SOFTWARE: &str = r#"
[HKEY_LOCAL_MACHINE\SOFTWARE\Microsoft\Windows NT\CurrentVersion]
"ProductName"=str(1):"Microsoft Windows 7 Phony Edition"
"CurrentVersion"=str(1):"6.1"
"InstallationType"=str(1):"Client"
"CurrentBuildNumber"=str(1):"7601"

[HKEY_LOCAL_MACHINE\SOFTWARE\Microsoft\Windows\CurrentVersion\Uninstall\test1]
"DisplayName"=str(1):"Test1 is <not> real software"
"URLInfoAbout"=str(1):"http://example.org/"
"DisplayVersion"=str(1):"1.2.3"

[HKEY_LOCAL_MACHINE\SOFTWARE\Microsoft\Windows\CurrentVersion\Uninstall\test3]
"DisplayName"=str(1):"Test3 is not real software"
"DisplayVersion"=str(1):"1.2.5"
"Publisher"=str(1):"An Example Inc."
"InstallLocation"=str(1):"C:\\Program Files\\Example\\test3"

[HKEY_LOCAL_MACHINE\SOFTWARE\Microsoft\Windows\CurrentVersion\Uninstall\test2]
"DisplayName"=str(1):"Test2 is not real software"
"Comments"=str(1):"Longer description about phony test2 software"

[HKEY_LOCAL_MACHINE\SOFTWARE\Microsoft\Windows\CurrentVersion\Uninstall\hidden]
"Comments"=str(1):"No name"

[HKEY_LOCAL_MACHINE\SOFTWARE\WOW6432node\Microsoft\Windows\CurrentVersion\Uninstall\test4]
"DisplayName"=str(1):"Test4 is not real software"
"DisplayVersion"=str(1):"1.2.6"
"#;

/// Drive C is the second partition, E the first; D is none.
const SYSTEM: &str = r#"
[HKEY_LOCAL_MACHINE\SYSTEM\Select]
"Current"=dword:00000001

[HKEY_LOCAL_MACHINE\SYSTEM\ControlSet001\Services\Tcpip\Parameters]
"Hostname"=str(1):"win-phony"

[HKEY_LOCAL_MACHINE\SYSTEM\MountedDevices]
"\\DosDevices\\C:"=hex(3):44,4d,49,4f,3a,49,44,3a,67,45,23,01,23,01,23,01,00,00,00,00,00,00,00,01
"\\DosDevices\\E:"=hex(3):44,4d,49,4f,3a,49,44,3a,67,45,23,01,23,01,23,01,00,00,00,00,00,00,00,00
"\\DosDevices\\D:"=hex(3):5c,00,3f,00,3f,00,5c,00
"#;

/// A hive with nothing but a root key and its access list, as small as hivex takes it.
fn empty_hive() -> Vec<u8> {
    let mut hive = vec![0; 8192];
    let mut put = |at: usize, bytes: &[u8]| hive[at..at + bytes.len()].copy_from_slice(bytes);
    let nothing = [0xff; 4];
    put(0, b"regf");
    for (at, number) in [(4, 1u32), (8, 1), (20, 1), (24, 3), (32, 1), (36, 0x20), (40, 0x1000), (44, 1)] {
        put(at, &number.to_le_bytes());
    }
    put(0x1000, b"hbin\0\0\0\0\0\x10");
    put(0x1020, &(-0x60i32).to_le_bytes());
    put(0x1024, b"nk\x2c\0");
    for at in [16, 28, 32, 40, 48] {
        put(0x1024 + at, &nothing);
    }
    put(0x1024 + 44, &0x80u32.to_le_bytes());
    put(0x1024 + 72, b"\x05\0\0\0$$$PR");
    put(0x1080, &(-0x28i32).to_le_bytes());
    put(0x1084, b"sk\0\0\x80\0\0\0\x80\0\0\0\x01\0\0\0\x10\0\0\0\x01\0\0\x80");
    put(0x10a8, &(0x1000i32 - 0xa8).to_le_bytes());
    let sum = hive[..508].chunks_exact(4).fold(0, |sum, word| sum ^ u32::from_le_bytes(word.try_into().unwrap()));
    hive[508..512].copy_from_slice(&sum.to_le_bytes());
    hive
}

/// A hive with these keys, written by hivex.
fn hive(guest: &Guest, name: &str, keys: &str) -> Vec<u8> {
    let prefix = format!(r"HKEY_LOCAL_MACHINE\{name}");
    let mut text = String::from("Windows Registry Editor Version 5.00\n\n");
    let mut known = vec![prefix.clone()];
    for line in keys.lines() {
        // hivex wants each key's parents before it.
        if let Some(key) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            for (at, _) in key.match_indices('\\').skip(2) {
                if !known.contains(&key[..at].to_string()) {
                    text += &format!("[{}]\n\n", &key[..at]);
                    known.push(key[..at].into());
                }
            }
            known.push(key.into());
        }
        text += &format!("{line}\n");
    }
    guest.write("keys.reg", text.as_bytes());
    guest.write("hive", &empty_hive());
    run(Command::new("hivexregedit").args(["--merge", "--prefix", &prefix, "hive", "keys.reg"]).current_dir(guest.dir.path()));
    std::fs::read(guest.path("hive")).unwrap()
}

/// The head of a program for Windows.
fn windows_program(machine: u16) -> Vec<u8> {
    let mut pe = vec![0; 512];
    pe[..2].copy_from_slice(b"MZ");
    pe[60] = 128;
    pe[128..132].copy_from_slice(b"PE\0\0");
    pe[132..134].copy_from_slice(&machine.to_le_bytes());
    // An image with a header of the right size, which file(1) looks at.
    pe[148] = if machine == 0x14c { 0xe0 } else { 0xf0 };
    pe[150] = 2;
    pe[152..154].copy_from_slice(&(if machine == 0x14c { 0x10bu16 } else { 0x20b }).to_le_bytes());
    pe
}

fn windows(guest: &Guest, software: &[u8]) {
    let system = hive(guest, "SYSTEM", SYSTEM);
    let program = windows_program(0x8664);
    let root: &[(&str, &[u8])] = &[
        ("Windows/System32/Config/SOFTWARE", software),
        ("Windows/System32/Config/SYSTEM", &system),
        ("Windows/System32/Drivers/", b""),
        ("Windows/System32/cmd.exe", &program),
        ("Program Files/", b""),
        ("autoexec.bat", b"@echo off\r\n"),
    ];
    let part = |label, files, number| Filesystem { label, files, number, size: 2 << 20 };
    guest.disk("disk.img", &[part("boot", &[("bootmgr", b"")], 1), part("windows", root, 2)]);
}

#[test]
fn windows_is_told_by_its_registry() {
    let guest = Guest::empty();
    let software = hive(&guest, "SOFTWARE", SOFTWARE);
    windows(&guest, &software);
    // Newer than 1.48.
    let build = ("    <osinfo>", "    <build_id>7601</build_id>\n    <osinfo>");
    guest.agrees_but_for("windows.xml", "inspector", &["-a", "disk.img"], &[build]);
    assert_eq!(guest.text("cat", &["-a", "disk.img", r"C:\AUTOEXEC.BAT"]), "@echo off\r\n");
    assert_eq!(guest.text("ls", &["-a", "disk.img", r"e:\"]), "bootmgr\nlost+found\n");
}

/// Whether there is an appliance; said aloud where not, and a failure in CI.
fn appliance() -> bool {
    let Err(e) = guestfs_appliance::locate::files() else { return true };
    assert!(std::env::var_os("CI").is_none(), "{e}");
    eprintln!("skipped: {e}");
    false
}

#[test]
fn only_files_of_windows_are_changed() {
    if !appliance() {
        return;
    }
    let guest = Guest::empty();
    let software = hive(&guest, "SOFTWARE", SOFTWARE);
    windows(&guest, &software);
    let refused = guest.failure("customize", &["-a", "disk.img", "--hostname", "other"]);
    assert!(refused.contains("--hostname") && refused.contains("this guest is windows"), "{refused}");
    let refused = guest.failure("edit", &["-a", "disk.img", "-e", "s/a/b/", r"E:\bootmgr"]);
    assert!(refused.contains("another drive"), "{refused}");
    guest.text("edit", &["-a", "disk.img", "-e", "s/off/on/", r"c:\Autoexec.BAT"]);
    guest.text("customize", &["-a", "disk.img", "--append-line", "/autoexec.bat:rem"]);
    assert_eq!(guest.text("cat", &["-a", "disk.img", r"C:\autoexec.bat"]), "@echo on\r\nrem\r\n");
}

/// Bytes of a hive turned, place by place: an answer or an error, soon.
#[test]
fn damaged_hives_are_answered() {
    const BLOCK: usize = 1024;
    let guest = Guest::empty();
    let software = hive(&guest, "SOFTWARE", SOFTWARE);
    windows(&guest, &software);
    let disk = std::fs::read(guest.path("disk.img")).unwrap();
    let mut answers = 0;
    for (number, block) in software.chunks(BLOCK).enumerate().filter(|(_, block)| block.iter().any(|b| *b != 0)) {
        let place = BLOCK * disk.chunks(BLOCK).position(|b| b == block).unwrap_or_else(|| panic!("block {number} is not on the disk"));
        for at in (0..BLOCK).step_by(89).filter(|at| block[*at..].iter().take(4).any(|b| *b != 0)) {
            let mut damaged = disk.clone();
            damaged[place + at..].iter_mut().take(4).for_each(|byte| *byte ^= 0xff);
            guest.write("damaged.img", &damaged);
            let output = guest.virt("inspector", &["-a", "damaged.img"]);
            assert!(matches!(output.status.code(), Some(0 | 1)), "byte {at} of block {number}: {output:?}");
            answers += usize::from(output.status.success());
        }
    }
    assert!(answers > 0);
}

#[test]
fn bsds_have_their_own_words() {
    let guest = Guest::empty();
    let elf = program(62);
    let systems: [&[(&str, &[u8])]; 3] = [
        &[
            ("bin/ls", &elf),
            ("bin/freebsd-version", b"#!/bin/sh\nUSERLAND_VERSION=\"13.2-RELEASE-p3\"\n"),
            ("etc/freebsd-update.conf", b""),
            ("etc/rc.conf", b"hostname=\"bsd.example.org\"\nsshd_enable=YES\n"),
            ("etc/fstab", b"/dev/ada0p1 / ufs rw 1 1\n"),
        ],
        &[
            ("bin/ls", &elf),
            ("netbsd", b""),
            ("etc/release", b"NetBSD 9.3\n"),
            ("etc/rc.conf", b"hostname=net.example.org\n"),
            ("etc/fstab", b"/dev/wd0a / ffs rw 1 1\n"),
        ],
        &[
            ("bin/ls", &elf),
            ("bsd", b""),
            ("etc/motd", b"OpenBSD 7.4 (GENERIC) #1336: Tue Oct 10 2023\n"),
            ("etc/myname", b"open.example.org\n"),
            ("etc/fstab", b"/dev/sd0a / ffs rw 1 1\n"),
        ],
    ];
    let filesystems: Vec<_> =
        systems.iter().enumerate().map(|(i, files)| Filesystem { label: "", files, number: i + 1, size: 2 << 20 }).collect();
    guest.disk("disk.img", &filesystems);
    let system = |place: usize, words: [&str; 4], hostname: &str| {
        let [name, product, major, minor] = words;
        format!(
            "  <operatingsystem>
    <root>/dev/sda{place}</root>
    <name>{name}</name>
    <arch>x86_64</arch>
    <distro>{name}</distro>
    <product_name>{product}</product_name>
    <major_version>{major}</major_version>
    <minor_version>{minor}</minor_version>
    {hostname}<osinfo>{name}{major}.{minor}</osinfo>
"
        )
    };
    let named = |name: &str| format!("<hostname>{name}.example.org</hostname>\n    ");
    let freebsd = system(1, ["freebsd", "FreeBSD 13.2-RELEASE-p3", "13", "2"], &named("bsd"));
    let rest = "    <mountpoints>
      <mountpoint dev=\"/dev/sda1\">/</mountpoint>
    </mountpoints>
    <filesystems>
      <filesystem dev=\"/dev/sda1\">
        <type>ext2</type>
        <uuid>01234567-0123-0123-0123-000000000001</uuid>
      </filesystem>
    </filesystems>
    <applications/>
  </operatingsystem>
";
    // libguestfs passes over this FreeBSD, and takes OpenBSD for one.
    let taken = system(3, ["freebsd", "OpenBSD 7.4 (GENERIC) #1336: Tue Oct 10 2023", "7", "4"], "");
    let others = [
        ("<operatingsystems>\n", format!("<operatingsystems>\n{freebsd}{rest}")),
        (taken.as_str(), system(3, ["openbsd", "OpenBSD 7.4", "7", "4"], &named("open"))),
    ];
    let others: Vec<(&str, &str)> = others.iter().map(|(their, our)| (*their, our.as_str())).collect();
    guest.agrees_but_for("bsd.xml", "inspector", &["-a", "disk.img"], &others);
}
