//! Peers without sockets, for tests under paused time: HTTP/2 servers at the other end of a pipe in memory.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderValue, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::io::DuplexStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tonic::Code;
use tower::Service;
use tower::util::service_fn;

use super::proto::EchoReply;
use super::{Count, LIMIT};

/// What a connector reaches: peers by their address. Every other address refuses.
#[derive(Debug, Clone, Default)]
pub(crate) struct Network {
    peers: Arc<Mutex<HashMap<String, Peer>>>,
}

/// One address in a [`Network`], with switches. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Peer(Arc<Shared>);

/// What happens to an attempt to connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnConnect {
    /// The attempt is answered with SETTINGS.
    Accept,
    /// The attempt is refused.
    Refuse,
    /// The attempt is accepted, and hears nothing until this is switched to something else.
    Mute,
    /// The attempt is answered with SETTINGS and closed.
    HangUp,
    /// The connector panics.
    Panic,
}

/// What happens to a call that begins from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reply {
    /// The call is answered, after the delay.
    Answer,
    /// The call waits for [`Peer::release`], and is answered then. So do those that began before and are due now.
    Hold,
    /// The call ends with this code.
    Fail(Code),
    /// The call ends with this code, and its caller is to come back in two seconds.
    PushBack(Code),
    /// The call is answered with a page under this HTTP status, as a web server or a proxy does.
    Page(u16),
    /// The call is answered by the head of a gRPC response alone, which ends the response.
    HeadAlone,
    /// The call is answered with a message and trailers that have no status.
    WithoutStatus,
    /// The call is answered with a message, and the server's own clock runs out then, as tonic's servers say it.
    TimedOut,
    /// The response begins with a message, and goes on until [`Peer::release`].
    Stream,
    /// The call is reset with CANCEL after the delay, as grpc-go's and grpc-java's servers do at a deadline.
    Cancel,
}

#[derive(Debug)]
struct Shared {
    address: SocketAddr,
    on_connect: watch::Sender<OnConnect>,
    reply: Mutex<(Reply, Duration)>,
    /// When each attempt came.
    attempts: Mutex<Vec<Instant>>,
    attempted: Count,
    open: watch::Sender<usize>,
    calls: Count,
    resets: Count,
    /// How many calls are in their handlers.
    inside: Mutex<usize>,
    released: watch::Sender<()>,
    goaway: watch::Sender<()>,
    cut: watch::Sender<()>,
    frozen: watch::Sender<bool>,
}

impl Network {
    /// A peer that accepts and answers, at 127.0.0.1 and this port.
    pub(crate) fn peer(&self, port: u16) -> Peer {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let peer = Peer(Arc::new(Shared {
            address,
            on_connect: watch::Sender::new(OnConnect::Accept),
            reply: Mutex::new((Reply::Answer, Duration::ZERO)),
            attempts: Mutex::default(),
            attempted: Count::default(),
            open: watch::Sender::default(),
            calls: Count::default(),
            resets: Count::default(),
            inside: Mutex::default(),
            released: watch::Sender::default(),
            goaway: watch::Sender::default(),
            cut: watch::Sender::default(),
            frozen: watch::Sender::default(),
        }));
        lock(&self.peers).insert(address.to_string(), peer.clone());
        peer
    }

    /// Peers at this port and those that follow.
    pub(crate) fn peers<const N: usize>(&self, first: u16) -> [Peer; N] {
        let mut ports = first..;
        std::array::from_fn(|_| self.peer(ports.next().expect("there are ports left")))
    }

    /// What a channel connects with.
    pub(crate) fn connector(
        &self,
    ) -> impl Service<Uri, Response = TokioIo<DuplexStream>, Error = io::Error, Future: Send> + Send + 'static {
        let network = self.clone();
        service_fn(move |uri: Uri| {
            let peer = uri.authority().and_then(|authority| lock(&network.peers).get(authority.as_str()).cloned());
            async move { peer.ok_or(io::ErrorKind::HostUnreachable)?.connect() }
        })
    }
}

