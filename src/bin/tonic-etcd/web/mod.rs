//! The registry to a page in browsers, live.
//!
//! # Layout
//!
//! | file | what flows through it |
//! | --- | --- |
//! | `feed` | the registry to the board |
//! | `board` | snapshots to what is known, and to what changed |
//! | `wire` | what is known to the JSON that the page reads |
//! | `figures` | a file of figures to the board |
//! | `hub` | the board to every open page |
//! | `server` | connections to requests, within limits |
//! | `guard` | requests to those that a page of this server makes |
//! | `route` | requests to answers |
//! | `stall` | writes to an error, where the other end does not read |
//! | `page/` | the page itself |

pub(crate) mod board;
pub(crate) mod feed;
pub(crate) mod figures;
pub(crate) mod guard;
pub(crate) mod hub;
pub(crate) mod route;
pub(crate) mod server;
mod stall;
mod wire;
