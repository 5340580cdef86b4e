//! A call in flight: its request and its response are two halves, which end on their own or at the drain limit.

use std::fmt;
use std::mem;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use super::open_set::{Counted, End, Slot};
use super::state::DrainState;

/// Shared by the two halves of a call and, once a half waits, by the set of open calls, through which the drain reaches
/// both.
///
/// A call that never waits is only counted. It enters the set before one of its tasks waits, and before its response
/// begins or is over while its request is open: nothing that the drain limit must end is out of its reach.
struct Call {
    drain: DrainState,
    counted: Counted,
    /// Set with the first wait.
    slot: OnceLock<Slot>,
    /// How many of the two halves did not end yet.
    halves: AtomicU8,
    /// Wakes the task that waits for the response or its next frame.
    response: AtomicWaker,
    /// The lock has one user until the drain limit or the end of the response: the request's reader.
    request: Mutex<RequestState>,
}

/// What became of a call's request.
enum RequestState {
    /// More frames may come. The waker is that of a reader that waits for the next one.
    Reading { body: Body, waker: Option<Waker> },
    /// The drain limit cut the request, which the reader does not know yet.
    Cut,
    /// The request ended, or its reader was dropped.
    Done,
}

/// Counts a new call, and puts its request's body within reach of the drain limit. Returns the half of its response.
#[inline]
pub(super) fn open(drain: &DrainState, body: &mut Body) -> ResponseHalf {
    let counted = drain.open_call();
    if http_body::Body::is_end_stream(body) {
        return ResponseHalf(Half::Alone(drain.clone(), counted));
    }
    let request = RequestState::Reading { body: mem::take(body), waker: None };
    let call = Call::new(drain, counted, 2, request);
    *body = Body::new(RequestBody(Arc::clone(&call)));
    ResponseHalf(Half::OfCall(call))
}

impl Call {
    fn new(drain: &DrainState, counted: Counted, halves: u8, request: RequestState) -> Arc<Self> {
        Arc::new(Self {
            drain: drain.clone(),
            counted,
            slot: OnceLock::new(),
            halves: AtomicU8::new(halves),
            response: AtomicWaker::new(),
            request: Mutex::new(request),
        })
    }

    /// Puts the call within reach of the drain limit. By a half that did not end; check for the end after this.
    fn enter(self: &Arc<Self>) {
        self.slot.get_or_init(|| self.drain.calls().enter(Arc::clone(self) as Arc<dyn End>));
    }

    fn request(&self) -> MutexGuard<'_, RequestState> {
        // A body that panicked while it was polled is no worse than one that failed.
        self.request.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops the request's body, unless the request ended before. Returns the waker of a waiting reader.
    fn finish_request(&self, mut request: MutexGuard<'_, RequestState>, state: RequestState) -> Option<Waker> {
        if !matches!(*request, RequestState::Reading { .. }) {
            return None;
        }
        let finished = mem::replace(&mut *request, state);
        // The body's drop may lock a connection, and a waker run anything: not under our lock.
        drop(request);
        self.on_half_ended();
        match finished {
            RequestState::Reading { waker, .. } => waker,
            RequestState::Cut | RequestState::Done => None,
        }
    }

    /// Puts a call within reach whose response has not ended and will not wait soon, if its request is open.
    fn enter_if_requested(self: &Arc<Self>) {
        if self.halves.load(Ordering::Acquire) == 2 {
            self.enter();
            if self.drain.has_ended() {
                self.end();
            }
        }
    }

    fn on_half_ended(&self) {
        if self.halves.fetch_sub(1, Ordering::AcqRel) == 1 {
            if let Some(slot) = self.slot.get() {
                self.drain.calls().leave(*slot);
            }
            self.drain.close_call(self.counted);
        }
    }
}

impl End for Call {
    fn end(&self) {
        self.response.wake();
        if let Some(waker) = self.finish_request(self.request(), RequestState::Cut) {
            waker.wake();
        }
    }
}

