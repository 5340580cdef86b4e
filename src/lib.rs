//! Service discovery for tonic on etcd.
//!
//! A tonic server registers itself in etcd under its service's name, and stays registered while it serves. A tonic
//! client asks for the name and gets a channel that follows every server that joins or leaves within milliseconds,
//! sends no calls to those that crashed or froze, and keeps working while etcd is unreachable. Go services on the same
//! etcd are found, and find ours: those of [`Kitex`](format::Kitex), of grpc-go ([`EtcdNaming`](format::EtcdNaming)),
//! of go-zero ([`GoZero`](format::GoZero)) and of [`Kratos`](format::Kratos).
//!
//! The [guide] has a chapter on each part: for example [the channel](guide::channel), [servers](guide::servers),
//! [options](guide::options), [migrating from tonic's `Channel`](guide::from_tonic) and
//! [troubleshooting](guide::troubleshooting).
//!
//! # Vocabulary
//!
//! | word | meaning |
//! | --- | --- |
//! | service | the name that clients ask for: `echo` |
//! | instance | one server of a service: address, weight, tags |
//! | registration | one instance that is kept in etcd under a lease, and the handle to it |
//! | format | what keys and values look like in etcd |
//! | snapshot | every instance of a service at one etcd revision |
//! | discover | a tower `Discover`: the stream of changes between snapshots |
//! | channel | what a generated client sends its calls through: balanced over the instances of a service |
//! | subchannel | one instance as a channel sees it: its state, its connection, and the attempts to make one |
//! | policy | how the instance of a call is picked: the rule |
//! | ready set | the instances that are READY, and the picker over them |
//! | picker | what a policy makes of a ready set: it picks for each call |
//! | attempt | one try of a call |
//! | ejection | the time for which an instance that failed too often is not picked |
//!
//! # A server
//!
//! ```no_run
//! use tonic::transport::server::TcpIncoming;
//! use tonic_etcd::{Instance, Registry, shutdown_signal};
//! # #[derive(Clone)] struct Echo;
//! # impl tower::Service<http::Request<tonic::body::Body>> for Echo {
//! #     type Response = http::Response<tonic::body::Body>;
//! #     type Error = std::convert::Infallible;
//! #     type Future = std::future::Ready<Result<Self::Response, Self::Error>>;
//! #     fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
//! #         std::task::Poll::Ready(Ok(()))
//! #     }
//! #     fn call(&mut self, _: http::Request<tonic::body::Body>) -> Self::Future {
//! #         std::future::ready(Ok(http::Response::default()))
//! #     }
//! # }
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let registry = Registry::builder(["http://127.0.0.1:2379"]).build()?;
//! let incoming = TcpIncoming::bind("0.0.0.0:50051".parse()?)?;
//! let registration = registry.registration(Instance::new("echo", incoming.local_addr()?)).build()?;
//! // Echo is any generated server, or several of them as Routes.
//! registration.serve(Echo, incoming, shutdown_signal()).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # A client
//!
//! ```no_run
//! use tonic_etcd::Registry;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let registry = Registry::builder(["http://127.0.0.1:2379"]).build()?;
//! let channel = registry.channel("echo").build()?;
//! // let mut client = EchoClient::new(channel);
//! # Ok(())
//! # }
//! ```
//!
//! [`BalancedChannel`] says what the channel does, [`ChannelBuilder`] has its options, [`Policy`](policy::Policy) is
//! how to pick instances in a way of your own. [`Discover::balance_channel`] feeds tonic's own balancer instead. A
//! server can be in several registries at once ([`RegistrationSet`]) and a client can look in several
//! ([`RegistrySet`]), so that a service can move from one to the other. [`server::Drain`] shuts any tonic server down
//! gracefully, without etcd.
//!
//! # Logs
//!
//! Registrations, watches and connections log by `tracing` events: install a subscriber,
//! `tracing_subscriber::fmt().init()` for example. From `info` on they say what an operator has to know: each
//! registration that begins, is lost or ends, each server that joins, leaves or is ejected, and each outage of an etcd
//! member. Their targets are `tonic_etcd::registration`, `tonic_etcd::channel`, `tonic_etcd::discovery` and
//! `tonic_etcd::etcd`. [Logging](guide::logging) lists the messages. Calls are spans for OpenTelemetry:
//! [Tracing](guide::tracing) says what is in them. With the feature `metrics` there are counters, gauges and histograms
//! as well: [Metrics](guide::metrics) lists them.
//!
//! # Modules
//!
//! At the root is what a first program needs; the rest is in modules.
//!
//! | module | |
//! | --- | --- |
//! | [`guide`](mod@guide) | the guide, chapter by chapter |
//! | [`channel`] | what a channel reports of itself, its instances and the calls that it fails, and its service config |
//! | [`policy`], [`outlier`], [`retry`] | how instances are picked and left out, and calls retried |
//! | [`mod@format`] | what keys and values look like in etcd |
//! | [`registration`], [`server`] | the status of a registration; the server around it, or without one |
//! | [`snapshot`], [`address`], [`tags`] | sets of instances, and parts of what is known of one |
//! | [`inspect`] | what stands in etcd, key by key and lease by lease |
//! | [`testing`] | test benches |
//! | [`kitex`] | Kitex's names and ours |
//!
//! # Features
//!
//! Those for TLS are named like tonic's, and switch on none of tonic's.
//!
//! - `tls-ring` (default): TLS towards etcd and towards instances (`ClientTls`), with rustls and ring.
//! - `tls-aws-lc`: the same with rustls and aws-lc. With both, aws-lc is used; the process-wide default provider is
//!   ignored.
//! - `tls-native-roots`: with one of them, `ClientTls::native_roots` trusts the operating system's authorities.
//! - `tls-webpki-roots`: with one of them, `ClientTls::webpki_roots` trusts Mozilla's authorities.
//! - `serde`: `Serialize` for instances, snapshots and statuses, and `Deserialize` for [`ServiceName`], [`Address`],
//!   [`Tags`] and [`Instance`].
//! - `health`: `ChannelBuilder::health_check` leaves out servers that do not report SERVING, and
//!   `RegistrationBuilder::health` keeps such a server out of etcd.
//! - `metrics`: counters, gauges and histograms by the facade of that name, as [Metrics](guide::metrics) lists them.

