//! `v2v batch PLAN --from-dir DIR --from-xenserver HOST`: finds guests, looks at each, and writes the plan.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use v2v::batch::child::Program;
use v2v::batch::look::Seen;
use v2v::batch::phase::Phase;
use v2v::batch::plan::{Options, Setting};
use v2v::batch::{discover, files, look, plan_text};
use v2v::input::xenserver;

use super::args::Args;
use crate::common::{Failure, formats};

/// Why a server's guest is not converted as it is.
const RUNS: &str = "it runs: shut it down, and enable it; or copy its disks now with '--phase copy' and shut it down for '--phase finish'; or write \
    'snapshot = true', which loses what it writes from then on";
/// Looks at guests so many at a time, where nobody says.
const LOOKS: usize = 2;

pub(super) fn write(args: &Args, file: &Path, program: &Path, stop: &AtomicBool) -> Result<(), Failure> {
    if file.symlink_metadata().is_ok() {
        return Err(Failure::new(format!("{}: is there already", file.display()))
            .hint("run it without --from-…, or write the new plan under another name"));
    }
    let defaults = defaults(args)?;
    // Whoever wrote a wrong password shall not wait for a look at all else.
    let mut guests = on_servers(args)?;
    let found = discover::find(&args.from_dir)?;
    guests.splice(0..0, in_folders(args, file, program, &defaults, &found, stop)?);
    if guests.is_empty() {
        return Err(Failure::new(format!("no guest was found; {} files were passed over", found.others))
            .hint("guests are xl and xm configurations, libvirt XML, XVAs, OVFs and OVAs; write other sources into a plan by hand"));
    }
    let problems = guests.iter().filter(|(_, seen)| seen.problem.is_some()).count();
    let shown = |paths: &[PathBuf]| paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>();
    let header = plan_text::Header {
        places: [shown(&args.from_dir), shown(&args.from_xenserver)].concat(),
        others: (!args.from_dir.is_empty()).then_some(found.others),
        warnings: &found.warnings,
        defaults: &defaults,
        jobs: args.jobs.map(usize::from),
    };
    files::write_whole(file, plan_text::text(&header, &guests).as_bytes())?;
    if !args.quiet {
        let cannot = if problems > 0 {
            format!("; {problems} of them disabled there, with the reason: they cannot be converted as they are")
        } else {
            String::new()
        };
        eprintln!("{}: a plan for {} guests{cannot}", file.display(), guests.len());
    }
    Ok(())
}

/// The guests of folders, each looked at.
fn in_folders(
    args: &Args,
    file: &Path,
    program: &Path,
    defaults: &Options,
    found: &discover::Found,
    stop: &AtomicBool,
) -> Result<Vec<(PathBuf, Seen)>, Failure> {
    let options = look::options(defaults, args.phase.is_some());
    // The plan may lie anywhere, and so may whoever runs it stand.
    let here = |path: &Path| std::path::absolute(path).map_err(Failure::from);
    let wanted = |c: &discover::Candidate| -> Result<_, Failure> {
        Ok(look::Wanted { source: here(&c.path)?, is_packed: c.is_packed, options: options.clone() })
    };
    let wanted = found.sources.iter().map(wanted).collect::<Result<Vec<_>, _>>()?;
    let folder = here(file)?.parent().map_or_else(|| "/".into(), Path::to_owned);
    let program = Program { path: program.into(), folder };
    let live = std::io::stderr().is_terminal() && !args.quiet;
    let mut done = |count: usize| {
        if live {
            eprint!("\rLooking at the guests: {count} of {}\x1b[K", wanted.len());
            let _ = std::io::stderr().flush();
        }
    };
    let jobs = args.jobs.map_or(LOOKS, usize::from);
    let seen = look::look_at_all(&program, &wanted, jobs, &formats(), stop, &mut done);
    if live {
        eprint!("\r\x1b[K");
    }
    if stop.load(Ordering::Relaxed) {
        return Err(Failure::new("stopped; no plan was written").code(130));
    }
    Ok(wanted.into_iter().map(|w| w.source).zip(seen).collect())
}

/// The guests of servers, by what these say of them.
fn on_servers(args: &Args) -> Result<Vec<(PathBuf, Seen)>, Failure> {
    let remote = args.remote.remote();
    let mut guests = Vec::new();
    for host in &args.from_xenserver {
        for vm in xenserver::list(host, &remote)? {
            let mut seen = look::on_server(&vm);
            if vm.is_running() {
                match (remote.snapshot, args.phase) {
                    (_, Some(Phase::Copy)) => seen.warnings.push("it runs: shut it down before '--phase finish'".into()),
                    (true, _) => seen.warnings.push("it runs: converted is a snapshot of it, without what it writes from then on".into()),
                    _ => seen.problem = Some(RUNS.into()),
                }
            }
            guests.push((xenserver::export_address(host, &vm)?.into(), seen));
        }
    }
    Ok(guests)
}

/// What all guests of the new plan get.
fn defaults(args: &Args) -> Result<Options, Failure> {
    let mut options = Options::default();
    if let Some(out) = &args.out {
        let out = std::path::absolute(out)?;
        let text = out.to_str().ok_or_else(|| Failure::new(format!("{}: a plan is UTF-8, and this is not", out.display())))?;
        options.set("out", Setting::Value(text.into()));
    }
    for (name, setting) in args.remote.settings()? {
        options.set(name, setting);
    }
    for option in &args.option {
        let (name, setting) = match option.split_once('=') {
            None => (option.as_str(), Setting::Switch(true)),
            Some((name, value)) => (name, Setting::Value(value.into())),
        };
        options.add(name, setting);
    }
    if !options.is_given("out") && options.value("output") != Some("null") {
        return Err(Failure::new("where shall the results go? say it with -os DIR"));
    }
    Ok(options)
}
