//! virt-edit, virt-customize and virt-sysprep.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::guest::{Guest, appliance, run};

#[test]
fn edits_keep_all_but_the_content() {
    if !appliance() {
        return;
    }
    let guest = Guest::new(|root| {
        for (name, value) in [("security.selinux", &b"system_u:object_r:etc_t:s0\0"[..]), ("user.note", b"x")] {
            rustix::fs::setxattr(root.join("etc/motd"), name, value, rustix::fs::XattrFlags::empty()).unwrap();
        }
        std::os::unix::fs::chown(root.join("etc/motd"), Some(7), Some(8)).unwrap();
        std::fs::set_permissions(root.join("etc/motd"), std::os::unix::fs::PermissionsExt::from_mode(0o2640)).unwrap();
    });
    std::fs::write(guest.path("editor"), "#!/bin/sh\nsed -i 's/e/E/' \"$1\"\n").unwrap();
    let editor = format!("sh {}", guest.at("editor"));
    let edited = guest.command("edit", &["-b", "~", "/etc/motd", "/etc/hostname"]).env("EDITOR", editor).output().unwrap();
    assert!(edited.status.success(), "{}", String::from_utf8_lossy(&edited.stderr));
    assert_eq!(guest.text("cat", &["/etc/motd", "/etc/motd~", "/etc/hostname", "/etc/hostname~"]), "hEllo\nhello\nwEb\nweb\n");
    for name in ["motd", "motd~"] {
        let stat = run(&["debugfs", "-R", &format!("stat /etc/{name}"), &guest.at("disk.img")]);
        assert!(stat.contains("Mode:  02640") && stat.contains("User:     7   Group:     8"), "{stat}");
        assert!(stat.contains("user.note") && stat.contains("system_u:object_r:etc_t:s0"), "{stat}");
    }
    guest.is_clean();
}

#[test]
fn operations_are_done_in_their_order() {
    if !appliance() {
        return;
    }
    let guest = Guest::new(|_| {}).qcow2();
    let write = |name: &str, text: &str| std::fs::write(guest.path(name), text).unwrap();
    write("script", "#!/bin/sh\nid -u > /etc/ran\n");
    write("first.sh", "#!/bin/sh\necho first\n");
    write("secret", "hunter2\nnot this\n");
    write("key.pub", "ssh-ed25519 AAAA someone@here\n");
    write("more", "# a comment\n\nappend-line /etc/order:three\nwrite \\\n  /etc/joined:line\n");
    let words = "--write /etc/order:one --append-line /etc/order:two --commands-from-file more --edit /etc/order:s/o/0/ \
                 --mkdir /srv/a/b --upload script:/srv/a --chmod 0751:/srv/a/script --chown user:users:/srv/a/script --copy /srv/a:/srv/c \
                 --move /srv/c/script:/srv/moved --delete /srv/c --link ../etc/motd:/srv/l1:/srv/l2 --touch /srv/empty --truncate /etc/motd \
                 --copy-in first.sh:/srv/a/b --run script --scrub /srv/a/script --hostname mail.example.org --timezone Europe/Berlin \
                 --root-password file:secret --password user:locked:password:pw --ssh-inject user:file:key.pub --firstboot first.sh \
                 --selinux-relabel --no-logfile";
    let mut words: Vec<&str> = words.split_whitespace().collect();
    words.extend(["--firstboot-command", "echo second", "--run-command", "cat /etc/order > /etc/seen"]);
    let said = guest.text("customize", &words);
    assert!(said.contains("] Setting the hostname: mail.example.org\n") && said.contains("] Finishing off\n"), "{said}");
    guest.is_clean();
    let cat = |path: &str| guest.text("cat", &[path]);
    assert_eq!(cat("/etc/order"), "0ne\ntw0\nthree\n");
    assert_eq!((cat("/etc/seen"), cat("/etc/ran"), cat("/etc/joined")), (cat("/etc/order"), "0\n".into(), "line".into()));
    assert_eq!(cat("/etc/hostname"), "mail.example.org\n");
    assert_eq!(cat("/etc/hosts"), "127.0.0.1 localhost\n127.0.1.1\tmail.example.org mail\n10.0.0.9 other web2\n");
    assert_eq!(cat("/etc/localtime") + &cat("/etc/motd"), "TZif");
    let list = guest.text("ls", &["-lR", "--uids", "/srv"]);
    for line in [" 0751 ", " 1000 1001 /srv/moved", "/srv/l1 -> ../etc/motd", "/srv/l2 -> ../etc/motd", "/srv/empty", "/srv/a/b/first.sh"] {
        assert!(list.contains(line.trim()), "{line}: {list}");
    }
    assert!(!list.contains("/srv/c") && !list.contains("/srv/a/script"), "{list}");
    assert!(list.contains("0700") && list.contains("/srv/.ssh/authorized_keys"), "{list}");
    assert_eq!(cat("/srv/.ssh/authorized_keys"), "ssh-ed25519 AAAA someone@here\n");
    let shadow = cat("/etc/shadow");
    let field =
        |user: &str| shadow.lines().find_map(|l| l.strip_prefix(&format!("{user}:"))).unwrap().split(':').next().unwrap().to_string();
    for (hash, password) in [(field("root"), "hunter2"), (field("user").trim_start_matches("!!").to_string(), "pw")] {
        let salt = hash.split('$').nth_back(1).unwrap();
        let theirs = run(&["openssl", "passwd", "-6", "-salt", salt, password]);
        assert_eq!(theirs.trim(), hash.replace("rounds=5000$", ""));
    }
    assert!(field("user").starts_with("!!$6$"));
    let scripts = guest.text("ls", &["/usr/lib/guestlift/firstboot"]);
    assert_eq!(scripts, "0001-first-sh\n0002-command\n");
    assert_eq!(cat("/usr/lib/guestlift/firstboot/0002-command"), "#!/bin/sh\necho second\n");
}

