//! The caller's head becomes the head of each attempt.

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version, header};
use tokio::time::Instant;
use tonic::Status;

use super::retry_state::PREVIOUS_ATTEMPTS;
use crate::channel::deadline::{Deadline, GRPC_TIMEOUT, timeout_header};
use crate::channel::transport::Transport;

/// A call's head, kept for another attempt: everything but the extensions, which are not sent.
pub(super) struct RequestHead {
    method: Method,
    path: PathAndQuery,
    /// Empty while they are on their way.
    headers: HeaderMap,
    /// The headers that are on their way, as a list: a copy costs half of what a map's does.
    sent: Vec<(HeaderName, HeaderValue)>,
}

impl RequestHead {
    pub(super) fn new(method: Method, uri: &Uri, mut headers: HeaderMap, user_agent: &HeaderValue) -> Self {
        remove_named_by_connection(&mut headers);
        headers.entry(header::USER_AGENT).or_insert_with(|| user_agent.clone());
        let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        Self { method, path, headers, sent: Vec::new() }
    }

    pub(super) fn path(&self) -> &str {
        self.path.path()
    }

    /// Writes the time that is left.
    pub(super) fn set_timeout(&mut self, deadline: &Deadline, now: Instant) {
        if let Some(at) = deadline.at() {
            self.take_back();
            self.headers.insert(GRPC_TIMEOUT, timeout_header(at.saturating_duration_since(now)));
        }
    }

    /// Writes the number of attempts before this one.
    pub(super) fn set_previous_attempts(&mut self, previous: u32) {
        self.take_back();
        self.headers.insert(PREVIOUS_ATTEMPTS, HeaderValue::from(previous));
    }

    /// The request for a connection. Its headers are kept for another one.
    ///
    /// # Errors
    ///
    /// INTERNAL for a path that cannot be sent.
    pub(super) fn request(&mut self, transport: &Transport) -> Result<http::Request<()>, Status> {
        let uri = transport.uri(self.path.clone())?;
        self.take_back();
        self.sent.reserve(self.headers.len());
        for (name, value) in &self.headers {
            if !is_hop_by_hop(name, value) {
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

/// Removes what `Connection` names, which is about the connection to the caller alone.
fn remove_named_by_connection(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let values: Vec<_> = headers.get_all(header::CONNECTION).iter().cloned().collect();
        for name in values.iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b',')) {
            if let Ok(name) = HeaderName::from_bytes(name.trim_ascii()) {
                headers.remove(name);
            }
        }
    }
}

/// Whether a header is about an HTTP/1 connection, which HTTP/2 forbids: proxies take them over from their own callers.
fn is_hop_by_hop(name: &HeaderName, value: &HeaderValue) -> bool {
    const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
    const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
    let names = [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE, KEEP_ALIVE, PROXY_CONNECTION];
    names.contains(name) || *name == header::TE && value != "trailers"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_that_the_connection_header_names_are_not_passed_on() {
        let mut headers = HeaderMap::new();
        let pairs = [
            ("connection", "keep-alive, X-Hop"),
            ("connection", "x-other ,,"),
            ("x-hop", "1"),
            ("x-hop", "2"),
            ("x-other", "3"),
            ("x-stays", "4"),
        ];
        for (name, value) in pairs {
            headers.append(name, HeaderValue::from_static(value));
        }
        let head = RequestHead::new(Method::POST, &Uri::from_static("/a"), headers, &HeaderValue::from_static("a"));
        let mut names: Vec<_> = head.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["connection", "user-agent", "x-stays"], "and connection itself is left out on the way");
    }
}
