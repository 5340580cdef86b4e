//! One call on its way: a place, the request on a connection, and the head of the response; again elsewhere where it
//! provably reached nobody.
//!
//! | state | what it waits for | how it ends |
//! | --- | --- | --- |
//! | placing | a place: a connection, or its turn | the line's answer, or the deadline |
//! | sent | the head of the response | the head, a failure, the deadline, or placing again |
//! | answered | the caller reads [`ResponseBody`] | the body's end, a failure, the deadline |
//!
//! Whoever drops it in whatever state gives the place back, lets go of the request body and resets the stream at the server.

use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Uri, Version, header};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::{Code, Status};

use super::Owner;
use super::body::ResponseBody;
use super::candidate::Seat;
use super::deadline::{Deadline, GRPC_TIMEOUT, timeout_header, timeout_of};
use super::link::Link;
use super::outlier::{Ending, Outcome};
use super::shared::Place;
use super::status::{self, Reached};
use super::upload::{Request, Sent, Upload};
use crate::instance::Address;

/// How often one call is tried in all. Each attempt that reached nobody came from an instance that will be READY no more or
/// refuses now, so a call that meets ten of them in a row has better news to bring than an eleventh try.
const ATTEMPTS: u32 = 10;

/// For one call: whether it waits while nothing is READY, whatever the channel does otherwise. Put into the request's
/// extensions.
///
/// ```
/// let mut request = tonic::Request::new(());
/// request.extensions_mut().insert(tonic_etcd::WaitForReady(true));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitForReady(pub bool);

/// The future of one call.
///
/// # Cancel safety
///
/// Dropping it cancels the call: the server is told at once, and the request's stream is dropped.
#[must_use = "futures do nothing unless polled"]
pub struct ResponseFuture {
    call: Pin<Box<dyn Future<Output = Result<http::Response<ResponseBody>, Status>> + Send>>,
}

impl ResponseFuture {
    pub(super) fn new(owner: Arc<Owner>, request: http::Request<Body>) -> Self {
        Self { call: Box::pin(call(owner, request)) }
    }
}

impl Future for ResponseFuture {
    type Output = Result<http::Response<ResponseBody>, Status>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.call.as_mut().poll(cx)
    }
}

impl fmt::Debug for ResponseFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

async fn call(owner: Arc<Owner>, request: http::Request<Body>) -> Result<http::Response<ResponseBody>, Status> {
    let started = Instant::now();
    let shared = &owner.shared;
    let settings = &shared.settings;
    let (head, body) = request.into_parts();
    let wait_for_ready = head.extensions.get().map_or(settings.wait_for_ready, |WaitForReady(wait)| *wait);
    let own = timeout_of(&head.headers);
    let mut deadline = Deadline::new(own, settings.timeout, started);
    let mut head = Head::new(head.method, &head.uri, head.headers, &settings.user_agent);
    // The server is told what is left; the caller's own header says it for as long as nothing was waited for.
    if deadline.at() != own.map(|own| started + own) {
        head.tell(&deadline, started);
    }
    let request = CancelOnDrop(Request::new(body));

    let mut placed = shared.place_now().map(|place| (place, started));
    let mut refused: Option<Refused> = None;
    for _ in 0..ATTEMPTS {
        let (place, at) = match placed.take() {
            Some(placed) => placed,
            None => {
                let avoid = refused.as_ref().map(|refused| refused.by.clone());
                let placed = within(&mut deadline, shared.place(avoid, wait_for_ready)).await;
                let now = Instant::now();
                head.tell(&deadline, now);
                match placed {
                    Some(Ok(place)) => (place, now),
                    // What the last instance said is closer to the cause than that there is none left.
                    Some(Err(status)) => return Err(refused.map_or(status, |refused| refused.status)),
                    None => return Err(status::deadline_exceeded("an instance that can take the call")),
                }
            }
        };
        let Some(upload) = request.0.upload() else { break };
        let mut flight = Flight::new(place, at, deadline.at().is_some());
        let outgoing = head.request(flight.link(), upload)?;
        let sending = flight.link().send.clone().try_send_request(outgoing);
        match within(&mut deadline, sending).await {
            Some(Ok(response)) => return Ok(flight.answered(response, request, deadline)),
            Some(Err(error)) => {
                // The caller's own stream failed, and that reset the call.
                if let Some(status) = request.0.failure() {
                    return Err(status);
                }
                refused = Some(flight.failed(error)?);
            }
            None => {
                flight.missed();
                return Err(status::deadline_exceeded(&format!("{} to answer", flight.address())));
            }
        }
    }
    Err(request.0.failure().or(refused.map(|refused| refused.status)).unwrap_or_else(unplaced))
}

/// A call that neither an instance nor its own stream refused, and that got no attempt: cannot happen, but must not panic.
fn unplaced() -> Status {
    Status::internal("the request could not be sent")
}

/// What `future` ends with; `None` where the deadline comes first.
async fn within<F: Future>(deadline: &mut Deadline, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => deadline.poll_missed(cx).map(|()| None),
    })
    .await
}

