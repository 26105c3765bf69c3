//! All operations. A new one is a function and a line here; virt-customize and virt-sysprep have the same.

use super::{Action, Value, accounts, files, firstboot, packages, system};
use crate::common::Failure;

/// An operation on a guest.
pub(in super::super) struct Operation {
    /// Its flag, without dashes.
    pub name: &'static str,
    /// What its value is called; empty for those that have none.
    pub value: &'static str,
    pub help: &'static str,
    /// Checks the value, before anything is started, and makes what is to be done of it.
    pub parse: fn(&Value) -> Result<Action, Failure>,
}

const fn op(name: &'static str, value: &'static str, help: &'static str, parse: fn(&Value) -> Result<Action, Failure>) -> Operation {
    Operation { name, value, help, parse }
}

/// Those that are about files alone, and so go for every system.
pub(super) const ON_FILES: &[&str] = &[
    "append-line",
    "chmod",
    "chown",
    "copy",
    "copy-in",
    "delete",
    "edit",
    "link",
    "mkdir",
    "move",
    "no-logfile",
    "scrub",
    "touch",
    "truncate",
    "truncate-recursive",
    "upload",
    "write",
];

pub(in super::super) const OPERATIONS: &[Operation] = &[
    op("append-line", "FILE:LINE", "Append a line to a file", files::append_line),
    op("chmod", "PERMISSIONS:FILE", "Change a file's permissions; octal with a 0 in front", files::chmod),
    op("chown", "USER[:GROUP]:FILE", "Change a file's owner, by names or numbers", files::chown),
    op("copy", "SOURCE:DEST", "Copy files or folders inside the guest", files::copy),
    op("copy-in", "LOCALPATH:REMOTEDIR", "Copy files or folders of this machine into a folder of the guest", files::copy_in),
    op("delete", "PATH", "Delete files or whole folders; PATH may have *, ? and [...]", files::delete),
    op("edit", "FILE:EXPR", "Change every line of a file by an expression, as virt-edit -e does", files::edit),
    op("firstboot", "SCRIPT", "Run a script of this machine when the guest starts for the first time", firstboot::script),
    op("firstboot-command", "COMMAND", "Run a command line when the guest starts for the first time", firstboot::command),
    op("firstboot-install", "PKG,...", "Install packages by name when the guest starts for the first time", packages::at_first_boot),
    op("hostname", "HOSTNAME", "Set the guest's name", system::hostname),
    op(
        "install",
        "PKG,...",
        "Install packages with the guest's package manager: files of this machine, or with --network names",
        packages::install,
    ),
    op("link", "TARGET:LINK[:LINK...]", "Make symbolic links", files::link),
    op("mkdir", "DIR", "Make a folder and those above it", files::mkdir),
    op("move", "SOURCE:DEST", "Move files or folders inside the guest", files::rename),
    op("no-logfile", "", "Remove the log that libguestfs's programs leave in a guest; these leave none", system::no_logfile),
    op("password", "USER:SELECTOR", "Set a password: password:TEXT, file:FILE, random, disabled, locked[:...]", accounts::password),
    op("root-password", "SELECTOR", "Set root's password", accounts::root_password),
    op("run", "SCRIPT", "Run a script of this machine in the guest", system::run),
    op("run-command", "COMMAND", "Run a command line in the guest", system::run_command),
    op("scrub", "FILE", "Overwrite a file and delete it", files::scrub),
    op("selinux-relabel", "", "Give all files their SELinux labels, now or at the next start", system::selinux_relabel),
    op("ssh-inject", "USER[:SELECTOR]", "Let a user log in with an ssh key: file:FILE, string:KEY, or your own", accounts::ssh_inject),
    op("timezone", "TIMEZONE", "Set the time zone, such as Europe/London", system::timezone),
    op("touch", "FILE", "Make an empty file, or set its times to now", files::touch),
    op("truncate", "FILE", "Empty a file", files::truncate),
    op("truncate-recursive", "PATH", "Empty all files below a folder", files::truncate_recursive),
    op("uninstall", "PKG,...", "Remove packages with the guest's package manager", packages::uninstall),
    op("update", "", "Bring all packages up to date, from the guest's mirrors (with --network)", packages::update),
    op("upload", "FILE:DEST", "Write a file of this machine to the guest, with its owner and mode", files::upload),
    op("write", "FILE:CONTENT", "Write text to a file", files::write),
];
