//! What the guest's mounted filesystems lie on: partitions, whole disks, and the volume groups, arrays and encryption between.

use std::sync::Arc;

use guestfs::volume::{Place, Volumes};
use guestfs::{Inspection, show};
use imgcore::Image;

/// A filesystem that the guest mounts.
#[derive(Clone)]
pub struct Mounted {
    /// Where it is mounted: `/`, `/boot`.
    pub path: String,
    /// The guest's name of its volume: `/dev/xvda2`, `/dev/vg/root`.
    pub device: String,
    /// What its superblock says.
    pub filesystem: String,
    /// Its UUID.
    pub uuid: Option<String>,
    /// The mount options that choose a subvolume; empty for the default one.
    pub selection: String,
    /// Where on the filesystem that subvolume is: `/@`; empty where all of it is mounted.
    pub begins_at: Result<String, String>,
    /// What is between it and the disks.
    pub layers: Vec<Layer>,
    /// Where it begins on the source's disks, in their order: disk and first byte of each partition or whole disk that it lies on.
    pub bottom: Vec<(usize, u64)>,
    /// Its bytes, unless only the appliance could read them.
    pub image: Result<Arc<dyn Image>, String>,
}

/// Something that is put together of other volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layer {
    /// A volume group of LVM.
    Group,
    /// An array of Linux's.
    Array,
    /// LUKS.
    Encrypted,
}

/// All that an inspected guest mounts from its disks, the root first.
pub fn mounted(volumes: &Volumes, inspection: &Inspection) -> Vec<Mounted> {
    let mut all = Vec::new();
    for mount in &inspection.mounts {
        let Some(volume) = volumes.volumes.get(mount.volume) else { continue };
        let (layers, bottom) = below(volumes, mount.volume);
        all.push(Mounted {
            path: show(&mount.path),
            device: volume.device.clone(),
            filesystem: volume.kind().into(),
            uuid: volume.content.as_ref().and_then(|c| c.uuid.clone()),
            selection: mount.selection(),
            begins_at: mount.begins_at(volumes).map_err(|e| e.to_string()),
            layers,
            bottom,
            image: volumes.image(volume).map_err(|e| e.to_string()),
        });
    }
    all
}

/// The layers below a volume, each once, and where it lies on the disks.
fn below(volumes: &Volumes, position: usize) -> (Vec<Layer>, Vec<(usize, u64)>) {
    let (mut layers, mut bottom) = (Vec::new(), Vec::new());
    let (mut seen, mut open) = (Vec::new(), vec![position]);
    while let Some(position) = open.pop() {
        let Some(volume) = volumes.volumes.get(position).filter(|_| !seen.contains(&position)) else { continue };
        seen.push(position);
        match volume.place {
            Place::Disk { disk, start } => bottom.push((disk, start)),
            Place::Array { .. } => layers.push(Layer::Array),
            Place::Unlocked { .. } => layers.push(Layer::Encrypted),
            Place::Logical { .. } => layers.push(Layer::Group),
        }
        open.extend(volumes.below(volume));
    }
    layers.sort_unstable();
    layers.dedup();
    bottom.sort_unstable();
    (layers, bottom)
}

/// The disks that a path lies on, by position.
pub fn disks(mounted: &[Mounted], path: &str) -> Vec<usize> {
    let mut disks: Vec<usize> = holder(mounted, path).iter().flat_map(|m| &m.bottom).map(|(disk, _)| *disk).collect();
    disks.dedup();
    disks
}

/// What a path lies on: the mount point nearest above it.
pub fn holder<'a>(mounted: &'a [Mounted], path: &str) -> Option<&'a Mounted> {
    let above = |m: &&Mounted| m.path == "/" || path.strip_prefix(&m.path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    mounted.iter().filter(above).max_by_key(|m| m.path.len())
}
