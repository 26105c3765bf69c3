//! Which files a VDI may name: other VDIs of its repository, by their uuid.
//!
//! Parents are named in many ways: relative to the folder or to /dev/VG_XenStorage-…, absolute on the Xen host, by a kind that they had
//! when they were named. The uuid in the name is what stays.

use std::path::PathBuf;
use std::sync::Arc;

use imgcore::{Error, Gate, Reference, Result, Storage, TreeGate};

use super::name::VdiName;
use super::repository::Repository;

pub(super) struct RepositoryGate<'a> {
    pub repository: &'a Repository,
    /// Folders that images may name files in besides.
    pub allow: &'a [PathBuf],
}

impl Gate for RepositoryGate<'_> {
    fn open(&self, reference: &Reference<'_>) -> Result<Arc<dyn Storage>> {
        let name = reference.target.rsplit('/').next().and_then(VdiName::parse);
        let Some(VdiName { uuid, .. }) = name else {
            return TreeGate::new(&self.repository.folder, self.allow.iter().cloned()).open(reference);
        };
        match self.repository.vdi(&uuid) {
            Some(vdi) => vdi.storage(),
            None => Err(Error::Invalid(format!(
                "{}: its {} '{}' is missing: {} has none of {}{}",
                reference.from,
                reference.role,
                reference.target,
                self.repository.shown,
                VdiName::all(&uuid),
                self.repository.remedy()
            ))),
        }
    }
}
