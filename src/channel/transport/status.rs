//! What a call ends with when no server gave it an answer.

use http::{HeaderMap, StatusCode};
use tonic::{Code, Status};

use crate::instance::Address;

/// Whether a failed attempt may be made again elsewhere without anybody noticing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reached {
    /// It never reached a handler: it was not sent, or the server said that it looked at it no further.
    Nobody,
    /// It may have been handled.
    Perhaps,
}

/// What the error that ended an attempt proves about it.
pub(crate) fn reached(error: &h2::Error) -> Reached {
    let is_refusal = error.is_go_away() || error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    if error.is_remote() && is_refusal { Reached::Nobody } else { Reached::Perhaps }
}

/// Whether the connection itself broke, rather than one stream on it.
pub(crate) fn is_broken(error: &h2::Error) -> bool {
    !error.is_reset()
}

/// The status of a call whose attempt at `address` ended with an error of the transport.
pub(crate) fn transport(address: &Address, error: &h2::Error) -> Status {
    let code = match error.reason() {
        _ if !error.is_reset() => Code::Unavailable,
        Some(h2::Reason::REFUSED_STREAM) => Code::Unavailable,
        Some(h2::Reason::CANCEL) => Code::Cancelled,
        Some(h2::Reason::ENHANCE_YOUR_CALM) => Code::ResourceExhausted,
        Some(h2::Reason::INADEQUATE_SECURITY) => Code::PermissionDenied,
        _ => Code::Internal,
    };
    Status::new(code, format!("{address}: {error}"))
}

/// What the caller of a call that took too long is told.
pub(crate) fn deadline_exceeded(waiting_for: &str) -> Status {
    Status::deadline_exceeded(format!("the deadline passed while waiting for {waiting_for}"))
}

/// The gRPC code in a head or in trailers, if there is one.
pub(crate) fn code_of(headers: &HeaderMap) -> Option<Code> {
    headers.get("grpc-status").map(|value| Code::from_bytes(value.as_bytes()))
}

/// The gRPC code that an answer without one stands for, if its HTTP status is an error.
pub(crate) fn code_of_http(status: StatusCode) -> Option<Code> {
    match status {
        StatusCode::OK => None,
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Some(Code::Unavailable),
        _ => Some(Code::Unknown),
    }
}

/// Whether this answer says that the server's own clock ran out: tonic calls it CANCELLED, with this text.
pub(crate) fn is_servers_timeout(headers: &HeaderMap) -> bool {
    let message = headers.get("grpc-message").map(http::HeaderValue::as_bytes);
    code_of(headers) == Some(Code::Cancelled) && matches!(message, Some(b"Timeout expired" | b"Timeout%20expired"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tonics_own_words_for_a_timeout_count_as_one() {
        let answer = |code: &'static str, message: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-status", code.parse().expect("a value"));
            headers.insert("grpc-message", message.parse().expect("a value"));
            headers
        };
        assert!(is_servers_timeout(&answer("1", "Timeout expired")));
        assert!(is_servers_timeout(&answer("1", "Timeout%20expired")));
        assert!(!is_servers_timeout(&answer("1", "the user went away")));
        assert!(!is_servers_timeout(&answer("14", "Timeout expired")));
        assert!(!is_servers_timeout(&HeaderMap::new()));
    }
}
