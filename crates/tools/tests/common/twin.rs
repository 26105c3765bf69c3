//! Two equal folders, in which `img` and qemu-img get the same command lines.

use std::path::{Path, PathBuf};

use super::{IMG, Ran, have, run};

/// Equal folders of images, one for each program.
pub struct Twin {
    dir: tempfile::TempDir,
    differences: Vec<String>,
}

impl Twin {
    /// Two folders that `fill` filled alike; `None` where qemu-img is missing.
    pub fn new(fill: impl Fn(&Path)) -> Option<Self> {
        if !have("qemu-img") || !have("qemu-io") {
            return None;
        }
        let twin = Twin { dir: tempfile::tempdir().unwrap(), differences: Vec::new() };
        let start = twin.dir.path().join("start");
        std::fs::create_dir(&start).unwrap();
        fill(&start);
        twin.reset();
        Some(twin)
    }

    pub fn ours(&self) -> PathBuf {
        self.dir.path().join("ours")
    }

    pub fn theirs(&self) -> PathBuf {
        self.dir.path().join("theirs")
    }

    /// Makes both folders what they were at the start.
    pub fn reset(&self) {
        for folder in ["ours", "theirs"] {
            let _ = std::fs::remove_dir_all(self.dir.path().join(folder));
            super::ok("cp", &["-r", "--sparse=always", "start", folder], self.dir.path());
        }
    }

    /// Runs both programs on a command line, words split at spaces (`''` is an empty one), and notes where they differ: in the
    /// exit code, the standard output or the words of the error. After `~` the latter may differ, after `?` both outputs.
    pub fn agree(&mut self, line: &str) {
        let (same_output, same_words) = (!line.starts_with('?'), !line.starts_with(['~', '?']));
        let line = line.trim_start_matches(['~', '?']);
        let args: Vec<&str> = line.split(' ').map(|word| if word == "''" { "" } else { word }).collect();
        let ours = run(IMG, &args, &self.ours());
        let theirs = run("qemu-img", &args, &self.theirs());
        let shown = |ran: &Ran, program: &str| (ran.code, plain(&ran.out, program), plain(&ran.err, program));
        let (ours, theirs) = (shown(&ours, "img"), shown(&theirs, "qemu-img"));
        if ours.0 != theirs.0 || (same_output && ours.1 != theirs.1) || (same_words && ours.2 != theirs.2) {
            self.differences
                .push(format!("$ {line}\nimg ({}): {}{}qemu-img ({}): {}{}", ours.0, ours.1, ours.2, theirs.0, theirs.1, theirs.2));
        }
    }

    /// Runs both on each line, from the same start.
    pub fn agree_on(&mut self, lines: &str) {
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
            self.reset();
            self.agree(line);
        }
    }

    /// Runs both on a line that leaves the image `name`: qemu-img finds no damage, the same content, and the same description.
    pub fn same_image(&mut self, line: &str, name: &str) {
        self.agree(line);
        let description = |folder: &Path| {
            let info = run("qemu-img", &["info", name], folder);
            let shown = info.out.lines().filter(|l| !l.contains("disk size") && !l.contains("file length") && !l.contains(" 20"));
            (info.code, shown.collect::<Vec<_>>().join("\n"))
        };
        let (ours, theirs) = (description(&self.ours()), description(&self.theirs()));
        if ours != theirs {
            self.differences.push(format!("$ {line}\nimg made {}: {}\nqemu-img made {}: {}", ours.0, ours.1, theirs.0, theirs.1));
        }
        let check = run("qemu-img", &["check", "-q", name], &self.ours());
        if ![0, 63].contains(&check.code) {
            self.differences.push(format!("$ {line}\nqemu-img check: {}{}", check.out, check.err));
        }
        let (ours, theirs) = (self.ours().join(name), self.theirs().join(name));
        let compare = run("qemu-img", &["compare", &ours.to_string_lossy(), &theirs.to_string_lossy()], self.dir.path());
        if compare.code != 0 {
            self.differences.push(format!("$ {line}\nqemu-img compare: {}{}", compare.out, compare.err));
        }
    }

    /// As [`same_image`](Self::same_image) for each line, from the same start.
    pub fn same_images(&mut self, lines: &str, name: &str) {
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
            self.reset();
            self.same_image(line, name);
        }
    }

    /// Fails if anything differed.
    pub fn finish(self) {
        assert!(self.differences.is_empty(), "{} differences:\n{}", self.differences.len(), self.differences.join("\n"));
    }
}

/// An output without what may differ: the program's name, our hints, and JSON's layout.
fn plain(text: &str, program: &str) -> String {
    if let Ok(value) = serde_json::from_str::<serde_json::Value>(text) {
        return format!("{value}\n");
    }
    let lines = text.lines().filter(|line| !line.starts_with("Hint: "));
    lines.map(|line| line.replace(&format!("{program} "), "img ").replace(&format!("{program}: "), "img: ") + "\n").collect()
}
