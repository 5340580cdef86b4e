//! Errors of h2 become what they prove about a request, and the status of its call.

use h2::Reason;
use thiserror::Error;
use tonic::{Code, Status};

use crate::channel::error::ChannelError;
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
pub(crate) enum TransportError {
    #[error(transparent)]
    Http2(#[from] h2::Error),
    /// The call fails alone; its server has answered.
    #[error("the {part} of the response take {bytes} bytes, and http2_max_header_list_size is {limit}")]
    TooLong { part: &'static str, bytes: usize, limit: u32 },
}

impl TransportError {
    /// Whether the connection itself broke, rather than one stream on it.
    pub(crate) fn is_of_connection(&self) -> bool {
        matches!(self, Self::Http2(error) if !error.is_reset())
    }

    /// Whether the connection that refused a call stays open, and nothing else will say that it takes no more: the
    /// numbers of its streams are used up.
    pub(crate) fn is_exhaustion(&self) -> bool {
        matches!(self, Self::Http2(error) if !error.is_go_away() && !error.is_io())
    }

    /// Whether the server refused the call as one too many.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Http2(error) if error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM))
    }

    /// Whether the server gave the call up: its clock ran out first, where the call has a deadline.
    pub(crate) fn is_cancelled_by_server(&self) -> bool {
        let is_cancel = |error: &h2::Error| error.is_reset() && error.reason() == Some(Reason::CANCEL);
        matches!(self, Self::Http2(error) if error.is_remote() && is_cancel(error))
    }

    /// The status of a call that ended with it at `address`, by gRPC's table of HTTP/2 error codes.
    pub(crate) fn status(&self, address: &Address) -> Status {
        let (address, reason) = (address.clone(), self.to_string());
        let error = match self {
            Self::TooLong { .. } => {
                return ChannelError::HeadersTooLong { address, reason }.into_status(Code::Internal);
            }
            Self::Http2(_) if self.is_of_connection() => {
                return ChannelError::ConnectionBroken { address, reason }.into_status(Code::Unavailable);
            }
            Self::Http2(error) => error,
        };
        let code = match error.reason() {
            Some(Reason::REFUSED_STREAM) => {
                return ChannelError::Refused { address, reason }.into_status(Code::Unavailable);
            }
            Some(Reason::CANCEL) => Code::Cancelled,
            Some(Reason::ENHANCE_YOUR_CALM) => Code::ResourceExhausted,
            Some(Reason::INADEQUATE_SECURITY) => Code::PermissionDenied,
            _ => Code::Internal,
        };
        ChannelError::StreamReset { address, reason }.into_status(code)
    }
}
