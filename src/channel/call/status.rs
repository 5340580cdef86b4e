//! gRPC's statuses in HTTP: where they stand in a response, and those of calls that no server answered.

use http::{HeaderMap, StatusCode};
use tonic::{Code, Status};

/// The status of a call that took too long.
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
