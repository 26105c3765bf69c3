//! `--grow`: a root that becomes larger with its partition, and with the logical volume that it is.

use guestfs::engine::Session;
use guestfs::lvm;
use guestfs::volume::{Place, Volume, Volumes};

use crate::resize::contents::{Job, Method};
use crate::resize::programs::run;
use crate::stack::{Layer, Mounted, holder};
use crate::{Error, Result};

/// Sizes are whole MiB.
const UNIT: u64 = 1 << 20;
/// No disk is larger.
const LIMIT: u64 = 1 << 50;

/// What becomes larger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Growth {
    /// The source's disk with the partition, or the whole disk, that does.
    pub disk: usize,
    /// Its first byte there.
    pub start: u64,
    /// By so many bytes.
    pub by: u64,
    /// The root, by its position.
    pub(crate) root: usize,
    /// How its filesystem does.
    pub(crate) method: Method,
    /// Where the root is a logical volume: the physical one below, by its position, and by how much the logical one grows.
    pub(crate) group: Option<(usize, u64)>,
}

impl Growth {
    /// How the root can become larger by so many bytes.
    ///
    /// # Errors
    /// [`Error::Invalid`] with what is in the way.
    pub fn new(guest: &str, volumes: &Volumes, root: usize, mounts: &[Mounted], by: u64) -> Result<Self> {
        let refused = |what: String| Error::Invalid(format!("{guest}: --grow: {what}"));
        let by = by.checked_next_multiple_of(UNIT).filter(|by| (1..=LIMIT).contains(by));
        let by = by.ok_or_else(|| refused("no root can grow by that".into()))?;
        let (Some(mount), Some(volume)) = (holder(mounts, "/"), volumes.volumes.get(root)) else {
            return Err(refused("the root is on no volume that is known".into()));
        };
        let device = &mount.device;
        for (layer, what) in [(Layer::Encrypted, "encrypted"), (Layer::Array, "on an array")] {
            if mount.layers.contains(&layer) {
                return Err(refused(format!(
                    "the root {device} is {what}, which does not grow here: convert without --grow, and grow it in the guest"
                )));
            }
        }
        let method = volume.content.as_ref().and_then(Method::of).filter(|m| matches!(m, Method::Ext | Method::Xfs | Method::Btrfs));
        let method = method.ok_or_else(|| refused(format!("there is no way to make the {} on {device} larger", mount.filesystem)))?;
        let same = volumes.volumes.iter().filter(|v| v.kind() == "btrfs" && v.content == volume.content).count();
        if method == Method::Btrfs && same > 1 {
            return Err(refused(format!("the root {device} lies on several volumes: convert without --grow, and grow it in the guest")));
        }
        let (disk, start) = *mount.bottom.last().ok_or_else(|| refused(format!("{device} is on no disk")))?;
        let group = match volume.place {
            Place::Logical { group, .. } => {
                let at = |v: &Volume| v.place == Place::Disk { disk, start };
                let physical = volumes.volumes.iter().position(at).ok_or_else(|| refused(format!("{device} is on no disk")))?;
                // What is less than an extent is of no use to the group.
                let extent = volumes.groups.get(group).map_or(0, |g| g.extent_size).min(LIMIT);
                Some((physical, extent.next_multiple_of(UNIT)))
            }
            _ => None,
        };
        let more = group.map_or(0, |(_, extent)| extent);
        Ok(Growth { disk, start, by: by + more, root, method, group: group.map(|(physical, _)| (physical, by)) })
    }

    /// Makes what is on the larger partition larger; `device` says where a volume is in the appliance.
    pub fn apply(&self, session: &mut dyn Session, volumes: &Volumes, device: &dyn Fn(&Volume) -> Option<String>) -> Result<()> {
        let at = |position: usize| {
            let volume = volumes.volumes.get(position);
            volume.and_then(|v| Some((device(v)?, v))).ok_or_else(|| Error::Invalid("the volume that is to grow is not there".into()))
        };
        let (root, volume) = at(self.root)?;
        if let Some((physical, by)) = self.group {
            let (physical, _) = at(physical)?;
            let (physical, logical) = (session.name_inside(&physical), session.name_inside(&root));
            let mut lvm = |words: &[&str]| run(session, &lvm::command(words.iter().copied()), &[]).map(drop);
            lvm(&["pvresize", &physical])?;
            lvm(&["lvextend", "-L", &format!("+{by}b"), &logical])?;
        }
        let content = volume.content.clone().ok_or_else(|| Error::Invalid(format!("{root}: what it holds is unknown")))?;
        Job { device: root, method: self.method, content, len: volume.len }.grow(session, false)
    }
}
