//! Services and instances, parsed and checked: a service's name, an instance's address, and the instance itself.

use std::borrow::Borrow;
use std::convert::Infallible;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use crate::error::ConfigError;
use crate::tags::Tags;

/// The name that clients ask for: `echo`.
///
/// Letters, digits, `.`, `_` and `-`, at most 253 of them, beginning and ending with a letter or a digit, without `..`.
/// A name that passed can never leave its prefix in etcd.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName(Arc<str>);

impl ServiceName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as text that is shared.
    pub(crate) fn shared(&self) -> &Arc<str> {
        &self.0
    }
}

impl FromStr for ServiceName {
    type Err = ConfigError;

    fn from_str(name: &str) -> Result<Self, ConfigError> {
        let refuse = |reason| Err(ConfigError::ServiceName { name: name.chars().take(300).collect(), reason });
        if name.contains("://") {
            return refuse("that is a URL; give the service's name alone");
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if name.is_empty() {
            return refuse("it is empty");
        }
        if name.len() > 253 {
            return refuse("it is longer than 253 characters");
        }
        if !name.chars().all(allowed) {
            return refuse("only letters, digits, '.', '_' and '-' are allowed");
        }
        if !name.starts_with(|c: char| c.is_ascii_alphanumeric())
            || !name.ends_with(|c: char| c.is_ascii_alphanumeric())
        {
            return refuse("it must begin and end with a letter or a digit");
        }
        if name.contains("..") {
            return refuse("it must not contain '..'");
        }
        Ok(Self(name.into()))
    }
}

impl TryFrom<&str> for ServiceName {
    type Error = ConfigError;

    fn try_from(name: &str) -> Result<Self, ConfigError> {
        name.parse()
    }
}

impl TryFrom<String> for ServiceName {
    type Error = ConfigError;

    fn try_from(name: String) -> Result<Self, ConfigError> {
        name.parse()
    }
}

impl AsRef<str> for ServiceName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// So that a map of services can be asked by text.
impl Borrow<str> for ServiceName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl From<ServiceName> for String {
    fn from(name: ServiceName) -> Self {
        name.as_str().to_owned()
    }
}

impl PartialEq<str> for ServiceName {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for ServiceName {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where an instance listens: an IP address or a DNS name, and a port.
///
/// The text form is `host:port` with IPv6 in brackets. Two spellings of one IP address are equal, an IPv4 address
/// within IPv6 among them, and so are two of one DNS name that differ in case only. Parsing checks the form; whether
/// clients may be sent there is checked when an instance is registered or read (unspecified, multicast, link-local and
/// broadcast addresses and port 0 are refused).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    host: Host,
    port: u16,
}

/// The host of an [`Address`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Host {
    /// An IP address.
    Ip(IpAddr),
    /// A DNS name in lower case, resolved at each connection.
    Name(Arc<str>),
}

impl Address {
    /// The host.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The IP address; `None` where the host is a DNS name.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        match self.host {
            Host::Ip(ip) => Some(ip),
            Host::Name(_) => None,
        }
    }

    pub(crate) fn new(host: Host, port: u16) -> Self {
        Self { host, port }
    }

    /// Refuses what clients must never be sent to.
    pub(crate) fn check_dialable(&self) -> Result<(), ConfigError> {
        let refuse = |reason| Err(ConfigError::Address { address: self.to_string(), reason });
        if self.port == 0 {
            return refuse("the port is 0");
        }
        match &self.host {
            Host::Ip(ip) => match refused_range(*ip) {
                Some(reason) => refuse(reason),
                None => Ok(()),
            },
            Host::Name(_) => Ok(()),
        }
    }
}

/// Why no client may be sent to an address; `None` if clients may be.
pub(crate) fn refused_range(ip: IpAddr) -> Option<&'static str> {
    match ip.to_canonical() {
        ip if ip.is_unspecified() => Some("it is unspecified, so it names no host"),
        ip if ip.is_multicast() => Some("it is a multicast address"),
        IpAddr::V4(ip) if ip == Ipv4Addr::BROADCAST => Some("it is the broadcast address"),
        IpAddr::V4(ip) if ip.is_link_local() => Some("it is a link-local address"),
        IpAddr::V6(ip) if ip.is_unicast_link_local() => Some("it is a link-local address"),
        _ => None,
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self { host: Host::Ip(address.ip().to_canonical()), port: address.port() }
    }
}

impl From<(IpAddr, u16)> for Address {
    fn from((ip, port): (IpAddr, u16)) -> Self {
        SocketAddr::new(ip, port).into()
    }
}

impl TryFrom<&str> for Address {
    type Error = ConfigError;

    /// From `host:port`, with IPv6 in brackets.
    fn try_from(text: &str) -> Result<Self, ConfigError> {
        text.parse()
    }
}

impl TryFrom<String> for Address {
    type Error = ConfigError;

    /// From `host:port`, with IPv6 in brackets.
    fn try_from(text: String) -> Result<Self, ConfigError> {
        text.parse()
    }
}

