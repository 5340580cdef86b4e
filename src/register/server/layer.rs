//! Each call that a server takes: counted until its request and its response ended, and answered UNAVAILABLE if the
//! drain limit comes first.

use std::any::Any;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::{Frame, SizeHint};
use pin_project_lite::pin_project;
#[cfg(doc)]
use tonic::Status;
use tonic::body::Body;
use tower::{BoxError, Layer, Service};

use super::call::{self, ResponseHalf, is_last, limit_passed};
use super::handle::ServerHandle;
use super::state::DrainState;

/// Counts the calls of a server, and ends at the drain limit those that are left.
///
/// Made by [`Drain::layer`](super::Drain::layer), or by [`Registration::layer`](crate::Registration::layer): that one
/// starts the registration, too, when it is applied.
///
/// For `tonic::transport::Server::builder().layer(..)`, which applies a layer once the listener is bound. Other
/// servers of tower services can use it too; those that apply layers earlier, as axum's `Router` does, take
/// [`count_only`](Self::count_only).
///
/// A call is in flight from its arrival until request *and* response ended or were dropped. At the drain limit
///
/// - a call that has no response yet is answered UNAVAILABLE, and so is each that begins later,
/// - a response under way ends with the trailer UNAVAILABLE,
/// - the handler's request stream yields a [`Status`] UNAVAILABLE, and the request's inner body is dropped, even where
///   a detached task keeps the stream and never reads it.
///
/// Requests that are not gRPC (gRPC-Web, which has no trailers, among them) get status 503, or a response that breaks
/// off: it must not look complete.
#[derive(Debug, Clone)]
pub struct DrainLayer {
    server: ServerHandle,
    starts: bool,
}

impl DrainLayer {
    pub(super) fn new(server: ServerHandle) -> Self {
        Self { server, starts: true }
    }

    /// Leaves the start of the registration to its incoming connections or to its `start()`, for servers that apply
    /// layers before they listen. The layer of a [`Drain`](super::Drain) without registration only counts anyhow.
    #[must_use]
    pub fn count_only(self) -> Self {
        Self { starts: false, ..self }
    }
}

impl<S> Layer<S> for DrainLayer {
    type Service = DrainService<S>;

    /// # Panics
    ///
    /// Outside of a tokio runtime, if it starts a registration.
    fn layer(&self, inner: S) -> Self::Service {
        self.server.drain().places().on_layer_applied();
        if self.starts {
            self.server.start();
        }
        DrainService { inner, drain: self.server.drain().clone() }
    }
}

/// The service of [`DrainLayer`].
///
/// Not a handle of the registration: connections outlive a server that was aborted, and must not keep it in etcd.
#[derive(Debug, Clone)]
pub struct DrainService<S> {
    inner: S,
    drain: DrainState,
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for DrainService<S>
where
    S: Service<Request<Body>, Response = Response<ResBody>>,
    ReqBody: http_body::Body<Data = Bytes> + Send + 'static,
    ReqBody::Error: Into<BoxError>,
    ResBody: http_body::Body,
    ResBody::Error: Into<BoxError>,
{
    type Response = Response<DrainBody<ResBody>>;
    type Error = S::Error;
    type Future = DrainFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let protocol = Protocol::of(request.headers());
        let mut request = with_tonic_body(request);
        let half = call::open(&self.drain, request.body_mut());
        if half.is_over() {
            self.drain.on_refused();
            return DrainFuture { state: FutureState::Refused, protocol };
        }
        DrainFuture { state: FutureState::Serving { future: self.inner.call(request), half: Some(half) }, protocol }
    }
}

/// As it is where it comes from tonic's server: a move costs as much as the rest of the layer.
fn with_tonic_body<B>(request: Request<B>) -> Request<Body>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let mut request = Some(request);
    if let Some(request) = (&mut request as &mut dyn Any).downcast_mut::<Option<Request<Body>>>() {
        return request.take().expect("it was put there");
    }
    request.expect("it was put there").map(Body::new)
}

