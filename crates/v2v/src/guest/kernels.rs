//! A guest's kernels.

/// One kernel of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Its release, as `uname -r` says and /lib/modules has it: `6.1.0-13-amd64`.
    pub version: String,
    /// The image, as a path in the guest: `/boot/vmlinuz-6.1.0-13-amd64`.
    pub image: String,
    /// The initrd, likewise.
    pub initrd: Option<String>,
}
