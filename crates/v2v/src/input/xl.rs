//! The grammar of xl configurations: xl.cfg(5), libxlu_cfg_y.y and libxlu_cfg_l.l of Xen.
//!
//! `IDENT = value` or `IDENT += value`, ended by a newline or `;`. A value is a number, a string in single or double
//! quotes with escapes, or a list in brackets, which may be nested, go over several lines and end with a comma.

use super::value::{Config, Value};
use crate::{Error, Result};

/// Lists in lists go no deeper.
const MAX_DEPTH: usize = 32;

/// Parses a configuration; `file` names it in messages.
pub fn parse(file: &str, text: &str) -> Result<Config> {
    let mut parser = Parser { file, rest: text, line: 1 };
    let mut config = Config::new(file);
    loop {
        parser.skip(true);
        if parser.eat(';') {
            continue;
        }
        if parser.rest.is_empty() {
            return Ok(config);
        }
        let line = parser.line;
        let name = parser.identifier()?;
        parser.skip(false);
        let add = parser.eat_word("+=");
        if !add && !parser.eat('=') {
            return Err(parser.unexpected(&format!("'=' behind {name}")));
        }
        parser.skip(false);
        let value = parser.value(0)?;
        parser.skip(false);
        if !(parser.rest.is_empty() || parser.rest.starts_with(['\n', ';'])) {
            return Err(parser.unexpected("the end of the line"));
        }
        if add { config.add(&name, value, line)? } else { config.set(&name, value, line) }
    }
}

struct Parser<'a> {
    file: &'a str,
    rest: &'a str,
    line: usize,
}

impl Parser<'_> {
    fn error(&self, what: impl Into<String>) -> Error {
        Error::Config { file: self.file.into(), line: self.line, what: what.into() }
    }

    fn unexpected(&self, wanted: &str) -> Error {
        let found = match self.rest.chars().next() {
            None => "the end of the file".into(),
            Some('\n') => "the end of the line".into(),
            Some(c) => format!("'{}'", c.escape_default()),
        };
        self.error(format!("{wanted} expected, {found} found"))
    }

    fn eat(&mut self, wanted: char) -> bool {
        match self.rest.strip_prefix(wanted) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn eat_word(&mut self, wanted: &str) -> bool {
        match self.rest.strip_prefix(wanted) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// Skips blanks and comments, and newlines where they mean nothing.
    fn skip(&mut self, newlines: bool) {
        loop {
            self.rest = self.rest.trim_start_matches([' ', '\t', '\r', '\u{c}', '\u{feff}']);
            if self.rest.starts_with('#') {
                self.rest = &self.rest[self.rest.find('\n').unwrap_or(self.rest.len())..];
            }
            if !(newlines && self.eat('\n')) {
                return;
            }
            self.line += 1;
        }
    }

    fn identifier(&mut self) -> Result<String> {
        if !self.rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
            return Err(self.unexpected("the name of a setting"));
        }
        let end = self.rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.')).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        Ok(name.to_owned())
    }

    fn value(&mut self, depth: usize) -> Result<Value> {
        match self.rest.chars().next() {
            Some(quote @ ('"' | '\'')) => {
                self.eat(quote);
                Ok(Value::Text(self.string(quote)?))
            }
            Some('[') if depth >= MAX_DEPTH => Err(self.error(format!("lists are nested deeper than {MAX_DEPTH}"))),
            Some('[') => {
                self.eat('[');
                self.list(depth)
            }
            Some(c) if c.is_ascii_digit() || c == '-' => self.number(),
            _ => Err(self.unexpected("a string in quotes, a number or a list")),
        }
    }

    fn list(&mut self, depth: usize) -> Result<Value> {
        let mut values = Vec::new();
        loop {
            self.skip(true);
            if self.eat(']') {
                return Ok(Value::List(values));
            }
            values.push(self.value(depth + 1)?);
            self.skip(true);
            if !self.eat(',') && !self.rest.starts_with(']') {
                return Err(self.unexpected("',' or ']'"));
            }
        }
    }

    fn number(&mut self) -> Result<Value> {
        let end = self.rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).unwrap_or(self.rest.len());
        let word = &self.rest[..end];
        let (negative, digits) = word.strip_prefix('-').map_or((false, word), |d| (true, d));
        let number = match digits.strip_prefix("0x") {
            Some(hex) => i64::from_str_radix(hex, 16),
            None => digits.parse(),
        };
        // What follows the sign has none of its own.
        let Some(number) = number.ok().filter(|n| *n >= 0) else {
            return Err(self.error(format!("'{word}' is no number: put it in quotes if it is text")));
        };
        self.rest = &self.rest[end..];
        Ok(Value::Int(if negative { -number } else { number }))
    }

    /// The rest of a string and its closing quote.
    fn string(&mut self, quote: char) -> Result<String> {
        let mut text = Vec::new();
        let mut chars = self.rest.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '\n' => return Err(self.error("the string does not end on its line")),
                '\\' => {
                    let escape = self.rest.get(at + 1..).unwrap_or("");
                    let (byte, used) = escaped(escape).ok_or_else(|| self.error("bad escape in a string: write \\\\ for a backslash"))?;
                    text.push(byte);
                    for _ in 0..used {
                        chars.next();
                    }
                }
                c if c == quote => {
                    self.rest = &self.rest[at + 1..];
                    return String::from_utf8(text).map_err(|_| self.error("the string's escapes are not UTF-8"));
                }
                c => text.extend(c.encode_utf8(&mut [0; 4]).bytes()),
            }
        }
        Err(self.error("the string does not end"))
    }
}