impl Peer {
    pub(crate) fn address(&self) -> SocketAddr {
        self.0.address
    }

    pub(crate) fn on_connect(&self, on_connect: OnConnect) {
        self.0.on_connect.send_replace(on_connect);
    }

    pub(crate) fn reply(&self, reply: Reply) {
        lock(&self.0.reply).0 = reply;
    }

    /// Lets each call that begins from now on take this long.
    pub(crate) fn delay(&self, delay: Duration) {
        lock(&self.0.reply).1 = delay;
    }

    /// Answers every held call.
    pub(crate) fn release(&self) {
        self.0.released.send_replace(());
    }

    /// Says GOAWAY on every connection; open calls go on.
    pub(crate) fn go_away(&self) {
        self.0.goaway.send_replace(());
    }

    /// Ends every connection without a GOAWAY.
    pub(crate) fn cut(&self) {
        self.0.cut.send_replace(());
    }

    /// Reads and writes nothing any more, or does so again, on connections that stand and on new ones.
    pub(crate) fn freeze(&self, frozen: bool) {
        self.0.frozen.send_replace(frozen);
    }

    /// Is gone from now on, as a killed process is.
    pub(crate) fn kill(&self) {
        self.on_connect(OnConnect::Refuse);
        self.cut();
    }

    /// How many attempts to connect came, refused ones included.
    pub(crate) fn attempted(&self) -> &Count {
        &self.0.attempted
    }

    /// The time between one attempt and the next.
    pub(crate) fn gaps(&self) -> Vec<Duration> {
        lock(&self.0.attempts).windows(2).map(|pair| pair[1] - pair[0]).collect()
    }

    /// How many connections are open now.
    pub(crate) fn open(&self) -> usize {
        *self.0.open.borrow()
    }

    /// Waits until that many connections are open.
    pub(crate) async fn wait_open(&self, connections: usize) {
        let mut open = self.0.open.subscribe();
        let reached = timeout(LIMIT, open.wait_for(|open| *open == connections)).await.is_ok();
        assert!(reached, "{} connections are open instead of {connections}", self.open());
    }

    /// How many calls reached a handler.
    pub(crate) fn calls(&self) -> &Count {
        &self.0.calls
    }

    /// How many calls were reset while they were held.
    pub(crate) fn resets(&self) -> &Count {
        &self.0.resets
    }

    /// How many calls are in their handlers now.
    pub(crate) fn inside(&self) -> usize {
        *lock(&self.0.inside)
    }

    fn connect(&self) -> io::Result<TokioIo<DuplexStream>> {
        lock(&self.0.attempts).push(Instant::now());
        self.0.attempted.add_one();
        let on_connect = *self.0.on_connect.borrow();
        match on_connect {
            OnConnect::Refuse => return Err(io::ErrorKind::ConnectionRefused.into()),
            OnConnect::Panic => panic!("the connector of a test panics"),
            OnConnect::Accept | OnConnect::Mute | OnConnect::HangUp => {}
        }
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        tokio::spawn(self.clone().serve(theirs));
        Ok(TokioIo::new(ours))
    }

    async fn serve(self, io: DuplexStream) {
        let mut cut = self.0.cut.subscribe();
        self.0.open.send_modify(|open| *open += 1);
        tokio::select! {
            _ = cut.changed() => {}
            () = self.accept_unless_frozen(io) => {}
        }
        self.0.open.send_modify(|open| *open -= 1);
    }

    async fn accept_unless_frozen(&self, io: DuplexStream) {
        let mut frozen = self.0.frozen.subscribe();
        let mut accept = pin!(self.accept(io));
        loop {
            _ = frozen.wait_for(|frozen| !*frozen).await;
            tokio::select! {
                biased;
                _ = frozen.wait_for(|frozen| *frozen) => {}
                _ = &mut accept => return,
            }
        }
    }

