//! A server's own word on its health, asked on the connection that its calls take: `grpc.health.v1.Health/Watch`.
//!
//! | state | begins | calls are picked for the instance |
//! | --- | --- | --- |
//! | asking | with the connection | no: CONNECTING |
//! | serving | with the answer SERVING, or where the server does not know the method | yes |
//! | not serving | with any other answer, none in time, or the end of the stream of answers | no: `TRANSIENT_FAILURE` |
//!
//! One task per connection asks, and again after a pause where the answers end; the balancer is told each change. The
//! task ends with the connection, or as soon as no more calls are picked for that.

use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::Version;
use http::uri::PathAndQuery;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::timeout;
use tonic::body::Body;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tower::Service;
use tracing::Instrument;

use crate::backoff::Backoff;
use crate::channel::subchannel::{FeedbackEvent, HealthVerdict, Ticket};
use crate::channel::transport::{AttemptError, Exchange, IncomingBody, RequestBody, Transport};
use crate::instance::Address;
use crate::targets::CHANNEL;

/// Asks one connection's server.
pub(super) struct HealthWatch {
    /// The name of one of the server's services; empty for all of it.
    service: Arc<str>,
    transport: Transport,
    address: Address,
    ticket: Ticket,
    events: mpsc::UnboundedSender<FeedbackEvent>,
    /// For the first answer.
    limit: Duration,
    /// The verdict that was reported last.
    reported: Option<HealthVerdict>,
}

impl HealthWatch {
    pub(super) fn new(
        service: Arc<str>,
        transport: Transport,
        (address, ticket): (Address, Ticket),
        events: mpsc::UnboundedSender<FeedbackEvent>,
        limit: Duration,
    ) -> Self {
        Self { service, transport, address, ticket, events, limit, reported: None }
    }

    /// Asks in a task of its own, which ends when the returned sender is dropped, or when the connection is `crowded`:
    /// its only stream is for calls then, and its server counts as serving.
    pub(super) fn spawn(mut self, crowded: Arc<Notify>) -> oneshot::Sender<Infallible> {
        let (watch, mut ended) = oneshot::channel();
        let span = tracing::debug_span!(target: CHANNEL, parent: None, "health", address = %self.address);
        let task = async move {
            let is_crowded = tokio::select! {
                _ = &mut ended => false,
                () = self.run() => false,
                () = crowded.notified() => true,
            };
            if is_crowded {
                self.report(Ok(()));
            }
        };
        tokio::spawn(task.instrument(span));
        watch
    }

    /// Ends when there is nothing to ask.
    async fn run(&mut self) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            let ended = self.listen(&mut backoff).await;
            if ended.code() == Code::Unimplemented {
                tracing::debug!(target: CHANNEL, address = %self.address, "the server has no health service");
                self.report(Ok(()));
                return;
            }
            self.report(Err(format!("{}: its health is not known: {}", self.address, ended.message()).into()));
            tokio::time::sleep(backoff.next()).await;
        }
    }

    /// Reports each answer, until there are no more.
    async fn listen(&mut self, backoff: &mut Backoff) -> Status {
        let mut client = HealthClient::new(Direct(self.transport.clone()));
        let request = HealthCheckRequest { service: self.service.to_string() };
        let late = |_| Status::deadline_exceeded(format!("no answer within {:?}", self.limit));
        let first = async {
            let mut answers = client.watch(request).await?.into_inner();
            let answer = answers.message().await?;
            Ok((answer, answers))
        };
        let (mut answer, mut answers) = match timeout(self.limit, first).await.map_err(late) {
            Ok(Ok(begun)) => begun,
            Ok(Err(status)) | Err(status) => return status,
        };
        loop {
            let Some(answered) = answer else { return Status::unavailable("the server ended the stream") };
            backoff.reset();
            self.report(match answered.status() {
                ServingStatus::Serving => Ok(()),
                other => Err(format!("{}: the server says {}", self.address, other.as_str_name()).into()),
            });
            answer = match answers.message().await {
                Ok(answer) => answer,
                Err(status) => return status,
            };
        }
    }

    fn report(&mut self, verdict: HealthVerdict) {
        if self.reported.as_ref() == Some(&verdict) {
            return;
        }
        self.reported = Some(verdict.clone());
        let (address, ticket) = (self.address.clone(), self.ticket);
        // Without a balancer the channel is gone.
        let _ = self.events.send(FeedbackEvent::Health { address, ticket, verdict });
    }
}

/// Calls on one connection, without picks and accounting.
#[derive(Clone)]
struct Direct(Transport);

impl Service<http::Request<Body>> for Direct {
    type Response = http::Response<IncomingBody>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.clone().exchange(request))
    }
}

impl Direct {
    async fn exchange(self, request: http::Request<Body>) -> Result<http::Response<IncomingBody>, Status> {
        let (mut head, body) = request.into_parts();
        let path = head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        head.uri = self.0.uri(path)?;
        head.version = Version::HTTP_2;
        let mut body = RequestBody::new(body);
        let (mut exchange, mut request) = (Exchange::default(), http::Request::from_parts(head, ()));
        let answer = poll_fn(|cx| {
            let request = || Ok(std::mem::take(&mut request));
            exchange.poll_response(&self.0, request, &mut body, cx)
        });
        answer.await.map_err(status)
    }
}

fn status(error: AttemptError) -> Status {
    match error {
        AttemptError::Request(status) => status,
        AttemptError::Unprocessed { error, .. } | AttemptError::MaybeProcessed(error) => {
            Status::unavailable(error.to_string())
        }
    }
}

/// Between two questions, where the answers end: as for connections, since it is the same server that may just restart.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
