//! The options of a registration, and the registration that is built of them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;

use super::advertise::advertise;
use super::desired::{DesiredState, HealthSource, Spec};
use super::lease::{ClaimConfig, Claims, LeaseTask, Registrar, random};
use super::registration::{Registration, Shared, check_value};
use super::retry::RetryConfig;
use super::route;
use super::server::{DEFAULT_LIMIT, Drain};
use super::status::RegistrationStatus;
use crate::error::ConfigError;
use crate::instance::{Address, Host, Instance, ServiceName};
use crate::trouble::Trouble;

/// The options of a [`Registration`]. Made by [`Registry::registration`](crate::Registry::registration).
#[derive(Debug)]
#[must_use = "nothing is registered before build() and the server's start"]
pub struct RegistrationBuilder {
    registrar: Arc<Registrar>,
    instance: Instance,
    advertise: Option<String>,
    ttl: Option<Duration>,
    /// Whether Kitex's environment was asked for.
    is_kitex: bool,
    default_ttl: Duration,
    propagation_pause: Duration,
    drain_limit: Duration,
    retry: RetryConfig,
    health: Option<Arc<dyn HealthSource>>,
}

impl RegistrationBuilder {
    pub(crate) fn new(registrar: Arc<Registrar>, instance: Instance) -> Self {
        Self {
            registrar,
            instance,
            advertise: None,
            ttl: None,
            is_kitex: false,
            default_ttl: DEFAULT_TTL,
            propagation_pause: DEFAULT_PROPAGATION_PAUSE,
            drain_limit: DEFAULT_LIMIT,
            retry: RetryConfig::DEFAULT,
            health: None,
        }
    }

    /// The `host:port` to publish instead of the instance's own address, for a server behind a port mapping.
    ///
    /// Defaults to the instance's address; with the Kitex format, or after [`kitex`](Self::kitex), to what
    /// `KITEX_IP_TO_REGISTRY` and `KITEX_PORT_TO_REGISTRY` say before that. Where the instance's host is unspecified
    /// (`0.0.0.0`, `::`), it is that of `POD_IP`, or else the address that this host has on its route to etcd, or else to
    /// anywhere, or else the first IPv4 address of an interface that is neither loopback nor link-local, or the first such
    /// IPv6 address on a host without one. A host that is on no network publishes its loopback address, if a URL of etcd
    /// names this host, too.
    ///
    /// A loopback address is published as it is, with a warning unless etcd is on the loopback, too.
    pub fn advertise(mut self, address: impl Into<String>) -> Self {
        self.advertise = Some(address.into());
        self
    }

    /// How long the registration outlives a crash: 1 s to a day, in whole seconds (rounded up). Defaults to
    /// `KITEX_ETCD_REGISTRY_LEASE_TTL`, with the Kitex format or after [`kitex`](Self::kitex), or else to 15 s.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// How long [`Registration::deregister_on`] goes on serving after the leave was announced. Defaults to 1 s.
    pub fn propagation_pause(mut self, pause: Duration) -> Self {
        self.propagation_pause = pause;
        self
    }

    /// How long calls may take after the propagation pause, before they are ended with UNAVAILABLE; their connections
    /// are closed 250 ms later. Defaults to 25 s: with the deregistration (at most 3 s) and a pause of 1 s a whole
    /// shutdown takes less than the 30 s that Kubernetes grants. A longer pause, such as [`kitex`](Self::kitex) sets,
    /// wants a shorter limit or a longer grace period.
    pub fn drain_limit(mut self, limit: Duration) -> Self {
        self.drain_limit = limit;
        self
    }

    /// The longest first wait after a failed attempt to register; it doubles up to 2 s, or stays as it is if it is
    /// longer. Each wait is drawn at random from zero to that, so that many servers do not come at once. 1 ms to a
    /// day; defaults to 250 ms. Where etcd answers and refuses, the next attempt comes after 10 s, or 30 s if
    /// credentials are the reason.
    ///
    /// Kitex calls this `RetryDelay`.
    pub fn retry_delay(mut self, delay: Duration) -> Self {
        self.retry.retry_delay = delay;
        self
    }

