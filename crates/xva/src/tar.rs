//! Tar headers: V7 (which xapi writes), ustar, GNU and PAX names and sizes.
//!
//! Of our own, because an archive without its end mark must be an error here (it is the only sign of some truncated
//! exports), because an index must be built by reading headers only, and because names and PAX records must be bounded.

use imgcore::{Error, Result};

use crate::XVA;
use crate::bytes::Input;

/// Bytes of a tar block.
pub(crate) const BLOCK: u64 = 512;
/// The longest name and PAX record list that is read.
const MAX_EXTENSION: u64 = 64 << 10;
/// Extension headers in a row before one entry.
const MAX_EXTENSIONS: usize = 16;

/// One member of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its path without a leading `./` or `/`.
    pub name: String,
    /// Bytes of its data.
    pub size: u64,
    /// Offset of its data in the archive.
    pub data: u64,
    /// A regular file; otherwise a folder, link or device.
    pub regular: bool,
}

impl Entry {
    /// The folder right above it, and its own name. An archive of a folder has everything one level deeper.
    pub fn split(&self) -> (&str, &str) {
        let (folder, file) = self.name.rsplit_once('/').unwrap_or(("", &self.name));
        (folder.rsplit_once('/').map_or(folder, |(_, last)| last), file)
    }
}

/// Walks over the members of an archive.
pub(crate) struct Tar<I> {
    input: I,
    name: String,
    format: &'static str,
    /// Where `input` stands.
    position: u64,
    /// Where the next header is.
    next: u64,
    /// End of the current entry's data.
    end: u64,
}

impl<I: Input> Tar<I> {
    /// `name` is the archive's, for messages.
    pub fn new(input: I, name: &str) -> Self {
        Tar { input, name: name.into(), format: XVA, position: 0, next: 0, end: 0 }
    }

    /// What messages call such an archive, where that is not XVA.
    pub fn of_format(self, format: &'static str) -> Self {
        Tar { format, ..self }
    }

    /// The next member; `None` at the end mark, two blocks of zeroes.
    pub fn next(&mut self) -> Result<Option<Entry>> {
        let mut long_name: Option<String> = None;
        let mut pax = Pax::default();
        for _ in 0..MAX_EXTENSIONS {
            let Some((header, at)) = self.header()? else { return Ok(None) };
            let size = pax.size.filter(|_| !matches!(header.kind, b'L' | b'K' | b'x' | b'g')).unwrap_or(header.size);
            let data = self.position;
            self.end = data
                .checked_add(size)
                .filter(|e| *e <= i64::MAX as u64)
                .ok_or_else(|| self.corrupt(at, "a member is longer than any file"))?;
            self.next = self.end.next_multiple_of(BLOCK);
            match header.kind {
                b'L' => {
                    let raw = self.read_all(MAX_EXTENSION, "a member's long name")?;
                    long_name = Some(text(raw.split(|b| *b == 0).next().unwrap_or_default()));
                }
                b'x' => {
                    pax = Pax::parse(&self.read_all(MAX_EXTENSION, "a member's PAX header")?)
                        .ok_or_else(|| self.corrupt(at, "a broken PAX header"))?
                }
                b'K' | b'g' => {}
                b'S' => {
                    return Err(Error::unsupported(
                        &self.name,
                        self.format,
                        "members stored as GNU sparse files: unpack the archive with tar and give the folder",
                    ));
                }
                kind => {
                    let name = pax.path.take().or(long_name).unwrap_or(header.name);
                    let regular = matches!(kind, 0 | b'0' | b'7') && !name.ends_with('/');
                    let name = name.trim_start_matches("./").trim_start_matches('/').to_string();
                    return Ok(Some(Entry { name, size, data, regular }));
                }
            }
        }
        Err(self.corrupt(self.position, "too many extension headers in a row"))
    }

    /// Fills `buf` with the next bytes of the current member.
    pub fn read(&mut self, buf: &mut [u8]) -> Result<()> {
        let start = self.position;
        if (buf.len() as u64) > self.end.saturating_sub(start) {
            return Err(self.corrupt(start, "a member is shorter than it must be"));
        }
        let got = self.input.fill(buf)?;
        self.position += got as u64;
        if got < buf.len() {
            return Err(self.truncated());
        }
        Ok(())
    }

