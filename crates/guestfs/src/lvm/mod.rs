//! Logical volumes, put together from what LVM2's metadata says: linear and striped ones in this process. Of others it is known that they
//! are there, and the appliance has to read them.

mod group;
mod pv;
mod text;

use std::collections::BTreeMap;
use std::sync::Arc;

use imgcore::Image;

use self::pv::Label;
use crate::engine::{Command, Session};
use crate::{Error, Result};

pub use self::group::{Group, LogicalVolume, PhysicalVolume};

/// Finds the groups on physical volumes, each of which is told by its position in what the caller has. A group whose metadata cannot be read
/// is told of by a sentence.
pub(crate) fn groups(volumes: &[(usize, Arc<dyn Image>)]) -> (Vec<Group>, Vec<String>) {
    let mut found = Vec::new();
    let mut complaints = Vec::new();
    for (position, image) in volumes {
        match Label::read(image.as_ref()) {
            Ok(volume) => found.push((*position, image.clone(), volume)),
            Err(what) => complaints.push(format!("a physical volume of LVM in {}: {what}", image.info().file)),
        }
    }
    // Each volume has the group's metadata; the newest counts.
    let mut newest: BTreeMap<String, Group> = BTreeMap::new();
    for text in found.iter().filter_map(|(.., volume)| volume.text.as_ref()) {
        match Group::parse(text, &found) {
            Ok(group) => {
                let known = newest.get(&group.uuid).map(|known| known.seqno);
                if known.is_none_or(|known| known < group.seqno) {
                    newest.insert(group.uuid.clone(), group);
                }
            }
            Err(what) => complaints.push(format!("metadata of LVM: {what}")),
        }
    }
    (newest.into_values().collect(), complaints)
}

/// The name of a volume under /dev/mapper, where a dash within a name is written twice.
pub fn mapper_name(group: &str, volume: &str) -> String {
    format!("{}-{}", group.replace('-', "--"), volume.replace('-', "--"))
}

/// What udev calls a group's volume besides.
pub(crate) fn aliases(group: &Group, volume: &LogicalVolume) -> Vec<String> {
    let name = mapper_name(&group.name, &volume.name);
    let uuid = [&group.uuid, &volume.uuid].map(|uuid| uuid.replace('-', "")).concat();
    vec![format!("/dev/mapper/{name}"), format!("/dev/disk/by-id/dm-name-{name}"), format!("/dev/disk/by-id/dm-uuid-LVM-{uuid}")]
}

/// A command of LVM for the appliance, where there is no udev and nobody else uses the disks.
pub fn command<'a>(words: impl IntoIterator<Item = &'a str>) -> Command {
    const SETTINGS: &str = "activation{udev_sync=0 udev_rules=0 monitoring=0 verify_udev_operations=0} backup{backup=0 archive=0} \
                            devices{use_devicesfile=0 obtain_device_list_from_udev=0} global{locking_dir=\"/tmp/lvm\" event_activation=0}";
    let mut words = words.into_iter();
    Command::new(["lvm"].into_iter().chain(words.next()).chain(["--config", SETTINGS]).chain(words))
}

/// Makes the logical volumes of a group on an appliance's disks appear as `/dev/GROUP/VOLUME` in it.
pub(crate) fn activate(session: &mut dyn Session, group: &str) -> Result<()> {
    let output = session.run_tool(&command(["vgchange", "--sysinit", "-a", "y", "--", group]))?;
    if output.status == 0 {
        return Ok(());
    }
    let what = crate::show(&output.stderr);
    Err(Error::Invalid(format!("the guest's logical volumes cannot be used: {}", what.trim())))
}
