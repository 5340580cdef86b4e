//! Kitex's names and ours: every function and option of its etcd extension, for users coming from Kitex or living
//! beside it.
//!
//! The extension is `github.com/kitex-contrib/registry-etcd`, today a front for `etcdkitex` of
//! `github.com/cloudwego-contrib/cwgo-pkg`. Keys and values are byte for byte the same ([`Kitex`](crate::format::Kitex)
//! is the default format), so that both sides find each other. Calls between the two need a Kitex service that speaks
//! gRPC.
//!
//! # Table
//!
//! | Kitex | here | Kitex's default | ours |
//! | --- | --- | --- | --- |
//! | `NewEtcdRegistry(endpoints, opts..)` | [`Registry::builder`], then [`Registry::registration`] | connects at once | no I/O before the server serves |
//! | `NewEtcdRegistryWithAuth(endpoints, user, password)` | [`RegistryBuilder::auth`] | no options, and no prefix: keys are `/echo/..` | all options; [`prefix("/")`](crate::RegistryBuilder::prefix) for those keys |
//! | `NewEtcdRegistryWithRetry(endpoints, config, opts..)` | the three options below | | |
//! | `retry.NewRetryConfig(..)` | [`RegistrationBuilder::kitex`] sets its three values, and more | | |
//! | `retry.WithMaxAttemptTimes`, `MaxAttemptTimes` | [`RegistrationBuilder::max_attempts`] | 5; 0 is without end | `None`, no limit; 0 is refused |
//! | `retry.WithObserveDelay`, `ObserveDelay` | [`RegistrationBuilder::check_interval`] | 30 s | 60 s, and a watch that reports at once |
//! | `retry.WithRetryDelay`, `RetryDelay` | [`RegistrationBuilder::retry_delay`] | 10 s | 250 ms, doubling to 2 s, at random below |
//! | `WithTLSOpt(cert, key, ca)` | [`RegistryBuilder::tls`]`(ClientTls::new().ca_file(ca)?.identity_files(cert, key)?)` | none | none |
//! | `WithAuthOpt(user, password)` | [`RegistryBuilder::auth`]; [`auth_with`](crate::RegistryBuilder::auth_with) for a password that changes | none | none |
//! | `WithDialTimeoutOpt` | [`RegistryBuilder::dial_timeout`] | no limit | 2 s for each member |
//! | `WithEtcdServicePrefix` | [`RegistryBuilder::prefix`] | `kitex/registry-etcd` | the same |
//! | `WithDefaultWeight` | [`RegistryBuilder::default_weight`] | 10 | 10 |
//! | `SetFixedAddress(registry, address)` | [`RegistrationBuilder::advertise`] | the listener's | the listener's |
//! | `KITEX_IP_TO_REGISTRY` | the same, behind `advertise` | the listener's | the listener's |
//! | `KITEX_PORT_TO_REGISTRY` | the same, behind `advertise` | the listener's | the listener's |
//! | `KITEX_ETCD_REGISTRY_LEASE_TTL` | the same, behind [`RegistrationBuilder::ttl`] | 60 s | 15 s |
//! | `registry.Info`: `ServiceName`, `Addr` | [`Instance::new`] | | |
//! | `registry.Info`: `Weight` | [`Instance::with_weight`] | 0, which readers take for theirs | 10 |
//! | `registry.Info`: `Tags` | [`Instance::with_tag`] | none | none |
//! | `Register` | [`Registration::layer`], or [`Registration::start`] | | |
//! | `Deregister` | [`Registration::deregister_on`], or [`Registration::deregister`] | no pause | a pause of 1 s, then calls have 25 s |
//! | `NewEtcdResolver(endpoints, opts..)` | [`Registry::builder`], then [`Registry::channel`] or [`Registry::discover`] | | |
//! | `NewEtcdResolverWithAuth(endpoints, user, password)` | [`RegistryBuilder::auth`] | no options, no prefix, weight 0 | all options |
//! | `Resolve` | [`Discover::snapshot`](crate::Discover::snapshot) | asked every 5 s | a watch |
//! | `Diff` | the stream that [`Discover`](crate::Discover) is | | |
//! | `Target`, `Name`, `GetPrefix`, `GetDefaultWeight` | not needed: they are for Kitex's own caches | | |
//!
//! # The preset
//!
//! [`RegistrationBuilder::kitex`] gives a registration Kitex's defaults where ours differ: a TTL of 60 s, 5 attempts,
//! up to 10 s between them, a read of the key every 30 s. And a propagation pause of 6 s, because Kitex clients ask
//! etcd every 5 s and would otherwise go on calling a server that has left. So that a graceful shutdown still takes
//! less than the 30 s that Kubernetes grants by default, [`drain_limit`](crate::RegistrationBuilder::drain_limit) is
//! 19 s instead of 25 s: 28.25 s in all.
//!
//! ```no_run
//! use tonic_etcd::{Instance, Registry};
//!
//! # fn example(address: std::net::SocketAddr) -> Result<(), tonic_etcd::ConfigError> {
//! let registry = Registry::builder(["http://127.0.0.1:2379"]).build()?;
//! let registration = registry.registration(Instance::new("echo", address)).kitex().build()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Where they differ
//!
//! Not everything is as it is there, on purpose:
//!
//! - **A TLS file that cannot be read** makes Kitex go on in plaintext, with a line in the log. Here it is an error
//!   before any connection is made, and nothing ever falls back to plaintext.
//! - **A fixed address** is registered under its own key in Kitex, and deregistered under the listener's: the key stays
//!   until its lease ends. Here the key that was written is the one that goes.
//! - **Giving up.** After five failures in a row, reads of the key included, a Kitex server is out of etcd until it is
//!   restarted, and only its log says so. Here no limit is the default. With one, the registration ends
//!   as [`RegistrationStatus::GaveUp`](crate::RegistrationStatus::GaveUp), which can be watched and waited for, and
//!   with a warning. Only failed attempts to register count: an etcd that is unreachable for an hour costs nothing, as
//!   long as it knows the lease when it is back.
//! - **A variable with a bad value** is ignored by Kitex where it is the TTL. Here each is an error.
//! - **Leaving** deletes the key in Kitex, also if a successor wrote it, and leaves the lease behind. Here the lease is
//!   revoked, and with it our own key alone.
//! - **Names that begin alike**: Kitex's resolver asks for `prefix/foo` and is given `foobar` as well. Here it is not.
//! - **Times.** A lost lease or key is put back within a second instead of half a minute; the waits before attempts are
//!   drawn at random, so that a fleet does not come at once; what etcd refuses is tried again after 10 s,
//!   and after 30 s where credentials or permissions are the reason, whatever
//!   [`retry_delay`](crate::RegistrationBuilder::retry_delay) says.
//!
//! [`Instance::new`]: crate::Instance::new
//! [`Instance::with_tag`]: crate::Instance::with_tag
//! [`Instance::with_weight`]: crate::Instance::with_weight
//! [`Registration::deregister`]: crate::Registration::deregister
//! [`Registration::deregister_on`]: crate::Registration::deregister_on
//! [`Registration::layer`]: crate::Registration::layer
//! [`Registration::start`]: crate::Registration::start
//! [`RegistrationBuilder::advertise`]: crate::RegistrationBuilder::advertise
//! [`RegistrationBuilder::check_interval`]: crate::RegistrationBuilder::check_interval
//! [`RegistrationBuilder::kitex`]: crate::RegistrationBuilder::kitex
//! [`RegistrationBuilder::max_attempts`]: crate::RegistrationBuilder::max_attempts
//! [`RegistrationBuilder::retry_delay`]: crate::RegistrationBuilder::retry_delay
//! [`RegistrationBuilder::ttl`]: crate::RegistrationBuilder::ttl
//! [`Registry::builder`]: crate::Registry::builder
//! [`Registry::channel`]: crate::Registry::channel
//! [`Registry::discover`]: crate::Registry::discover
//! [`Registry::registration`]: crate::Registry::registration
//! [`RegistryBuilder::auth`]: crate::RegistryBuilder::auth
//! [`RegistryBuilder::default_weight`]: crate::RegistryBuilder::default_weight
//! [`RegistryBuilder::dial_timeout`]: crate::RegistryBuilder::dial_timeout
//! [`RegistryBuilder::prefix`]: crate::RegistryBuilder::prefix
//! [`RegistryBuilder::tls`]: crate::RegistryBuilder::tls
