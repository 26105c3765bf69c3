//! Arrays and encrypted volumes, on each other too: made by mdadm, cryptsetup and LVM in an appliance, read in this process and in
//! another appliance.

use std::path::{Path, PathBuf};

use guestfs::engine::{Command, Engine, Session};
use guestfs::{Attributes, EngineChoice, Ext, Guest, GuestDisk, GuestDiskMut, Keys, MountRequest, OpenOptions, Volumes};
use guestfs_appliance::Appliance;
use imgcore::formats::{Formats, OpenOptions as ImageOptions};
use imgcore::storage::Undo;

use crate::common::*;

const PASSPHRASE: &str = "correct horse";
const LVM: &str = "activation{udev_sync=0 udev_rules=0 monitoring=0} backup{backup=0} devices{use_devicesfile=0}";

/// Runs a program in the appliance that must succeed.
fn run(session: &mut dyn Session, line: &str) -> String {
    run_with(session, line, "")
}

fn run_with(session: &mut dyn Session, line: &str, stdin: &str) -> String {
    let words: Vec<&str> = line.split(' ').map(|word| if word == "LVM" { LVM } else { word }).collect();
    let command = Command { stdin: stdin.into(), ..Command::new(words) };
    let output = session.run_tool(&command).unwrap_or_else(|e| panic!("{line}: {e}"));
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert_eq!(output.status, 0, "{line}: {text}");
    text
}

/// A filesystem on a device, with a file that tells which.
fn fill(session: &mut dyn Session, device: &str) {
    run(session, &format!("mke2fs -q -F -t ext4 {device}"));
    session.mount(device, b"/", "ext4", "rw").unwrap();
    session.mkdir(b"/etc", Attributes::root(0o755)).unwrap();
    session.write(b"/etc/hosts", &mut device.as_bytes(), None).unwrap();
    session.write(b"/noise", &mut noise(device).as_slice(), None).unwrap();
    session.unmount_all().unwrap();
}

/// Bytes that differ everywhere.
fn noise(seed: &str) -> Vec<u8> {
    let mut state = seed.bytes().fold(7u64, |n, b| n.wrapping_mul(31).wrapping_add(b.into()));
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    (0..3 << 20).map(|_| next()).collect()
}

fn disks(paths: &[PathBuf]) -> Vec<GuestDisk> {
    let open = |path: &PathBuf| Formats::new().open(path, &ImageOptions::new(&imgcore::LocalGate)).unwrap();
    paths.iter().enumerate().map(|(i, p)| GuestDisk { name: format!("xvd{}", guestfs::volume::letters(i)), image: open(p) }).collect()
}

fn writable_disks(paths: &[PathBuf]) -> Vec<GuestDiskMut> {
    let open = |path: &PathBuf| Formats::new().open_mut(path, &ImageOptions::new(&imgcore::LocalGate)).unwrap();
    paths.iter().enumerate().map(|(i, p)| GuestDiskMut { name: format!("xvd{}", guestfs::volume::letters(i)), image: open(p) }).collect()
}

fn start(paths: &[PathBuf]) -> Box<dyn Session> {
    let disks = paths.iter().map(|p| writable(p)).collect();
    Engine::start(&Appliance::new(), disks, true).unwrap_or_else(|e| panic!("{e}"))
}

fn mount(device: &str) -> [MountRequest; 1] {
    [MountRequest { device: device.into(), path: "/".into(), options: String::new(), filesystem: String::new() }]
}

fn keys() -> Keys {
    let mut keys = Keys::default();
    keys.add(&format!("all:key:{PASSPHRASE}")).unwrap();
    keys
}

