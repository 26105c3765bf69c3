//! `virt-customize`: a guest changed by operations in their order, all in one start of the appliance.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use self::accounts::Crypto;
pub(super) use self::context::Context;
use self::mirrors::Server;
use self::proxy::Proxy;
use self::table::{ON_FILES, OPERATIONS};
use self::upstream::Upstreams;
use super::Entry;
use super::options::GuestArgs;
use crate::common::Failure;

mod accounts;
mod context;
mod files;
mod firstboot;
pub(super) mod glob;
mod mirrors;
mod packages;
mod proxy;
mod system;
mod table;
mod upstream;

/// This command's line in the table.
pub(super) const ENTRY: Entry = Entry { name: "customize", arguments, run };

/// What both programs have besides operations.
#[derive(Args)]
pub(super) struct Common {
    #[command(flatten)]
    pub guest: GuestArgs,
    /// Do all of it, and forget it instead of changing the disks
    #[arg(short = 'n', long, alias = "dryrun")]
    pub dry_run: bool,
    /// Say nothing but errors
    #[arg(short, long)]
    pub quiet: bool,
    /// Let commands reach the package mirrors that the guest's own settings name, through a proxy of this program
    #[arg(long, overrides_with = "no_network")]
    pub network: bool,
    /// Let them reach nothing, as it is without --network
    #[arg(long)]
    pub no_network: bool,
    /// Let them reach this server too, https if no port is given (may be repeated)
    #[arg(long, value_name = "HOST[:PORT]", requires = "network", value_parser = mirror)]
    pub mirror: Vec<Server>,
    /// How passwords are hashed: sha256, sha512 or yescrypt; without it as the guest does, or sha512
    #[arg(long, value_enum, value_name = "METHOD")]
    pub password_crypto: Option<Crypto>,
    #[command(flatten)]
    ignored: Ignored,
}

/// Flags of libguestfs's that scripts give, and that are about its own machine.
#[derive(Args)]
struct Ignored {
    #[arg(long, hide = true, value_name = "MB")]
    memsize: Option<u32>,
    #[arg(long, hide = true, value_name = "N")]
    smp: Option<u32>,
    #[arg(long, hide = true)]
    no_selinux_relabel: bool,
    #[arg(long, hide = true, aliases = ["color", "colour", "colours"])]
    colors: bool,
    #[arg(long, hide = true)]
    wrap: bool,
}

fn mirror(text: &str) -> Result<Server, String> {
    Server::parse(text, 443).ok_or_else(|| "a server's name is wanted, with :PORT if it is not 443".into())
}

impl Common {
    /// The way out for commands, if there is one.
    fn proxy(&self, c: &Context<'_>) -> Result<Option<Arc<Proxy>>, Failure> {
        if !self.network {
            return Ok(None);
        }
        let mirrors = mirrors::of_guest(c)?;
        for server in mirrors.iter().chain(&self.mirror) {
            c.say(&format!("Commands may reach {server}"));
        }
        Ok(Some(Arc::new(Proxy::new(mirrors, self.mirror.iter().cloned().collect(), Upstreams::of_host()))))
    }
}

