//! Images given by keys rather than by name: `--image-opts driver=qcow2,file.filename=…` and `json:{…}`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use imgcore::Caches;
use serde_json::Value;

use super::numbers::option_size;
use super::parse_pairs;
use crate::common::Failure;

/// What one can say of any image or file, and that is as it should be here anyway.
const ACCEPTED: [&str; 17] = [
    "aio",
    "auto-read-only",
    "cache-clean-interval",
    "cache.direct",
    "cache.no-flush",
    "cache.writeback",
    "detect-zeroes",
    "discard",
    "l2-cache-entry-size",
    "lazy-refcounts",
    "locking",
    "node-name",
    "overlap-check",
    "overlap-check.template",
    "pass-discard-request",
    "pass-discard-snapshot",
    "read-only",
];

/// Keys of an image, nested ones with dots between.
type Keys = BTreeMap<String, String>;

/// An image as keys describe it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Described {
    pub path: PathBuf,
    pub format: Option<String>,
    pub caches: Caches,
    pub force_share: bool,
    /// Only this part of it is the disk: first byte and, if told, length.
    pub window: Option<(u64, Option<u64>)>,
}

/// Reads `driver=qcow2,file.filename=x`.
pub(super) fn from_options(text: &str) -> Result<Described, Failure> {
    if !text.contains('=') {
        // A word alone names a node of a running QEMU, and there is none.
        return Err(Failure::new(format!("Cannot find device='{text}' nor node-name='{text}'")));
    }
    describe(parse_pairs(text).into_iter().collect())
}

/// QEMU's JSON has strings in single quotes, too, in which a double quote is a letter: this is the same in JSON's own words.
fn double_quoted(text: &str) -> String {
    let (mut out, mut quote, mut letters) = (String::with_capacity(text.len()), None, text.chars());
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (None, '\'' | '"') => (quote, _) = (Some(letter), out.push('"')),
            (Some(open), _) if letter == open => (quote, _) = (None, out.push('"')),
            (Some('\''), '"') => out.push_str("\\\""),
            (Some(_), '\\') => match letters.next() {
                Some('\'') => out.push('\''),
                escaped => out.extend(std::iter::once('\\').chain(escaped)),
            },
            _ => out.push(letter),
        }
    }
    out
}

/// Reads what stands behind `json:`.
pub(super) fn from_json(text: &str) -> Result<Described, Failure> {
    let value: Value =
        serde_json::from_str(&double_quoted(text)).map_err(|e| Failure::new(format!("Could not parse the JSON options: {e}")))?;
    let mut keys = Keys::new();
    flatten("", &value, &mut keys);
    describe(keys)
}

fn flatten(name: &str, value: &Value, keys: &mut Keys) {
    let text = match value {
        Value::Object(map) => {
            for (key, value) in map {
                let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                flatten(&name, value, keys);
            }
            return;
        }
        Value::String(text) => text.clone(),
        Value::Bool(on) => if *on { "on" } else { "off" }.into(),
        other => other.to_string(),
    };
    keys.insert(name.to_owned(), text);
}

fn describe(mut keys: Keys) -> Result<Described, Failure> {
    let driver = keys.remove("driver");
    let file: Keys = keys.iter().filter_map(|(k, v)| Some((k.strip_prefix("file.")?.to_owned(), v.clone()))).collect();
    keys.retain(|key, _| !key.starts_with("file."));
    if is_file(driver.as_deref()) {
        let path = keys.remove("filename").ok_or_else(|| Failure::new("The 'file' block driver requires a file name"))?;
        return finish(Described { path: path.into(), ..Described::default() }, "file", keys);
    }
    if file.is_empty() {
        return Err(Failure::new(match driver {
            Some(_) => "A block device must be specified for \"file\"",
            None => "Must specify either driver or file",
        }));
    }
    let file = if file.contains_key("driver") { file } else { file.into_iter().chain([("driver".into(), "file".into())]).collect() };
    let below = describe(file)?;
    let format = match (&below.format, driver) {
        // Raw on top of a format is that format's disk.
        (Some(inner), Some(outer)) if outer != "raw" => {
            return Err(Failure::new(format!("{outer} inside of {inner} is not read here: convert the outer one first")));
        }
        (Some(inner), _) => Some(inner.clone()),
        (None, driver) => driver,
    };
    let name = format.clone().unwrap_or_default();
    finish(Described { format, ..below }, &name, keys)
}