    /// Fills as much of `buf` as the current member still has; 0 at its end.
    pub fn read_part(&mut self, buf: &mut [u8]) -> Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.position)).unwrap_or(usize::MAX);
        let n = left.min(buf.len());
        self.read(&mut buf[..n])?;
        Ok(n)
    }

    /// The rest of the current member, which must not be longer than `limit`.
    pub fn read_all(&mut self, limit: u64, what: &str) -> Result<Vec<u8>> {
        let left = self.end.saturating_sub(self.position);
        if left > limit {
            return Err(self.corrupt(self.position, &format!("{what} has {left} bytes; more than {limit} are not read")));
        }
        // Grows as bytes arrive: a short archive must not allocate by what it claims.
        let mut data = Vec::new();
        while self.position < self.end {
            let at = data.len();
            data.resize(at + usize::try_from(self.end - self.position).unwrap_or(usize::MAX).min(64 << 10), 0);
            self.read(&mut data[at..])?;
        }
        Ok(data)
    }

    /// Where the archive's end mark ends, after the last member.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Gives the input back, at the end.
    pub fn into_input(self) -> I {
        self.input
    }

    fn header(&mut self) -> Result<Option<(Header, u64)>> {
        let gap = self.next.saturating_sub(self.position);
        if gap > 0 {
            self.input.skip(gap)?;
        }
        self.position = self.next;
        let at = self.position;
        let block = self.block()?;
        if block == [0; 512] {
            if self.block()? != [0; 512] {
                return Err(self.corrupt(at, "a block of zeroes among the members"));
            }
            return Ok(None);
        }
        let header = Header::parse(&block).map_err(|what| self.corrupt(at, what))?;
        Ok(Some((header, at)))
    }

    fn block(&mut self) -> Result<[u8; 512]> {
        let mut block = [0; 512];
        let got = self.input.fill(&mut block)?;
        if got < block.len() {
            return Err(self.truncated());
        }
        self.position += BLOCK;
        Ok(block)
    }

    fn corrupt(&self, at: u64, what: &str) -> Error {
        Error::corrupt(&self.name, self.format, at, what)
    }

    fn truncated(&self) -> Error {
        Error::corrupt(
            &self.name,
            self.format,
            self.position,
            "truncated: the archive stops here, before its end mark. The export or the copy was interrupted: export it again",
        )
    }
}

struct Header {
    name: String,
    size: u64,
    kind: u8,
}

impl Header {
    fn parse(block: &[u8; 512]) -> Result<Self, &'static str> {
        let sum = number(&block[148..156]).ok_or("not a tar header")?;
        let bytes = block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { b' ' } else { *b });
        let unsigned: u64 = bytes.clone().map(u64::from).sum();
        let signed: i64 = bytes.map(|b| i64::from(b.cast_signed())).sum();
        if sum != unsigned && i64::try_from(sum) != Ok(signed) {
            return Err("a tar header with a wrong checksum");
        }
        let size = number(&block[124..136]).ok_or("a tar header without a size")?;
        let mut name = text(field(&block[..100]));
        if block[257..263] == *b"ustar\0" && block[345] != 0 {
            name = format!("{}/{name}", text(field(&block[345..500])));
        }
        let kind = block[156];
        // Links, devices and folders have no data, whatever their size says.
        let size = if matches!(kind, b'1'..=b'6') { 0 } else { size };
        Ok(Header { name, size, kind })
    }
}

/// The bytes of a field up to its NUL.
fn field(raw: &[u8]) -> &[u8] {
    raw.split(|b| *b == 0).next().unwrap_or_default()
}

fn text(raw: &[u8]) -> String {
    String::from_utf8_lossy(raw).into_owned()
}

/// Octal digits between blanks and NULs, or GNU's big-endian binary with the top bit set.
fn number(raw: &[u8]) -> Option<u64> {
    if let [0x80, rest @ ..] = raw {
        return rest.iter().try_fold(0u64, |n, b| n.checked_mul(256)?.checked_add(u64::from(*b)));
    }
    let digits = raw.trim_ascii_start();
    let digits = digits.split(|b| matches!(b, 0 | b' ')).next()?;
    digits.iter().try_fold(0u64, |n, b| n.checked_mul(8)?.checked_add(u64::from(b.checked_sub(b'0').filter(|d| *d < 8)?)))
}

#[derive(Default)]
struct Pax {
    path: Option<String>,
    size: Option<u64>,
}

