//! virt-inspector beside libguestfs's, on phony guests of many systems.

use std::process::Command;

use crate::phony::{Filesystem, Guest, program, run};

/// A system's own files.
type Files = &'static [(&'static str, &'static str)];

const DPKG: &str = "Package: test1
Status: install ok installed
Architecture: amd64
Source: test
Version: 1:1.2.3-1-2
Description: this is a <test> package
 This is a test package.
 .
 Don't confuse it with a real package.
Homepage: http://example.org/

Package: a-gone
Status: deinstall ok config-files
Version: 4
";

const APK: &str = "C:Q1pSfk
P:musl
V:1.2.4-r2
A:x86_64
S:383152
T:the musl c library (libc) implementation
U:https://musl.libc.org/
o:musl

P:alpine-baselayout
V:3.4.3-r1
A:x86_64
T:Alpine base dir structure and init scripts
U:https://git.example.org/
o:alpine-baselayout

";

const PACMAN: &str = "%NAME%
test-package

%VERSION%
1:0.1-1

%BASE%
test-base

%DESC%
Test package for libguestfs

%URL%
http://example.org/

%ARCH%
x86_64

";

/// One system a partition.
const SYSTEMS: &[(&str, Files)] = &[
    (
        "fedora14",
        &[
            ("etc/fedora-release", "Fedora release 14 (Phony)\n"),
            ("etc/redhat-release", "Fedora release 14 (Phony)\n"),
            ("etc/sysconfig/network", "NETWORKING=yes\nHOSTNAME=\"fedora.invalid\"\n"),
        ],
    ),
    (
        "fedora39",
        &[
            (
                "etc/os-release",
                "NAME=\"Fedora Linux\"\nVERSION=\"39 (Server Edition)\"\nID=fedora\nVERSION_ID=39\nPRETTY_NAME=\"Fedora Linux 39 (Server Edition)\"\nVARIANT_ID=server\n",
            ),
            ("etc/hostname", "f39.example.org\n"),
        ],
    ),
    ("rhel5", &[("etc/redhat-release", "Red Hat Enterprise Linux Server release 5.11 (Tikanga)\n")]),
    (
        "rhel6",
        &[
            ("etc/redhat-release", "Red Hat Enterprise Linux Server release 6.10 (Santiago)\n"),
            ("etc/hostname", "# a comment\n\nrhel6.example.org\n"),
        ],
    ),
    (
        "centos7",
        &[
            (
                "etc/os-release",
                "NAME=\"CentOS Linux\"\nVERSION=\"7 (Core)\"\nID=\"centos\"\nID_LIKE=\"rhel fedora\"\nVERSION_ID=\"7\"\nPRETTY_NAME=\"CentOS Linux 7 (Core)\"\n",
            ),
            ("etc/centos-release", "CentOS Linux release 7.9.2009 (Core)\n"),
            ("etc/redhat-release -> centos-release", ""),
        ],
    ),
    (
        "centos9",
        &[
            (
                "etc/os-release",
                "NAME=\"CentOS Stream\"\nID=\"centos\"\nID_LIKE=\"rhel fedora\"\nVERSION_ID=\"9\"\nPRETTY_NAME=\"CentOS Stream 9\"\n",
            ),
            ("etc/centos-release", "CentOS Stream release 9\n"),
            ("etc/redhat-release -> centos-release", ""),
        ],
    ),
    (
        "rhel9",
        &[
            (
                "etc/os-release",
                "NAME=\"Red Hat Enterprise Linux\"\nID=\"rhel\"\nVERSION_ID=\"9.3\"\nPRETTY_NAME=\"Red Hat Enterprise Linux 9.3 (Plow)\"\n",
            ),
            ("etc/redhat-release", "Red Hat Enterprise Linux release 9.3 (Plow)\n"),
        ],
    ),
    (
        "rocky9",
        &[
            (
                "etc/os-release",
                "NAME=\"Rocky Linux\"\nID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\nVERSION_ID=\"9.2\"\nPRETTY_NAME=\"Rocky Linux 9.2 (Blue Onyx)\"\n",
            ),
            ("etc/redhat-release", "Rocky Linux release 9.2 (Blue Onyx)\n"),
        ],
    ),
    (
        "alma8",
        &[
            (
                "etc/os-release",
                "NAME=\"AlmaLinux\"\nID=\"almalinux\"\nVERSION_ID=\"8.9\"\nPRETTY_NAME=\"AlmaLinux 8.9 (Midnight Oncilla)\"\n",
            ),
            ("etc/redhat-release", "AlmaLinux release 8.9 (Midnight Oncilla)\n"),
        ],
    ),
    (
        "oracle7",
        &[
            ("etc/os-release", "NAME=\"Oracle Linux Server\"\nID=\"ol\"\nVERSION_ID=\"7.9\"\nPRETTY_NAME=\"Oracle Linux Server 7.9\"\n"),
            ("etc/oracle-release", "Oracle Linux Server release 7.9\n"),
            ("etc/redhat-release", "Red Hat Enterprise Linux Server release 7.9 (Maipo)\n"),
        ],
    ),
    (
        "sles11",
        &[
            ("etc/SuSE-release", "SUSE Linux Enterprise Server 11 (x86_64)\nVERSION = 11\nPATCHLEVEL = 4\n"),
            ("etc/HOSTNAME", "sles11.example.org\n"),
        ],
    ),
    (
        "sles15",
        &[(
            "etc/os-release",
            "NAME=\"SLES\"\nVERSION=\"15-SP5\"\nVERSION_ID=\"15.5\"\nPRETTY_NAME=\"SUSE Linux Enterprise Server 15 SP5\"\nID=\"sles\"\nID_LIKE=\"suse\"\n",
        )],
    ),
    (
        "leap15",
        &[(
            "etc/os-release",
            "NAME=\"openSUSE Leap\"\nVERSION=\"15.5\"\nID=\"opensuse-leap\"\nID_LIKE=\"suse opensuse\"\nVERSION_ID=\"15.5\"\nPRETTY_NAME=\"openSUSE Leap 15.5\"\n",
        )],
    ),
    (
        "tumbleweed",
        &[(
            "etc/os-release",
            "NAME=\"openSUSE Tumbleweed\"\nID=\"opensuse-tumbleweed\"\nID_LIKE=\"opensuse suse\"\nVERSION_ID=\"20231118\"\nPRETTY_NAME=\"openSUSE Tumbleweed\"\n",
        )],
    ),
    ("debian5", &[("etc/debian_version", "5.0.1\n"), ("etc/hostname", "debian.invalid"), ("var/lib/dpkg/status", DPKG)]),
    (
        "debian12",
        &[
            ("etc/os-release", "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nNAME=\"Debian GNU/Linux\"\nVERSION_ID=\"12\"\nID=debian\n"),
            ("etc/debian_version", "12.4\n"),
        ],
    ),
    (
        "sid",
        &[
            ("etc/os-release", "PRETTY_NAME=\"Debian GNU/Linux forky/sid\"\nNAME=\"Debian GNU/Linux\"\nID=debian\n"),
            ("etc/debian_version", "forky/sid\n"),
        ],
    ),
    (
        "ubuntu10",
        &[
            (
                "etc/lsb-release",
                "DISTRIB_ID=Ubuntu\nDISTRIB_RELEASE=10.10\nDISTRIB_CODENAME=maverick\nDISTRIB_DESCRIPTION=\"Ubuntu 10.10 (Phony Pharaoh)\"\n",
            ),
            ("etc/debian_version", "5.0.1"),
        ],
    ),
    (
        "ubuntu22",
        &[
            ("etc/os-release", "PRETTY_NAME=\"Ubuntu 22.04.3 LTS\"\nNAME=\"Ubuntu\"\nVERSION_ID=\"22.04\"\nID=ubuntu\nID_LIKE=debian\n"),
            ("etc/lsb-release", "DISTRIB_ID=Ubuntu\nDISTRIB_RELEASE=22.04\nDISTRIB_DESCRIPTION=\"Ubuntu 22.04.3 LTS\"\n"),
            ("etc/debian_version", "bookworm/sid\n"),
        ],
    ),
    (
        "mint",
        &[(
            "etc/lsb-release",
            "DISTRIB_ID=LinuxMint\nDISTRIB_RELEASE=12\nDISTRIB_CODENAME=lisa\nDISTRIB_DESCRIPTION=\"Linux Mint 12 Lisa\"\n",
        )],
    ),
    (
        "kali",
        &[(
            "etc/os-release",
            "PRETTY_NAME=\"Kali GNU/Linux Rolling\"\nNAME=\"Kali GNU/Linux\"\nID=kali\nVERSION_ID=\"2023.3\"\nID_LIKE=debian\n",
        )],
    ),
    (
        "alpine",
        &[
            ("etc/os-release", "NAME=\"Alpine Linux\"\nID=alpine\nVERSION_ID=3.18.4\nPRETTY_NAME=\"Alpine Linux v3.18\"\n"),
            ("etc/alpine-release", "3.18.4\n"),
            ("lib/apk/db/installed", APK),
        ],
    ),
    ("arch", &[("etc/arch-release", ""), ("etc/hostname", "archlinux.test"), ("var/lib/pacman/local/test-package-1:0.1-1/desc", PACMAN)]),
    (
        "arch-now",
        &[("etc/os-release", "NAME=\"Arch Linux\"\nPRETTY_NAME=\"Arch Linux\"\nID=arch\nBUILD_ID=rolling\n"), ("etc/arch-release", "")],
    ),
    (
        "gentoo",
        &[
            ("etc/os-release", "NAME=Gentoo\nID=gentoo\nPRETTY_NAME=\"Gentoo Linux\"\nVERSION_ID=\"2.14\"\n"),
            ("etc/gentoo-release", "Gentoo Base System release 2.14\n"),
        ],
    ),
    ("void", &[("etc/os-release", "NAME=\"Void\"\nID=\"void\"\nPRETTY_NAME=\"Void Linux\"\n")]),
    (
        "mageia",
        &[("etc/os-release", "NAME=\"Mageia\"\nID=mageia\nVERSION_ID=9\nID_LIKE=\"mandriva fedora mandrake\"\nPRETTY_NAME=\"Mageia 9\"\n")],
    ),
    (
        "altlinux",
        &[("etc/os-release", "NAME=\"ALT\"\nVERSION=\"10.1\"\nID=altlinux\nVERSION_ID=10.1\nPRETTY_NAME=\"ALT Workstation 10.1\"\n")],
    ),
    ("slackware", &[("etc/slackware-version", "Slackware 13.1\n")]),
    (
        "unknown",
        &[
            ("etc/os-release", "NAME=\"My Own\"\nID=my-own\nVERSION_ID=3.2\nPRETTY_NAME=\"My Own Linux 3.2\"\n"),
            ("etc/hostname", "own & <only>\n"),
        ],
    ),
];

