//! The connections that a server accepts: passed on unchanged, and closed after the drain limit.

use std::any::Any;
use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::Stream;
use futures_util::task::AtomicWaker;
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tonic::transport::server::Connected;

use super::handle::ServerHandle;
use super::open_set::{Counted, End, Slot};
use super::state::DrainState;
use crate::targets::REGISTRATION;

pin_project! {
    /// A server's incoming connections, which close after the drain limit, whatever their clients do. Made by
    /// [`Drain::incoming`](super::Drain::incoming) or [`Registration::incoming`](crate::Registration::incoming); the
    /// latter starts the registration when it is polled for the first time, which is when the server begins to accept.
    ///
    /// For tonic's `serve_with_incoming_shutdown`, which waits for every open connection after its signal, without
    /// limit: a client that does not read, a peer that sends nothing and one that never answers a ping would keep the
    /// server for ever. At the drain limit the calls are ended, and 250 ms later, when the answers have reached the
    /// clients, reads and writes on the connections that are still open fail.
    ///
    /// TCP streams get TCP_NODELAY (tonic sets it only where it binds the listener itself): without it small messages
    /// can wait 40 ms for an acknowledgement. [`tcp_nodelay`](Self::tcp_nodelay) switches that off.
    ///
    /// # Panics
    ///
    /// The first poll panics outside of a tokio runtime, if it starts a registration.
    pub struct Incoming<I> {
        #[pin]
        inner: I,
        tcp_nodelay: bool,
        // Kept after the start: a server that accepts stays registered.
        server: ServerHandle,
        started: bool,
        // When the first connection came.
        since: Option<Instant>,
    }
}

impl<I> Incoming<I> {
    pub(super) fn new(inner: I, server: ServerHandle) -> Self {
        Self { inner, tcp_nodelay: true, server, started: false, since: None }
    }

    /// Whether TCP streams get `TCP_NODELAY`. Defaults to true; with false the streams stay as the inner stream made
    /// them.
    #[must_use]
    pub fn tcp_nodelay(self, enabled: bool) -> Self {
        Self { tcp_nodelay: enabled, ..self }
    }
}

impl<I, IO, E> Stream for Incoming<I>
where
    I: Stream<Item = Result<IO, E>>,
    IO: 'static,
{
    type Item = Result<IncomingIo<IO>, E>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.project();
        if !*this.started {
            *this.started = true;
            this.server.drain().places().on_incoming_polled();
            this.server.start();
        }
        let accepted = ready!(this.inner.poll_next(cx));
        if let Some(Ok(_)) = accepted {
            this.server.drain().places().on_accepted(*this.since.get_or_insert_with(Instant::now));
        }
        Poll::Ready(accepted.map(|accepted| {
            accepted.map(|io| {
                if *this.tcp_nodelay {
                    set_nodelay(&io);
                }
                IncomingIo::new(io, this.server.drain())
            })
        }))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.inner.size_hint()
    }
}

impl<I: fmt::Debug> fmt::Debug for Incoming<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming")
            .field("inner", &self.inner)
            .field("tcp_nodelay", &self.tcp_nodelay)
            .finish_non_exhaustive()
    }
}

/// A connection from [`Incoming`].
///
/// After the drain limit reads fail with `ConnectionAborted` and writes with `BrokenPipe`; tasks that wait for either
/// are woken.
pub struct IncomingIo<IO> {
    inner: IO,
    socket: Arc<Socket>,
    counted: Counted,
    slot: Slot,
}

impl<IO> IncomingIo<IO> {
    fn new(inner: IO, drain: &DrainState) -> Self {
        let socket = Arc::new(Socket { drain: drain.clone(), reader: AtomicWaker::new(), writer: AtomicWaker::new() });
        let counted = drain.open_socket();
        let slot = drain.sockets().enter(Arc::clone(&socket) as Arc<dyn End>);
        Self { inner, socket, counted, slot }
    }
}

impl<IO> IncomingIo<IO>
where
    IO: AsyncWrite + Unpin,
{
    /// Polls the write side, unless the limit has passed. All writes, flushes and shutdowns go through here.
    fn poll_writer<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(Pin<&mut IO>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if !self.socket.drain.is_closed() {
            if let ready @ Poll::Ready(_) = poll(Pin::new(&mut self.inner), cx) {
                return ready;
            }
            self.socket.writer.register(cx.waker());
            // Again, now that the waker is registered: the limit may have passed in between.
            if !self.socket.drain.is_closed() {
                return Poll::Pending;
            }
        }
        Poll::Ready(Err(closed(io::ErrorKind::BrokenPipe)))
    }
}

impl<IO> AsyncRead for IncomingIo<IO>
where
    IO: AsyncRead + Unpin,
{
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // Before the read: a peer that always sends more must not keep the connection.
        if !self.socket.drain.is_closed() {
            if let ready @ Poll::Ready(_) = Pin::new(&mut self.inner).poll_read(cx, buf) {
                return ready;
            }
            self.socket.reader.register(cx.waker());
            if !self.socket.drain.is_closed() {
                return Poll::Pending;
            }
        }
        // Not an end of file: half a request must not look like a whole one.
        Poll::Ready(Err(closed(io::ErrorKind::ConnectionAborted)))
    }
}

