//! The expressions of `virt-edit -e`: the substitutions and deletions of Perl and sed that people use on files.

use regex::bytes::{Regex, RegexBuilder};

use crate::common::Failure;

/// Expressions in order, applied to every line.
pub(super) struct Program(Vec<Command>);

struct Command {
    /// Only on lines that match.
    only: Option<Regex>,
    action: Action,
}

enum Action {
    Substitute { pattern: Regex, replacement: Vec<u8>, all: bool },
    Transliterate { from: Vec<u8>, to: Vec<u8> },
    Delete,
}

impl Program {
    /// Parses `s/a/b/flags`, `tr/abc/xyz/`, `/re/d` and any of them behind `/re/`, with `;` between several.
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        let mut rest = text.trim();
        let mut commands = Vec::new();
        while !rest.is_empty() {
            let (command, after) = parse_command(rest)?;
            commands.push(command);
            rest = after.trim_start();
            match rest.strip_prefix(';') {
                Some(more) => rest = more.trim_start(),
                None if rest.is_empty() => {}
                None => return Err(wrong(text)),
            }
        }
        if commands.is_empty() { Err(wrong(text)) } else { Ok(Program(commands)) }
    }

    /// The content with all lines changed.
    pub(super) fn apply(&self, content: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(content.len());
        for line in content.split_inclusive(|b| *b == b'\n') {
            let (body, end) = match line.strip_suffix(b"\n") {
                Some(body) => (body, &b"\n"[..]),
                None => (line, &b""[..]),
            };
            if let Some(body) = self.line(body.to_vec()) {
                out.extend(body);
                out.extend(end);
            }
        }
        out
    }

    /// `None` for a line that is deleted.
    fn line(&self, mut line: Vec<u8>) -> Option<Vec<u8>> {
        for command in &self.0 {
            if command.only.as_ref().is_some_and(|re| !re.is_match(&line)) {
                continue;
            }
            match &command.action {
                Action::Delete => return None,
                Action::Substitute { pattern, replacement, all } => {
                    line = pattern.replacen(&line, usize::from(!all), replacement.as_slice()).into_owned();
                }
                Action::Transliterate { from, to } => {
                    for byte in &mut line {
                        if let Some(at) = from.iter().position(|f| f == byte) {
                            *byte = *to.get(at).or(to.last()).unwrap_or(byte);
                        }
                    }
                }
            }
        }
        Some(line)
    }
}

fn wrong(text: &str) -> Failure {
    Failure::new(format!("the expression '{text}' is not understood"))
        .hint("what works: s/REGEX/TEXT/gi, tr/abc/xyz/, /REGEX/d, /REGEX/ before the others, and ; between several")
}

fn parse_command(text: &str) -> Result<(Command, &str), Failure> {
    let mut only = None;
    let mut rest = text;
    if rest.starts_with('/') {
        let (pattern, after) = delimited(&rest[1..], '/').ok_or_else(|| wrong(text))?;
        only = Some(regex(&pattern, "")?);
        rest = after.trim_start();
    }
    if let Some(after) = rest.strip_prefix('d').filter(|a| only.is_some() && (a.is_empty() || a.trim_start().starts_with(';'))) {
        return Ok((Command { only, action: Action::Delete }, after));
    }
    let (body, transliterate) = match (rest.strip_prefix("tr"), rest.strip_prefix('y'), rest.strip_prefix('s')) {
        (Some(body), ..) | (_, Some(body), _) => (body, true),
        (.., Some(body)) => (body, false),
        _ => return Err(wrong(text)),
    };
    let mut chars = body.chars();
    let delimiter = chars.next().filter(|c| c.is_ascii_punctuation()).ok_or_else(|| wrong(text))?;
    let close = match delimiter {
        '{' => '}',
        '(' => ')',
        '[' => ']',
        c => c,
    };
    let (first, mut after) = delimited(chars.as_str(), close).ok_or_else(|| wrong(text))?;
    if close != delimiter {
        after = after.trim_start().strip_prefix(delimiter).ok_or_else(|| wrong(text))?;
    }
    let (second, after) = delimited(after, close).ok_or_else(|| wrong(text))?;
    let flags_end = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
    let (flags, after) = after.split_at(flags_end);
    let action = if transliterate {
        Action::Transliterate { from: ranges(&first), to: ranges(&second) }
    } else {
        if flags.chars().any(|c| !"gimsx".contains(c)) {
            return Err(wrong(text));
        }
        Action::Substitute { pattern: regex(&first, flags)?, replacement: replacement(&second), all: flags.contains('g') }
    };
    Ok((Command { only, action }, after))
}

