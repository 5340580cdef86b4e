//! The options of a registry, checked before any I/O.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use super::Registry;
use crate::discover::{BYTES_PER_INSTANCE, DEFAULT_HOLD, Layout, Limits, Watchers};
use crate::error::ConfigError;
use crate::etcd::{Cluster, Credentials, Endpoints, EndpointsProvider, Provider, Tls, without_user};
use crate::format::{Format, Kitex};
use crate::instance::Instance;
use crate::register::Registrar;
#[cfg(feature = "_tls")]
use crate::tls::ClientTls;

/// The options of a [`Registry`].
#[must_use = "a builder does nothing before build()"]
pub struct RegistryBuilder {
    endpoints: Vec<String>,
    endpoints_provider: Option<EndpointsProvider>,
    prefix: Option<String>,
    format: Arc<dyn Format>,
    default_weight: u16,
    dial_timeout: Duration,
    removal_hold: Option<Duration>,
    max_instances: usize,
    max_service_bytes: Option<usize>,
    provider: Option<Provider>,
    tls: Option<Tls>,
}

impl Registry {
    /// A registry on the etcd cluster of these members, as URLs: `http://10.0.0.1:2379`.
    ///
    /// `host:port` alone is taken as `https` if [`tls`](RegistryBuilder::tls) is set, as `http` otherwise. Name several
    /// members: when one fails, the next is asked. A text may name several with commas between, as a variable of the
    /// environment does; [`from_env`](Self::from_env) reads etcdctl's.
    pub fn builder<E>(endpoints: impl IntoIterator<Item = E>) -> RegistryBuilder
    where
        E: Into<String>,
    {
        RegistryBuilder::new(endpoints.into_iter().map(Into::into).collect())
    }
}

