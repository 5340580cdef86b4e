//! Requests to those that a page of this server makes: others get no further, whatever site a browser is on.
//!
//! A site that lets its own name point here (DNS rebinding) is known by the `Host` header, a request that another site
//! makes by `Sec-Fetch-Site` and `Origin`. Orders need a token besides, which stands in the address that the program
//! prints and in nothing that is served: reaching the page is not enough.

use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, ORIGIN};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Request};

use crate::failure::{Failure, failed};

/// Why a request gets no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// No host, or several.
    NoHost,
    /// A name that is not this server's.
    ForeignHost,
    /// The page of another site made it.
    ForeignSite,
    /// It is an order, and has not the token.
    NoToken,
    /// It is an order, and not JSON.
    NotJson,
}

/// Knows the names of this server, and the token of its pages.
pub(crate) struct Guard {
    hosts: Vec<String>,
    token: String,
}

impl Guard {
    /// `hosts` are names that count as this server's, besides `localhost` and every IP address: those cannot be made to
    /// point elsewhere.
    pub(crate) fn new(hosts: Vec<String>) -> Result<Self, Failure> {
        let mut bytes = [0; 16];
        let random = rustls::crypto::ring::default_provider().secure_random;
        random.fill(&mut bytes).map_err(|_| failed("the system has no random numbers".to_owned()))?;
        Ok(Self { hosts, token: format!("{:032x}", u128::from_be_bytes(bytes)) })
    }

    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    /// Lets through what only looks.
    pub(crate) fn check<B>(&self, request: &Request<B>) -> Result<(), Refusal> {
        let headers = request.headers();
        let host = only(headers, HOST.as_str()).ok_or(Refusal::NoHost)?;
        self.check_host(host)?;
        if let Some(authority) = request.uri().authority() {
            self.check_host(authority.as_str())?;
        }
        // A link on another site may lead to the page; nothing else of it may be used from there.
        let is_page = request.uri().path() == "/" && request.method() != Method::POST;
        let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
        if !is_page && site.is_some_and(|site| site != b"same-origin" && site != b"none") {
            return Err(Refusal::ForeignSite);
        }
        match headers.get(ORIGIN) {
            Some(origin) if !self.is_own(origin, host) => Err(Refusal::ForeignSite),
            _ => Ok(()),
        }
    }

    /// Lets through what orders something.
    pub(crate) fn check_order<B>(&self, request: &Request<B>) -> Result<(), Refusal> {
        let headers = request.headers();
        if !headers.contains_key(ORIGIN) {
            return Err(Refusal::ForeignSite);
        }
        let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if !content_type.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json")) {
            return Err(Refusal::NotJson);
        }
        let given = only(headers, AUTHORIZATION.as_str()).and_then(|given| given.strip_prefix("Bearer "));
        match given {
            Some(given) if is_same(given.as_bytes(), self.token.as_bytes()) => Ok(()),
            _ => Err(Refusal::NoToken),
        }
    }

    fn check_host(&self, host: &str) -> Result<(), Refusal> {
        let host: Authority = host.parse().map_err(|_| Refusal::NoHost)?;
        let host = host.host();
        let ip = host.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(host);
        let is_own =
            ip.parse::<std::net::IpAddr>().is_ok() || host.eq_ignore_ascii_case("localhost") || self.is_named(host);
        if is_own { Ok(()) } else { Err(Refusal::ForeignHost) }
    }

    /// A proxy in front may speak TLS, and may ask under another host than browsers do: names that are allowed count
    /// then. `Sec-Fetch-Site` tells on which of their ports.
    fn is_own(&self, origin: &HeaderValue, host: &str) -> bool {
        let Ok(origin) = origin.to_str() else { return false };
        let site = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        site.is_some_and(|site| {
            site.eq_ignore_ascii_case(host)
                || site
                    .parse::<Authority>()
                    .is_ok_and(|site| !site.as_str().contains('@') && self.is_named(site.host()))
        })
    }

    fn is_named(&self, host: &str) -> bool {
        self.hosts.iter().any(|own| own.eq_ignore_ascii_case(host))
    }
}

