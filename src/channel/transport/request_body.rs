//! The request body on its way to the server: kept for a replay until the response begins, and let go of with the call.
//!
//! Until the response begins the call itself polls the body, whenever it is polled. What is left of it then goes on in a task
//! of its own, the [`BodySender`], since a response may be read on another task or not at all.

use std::future::poll_fn;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use h2::{Reason, SendStream};
use http_body::{Body as _, Frame};
use tonic::Status;
use tonic::body::Body;

/// How much of a request body is kept for a replay: what most unary calls need, and little enough to keep for each.
const KEPT_BYTES: usize = 64 * 1024;

/// What fits into the first window of any stream, and into one HTTP/2 frame.
const SMALL: usize = 16 * 1024;

/// What h2 takes at once.
const LARGEST_FRAME: usize = i32::MAX as usize;

/// How many frames one poll sends, before others have their turn.
const FRAMES_A_POLL: usize = 32;

/// A call's request body, and what is kept of it.
pub(crate) struct RequestBody {
    source: Source,
    /// Frames that were read: all of them while a replay is possible, otherwise those that still have to be sent.
    frames: Frames,
    /// The next of them for the present attempt.
    next: usize,
    /// How far the present attempt is.
    progress: Progress,
    kept: Kept,
    /// How many bytes the present attempt has sent.
    bytes: usize,
}

/// How far an attempt is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Unsent,
    Partly,
    /// All of it is with h2.
    Entirely,
}

/// What is kept for a further attempt.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kept {
    /// Everything.
    All,
    /// Everything as yet: what is sent from now on is not kept.
    Unsent,
    /// Something is gone, so there can be none.
    Tail,
}

/// The caller's body.
enum Source {
    /// There may be more.
    Open(Body),
    /// It came to its end.
    Ended,
}

/// Frames, the first without an allocation: most bodies have one.
#[derive(Default)]
struct Frames {
    first: Option<Bytes>,
    rest: Vec<Bytes>,
    bytes: usize,
}

impl RequestBody {
    pub(crate) fn new(body: Body) -> Self {
        let source = if body.is_end_stream() { Source::Ended } else { Source::Open(body) };
        Self { source, frames: Frames::default(), next: 0, progress: Progress::Unsent, kept: Kept::All, bytes: 0 }
    }

    /// Begins an attempt: reads what goes into the first write. Tells whether there is nothing to send at all.
    ///
    /// # Errors
    ///
    /// What the caller's body failed with.
    pub(crate) fn begin(&mut self, cx: &mut Context<'_>) -> Result<bool, Status> {
        (self.next, self.progress, self.bytes) = (0, Progress::Unsent, 0);
        if self.frames.len() == 0
            && let Poll::Ready(read) = self.poll_read(cx)
        {
            read?;
        }
        if self.is_read() {
            self.progress = Progress::Entirely;
        }
        Ok(self.is_ended())
    }

    /// Sends on, until all of it is with h2, or nobody wants it any more.
    ///
    /// # Errors
    ///
    /// What the caller's body failed with.
    pub(crate) fn poll_send(
        &mut self,
        stream: &mut SendStream<Bytes>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Status>> {
        for _ in 0..FRAMES_A_POLL {
            if self.is_ended() {
                return Poll::Ready(Ok(()));
            }
            // A first frame always finds room: h2 keeps it until there is some.
            if self.progress == Progress::Partly && !ready!(poll_room(stream, cx)) {
                return Poll::Ready(Ok(()));
            }
            if self.next == self.frames.len() {
                ready!(self.poll_read(cx))?;
            }
            let data = self.frames.get(self.next).cloned();
            self.next += usize::from(data.is_some());
            let data = data.unwrap_or_default();
            if data.len() > LARGEST_FRAME {
                let message = format!("a message of {} bytes is larger than HTTP/2 can carry", data.len());
                return Poll::Ready(Err(Status::out_of_range(message)));
            }
            self.progress = if self.is_read() { Progress::Entirely } else { Progress::Partly };
            self.bytes = self.bytes.saturating_add(data.len());
            self.forget_sent();
            if stream.send_data(data, self.is_ended()).is_err() {
                // The stream is over, and the response tells why.
                return Poll::Ready(Ok(()));
            }
        }
        // A stream that always has more must not keep its call from its deadline, its response and its caller.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Whether all of it is with h2.
    pub(crate) fn is_ended(&self) -> bool {
        self.progress == Progress::Entirely
    }

    /// Whether all that was read is kept for another attempt.
    pub(crate) fn is_whole(&self) -> bool {
        self.kept != Kept::Tail
    }

    /// The response has begun: nothing is kept any more.
    fn commit(&mut self) {
        self.keep_no_more();
    }

    /// Whether the present attempt has all that the caller's body had.
    fn is_read(&self) -> bool {
        matches!(self.source, Source::Ended) && self.next == self.frames.len()
    }

    /// Polls the caller's body. After its first frame it looks once whether that was the last: then the end goes out in
    /// the same HTTP/2 frame, where a unary call of tonic's would need another one.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        let is_first = self.frames.len() == 0 && self.kept == Kept::All;
        let Source::Open(body) = &mut self.source else { return Poll::Ready(Ok(())) };
        let frame = ready!(poll_caller(body, cx)).transpose()?;
        let is_data = frame.as_ref().is_some_and(Frame::is_data);
        let ahead = if is_first && is_data { poll_caller(body, cx) } else { Poll::Pending };
        self.keep(frame);
        if let Poll::Ready(frame) = ahead {
            self.keep(frame.transpose()?);
        }
        Poll::Ready(Ok(()))
    }

    /// Takes what was read; `None` is the end. gRPC requests have no trailers, and they would be the end as well.
    fn keep(&mut self, frame: Option<Frame<Bytes>>) {
        let Some(data) = frame.and_then(|frame| frame.into_data().ok()) else {
            self.source = Source::Ended;
            return;
        };
        if self.frames.bytes + data.len() > KEPT_BYTES {
            self.keep_no_more();
        }
        self.frames.push(data);
    }

    fn keep_no_more(&mut self) {
        if self.kept == Kept::All {
            self.kept = Kept::Unsent;
        }
        self.forget_sent();
    }

    fn forget_sent(&mut self) {
        if self.kept != Kept::All && self.next > 0 && self.next == self.frames.len() {
            (self.frames, self.next, self.kept) = (Frames::default(), 0, Kept::Tail);
        }
    }
}

impl Frames {
    fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.rest.len()
    }

