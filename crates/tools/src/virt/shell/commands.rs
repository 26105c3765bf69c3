//! The table of the shell's commands, and their arguments.

use std::collections::HashMap;

use super::{Output, Shell, line};
use crate::common::Failure;

mod absent;
mod changing;
mod contents;
mod copying;
mod devices;
mod inspecting;
mod looking;
mod own;
mod patterns;
mod rarer;
mod running;
mod settings;
mod volumes;

/// One command: a new one is a line in its group's table.
pub(super) struct Command {
    /// Its name and other names for it.
    pub(super) names: &'static [&'static str],
    /// Its arguments: `WORD` must be there, `[name:..]` may be, `WORD..` are any number.
    usage: &'static str,
    help: &'static str,
    pub(super) run: fn(&mut Shell<'_>, &Arguments) -> Result<(), Failure>,
}

/// All commands, by group.
pub(super) const COMMANDS: &[&[Command]] = &[
    own::COMMANDS,
    patterns::COMMANDS,
    looking::COMMANDS,
    contents::COMMANDS,
    changing::COMMANDS,
    copying::COMMANDS,
    volumes::COMMANDS,
    devices::COMMANDS,
    inspecting::COMMANDS,
    running::COMMANDS,
    settings::COMMANDS,
    rarer::COMMANDS,
];

impl Command {
    pub(super) fn name(&self) -> &'static str {
        self.names.first().copied().unwrap_or_default()
    }

    fn words(&self) -> std::str::SplitWhitespace<'static> {
        self.usage.split_whitespace()
    }

    /// What the argument at a position is.
    pub(super) fn argument(&self, position: usize) -> Option<&'static str> {
        let mut plain = self.words().filter(|w| !w.starts_with('['));
        plain.clone().nth(position).or_else(|| plain.next_back().filter(|w| w.ends_with("..")))
    }
}

/// The command of a name; `_` is as good as `-`.
pub(super) fn find(name: &[u8]) -> Result<&'static Command, Failure> {
    let wanted = String::from_utf8_lossy(name).replace('_', "-");
    let mut all = COMMANDS.iter().flat_map(|group| group.iter());
    all.find(|c| c.names.contains(&wanted.as_str())).ok_or_else(|| match absent::hint(&wanted) {
        Some(hint) => Failure::new(format!("{wanted}: guestfish has this command, this shell does not")).hint(hint),
        None => Failure::new(format!("{}: unknown command", guestfs::show(name))).hint("'help' lists the commands"),
    })
}

/// Lists the commands, or explains one.
pub(super) fn help(out: &mut Output, name: Option<&[u8]>) -> Result<(), Failure> {
    if let Some(name) = name {
        let command = find(name)?;
        out.text(&format!("{} {}\n  {}\n", command.name(), command.usage, command.help))?;
        return match &command.names[1..] {
            [] => Ok(()),
            others => out.text(&format!("  Also: {}\n", others.join(", "))),
        };
    }
    for command in COMMANDS.iter().flat_map(|group| group.iter()) {
        out.text(&format!("{:<24} {}\n", command.name(), command.help))?;
    }
    Ok(())
}

/// A command's arguments, as many as it takes.
pub(super) struct Arguments {
    words: Vec<Vec<u8>>,
    options: HashMap<&'static str, Vec<u8>>,
}

impl Arguments {
    pub(super) fn new(command: &'static Command, words: &[Vec<u8>]) -> Result<Self, Failure> {
        let mut words = words.to_vec();
        let mut options = HashMap::new();
        let optional = command.words().filter_map(|w| w.strip_prefix('[')?.strip_suffix(":..]"));
        // They stand behind all others.
        while let Some((name, value)) = words.last().and_then(|word| {
            let name = optional.clone().find(|name| word.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.starts_with(b":")))?;
            Some((name, word.get(name.len() + 1..).unwrap_or_default().to_vec()))
        }) {
            words.pop();
            if options.insert(name, value).is_some() {
                return Err(Failure::new(format!("{}: {name} is given twice", command.name())));
            }
        }
        let wanted = command.words().filter(|w| !w.starts_with('[') && !w.ends_with("..")).count();
        let any = command.words().any(|w| w.ends_with(".."));
        if words.len() < wanted || words.len() > wanted && !any {
            return Err(Failure::new(format!("usage: {} {}", command.name(), command.usage)));
        }
        Ok(Arguments { words, options })
    }

    /// The argument at a position that the usage has.
    pub(super) fn word(&self, at: usize) -> &[u8] {
        self.words.get(at).map(Vec::as_slice).unwrap_or_default()
    }

    pub(super) fn all(&self) -> &[Vec<u8>] {
        &self.words
    }

    pub(super) fn text(&self, at: usize) -> Result<&str, Failure> {
        std::str::from_utf8(self.word(at)).map_err(|_| Failure::new("an argument that must be text is not UTF-8"))
    }

    /// An absolute path in the guest.
    pub(super) fn path(&self, at: usize) -> Result<&[u8], Failure> {
        let path = self.word(at);
        if path.starts_with(b"/") {
            Ok(path)
        } else {
            Err(Failure::new(format!("{}: a path in the guest begins with /", guestfs::show(path))))
        }
    }

    pub(super) fn device(&self, at: usize) -> Result<String, Failure> {
        device(self.word(at))
    }

    /// The words of an argument that is a list.
    pub(super) fn list(&self, at: usize) -> Result<Vec<Vec<u8>>, Failure> {
        line::list(self.word(at)).map_err(Failure::new)
    }

    /// A number as in C, with a unit of size behind it.
    pub(super) fn number(&self, at: usize) -> Result<i64, Failure> {
        let text = self.text(at)?;
        number(text).ok_or_else(|| Failure::new(format!("{text}: not a number")))
    }

    pub(super) fn unsigned<N: TryFrom<i64>>(&self, at: usize) -> Result<N, Failure> {
        N::try_from(self.number(at)?).map_err(|_| Failure::new(format!("{}: too large or too small", guestfs::show(self.word(at)))))
    }

    pub(super) fn yes(&self, at: usize) -> Result<bool, Failure> {
        truth(self.word(at))
    }

    pub(super) fn option(&self, name: &str) -> Option<&[u8]> {
        self.options.get(name).map(Vec::as_slice)
    }

    pub(super) fn option_text(&self, name: &str) -> Result<Option<&str>, Failure> {
        let text = self.option(name).map(std::str::from_utf8).transpose();
        text.map_err(|_| Failure::new(format!("{name}: must be text")))
    }

    /// An option that is true or false; false without it.
    pub(super) fn flag(&self, name: &str) -> Result<bool, Failure> {
        self.option(name).map_or(Ok(false), truth)
    }
}