fn systems(guest: &Guest, wanted: &[&str]) {
    let (elf, elf32) = (program(62), program(3));
    let trees: Vec<Vec<(&str, &[u8])>> = SYSTEMS
        .iter()
        .filter(|(name, _)| wanted.is_empty() || wanted.contains(name))
        .map(|(name, files)| {
            let own = files.iter().map(|(path, content)| (*path, content.as_bytes()));
            let elf = if *name == "ubuntu10" { &elf32 } else { &elf };
            own.chain([("bin/ls", &elf[..]), ("etc/hosts", b"127.0.0.1 localhost\n")]).collect()
        })
        .collect();
    let filesystems: Vec<Filesystem<'_>> =
        trees.iter().enumerate().map(|(number, files)| Filesystem { label: "", files, number: number + 1, size: 2 << 20 }).collect();
    guest.disk("disk.img", &filesystems);
}

#[test]
fn many_systems() {
    let guest = Guest::empty();
    systems(&guest, &[]);
    let others = [
        // libguestfs looks for /usr/bin/dnf.
        (
            "<major_version>39</major_version>\n    <minor_version>0</minor_version>\n    <package_format>rpm</package_format>\n    <package_management>yum<",
            "<major_version>39</major_version>\n    <minor_version>0</minor_version>\n    <package_format>rpm</package_format>\n    <package_management>dnf<",
        ),
        // libguestfs keeps the quotes of a shell's assignment.
        ("<hostname>&quot;fedora.invalid&quot;</hostname>", "<hostname>fedora.invalid</hostname>"),
        // 1.48 does not know these by their own names yet.
        ("<distro>redhat-based</distro>", "<distro>almalinux</distro>"),
        ("AlmaLinux release 8.9 (Midnight Oncilla)", "AlmaLinux 8.9 (Midnight Oncilla)"),
        ("<osinfo>redhat-based8.9</osinfo>", "<osinfo>almalinux8</osinfo>"),
        ("Oracle Linux Server release 7.9", "Oracle Linux Server 7.9"),
        // Newer than 1.48.
        (
            "<package_management>pacman</package_management>\n    <osinfo>",
            "<package_management>pacman</package_management>\n    <build_id>rolling</build_id>\n    <osinfo>",
        ),
        // libosinfo's name.
        ("<osinfo>oraclelinux7.9</osinfo>", "<osinfo>ol7.9</osinfo>"),
    ];
    guest.agrees_but_for("systems.xml", "inspector", &["--no-applications", "-a", "disk.img"], &others);
}

