//! The rest of a request body after its response began: sent on in a task of its own, and dropped with the call.

use std::future::poll_fn;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use h2::{Reason, SendStream};
use tokio::runtime::Handle as Runtime;
use tonic::Status;

use super::request_body::RequestBody;

/// The rest of a request body. Dropped, it ends, and so does the stream at the server.
#[derive(Default)]
pub(crate) struct BodySender(Rest);

#[derive(Default)]
enum Rest {
    /// The caller has more, which a task sends on.
    Sending(Arc<Shared>),
    /// All of it is with h2, but the server may not have made room for it.
    #[expect(dead_code, reason = "its end is what it is kept for")]
    Buffered(Box<Sending>),
    /// There is nothing to end.
    #[default]
    Over,
}

struct Shared {
    /// Locked by the task while it polls the caller's body, which must be free to look at the call.
    state: Mutex<State>,
    is_cancelled: AtomicBool,
    task: AtomicWaker,
}

/// Where the rest of a body stands.
enum State {
    /// The caller has more, or the server may not have made room for all of it.
    Sending(Sending),
    /// The caller's body failed, and the call does not know yet.
    Failed(Status),
    Over,
}

struct Sending {
    body: RequestBody,
    stream: SendStream<Bytes>,
}

impl BodySender {
    /// What is left of a body. Sends on in a task of its own, if there is more: on the connection's runtime, since a
    /// caller's may end before.
    pub(crate) fn of(mut body: RequestBody, stream: SendStream<Bytes>, runtime: &Runtime) -> Self {
        body.on_response();
        if body.is_flushed() {
            return Self(Rest::Over);
        }
        let is_sent = body.is_sent();
        let sending = Sending { body, stream };
        if is_sent {
            return Self(Rest::Buffered(Box::new(sending)));
        }
        let shared = Arc::new(Shared {
            state: Mutex::new(State::Sending(sending)),
            is_cancelled: AtomicBool::new(false),
            task: AtomicWaker::new(),
        });
        let task = shared.clone();
        // No span: nothing in it logs.
        runtime.spawn(poll_fn(move |cx| task.poll(cx)));
        Self(Rest::Sending(shared))
    }

    /// Why the caller's body failed, if it did.
    pub(crate) fn failure(&self) -> Option<Status> {
        match &self.0 {
            Rest::Sending(shared) => match shared.take()? {
                State::Failed(status) => Some(status),
                _ => None,
            },
            Rest::Buffered(_) | Rest::Over => None,
        }
    }
}

impl Drop for BodySender {
    fn drop(&mut self) {
        if let Rest::Sending(shared) = &self.0 {
            shared.is_cancelled.store(true, Ordering::SeqCst);
            // The caller's body goes now, unless the task is polling it, which looks afterwards.
            drop(shared.take());
            shared.task.wake();
        }
    }
}

impl Shared {
    /// Takes the state, unless the task holds it. Dropping it may run the caller's code, which must not happen under
    /// the lock.
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
            State::Sending(sending) => sending.poll(cx),
            State::Failed(_) | State::Over => return Poll::Ready(()),
        };
        let is_kept = match (&polled, &*state) {
            (Poll::Pending, _) => true,
            // The server may have no room for all of it before the call ends.
            (Poll::Ready(Ok(())), State::Sending(Sending { body, .. })) => body.is_sent(),
            (Poll::Ready(_), _) => false,
        };
        if is_kept {
            drop(state);
            // It may have been cancelled meanwhile, and have found the state locked.
            if !self.is_cancelled.load(Ordering::SeqCst) {
                return polled.map(drop);
            }
            drop(self.take());
            return Poll::Ready(());
        }
        let failure = match polled {
            Poll::Ready(Err(status)) => State::Failed(status),
            _ => State::Over,
        };
        let over = mem::replace(&mut *state, failure);
        drop(state);
        drop(over);
        Poll::Ready(())
    }
}

impl Sending {
    /// Sends on, until all of it is with h2, the server wants no more of it, or the caller's body fails.
    ///
    /// h2 keeps one waker for a stream, which it wakes at a reset and for room. Where room is there, it does so at once:
    /// for each message, the task that sends it would have another turn for nothing. So its waker is registered only
    /// once there is something to wait for.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        let Self { body, stream } = self;
        if stream.poll_reset(&mut Context::from_waker(Waker::noop())).is_ready() {
            return Poll::Ready(Ok(()));
        }
        let sent = body.poll_send(stream, cx);
        if sent.is_pending() { stream.poll_reset(cx).map(|_| Ok(())) } else { sent }
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        // h2 does so by itself only while the response is not complete. Of a stream that is flushed it writes no reset.
        if !self.body.is_flushed() {
            self.stream.send_reset(Reason::CANCEL);
        }
    }
}
