//! The bytes of one connection: passed on as they are, read along with, and closed from outside.

use std::io::{self, IoSlice};
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frames::{FrameReader, FrameWriter, Notice};
use super::gate::Gate;
use super::uplink::{Flow, Uplink};

/// Anything that carries bytes both ways.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

pub(crate) type BoxIo = Box<dyn Io>;

/// The IO under one HTTP/2 connection.
pub(crate) struct Socket {
    inner: BoxIo,
    reader: FrameReader,
    writer: FrameWriter,
    peer: Arc<PeerState>,
}

/// What the peer said, as far as h2 does not tell, and the order to close the socket.
#[derive(Debug)]
pub(crate) struct PeerState {
    /// The limit of open calls by the last SETTINGS, [`NONE`] before the first.
    streams: AtomicU64,
    /// The code of the last GOAWAY, [`NONE`] without one.
    goaway: AtomicU64,
    too_many_pings: AtomicBool,
    end_of_file: AtomicBool,
    /// Bytes that came, modulo the size of a word.
    read: AtomicUsize,
    /// Those of data since the last [`traffic`](PeerState::traffic), and whether there were frames of calls.
    data: AtomicUsize,
    /// Reads that brought progress of a call, modulo 2^32.
    progress: AtomicU32,
    read_calls: AtomicBool,
    /// Whether something of a call was written since the peer was heard.
    is_awaited: AtomicBool,
    /// Whether the peer is to be asked for a sign of life now.
    is_suspected: AtomicBool,
    /// Calls that were begun on the connection, modulo 2^32.
    begun: AtomicU32,
    /// The last stream whose HEADERS the socket has taken, at least in part.
    written: AtomicU32,
    /// Whether the socket took no more at the last write.
    is_blocked: AtomicBool,
    /// How many bytes it took since the last turn of the driver.
    taken: AtomicUsize,
    gate: Gate,
    aborted: AtomicBool,
    /// The task that drives the connection.
    driver: AtomicWaker,
}

impl PeerState {
    /// The peer's limit of open calls; `None` before its first SETTINGS.
    pub(crate) fn streams(&self) -> Option<u32> {
        known(&self.streams)
    }

    /// Why the peer takes no new calls, if it said so.
    pub(crate) fn goaway(&self) -> Option<h2::Reason> {
        known(&self.goaway).map(h2::Reason::from)
    }

    /// Whether it said with that that it was pinged too often.
    pub(crate) fn said_too_many_pings(&self) -> bool {
        self.too_many_pings.load(Ordering::Relaxed)
    }

    /// Whether the peer ended the connection.
    pub(crate) fn is_at_end(&self) -> bool {
        self.end_of_file.load(Ordering::Relaxed)
    }

    /// The bytes that came so far, modulo the size of a word.
    pub(crate) fn read(&self) -> usize {
        self.read.load(Ordering::Relaxed)
    }

    /// What came since the last call of this, when so many bytes had come.
    pub(crate) fn traffic(&self, before: &mut usize) -> Traffic {
        let read = self.read();
        let bytes = read.wrapping_sub(mem::replace(before, read));
        if bytes == 0 {
            return Traffic::default();
        }
        Traffic { bytes, data: take(&self.data), is_of_calls: self.read_calls.swap(false, Ordering::Relaxed) }
    }

    /// Whether something of a call was written since the peer was heard.
    pub(crate) fn is_awaited(&self) -> bool {
        self.is_awaited.load(Ordering::Relaxed)
    }

    /// How often a call made progress, modulo 2^32: none did between two equal counts.
    pub(crate) fn progress(&self) -> u32 {
        self.progress.load(Ordering::Relaxed)
    }

    /// Has the driver ask the peer for a sign of life.
    pub(crate) fn suspect(&self) {
        self.is_suspected.store(true, Ordering::Release);
        self.driver.wake();
    }

