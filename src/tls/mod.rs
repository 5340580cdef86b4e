//! TLS towards etcd and towards instances: what is trusted, what is shown, and the sessions made with that.
//!
//! # Layout
//!
//! | file | what flows through it |
//! | --- | --- |
//! | `config` | the user's options to a configuration of rustls |
//! | `reload` | certificates from disk, read again before each connection |
//! | `session` | bytes to a session with a server |

mod config;
mod reload;
mod session;

pub use self::config::ClientTls;
pub(crate) use self::reload::Peer;
pub(crate) use self::session::{HINT_ON_BREAK, TlsClient, TlsError, hint};

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
