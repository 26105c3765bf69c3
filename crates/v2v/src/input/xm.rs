//! Configurations of xm, the tool before xl: Python 2 programs, of which we read assignments of literals.
//!
//! Nothing is executed. Understood are strings (`''`, `""`, triple, `r`, `u`), numbers, lists, tuples, `+` of them, `%` of a
//! string and literals, and names that were assigned before. What else a name gets, be it in an `if`, is not known: that is an error
//! that names the line when somebody needs the value. All else is an error at once.

use super::value::{Config, Value};
use super::xl::escaped;
use crate::{Error, Result};

/// Brackets in brackets go no deeper.
const MAX_DEPTH: usize = 32;
/// Letters and list elements that a configuration may come to, since `a = a + a` doubles.
const MAX_WORK: usize = 8 << 20;

/// Parses a configuration; `file` names it in messages.
pub fn parse(file: &str, text: &str) -> Result<Config> {
    let mut parser = Parser {
        file,
        rest: text.trim_start_matches('\u{feff}'),
        line: 1,
        depth: 0,
        work: MAX_WORK,
        is_program: false,
        config: Config::new(file),
    };
    loop {
        parser.skip();
        if parser.eat("\n") {
            parser.line += 1;
        } else if parser.rest.is_empty() {
            return Ok(parser.config);
        } else if !parser.eat(";") {
            parser.statement()?;
        }
    }
}

struct Parser<'a> {
    file: &'a str,
    rest: &'a str,
    line: usize,
    /// Open brackets: in them newlines mean nothing.
    depth: usize,
    work: usize,
    /// The last error was for what would have to be executed.
    is_program: bool,
    config: Config,
}

impl<'a> Parser<'a> {
    fn error(&self, what: impl Into<String>) -> Error {
        Error::Config { file: self.file.into(), line: self.line, what: what.into() }
    }

    /// The error for what would have to be executed.
    fn program(&mut self) -> Error {
        // What ends too early is wrong in any case.
        self.is_program = !self.rest.is_empty();
        self.error(unreadable(self.rest))
    }

    /// Takes what is left of a statement, up to the end of the line in which its brackets are closed.
    fn skip_statement(&mut self) {
        let mut open = 0usize;
        loop {
            let (line, rest) = self.rest.split_at(self.rest.find('\n').unwrap_or(self.rest.len()));
            for c in line.chars() {
                match c {
                    '[' | '(' | '{' => open += 1,
                    ']' | ')' | '}' => open = open.saturating_sub(1),
                    _ => {}
                }
            }
            self.rest = rest;
            if open == 0 && !line.ends_with('\\') || rest.is_empty() {
                return;
            }
            self.rest = &rest[1..];
            self.line += 1;
        }
    }

    /// Takes the indented lines of a block: what they may set is not known.
    fn skip_block(&mut self) {
        let head = unreadable(self.rest);
        let line = self.line;
        self.skip_statement();
        while let Some(rest) = self.rest.strip_prefix('\n') {
            let next = &rest[..rest.find('\n').unwrap_or(rest.len())];
            if !(next.starts_with([' ', '\t']) || next.trim().is_empty() || next.starts_with('#')) {
                return;
            }
            (self.rest, self.line) = (rest, self.line + 1);
            let word = next.trim_start();
            let end = word.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(word.len());
            if end > 0 && word[end..].trim_start().starts_with(['=', '+', '.', '[']) {
                self.config.set(&word[..end], Value::Unreadable(head.clone()), line);
            }
            self.skip_statement();
        }
    }

