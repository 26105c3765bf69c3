//! Many conversions as one piece of work: a plan that a person can edit, N of them at a time, and state in files, so that whatever
//! ends the work it goes on where it was.
//!
//! Each conversion is a process of its own, the same program with one guest: a hostile guest takes down itself only. The state of a
//! guest is a folder beside the plan; whoever converts it holds its lock. So the same plan can be worked on by one process here
//! ([`scheduler`]) or by an engine that has many machines ([`slurm`], [`kubernetes`]), which call [`attempt`] for one guest each.

pub mod attempt;
pub mod child;
pub mod discover;
pub mod events;
pub mod files;
pub mod html;
pub mod kubernetes;
mod limits;
pub mod look;
pub mod phase;
pub mod plan;
pub mod plan_text;
pub mod scheduler;
pub mod slurm;
pub mod state;

pub use plan::Plan;
pub use state::State;
