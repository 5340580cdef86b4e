//! The graceful shutdown of one server as a user sees it: an option, and three places in the server.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::handle::ServerHandle;
use super::incoming::Incoming;
use super::layer::DrainLayer;

/// Graceful shutdown with a limit, for a tonic server or any other server of tower services. A cheap handle; clones are
/// the same drain.
///
/// tonic's `serve_with_incoming_shutdown` stops accepting when its signal comes, and then waits for every open
/// connection without a limit: one stream that never ends, one client that does not read or one peer that sends
/// nothing keeps the process until it is killed, and then *every* call left is cut off without a status. A `Drain`
/// counts the calls, lets them finish, and answers those that are left at the limit with UNAVAILABLE, so that clients
/// can try elsewhere.
///
/// It goes into three places of a server:
///
/// ```no_run
/// use std::time::Duration;
///
/// use tonic::transport::{Server, server::TcpIncoming};
/// use tonic_etcd::server::Drain;
/// use tonic_etcd::shutdown_signal;
/// # use tonic::server::NamedService;
/// # #[derive(Clone)] struct Echo;
/// # impl NamedService for Echo { const NAME: &'static str = "echo"; }
/// # impl tower::Service<http::Request<tonic::body::Body>> for Echo {
/// #     type Response = http::Response<tonic::body::Body>;
/// #     type Error = std::convert::Infallible;
/// #     type Future = std::future::Ready<Result<Self::Response, Self::Error>>;
/// #     fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
/// #         std::task::Poll::Ready(Ok(()))
/// #     }
/// #     fn call(&mut self, _: http::Request<tonic::body::Body>) -> Self::Future {
/// #         std::future::ready(Ok(http::Response::default()))
/// #     }
/// # }
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let drain = Drain::new().limit(Duration::from_secs(10));
/// let incoming = TcpIncoming::bind("0.0.0.0:50051".parse()?)?;
/// Server::builder()
///     .layer(drain.layer())
///     .add_service(Echo) // any generated server
///     .serve_with_incoming_shutdown(drain.incoming(incoming), drain.on(shutdown_signal()))
///     .await?;
/// # Ok(())
/// # }
/// ```
///
/// | place | what it does | without it |
/// | --- | --- | --- |
/// | [`layer`](Self::layer) | counts calls, answers those left at the limit | they are cut off without a status |
/// | [`incoming`](Self::incoming) | closes connections 250 ms after the limit | a client that stays keeps the server |
/// | [`on`](Self::on) | stops accepting, starts the countdown | nothing ends |
///
/// A warning names the place that was forgotten: the first two when the drain begins, and `layer` or `on` with a
/// connection that comes 5 s or more after the first one. A server without `incoming` may be as it should: an
/// axum server, for example, that closes its connections itself.
///
/// A registration brings a drain of its own: [`Registration`](crate::Registration) has the same three places.
#[derive(Clone)]
#[must_use = "a drain does nothing before it is in all three places of a server"]
pub struct Drain {
    server: ServerHandle,
    limit: Duration,
    /// Where clients know the server, for logs.
    address: Option<Arc<str>>,
}

impl Drain {
    /// A drain with the default limit of 25 s.
    pub fn new() -> Self {
        Self { server: ServerHandle::new(), limit: DEFAULT_LIMIT, address: None }
    }

