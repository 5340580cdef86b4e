//! What a call ends with when no server gave it an answer.

use std::error::Error as StdError;

use http::{HeaderMap, StatusCode};
use tonic::{Code, Status};

use crate::instance::Address;

/// Whether a failed attempt may be made again elsewhere without anybody noticing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reached {
    /// It never reached a handler: it was not sent, or the server said that it looked at it no further.
    Nobody,
    /// It may have been handled.
    Perhaps,
}

/// What an error of hyper's proves about the request that met it.
pub(super) fn reached(error: &hyper::Error) -> Reached {
    let refused = h2_error(error).is_some_and(|error| {
        error.is_remote()
            && (error.is_go_away() || error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM))
    });
    // A request that waited inside of hyper for its stream to be opened is told by this text only.
    let never_opened = error.is_user() && error.to_string() == "dispatch task is gone";
    if refused || never_opened { Reached::Nobody } else { Reached::Perhaps }
}

/// Whether the connection itself broke, rather than one stream on it.
pub(super) fn is_broken(error: &hyper::Error) -> bool {
    h2_error(error).is_none_or(|error| !error.is_reset())
}

/// The status of a call whose attempt at `address` ended with an error of the transport.
pub(super) fn transport(address: &Address, error: &hyper::Error) -> Status {
    let code = match h2_error(error) {
        Some(reset) if reset.is_reset() => match reset.reason() {
            Some(h2::Reason::REFUSED_STREAM) => Code::Unavailable,
            Some(h2::Reason::CANCEL) => Code::Cancelled,
            Some(h2::Reason::ENHANCE_YOUR_CALM) => Code::ResourceExhausted,
            Some(h2::Reason::INADEQUATE_SECURITY) => Code::PermissionDenied,
            _ => Code::Internal,
        },
        _ => Code::Unavailable,
    };
    Status::new(code, format!("{address}: {}", root(error)))
}

/// What the caller of a call that took too long is told.
pub(super) fn deadline_exceeded(waiting_for: &str) -> Status {
    Status::deadline_exceeded(format!("the deadline passed while waiting for {waiting_for}"))
}

/// The gRPC code in a head or in trailers, if there is one.
pub(super) fn code_of(headers: &HeaderMap) -> Option<Code> {
    headers.get("grpc-status").map(|value| Code::from_bytes(value.as_bytes()))
}

/// The gRPC code that an answer without one stands for, if its HTTP status is an error.
pub(super) fn code_of_http(status: StatusCode) -> Option<Code> {
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
pub(super) fn is_servers_timeout(headers: &HeaderMap) -> bool {
    let message = headers.get("grpc-message").map(http::HeaderValue::as_bytes);
    code_of(headers) == Some(Code::Cancelled) && matches!(message, Some(b"Timeout expired" | b"Timeout%20expired"))
}

fn h2_error(error: &hyper::Error) -> Option<&h2::Error> {
    error.source().and_then(<dyn StdError>::downcast_ref)
}

/// The innermost cause: "connection reset by peer" says more than "connection error".
pub(super) fn root(error: &(dyn StdError + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
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
