//! The options of a registration, and the registration that is built of them.

use std::net::IpAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;

use super::advertise::advertise;
use super::check::{check_value, warn_of_lost};
use super::desired::{DesiredState, HealthSource, Spec};
use super::lease::{ClaimConfig, Claims, LeaseTask, Registrar, random};
use super::registration::{Joined, Registration, Shared};
use super::retry::{RetryConfig, RetryOptions};
use super::route;
use super::server::{DEFAULT_LIMIT, Drain};
use super::status::RegistrationStatus;
use crate::error::ConfigError;
use crate::instance::{Address, Host, Instance, ServiceName};
use crate::targets::REGISTRATION;
use crate::trouble::Trouble;

/// The options of a [`Registration`]. Made by [`Registry::registration`](crate::Registry::registration).
#[derive(Debug)]
#[must_use = "nothing is registered before build() and the server's start"]
pub struct RegistrationBuilder {
    registrar: Arc<Registrar>,
    instance: Instance,
    advertise: Advertise,
    ttl: Option<Duration>,
    propagation_pause: Option<Duration>,
    drain_limit: Option<Duration>,
    retry: RetryOptions,
    /// For what is not given.
    preset: Preset,
    health: Option<Arc<dyn HealthSource>>,
}

impl RegistrationBuilder {
    pub(crate) fn new(registrar: Arc<Registrar>, instance: Instance) -> Self {
        Self {
            registrar,
            instance,
            advertise: Advertise::Found,
            ttl: None,
            propagation_pause: None,
            drain_limit: None,
            retry: RetryOptions::default(),
            preset: Preset::OWN,
            health: None,
        }
    }

    /// The address to publish instead of the instance's own, for a server behind a port mapping: `host:port` as text, a
    /// socket address, or an IP address with a port. For a host alone there is [`advertise_ip`](Self::advertise_ip).
    ///
    /// Defaults to the instance's address; with the Kitex format, or after [`kitex`](Self::kitex), to what
    /// `KITEX_IP_TO_REGISTRY` and `KITEX_PORT_TO_REGISTRY` say before that. Where the instance's host is unspecified
    /// (`0.0.0.0`, `::`), it is that of `POD_IP`, or else the address that this host has on its route to etcd, or on
    /// its default route where etcd's URL holds no IP address or one of this host, or else the first IPv4 address of an
    /// interface that is neither loopback nor link-local, or the first such IPv6 address on a host without one. A host
    /// that is on no network publishes its loopback address, if a URL of etcd names this host, too.
    ///
    /// A loopback address is published as it is, with a warning unless etcd is on the loopback, too.
    pub fn advertise<A>(mut self, address: A) -> Self
    where
        A: TryInto<Address>,
        A::Error: Into<ConfigError>,
    {
        self.advertise = Advertise::Address(address.try_into().map_err(Into::into));
        self
    }

    /// The IP address to publish, with the port of the instance's own address. The last one of this and
    /// [`advertise`](Self::advertise) counts.
    pub fn advertise_ip(mut self, ip: IpAddr) -> Self {
        let port = self.instance.address.port();
        self.advertise = Advertise::Address(Ok((ip, port).into()));
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
        self.propagation_pause = Some(pause);
        self
    }

    /// How long calls may take after the propagation pause, before they are ended with UNAVAILABLE; their connections
    /// are closed 250 ms later. Defaults to 25 s: with the deregistration (at most 3 s) and a pause of 1 s a whole
    /// shutdown takes less than the 30 s that Kubernetes grants. A longer pause, such as [`kitex`](Self::kitex) sets,
    /// wants a shorter limit or a longer grace period.
    pub fn drain_limit(mut self, limit: Duration) -> Self {
        self.drain_limit = Some(limit);
        self
    }

    /// The longest first wait after a failed attempt to register; it doubles up to 2 s, or stays as it is if it is
    /// longer. Each wait is drawn at random from zero to that, so that many servers do not come at once. 1 ms to a
    /// day; defaults to 250 ms. Where etcd answers and refuses, the next attempt comes after 10 s, or 30 s if
    /// credentials are the reason.
    ///
    /// Kitex calls this `RetryDelay`.
    pub fn retry_delay(mut self, delay: Duration) -> Self {
        self.retry.retry_delay = Some(delay);
        self
    }

    /// How many attempts to register may fail in a row, before the registration ends with
    /// [`RegistrationStatus::GaveUp`] and a warning; the server serves on. Defaults to `None`, for no limit, as a
    /// server that gave up is lost until its next start.
    ///
    /// An attempt is a grant of the lease or a claim of the key. While a registration stands nothing is attempted: an
    /// unreachable etcd costs no attempts before it is back and has forgotten the lease. Nor does an attempt count that
    /// every member refuses for a reason of its own, such as too many requests: an etcd that is busy is asked again, up
    /// to ten seconds later.
    ///
    /// Kitex calls this `MaxAttemptTimes`, and writes 0 for no limit.
    pub fn max_attempts(mut self, attempts: impl Into<Option<u32>>) -> Self {
        self.retry.max_attempts = Some(attempts.into());
        self
    }