fn is_file(driver: Option<&str>) -> bool {
    matches!(driver, Some("file" | "host_device"))
}

/// Takes the keys that are the same for all formats, and refuses the rest by name.
fn finish(mut image: Described, format: &str, keys: Keys) -> Result<Described, Failure> {
    for (key, value) in keys {
        match key.as_str() {
            "l2-cache-size" => image.caches.l2 = Some(option_size(&key, &value)?),
            "refcount-cache-size" => image.caches.refcount = Some(option_size(&key, &value)?),
            "cache-size" => image.caches.total = Some(option_size(&key, &value)?),
            "offset" if format == "raw" => image.window = Some((option_size(&key, &value)?, image.window.and_then(|w| w.1))),
            "size" if format == "raw" => image.window = Some((image.window.map_or(0, |w| w.0), Some(option_size(&key, &value)?))),
            "force-share" => image.force_share = value == "on",
            known if ACCEPTED.contains(&known) => {}
            _ => return Err(Failure::new(format!("Block format '{format}' does not support the option '{key}'"))),
        }
    }
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_of_either_quotes_are_read() {
        for (given, json) in [
            (r#"{'a': "it's", "b": 'say "so"'}"#, r#"{"a": "it's", "b": "say \"so\""}"#),
            (r#"{'a': 'it\'s\\', 'b': 'x'}"#, r#"{"a": "it's\\", "b": "x"}"#),
            (r#"{'a"#, r#"{"a"#),
            (r#"'\"#, r#""\"#),
        ] {
            assert_eq!(double_quoted(given), json);
        }
    }

    #[test]
    fn keys_and_json_say_the_same() {
        let keys = from_options("driver=qcow2,file.driver=file,file.filename=a,,b,l2-cache-size=1M,file.locking=off").unwrap();
        let json = r#"{"driver":"qcow2","file":{"driver":"file","filename":"a,b","locking":"off"},"l2-cache-size":1048576}"#;
        assert_eq!(keys, from_json(json).unwrap());
        assert_eq!(keys, from_json(&json.replace('"', "'")).unwrap());
        assert_eq!((keys.path.to_str().unwrap(), keys.format.as_deref(), keys.caches.l2), ("a,b", Some("qcow2"), Some(1 << 20)));
        let part = from_options("driver=raw,offset=1M,size=64k,file.driver=qcow2,file.file.filename=x").unwrap_err();
        assert!(part.message().contains("'offset'"), "a window lies on raw alone: {}", part.message());
        let part = from_options("driver=raw,size=64k,offset=1M,file.filename=x").unwrap();
        assert_eq!(part.window, Some((1 << 20, Some(64 << 10))));
        assert_eq!(from_options("file.filename=x").unwrap().format, None);
        assert_eq!(from_options("driver=file,filename=x").unwrap().format, None);
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (text, message) in [
            ("a.raw", "Cannot find device='a.raw' nor node-name='a.raw'"),
            ("filename=x", "Must specify either driver or file"),
            ("driver=qcow2", "A block device must be specified for \"file\""),
            ("driver=qcow2,file.filename=x,foo=1", "Block format 'qcow2' does not support the option 'foo'"),
            ("driver=qcow2,file.filename=x,l2-cache-size=y", "Parameter 'l2-cache-size' expects a non-negative number"),
        ] {
            let error = from_options(text).unwrap_err();
            assert!(error.message().starts_with(message), "{}", error.message());
        }
        assert!(from_json("{").is_err() && from_json("[1]").is_err());
    }
}
