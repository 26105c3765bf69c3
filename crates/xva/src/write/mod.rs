//! Making appliances of disks: modern archives, packed or not, and legacy ones, in one pass from front to end.

use std::io::Write;

use imgcore::formats::{ContainerWriter, CreateOptions, FormatOption, SourceDisk};
use imgcore::{Error, Progress, Result};

use crate::container::XvaContainer;
use crate::sums::SumKind;

mod envelope;
mod legacy;
mod machine;
mod modern;
mod ordered;
mod output;
mod ova;
mod pieces;
mod tar;

use envelope::Envelope;
use machine::Machine;
use output::Output;

const fn option(name: &'static str, value: &'static str, help: &'static str) -> FormatOption {
    FormatOption { name, value, help }
}

const OPTIONS: &[FormatOption] = &[
    option("args", "<str>", "Kernel arguments (boot=pv and pvh)"),
    option("boot", "<bios|uefi|pv|pvh>", "How the machine starts (default: bios)"),
    option("bridge", "<str>", "Bridge of its network on the host (default: xenbr0)"),
    option("checksum", "<sha1|xxhash>", "Checksums of chunks; xxhash needs XCP-ng 8.1 or XenServer 8 (default: sha1)"),
    option("compression", "<none|gzip|zstd>", "Compression of the whole archive (default: none)"),
    option("compression_level", "<num>", "1 to 9 for gzip (default: 6), 1 to 19 for zstd (default: 3)"),
    option("description", "<str>", "Description of the machine"),
    option("kernel", "<str>", "Kernel on the host (boot=pv and pvh; default: pygrub finds it on the first disk)"),
    option("mac", "<mac[/mac]|none>", "MAC addresses of its NICs (default: one NIC)"),
    option("memory", "<size>", "Memory (default: 1G)"),
    option("name", "<str>", "Name of the machine (default: the first disk's)"),
    option("network", "<str>", "Name of its network (default: XenServer's own for eth0)"),
    option("ramdisk", "<str>", "Initial ramdisk on the host, with kernel"),
    option("vcpus", "<num>", "Virtual processors (default: 1)"),
    option("version", "<2|0.1>", "Form of the archive: 2 or the legacy 0.1 (default: 2)"),
];

impl ContainerWriter for XvaContainer {
    fn options(&self) -> &'static [FormatOption] {
        OPTIONS
    }

    fn write(
        &self,
        disks: &[SourceDisk],
        options: &CreateOptions,
        threads: usize,
        out: &mut dyn Write,
        progress: &dyn Progress,
    ) -> Result<()> {
        options.check_names(OPTIONS)?;
        let machine = Machine::new(disks, options)?;
        let mut out = Output::new(out);
        match options.get("version").unwrap_or("2") {
            "2" => {
                let how = modern::Modern { sums: sums(options)?, envelope: envelope(options, "none")?, threads };
                modern::write(&machine, disks, &how, &mut out, progress)?;
            }
            "0.1" => {
                if let Some(name) = ["checksum", "compression", "mac", "bridge", "network"].into_iter().find(|n| options.get(n).is_some()) {
                    return Err(Error::Invalid(format!("{name}= does not go with version=0.1: that form has no such thing")));
                }
                let spool = self.options.spool.clone().unwrap_or_else(std::env::temp_dir);
                let how = legacy::Legacy { envelope: envelope(options, "gzip")?, threads, spool };
                legacy::write(&machine, disks, &how, &mut out, progress)?;
            }
            other => return Err(Error::Invalid(format!("version={other} is none of 2, 0.1"))),
        }
        out.flush()
    }
}

fn sums(options: &CreateOptions) -> Result<SumKind> {
    match options.get("checksum") {
        None | Some("sha1") => Ok(SumKind::Sha1),
        Some("xxhash") => Ok(SumKind::Xxh64),
        Some(other) => Err(Error::Invalid(format!("checksum={other} is none of sha1, xxhash"))),
    }
}

fn envelope(options: &CreateOptions, default: &str) -> Result<Envelope> {
    // At most 19.
    let level = |default: &str, max| {
        machine::number("compression_level", options.get("compression_level").unwrap_or(default), 1..=max).map(|l| l as u8)
    };
    match options.get("compression").unwrap_or(default) {
        "none" if options.get("compression_level").is_some() => Err(Error::Invalid("compression_level= needs compression=".into())),
        "none" => Ok(Envelope::Plain),
        "gzip" => Ok(Envelope::Gzip(level("6", 9)?.into())),
        "zstd" => Ok(Envelope::Zstd(level("3", 19)?.into())),
        other => Err(Error::Invalid(format!("compression={other} is none of none, gzip, zstd"))),
    }
}
