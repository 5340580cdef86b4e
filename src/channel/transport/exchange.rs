//! A request head and its body become a response head and its body, or an error that says what it proves.
//!
//! The caller's own task writes the frames and reads the answer; the only other task is the one that moves the
//! connection's bytes.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, SendStream};
use http::Uri;
use http::uri::{Authority, PathAndQuery, Scheme};
use tonic::Status;

use super::body_sender::BodySender;
use super::error::AttemptError;
use super::incoming_body::IncomingBody;
use super::request_body::RequestBody;
use super::socket::PeerState;

/// One HTTP/2 connection as its calls use it. Clones are handles to the same connection, which stays open while one is
/// left.
#[derive(Clone)]
pub(crate) struct Transport {
    send: SendRequest<Bytes>,
    peer: Arc<PeerState>,
    scheme: Scheme,
    authority: Authority,
}

impl Transport {
    /// Requests name this scheme and authority.
    pub(super) fn new(send: SendRequest<Bytes>, peer: Arc<PeerState>, scheme: Scheme, authority: Authority) -> Self {
        Self { send, peer, scheme, authority }
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
        Uri::from_parts(parts).map_err(|error| Status::internal(format!("the path cannot be sent: {error}")))
    }

    /// How often a call made progress by DATA or by a window, modulo 2^32: none did between two equal counts.
    pub(crate) fn progress(&self) -> u32 {
        self.peer.progress()
    }

    /// Has the peer asked for a sign of life now, whatever the keepalive interval says.
    pub(crate) fn suspect(&self) {
        self.peer.suspect();
    }

    /// Hands the request's head to h2, and with it the part of its body that is there.
    ///
    /// # Errors
    ///
    /// The connection takes no more calls, or the body failed.
    pub(crate) fn begin(
        &self,
        head: http::Request<()>,
        body: &mut RequestBody,
        cx: &mut Context<'_>,
    ) -> Result<Exchange, AttemptError> {
        // First the body, so that what there is of it goes out in one write with the head.
        let is_all = body.begin(cx).map_err(AttemptError::Request)?;
        self.peer.on_call();
        // A clone per call: h2 has every clone wait for the stream that it opened last.
        match self.send.clone().send_request(head, is_all) {
            Ok((response, stream)) => Ok(Exchange { stream, response }),
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

/// A request on its way, until the head of its response. Dropped, it resets the stream.
pub(crate) struct Exchange {
    stream: SendStream<Bytes>,
    response: h2::client::ResponseFuture,
}

impl Exchange {
    /// Sends on, and looks for the head of the response.
    ///
    /// # Errors
    ///
    /// [`AttemptError`] says what is proved about the request.
    pub(crate) fn poll_response(
        &mut self,
        transport: &Transport,
        body: &mut RequestBody,
        cx: &mut Context<'_>,
    ) -> Poll<Result<http::Response<IncomingBody>, AttemptError>> {
        // Where the server takes no more of it, the response tells why.
        if let Poll::Ready(Err(status)) = body.poll_send(&mut self.stream, cx) {
            return Poll::Ready(Err(AttemptError::Request(status)));
        }
        let response = Pin::new(&mut self.response).poll(cx);
        response.map(|response| match response {
            Ok(response) => Ok(response.map(IncomingBody::new)),
            Err(error) => Err(transport.classify(error, self.stream.stream_id().as_u32())),
        })
    }

    /// The response has begun: the rest of the request goes on by itself.
    pub(crate) fn send_rest(self, body: RequestBody) -> BodySender {
        BodySender::of(body, self.stream)
    }

    /// The response is complete: what is left of the request is not wanted.
    pub(crate) fn finish(mut self, body: &RequestBody) {
        if !body.is_sent() {
            self.stream.send_reset(Reason::CANCEL);
        }
    }
}