/// The byte that an escape (behind its backslash) stands for and the letters it takes.
pub(super) fn escaped(text: &str) -> Option<(u8, usize)> {
    let byte = match text.bytes().next()? {
        b'a' => 7,
        b'b' => 8,
        b'f' => 12,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'v' => 11,
        c @ (b'\\' | b'\'' | b'"') => c,
        b'x' => {
            let digits = text.get(1..3)?;
            return Some((u8::from_str_radix(digits, 16).ok()?, 3));
        }
        b'0'..=b'7' => {
            let end = text.bytes().take(3).take_while(|b| (b'0'..=b'7').contains(b)).count();
            return Some((u8::from_str_radix(text.get(..end)?, 8).ok()?, end));
        }
        _ => return None,
    };
    Some((byte, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(t: &str) -> Value {
        Value::Text(t.into())
    }

    #[test]
    fn values() {
        for (config, expected) in [
            ("a = 1", Value::Int(1)),
            ("a=0x1f # hex", Value::Int(31)),
            ("a = -1;", Value::Int(-1)),
            ("a = 'x' ; b = 2", text("x")),
            (r#"a = "it's \"q\" \x41\102\n\\""#, text("it's \"q\" AB\n\\")),
            (r"a = '\xc3\xa9'", text("é")),
            ("a = []", Value::List(vec![])),
            ("a = [ 'x', # comment, with ' quote\n  'y',\n]", Value::List(vec![text("x"), text("y")])),
            ("a = [ [1,2,], ['z'] ]", Value::List(vec![Value::List(vec![Value::Int(1), Value::Int(2)]), Value::List(vec![text("z")])])),
            ("a = 'old'\na = 'new'", text("new")),
            ("a = ['x']\na += ['y']", Value::List(vec![text("x"), text("y")])),
            ("a += 'x'\na += 'y'", text("xy")),
            ("\u{feff}# first\r\n\r\na = 'crlf'\r\n", text("crlf")),
        ] {
            assert_eq!(parse("f", config).unwrap().get("a").unwrap().0, &expected, "{config}");
        }
        assert_eq!(parse("f", "\n\na.b_2 = 1").unwrap().line("a.b_2"), 3);
    }

    #[test]
    fn errors_name_file_and_line() {
        let deep = format!("a = {}", "[".repeat(100_000));
        for (config, error) in [
            ("a = 1\nb", "f:2: '=' behind b expected, the end of the file found"),
            ("a = 'x", "f:1: the string does not end"),
            ("a = 'x\n'", "f:1: the string does not end on its line"),
            ("a = '\\q'", "f:1: bad escape in a string: write \\\\ for a backslash"),
            ("a = '\\x4é'", "f:1: bad escape in a string: write \\\\ for a backslash"),
            ("a = '\\", "f:1: bad escape in a string: write \\\\ for a backslash"),
            ("a = '\\777'", "f:1: bad escape in a string: write \\\\ for a backslash"),
            ("a = 12ab", "f:1: '12ab' is no number: put it in quotes if it is text"),
            ("a = --9223372036854775808", "f:1: '--9223372036854775808' is no number: put it in quotes if it is text"),
            ("a = 99999999999999999999", "f:1: '99999999999999999999' is no number: put it in quotes if it is text"),
            ("a = 1 2", "f:1: the end of the line expected, '2' found"),
            ("a = [1\n2]", "f:2: ',' or ']' expected, '2' found"),
            ("a = [,]", "f:1: a string in quotes, a number or a list expected, ',' found"),
            ("a = ['x'", "f:1: ',' or ']' expected, the end of the file found"),
            ("a = foo()", "f:1: a string in quotes, a number or a list expected, 'f' found"),
            ("a = ['x']\na += 1", "f:2: a is a list, so a number cannot be added to it"),
            ("= 1", "f:1: the name of a setting expected, '=' found"),
            (&deep, "f:1: lists are nested deeper than 32"),
        ] {
            assert_eq!(parse("f", config).unwrap_err().to_string(), error, "{}", &config[..config.len().min(40)]);
        }
    }

    #[test]
    fn a_huge_list_is_no_matter() {
        let huge = format!("a = [{}]", "1,".repeat(400_000));
        assert!(matches!(parse("f", &huge).unwrap().get("a").unwrap().0, Value::List(l) if l.len() == 400_000));
    }
}
