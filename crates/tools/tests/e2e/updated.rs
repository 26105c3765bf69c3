//! What becomes of a result in use: it is started again, then it takes the kernel of the distribution's next release, and starts that.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::booted::{CONVERSION, healthy};
use crate::console::{Console, Hardware, Writes};
use crate::guest::{Guest, run, top};

/// Longest update that is waited for: an initrd is built in it.
const UPDATE: Duration = Duration::from_secs(1200);

/// What Debian's kernel packages run when their files are there.
pub const DEBIANS_HOOKS: &str = "run-parts --exit-on-error --arg=$v --arg=/boot/vmlinuz-$v /etc/kernel/postinst.d";

/// Starts a result twice, gives it a newer kernel, and starts that. `hooks` is what its distribution's package does with a new kernel `$v` whose
/// files are in place.
pub fn takes_a_newer_kernel(guest: &Guest, disks: Vec<PathBuf>, hooks: &str) -> Console {
    let deb = run(Command::new(top().join("scripts/fetch-deb")).args(["trixie", "linux-image-cloud-amd64"]), None, CONVERSION);
    let deb = PathBuf::from(String::from_utf8(deb.stdout).expect("a path").trim());
    let size = deb.metadata().expect("the package is there").len();
    let version = deb.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix("linux-image-")).expect("a kernel package");
    let version = version.split('_').next().expect("a version").to_owned();
    let letter = char::from(b'a' + u8::try_from(disks.len()).expect("few disks"));

    let hardware = Hardware { disks, extra: Some(&deb), agent: None, macs: vec![&guest.mac], writes: Writes::Kept };
    let mut console = Console::start(&hardware);
    console.login(&guest.name, &guest.password);
    healthy(&mut console, guest);
    console.reboot(&guest.name, &guest.password);
    healthy(&mut console, guest);

    let unpack = format!(
        "v={version}; head -c {size} /dev/vd{letter} >/var/tmp/kernel.deb && dpkg-deb --fsys-tarfile /var/tmp/kernel.deb | \
         tar -x -C / --keep-directory-symlink && rm /var/tmp/kernel.deb && depmod $v && {{ {hooks}; }}"
    );
    let (output, code) = console.run(&unpack, UPDATE);
    assert_eq!(code, 0, "{output}");
    console.reboot(&guest.name, &guest.password);
    healthy(&mut console, guest);
    assert_eq!(console.ok("uname -r").trim(), version, "the new kernel is what starts");
    console
}