pin_project! {
    /// The future of [`DrainService`].
    #[derive(Debug)]
    pub struct DrainFuture<F> {
        #[pin]
        state: FutureState<F>,
        protocol: Protocol,
    }
}

pin_project! {
    #[project = FutureStateProj]
    #[derive(Debug)]
    enum FutureState<F> {
        /// The handler works on the call. `half` is taken when it answers.
        Serving { #[pin] future: F, half: Option<ResponseHalf> },
        /// The limit passed before the handler answered, or before it was called.
        Refused,
    }
}

impl<F, B, E> Future for DrainFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: http_body::Body,
{
    type Output = Result<Response<DrainBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let protocol = *this.protocol;
        if let FutureStateProj::Serving { future, half } = this.state.as_mut().project()
            && !half.as_ref().is_some_and(ResponseHalf::is_over)
        {
            if let Poll::Ready(result) = future.poll(cx) {
                let half = half.take();
                return Poll::Ready(
                    result.map(|response| response.map(|body| DrainBody::streaming(body, half, protocol))),
                );
            }
            if !half.as_mut().is_some_and(|half| half.register(cx)) {
                return Poll::Pending;
            }
        }
        // Drops the handler now: the caller sends the response before it drops this future.
        this.state.set(FutureState::Refused);
        Poll::Ready(Ok(protocol.refusal()))
    }
}

pin_project! {
    /// The response body of [`DrainService`]: the inner one, with an end at the drain limit.
    #[derive(Debug)]
    pub struct DrainBody<B> {
        #[pin]
        state: BodyState<B>,
        protocol: Protocol,
    }
}

pin_project! {
    #[project = BodyStateProj]
    #[derive(Debug)]
    enum BodyState<B> {
        /// More frames may come.
        Streaming { #[pin] body: B, half: ResponseHalf },
        /// No frame comes any more, and nothing is held.
        Done,
    }
}

impl<B: http_body::Body> DrainBody<B> {
    fn streaming(body: B, half: Option<ResponseHalf>, protocol: Protocol) -> Self {
        let state = match half {
            Some(half) if !body.is_end_stream() => {
                half.on_response();
                BodyState::Streaming { body, half }
            }
            _ => BodyState::Done,
        };
        Self { state, protocol }
    }
}

impl<B> http_body::Body for DrainBody<B>
where
    B: http_body::Body,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let mut this = self.project();
        let BodyStateProj::Streaming { mut body, half } = this.state.as_mut().project() else {
            return Poll::Ready(None);
        };
        // Before the inner body is polled: a body that always has a frame ready would never end.
        if !half.is_over() {
            if let Poll::Ready(frame) = body.as_mut().poll_frame(cx) {
                if is_last(frame.as_ref(), &*body) {
                    this.state.set(BodyState::Done);
                }
                return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
            }
            if !half.register(cx) {
                return Poll::Pending;
            }
        }
        this.state.set(BodyState::Done);
        Poll::Ready(Some(this.protocol.end()))
    }

    fn is_end_stream(&self) -> bool {
        match &self.state {
            BodyState::Streaming { body, .. } => body.is_end_stream(),
            BodyState::Done => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.state {
            BodyState::Streaming { body, .. } => body.size_hint(),
            BodyState::Done => SizeHint::with_exact(0),
        }
    }
}

/// How a caller learns that the server goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    /// A status in headers or trailers.
    Grpc,
    /// Status 503, or a body that breaks off.
    Http,
}

impl Protocol {
    #[inline]
    fn of(headers: &HeaderMap) -> Self {
        let subtype = headers.get(CONTENT_TYPE).and_then(|value| value.as_bytes().strip_prefix(b"application/grpc"));
        match subtype {
            Some([] | [b'+' | b';', ..]) => Self::Grpc,
            _ => Self::Http,
        }
    }

