//! Commands that run the guest's own programs, in the appliance.

use guestfs::engine;

use super::Command;
use crate::common::Failure;
use crate::virt::launched::checked;
use crate::virt::shell::Shell;

pub(super) const COMMANDS: &[Command] = &[
    Command {
        names: &["command"],
        usage: "WORDS",
        help: "run a program of the guest, and print its output",
        run: |shell, a| {
            let output = run(shell, a.list(0)?)?;
            shell.out.line(&output)
        },
    },
    Command {
        names: &["command-lines"],
        usage: "WORDS",
        help: "run a program of the guest, and print its output's lines",
        run: |shell, a| {
            let output = run(shell, a.list(0)?)?;
            shell.out.bytes(&output)
        },
    },
    Command {
        names: &["sh"],
        usage: "LINE",
        help: "run a line in the guest's shell, and print its output",
        run: |shell, a| {
            let output = run(shell, vec![b"/bin/sh".to_vec(), b"-c".to_vec(), a.word(0).to_vec()])?;
            shell.out.line(&output)
        },
    },
    Command {
        names: &["sh-lines"],
        usage: "LINE",
        help: "run a line in the guest's shell, and print its output's lines",
        run: |shell, a| {
            let output = run(shell, vec![b"/bin/sh".to_vec(), b"-c".to_vec(), a.word(0).to_vec()])?;
            shell.out.bytes(&output)
        },
    },
];

fn run(shell: &mut Shell<'_>, argv: Vec<Vec<u8>>) -> Result<Vec<u8>, Failure> {
    let name = argv.first().map(|w| guestfs::show(w)).ok_or_else(|| Failure::new("no program is named"))?;
    let output = shell.guest()?.tree_mut()?.run(&engine::Command::new(argv))?;
    Ok(checked(&name, output)?.stdout)
}
