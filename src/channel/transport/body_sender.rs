//! The rest of a request body after its response began: sent on in a task of its own, and dropped with the call.

use std::future::poll_fn;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use h2::{Reason, SendStream};
use tonic::Status;

use super::request_body::RequestBody;

/// The rest of a request body. Dropped, it ends, and so does the stream at the server.
pub(crate) struct BodySender(Rest);

enum Rest {
    /// The caller has more, which a task sends on.
    Sending(Arc<Shared>),
    /// All of it is with h2, but the server may not have made room for it.
    Buffered(SendStream<Bytes>),
    /// There is nothing to end.
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
    /// What is left of a body. Sends on in a task of its own, if there is more.
    pub(crate) fn of(mut body: RequestBody, stream: SendStream<Bytes>) -> Self {
        body.on_response();
        if body.is_sent() {
            return Self(if body.sent_bytes() > SMALL { Rest::Buffered(stream) } else { Rest::Over });
        }
        let shared = Arc::new(Shared {
            state: Mutex::new(State::Sending(Sending { body, stream })),
            is_cancelled: AtomicBool::new(false),
            task: AtomicWaker::new(),
        });
        let task = shared.clone();
        // No span: nothing in it logs.
        tokio::spawn(poll_fn(move |cx| task.poll(cx)));
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
        match &mut self.0 {
            Rest::Sending(shared) => {
                shared.is_cancelled.store(true, Ordering::SeqCst);
                // The caller's body goes now, unless the task is polling it, which looks afterwards.
                drop(shared.take());
                shared.task.wake();
            }
            // Does nothing where all of it is written.
            Rest::Buffered(stream) => stream.send_reset(Reason::CANCEL),
            Rest::Over => {}
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
            State::Sending(Sending { body, stream }) => match stream.poll_reset(cx) {
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

impl Drop for Sending {
    fn drop(&mut self) {
        if !self.body.is_sent() {
            self.stream.send_reset(Reason::CANCEL);
        }
    }
}

/// What fits into the first window of any stream, and into one HTTP/2 frame.
const SMALL: usize = 16 * 1024;
