//! JSON on the standard output, the way qemu-img prints it.

use serde::Serialize;
use serde_json::ser::{PrettyFormatter, Serializer};

/// Formats `value` with four spaces of indentation, as qemu-img does; no line end.
pub fn pretty(value: &impl Serialize) -> String {
    let mut out = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut out, PrettyFormatter::with_indent(b"    "));
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
