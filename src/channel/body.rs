//! The response body: under the call's deadline, with the call's place held until its end.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tonic::{Code, Status};

use super::call::{CancelOnDrop, Flight};
use super::deadline::Deadline;
use super::status;

/// The body of a response. Dropping it before its end cancels the call at the server.
#[derive(Default)]
pub struct ResponseBody {
    incoming: Option<Incoming>,
    call: Option<Call>,
}

/// What a call holds until its body ends.
struct Call {
    flight: Flight,
    /// What is still being sent.
    request: Option<CancelOnDrop>,
    deadline: Deadline,
    /// How many messages came so far, up to two.
    messages: u8,
}

impl ResponseBody {
    pub(super) fn new(incoming: Incoming, flight: Flight, request: Option<CancelOnDrop>, deadline: Deadline) -> Self {
        Self { incoming: Some(incoming), call: Some(Call { flight, request, deadline, messages: 0 }) }
    }

    /// The body of a call that is over.
    pub(super) fn rest(incoming: Incoming) -> Self {
        Self { incoming: Some(incoming), call: None }
    }

    /// What the end of the response means for the call and its instance.
    fn end(&mut self, trailers: Option<&mut Frame<Bytes>>) {
        let Some(call) = self.call.take() else { return };
        match trailers.and_then(Frame::trailers_mut) {
            Some(trailers) => {
                if !call.flight.own_timeout(trailers) {
                    call.flight.ended(status::code_of(trailers).unwrap_or(Code::Unknown));
                }
            }
            None => call.flight.ended(Code::Unknown),
        }
    }

    fn broke(&mut self, error: &hyper::Error) -> Status {
        let Some(call) = self.call.take() else { return Status::unknown(status::root(error)) };
        // The caller's own stream failed, and that reset the call: nothing the instance did.
        if let Some(status) = call.request.as_ref().and_then(|request| request.0.failure()) {
            return status;
        }
        let status = status::transport(call.flight.address(), error);
        call.flight.broke(error, status.code());
        status
    }

    fn missed(&mut self) -> Option<Status> {
        // Dropping hyper's body resets the stream.
        self.incoming = None;
        let call = self.call.take()?;
        call.flight.missed();
        Some(status::deadline_exceeded(&format!("the rest of the answer of {}", call.flight.address())))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        // A stream whose messages are always there already would never meet its deadline otherwise. The answer to a unary
        // call is over before that is looked at.
        if let Some(call) = &mut this.call
            && call.messages > 1
            && call.deadline.poll_missed(cx).is_ready()
        {
            return Poll::Ready(this.missed().map(Err));
        }
        let Some(incoming) = &mut this.incoming else { return Poll::Ready(None) };
        match Pin::new(incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(mut frame))) => {
                if frame.is_trailers() {
                    this.end(Some(&mut frame));
                } else if let Some(call) = &mut this.call {
                    call.messages = 2.min(call.messages + 1);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                let status = this.broke(&error);
                this.incoming = None;
                Poll::Ready(Some(Err(status)))
            }
            Poll::Ready(None) => {
                this.end(None);
                this.incoming = None;
                Poll::Ready(None)
            }
            Poll::Pending => match &mut this.call {
                Some(call) => call.deadline.poll_missed(cx).map(|()| this.missed().map(Err)),
                None => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").field("open", &self.call.is_some()).finish_non_exhaustive()
    }
}
