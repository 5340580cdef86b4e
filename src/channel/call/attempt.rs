//! One attempt: a request on a connection, and what becomes of it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::request_head::Head;
use crate::channel::call::response_body::ResponseBody;
use crate::channel::deadline::Deadline;
use crate::channel::outlier::{Ending, Outcome};
use crate::channel::picks::pick_queue::Place;
use crate::channel::policy::candidate::Load;
use crate::channel::subchannel::connection::Link;
use crate::channel::transport::request_body::{BodySender, RequestBody};
use crate::channel::transport::status::{self, Reached};
use crate::instance::{Address, Instance};

/// An attempt that failed, with what its call would fail with.
pub(crate) struct FailedAttempt {
    pub(crate) by: Arc<Instance>,
    pub(crate) status: Status,
}

/// What an attempt without a response comes to.
pub(crate) enum Failed {
    /// It reached nobody.
    Nobody(FailedAttempt),
    /// It may have reached the instance.
    Instance(FailedAttempt),
    /// The caller's own request is what failed.
    Caller(Status),
}

/// A request on its way, and the response to it.
pub(crate) struct Exchange {
    pub(crate) stream: SendStream<Bytes>,
    response: h2::client::ResponseFuture,
}

impl Exchange {
    /// Sends on, and looks for the head of the response.
    pub(crate) fn poll(
        &mut self,
        body: &mut RequestBody,
        cx: &mut Context<'_>,
    ) -> Poll<Result<http::Response<RecvStream>, Failure>> {
        // Where the server takes no more of it, the response tells why.
        if let Poll::Ready(Err(status)) = body.poll_send(&mut self.stream, cx) {
            return Poll::Ready(Err(Failure::Caller(status)));
        }
        Pin::new(&mut self.response)
            .poll(cx)
            .map_err(|error| Failure::Transport(error, self.stream.stream_id().as_u32()))
    }
}

/// Why an attempt has no response.
pub(crate) enum Failure {
    /// The caller's own stream failed, which says nothing about the instance.
    Caller(Status),
    /// The connection had no place for it.
    Unsent(h2::Error),
    /// It was on its way, on this stream.
    Transport(h2::Error, u32),
    /// It took longer than one attempt may.
    TooSlow,
}

/// One attempt between its place and its end.
pub(crate) struct Flight {
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
    pub(crate) fn new(place: Place, at: Instant, has_deadline: bool) -> Self {
        let answered = place.link().report.answered();
        Self { place, at, answered, has_deadline, is_told: false, has_begun: false }
    }

    pub(crate) fn address(&self) -> &Address {
        self.link().report.address()
    }

    pub(crate) fn instance(&self) -> &Arc<Instance> {
        self.place.candidate().shared_instance()
    }

    /// It was answered with a status alone.
    pub(crate) fn refused(&self, head: &http::response::Parts) -> FailedAttempt {
        let of_http = || Status::unavailable(format!("{} answers with HTTP status {}", self.address(), head.status));
        self.failed_with(Status::from_header_map(&head.headers).unwrap_or_else(of_http))
    }

    fn failed_with(&self, status: Status) -> FailedAttempt {
        FailedAttempt { by: self.instance().clone(), status }
    }

    fn load(&self) -> &Arc<Load> {
        self.place.candidate().load()
    }

    fn link(&self) -> &Link {
        self.place.link()
    }

    /// Hands the head of the request to h2.
    pub(crate) fn begin(
        &self,
        head: &mut Head,
        body: &mut RequestBody,
        cx: &mut Context<'_>,
    ) -> Result<Exchange, Failure> {
        // First what there is of the body, so that it goes out in one write with the head.
        let is_all = body.begin(cx).map_err(Failure::Caller)?;
        let request = head.request(self.link()).map_err(Failure::Caller)?;
        // A clone each: h2 has every clone wait for the stream that it opened last.
        let sent = self.link().send.clone().send_request(request, is_all);
        let (response, stream) = sent.map_err(Failure::Unsent)?;
        Ok(Exchange { stream, response })
    }