    fn get(&self, index: usize) -> Option<&Bytes> {
        match index {
            0 => self.first.as_ref(),
            _ => self.rest.get(index - 1),
        }
    }

    fn push(&mut self, frame: Bytes) {
        self.bytes += frame.len();
        match self.first {
            None => self.first = Some(frame),
            Some(_) => self.rest.push(frame),
        }
    }
}

/// Polls the caller's body. A panic in it is that call's failure, whichever task polls.
fn poll_caller(body: &mut Body, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
    panic::catch_unwind(AssertUnwindSafe(|| Pin::new(body).poll_frame(cx)))
        .unwrap_or_else(|_| Poll::Ready(Some(Err(Status::internal("the request stream panicked")))))
}

/// Waits until the peer takes more; `false` if it takes nothing any more. What is given beyond that waits in memory, so this
/// bounds it to one frame.
fn poll_room(stream: &mut SendStream<Bytes>, cx: &mut Context<'_>) -> Poll<bool> {
    stream.reserve_capacity(1);
    while stream.capacity() == 0 {
        match ready!(stream.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return Poll::Ready(false),
        }
    }
    Poll::Ready(true)
}

/// What is still to be sent when the response begins. Dropped, it ends, and so does the stream at the server.
pub(crate) enum BodySender {
    /// The caller has more, which a task sends on.
    Going(Arc<Shared>),
    /// All of it is with h2, but the server may not have made room for it.
    Buffered(SendStream<Bytes>),
    /// There is nothing to end.
    Over,
}

pub(crate) struct Shared {
    /// Locked by the task while it polls the caller's body, which must be free to look at the call.
    state: Mutex<State>,
    is_cancelled: AtomicBool,
    task: AtomicWaker,
}

/// Where the rest of an body stands.
enum State {
    Going(Going),
    /// The caller's body failed, which nobody was told yet.
    Failed(Status),
    Over,
}

struct Going {
    body: RequestBody,
    stream: SendStream<Bytes>,
}

impl BodySender {
    /// What is left of an body. Sends on in a task of its own, if there is more.
    pub(crate) fn of(mut body: RequestBody, stream: SendStream<Bytes>) -> Self {
        body.commit();
        if body.is_ended() {
            return if body.bytes > SMALL { Self::Buffered(stream) } else { Self::Over };
        }
        let shared = Arc::new(Shared {
            state: Mutex::new(State::Going(Going { body, stream })),
            is_cancelled: AtomicBool::new(false),
            task: AtomicWaker::new(),
        });
        let task = shared.clone();
        // No span: nothing in it logs.
        tokio::spawn(poll_fn(move |cx| task.poll(cx)));
        Self::Going(shared)
    }

    /// Why the caller's body failed, if it did.
    pub(crate) fn failure(&self) -> Option<Status> {
        match self {
            Self::Going(shared) => match shared.take()? {
                State::Failed(status) => Some(status),
                _ => None,
            },
            Self::Buffered(_) | Self::Over => None,
        }
    }
}

impl Drop for BodySender {
    fn drop(&mut self) {
        match self {
            Self::Going(shared) => {
                shared.is_cancelled.store(true, Ordering::SeqCst);
                // The caller's body goes now, unless the task is polling it, which looks afterwards.
                drop(shared.take());
                shared.task.wake();
            }
            // Does nothing where all of it is written.
            Self::Buffered(stream) => stream.send_reset(Reason::CANCEL),
            Self::Over => {}
        }
    }
}

impl Shared {
    /// What there is, unless the task is at it. Its drop may run the caller's code, so it is not dropped in here.
    fn take(&self) -> Option<State> {
        let mut state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(state)) => state.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(mem::replace(&mut *state, State::Over))
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.task.register(cx.waker());
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let polled = match &mut *state {
            State::Going(Going { body, stream }) => match stream.poll_reset(cx) {
                // The server wants no more of it.
                Poll::Ready(_) => Poll::Ready(Ok(())),
                Poll::Pending => body.poll_send(stream, cx),
            },
            State::Failed(_) | State::Over => return Poll::Ready(()),
        };
        let over = match polled {
            Poll::Ready(Ok(())) => mem::replace(&mut *state, State::Over),
            Poll::Ready(Err(status)) => mem::replace(&mut *state, State::Failed(status)),
            Poll::Pending => {
                drop(state);
                // It may have been cancelled meanwhile, and have found the state locked.
                if !self.is_cancelled.load(Ordering::SeqCst) {
                    return Poll::Pending;
                }
                drop(self.take());
                return Poll::Ready(());
            }
        };
        drop(state);
        drop(over);
        Poll::Ready(())
    }
}

impl Drop for Going {
    fn drop(&mut self) {
        if !self.body.is_ended() {
            self.stream.send_reset(Reason::CANCEL);
        }
    }
}
