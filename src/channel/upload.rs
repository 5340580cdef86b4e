//! The request body on its way to hyper: kept for a replay until the response begins, and let go of when the call ends.

use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::{Body as _, Frame};
use tonic::Status;
use tonic::body::Body;

use super::executor::{self, Cancel, CancelToken};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What fits into the first window of any stream, and into one HTTP/2 frame.
const SMALL: usize = 16 * 1024;

/// How much of a request body is kept for a replay: what most unary calls need, and little enough to keep for each.
const KEPT_BYTES: usize = 64 * 1024;

/// A call's request body, shared by the call and by whatever attempt is sending it now. One allocation a call.
///
/// The body is polled outside of the lock: a request stream may drop its own call while it is polled.
#[derive(Debug)]
pub(super) struct Request {
    token: CancelToken,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    source: Source,
    /// Frames that were read: all of them while a replay is possible, otherwise those that still have to be sent.
    frames: Frames,
    /// How many of them the present attempt has sent.
    sent: usize,
    /// The attempt whose upload may read; those of earlier attempts end when they are polled.
    attempt: u32,
    /// Whether hyper has a last frame that is too large to be sent whatever the peer does.
    flushing: bool,
    /// Whether another attempt could still be made from `frames`.
    replayable: bool,
    /// The present upload, where it waits for an earlier one to hand back the body.
    parked: Option<Waker>,
}

/// The caller's body.
#[derive(Debug)]
enum Source {
    /// There may be more.
    Open(Body),
    /// An upload is polling it just now.
    Lent,
    /// It came to its end.
    Ended,
    /// It failed, or the call is over.
    Gone(Option<Status>),
}

/// Frames, the first without an allocation: most bodies have one.
#[derive(Debug, Default)]
struct Frames {
    first: Option<Bytes>,
    rest: Vec<Bytes>,
    bytes: usize,
}

/// What became of the request by the time the response began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// All of it is sent.
    Entirely,
    /// The rest goes on while the response is read.
    Partly,
}

impl Request {
    pub(super) fn new(body: Body) -> Arc<Self> {
        let source = if body.is_end_stream() { Source::Ended } else { Source::Open(body) };
        let state = State {
            source,
            frames: Frames::default(),
            sent: 0,
            attempt: 0,
            flushing: false,
            replayable: true,
            parked: None,
        };
        Arc::new(Self { token: CancelToken::default(), state: Mutex::new(state) })
    }

    /// The body for one more attempt, from its beginning; `None` if that is not kept any more.
    pub(super) fn upload(self: &Arc<Self>) -> Option<Upload> {
        let mut state = self.lock();
        if !state.replayable || matches!(state.source, Source::Gone(_)) {
            return None;
        }
        state.attempt += 1;
        state.sent = 0;
        state.flushing = false;
        let ended = state.is_read();
        Some(Upload { request: self.clone(), attempt: state.attempt, ended, flushing: false })
    }

    /// Whether all that was read is kept for another attempt.
    pub(super) fn is_replayable(&self) -> bool {
        self.lock().replayable
    }

    /// The response has begun: nothing is kept any more.
    pub(super) fn commit(&self) -> Sent {
        let mut state = self.lock();
        state.replayable = false;
        state.forget_sent();
        if state.is_sent() { Sent::Entirely } else { Sent::Partly }
    }

    /// The call is over: lets go of the caller's body, and resets the stream at the server unless all of it is sent.
    pub(super) fn cancel(&self) {
        let mut state = self.lock();
        state.replayable = false;
        if state.is_sent() {
            return;
        }
        let source = mem::replace(&mut state.source, Source::Gone(None));
        drop(state);
        // Dropping a request stream runs the caller's code.
        drop(source);
        self.token.cancel();
    }

