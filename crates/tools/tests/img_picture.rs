//! `img map --picture` shows what qemu-img's map says.

#![allow(missing_docs)]

mod common;

use std::collections::BTreeMap;

use common::{IMG, have, ok, run, sh};
use imgcore::size;

#[test]
fn the_legend_has_the_sums_of_the_map() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    sh("qemu-img", "create -q -f qcow2 base.qcow2 8T", folder);
    ok("qemu-io", &["-c", "write -P 1 1G 9M", "-c", "write -P 1 7T 64k", "-c", "write -c -P 1 2T 64k", "base.qcow2"], folder);
    sh("qemu-img", "create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2", folder);
    ok("qemu-io", &["-c", "write -P 1 5M 3M", "-c", "write -z 1G 1M", "-c", "write -c -P 1 3T 64k", "top.qcow2"], folder);
    let map: Vec<serde_json::Value> = serde_json::from_str(&sh("qemu-img", "map --output=json top.qcow2", folder)).unwrap();
    let mut sums = BTreeMap::new();
    for extent in &map {
        let is = |name: &str| extent[name].as_bool().unwrap();
        let kind = match (is("present"), is("compressed"), is("zero")) {
            (false, ..) => "unallocated",
            (_, true, _) => "compressed",
            (_, _, true) => "zero",
            _ => "data",
        };
        *sums.entry((extent["depth"].as_u64().unwrap(), kind)).or_default() += extent["length"].as_u64().unwrap();
    }
    assert_eq!(sums.len(), 6, "{sums:?}");
    let text = sh(IMG, "map --picture - top.qcow2", folder);
    let mut layer = None;
    let mut seen = 0;
    for line in text.lines().skip_while(|l| !l.is_empty()) {
        let words: Vec<_> = line.split_whitespace().collect();
        match line.starts_with("  ") {
            false => layer = words.first().and_then(|w| w.trim_end_matches(':').parse().ok()).or(layer),
            true => {
                let kind = words[1].trim_end_matches(',');
                let sum = sums.iter().find(|((depth, of), _)| *of == kind && (kind == "unallocated" || Some(*depth) == layer)).unwrap();
                assert!(line.contains(&size::human(*sum.1)), "{line}: {sum:?}");
                seen += 1;
            }
        }
    }
    assert_eq!(seen, 6, "{text}");

    sh(IMG, "map --picture top.svg top.qcow2", folder);
    let svg = std::fs::read_to_string(folder.join("top.svg")).unwrap();
    let document = roxmltree::Document::parse(&svg).unwrap();
    let texts: Vec<_> = document.descendants().filter_map(|n| n.has_tag_name("text").then(|| n.text()).flatten()).collect();
    for ((_, kind), sum) in &sums {
        assert!(texts.contains(&size::human(*sum).as_str()), "{kind}: {texts:?}");
    }
    // A part of the image, and what cannot be.
    assert!(sh(IMG, "map --picture - -s 1G -l 16M top.qcow2", folder).starts_with("top.qcow2: 16 MiB, 8 MiB stored (50 %)"));
    assert_eq!(run(IMG, &["map", "--picture", "nowhere/x.svg", "top.qcow2"], folder).code, 1);
}
