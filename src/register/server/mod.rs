//! Graceful shutdown of a server, with a limit: [`Drain`], and what it puts around a server's calls and connections.
//!
//! It works for any tonic server, with or without a registration in etcd, and for other servers of tower services.

mod call;
mod drain;
mod handle;
mod incoming;
mod layer;
mod metrics;
mod open_set;
mod places;
mod state;

pub(super) use self::drain::DEFAULT_LIMIT;
pub use self::drain::Drain;
pub use self::incoming::{Incoming, IncomingIo};
pub use self::layer::{DrainBody, DrainFuture, DrainLayer, DrainService};