    /// How long calls may take after the signal, before they are ended with UNAVAILABLE; their connections are closed
    /// 250 ms later. Defaults to 25 s, which leaves 5 s of the 30 s after which Kubernetes kills for all else that a
    /// process does at its end. Zero ends calls at once; a limit of decades is none.
    ///
    /// Set it before the drain is used: it counts for the signals of this handle and of its clones from here on.
    pub fn limit(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// The layer for `Server::builder().layer(..)`, which counts calls and ends those that are left at the limit.
    ///
    /// Put it first: tonic's first layer is the outermost one, and the time that calls spend in the others then counts.
    #[must_use]
    pub fn layer(&self) -> DrainLayer {
        self.server.drain().places().on_taken();
        DrainLayer::new(self.server.clone())
    }

    /// Wraps a server's incoming connections, so that those still open 250 ms after the limit are closed.
    ///
    /// Sets `TCP_NODELAY` on TCP connections, too, as tonic does where it binds itself; see
    /// [`Incoming::tcp_nodelay`].
    #[must_use]
    pub fn incoming<I>(&self, incoming: I) -> Incoming<I> {
        self.server.drain().places().on_taken();
        Incoming::new(incoming, self.server.clone())
    }

    /// The shutdown future for `serve_with_incoming_shutdown`: waits for `signal`, and then starts the countdown and
    /// resolves, so that the server stops accepting and finishes the calls in flight, for at most the limit.
    ///
    /// What is to happen while the server still serves belongs into the signal: `async { shutdown_signal().await;
    /// sleep(pause).await }` gives load balancers time to take the server out.
    ///
    /// The first signal starts the countdown for all that share the drain; each future waits for its own signal. Give
    /// all servers of one drain the same signal.
    ///
    /// # Runtime
    ///
    /// The countdown is a task on the runtime that polls the future when the signal comes, and ends with that runtime:
    /// calls and connections that are open then lose their limit, which a warning reports.
    ///
    /// # Panics
    ///
    /// When the signal comes, if the future is polled outside of a tokio runtime.
    ///
    /// # Cancel safety
    ///
    /// Dropped before the signal, the future does nothing, and the server serves on. The countdown goes on without it.
    pub fn on<F>(&self, signal: F) -> impl Future<Output = ()> + Send + use<F>
    where
        F: Future<Output = ()> + Send,
    {
        let drain = self.clone();
        self.on_signal_taken();
        async move {
            signal.await;
            drain.begin();
        }
    }

    /// How many calls the layer counts whose request or response has not ended yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.server.drain().in_flight()
    }

    /// This drain with an address that tells its log lines from those of other servers.
    pub(crate) fn at(self, address: Option<Arc<str>>) -> Self {
        Self { address, ..self }
    }

    /// The shutdown future is about to go into a server.
    pub(crate) fn on_signal_taken(&self) {
        self.server.drain().places().on_signal_taken();
    }

    /// The shutdown begins: calls have time until the limit.
    pub(crate) fn begin(&self) {
        self.server.drain().begin(self.limit, self.address.as_deref());
    }

    /// Whether a place of it was taken.
    pub(crate) fn is_used(&self) -> bool {
        self.server.drain().places().is_taken()
    }

    /// Whether both are of one server.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.server.drain().is_same(other.server.drain())
    }

    /// What was given to [`limit`](Self::limit), or the default.
    pub(crate) fn configured_limit(&self) -> Duration {
        self.limit
    }

    /// A handle to this drain for a server that runs `start` when it starts to serve, once or more often.
    pub(crate) fn with_start(&self, start: impl Fn() + Send + Sync + 'static) -> Self {
        Self { server: self.server.with_start(start), ..self.clone() }
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drain")
            .field("limit", &self.limit)
            .field("address", &self.address)
            .field("state", self.server.drain())
            .finish()
    }
}