fn truth(word: &[u8]) -> Result<bool, Failure> {
    match word.to_ascii_lowercase().as_slice() {
        b"1" | b"true" | b"t" | b"yes" | b"y" | b"on" => Ok(true),
        b"0" | b"false" | b"f" | b"no" | b"n" | b"off" => Ok(false),
        _ => Err(Failure::new(format!("{}: neither true nor false", guestfs::show(word)))),
    }
}

/// A device's name as this shell has it: disks are sda, sdb, … whatever the bus.
pub(super) fn device(word: &[u8]) -> Result<String, Failure> {
    let text = std::str::from_utf8(word).map_err(|_| Failure::new("a device's name is text"))?;
    if !text.starts_with("/dev/") && !text.contains('=') {
        return Err(Failure::new(format!("{text}: a device begins with /dev/")));
    }
    let disk = ["/dev/hd", "/dev/vd", "/dev/xvd"].iter().find_map(|bus| text.strip_prefix(bus));
    Ok(disk.map_or(text.to_string(), |rest| format!("/dev/sd{rest}")))
}

/// `1234`, `02322`, `0x4d2`, `-1`, `1G`, `1MB`.
fn number(text: &str) -> Option<i64> {
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (radix, digits) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(rest) => (16, rest),
        None if text.len() > 1 && text.starts_with('0') => (8, &text[1..]),
        None => (10, text),
    };
    let end = digits.find(|c: char| !c.is_digit(radix)).unwrap_or(digits.len());
    let (digits, unit) = digits.split_at(end);
    let plain = i64::from_str_radix(digits, radix).ok()?;
    let (letter, kind) = (unit.chars().next(), unit.get(1..).unwrap_or_default());
    let base: i64 = match kind {
        "" | "iB" => 1024,
        "B" => 1000,
        _ => return None,
    };
    let power = match letter {
        None => 0,
        Some(letter) => "kMGTPE".find(if letter == 'K' { 'k' } else { letter })? as u32 + 1,
    };
    let scaled = plain.checked_mul(base.checked_pow(power)?)?;
    Some(if negative { -scaled } else { scaled })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_every_command_has_help() {
        let mut seen = std::collections::HashSet::new();
        for command in COMMANDS.iter().flat_map(|group| group.iter()) {
            assert!(!command.names.is_empty() && command.names.iter().all(|name| seen.insert(*name)), "{}", command.name());
            assert!(command.help.len() > 10 && command.help.ends_with(|c: char| c.is_alphanumeric() || c == ')'), "{}", command.name());
        }
    }

    #[test]
    fn every_file_is_in_the_table() {
        let here = include_str!("commands.rs");
        for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/virt/shell/commands")).unwrap() {
            let name = file.unwrap().file_name().into_string().unwrap();
            let none_of_its_own = name == "absent.rs";
            assert!(none_of_its_own || here.contains(&format!("{}::COMMANDS", name.trim_end_matches(".rs"))), "{name}");
        }
    }

    #[test]
    fn numbers() {
        for (text, value) in
            [("1234", 1234), ("02322", 1234), ("0x4d2", 1234), ("0", 0), ("-1", -1), ("1G", 1 << 30), ("2KB", 2000), ("3MiB", 3 << 20)]
        {
            assert_eq!(number(text), Some(value), "{text}");
        }
        for bad in ["", "x", "08", "1Q", "1kb", "9E9", "99999999999999999999", "8E"] {
            assert_eq!(number(bad), None, "{bad}");
        }
    }

    #[test]
    fn arguments_are_counted_and_options_taken_from_the_end() {
        let command = find(b"mkfs").unwrap();
        let words = |list: &[&str]| list.iter().map(|w| w.as_bytes().to_vec()).collect::<Vec<_>>();
        let arguments = Arguments::new(command, &words(&["ext4", "/dev/sda1", "label:a:b"])).unwrap_or_else(|e| panic!("{}", e.message()));
        assert_eq!((arguments.all().len(), arguments.option("label")), (2, Some(&b"a:b"[..])));
        for bad in [&["ext4"][..], &["ext4", "/dev/sda1", "x"], &["ext4", "/dev/sda1", "label:a", "label:b"]] {
            assert!(Arguments::new(command, &words(bad)).is_err(), "{bad:?}");
        }
        assert_eq!(device(b"/dev/vda1").ok().as_deref(), Some("/dev/sda1"));
    }
}
