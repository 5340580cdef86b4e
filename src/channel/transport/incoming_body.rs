//! A response's DATA and trailers, with the window given back to the peer as they are read.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use super::error::TransportError;

/// The body of a response as it comes in. Dropped before its end, it resets the stream.
pub(crate) struct IncomingBody {
    stream: RecvStream,
    /// Whether the data is at its end, and trailers may follow.
    is_data_over: bool,
    headers: HeaderLimit,
}

/// How long the headers of a response may be, head and trailers each, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeaderLimit(pub(super) u32);

impl HeaderLimit {
    /// # Errors
    ///
    /// [`TransportError::TooLong`] for longer ones, of which `part` says what they are of.
    pub(super) fn check(self, part: &'static str, headers: &HeaderMap) -> Result<(), TransportError> {
        // As HTTP/2 counts them.
        let bytes = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
        if u32::try_from(bytes).is_ok_and(|bytes| bytes <= self.0) {
            return Ok(());
        }
        Err(TransportError::TooLong { part, bytes, limit: self.0 })
    }
}

impl IncomingBody {
    pub(super) fn new(stream: RecvStream, headers: HeaderLimit) -> Self {
        Self { stream, is_data_over: false, headers }
    }

    /// Polls DATA, whose window goes back to the peer; `None` at its end.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        match ready!(self.stream.poll_data(cx)) {
            Some(Ok(data)) => {
                // Refused only for a stream that is over.
                let _ = self.stream.flow_control().release_capacity(data.len());
                Poll::Ready(Some(Ok(data)))
            }
            end => Poll::Ready(end),
        }
    }
}

impl Body for IncomingBody {
    type Data = Bytes;
    type Error = TransportError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, TransportError>>> {
        if !self.is_data_over {
            match ready!(self.poll_data(cx)) {
                Some(Ok(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                // Also where the server says NO_ERROR: after all of the response h2 reports its end instead.
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => self.is_data_over = true,
            }
        }
        let Some(trailers) = ready!(self.stream.poll_trailers(cx))? else { return Poll::Ready(None) };
        let checked = self.headers.check("trailers", &trailers);
        Poll::Ready(Some(checked.map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

impl fmt::Debug for IncomingBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IncomingBody").field("is_data_over", &self.is_data_over).finish_non_exhaustive()
    }
}
