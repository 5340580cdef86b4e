//! The server around a registration: its calls and connections, counted and drained.

mod call;
mod incoming;
mod layer;
mod open_set;
mod state;

pub use self::incoming::{Incoming, IncomingIo};
pub use self::layer::{DrainBody, DrainFuture, DrainLayer, DrainService};
pub(super) use self::state::DrainState;