    /// The response to a call that had none yet.
    fn refusal<B>(self) -> Response<DrainBody<B>> {
        let response = match self {
            Self::Grpc => limit_passed().into_http(),
            Self::Http => {
                let mut response = Response::new(());
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                response
            }
        };
        response.map(|()| DrainBody { state: BodyState::Done, protocol: self })
    }

    /// The last frame of a response under way.
    fn end<D>(self) -> Result<Frame<D>, BoxError> {
        match self {
            Self::Grpc => {
                let mut trailers = HeaderMap::with_capacity(2);
                limit_passed().add_header(&mut trailers)?;
                Ok(Frame::trailers(trailers))
            }
            Self::Http => Err(limit_passed().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::time::Duration;

    use http_body::Body as _;
    use tokio::sync::mpsc;
    use tokio_test::{assert_pending, assert_ready, task};
    use tonic::{Code, Status};
    use tower::util::{ServiceExt as _, ServiceFn, service_fn};

    use super::*;

    /// A body that a test feeds frame by frame.
    #[derive(Debug)]
    struct Fed(mpsc::UnboundedReceiver<Frame<Bytes>>);

    impl http_body::Body for Fed {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            self.0.poll_recv(cx).map(|frame| frame.map(Ok))
        }
    }

    /// A body that always has a frame ready.
    struct Endless;

    impl http_body::Body for Endless {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(Some(Ok(data("more"))))
        }
    }

    type Feed = mpsc::UnboundedSender<Frame<Bytes>>;

    fn fed() -> (Feed, Fed) {
        let (feed, frames) = mpsc::unbounded_channel();
        (feed, Fed(frames))
    }

    fn data(text: &'static str) -> Frame<Bytes> {
        Frame::data(Bytes::from_static(text.as_bytes()))
    }

    fn request<B>(content_type: &'static str, body: B) -> Request<B> {
        Request::builder().header(CONTENT_TYPE, content_type).body(body).expect("a constant header is a good header")
    }

    fn grpc<B>(body: B) -> Request<B> {
        request("application/grpc", body)
    }

    /// The service that `DrainLayer` puts around `handler`.
    fn counted<F>(drain: &DrainState, handler: F) -> DrainService<ServiceFn<F>> {
        DrainService { inner: service_fn(handler), drain: drain.clone() }
    }

    type Reply = Result<Response<Fed>, BoxError>;

    async fn never(_request: Request<Body>) -> Reply {
        future::pending().await
    }

    fn respond<B>(body: B) -> future::Ready<Result<Response<B>, BoxError>> {
        future::ready(Ok(Response::new(body)))
    }

    /// Lets the drain limit pass, and the countdown do its work.
    async fn end(drain: &DrainState) {
        drain.begin(Duration::ZERO, None);
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(drain.has_ended(), "the limit passed");
    }

    async fn frame<B: http_body::Body + Unpin>(body: &mut B) -> Option<Result<Frame<B::Data>, B::Error>> {
        future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await
    }

    fn status_of(headers: &HeaderMap) -> Code {
        Status::from_header_map(headers).expect("a gRPC status is there").code()
    }

    #[tokio::test]
    async fn a_call_counts_until_both_bodies_ended() {
        for response_first in [true, false] {
            let drain = DrainState::new();
            let (ask, question) = fed();
            let (reply, answer) = fed();
            let mut answer = Some(answer);
            let (keep, mut kept) = mpsc::unbounded_channel();
            let mut service = counted(&drain, |request: Request<Body>| {
                keep.send(request.into_body()).expect("the test keeps it");
                respond(answer.take().expect("one call"))
            });
            let call = service.call(grpc(question));
            assert_eq!(drain.in_flight(), 1, "it counts from the call");
            let mut response = call.await.expect("the handler answers").into_body();
            drop(service);
            let mut asked = kept.try_recv().expect("the handler was called");

            reply.send(data("a")).expect("the response is open");
            ask.send(data("q")).expect("the request is open");
            for body in [frame(&mut asked).await.map(|f| f.is_ok()), frame(&mut response).await.map(|f| f.is_ok())] {
                assert_eq!(body, Some(true), "frames pass");
            }
            assert_eq!(drain.in_flight(), 1, "both bodies are open");

            drop((ask, reply));
            if response_first {
                assert!(frame(&mut response).await.is_none(), "the response ends");
                assert!(response.is_end_stream(), "and says so");
                assert_eq!(drain.in_flight(), 1, "the request is open");
                assert!(frame(&mut asked).await.is_none(), "the request ends");
            } else {
                assert!(frame(&mut asked).await.is_none(), "the request ends");
                assert!(asked.is_end_stream(), "and says so");
                assert_eq!(drain.in_flight(), 1, "the response is open");
                assert!(frame(&mut response).await.is_none(), "the response ends");
            }
            assert_eq!(drain.in_flight(), 0, "both ended, though nothing is dropped");
        }
    }

    #[tokio::test]
    async fn a_call_that_is_dropped_fails_or_panics_does_not_count() {
        let drain = DrainState::new();
        let mut dropped = task::spawn(counted(&drain, never).call(grpc(fed().1)));
        assert_pending!(dropped.poll());
        assert_eq!(drain.in_flight(), 1, "the handler works on it");
        drop(dropped);
        assert_eq!(drain.in_flight(), 0, "its caller left");

        let failed =
            counted(&drain, |_request| future::ready(Reply::Err("no luck".into()))).oneshot(grpc(fed().1)).await;
        assert!(failed.is_err(), "an error is passed on");
        assert_eq!(drain.in_flight(), 0, "it failed");

        let mut early = counted(&drain, |_request| -> future::Ready<Reply> { panic!("in call") });
        catch_unwind(AssertUnwindSafe(|| early.call(grpc(fed().1)))).map(drop).expect_err("it panics");
        assert_eq!(drain.in_flight(), 0, "it panicked before it had a future");

        let late = counted(&drain, |_request| async { if true { panic!("in poll") } else { Reply::Err("no".into()) } })
            .oneshot(grpc(fed().1));
        tokio::spawn(async move { late.await.map(drop) }).await.expect_err("it panics");
        assert_eq!(drain.in_flight(), 0, "it panicked while it was polled");
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_without_response_is_answered_unavailable_at_the_limit() {
        let drain = DrainState::new();
        let mut call = task::spawn(counted(&drain, never).call(grpc(fed().1)));
        assert_pending!(call.poll());
        end(&drain).await;
        assert!(call.is_woken(), "nothing else would wake it");
        let response = assert_ready!(call.poll()).expect("an answer, not an error");
        assert_eq!(response.status(), StatusCode::OK, "gRPC's own status says it");
        assert_eq!(response.headers()[CONTENT_TYPE], "application/grpc", "it is gRPC");
        assert_eq!(status_of(response.headers()), Code::Unavailable, "it may be tried elsewhere");
        assert!(response.body().is_end_stream(), "headers and trailers are one frame");
        assert_eq!(drain.in_flight(), 0, "handler and request are gone");
    }

    #[tokio::test(start_paused = true)]
    async fn no_handler_begins_after_the_limit() {
        let drain = DrainState::new();
        end(&drain).await;
        let response = counted(&drain, |_request| -> future::Ready<Reply> { unreachable!("the limit passed") })
            .oneshot(grpc(fed().1))
            .await
            .expect("an answer, not an error");
        assert_eq!(status_of(response.headers()), Code::Unavailable, "it may be tried elsewhere");
        assert_eq!(drain.in_flight(), 0, "it does not count");
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_under_way_ends_with_trailers_at_the_limit() {
        let drain = DrainState::new();
        let (reply, answer) = fed();
        let mut answer = Some(answer);
        let mut response = counted(&drain, |_request| respond(answer.take().expect("one call")))
            .oneshot(grpc(fed().1))
            .await
            .expect("the handler answers")
            .into_body();
        let mut waiting = task::spawn(frame(&mut response));
        assert_pending!(waiting.poll());
        end(&drain).await;
        assert!(waiting.is_woken(), "nothing else would wake it");
        let last = assert_ready!(waiting.poll()).expect("a last frame").expect("not an error");
        drop(waiting);
        let trailers = last.into_trailers().expect("trailers");
        assert_eq!(status_of(&trailers), Code::Unavailable, "it may be tried elsewhere");
        assert!(frame(&mut response).await.is_none(), "nothing after the trailers");
        assert!(reply.is_closed(), "the handler's stream is dropped");
        assert_eq!(drain.in_flight(), 0, "nothing is left");
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_that_never_pauses_ends_too() {
        let drain = DrainState::new();
        let mut response = counted(&drain, |_request| respond(Endless))
            .oneshot(grpc(fed().1))
            .await
            .expect("the handler answers")
            .into_body();
        assert!(frame(&mut response).await.is_some_and(|f| f.is_ok_and(|f| f.is_data())), "data");
        end(&drain).await;
        assert!(frame(&mut response).await.is_some_and(|f| f.is_ok_and(|f| f.is_trailers())), "trailers");
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_reader_of_the_request_gets_a_status_at_the_limit() {
        let drain = DrainState::new();
        let (keep, mut kept) = mpsc::unbounded_channel();
        let (_ask, question) = fed();
        let call = counted(&drain, |request: Request<Body>| {
            keep.send(request.into_body()).expect("the test keeps it");
            future::pending::<Reply>()
        })
        .call(grpc(question));
        let mut asked = kept.try_recv().expect("the handler was called");
        let mut reader = task::spawn(frame(&mut asked));
        assert_pending!(reader.poll());
        end(&drain).await;
        assert!(reader.is_woken(), "nothing else would wake it");
        let status = assert_ready!(reader.poll()).expect("not an end").expect_err("a status");
        assert_eq!(status.code(), Code::Unavailable, "it says why");
        drop(reader);
        assert!(frame(&mut asked).await.is_none(), "an error is the last that comes");
        drop(call);
        assert_eq!(drain.in_flight(), 0, "nothing is left");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_without_a_reader_is_released_at_the_limit() {
        let drain = DrainState::new();
        let (ask, question) = fed();
        let (keep, mut kept) = mpsc::unbounded_channel();
        let mut call = task::spawn(
            counted(&drain, |request: Request<Body>| {
                keep.send(request.into_body()).expect("the test keeps it");
                future::pending::<Reply>()
            })
            .call(grpc(question)),
        );
        assert_pending!(call.poll());
        let _detached = kept.try_recv().expect("the handler passes it on");
        end(&drain).await;
        assert!(ask.is_closed(), "what was behind it is gone");
        assert!(assert_ready!(call.poll()).is_ok(), "the call is answered");
        assert_eq!(drain.in_flight(), 0, "nothing is left that counts");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_outlives_its_response_is_released_at_the_limit() {
        let drain = DrainState::new();
        let (ask, question) = fed();
        let (keep, mut kept) = mpsc::unbounded_channel();
        let response = counted(&drain, |request: Request<Body>| {
            keep.send(request.into_body()).expect("the test keeps it");
            respond(Body::empty())
        })
        .oneshot(grpc(question))
        .await
        .expect("the handler answers");
        assert!(response.body().is_end_stream(), "the response is over, and never waited");
        let mut detached = kept.try_recv().expect("the handler passes it on");
        assert_eq!(drain.in_flight(), 1, "the request is open");
        end(&drain).await;
        assert!(ask.is_closed(), "what was behind it is gone");
        assert_eq!(drain.in_flight(), 0, "nothing is left that counts");
        let status = frame(&mut detached).await.expect("not an end").expect_err("a status");
        assert_eq!(status.code(), Code::Unavailable, "it says why");
        assert!(frame(&mut detached).await.is_none(), "an error is the last that comes");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_beside_a_response_that_never_waits_is_released_at_the_limit() {
        let drain = DrainState::new();
        let (ask, question) = fed();
        let (keep, mut kept) = mpsc::unbounded_channel();
        let response = counted(&drain, |request: Request<Body>| {
            keep.send(request.into_body()).expect("the test keeps it");
            respond(Endless)
        })
        .oneshot(grpc(question))
        .await
        .expect("the handler answers");
        // As hyper does where the client makes no room: one frame is read, and then nothing for long.
        let mut body = response.into_body();
        assert!(frame(&mut body).await.is_some_and(|f| f.is_ok_and(|f| f.is_data())), "data");
        let _detached = kept.try_recv().expect("the handler passes it on");
        end(&drain).await;
        assert!(ask.is_closed(), "what was behind it is gone");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_never_pauses_ends_too() {
        let drain = DrainState::new();
        let (keep, mut kept) = mpsc::unbounded_channel();
        let call = counted(&drain, |request: Request<Body>| {
            keep.send(request.into_body()).expect("the test keeps it");
            future::pending::<Reply>()
        })
        .call(grpc(Endless));
        let mut asked = kept.try_recv().expect("the handler was called");
        assert!(frame(&mut asked).await.is_some_and(|f| f.is_ok_and(|f| f.is_data())), "data");
        end(&drain).await;
        let status = frame(&mut asked).await.expect("not an end").expect_err("a status");
        assert_eq!(status.code(), Code::Unavailable, "it says why");
        assert!(frame(&mut asked).await.is_none(), "an error is the last that comes");
        drop(call);
        assert_eq!(drain.in_flight(), 0, "nothing is left");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_grpc_gets_503_or_breaks_off() {
        for content_type in ["text/html", "application/grpc-web+proto", "application/grpcish"] {
            let drain = DrainState::new();
            let mut call = task::spawn(counted(&drain, never).call(request(content_type, fed().1)));
            assert_pending!(call.poll());
            let (_reply, answer) = fed();
            let mut answer = Some(answer);
            let mut under_way = counted(&drain, |_request| respond(answer.take().expect("one call")))
                .oneshot(request(content_type, fed().1))
                .await
                .expect("the handler answers")
                .into_body();

            end(&drain).await;
            let response = assert_ready!(call.poll()).expect("an answer, not an error");
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "503 is what HTTP has for it");
            let last = frame(&mut under_way).await.expect("not an end");
            assert!(last.is_err(), "half a page must not look like a whole one");
        }
    }

    #[test]
    fn grpc_is_told_by_its_content_type() {
        for content_type in ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"] {
            let head = request(content_type, ());
            assert_eq!(Protocol::of(head.headers()), Protocol::Grpc, "{content_type}");
        }
        assert_eq!(Protocol::of(&HeaderMap::new()), Protocol::Http, "none at all");
    }

    #[tokio::test]
    async fn an_empty_request_stays_empty() {
        let drain = DrainState::new();
        let mut service = DrainService {
            inner: service_fn(async |request: Request<Body>| {
                assert!(request.body().is_end_stream(), "nothing was wrapped");
                Ok::<_, Infallible>(Response::new(Body::empty()))
            }),
            drain: drain.clone(),
        };
        let call = service.call(grpc(Body::empty()));
        assert_eq!(drain.in_flight(), 1, "its response did not end yet");
        let response = call.await.expect("the handler answers");
        assert_eq!(drain.in_flight(), 0, "both ended");
        assert!(response.body().is_end_stream(), "an empty response stays empty");
    }

    #[test]
    fn a_service_is_as_sendable_as_its_inner_one() {
        fn assert_send_sync<T: Send + Sync>() {}
        assert_send_sync::<DrainLayer>();
        assert_send_sync::<DrainService<()>>();
        assert_send_sync::<DrainFuture<()>>();
        assert_send_sync::<DrainBody<()>>();
    }
}
