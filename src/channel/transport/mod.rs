//! An address becomes an HTTP/2 connection, requests and responses travel on it, and it ends. The only room that names
//! h2.
//!
//! # Layout
//!
//! | file | what flows through it |
//! | --- | --- |
//! | `config` | options of a channel -> how its connections are made and kept |
//! | `connect`, `connector` | an address -> a connection whose server has sent its SETTINGS |
//! | `names` | a name -> its addresses, by one lookup at a time |
//! | `connection`, `pings`, `alarm` | a connection -> its end: reads, writes, keepalive, windows |
//! | `gate`, `uplink` | calls -> h2, as far as the socket takes them |
//! | `socket`, `frames` | bytes -> what h2 does not tell: SETTINGS, GOAWAY, which streams were written |
//! | `exchange` | a request head and its body -> a response head and its body, or an error that says what it proves |
//! | `error` | errors of h2 -> what they prove |
//! | `request_body`, `body_sender` | the request body, kept for a replay until the response begins, and sent on after that |
//! | `incoming_body` | DATA and trailers of a response, its window given back |

mod alarm;
mod body_sender;
mod config;
mod connect;
mod connection;
mod connector;
mod error;
mod exchange;
mod frames;
mod gate;
mod incoming_body;
mod names;
mod pings;
mod request_body;
mod socket;
mod uplink;

#[cfg(test)]
mod tests;

pub(crate) use self::body_sender::BodySender;
pub(crate) use self::config::TransportConfig;
pub(crate) use self::connect::connect;
pub(crate) use self::connection::{Connection, ConnectionDriver, ConnectionObserver, Ended, SHUTDOWN};
pub(crate) use self::connector::Connector;
pub(crate) use self::error::{AttemptError, TransportError};
pub(crate) use self::exchange::{Exchange, Transport};
pub(crate) use self::incoming_body::IncomingBody;
pub(crate) use self::request_body::RequestBody;