impl<IO> AsyncWrite for IncomingIo<IO>
where
    IO: AsyncWrite + Unpin,
{
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_writer(cx, |io, cx| io.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_writer(cx, |io, cx| io.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_writer(cx, IO::poll_flush)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.socket.drain.is_closed() {
            // Tells the peer, if that takes no waiting; dropping the connection does the rest.
            let _ = Pin::new(&mut self.inner).poll_shutdown(cx)?;
            return Poll::Ready(Ok(()));
        }
        self.poll_writer(cx, IO::poll_shutdown)
    }
}

impl<IO: Connected> Connected for IncomingIo<IO> {
    type ConnectInfo = IO::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.inner.connect_info()
    }
}

impl<IO> Drop for IncomingIo<IO> {
    fn drop(&mut self) {
        let drain = &self.socket.drain;
        drain.sockets().leave(self.slot);
        drain.close_socket(self.counted);
    }
}

impl<IO: fmt::Debug> fmt::Debug for IncomingIo<IO> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IncomingIo").field("inner", &self.inner).finish_non_exhaustive()
    }
}

/// The part of an open connection that the drain wakes. Two wakers, since reader and writer may be two tasks.
struct Socket {
    drain: DrainState,
    reader: AtomicWaker,
    writer: AtomicWaker,
}

impl End for Socket {
    fn end(&self) {
        self.reader.wake();
        self.writer.wake();
    }
}

fn set_nodelay(io: &dyn Any) {
    let Some(stream) = io.downcast_ref::<TcpStream>() else {
        return;
    };
    // No reason to refuse a connection: its first use will fail if the peer is gone already.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(target: REGISTRATION, %error, "TCP_NODELAY not set");
    }
}

fn closed(kind: io::ErrorKind) -> io::Error {
    io::Error::new(kind, "closed after the server's drain limit")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::net::TcpListener;
    use tokio_test::{assert_pending, assert_ready, task};

    use super::super::state::SOCKET_GRACE;
    use super::*;

    fn connection(drain: &DrainState) -> (IncomingIo<DuplexStream>, DuplexStream) {
        let (ours, theirs) = duplex(4);
        (IncomingIo::new(ours, drain), theirs)
    }

    async fn end(drain: &DrainState) {
        drain.begin(Duration::ZERO, None);
        tokio::time::sleep(SOCKET_GRACE + Duration::from_millis(5)).await;
        assert!(drain.is_closed(), "the grace passed");
    }

    #[tokio::test]
    async fn a_connection_is_passed_on_as_it_is() {
        let drain = DrainState::new();
        let (mut io, mut peer) = connection(&drain);
        peer.write_all(b"ping").await.expect("the peer writes");
        let mut read = [0; 4];
        io.read_exact(&mut read).await.expect("we read");
        assert_eq!(&read, b"ping", "what the peer wrote");
        io.write_all(b"pong").await.expect("we write");
        io.flush().await.expect("we flush");
        peer.read_exact(&mut read).await.expect("the peer reads");
        assert_eq!(&read, b"pong", "what we wrote");
        io.shutdown().await.expect("we shut down");
        assert_eq!(peer.read(&mut read).await.expect("the peer reads"), 0, "the end");
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_and_a_writer_that_wait_are_woken_at_the_end() {
        let drain = DrainState::new();
        let (io, _peer) = connection(&drain);
        let (mut read_half, mut write_half) = tokio::io::split(io);
        let mut bytes = [0; 4];
        let mut reader = task::spawn(read_half.read(&mut bytes));
        let mut writer = task::spawn(write_half.write_all(b"more than the peer takes"));
        assert_pending!(reader.poll());
        assert_pending!(writer.poll());

        end(&drain).await;
        assert!(reader.is_woken() && writer.is_woken(), "nothing else would wake them");
        let read = assert_ready!(reader.poll()).expect_err("it is closed");
        assert_eq!(read.kind(), io::ErrorKind::ConnectionAborted, "not an end of file");
        let written = assert_ready!(writer.poll()).expect_err("it is closed");
        assert_eq!(written.kind(), io::ErrorKind::BrokenPipe, "the peer cannot get it");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_talks_on_is_closed_too() {
        let drain = DrainState::new();
        let (mut io, mut peer) = connection(&drain);
        peer.write_all(b"more").await.expect("the peer writes");
        end(&drain).await;
        let mut read = [0; 4];
        assert!(io.read(&mut read).await.is_err(), "though there is something to read");
        assert!(io.write(b"x").await.is_err(), "though there is room");
        assert!(io.flush().await.is_err(), "nothing is flushed");
        io.shutdown().await.expect("shutting down is over at once");
    }

    #[tokio::test]
    async fn a_tcp_stream_gets_nodelay() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let _peer = TcpStream::connect(address).await.expect("it listens");
        let (stream, _) = listener.accept().await.expect("a connection");
        assert!(!stream.nodelay().expect("a good socket"), "not by default");
        set_nodelay(&stream);
        assert!(stream.nodelay().expect("a good socket"), "whatever type it hid behind");
        set_nodelay(&duplex(1).0);
    }

    #[tokio::test]
    async fn a_dropped_connection_is_forgotten() {
        let drain = DrainState::new();
        let (io, _peer) = connection(&drain);
        assert!(format!("{drain:?}").contains("sockets: 1"), "{drain:?}");
        drop(io);
        assert!(format!("{drain:?}").contains("sockets: 0"), "{drain:?}");
    }
}