    /// How many attempts to register may fail in a row, before the registration ends with
    /// [`RegistrationStatus::GaveUp`] and a warning; the server serves on. Defaults to 0, for no limit, as a server
    /// that gave up is lost until its next start.
    ///
    /// An attempt is a grant of the lease or a claim of the key. While a registration stands nothing is attempted: an
    /// unreachable etcd costs no attempts before it is back and has forgotten the lease.
    /// Nor does an attempt count that every member refuses for a reason of its own, such as too many requests: an etcd that
    /// is busy is asked again, up to ten seconds later.
    ///
    /// Kitex calls this `MaxAttemptTimes`.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.retry.max_attempts = attempts;
        self
    }

    /// How often the own key is read although nothing happened, give or take a fifth: 1 s to a day. Defaults to 60 s.
    /// A watch reports each change of the key at once; the check is for what a watch might miss.
    ///
    /// Kitex calls this `ObserveDelay`, and has no watch.
    pub fn check_interval(mut self, interval: Duration) -> Self {
        self.retry.check_interval = interval;
        self
    }

    /// Kitex's defaults, where ours differ: a TTL of 60 s, or what `KITEX_ETCD_REGISTRY_LEASE_TTL` says, a
    /// propagation pause of 6 s, for Kitex clients that ask every 5 s, [`retry_delay`](Self::retry_delay) 10 s,
    /// [`max_attempts`](Self::max_attempts) 5 and [`check_interval`](Self::check_interval) 30 s; and a
    /// [`drain_limit`](Self::drain_limit) of 19 s, so that with this pause a shutdown lasts 28.25 s at most
    /// (3 + 6 + 19 + 0.25 s) of the 30 s that Kubernetes grants. It replaces these six options; set others after it.
    ///
    /// [All of Kitex's options](crate::kitex) have a counterpart.
    pub fn kitex(mut self) -> Self {
        self.ttl = None;
        self.is_kitex = true;
        self.default_ttl = KITEX_TTL;
        self.propagation_pause = KITEX_PROPAGATION_PAUSE;
        self.drain_limit = KITEX_DRAIN_LIMIT;
        self.retry = RetryConfig::KITEX;
        self
    }

    /// Follows the health of `service` as it is set at `reporter`: the key is in etcd only while the service is
    /// SERVING. The name is the one in `grpc.health.v1`, `echo.Echo` for instance, or empty for the whole server,
    /// which is SERVING at a new reporter.
    ///
    /// Until the service is SERVING for the first time, the registration is held back. When its status changes or is
    /// cleared, the leave is announced and the key is deleted; the lease is kept, and with SERVING the key is put
    /// back, at most once a second ([`RegistrationStatus::NotServing`]). [`Registration::pause`] is independent of
    /// it: the key is present while the service is SERVING *and* the registration is not paused.
    ///
    /// [`Registration::deregister_on`] sets the service and the whole server to `NOT_SERVING` when its signal comes,
    /// before anything else.
    ///
    /// ```no_run
    /// use tonic_etcd::{Instance, Registry};
    /// use tonic_health::ServingStatus;
    /// use tonic_health::server::health_reporter;
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let address = "127.0.0.1:50051".parse::<std::net::SocketAddr>()?;
    /// let (reporter, health_server) = health_reporter();
    /// let registry = Registry::builder(["http://127.0.0.1:2379"]).build()?;
    /// let registration =
    ///     registry.registration(Instance::new("echo", address)).health(reporter.clone(), "echo.Echo").build()?;
    /// // Server::builder().layer(registration.layer()).add_service(health_server)..
    ///
    /// // Once the caches are warm:
    /// reporter.set_service_status("echo.Echo", ServingStatus::Serving).await;
    /// # drop(health_server);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "health")]
    pub fn health(mut self, reporter: tonic_health::server::HealthReporter, service: impl Into<String>) -> Self {
        self.health = Some(super::health::reported(reporter, service.into()));
        self
    }

    /// Checks all options and makes the registration. Nothing is registered yet, no I/O is done, and no runtime is
    /// needed.
    ///
    /// # Errors
    ///
    /// A bad service name, weight, TTL, advertised address or environment variable, or a time out of its range.
    pub fn build(self) -> Result<Registration, ConfigError> {
        let mut instance = self.instance;
        let service: ServiceName = instance.service.parse()?;
        let is_kitex = self.is_kitex || self.registrar.format.honours_kitex_environment();
        let variable = |name: &str| std::env::var(name).ok().filter(|_| is_kitex || !name.starts_with("KITEX_"));
        let route = |takes_v6| route::source(self.registrar.cluster.ip(), takes_v6);
        let interfaces = || Ok(if_addrs::get_if_addrs()?.into_iter().map(|interface| interface.ip()).collect());
        let (explicit, is_etcd_local) = (self.advertise.as_deref(), self.registrar.cluster.is_local());
        let advertised = advertise(explicit, &instance.address, is_etcd_local, variable, route, interfaces)?;
        instance.address = advertised.address;
        instance.check_publishable()?;
        if advertised_loopback(&instance.address) && !is_etcd_local {
            let (service, address) = (service.as_str(), &instance.address);
            tracing::warn!(service, %address, "other hosts cannot reach a loopback address: publish another, by advertise(..)");
        }
        let format = self.registrar.format.clone();
        check_value(&*format, &service, &instance)?;
        let ttl = if let Some(ttl) = self.ttl {
            check_ttl(ttl)?
        } else {
            let variable = variable(TTL_VARIABLE).filter(|value| !value.is_empty());
            variable.map_or(Ok(self.default_ttl), ttl_in)?
        };
        self.retry.check()?;
        let config = ClaimConfig {
            service: service.clone(),
            ttl,
            takes_over: advertised.is_bound,
            id: u128::from(random()) << 64 | u128::from(random()),
        };
        let address = instance.address.clone();
        let drain = Drain::new().limit(self.drain_limit).at(Some(address.to_string().into()));
        let (spec, specs) = watch::channel(Spec { instance, paused: false, leave: false });
        let (publisher, status) = watch::channel(RegistrationStatus::Unregistered);
        let desired = DesiredState::new(specs, self.health.clone());
        let trouble = Trouble::default();
        let task = LeaseTask::new(Claims::new(self.registrar, config), self.retry, desired, publisher, trouble.clone());
        Ok(Registration::new(Shared {
            address,
            service,
            format,
            spec,
            updates: Mutex::new(()),
            status,
            trouble,
            unstarted: Mutex::new(Some(task)),
            drain,
            propagation_pause: self.propagation_pause,
            health: self.health,
        }))
    }
}