impl TryFrom<(&str, u16)> for Address {
    type Error = ConfigError;

    /// From a host, an IPv6 address with or without brackets, and a port.
    fn try_from((host, port): (&str, u16)) -> Result<Self, ConfigError> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(SocketAddr::new(ip, port).into());
        }
        let refuse = |reason| ConfigError::Address { address: host.chars().take(300).collect(), reason };
        Ok(Self { host: parse_host(host).map_err(refuse)?, port })
    }
}

impl FromStr for Address {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let refuse = |reason| ConfigError::Address { address: text.chars().take(300).collect(), reason };
        if text.contains("://") {
            return Err(refuse("that is a URL; give host:port alone"));
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(|| refuse("expected host:port"))?;
        if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
            return Err(refuse("the port is no number"));
        }
        let port = port.parse().map_err(|_| refuse("the port is larger than 65535"))?;
        let host = parse_host(host).map_err(refuse)?;
        Ok(Self { host, port })
    }
}

pub(crate) fn parse_host(host: &str) -> Result<Host, &'static str> {
    if let Some(v6) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return match v6.parse::<Ipv6Addr>() {
            Ok(ip) => Ok(Host::Ip(IpAddr::from(ip).to_canonical())),
            Err(_) => Err("what stands in brackets is no IPv6 address"),
        };
    }
    if let Ok(ip) = host.parse::<Ipv4Addr>() {
        return Ok(Host::Ip(ip.into()));
    }
    if host.contains(':') {
        return Err("an IPv6 address must stand in brackets");
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.is_empty() {
        return Err("the host is empty");
    }
    if name.len() > 253 || !name.split('.').all(label) {
        return Err("the host is neither an IP address nor a DNS name");
    }
    // Resolvers read `127.1` and `0x7f000001` as addresses; such a name would slip past the checks of IP addresses.
    let last = name.rsplit('.').next().unwrap_or(name);
    if last.bytes().all(|b| b.is_ascii_digit()) || last.starts_with("0x") || last.starts_with("0X") {
        return Err("the host is neither an IP address nor a DNS name");
    }
    Ok(Host::Name(name.to_ascii_lowercase().into()))
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(ip) => SocketAddr::new(*ip, self.port).fmt(f),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

/// One server of a service: its address, its share of the load, and its tags.
///
/// As the argument of [`Registry::registration`](crate::Registry::registration) it is what a server wants to be known
/// as, and is checked by `build()`. As an item of [`Discover`](crate::Discover) it is what was read from etcd, checked.
///
/// ```
/// use tonic_etcd::Instance;
///
/// let instance = Instance::new("echo", "127.0.0.1:4321".parse::<std::net::SocketAddr>()?)
///     .with_weight(20)
///     .with_tag("zone", "a");
/// assert_eq!(instance.weight(), 20);
/// assert_eq!(instance.tags().get("zone"), Some("a"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Instance {
    pub(crate) service: Arc<str>,
    pub(crate) address: Address,
    pub(crate) weight: u16,
    pub(crate) tags: Tags,
}

impl Instance {
    /// The weight of an instance that states none: 10, which is Kitex's default.
    pub const DEFAULT_WEIGHT: u16 = 10;

    /// An instance of `service` at `address` with [`DEFAULT_WEIGHT`](Self::DEFAULT_WEIGHT) and no tags.
    ///
    /// Both are checked when the instance is registered.
    #[must_use]
    pub fn new(service: impl AsRef<str>, address: impl Into<Address>) -> Self {
        let (service, address) = (service.as_ref().into(), address.into());
        Self { service, address, weight: Self::DEFAULT_WEIGHT, tags: Tags::new() }
    }

    /// Like [`new`](Self::new), with an address that may be text: `Instance::parse("echo", "10.0.0.1:50051")`.
    ///
    /// # Errors
    ///
    /// A bad service name or address.
    pub fn parse<A>(service: impl AsRef<str>, address: A) -> Result<Self, ConfigError>
    where
        A: TryInto<Address>,
        A::Error: Into<ConfigError>,
    {
        let service: ServiceName = service.as_ref().parse()?;
        Ok(Self::new(service, address.try_into().map_err(Into::into)?))
    }

    /// The service's name.
    #[must_use]
    pub fn service(&self) -> &str {
        &self.service
    }

    /// The address that it listens at.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Its share of the load against the other instances' weights, 1 to 65,535.
    #[must_use]
    pub fn weight(&self) -> u16 {
        self.weight
    }

    /// Its tags, at most 64.
    #[must_use]
    pub fn tags(&self) -> &Tags {
        &self.tags
    }

    /// Sets the weight, 1 to 65,535. Zero is refused when the instance is registered: Kitex would read it as 10.
    #[must_use]
    pub fn with_weight(mut self, weight: u16) -> Self {
        self.weight = weight;
        self
    }