    /// How often the own key is read although nothing happened, give or take a fifth: 1 s to a day. Defaults to 60 s.
    /// A watch reports each change of the key at once; the check is for what a watch might miss.
    ///
    /// Kitex calls this `ObserveDelay`, and has no watch.
    pub fn check_interval(mut self, interval: Duration) -> Self {
        self.retry.check_interval = Some(interval);
        self
    }

    /// Kitex's defaults, where ours differ: a TTL of 60 s, or what `KITEX_ETCD_REGISTRY_LEASE_TTL` says, a
    /// propagation pause of 6 s, for Kitex clients that ask every 5 s, [`retry_delay`](Self::retry_delay) 10 s,
    /// [`max_attempts`](Self::max_attempts) 5 and [`check_interval`](Self::check_interval) 30 s; and a
    /// [`drain_limit`](Self::drain_limit) of 19 s, so that with this pause a shutdown lasts 28.25 s at most
    /// (3 + 6 + 19 + 0.25 s) of the 30 s that Kubernetes grants. Each of these six options takes precedence where it is
    /// given, before or after this.
    ///
    /// [All of Kitex's options](crate::kitex) have a counterpart.
    pub fn kitex(mut self) -> Self {
        self.preset = Preset::KITEX;
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
        let is_kitex = self.preset.is_kitex || self.registrar.format.honours_kitex_environment();
        // A value that is not UTF-8 fails where it is read, and by name.
        let value = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        let variable = |name: &str| value(name).filter(|_| is_kitex || !name.starts_with("KITEX_"));
        let route = |takes_v6| route::source(self.registrar.cluster.ip(), takes_v6);
        let interfaces = || Ok(if_addrs::get_if_addrs()?.into_iter().map(|interface| interface.ip()).collect());
        let explicit = match self.advertise {
            Advertise::Found => None,
            Advertise::Address(address) => Some(address?),
        };
        let is_etcd_local = self.registrar.cluster.is_local();
        let advertised = advertise(explicit, &instance.address, is_etcd_local, variable, route, interfaces)?;
        instance.address = advertised.address;
        instance.check_publishable()?;
        if advertised_loopback(&instance.address) && !is_etcd_local {
            let (service, address) = (service.as_str(), &instance.address);
            tracing::warn!(
                target: REGISTRATION,
                service,
                %address,
                "other hosts cannot reach a loopback address: publish another, by advertise(..)"
            );
        }
        let format = self.registrar.format.clone();
        check_value(&*format, &service, &instance)?;
        warn_of_lost(&*format, &service, &instance, None);
        let ttl = if let Some(ttl) = self.ttl {
            check_ttl(ttl)?
        } else {
            let variable = variable(TTL_VARIABLE).filter(|value| !value.is_empty());
            variable.map_or(Ok(self.preset.ttl), ttl_in)?
        };
        let retry = self.retry.over(self.preset.retry);
        retry.check()?;
        if let Some(pause) = self.propagation_pause.filter(|pause| *pause > Duration::from_secs(MAX_TTL)) {
            let (option, value) = ("propagation_pause", format!("{pause:?}"));
            return Err(ConfigError::Option { option, value, expected: "at most 86400 s" });
        }
        let config = ClaimConfig {
            service: service.clone(),
            ttl,
            takes_over: advertised.is_bound,
            id: u128::from(random()) << 64 | u128::from(random()),
        };
        let address = instance.address.clone();
        let drain = Drain::new()
            .limit(self.drain_limit.unwrap_or(self.preset.drain_limit))
            .at(Some(address.to_string().into()));
        let spec = Arc::new(watch::Sender::new(Spec { instance, paused: false, leave: false }));
        let (publisher, status) = watch::channel(RegistrationStatus::Unregistered);
        let desired = DesiredState::new(&spec, self.health.clone());
        let (trouble, was_claimed) = (Trouble::default(), Arc::new(AtomicBool::new(false)));
        let task = LeaseTask::new(
            Claims::new(self.registrar, config, was_claimed.clone()),
            retry,
            desired,
            publisher,
            trouble.clone(),
        );
        Ok(Registration::new(Shared {
            address,
            service,
            format,
            spec,
            updates: Mutex::new(()),
            status,
            trouble,
            unstarted: Mutex::new(Some(task)),
            was_claimed,
            joined: Mutex::new(Joined::alone(drain)),
            propagation_pause: self.propagation_pause.unwrap_or(self.preset.propagation_pause),
            health: self.health,
        }))
    }
}

/// The address to publish, as far as it was given.
#[derive(Debug)]
enum Advertise {
    /// It is found in the environment, or is the instance's own.
    Found,
    /// This one, or what is wrong with it.
    Address(Result<Address, ConfigError>),
}

/// Values for options that are not given.
#[derive(Debug, Clone, Copy)]
struct Preset {
    /// Whether Kitex's environment counts, whatever the format.
    is_kitex: bool,
    ttl: Duration,
    propagation_pause: Duration,
    drain_limit: Duration,
    retry: RetryConfig,
}