#[test]
fn sysprep_takes_away_what_makes_a_guest_one_of_its_kind() {
    if !appliance() {
        return;
    }
    let gone = [
        "etc/ssh/ssh_host_rsa_key",
        "root/.bash_history",
        "var/log/syslog.1",
        "var/log/apt/term.log",
        "tmp/.hidden/file",
        "var/tmp/x",
        "home/user/.ssh/known_hosts",
        "var/lib/systemd/random-seed",
        "etc/shadow-",
        "var/cache/apt/archives/a.deb",
        "var/mail/root",
    ];
    let kept = ["etc/ssh/sshd_config", "var/log/private/x", "home/user/notes", "etc/network-x"];
    let guest = Guest::new(|root| {
        for path in gone.iter().chain(&kept) {
            std::fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            std::fs::write(root.join(path), path).unwrap();
        }
        std::fs::write(root.join("etc/machine-id"), "0123456789abcdef0123456789abcdef\n").unwrap();
        std::fs::create_dir_all(root.join("etc/sysconfig/network-scripts")).unwrap();
        std::fs::write(root.join("etc/sysconfig/network-scripts/ifcfg-eth0"), "DEVICE=eth0\nHWADDR=00:11:22:33:44:55\nONBOOT=yes\n")
            .unwrap();
        // Links that lead to what must stay.
        std::os::unix::fs::symlink("/home/user", root.join("tmp/way")).unwrap();
    });
    let usual = guest.text("sysprep", &["--list-operations"]);
    assert!(usual.contains("machine-id * ") && usual.contains("firewall-rules   "), "{usual}");
    assert!(guest.failure("sysprep", &["--enable", "nothing"]).contains("no operation 'nothing'"));
    guest.text("sysprep", &["--hostname", "clone"]);
    guest.is_clean();
    let left = guest.text("ls", &["-R", "/"]);
    for path in &gone {
        assert!(!left.lines().any(|l| l.trim_start_matches('/') == *path), "{path}");
    }
    for path in &kept {
        assert!(left.lines().any(|l| l.trim_start_matches('/') == *path), "{path}");
    }
    assert_eq!(guest.text("cat", &["/etc/machine-id", "/etc/hostname"]), "clone\n");
    assert_eq!(guest.text("cat", &["/etc/sysconfig/network-scripts/ifcfg-eth0"]), "DEVICE=eth0\nONBOOT=yes\n");
}

