//! A request head and its body become a response head and its body, or an error that says what it proves.
//!
//! The caller's own task writes the frames and reads the answer; the only other task is the one that moves the
//! connection's bytes.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, SendStream};
use http::Uri;
use http::uri::{Authority, PathAndQuery, Scheme};
use tokio::runtime::Handle as Runtime;
use tonic::{Code, Status};

use super::body_sender::BodySender;
use super::error::AttemptError;
use super::incoming_body::{HeaderLimit, IncomingBody};
use super::request_body::RequestBody;
use super::socket::{PeerState, Waiting};
use crate::channel::error::ChannelError;

/// One HTTP/2 connection as its calls use it. Clones are handles to the same connection, which stays open while one is
/// left.
#[derive(Clone)]
pub(crate) struct Transport {
    send: SendRequest<Bytes>,
    peer: Arc<PeerState>,
    scheme: Scheme,
    authority: Authority,
    headers: HeaderLimit,
    runtime: Runtime,
}

impl Transport {
    /// Requests name this scheme and authority, and the headers of responses have a limit. What goes on beside a call
    /// does so on the runtime at hand, which drives the connection as well.
    pub(super) fn new(
        send: SendRequest<Bytes>,
        peer: Arc<PeerState>,
        (scheme, authority): (Scheme, Authority),
        headers: HeaderLimit,
    ) -> Self {
        Self { send, peer, scheme, authority, headers, runtime: Runtime::current() }
    }

    /// The URI of a request on this connection.
    ///
    /// # Errors
    ///
    /// INTERNAL for a path that cannot stand behind an authority.
    pub(crate) fn uri(&self, path: PathAndQuery) -> Result<Uri, Status> {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = Some(path);
        Uri::from_parts(parts).map_err(|error| {
            let reason = format!("the path cannot be sent: {error}");
            ChannelError::BadRequest { reason }.into_status(Code::Internal)
        })
    }

    /// The runtime that drives the connection.
    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// How often a call made progress by DATA or by a window, modulo 2^32: none did between two equal counts.
    pub(crate) fn progress(&self) -> u32 {
        self.peer.progress()
    }

    /// The bytes that came from the peer, modulo the size of a word: it was not heard between two equal counts.
    pub(crate) fn heard(&self) -> usize {
        self.peer.read()
    }

    /// Has the peer asked for a sign of life now, whatever the keepalive interval says.
    pub(crate) fn suspect(&self) {
        self.peer.suspect();
    }

    /// Hands the request's head to h2, and with it the part of its body that is there.
    fn begin(
        &self,
        head: http::Request<()>,
        body: &mut RequestBody,
        cx: &mut Context<'_>,
    ) -> Result<Open, AttemptError> {
        // First the body, so that what there is of it goes out in one write with the head.
        let is_all = body.begin(cx).map_err(AttemptError::Request)?;
        self.peer.on_call();
        self.peer.charge(body.unsent_bytes());
        // A clone per call: h2 has every clone wait for the stream that it opened last.
        match self.send.clone().send_request(head, is_all) {
            Ok((response, stream)) => Ok(Open { stream, response: Some(response) }),
            Err(error) => Err(AttemptError::Unprocessed { error: error.into(), is_unsent: true }),
        }
    }

    #[cfg(test)]
    pub(super) fn h2(self) -> SendRequest<Bytes> {
        self.send
    }

    fn classify(&self, error: h2::Error, stream: u32) -> AttemptError {
        // The connection ended with the call still in its queue.
        let is_unsent = error.is_io() && self.peer.is_unwritten(stream);
        let is_refusal = error.is_go_away() || error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
        if is_unsent || error.is_remote() && is_refusal {
            AttemptError::Unprocessed { error: error.into(), is_unsent }
        } else {
            AttemptError::MaybeProcessed(error.into())
        }
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").field("authority", &self.authority).finish_non_exhaustive()
    }
}

/// A request on its way, until the head of its response. Dropped, it resets the stream, or was never sent.
#[derive(Default)]
pub(crate) struct Exchange {
    /// Its place among the calls that wait for the socket.
    waiting: Option<Waiting>,
    /// There once it is with h2.
    open: Option<Open>,
}

struct Open {
    stream: SendStream<Bytes>,
    /// There until the response has begun.
    response: Option<h2::client::ResponseFuture>,
}

impl Exchange {
    /// Hands `request` to the connection as soon as the socket takes bytes, sends on, and looks for the head of the
    /// response.
    ///
    /// # Errors
    ///
    /// [`AttemptError`] says what is proved about the request.
    pub(crate) fn poll_response(
        &mut self,
        transport: &Transport,
        request: impl FnOnce() -> Result<http::Request<()>, Status>,
        body: &mut RequestBody,
        cx: &mut Context<'_>,
    ) -> Poll<Result<http::Response<IncomingBody>, AttemptError>> {
        let open = match &mut self.open {
            Some(open) => open,
            unsent => {
                ready!(transport.peer.poll_room(&mut self.waiting, cx));
                let request = request().map_err(AttemptError::Request)?;
                unsent.insert(transport.begin(request, body, cx)?)
            }
        };
        // Where the server takes no more of it, the response tells why.
        if let Poll::Ready(Err(status)) = body.poll_send(&mut open.stream, cx) {
            return Poll::Ready(Err(AttemptError::Request(status)));
        }
        let Some(response) = &mut open.response else { return Poll::Pending };
        let response = ready!(Pin::new(response).poll(cx));
        open.response = None;
        match response {
            Ok(response) => match transport.headers.check("head", response.headers()) {
                Ok(()) => Poll::Ready(Ok(response.map(|body| IncomingBody::new(body, transport.headers)))),
                Err(error) => {
                    open.stream.send_reset(Reason::CANCEL);
                    Poll::Ready(Err(AttemptError::MaybeProcessed(error)))
                }
            },
            Err(error) => Poll::Ready(Err(transport.classify(error, open.stream.stream_id().as_u32()))),
        }
    }

    /// Whether the request waits for the socket.
    pub(crate) fn is_waiting(&self) -> bool {
        self.open.is_none()
    }

    /// The response has begun: the rest of the request goes on by itself.
    pub(crate) fn send_rest(mut self, transport: &Transport, body: RequestBody) -> BodySender {
        match self.open.take() {
            Some(open) => BodySender::of(body, open.stream, &transport.runtime),
            None => BodySender::default(),
        }
    }

    /// Nothing but the head of the response is wanted: neither the rest of it, nor what is left of the request.
    pub(crate) fn finish(mut self, body: &RequestBody) {
        if let Some(mut open) = self.open.take()
            && !body.is_flushed()
        {
            open.stream.send_reset(Reason::CANCEL);
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let Some(Open { stream, response: Some(response) }) = &mut self.open else { return };
        // A response may have come meanwhile. Where all of it has, h2 sends no reset by itself, and would keep what is
        // left of the request for as long as the peer makes no room for it.
        if let Poll::Ready(Ok(_)) = Pin::new(response).poll(&mut Context::from_waker(Waker::noop())) {
            stream.send_reset(Reason::CANCEL);
        }
    }
}
