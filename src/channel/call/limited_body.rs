//! A request body whose messages have a limit: one that is too long ends it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use super::status;
use crate::channel::config::message_limit::MessageLimit;

/// A caller's body under a limit.
pub(super) struct LimitedBody {
    body: Body,
    limit: MessageLimit,
}

impl LimitedBody {
    pub(super) fn new(body: Body, bytes: u32) -> Self {
        Self { body, limit: MessageLimit::new(bytes) }
    }
}

impl http_body::Body for LimitedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let Some(frame) = ready!(Pin::new(&mut this.body).poll_frame(cx)).transpose()? else {
            return Poll::Ready(None);
        };
        if let Some(data) = frame.data_ref() {
            this.limit.read(data);
        }
        // What comes before it in the same frame goes with its call.
        Poll::Ready(Some(this.limit.too_long().map_or(Ok(frame), |message| Err(status::request_too_long(message)))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