fn advertised_loopback(address: &Address) -> bool {
    matches!(address.host(), Host::Ip(ip) if ip.is_loopback())
}

fn check_ttl(ttl: Duration) -> Result<Duration, ConfigError> {
    let seconds = ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() > 0));
    if (1..=MAX_TTL).contains(&seconds) {
        Ok(Duration::from_secs(seconds))
    } else {
        Err(ConfigError::Option { option: "ttl", value: format!("{ttl:?}"), expected: "1 s to 86400 s" })
    }
}

fn ttl_in(value: String) -> Result<Duration, ConfigError> {
    let seconds = value.parse().ok().filter(|seconds| (1..=MAX_TTL).contains(seconds));
    let expected = "whole seconds from 1 to 86400";
    let error = ConfigError::Environment { variable: TTL_VARIABLE, value, expected };
    seconds.map(Duration::from_secs).ok_or(error)
}

/// How long a lease lives without keepalives: an interval of 5 s + an answer within 2 s + a connect of 2 s + an
/// election of 2 s + one retry of 2 s are 13 s, so the loss of one member never costs the registration.
const DEFAULT_TTL: Duration = Duration::from_secs(15);

/// Kitex's default, for a client that notices a lost lease with a check every 30 s.
const KITEX_TTL: Duration = Duration::from_secs(60);

/// How long a server goes on serving after its leave was announced, so that clients can follow: a hundred times what a
/// watch needs. Clients that poll need more.
const DEFAULT_PROPAGATION_PAUSE: Duration = Duration::from_secs(1);

/// Kitex's clients ask etcd every 5 s, and then need a moment.
const KITEX_PROPAGATION_PAUSE: Duration = Duration::from_secs(6);

/// With that pause, what leaves a second and more of the 30 s that Kubernetes grants.
const KITEX_DRAIN_LIMIT: Duration = Duration::from_secs(19);

/// Kitex's variable for the TTL in seconds.
const TTL_VARIABLE: &str = "KITEX_ETCD_REGISTRY_LEASE_TTL";

