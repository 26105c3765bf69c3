//! The plan: which guests, from where, with which options. TOML, read with the line of every mistake.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::ops::Range;
use std::path::{Path, PathBuf};

use imgcore::size;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::files;
use crate::output::names;
use crate::{Error, Result};

/// A plan with more guests is a mistake.
const MAX_GUESTS: usize = 100_000;

/// What is asked of a batch.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Its file. Relative paths in it are meant from its folder.
    pub file: PathBuf,
    /// Guests converted at a time; by the machine's processors when `None`.
    pub jobs: Option<usize>,
    /// Bytes of memory that all of them may take together; what is available when `None`.
    pub memory: Option<u64>,
    /// Bytes that stay free where results go.
    pub keep_free: u64,
    /// The guests, in order; no two have the same name.
    pub guests: Vec<Guest>,
    /// For `--runner slurm`.
    pub slurm: Slurm,
    /// For `--runner kubernetes`.
    pub kubernetes: Kubernetes,
}

/// One guest of a plan.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Its name after the conversion.
    pub name: String,
    /// Where it comes from.
    pub source: PathBuf,
    /// Whether it is converted at all.
    pub enabled: bool,
    /// Line of the plan, from 1.
    pub line: usize,
    /// What is known of its size.
    pub facts: Option<Facts>,
    /// Its options, those of `[defaults]` included.
    pub options: Options,
}

/// What one conversion is reckoned with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Bytes of data on the source's disks.
    pub data: u64,
    /// Bytes of the disks, with their holes.
    pub size: u64,
    /// The guest's memory in bytes.
    pub memory: u64,
    /// The disks are read only once, from a packed archive.
    pub stream: bool,
}

/// What `[slurm]` says.
#[derive(Clone, Debug, Default)]
pub struct Slurm {
    /// Options of `sbatch`.
    pub options: Vec<String>,
}

/// What `[kubernetes]` says.
#[derive(Clone, Debug, Default)]
pub struct Kubernetes {
    /// The image that has this program.
    pub image: Option<String>,
    /// The claim on the volume with the plan, the sources and the results.
    pub claim: Option<String>,
    /// Where the containers see that volume; the same path as here when `None`.
    pub mount: Option<String>,
    /// The namespace of the job.
    pub namespace: Option<String>,
}

/// Options of one conversion, by their long names without `--`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options(BTreeMap<String, Setting>);

/// What an option is set to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setting {
    /// Given, or taken back from `[defaults]`.
    Switch(bool),
    /// With one value.
    Value(String),
    /// Given several times.
    Values(Vec<String>),
}

impl Options {
    /// The value of an option that has one.
    pub fn value(&self, name: &str) -> Option<&str> {
        match self.0.get(name)? {
            Setting::Value(value) => Some(value),
            _ => None,
        }
    }

    /// Whether an option is given, with a value or without.
    pub fn is_given(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|s| *s != Setting::Switch(false))
    }

    /// The command line, without those of these names.
    pub fn arguments(&self, but: &[&str]) -> Vec<OsString> {
        let mut arguments = Vec::new();
        for (name, setting) in self.0.iter().filter(|(n, _)| !but.contains(&n.as_str())) {
            match setting {
                Setting::Switch(false) => {}
                Setting::Switch(true) => arguments.push(format!("--{name}").into()),
                Setting::Value(value) => arguments.push(format!("--{name}={value}").into()),
                Setting::Values(values) => arguments.extend(values.iter().map(|v| format!("--{name}={v}").into())),
            }
        }
        arguments
    }

    /// Sets an option.
    pub fn set(&mut self, name: &str, setting: Setting) {
        self.0.insert(name.into(), setting);
    }

    /// Gives an option once more.
    pub fn add(&mut self, name: &str, setting: Setting) {
        let values = |setting| match setting {
            Setting::Switch(_) => Vec::new(),
            Setting::Value(value) => vec![value],
            Setting::Values(values) => values,
        };
        let setting = match self.0.remove(name) {
            None => setting,
            Some(before) => Setting::Values([values(before), values(setting)].concat()),
        };
        self.set(name, setting);
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Setting)> {
        self.0.iter().map(|(n, s)| (n.as_str(), s))
    }
}

