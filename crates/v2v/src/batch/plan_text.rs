//! A new plan as text, with comments for the person who edits it.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::look::Seen;
use super::plan::{Options, Setting};
use crate::output::names;

/// What a new plan says before its guests.
pub struct Header<'a> {
    /// What was searched.
    pub places: Vec<String>,
    /// Files that were passed over, where folders were searched.
    pub others: Option<usize>,
    /// What could not be read.
    pub warnings: &'a [String],
    /// The options of all guests.
    pub defaults: &'a Options,
    /// Guests at a time, where the user said it.
    pub jobs: Option<usize>,
}

/// The plan for these guests: their sources, and what a look at them showed.
pub fn text(header: &Header<'_>, guests: &[(PathBuf, Seen)]) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut out, header, guests);
    out
}

fn write(out: &mut String, header: &Header<'_>, guests: &[(PathBuf, Seen)]) -> std::fmt::Result {
    let can = guests.iter().filter(|(_, seen)| seen.problem.is_none()).count();
    writeln!(
        out,
        "# A plan of 'v2v batch': {} found in",
        if guests.len() == 1 { "1 guest".into() } else { format!("{} guests", guests.len()) }
    )?;
    for place in &header.places {
        writeln!(out, "#   {}", comment(place))?;
    }
    let others = header.others.map(|n| format!("; {n} other files were passed over")).unwrap_or_default();
    writeln!(out, "# {can} of them can be converted as they are{others}.")?;
    for warning in header.warnings {
        writeln!(out, "# Warning: {}", comment(warning))?;
    }
    out.push_str(
        "#
# Edit it, then run 'v2v batch' on it. What is finished is not done again when it is run again.
# Guests that run can be copied before, with --phase copy: 'v2v batch --help'.
# Paths that do not begin with '/' are meant from this file's folder.

[batch]
",
    );
    match header.jobs {
        Some(jobs) => writeln!(out, "jobs = {jobs}             # guests at a time")?,
        None => out.push_str("# jobs = 4           # guests at a time; by the machine's processors when not given\n"),
    }
    out.push_str(
        "# memory = \"8G\"      # what all of them may take together; what is available when not given
keep-free = \"1G\"     # room that stays free where results go

# Options of every guest: those of v2v's command line, without the dashes ('v2v --help' has them all).
[defaults]
",
    );
    for (name, setting) in header.defaults.iter() {
        writeln!(out, "{name} = {}", value(setting))?;
    }
    if !header.defaults.is_given("check-boot") {
        out.push_str("# check-boot = 300   # start each result once, and wait so many seconds for its login prompt\n");
    }
    out.push_str(
        "# bridge = [\"xenbr0:br0\"]
# output = \"libvirt\"  # define each guest in libvirt; \"kubevirt\" and \"proxmox\" write for those; \"null\" only rehearses

# A guest: its name and source, whether it is converted, and any options of its own, as 'memory', which is the result's. 'data' says what
# its conversion is reckoned with: bytes on its disks, which its result takes at most.
",
    );
    let mut taken = BTreeSet::new();
    for (source, seen) in guests {
        guest(out, source, seen, &mut taken)?;
    }
    Ok(())
}

fn guest(out: &mut String, source: &Path, seen: &Seen, taken: &mut BTreeSet<String>) -> std::fmt::Result {
    let Some(path) = source.to_str() else {
        return writeln!(out, "\n# Left out, since its path is not UTF-8: {}", comment(&source.to_string_lossy()));
    };
    let stem = || source.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    let wanted = names::safe(&seen.name.clone().unwrap_or_else(stem));
    let name = free_name(&wanted, taken);
    out.push('\n');
    if !seen.what.is_empty() {
        writeln!(out, "# {}", comment(&seen.what))?;
    }
    if name != wanted {
        writeln!(out, "# Another guest of this plan is called {wanted}: this one gets a name of its own.")?;
    }
    for warning in &seen.warnings {
        writeln!(out, "# Warning: {}", comment(warning))?;
    }
    if let Some(problem) = &seen.problem {
        writeln!(out, "# Cannot be converted as it is: {}", comment(problem))?;
    }
    writeln!(out, "[[guest]]\nname = {}\nsource = {}", quoted(&name), quoted(path))?;
    writeln!(out, "enabled = {}", seen.problem.is_none())?;
    if let Some(facts) = seen.facts {
        let mib = |bytes: u64| format!("{}M", bytes.div_ceil(1 << 20));
        writeln!(out, "data = {}\nsize = {}\nmemory = {}", quoted(&mib(facts.data)), quoted(&mib(facts.size)), quoted(&mib(facts.memory)))?;
        if facts.stream {
            writeln!(out, "stream = true")?;
        }
    }
    Ok(())
}

