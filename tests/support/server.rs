//! Echo servers in the test's own process: real tonic servers on real sockets.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{self, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};
use tonic_etcd::{Instance, Registration, RegistrationBuilder, RegistrationSet, RegistrationStatus, Registry};

use super::pki::{Authority, Certificate};
use super::{LIMIT, eventually};

use proto::echo::echo_server::{Echo, EchoServer as EchoService};
use proto::echo::{EchoReply, EchoRequest};

/// The stubs of the examples.
#[path = "../../examples/proto/mod.rs"]
pub mod proto;

/// A running echo server, whose replies carry its address.
///
/// Dropping it shuts it down as [`stop`](Self::stop) does, without waiting for the end.
#[derive(Debug)]
pub struct EchoServer {
    address: SocketAddr,
    registrations: Vec<Registration>,
    echo: Answers,
    shutdown: oneshot::Sender<()>,
    task: JoinHandle<Result<(), transport::Error>>,
}

impl EchoServer {
    /// Serves on a free port with the registration that `register` makes of the address.
    ///
    /// It listens already when this returns; [`registered`](Self::registered) waits for etcd as well.
    pub fn start(register: impl FnOnce(SocketAddr) -> RegistrationBuilder) -> Self {
        Self::serve(Server::builder(), register)
    }

    /// Like [`start`](Self::start), with TLS under `certificate`; with `clients`, for clients alone that show a
    /// certificate of that authority.
    pub fn start_secure(
        certificate: &Certificate,
        clients: Option<&Authority>,
        register: impl FnOnce(SocketAddr) -> RegistrationBuilder,
    ) -> Self {
        // tonic takes the process's provider where two are compiled in. Another test may have been faster.
        _ = rustls::crypto::ring::default_provider().install_default();
        let mut tls = ServerTlsConfig::new().identity(Identity::from_pem(&certificate.cert, &certificate.key));
        if let Some(clients) = clients {
            tls = tls.client_ca_root(transport::Certificate::from_pem(clients.pem()));
        }
        Self::serve(Server::builder().tls_config(tls).expect("the test's certificate is good"), register)
    }

    fn serve(server: Server, register: impl FnOnce(SocketAddr) -> RegistrationBuilder) -> Self {
        let (incoming, address) = listen();
        let registration = register(address).build().expect("the test's registration is valid");
        let (echo, (shutdown, stopped)) = (Answers::new(address), oneshot::channel::<()>());
        let (registrations, service) = (vec![registration.clone()], EchoService::new(echo.clone()));
        let serve = registration.serve_with(server, service, incoming, async { _ = stopped.await });
        Self { address, registrations, echo, shutdown, task: tokio::spawn(serve) }
    }

    /// Like [`start`](Self::start), with all the registrations that `register` makes, as one, in the long form.
    pub fn start_all(register: impl FnOnce(SocketAddr) -> Vec<RegistrationBuilder>) -> Self {
        let (incoming, address) = listen();
        let registrations: Vec<Registration> = register(address)
            .into_iter()
            .map(|builder| builder.build().expect("the test's registrations are valid"))
            .collect();
        let all = RegistrationSet::new(registrations.iter().cloned()).expect("registrations of one server");
        let (echo, (shutdown, stopped)) = (Answers::new(address), oneshot::channel::<()>());
        let serve = Server::builder()
            .layer(all.layer())
            .add_service(EchoService::new(echo.clone()))
            .serve_with_incoming_shutdown(all.incoming(incoming), all.deregister_on(async { _ = stopped.await }));
        Self { address, registrations, echo, shutdown, task: tokio::spawn(serve) }
    }

    /// Serves on a free port as an instance of `service` in each registry, with all defaults, and waits until it is
    /// registered in all of them.
    pub async fn registered_in(registries: &[&Registry], service: &str) -> Self {
        let server = Self::start_all(|address| {
            registries.iter().map(|registry| registry.registration(Instance::new(service, address))).collect()
        });
        for registration in server.registrations() {
            timeout(LIMIT, registration.registered())
                .await
                .expect("the server registers itself in time")
                .expect("the server is not deregistered");
        }
        server
    }

    /// Serves on a free port as an instance of `service` with all defaults, and waits until it is
    /// registered.
    pub async fn registered(registry: &Registry, service: &str) -> Self {
        let server = Self::start(|address| registry.registration(Instance::new(service, address)));
        timeout(LIMIT, server.registration().registered())
            .await
            .expect("the server registers itself in time")
            .expect("the server is not deregistered");
        server
    }