impl RegistryBuilder {
    fn new(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            endpoints_provider: None,
            prefix: None,
            format: Arc::new(Kitex::new()),
            default_weight: Instance::DEFAULT_WEIGHT,
            dial_timeout: DEFAULT_DIAL_TIMEOUT,
            removal_hold: Some(DEFAULT_HOLD),
            max_instances: Limits::default().instances,
            max_service_bytes: None,
            provider: None,
            tls: None,
        }
    }

    /// What every key begins with. Defaults to the format's own: `kitex/registry-etcd` for [`Kitex`], `/microservices`
    /// for [`Kratos`](crate::format::Kratos), nothing for [`EtcdNaming`](crate::format::EtcdNaming) and
    /// [`GoZero`](crate::format::GoZero).
    ///
    /// A slash at the end changes nothing, one at the beginning is kept.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = Some(prefix.into());
        self
    }

    /// How instances look in etcd: [`Kitex`], [`EtcdNaming`](crate::format::EtcdNaming),
    /// [`GoZero`](crate::format::GoZero), [`Kratos`](crate::format::Kratos), or one of your own. Defaults to [`Kitex`].
    pub fn format(mut self, format: impl Format) -> Self {
        self.format = Arc::new(format);
        self
    }

    /// The weight of instances that state none when they are read, 1 to 65,535. Defaults to 10, as Kitex does.
    pub fn default_weight(mut self, weight: u16) -> Self {
        self.default_weight = weight;
        self
    }

    /// How long connecting to one etcd member may take. Defaults to 2 s.
    pub fn dial_timeout(mut self, timeout: Duration) -> Self {
        self.dial_timeout = timeout;
        self
    }

    /// How long instances stay known when more than half of a service disappears without an announcement. Defaults to
    /// 60 s; `None` switches it off.
    ///
    /// A crash of all servers and the end of all leases because etcd stood still look the same from here, and taking
    /// down servers that are fine would be worse than calling dead ones a little longer. A service of one instance that
    /// crashes counts: it is listed for its TTL and this time.
    pub fn removal_hold(mut self, hold: impl Into<Option<Duration>>) -> Self {
        self.removal_hold = hold.into();
        self
    }

    /// How many instances of one service clients know at most, counted by their keys, 1 to 1,000,000. Defaults to
    /// 10,000: keys that are written without end, by mistake or otherwise, must not fill the memory of every client.
    ///
    /// Keys beyond are left out, the last ones of a list first. The log says so, and so does
    /// [`Snapshot::cut_off`](crate::snapshot::Snapshot::cut_off). One that was left out comes in soon after others
    /// left: within 5 s, or a minute where that goes on and on. A channel to a service of thousands is best given a
    /// [`subset`](crate::ChannelBuilder::subset).
    pub fn max_instances(mut self, instances: usize) -> Self {
        self.max_instances = instances;
        self
    }

    /// About how many bytes of memory the instances of one service may take with their keys, in each registry of a
    /// process; at least 1 MiB. Defaults to 32 MiB for every 10,000 of [`max_instances`](Self::max_instances), which is
    /// room for 60 tags of 40 bytes for each instance.
    ///
    /// Where there is no room, new keys are left out as beyond `max_instances`, and known ones keep the value that they
    /// had. An instance without tags takes about 400 bytes.
    pub fn max_service_bytes(mut self, bytes: usize) -> Self {
        self.max_service_bytes = Some(bytes);
        self
    }

    /// The members of the etcd cluster from `provider`. The registry begins with the endpoints given to
    /// [`Registry::builder`], and calls `provider` when a member fails. So members can be replaced by others with new
    /// addresses while the program runs.
    ///
    /// ```no_run
    /// use tonic_etcd::Registry;
    ///
    /// # fn example() -> Result<(), tonic_etcd::ConfigError> {
    /// let registry = Registry::builder(["http://10.0.0.1:2379", "http://10.0.0.2:2379", "http://10.0.0.3:2379"])
    ///     .endpoints_with(|| async {
    ///         let urls = tokio::fs::read_to_string("/etc/etcd-endpoints").await?;
    ///         let urls = urls.lines().filter(|line| !line.is_empty());
    ///         Ok::<_, std::io::Error>(urls.map(str::to_owned).collect::<Vec<_>>())
    ///     })
    ///     .build()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// `provider` returns all members, of the same cluster. It is called within a second of the failure. While members
    /// fail and its answers are the same as before, it is called again after 1 s, 2 s, 4 s and so on, up to 60 s. It
    /// has 10 s to answer. If it fails, or returns no member or a bad URL, the endpoints stay as they were, and a
    /// warning is logged, at most once per minute. If it returns other members, open watches move to them within
    /// seconds and lose nothing.
    ///
    /// Members whose DNS names stay the same need no provider: a name is resolved again at each connection. A name with
    /// several addresses counts as one member.
    pub fn endpoints_with<P, F, I, U, E>(mut self, provider: P) -> Self
    where
        P: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<I, E>> + Send + 'static,
        I: IntoIterator<Item = U>,
        U: Into<String>,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.endpoints_provider = Some(EndpointsProvider::new(provider));
        self
    }

    /// User and password towards etcd, for simple tokens and JWT. A token that expired or is no longer valid is
    /// replaced by another login, unnoticed. Kitex calls this `WithAuthOpt`.
    ///
    /// Credentials that etcd refused are logged as a warning and tried again after 30 s; meanwhile instances stay
    /// known, and a registration lasts for as long as its keepalives need no login. For a password that changes while
    /// the program runs there is [`auth_with`](Self::auth_with), which replaces this, as this replaces that.
    pub fn auth(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.provider = Some(Provider::Fixed(Credentials::new(user, password)));
        self
    }

    /// User and password towards etcd from `provider`, which is called at each login. A registry logs in once for all
    /// its connections: at the start, and again when etcd refuses the token. So a password can be rotated while the
    /// program runs.
    ///
    /// ```no_run
    /// use tonic_etcd::{Credentials, Registry};
    ///
    /// # fn example() -> Result<(), tonic_etcd::ConfigError> {
    /// let registry = Registry::builder(["http://127.0.0.1:2379"])
    ///     .auth_with(|| async {
    ///         let password = tokio::fs::read_to_string("/run/secrets/etcd").await?;
    ///         Ok::<_, std::io::Error>(Credentials::new("echo", password.trim_end()))
    ///     })
    ///     .build()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Whatever needs the login waits for a slow provider, up to its own limit of 0.7 s to 5 s; the answer then serves
    /// later logins. A provider that fails, or does not answer within 30 s, is called again after 1 s. Its errors are
    /// logged as warnings, at most once per minute, so they must not show the password. Credentials that etcd refused
    /// are tried again after 30 s, others as soon as the provider returns them: change a password in etcd first, and
    /// let the provider return it then.
    pub fn auth_with<P, F, E>(mut self, provider: P) -> Self
    where
        P: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<Credentials, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.provider = Some(Provider::asked(provider));
        self
    }

    /// TLS towards etcd. Every endpoint must then be `https`. Kitex calls this `WithTLSOpt`.
    #[cfg(feature = "_tls")]
    #[cfg_attr(docsrs, doc(cfg(any(feature = "tls-ring", feature = "tls-aws-lc"))))]
    pub fn tls(mut self, tls: ClientTls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Checks everything and makes the registry. No I/O is done and no runtime is needed: etcd may still be down.
    ///
    /// # Errors
    ///
    /// An empty list of endpoints, a bad URL, a bad prefix, an option out of its range, or TLS without trusted roots.
    pub fn build(self) -> Result<Registry, ConfigError> {
        let limits = self.limits()?;
        let prefix = self.prefix.unwrap_or_else(|| self.format.default_prefix().to_owned());
        let base = parse_prefix(&prefix)?;
        if self.default_weight == 0 {
            let (option, value) = ("default_weight", "0".to_owned());
            return Err(ConfigError::Option { option, value, expected: "1 to 65535" });
        }
        if self.dial_timeout.is_zero() {
            let (option, value) = ("dial_timeout", format!("{:?}", self.dial_timeout));
            return Err(ConfigError::Option { option, value, expected: "more than zero" });
        }
        if self.removal_hold.is_some_and(|hold| hold.is_zero()) {
            let (option, value) = ("removal_hold", "0ns".to_owned());
            return Err(ConfigError::Option { option, value, expected: "more than zero; None switches it off" });
        }
        if self.provider.as_ref().is_some_and(Provider::has_no_user) {
            let (option, value) = ("auth", "with an empty user".to_owned());
            return Err(ConfigError::Option { option, value, expected: "a user's name" });
        }
        let (urls, provider, tls) = (&self.endpoints, self.endpoints_provider, self.tls.as_ref());
        let endpoints = Endpoints::new(urls, provider, tls, self.dial_timeout)?;
        let cluster = Arc::new(Cluster::new(endpoints, self.provider));
        let layout = Layout {
            base: base.clone(),
            format: self.format.clone(),
            default_weight: self.default_weight,
            hold: self.removal_hold.unwrap_or_default().min(MAX_HOLD),
            limits,
        };
        Ok(Registry {
            registrar: Registrar::new(cluster.clone(), base, self.format),
            watchers: Watchers::new(cluster, layout),
        })
    }

    fn limits(&self) -> Result<Limits, ConfigError> {
        let instances = self.max_instances;
        if !(1..=MOST_INSTANCES).contains(&instances) {
            let (option, value) = ("max_instances", instances.to_string());
            return Err(ConfigError::Option { option, value, expected: "1 to 1000000" });
        }
        let bytes = self.max_service_bytes.unwrap_or((instances * BYTES_PER_INSTANCE).max(LEAST_SERVICE_BYTES));
        if bytes < LEAST_SERVICE_BYTES {
            let (option, value) = ("max_service_bytes", bytes.to_string());
            return Err(ConfigError::Option { option, value, expected: "at least 1048576" });
        }
        Ok(Limits { instances, bytes })
    }
}

