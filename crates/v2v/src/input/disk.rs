//! Input `disk`: images without any configuration. What they don't tell gets a default.

use super::images;
use super::{DiskFile, Input, Opened, Request};
use crate::source::{Boot, Source, SourceDisk};
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
    let mut warnings =
        vec![format!("an image tells nothing of memory, processors and NICs: {DEFAULT_MEMORY_MIB} MiB, 1 and one NIC are assumed")];
    let mut disks: Vec<SourceDisk> = Vec::new();
    // `--disk xvda2=GUEST` names the guest's own image.
    let own = request.disks.iter().find(|d| d.file == request.guest).is_none().then(|| DiskFile {
        target: None,
        file: request.guest.to_owned(),
        format: None,
    });
    for file in own.iter().chain(request.disks) {
        let image = images::open(request, &file.file, file.format.as_deref(), &mut warnings)?;
        let target = file.target.clone().unwrap_or_else(|| next_name(&disks));
        let (size, origin) = (image.size(), file.file.display().to_string());
        disks.push(SourceDisk { target, image: Some(image), size, read_only: false, bootable: false, origin });
    }
    images::check_distinct(&disks)?;
    let name = request.guest.file_stem().map_or_else(|| guest.clone(), |s| s.to_string_lossy().into_owned());
    Ok(Source {
        name,
        uuid: None,
        description: String::new(),
        memory_mib: DEFAULT_MEMORY_MIB,
        vcpus: 1,
        boot: Boot::Direct { kernel: None, ramdisk: None, cmdline: String::new(), pvh: false },
        disks,
        nics: vec![Default::default()],
        warnings,
        origin: format!("disk image {guest}"),
    }
    .into())
}

/// The first of `xvda`, `xvdb`, … that no disk has.
fn next_name(disks: &[SourceDisk]) -> String {
    let free = ('a'..='z').map(|c| format!("xvd{c}")).find(|n| disks.iter().all(|d| !d.target.starts_with(n.as_str())));
    free.unwrap_or_else(|| "xvdaa".into())
}
