//! A look at a guest before it is converted: `--plan` on it, in a process of its own.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

use imgcore::Formats;
use serde_json::Value;

use super::child::{self, Program};
use super::plan::{Facts, Options};
use crate::input;
use crate::input::remote::is_url;
use crate::input::xenserver::Vm;

/// A plan is no longer: most of it are diffs of configuration files.
const PLAN_LIMIT: u64 = 64 << 20;

/// What a look showed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The source's name of the guest; `None` where it could not be read.
    pub name: Option<String>,
    /// In a line: the system, the memory, the disks.
    pub what: String,
    /// What its conversion is reckoned with.
    pub facts: Option<Facts>,
    /// What the user should look at.
    pub warnings: Vec<String>,
    /// Why it cannot be converted as it is.
    pub problem: Option<String>,
}

/// Looks at a guest with these options.
pub fn look(program: &Program, source: &Path, options: &[OsString]) -> Seen {
    // A plan of what a server exports would take as long as converting it.
    let is_url = is_url(source);
    let mut arguments: Vec<OsString> = [if is_url { "--list" } else { "--plan" }, "--json", "--quiet"].map(Into::into).into();
    arguments.extend(options.iter().cloned());
    arguments.extend(["--".into(), source.into()]);
    let problem = |what: String| Seen { problem: Some(what), ..Seen::default() };
    match program.output(&arguments, PLAN_LIMIT) {
        Err(e) => problem(format!("{}: cannot run: {e}", program.path.display())),
        Ok((status, output, _)) if status.success() => match serde_json::from_slice(&output) {
            Ok(Answer::Guests(list)) => list.first().map(on_server).unwrap_or_default(),
            Ok(Answer::Plan(plan)) => seen(&plan),
            Err(e) => problem(format!("its plan cannot be read: {e}")),
        },
        Ok((status, _, said)) => problem(match said.trim() {
            "" => child::ending(status, Path::new("no log")),
            said => said.trim_start_matches("v2v: ").replace("\nHint: ", "; "),
        }),
    }
}

/// What a packed archive says of itself: its disks are not looked into, which would take as long as converting them.
pub fn look_at_packed(source: &Path, formats: &Formats) -> Seen {
    match input::read("auto", &input::Request::new(source, formats)) {
        Err(e) => Seen { problem: Some(e.to_string()), ..Seen::default() },
        Ok(opened) => {
            let source = opened.source;
            let size = source.disks.iter().map(|d| d.size).fold(0, u64::saturating_add);
            let memory = source.memory_mib.saturating_mul(1 << 20);
            Seen {
                what: format!("a packed archive, {} MiB of memory, disks of {}", source.memory_mib, imgcore::size::human(size)),
                name: Some(source.name),
                facts: Some(Facts { data: size, size, memory, stream: true }),
                warnings: [source.warnings, vec!["a packed archive is not looked into before it is converted".into()]].concat(),
                problem: None,
            }
        }
    }
}

/// What a look gives: `--list` of a server's guest, or `--plan` of another.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Answer {
    Guests(Vec<Vm>),
    Plan(Value),
}

/// What a server says of a guest: what an export would hold is not looked into.
pub fn on_server(vm: &Vm) -> Seen {
    let size = vm.disks.iter().map(|disk| disk.size).fold(0, u64::saturating_add);
    let disks = match vm.disks.len() {
        1 => "a disk".to_owned(),
        count => format!("{count} disks"),
    };
    let [memory, all] = [vm.memory, size].map(imgcore::size::human);
    Seen {
        name: Some(vm.name.clone()),
        what: format!("{}, {memory} of memory, {disks} of {all}", vm.power_state.to_lowercase()),
        facts: Some(Facts { data: size, size, memory: vm.memory, stream: true }),
        problem: vm.disks.is_empty().then(|| "it has no disks".into()),
        ..Seen::default()
    }
}

/// The options of a look. With `in_use` it does not mind that a guest runs.
pub fn options(options: &Options, in_use: bool) -> Vec<OsString> {
    // Replacing a result is no matter of looking.
    let mut arguments = options.arguments(&["force"]);
    arguments.extend(in_use.then(|| OsString::from("--force")));
    arguments
}

fn seen(plan: &Value) -> Seen {
    let guest = &plan["guest"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let sum = |key: &str, otherwise: &str| {
        let disks = guest["disks"].as_array().map(Vec::as_slice).unwrap_or_default();
        disks.iter().map(|d| d[key].as_u64().or(d[otherwise].as_u64()).unwrap_or(0)).fold(0, u64::saturating_add)
    };
    let memory_mib = guest["memory_mib"].as_u64().unwrap_or(0);
    let facts = Facts { data: sum("data", "size"), size: sum("size", "size"), memory: memory_mib.saturating_mul(1 << 20), stream: false };
    let warnings = plan["warnings"].as_array().map(Vec::as_slice).unwrap_or_default();
    Seen {
        name: Some(text(&guest["name"])),
        what: format!("{}, {}, {memory_mib} MiB of memory", text(&guest["system"]), text(&guest["boot"])),
        facts: Some(facts),
        warnings: warnings.iter().map(text).collect(),
        problem: None,
    }
}

/// One guest to look at.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Its source.
    pub source: PathBuf,
    /// It is a packed archive.
    pub is_packed: bool,
    /// The options of its conversion.
    pub options: Vec<OsString>,
}

/// Looks at many guests, so many at a time, in their order. `done` hears how many were looked at. With `stop` the rest is left out.
pub fn look_at_all(
    program: &Program,
    wanted: &[Wanted],
    jobs: usize,
    formats: &Formats,
    stop: &AtomicBool,
    done: &mut dyn FnMut(usize),
) -> Vec<Seen> {
    let next = AtomicUsize::new(0);
    let mut all = vec![Seen::default(); wanted.len()];
    std::thread::scope(|scope| {
        let (sender, results) = mpsc::channel();
        for _ in 0..jobs.clamp(1, wanted.len().max(1)) {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                while let Some((index, one)) = Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| wanted.get(i).map(|w| (i, w))) {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let seen = if one.is_packed { look_at_packed(&one.source, formats) } else { look(program, &one.source, &one.options) };
                    if sender.send((index, seen)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        for (count, (index, seen)) in results.iter().enumerate() {
            if let Some(place) = all.get_mut(index) {
                *place = seen;
            }
            done(count + 1);
        }
    });
    all
}
