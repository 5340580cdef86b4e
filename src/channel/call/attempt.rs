//! One attempt: a pick and a request become the head of a response, or a failure; and feedback about the instance.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::HeaderMap;
use http::response::Parts;
use tokio::runtime::Handle as Runtime;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::request_head::RequestHead;
use super::retry_state::Pushback;
use super::spans::CallSpan;
use super::status::{self, Answer};
use crate::channel::error::{CallPhase, ChannelError};
use crate::channel::outlier::{EndedRow, Outcome, StatusOrigin};
use crate::channel::picks::Pick;
use crate::channel::subchannel::ReadyConnection;
use crate::channel::transport::{AttemptError, BodySender, Exchange, IncomingBody, RequestBody, TransportError};
use crate::instance::{Address, Instance};
use crate::targets::CHANNEL;

/// One attempt between its pick and the end of its response.
pub(super) struct Attempt {
    pick: Pick,
    /// When it was sent.
    at: Instant,
    /// What the instance had done when the last part of the request went out; `None` while it is the caller's turn to
    /// send more.
    sent: Option<Sent>,
    has_deadline: bool,
    /// Whether its outcome was reported already, by its head.
    is_reported: bool,
    /// Whether its response has begun and not ended.
    is_responding: bool,
    /// The row of failures that the head of its response ended, and the answers of the instance by then.
    ended: (EndedRow, u32),
    span: CallSpan,
}

/// What an instance had done by the moment when so much of a request was sent.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Sent {
    bytes: usize,
    answers: u32,
    progress: u32,
}

impl Sent {
    fn now(bytes: usize, connection: &ReadyConnection) -> Self {
        Self { bytes, answers: connection.load().answers(), progress: connection.transport().progress() }
    }
}

/// An attempt that failed: the instance, and the status that its call would fail with.
pub(super) struct FailedAttempt {
    pub(super) by: Arc<Instance>,
    pub(super) status: Status,
}

impl Attempt {
    /// The call's attempt of this `number`, from 1 on.
    pub(super) fn new(pick: Pick, at: Instant, has_deadline: bool, number: u32) -> Self {
        let (sent, ended) = (None, (EndedRow::default(), 0));
        let span = CallSpan::attempt(number, pick.connection().address());
        Self { pick, at, sent, has_deadline, is_reported: false, is_responding: false, ended, span }
    }

    pub(super) fn address(&self) -> &Address {
        self.connection().address()
    }

    pub(super) fn instance(&self) -> &Arc<Instance> {
        self.pick.instance()
    }

    fn connection(&self) -> &ReadyConnection {
        self.pick.connection()
    }

    /// The runtime that drives the connection.
    pub(super) fn runtime(&self) -> &Runtime {
        self.connection().transport().runtime()
    }

    /// Hands the request to the connection, sends on, and looks for the head of the response.
    pub(super) fn poll_response(
        &mut self,
        exchange: &mut Exchange,
        head: &mut RequestHead,
        body: &mut RequestBody,
        cx: &mut Context<'_>,
    ) -> Poll<Result<http::Response<IncomingBody>, AttemptError>> {
        let entered = self.span.enter();
        let transport = self.connection().transport();
        let response = exchange.poll_response(transport, || head.request(transport), body, cx);
        drop(entered);
        self.on_sent(exchange, body);
        response
    }

    /// The response has begun: the rest of the request goes on by itself.
    pub(super) fn send_rest(&self, exchange: Exchange, body: RequestBody) -> BodySender {
        exchange.send_rest(self.connection().transport(), body)
    }

    /// Notes whose turn it is: from the last part of the request on, the instance's silence says something.
    fn on_sent(&mut self, exchange: &Exchange, body: &RequestBody) {
        if exchange.is_waiting() || body.is_callers_turn() {
            self.sent = None;
        } else if self.sent.is_none_or(|sent| sent.bytes != body.sent_bytes()) {
            self.sent = Some(Sent::now(body.sent_bytes(), self.connection()));
        }
    }

    /// The head of the response is here, and maybe all of it. Returns the status in it, if there is one.
    ///
    /// # Errors
    ///
    /// It is no gRPC response, or says that the call's time is over.
    pub(super) fn on_head(&mut self, head: &mut Parts, is_all: bool) -> Result<Option<Code>, FailedAttempt> {
        head.extensions.insert(self.instance().clone());
        if let Some(status) = self.on_server_timeout(CallPhase::Attempting, &head.headers) {
            return Err(self.failed_with(status));
        }
        let now = Instant::now();
        // A head with a status decides, whatever follows.
        let code = match Answer::of(head) {
            Answer::Begins if is_all => {
                let status = status::without_status(self.address());
                return Err(self.on_not_grpc(status));
            }
            Answer::NotGrpc(code) => {
                let status = status::not_grpc(code, self.address(), head);
                return Err(self.on_not_grpc(status));
            }
            Answer::Begins => {
                let connection = self.connection();
                connection.load().on_answer();
                self.ended = (connection.on_head(), connection.load().answers());
                None
            }
            Answer::Status(code) => {
                self.connection().load().on_answer();
                self.on_status(code, &head.headers);
                Some(code)
            }
        };
        // Fast failures must not lower the latency average.
        if code.is_none_or(|code| code == Code::Ok) {
            self.connection().load().on_latency(now, now - self.at);
        }
        self.is_reported = code.is_some();
        Ok(code)
    }

    /// The answer, or its end, is no gRPC: that of a proxy, or of a server of another kind.
    fn on_not_grpc(&self, status: Status) -> FailedAttempt {
        let _entered = self.span.enter();
        tracing::debug!(target: CHANNEL, address = %self.address(), status = status.message(), "attempt failed");
        self.report(status.code(), StatusOrigin::NotGrpc);
        self.connection().load().on_fast_failure(Instant::now());
        self.failed_with(status)
    }

