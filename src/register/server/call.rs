//! A call in flight: its request and its response are two halves, which end on their own or at the drain limit.

use std::fmt;
use std::mem;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use super::open_set::{End, Slot};
use super::state::DrainState;

/// Shared by the two halves of a call and by the set of open calls, through which the drain reaches both.
struct Call {
    drain: DrainState,
    slot: Slot,
    /// How many of the two halves did not end yet.
    halves: AtomicU8,
    /// Wakes the task that waits for the response or its next frame.
    response: AtomicWaker,
    /// The lock has one user until the drain limit: the request's reader.
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

/// Counts a new call. Returns the request body for its handler and the half that its response holds.
pub(super) fn open(drain: &DrainState, body: Body) -> (Body, ResponseHalf) {
    let empty = http_body::Body::is_end_stream(&body);
    let call = drain.calls().enter(|slot| Call {
        drain: drain.clone(),
        slot,
        halves: AtomicU8::new(if empty { 1 } else { 2 }),
        response: AtomicWaker::new(),
        request: Mutex::new(if empty { RequestState::Done } else { RequestState::Reading { body, waker: None } }),
    });
    let body = if empty { Body::empty() } else { Body::new(RequestBody(Arc::clone(&call))) };
    (body, ResponseHalf(call))
}

impl Call {
    fn request(&self) -> MutexGuard<'_, RequestState> {
        // A body that panicked while it was polled is no worse than one that failed.
        self.request.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops the request's body, unless the request ended before. Returns the waker of a waiting reader.
    fn finish_request(&self, state: RequestState) -> Option<Waker> {
        let mut request = self.request();
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

    fn on_half_ended(&self) {
        if self.halves.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.drain.calls().leave(self.slot);
        }
    }
}

impl End for Call {
    fn end(&self) {
        self.response.wake();
        if let Some(waker) = self.finish_request(RequestState::Cut) {
            waker.wake();
        }
    }
}

/// A call's response, from the call to the last frame.
pub(super) struct ResponseHalf(Arc<Call>);

impl ResponseHalf {
    pub(super) fn is_over(&self) -> bool {
        self.0.drain.has_ended()
    }

    /// For a task that is about to wait: registers its waker, and returns whether the limit has passed meanwhile.
    pub(super) fn register(&self, cx: &Context<'_>) -> bool {
        self.0.response.register(cx.waker());
        self.is_over()
    }
}

impl Drop for ResponseHalf {
    fn drop(&mut self) {
        // A detached reader of the request may hold the call for long, and must not hold this task's waker with it.
        drop(self.0.response.take());
        self.0.on_half_ended();
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
        let mut request = self.0.request();
        let (body, waker) = match &mut *request {
            RequestState::Reading { body, waker } => (body, waker),
            RequestState::Cut => {
                *request = RequestState::Done;
                return Poll::Ready(Some(Err(limit_passed())));
            }
            RequestState::Done => return Poll::Ready(None),
        };
        let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) else {
            // Under the lock, so that the drain limit either comes later and finds the waker, or was found above.
            match waker {
                Some(waker) => waker.clone_from(cx.waker()),
                None => *waker = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        };
        let last = is_last(frame.as_ref(), body);
        drop(request);
        if last {
            self.0.finish_request(RequestState::Done);
        }
        Poll::Ready(frame)
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
        self.0.finish_request(RequestState::Done);
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