    /// Why the caller's body failed, if it did.
    pub(super) fn failure(&self) -> Option<Status> {
        match &mut self.lock().source {
            Source::Gone(status) => status.take(),
            _ => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cancel for Request {
    fn token(&self) -> &CancelToken {
        &self.token
    }
}

impl State {
    /// Whether the present attempt has all of it.
    fn is_read(&self) -> bool {
        matches!(self.source, Source::Ended) && self.sent == self.frames.len()
    }

    /// Whether nothing of it can still be waiting for the peer to make room.
    fn is_sent(&self) -> bool {
        self.is_read() && !self.flushing
    }

    /// The next frame for the present attempt, of those that were read already.
    fn next(&mut self) -> Option<Bytes> {
        let frame = self.frames.get(self.sent)?.clone();
        self.sent += 1;
        self.forget_sent();
        Some(frame)
    }

    fn forget_sent(&mut self) {
        if !self.replayable && self.sent == self.frames.len() {
            self.frames = Frames::default();
            self.sent = 0;
        }
    }

    fn keep(&mut self, frame: Bytes) {
        if self.frames.bytes + frame.len() > KEPT_BYTES {
            self.replayable = false;
            self.forget_sent();
        }
        self.frames.push(frame);
    }

    /// Takes the body back from an upload that has polled it. What is returned is to be dropped outside of the lock.
    fn take_back(&mut self, body: Source) -> Option<Source> {
        if let Some(parked) = self.parked.take() {
            parked.wake();
        }
        match self.source {
            Source::Lent => {
                self.source = body;
                None
            }
            // The call was over meanwhile.
            _ => Some(body),
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

/// The request body of one attempt, as hyper reads it.
#[derive(Debug)]
pub(super) struct Upload {
    request: Arc<Request>,
    attempt: u32,
    /// All of it was handed out.
    ended: bool,
    /// The last frame may have to wait for the peer.
    flushing: bool,
}

impl Upload {
    /// Polls the caller's body. After its first frame it looks once whether that was the last: then the end goes out in
    /// the same HTTP/2 frame, where a unary call of tonic's would need another one.
    fn read(
        &mut self,
        request: &Request,
        mut body: Body,
        first: bool,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut polled = poll_caller(&mut body, cx);
        let mut ahead = Poll::Pending;
        if first && matches!(&polled, Poll::Ready(Some(Ok(frame))) if frame.is_data()) {
            ahead = poll_caller(&mut body, cx);
        }

        let mut state = request.lock();
        let mut source = Source::Open(body);
        for polled in [&mut polled, &mut ahead] {
            match mem::replace(polled, Poll::Pending) {
                Poll::Pending => {}
                Poll::Ready(None) => source = Source::Ended,
                Poll::Ready(Some(Err(status))) => source = Source::Gone(Some(status)),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => state.keep(data),
                    // gRPC requests have no trailers, and hyper would end the body with them.
                    Err(_) => source = Source::Ended,
                },
            }
        }
        let rest = state.take_back(source);
        let next = if state.attempt == self.attempt { self.next(&mut state) } else { Poll::Ready(Some(Err(over()))) };
        drop(state);
        drop(rest);
        next
    }

    /// What there is without polling the body; pending means that it has to be polled, or was and is.
    fn next(&mut self, state: &mut State) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(data) = state.next() {
            self.ended = state.is_read();
            self.flushing = self.ended && data.len() > SMALL;
            state.flushing = self.flushing;
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        match &state.source {
            Source::Ended => {
                self.ended = true;
                Poll::Ready(None)
            }
            Source::Gone(Some(status)) => Poll::Ready(Some(Err(status.clone().into()))),
            Source::Gone(None) => Poll::Ready(Some(Err(over()))),
            Source::Open(_) | Source::Lent => Poll::Pending,
        }
    }
}

/// Polls the caller's body. A panic in it is that call's failure: hyper polls bodies in the task that all calls on the
/// connection share.
fn poll_caller(body: &mut Body, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
    panic::catch_unwind(AssertUnwindSafe(|| Pin::new(body).poll_frame(cx)))
        .unwrap_or_else(|_| Poll::Ready(Some(Err(Status::internal("the request stream panicked")))))
}

/// Makes hyper reset the stream with CANCEL.
fn over() -> BoxError {
    h2::Error::from(h2::Reason::CANCEL).into()
}

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        let request = this.request.clone();
        let polled = this.poll(&request, cx);
        // A small last frame goes out at once, or at the latest when the window of the connection opens: there is no body left
        // to cancel.
        let is_over = this.ended && matches!(&polled, Poll::Ready(Some(Ok(frame))) if is_small(frame));
        if !is_over {
            executor::entered(&request);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

impl Upload {
    fn poll(&mut self, request: &Request, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self;
        let mut state = request.lock();
        if state.attempt != this.attempt {
            return Poll::Ready(Some(Err(over())));
        }
        if let Poll::Ready(next) = this.next(&mut state) {
            return Poll::Ready(next);
        }
        match mem::replace(&mut state.source, Source::Lent) {
            Source::Open(body) => {
                let first = state.frames.len() == 0 && state.replayable;
                drop(state);
                this.read(request, body, first, cx)
            }
            source => {
                state.source = source;
                state.parked = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// Whether it fits into the first window of any stream, and into one HTTP/2 frame.
fn is_small(frame: &Frame<Bytes>) -> bool {
    frame.data_ref().is_none_or(|data| data.len() <= SMALL)
}

impl Drop for Upload {
    /// hyper is done with it.
    fn drop(&mut self) {
        if !self.flushing {
            return;
        }
        let mut state = self.request.lock();
        if state.attempt == self.attempt {
            state.flushing = false;
        }
    }
}