/// The longest TTL: a day. A server that crashed would be listed for as long.
const MAX_TTL: u64 = 86_400;

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use futures_util::StreamExt;
    use tokio::time::{Instant, timeout};

    use super::*;
    use crate::error::RegistrationEnded;
    use crate::etcd::{Cluster, Endpoints, MAX_SEGMENT};
    use crate::format::{DecodeError, Decoded, Entry, Format, Kitex};

    /// An instance whose etcd is not there.
    pub(in crate::register) fn builder() -> RegistrationBuilder {
        builder_for(Arc::new(Kitex::new()))
    }

    fn builder_for(format: Arc<dyn Format>) -> RegistrationBuilder {
        let endpoints = Endpoints::new(&["http://127.0.0.1:1".into()], None, None, Duration::from_secs(1));
        let cluster = Cluster::new(endpoints.expect("a good URL"), None);
        let registrar = Registrar::new(Arc::new(cluster), "prefix/".into(), format);
        RegistrationBuilder::new(registrar, Instance::new("echo", std::net::SocketAddr::from(([127, 0, 0, 1], 1001))))
    }

    /// How long a registration with six attempts goes on.
    async fn lasts(builder: RegistrationBuilder) -> Duration {
        let began = Instant::now();
        let registration = builder.max_attempts(6).build().expect("a good instance");
        registration.start();
        assert_eq!(registration.registered().await, Err(RegistrationEnded));
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_registration_that_may_fail_three_times_gives_up_and_says_why() {
        let registration = builder().max_attempts(3).build().expect("a good instance");
        let changes = registration.status_changes();
        registration.start();
        assert_eq!(registration.registered().await, Err(RegistrationEnded), "the wait for it ends");
        let RegistrationStatus::GaveUp { attempts, reason } = registration.status() else {
            panic!("the status says what became of it: {:?}", registration.status());
        };
        assert_eq!(attempts, 3);
        assert!(reason.contains("grant") && reason.contains("127.0.0.1:1"), "{reason:?} names what failed and where");
        let seen: Vec<RegistrationStatus> = changes.collect().await;
        assert!(seen.last().is_some_and(RegistrationStatus::has_ended), "the stream of statuses ends: {seen:?}");
        registration.deregister().await;
        assert!(matches!(registration.status(), RegistrationStatus::GaveUp { .. }), "the status stays");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_a_registration_never_gives_up() {
        let registration = builder().build().expect("a good instance");
        registration.start();
        let ended = timeout(Duration::from_secs(600), registration.registered()).await;
        assert!(ended.is_err(), "ten minutes without etcd end nothing");
        assert_eq!(registration.status(), RegistrationStatus::Registering);
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_wait_after_a_failure_is_as_long_as_was_said() {
        // Waits are drawn at random: the sum of five up to an hour each is below a minute once in 10^11 times.
        let long = lasts(builder().retry_delay(Duration::from_secs(3600))).await;
        assert!(long > Duration::from_secs(60), "an hour at most, five times, took {long:?}");
        // Five waits of 6 s in all, six grants of 3 s, and 3 s to leave.
        let short = lasts(builder()).await;
        assert!(short < Duration::from_secs(30), "250 ms at most, and then up to 2 s, took {short:?}");
    }

    #[test]
    fn the_preset_has_kitex_s_defaults_and_what_follows_it_counts() {
        let seconds = Duration::from_secs;
        let kitex = builder().ttl(seconds(1)).max_attempts(1).kitex();
        assert_eq!(
            (kitex.ttl, kitex.default_ttl),
            (None, seconds(60)),
            "a TTL of 60 s, unless the variable says otherwise"
        );
        assert_eq!(kitex.propagation_pause, seconds(6), "longer than Kitex clients take to look again");
        let shutdown = seconds(3) + kitex.propagation_pause + kitex.drain_limit + Duration::from_millis(250);
        assert!(shutdown < seconds(30), "{shutdown:?} is less than Kubernetes grants");
        assert_eq!(kitex.retry.max_attempts, 5, "MaxAttemptTimes");
        assert_eq!(kitex.retry.check_interval, seconds(30), "ObserveDelay");
        assert_eq!(kitex.retry.retry_delay, seconds(10), "RetryDelay");
        let own = kitex.ttl(seconds(20)).max_attempts(0);
        assert_eq!((own.ttl, own.retry.max_attempts), (Some(seconds(20)), 0), "options behind it count");
    }

    #[test]
    fn times_out_of_their_range_are_refused_by_name() {
        let (never, ages) = (Duration::ZERO, Duration::from_secs(86_401));
        for (builder, option) in [
            (builder().retry_delay(never), "retry_delay"),
            (builder().retry_delay(ages), "retry_delay"),
            (builder().check_interval(Duration::from_millis(999)), "check_interval"),
            (builder().check_interval(ages), "check_interval"),
        ] {
            let error = builder.build().expect_err("it is out of range").to_string();
            assert!(error.contains(option), "{error} names {option}");
        }
    }

    /// Keys that end in so many bytes.
    #[derive(Debug)]
    struct Long(usize);

    impl Format for Long {
        fn default_prefix(&self) -> &'static str {
            "long"
        }

        fn segment(&self, _: &Entry<'_>) -> String {
            "x".repeat(self.0)
        }

        fn encode(&self, _: &Entry<'_>) -> Vec<u8> {
            Vec::new()
        }

        fn decode(&self, _: &str, _: &[u8]) -> Result<Decoded, DecodeError> {
            Err(DecodeError::new("it is only written"))
        }

        fn carries_draining(&self) -> bool {
            false
        }
    }

    #[test]
    fn a_key_that_readers_would_not_look_at_is_refused() {
        drop(builder_for(Arc::new(Long(MAX_SEGMENT))).build().expect("just short enough"));
        let error = builder_for(Arc::new(Long(MAX_SEGMENT + 1))).build().expect_err("too long");
        assert_eq!(error.to_string(), "bad format that ends a key in 513 bytes: expected at most 512");
    }
}
