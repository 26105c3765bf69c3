//! Where a root can lie.

use crate::booted::{boots, convert, scratch};
use crate::guest::{check_outputs, outputs, recipe, sha256};

#[test]
fn lvm_across_disks() {
    let Some(guest) = recipe("lvm") else { return };
    let dir = scratch();
    let before = sha256(&guest.disks);
    convert(&guest.cfg, dir.path());
    assert_eq!(before, sha256(&guest.disks), "the source changed");
    let disks = outputs(dir.path(), &guest.name);
    check_outputs(&disks, dir.path());
    boots(&guest, disks);
}
