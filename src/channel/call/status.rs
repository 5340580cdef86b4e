//! gRPC's statuses in HTTP: where they stand in a response, and those of calls that no gRPC server answered.

use http::response::Parts;
use http::{HeaderMap, StatusCode, header};
use tonic::{Code, Status};

use crate::channel::config::message_limit::TooLong;
use crate::channel::error::ChannelError;
use crate::instance::Address;

/// What the head of a response says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// A gRPC response begins, and its status follows.
    Begins,
    /// A status, and nothing else.
    Status(Code),
    /// The answer of a proxy, or of a server of another kind, and the code that it stands for.
    NotGrpc(Code),
}

impl Answer {
    pub(super) fn of(head: &Parts) -> Self {
        match code_of(&head.headers) {
            Some(code) => Self::Status(code),
            None if head.status == StatusCode::OK && is_grpc(&head.headers) => Self::Begins,
            None => Self::NotGrpc(code_of_http(head.status)),
        }
    }
}

/// The status of a call that was answered with something else than gRPC.
pub(super) fn not_grpc(code: Code, address: &Address, head: &Parts) -> Status {
    let kind = match head.headers.get(header::CONTENT_TYPE) {
        Some(kind) => format!("content-type {:?}", String::from_utf8_lossy(kind.as_bytes())),
        None => "no content-type".to_owned(),
    };
    let reason = format!("the answer is no gRPC: HTTP status {}, {kind}", head.status);
    ChannelError::NotGrpc { address: address.clone(), reason }.into_status(code)
}

/// The status of a call whose response ended without one.
pub(super) fn without_status(address: &Address) -> Status {
    let reason = "the response ended without a grpc-status".to_owned();
    ChannelError::NotGrpc { address: address.clone(), reason }.into_status(Code::Unknown)
}

/// The status of a call with a message in its request that is longer than it may be.
pub(super) fn request_too_long(TooLong { bytes, limit }: TooLong) -> Status {
    let limit = format!("more than the {limit} of maxRequestMessageBytes in the service config: not sent");
    let reason = format!("a message of the request has {bytes} bytes, {limit}");
    ChannelError::MessageTooLong { address: None, reason }.into_status(Code::ResourceExhausted)
}

/// The status of a call with a message in its response that is longer than it may be, from this address.
pub(super) fn response_too_long(from: &Address, TooLong { bytes, limit }: TooLong) -> Status {
    let limit = format!("more than the {limit} of maxResponseMessageBytes in the service config");
    let reason = format!("a message of the response has {bytes} bytes, {limit}");
    ChannelError::MessageTooLong { address: Some(from.clone()), reason }.into_status(Code::ResourceExhausted)
}

/// The gRPC code in a head or in trailers, if there is one.
pub(super) fn code_of(headers: &HeaderMap) -> Option<Code> {
    headers.get("grpc-status").map(|value| Code::from_bytes(value.as_bytes()))
}

/// Whether a status among these headers says nothing beside its code.
pub(super) fn has_no_message(headers: &HeaderMap) -> bool {
    headers.get("grpc-message").is_none_or(http::HeaderValue::is_empty)
}

/// Whether this answer says that the server's own clock ran out: tonic calls it CANCELLED, with this text.
pub(super) fn is_servers_timeout(headers: &HeaderMap) -> bool {
    let message = headers.get("grpc-message").map(http::HeaderValue::as_bytes);
    code_of(headers) == Some(Code::Cancelled) && matches!(message, Some(b"Timeout expired" | b"Timeout%20expired"))
}

/// The gRPC code that an answer without one stands for, by gRPC's table of HTTP statuses.
fn code_of_http(status: StatusCode) -> Code {
    match status {
        StatusCode::BAD_REQUEST => Code::Internal,
        StatusCode::UNAUTHORIZED => Code::Unauthenticated,
        StatusCode::FORBIDDEN => Code::PermissionDenied,
        StatusCode::NOT_FOUND => Code::Unimplemented,
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Code::Unavailable,
        _ => Code::Unknown,
    }
}

/// Whether the content is gRPC's, in whatever encoding of its messages.
fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(http::HeaderValue::as_bytes).unwrap_or_default();
    let Some((grpc, rest)) = kind.split_at_checked(GRPC.len()) else { return false };
    grpc.eq_ignore_ascii_case(GRPC) && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
}

const GRPC: &[u8] = b"application/grpc";

#[cfg(test)]
mod tests {
    use super::*;

    fn head(status: u16, headers: &[(&'static str, &'static str)]) -> Parts {
        let mut builder = http::Response::builder().status(status);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).expect("a head").into_parts().0
    }

    #[test]
    fn only_tonics_own_words_for_a_timeout_count_as_one() {
        let answer = |code, message| head(200, &[("grpc-status", code), ("grpc-message", message)]).headers;
        assert!(is_servers_timeout(&answer("1", "Timeout expired")));
        assert!(is_servers_timeout(&answer("1", "Timeout%20expired")));
        assert!(!is_servers_timeout(&answer("1", "the user went away")));
        assert!(!is_servers_timeout(&answer("14", "Timeout expired")));
        assert!(!is_servers_timeout(&HeaderMap::new()));
    }

    #[test]
    fn grpc_is_known_by_its_content_type() {
        for kind in ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8", "Application/gRPC"]
        {
            assert_eq!(Answer::of(&head(200, &[("content-type", kind)])), Answer::Begins, "{kind}");
        }
        for kind in ["text/html", "application/grpc-web", "application/grpcx", "application/json", ""] {
            let answer = Answer::of(&head(200, &[("content-type", kind)]));
            assert_eq!(answer, Answer::NotGrpc(Code::Unknown), "{kind:?}");
        }
        assert_eq!(Answer::of(&head(200, &[])), Answer::NotGrpc(Code::Unknown), "no content type");
    }

    #[test]
    fn http_statuses_stand_for_the_codes_of_grpcs_table() {
        use Code::{Internal, PermissionDenied, Unauthenticated, Unavailable, Unimplemented, Unknown};
        for (status, code) in [
            (400, Internal),
            (401, Unauthenticated),
            (403, PermissionDenied),
            (404, Unimplemented),
            (429, Unavailable),
            (502, Unavailable),
            (503, Unavailable),
            (504, Unavailable),
            (500, Unknown),
            (301, Unknown),
            (204, Unknown),
        ] {
            let html = [("content-type", "text/html")];
            assert_eq!(Answer::of(&head(status, &html)), Answer::NotGrpc(code), "{status}");
            let grpc = [("content-type", "application/grpc"), ("grpc-status", "5")];
            assert_eq!(Answer::of(&head(status, &grpc)), Answer::Status(Code::NotFound), "{status}: gRPC's own counts");
        }
        let status = not_grpc(Code::Unknown, &"10.0.0.1:80".parse().expect("an address"), &head(200, &[]));
        assert_eq!(status.message(), "10.0.0.1:80: the answer is no gRPC: HTTP status 200 OK, no content-type");
    }
}
