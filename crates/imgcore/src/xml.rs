//! XML, element by element, indented by two blanks as libguestfs and libvirt do. The one place that writes it.

use std::fmt::Write;

/// A document or a part of one.
#[derive(Default)]
pub struct Xml {
    text: String,
    depth: usize,
}

impl Xml {
    /// An element with others in it.
    pub fn parent(&mut self, name: &str, attributes: &[(&str, &str)], content: impl FnOnce(&mut Xml)) {
        let (tag, indent) = (tag(name, attributes), self.depth * 2);
        let _ = write!(self.text, "{:indent$}<{tag}", "");
        let start = self.text.len();
        self.text.push_str(">\n");
        let empty = self.text.len();
        self.depth += 1;
        content(self);
        self.depth -= 1;
        if self.text.len() == empty {
            self.text.truncate(start);
            self.text.push_str("/>\n");
        } else {
            let _ = writeln!(self.text, "{:indent$}</{name}>", "");
        }
    }

    /// An element with nothing in it but its attributes.
    pub fn empty(&mut self, name: &str, attributes: &[(&str, &str)]) {
        self.parent(name, attributes, |_| {});
    }

    /// An element with text in it.
    pub fn leaf(&mut self, name: &str, attributes: &[(&str, &str)], text: &str) {
        let (tag, indent) = (tag(name, attributes), self.depth * 2);
        let _ = writeln!(self.text, "{:indent$}<{tag}>{}</{name}>", "", escape(text));
    }

    /// The same without attributes.
    pub fn element(&mut self, name: &str, text: &str) {
        self.leaf(name, &[], text);
    }

    /// The same, unless there is no text.
    pub fn optional(&mut self, name: &str, text: &str) {
        if !text.is_empty() {
            self.element(name, text);
        }
    }

    /// What was written, without a document's first line.
    pub fn text(self) -> String {
        self.text
    }

    /// What was written, as a document.
    pub fn document(self) -> String {
        format!("<?xml version=\"1.0\"?>\n{}", self.text)
    }
}

fn tag(name: &str, attributes: &[(&str, &str)]) -> String {
    attributes.iter().fold(name.to_string(), |tag, (key, value)| format!("{tag} {key}=\"{}\"", escape(value)))
}

/// Text for elements, and for attributes in double quotes: its markup undone; what XML 1.0 can't hold becomes U+FFFD.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' => out.push(c),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}