impl fmt::Debug for RegistryBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A URL may hold a password, for which `build` will refuse it.
        let endpoints: Vec<String> = self.endpoints.iter().map(|url| without_user(url)).collect();
        f.debug_struct("RegistryBuilder")
            .field("endpoints", &endpoints)
            .field("are_endpoints_provided", &self.endpoints_provider.is_some())
            .field("prefix", &self.prefix)
            .field("format", &self.format)
            .field("credentials", &self.provider)
            .finish_non_exhaustive()
    }
}

/// Checks a prefix and ends it with a slash, unless it is empty.
fn parse_prefix(prefix: &str) -> Result<String, ConfigError> {
    let refuse = |reason| Err(ConfigError::Prefix { prefix: prefix.chars().take(300).collect(), reason });
    if prefix.len() > 1024 {
        return refuse("it is longer than 1024 bytes");
    }
    if prefix.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return refuse("it holds white space or a control character");
    }
    if prefix.is_empty() || prefix == "/" {
        return Ok(prefix.to_owned());
    }
    let inner = prefix.strip_prefix('/').unwrap_or(prefix);
    let inner = inner.strip_suffix('/').unwrap_or(inner);
    if inner.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
        return refuse("a segment of it is empty, '.' or '..'");
    }
    let slash = if prefix.ends_with('/') { "" } else { "/" };
    Ok(format!("{prefix}{slash}"))
}