/// A call's response, from the call to the last frame.
pub(super) struct ResponseHalf(Half);

enum Half {
    /// The request was empty, and the response did not wait yet.
    Alone(DrainState, Counted),
    OfCall(Arc<Call>),
}

impl ResponseHalf {
    #[inline]
    pub(super) fn is_over(&self) -> bool {
        match &self.0 {
            Half::Alone(drain, _) => drain.has_ended(),
            Half::OfCall(call) => call.drain.has_ended(),
        }
    }

    /// The response begins, and may never wait for anything but its reader.
    pub(super) fn on_response(&self) {
        if let Half::OfCall(call) = &self.0 {
            call.enter_if_requested();
        }
    }

    /// For a task that is about to wait: registers its waker, and returns whether the limit has passed meanwhile.
    pub(super) fn register(&mut self, cx: &Context<'_>) -> bool {
        if let Half::Alone(drain, counted) = &self.0 {
            let call = Call::new(drain, *counted, 1, RequestState::Done);
            self.0 = Half::OfCall(call);
        }
        if let Half::OfCall(call) = &self.0 {
            call.response.register(cx.waker());
            call.enter();
        }
        self.is_over()
    }
}

impl Drop for ResponseHalf {
    #[inline]
    fn drop(&mut self) {
        match &self.0 {
            Half::Alone(drain, counted) => drain.close_call(*counted),
            Half::OfCall(call) => {
                // A detached reader of the request may hold the call for long, and must not hold this task's waker
                // with it.
                drop(call.response.take());
                call.enter_if_requested();
                call.on_half_ended();
            }
        }
    }
}

impl fmt::Debug for ResponseHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseHalf").finish_non_exhaustive()
    }
}

/// A call's request as its handler sees it. The inner body is in the call, where the drain limit reaches it.
struct RequestBody(Arc<Call>);

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let call = &self.0;
        let mut request = call.request();
        let (body, waker) = match &mut *request {
            RequestState::Reading { body, waker } => (body, waker),
            RequestState::Cut => {
                *request = RequestState::Done;
                return Poll::Ready(Some(Err(limit_passed())));
            }
            RequestState::Done => return Poll::Ready(None),
        };
        if !call.drain.has_ended() {
            if let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) {
                if is_last(frame.as_ref(), body) {
                    call.finish_request(request, RequestState::Done);
                }
                return Poll::Ready(frame);
            }
            match waker {
                Some(waker) => waker.clone_from(cx.waker()),
                None => *waker = Some(cx.waker().clone()),
            }
            call.enter();
            // Under the lock still: where the limit comes later, it finds the waker.
            if !call.drain.has_ended() {
                return Poll::Pending;
            }
        }
        call.finish_request(request, RequestState::Done);
        Poll::Ready(Some(Err(limit_passed())))
    }

    fn is_end_stream(&self) -> bool {
        match &*self.0.request() {
            RequestState::Reading { body, .. } => body.is_end_stream(),
            RequestState::Cut => false,
            RequestState::Done => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &*self.0.request() {
            RequestState::Reading { body, .. } => body.size_hint(),
            RequestState::Cut => SizeHint::default(),
            RequestState::Done => SizeHint::with_exact(0),
        }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        self.0.finish_request(self.0.request(), RequestState::Done);
    }
}

/// Whether this frame of `body` is its last, so that the half can end without another poll or a drop.
pub(super) fn is_last<B: http_body::Body>(frame: Option<&Result<Frame<B::Data>, B::Error>>, body: &B) -> bool {
    match frame {
        Some(Ok(frame)) => frame.is_trailers() || body.is_end_stream(),
        Some(Err(_)) | None => true,
    }
}

/// The status of a call that the drain limit ended.
pub(super) fn limit_passed() -> Status {
    Status::unavailable("the server is shutting down and its drain limit has passed")
}