/// Kubernetes kills 30 s after its signal.
pub(crate) const DEFAULT_LIMIT: Duration = Duration::from_secs(25);

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::{pending, ready};
    use std::pin::pin;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::{StreamExt as _, stream};
    use http::{Request, Response};
    use tokio::runtime::Builder;
    use tokio::sync::oneshot;
    use tokio::time::{Instant, sleep};
    use tokio_test::{assert_pending, assert_ready, task};
    use tonic::body::Body;
    use tonic::{Code, Status};
    use tower::{Layer, Service, ServiceExt as _, service_fn};

    use super::*;
    use crate::test_log::Log;

    const LIMIT: Duration = Duration::from_secs(10);

    fn call() -> Request<Body> {
        Request::builder().header("content-type", "application/grpc").body(Body::empty()).expect("a good header")
    }

    async fn never(_: Request<Body>) -> Result<Response<Body>, Infallible> {
        pending().await
    }

    async fn slow(_: Request<Body>) -> Result<Response<Body>, Infallible> {
        sleep(LIMIT / 2).await;
        Ok(Response::new(Body::empty()))
    }

    fn tasks() -> usize {
        tokio::runtime::Handle::current().metrics().num_alive_tasks()
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_is_left_at_the_limit_is_answered_unavailable() {
        let drain = Drain::new().limit(LIMIT);
        let mut service = drain.layer().layer(service_fn(never));
        let stuck = service.call(call());
        drain.on(ready(())).await;
        let since = Instant::now();
        assert_eq!(drain.in_flight(), 1, "it has time until the limit");
        let response = stuck.await.expect("an answer, not an error");
        assert_eq!(since.elapsed().as_secs(), LIMIT.as_secs(), "it is answered at the limit");
        let status = Status::from_header_map(response.headers()).expect("a gRPC status");
        assert_eq!(status.code(), Code::Unavailable, "it may be tried elsewhere");
        drop(response);
        assert_eq!(drain.in_flight(), 0, "nothing is left");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_accepts_for_a_while_is_told_once_of_places_that_it_has_not_used() {
        let (log, _guard) = Log::capture();
        let warned = || log.count("the server serves without all of its places");
        let connections = || {
            stream::iter(0..4).then(|_| async {
                sleep(Duration::from_secs(4)).await;
                Ok::<_, Infallible>(tokio::io::empty())
            })
        };
        let with_all = Drain::new();
        let (layer, signal) = (with_all.layer(), with_all.on(pending()));
        drop(layer.layer(service_fn(never)));
        assert_eq!(with_all.incoming(connections()).count().await, 4);
        drop(signal);
        assert_eq!(warned(), 0, "it has all of them");

        let mut incoming = pin!(Drain::new().incoming(connections()));
        for (seconds, warnings) in [(4, 0), (8, 0), (12, 1), (16, 1)] {
            incoming.next().await.expect("a connection").expect("a good one");
            assert_eq!(warned(), warnings, "after {seconds} s, of which the first connection took four");
        }
        assert_eq!(log.count("layer() and deregister_on(), or on() of a Drain"), 1, "both are named");
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_finishes_before_the_limit_gets_its_answer() {
        let drain = Drain::new().limit(LIMIT);
        let mut service = drain.layer().layer(service_fn(slow));
        let answered = service.call(call());
        drain.on(ready(())).await;
        let late = service.call(call());
        for (call, what) in [(answered, "begun before the signal"), (late, "begun while others finish")] {
            let response = call.await.expect("an answer");
            assert!(Status::from_header_map(response.headers()).is_none(), "no status of ours on a call {what}");
        }
        assert_eq!(drain.in_flight(), 0, "both ended");
    }

    #[tokio::test(start_paused = true)]
    async fn the_countdown_starts_with_the_signal() {
        let drain = Drain::new().limit(LIMIT);
        let (signal, signalled) = oneshot::channel::<()>();
        let mut on = task::spawn(drain.on(async { drop(signalled.await) }));
        assert_pending!(on.poll(), "no signal came");
        let mut service = drain.layer().layer(service_fn(never));
        let mut stuck = task::spawn(service.call(call()));
        sleep(3 * LIMIT).await;
        assert_pending!(stuck.poll(), "time before the signal does not count");

        signal.send(()).expect("the future waits for it");
        assert!(on.is_woken(), "the signal came");
        assert_ready!(on.poll(), "the server is to stop accepting");
        sleep(LIMIT * 99 / 100).await;
        assert_pending!(stuck.poll(), "the limit is ahead");
        sleep(LIMIT / 50).await;
        assert!(assert_ready!(stuck.poll()).is_ok(), "the limit passed");
    }

    #[tokio::test(start_paused = true)]
    async fn a_shutdown_future_that_is_dropped_before_its_signal_does_nothing() {
        let drain = Drain::new().limit(Duration::ZERO);
        let mut on = task::spawn(drain.on(pending()));
        assert_pending!(on.poll(), "no signal came");
        drop(on);
        sleep(LIMIT).await;
        assert_eq!(tasks(), 0, "no countdown was started");
        let response = drain.layer().layer(service_fn(slow)).oneshot(call()).await.expect("an answer");
        assert!(Status::from_header_map(response.headers()).is_none(), "the server serves on");
    }

    #[tokio::test(start_paused = true)]
    async fn the_countdown_goes_on_without_the_shutdown_future() {
        let drain = Drain::new().limit(LIMIT);
        let service = drain.layer().layer(service_fn(never));
        let mut on = task::spawn(drain.on(ready(())));
        assert_ready!(on.poll(), "the signal came");
        drop((on, drain));
        let response = service.oneshot(call()).await.expect("an answer");
        assert!(Status::from_header_map(response.headers()).is_some(), "the limit ended it");
    }

    #[tokio::test(start_paused = true)]
    async fn the_countdown_ends_with_the_last_handle() {
        let drain = Drain::new().limit(LIMIT);
        let service = drain.layer().layer(service_fn(never));
        drain.on(ready(())).await;
        drop(drain);
        sleep(Duration::from_millis(1)).await;
        assert_eq!(tasks(), 1, "the service is a handle");
        drop(service);
        sleep(Duration::from_millis(1)).await;
        assert_eq!(tasks(), 0, "no handle is left");
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_of_several_signals_counts() {
        let drain = Drain::new().limit(LIMIT);
        let since = Instant::now();
        let stuck = drain.layer().layer(service_fn(never)).oneshot(call());
        drain.on(ready(())).await;
        drain.clone().limit(Duration::ZERO).on(ready(())).await;
        assert!(stuck.await.is_ok(), "the limit ended it");
        assert_eq!(since.elapsed().as_secs(), LIMIT.as_secs(), "a shorter limit came too late");
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_was_forgotten_is_named_when_the_drain_begins() {
        let connections = || stream::iter([Ok::<_, Infallible>(tokio::io::empty())]);
        for (has_layer, has_incoming, missing) in [
            (true, true, None),
            (false, true, Some("missing=\"layer()\"")),
            (true, false, Some("missing=\"incoming()\"")),
            (false, false, Some("missing=\"layer() and incoming()\"")),
        ] {
            let (log, _guard) = Log::capture();
            let drain = Drain::new().limit(LIMIT).at(Some("10.0.0.1:80".into()));
            let (layer, mut incoming) = (drain.layer().count_only(), pin!(drain.incoming(connections())));
            if has_layer {
                drop(layer.layer(()));
            }
            if has_incoming {
                assert!(incoming.next().await.is_some(), "the server accepts");
            }
            assert_eq!(log.text(), "", "nothing is wrong while the server serves");
            drain.on(ready(())).await;
            drain.on(ready(())).await;
            let text = log.text();
            assert_eq!(log.count("WARN"), usize::from(missing.is_some()), "once at most: {text}");
            assert!(text.contains(missing.unwrap_or_default()), "{missing:?}, not {text}");
            let span = r#"drain{limit=10s address="10.0.0.1:80"}"#;
            assert_eq!(log.count(span), log.count("WARN"), "it tells drains apart: {text}");
        }
    }

    #[test]
    fn a_limit_that_is_lost_with_a_runtime_is_reported_while_calls_are_open() {
        let (log, _guard) = Log::capture();
        for (is_open, limit, reports) in [(false, LIMIT, 0), (true, LIMIT, 1), (true, Duration::ZERO, 0)] {
            let drain = Drain::new().limit(limit);
            let stuck = drain.layer().layer(service_fn(never)).call(call());
            let stuck = is_open.then_some(stuck);
            let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
            runtime.block_on(async {
                drain.on(ready(())).await;
                sleep(LIMIT / 2).await;
            });
            let before = log.count("drain limit lost");
            drop(runtime);
            let reported = log.count("drain limit lost") - before;
            assert_eq!(reported, reports, "a call is open: {is_open}, limit {limit:?}");
            drop(stuck);
        }
        assert_eq!(log.count("calls=1 connections=0"), 1, "it says what has no limit: {}", log.text());
    }

    #[tokio::test]
    async fn what_starts_with_a_server_starts_with_its_layer_and_connections() {
        let started = Arc::new(AtomicUsize::new(0));
        let count = || started.load(Ordering::SeqCst);
        let drain = Drain::new();
        let counter = started.clone();
        let starting = drain.with_start(move || {
            counter.fetch_add(1, Ordering::SeqCst);
        });
        assert_eq!(count(), 0, "nothing serves yet");
        drop(starting.layer().count_only().layer(()));
        assert_eq!(count(), 0, "a layer that only counts starts nothing");
        drop(starting.layer().layer(()));
        assert_eq!(count(), 1, "the layer is applied");
        let accepted = stream::iter([Ok::<_, Infallible>(tokio::io::empty())]);
        let mut incoming = pin!(starting.incoming(accepted));
        assert_eq!(count(), 1, "the connections are not waited for yet");
        while incoming.next().await.is_some() {}
        assert_eq!(count(), 2, "the server began to accept");
        drop(drain.layer().layer(()));
        assert_eq!(count(), 2, "the drain alone starts nothing");
    }
}
