//! Configuration files as text: any bytes come back as they were, and lines keep their ends.

use std::ops::Deref;

/// A file's text. Bytes that are not UTF-8 are taken as Latin-1, so that every file can be edited and written back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    text: String,
    latin1: bool,
}

impl Text {
    /// The text of these bytes.
    pub fn decode(bytes: Vec<u8>) -> Self {
        match String::from_utf8(bytes) {
            Ok(text) => Text { text, latin1: false },
            Err(e) => Text { text: e.as_bytes().iter().map(|&b| char::from(b)).collect(), latin1: true },
        }
    }

    /// The bytes of a changed text, in this file's encoding.
    pub fn encode(&self, text: &str) -> Vec<u8> {
        if self.latin1 { text.chars().map(|c| u8::try_from(u32::from(c)).unwrap_or(b'?')).collect() } else { text.into() }
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        &self.text
    }
}

/// What becomes of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// It stays.
    Keep,
    /// It goes.
    Drop,
    /// It becomes this; may be several lines.
    Become(String),
}

impl Line {
    /// [`Line::Become`], or [`Line::Keep`] when there is nothing new.
    pub fn of(new: Option<String>) -> Self {
        new.map_or(Line::Keep, Line::Become)
    }
}

/// Changes a text line by line; line ends, and a missing one at the end of the text, stay.
pub fn map_lines(text: &str, mut change: impl FnMut(&str) -> Line) -> String {
    let mut out = String::with_capacity(text.len() + 64);
    for whole in text.split_inclusive('\n') {
        let line = whole.strip_suffix('\n').unwrap_or(whole);
        let line = line.strip_suffix('\r').unwrap_or(line);
        let end = &whole[line.len()..];
        match change(line) {
            Line::Keep => out.push_str(whole),
            Line::Drop => {}
            Line::Become(new) => {
                out.push_str(&new);
                out.push_str(end);
            }
        }
    }
    out
}

/// Adds a line at the end of a text.
pub fn add_line(text: &str, line: &str) -> String {
    let newline = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    format!("{text}{newline}{line}\n")
}

/// The words of a line with the byte ranges where they stand: what lies between them is blank.
pub fn fields(line: &str) -> Vec<(std::ops::Range<usize>, &str)> {
    let mut found = Vec::new();
    let mut start = None;
    for (i, c) in line.char_indices() {
        match (c.is_ascii_whitespace(), start) {
            (false, None) => start = Some(i),
            (true, Some(s)) => {
                found.push((s..i, &line[s..i]));
                start = None;
            }
            _ => {}
        }
    }
    found.extend(start.map(|s| (s..line.len(), &line[s..])));
    found
}

/// The line with a part of it replaced.
pub fn replaced(line: &str, range: std::ops::Range<usize>, new: &str) -> String {
    format!("{}{new}{}", &line[..range.start], &line[range.end..])
}

/// A line of shell that sets a list of words: `NAME="a b"`, `NAME+=' a '`, `NAME=(a b)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WordList<'a> {
    /// The variable.
    pub name: &'a str,
    /// The words.
    pub words: Vec<&'a str>,
    line: &'a str,
    /// Where the words stand, between the quotes or parentheses.
    inner: std::ops::Range<usize>,
}

/// The list that a line sets; `None` for all that is not as plain as that.
pub fn word_list(line: &str) -> Option<WordList<'_>> {
    let (left, value) = line.split_once('=')?;
    let name = left.strip_suffix('+').unwrap_or(left).trim_start();
    let close = match value.chars().next()? {
        '"' => '"',
        '\'' => '\'',
        '(' => ')',
        _ => return None,
    };
    let start = left.len() + 2;
    let inner = start..start + value[1..].find(close)?;
    let words = line[inner.clone()].split_ascii_whitespace().collect();
    (!name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')).then_some(WordList { name, words, line, inner })
}

impl WordList<'_> {
    /// The line with these words instead. A blank at either end stays: lists are made of parts.
    pub fn with(&self, words: &[&str]) -> String {
        let old = &self.line[self.inner.clone()];
        let end = |is: bool| if is { " " } else { "" };
        let blank = |c: char| c.is_ascii_whitespace();
        let new = format!("{}{}{}", end(old.starts_with(blank)), words.join(" "), end(old.ends_with(blank)));
        replaced(self.line, self.inner.clone(), &new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_comes_back() {
        for bytes in [&b"caf\xc3\xa9\n"[..], b"caf\xe9 \xff\x80\n", b""] {
            let text = Text::decode(bytes.to_vec());
            assert_eq!(text.encode(&text), bytes);
        }
        let text = Text::decode(b"# caf\xe9\nx\n".to_vec());
        assert_eq!(text.encode(&text.replace('x', "y")), b"# caf\xe9\ny\n");
    }

    #[test]
    fn lines_keep_their_ends() {
        let change = |line: &str| match line {
            "a" => Line::Become("A\nA2".into()),
            "b" => Line::Drop,
            _ => Line::Keep,
        };
        assert_eq!(map_lines("a\r\nb\nc\na", change), "A\nA2\r\nc\nA\nA2");
        assert_eq!(add_line("x", "y"), "x\ny\n");
        assert_eq!(fields(" a\tbc  d").iter().map(|f| (f.0.clone(), f.1)).collect::<Vec<_>>(), [(1..2, "a"), (3..5, "bc"), (7..8, "d")]);
        assert!(fields("  ").is_empty());
    }

    #[test]
    fn lists_of_words() {
        for (line, name, words, new) in [
            ("A=\"x  y\" # z", "A", vec!["x", "y"], "A=\"n\" # z"),
            (" A_2+=' x '", "A_2", vec!["x"], " A_2+=' n '"),
            ("A=()", "A", vec![], "A=(n)"),
        ] {
            let list = word_list(line).unwrap();
            assert_eq!((list.name, &list.words), (name, &words));
            assert_eq!(list.with(&["n"]), new);
        }
        for line in ["# A=\"x\"", "A=x", "A=\"x", "", "=\"x\"", "A"] {
            assert_eq!(word_list(line), None, "{line}");
        }
    }
}
