//! What lies on guests' disks, and the ways to name disks: listings as libguestfs printed them of the same images.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use guestfs::engine::{Command as ToolCommand, Disk, Engine};
use guestfs_appliance::Appliance;
use imgcore::raw::Raw;
use imgcore::storage::FileStorage;

const UUID: &str = "11111111-2222-3333-4444-00000000000";

struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Self {
        Scratch(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn empty(&self, name: &str, mib: u64) {
        std::fs::File::create(self.path(name)).unwrap().set_len(mib << 20).unwrap();
    }

    /// A tool of the system's, in the folder, that must succeed.
    fn tool(&self, line: &str, stdin: &str) {
        let mut words = line.split(' ');
        let mut command = Command::new(words.next().unwrap());
        command.args(words).current_dir(self.0.path()).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.unwrap_or_else(|e| panic!("{line}: {e}: scripts/setup installs it"));
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), stdin.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn program(&self, program: &str, line: &str) -> Output {
        Command::new(program).args(line.split(' ')).current_dir(self.0.path()).output().unwrap()
    }

    fn virt(&self, line: &str) -> Output {
        self.program(env!("CARGO_BIN_EXE_virt"), line)
    }

    fn text(&self, line: &str) -> String {
        let output = self.virt(line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn failure(&self, line: &str) -> String {
        let output = self.virt(line);
        assert!(!output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).unwrap()
    }

    /// Two disks: one with partitions, logical ones too, and one that is a filesystem.
    fn two_disks(&self) {
        self.empty("parts.img", 300);
        self.empty("whole.img", 64);
        let parts = "primary 2048 133119 mkpart extended 133120 614399 mkpart logical 135168 200703 mkpart logical 202752 300000 mkpart logical 302000 350000";
        self.tool(&format!("parted -s -a none parts.img unit s mklabel msdos mkpart {parts}"), "");
        self.tool(&format!("mke2fs -q -F -t ext4 -L ONE -U {UUID}6 -E offset=1048576 parts.img 64m"), "");
        self.empty("swap", 32);
        self.tool(&format!("mkswap -U {UUID}7 swap"), "");
        self.tool("dd if=swap of=parts.img bs=1M seek=66 conv=notrunc status=none", "");
        self.tool(&format!("mke2fs -q -F -t ext4 -L WHOLE -U {UUID}9 whole.img"), "");
    }
}

const DISKS: &str = "-a parts.img -a whole.img";

#[test]
fn listings_are_libguestfss() {
    let dir = Scratch::new();
    dir.two_disks();
    let all = "\
Name,Type,VFS,Label,MBR,Size,Parent,UUID
/dev/sdb,filesystem,ext4,WHOLE,,57381888,,11111111-2222-3333-4444-000000000009
/dev/sda1,filesystem,ext4,ONE,,57381888,,11111111-2222-3333-4444-000000000006
/dev/sda5,filesystem,swap,,,33554432,,11111111-2222-3333-4444-000000000007
/dev/sda6,filesystem,unknown,,,49791488,,
/dev/sda7,filesystem,unknown,,,24576512,,
/dev/sda1,partition,,,83,67108864,/dev/sda,
/dev/sda2,partition,,,0f,1024,/dev/sda,
/dev/sda5,partition,,,83,33554432,/dev/sda,
/dev/sda6,partition,,,83,49791488,/dev/sda,
/dev/sda7,partition,,,83,24576512,/dev/sda,
/dev/sda,device,,,,314572800,,
/dev/sdb,device,,,,67108864,,
";
    assert_eq!(dir.text(&format!("filesystems --all --long --uuid --csv {DISKS}")), all);
    let parts = "\
Name       Type       MBR  Size  Parent
/dev/sda1  partition  83   64M   /dev/sda
/dev/sda2  partition  0f   1.0K  /dev/sda
/dev/sda5  partition  83   32M   /dev/sda
/dev/sda6  partition  83   47M   /dev/sda
/dev/sda7  partition  83   23M   /dev/sda
/dev/sda   device     -    300M  -
/dev/sdb   device     -    64M   -
";
    assert_eq!(dir.text(&format!("filesystems --blkdevs --parts -l -h {DISKS}")), parts);
    assert_eq!(dir.text(&format!("filesystems {DISKS}")), "/dev/sdb\n/dev/sda1\n");
    let df = "\
Filesystem                           1K-blocks       Used  Available  Use%
parts.img+:/dev/sdb                      56037         14      51437    1%
parts.img+:/dev/sda1                     56037         14      51437    1%
";
    assert_eq!(dir.text(&format!("df {DISKS}")), df);
    let inodes = "\
Filesystem                              Inodes      IUsed      IFree IUse%
parts.img+:/dev/sdb                      16384         11      16373    1%
parts.img+:/dev/sda1                     16384         11      16373    1%
";
    assert_eq!(dir.text(&format!("df -i {DISKS}")), inodes);
    let csv = "VirtualMachine,Filesystem,1K-blocks,Used,Available,Use%\nparts.img,/dev/sda1,56037,14,51437,0.0\n";
    assert_eq!(dir.text("df --csv -a parts.img"), csv);
    let human = dir.text("df -h -a whole.img");
    assert!(human.ends_with("whole.img:/dev/sda                         55M        14K        50M    1%\n"), "{human}");
    let json: serde_json::Value = serde_json::from_str(&dir.text("df --json -a whole.img")).unwrap();
    assert_eq!((json[0]["size"].as_u64(), json[0]["available"].as_u64()), (Some(57381888), Some(51437 << 10)));

    let output = dir.virt(&format!("alignment-scan {DISKS}"));
    let aligned = "\
/dev/sda1      1048576         1024K   ok
/dev/sda2     68157440         1024K   ok
/dev/sda5     69206016         2048K   ok
/dev/sda6    103809024         1024K   ok
/dev/sda7    154624000            8K   bad (alignment < 64K)
";
    assert_eq!((String::from_utf8(output.stdout).unwrap().as_str(), output.status.code()), (aligned, Some(2)));
    dir.empty("old.img", 10);
    dir.tool("sfdisk -q old.img", "label: dos\n63,2000,83\n");
    let output = dir.virt("alignment-scan -q -a old.img");
    assert_eq!((output.stdout.len(), output.status.code()), (0, Some(3)));
    assert_eq!(dir.virt("alignment-scan -a whole.img").status.code(), Some(0));
}

#[test]
fn disks_are_named_in_many_ways() {
    let dir = Scratch::new();
    dir.two_disks();
    let sizes = |line: &str| {
        let listed = dir.text(&format!("filesystems --blkdevs -l --no-title --csv {line}"));
        listed.lines().map(|l| l.split(',').nth(2).unwrap().parse::<u64>().unwrap()).collect::<Vec<_>>()
    };
    // A format holds for what follows it.
    dir.tool("qemu-img create -q -f qcow2 big.qcow2 1G", "");
    let raw = std::fs::metadata(dir.path("big.qcow2")).unwrap().len().next_multiple_of(512);
    assert_eq!(sizes("-a big.qcow2 --format=raw -a big.qcow2 --format -a big.qcow2"), [1 << 30, raw, 1 << 30]);
    let message = dir.failure("filesystems --format=qcow2 -a whole.img");
    assert!(message.contains("whole.img") && message.contains("qcow2"), "{message}");

    // All disks of a container, or one.
    let output = dir.program(env!("CARGO_BIN_EXE_img"), "convert -O xva parts.img whole.img both.xva");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(sizes("-a both.xva"), [300 << 20, 64 << 20]);
    assert_eq!(dir.text("filesystems -a both.xva"), dir.text(&format!("filesystems {DISKS}")));
    let message = dir.failure("filesystems -a both.xva#nonsense");
    assert!(message.contains("nonsense"), "{message}");

    // A server.
    let socket = dir.path("socket");
    let mut server = Command::new("qemu-nbd");
    server.args(["-r", "-f", "raw", "-t", "-x", "one disk", "-k"]).args([&socket, &dir.path("whole.img")]);
    let mut server = server.spawn().expect("qemu-nbd: scripts/setup installs it");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while std::os::unix::net::UnixStream::connect(&socket).is_err() && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let uri = format!("nbd+unix:///one%20disk?socket={}", socket.display());
    let (listed, wrong) =
        (dir.virt(&format!("filesystems -l --csv -a {uri}")), dir.failure(&format!("df -a {}", uri.replace("one", "two"))));
    server.kill().unwrap();
    server.wait().unwrap();
    assert_eq!(String::from_utf8_lossy(&listed.stdout).lines().nth(1), Some("/dev/sda,filesystem,ext4,WHOLE,57381888,"));
    assert!(wrong.contains("two disk"), "{wrong}");
    assert!(dir.failure("filesystems -a ssh://box/disk").contains("ssh: is not supported"));

    // Domains.
    let xml = |name: &str, disk: &str| {
        format!(
            "<domain type='kvm'><name>{name}</name><uuid>{UUID}0</uuid><devices>\
             <disk type='file' device='cdrom'><target dev='hdc'/></disk>\
             <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{disk}'/><target dev='vda'/></disk></devices></domain>"
        )
    };
    std::fs::write(dir.path("web.xml"), xml("web", "parts.img")).unwrap();
    std::fs::write(dir.path("db.xml"), xml("db", dir.path("whole.img").to_str().unwrap())).unwrap();
    let df = dir.text("df --csv -d web.xml -d db.xml");
    let names: Vec<&str> = df.lines().skip(1).map(|l| l.rsplitn(5, ',').last().unwrap()).collect();
    assert_eq!(names, ["web,/dev/vda1", "db,/dev/vda"]);
    assert!(dir.text("df --csv --uuid -d db.xml").contains(&format!("{UUID}0,/dev/vda,")));
    assert!(dir.failure("filesystems -d web.xml -d db.xml").contains("several guests"));
    let message = dir.failure("filesystems -d no-such-guest");
    assert!(message.contains("no-such-guest: there is no such file") && message.contains("virsh"), "{message}");
    assert_eq!(dir.virt("filesystems -c qemu:///system -a whole.img").status.code(), Some(1));
}

#[test]
fn encrypted_guests_open_with_a_key() {
    if let Err(e) = guestfs_appliance::locate::files() {
        assert!(std::env::var_os("CI").is_none(), "{e}");
        eprintln!("skipped: {e}");
        return;
    }
    let dir = Scratch::new();
    dir.empty("disk.img", 48);
    let image = Raw::open(Arc::new(FileStorage::open_writable(dir.path("disk.img")).unwrap())).unwrap();
    let mut session = Engine::start(&Appliance::new(), vec![Disk::Writable(Arc::new(image))], true).unwrap();
    let mut run = |line: &str, stdin: &str| {
        let command = ToolCommand { stdin: stdin.into(), ..ToolCommand::new(line.split(' ')) };
        let output = session.run_tool(&command).unwrap();
        assert_eq!(output.status, 0, "{line}: {}", String::from_utf8_lossy(&output.stderr));
    };
    run("cryptsetup luksFormat -q --type=luks2 --pbkdf=pbkdf2 --pbkdf-force-iterations=1000 /dev/vda -", "hush");
    run("cryptsetup open --disable-locks /dev/vda plain --key-file=-", "hush");
    run("mke2fs -q -F -t ext4 /dev/mapper/plain", "");
    session.mount("/dev/mapper/plain", b"/", "ext4", "rw").unwrap();
    for folder in [&b"/bin"[..], b"/etc"] {
        session.mkdir(folder, guestfs::Attributes::root(0o755)).unwrap();
    }
    session.write(b"/etc/hosts", &mut &b"localhost\n"[..], None).unwrap();
    session.shutdown().unwrap();

    std::fs::write(dir.path("key"), "hush\n").unwrap();
    for key in ["/dev/sda:key:hush", "all:file:key"] {
        assert_eq!(dir.text(&format!("cat --engine direct -a disk.img --key {key} /etc/hosts")), "localhost\n");
    }
    let mapped = dir.text("filesystems -a disk.img --key all:file:key");
    assert!(mapped.starts_with("/dev/mapper/luks-"), "{mapped}");
    assert_eq!(dir.text("df -a disk.img --key all:file:key").lines().count(), 2);
    assert_eq!(dir.text("filesystems -a disk.img"), "");
    let mut child = Command::new(env!("CARGO_BIN_EXE_virt"));
    child.args(["cat", "-a", "disk.img", "--keys-from-stdin", "/etc/hosts"]).current_dir(dir.0.path());
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"hush\n").unwrap();
    assert_eq!(child.wait_with_output().unwrap().stdout, b"localhost\n");
    let message = dir.failure("cat --engine direct -v -x -a disk.img --key all:key:wrongsecret /etc/hosts");
    assert!(message.contains("/dev/sda stays locked: the key is not one of its") && !message.contains("wrongsecret"), "{message}");
    // Changes go through the encryption, in the appliance.
    dir.text("edit -a disk.img --key all:key:hush -e s/localhost/elsewhere/ /etc/hosts");
    assert_eq!(dir.text("cat --engine direct -a disk.img --key all:key:hush /etc/hosts"), "elsewhere\n");
}

/// A header whose content is on another device, as cryptsetup makes it: said to be one.
#[test]
fn a_detached_header_is_called_so() {
    let dir = Scratch::new();
    dir.empty("data.img", 32);
    for kind in ["luks1", "luks2"] {
        dir.empty(kind, 16);
        let format =
            format!("cryptsetup luksFormat -q --type={kind} --pbkdf=pbkdf2 --pbkdf-force-iterations=1000 --header {kind} data.img -");
        dir.tool(&format, "hush");
        let message = dir.failure(&format!("cat --engine direct -a {kind} --key all:key:hush /etc/hosts"));
        assert!(message.contains("detached header"), "{message}");
    }
}
