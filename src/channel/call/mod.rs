//! One request becomes attempts, and one of them a response: a pick, the request on its connection, the head of the
//! response; again elsewhere where the request provably reached no handler, or as the retry policy allows.
//!
//! | state | waits for | ends with |
//! | --- | --- | --- |
//! | picking | a pick: a connection with room, or the call's turn | a pick, a failure, the deadline |
//! | attempting | the head of the response | the head, a failure, the deadline, or picking again |
//! | pausing | the back-off before a retry | picking again |
//! | responding | the caller reads [`ResponseBody`] | the body's end, a failure, the deadline |
//!
//! Dropped in any state, a call gives its place back, lets go of the request body and resets the stream at the server.
//! It runs on the caller's own task, writes its frames and reads its answer there; the only other task is the one that
//! moves the connection's bytes.
//!
//! # Layout
//!
//! | file | |
//! | --- | --- |
//! | `attempt` | a pick and a request -> the head of a response, or why there is none |
//! | `limited_body` | a request body whose messages have a limit |
//! | `request_head` | the caller's head -> the head of each attempt |
//! | `response_body` | the incoming body under deadline and accounting |
//! | `retry_state` | outcomes of attempts -> the next pause |
//! | `spans` | a call and its attempts -> spans |
//! | `status` | gRPC's statuses in HTTP |

mod attempt;
mod limited_body;
mod request_head;
mod response_body;
mod retry_state;
mod spans;
mod status;

use std::fmt;
use std::future::poll_fn;
use std::mem;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;
use tonic::body::Body;
use tonic::{Code, Status};

use self::attempt::{Attempt, FailedAttempt};
use self::limited_body::LimitedBody;
use self::request_head::RequestHead;
use self::response_body::OpenCall;
use self::retry_state::{Pushback, RetryState};
use self::spans::CallSpan;
use crate::channel::config::message_limit::MessageLimit;
use crate::channel::deadline::{Deadline, Timer, timeout_of, within};
use crate::channel::error::{CallPhase, ChannelError};
use crate::channel::picks::{Handle, Pick};
use crate::channel::transport::{AttemptError, Exchange, IncomingBody, RequestBody};
use crate::instance::Instance;
use crate::metrics::channel::CallMetrics;

pub use self::response_body::ResponseBody;

/// For one call: whether it waits while nothing is READY, whatever the channel does otherwise. Put into the request's
/// extensions.
///
/// ```
/// let mut request = tonic::Request::new(());
/// request.extensions_mut().insert(tonic_etcd::channel::WaitForReady(true));
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
    /// The call's, until its response has it.
    span: CallSpan,
}

impl ResponseFuture {
    pub(super) fn new(handle: Arc<Handle>, request: http::Request<Body>) -> Self {
        let span = CallSpan::rpc(&handle.target, request.uri().path());
        let entered = span.enter();
        let call = Call::new(handle, request);
        drop(entered);
        match call {
            // In the future's place, `request` would lie beside everything that is made of it: kept small, the future
            // comes from the allocator's cache of small blocks, which takes no lock where another thread frees it.
            Ok(call) => Self { call: Box::pin(call.run()), span },
            Err(status) => Self { call: Box::pin(std::future::ready(Err(status))), span },
        }
    }
}

impl Future for ResponseFuture {
    type Output = Result<http::Response<ResponseBody>, Status>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { call, span } = &mut *self;
        let entered = span.enter();
        let polled = call.as_mut().poll(cx);
        drop(entered);
        polled.map(|mut answer| {
            match &mut answer {
                Ok(response) => {
                    let span = mem::take(span);
                    span.on_headers(response.headers());
                    response.body_mut().set_span(span);
                }
                Err(status) => mem::take(span).on_status(status),
            }
            answer
        })
    }
}

impl fmt::Debug for ResponseFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