// docs.rs names the features of each item; the internal one says nothing to users.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(docsrs, doc(auto_cfg(hide(feature = "_tls"))))]

#[cfg(all(feature = "_tls", not(any(feature = "tls-ring", feature = "tls-aws-lc"))))]
compile_error!("the feature _tls is internal: switch on tls-ring or tls-aws-lc");

mod backoff;
pub mod channel;
mod codes;
mod discover;
mod error;
mod etcd;
pub mod format;
pub mod guide;
mod instance;
pub mod kitex;
mod log_limit;
mod metrics;
#[cfg(feature = "_tls")]
mod pem;
mod register;
mod registry;
#[cfg(feature = "serde")]
mod serialized;
pub mod snapshot;
pub mod tags;
mod targets;
#[cfg(test)]
mod test_log;
mod time;
#[cfg(feature = "_tls")]
mod tls;
mod trouble;

pub use tower::discover::Change;

pub use self::channel::{BalancedChannel, ChannelBuilder, ChannelError};
pub use self::discover::Discover;
pub use self::error::{ConfigError, RegistryError, WeightRefusal};
pub use self::etcd::Credentials;
pub use self::instance::{Address, Instance, ServiceName};
pub use self::register::{
    Registration, RegistrationBuilder, RegistrationEnded, RegistrationSet, RegistrationStatus, StartError, server,
    shutdown_signal,
};
pub use self::registry::{Registry, RegistryBuilder, RegistrySet};
pub use self::tags::Tags;
#[cfg(feature = "_tls")]
#[cfg_attr(docsrs, doc(cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))))]
pub use self::tls::ClientTls;

/// The parts of an [`Address`].
pub mod address {
    pub use crate::instance::Host;
}

/// What stands in etcd, key by key and lease by lease: for programs that look for mistakes.
///
/// [`Registry::keys`](crate::Registry::keys), [`Registry::lease`](crate::Registry::lease) and
/// [`Registry::members`](crate::Registry::members) return it.
pub mod inspect {
    pub use crate::discover::{StoredKey, StoredKeys, Unusable};
    pub use crate::etcd::{Lease, MemberStatus};
}

/// How the instance of a call is picked: the policies of the crate, and the traits for one of your own.
///
/// [`ChannelBuilder::policy`](crate::ChannelBuilder::policy) takes one. Which?
///
/// | policy | for |
/// | --- | --- |
/// | [`LeastRequest`](crate::policy::LeastRequest) | most services: the default |
/// | [`PeakEwma`](crate::policy::PeakEwma) | many short calls of one kind, over instances or networks that differ |
/// | [`RingHash`](crate::policy::RingHash) | caches and sessions: calls with one key go to one instance |
/// | [`PickFirst`](crate::policy::PickFirst) | one active server at a time |
/// | [`WeightedRoundRobin`](crate::policy::WeightedRoundRobin) | calls that cost about the same, shared exactly by weight |
/// | [`WeightedRandom`](crate::policy::WeightedRandom) | very many clients with few calls each |
///
/// # Shedding
///
/// An instance sheds a call with `RESOURCE_EXHAUSTED`, with a push-back (`grpc-retry-pushback-ms`), or by refusing its
/// stream. That takes no time, so the instance would look idle. Until the push-back ends, 500 ms without one and five
/// seconds at most, fifteen of sixteen calls that would go there go elsewhere; the others show whether it sheds all of
/// them. Where all instances shed, calls are shared as ever. Two policies let calls go where they belong in any case:
/// [`RingHash`](crate::policy::RingHash) and [`PickFirst`](crate::policy::PickFirst).
pub mod policy {
    pub use crate::channel::policy::candidate::Candidate;
    pub use crate::channel::policy::{
        CallHead, LeastRequest, Needs, PeakEwma, PickArgs, PickFirst, Picker, Policy, RingHash, WeightedRandom,
        WeightedRoundRobin,
    };
}

/// When an instance whose calls fail is left out for a while, and what counts as a failure.
pub mod outlier {
    pub use crate::channel::outlier::{FailurePercentage, Outcome, OutlierDetection, StatusOrigin, SuccessRate};
}

/// When calls that fail are retried.
pub mod retry {
    pub use crate::channel::config::budget::RetryBudget;
    pub use crate::channel::config::retry::RetryPolicy;
    pub use crate::channel::config::throttling::RetryThrottling;
}

/// What happens to a registration, as a stream.
pub mod registration {
    pub use crate::register::StatusChanges;
}

/// Test benches for code of your own.
pub mod testing {
    pub use crate::channel::picks::tester::{PolicyTester, TestPick};
}
