//! A guest's tree with changes held in memory: steps edit it, the plan prints it, applying writes it in one boot.
//!
//! [`Staged`] is itself a [`GuestFs`](guestfs::GuestFs) and [`GuestFsMut`](guestfs::GuestFsMut), so that a step sees what the steps before it did.