/// What the program that converts one guest understands.
pub struct Language<'a> {
    /// The options that a plan may use.
    pub options: &'a [String],
    /// Says what is wrong with a command line.
    pub check: &'a dyn Fn(&[OsString]) -> Result<(), String>,
}

impl Plan {
    /// Reads a plan.
    pub fn read(file: &Path, language: &Language<'_>) -> Result<Plan> {
        let content = files::read(file)?
            .ok_or_else(|| files::io_error(file, "read", std::io::Error::from_raw_os_error(rustix::io::Errno::NOENT.raw_os_error())))?;
        let text = String::from_utf8(content).map_err(|_| Error::Invalid(format!("{}: is not UTF-8 text", file.display())))?;
        Plan::parse(file, &text, language)
    }

    /// Parses a plan's text.
    pub fn parse(file: &Path, text: &str, language: &Language<'_>) -> Result<Plan> {
        let reader = Reader { file, text, language };
        let root = DeTable::parse(text).map_err(|e| reader.error(e.span().unwrap_or_default(), e.message()))?;
        reader.plan(root.get_ref())
    }

    /// The folder that relative paths are meant from.
    pub fn folder(&self) -> &Path {
        self.file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }

    /// The guests that are to be converted.
    pub fn enabled(&self) -> impl Iterator<Item = &Guest> {
        self.guests.iter().filter(|g| g.enabled)
    }

    /// The guest of a name.
    pub fn guest(&self, name: &str) -> Result<&Guest> {
        self.guests.iter().find(|g| g.name == name).ok_or_else(|| Error::Invalid(format!("{}: has no guest '{name}'", self.file.display())))
    }
}

type Entry<'a> = Spanned<DeValue<'a>>;

struct Reader<'a> {
    file: &'a Path,
    text: &'a str,
    language: &'a Language<'a>,
}

