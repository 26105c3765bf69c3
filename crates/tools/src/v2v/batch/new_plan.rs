//! `v2v batch PLAN --from-dir DIR`: finds guests, looks at each, and writes the plan.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use v2v::batch::child::Program;
use v2v::batch::plan::{Options, Setting};
use v2v::batch::{discover, files, look, plan_text};

use super::args::Args;
use crate::common::{Failure, formats};

/// Looks at guests so many at a time, where nobody says.
const LOOKS: usize = 2;

pub(super) fn write(args: &Args, file: &Path, program: &Path, stop: &AtomicBool) -> Result<(), Failure> {
    if file.symlink_metadata().is_ok() {
        return Err(Failure::new(format!("{}: is there already", file.display()))
            .hint("run it without --from-dir, or write the new plan under another name"));
    }
    let defaults = defaults(args)?;
    let found = discover::find(&args.from_dir)?;
    if found.sources.is_empty() {
        return Err(Failure::new(format!("no guest was found; {} files were passed over", found.others))
            .hint("guests are xl and xm configurations, libvirt XML and XVAs; write other sources into a plan by hand"));
    }
    // The plan may lie anywhere, and so may whoever runs it stand.
    let here = |path: &Path| std::path::absolute(path).map_err(Failure::from);
    let sources = found.sources.iter().map(|c| here(&c.path)).collect::<Result<Vec<_>, _>>()?;
    // Replacing a result is no matter of looking.
    let options = defaults.arguments(&["force"]);
    let wanted: Vec<_> = sources
        .iter()
        .zip(&found.sources)
        .map(|(source, c)| look::Wanted { source: source.clone(), is_packed: c.is_packed, options: options.clone() })
        .collect();
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
    let problems = seen.iter().filter(|s| s.problem.is_some()).count();
    let guests: Vec<_> = sources.iter().map(|s| s.as_path()).zip(seen).collect();
    let header = plan_text::Header {
        places: args.from_dir.iter().map(|p| p.display().to_string()).collect(),
        others: found.others,
        warnings: &found.warnings,
        defaults: &defaults,
        jobs: args.jobs.map(usize::from),
    };
    files::write_whole(file, plan_text::text(&header, &guests).as_bytes())?;
    if !args.quiet {
        let cannot =
            if problems > 0 { format!("; {problems} cannot be converted as they are, and are disabled there") } else { String::new() };
        eprintln!("{}: a plan for {} guests{cannot}", file.display(), guests.len());
    }
    Ok(())
}

/// What all guests of the new plan get.
fn defaults(args: &Args) -> Result<Options, Failure> {
    let mut options = Options::default();
    if let Some(out) = &args.out {
        let out = std::path::absolute(out)?;
        let text = out.to_str().ok_or_else(|| Failure::new(format!("{}: a plan is UTF-8, and this is not", out.display())))?;
        options.set("out", Setting::Value(text.into()));
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