    fn eat(&mut self, wanted: &str) -> bool {
        match self.rest.strip_prefix(wanted) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// Skips blanks, comments and continued lines; newlines as well within brackets.
    fn skip(&mut self) {
        loop {
            self.rest = self.rest.trim_start_matches([' ', '\t', '\r', '\u{c}']);
            if self.rest.starts_with('#') {
                self.rest = &self.rest[self.rest.find('\n').unwrap_or(self.rest.len())..];
            }
            let continued = self.eat("\\\n") || self.eat("\\\r\n");
            if !(continued || self.depth > 0 && self.eat("\n")) {
                return;
            }
            self.line += 1;
        }
    }

    fn name(&mut self) -> Option<&'a str> {
        if !self.rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
            return None;
        }
        let end = self.rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        Some(name)
    }

    fn statement(&mut self) -> Result<()> {
        let (start, line) = (self.rest, self.line);
        let Some(name) = self.name() else { return Err(self.program()) };
        if matches!(name, "if" | "elif" | "else" | "for" | "while" | "def" | "try" | "except")
            && self.rest.starts_with([' ', '\t', ':', '('])
        {
            self.rest = start;
            self.skip_block();
            return Ok(());
        }
        if matches!(name, "import" | "from") && self.rest.starts_with([' ', '\t']) {
            // xm's examples begin so. What uses a module is an error in its own line.
            self.rest = &self.rest[self.rest.find('\n').unwrap_or(self.rest.len())..];
            return Ok(());
        }
        self.skip();
        let add = self.eat("+=");
        if !add && (self.rest.starts_with("==") || !self.eat("=")) {
            self.rest = start;
            return Err(self.program());
        }
        self.skip();
        let (expression, at) = (self.rest, self.line);
        let value = match self.expression() {
            Err(Error::Config { what, .. }) if std::mem::take(&mut self.is_program) => {
                (self.rest, self.line, self.depth) = (expression, at, 0);
                self.skip_statement();
                Value::Unreadable(what)
            }
            value => value?,
        };
        if add {
            self.config.add(name, value, line)
        } else {
            self.config.set(name, value, line);
            Ok(())
        }
    }

    /// What is assigned, up to the statement's end.
    fn expression(&mut self) -> Result<Value> {
        let value = self.sum()?;
        self.skip();
        if self.rest.is_empty() || self.rest.starts_with(['\n', ';']) { Ok(value) } else { Err(self.program()) }
    }

    fn sum(&mut self) -> Result<Value> {
        let mut left = self.product()?;
        loop {
            self.skip();
            if self.rest.starts_with("+=") || !self.eat("+") {
                return Ok(left);
            }
            self.skip();
            left = match (left, self.product()?) {
                (Value::Text(a), Value::Text(b)) => Value::Text(a + &b),
                (Value::List(mut a), Value::List(b)) => {
                    a.extend(b);
                    Value::List(a)
                }
                (Value::Int(a), Value::Int(b)) => Value::Int(a.checked_add(b).ok_or_else(|| self.error("the number is too large"))?),
                (a, b) => return Err(self.error(format!("{} and {} cannot be added", a.kind(), b.kind()))),
            };
        }
    }

    fn product(&mut self) -> Result<Value> {
        let mut left = self.literal()?;
        loop {
            self.skip();
            if !self.eat("%") {
                return Ok(left);
            }
            self.skip();
            let right = self.literal()?;
            let Value::Text(format) = left else { return Err(self.program()) };
            left = Value::Text(self.formatted(&format, right)?);
        }
    }

    /// Python's `format % values` for `%s`, `%d`, `%i` and `%%`.
    fn formatted(&mut self, format: &str, values: Value) -> Result<String> {
        let mut values = match values {
            Value::List(values) => values,
            one => vec![one],
        }
        .into_iter();
        let mut text = String::new();
        let mut letters = format.chars();
        while let Some(letter) = letters.next() {
            if letter != '%' {
                text.push(letter);
                continue;
            }
            match (letters.next(), values.as_slice().first()) {
                (Some('%'), _) => text.push('%'),
                (Some('s' | 'd' | 'i'), Some(Value::Int(number))) => {
                    text += &number.to_string();
                    values.next();
                }
                (Some('s'), Some(Value::Text(value))) => {
                    text += value;
                    values.next();
                }
                _ => return Err(self.error(format!("'{format}' and the values behind its % do not fit"))),
            }
        }
        self.spend(text.len())?;
        if values.len() > 0 {
            return Err(self.error(format!("'{format}' has fewer places than values")));
        }
        Ok(text)
    }

    fn literal(&mut self) -> Result<Value> {
        let start = self.rest;
        match self.rest.chars().next() {
            Some('[') => self.bracketed("]").map(|(values, _)| Value::List(values)),
            Some('(') => match self.bracketed(")")? {
                // Without a comma, the parentheses only group.
                (mut values, false) if values.len() == 1 => Ok(values.remove(0)),
                (values, _) => Ok(Value::List(values)),
            },
            Some(c) if c.is_ascii_digit() || c == '-' => self.number(),
            Some('\'' | '"') => self.strings(),
            _ => {
                let Some(name) = self.name() else { return Err(self.program()) };
                if name.len() <= 2 && name.chars().all(|c| "rRuUbB".contains(c)) && self.rest.starts_with(['\'', '"']) {
                    self.rest = start;
                    return self.strings();
                }
                match name {
                    "None" => Ok(Value::None),
                    "True" => Ok(Value::Int(1)),
                    "False" => Ok(Value::Int(0)),
                    _ => {
                        let value = self.config.get(name).map(|(value, _)| value.clone());
                        let Some(value) = value.filter(|value| !matches!(value, Value::Unreadable(_))) else {
                            self.rest = start;
                            return Err(self.program());
                        };
                        self.spend(size(&value))?;
                        Ok(value)
                    }
                }
            }
        }
    }

    fn spend(&mut self, work: usize) -> Result<()> {
        self.work = self.work.checked_sub(work).ok_or_else(|| self.error("the values come to more than 8 MiB"))?;
        Ok(())
    }

    /// The values in brackets, and whether there was a comma.
    fn bracketed(&mut self, close: &str) -> Result<(Vec<Value>, bool)> {
        if self.depth >= MAX_DEPTH {
            return Err(self.error(format!("brackets are nested deeper than {MAX_DEPTH}")));
        }
        self.rest = &self.rest[1..];
        self.depth += 1;
        let (mut values, mut comma) = (Vec::new(), false);
        loop {
            self.skip();
            if self.rest.starts_with(close) {
                break;
            }
            values.push(self.sum()?);
            self.skip();
            if self.eat(",") {
                comma = true;
            } else if !self.rest.starts_with(close) {
                return Err(self.program());
            }
        }
        self.rest = &self.rest[close.len()..];
        self.depth -= 1;
        Ok((values, comma))
    }

    fn number(&mut self) -> Result<Value> {
        let end = self.rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '.')).unwrap_or(self.rest.len());
        let word = &self.rest[..end];
        let (negative, digits) = word.strip_prefix('-').map_or((false, word), |d| (true, d));
        let digits = digits.trim_end_matches(['L', 'l']);
        let number = match digits.strip_prefix("0x") {
            Some(hex) => i64::from_str_radix(hex, 16),
            None if digits.len() > 1 && digits.starts_with('0') => i64::from_str_radix(digits, 8),
            None => digits.parse(),
        };
        let Ok(number) = number else { return Err(self.program()) };
        self.rest = &self.rest[end..];
        Ok(Value::Int(if negative { -number } else { number }))
    }

    /// One string, or several side by side, which are one.
    fn strings(&mut self) -> Result<Value> {
        let mut text = String::new();
        loop {
            let prefix = self.rest.find(['\'', '"']).filter(|n| *n <= 2 && self.rest[..*n].chars().all(|c| "rRuUbB".contains(c)));
            let Some(prefix) = prefix else { return Ok(Value::Text(text)) };
            let raw = self.rest[..prefix].contains(['r', 'R']);
            self.rest = &self.rest[prefix..];
            text += &self.string(raw)?;
            self.skip();
        }
    }

    fn string(&mut self, raw: bool) -> Result<String> {
        let line = self.line;
        let one = &self.rest[..1];
        let quote = ["'''", "\"\"\""].into_iter().find(|q| self.rest.starts_with(q)).unwrap_or(one);
        self.rest = &self.rest[quote.len()..];
        let mut bytes = Vec::new();
        loop {
            if self.eat(quote) {
                return String::from_utf8(bytes).map_err(|_| self.error("the string's escapes are not UTF-8"));
            }
            let Some(c) = self.rest.chars().next() else {
                self.line = line;
                return Err(self.error("the string does not end"));
            };
            self.rest = &self.rest[c.len_utf8()..];
            match c {
                '\n' if quote.len() == 1 => return Err(self.error("the string does not end on its line")),
                '\\' if self.rest.starts_with('\n') && !raw => {
                    self.rest = &self.rest[1..];
                    self.line += 1;
                }
                '\\' => match escaped(self.rest).filter(|_| !raw) {
                    Some((byte, used)) => {
                        bytes.push(byte);
                        self.rest = &self.rest[used..];
                    }
                    // Python leaves unknown escapes as they are; a backslash also keeps a quote from ending a raw string.
                    None => {
                        bytes.push(b'\\');
                        if let Some(next) = self.rest.chars().next().filter(|c| raw && *c != '\n') {
                            bytes.extend(next.encode_utf8(&mut [0; 4]).bytes());
                            self.rest = &self.rest[next.len_utf8()..];
                        }
                    }
                },
                c => {
                    self.line += usize::from(c == '\n');
                    bytes.extend(c.encode_utf8(&mut [0; 4]).bytes());
                }
            }
        }
    }
}