    /// Adds a tag; a second value for one name replaces the first.
    #[must_use]
    pub fn with_tag(mut self, name: impl AsRef<str>, value: impl AsRef<str>) -> Self {
        self.tags.insert(name, value);
        self
    }

    /// Replaces all tags.
    #[must_use]
    pub fn with_tags(mut self, tags: impl Into<Tags>) -> Self {
        self.tags = tags.into();
        self
    }

    /// Refuses what must not be written.
    pub(crate) fn check_publishable(&self) -> Result<(), ConfigError> {
        self.address.check_dialable()?;
        if self.weight == 0 {
            return Err(ConfigError::Option { option: "weight", value: "0".into(), expected: "1 to 65535" });
        }
        if self.tags.len() > MAX_TAGS {
            let value = format!("count {}", self.tags.len());
            return Err(ConfigError::Option { option: "tag", value, expected: "at most 64 tags" });
        }
        Ok(())
    }
}

/// For an address that needs no check.
impl From<Infallible> for ConfigError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// The most tags an instance can have: more are refused when written and cut off when read.
pub(crate) const MAX_TAGS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_names_that_could_leave_their_prefix_are_refused() {
        for good in ["echo", "user.rpc", "a", "A-b_c.9"] {
            assert!(good.parse::<ServiceName>().is_ok(), "{good:?} is a good name");
        }
        let long = "a".repeat(254);
        for bad in ["", "a/b", "/", "..", "a..b", ".a", "a.", "-a", "a-", "ä", "a b", "a\0b", long.as_str()] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad:?} is no good name");
        }
    }

    #[test]
    fn addresses_are_host_and_port_in_one_spelling() {
        for (text, shown) in [
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("[::1]:80", "[::1]:80"),
            ("[0:0::0:1]:80", "[::1]:80"),
            ("Echo.Example.com:65535", "echo.example.com:65535"),
            ("my_host:1", "my_host:1"),
            ("[::ffff:10.0.0.1]:80", "10.0.0.1:80"),
        ] {
            assert_eq!(text.parse::<Address>().expect(text).to_string(), shown);
        }
        for bad in [
            "",
            "127.0.0.1",
            "127.0.0.1:",
            ":80",
            "::1:80",
            "[::1]",
            "[::1%eth0]:80",
            "a:b",
            "a:65536",
            "a:-1",
            "a:+1",
            "a b:1",
            "127.1:80",
            "0x7f000001:80",
            "1:1",
            "a..b:1",
            "http://a:1",
            "a/b:1",
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad:?} is no address");
        }
    }

    #[test]
    fn addresses_are_made_of_what_names_one() {
        let address: Address = "10.0.0.1:80".parse().expect("an address");
        let ip: IpAddr = "10.0.0.1".parse().expect("an IP address");
        assert_eq!(Address::from((ip, 80)), address);
        assert_eq!(Address::try_from("10.0.0.1:80").expect("an address"), address);
        assert_eq!(Address::try_from("10.0.0.1:80".to_owned()).expect("an address"), address);
        assert_eq!(*Instance::parse("echo", "10.0.0.1:80").expect("good text").address(), address);
        assert_eq!(*Instance::parse("echo", address.clone()).expect("an address").address(), address);
        assert!(Instance::parse("ec/ho", address.clone()).is_err() && Instance::parse("echo", "10.0.0.1").is_err());
        assert_eq!((address.ip(), address.host().to_string()), (Some(ip), "10.0.0.1".to_owned()));
        let url = Address::try_from("http://10.0.0.1:80").expect_err("that is a URL");
        assert!(url.to_string().contains("give host:port alone"), "{url}");
        assert_eq!(format!("{url:?}"), url.to_string(), "it is what a main prints");
    }

    #[test]
    fn addresses_that_name_no_single_host_are_not_dialable() {
        for bad in [
            "0.0.0.0:1",
            "[::]:1",
            "[::ffff:0.0.0.0]:1",
            "224.0.0.1:1",
            "[ff02::1]:1",
            "169.254.1.1:1",
            "[fe80::1]:1",
            "[::ffff:169.254.1.1]:1",
            "255.255.255.255:1",
            "127.0.0.1:0",
        ] {
            let address: Address = bad.parse().expect("its form is right");
            assert!(address.check_dialable().is_err(), "{bad} must not be dialled");
        }
        for good in ["127.0.0.1:1", "10.0.0.1:1", "[2001:db8::1]:1", "a:1"] {
            let address: Address = good.parse().expect("its form is right");
            assert!(address.check_dialable().is_ok(), "{good} may be dialled");
        }
    }

    #[test]
    fn weight_zero_and_too_many_tags_are_refused() {
        let address: Address = "127.0.0.1:1".parse().expect("an address");
        let instance = Instance::new("echo", address);
        assert!(instance.check_publishable().is_ok());
        assert!(instance.clone().with_weight(0).check_publishable().is_err());
        let crowded = (0..65).fold(instance, |instance, n| instance.with_tag(n.to_string(), ""));
        assert!(crowded.check_publishable().is_err());
    }
}
