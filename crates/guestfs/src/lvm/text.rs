//! LVM's configuration syntax (lvm.conf(5)): sections in braces, and names with numbers, strings or lists of them.

/// How deep sections nest at most; LVM's own have four levels.
const DEPTH: usize = 8;

/// A section: names with what they stand for, in their order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Section(Vec<(String, Value)>);

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Value {
    Number(u64),
    Text(String),
    List(Vec<Value>),
    Section(Section),
}

impl Section {
    /// Parses a whole text. What is wrong is told with the byte at which it stands.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let mut parser = Parser { text, at: 0 };
        let section = parser.section(0)?;
        if parser.at == text.len() { Ok(section) } else { Err(parser.error("a '}' too many")) }
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value)
    }

    pub fn number(&self, name: &str) -> Result<u64, String> {
        match self.get(name) {
            Some(Value::Number(number)) => Ok(*number),
            _ => Err(format!("there is no number '{name}'")),
        }
    }

    pub fn text(&self, name: &str) -> Result<&str, String> {
        match self.get(name) {
            Some(Value::Text(text)) => Ok(text),
            _ => Err(format!("there is no text '{name}'")),
        }
    }

    /// A list, which may be missing.
    pub fn list(&self, name: &str) -> &[Value] {
        match self.get(name) {
            Some(Value::List(list)) => list,
            _ => &[],
        }
    }

    /// All lists in it.
    pub fn lists(&self) -> impl Iterator<Item = &[Value]> {
        self.0.iter().filter_map(|(_, value)| match value {
            Value::List(list) => Some(list.as_slice()),
            _ => None,
        })
    }

    pub fn section(&self, name: &str) -> Option<&Section> {
        self.sections().find(|(n, _)| *n == name).map(|(_, section)| section)
    }

    /// The sections in it, by name.
    pub fn sections(&self) -> impl Iterator<Item = (&str, &Section)> {
        self.0.iter().filter_map(|(name, value)| match value {
            Value::Section(section) => Some((name.as_str(), section)),
            _ => None,
        })
    }
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
}

impl Parser<'_> {
    fn error(&self, what: &str) -> String {
        format!("{what} at byte {}", self.at)
    }

    /// The next byte that is neither space nor comment.
    fn peek(&mut self) -> Option<u8> {
        loop {
            match self.text.get(self.at)? {
                b'#' => {
                    while self.text.get(self.at).is_some_and(|b| *b != b'\n') {
                        self.at += 1
                    }
                }
                b if b.is_ascii_whitespace() => self.at += 1,
                b => return Some(*b),
            }
        }
    }

    fn expect(&mut self, byte: u8) -> Result<(), String> {
        if self.peek() != Some(byte) {
            return Err(self.error(&format!("no '{}'", byte as char)));
        }
        self.at += 1;
        Ok(())
    }

    /// Entries up to the end or a closing brace, which is left.
    fn section(&mut self, depth: usize) -> Result<Section, String> {
        if depth > DEPTH {
            return Err(self.error("sections nest too deep"));
        }
        let mut section = Section::default();
        while self.peek().is_some_and(|b| b != b'}') {
            let name = self.word(|b| b.is_ascii_alphanumeric() || b"_.-+/".contains(&b))?;
            let value = match self.peek() {
                Some(b'{') => {
                    self.at += 1;
                    let inner = self.section(depth + 1)?;
                    self.expect(b'}')?;
                    Value::Section(inner)
                }
                _ => {
                    self.expect(b'=')?;
                    self.value(0)?
                }
            };
            section.0.push((name, value));
        }
        Ok(section)
    }

    fn value(&mut self, depth: usize) -> Result<Value, String> {
        match self.peek() {
            Some(b'"') => self.string().map(Value::Text),
            Some(b'[') if depth == 0 => {
                self.at += 1;
                let mut list = Vec::new();
                while self.peek() != Some(b']') {
                    if !list.is_empty() {
                        self.expect(b',')?;
                    }
                    list.push(self.value(depth + 1)?);
                }
                self.at += 1;
                Ok(Value::List(list))
            }
            _ => {
                let digits = self.word(|b| b.is_ascii_digit())?;
                digits.parse().map(Value::Number).map_err(|_| self.error("a number too large"))
            }
        }
    }

    fn word(&mut self, is_part: impl Fn(u8) -> bool) -> Result<String, String> {
        let len = self.text.iter().skip(self.at).take_while(|b| is_part(**b)).count();
        if len == 0 {
            return Err(self.error("neither a name nor a value"));
        }
        let word = String::from_utf8_lossy(&self.text[self.at..self.at + len]).into_owned();
        self.at += len;
        Ok(word)
    }

    fn string(&mut self) -> Result<String, String> {
        self.at += 1;
        let mut bytes = Vec::new();
        loop {
            match self.text.get(self.at) {
                Some(b'"') => break,
                Some(b'\\') => {
                    bytes.extend(self.text.get(self.at + 1));
                    self.at += 2;
                }
                Some(byte) => {
                    bytes.push(*byte);
                    self.at += 1;
                }
                None => return Err(self.error("a string without an end")),
            }
        }
        self.at += 1;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_numbers_strings_and_lists() {
        let parsed =
            Section::parse(b"# made by hand\nvg {\n id = \"a\\\"b\"\n n=42 list = [\"p\", 7]\n empty = []\n in { x = 1 } }\nversion = 1\n")
                .unwrap();
        let vg = parsed.section("vg").unwrap();
        assert_eq!((vg.text("id"), vg.number("n")), (Ok("a\"b"), Ok(42)));
        assert_eq!(vg.list("list"), [Value::Text("p".into()), Value::Number(7)]);
        assert_eq!((vg.list("empty").len(), vg.section("in").unwrap().number("x")), (0, Ok(1)));
        assert!(vg.number("id").is_err() && vg.text("none").is_err());
    }

    #[test]
    fn nonsense_is_refused() {
        let deep = "a {".repeat(100_000);
        for bad in ["a", "a {", "a = ", "a = \"x", "a = [1, [2]]", "a = [1", "}", "a = 99999999999999999999999", &deep, "= 1", "a = \"\\"] {
            assert!(Section::parse(bad.as_bytes()).is_err(), "{:.20}", bad);
        }
    }
}