/// A call until its response.
struct Call {
    handle: Arc<Handle>,
    head: RequestHead,
    body: RequestBody,
    deadline: Deadline,
    wait_for_ready: bool,
    /// What the policy makes of the request.
    key: Option<u64>,
    /// Whether no pick was looked for yet.
    is_new: bool,
    /// Only where the method is to be retried.
    retry: Option<Box<RetryState>>,
    /// The last attempt that failed.
    last: Option<Box<FailedAttempt>>,
    /// The last instance that may have handled it, in an attempt that failed.
    maybe_handled: Option<Arc<Instance>>,
    /// The attempts that were made.
    attempts: u32,
    /// The attempts that may still be made without a retry policy, where nothing of the last one was processed.
    replays: u8,
    /// Whether a server refused it as one call too many, after which it was made again elsewhere.
    was_refused: bool,
    /// How long each message of the response may be.
    max_response_bytes: Option<u32>,
    metrics: CallMetrics,
}

/// What becomes of a call after a step.
#[expect(clippy::large_enum_variant, reason = "it is moved once per attempt; a box would be allocated once per call")]
enum Verdict {
    Done(Result<http::Response<ResponseBody>, Status>),
    /// The last attempt failed with this code, and provably reached no handler: another one at once.
    Replay(Code),
    /// The last attempt failed with this code: another one after a pause.
    Retry(Code, Duration),
}

impl Call {
    /// # Errors
    ///
    /// INTERNAL where the policy panics.
    fn new(handle: Arc<Handle>, request: http::Request<Body>) -> Result<Self, Status> {
        let config = &handle.config;
        let (head, body) = request.into_parts();
        let started = Instant::now();
        let mut metrics = handle.queue.metrics().call(&head.extensions, started);
        let key = match handle.queue.key(&head) {
            Ok(key) => key,
            Err(status) => {
                metrics.on_begin();
                metrics.on_end(status.code());
                return Err(status);
            }
        };
        let options = config.methods.as_ref().map(|methods| methods.of(head.uri.path())).unwrap_or_default();
        let waits = options.wait_for_ready.unwrap_or(config.wait_for_ready);
        let wait_for_ready = head.extensions.get().map_or(waits, |WaitForReady(wait)| *wait);
        let own = timeout_of(&head.headers);
        let timeout = options.timeout.into_iter().chain(config.timeout).min();
        let deadline = Deadline::new(own, timeout, started);
        let retry = options.retry.map(|policy| Box::new(RetryState::new(policy.clone())));
        let mut head = RequestHead::new(head.method, &head.uri, head.headers, &config.user_agent);
        // The server is told the time that is left; the caller's own header says it while nothing was waited for.
        if deadline.at() != own.map(|own| started + own) {
            head.set_timeout(&deadline, started);
        }
        let max_response_bytes = options.max_response_bytes;
        let body = RequestBody::new(match options.max_request_bytes {
            Some(bytes) => Body::new(LimitedBody::new(body, bytes)),
            None => body,
        });
        Ok(Self {
            handle,
            head,
            body,
            deadline,
            wait_for_ready,
            key,
            is_new: true,
            retry,
            last: None,
            maybe_handled: None,
            attempts: 0,
            replays: REPLAYS,
            was_refused: false,
            max_response_bytes,
            metrics,
        })
    }

    /// Makes attempts until one of them decides.
    #[expect(clippy::manual_async_fn, reason = "the arguments of an async function have two places in its future")]
    fn run(mut self) -> impl Future<Output = Result<http::Response<ResponseBody>, Status>> + Send {
        async move {
            loop {
                let verdict = match self.pick().await {
                    Ok((pick, at)) => self.attempt(pick, at).await,
                    Err(verdict) => verdict,
                };
                match verdict {
                    Verdict::Done(result) => {
                        if let Err(status) = &result {
                            self.metrics.on_end(status.code());
                        }
                        return result;
                    }
                    Verdict::Replay(code) => {
                        self.metrics.on_replay(code);
                        self.replays = self.replays.saturating_sub(1);
                    }
                    Verdict::Retry(code, pause) => {
                        self.metrics.on_pause(code);
                        self.pause(pause).await;
                        self.metrics.on_retry();
                    }
                }
            }
        }
    }

