//! What xl and xm configurations consist of: names with values, each with the line it stands on.

use std::collections::HashMap;

use crate::{Error, Result};

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number.
    Int(i64),
    /// A string.
    Text(String),
    /// A list.
    List(Vec<Value>),
    /// Python's `None`: as if the name were not there.
    None,
    /// What only running the configuration would tell, as an error's words: raised when somebody asks.
    Unreadable(String),
}

impl Value {
    /// What kind it is, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Int(_) => "a number",
            Value::Text(_) => "a string",
            Value::List(_) => "a list",
            Value::None => "None",
            Value::Unreadable(_) => "what a program gives",
        }
    }
}

/// A parsed configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The file as the user named it.
    pub file: String,
    entries: HashMap<String, (Value, usize)>,
}

impl Config {
    /// An empty one.
    pub fn new(file: impl Into<String>) -> Self {
        Config { file: file.into(), entries: HashMap::new() }
    }

    /// An error at `line`.
    pub fn error(&self, line: usize, what: impl Into<String>) -> Error {
        Error::Config { file: self.file.clone(), line, what: what.into() }
    }

    /// Sets `name`, replacing an earlier value.
    pub fn set(&mut self, name: &str, value: Value, line: usize) {
        self.entries.insert(name.to_owned(), (value, line));
    }

    /// Adds to `name` (`+=`): to a list its elements, to a string its letters.
    pub fn add(&mut self, name: &str, value: Value, line: usize) -> Result<()> {
        let Some((old, _)) = self.entries.get_mut(name).filter(|_| !matches!(value, Value::Unreadable(_))) else {
            self.set(name, value, line);
            return Ok(());
        };
        match (old, value) {
            (Value::List(old), Value::List(more)) => old.extend(more),
            (Value::Text(old), Value::Text(more)) => old.push_str(&more),
            (Value::Unreadable(_), _) => {}
            (Value::Int(old), Value::Int(more)) if old.checked_add(more).is_some() => *old += more,
            (old, more) => {
                let what = format!("{name} is {}, so {} cannot be added to it", old.kind(), more.kind());
                return Err(self.error(line, what));
            }
        }
        Ok(())
    }

    /// The value of `name` and its line.
    pub fn get(&self, name: &str) -> Option<(&Value, usize)> {
        self.entries.get(name).filter(|(value, _)| *value != Value::None).map(|(value, line)| (value, *line))
    }

    /// The line of `name`; 1 when it is not there.
    pub fn line(&self, name: &str) -> usize {
        self.get(name).map_or(1, |(_, line)| line)
    }

    /// A string, or a number as a string; `None` when absent or empty, as for Xen.
    pub fn text(&self, name: &str) -> Result<Option<String>> {
        match self.get(name) {
            None => Ok(None),
            Some((Value::Text(text), _)) => Ok(Some(text.trim().to_owned()).filter(|t| !t.is_empty())),
            Some((Value::Int(number), _)) => Ok(Some(number.to_string())),
            Some((Value::Unreadable(what), line)) => Err(self.error(line, what)),
            Some((other, line)) => Err(self.error(line, format!("{name} must be a string, not {}", other.kind()))),
        }
    }

    /// A number that is not negative, or a string that holds one.
    pub fn number(&self, name: &str) -> Result<Option<u64>> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let number = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        };
        match number {
            Some(number) => Ok(Some(number)),
            None => Err(self.error(self.line(name), format!("{name} must be a number, not '{text}'"))),
        }
    }

    /// A list of strings; a single string counts as a list of one.
    pub fn texts(&self, name: &str) -> Result<Vec<String>> {
        let (list, line) = match self.get(name) {
            None => return Ok(Vec::new()),
            Some((Value::List(list), line)) => (&list[..], line),
            Some((text @ Value::Text(_), line)) => (std::slice::from_ref(text), line),
            Some((Value::Unreadable(what), line)) => return Err(self.error(line, what)),
            Some((other, line)) => return Err(self.error(line, format!("{name} must be a list, not {}", other.kind()))),
        };
        let text = |value: &Value| match value {
            Value::Text(text) => Ok(text.clone()),
            other => Err(self.error(line, format!("{name} must hold strings, not {}", other.kind()))),
        };
        list.iter().map(text).collect()
    }
}