/// A header's text; `None` where there is none, or several.
fn only<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next().filter(|_| values.next().is_none())?;
    value.to_str().ok()
}

/// Takes the same time wherever they differ.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard() -> Guard {
        Guard { hosts: vec!["registry.example".to_owned()], token: "t0ken".to_owned() }
    }

    fn request(method: Method, path: &str, headers: &[(&str, &str)]) -> Request<()> {
        let request = Request::builder().method(method).uri(path);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        request.body(()).expect("a request")
    }

    fn look(path: &str, headers: &[(&str, &str)]) -> Result<(), Refusal> {
        guard().check(&request(Method::GET, path, headers))
    }

    #[test]
    fn hosts_that_nothing_can_make_point_elsewhere_are_own() {
        for host in
            ["127.0.0.1:8080", "127.0.0.1", "[::1]:80", "10.1.2.3", "localhost:9", "LOCALHOST", "registry.example"]
        {
            assert_eq!(look("/", &[("host", host)]), Ok(()), "{host}");
        }
        for host in ["evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "registry.example."] {
            assert_eq!(look("/", &[("host", host)]), Err(Refusal::ForeignHost), "{host}");
        }
        for headers in [&[][..], &[("host", "localhost"), ("host", "localhost")], &[("host", "a b")], &[("host", "")]] {
            assert_eq!(look("/", headers), Err(Refusal::NoHost), "{headers:?}");
        }
        let absolute = look("http://evil.example/", &[("host", "localhost")]);
        assert_eq!(absolute, Err(Refusal::ForeignHost), "a whole URL counts as well");
    }

    #[test]
    fn another_site_may_link_to_the_page_and_no_more() {
        let from = |path, site| look(path, &[("host", "localhost"), ("sec-fetch-site", site)]);
        assert_eq!(from("/", "cross-site"), Ok(()));
        for (path, site, let_through) in [
            ("/events", "same-origin", true),
            ("/events", "none", true),
            ("/events", "same-site", false),
            ("/main.js", "cross-site", false),
        ] {
            let expected = if let_through { Ok(()) } else { Err(Refusal::ForeignSite) };
            assert_eq!(from(path, site), expected, "{path} from {site}");
        }
        let origin = |origin| look("/events", &[("host", "localhost:80"), ("origin", origin)]);
        for own in ["http://localhost:80", "https://registry.example", "http://Registry.Example:8443"] {
            assert_eq!(origin(own), Ok(()), "{own}: a proxy may ask under another host than browsers do");
        }
        for foreign in
            ["http://localhost:81", "http://evil.example", "null", "localhost:80", "http://x@registry.example"]
        {
            assert_eq!(origin(foreign), Err(Refusal::ForeignSite), "{foreign}");
        }
    }

    #[test]
    fn an_order_needs_an_origin_a_content_type_and_the_token() {
        let good = [
            ("host", "localhost"),
            ("origin", "http://localhost"),
            ("content-type", "application/json; charset=utf-8"),
            ("authorization", "Bearer t0ken"),
        ];
        let order = |headers: &[(&str, &str)]| guard().check_order(&request(Method::POST, "/drain", headers));
        assert_eq!(order(&good), Ok(()));
        for (missing, refusal) in [(1, Refusal::ForeignSite), (2, Refusal::NotJson), (3, Refusal::NoToken)] {
            let mut headers = good.to_vec();
            headers.remove(missing);
            assert_eq!(order(&headers), Err(refusal));
        }
        for (which, value, refusal) in [
            (2, "text/plain", Refusal::NotJson),
            (3, "Bearer t0keN", Refusal::NoToken),
            (3, "Bearer ", Refusal::NoToken),
            (3, "t0ken", Refusal::NoToken),
        ] {
            let mut headers = good;
            headers[which].1 = value;
            assert_eq!(order(&headers), Err(refusal), "{value}");
        }
    }
}
