//! From the URLs that a user gives to the members that are dialled, without I/O.

use std::borrow::Cow;
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use tonic::transport::{Channel, Endpoint};

use super::connects::{Counted, tcp};
#[cfg(feature = "_tls")]
use super::tls::SecureConnector;
use crate::error::ConfigError;
#[cfg(feature = "_tls")]
use crate::instance::parse_host;

#[cfg(feature = "_tls")]
pub(crate) type Tls = crate::tls::ClientTls;
/// Without the feature there is no TLS configuration.
#[cfg(not(feature = "_tls"))]
pub(crate) type Tls = std::convert::Infallible;

#[cfg(feature = "_tls")]
pub(super) type Client = crate::tls::TlsClient;
#[cfg(not(feature = "_tls"))]
pub(super) type Client = std::convert::Infallible;

/// One member, as it is dialled.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// As it is shown.
    pub(super) name: String,
    endpoint: Endpoint,
    connector: Connector,
}

/// What it is dialled by.
#[derive(Debug, Clone)]
enum Connector {
    Plain(HttpConnector),
    #[cfg(feature = "_tls")]
    Secure(SecureConnector),
}

impl Target {
    fn plain(url: Uri, dial_timeout: Duration) -> Self {
        Self { name: shown(&url), endpoint: tuned(Endpoint::from(url)), connector: Connector::Plain(tcp(dial_timeout)) }
    }

    /// A channel that connects with its first call. Needs a tokio runtime.
    pub(super) fn channel(&self) -> Channel {
        match &self.connector {
            Connector::Plain(tcp) => self.endpoint.connect_with_connector_lazy(Counted::new(tcp.clone())),
            #[cfg(feature = "_tls")]
            Connector::Secure(secure) => self.endpoint.connect_with_connector_lazy(Counted::new(secure.clone())),
        }
    }

    /// Whether it is dialled without TLS.
    pub(super) fn is_plain(&self) -> bool {
        self.name.starts_with("http://")
    }

    /// The same member, with more patience while it has no time for pings.
    pub(super) fn patient(&self) -> Self {
        Self { endpoint: self.endpoint.clone().keep_alive_timeout(PATIENT_PING_TIMEOUT), ..self.clone() }
    }
}

/// How members are dialled, whichever they are.
pub(super) struct Dialling {
    tls: Option<Client>,
    timeout: Duration,
}

impl Dialling {
    pub(super) fn new(tls: Option<Client>, timeout: Duration) -> Self {
        Self { tls, timeout }
    }

    /// Checks the URLs of a cluster's members, one or several of them in a text. `host:port` without a scheme is
    /// `https` with TLS and `http` without.
    ///
    /// # Errors
    ///
    /// None, or a bad one.
    pub(super) fn targets(&self, urls: &[String]) -> Result<Vec<Target>, ConfigError> {
        if urls.is_empty() {
            return Err(ConfigError::NoEndpoints);
        }
        // Before they are taken apart: a password may hold a comma.
        if let Some(urls) = urls.iter().find(|urls| urls.contains('@')) {
            return Err(ConfigError::Endpoint { url: without_user(urls), reason: USER_IN_URL.into() });
        }
        let each = urls.iter().flat_map(|urls| urls.split(','));
        each.map(|url| parse_endpoint(url.trim(), self.tls.as_ref(), self.timeout)).collect()
    }
}

fn parse_endpoint(url: &str, tls: Option<&Client>, dial_timeout: Duration) -> Result<Target, ConfigError> {
    let refuse = |reason: Cow<'static, str>| ConfigError::Endpoint { url: without_user(url), reason };
    let absolute = match (url.contains("://"), tls) {
        (true, _) => url.to_owned(),
        (false, Some(_)) => format!("https://{url}"),
        (false, None) => format!("http://{url}"),
    };
    let uri: Uri = absolute.parse().map_err(|error: http::uri::InvalidUri| refuse(error.to_string().into()))?;
    let authority = uri.authority().ok_or_else(|| refuse("it has no host".into()))?;
    let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| refuse("it has no host".into()))?;
    // `Uri` takes any text for a port and then knows none.
    let port = authority.as_str().strip_prefix(host).unwrap_or_default();
    if port.is_empty() && !url.contains("://") {
        return Err(refuse("expected host:port, or a URL".into()));
    }
    let is_port = |port: &str| port.parse().is_ok_and(|port: u16| port > 0);
    if !port.is_empty() && !port.strip_prefix(':').is_some_and(is_port) {
        return Err(refuse("the port is no number from 1 to 65535".into()));
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(refuse("it must end after the port".into()));
    }
    let https = match uri.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => return Err(refuse("only http and https are known".into())),
    };
    match (https, tls) {
        (false, None) => Ok(Target::plain(uri, dial_timeout)),
        (false, Some(_)) => Err(refuse("TLS is configured, so every endpoint must be https".into())),
        (true, None) => Err(refuse("https needs tls(..), with the feature tls-ring or tls-aws-lc".into())),
        #[cfg(feature = "_tls")]
        (true, Some(tls)) => {
            let host = parse_host(host).map_err(|reason| refuse(reason.into()))?;
            let (name, authority) = (shown(&uri), authority.clone());
            let plain = Uri::builder().scheme("http").authority(authority).path_and_query("/").build();
            let plain = plain.map_err(|error| refuse(error.to_string().into()))?;
            // The limit is for the TLS session as well.
            let endpoint = tuned(Endpoint::from(plain).origin(uri.clone())).connect_timeout(dial_timeout);
            let secure = SecureConnector::new(uri, host, tls.clone(), dial_timeout);
            Ok(Target { name, endpoint, connector: Connector::Secure(secure) })
        }
        #[cfg(not(feature = "_tls"))]
        (true, Some(never)) => match *never {},
    }
}