    /// A pick for the next attempt, and when it was there.
    async fn pick(&mut self) -> Result<(Pick, Instant), Verdict> {
        // Not before the first poll: a future that is kept for later must not hold a place, nor count as a call.
        if mem::take(&mut self.is_new) {
            self.metrics.on_begin();
            if let (Some(_), Some(budget)) = (&self.retry, &self.handle.config.retry_budget) {
                budget.on_call(Instant::now());
            }
            if let Some(pick) = self.handle.queue.pick_now(self.key) {
                return Ok((pick, Instant::now()));
            }
        }
        let avoid = self.avoid();
        let picking = Box::pin(self.handle.queue.pick(avoid, self.wait_for_ready, self.key));
        let picked = within(&mut self.deadline, &self.handle.runtime, picking).await;
        let now = Instant::now();
        self.head.set_timeout(&self.deadline, now);
        match picked {
            Some(Ok(pick)) => Ok((pick, now)),
            Some(Err(status)) => Err(match self.pause_after(Some(status.code()), Pushback::Nothing, None) {
                Some(pause) => Verdict::Retry(status.code(), pause),
                // What the last instance said is closer to the cause than that there is none left.
                None => Verdict::Done(Err(self.last.take().map_or(status, |last| last.status))),
            }),
            None => {
                let earlier = self.maybe_handled.as_ref().map(|instance| &instance.address);
                Err(Verdict::Done(Err(self.handle.queue.deadline_passed(earlier))))
            }
        }
    }

    /// One attempt, up to the head of its response.
    async fn attempt(&mut self, pick: Pick, at: Instant) -> Verdict {
        if let Some(retry) = &mut self.retry {
            retry.on_attempt(at);
        }
        self.attempts = self.attempts.saturating_add(1);
        let mut attempt = Attempt::new(pick, at, self.deadline.at().is_some(), self.attempts);
        let mut exchange = Exchange::default();
        let Self { handle, head, body, retry, deadline, .. } = self;
        let answer = pin!(poll_fn(|cx| match (attempt.poll_response(&mut exchange, head, body, cx), &mut *retry) {
            (Poll::Pending, Some(retry)) => retry.poll_too_slow(&handle.runtime, cx).map(|()| None),
            (answer, _) => answer.map(Some),
        }));
        match within(deadline, &handle.runtime, answer).await {
            Some(Some(Ok(response))) => self.on_response(attempt, exchange, response),
            Some(Some(Err(error))) => self.on_error(&attempt, error),
            Some(None) => {
                let failed = attempt.on_too_slow();
                self.on_failed(failed, None, true)
            }
            None => Verdict::Done(Err(missed(&attempt))),
        }
    }

    /// The head of a response is here: it is the caller's, unless its status is to be retried.
    fn on_response(
        &mut self,
        mut attempt: Attempt,
        exchange: Exchange,
        response: http::Response<IncomingBody>,
    ) -> Verdict {
        let (mut head, incoming) = response.into_parts();
        let is_all = http_body::Body::is_end_stream(&incoming);
        let code = match attempt.on_head(&mut head, is_all) {
            Ok(code) => code,
            Err(failed) => {
                exchange.finish(&self.body);
                let code = failed.status.code();
                return self.on_failed(failed, Some(code), true);
            }
        };
        if let (Some(Code::Ok), Some(budget)) = (code, &self.handle.config.retry_budget) {
            budget.on_success();
        }
        if code == Some(Code::Unimplemented) && status::has_no_message(&head.headers) {
            self.handle.on_unknown_method(attempt.address(), self.head.path());
        }
        let failure = code.filter(|code| *code != Code::Ok);
        let pushback = || Pushback::of(&head.headers);
        let retry =
            failure.and_then(|code| Some((code, self.pause_after(Some(code), pushback(), Some(attempt.instance()))?)));
        if let Some((code, pause)) = retry {
            self.last = Some(Box::new(attempt.refused(&head)));
            self.maybe_handled = Some(attempt.instance().clone());
            exchange.finish(&self.body);
            return Verdict::Retry(code, pause);
        }
        if let Some(code) = code {
            self.metrics.on_end(code);
        }
        if is_all {
            exchange.finish(&self.body);
            return Verdict::Done(Ok(http::Response::from_parts(head, ResponseBody::default())));
        }
        attempt.on_response_begin();
        let sender = attempt.send_rest(exchange, std::mem::take(&mut self.body));
        let call = OpenCall {
            attempt,
            sender,
            deadline: mem::take(&mut self.deadline),
            // Most budgets have no use for it, and a call that succeeds at once should not count a handle of them.
            retry_budget: self.handle.config.retry_budget.as_ref().filter(|budget| budget.counts_successes()).cloned(),
            messages: 0,
            limit: self.max_response_bytes.map(MessageLimit::new),
            metrics: mem::take(&mut self.metrics),
            span: CallSpan::default(),
        };
        Verdict::Done(Ok(http::Response::from_parts(head, ResponseBody::new(incoming, call))))
    }

