//! The programs that change guests and move trees of files: on small guests that mke2fs makes and on a real Debian one,
//! checked by the filesystems' own tools, GNU tar and OpenSSL.

#[path = "virt_write/archives.rs"]
mod archives;
#[path = "virt_write/changes.rs"]
mod changes;
#[path = "virt_write/guest.rs"]
mod guest;
#[path = "virt_write/safety.rs"]
mod safety;
