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

pub(crate) mod attempt;
mod request_head;
pub(crate) mod response_body;

use std::fmt;
use std::future::poll_fn;
use std::ops::DerefMut;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;
use tonic::body::Body;
use tonic::{Code, Status};

use self::attempt::{Failed, FailedAttempt, Failure};
use self::request_head::Head;
use crate::channel::Owner;
use crate::channel::call::response_body::ResponseBody;
use crate::channel::config::retry::{Pushback, Retry};
use crate::channel::deadline::{Deadline, timeout_of};
use crate::channel::picks::pick_queue::Place;
use crate::channel::transport::request_body::RequestBody;
use crate::channel::transport::status;
use crate::instance::Instance;

pub(crate) use self::attempt::Flight;

/// How often one call is tried in all without a word. Each attempt that reached nobody came from an instance that will be
/// READY no more or refuses now, so a call that meets ten of them in a row has better news to bring than an eleventh try.
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
    pub(crate) fn new(owner: Arc<Owner>, request: http::Request<Body>) -> Self {
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
    body: RequestBody,
    deadline: Deadline,
    wait_for_ready: bool,
    /// What the policy makes of it.
    key: u64,
    started: Instant,
    place: Option<Place>,
    /// Only where its method is to be retried.
    retry: Option<Box<Retry>>,
}

impl Call {
    fn new(owner: Arc<Owner>, request: http::Request<Body>) -> Self {
        let started = Instant::now();
        let settings = &owner.shared.settings;
        let (head, body) = request.into_parts();
        let key = settings.policy.key(&head);
        let said = settings.methods.as_ref().map(|methods| methods.of(head.uri.path())).unwrap_or_default();
        let waits = said.wait_for_ready.unwrap_or(settings.wait_for_ready);
        let wait_for_ready = head.extensions.get().map_or(waits, |WaitForReady(wait)| *wait);
        let own = timeout_of(&head.headers);
        let timeout = said.timeout.into_iter().chain(settings.timeout).min();
        let deadline = Deadline::new(own, timeout, started);
        let retry = said.retry.map(|policy| Box::new(Retry::new(policy.clone(), settings.budget.clone())));
        let mut head = Head::new(head.method, &head.uri, head.headers, &settings.user_agent);
        // The server is told what is left; the caller's own header says it for as long as nothing was waited for.
        if deadline.at() != own.map(|own| started + own) {
            head.tell(&deadline, started);
        }
        let place = owner.shared.place_now(key);
        Self { owner, head, body: RequestBody::new(body), deadline, wait_for_ready, key, started, place, retry }
    }

