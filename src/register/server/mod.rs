//! The server around a registration: its calls and connections, counted and drained.

mod drain;
mod incoming;
mod layer;

pub(super) use self::drain::Drain;
pub use self::incoming::{Incoming, IncomingIo};
pub use self::layer::{DrainBody, DrainFuture, DrainLayer, DrainService};
