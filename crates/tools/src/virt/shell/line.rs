//! One line of the shell's language, which is guestfish's: words in quotes, a pipe to a local program, comments.

/// What a line asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Blank, or a comment.
    Nothing,
    /// `!COMMAND`: for this machine's shell.
    Local(Vec<u8>),
    /// `<!COMMAND`: for this machine's shell, whose output is more lines.
    Generate(Vec<u8>),
    /// A command of ours.
    Command {
        words: Vec<Vec<u8>>,
        /// `-COMMAND`: an error is no reason to end.
        forgiving: bool,
        /// `| COMMAND`: this machine's shell gets the output.
        pipe: Option<Vec<u8>>,
    },
}

/// Reads a line; what is wrong with it, in words.
pub(super) fn parse(line: &[u8]) -> Result<Line, String> {
    let line = line.trim_ascii();
    match line {
        [] | [b'#', ..] => return Ok(Line::Nothing),
        [b'!', command @ ..] => return Ok(Line::Local(command.to_vec())),
        [b'<', b'!', command @ ..] => return Ok(Line::Generate(command.to_vec())),
        _ => {}
    }
    let (forgiving, mut rest) = match line {
        [b'-', rest @ ..] => (true, rest.trim_ascii_start()),
        line => (false, line),
    };
    let mut words = Vec::new();
    loop {
        rest = rest.trim_ascii_start();
        let word = match rest {
            [] => break,
            [b'|', command @ ..] if !words.is_empty() => {
                return Ok(Line::Command { words, forgiving, pipe: Some(command.trim_ascii().to_vec()) });
            }
            [b'"', inner @ ..] => double_quoted(inner, &mut rest)?,
            [b'\'', inner @ ..] => {
                let end = inner.iter().position(|b| *b == b'\'').ok_or("a quote ' without an end")?;
                rest = &inner[end + 1..];
                inner[..end].to_vec()
            }
            _ => {
                let end = rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len());
                let (word, after) = rest.split_at(end);
                rest = after;
                home(word)
            }
        };
        if !rest.first().is_none_or(u8::is_ascii_whitespace) {
            return Err("a blank must follow a word in quotes".into());
        }
        words.push(word);
    }
    if words.is_empty() { Err("a command must follow the '-'".into()) } else { Ok(Line::Command { words, forgiving, pipe: None }) }
}

fn double_quoted<'l>(inner: &'l [u8], rest: &mut &'l [u8]) -> Result<Vec<u8>, String> {
    let mut word = Vec::new();
    let mut at = inner.iter().copied().enumerate();
    while let Some((position, byte)) = at.next() {
        let escaped = match byte {
            b'"' => {
                *rest = &inner[position + 1..];
                return Ok(word);
            }
            b'\\' => at.next().map(|(_, b)| b).ok_or("a quote \" without an end")?,
            plain => {
                word.push(plain);
                continue;
            }
        };
        let mut digits = |first: Option<u8>, more: usize, radix: u32| {
            let digits: Vec<u8> = first.into_iter().chain(at.by_ref().take(more).map(|(_, b)| b)).collect();
            let number = std::str::from_utf8(&digits).ok().and_then(|d| u8::from_str_radix(d, radix).ok()).filter(|n| *n != 0);
            number.filter(|_| digits.iter().all(u8::is_ascii_hexdigit)).ok_or("a number behind \\ that is no byte's, or zero")
        };
        word.push(match escaped {
            b'a' => 7,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'v' => 11,
            b'"' | b'\\' => escaped,
            b'x' => digits(None, 2, 16)?,
            b'0'..=b'7' => digits(Some(escaped), 2, 8)?,
            other => return Err(format!("\\{} means nothing", (other as char).escape_default())),
        });
    }
    Err("a quote \" without an end".into())
}

/// `~` and `~/…` are the user's own folder.
fn home(word: &[u8]) -> Vec<u8> {
    use std::os::unix::ffi::OsStringExt;
    match (word.strip_prefix(b"~"), std::env::var_os("HOME")) {
        (Some(rest), Some(home)) if rest.first().is_none_or(|b| *b == b'/') => [home.into_vec(), rest.to_vec()].concat(),
        _ => word.to_vec(),
    }
}

/// The words in one argument that is a list: separated by blanks, `'…'` holds them together, `\'` is a quote.
pub(super) fn list(text: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let mut words = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut quoted = false;
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\'' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            b'\\' => word.get_or_insert_default().push(bytes.next().unwrap_or(b'\\')),
            blank if blank.is_ascii_whitespace() && !quoted => words.extend(word.take()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    if quoted { Err("a quote ' without an end".into()) } else { Ok(words) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        let Ok(Line::Command { words, .. }) = parse(line.as_bytes()) else { panic!("{line}") };
        words.into_iter().map(|w| String::from_utf8(w).unwrap()).collect()
    }

    #[test]
    fn words_in_quotes() {
        assert_eq!(words(r#"  write /f "a \"b\"\n\x41\101" 'c "d" \n'  "#), ["write", "/f", "a \"b\"\nAA", "c \"d\" \\n"]);
        assert_eq!(words("echo a | b")[..], ["echo", "a"]);
        assert_eq!(words("echo a|b # c"), ["echo", "a|b", "#", "c"]);
        assert_eq!(words(r#"echo "" '' "|""#), ["echo", "", "", "|"]);
        assert!(words("ls ~/x")[1].ends_with("/x") && !words("ls ~/x")[1].starts_with('~'));
    }

    #[test]
    fn lines_of_all_kinds() {
        assert_eq!(parse(b"  # x"), Ok(Line::Nothing));
        assert_eq!(parse(b"\t"), Ok(Line::Nothing));
        assert_eq!(parse(b"!ls -l"), Ok(Line::Local(b"ls -l".into())));
        assert_eq!(parse(b"<! seq 3"), Ok(Line::Generate(b" seq 3".into())));
        let pipe = Line::Command { words: vec![b"ls".into(), b"/".into()], forgiving: true, pipe: Some(b"wc -l".into()) };
        assert_eq!(parse(b"-ls / | wc -l"), Ok(pipe));
        for bad in [&b"echo \"a"[..], b"echo 'a", b"echo \"a\"b", b"echo \"\\q\"", b"echo \"\\x00\"", b"echo \"\\x+1\"", b"-", b"echo \"\\"]
        {
            assert!(parse(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn lists() {
        let of = |text: &str| list(text.as_bytes()).map(|l| l.into_iter().map(|w| String::from_utf8(w).unwrap()).collect::<Vec<_>>());
        assert_eq!(of("/bin/echo 'foo  bar' a\\'b ''").unwrap(), ["/bin/echo", "foo  bar", "a'b", ""]);
        assert!(of("'a").is_err());
    }
}
