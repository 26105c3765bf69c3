//! A command that needs the appliance gives the same answer whatever /dev/kvm is: what this machine has, absent, forbidden, or real.

#[path = "../../../tests/kvm-host/host.rs"]
mod host;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use host::host;

/// Edits a file and shows it, then fails to edit another; why an engine was chosen goes to a second file.
const COMMANDS: &str = r#"
cd "$1"
cp disk "$2.disk"
./virt edit -v -a "$2.disk" -m /dev/sda /file -e s/before/after/ 2>"$2.why"
{
    echo "edit ended with $?"
    ./virt cat --engine appliance -a "$2.disk" -m /dev/sda /file
    ./virt edit -a "$2.disk" -m /dev/sda /missing -e s/a/b/
    echo "a missing file ended with $?"
} >"$2.answer" 2>&1
"#;

/// Hides /dev/kvm from its own mount namespace.
const WITHOUT: &str = r#"
mkdir "$1/dev"
mount -t tmpfs -o mode=755 dev "$1/dev"
for device in null zero full random urandom; do
    : >"$1/dev/$device"
    mount --bind /dev/$device "$1/dev/$device"
done
mount --move "$1/dev" /dev
sh commands "$1" absent
"#;

/// Nobody in particular, who is in no group.
const NOBODY: [&str; 4] = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];

fn checked(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_answer_is_the_same_wherever_it_is_given() {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "hiding /dev/kvm needs root");
        println!("skipped: hiding /dev/kvm needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
    std::fs::create_dir(path("tree")).unwrap();
    std::fs::write(path("tree/file"), "before\n").unwrap();
    checked(Command::new("/sbin/mke2fs").args(["-q", "-t", "ext4", "-d"]).args([path("tree"), path("disk")]).arg("16M"));
    std::fs::write(path("commands"), COMMANDS).unwrap();
    std::fs::write(path("without"), WITHOUT).unwrap();
    // Where nobody may read them.
    let files = guestfs_appliance::locate::files().unwrap();
    let monitor = guestfs_appliance::locate::monitor().unwrap();
    let virt = Path::new(env!("CARGO_BIN_EXE_virt"));
    for (from, name) in [(&*files.kernel, "vmlinux"), (&files.initramfs, "initramfs.cpio"), (&monitor, "vmm-mini"), (virt, "virt")] {
        std::fs::copy(from, path(name)).unwrap();
    }
    let run = |mut command: Command, words: &[&str]| {
        command.args(words).current_dir(dir.path());
        checked(command.env("GUESTLIFT_APPLIANCE", dir.path()).env("GUESTLIFT_TEMPLATES", "off").env_remove("GUESTLIFT_ACCEL"));
    };
    let folder = dir.path().to_str().unwrap();
    run(Command::new("sh"), &["commands", folder, "here"]);
    run(Command::new(NOBODY[0]), &[&NOBODY[1..], &["sh", "commands", folder, "forbidden"]].concat());
    run(Command::new("unshare"), &["--mount", "sh", "without", folder]);
    run(host(), &["--out", folder, "sh", "commands", folder, "real"]);

    let read = |name: String| std::fs::read_to_string(path(&name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let answer = "edit ended with 0\nafter\nvirt-edit: /missing: no such file or directory\na missing file ended with 1\n";
    let reasons =
        [("here", "The appliance runs "), ("real", "vmm-mini on KVM: "), ("forbidden", "may not open"), ("absent", "no /dev/kvm")];
    for (place, why) in reasons {
        let said = read(format!("{place}.why"));
        assert_eq!(read(format!("{place}.answer")), answer, "{place}: {said}");
        assert!(said.contains(why), "{place}: {said}");
        checked(Command::new("/sbin/e2fsck").arg("-fn").arg(path(&format!("{place}.disk"))));
    }
}
