//! From an address to an HTTP/2 connection to its end.

pub(crate) mod connect;
pub(crate) mod connection;
pub(crate) mod frames;
pub(crate) mod pings;
pub(crate) mod request_body;
pub(crate) mod socket;
pub(crate) mod status;
#[cfg(feature = "_tls")]
pub(crate) mod tls;
