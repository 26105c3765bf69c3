//! Patterns of paths in a guest, as a shell has them: `*`, `?` and `[a-z]` within a name.

use guestfs::{Error, Ext, GuestFs};

use super::super::show::join;
use crate::common::Failure;

/// Paths that one pattern may name.
const LIMIT: usize = 1_000_000;

/// The files that a pattern names, in order. A name that begins with a dot is meant only by a pattern that does.
pub(in super::super) fn expand(fs: &dyn GuestFs, pattern: &[u8]) -> Result<Vec<Vec<u8>>, Failure> {
    let mut found = vec![b"/".to_vec()];
    for word in pattern.split(|b| *b == b'/').filter(|w| !w.is_empty()) {
        let plain = !word.iter().any(|b| matches!(b, b'*' | b'?' | b'['));
        let mut next = Vec::new();
        for directory in &found {
            if plain {
                let path = join(directory, word);
                match fs.lstat(&path) {
                    Ok(_) => next.push(path),
                    Err(Error::NotFound(_) | Error::WrongType { .. }) => {}
                    Err(e) => return Err(e.into()),
                }
            } else if fs.is_dir(directory) {
                let names = fs.read_dir(directory)?.into_iter().map(|e| e.name);
                next.extend(names.filter(|name| matches(word, name)).map(|name| join(directory, &name)));
            }
            if next.len() > LIMIT {
                return Err(Failure::new(format!("{}: names more than {LIMIT} files", guestfs::show(pattern))));
            }
        }
        next.sort();
        found = next;
    }
    Ok(found)
}

/// Whether a name is what a pattern means.
pub(in super::super) fn matches(pattern: &[u8], name: &[u8]) -> bool {
    if name.starts_with(b".") && !pattern.starts_with(b".") {
        return false;
    }
    // Where the last star was, and how much of the name it has taken.
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match one(&pattern[p..], name[n]) {
            Some(len) => {
                p += len;
                n += 1;
            }
            None if pattern.get(p) == Some(&b'*') => {
                star = Some((p, n));
                p += 1;
            }
            None => {
                let Some((at, taken)) = star else { return false };
                star = Some((at, taken + 1));
                (p, n) = (at + 1, taken + 1);
            }
        }
    }
    pattern[p..].iter().all(|b| *b == b'*')
}

/// How many bytes of the pattern stand for this byte, if they do.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern.first()? {
        b'*' => None,
        b'?' => Some(1),
        b'\\' if pattern.len() > 1 => (pattern[1] == byte).then_some(2),
        b'[' => {
            let negated = matches!(pattern.get(1), Some(b'!' | b'^'));
            let start = 1 + usize::from(negated);
            let end = start + 1 + pattern.get(start + 1..)?.iter().position(|b| *b == b']')?;
            let (set, mut at, mut within) = (&pattern[start..end], 0, false);
            while at < set.len() {
                let range = at + 2 < set.len() && set[at + 1] == b'-';
                within |= if range { (set[at]..=set[at + 2]).contains(&byte) } else { set[at] == byte };
                at += if range { 3 } else { 1 };
            }
            (within != negated).then_some(end + 1)
        }
        plain => (*plain == byte).then_some(1),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn patterns_are_a_shells() {
        let matches = |pattern: &str, name: &str| super::matches(pattern.as_bytes(), name.as_bytes());
        for (pattern, name) in
            [("*.log*", "a.log.1"), ("*", "x"), ("a?c", "abc"), ("[a-c]x", "bx"), ("[!a]x", "bx"), ("*a*b", "xaybzab"), (".*", ".x")]
        {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in
            [("*.log", "a.log.1"), ("*", ".x"), ("a?c", "ac"), ("[a-c]x", "dx"), ("[!a]x", "ax"), ("*a*b", "xayc"), ("", "x"), ("[a", "a")]
        {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }
}