/// Reads what [`fill`] wrote to `made` from `device`, in this process or in an appliance.
fn holds(paths: &[PathBuf], device: &str, made: &str, engine: EngineChoice) {
    let (appliance, keys) = (Appliance::new(), keys());
    let options = OpenOptions { engine, appliance: Some(&appliance), keys: Some(&keys), ..OpenOptions::default() };
    let guest = Guest::open_with_mounts(disks(paths), &mount(device), &options).unwrap_or_else(|e| panic!("{device}: {e}"));
    assert_eq!(guest.fs().read(b"/etc/hosts", 100).unwrap(), made.as_bytes());
    assert!(guest.fs().read(b"/noise", 1 << 30).unwrap() == noise(made), "{device}");
    guest.shutdown().unwrap();
}

fn images(dir: &Path, count: usize, mib: u64) -> Vec<PathBuf> {
    (0..count).map(|i| empty(dir, &format!("disk{i}"), mib)).collect()
}

#[test]
fn arrays_are_read_in_process_and_in_the_appliance() {
    let dir = scratch();
    let paths = images(dir.path(), 5, 100);
    let mut session = start(&paths);
    let s = session.as_mut();
    for letter in ["a", "b", "c"] {
        // Nine partitions of 10 MiB.
        let table: String = (0..9).map(|i| format!("start={}, size=20480\n", 2048 + i * 20480)).collect();
        run_with(s, &format!("sfdisk -q --no-tell-kernel --no-reread /dev/vd{letter}"), &format!("label: gpt\n{table}"));
        s.reread_partitions(&format!("/dev/vd{letter}")).unwrap();
    }
    let make = |s: &mut dyn Session, number: u32, arguments: &str, members: &str| {
        run(s, &format!("mdadm --create /dev/md{number} --run --quiet --homehost=box --assume-clean {arguments} {members}"));
    };
    make(s, 1, "--metadata=1.2 --level=1 --raid-devices=2 --name=root", "/dev/vda1 /dev/vdb1");
    make(s, 2, "--metadata=0.90 --level=1 --raid-devices=2", "/dev/vda2 /dev/vdb2");
    make(s, 3, "--metadata=1.0 --level=1 --raid-devices=3", "/dev/vda3 /dev/vdb3 missing");
    make(s, 4, "--metadata=1.1 --level=linear --raid-devices=2", "/dev/vda4 /dev/vdb4");
    make(s, 5, "--metadata=0.90 --level=linear --rounding=64 --raid-devices=2", "/dev/vda5 /dev/vdb5");
    make(s, 6, "--metadata=1.2 --level=0 --chunk=64 --raid-devices=3", "/dev/vda6 /dev/vdb6 /dev/vdc6");
    make(s, 7, "--metadata=1.2 --level=5 --raid-devices=3 --name=parity", "/dev/vda7 /dev/vdb7 /dev/vdc7");
    make(s, 8, "--metadata=1.2 --level=10 --raid-devices=3", "/dev/vda8 /dev/vdb8 /dev/vdc8");
    // A mirror of whole disks, with partitions in it: its superblock is at the end, a partition table at the beginning.
    make(s, 9, "--metadata=1.0 --level=1 --raid-devices=2", "/dev/vdd /dev/vde");
    run_with(s, "sfdisk -q --no-tell-kernel --no-reread /dev/md9", "label: dos\nstart=2048, size=40960\n");
    s.reread_partitions("/dev/md9").unwrap();
    let mut made = Vec::new();
    for number in 1..=8 {
        made.push(format!("/dev/md{number}"));
    }
    made.push("/dev/md9p1".into());
    made.iter().for_each(|device| fill(s, device));
    // One half of the first mirror misses what is written from here on.
    run(s, "mdadm --quiet /dev/md1 --fail /dev/vda1");
    fill(s, "/dev/md1");
    let blkid: Vec<String> = ["/dev/vda1", "/dev/vda2"].map(|d| run(s, &format!("blkid -p -s UUID -o value {d}"))).to_vec();
    session.shutdown().unwrap();

    let volumes = Volumes::open(disks(&paths)).unwrap();
    for (device, uuid) in ["/dev/xvda1", "/dev/xvda2"].iter().zip(blkid) {
        let volume = &volumes.volumes[volumes.find(device.as_bytes()).unwrap()];
        assert_eq!(volume.content.as_ref().unwrap().uuid.as_deref(), Some(uuid.trim()), "{device}");
    }
    let device = |alias: &str| {
        let found = volumes.find(alias.as_bytes()).unwrap_or_else(|| panic!("{alias}: {:#?}", volumes.volumes));
        volumes.volumes[found].device.clone()
    };
    let named = |number: &str| if number == "1" { "/dev/md/root".into() } else { format!("/dev/md{number}") };
    for made in &made {
        let number = made.trim_start_matches("/dev/md");
        let found = match number {
            "7" => device("/dev/md/parity"),
            _ => device(&named(number)),
        };
        if ["7", "8"].contains(&number) {
            assert!(volumes.volumes[volumes.find(found.as_bytes()).unwrap()].only_in_appliance, "{made}");
        } else {
            holds(&paths, &found, made, EngineChoice::Direct);
        }
    }
    for (alias, made) in
        [("/dev/md/root", "/dev/md1"), ("/dev/md/parity", "/dev/md7"), ("/dev/md8", "/dev/md8"), ("/dev/md9p1", "/dev/md9p1")]
    {
        holds(&paths, alias, made, EngineChoice::Appliance);
    }
    assert!(volumes.complaints.iter().any(|c| c.contains("box:root) lacks 1 of its members")), "{:?}", volumes.complaints);
    // What is written goes to both halves, and leaves the array as a guest that was shut down does: nothing to be rebuilt.
    let (appliance, keys) = (Appliance::new(), keys());
    let options = OpenOptions { appliance: Some(&appliance), keys: Some(&keys), ..OpenOptions::default() };
    let mut guest = Guest::open_writable(writable_disks(&paths), Undo::default(), &mount("/dev/md2"), &options).unwrap();
    guest.session().unwrap().write(b"/new", &mut &b"written"[..], None).unwrap();
    guest.shutdown().unwrap();
    for half in [&paths[..1], &paths[1..2]] {
        let direct = OpenOptions { engine: EngineChoice::Direct, ..OpenOptions::default() };
        let guest = Guest::open_with_mounts(disks(half), &mount("/dev/md2"), &direct).unwrap();
        assert_eq!(guest.fs().read(b"/new", 100).unwrap(), b"written");
    }
    let mut session = start(&paths);
    let examined = run(session.as_mut(), "mdadm --examine /dev/vda2");
    session.shutdown().unwrap();
    assert!(examined.lines().any(|line| line.trim() == "State : clean"), "{examined}");
    // Without the disk that both halves of a linear array need.
    let alone = Volumes::open(disks(&paths[..1])).unwrap();
    assert!(alone.complaints.iter().any(|c| c.contains("(box:4) lacks 1")), "{:?}", alone.complaints);
    holds(&paths[..1], "/dev/md2", "/dev/md2", EngineChoice::Direct);
}