#[test]
fn people_and_uuids_are_taken_away_if_asked() {
    if !appliance() {
        return;
    }
    let guest = Guest::new(|root| {
        for home in ["home/ann", "home/bob"] {
            std::fs::create_dir_all(root.join(home)).unwrap();
            std::fs::write(root.join(home).join("notes"), home).unwrap();
        }
    });
    let uuid = || guest.text("filesystems", &["--uuid", "-l", "--no-title", "--csv"]).trim().rsplit(',').next().unwrap().to_string();
    let old = uuid();
    let passwd = "/etc/passwd:ann:x:1001:1001:Ann:/home/ann:/bin/sh";
    let (bob, fstab) = ("/etc/passwd:bob:x:1002:1002:Bob:/home/bob:/bin/sh", format!("/etc/fstab:UUID={old} / ext4 defaults 0 1\n"));
    let words = ["--append-line", passwd, "--append-line", bob, "--write", &fstab, "--append-line", "/etc/group:all:x:50:bob,ann"];
    let words =
        [&words[..], &["--append-line", "/etc/group:bob:x:1002:", "--chown", "1001:1001:/home/ann", "--chown", "1002:1002:/home/bob"]];
    guest.text("customize", &words.concat());
    let wrong = guest.failure("sysprep", &["--enable", "utmp", "--keep-user-accounts", "ann"]);
    assert!(wrong.contains("user-account"), "{wrong}");
    guest.text("sysprep", &["--enable", "user-account,fs-uuids,lvm-uuids", "--keep-user-accounts", "ann"]);
    guest.is_clean();
    assert_ne!(uuid(), old);
    assert_eq!(guest.text("cat", &["/etc/fstab"]), format!("UUID={} / ext4 defaults 0 1\n", uuid()));
    assert_eq!(guest.text("cat", &["/etc/passwd"]), "root:x:0:0:root:/root:/bin/sh\nann:x:1001:1001:Ann:/home/ann:/bin/sh\n");
    assert_eq!(guest.text("cat", &["/etc/group"]), "root:x:0:\nusers:x:1001:\nall:x:50:ann\n");
    assert_eq!(guest.text("ls", &["/home"]), "ann\n");
    assert!(guest.text("ls", &["/"]).contains("srv"), "a folder of the system's is nobody's home");
}

#[test]
fn lvm_gets_other_uuids_and_keeps_its_names() {
    if !appliance() {
        return;
    }
    // The same system on a logical volume, whose group fills the disk.
    let donor = Guest::new(|_| {});
    donor.text("tar-out", &["/", "root.tar"]);
    let disk = donor.at("lvm.img");
    std::fs::File::create(&disk).unwrap().set_len(112 << 20).unwrap();
    let virt = |command: &str, args: &[&str]| run(&[&[env!("CARGO_BIN_EXE_virt"), command, "-a", &disk], args].concat());
    let script = donor.at("script");
    let tar = donor.at("root.tar");
    let lines = format!(
        "run\npvcreate /dev/sda\nvgcreate vg /dev/sda\nlvcreate root vg 80\nmkfs ext4 /dev/vg/root\nmount /dev/vg/root /\ntar-in {tar} /\n\
         write /etc/fstab '/dev/vg/root / ext4 defaults 0 1'\n"
    );
    std::fs::write(&script, lines).unwrap();
    virt("shell", &["-f", &script]);
    // LVM's own reading of the disk, before and after.
    let ids = || {
        let (head, text) = (run(&["pvck", "--dump", "headers", &disk]), run(&["pvck", "--dump", "metadata", &disk]));
        let pv = head.lines().find_map(|l| l.trim().strip_prefix("pv_header.pv_uuid")).unwrap().trim().to_string();
        let id = text.lines().find_map(|l| l.trim().strip_prefix("id = ")).unwrap().to_string();
        assert!(text.contains("vg {") && text.contains("root {"), "{text}");
        (pv, id)
    };
    let before = ids();
    virt("sysprep", &["-q", "--enable", "lvm-uuids,fs-uuids"]);
    let after = ids();
    assert!(before.0 != after.0 && before.1 != after.1, "{before:?} {after:?}");
    assert_eq!(virt("cat", &["/etc/motd"]), "hello\n");
    // Where GRUB finds /boot by them they stay, even if the filesystems' change.
    virt("customize", &["-q", "--mkdir", "/boot/grub", "--write", "/boot/grub/grub.cfg:set root='lvmid/a/b'"]);
    let uuid = virt("filesystems", &["--long", "--uuid", "--csv", "--no-title"]);
    virt("sysprep", &["-q", "--enable", "lvm-uuids,fs-uuids"]);
    assert_eq!(ids(), after);
    assert_ne!(virt("filesystems", &["--long", "--uuid", "--csv", "--no-title"]), uuid);
}

