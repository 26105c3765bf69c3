//! GRUB 2 for UEFI: one file with all that it needs, for the path where every firmware looks.

use super::grub::is_plain;
use super::{BootPlace, Grub, config};
use crate::{Error, Result};

/// What goes onto an ESP.
#[derive(Clone, Debug)]
pub struct Loader {
    /// GRUB with its modules.
    pub image: Vec<u8>,
    /// The configuration beside it, which hands over to the guest's own.
    pub config: String,
}

/// All that configurations of guests use. No module is loaded from the guest: those there may be of another version.
const MODULES: &str = "all_video boot btrfs cat chain configfile cryptodisk echo efifwsetup ext2 f2fs fat font gcry_rijndael gcry_sha1 gcry_sha256 \
    gcry_sha512 gettext gfxmenu gfxterm gzio halt help jfs keystatus legacycfg linux loadenv loopback ls luks luks2 lvm lzopio mdraid09 mdraid1x \
    minicmd normal part_gpt part_msdos password_pbkdf2 png probe reboot regexp reiserfs search search_fs_file search_fs_uuid search_label serial sleep \
    syslinuxcfg terminal test true xfs xzio";

impl Grub {
    /// The loader that starts from `place`.
    pub fn loader(&self, place: &BootPlace) -> Result<Loader> {
        let Some(uuid) = place.uuid.as_deref().filter(|uuid| is_plain(uuid)) else {
            return Err(Error::Invalid("the filesystem with /boot has no UUID for GRUB to find it by".into()));
        };
        let modules: Vec<&str> = MODULES.split_whitespace().collect();
        let image = self.mkimage("/EFI/BOOT", None, &modules)?;
        Ok(Loader { image, config: config::hands_over(uuid, &place.boot_dir) })
    }
}
