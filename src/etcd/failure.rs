//! Errors of etcd-client, to the kinds that decide what is tried next, with a hint where a user may have got something
//! wrong.

use std::error::Error as _;

use etcd_client::Error as ClientError;
use tonic::{Code, Status};

use crate::error::{BoxError, EtcdError, EtcdErrorKind, chain};

pub(super) fn failure(member: &str, operation: &'static str, key: &str, error: ClientError) -> EtcdError {
    let kind = classify(&error);
    let source: BoxError = match error {
        ClientError::GRpcStatus(status) => reason(&status).into(),
        error => error.into(),
    };
    EtcdError { kind, member: member.to_owned(), operation, key: key.to_owned(), source: Some(source) }
}

/// Adds what a user may have got wrong, where the failure of a member that was never heard looks like that.
pub(super) fn add_hint(error: &mut EtcdError, logs_in: bool, is_plain: bool) {
    let reason = error.reason();
    let lower = reason.to_lowercase();
    let says = |texts: &[&str]| texts.iter().any(|text| lower.contains(text));
    let hint = match error.kind {
        EtcdErrorKind::Token if !logs_in && says(&["user name is empty"]) => "it wants a login: auth(..)",
        EtcdErrorKind::Unreachable if is_plain && says(&BROKEN_OFF) => "it may want TLS: https and tls(..)",
        EtcdErrorKind::Tls if says(&["invalidcontenttype", "handshake eof"]) => {
            "it may speak plain HTTP, or be no etcd"
        }
        #[cfg(feature = "_tls")]
        EtcdErrorKind::Unreachable if !is_plain && (says(&BROKEN_OFF) || says(&["fatal alert"])) => {
            crate::tls::HINT_ON_BREAK
        }
        #[cfg(feature = "_tls")]
        EtcdErrorKind::Tls => match crate::tls::hint(&reason) {
            Some(hint) => hint,
            None => return,
        },
        _ => return,
    };
    error.source = Some(format!("{reason}; {hint}").into());
}

/// What is said of a connection whose peer ends it as soon as it hears us.
const BROKEN_OFF: [&str; 4] = ["broken pipe", "connection closed", "invalid size", "connection reset"];

/// The member's message, or the fate of the connection; a status shows its own source as `Debug` does.
fn reason(status: &Status) -> String {
    status.source().map_or_else(|| status.message().to_owned(), chain)
}

fn classify(error: &ClientError) -> EtcdErrorKind {
    match error {
        #[cfg(feature = "_tls")]
        ClientError::GRpcStatus(status) if crate::tls::TlsError::is_behind(status) => EtcdErrorKind::Tls,
        // A status with a source was made here, from a connection that broke or could not be made.
        ClientError::GRpcStatus(status) => match classify_status(status.code(), status.message()) {
            EtcdErrorKind::Unavailable if status.source().is_some() => EtcdErrorKind::Unreachable,
            kind => kind,
        },
        ClientError::TransportError(_) | ClientError::IoError(_) | ClientError::WatchError(_) => {
            EtcdErrorKind::Unreachable
        }
        // The text is all that etcd-client leaves of a lease that died before its first keepalive.
        ClientError::LeaseKeepAliveError(text) if text.contains("not found") => EtcdErrorKind::NotFound,
        ClientError::LeaseKeepAliveError(_) => EtcdErrorKind::Unreachable,
        _ => EtcdErrorKind::Refused,
    }
}

