//! What lies in partitions and logical volumes: how it gets smaller before it is copied, and larger afterwards.

use super::programs::{mounted, run};
use crate::disk_build::swap;
use crate::{Error, Result};
use guestfs::engine::{Command, Session};
use guestfs::lvm;
use guestfs::probe::Content;

/// How a filesystem or the like takes a new size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Method {
    Ext,
    Xfs,
    Btrfs,
    Ntfs,
    PhysicalVolume,
    Swap,
}

impl Method {
    /// The way for this content, if there is one.
    pub fn of(content: &Content) -> Option<Self> {
        Some(match content.kind {
            "ext2" | "ext3" | "ext4" => Method::Ext,
            "xfs" => Method::Xfs,
            "btrfs" => Method::Btrfs,
            "ntfs" => Method::Ntfs,
            "LVM2_member" => Method::PhysicalVolume,
            "swap" => Method::Swap,
            _ => return None,
        })
    }

    /// The program that does it.
    pub fn program(self) -> &'static str {
        match self {
            Method::Ext => "resize2fs",
            Method::Xfs => "xfs_growfs",
            Method::Btrfs => "btrfs filesystem resize",
            Method::Ntfs => "ntfsresize",
            Method::PhysicalVolume => "pvresize",
            Method::Swap => "mkswap",
        }
    }

    /// Whether it can get smaller.
    pub fn shrinks(self) -> bool {
        self != Method::Xfs
    }
}

/// Something that is to fill its device, or to fit into a smaller one.
#[derive(Clone, Debug)]
pub struct Job {
    /// As the appliance calls it.
    pub device: String,
    /// How it does so.
    pub method: Method,
    /// What is there.
    pub content: Content,
    /// The bytes of its device, when all is done.
    pub len: u64,
}

impl Job {
    /// Makes the content no larger than the device will be.
    pub fn shrink(&self, session: &mut dyn Session, force: bool) -> Result<()> {
        let inside = session.name_inside(&self.device);
        let device = inside.as_str();
        match self.method {
            Method::Swap | Method::Xfs => Err(Error::Invalid(format!("{device}: cannot shrink"))),
            Method::Ext => {
                check(session, device)?;
                let size = format!("{}s", self.len / 512);
                run(session, &Command::new(["resize2fs", device, &size]), &[]).map(drop)
            }
            Method::Btrfs => mounted(session, &self.device, "btrfs", |session, root| {
                run(session, &Command::new(["btrfs", "filesystem", "resize", &self.len.to_string(), root]), &[]).map(drop)
            }),
            Method::Ntfs => Self::ntfs(session, device, Some(self.len), force),
            Method::PhysicalVolume => {
                let size = format!("{}b", self.len);
                run(session, &lvm::command(["pvresize", "--yes", "--setphysicalvolumesize", &size, device]), &[]).map(drop)
            }
        }
    }

    /// Makes the content fill the device.
    pub fn grow(&self, session: &mut dyn Session, force: bool) -> Result<()> {
        let inside = session.name_inside(&self.device);
        let device = inside.as_str();
        match self.method {
            Method::Ext => {
                check(session, device)?;
                run(session, &Command::new(["resize2fs", device]), &[]).map(drop)
            }
            Method::Xfs => {
                mounted(session, &self.device, "xfs", |session, root| run(session, &Command::new(["xfs_growfs", root]), &[]).map(drop))
            }
            Method::Btrfs => mounted(session, &self.device, "btrfs", |session, root| {
                run(session, &Command::new(["btrfs", "filesystem", "resize", "max", root]), &[]).map(drop)
            }),
            Method::Ntfs => Self::ntfs(session, device, None, force),
            Method::PhysicalVolume => run(session, &lvm::command(["pvresize", device]), &[]).map(drop),
            Method::Swap => {
                let header = swap::header(self.len, self.content.uuid.as_deref(), self.content.label.as_deref())?;
                Ok(session.write_device(&self.device, 0, &header)?)
            }
        }
    }

    fn ntfs(session: &mut dyn Session, device: &str, size: Option<u64>, force: bool) -> Result<()> {
        let size = size.map(|size| size.to_string());
        let words = ["ntfsresize", "--no-progress-bar"].into_iter().chain(force.then_some("--force"));
        let words = words.chain(size.iter().flat_map(|size| ["--size", size])).chain([device]);
        // It asks whether to go on.
        let command = Command { stdin: b"y\n".to_vec(), ..Command::new(words) };
        run(session, &command, &[]).map(drop)
    }
}

/// resize2fs wants a filesystem that was looked at. The journal is replayed, and what a crash leaves is mended; anything worse is an error.
fn check(session: &mut dyn Session, device: &str) -> Result<()> {
    run(session, &Command::new(["e2fsck", "-f", "-p", device]), &[1]).map(drop)
}