    async fn accept(&self, io: DuplexStream) -> Result<(), h2::Error> {
        let mut goaway = self.0.goaway.subscribe();
        let mut on_connect = self.0.on_connect.subscribe();
        let handshake = async {
            _ = on_connect.wait_for(|on_connect| *on_connect != OnConnect::Mute).await;
            h2::server::handshake(io).await
        };
        let mut connection = handshake.await?;
        if *self.0.on_connect.borrow() == OnConnect::HangUp {
            return Ok(());
        }
        loop {
            tokio::select! {
                _ = goaway.changed() => connection.graceful_shutdown(),
                accepted = connection.accept() => match accepted {
                    Some(accepted) => {
                        let (request, respond) = accepted?;
                        let released = self.0.released.subscribe();
                        tokio::spawn(self.clone().handle(request, respond, released));
                    }
                    None => return Ok(()),
                },
            }
        }
    }

    async fn handle(
        self,
        request: Request<h2::RecvStream>,
        mut respond: SendResponse<Bytes>,
        mut released: watch::Receiver<()>,
    ) {
        let (reply, delay) = *lock(&self.0.reply);
        let _inside = Inside::new(&self);
        self.0.calls.add_one();
        // All of it: an answer before its end would reset it.
        let mut body = request.into_body();
        while let Some(Ok(data)) = body.data().await {
            _ = body.flow_control().release_capacity(data.len());
        }
        sleep(delay).await;
        let is_held = reply == Reply::Hold || lock(&self.0.reply).0 == Reply::Hold;
        if is_held {
            tokio::select! {
                _ = released.changed() => {}
                _ = poll_fn(|cx| respond.poll_reset(cx)) => return self.0.resets.add_one(),
            }
        }
        // The caller may be gone.
        _ = self.answer(reply, respond, released).await;
    }

    async fn answer(
        &self,
        reply: Reply,
        mut respond: SendResponse<Bytes>,
        mut released: watch::Receiver<()>,
    ) -> Result<(), h2::Error> {
        let mut head = Response::new(());
        head.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        if let Reply::Fail(code) | Reply::PushBack(code) = reply {
            if matches!(reply, Reply::PushBack(_)) {
                head.headers_mut().insert("grpc-retry-pushback-ms", HeaderValue::from_static("2000"));
            }
            head.headers_mut().insert("grpc-status", HeaderValue::from(code as i32));
            respond.send_response(head, true)?;
            return Ok(());
        }
        if let Reply::Page(status) = reply {
            *head.status_mut() = http::StatusCode::from_u16(status).expect("an HTTP status");
            head.headers_mut().insert("content-type", HeaderValue::from_static("text/html"));
            return respond.send_response(head, false)?.send_data("<p>a page</p>".into(), true);
        }
        if reply == Reply::HeadAlone {
            respond.send_response(head, true)?;
            return Ok(());
        }
        if reply == Reply::Cancel {
            respond.send_reset(h2::Reason::CANCEL);
            return Ok(());
        }
        let echo = EchoReply { message: String::new(), address: self.address().to_string() }.encode_to_vec();
        let size = u32::try_from(echo.len()).expect("an address is short").to_be_bytes();
        let message = [[0].as_slice(), &size, &echo].concat();
        let mut stream = respond.send_response(head, false)?;
        stream.send_data(message.into(), false)?;
        if reply == Reply::Stream {
            tokio::select! {
                _ = released.changed() => {}
                _ = poll_fn(|cx| stream.poll_reset(cx)) => {
                    self.0.resets.add_one();
                    return Ok(());
                }
            }
        }
        let trailers: &[_] = match reply {
            Reply::WithoutStatus => &[("x-other", "0")],
            Reply::TimedOut => &[("grpc-status", "1"), ("grpc-message", "Timeout expired")],
            _ => &[("grpc-status", "0")],
        };
        let trailer = |&(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value));
        stream.send_trailers(trailers.iter().map(trailer).collect())
    }
}

/// A call in its handler.
struct Inside<'a>(&'a Peer);

impl<'a> Inside<'a> {
    fn new(peer: &'a Peer) -> Self {
        *lock(&peer.0.inside) += 1;
        Self(peer)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        *lock(&self.0.0.inside) -= 1;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