impl Reader<'_> {
    fn line(&self, span: &Range<usize>) -> usize {
        self.text.as_bytes().iter().take(span.start).filter(|b| **b == b'\n').count() + 1
    }

    fn error(&self, span: Range<usize>, what: impl Into<String>) -> Error {
        Error::Config { file: self.file.display().to_string(), line: self.line(&span), what: what.into() }
    }

    fn plan(&self, root: &DeTable<'_>) -> Result<Plan> {
        let mut plan = Plan {
            file: self.file.to_owned(),
            jobs: None,
            memory: None,
            keep_free: 1 << 30,
            guests: Vec::new(),
            slurm: Slurm::default(),
            kubernetes: Kubernetes::default(),
        };
        let mut defaults = Options::default();
        for (key, entry) in root.iter() {
            match key.get_ref().as_ref() {
                "batch" => self.batch(self.table(entry, "batch")?, &mut plan)?,
                "defaults" => {
                    for (key, entry) in self.table(entry, "defaults")?.iter() {
                        self.option(key, entry, &mut defaults)?;
                    }
                }
                "slurm" => {
                    for (key, entry) in self.table(entry, "slurm")?.iter() {
                        match key.get_ref().as_ref() {
                            "options" => plan.slurm.options = self.texts(entry)?,
                            other => return Err(self.unknown(key.span(), "[slurm]", other, "options")),
                        }
                    }
                }
                "kubernetes" => {
                    for (key, entry) in self.table(entry, "kubernetes")?.iter() {
                        let place = match key.get_ref().as_ref() {
                            "image" => &mut plan.kubernetes.image,
                            "claim" => &mut plan.kubernetes.claim,
                            "mount" => &mut plan.kubernetes.mount,
                            "namespace" => &mut plan.kubernetes.namespace,
                            other => return Err(self.unknown(key.span(), "[kubernetes]", other, "image, claim, mount, namespace")),
                        };
                        *place = Some(self.text_of(entry)?);
                    }
                }
                "guest" => {}
                other => return Err(self.unknown(key.span(), "a plan", other, "[batch], [defaults], [[guest]], [slurm], [kubernetes]")),
            }
        }
        let Some(guests) = root.get("guest") else {
            return Err(Error::Invalid(format!("{}: has no [[guest]]", self.file.display())));
        };
        let DeValue::Array(list) = guests.get_ref() else {
            return Err(self.error(guests.span(), "write [[guest]] with two brackets: there may be several"));
        };
        if list.len() > MAX_GUESTS {
            return Err(self.error(guests.span(), format!("more than {MAX_GUESTS} guests")));
        }
        let mut seen = BTreeMap::new();
        for entry in list.iter() {
            let guest = self.guest(self.table(entry, "guest")?, entry.span(), &defaults)?;
            if let Some(first) = seen.insert(guest.name.clone(), guest.line) {
                let what = format!("the guest of line {first} is called '{}' as well: give one of them another name", guest.name);
                return Err(self.error(entry.span(), what));
            }
            plan.guests.push(guest);
        }
        Ok(plan)
    }

    fn batch(&self, table: &DeTable<'_>, plan: &mut Plan) -> Result<()> {
        for (key, entry) in table.iter() {
            match key.get_ref().as_ref() {
                "jobs" => {
                    let jobs = self.number(entry)?;
                    let jobs = usize::try_from(jobs).ok().filter(|j| (1..=1024).contains(j));
                    plan.jobs = Some(jobs.ok_or_else(|| self.error(entry.span(), "jobs: write a number from 1 to 1024"))?);
                }
                "memory" => plan.memory = Some(self.size(entry)?),
                "keep-free" => plan.keep_free = self.size(entry)?,
                other => return Err(self.unknown(key.span(), "[batch]", other, "jobs, memory, keep-free")),
            }
        }
        Ok(())
    }

    fn guest(&self, table: &DeTable<'_>, span: Range<usize>, defaults: &Options) -> Result<Guest> {
        let (mut name, mut source, mut enabled, mut facts, mut stream) = (None, None, true, [None; 3], false);
        let mut options = defaults.clone();
        for (key, entry) in table.iter() {
            match key.get_ref().as_ref() {
                "name" => {
                    let text = self.text_of(entry)?;
                    if !names::is_safe(&text) {
                        let what = format!(
                            "'{}' is no name for a guest: use letters, digits, '.', '_', '+' and '-', as in '{}'",
                            text.escape_debug(),
                            names::safe(&text)
                        );
                        return Err(self.error(entry.span(), what));
                    }
                    name = Some(text);
                }
                "source" => source = Some(self.text_of(entry)?),
                "enabled" => enabled = self.switch(entry)?,
                "data" => facts[0] = Some(self.size(entry)?),
                "size" => facts[1] = Some(self.size(entry)?),
                "memory" => {
                    let bytes = self.memory(entry)?;
                    facts[2] = Some(bytes);
                    // The look writes 0 where a source does not tell.
                    if bytes > 0 {
                        options.set("memory", Setting::Value(format!("{}M", bytes >> 20)));
                    }
                }
                "stream" => stream = self.switch(entry)?,
                _ => self.option(key, entry, &mut options)?,
            }
        }
        let missing = |what: &str| self.error(span.clone(), format!("this guest has no {what}"));
        let name = name.ok_or_else(|| missing("name"))?;
        let source = source.filter(|s| !s.is_empty() && s != "-").ok_or_else(|| missing("source: write the path of a file or folder"))?;
        let guest = Guest {
            name,
            source: source.into(),
            enabled,
            line: self.line(&span),
            facts: facts[0].map(|data| Facts { data, size: facts[1].unwrap_or(data), memory: facts[2].unwrap_or(512 << 20), stream }),
            options,
        };
        if !guest.options.is_given("out") && guest.options.value("output") != Some("null") {
            let what = format!("'{}' has no folder to go to: write out = \"DIR\" here or in [defaults]", guest.name);
            return Err(self.error(span, what));
        }
        let mut arguments = guest.options.arguments(&[]);
        arguments.extend(["--name".into(), OsString::from(&guest.name), "--".into(), guest.source.clone().into()]);
        (self.language.check)(&arguments).map_err(|e| self.error(span, format!("guest '{}': {e}", guest.name)))?;
        Ok(guest)
    }

    fn option(&self, key: &Spanned<std::borrow::Cow<'_, str>>, entry: &Entry<'_>, options: &mut Options) -> Result<()> {
        let name = key.get_ref().as_ref();
        if !self.language.options.iter().any(|o| o == name) {
            return Err(self.unknown(key.span(), "a guest", name, &format!("name, source, enabled, {}", self.language.options.join(", "))));
        }
        let setting = match entry.get_ref() {
            DeValue::Boolean(given) => Setting::Switch(*given),
            DeValue::Array(list) => Setting::Values(list.iter().map(|e| self.scalar(e)).collect::<Result<_>>()?),
            _ => Setting::Value(self.scalar(entry)?),
        };
        options.set(name, setting);
        Ok(())
    }

    fn unknown(&self, span: Range<usize>, place: &str, key: &str, known: &str) -> Error {
        self.error(span, format!("{place} has no '{}'; what can be written here: {known}", key.escape_debug()))
    }

    fn table<'a, 'b>(&self, entry: &'a Entry<'b>, name: &str) -> Result<&'a DeTable<'b>> {
        entry.get_ref().as_table().ok_or_else(|| self.error(entry.span(), format!("'{name}' must be a table")))
    }

    /// A text or a number.
    fn scalar(&self, entry: &Entry<'_>) -> Result<String> {
        match entry.get_ref() {
            DeValue::String(text) => Ok(text.to_string()),
            DeValue::Integer(number) if number.radix() == 10 => Ok(number.as_str().to_owned()),
            _ => Err(self.error(entry.span(), "write a text in quotes, a number, true, false, or a list of texts")),
        }
    }

    fn text_of(&self, entry: &Entry<'_>) -> Result<String> {
        entry.get_ref().as_str().map(Into::into).ok_or_else(|| self.error(entry.span(), "write a text in quotes"))
    }

    fn texts(&self, entry: &Entry<'_>) -> Result<Vec<String>> {
        let list = entry.get_ref().as_array().ok_or_else(|| self.error(entry.span(), "write a list of texts: [\"…\", \"…\"]"))?;
        list.iter().map(|e| self.text_of(e)).collect()
    }

    fn switch(&self, entry: &Entry<'_>) -> Result<bool> {
        entry.get_ref().as_bool().ok_or_else(|| self.error(entry.span(), "write true or false"))
    }

    fn number(&self, entry: &Entry<'_>) -> Result<u64> {
        let number = entry.get_ref().as_integer().filter(|n| n.radix() == 10).and_then(|n| n.as_str().parse().ok());
        number.ok_or_else(|| self.error(entry.span(), "write a number"))
    }

    /// Whole MiB in bytes: a number of MiB, as in configurations of Xen, or a text as `1.5G`.
    fn memory(&self, entry: &Entry<'_>) -> Result<u64> {
        let bytes = match self.scalar(entry)?.parse::<u64>() {
            Ok(mib) => mib.checked_mul(1 << 20).ok_or_else(|| self.error(entry.span(), "that is too much memory"))?,
            Err(_) => self.size(entry)?,
        };
        Ok(bytes >> 20 << 20)
    }

    /// Bytes: a number, or a text as `1.5G`.
    fn size(&self, entry: &Entry<'_>) -> Result<u64> {
        size::parse(&self.scalar(entry)?).map_err(|e| self.error(entry.span(), e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Plan> {
        let options = ["out", "output", "format", "bridge", "disk", "check-boot", "force"].map(String::from);
        let check = |arguments: &[OsString]| match arguments.iter().any(|a| a == "--format=vmdk") {
            true => Err("no such format".to_owned()),
            false => Ok(()),
        };
        Plan::parse(Path::new("/x/plan.toml"), text, &Language { options: &options, check: &check })
    }

    const GUEST: &str = "[[guest]]\nname = \"web\"\nsource = \"web.cfg\"\n";

    #[test]
    fn guests_take_the_defaults_and_their_own() {
        let plan = parse(
            "[batch]\njobs = 3\nmemory = \"4G\"\n[defaults]\nout = \"/vm\"\nbridge = [\"a:b\", \"c:d\"]\nforce = true\ncheck-boot = 60\n\
             [[guest]]\nname = \"web\"\nsource = \"web.cfg\"\ndata = \"1.5G\"\nmemory = 1024\n\
             [[guest]]\nname = \"db\"\nsource = \"/xen/db.xva\"\nenabled = false\nout = \"/other\"\nforce = false\nbridge = []\n",
        )
        .unwrap();
        assert_eq!((plan.jobs, plan.memory, plan.folder()), (Some(3), Some(4 << 30), Path::new("/x")));
        let text = |g: &Guest| g.options.arguments(&["force"]).iter().map(|a| a.to_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ");
        assert_eq!(text(&plan.guests[0]), "--bridge=a:b --bridge=c:d --check-boot=60 --memory=1024M --out=/vm");
        assert!(plan.guests[0].options.is_given("force"));
        assert_eq!(plan.guests[0].facts, Some(Facts { data: 3 << 29, size: 3 << 29, memory: 1 << 30, stream: false }));
        assert_eq!(text(&plan.guests[1]), "--check-boot=60 --out=/other");
        assert!(!plan.guests[1].options.is_given("force") && !plan.guests[1].enabled);
        assert_eq!((plan.guests[0].line, plan.guests[1].line), (9, 14));
        assert_eq!(plan.enabled().count(), 1);
    }

    #[test]
    fn mistakes_have_a_line() {
        let out = "out = \"/vm\"\n";
        let two = format!("{GUEST}{out}{GUEST}{out}");
        for (text, wanted) in [
            ("[batch\n", "plan.toml:1: "),
            ("[batch]\njobs = 0\n", "plan.toml:2: jobs: write a number from 1 to 1024"),
            ("[batch]\njobs = \"x\"\n", "plan.toml:2: write a number"),
            ("[batch]\n\nmemory = \"4 potatoes\"\n", "plan.toml:3: "),
            ("[batch]\nspeed = 1\n", "plan.toml:2: [batch] has no 'speed'"),
            ("[gest]\n", "plan.toml:1: a plan has no 'gest'"),
            ("guest = 1\n", "plan.toml:1: write [[guest]]"),
            ("[guest]\nname = \"x\"\n", "plan.toml:1: write [[guest]] with two brackets"),
            ("", "plan.toml: has no [[guest]]"),
            ("[[guest]]\nname = \"a/b\"\n", "plan.toml:2: 'a/b' is no name for a guest"),
            ("[[guest]]\nsource = \"x\"\n", "plan.toml:1: this guest has no name"),
            ("\n[[guest]]\nname = \"x\"\nsource = \"-\"\n", "plan.toml:2: this guest has no source"),
            (GUEST, "plan.toml:1: 'web' has no folder to go to"),
            (&format!("{GUEST}{out}colour = 1\n"), "plan.toml:5: a guest has no 'colour'"),
            (&format!("{GUEST}{out}disk = [1.5]\n"), "plan.toml:5: write a text in quotes"),
            (&format!("{GUEST}{out}format = \"vmdk\"\n"), "plan.toml:1: guest 'web': no such format"),
            (&format!("{GUEST}{out}enabled = \"yes\"\n"), "plan.toml:5: write true or false"),
            (&format!("{GUEST}{out}name = \"x\"\n"), "plan.toml:5: duplicate key"),
            (&two, "plan.toml:5: the guest of line 1 is called 'web' as well"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(wanted), "{text:?}: {wanted:?} is not in {error:?}");
        }
        assert!(parse(&format!("{GUEST}output = \"null\"\n")).is_ok());
    }
}
