//! Where hyper's tasks run: on tokio, each cancelled with the call whose request body it sends.
//!
//! hyper sends a request body in a task of its own, its pipe. Once the response has begun nothing but the body itself can
//! end that task, and while the pipe waits for the peer to make room it never polls the body. So a body tells which call it
//! belongs to whenever it is polled, the task that polled it remembers, and the call cancels the task directly.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use pin_project_lite::pin_project;

/// What ends with a token: a call.
pub(super) trait Cancel: Send + Sync + 'static {
    fn token(&self) -> &CancelToken;
}

/// Whether a call is cancelled, and whom to wake then: the one task that sends its body.
#[derive(Debug, Default)]
pub(super) struct CancelToken {
    cancelled: AtomicBool,
    waker: AtomicWaker,
}

impl CancelToken {
    /// Ends the task that sends the call's body; hyper then resets the stream at the server.
    pub(super) fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        self.waker.wake();
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }
}

/// Says that the body of `call` is being polled. Every poll of an upload begins here.
pub(super) fn entered<C: Cancel>(call: &Arc<C>) {
    POLLED.with(|polled| match polled.take() {
        Polled::Elsewhere => {}
        Polled::Task(Some(known)) if is(&known, call) => polled.set(Polled::Task(Some(known))),
        Polled::Task(_) => polled.set(Polled::Task(Some(call.clone()))),
    });
}

fn is<C: Cancel>(known: &Arc<dyn Cancel>, call: &Arc<C>) -> bool {
    std::ptr::addr_eq(Arc::as_ptr(known), Arc::as_ptr(call))
}

/// Polls something of hyper's that may poll bodies, and tells the call whose body was polled last, unless a new task has
/// taken it over.
pub(super) fn watched<T>(poll: impl FnOnce() -> T) -> (T, Option<Arc<dyn Cancel>>) {
    let _watch = Watch::begin();
    let polled = poll();
    (polled, take())
}

/// Spawns on tokio. For hyper's HTTP/2 client, which polls each new body once before it spawns the task that goes on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Executor;

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        // No span: hyper spawns a task a call, and nothing in it logs for us.
        tokio::spawn(Cancellable { future: Some(future), call: take() });
    }
}

pin_project! {
    /// A task of hyper's, dropped when the call whose body it sends is cancelled.
    struct Cancellable<F> {
        #[pin]
        future: Option<F>,
        call: Option<Arc<dyn Cancel>>,
    }
}

impl<F> Future for Cancellable<F>
where
    F: Future<Output = ()>,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        if this.call.as_ref().is_some_and(|call| call.token().is_cancelled()) {
            this.future.set(None);
        }
        let Some(future) = this.future.as_mut().as_pin_mut() else {
            return Poll::Ready(());
        };
        let (polled, call) = watched(|| future.poll(cx));
        if polled.is_ready() {
            return Poll::Ready(());
        }
        if let Some(call) = call {
            *this.call = Some(call);
        }
        if let Some(call) = this.call {
            let token = call.token();
            token.waker.register(cx.waker());
            // Again, now that the waker is there: it may have been cancelled in between.
            if token.is_cancelled() {
                this.future.set(None);
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }
}

/// Who polls bodies on this thread right now.
#[derive(Default)]
enum Polled {
    /// Nobody who wants to know.
    #[default]
    Elsewhere,
    /// A task of hyper's, and the call whose body it polled last.
    Task(Option<Arc<dyn Cancel>>),
}

thread_local! {
    static POLLED: Cell<Polled> = const { Cell::new(Polled::Elsewhere) };
}

/// Takes over the call whose body was polled last, if it was polled inside of [`watched`].
fn take() -> Option<Arc<dyn Cancel>> {
    POLLED.with(|polled| match polled.take() {
        Polled::Elsewhere => None,
        Polled::Task(call) => {
            polled.set(Polled::Task(None));
            call
        }
    })
}

/// While it lives, bodies that are polled on this thread are remembered. Ends when dropped, so that a panic in a body leaves
/// nothing behind.
struct Watch;

impl Watch {
    fn begin() -> Self {
        POLLED.set(Polled::Task(None));
        Self
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        POLLED.set(Polled::Elsewhere);
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, poll_fn};

    use hyper::rt::Executor as _;
    use tokio_test::task;

    use super::*;

    #[derive(Default)]
    struct Call(CancelToken);

    impl Cancel for Call {
        fn token(&self) -> &CancelToken {
            &self.0
        }
    }

    /// Polls the body of `call`, and is never done.
    fn sending(call: Arc<Call>) -> impl Future<Output = ()> {
        poll_fn(move |_| {
            entered(&call);
            Poll::Pending
        })
    }

    #[test]
    fn a_task_that_polled_a_body_is_dropped_and_woken_when_its_call_is_cancelled() {
        let call = Arc::new(Call::default());
        let held = Arc::new(());
        let inner = {
            let (sending, held) = (sending(call.clone()), held.clone());
            async move {
                sending.await;
                drop(held);
            }
        };
        let mut task = task::spawn(Cancellable { future: Some(inner), call: None });
        assert!(task.poll().is_pending(), "the body is not sent yet");
        call.token().cancel();
        assert!(task.is_woken(), "cancelling wakes the task");
        assert!(task.poll().is_ready(), "a cancelled task is done");
        assert_eq!(Arc::strong_count(&held), 1, "and has dropped what it held");
    }

    #[test]
    fn a_call_cancelled_while_its_body_is_polled_ends_the_task_in_the_same_poll() {
        let call = Arc::new(Call::default());
        let polled = call.clone();
        let inner = poll_fn(move |_| {
            entered(&polled);
            polled.token().cancel();
            Poll::Pending
        });
        let mut task = task::spawn(Cancellable { future: Some(inner), call: None });
        assert!(task.poll().is_ready(), "no wake can be lost between the poll and the registration");
    }

    #[tokio::test]
    async fn a_task_spawned_after_an_eager_poll_belongs_to_the_body_that_was_polled() {
        let call = Arc::new(Call::default());
        let (((), ()), left) = watched(|| (entered(&call), Executor.execute(pending())));
        assert!(left.is_none(), "the new task has taken it over");
        assert_eq!(Arc::strong_count(&call), 2, "the task holds the call");
        call.token().cancel();
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        assert_eq!(Arc::strong_count(&call), 1, "the task has ended and let go of it");
    }

    #[tokio::test]
    async fn a_body_polled_elsewhere_is_nobodys() {
        let call = Arc::new(Call::default());
        entered(&call);
        Executor.execute(pending());
        let ((), left) = watched(|| ());
        assert!(left.is_none(), "what was polled before is not remembered");
        assert_eq!(Arc::strong_count(&call), 1, "and no task holds it");
    }

    #[test]
    fn a_panic_in_a_body_leaves_nothing_behind() {
        let call = Arc::new(Call::default());
        let inside = call.clone();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            watched(|| {
                entered(&inside);
                panic!("a body panics");
            })
        }));
        assert!(result.is_err());
        drop(inside);
        assert_eq!(Arc::strong_count(&call), 1, "the thread has forgotten the call");
    }
}