fn tuned(endpoint: Endpoint) -> Endpoint {
    endpoint
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        // Pings without a stream earn a GOAWAY from etcd.
        .keep_alive_while_idle(false)
}

fn shown(url: &Uri) -> String {
    url.to_string().trim_end_matches('/').to_owned()
}

/// The URL without what stands before an `@`, for messages.
pub(crate) fn without_user(url: &str) -> String {
    // All before the last sign may be a password, whatever it looks like.
    let shown = match url.rsplit_once('@') {
        None => url.to_owned(),
        Some((before, host)) => {
            let scheme = before.split_once("://").map(|(scheme, _)| scheme);
            let scheme = scheme.filter(|scheme| scheme.chars().all(|c| c.is_ascii_alphanumeric()));
            scheme.map_or_else(|| host.to_owned(), |scheme| format!("{scheme}://{host}"))
        }
    };
    shown.chars().take(300).collect()
}

const USER_IN_URL: &str = "a user belongs into auth(..), not into the URL";

/// The interval of HTTP/2 pings while a stream is open: clearly more than the least that etcd allows (5 s).
const PING_INTERVAL: Duration = Duration::from_secs(8);

/// How long a ping may stay unanswered: a path that delays everything by 7 s is slow, and not dead. With the interval,
/// a dead connection is found in 17 s.
const PING_TIMEOUT: Duration = Duration::from_secs(9);

/// How long a ping may stay unanswered while the member has passwords to hash: those of 1,000 clients hold a ping up
/// for 5 s on two cores.
const PATIENT_PING_TIMEOUT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Target, ConfigError> {
        parse_endpoint(url, None, Duration::from_secs(1))
    }

    #[test]
    fn urls_and_bare_addresses_are_endpoints() {
        for (url, uri) in [
            ("http://127.0.0.1:2379", "http://127.0.0.1:2379"),
            ("127.0.0.1:2379", "http://127.0.0.1:2379"),
            ("http://[::1]:2379/", "http://[::1]:2379"),
            ("http://etcd.example.com:2379", "http://etcd.example.com:2379"),
        ] {
            assert_eq!(parse(url).expect(url).name, uri);
        }
    }

    #[test]
    fn a_text_may_name_several_members() {
        let dialling = Dialling::new(None, Duration::from_secs(1));
        let names = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
            dialling.targets(&texts).map(|targets| targets.into_iter().map(|target| target.name).collect::<Vec<_>>())
        };
        let three = ["http://a:1", "http://b:2", "http://c:3"];
        assert_eq!(names(&["a:1, http://b:2", "c:3"]).expect("good members"), three);
        assert!(names(&["a:1,"]).is_err_and(|error| error.to_string().contains("bad etcd endpoint \"\"")));
    }

    #[test]
    fn bad_urls_are_refused_with_the_reason() {
        for url in [
            "",
            "nonsense",
            "http://a:1,http://b:1",
            "http://",
            "ftp://a:1",
            "http://a:b",
            "http://a:0",
            "http://a:",
            "http://a:99999",
            "http://a:1/path",
            "http://a:1?x=y",
            "http://a b:1",
            "https://a:1",
        ] {
            assert!(parse(url).is_err(), "{url:?} must be refused");
        }
        let dialling = Dialling::new(None, Duration::from_secs(1));
        assert!(matches!(dialling.targets(&[]), Err(ConfigError::NoEndpoints)), "an empty list must be refused");
    }

    #[test]
    fn a_password_in_a_url_is_refused_and_not_shown() {
        for url in [
            "http://root:secret@a:1",
            "root:secret@a:1",
            "http://root:sec@ret@a:1",
            "http://root:sec,ret@a:1",
            "http://b:1,http://root:secret@a:1",
            "root:sec://x@a:1",
        ] {
            let dialling = Dialling::new(None, Duration::from_secs(1));
            let error = dialling.targets(&[url.to_owned()]).expect_err("a user in the URL is refused");
            assert!(!format!("{error} {error:?}").contains("sec"), "{error:?}");
        }
    }
}
