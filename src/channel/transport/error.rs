//! Errors of h2 become what they prove about a request, and the status of its call.

use h2::Reason;
use thiserror::Error;
use tonic::{Code, Status};

use crate::instance::Address;

/// Why a request has no response, by what that proves.
#[derive(Debug)]
pub(crate) enum AttemptError {
    /// No handler saw it, so it may be made again elsewhere invisibly.
    Unprocessed {
        error: TransportError,
        /// Nothing of it was written: the connection takes no calls any more.
        is_unsent: bool,
    },
    /// A handler may have seen it.
    MaybeProcessed(TransportError),
    /// The request itself failed, which says nothing about the server.
    Request(Status),
}

/// An error of one stream, or of the connection under it.
#[derive(Debug, Error)]
#[error(transparent)]
pub(crate) struct TransportError(#[from] h2::Error);

impl TransportError {
    /// Whether the connection itself broke, rather than one stream on it.
    pub(crate) fn is_of_connection(&self) -> bool {
        !self.0.is_reset()
    }

    /// Whether the connection that refused a call stays open, and nothing else will say that it takes no more: the
    /// numbers of its streams are used up.
    pub(crate) fn is_exhaustion(&self) -> bool {
        !self.0.is_go_away() && !self.0.is_io()
    }

    /// Whether the server refused the call as one too many.
    pub(crate) fn is_refusal(&self) -> bool {
        self.0.is_reset() && self.0.reason() == Some(Reason::REFUSED_STREAM)
    }

    /// Whether the server gave the call up: its clock ran out first, where the call has a deadline.
    pub(crate) fn is_cancelled_by_server(&self) -> bool {
        self.0.is_remote() && self.0.is_reset() && self.0.reason() == Some(Reason::CANCEL)
    }

    /// The status of a call that ended with it at `address`, by gRPC's table of HTTP/2 error codes.
    pub(crate) fn status(&self, address: &Address) -> Status {
        let code = match self.0.reason() {
            _ if self.is_of_connection() => Code::Unavailable,
            Some(Reason::REFUSED_STREAM) => Code::Unavailable,
            Some(Reason::CANCEL) => Code::Cancelled,
            Some(Reason::ENHANCE_YOUR_CALM) => Code::ResourceExhausted,
            Some(Reason::INADEQUATE_SECURITY) => Code::PermissionDenied,
            _ => Code::Internal,
        };
        Status::new(code, format!("{address}: {self}"))
    }
}