#[test]
fn encrypted_volumes_open_with_their_keys() {
    let dir = scratch();
    let cheap1 = "--pbkdf-force-iterations=1000";
    let cheap2 = "--pbkdf=argon2id --pbkdf-memory=1024 --pbkdf-parallel=2 --pbkdf-force-iterations=4";
    let kinds = [
        format!("--type=luks1 {cheap1} --cipher=aes-xts-plain64 --key-size=512 --hash=sha256"),
        format!("--type=luks1 {cheap1} --cipher=aes-cbc-essiv:sha256 --key-size=256 --hash=sha1"),
        format!("--type=luks2 {cheap2} --sector-size=4096"),
        format!("--type=luks2 --pbkdf=pbkdf2 {cheap1} --key-size=256 --hash=sha512"),
        format!("--type=luks2 {cheap2} --cipher=serpent-xts-plain64 --keyslot-cipher=aes-xts-plain64 --keyslot-key-size=512"),
    ];
    let paths = images(dir.path(), kinds.len(), 40);
    let mut session = start(&paths);
    let s = session.as_mut();
    let uuid = |number: usize| format!("00000000-1111-2222-3333-00000000000{number}");
    for (number, kind) in kinds.iter().enumerate() {
        let disk = format!("/dev/vd{}", guestfs::volume::letters(number));
        run_with(s, &format!("cryptsetup luksFormat -q --uuid={} {kind} {disk} -", uuid(number)), PASSPHRASE);
        run_with(s, &format!("cryptsetup open --disable-locks {disk} plain{number} --key-file=-"), PASSPHRASE);
        fill(s, &format!("/dev/mapper/plain{number}"));
        run(s, &format!("cryptsetup close plain{number}"));
    }
    session.shutdown().unwrap();

    for number in 0..kinds.len() {
        let (device, made) = (format!("/dev/mapper/luks-{}", uuid(number)), format!("/dev/mapper/plain{number}"));
        // Serpent is the appliance's.
        let engine = if number == 4 { EngineChoice::Auto } else { EngineChoice::Direct };
        holds(&paths, &device, &made, engine);
    }
    // Writing goes through the encryption.
    let (appliance, keys) = (Appliance::new(), keys());
    let options = OpenOptions { appliance: Some(&appliance), keys: Some(&keys), ..OpenOptions::default() };
    let device = format!("/dev/mapper/luks-{}", uuid(2));
    let mut guest = Guest::open_writable(writable_disks(&paths), Undo::default(), &mount(&device), &options).unwrap();
    guest.session().unwrap().write(b"/new", &mut &b"written"[..], None).unwrap();
    guest.shutdown().unwrap();
    let direct = OpenOptions { engine: EngineChoice::Direct, keys: Some(&keys), ..OpenOptions::default() };
    let guest = Guest::open_with_mounts(disks(&paths), &mount(&device), &direct).unwrap();
    assert_eq!(guest.fs().read(b"/new", 100).unwrap(), b"written");

    // Without a key, with a wrong one, and with a header that is damaged where its copy is whole.
    let locked = Volumes::open(disks(&paths)).unwrap();
    assert_eq!((locked.locked.len(), locked.complaints.len()), (5, 0));
    let mut wrong = Keys::default();
    wrong.add("/dev/xvda:key:wrong").unwrap();
    let volumes = Volumes::open_with(disks(&paths), Some(&wrong)).unwrap();
    assert_eq!(volumes.complaints, ["/dev/xvda stays locked: the key is not one of its"]);
    let mut bytes = std::fs::read(&paths[3]).unwrap();
    bytes[4096 + 10] ^= 1;
    std::fs::write(&paths[3], bytes).unwrap();
    holds(&paths, &format!("/dev/mapper/luks-{}", uuid(3)), "/dev/mapper/plain3", EngineChoice::Direct);
}

