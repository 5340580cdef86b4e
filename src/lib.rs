//! Service discovery for tonic on etcd.
//!
//! A tonic server adds one layer and appears in etcd under its service name. A tonic client asks for a service by name
//! and gets a channel that follows every server that joins or leaves within milliseconds, sends no calls to those that
//! crashed or froze, and keeps working while etcd is away. Go services on the same etcd are found, and find ours: those of
//! [`Kitex`], of grpc-go ([`EtcdNaming`]), of go-zero ([`GoZero`]) and of [`Kratos`].
//!
//! # Vocabulary
//!
//! | word | meaning |
//! | --- | --- |
//! | service | the name that clients ask for: `echo` |
//! | instance | one server of a service: address, weight, tags |
//! | registration | the act and the handle of keeping one instance in etcd under a lease |
//! | format | how keys and values look in etcd |
//! | snapshot | every instance of a service at one etcd revision |
//! | discover | a tower `Discover`: the stream of changes between snapshots |
//! | channel | what a generated client sends its calls through: balanced over the instances of a service |
//! | subchannel | the channel's connection to one instance, and the attempts to make it |
//! | policy | how the instance of a call is chosen: the rule |
//! | picker | what a policy makes of the instances that are READY: it chooses for each call |
//! | ejection | the time for which an instance that failed too often is not picked |
//!
//! # A server
//!
//! ```no_run
//! use tonic::transport::{Server, server::TcpIncoming};
//! use tonic_etcd::{Instance, Registry, shutdown_signal};
//! # use tonic::server::NamedService;
//! # #[derive(Clone)] struct Echo;
//! # impl NamedService for Echo { const NAME: &'static str = "echo"; }
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
//! Server::builder()
//!     .layer(registration.layer())
//!     .add_service(Echo) // any generated server
//!     .serve_with_incoming_shutdown(registration.incoming(incoming), registration.deregister_on(shutdown_signal()))
//!     .await?;
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
//! [`BalancedChannel`] says what the channel does, [`ChannelBuilder`] has its options, [`Policy`] is how to choose in a
//! way of your own. [`Discover::balance_channel`] feeds tonic's own balancer instead. A server can be in several registries
//! at once ([`RegistrationSet`]) and a client can look in several ([`RegistrySet`]), so that a service can move from one
//! to the other.
//!
//! # Layout
//!
//! A module imports only from lower floors; neighbours on a floor do not know each other.
//!
//! | floor | modules |
//! | --- | --- |
//! | 4 | this file: words, examples, re-exports |
//! | 3 | `registry`: the builder, and the one place that ties both sides together |
//! | 2 | `discover`: etcd to snapshots to changes. `register`: an instance to etcd, and the drain of a server |
//! | 2 | `channel`: calls to instances, wherever those are known from |
//! | 1 | `etcd`: the cluster: a connection a member, deadlines, logins, lists and watches |
//! | 0 | `instance`, `snapshot`, `format`, `backoff`, `time`, `error`: pure |
//! | 0 | `tls`, `pem`: certificates from files and memory, and sessions over any bytes, for `etcd` and `channel` |
//!
//! # Features
//!
//! Those for TLS are named like tonic's, and switch on none of tonic's.
//!
//! - `tls-ring` (default): TLS towards etcd and towards instances (`ClientTls`), with rustls and ring.
//! - `tls-aws-lc`: the same with rustls and aws-lc. With both, aws-lc is used; what the process has for a default provider
//!   does not matter.
//! - `tls-native-roots`: with one of them, `ClientTls::native_roots` trusts the operating system's authorities.
//! - `tls-webpki-roots`: with one of them, `ClientTls::webpki_roots` trusts Mozilla's authorities.
//! - `health`: `ChannelBuilder::health_check` leaves out servers that say they are not well, and
//!   `RegistrationBuilder::health` keeps such a server out of etcd.

#[cfg(all(feature = "_tls", not(any(feature = "tls-ring", feature = "tls-aws-lc"))))]
compile_error!("the feature _tls is internal: switch on tls-ring or tls-aws-lc");

mod backoff;
mod channel;
mod discover;
mod error;
mod etcd;
mod format;
mod instance;
pub mod kitex;
#[cfg(feature = "_tls")]
mod pem;
mod register;
mod registry;
mod snapshot;
mod time;
#[cfg(feature = "_tls")]
mod tls;

pub use tower::discover::Change;

pub use self::channel::{
    BalancedChannel, Candidate, ChannelBuilder, Connectivity, FailurePercentage, InstanceChanges, InstanceStatus,
    LeastRequest, Outcome, OutlierDetection, PeakEwma, PickFirst, Picker, Policy, PolicyTester, ResponseBody,
    ResponseFuture, RetryPolicy, RetryThrottling, RingHash, ServiceConfig, ServiceConfigError, StatusOrigin,
    SuccessRate, TestPick, WaitForReady, WeightedRandom, WeightedRoundRobin,
};
pub use self::discover::Discover;
pub use self::error::{ConfigError, RegistrationEnded, RegistryError};
pub use self::etcd::Credentials;
pub use self::format::{DecodeError, Decoded, Entry, EtcdNaming, Format, GoZero, Kitex, Kratos};
pub use self::instance::{Address, DEFAULT_WEIGHT, Host, Instance, ServiceName};
pub use self::register::{
    Registration, RegistrationBuilder, RegistrationSet, RegistrationStatus, StatusChanges, server, shutdown_signal,
};
pub use self::registry::{Registry, RegistryBuilder, RegistrySet};
pub use self::snapshot::{Member, MemberState, Snapshot};
#[cfg(feature = "_tls")]
pub use self::tls::ClientTls;
