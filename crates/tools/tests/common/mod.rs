//! What the tests of the programs share: running them, and the tools that they are compared with.

#![allow(dead_code, missing_docs)]

pub mod batch;
pub mod small;
pub mod twin;
pub mod xenserver;

use std::path::Path;
use std::process::Command;

pub const IMG: &str = env!("CARGO_BIN_EXE_img");

/// Whether `tool` can be run here; says so when not, and fails where everything must be installed.
pub fn have(tool: &str) -> bool {
    let there = Command::new(tool).arg("--version").output().is_ok_and(|out| out.status.success());
    if !there {
        eprintln!("skipped: {tool} is not installed");
        assert!(std::env::var_os("CI").is_none(), "{tool} must be installed in CI");
    }
    there
}

/// What a program gave.
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// Runs `program` in `folder`.
pub fn run(program: &str, args: &[&str], folder: &Path) -> Ran {
    let out = Command::new(program).args(args).current_dir(folder).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Ran { code: out.status.code().unwrap_or(-1), out: text(&out.stdout), err: text(&out.stderr) }
}

/// Runs `program`, expects success, and gives its standard output.
pub fn ok(program: &str, args: &[&str], folder: &Path) -> String {
    let ran = run(program, args, folder);
    assert_eq!(ran.code, 0, "{program} {args:?}: {}{}", ran.out, ran.err);
    ran.out
}

/// The same with the arguments in one text, split at spaces.
pub fn sh(program: &str, args: &str, folder: &Path) -> String {
    ok(program, &args.split(' ').collect::<Vec<_>>(), folder)
}
