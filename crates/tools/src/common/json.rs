//! JSON on the standard output, the way qemu-img prints it.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// Four spaces of indentation; what is empty ends on a line of its own.
struct QemuFormatter {
    pretty: PrettyFormatter<'static>,
    depth: usize,
    empty: bool,
}

impl QemuFormatter {
    fn begin(&mut self) {
        self.depth += 1;
        self.empty = true;
    }

    fn end<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.depth -= 1;
        if std::mem::take(&mut self.empty) {
            write!(out, "\n{:1$}", "", self.depth * 4)?;
        }
        Ok(())
    }
}

impl Formatter for QemuFormatter {
    fn begin_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.begin();
        self.pretty.begin_array(out)
    }

    fn end_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.end(out)?;
        self.pretty.end_array(out)
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.pretty.begin_array_value(out, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.empty = false;
        self.pretty.end_array_value(out)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.begin();
        self.pretty.begin_object(out)
    }

    fn end_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.end(out)?;
        self.pretty.end_object(out)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.pretty.begin_object_key(out, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.pretty.begin_object_value(out)
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.empty = false;
        self.pretty.end_object_value(out)
    }
}

/// Formats `value` with four spaces of indentation, as qemu-img does; no line end.
pub fn pretty(value: &impl Serialize) -> String {
    let mut out = Vec::new();
    let formatter = QemuFormatter { pretty: PrettyFormatter::with_indent(b"    "), depth: 0, empty: false };
    let mut serializer = Serializer::with_formatter(&mut out, formatter);
    match value.serialize(&mut serializer) {
        Ok(()) => String::from_utf8_lossy(&out).into_owned(),
        // Only maps with keys that are no strings fail, and no program prints such.
        Err(e) => unreachable!("JSON: {e}"),
    }
}

/// Prints `value` on a line end of its own.
pub fn print(value: &impl Serialize) {
    println!("{}", pretty(value));
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_empty_ends_on_a_line_of_its_own() {
        let value = serde_json::json!({ "b": [], "a": { "x": [1, {}] } });
        let expected =
            "{\n    \"b\": [\n    ],\n    \"a\": {\n        \"x\": [\n            1,\n            {\n            }\n        ]\n    }\n}";
        assert_eq!(super::pretty(&value), expected);
    }
}