    /// Takes the order to ask for a sign of life, if there is one.
    pub(crate) fn take_suspicion(&self) -> bool {
        // Nearly always there is none, and a look costs less than a swap.
        self.is_suspected.load(Ordering::Relaxed) && self.is_suspected.swap(false, Ordering::Acquire)
    }

    /// A call begins.
    pub(crate) fn on_call(&self) {
        self.begun.fetch_add(1, Ordering::Relaxed);
    }

    /// How many calls were begun, modulo 2^32.
    pub(crate) fn begun(&self) -> u32 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Whether nothing of the call on this stream was written so far. Streams are written in the order of their
    /// numbers.
    pub(crate) fn is_unwritten(&self, stream: u32) -> bool {
        stream > self.written.load(Ordering::Acquire)
    }

    /// Takes room for a call that is to be handed to h2, or has it wait in the place that `waiting` keeps for it.
    pub(super) fn poll_room(self: &Arc<Self>, waiting: &mut Option<Waiting>, cx: &Context<'_>) -> Poll<()> {
        if waiting.is_none() && self.gate.enter() {
            return Poll::Ready(());
        }
        let is_new = waiting.is_none();
        let mut number = waiting.as_ref().map(|waiting| waiting.number);
        let polled = self.gate.poll_wait(&mut number, cx);
        if polled.is_ready() {
            *waiting = None;
        } else if is_new {
            *waiting = number.map(|number| Waiting { peer: self.clone(), number });
            self.driver.wake();
        }
        polled
    }

    /// A request of that many bytes goes to h2.
    pub(super) fn charge(&self, bytes: usize) {
        self.gate.charge(bytes);
    }

    /// What the socket did with the bytes of this turn of the driver.
    pub(super) fn flow(&self, uplink: &mut Uplink) -> Flow {
        let taken = take(&self.taken);
        uplink.on_turn(self.is_blocked.load(Ordering::Relaxed), taken, self.written.load(Ordering::Relaxed))
    }

    /// After a turn of the driver, which is woken for the next one where calls wait for nothing else. Returns whether
    /// calls wait for the socket.
    pub(super) fn on_turn(&self, flow: Flow, cx: &Context<'_>) -> bool {
        let waits = self.gate.on_turn(flow);
        if waits && flow == Flow::Free {
            cx.waker().wake_by_ref();
        }
        waits && flow != Flow::Free
    }

    /// The connection takes no more calls, and tells those that wait.
    pub(super) fn open_gate(&self) {
        self.gate.open();
    }

    /// Has the driver of the connection close it.
    pub(crate) fn abort(&self) {
        self.aborted.store(true, Ordering::Release);
        self.driver.wake();
    }

    pub(crate) fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire)
    }

    /// Has the current task woken by an abort and by a suspicion. To be called before looking for one.
    pub(crate) fn register(&self, cx: &Context<'_>) {
        self.driver.register(cx.waker());
    }

    fn on_notice(&self, notice: Notice) {
        match notice {
            Notice::Settings { max_concurrent_streams: Some(limit) } => {
                self.streams.store(limit.into(), Ordering::Relaxed);
            }
            // What is not stated stays as it was; at first there is no limit.
            Notice::Settings { max_concurrent_streams: None } => {
                let _ = self.streams.compare_exchange(NONE, u32::MAX.into(), Ordering::Relaxed, Ordering::Relaxed);
            }
            Notice::GoAway { code } => self.goaway.store(code.into(), Ordering::Relaxed),
            Notice::TooManyPings => self.too_many_pings.store(true, Ordering::Relaxed),
        }
    }
}

/// A call that waits for the socket. Dropped, it leaves.
#[derive(Debug)]
pub(super) struct Waiting {
    peer: Arc<PeerState>,
    number: u64,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.peer.gate.leave(self.number);
    }
}

/// Bytes that came from the peer.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Traffic {
    pub(crate) bytes: usize,
    /// The part of them in DATA frames.
    pub(crate) data: usize,
    /// Whether a frame of a call began.
    pub(crate) is_of_calls: bool,
}

