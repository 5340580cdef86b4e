//! The promises, kept on real etcd processes: one file each.
//!
//! One program, so that the library is linked once. The rig is public within it, as a library's
//! modules are: what only a later promise needs is not dead.

// Processes are stopped and ended with signals.
#![cfg(unix)]
#![allow(clippy::missing_panics_doc, clippy::must_use_candidate, reason = "a panic is how a test fails")]

mod auth;
mod balanced;
mod beyond_tonic;
mod channel;
mod channel_faults;
#[cfg(feature = "metrics")]
mod dashboard;
mod drain;
mod etcd_away;
mod examples;
mod flags;
mod fleet;
mod formats;
mod found;
mod graceful;
mod grpc_proxy;
mod half_open;
#[cfg(feature = "health")]
mod health;
mod herd;
mod inside;
mod inspected;
mod interop;
mod kitex;
mod large;
mod leaves;
mod logins;
mod mass_expiry;
mod members;
mod mistakes;
mod operated;
mod poison;
mod processes;
#[cfg(feature = "cli")]
mod program;
#[cfg(feature = "cli")]
mod program_browser;
#[cfg(feature = "cli")]
mod program_check;
#[cfg(feature = "cli")]
mod program_page;
#[cfg(feature = "cli")]
mod program_top;
mod put_back;
mod replaced;
mod reweighted;
mod rig;
mod runtimes;
mod secrets;
#[cfg(feature = "health")]
mod served;
mod several;
mod shared;
mod slow;
mod soak;
mod spans;
mod strangers;
mod tls_to_etcd;
mod tls_to_instances;

#[path = "../support/mod.rs"]
pub mod support;
