//! Commands of the shell itself.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use super::{Command, help};
use crate::common::Failure;

pub(super) const COMMANDS: &[Command] = &[
    Command {
        names: &["help"],
        usage: "COMMAND..",
        help: "list the commands, or explain one",
        run: |shell, a| help(&mut shell.out, a.all().first().map(Vec::as_slice)),
    },
    Command {
        names: &["add", "add-drive"],
        usage: "FILE [format:..] [readonly:..]",
        help: "add a disk image",
        run: |shell, a| {
            let format = a.option_text("format")?.map(str::to_string);
            let read_only = a.flag("readonly")? || shell.args.guest.sources.only_reads();
            shell.add(a.word(0), format, read_only)
        },
    },
    Command {
        names: &["add-ro", "add-drive-ro"],
        usage: "FILE [format:..]",
        help: "add a disk image whose changes are forgotten",
        run: |shell, a| {
            let format = a.option_text("format")?.map(str::to_string);
            shell.add(a.word(0), format, true)
        },
    },
    Command { names: &["launch", "run"], usage: "", help: "open the disks", run: |shell, _| shell.launch() },
    Command {
        names: &["shutdown"],
        usage: "",
        help: "end the work on the guest, and write its changes to its disks",
        run: |shell, _| shell.finish(),
    },
    Command {
        names: &["exit", "quit", "q"],
        usage: "",
        help: "end the shell, and write all changes to the disks",
        run: |shell, _| {
            shell.over = true;
            Ok(())
        },
    },
    Command { names: &["echo"], usage: "WORD..", help: "print the arguments", run: |shell, a| shell.out.line(&a.all().join(&b' ')) },
    Command {
        names: &["lcd"],
        usage: "LOCALDIR",
        help: "change the folder of this machine that local names begin in",
        run: |_, a| {
            let folder = OsString::from_vec(a.word(0).to_vec());
            std::env::set_current_dir(&folder).map_err(|e| Failure::new(format!("{}: {e}", folder.to_string_lossy())))
        },
    },
    Command {
        names: &["sync"],
        usage: "",
        help: "write out what the appliance holds back (the disks get it at the end)",
        run: |shell, _| if shell.guest()?.runs() { shell.guest()?.tool(&["sync"], true).map(drop) } else { Ok(()) },
    },
];
