//! Input `disk`: images without any configuration. What they don't tell gets a default.

use super::images;
use super::{DiskFile, Input, Opened, Request};
use crate::source::{Boot, Policy, Source, SourceDisk};
use crate::{Error, Result};

/// The table's line.
pub const INPUT: Input =
    Input { mode: "disk", about: "a disk image, more of them with --disk", probe: |p| !p.is_folder && !p.is_stdin(), read };

/// What a guest without a configuration gets.
const DEFAULT_MEMORY_MIB: u64 = 1024;

fn read(request: &Request<'_>) -> Result<Opened> {
    let guest = request.guest.display().to_string();
    if guest == "-" {
        return Err(Error::Invalid("a disk image cannot be read from standard input: give it as a file".into()));
    }
    let mut warnings = Vec::new();
    let mut disks: Vec<SourceDisk> = Vec::new();
    // `--disk xvda2=GUEST` names the guest's own image.
    let own = request.disks.iter().find(|d| d.file == request.guest).is_none().then(|| DiskFile {
        target: None,
        file: request.guest.to_owned(),
        format: None,
    });
    for file in own.iter().chain(request.disks) {
        let image = images::open(request, &file.file, file.format.as_deref(), &mut warnings)?;
        // A bare position: what the guest called it is found out from its fstab.
        let target = file.target.clone().unwrap_or_else(|| disks.len().to_string());
        let (size, origin) = (image.size(), file.file.display().to_string());
        disks.push(SourceDisk { target, image: Some(image), size, read_only: false, bootable: false, origin });
    }
    images::check_distinct(&disks)?;
    let name = request.guest.file_stem().map_or_else(|| guest.clone(), |s| s.to_string_lossy().into_owned());
    Ok(bare(name, disks, warnings, format!("disk image {guest}")).into())
}

/// A guest of which only the disks are known.
pub(super) fn bare(name: String, disks: Vec<SourceDisk>, mut warnings: Vec<String>, origin: String) -> Source {
    warnings.insert(
        0,
        format!(
            "an image tells nothing of its machine: one NIC is assumed, {DEFAULT_MEMORY_MIB} MiB where --memory does not say more, and 1 \
             processor where --vcpus does not"
        ),
    );
    Source {
        name,
        uuid: None,
        description: String::new(),
        memory_mib: DEFAULT_MEMORY_MIB,
        vcpus: 1,
        boot: Boot::Direct { kernel: None, ramdisk: None, cmdline: String::new(), pvh: false },
        disks,
        nics: vec![Default::default()],
        local_time: false,
        policy: Policy::default(),
        warnings,
        origin,
    }
}

#[cfg(test)]
mod tests {
    use imgcore::Formats;

    use super::*;
    use crate::input::testing::Folder;

    #[test]
    fn images_have_positions_unless_they_are_named() {
        let folder = Folder::new(&["root.img", "swap.img", "data.img"]);
        let file =
            |target: Option<&str>, name: &str| DiskFile { target: target.map(Into::into), file: folder.path().join(name), format: None };
        let names = |disks: &[DiskFile]| {
            let (guest, formats) = (folder.path().join("root.img"), Formats::new());
            let request = Request { disks, ..Request::new(&guest, &formats) };
            read(&request).map(|o| o.source.disks.iter().map(|d| d.target.clone()).collect::<Vec<_>>()).map_err(|e| e.to_string())
        };
        assert_eq!(names(&[]).unwrap(), ["0"]);
        assert_eq!(names(&[file(None, "swap.img")]).unwrap(), ["0", "1"]);
        assert_eq!(names(&[file(Some("xvda2"), "root.img"), file(Some("xvda1"), "swap.img")]).unwrap(), ["xvda2", "xvda1"]);
        assert!(names(&[file(None, "root.img"), file(None, "root.img")]).unwrap_err().contains("would be both disk 0 and disk 1"));
    }
}