/// Something that is done to a guest.
pub(super) type Action = Box<dyn Fn(&mut Context<'_>) -> Result<(), Failure>>;

fn act(action: impl Fn(&mut Context<'_>) -> Result<(), Failure> + 'static) -> Result<Action, Failure> {
    Ok(Box::new(action))
}

/// An operation's value, as the user wrote it.
pub(super) struct Value {
    operation: &'static str,
    text: Vec<u8>,
}

impl Value {
    fn bytes(&self) -> &[u8] {
        &self.text
    }

    /// What is wrong with it.
    fn wrong(&self, what: &str) -> Failure {
        Failure::new(format!("--{} '{}': {what}", self.operation, guestfs::show(&self.text)))
    }

    /// An absolute path in the guest.
    fn path(&self) -> Result<Vec<u8>, Failure> {
        if self.text.starts_with(b"/") { Ok(self.text.clone()) } else { Err(self.wrong("it must be an absolute path in the guest")) }
    }

    /// What is before and behind the first colon.
    fn pair(&self) -> Result<(Vec<u8>, Vec<u8>), Failure> {
        let at = self.text.iter().position(|b| *b == b':').filter(|at| *at > 0);
        let at = at.ok_or_else(|| self.wrong("two parts with a colon between them are needed"))?;
        Ok((self.text[..at].to_vec(), self.text[at + 1..].to_vec()))
    }

    /// The same, where the second is an absolute path.
    fn pair_to_path(&self) -> Result<(Vec<u8>, Vec<u8>), Failure> {
        let (first, path) = self.pair()?;
        if path.starts_with(b"/") { Ok((first, path)) } else { Err(self.wrong("the path must be an absolute one in the guest")) }
    }
}

/// Adds the flags of all operations.
pub(super) fn operations(command: Command) -> Command {
    let command = command.next_help_heading("Operations, in the order in which they are given");
    let command = OPERATIONS.iter().fold(command, |command, operation| {
        let arg = Arg::new(operation.name).long(operation.name).help(operation.help);
        command.arg(match operation.value {
            "" => arg.action(ArgAction::SetTrue),
            value => arg.value_name(value).action(ArgAction::Append).value_parser(clap::value_parser!(OsString)),
        })
    });
    let file = Arg::new(FROM_FILE).long(FROM_FILE).value_name("FILE").action(ArgAction::Append);
    command.arg(file.value_parser(clap::value_parser!(OsString)).help("Read operations from a file, one in each line, without dashes"))
}

const FROM_FILE: &str = "commands-from-file";

/// What the command line asks for, in its order.
pub(super) fn actions(matches: &ArgMatches) -> Result<Vec<Action>, Failure> {
    let mut found: Vec<(usize, &'static str, Vec<u8>)> = Vec::new();
    for name in OPERATIONS.iter().map(|o| o.name).chain([FROM_FILE]) {
        let takes_value = OPERATIONS.iter().all(|o| o.name != name || !o.value.is_empty());
        if takes_value {
            let values = matches.get_many::<OsString>(name).into_iter().flatten().map(|v| v.as_bytes().to_vec());
            found.extend(matches.indices_of(name).into_iter().flatten().zip(values).map(|(at, value)| (at, name, value)));
        } else if matches.get_flag(name) {
            found.extend(matches.index_of(name).map(|at| (at, name, Vec::new())));
        }
    }
    found.sort_by_key(|(at, ..)| *at);
    let mut actions = Vec::new();
    for (_, name, value) in found {
        if name == FROM_FILE {
            from_file(&value, &mut actions)?;
        } else {
            actions.push(parse(name, value)?);
        }
    }
    Ok(actions)
}

fn parse(name: &str, text: Vec<u8>) -> Result<Action, Failure> {
    let operation = OPERATIONS.iter().find(|o| o.name == name);
    let operation = operation.ok_or_else(|| Failure::new(format!("there is no operation '{name}'")))?;
    let action = (operation.parse)(&Value { operation: operation.name, text })?;
    if ON_FILES.contains(&operation.name) {
        return Ok(action);
    }
    act(move |c| match c.system {
        "linux" => action(c),
        system => {
            Err(Failure::new(format!("--{}: it is for Linux, and this guest is {system}: only files can be changed", operation.name)))
        }
    })
}

/// Lines of an operation and its value; a backslash at the end goes on in the next line.
fn from_file(path: &[u8], actions: &mut Vec<Action>) -> Result<(), Failure> {
    use std::os::unix::ffi::OsStringExt;
    let path = std::path::PathBuf::from(OsString::from_vec(path.to_vec()));
    let text = std::fs::read_to_string(&path).map_err(|e| Failure::new(format!("{}: {e}", path.display())))?;
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let mut line = line.trim_start().to_string();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        while line.ends_with('\\') {
            line.pop();
            line += lines.next().map_or("", |(_, more)| more.trim_start());
        }
        let (name, value) = line.split_once(char::is_whitespace).unwrap_or((&line, ""));
        let action = parse(name, value.trim_start().as_bytes().to_vec());
        actions.push(action.map_err(|f| Failure::new(format!("{}: line {}: {}", path.display(), number + 1, f.message())))?);
    }
    Ok(())
}

/// Opens the guest, does everything in one start, and ends it.
pub(super) fn perform(common: &Common, actions: &[Action]) -> Result<(), Failure> {
    let began = Instant::now();
    if !common.quiet {
        println!("[{:6.1}] Examining the guest ...", 0.0);
    }
    let mut guest = common.guest.open_writable()?;
    let volumes = guest.volumes.clone();
    // What was mounted by hand is taken for Linux, as it was always.
    let system = guest.inspection.as_ref().map_or("linux", |inspection| inspection.system.name());
    let session = guest.session().ok_or_else(|| Failure::new("a guest is changed in the appliance only"))?;
    let mut context = Context {
        system,
        session,
        volumes: &volumes,
        crypto: common.password_crypto,
        quiet: common.quiet,
        verbose: common.guest.talks(),
        began,
        proxy: None,
        grub_names_groups: None,
    };
    context.proxy = common.proxy(&context)?;
    for action in actions {
        action(&mut context)?;
    }
    if common.dry_run {
        context.say("Forgetting all changes, as --dry-run asks");
        return Ok(());
    }
    context.say("Finishing off");
    Ok(guest.shutdown()?)
}

fn arguments(command: Command) -> Command {
    // As in libguestfs, -m is the appliance's memory here.
    let command = Common::augment_args(command).mut_arg("mount", |mount| mount.short(None)).mut_arg("memsize", |memory| memory.short('m'));
    let command = command.about("Change a guest that is not running, by any number of operations").after_help(
        "Examples:\n  virt-customize -a disk.qcow2 --hostname web1 --root-password random --ssh-inject root\n  \
         virt-customize -a disk.qcow2 --install ./tool_1.0_amd64.deb --firstboot-command 'tool --setup'\n  \
         virt-customize -a disk.qcow2 --network --install nginx,curl\n\n\
         When any of them fails, the image is as before. Commands run in the appliance, without a network; with --network they \
         reach the guest's own package mirrors (by http_proxy and https_proxy), and no other server.",
    );
    operations(command)
}

fn run(matches: &ArgMatches) -> Result<ExitCode, Failure> {
    let common = Common::from_arg_matches(matches)?;
    let actions = actions(matches)?;
    perform(&common, &actions)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_checked_before_anything_starts() {
        for (name, value) in [
            ("write", "/x"),
            ("chmod", "999999:/x"),
            ("chmod", "0755:x"),
            ("chown", "root"),
            ("link", "/a"),
            ("delete", "x"),
            ("edit", "/x:nonsense"),
            ("hostname", "a b"),
            ("timezone", "../../etc/passwd"),
            ("password", "root"),
            ("root-password", "secret"),
            ("ssh-inject", "root:what"),
            ("install", "./vim.deb"),
            ("upload", "/nonexistent/file:/x"),
            ("run", "/nonexistent/script"),
        ] {
            let failure = parse(name, value.into()).err().unwrap_or_else(|| panic!("{name} {value}"));
            assert!(value.split(':').any(|part| failure.message().contains(part)), "{}", failure.message());
        }
    }

    #[test]
    fn the_table_is_sorted_and_the_order_is_the_users() {
        assert!(OPERATIONS.is_sorted_by_key(|o| o.name));
        assert!(ON_FILES.iter().all(|name| OPERATIONS.iter().any(|o| o.name == *name)));
        let words = ["virt", "-a", "x", "--write", "/a:1", "--touch", "/b", "--selinux-relabel", "--write", "/a:2"];
        let matches = arguments(Command::new("virt")).try_get_matches_from(words).unwrap();
        assert_eq!(actions(&matches).unwrap().len(), 4);
        let at = |name| matches.indices_of(name).unwrap().collect::<Vec<_>>();
        assert!(at("write")[0] < at("touch")[0] && at("selinux-relabel")[0] < at("write")[1]);
    }
}