    /// The head of the response is here: the status in it, if there is one.
    pub(crate) fn hear(&mut self, head: &mut http::response::Parts) -> Option<Code> {
        head.extensions.insert(self.instance().clone());
        let timed_out = self.own_timeout(&mut head.headers);
        let now = Instant::now();
        if !timed_out {
            self.link().report.answer();
            self.load().is_alive(now);
        }
        // A head with a status decides, whatever follows; so does one that failed in HTTP.
        let code = status::code_of(&head.headers).or_else(|| status::code_of_http(head.status));
        self.is_told = timed_out;
        // Who fails at once is not fast.
        if code.is_none_or(|code| code == Code::Ok) {
            self.load().answered_at(now, now - self.at);
        }
        if let Some(code) = code
            && !timed_out
        {
            self.ended(code);
            self.is_told = true;
        }
        code
    }

    /// The response has begun, and is the caller's.
    pub(crate) fn begun(
        mut self,
        head: http::response::Parts,
        incoming: RecvStream,
        body: RequestBody,
        mut stream: SendStream<Bytes>,
        deadline: Deadline,
    ) -> http::Response<ResponseBody> {
        if incoming.is_end_stream() {
            if !body.is_ended() {
                stream.send_reset(h2::Reason::CANCEL);
            }
            return http::Response::from_parts(head, ResponseBody::default());
        }
        self.load().begin();
        self.has_begun = true;
        let rest = BodySender::of(body, stream);
        http::Response::from_parts(head, ResponseBody::new(incoming, self, rest, deadline))
    }

    /// The attempt failed without a response.
    pub(crate) fn failed(&self, failure: Failure) -> Failed {
        let (unsent, error) = match failure {
            Failure::Caller(status) => return Failed::Caller(status),
            Failure::TooSlow => {
                self.missed();
                let waited = format!("{} to answer one attempt", self.address());
                return Failed::Instance(self.failed_with(status::deadline_exceeded(&waited)));
            }
            Failure::Unsent(error) => (true, error),
            // The connection ended with the call still in its queue.
            Failure::Transport(error, stream) => (error.is_io() && self.link().peer.is_unwritten(stream), error),
        };
        let status = status::transport(self.address(), &error);
        tracing::debug!(address = %self.address(), unsent, %error, "attempt failed");
        let load = self.load();
        if unsent {
            // Its task is about to say that it ends, unless it has only used up its streams' numbers.
            load.close();
            if !error.is_go_away() && !error.is_io() {
                self.link().report.ended(format!("{}: {error}", self.address()).into());
            }
        }
        if unsent || status::reached(&error) == Reached::Nobody {
            return Failed::Nobody(self.failed_with(status));
        }
        self.broke(&error, status.code());
        Failed::Instance(self.failed_with(status))
    }

    /// The connection or the stream broke.
    pub(crate) fn broke(&self, error: &h2::Error, code: Code) {
        self.tell(code, if status::is_broken(error) { Ending::Broken } else { Ending::Answered });
    }

    /// The server has answered, with this code in the end.
    pub(crate) fn ended(&self, code: Code) {
        if code == Code::Ok
            && !self.is_told
            && let Some(budget) = &self.place.shared().settings.budget
        {
            budget.succeeded();
        }
        self.tell(code, Ending::Answered);
    }

    /// The deadline came first. That says something about the instance only if it answered nobody since.
    pub(crate) fn missed(&self) {
        if self.link().report.is_silent_since(self.answered) {
            self.load().missed_one();
            self.tell(Code::DeadlineExceeded, Ending::Missed);
        }
    }

    /// The server's clock can run out a moment before ours. tonic's servers call that CANCELLED; it is a deadline that
    /// was missed, and is told and counted as one.
    pub(crate) fn own_timeout(&self, headers: &mut HeaderMap) -> bool {
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
            self.load().failed_at(Instant::now());
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if self.has_begun {
            self.load().finish();
        }
    }
}
