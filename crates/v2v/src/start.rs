//! How the result starts: by the boot loader that it has, or by GRUB 2 put on its disk.

use guestfs::inspect::Inspection;
use guestfs::volume::Volumes;
use imgcore::ImageMut;
use std::sync::Arc;

use crate::bootloader::{BootPlace, Configured, Grub, install_files, starts_by_itself};
use crate::layout::{Layout, Table, Volume};
use crate::source::Boot;
use crate::step::{Context, StepReport};
use crate::{Error, Result};

const NAME: &str = "boot-loader";

/// The boot loader of the result.
pub struct Start {
    /// In words.
    pub about: String,
    grub: Option<(Grub, BootPlace)>,
}

/// Where a volume that the guest mounts lies on the target.
pub fn place_of<'a>(layout: &'a Layout, volumes: &Volumes, index: usize) -> Option<&'a Volume> {
    let volume = volumes.volumes.get(index)?;
    layout.volumes().find(|v| v.disk == volume.disk && v.source_offset == volume.start)
}

impl Start {
    /// Decides, and stages the files that a new boot loader needs. Comes after all steps.
    pub fn prepare(context: &mut Context<'_>, inspection: &Inspection, volumes: &Volumes, keep: bool) -> Result<Self> {
        let none = |about: &str| Ok(Start { about: about.into(), grub: None });
        match context.source.boot {
            Boot::Uefi => return none("the guest's own, started by UEFI"),
            Boot::Bios => return none("the guest's own, started by the BIOS"),
            Boot::Direct { .. } => {}
        }
        let at = |path: &[u8]| inspection.mounts.iter().find(|m| m.path == path).map(|m| m.volume);
        let root = place_of(context.layout, volumes, inspection.root);
        let (volume, mounted_at) = match at(b"/boot").and_then(|v| place_of(context.layout, volumes, v)) {
            Some(boot) => (boot, "/boot"),
            None => (root.ok_or_else(|| Error::Invalid(format!("{}: its root is on none of the new disks", context.source.name)))?, "/"),
        };
        let place = match BootPlace::new(context.layout, volume, mounted_at) {
            Err(e) if keep => {
                context.reports.push(StepReport { name: NAME, warnings: vec![e.to_string()], ..report() });
                return none("none: with --layout keep, no BIOS can start the guest");
            }
            place => place?,
        };
        if let Some(Table::Keep { disk }) = context.layout.disks.get(place.disk).map(|d| d.table)
            && let Some(image) = context.source.disks.get(disk).and_then(|d| d.image.as_ref())
            && let Some(own) = starts_by_itself(image.as_ref())?
        {
            return none(&format!("{own}, which is on the guest's disk already"));
        }
        let grub = Grub::find(None)?;
        let root = match (context.root_spec()?, root) {
            (Some(spec), _) if !spec.starts_with("LABEL=") => spec,
            (_, Some(volume)) => context.devices.stable_of(volume),
            (spec, None) => spec.unwrap_or_default(),
        };
        let cmdline = match &context.source.boot {
            Boot::Direct { cmdline, .. } if !cmdline.is_empty() => cmdline.clone(),
            _ => "ro".into(),
        };
        let options = context.rewrite().whole(&cmdline);
        let options: Vec<&str> = options.split_whitespace().filter(|w| !w.starts_with("root=")).collect();
        context.fs.begin(NAME);
        let configured = install_files(&mut context.fs, &grub, &place, &root, &options.join(" "))?;
        let menu = match configured {
            Configured::GrubCfg => "the guest's own grub.cfg",
            Configured::MenuLst => "the guest's own menu.lst",
            Configured::FindsKernels => "a grub.cfg that finds the guest's kernels at each start",
        };
        let about = format!("GRUB 2 is put on {} and reads {menu}", context.layout.disks.get(place.disk).map_or("", |d| &d.device));
        let changed = context.fs.paths_of(NAME);
        context.reports.push(StepReport { notes: vec![about.clone()], changed, ..report() });
        Ok(Start { about, grub: Some((grub, place)) })
    }

    /// Writes the boot loader to the new disks.
    pub fn embed(&self, targets: &[Arc<dyn ImageMut>]) -> Result<()> {
        if let Some((grub, place)) = &self.grub
            && let Some(target) = targets.get(place.disk)
        {
            grub.embed(target.as_ref(), place)?;
        }
        Ok(())
    }
}

fn report() -> StepReport {
    StepReport {
        name: NAME,
        about: "Puts GRUB 2 where a BIOS finds no boot loader: Xen started the kernel itself",
        ..StepReport::default()
    }
}