/// A Debian guest of scripts/make-guest behind an overlay, and its root filesystem's file.
fn debian(dir: &Path) -> Option<PathBuf> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let made = Command::new(top.join("scripts/make-guest")).args(["--suite", "bookworm", "--variant", "wholedisk"]).output().unwrap();
    if !made.status.success() {
        let why = String::from_utf8_lossy(&made.stderr).into_owned();
        assert!(std::env::var_os("CI").is_none(), "no Debian guest: {why}");
        eprintln!("skipped: no Debian guest: {why}");
        return None;
    }
    let folder = PathBuf::from(String::from_utf8(made.stdout).unwrap().trim());
    let env = std::fs::read_to_string(folder.join("guest.env")).unwrap();
    let disks = env.lines().find_map(|l| l.strip_prefix("DISKS=")).unwrap().trim_matches('"').to_string();
    let base = disks.split(' ').next().unwrap().to_string();
    let disk = dir.join("debian.qcow2");
    run(&["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", &base, disk.to_str().unwrap()]);
    Some(disk)
}

#[test]
fn debian_is_changed_by_its_own_package_manager() {
    if !appliance() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = debian(dir.path()) else { return };
    let disk = disk.to_str().unwrap();
    let package = dir.path().join("tool");
    std::fs::create_dir_all(package.join("DEBIAN")).unwrap();
    std::fs::create_dir_all(package.join("usr/share/tool")).unwrap();
    std::fs::write(package.join("usr/share/tool/file"), "tool").unwrap();
    let control = "Package: guestlift-tool\nVersion: 1.0\nArchitecture: all\nMaintainer: N <n@example.org>\nDescription: x\n";
    std::fs::write(package.join("DEBIAN/control"), control).unwrap();
    let deb = dir.path().join("tool.deb");
    run(&["dpkg-deb", "-b", package.to_str().unwrap(), deb.to_str().unwrap()]);
    let virt =
        |command: &str, args: &[&str]| run(&[&[env!("CARGO_BIN_EXE_virt"), command, "-a", disk, "--allow-path", "/"], args].concat());
    let words = ["--install", deb.to_str().unwrap(), "--run-command", "dpkg -s guestlift-tool > /root/status", "--hostname", "changed"];
    virt("customize", &words);
    assert_eq!(virt("cat", &["/usr/share/tool/file"]), "tool");
    assert!(virt("cat", &["/root/status"]).contains("Status: install ok installed"));
    virt("sysprep", &["--uninstall", "guestlift-tool", "--firstboot-command", "touch /root/started"]);
    assert!(virt("inspector", &["--json"]).contains("changed"));
    assert_eq!(virt("cat", &["/etc/machine-id"]), "");
    let wants = virt("ls", &["/etc/systemd/system/multi-user.target.wants"]);
    assert!(wants.contains("guestlift-firstboot.service"), "{wants}");
    assert!(!virt("inspector", &[]).contains("guestlift-tool"));
    let raw = dir.path().join("debian.raw");
    run(&["qemu-img", "convert", "-O", "raw", disk, raw.to_str().unwrap()]);
    run(&["e2fsck", "-fn", raw.to_str().unwrap()]);
}
