//! What a server says of its own health, asked on the connection that its calls take: `grpc.health.v1.Health/Watch`.
//!
//! | state | begins | calls are chosen for it |
//! | --- | --- | --- |
//! | asking | with the connection | no: CONNECTING |
//! | serving | with the answer SERVING, or where the server does not know the method | yes |
//! | not serving | with any other answer, none in time, or the end of the stream of answers | no: `TRANSIENT_FAILURE` |
//!
//! One task a connection asks, again after a while where the answers end; the control task hears of each change. It ends with
//! the connection, or as soon as no more calls are chosen for that.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use h2::client::SendRequest;
use http::uri::{Authority, Parts, Scheme};
use http::{Uri, Version};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tonic::body::Body;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tower::Service;

use crate::backoff::Backoff;
use crate::channel::call::response_body::ResponseBody;
use crate::channel::subchannel::shared::Event;
use crate::channel::transport::request_body::RequestBody;
use crate::instance::Address;

/// What is known of the health of the server behind a connection.
#[derive(Debug)]
pub(crate) enum Health {
    /// Nobody asked.
    Unchecked,
    /// The task that asks ends when this is dropped.
    Watched { is_serving: bool, _watch: oneshot::Sender<Infallible> },
}

/// An answer: SERVING, or why that is not sure.
pub(crate) type Verdict = Result<(), Arc<str>>;

/// Asks one connection's server.
pub(crate) struct HealthWatch {
    /// Which of the server's services; empty for all of it.
    pub(crate) service: Arc<str>,
    pub(crate) connection: Direct,
    pub(crate) address: Address,
    pub(crate) generation: u64,
    pub(crate) events: mpsc::UnboundedSender<Event>,
    /// For the first answer.
    pub(crate) limit: Duration,
    /// What the control task knows.
    pub(crate) told: Option<Verdict>,
}

impl Health {
    pub(crate) fn is_good(&self) -> bool {
        matches!(self, Self::Unchecked | Self::Watched { is_serving: true, .. })
    }

    pub(crate) fn set(&mut self, serving: bool) {
        if let Self::Watched { is_serving, .. } = self {
            *is_serving = serving;
        }
    }
}

impl HealthWatch {
    /// Asks in a task of its own.
    pub(crate) fn spawn(self) -> Health {
        let (watch, mut ended) = oneshot::channel();
        tokio::spawn(async move {
            tokio::select! {
                _ = &mut ended => {}
                () = self.run() => {}
            }
        });
        Health::Watched { is_serving: false, _watch: watch }
    }

    /// Ends when there is nothing to ask.
    async fn run(mut self) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            let ended = self.listen(&mut backoff).await;
            if ended.code() == Code::Unimplemented {
                tracing::debug!(address = %self.address, "the server does not tell its health");
                self.tell(Ok(()));
                return;
            }
            self.tell(Err(format!("{}: its health is not known: {}", self.address, ended.message()).into()));
            tokio::time::sleep(backoff.next()).await;
        }
    }

    /// Tells each answer, until there are no more.
    async fn listen(&mut self, backoff: &mut Backoff) -> Status {
        let mut client = HealthClient::new(self.connection.clone());
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
            let Some(said) = answer else { return Status::unavailable("the server ended the stream") };
            backoff.reset();
            self.tell(match said.status() {
                ServingStatus::Serving => Ok(()),
                other => Err(format!("{}: the server says {}", self.address, other.as_str_name()).into()),
            });
            answer = match answers.message().await {
                Ok(answer) => answer,
                Err(status) => return status,
            };
        }
    }

    fn tell(&mut self, verdict: Verdict) {
        if self.told.as_ref() == Some(&verdict) {
            return;
        }
        self.told = Some(verdict.clone());
        let (address, generation) = (self.address.clone(), self.generation);
        // Without a control task the channel is gone, and nobody asks any more.
        let _ = self.events.send(Event::Health { address, generation, verdict });
    }
}

/// Calls on one connection, past everything that a channel does for its own.
#[derive(Clone)]
pub(crate) struct Direct {
    pub(crate) send: SendRequest<Bytes>,
    pub(crate) scheme: Scheme,
    pub(crate) authority: Authority,
}

impl Service<http::Request<Body>> for Direct {
    type Response = http::Response<ResponseBody>;
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
    async fn exchange(mut self, request: http::Request<Body>) -> Result<http::Response<ResponseBody>, Status> {
        let (mut head, body) = request.into_parts();
        let mut parts = Parts::default();
        (parts.scheme, parts.authority) = (Some(self.scheme), Some(self.authority));
        parts.path_and_query = head.uri.path_and_query().cloned();
        head.uri = Uri::from_parts(parts).map_err(|error| Status::internal(error.to_string()))?;
        head.version = Version::HTTP_2;
        let mut body = RequestBody::new(body);
        let is_all = poll_fn(|cx| Poll::Ready(body.begin(cx))).await?;
        let sent = self.send.send_request(http::Request::from_parts(head, ()), is_all);
        let (mut response, mut stream) = sent.map_err(|error| Status::unavailable(error.to_string()))?;
        let answered = poll_fn(|cx| match body.poll_send(&mut stream, cx) {
            Poll::Ready(Err(status)) => Poll::Ready(Err(status)),
            _ => Pin::new(&mut response).poll(cx).map_err(|error| Status::unavailable(error.to_string())),
        });
        // The question is one message, so it is sent when the answer begins.
        Ok(answered.await?.map(ResponseBody::rest))
    }
}

/// Between two questions, where the answers end: as for connections, since it is the same server that may just restart.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