/// Text up to the delimiter; a backslash before the delimiter makes it plain.
fn delimited(text: &str, close: char) -> Option<(String, &str)> {
    let mut out = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        if c == close {
            return Some((out, &text[at + c.len_utf8()..]));
        }
        if c == '\\' {
            let (_, next) = chars.next()?;
            if next != close {
                out.push('\\');
            }
            out.push(next);
        } else {
            out.push(c);
        }
    }
    None
}

fn regex(pattern: &str, flags: &str) -> Result<Regex, Failure> {
    let built = RegexBuilder::new(pattern)
        .case_insensitive(flags.contains('i'))
        .multi_line(flags.contains('m'))
        .dot_matches_new_line(flags.contains('s'))
        .ignore_whitespace(flags.contains('x'))
        .build();
    built.map_err(|e| Failure::new(format!("'{pattern}': {e}")))
}

/// Perl's and sed's references become `${1}`; everything else stands for itself.
fn replacement(text: &str) -> Vec<u8> {
    let mut out = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek().copied()) {
            ('\\', Some('n')) => {
                chars.next();
                out.push('\n');
            }
            ('\\', Some('t')) => {
                chars.next();
                out.push('\t');
            }
            ('\\' | '$', Some(digit)) if digit.is_ascii_digit() => {
                chars.next();
                out.push_str(&format!("${{{digit}}}"));
            }
            ('$', Some('&')) => {
                chars.next();
                out.push_str("${0}");
            }
            ('$', Some('{')) => out.push('$'),
            ('\\', Some(other)) => {
                chars.next();
                out.push_str(if other == '$' { "$$" } else { "" });
                if other != '$' {
                    out.push(other);
                }
            }
            ('$', _) => out.push_str("$$"),
            (c, _) => out.push(c),
        }
    }
    out.into_bytes()
}

/// `a-e` as `abcde`.
fn ranges(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(first) = bytes.get(at) {
        match (bytes.get(at + 1), bytes.get(at + 2)) {
            (Some(b'-'), Some(last)) if first <= last => {
                out.extend(*first..=*last);
                at += 3;
            }
            _ => {
                out.push(*first);
                at += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(expression: &str, content: &str) -> String {
        String::from_utf8(Program::parse(expression).unwrap().apply(content.as_bytes())).unwrap()
    }

    #[test]
    fn substitutions() {
        assert_eq!(apply("s/^root:.*?:/root::/", "root:x:0\nbin:x:1\n"), "root::0\nbin:x:1\n");
        assert_eq!(apply("s/a/b/", "aa\naa"), "ba\nba");
        assert_eq!(apply("s/A/b/gi", "aa"), "bb");
        assert_eq!(apply("s,/dev/sda,/dev/vda,g", "/dev/sda /dev/sda1"), "/dev/vda /dev/vda1");
        assert_eq!(apply(r"s/(\w+)=(\w+)/$2=\1/", "a=b"), "b=a");
        assert_eq!(apply(r"s/x/\/$/", "x"), "/$");
        assert_eq!(apply("s{a}{b}; s/b/c/", "a"), "c");
        assert_eq!(apply(r"s/$/\tend/", "a\n"), "a\tend\n");
    }

    #[test]
    fn deletions_and_conditions() {
        assert_eq!(apply("/^#/d", "#a\nb\n"), "b\n");
        assert_eq!(apply("/keep/ s/x/y/", "x\nkeep x\n"), "x\nkeep y\n");
        assert_eq!(apply("tr/a-c/A-C/", "abcd"), "ABCd");
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for text in ["", "s/a/b", "print $x", "$_ = 1", "s/a/b/e", "/x/", "s/(/b/", "d"] {
            assert!(Program::parse(text).is_err(), "{text}");
        }
    }
}
