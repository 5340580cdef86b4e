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
//!
//! It talks to h2 itself: whoever makes a call writes its frames and reads its answer on its own task, and the only other
//! task is the one that moves the connection's bytes.

use std::fmt;
use std::future::poll_fn;
use std::ops::DerefMut;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version, header};
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
use super::upload::{Rest, Upload};
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
        let call = Call::new(owner, request);
        // In the future's place, `request` would lie beside everything that is made of it: kept small, the future comes from
        // the allocator's cache of small blocks, which takes no lock where another thread frees it.
        Self { call: Box::pin(call.run()) }
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

/// A call before its first attempt.
struct Call {
    owner: Arc<Owner>,
    head: Head,
    upload: Upload,
    deadline: Deadline,
    wait_for_ready: bool,
    /// What the policy makes of it.
    key: u64,
    started: Instant,
    place: Option<Place>,
}

impl Call {
    fn new(owner: Arc<Owner>, request: http::Request<Body>) -> Self {
        let started = Instant::now();
        let settings = &owner.shared.settings;
        let (head, body) = request.into_parts();
        let key = settings.policy.key(&head);
        let wait_for_ready = head.extensions.get().map_or(settings.wait_for_ready, |WaitForReady(wait)| *wait);
        let own = timeout_of(&head.headers);
        let deadline = Deadline::new(own, settings.timeout, started);
        let mut head = Head::new(head.method, &head.uri, head.headers, &settings.user_agent);
        // The server is told what is left; the caller's own header says it for as long as nothing was waited for.
        if deadline.at() != own.map(|own| started + own) {
            head.tell(&deadline, started);
        }
        let place = owner.shared.place_now(key);
        Self { owner, head, upload: Upload::new(body), deadline, wait_for_ready, key, started, place }
    }

    /// Makes the attempts.
    #[expect(clippy::manual_async_fn, reason = "the arguments of an async function have two places in its future")]
    fn run(mut self) -> impl Future<Output = Result<http::Response<ResponseBody>, Status>> + Send {
        async move {
            let mut refused: Option<Box<Refused>> = None;
            for _ in 0..ATTEMPTS {
                let (place, at) = if let Some(place) = self.place.take() {
                    (place, self.started)
                } else {
                    let avoid = refused.as_ref().map(|refused| refused.by.clone());
                    let placing = Box::pin(self.owner.shared.place(avoid, self.wait_for_ready, self.key));
                    let placed = within(&mut self.deadline, placing).await;
                    let now = Instant::now();
                    self.head.tell(&self.deadline, now);
                    match placed {
                        Some(Ok(place)) => (place, now),
                        // What the last instance said is closer to the cause than that there is none left.
                        Some(Err(status)) => return Err(refused.map_or(status, |refused| refused.status)),
                        None => return Err(status::deadline_exceeded("an instance that can take the call")),
                    }
                };
                let mut flight = Flight::new(place, at, self.deadline.at().is_some());
                let begun = poll_fn(|cx| Poll::Ready(flight.begin(&mut self.head, &mut self.upload, cx))).await;
                let answer = match begun {
                    Ok(mut exchange) => {
                        let answer = pin!(poll_fn(|cx| exchange.poll(&mut self.upload, cx)));
                        match within(&mut self.deadline, answer).await {
                            Some(Ok(response)) => {
                                return Ok(flight.answered(response, self.upload, exchange.stream, self.deadline));
                            }
                            Some(Err(failure)) => failure,
                            None => {
                                flight.missed();
                                return Err(status::deadline_exceeded(&format!("{} to answer", flight.address())));
                            }
                        }
                    }
                    Err(failure) => failure,
                };
                let refusal = flight.failed(answer)?;
                // Without its body it gets no second attempt, so it must not wait for a place either.
                if !self.upload.is_whole() {
                    return Err(refusal.status);
                }
                refused = Some(Box::new(refusal));
            }
            Err(refused.map_or_else(unplaced, |refused| refused.status))
        }
    }
}

/// A call that nobody refused and that got no attempt: cannot happen, but must not panic.
fn unplaced() -> Status {
    Status::internal("the request could not be sent")
}