/// How long a TCP and TLS connection to etcd may take: ten round trips on a bad day, and still a quick move to the next
/// member.
const DEFAULT_DIAL_TIMEOUT: Duration = Duration::from_secs(2);

/// The most that `max_instances` takes: a list of more takes etcd itself longer than clients wait for it.
const MOST_INSTANCES: usize = 1_000_000;

/// The least that `max_service_bytes` takes: the largest instances that are read fit a few times.
const LEAST_SERVICE_BYTES: usize = 1024 * 1024;

/// The longest hold: a year stands for ever, without overflowing a clock.
const MAX_HOLD: Duration = Duration::from_secs(365 * 86_400);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trailing_slash_is_not_doubled_and_a_leading_one_is_kept() {
        for (prefix, base) in [("", ""), ("/", "/"), ("a", "a/"), ("a/", "a/"), ("/a/b", "/a/b/"), ("/a/b/", "/a/b/")] {
            assert_eq!(parse_prefix(prefix).expect(prefix), base);
        }
        for bad in ["//", "a//b", "a/../b", "..", "./a", "a b", "a\n", "a\0"] {
            assert!(parse_prefix(bad).is_err(), "{bad:?} must be refused");
        }
    }

    #[test]
    fn building_needs_no_runtime_and_refuses_bad_values_by_name() {
        let build = |builder: RegistryBuilder| builder.build().map(drop).map_err(|error| error.to_string());
        let good = || Registry::builder(["http://127.0.0.1:1"]);
        assert_eq!(build(good()), Ok(()));
        assert!(build(Registry::builder(Vec::<String>::new())).is_err_and(|error| error.contains("no etcd endpoint")));
        assert!(build(Registry::builder(["http://"])).is_err_and(|error| error.contains("http://")));
        assert!(build(good().prefix("a//b")).is_err_and(|error| error.contains("a//b")));
        assert!(build(good().default_weight(0)).is_err_and(|error| error.contains("default_weight")));
        assert!(build(good().max_instances(0)).is_err_and(|error| error.contains("max_instances")));
        assert!(build(good().max_instances(1_000_001)).is_err_and(|error| error.contains("1000001")));
        assert!(build(good().max_service_bytes(1_000)).is_err_and(|error| error.contains("max_service_bytes")));
        assert_eq!(build(good().max_instances(1).max_service_bytes(1024 * 1024)), Ok(()));
        assert_eq!(build(good().max_instances(1_000_000)), Ok(()));
        assert!(build(good().dial_timeout(Duration::ZERO)).is_err_and(|error| error.contains("dial_timeout")));
        assert!(build(good().removal_hold(Duration::ZERO)).is_err_and(|error| error.contains("removal_hold 0ns")));
        assert_eq!(build(good().removal_hold(None)), Ok(()));
        assert!(build(good().auth("", "secret")).is_err_and(|error| !error.contains("secret")));
    }

    #[test]
    fn no_debug_shows_the_password() {
        let builder = Registry::builder(["http://127.0.0.1:1"]).auth("root", "secret");
        assert!(!format!("{builder:?}").contains("secret"));
        assert!(!format!("{:?}", Registry::builder(["http://root:secret@a:1"])).contains("secret"));
        let registry = builder.build().expect("a good registry");
        assert!(!format!("{registry:?}").contains("secret"));
    }
}