/// Mounts of fstab in all their spellings, on two disks.
#[test]
fn mounts_and_filesystems() {
    let guest = Guest::empty();
    let fstab = b"# comment
LABEL=BOOT /boot ext2 default 0 0
UUID=01234567-0123-0123-0123-000000000002 / ext2 default 1 2
/dev/xvda3 /srv ext2 default 1 2
/dev/disk/by-uuid/01234567-0123-0123-0123-000000000004 /var/www ext2 ro 0 0
/dev/sdb1 ///home//users/ ext2 default 1 2
/dev/mapper/cryptswap1 none swap sw 0 0
/dev/nowhere7 /nowhere ext2 defaults 0 0
LABEL=NONE /none ext2 defaults 0 0
UUID=99999999-0123-0123-0123-000000000004 /gone ext2 defaults 0 0
tmpfs /tmp tmpfs defaults 0 0
proc /proc proc defaults 0 0
/dev/fd0 /floppy auto noauto 0 0
/dev/cdrom /media/cd udf,iso9660 noauto 0 0
host:/export /nfs nfs defaults 0 0
/dev/sda6 /data auto defaults 0 0
";
    let elf = program(62);
    let root: &[(&str, &[u8])] = &[
        ("etc/fstab", fstab),
        ("etc/os-release", b"ID=debian\nVERSION_ID=12\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"),
        ("etc/hostname", b"mounts\n"),
        ("usr/bin/ls", &elf),
        ("bin -> usr/bin", b""),
        ("boot/", b""),
        ("srv/", b""),
        ("var/www/", b""),
        ("home/users/", b""),
    ];
    let file: &[(&str, &[u8])] = &[("file", b"content")];
    let part = |label, files, number| Filesystem { label, files, number, size: 2 << 20 };
    guest.disk("a.img", &[part("BOOT", file, 1), part("", root, 2), part("srv", file, 3), part("", file, 4), part("", file, 5)]);
    guest.disk("b.img", &[part("users", file, 6)]);
    // libguestfs leaves udev's names as they stand.
    let by_uuid = "  <filesystem dev=\"/dev/disk/by-uuid/01234567-0123-0123-0123-000000000004\">
        <type>ext2</type>
        <uuid>01234567-0123-0123-0123-000000000004</uuid>
      </filesystem>
    ";
    let other = [
        (by_uuid, ""),
        (
            "<filesystem dev=\"/dev/sda6\"",
            "<filesystem dev=\"/dev/sda4\">
        <type>ext2</type>
        <uuid>01234567-0123-0123-0123-000000000004</uuid>
      </filesystem>
      <filesystem dev=\"/dev/sda6\"",
        ),
        ("/dev/disk/by-uuid/01234567-0123-0123-0123-000000000004", "/dev/sda4"),
    ];
    guest.agrees_but_for("mounts.xml", "inspector", &["--no-applications", "-a", "a.img", "-a", "b.img"], &other);
}

