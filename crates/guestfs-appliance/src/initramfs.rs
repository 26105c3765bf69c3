//! Writes an initramfs: a cpio archive in the "newc" format (the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`), without root and without cpio.

/// An archive in memory. Every file belongs to root; times are 0, so that equal content makes equal bytes.
#[derive(Default)]
pub struct Initramfs {
    bytes: Vec<u8>,
    inodes: u32,
}

impl Initramfs {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory. Parents come before what they hold.
    pub fn dir(&mut self, path: &str, mode: u32) {
        self.entry(path, 0o040000 | mode, (0, 0), &[]);
    }

    /// Adds a regular file.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entry(path, 0o100000 | mode, (0, 0), content);
    }

    /// Adds a character device.
    pub fn char_device(&mut self, path: &str, mode: u32, rdev: (u32, u32)) {
        self.entry(path, 0o020000 | mode, rdev, &[]);
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, rdev: (u32, u32), content: &[u8]) {
        self.inodes += 1;
        let fields = [
            self.inodes,
            mode,
            0, // uid
            0, // gid
            1, // links
            0, // mtime
            u32::try_from(content.len()).expect("a file of the appliance is below 4 GiB"),
            0, // device of the archive's own file, major and minor
            0,
            rdev.0,
            rdev.1,
            u32::try_from(path.len() + 1).expect("a path is short"),
            0, // checksum, not used by this kind
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// The appliance's own initramfs: the agent as `/init`, and the few nodes that it needs before it mounts anything.
pub fn with_agent(agent: &[u8]) -> Vec<u8> {
    let mut archive = Initramfs::new();
    for dir in ["dev", "proc", "sys", "guest", "tmp"] {
        archive.dir(dir, 0o755);
    }
    archive.char_device("dev/console", 0o600, (5, 1));
    archive.file("init", 0o755, agent);
    archive.finish()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn cpio_lists_what_was_put_in() {
        let bytes = super::with_agent(b"#!agent");
        assert_eq!(bytes.len() % 4, 0);
        let Ok(mut cpio) = Command::new("cpio").arg("-itv").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()
        else {
            assert!(std::env::var_os("CI").is_none(), "cpio is missing");
            println!("skipped: cpio is not installed");
            return;
        };
        cpio.stdin.take().unwrap().write_all(&bytes).unwrap();
        let list = cpio.wait_with_output().unwrap();
        assert!(list.status.success());
        let list = String::from_utf8(list.stdout).unwrap();
        let init = list.lines().find(|l| l.ends_with(" init")).unwrap_or_else(|| panic!("no init in {list}"));
        assert!(init.starts_with("-rwxr-xr-x") && init.split_whitespace().nth(4) == Some("7"), "{init}");
        assert!(list.lines().any(|l| l.starts_with("crw") && l.ends_with("dev/console")), "{list}");
    }
}