/// What `future` ends with; `None` where the deadline comes first.
async fn within<F: Future>(deadline: &mut Deadline, mut future: Pin<impl DerefMut<Target = F>>) -> Option<F::Output> {
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

/// A call's head, kept for another attempt: everything but the extensions, which nobody on the wire sees.
struct Head {
    method: Method,
    path: PathAndQuery,
    /// Empty while they are on their way.
    headers: HeaderMap,
    /// What is on its way, as a list: a copy costs half of what a map's does.
    sent: Vec<(HeaderName, HeaderValue)>,
}

impl Head {
    fn new(method: Method, uri: &Uri, mut headers: HeaderMap, user_agent: &HeaderValue) -> Self {
        headers.entry(header::USER_AGENT).or_insert_with(|| user_agent.clone());
        let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        Self { method, path, headers, sent: Vec::new() }
    }

    /// Writes what is left of the time.
    fn tell(&mut self, deadline: &Deadline, now: Instant) {
        if let Some(at) = deadline.at() {
            self.take_back();
            self.headers.insert(GRPC_TIMEOUT, timeout_header(at.saturating_duration_since(now)));
        }
    }

    fn request(&mut self, link: &Link) -> Result<http::Request<()>, Status> {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(link.scheme.clone());
        parts.authority = Some(link.authority.clone());
        parts.path_and_query = Some(self.path.clone());
        let uri =
            Uri::from_parts(parts).map_err(|error| Status::internal(format!("the path cannot be sent: {error}")))?;
        self.take_back();
        self.sent.reserve(self.headers.len());
        for (name, value) in &self.headers {
            if !is_of_http1(name, value) {
                self.sent.push((name.clone(), value.clone()));
            }
        }
        if self.sent.len() < self.headers.len() {
            self.headers = self.sent.iter().cloned().collect();
        }
        let mut request = http::Request::new(());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = uri;
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = std::mem::take(&mut self.headers);
        Ok(request)
    }

    fn take_back(&mut self) {
        if !self.sent.is_empty() {
            self.headers = std::mem::take(&mut self.sent).into_iter().collect();
        }
    }
}

/// Whether it is about an HTTP/1 connection, which HTTP/2 forbids: what a proxy took over from its own caller.
fn is_of_http1(name: &HeaderName, value: &HeaderValue) -> bool {
    const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
    const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
    let names = [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE, KEEP_ALIVE, PROXY_CONNECTION];
    names.contains(name) || *name == header::TE && value != "trailers"
}

/// A request on its way, and the response to it.
struct Exchange {
    stream: SendStream<Bytes>,
    response: h2::client::ResponseFuture,
}

impl Exchange {
    /// Sends on, and looks for the head of the response.
    fn poll(&mut self, upload: &mut Upload, cx: &mut Context<'_>) -> Poll<Result<http::Response<RecvStream>, Failure>> {
        // Where the server takes no more of it, the response tells why.
        if let Poll::Ready(Err(status)) = upload.poll_send(&mut self.stream, cx) {
            return Poll::Ready(Err(Failure::Caller(status)));
        }
        Pin::new(&mut self.response)
            .poll(cx)
            .map_err(|error| Failure::Transport(error, self.stream.stream_id().as_u32()))
    }
}

/// Why an attempt has no response.
enum Failure {
    /// The caller's own stream failed, which says nothing about the instance.
    Caller(Status),
    /// The connection had no place for it.
    Unsent(h2::Error),
    /// It was on its way, on this stream.
    Transport(h2::Error, u32),
}

/// One attempt between its place and its end.
pub(super) struct Flight {
    place: Place,
    /// When it was sent.
    at: Instant,
    /// How many calls its connection had answered by then.
    answered: u64,
    has_deadline: bool,
    /// Whether its outcome was told already: by its head.
    is_told: bool,
    /// Whether its response has begun and not ended.
    has_begun: bool,
}

impl Flight {
    fn new(place: Place, at: Instant, has_deadline: bool) -> Self {
        let answered = place.link().report.answered();
        Self { place, at, answered, has_deadline, is_told: false, has_begun: false }
    }

    pub(super) fn address(&self) -> &Address {
        self.link().report.address()
    }

    fn link(&self) -> &Link {
        self.place.link()
    }

    /// Hands the head of the request to h2.
    fn begin(&self, head: &mut Head, upload: &mut Upload, cx: &mut Context<'_>) -> Result<Exchange, Failure> {
        // First what there is of the body, so that it goes out in one write with the head.
        let is_all = upload.begin(cx).map_err(Failure::Caller)?;
        let request = head.request(self.link()).map_err(Failure::Caller)?;
        // A clone each: h2 has every clone wait for the stream that it opened last.
        let sent = self.link().send.clone().send_request(request, is_all);
        let (response, stream) = sent.map_err(Failure::Unsent)?;
        Ok(Exchange { stream, response })
    }

    /// The response has begun.
    fn answered(
        mut self,
        response: http::Response<RecvStream>,
        upload: Upload,
        mut stream: SendStream<Bytes>,
        deadline: Deadline,
    ) -> http::Response<ResponseBody> {
        let (mut head, incoming) = response.into_parts();
        head.extensions.insert(self.place.candidate().shared_instance().clone());
        let timed_out = self.own_timeout(&mut head.headers);
        let now = Instant::now();
        if !timed_out {
            self.link().report.answer();
            self.place.candidate().seat().is_alive(now);
        }
        // A head with a status decides, whatever follows; so does one that failed in HTTP.
        let code = status::code_of(&head.headers).or_else(|| status::code_of_http(head.status));
        self.is_told = timed_out;
        // Who fails at once is not fast.
        if code.is_none_or(|code| code == Code::Ok) {
            self.place.candidate().seat().answered_at(now, now - self.at);
        }
        if let Some(code) = code
            && !timed_out
        {
            self.ended(code);
            self.is_told = true;
        }
        if incoming.is_end_stream() {
            if !upload.is_ended() {
                stream.send_reset(h2::Reason::CANCEL);
            }
            return http::Response::from_parts(head, ResponseBody::default());
        }
        self.place.candidate().seat().begin();
        self.has_begun = true;
        let rest = Rest::of(upload, stream);
        http::Response::from_parts(head, ResponseBody::new(incoming, self, rest, deadline))
    }

    /// The attempt failed without a response: it reached nobody, or this is what the caller is told.
    fn failed(&mut self, failure: Failure) -> Result<Refused, Status> {
        let (unsent, error) = match failure {
            Failure::Caller(status) => return Err(status),
            Failure::Unsent(error) => (true, error),
            // The connection ended with the call still in its queue.
            Failure::Transport(error, stream) => (error.is_io() && self.link().wire.is_unwritten(stream), error),
        };
        let status = status::transport(self.address(), &error);
        tracing::debug!(address = %self.address(), unsent, %error, "attempt failed");
        let seat = self.place.candidate().seat();
        if unsent {
            // Its task is about to say that it ends, unless it has only used up its streams' numbers.
            seat.close();
            if !error.is_go_away() && !error.is_io() {
                self.link().report.ended(format!("{}: {error}", self.address()).into());
            }
        }
        if unsent || status::reached(&error) == Reached::Nobody {
            return Ok(Refused { by: seat.clone(), status });
        }
        self.broke(&error, status.code());
        Err(status)
    }

    /// The connection or the stream broke.
    pub(super) fn broke(&self, error: &h2::Error, code: Code) {
        self.tell(code, if status::is_broken(error) { Ending::Broken } else { Ending::Answered });
    }

    /// The server has answered, with this code in the end.
    pub(super) fn ended(&self, code: Code) {
        self.tell(code, Ending::Answered);
    }

    /// The deadline came first. That says something about the instance only if it answered nobody since.
    pub(super) fn missed(&self) {
        if self.link().report.is_silent_since(self.answered) {
            self.place.candidate().seat().missed_one();
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
        if self.is_told {
            return;
        }
        let (outcome, outliers) = (Outcome::new(code, ending), &self.place.shared().settings.outliers);
        if self.link().report.outcome(outcome, outliers) {
            self.place.candidate().seat().failed_at(Instant::now());
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if self.has_begun {
            self.place.candidate().seat().finish();
        }
    }
}
