//! Commands about other commands: with all files that a pattern names, and how long they take.

use std::time::Instant;

use super::{Arguments, Command};
use crate::common::Failure;
use crate::virt::customize::glob;
use crate::virt::shell::Shell;

/// Commands that one `glob` runs.
const LIMIT: usize = 100_000;

pub(super) const COMMANDS: &[Command] = &[
    Command {
        names: &["glob"],
        usage: "COMMAND..",
        help: "run a command for each path that the patterns in its arguments name (*, ? and [a-z])",
        run: |shell, a| {
            let mut all: Vec<Vec<Vec<u8>>> = vec![Vec::new()];
            for (at, word) in a.all().iter().enumerate() {
                let named = if at > 0 && word.starts_with(b"/") { expand(shell, word)? } else { vec![word.clone()] };
                let more =
                    |line: &Vec<Vec<u8>>| named.iter().map(|one| [&line[..], std::slice::from_ref(one)].concat()).collect::<Vec<_>>();
                if all.len().saturating_mul(named.len()) > LIMIT {
                    return Err(Failure::new(format!("the patterns name more than {LIMIT} files")));
                }
                all = all.iter().flat_map(more).collect();
            }
            all.iter().try_for_each(|line| shell.run_command(line))
        },
    },
    Command {
        names: &["glob-expand", "glob-expand-opts"],
        usage: "PATTERN [directoryslash:..]",
        help: "list the paths that a pattern names, directories with a slash behind them",
        run: |shell, a| {
            let slash = a.option("directoryslash").is_none() || a.flag("directoryslash")?;
            let fs = shell.guest()?.fs()?;
            let mut paths = glob::expand(fs, a.path(0)?)?;
            for path in &mut paths {
                if slash && guestfs::Ext::is_dir(fs, path) && *path != b"/" {
                    path.push(b'/');
                }
            }
            paths.iter().try_for_each(|path| shell.out.line(path))
        },
    },
    Command {
        names: &["time"],
        usage: "COMMAND..",
        help: "run a command, and print how long it took",
        run: |shell, a: &Arguments| {
            let began = Instant::now();
            shell.run_command(a.all())?;
            shell.out.text(&format!("elapsed time: {:.2} seconds\n", began.elapsed().as_secs_f64()))
        },
    },
];

/// The devices or the files that a word of a command names; a pattern that names none is passed on as it stands, as a shell does.
fn expand(shell: &mut Shell<'_>, word: &[u8]) -> Result<Vec<Vec<u8>>, Failure> {
    let named = matching(shell, word)?;
    Ok(if named.is_empty() { vec![word.to_vec()] } else { named })
}

fn matching(shell: &mut Shell<'_>, word: &[u8]) -> Result<Vec<Vec<u8>>, Failure> {
    if !word.iter().any(|b| matches!(b, b'*' | b'?' | b'[')) {
        return Ok(vec![word.to_vec()]);
    }
    if word.starts_with(b"/dev/") {
        let volumes = shell.guest()?.volumes()?;
        let disks = volumes.disks.iter().map(|disk| format!("/dev/{}", disk.name));
        let mut names: Vec<Vec<u8>> = disks
            .chain(volumes.volumes.iter().map(|v| v.device.clone()))
            .map(String::into_bytes)
            .filter(|name| glob::matches(word, name))
            .collect();
        names.sort();
        names.dedup();
        return Ok(names);
    }
    glob::expand(shell.guest()?.fs()?, word)
}
