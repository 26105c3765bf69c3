//! The command line of `v2v batch`.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use v2v::batch::phase::Phase;

use crate::v2v::server::RemoteArgs;

const EXAMPLES: &str = "\
Examples:
  v2v batch plan.toml --from-dir /etc/xen --from-dir /exports -os /var/lib/libvirt/images
      finds the guests in these folders, looks at each, and writes a plan to edit; converts nothing
  v2v batch plan.toml --from-xenserver xen1 --ca xen1.pem --password-file pw -os /var/lib/libvirt/images
      the same for the guests of a XenServer's or XCP-ng's pool; those that run are in the plan, and disabled
  v2v batch plan.toml
      converts the guests of the plan; run again after a crash, it goes on where it was
  v2v batch plan.toml --phase copy
      copies the disks of all guests while they run; later '--phase update' copies what has changed, as often as you like
  v2v batch plan.toml --phase finish
      converts those that were copied, when they are shut down: only what has changed since is copied
  v2v batch status plan.toml
      shows where each guest is
  v2v batch plan.toml --again web --again db
      converts two guests anew that were converted already
  v2v batch plan.toml --runner slurm
      gives the guests to a cluster, as a job array

The state is in PLAN.state beside the plan (plan.toml: plan.state), the report for people in plan.html.
Exit codes: 0 all converted, 1 some failed or do not boot, 2 the batch could not begin, 130 stopped by Ctrl-C.";

/// Converts many guests by a plan.
#[derive(Debug, Parser)]
#[command(name = "v2v batch", bin_name = "v2v batch", after_help = EXAMPLES, arg_required_else_help = true)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub command: Option<Command>,

    /// The plan; with --from-dir or --from-xenserver it is written, else it is done
    #[arg(value_name = "PLAN", required = true)]
    pub plan: Option<PathBuf>,

    /// Find the guests of this folder (or file) and write the plan: xl and xm configurations, libvirt XML, XVAs, OVFs and OVAs
    #[arg(long, value_name = "DIR", group = "from")]
    pub from_dir: Vec<PathBuf>,

    /// Find the guests of a XenServer's or XCP-ng's pool, by any of its hosts, and write the plan
    #[arg(long, value_name = "[USER@]HOST", group = "from")]
    pub from_xenserver: Vec<PathBuf>,

    /// Work at once on what was found, without a person's look at the plan
    #[arg(long, requires = "from")]
    pub run: bool,

    /// For a new plan: the folder of the results (also -os)
    #[arg(long, value_name = "DIR", requires = "from")]
    pub out: Option<PathBuf>,

    /// For a new plan: an option for all guests, as check-boot=300 or format=raw or force
    #[arg(long, value_name = "NAME[=VALUE]", requires = "from")]
    pub option: Vec<String>,

    /// Do one phase of two: 'copy' copies the disks of guests that may run, 'update' what has changed of them since, and 'finish' converts those
    /// that were copied, when they are shut down. 'forget' removes copies, and the snapshots that a XenServer keeps for them. Without it all is
    /// done: guests that were copied are finished, the others converted in one go
    #[arg(long, value_name = "PHASE", value_parser = phase)]
    pub phase: Option<Phase>,

    /// Work on so many guests at a time
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub jobs: Option<u16>,

    /// Convert this guest anew though it is converted already, and replace its result; with '--phase copy', copy it anew
    #[arg(long, value_name = "GUEST")]
    pub again: Vec<String>,

    /// What does the work
    #[arg(long, value_name = "RUNNER", default_value = "local")]
    pub runner: Runner,

    /// Where the report goes; beside the plan if not given
    #[arg(long, value_name = "FILE.html")]
    pub html: Option<PathBuf>,

    /// Print what happens as JSON lines on standard output
    #[arg(long)]
    pub json: bool,

    /// Say nothing but errors
    #[arg(short, long)]
    pub quiet: bool,

    #[command(flatten)]
    pub remote: RemoteArgs,
}

/// One of the phases, by its name.
fn phase(text: &str) -> Result<Phase, String> {
    let known = [Phase::Copy, Phase::Update, Phase::Finish, Phase::Forget];
    let names = || known.map(Phase::name).join(", ");
    known.into_iter().find(|phase| phase.name() == text).ok_or_else(|| format!("phases are {}", names()))
}

/// What does the work of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Runner {
    /// This machine.
    Local,
    /// A Slurm cluster: a job array is submitted.
    Slurm,
    /// A Kubernetes cluster: the manifest of an Indexed Job is printed, for kubectl.
    Kubernetes,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Shows where each guest of a plan is
    Status {
        /// The plan
        plan: PathBuf,
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Writes the report for people anew, from the state files
    Report {
        /// The plan
        plan: PathBuf,
        /// Where it goes; beside the plan if not given
        #[arg(long, value_name = "FILE.html")]
        html: Option<PathBuf>,
    },
    /// Converts one guest of a plan: what the tasks of a cluster do
    RunOne {
        /// The plan
        plan: PathBuf,
        /// The guest
        #[arg(required_unless_present = "task")]
        guest: Option<String>,
        /// The guest is the one of this number, from 0, in the list of --tasks
        #[arg(long, value_name = "N", requires = "tasks", conflicts_with = "guest")]
        task: Option<usize>,
        /// A list of guests
        #[arg(long, value_name = "FILE", requires = "task")]
        tasks: Option<PathBuf>,
        /// The phase that is done of it
        #[arg(long, value_name = "PHASE", value_parser = phase)]
        phase: Option<Phase>,
        /// Print what happens as JSON lines on standard output
        #[arg(long)]
        json: bool,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }
}