/// An attempt that reached nobody.
struct Refused {
    by: Arc<Seat>,
    status: Status,
}

/// What is kept of a call's head for another attempt: everything but the extensions, which nobody on the wire sees.
struct Head {
    method: Method,
    path: PathAndQuery,
    headers: HeaderMap,
}

impl Head {
    fn new(method: Method, uri: &Uri, mut headers: HeaderMap, user_agent: &HeaderValue) -> Self {
        headers.entry(header::USER_AGENT).or_insert_with(|| user_agent.clone());
        let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        Self { method, path, headers }
    }

    /// Writes what is left of the time.
    fn tell(&mut self, deadline: &Deadline, now: Instant) {
        if let Some(at) = deadline.at() {
            self.headers.insert(GRPC_TIMEOUT, timeout_header(at.saturating_duration_since(now)));
        }
    }

    fn request(&self, link: &Link, upload: Upload) -> Result<http::Request<Upload>, Status> {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(link.scheme.clone());
        parts.authority = Some(link.authority.clone());
        parts.path_and_query = Some(self.path.clone());
        let uri =
            Uri::from_parts(parts).map_err(|error| Status::internal(format!("the path cannot be sent: {error}")))?;
        let mut request = http::Request::new(upload);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = uri;
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = self.headers.clone();
        Ok(request)
    }
}

/// Lets go of the request body when dropped.
pub(super) struct CancelOnDrop(pub(super) Arc<Request>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// One attempt between its place and its end.
pub(super) struct Flight {
    place: Place,
    /// When it was sent.
    at: Instant,
    /// How many calls its connection had answered by then.
    answered: u64,
    has_deadline: bool,
}

impl Flight {
    fn new(place: Place, at: Instant, has_deadline: bool) -> Self {
        let answered = place.link().report.answered();
        Self { place, at, answered, has_deadline }
    }

    pub(super) fn address(&self) -> &Address {
        self.link().report.address()
    }

    fn link(&self) -> &Link {
        self.place.link()
    }

    /// The response has begun.
    fn answered(
        self,
        response: http::Response<Incoming>,
        request: CancelOnDrop,
        deadline: Deadline,
    ) -> http::Response<ResponseBody> {
        let (mut head, incoming) = response.into_parts();
        head.extensions.insert(self.place.candidate().shared_instance().clone());
        let timed_out = self.own_timeout(&mut head.headers);
        if !timed_out {
            self.link().report.answer();
        }
        // Nothing follows an answer that consists of its head, and nothing of one that failed in HTTP is gRPC.
        let code = status::code_of(&head.headers).or_else(|| status::code_of_http(head.status));
        // Who fails at once is not fast.
        if code.is_none_or(|code| code == Code::Ok) {
            self.place.candidate().seat().answered(self.at.elapsed());
        }
        if let Some(code) = code {
            if !timed_out {
                self.ended(code);
            }
            request.0.commit();
            return http::Response::from_parts(head, ResponseBody::rest(incoming));
        }
        let rest = match request.0.commit() {
            Sent::Entirely => None,
            Sent::Partly => Some(request),
        };
        http::Response::from_parts(head, ResponseBody::new(incoming, self, rest, deadline))
    }

    /// The attempt failed without a response: it reached nobody, or this is what the caller is told.
    fn failed(&mut self, mut error: TrySendError<http::Request<Upload>>) -> Result<Refused, Status> {
        let unsent = error.take_message().is_some();
        let error = error.into_error();
        let status = status::transport(self.address(), &error);
        tracing::debug!(address = %self.address(), unsent, %error, "attempt failed");
        let seat = self.place.candidate().seat();
        if unsent {
            // The connection is closing; its task is about to say so.
            seat.close();
        }
        if unsent || status::reached(&error) == Reached::Nobody {
            return Ok(Refused { by: seat.clone(), status });
        }
        self.broke(&error, status.code());
        Err(status)
    }

    /// The connection or the stream broke.
    pub(super) fn broke(&self, error: &hyper::Error, code: Code) {
        self.tell(code, if status::is_broken(error) { Ending::Broken } else { Ending::Answered });
    }

    /// The server has answered, with this code in the end.
    pub(super) fn ended(&self, code: Code) {
        self.tell(code, Ending::Answered);
    }

    /// The deadline came first. That says something about the instance only if it answered nobody since.
    pub(super) fn missed(&self) {
        if self.link().report.answered() == self.answered {
            self.tell(Code::DeadlineExceeded, Ending::Missed);
        }
    }

    /// The server's clock can run out a moment before ours. tonic's servers call that CANCELLED; it is a deadline that
    /// was missed, and is told and counted as one.
    pub(super) fn own_timeout(&self, headers: &mut HeaderMap) -> bool {
        let timed_out = self.has_deadline && status::is_servers_timeout(headers);
        if timed_out {
            headers.insert("grpc-status", HeaderValue::from(Code::DeadlineExceeded as i32));
            self.missed();
        }
        timed_out
    }

    fn tell(&self, code: Code, ending: Ending) {
        self.link().report.outcome(Outcome::new(code, ending), &self.place.shared().settings.outliers);
    }
}
