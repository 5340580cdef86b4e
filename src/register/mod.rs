//! From an instance to a key in etcd that stays: the registration, its lease, and the server around it.
//!
//! # Layout
//!
//! The two rooms do not know each other. `server` knows none of the other files, `lease` only `desired`, `retry` and
//! `status`.
//!
//! | module | what flows through it |
//! | --- | --- |
//! | `builder`, `advertise`, `route` | options, the environment, routes and network interfaces, to a registration |
//! | `check` | an instance, to what is wrong with it or lost of it in its format |
//! | `registration`, `set` | what handles ask for, to the two rooms: one registration, or all those of a server |
//! | `serve` | a tonic server, served with all of its places |
//! | `desired`, `retry`, `status`, `health` | what is wanted, how often it is tried, and how far it came |
//! | `signal` | SIGTERM and ctrl-c, to a future |
//! | `lease/` | the desired state, to a lease and a key in etcd |
//! | `lease/task` | the state machine: desired state, answers and events, to the next step |
//! | `lease/claims` | the leases and keys that may exist, and the calls that make and unmake them |
//! | `lease/setbacks` | failures, to when it is tried again, to the tasks that wait and to the log |
//! | `lease/keepalive` | leases, to keepalives over one stream per member |
//! | `lease/leave` | leases and keys that may exist, out of etcd within a limit |
//! | `lease/reports`, `lease/metrics` | what becomes of a registration, to its handles and to the metrics |
//! | `lease/own_key` | a watch of the own key, to its latest value |
//! | `server/` | a server's calls and connections, to their end. Knows neither registrations nor etcd |
//! | `server/drain` | the public face: a limit, and three places in a server |
//! | `server/layer`, `server/call` | a call, to its response or to UNAVAILABLE at the limit |
//! | `server/incoming` | a connection, to its end, or to errors after the limit |
//! | `server/handle` | what starts with a server, and its drain |
//! | `server/places` | which of the places were used, to a warning that names a forgotten one |
//! | `server/state`, `server/open_set` | a signal, to the end of all that is open at the limit |

mod advertise;
mod builder;
mod check;
mod desired;
#[cfg(feature = "health")]
mod health;
mod lease;
mod registration;
mod retry;
mod route;
mod serve;
pub mod server;
mod set;
mod signal;
mod status;
#[cfg(test)]
mod tests;

pub use self::builder::RegistrationBuilder;
pub(crate) use self::lease::Registrar;
pub use self::registration::Registration;
pub use self::set::RegistrationSet;
pub use self::signal::shutdown_signal;
pub use self::status::{RegistrationEnded, RegistrationStatus, StartError, StatusChanges};
