//! The response body: under the call's deadline, with the call's place held until its end.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http_body::{Body, Frame, SizeHint};
use tonic::{Code, Status};

use crate::channel::call::Flight;
use crate::channel::deadline::Deadline;
use crate::channel::transport::request_body::BodySender;
use crate::channel::transport::status;

/// The body of a response. Dropping it before its end cancels the call at the server.
#[derive(Default)]
pub struct ResponseBody {
    incoming: Option<RecvStream>,
    /// Whether the data is at its end, and trailers may follow.
    is_data_over: bool,
    call: Option<Call>,
}

/// What a call holds until its body ends.
struct Call {
    flight: Flight,
    /// What is still being sent.
    rest: BodySender,
    deadline: Deadline,
    /// How many messages came so far, up to two.
    messages: u8,
}

impl ResponseBody {
    pub(crate) fn new(incoming: RecvStream, flight: Flight, rest: BodySender, deadline: Deadline) -> Self {
        let call = Call { flight, rest, deadline, messages: 0 };
        Self { incoming: Some(incoming), is_data_over: false, call: Some(call) }
    }

    /// The body of a call that no balancing brought here, so nothing is counted for it.
    #[cfg(feature = "health")]
    pub(crate) fn rest(incoming: RecvStream) -> Self {
        Self { incoming: Some(incoming), is_data_over: false, call: None }
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

    fn broke(&mut self, error: &h2::Error) -> Status {
        let Some(call) = self.call.take() else { return Status::unknown(error.to_string()) };
        // The caller's own stream failed, and that reset the call: nothing the instance did.
        if let Some(status) = call.rest.failure() {
            return status;
        }
        let status = status::transport(call.flight.address(), error);
        call.flight.broke(error, status.code());
        status
    }

    fn missed(&mut self) -> Option<Status> {
        // Dropping it resets the stream.
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
        match poll_incoming(incoming, &mut this.is_data_over, cx) {
            Poll::Ready(Some(Ok(mut frame))) => {
                if frame.is_trailers() {
                    this.end(Some(&mut frame));
                    this.incoming = None;
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
        self.incoming.as_ref().is_none_or(RecvStream::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        if self.incoming.is_some() { SizeHint::default() } else { SizeHint::with_exact(0) }
    }
}

/// The next of the response: data, whose room is given back to the peer, or the trailers after it.
fn poll_incoming(
    incoming: &mut RecvStream,
    is_data_over: &mut bool,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
    if !*is_data_over {
        match ready!(incoming.poll_data(cx)) {
            Some(Ok(data)) => {
                // Refused only for a stream that is over.
                let _ = incoming.flow_control().release_capacity(data.len());
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            // All of the response is there, and the server wants no more of the request.
            Some(Err(error)) if error.reason() == Some(Reason::NO_ERROR) && error.is_reset() => {
                return Poll::Ready(None);
            }
            Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            None => {}
        }
        *is_data_over = true;
    }
    incoming.poll_trailers(cx).map(|trailers| trailers.transpose().map(|trailers| trailers.map(Frame::trailers)))
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").field("open", &self.call.is_some()).finish_non_exhaustive()
    }
}
