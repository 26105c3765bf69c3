//! Programs that open more than one system, more than one guest, or one guest again and again.

use std::ffi::OsString;
use std::time::SystemTime;

use guestfs::{Error, Guest};

use super::{GuestArgs, Ring};
use crate::common::Failure;
use crate::virt::options::sources::Named;

/// A guest that others may write, to be opened whenever they did.
pub(in crate::virt) struct Watched<'a> {
    args: &'a GuestArgs,
    guest: Named,
    keys: Ring,
    mounts: Vec<guestfs::MountRequest>,
}

impl GuestArgs {
    /// Every operating system of the guest in turn, where others want one to be chosen; confined as in
    /// [`open_confined`](GuestArgs::open_confined).
    pub(in crate::virt) fn each_system(&self, take: &mut dyn FnMut(Guest) -> Result<(), Failure>) -> Result<(), Failure> {
        let (keys, guest, mounts) = (self.keys.ring(true)?, self.sources.guest()?, self.mounts()?);
        self.confine([&guest], true)?;
        let open = |root: Option<&str>| Ok::<_, Failure>(self.open_disks(self.sources.open(&guest)?, &mounts, &keys, root));
        match open(self.root.as_deref())? {
            Err(Error::SeveralSystems { roots, .. }) => roots.iter().try_for_each(|root| take(open(Some(root))??)),
            Err(e) => Err(e.into()),
            Ok(opened) => {
                if !opened.is_in_appliance() {
                    self.sources.confinement([&guest]).reading()?;
                }
                take(opened)
            }
        }
    }

    /// This guest, and another of the same flags on other disks. Neither is locked: one may be what the other is on top of.
    pub(in crate::virt) fn open_pair(&mut self, add: Vec<OsString>, domains: Vec<OsString>) -> Result<(Guest, Guest), Failure> {
        self.sources.share();
        let other = self.sources.instead(add, domains);
        let (keys, mounts) = (self.keys.ring(true)?, self.mounts()?);
        let (first, second) = (self.sources.guest()?, other.guest()?);
        self.confine([&first, &second], true)?;
        let open = |disks| self.open_disks(disks, &mounts, &keys, self.root.as_deref());
        let pair = (open(self.sources.open(&first)?)?, open(other.open(&second)?)?);
        if !pair.0.is_in_appliance() && !pair.1.is_in_appliance() {
            self.sources.confinement([&first, &second]).reading()?;
        }
        Ok(pair)
    }

    /// The guest, to be opened without locks as often as it takes.
    pub(in crate::virt) fn watch(&mut self) -> Result<Watched<'_>, Failure> {
        self.sources.share();
        let (keys, guest, mounts) = (self.keys.ring(true)?, self.sources.guest()?, self.mounts()?);
        self.confine([&guest], true)?;
        Ok(Watched { args: self, guest, keys, mounts })
    }
}

impl Watched<'_> {
    /// The guest as it is now.
    pub(in crate::virt) fn open(&self) -> Result<Guest, Failure> {
        Ok(self.args.open_disks(self.args.sources.open(&self.guest)?, &self.mounts, &self.keys, self.args.root.as_deref())?)
    }

    /// Tells the user with `-v`.
    pub(in crate::virt) fn say(&self, line: &str) {
        self.args.say(line);
    }

    /// What tells whether the disks were written since: their times and lengths. `None` where nothing tells that.
    pub(in crate::virt) fn state(&self) -> Option<Vec<(SystemTime, u64)>> {
        let state = |metadata: std::fs::Metadata| metadata.is_file().then(|| Some((metadata.modified().ok()?, metadata.len())))?;
        self.guest.files().map(|file| state(std::fs::metadata(file?).ok()?)).collect()
    }
}
