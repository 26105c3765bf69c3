//! What a conversion does, before it is done: for `--plan`, and for the report afterwards.

use std::fmt::Write;

use imgcore::size;
use serde::Serialize;

use crate::layout::{Layout, Table};
use crate::room::is_empty;
use crate::source::{Boot, Source};
use crate::staged::{FileDiff, Kind};
use crate::step::StepReport;

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// The guest.
    pub guest: Guest,
    /// Its new disks.
    pub disks: Vec<Disk>,
    /// How it will be started.
    pub boot_loader: String,
    /// What each step found and does.
    pub steps: Vec<StepReport>,
    /// The guest's files that change.
    pub files: Vec<FileDiff>,
    /// What is run in the guest.
    pub commands: Vec<Command>,
    /// The files that will be written.
    pub outputs: Vec<String>,
    /// What the user should look at.
    pub warnings: Vec<String>,
}

/// The guest as it is.
#[derive(Clone, Debug, Serialize)]
pub struct Guest {
    /// The source's name of it.
    pub name: String,
    /// Where it comes from.
    pub origin: String,
    /// Its operating system.
    pub system: String,
    /// Its architecture.
    pub arch: String,
    /// Its host name.
    pub hostname: Option<String>,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Virtual processors.
    pub vcpus: u32,
    /// How it started on Xen.
    pub boot: String,
    /// Its disks.
    pub disks: Vec<GuestDisk>,
    /// MAC addresses of its NICs.
    pub macs: Vec<String>,
}

/// One disk of the guest.
#[derive(Clone, Debug, Serialize)]
pub struct GuestDisk {
    /// The guest's name of it.
    pub target: String,
    /// Size in bytes.
    pub size: u64,
    /// Bytes of it that are not known to read as zeroes: what a sparse copy takes. `None` for a stream that was not read.
    pub data: Option<u64>,
    /// Where it lies.
    pub origin: String,
}

/// One disk of the result.
#[derive(Clone, Debug, Serialize)]
pub struct Disk {
    /// `vda`
    pub device: String,
    /// Size in bytes.
    pub size: u64,
    /// What becomes of the partition table, in words.
    pub table: String,
    /// What lies on it.
    pub volumes: Vec<Volume>,
}

/// One volume of the result.
#[derive(Clone, Debug, Serialize)]
pub struct Volume {
    /// `vda2`
    pub device: String,
    /// What it was on Xen.
    pub was: String,
    /// First byte on the disk.
    pub offset: u64,
    /// Length in bytes.
    pub size: u64,
    /// What it holds.
    pub filesystem: String,
    /// Its UUID.
    pub uuid: Option<String>,
    /// Made anew rather than copied.
    pub recreated: bool,
}

/// A command that is run in the guest.
#[derive(Clone, Debug, Serialize)]
pub struct Command {
    /// As a person would type it.
    pub command: String,
    /// The step that wants it.
    pub step: String,
    /// Why.
    pub why: String,
    /// The files that it makes or changes; a `/` at the end stands for what is below that directory.
    pub makes: Vec<String>,
}

impl Guest {
    /// The guest of a source, before anything is known of its insides.
    pub fn of(source: &Source) -> Self {
        let boot = match &source.boot {
            Boot::Direct { kernel: Some(kernel), .. } => format!("paravirtual, with the Xen host's kernel {}", kernel.display()),
            Boot::Direct { pvh, .. } => format!("{}, with a kernel from its own disk", if *pvh { "PVH" } else { "paravirtual" }),
            Boot::Bios => "fully virtual, BIOS".into(),
            Boot::Uefi => "fully virtual, UEFI".into(),
        };
        let disk = |d: &crate::source::SourceDisk| GuestDisk {
            target: d.target.clone(),
            size: d.size,
            data: d.image.as_deref().and_then(data_of),
            origin: d.origin.clone(),
        };
        Guest {
            name: source.name.clone(),
            origin: source.origin.clone(),
            system: String::new(),
            arch: String::new(),
            hostname: None,
            memory_mib: source.memory_mib,
            vcpus: source.vcpus,
            boot,
            disks: source.disks.iter().map(disk).collect(),
            macs: source.nics.iter().filter_map(|n| n.mac.clone()).collect(),
        }
    }
}

fn data_of(image: &dyn imgcore::Image) -> Option<u64> {
    let mut data: u64 = 0;
    let walked = image.extents(0..image.size(), &mut |extent| {
        data += if extent.kind.reads_zero() { 0 } else { extent.len };
        std::ops::ControlFlow::Continue(())
    });
    walked.ok().map(|()| data)
}