/// No `u32`.
const NONE: u64 = u64::MAX;

fn known(value: &AtomicU64) -> Option<u32> {
    u32::try_from(value.load(Ordering::Relaxed)).ok()
}

/// Adds to a count that the task of the connection alone writes: no locked instruction for each read and write.
fn add(count: &AtomicUsize, by: usize) {
    count.store(count.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

/// Takes such a count, and leaves none.
fn take(count: &AtomicUsize) -> usize {
    let taken = count.load(Ordering::Relaxed);
    if taken > 0 {
        count.store(0, Ordering::Relaxed);
    }
    taken
}

impl Socket {
    pub(crate) fn new(inner: BoxIo) -> (Self, Arc<PeerState>) {
        let peer = Arc::new(PeerState {
            streams: NONE.into(),
            goaway: NONE.into(),
            too_many_pings: false.into(),
            end_of_file: false.into(),
            read: 0.into(),
            data: 0.into(),
            progress: 0.into(),
            read_calls: false.into(),
            is_awaited: false.into(),
            is_suspected: false.into(),
            begun: 0.into(),
            written: 0.into(),
            is_blocked: false.into(),
            taken: 0.into(),
            gate: Gate::new(),
            aborted: false.into(),
            driver: AtomicWaker::new(),
        });
        (Self { inner, reader: FrameReader::default(), writer: FrameWriter::default(), peer: peer.clone() }, peer)
    }

    /// What became of a write or a flush.
    fn noted<T>(&self, polled: &Poll<T>) {
        self.peer.is_blocked.store(polled.is_pending(), Ordering::Relaxed);
    }

    /// The socket has taken these bytes.
    fn wrote(&mut self, bytes: &[u8]) {
        let Self { writer, peer, .. } = self;
        add(&peer.taken, bytes.len());
        let wrote_calls = writer.wrote(bytes, |stream| {
            peer.written.fetch_max(stream, Ordering::Release);
        });
        if wrote_calls {
            peer.is_awaited.store(true, Ordering::Relaxed);
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { inner, reader, peer, .. } = self.get_mut();
        let before = buf.filled().len();
        let room = buf.remaining() > 0;
        let polled = Pin::new(inner).poll_read(cx, buf);
        if let Poll::Ready(Ok(())) = polled {
            let read = &buf.filled()[before..];
            if read.is_empty() && room {
                peer.end_of_file.store(true, Ordering::Relaxed);
            }
            if !read.is_empty() {
                peer.is_awaited.store(false, Ordering::Relaxed);
            }
            add(&peer.read, read.len());
            if let Err(error) = reader.read(read, |notice| peer.on_notice(notice)) {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
            }
            add(&peer.data, reader.take_data());
            if reader.take_progress() {
                peer.progress.fetch_add(1, Ordering::Relaxed);
            }
            if reader.take_is_of_calls() {
                peer.read_calls.store(true, Ordering::Relaxed);
            }
        }
        polled
    }
}

/// After the peer's end of file nothing is written any more: h2 tells all calls first, of which those that were not
/// written are made again elsewhere, and flushes then.
impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.peer.is_at_end() {
            return Poll::Ready(Ok(buf.len()));
        }
        let polled = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.noted(&polled);
        if let Poll::Ready(Ok(written)) = polled {
            self.wrote(&buf[..written.min(buf.len())]);
        }
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.peer.is_at_end() {
            return Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()));
        }
        let polled = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.noted(&polled);
        if let Poll::Ready(Ok(mut written)) = polled {
            for buf in bufs {
                let taken = written.min(buf.len());
                self.wrote(&buf[..taken]);
                written -= taken;
            }
        }
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.peer.is_at_end() {
            return Poll::Ready(Ok(()));
        }
        let polled = Pin::new(&mut self.inner).poll_flush(cx);
        self.noted(&polled);
        polled
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_shutdown(cx);
        if self.peer.is_at_end() { Poll::Ready(Ok(())) } else { polled }
    }
}