/// etcd's codes alone are ambiguous: wrong passwords are `InvalidArgument`, and so are malformed requests.
pub(super) fn classify_status(code: Code, message: &str) -> EtcdErrorKind {
    let says = |text: &str| message.contains(text);
    match code {
        // Permissions changed since the token was given out, or there is none: authentication was switched on
        // meanwhile.
        _ if says("invalid auth token") || says("revision of auth store is old") || says("user name is empty") => {
            EtcdErrorKind::Token
        }
        _ if says("permission denied") || says("authentication failed") => EtcdErrorKind::Denied,
        _ if says("decoded message length too large") || says("larger than max") => EtcdErrorKind::TooLarge,
        _ if says("failed to decode") || says("decompress") => EtcdErrorKind::TooLarge,
        // Of this member, whatever its code, which changed between versions.
        _ if INCAPABLE.iter().any(|text| says(text)) => EtcdErrorKind::Incapable,
        Code::Unauthenticated => EtcdErrorKind::Token,
        Code::PermissionDenied => EtcdErrorKind::Denied,
        Code::NotFound => EtcdErrorKind::NotFound,
        Code::FailedPrecondition if says("lease already exists") => EtcdErrorKind::AlreadyExists,
        Code::AlreadyExists => EtcdErrorKind::AlreadyExists,
        Code::OutOfRange => EtcdErrorKind::Compacted,
        // etcd says so when it cannot serve; the others come from tonic and h2, when a connection or its runtime is
        // gone.
        Code::Unavailable | Code::DeadlineExceeded => EtcdErrorKind::Unavailable,
        Code::Cancelled | Code::Unknown | Code::Internal | Code::Aborted => EtcdErrorKind::Unreachable,
        _ => EtcdErrorKind::Refused,
    }
}

/// What a member says that lags behind the others, that starts, that is a learner, or that takes only smaller requests.
const INCAPABLE: [&str; 4] = ["too many requests", "not capable", "not supported for learner", "request is too large"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcds_answers_are_told_apart_by_code_and_text() {
        use EtcdErrorKind::{
            AlreadyExists, Compacted, Denied, Incapable, NotFound, Refused, Token, TooLarge, Unavailable, Unreachable,
        };
        for (code, message, kind) in [
            (Code::Unavailable, "etcdserver: no leader", Unavailable),
            (Code::Unavailable, "etcdserver: request timed out", Unavailable),
            (Code::Unknown, "Service was not ready: transport error", Unreachable),
            (Code::Unauthenticated, "etcdserver: invalid auth token", Token),
            (Code::Unknown, "etcdserver: invalid auth token", Token),
            (Code::InvalidArgument, "etcdserver: authentication failed, invalid user ID or password", Denied),
            (Code::InvalidArgument, "etcdserver: user name is empty", Token),
            // As a watch gets it, in a message.
            (Code::Unavailable, "rpc error: code = InvalidArgument desc = etcdserver: user name is empty", Token),
            (
                Code::Unavailable,
                "rpc error: code = InvalidArgument desc = etcdserver: revision of auth store is old",
                Token,
            ),
            (Code::Unavailable, "rpc error: code = PermissionDenied desc = etcdserver: permission denied", Denied),
            (Code::PermissionDenied, "etcdserver: permission denied", Denied),
            (Code::NotFound, "etcdserver: requested lease not found", NotFound),
            (Code::FailedPrecondition, "etcdserver: lease already exists", AlreadyExists),
            (Code::FailedPrecondition, "etcdserver: authentication is not enabled", Refused),
            (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted", Compacted),
            (Code::OutOfRange, "Error, decoded message length too large: found 5, the limit is: 4", TooLarge),
            (Code::Internal, "failed to decode Protobuf message: buffer underflow", TooLarge),
            (Code::ResourceExhausted, "grpc: trying to send message larger than max (9 vs. 8)", TooLarge),
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", Refused),
            (Code::ResourceExhausted, "etcdserver: too many requests", Incapable),
            (Code::InvalidArgument, "etcdserver: request is too large", Incapable),
            (Code::Unavailable, "etcdserver: rpc not supported for learner", Incapable),
            (Code::FailedPrecondition, "etcdserver: rpc not supported for learner", Incapable),
            (Code::FailedPrecondition, "etcdserver: not capable", Incapable),
            (Code::InvalidArgument, "etcdserver: key is not provided", Refused),
        ] {
            assert_eq!(classify_status(code, message), kind, "{code:?} {message}");
        }
    }
}