    /// The response ended without a status. Returns that of the call.
    pub(super) fn on_end_without_status(&self) -> Status {
        self.on_not_grpc(status::without_status(self.address())).status
    }

    /// The response has begun, and is the caller's: the call stays in flight until its end.
    pub(super) fn on_response_begin(&mut self) {
        self.connection().load().on_response_begin();
        self.is_responding = true;
    }

    /// It was answered with a status alone.
    pub(super) fn refused(&self, head: &Parts) -> FailedAttempt {
        let status = Status::from_header_map(&head.headers);
        self.failed_with(status.unwrap_or_else(|| status::without_status(self.address())))
    }

    /// The call fails with this status, and the attempt with it, unless that has ended before.
    pub(super) fn on_call_failed(&self, status: &Status) {
        self.span.on_status(status);
    }

    /// No handler saw the request.
    pub(super) fn on_unprocessed(&self, error: &TransportError, is_unsent: bool) -> FailedAttempt {
        let _entered = self.span.enter();
        tracing::debug!(target: CHANNEL, address = %self.address(), is_unsent, %error, "attempt failed");
        if error.is_refusal() {
            self.connection().load().on_shed(Instant::now(), SHED_FOR);
        }
        if is_unsent {
            // The connection reports its own end, unless its streams are used up.
            if error.is_exhaustion() {
                self.connection().on_exhausted(format!("{}: {error}", self.address()).into());
            } else {
                self.connection().load().quota().close();
            }
        }
        self.failed_with(error.status(self.address()))
    }

    /// A handler may have seen the request, and there is no response.
    pub(super) fn on_broken(&self, error: &TransportError) -> FailedAttempt {
        let _entered = self.span.enter();
        tracing::debug!(target: CHANNEL, address = %self.address(), %error, "attempt failed");
        self.failed_with(self.on_transport_error(error))
    }

    /// The attempt took longer than one attempt may.
    pub(super) fn on_too_slow(&self) -> FailedAttempt {
        self.on_missed();
        let timed_out = ChannelError::AttemptTimedOut { address: self.address().clone() };
        self.failed_with(timed_out.into_status(Code::DeadlineExceeded))
    }

    /// The connection or the stream broke. Returns the status of the call.
    pub(super) fn on_transport_error(&self, error: &TransportError) -> Status {
        let status = error.status(self.address());
        // The end of a connection is reported once, by its driver.
        if !error.is_of_connection() {
            self.on_status(status.code(), &HeaderMap::new());
        }
        status
    }

    /// The server has answered, with this status in the end, which stands among these headers.
    pub(super) fn on_status(&self, code: Code, headers: &HeaderMap) {
        self.span.on_code(code);
        self.report(code, StatusOrigin::Answered);
        if code == Code::Ok {
            return;
        }
        // What fails at once must not look idle.
        let (load, now, pushback) = (self.connection().load(), Instant::now(), Pushback::of(headers));
        match (code, pushback) {
            (_, Pushback::After(pause)) => load.on_shed(now, pause),
            (Code::ResourceExhausted, _) | (_, Pushback::Never) => load.on_shed(now, SHED_FOR),
            (Code::Internal | Code::Unimplemented | Code::Unknown | Code::DataLoss, _) => load.on_fast_failure(now),
            _ => {}
        }
    }

    /// Whether the outcome was reported already, by the head.
    pub(super) fn is_reported(&self) -> bool {
        self.is_reported
    }

    /// The deadline came first. That says something about the instance only if it did nothing for its calls since the
    /// last part of the request went out, and is not replaced by another connection.
    pub(super) fn on_missed(&self) {
        let connection = self.connection();
        // The caller used it up, or the instance has answered.
        let Some(sent) = self.sent.filter(|_| !self.is_responding) else { return };
        connection.on_missed();
        if sent == Sent::now(sent.bytes, connection) && !connection.load().quota().is_closed() {
            let now = Instant::now();
            connection.load().on_missed(now);
            connection.transport().suspect();
            if connection.on_silence(self.at, now, connection.transport().heard()) {
                connection.load().on_failure(now);
            }
        }
    }

    /// Looks whether the server's own clock ran out, a moment before ours. tonic's servers call that CANCELLED; it is a
    /// missed deadline, and counts as one. Returns the status of one.
    pub(super) fn on_server_timeout(&self, phase: CallPhase, headers: &HeaderMap) -> Option<Status> {
        let timed_out = self.has_deadline && status::is_servers_timeout(headers);
        timed_out.then(|| {
            self.on_missed();
            ChannelError::deadline_passed_at(phase, self.address())
        })
    }

    fn report(&self, code: Code, origin: StatusOrigin) {
        if self.is_reported {
            return;
        }
        let (ended, answers) = self.ended;
        let load = self.connection().load();
        // Another response that began meanwhile ended the row as well.
        let ended = if load.answers() == answers { ended } else { EndedRow::default() };
        if self.connection().on_outcome(Outcome::new(code, origin), ended) {
            load.on_failure(Instant::now());
        }
    }

    fn failed_with(&self, status: Status) -> FailedAttempt {
        self.span.on_status(&status);
        FailedAttempt { by: self.instance().clone(), status }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if self.is_responding {
            self.connection().load().on_response_end();
        }
    }
}

/// How long an instance that sheds is spared, where it does not say: a fraction of what people notice, and enough for a
/// queue to drain.
const SHED_FOR: Duration = Duration::from_millis(500);