impl Preset {
    const OWN: Self = Self {
        is_kitex: false,
        ttl: DEFAULT_TTL,
        propagation_pause: DEFAULT_PROPAGATION_PAUSE,
        drain_limit: DEFAULT_LIMIT,
        retry: RetryConfig::DEFAULT,
    };

    const KITEX: Self = Self {
        is_kitex: true,
        ttl: KITEX_TTL,
        propagation_pause: KITEX_PROPAGATION_PAUSE,
        drain_limit: KITEX_DRAIN_LIMIT,
        retry: RetryConfig::KITEX,
    };
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
    use std::future::ready;
    use std::sync::Arc;

    use futures_util::StreamExt;
    use tokio::time::{Instant, timeout};

    use super::*;
    use crate::etcd::{Cluster, Endpoints, MAX_SEGMENT};
    use crate::format::{DecodeError, Decoded, Entry, Format, Kitex};
    use crate::test_log::Log;

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
        registration.registered().await.expect_err("it gives up");
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_registration_that_may_fail_three_times_gives_up_and_says_why() {
        let registration = builder().max_attempts(3).build().expect("a good instance");
        let changes = registration.status_changes();
        registration.start();
        let ended = registration.registered().await.expect_err("the wait for it ends");
        assert_eq!(*ended.status(), registration.status());
        let says = format!("{ended:?}");
        assert!(says.starts_with("the registration has ended: gave up after 3 failed attempts: grant of"), "{says}");
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
    async fn a_registration_that_was_never_in_etcd_leaves_without_a_wait() {
        let registration = builder().build().expect("a good instance");
        let (log, _guard) = Log::capture();
        assert!(timeout(Duration::from_secs(20), registration.registered()).await.is_err(), "there is no etcd");
        let began = Instant::now();
        registration.deregister_on(ready(())).await;
        assert!(began.elapsed() <= Duration::from_millis(300), "no client knows of it: {:?}", began.elapsed());
        assert_eq!(registration.status(), RegistrationStatus::Gone);
        assert_eq!((log.count("left; it was never registered"), log.count("deregistered")), (1, 0));
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
    fn the_preset_has_kitex_s_defaults_and_each_option_takes_precedence_in_any_order() {
        let seconds = Duration::from_secs;
        let kitex = Preset::KITEX;
        assert_eq!(kitex.ttl, seconds(60), "unless the variable says otherwise");
        assert_eq!(kitex.propagation_pause, seconds(6), "longer than Kitex clients take to look again");
        let shutdown = seconds(3) + kitex.propagation_pause + kitex.drain_limit + Duration::from_millis(250);
        assert!(shutdown < seconds(30), "{shutdown:?} is less than Kubernetes grants");
        assert_eq!(kitex.retry.max_attempts, Some(5), "MaxAttemptTimes");
        assert_eq!(kitex.retry.check_interval, seconds(30), "ObserveDelay");
        assert_eq!(kitex.retry.retry_delay, seconds(10), "RetryDelay");
        let own = |builder: RegistrationBuilder| {
            builder.drain_limit(seconds(7)).propagation_pause(seconds(2)).max_attempts(None)
        };
        for builder in [own(builder()).kitex(), own(builder().kitex())] {
            let retry = builder.retry.over(builder.preset.retry);
            assert_eq!((retry.max_attempts, retry.retry_delay), (None, seconds(10)));
            let registration = builder.build().expect("a good instance");
            assert_eq!(
                (registration.drain().configured_limit(), registration.propagation_pause()),
                (seconds(7), seconds(2))
            );
        }
        let preset = builder().kitex().build().expect("a good instance");
        assert_eq!((preset.drain().configured_limit(), preset.propagation_pause()), (seconds(19), seconds(6)));
    }

    #[test]
    fn what_is_advertised_may_be_text_or_an_address_and_is_checked_when_it_is_built() {
        let ip: IpAddr = "10.0.0.7".parse().expect("an IP address");
        let published = |builder: RegistrationBuilder| builder.build().map(|built| built.address().to_string());
        for builder in [
            builder().advertise("10.0.0.7:1001"),
            builder().advertise("10.0.0.7:1001".to_owned()),
            builder().advertise((ip, 1001)),
            builder().advertise("else:1").advertise_ip(ip),
        ] {
            assert_eq!(published(builder).expect("a good address"), "10.0.0.7:1001");
        }
        for bad in ["10.0.0.7", "http://10.0.0.7:80", "0.0.0.0:80"] {
            let error = published(builder().advertise(bad)).expect_err("no client can use it");
            assert!(error.to_string().starts_with("bad address"), "{error}");
        }
    }

    #[test]
    fn times_out_of_their_range_are_refused_by_name() {
        let (never, ages) = (Duration::ZERO, Duration::from_secs(86_401));
        for (builder, option) in [
            (builder().retry_delay(never), "retry_delay"),
            (builder().retry_delay(ages), "retry_delay"),
            (builder().check_interval(Duration::from_millis(999)), "check_interval"),
            (builder().check_interval(ages), "check_interval"),
            (builder().max_attempts(0), "max_attempts"),
            (builder().propagation_pause(ages), "propagation_pause"),
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
