//! The promises, kept on real etcd processes: one file each.
//!
//! One program, so that the library is linked once. The rig is public within it, as a library's
//! modules are: what only a later promise needs is not dead.

#![allow(clippy::missing_panics_doc, clippy::must_use_candidate, reason = "a panic is how a test fails")]

mod rig;

#[path = "../support/mod.rs"]
pub mod support;
