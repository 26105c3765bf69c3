//! Reading an image with each of the programs, and comparing with what must be there.

use std::ops::ControlFlow;
use std::path::Path;

use imago::file::File;
use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate};
use imgcore::Image;

/// An error that names the first difference.
pub fn same(who: &str, got: &[u8], expected: &[u8]) -> Result<(), String> {
    if got == expected {
        return Ok(());
    }
    match got.iter().zip(expected).position(|(a, b)| a != b) {
        Some(at) => Err(format!("{who} reads {} at {at:#x}, and not {}", got[at], expected[at])),
        None => Err(format!("{who} reads {} bytes, and not {}", got.len(), expected.len())),
    }
}

/// What we read, in one piece and in odd ones, and what our map says.
pub fn ours(image: &dyn Image, expected: &[u8]) -> Result<(), String> {
    let mut bytes = vec![9; usize::try_from(image.size()).unwrap()];
    image.read_at(&mut bytes, 0).map_err(|e| e.to_string())?;
    same("imgcore", &bytes, expected)?;
    for (at, piece) in expected.chunks(12_345).enumerate() {
        let mut part = vec![9; piece.len()];
        image.read_at(&mut part, at as u64 * 12_345).map_err(|e| e.to_string())?;
        same("imgcore in pieces", &part, piece)?;
    }
    let (mut end, mut wrong) = (0, None);
    if image.size() > 0 {
        let walk = image.extents(0..image.size(), &mut |extent| {
            let bytes = &expected[extent.start as usize..(extent.start + extent.len) as usize];
            if extent.start != end || (extent.kind.reads_zero() && bytes.iter().any(|b| *b != 0)) {
                wrong = Some(format!("the map has a wrong {extent:?}"));
            }
            end = extent.start + extent.len;
            ControlFlow::Continue(())
        });
        walk.map_err(|e| e.to_string())?;
    }
    match wrong {
        Some(wrong) => Err(wrong),
        None if end != image.size() => Err(format!("the map ends at {end:#x}")),
        None => Ok(()),
    }
}

/// What imago reads.
pub fn imago(path: &Path, format: &str, expected: &[u8]) -> Result<(), String> {
    let gate = PermissiveImplicitOpenGate::default;
    let opened = match format {
        "qcow2" => imago::qcow2::Qcow2::<File>::builder_path(path).open(gate()).map(FormatAccess::new),
        "vmdk" => imago::vmdk::Vmdk::<File>::builder_path(path).open(gate()).map(FormatAccess::new),
        _ => imago::raw::Raw::<File>::builder_path(path).open(gate()).map(FormatAccess::new),
    };
    let read = |image: FormatAccess<File>| {
        let mut bytes = vec![9; usize::try_from(image.size()).unwrap()];
        image.read(&mut bytes[..], 0)?;
        std::io::Result::Ok(bytes)
    };
    match opened.and_then(read) {
        Ok(bytes) => same("imago", &bytes, expected),
        Err(e) => Err(format!("imago: {e}")),
    }
}
