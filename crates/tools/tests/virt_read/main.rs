//! The programs that look into guests, beside libguestfs's.

mod diff;
mod inspector;
mod log;
mod ls;
mod phony;
mod windows;