#[test]
fn volumes_lie_on_volumes() {
    let dir = scratch();
    let paths = images(dir.path(), 5, 80);
    let mut session = start(&paths);
    let s = session.as_mut();
    run(s, "mdadm --create /dev/md1 --run --quiet --homehost=box --assume-clean --level=1 --raid-devices=2 /dev/vdd /dev/vde");
    fill(s, "/dev/md1");
    let scanned = run(s, "mdadm --detail --brief /dev/md1").replace("/dev/md1", "/dev/md/data").replace("/dev/md/1_0", "/dev/md/data");
    // Two logical volumes of a group that spans an encrypted mirror and a disk in the clear.
    run(s, "mdadm --create /dev/md0 --run --quiet --homehost=box --assume-clean --level=1 --raid-devices=2 /dev/vda /dev/vdb");
    run_with(s, "cryptsetup luksFormat -q --type=luks2 --pbkdf=pbkdf2 --pbkdf-force-iterations=1000 /dev/md0 -", PASSPHRASE);
    run_with(s, "cryptsetup open --disable-locks /dev/md0 crypt --key-file=-", PASSPHRASE);
    run(s, "lvm pvcreate -q --config LVM /dev/mapper/crypt /dev/vdc");
    run(s, "lvm vgcreate -q --config LVM vg /dev/vdc /dev/mapper/crypt");
    run(s, "lvm lvcreate -qq -y -Wn -Zn --config LVM -l 20 -n root vg");
    run(s, "lvm lvcreate -qq -y -Wn -Zn --config LVM -l 8 -n small vg");
    fill(s, "/dev/vg/root");
    run_with(s, "cryptsetup luksFormat -q --type=luks1 --pbkdf-force-iterations=1000 /dev/vg/small -", PASSPHRASE);
    run_with(s, "cryptsetup open --disable-locks /dev/vg/small small --key-file=-", PASSPHRASE);
    fill(s, "/dev/mapper/small");
    run(s, "cryptsetup close small");
    // The guest has names of its own for what is encrypted and for arrays.
    s.mount("/dev/vg/root", b"/", "ext4", "rw").unwrap();
    for folder in [&b"/bin"[..], b"/srv", b"/data", b"/etc/mdadm"] {
        s.mkdir(folder, Attributes::root(0o755)).unwrap();
    }
    let fstab =
        "/dev/mapper/vg-root / ext4 defaults 0 1\n/dev/mapper/secrets /srv ext4 defaults 0 2\n/dev/md/data /data ext4 defaults 0 2\n";
    for (path, content) in
        [("/etc/fstab", fstab), ("/etc/crypttab", "secrets /dev/vg/small none luks\n"), ("/etc/mdadm/mdadm.conf", &scanned)]
    {
        s.write(path.as_bytes(), &mut content.as_bytes(), None).unwrap();
    }
    s.unmount_all().unwrap();
    run(s, "lvm vgchange -qq --config LVM -an vg");
    run(s, "cryptsetup close crypt");
    session.shutdown().unwrap();

    holds(&paths, "/dev/vg/root", "/dev/vg/root", EngineChoice::Direct);
    holds(&paths, "/dev/mapper/vg-root", "/dev/vg/root", EngineChoice::Appliance);
    let keys = keys();
    let volumes = Volumes::open_with(disks(&paths), Some(&keys)).unwrap();
    assert_eq!(volumes.complaints, [] as [String; 0]);
    let kinds: Vec<(&str, &str)> = volumes.volumes.iter().map(|v| (v.kind(), v.device.rsplit('/').nth(1).unwrap())).collect();
    let expected = [
        ("linux_raid_member", "dev"),
        ("linux_raid_member", "dev"),
        ("LVM2_member", "dev"),
        ("linux_raid_member", "dev"),
        ("linux_raid_member", "dev"),
        ("crypto_LUKS", "dev"),
        ("ext4", "dev"),
        ("LVM2_member", "mapper"),
        ("ext4", "vg"),
        ("crypto_LUKS", "vg"),
        ("ext4", "mapper"),
    ];
    assert_eq!(kinds, expected);
    let root = &volumes.volumes[8];
    let below: Vec<&str> = volumes.below(root).into_iter().map(|i| volumes.volumes[i].kind()).collect();
    assert_eq!(below, ["LVM2_member", "LVM2_member"]);

    let appliance = Appliance::new();
    for engine in [EngineChoice::Direct, EngineChoice::Appliance] {
        let options = OpenOptions { engine, appliance: Some(&appliance), keys: Some(&keys), ..OpenOptions::default() };
        let guest = Guest::open(disks(&paths), &options).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(guest.fs().read(b"/srv/etc/hosts", 100).unwrap(), b"/dev/mapper/small");
        assert_eq!(guest.fs().read(b"/data/etc/hosts", 100).unwrap(), b"/dev/md1");
        guest.shutdown().unwrap();
    }
}