/// The disks of a layout.
pub fn disks(layout: &Layout, source: &Source) -> Vec<Disk> {
    let table = |table: Table| match table {
        Table::Keep { disk } => match source.disks.get(disk) {
            Some(disk) if disk.image.as_deref().is_some_and(is_empty) => format!("empty, as {} is", disk.target),
            Some(disk) => format!("as on {}", disk.target),
            None => "as it was".into(),
        },
        Table::NewMbr => "new partition table (MBR)".into(),
        Table::NewGpt => "new partition table (GPT)".into(),
    };
    let volume = |v: &crate::layout::Volume| Volume {
        device: v.target_device.clone(),
        was: v.source_device.clone(),
        offset: v.target_offset,
        size: v.target_len(),
        filesystem: v.filesystem.clone(),
        uuid: v.uuid.clone(),
        recreated: v.recreate,
    };
    let disk = |d: &crate::layout::TargetDisk| Disk {
        device: d.device.clone(),
        size: d.size,
        table: format!(
            "{}{}{}",
            table(d.table),
            if d.moved.is_some() { ", with partitions moved or larger" } else { "" },
            if d.grown > 0 { ", with an ESP behind it" } else { "" }
        ),
        volumes: d.volumes.iter().map(volume).collect(),
    };
    layout.disks.iter().map(disk).collect()
}

impl Plan {
    /// The plan for people. Every change of a text file is there as a diff.
    pub fn text(&self) -> String {
        let mut out = String::new();
        self.write(&mut out).map(|()| out).unwrap_or_default()
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let guest = &self.guest;
        writeln!(out, "Guest {} ({})", clean(&guest.name), clean(&guest.origin))?;
        writeln!(out, "  {}, {}; {}", clean(&guest.system), guest.arch, clean(&guest.boot))?;
        writeln!(
            out,
            "  {} MiB of memory, {}, {}, {}",
            guest.memory_mib,
            counted(guest.vcpus as usize, "processor"),
            counted(guest.disks.len(), "disk"),
            counted(guest.macs.len(), "NIC")
        )?;
        writeln!(out, "\nDisks")?;
        for disk in &self.disks {
            writeln!(out, "  {}  {}, {}", disk.device, size::human(disk.size), disk.table)?;
            for v in &disk.volumes {
                let holds = if v.filesystem.is_empty() { "unknown content" } else { &v.filesystem };
                let how = if v.recreated { ", made anew" } else { "" };
                writeln!(out, "    {:<6} was {:<6} {holds}, {}{how}", v.device, clean(&v.was), size::human(v.size))?;
            }
        }
        writeln!(out, "\nBoot loader\n  {}", clean(&self.boot_loader))?;
        writeln!(out, "\nSteps")?;
        for step in &self.steps {
            if step.notes.is_empty() && step.changed.is_empty() && step.commands.is_empty() && step.warnings.is_empty() {
                continue;
            }
            writeln!(out, "  {}: {}", step.name, step.about)?;
            for note in &step.notes {
                writeln!(out, "    {}", clean(note))?;
            }
        }
        if !self.files.is_empty() {
            writeln!(out, "\nChanged files of the guest")?;
        }
        for file in &self.files {
            let how = match file.kind {
                Kind::Added => "added",
                Kind::Changed => "changed",
                Kind::Removed => "removed",
            };
            writeln!(out, "{}: {how} by {}", file.path, file.steps.join(", "))?;
            writeln!(out, "{}", clean(file.text.trim_end()))?;
        }
        if !self.commands.is_empty() {
            writeln!(out, "\nCommands in the guest")?;
        }
        for command in &self.commands {
            writeln!(out, "  {}  ({})", clean(&command.command), clean(&command.why))?;
            for path in &command.makes {
                writeln!(out, "    writes {}", clean(path))?;
            }
        }
        if !self.outputs.is_empty() {
            writeln!(out, "\nOutputs\n  {}", self.outputs.join("\n  "))?;
        }
        if !self.warnings.is_empty() {
            writeln!(out, "\nWarnings")?;
        }
        for warning in &self.warnings {
            writeln!(out, "  {}", clean(warning))?;
        }
        Ok(())
    }
}

/// Text from a guest for a terminal: no control characters but line ends and tabs.
fn clean(text: &str) -> String {
    let shown = |c: char| if c.is_control() && !matches!(c, '\n' | '\t') { c.escape_default().collect() } else { c.to_string() };
    text.chars().map(shown).collect()
}
/// `1 disk`, `2 disks`.
fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
