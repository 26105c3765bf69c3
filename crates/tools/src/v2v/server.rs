//! Guests that lie on a server: the options that say how it is reached, and the list of what it has.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use imgcore::size;
use v2v::batch::plan::Setting;
use v2v::input::remote::{Packing, Remote};
use v2v::input::xenserver::{self, Vm};

use super::print;
use crate::common::{Failure, json};

/// How a server is reached.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Guests on a XenServer or XCP-ng")]
pub(crate) struct ServerArgs {
    /// List the guests of the host, and convert none
    #[arg(long)]
    pub list: bool,

    #[command(flatten)]
    pub remote: RemoteArgs,
}

/// How a server is asked.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Guests on a XenServer or XCP-ng")]
pub(crate) struct RemoteArgs {
    /// Who asks the host, where its address does not say it; root if not given
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,

    /// The file that holds the password; the environment's GUESTLIFT_PASSWORD if not given
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,

    /// Trust these certificates, in PEM, in place of the system's: authorities, or the host's own
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,

    /// Give a host up that says nothing for so long; 120 if not given
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub timeout: Option<u64>,

    /// Ask the host to pack what it sends: for networks slower than 1 Gbit/s
    #[arg(long, value_name = "METHOD")]
    pub compress: Option<Compress>,

    /// Convert a guest that runs: the host takes a snapshot, which is removed again
    #[arg(long)]
    pub snapshot: bool,
}

/// How a server packs what it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Compress {
    None,
    Gzip,
    Zstd,
}

impl RemoteArgs {
    /// The same in the library's words.
    pub fn remote(&self) -> Remote {
        Remote {
            user: self.user.clone(),
            password_file: self.password_file.clone(),
            ca: self.ca.clone(),
            timeout: self.timeout.map_or(Remote::DEFAULT.timeout, Duration::from_secs),
            compression: match self.compress {
                None | Some(Compress::None) => None,
                Some(Compress::Gzip) => Some(Packing::Gzip),
                Some(Compress::Zstd) => Some(Packing::Zstd),
            },
            snapshot: self.snapshot,
        }
    }

    /// What was given, as a plan has it for all its guests: with paths that hold wherever it is read from.
    pub fn settings(&self) -> Result<Vec<(&'static str, Setting)>, Failure> {
        let mut settings = Vec::new();
        for (name, file) in [("password-file", &self.password_file), ("ca", &self.ca)] {
            let Some(file) = file else { continue };
            let file = std::path::absolute(file)?;
            let text = file.to_str().ok_or_else(|| Failure::new(format!("{}: a plan is UTF-8, and this is not", file.display())))?;
            settings.push((name, Setting::Value(text.into())));
        }
        let compress = self.compress.and_then(|c| Some(c.to_possible_value()?.get_name().to_owned()));
        for (name, value) in [("user", self.user.clone()), ("timeout", self.timeout.map(|t| t.to_string())), ("compress", compress)] {
            settings.extend(value.map(|value| (name, Setting::Value(value))));
        }
        settings.extend(self.snapshot.then_some(("snapshot", Setting::Switch(true))));
        Ok(settings)
    }
}

/// Prints the guests of a host.
pub(super) fn list(host: &Path, remote: &Remote, as_json: bool) -> Result<ExitCode, Failure> {
    let guests = xenserver::list(host, remote)?;
    if as_json {
        json::print(&guests);
    } else {
        print(&table(&guests))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn table(guests: &[Vm]) -> String {
    let width = guests.iter().map(|vm| vm.name.chars().count()).max().unwrap_or(0).clamp(4, 40);
    let mut text = format!("{:<width$}  {:<36}  {:<9}  {:>9}  DISKS\n", "NAME", "UUID", "STATE", "MEMORY");
    for vm in guests {
        let disks: Vec<_> = vm.disks.iter().map(|d| format!("{} {}", d.device, size::human(d.size))).collect();
        let disks = if disks.is_empty() { "none".into() } else { disks.join(", ") };
        text += &format!("{:<width$}  {:<36}  {:<9}  {:>9}  {disks}\n", vm.name, vm.uuid, vm.power_state, size::human(vm.memory));
    }
    text
}