    /// Serves on a free port, and etcd hears nothing of it.
    pub fn unregistered() -> Self {
        let (incoming, address) = listen();
        let (echo, (shutdown, stopped)) = (Answers::new(address), oneshot::channel::<()>());
        let serve = Server::builder()
            .add_service(EchoService::new(echo.clone()))
            .serve_with_incoming_shutdown(incoming, async { _ = stopped.await });
        Self { address, registrations: Vec::new(), echo, shutdown, task: tokio::spawn(serve) }
    }

    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The registration of the server.
    ///
    /// # Panics
    ///
    /// If it was started [`unregistered`](Self::unregistered).
    pub fn registration(&self) -> &Registration {
        self.registrations.first().expect("the server was started with a registration")
    }

    /// All registrations of the server.
    pub fn registrations(&self) -> &[Registration] {
        &self.registrations
    }

    /// How many calls have begun so far.
    pub fn calls(&self) -> usize {
        self.echo.calls.load(Ordering::SeqCst)
    }

    /// Lets every call from now on take this much longer.
    pub fn delay(&self, delay: Duration) {
        *self.echo.delay.lock().unwrap_or_else(PoisonError::into_inner) = delay;
    }

    /// Shuts the server down gracefully, and waits until `serve` has returned.
    ///
    /// # Panics
    ///
    /// If it has not returned after [`LIMIT`], or returned an error.
    pub async fn stop(self) {
        // The registrations' handles go first: none of ours keeps a registration alive.
        drop(self.registrations);
        _ = self.shutdown.send(());
        timeout(LIMIT, self.task)
            .await
            .expect("the server stops in time")
            .expect("the server does not panic")
            .expect("the server ends without an error");
    }
}

/// Waits until the status of a registration `is_it`.
///
/// # Panics
///
/// If it is not within [`LIMIT`], with `what`: the sentence that should have become true.
pub async fn reaches(registration: &Registration, what: &str, is_it: impl Fn(&RegistrationStatus) -> bool) {
    eventually(what, LIMIT, async || is_it(&registration.status())).await;
}

fn listen() -> (TcpIncoming, SocketAddr) {
    let incoming = TcpIncoming::bind((Ipv4Addr::LOCALHOST, 0).into()).expect("the loopback interface has a free port");
    let address = incoming.local_addr().expect("a listener has an address");
    (incoming.with_nodelay(Some(true)), address)
}

/// The service itself.
#[derive(Debug, Clone)]
struct Answers {
    address: Arc<str>,
    calls: Arc<AtomicUsize>,
    delay: Arc<Mutex<Duration>>,
}

impl Answers {
    fn new(address: SocketAddr) -> Self {
        Self { address: address.to_string().into(), calls: Arc::default(), delay: Arc::default() }
    }

    async fn begin(&self) {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let delay = *self.delay.lock().unwrap_or_else(PoisonError::into_inner);
        sleep(delay).await;
    }

    fn reply(&self, request: EchoRequest) -> EchoReply {
        EchoReply { message: request.message, address: self.address.to_string() }
    }
}

#[tonic::async_trait]
impl Echo for Answers {
    type ServerStreamingEchoStream = BoxStream<'static, Result<EchoReply, Status>>;
    type BidirectionalStreamingEchoStream = BoxStream<'static, Result<EchoReply, Status>>;

    async fn unary_echo(&self, request: Request<EchoRequest>) -> Result<Response<EchoReply>, Status> {
        self.begin().await;
        Ok(Response::new(self.reply(request.into_inner())))
    }

    /// One reply, and then nothing: the stream is open until the client or the server ends it.
    async fn server_streaming_echo(
        &self,
        request: Request<EchoRequest>,
    ) -> Result<Response<Self::ServerStreamingEchoStream>, Status> {
        self.begin().await;
        let reply = self.reply(request.into_inner());
        let replies = stream::iter([Ok(reply)]).chain(stream::pending());
        Ok(Response::new(replies.boxed()))
    }

    /// One reply of all messages, as words.
    async fn client_streaming_echo(
        &self,
        request: Request<Streaming<EchoRequest>>,
    ) -> Result<Response<EchoReply>, Status> {
        self.begin().await;
        let words: Vec<String> = request.into_inner().map_ok(|request| request.message).try_collect().await?;
        Ok(Response::new(self.reply(EchoRequest { message: words.join(" ") })))
    }

    /// A reply to each request.
    async fn bidirectional_streaming_echo(
        &self,
        request: Request<Streaming<EchoRequest>>,
    ) -> Result<Response<Self::BidirectionalStreamingEchoStream>, Status> {
        self.begin().await;
        let echo = self.clone();
        let replies = request.into_inner().map_ok(move |request| echo.reply(request));
        Ok(Response::new(replies.boxed()))
    }
}