/// What is said of what would have to be executed, of which this is the beginning.
fn unreadable(text: &str) -> String {
    let found: String = text.chars().take_while(|c| *c != '\n').take(40).collect();
    format!(
        "cannot read '{}': this is a Python program, which is not executed; write the values that it gives in its place",
        found.trim().escape_default()
    )
}

/// Letters and elements of a value.
fn size(value: &Value) -> usize {
    match value {
        Value::Text(text) => text.len() + 1,
        Value::List(values) => values.iter().map(size).sum::<usize>() + 1,
        Value::Int(_) | Value::None | Value::Unreadable(_) => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(t: &str) -> Value {
        Value::Text(t.into())
    }

    #[test]
    fn literals() {
        for (config, expected) in [
            ("a = 1", Value::Int(1)),
            ("import os, re\nfrom socket import gethostname\na = 2", Value::Int(2)),
            ("a = 010", Value::Int(8)),
            ("a = 0x10L", Value::Int(16)),
            ("a = 'x' 'y' \\\n  \"z\"", text("xyz")),
            ("a = 'x' + 'y'", text("xy")),
            ("a = '''two\n'lines'\n'''", text("two\n'lines'\n")),
            ("a = \"\"\"x\\\ny\"\"\"", text("xy")),
            ("a = r'\\d\\n'", text("\\d\\n")),
            ("a = u'\\d\\n'", text("\\d\n")),
            ("a = 'disk-%s-%d%%' % ('x', 3)", text("disk-x-3%")),
            ("a = 'disk-%s' % 'x'", text("disk-x")),
            ("n = 'web'; a = ['file:/vm/' + n + '.img,xvda,w']", Value::List(vec![text("file:/vm/web.img,xvda,w")])),
            ("n = 'web'\na = ['file:/vm/%s.img,xvda,w' % n,\n  # more\n ]", Value::List(vec![text("file:/vm/web.img,xvda,w")])),
            ("a = ('x',)", Value::List(vec![text("x")])),
            ("a = ('x')", text("x")),
            ("a = [1] + [2]", Value::List(vec![Value::Int(1), Value::Int(2)])),
            ("a = [1]\na += [2]", Value::List(vec![Value::Int(1), Value::Int(2)])),
            ("a = True", Value::Int(1)),
        ] {
            assert_eq!(parse("f", config).unwrap().get("a").unwrap().0, &expected, "{config}");
        }
        assert_eq!(parse("f", "a = None").unwrap().get("a"), None);
    }

    #[test]
    fn programs_are_errors_with_their_line() {
        let deep = format!("a = {}", "(".repeat(100_000));
        let doubling = "a = 'xxxxxxxx'\n".to_owned() + &"a = a + a\n".repeat(60);
        let nesting = "a = [1]\n".to_owned() + &"a = [a,a]\n".repeat(60);
        let beyond = |line: usize, found: &str| {
            format!(
                "f:{line}: cannot read '{found}': this is a Python program, which is not executed; write the values that it gives in its place"
            )
        };
        for (config, error) in [
            ("import os, re\na = os.name\n", beyond(2, "os.name")),
            ("b = 1\n\nif b == 1:\n  a = 2", beyond(3, "if b == 1:")),
            ("a = [1]\nif x:\n  a.append(2)\nelse:\n  a += [3]\n", beyond(4, "else:")),
            ("a = [1]\na += os.listdir(\n  '/')\nb = 1", beyond(2, "os.listdir(")),
            ("b = os.name\na = 'x' + b", beyond(2, "b")),
            ("a = os.uname()[4]", beyond(1, "os.uname()[4]")),
            ("a = 'x'.strip()", beyond(1, ".strip()")),
            ("a = {'x': 1}", beyond(1, "{\\'x\\': 1}")),
            ("a = 1.5", beyond(1, "1.5")),
            ("a == 1", beyond(1, "a == 1")),
            ("a = ['x'\n", beyond(2, "")),
            ("a = 'x", "f:1: the string does not end".into()),
            ("a = 'x\n'", "f:1: the string does not end on its line".into()),
            ("a = '''x\n\n", "f:1: the string does not end".into()),
            ("a = '%s %s' % 'x'", "f:1: '%s %s' and the values behind its % do not fit".into()),
            ("a = '%s' % ('x', 'y')", "f:1: '%s' has fewer places than values".into()),
            ("a = 'x' + 1", "f:1: a string and a number cannot be added".into()),
            (&deep, "f:1: brackets are nested deeper than 32".into()),
            (&doubling, "f:20: the values come to more than 8 MiB".into()),
            (&nesting, "f:22: the values come to more than 8 MiB".into()),
        ] {
            let found = parse("f", config).and_then(|config| config.texts("a")).unwrap_err();
            assert_eq!(found.to_string(), error, "{}", &config[..config.len().min(40)]);
        }
    }

    /// As Xen's own example for fully virtual guests begins.
    #[test]
    fn what_nobody_asks_for_may_be_a_program() {
        let config = "import os, re\narch = os.uname()[4]\nif re.search('64', arch):\n    arch_libdir = 'lib64'\nelse:\n    arch_libdir = 'lib'\n\n\
                      kernel = \"/usr/lib/xen/boot/hvmloader\"\nbuilder='hvm'\nmemory = 128\nname = \"ExampleHVMDomain\"\n\
                      vif = [ 'type=ioemu, bridge=xenbr0' ]\ndevice_model = '/usr/' + arch_libdir + '/xen/bin/qemu-dm'\nboot=\"cda\"\nsdl=0\n";
        let config = parse("f", config).unwrap();
        assert_eq!(config.text("boot").unwrap().as_deref(), Some("cda"));
        assert_eq!(config.number("memory").unwrap(), Some(128));
        assert!(config.text("device_model").unwrap_err().to_string().starts_with("f:13: cannot read 'arch_libdir + "));
    }
}
