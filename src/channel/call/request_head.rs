//! The head of a request, as often as it is sent.

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version, header};
use tokio::time::Instant;
use tonic::Status;

use crate::channel::config::retry::PREVIOUS_ATTEMPTS;
use crate::channel::deadline::{Deadline, GRPC_TIMEOUT, timeout_header};
use crate::channel::subchannel::connection::Link;

/// A call's head, kept for another attempt: everything but the extensions, which nobody on the peer sees.
pub(crate) struct Head {
    method: Method,
    path: PathAndQuery,
    /// Empty while they are on their way.
    headers: HeaderMap,
    /// What is on its way, as a list: a copy costs half of what a map's does.
    sent: Vec<(HeaderName, HeaderValue)>,
}

impl Head {
    pub(crate) fn new(method: Method, uri: &Uri, mut headers: HeaderMap, user_agent: &HeaderValue) -> Self {
        headers.entry(header::USER_AGENT).or_insert_with(|| user_agent.clone());
        let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        Self { method, path, headers, sent: Vec::new() }
    }

    /// Writes what is left of the time.
    pub(crate) fn tell(&mut self, deadline: &Deadline, now: Instant) {
        if let Some(at) = deadline.at() {
            self.take_back();
            self.headers.insert(GRPC_TIMEOUT, timeout_header(at.saturating_duration_since(now)));
        }
    }

    /// Writes how many attempts came before.
    pub(crate) fn is_attempt(&mut self, previous: u32) {
        self.take_back();
        self.headers.insert(PREVIOUS_ATTEMPTS, HeaderValue::from(previous));
    }

    pub(crate) fn request(&mut self, link: &Link) -> Result<http::Request<()>, Status> {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(link.scheme.clone());
        parts.authority = Some(link.authority.clone());
        parts.path_and_query = Some(self.path.clone());
        let uri =
            Uri::from_parts(parts).map_err(|error| Status::internal(format!("the path cannot be sent: {error}")))?;
        self.take_back();
        self.sent.reserve(self.headers.len());
        for (name, value) in &self.headers {
            if !is_of_http1(name, value) {
                self.sent.push((name.clone(), value.clone()));
            }
        }
        if self.sent.len() < self.headers.len() {
            self.headers = self.sent.iter().cloned().collect();
        }
        let mut request = http::Request::new(());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = uri;
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = std::mem::take(&mut self.headers);
        Ok(request)
    }

    fn take_back(&mut self) {
        if !self.sent.is_empty() {
            self.headers = std::mem::take(&mut self.sent).into_iter().collect();
        }
    }
}

/// Whether it is about an HTTP/1 connection, which HTTP/2 forbids: what a proxy took over from its own caller.
fn is_of_http1(name: &HeaderName, value: &HeaderValue) -> bool {
    const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
    const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
    let names = [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE, KEEP_ALIVE, PROXY_CONNECTION];
    names.contains(name) || *name == header::TE && value != "trailers"
}
