//! The body of a response: under the call's deadline, with the call's place held until its end.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tonic::{Code, Status};

use super::attempt::Attempt;
use super::spans::CallSpan;
use super::status;
use crate::channel::config::budget::RetryLimiter;
use crate::channel::config::message_limit::{MessageLimit, TooLong};
use crate::channel::deadline::Deadline;
use crate::channel::error::{CallPhase, ChannelError};
use crate::channel::transport::{BodySender, IncomingBody, TransportError};
use crate::metrics::channel::CallMetrics;

/// The body of a response. Dropping it before its end cancels the call at the server.
#[derive(Default)]
pub struct ResponseBody {
    /// `None` from its end on.
    open: Option<Open>,
}

/// A body that has not ended, and its call.
struct Open {
    /// Dropped before the call, which resets the stream.
    incoming: IncomingBody,
    call: OpenCall,
}

/// What a call holds until its body ends.
pub(super) struct OpenCall {
    /// The rest of the request. Dropped before the attempt, whose place another call may take at once.
    pub(super) sender: BodySender,
    pub(super) attempt: Attempt,
    pub(super) deadline: Deadline,
    pub(super) retry_budget: Option<Arc<RetryLimiter>>,
    /// The messages that came so far, up to two.
    pub(super) messages: u8,
    /// How long each message may be, and where the body is.
    pub(super) limit: Option<MessageLimit>,
    pub(super) metrics: CallMetrics,
    pub(super) span: CallSpan,
}

impl ResponseBody {
    pub(super) fn new(incoming: IncomingBody, call: OpenCall) -> Self {
        Self { open: Some(Open { incoming, call }) }
    }

    /// Keeps the call's span until its end, which may have come already.
    pub(super) fn set_span(&mut self, span: CallSpan) {
        if let Some(Open { call, .. }) = &mut self.open {
            call.span = span;
        }
    }

    /// Takes the call out, and lets go of the rest of the body: where that has not ended, it resets the stream.
    fn close(&mut self) -> Option<OpenCall> {
        self.open.take().map(|open| open.call)
    }

    /// The response ended, with these trailers.
    ///
    /// # Errors
    ///
    /// There is no status in them, or they say that the call's time is over.
    fn on_end(&mut self, trailers: Option<&Frame<Bytes>>) -> Result<(), Status> {
        // The head may have said it already.
        let Some(mut call) = self.close().filter(|call| !call.attempt.is_reported()) else { return Ok(()) };
        match call.on_end(trailers.and_then(Frame::trailers_ref)) {
            Ok(code) => {
                call.metrics.on_end(code);
                call.span.on_code(code);
                Ok(())
            }
            Err(status) => Err(call.failed_with(status)),
        }
    }

    fn on_error(&mut self, error: &TransportError) -> Option<Status> {
        let call = self.close()?;
        // The caller's own stream failed, and that reset the call: nothing that the instance did.
        if let Some(status) = call.sender.failure() {
            return Some(call.failed_with(status));
        }
        // Servers that reset a call at its deadline are heard a moment before our own clock is looked at.
        if error.is_cancelled_by_server() && call.deadline.is_over() {
            return Some(call.on_missed());
        }
        let status = call.attempt.on_transport_error(error);
        Some(call.failed_with(status))
    }

    /// The caller takes no message that long: nothing that the instance did wrong.
    fn on_too_long(&mut self, message: TooLong) -> Option<Status> {
        let call = self.close()?;
        let status = status::response_too_long(call.attempt.address(), message);
        Some(call.failed_with(status))
    }

    fn on_deadline(&mut self) -> Option<Status> {
        self.close().map(OpenCall::on_missed)
    }
}

impl OpenCall {
    /// The response ended with these trailers, if with any. Returns the code among them.
    fn on_end(&self, trailers: Option<&HeaderMap>) -> Result<Code, Status> {
        let Some(trailers) = trailers else { return Err(self.attempt.on_end_without_status()) };
        if let Some(status) = self.attempt.on_server_timeout(CallPhase::Responding, trailers) {
            return Err(status);
        }
        let code = status::code_of(trailers).ok_or_else(|| self.attempt.on_end_without_status())?;
        self.on_status(code, trailers);
        Ok(code)
    }

    fn on_missed(self) -> Status {
        self.attempt.on_missed();
        let status = ChannelError::deadline_passed_at(CallPhase::Responding, self.attempt.address());
        self.failed_with(status)
    }

    /// The call ends with this status.
    fn failed_with(mut self, status: Status) -> Status {
        self.metrics.on_end(status.code());
        self.attempt.on_call_failed(&status);
        self.span.on_status(&status);
        status
    }

    fn poll_missed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.deadline.poll_missed(self.attempt.runtime(), cx)
    }

    /// Some of the response is here. Returns how much of it the caller takes.
    fn on_data(&mut self, data: &[u8]) -> usize {
        self.messages = 2.min(self.messages + 1);
        self.limit.as_mut().map_or(data.len(), |limit| limit.read(data))
    }

    /// A message that is longer than it may be, and comes next.
    fn too_long(&self) -> Option<TooLong> {
        self.limit.as_ref()?.too_long()
    }

    fn on_status(&self, code: Code, trailers: &HeaderMap) {
        if code == Code::Ok
            && let Some(budget) = &self.retry_budget
        {
            budget.on_success();
        }
        self.attempt.on_status(code, trailers);
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let Some(Open { incoming, call }) = &mut this.open else { return Poll::Ready(None) };
        // A stream whose messages are always there already would never meet its deadline otherwise. The answer to a
        // unary call is over before that is looked at.
        if call.messages > 1 && call.poll_missed(cx).is_ready() {
            return Poll::Ready(this.on_deadline().map(Err));
        }
        if let Some(message) = call.too_long() {
            return Poll::Ready(this.on_too_long(message).map(Err));
        }
        match Pin::new(incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(mut frame))) => {
                if frame.is_trailers() {
                    if let Err(status) = this.on_end(Some(&frame)) {
                        return Poll::Ready(Some(Err(status)));
                    }
                } else if let Some(data) = frame.data_mut() {
                    let passes = call.on_data(data);
                    data.truncate(passes);
                    // What comes before a message that is too long is the caller's.
                    if passes == 0
                        && let Some(message) = call.too_long()
                    {
                        return Poll::Ready(this.on_too_long(message).map(Err));
                    }
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(this.on_error(&error).map(Err)),
            Poll::Ready(None) => Poll::Ready(this.on_end(None).err().map(Err)),
            Poll::Pending => call.poll_missed(cx).map(|()| this.on_deadline().map(Err)),
        }
    }

    fn is_end_stream(&self) -> bool {
        // Before that its status is still to be looked at.
        self.open.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        if self.open.is_some() { SizeHint::default() } else { SizeHint::with_exact(0) }
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").field("open", &self.open.is_some()).finish_non_exhaustive()
    }
}