/// libguestfs 1.48 gives up on guests with rpm's databases on this Debian: those are compared with rpm itself, in guestfs's tests.
#[test]
fn packages_of_each_format() {
    let guest = Guest::empty();
    systems(&guest, &["debian5", "alpine", "arch"]);
    guest.agrees("packages.xml", "inspector", &["-a", "disk.img"]);
    let json: serde_json::Value = serde_json::from_str(&guest.text("inspector", &["--json", "-a", "disk.img"])).unwrap();
    let systems = json["operatingsystems"].as_array().unwrap();
    assert_eq!(systems.len(), 3);
    assert_eq!(systems[0]["applications"][0]["name"], "test1");
    assert_eq!((&systems[2]["id"], &systems[2]["applications"][0]["epoch"]), (&"arch".into(), &1.into()));
    assert_eq!(systems[1].get("hostname"), None);
    let one = guest.text("inspector", &["--no-applications", "--root", "/dev/sda2", "-a", "disk.img"]);
    assert!(one.contains("<root>/dev/sda2</root>") && !one.contains("/dev/sda1") && !one.contains("<applications"), "{one}");
}

#[test]
fn other_specs_and_the_schema() {
    let guest = Guest::empty();
    let fstab = b"PARTUUID=01234567-0123-0123-0000-000000000001 /part ext2 ro 0 0\nLABEL=\"data\" /data auto nofail 0 0\n";
    let root: &[(&str, &[u8])] = &[("etc/fstab", fstab), ("etc/os-release", b"ID=alpine\nVERSION_ID=3.20.1\n"), ("bin/", b"")];
    let part = |label, files, number| Filesystem { label, files, number, size: 2 << 20 };
    guest.disk("disk.img", &[part("", root, 1), part("", &[], 2), part("data", &[], 3)]);
    let xml = guest.text("inspector", &["-a", "disk.img"]);
    for line in ["<mountpoint dev=\"/dev/sda2\">/part<", "<mountpoint dev=\"/dev/sda3\">/data<", "<label>data</label>", "<applications/>"] {
        assert!(xml.contains(line), "{line}: {xml}");
    }
    std::fs::write(guest.path("out.xml"), xml).unwrap();
    let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/virt_read/virt-inspector.rng");
    run(Command::new("xmllint").args(["--noout", "--relaxng", schema, "out.xml"]).current_dir(guest.dir.path()));
}

#[test]
fn queries_are_answered_from_the_standard_input() {
    let guest = Guest::empty();
    guest.write("in.xml", include_str!("libguestfs/mounts.xml").as_bytes());
    let query = |query: &str| {
        let mut virt = Command::new(env!("CARGO_BIN_EXE_virt"));
        virt.args(["inspector", "--xpath", query]).stdin(std::fs::File::open(guest.path("in.xml")).unwrap());
        virt.output().unwrap()
    };
    let found = query("string(//filesystem[@dev='/dev/sda1']/label)");
    assert_eq!(String::from_utf8_lossy(&found.stdout), "BOOT\n");
    assert_eq!(query("bad[").status.code(), Some(1));
}