    /// Makes the attempts.
    #[expect(clippy::manual_async_fn, reason = "the arguments of an async function have two places in its future")]
    fn run(mut self) -> impl Future<Output = Result<http::Response<ResponseBody>, Status>> + Send {
        async move {
            let mut last: Option<Box<FailedAttempt>> = None;
            let mut left = ATTEMPTS;
            loop {
                let pause = 'attempt: {
                    let (place, at) = if let Some(place) = self.place.take() {
                        (place, self.started)
                    } else {
                        let avoid = self.avoid(last.as_deref());
                        let placing = Box::pin(self.owner.shared.place(avoid, self.wait_for_ready, self.key));
                        let placed = within(&mut self.deadline, placing).await;
                        let now = Instant::now();
                        self.head.tell(&self.deadline, now);
                        match placed {
                            Some(Ok(place)) => (place, now),
                            Some(Err(status)) => {
                                if let Some(pause) = self.pause_after(status.code(), Pushback::Nothing, None) {
                                    break 'attempt Some(pause);
                                }
                                // What the last instance said is closer to the cause than that there is none left.
                                return Err(last.map_or(status, |last| last.status));
                            }
                            None => return Err(status::deadline_exceeded("an instance that can take the call")),
                        }
                    };
                    if let Some(retry) = &mut self.retry {
                        retry.begin(at);
                    }
                    let mut flight = Flight::new(place, at, self.deadline.at().is_some());
                    let begun = poll_fn(|cx| Poll::Ready(flight.begin(&mut self.head, &mut self.body, cx))).await;
                    let failure = match begun {
                        Ok(mut exchange) => {
                            let (body, retry) = (&mut self.body, &mut self.retry);
                            let answer = pin!(poll_fn(|cx| match (exchange.poll(body, cx), &mut *retry) {
                                (Poll::Pending, Some(retry)) => {
                                    retry.poll_too_slow(cx).map(|()| Err(Failure::TooSlow))
                                }
                                (answer, _) => answer,
                            }));
                            match within(&mut self.deadline, answer).await {
                                Some(Ok(response)) => {
                                    let (mut head, incoming) = response.into_parts();
                                    let code = flight.hear(&mut head);
                                    if let Some(pause) = self.pause_after_answer(code, &head, flight.instance()) {
                                        last = Some(Box::new(flight.refused(&head)));
                                        break 'attempt Some(pause);
                                    }
                                    let Self { body, deadline, .. } = self;
                                    return Ok(flight.begun(head, incoming, body, exchange.stream, deadline));
                                }
                                Some(Err(failure)) => failure,
                                None => {
                                    flight.missed();
                                    let waiting_for = format!("{} to answer", flight.address());
                                    return Err(status::deadline_exceeded(&waiting_for));
                                }
                            }
                        }
                        Err(failure) => failure,
                    };
                    match flight.failed(failure) {
                        Failed::Caller(status) => return Err(status),
                        // Without its body it gets no second attempt, so it must not wait for a place either.
                        Failed::Nobody(attempt) if !self.body.is_whole() => return Err(attempt.status),
                        Failed::Nobody(attempt) if left > 1 => {
                            left -= 1;
                            last = Some(Box::new(attempt));
                            None
                        }
                        Failed::Nobody(attempt) | Failed::Instance(attempt) => {
                            let code = attempt.status.code();
                            let Some(pause) = self.pause_after(code, Pushback::Nothing, Some(&attempt.by)) else {
                                return Err(attempt.status);
                            };
                            last = Some(Box::new(attempt));
                            Some(pause)
                        }
                    }
                };
                if let Some(pause) = pause {
                    self.pause(pause).await;
                    left = ATTEMPTS;
                }
            }
        }
    }

    /// Who is asked again only while there is nobody else.
    fn avoid(&self, last: Option<&FailedAttempt>) -> Vec<Arc<Instance>> {
        let tried = self.retry.iter().flat_map(|retry| retry.tried());
        last.map(|last| &last.by).into_iter().chain(tried).cloned().collect()
    }

    /// How long to wait before the next attempt, if there is to be one although this one was answered: with a status alone.
    fn pause_after_answer(
        &mut self,
        code: Option<Code>,
        head: &http::response::Parts,
        by: &Arc<Instance>,
    ) -> Option<Duration> {
        let code = code.filter(|code| *code != Code::Ok)?;
        self.pause_after(code, Pushback::of(&head.headers), Some(by))
    }

    /// The same for an attempt that failed, `by` an instance if it found one. A wait that would outlast the call's time is not
    /// begun.
    fn pause_after(&mut self, code: Code, pushback: Pushback, by: Option<&Arc<Instance>>) -> Option<Duration> {
        let retry = self.retry.as_mut().filter(|_| self.body.is_whole())?;
        let pause = retry.after(code, pushback, by)?;
        let end = Instant::now().checked_add(pause)?;
        self.deadline.at().is_none_or(|at| end < at).then_some(pause)
    }

    async fn pause(&mut self, pause: Duration) {
        if !pause.is_zero() {
            Box::pin(tokio::time::sleep(pause)).await;
        }
        if let Some(retry) = &self.retry {
            self.head.is_attempt(retry.failed());
        }
    }
}

/// What `future` ends with; `None` where the deadline comes first.
async fn within<F: Future>(deadline: &mut Deadline, mut future: Pin<impl DerefMut<Target = F>>) -> Option<F::Output> {
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => deadline.poll_missed(cx).map(|()| None),
    })
    .await
}
