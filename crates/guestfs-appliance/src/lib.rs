//! The appliance: a small virtual machine with our kernel and agent that touches guests' filesystems.
//!
//! [`Appliance`] boots one in QEMU; the session it gives speaks the [`protocol`] with the [`agent`] inside. The
//! host never mounts anything, and takes what comes from the machine for as hostile as the guest itself.
//!
//! Its two files, a kernel and an initramfs, are built by scripts/build-kernel and scripts/build-agent and found
//! by [`locate`].

#![deny(unsafe_code)]

mod accel;
pub mod agent;
mod appliance;
pub mod checkup;
mod connection;
pub mod distro_kernel;
#[doc(hidden)]
pub mod fuzzing;
pub mod initramfs;
pub mod locate;
mod machine;
mod monitor;
mod on_kvm;
mod on_qemu;
pub mod protocol;
mod qemu;
mod qmp;
mod relay;
mod session;
mod sys;
pub mod template;
mod tools;

pub use accel::Accel;
pub use appliance::Appliance;
pub use connection::Limits;
pub use session::ApplianceSession;