impl Pax {
    /// Records are `LENGTH KEY=VALUE\n`, where LENGTH counts the whole record.
    fn parse(mut raw: &[u8]) -> Option<Self> {
        let mut pax = Pax::default();
        while !raw.is_empty() {
            let blank = raw.iter().position(|b| *b == b' ')?;
            let len: usize = std::str::from_utf8(raw.get(..blank)?).ok()?.parse().ok()?;
            let record = raw.get(blank + 1..len.checked_sub(1)?)?;
            let equals = record.iter().position(|b| *b == b'=')?;
            let value = record.get(equals + 1..)?;
            match record.get(..equals)? {
                b"path" => pax.path = Some(text(value)),
                b"size" => pax.size = Some(std::str::from_utf8(value).ok()?.parse().ok()?),
                _ => {}
            }
            raw = raw.get(len..)?;
        }
        Some(pax)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::bytes::Pipe;

    /// One member as xapi writes it: a V7 header.
    pub fn member(name: &str, kind: u8, data: &[u8]) -> Vec<u8> {
        let mut h = [0; 512];
        h[..name.len()].copy_from_slice(name.as_bytes());
        h[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
        h[156] = kind;
        seal(&mut h);
        let mut out = h.to_vec();
        out.extend_from_slice(data);
        out.resize(out.len().next_multiple_of(512), 0);
        out
    }

    fn seal(h: &mut [u8; 512]) {
        h[148..156].fill(b' ');
        let sum: u32 = h.iter().map(|b| u32::from(*b)).sum();
        h[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }

    fn list(raw: &[u8]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut tar = Tar::new(Pipe::new(raw, "t.xva"), "t.xva");
        let mut out = Vec::new();
        while let Some(e) = tar.next()? {
            out.push((e.name, tar.read_all(1 << 20, "a member")?));
        }
        Ok(out)
    }

    #[test]
    fn names_of_every_form_are_read() {
        let long = "d/".repeat(60) + "x";
        let pax = format!("{} path={long}\n", long.len() + 10);
        assert_eq!(pax.len(), long.len() + 10);
        let raw = [
            member("./plain", 0, b"one"),
            member("././@LongLink", b'L', format!("{long}\0").as_bytes()),
            member("short", b'0', b"two"),
            member("PaxHeaders/x", b'x', pax.as_bytes()),
            member("other", b'0', b"three"),
            member("folder/", b'5', b""),
            vec![0; 1024],
        ]
        .concat();
        let names: Vec<_> = list(&raw).unwrap();
        let expected = [("plain", "one"), (&long, "two"), (&long, "three"), ("folder/", "")];
        assert_eq!(names, expected.map(|(n, d)| (n.to_string(), d.as_bytes().to_vec())));
    }

    #[test]
    fn a_pax_size_replaces_the_header_s() {
        let data = member("big", b'0', b"12345");
        let mut raw = member("x", b'x', b"10 size=5\n");
        raw.extend(data);
        let header: &mut [u8; 512] = (&mut raw[1024..1536]).try_into().unwrap();
        header[124..135].copy_from_slice(b"00000000000");
        seal(header);
        raw.extend([0; 1024]);
        assert_eq!(list(&raw).unwrap(), [("big".to_string(), b"12345".to_vec())]);
    }

    #[test]
    fn one_broken_byte_is_an_error_with_its_offset() {
        let good = [member("a", 0, b"one"), member("b", 0, b"two"), vec![0; 1024]].concat();
        let broken = |at: usize, byte: u8| {
            let mut raw = good.clone();
            raw[at] = byte;
            list(&raw).unwrap_err().to_string()
        };
        assert_eq!(broken(1024, b'c'), "t.xva: corrupt XVA at offset 0x400: a tar header with a wrong checksum");
        assert_eq!(broken(1024 + 150, b'9'), "t.xva: corrupt XVA at offset 0x400: not a tar header");
        assert_eq!(broken(2048 + 700, 1), "t.xva: corrupt XVA at offset 0x800: a block of zeroes among the members");
    }

    #[test]
    fn every_cut_is_truncation() {
        let good = [member("a", 0, b"one"), member("b", 0, &[7; 600]), vec![0; 1024]].concat();
        for cut in 0..good.len() {
            let e = list(&good[..cut]).unwrap_err().to_string();
            assert!(e.contains("truncated"), "{cut}: {e}");
        }
    }

    #[test]
    fn claims_allocate_nothing() {
        let mut huge = member("a", 0, b"");
        huge[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0x7f, 255, 255, 255, 255, 255, 255, 255]);
        let header: &mut [u8; 512] = (&mut huge[..512]).try_into().unwrap();
        seal(header);
        assert!(list(&huge).unwrap_err().to_string().contains("longer than any file"));
        huge[128] = 0x0f;
        let header: &mut [u8; 512] = (&mut huge[..512]).try_into().unwrap();
        seal(header);
        assert!(list(&huge).unwrap_err().to_string().contains("more than"));
    }
}
