//! What the cross-checks share: a repeatable random source, and running qemu's tools.

#![allow(dead_code, missing_docs)]

pub mod images;
pub mod vhd;

use std::path::Path;
use std::process::Command;

/// A small repeatable random source.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }

    /// Bytes that are neither constant nor easy to mistake for others.
    pub fn bytes(&mut self, len: u64) -> Vec<u8> {
        let seed = self.next();
        (0..len).map(|i| (seed.wrapping_add(i / 7).wrapping_mul(0x9e37_79b9) >> 11) as u8 | 1).collect()
    }
}

/// Whether `tool` can be run here; says so when not, and fails where everything must be installed.
pub fn have(tool: &str) -> bool {
    let there = Command::new(tool).arg("--version").output().is_ok_and(|out| out.status.success());
    if !there {
        eprintln!("skipped: {tool} is not installed");
        assert!(std::env::var_os("CI").is_none(), "{tool} must be installed in CI");
    }
    there
}

/// Runs `program` and gives its exit code and all that it printed.
pub fn run(program: &str, args: &[&str], folder: &Path) -> (i32, String) {
    let out = Command::new(program).args(args).current_dir(folder).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    (out.status.code().unwrap_or(-1), text)
}

/// Runs `program` and expects success.
pub fn ok(program: &str, args: &[&str], folder: &Path) -> String {
    let (code, text) = run(program, args, folder);
    assert_eq!(code, 0, "{program} {args:?}: {text}");
    text
}
