//! Names and files on the standard output: control characters escaped for terminals, a closed pipe is no failure.

use std::io::{IsTerminal, Write};

use guestfs::GuestFs;

use crate::common::Failure;

/// The standard output, buffered.
pub(super) struct Out {
    inner: std::io::BufWriter<std::io::Stdout>,
    terminal: bool,
}

impl Out {
    pub(super) fn new() -> Self {
        Out { inner: std::io::BufWriter::with_capacity(256 << 10, std::io::stdout()), terminal: std::io::stdout().is_terminal() }
    }

    /// Bytes as they are.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        check(self.inner.write_all(bytes))
    }

    /// A name or line of the guest's: as it is to files, without control characters to terminals.
    pub(super) fn name(&mut self, name: &[u8]) -> Result<(), Failure> {
        if self.terminal { self.bytes(guestfs::show(name).as_bytes()) } else { self.bytes(name) }
    }

    /// Text of the guest's, line ends and tabs as they are, the rest as in [`name`](Self::name).
    pub(super) fn lines(&mut self, text: &[u8]) -> Result<(), Failure> {
        if !self.terminal {
            return self.bytes(text);
        }
        for piece in text.split_inclusive(|b| matches!(b, b'\n' | b'\t')) {
            let (plain, end) = match piece.split_last() {
                Some((end @ (b'\n' | b'\t'), plain)) => (plain, std::slice::from_ref(end)),
                _ => (piece, &[][..]),
            };
            self.name(plain)?;
            self.bytes(end)?;
        }
        Ok(())
    }

    /// What was written so far is to be seen now.
    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        check(self.inner.flush())
    }

    pub(super) fn finish(mut self) -> Result<(), Failure> {
        check(self.inner.flush())
    }
}

fn check(outcome: std::io::Result<()>) -> Result<(), Failure> {
    match outcome {
        // Whoever reads has had enough.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        outcome => Ok(outcome?),
    }
}

/// Hands a regular file's content over piece by piece.
pub(super) fn read_file(fs: &dyn GuestFs, path: &[u8], take: &mut dyn FnMut(&[u8]) -> Result<(), Failure>) -> Result<(), Failure> {
    // Most files are small: no large buffer for them.
    let size = fs.stat(path)?.size;
    let mut buf = vec![0; size.clamp(4096, 1 << 20) as usize];
    let mut at = 0;
    loop {
        match fs.read_at(path, at, &mut buf)? {
            0 => return Ok(()),
            n => {
                take(&buf[..n])?;
                at += n as u64;
            }
        }
    }
}

/// A directory's path and a name in it.
pub(super) fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    let separator: &[u8] = if path.ends_with(b"/") { b"" } else { b"/" };
    [path, separator, name].concat()
}

/// A size as libguestfs's `-h` shows it: `1.9G`, `256M`, `512`.
pub(super) fn human(bytes: u64) -> String {
    let units = ["", "K", "M", "G", "T", "P", "E"];
    let mut power = 0;
    let mut scaled = bytes as f64;
    while power + 1 < units.len() && (scaled >= 1024.0 || power > 0 && scaled.round() >= 1024.0) {
        scaled /= 1024.0;
        power += 1;
    }
    // One digit behind the point below 10, unless nothing is to be told there.
    let exact = power > 0 && bytes.is_multiple_of(1 << (10 * power)) && scaled >= 10.0;
    let digits = usize::from(power > 0 && !exact && scaled < 9.95);
    format!("{scaled:.digits$}{}", units[power])
}

/// One line of fields: separated by blanks, or by commas with quotes where RFC 4180 wants them.
pub(super) struct Table {
    csv: bool,
    content: Vec<u8>,
    empty: bool,
}

impl Table {
    pub(super) fn row(csv: bool) -> Self {
        Table { csv, content: Vec::new(), empty: true }
    }

    fn separate(&mut self) {
        if !self.empty {
            self.content.push(if self.csv { b',' } else { b' ' });
        }
        self.empty = false;
    }

    /// Numbers, times and words of ours, which need no quotes.
    pub(super) fn field(&mut self, text: &str) {
        self.separate();
        self.raw(text.as_bytes());
    }

    /// What comes from the guest.
    pub(super) fn bytes(&mut self, text: &[u8]) {
        self.separate();
        if self.csv && text.iter().any(|b| matches!(b, b'"' | b',' | b'\n' | b' ')) {
            self.content.push(b'"');
            for b in text {
                self.content.extend(if *b == b'"' { &b"\"\""[..] } else { std::slice::from_ref(b) });
            }
            self.content.push(b'"');
        } else {
            self.content.extend(text);
        }
    }

    /// More of the field before.
    pub(super) fn raw(&mut self, text: &[u8]) {
        self.content.extend(text);
    }

    pub(super) fn content(&self) -> &[u8] {
        &self.content
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn human_sizes_are_libguestfss() {
        let of = [0, 512, 1024, 2_040_373_248, 268_435_456, 2_147_483_648, 2_416_967_680, 15_000_000].map(human);
        assert_eq!(of, ["0", "512", "1.0K", "1.9G", "256M", "2.0G", "2.3G", "14M"]);
    }

    #[test]
    fn csv_is_quoted_where_needed() {
        let mut row = Table::row(true);
        ["a", "b c", "d\"e"].iter().for_each(|f| row.bytes(f.as_bytes()));
        assert_eq!(row.content(), b"a,\"b c\",\"d\"\"e\"");
    }
}