    /// An attempt ended without a response: what that proves decides whether there is another one.
    fn on_error(&mut self, attempt: &Attempt, error: AttemptError) -> Verdict {
        match error {
            AttemptError::Request(status) => {
                attempt.on_call_failed(&status);
                Verdict::Done(Err(status))
            }
            // Servers that reset a call at its deadline are heard a moment before our own clock is looked at.
            AttemptError::MaybeProcessed(error) if error.is_cancelled_by_server() && self.deadline.is_over() => {
                Verdict::Done(Err(missed(attempt)))
            }
            AttemptError::MaybeProcessed(error) => {
                let failed = attempt.on_broken(&error);
                let code = failed.status.code();
                self.on_failed(failed, Some(code), true)
            }
            AttemptError::Unprocessed { error, is_unsent } => {
                let failed = attempt.on_unprocessed(&error, is_unsent);
                let may_replay =
                    if error.is_refusal() { !mem::replace(&mut self.was_refused, true) } else { self.replays > 0 };
                // Without its body there is no second attempt, so the call must not wait for a pick either.
                if !self.body.is_replayable() {
                    return Verdict::Done(Err(failed.status));
                }
                let code = failed.status.code();
                if may_replay {
                    self.last = Some(Box::new(failed));
                    return Verdict::Replay(code);
                }
                self.on_failed(failed, Some(code), false)
            }
        }
    }

    /// An attempt failed, maybe after it was handled, and only a retry policy allows another one. Without a code its
    /// own time was over.
    fn on_failed(&mut self, failed: FailedAttempt, code: Option<Code>, is_maybe_handled: bool) -> Verdict {
        match self.pause_after(code, Pushback::Nothing, Some(&failed.by)) {
            Some(pause) => {
                if is_maybe_handled {
                    self.maybe_handled = Some(failed.by.clone());
                }
                let code = failed.status.code();
                self.last = Some(Box::new(failed));
                Verdict::Retry(code, pause)
            }
            None => Verdict::Done(Err(failed.status)),
        }
    }

    /// The wait before a retry, `by` an instance that failed the attempt if one was found; `None` where there is to be
    /// none. A wait that would outlast the call's time is not begun.
    fn pause_after(&mut self, code: Option<Code>, pushback: Pushback, by: Option<&Arc<Instance>>) -> Option<Duration> {
        let retry = self.retry.as_mut().filter(|_| self.body.is_replayable())?;
        // Where no instance was asked, nothing bears the load of a retry.
        let budget = by.and(self.handle.config.retry_budget.as_deref());
        let pause = retry.on_failure((code, pushback), by, budget, (Instant::now(), self.deadline.at()));
        if retry.is_over_budget() {
            self.handle.queue.metrics().on_retry_refused();
        }
        pause
    }

    async fn pause(&mut self, pause: Duration) {
        if !pause.is_zero() {
            let mut timer = Timer::new(Instant::now() + pause, &self.handle.runtime);
            // Without the runtime, the next pick says so.
            _ = poll_fn(|cx| timer.poll(&self.handle.runtime, cx)).await;
        }
        if let Some(retry) = &self.retry {
            self.head.set_previous_attempts(retry.failed());
        }
        self.replays = REPLAYS;
    }

    /// Instances that are asked again only while there is no other.
    fn avoid(&self) -> Vec<Arc<Instance>> {
        let tried = self.retry.iter().flat_map(|retry| retry.tried());
        self.last.iter().map(|last| &last.by).chain(tried).cloned().collect()
    }
}

/// The deadline of a call passed before the head of its response. Returns its status.
fn missed(attempt: &Attempt) -> Status {
    attempt.on_missed();
    let status = ChannelError::deadline_passed_at(CallPhase::Attempting, attempt.address());
    attempt.on_call_failed(&status);
    status
}

/// How often one call is made again invisibly. Each attempt of which nothing was processed came from an instance that
/// will be READY no more: after ten of them in a row, the failure is better news than an eleventh attempt. A refusal as
/// one call too many is replayed once: more would multiply the load just when servers shed it.
const REPLAYS: u8 = 9;
