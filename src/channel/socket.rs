//! The bytes of one connection: passed on as they are, read along with, and cut from outside.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frames::{FrameReader, Notice};

/// Anything that carries bytes both ways.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

pub(super) type BoxIo = Box<dyn Io>;

/// The IO under one HTTP/2 connection, owned by hyper's task.
pub(super) struct Socket {
    inner: BoxIo,
    reader: FrameReader,
    // Last, so that the socket is closed by the time that says so.
    end: End,
}

/// What is known about a socket, while hyper owns it and after.
#[derive(Debug)]
pub(super) struct Wire {
    /// The limit of open calls by the last SETTINGS, [`NONE`] before the first.
    streams: AtomicU64,
    /// The code of the last GOAWAY, [`NONE`] without one.
    goaway: AtomicU64,
    end_of_file: AtomicBool,
    cut: AtomicBool,
    closed: AtomicBool,
    /// hyper's task, which reads and writes.
    io: AtomicWaker,
    /// Whoever follows the connection.
    follower: AtomicWaker,
}

impl Wire {
    /// The peer's limit of open calls; `None` before its first SETTINGS.
    pub(super) fn streams(&self) -> Option<u32> {
        known(&self.streams)
    }

    /// Why the peer takes no new calls, if it said so.
    pub(super) fn goaway(&self) -> Option<h2::Reason> {
        known(&self.goaway).map(h2::Reason::from)
    }

    /// Whether the peer ended the connection.
    pub(super) fn is_at_end(&self) -> bool {
        self.end_of_file.load(Ordering::Acquire)
    }

    pub(super) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }

    /// Whether the socket is closed: hyper's task has dropped it.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Makes every read and write fail from now on, which ends hyper's task, and so the socket and all calls on it.
    pub(super) fn cut(&self) {
        self.cut.store(true, Ordering::Release);
        self.io.wake();
    }

    /// Has the current task woken at the next change. To be called before looking.
    pub(super) fn follow(&self, cx: &Context<'_>) {
        self.follower.register(cx.waker());
    }

    fn notice(&self, notice: Notice) {
        match notice {
            Notice::Settings { max_concurrent_streams: Some(limit) } => {
                self.streams.store(limit.into(), Ordering::Release);
            }
            // What is not stated stays as it was; at first there is no limit.
            Notice::Settings { max_concurrent_streams: None } => {
                let _ = self.streams.compare_exchange(NONE, u32::MAX.into(), Ordering::AcqRel, Ordering::Acquire);
            }
            Notice::GoAway { code } => self.goaway.store(code.into(), Ordering::Release),
        }
        self.follower.wake();
    }
}

/// No `u32`.
const NONE: u64 = u64::MAX;

fn known(value: &AtomicU64) -> Option<u32> {
    u32::try_from(value.load(Ordering::Acquire)).ok()
}

impl Socket {
    pub(super) fn new(inner: BoxIo) -> (Self, Arc<Wire>) {
        let wire = Arc::new(Wire {
            streams: NONE.into(),
            goaway: NONE.into(),
            end_of_file: false.into(),
            cut: false.into(),
            closed: false.into(),
            io: AtomicWaker::new(),
            follower: AtomicWaker::new(),
        });
        (Self { inner, reader: FrameReader::default(), end: End(wire.clone()) }, wire)
    }

    /// One try at either side. Every poll ends here. One waker for both: hyper reads and writes in one task.
    fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut Self, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        // First of all: a peer that always has more to say must not keep the connection.
        if !self.end.0.is_cut() {
            if let ready @ Poll::Ready(_) = poll(self, cx) {
                return ready;
            }
            self.end.0.io.register(cx.waker());
            // Again, now that the waker is there: it may have come in between.
            if !self.end.0.is_cut() {
                return Poll::Pending;
            }
        }
        Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the connection was cut")))
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll(cx, |this, cx| {
            let before = buf.filled().len();
            let room = buf.remaining() > 0;
            let polled = Pin::new(&mut this.inner).poll_read(cx, buf);
            if let Poll::Ready(Ok(())) = polled {
                let Self { reader, end: End(wire), .. } = this;
                let read = &buf.filled()[before..];
                if read.is_empty() && room {
                    wire.end_of_file.store(true, Ordering::Release);
                }
                if let Err(error) = reader.read(read, |notice| wire.notice(notice)) {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
                }
            }
            polled
        })
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll(cx, |this, cx| Pin::new(&mut this.inner).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll(cx, |this, cx| Pin::new(&mut this.inner).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll(cx, |this, cx| Pin::new(&mut this.inner).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll(cx, |this, cx| Pin::new(&mut this.inner).poll_shutdown(cx))
    }
}

/// Says that the socket is closed when it is dropped after it.
struct End(Arc<Wire>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::Release);
        self.0.follower.wake();
    }
}
