//! An accepted socket that a test freezes or closes from outside, whatever the server is about to do with it.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tonic::transport::server::Connected;

/// Every socket of one server.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    frozen: AtomicBool,
    all: Mutex<Vec<Arc<Mutex<Slot>>>>,
}

/// What the server reads from and writes to.
#[derive(Debug)]
pub(super) struct Socket {
    sockets: Arc<Sockets>,
    slot: Arc<Mutex<Slot>>,
}

#[derive(Debug, Default)]
struct Slot {
    /// `None` once it was closed from outside.
    stream: Option<TcpStream>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Sockets {
    pub(super) fn take_in(self: &Arc<Self>, stream: TcpStream) -> Socket {
        let slot = Arc::new(Mutex::new(Slot { stream: Some(stream), ..Slot::default() }));
        lock(&self.all).push(slot.clone());
        Socket { sockets: self.clone(), slot }
    }

    /// Neither reads nor writes any more, or does so again.
    pub(super) fn freeze(&self, frozen: bool) {
        self.frozen.store(frozen, Ordering::SeqCst);
        for slot in &*lock(&self.all) {
            lock(slot).wake();
        }
    }

    /// Closes all of them, as the kernel does for a killed process.
    pub(super) fn close(&self) {
        for slot in lock(&self.all).drain(..) {
            let mut slot = lock(&slot);
            slot.stream = None;
            slot.wake();
        }
    }
}

impl Slot {
    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

impl Socket {
    fn poll<T>(
        &self,
        waker: impl FnOnce(&mut Slot) -> &mut Option<Waker>,
        context: &mut Context<'_>,
        poll: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let mut slot = lock(&self.slot);
        *waker(&mut slot) = Some(context.waker().clone());
        match &mut slot.stream {
            None => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            Some(_) if self.sockets.frozen.load(Ordering::SeqCst) => Poll::Pending,
            Some(stream) => poll(Pin::new(stream), context),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.poll(|slot| &mut slot.reader, cx, |stream, cx| stream.poll_read(cx, buffer))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll(|slot| &mut slot.writer, cx, |stream, cx| stream.poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(|slot| &mut slot.writer, cx, AsyncWrite::poll_flush)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(|slot| &mut slot.writer, cx, AsyncWrite::poll_shutdown)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // The server is done with it: the list must not keep it open.
        lock(&self.slot).stream = None;
        lock(&self.sockets.all).retain(|slot| !Arc::ptr_eq(slot, &self.slot));
    }
}

impl Connected for Socket {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