/// The name, with a number behind it where another guest has it.
fn free_name(wanted: &str, taken: &mut BTreeSet<String>) -> String {
    let name = match taken.contains(wanted) {
        false => wanted.to_owned(),
        true => (2_u64..).map(|n| format!("{wanted}-{n}")).find(|n| !taken.contains(n)).unwrap_or_default(),
    };
    taken.insert(name.clone());
    name
}

fn value(setting: &Setting) -> String {
    match setting {
        Setting::Switch(given) => given.to_string(),
        Setting::Value(text) => quoted(text),
        Setting::Values(texts) => format!("[{}]", texts.iter().map(|t| quoted(t)).collect::<Vec<_>>().join(", ")),
    }
}

/// A basic string of TOML.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out += &format!("\\u{:04X}", u32::from(c)),
            c => out.push(c),
        }
    }
    out + "\""
}

/// Text from anywhere as part of a comment: one line, without control characters, which TOML forbids there.
fn comment(text: &str) -> String {
    let mut shown = String::new();
    for c in text.trim().chars() {
        match c {
            '\n' => shown.push_str("\n#   "),
            c if c.is_control() => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Plan;
    use crate::batch::plan::{Facts, Language};

    #[test]
    fn a_plan_can_be_read_back_whatever_guests_are_called() {
        let name = |n: &str| Seen { name: Some(n.into()), ..Seen::default() };
        let hostile = Seen {
            name: Some("a\"\n[[guest]]\nname = \"x".into()),
            what: "Evil \u{1b}[2J\nsource = \"/etc/shadow\"".into(),
            facts: Some(Facts { data: 5 << 20, size: 1 << 30, memory: 1 << 29, stream: true }),
            warnings: vec!["one\r\n[defaults]\nout = \"/\"".into()],
            problem: Some("line one\nline two".into()),
        };
        let guests = [
            ("/xen/web.cfg".into(), name("web")),
            ("/xen/old/web.cfg".into(), name("web")),
            ("/xen/web-2.cfg".into(), name("web-2")),
            ("/xen/a \"b\\\u{1}.cfg".into(), hostile),
            ("/xen/broken.cfg".into(), Seen { problem: Some("x".into()), ..Seen::default() }),
        ];
        let mut defaults = Options::default();
        defaults.set("out", Setting::Value("/vm".into()));
        defaults.set("bridge", Setting::Values(vec!["a:b".into()]));
        let header =
            Header { places: vec!["/xen\n[x]".into()], others: Some(3), warnings: &["y\n[z]".into()], defaults: &defaults, jobs: Some(2) };
        let text = text(&header, &guests);
        let options = ["out".to_owned(), "bridge".into()];
        let plan = Plan::parse(Path::new("p.toml"), &text, &Language { options: &options, check: &|_| Ok(()) });
        let plan = plan.unwrap_or_else(|e| panic!("{e}\n{text}"));
        let names: Vec<_> = plan.guests.iter().map(|g| g.name.as_str()).collect();
        assert_eq!(names, ["web", "web-2", "web-2-2", "a----guest---name----x", "broken"], "{text}");
        assert_eq!(plan.guests[3].source, guests[3].0);
        assert_eq!(plan.guests[3].facts, guests[3].1.facts);
        assert_eq!(plan.guests.iter().map(|g| g.enabled).collect::<Vec<_>>(), [true, true, true, false, false]);
        let mut told = defaults.clone();
        told.set("memory", Setting::Value("512M".into()));
        assert!(plan.guests.iter().all(|g| g.options == *if g.facts.is_some() { &told } else { &defaults }));
        assert_eq!(plan.jobs, Some(2));
    }
}
