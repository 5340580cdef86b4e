//! The etcd cluster: calls that find a member which answers, lists and watches of a range, and leases.
//!
//! # Layout
//!
//! A file imports only from files further down.
//!
//! | file | what flows through it |
//! | --- | --- |
//! | `source` | a list, then events, of one range: what discovery and a registration's own key follow |
//! | `attempts` | its failures, to the time of the next attempt |
//! | `cluster` | the members of now, which others replace when other endpoints are named |
//! | `generation` | a call, to one member after another, and the events that its end causes |
//! | `pace` | attempts of all that failed, to turns: one budget a process |
//! | `streams`, `shared_stream` | watches to the one stream on their member, and its responses back to them |
//! | `spread` | which member that is, by chance, and again after failures |
//! | `survey` | asks members for the id of their cluster and holds back answers that may not count |
//! | `members` | index to connection: the pool, the member that is asked first, outages |
//! | `calls`, `scan`, `watch` | what is asked on one connection: unary calls, paged lists, the events of a range |
//! | `connection` | one connection to one member: its login, deadlines, the kinds of errors |
//! | `failure` | errors of etcd-client to kinds, with a hint for the user |
//! | `login` | one login at a time for all connections; credentials, kept from etcd for a while once it refused them |
//! | `credentials` | user and password, from a value or a provider |
//! | `endpoints` | the members that were named last, asked for again when one fails |
//! | `asked` | a function of the user's that is asked again and again |
//! | `token` | what a login brought, shared by all members; the channel that adds it to requests |
//! | `target`, `connects`, `tls` | URLs to dialled members; attempts to dial; sessions over TCP |
//! | `routes`, `silence` | ids of watches to watches; what a silent stream is asked; both pure |
//! | `cluster_id` | reports of members to a verdict on which of them are used; pure |
//! | `metrics` | what happens to watches and calls, to the metrics |
//! | `reports` | what etcd reports of a lease and of a member |
//! | `kv`, `range`, `limits` | a key with its value, ranges of keys, the times that calls may take |

mod asked;
mod attempts;
mod calls;
mod cluster;
mod cluster_id;
mod connection;
mod connects;
mod credentials;
mod endpoints;
mod failure;
mod generation;
mod kv;
mod limits;
mod login;
mod members;
mod metrics;
mod pace;
mod range;
mod reports;
mod routes;
mod scan;
mod shared_stream;
mod silence;
mod source;
mod spread;
mod streams;
mod survey;
mod target;
#[cfg(feature = "_tls")]
mod tls;
mod token;
mod watch;

pub(crate) use self::calls::{Claimed, hex};
pub(crate) use self::cluster::Cluster;
pub(crate) use self::connection::Connection;
pub use self::credentials::Credentials;
pub(crate) use self::credentials::Provider;
pub(crate) use self::endpoints::{Endpoints, EndpointsProvider};
pub(crate) use self::generation::Generation;
pub(crate) use self::kv::{Kv, MAX_SEGMENT, MAX_VALUE};
pub(crate) use self::limits::{CALL_LIMIT, CLAIM_LIMIT, DENIED_PAUSE, REFUSED_PAUSE, SPLIT_PAUSE};
pub(crate) use self::metrics::{Followed, ListCause, WatchMetrics};
pub(crate) use self::range::Range;
pub use self::reports::{Lease, MemberStatus};
pub(crate) use self::scan::Scan;
pub(crate) use self::source::{Source, Update};
pub(crate) use self::target::{Tls, without_user};
pub(crate) use self::watch::Event;
