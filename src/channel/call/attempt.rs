//! One attempt: a pick and a request become the head of a response, or a failure; and feedback about the instance.

use std::sync::Arc;
use std::task::{Context, Poll};

use http::{HeaderMap, HeaderValue};
use tokio::runtime::Handle as Runtime;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::request_head::RequestHead;
use super::status;
use crate::channel::outlier::{Outcome, StatusOrigin};
use crate::channel::picks::Pick;
use crate::channel::subchannel::ReadyConnection;
use crate::channel::transport::{AttemptError, BodySender, Exchange, IncomingBody, RequestBody, TransportError};
use crate::instance::{Address, Instance};

/// One attempt between its pick and the end of its response.
pub(super) struct Attempt {
    pick: Pick,
    /// When it was sent.
    at: Instant,
    /// The answers of its instance by then.
    answers: u32,
    has_deadline: bool,
    /// Whether its outcome was reported already, by its head.
    is_reported: bool,
    /// Whether its response has begun and not ended.
    is_responding: bool,
}

/// An attempt that failed: the instance, and the status that its call would fail with.
pub(super) struct FailedAttempt {
    pub(super) by: Arc<Instance>,
    pub(super) status: Status,
}

impl Attempt {
    pub(super) fn new(pick: Pick, at: Instant, has_deadline: bool) -> Self {
        let answers = pick.connection().load().answers();
        Self { pick, at, answers, has_deadline, is_reported: false, is_responding: false }
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
        &self,
        exchange: &mut Exchange,
        head: &mut RequestHead,
        body: &mut RequestBody,
        cx: &mut Context<'_>,
    ) -> Poll<Result<http::Response<IncomingBody>, AttemptError>> {
        let transport = self.connection().transport();
        exchange.poll_response(transport, || head.request(transport), body, cx)
    }

    /// The response has begun: the rest of the request goes on by itself.
    pub(super) fn send_rest(&self, exchange: Exchange, body: RequestBody) -> BodySender {
        exchange.send_rest(self.connection().transport(), body)
    }

    /// The head of the response is here. Returns the status in it, if there is one.
    pub(super) fn on_head(&mut self, head: &mut http::response::Parts) -> Option<Code> {
        head.extensions.insert(self.instance().clone());
        let timed_out = self.take_server_timeout(&mut head.headers);
        let now = Instant::now();
        let load = self.connection().load();
        if !timed_out {
            load.on_answer(now);
        }
        // A head with a status decides, whatever follows; so does one that failed in HTTP.
        let code = status::code_of(&head.headers).or_else(|| status::code_of_http(head.status));
        // Fast failures must not lower the latency average.
        if code.is_none_or(|code| code == Code::Ok) {
            load.on_latency(now, now - self.at);
        }
        if let Some(code) = code
            && !timed_out
        {
            self.on_status(code);
        }
        self.is_reported = timed_out || code.is_some();
        code
    }

    /// The response has begun, and is the caller's: the call stays in flight until its end.
    pub(super) fn on_response_begin(&mut self) {
        self.connection().load().on_response_begin();
        self.is_responding = true;
    }

    /// It was answered with a status alone.
    pub(super) fn refused(&self, head: &http::response::Parts) -> FailedAttempt {
        let of_http = || Status::unavailable(format!("{} answers with HTTP status {}", self.address(), head.status));
        self.failed_with(Status::from_header_map(&head.headers).unwrap_or_else(of_http))
    }

    /// No handler saw the request.
    pub(super) fn on_unprocessed(&self, error: &TransportError, is_unsent: bool) -> FailedAttempt {
        tracing::debug!(address = %self.address(), is_unsent, %error, "attempt failed");
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
        tracing::debug!(address = %self.address(), %error, "attempt failed");
        self.failed_with(self.on_transport_error(error))
    }

    /// The attempt took longer than one attempt may.
    pub(super) fn on_too_slow(&self) -> FailedAttempt {
        self.on_missed();
        let waited = format!("{} to answer one attempt", self.address());
        self.failed_with(status::deadline_exceeded(&waited))
    }

    /// The connection or the stream broke. Returns the status of the call.
    pub(super) fn on_transport_error(&self, error: &TransportError) -> Status {
        let status = error.status(self.address());
        self.report(
            status.code(),
            if error.is_of_connection() { StatusOrigin::Broken } else { StatusOrigin::Answered },
        );
        status
    }

    /// The server has answered, with this status in the end.
    pub(super) fn on_status(&self, code: Code) {
        self.report(code, StatusOrigin::Answered);
    }

    /// Whether the outcome was reported already, by the head.
    pub(super) fn is_reported(&self) -> bool {
        self.is_reported
    }

    /// The deadline came first. That says something about the instance only if it answered no call since.
    pub(super) fn on_missed(&self) {
        if self.connection().is_silent_since(self.answers) {
            self.connection().load().on_missed(Instant::now());
            self.report(Code::DeadlineExceeded, StatusOrigin::Missed);
        }
    }

    /// Looks whether the server's own clock ran out, a moment before ours. tonic's servers call that CANCELLED; it is a
    /// missed deadline: rewritten to one here, and counted as one.
    pub(super) fn take_server_timeout(&self, headers: &mut HeaderMap) -> bool {
        let timed_out = self.has_deadline && status::is_servers_timeout(headers);
        if timed_out {
            headers.insert("grpc-status", HeaderValue::from(Code::DeadlineExceeded as i32));
            self.on_missed();
        }
        timed_out
    }

    fn report(&self, code: Code, origin: StatusOrigin) {
        if !self.is_reported && self.connection().on_outcome(Outcome::new(code, origin)) {
            self.connection().load().on_failure(Instant::now());
        }
    }

    fn failed_with(&self, status: Status) -> FailedAttempt {
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
