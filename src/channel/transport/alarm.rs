//! A timer that is looked at far more often than it runs out: at each turn of a connection's task.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::task::unconstrained;
use tokio::time::{Instant, Sleep, sleep_until};

/// A sleep that is polled only where that changes something.
pub(super) struct Alarm {
    sleep: Pin<Box<Sleep>>,
    /// The task that the sleep wakes. `None` where none may be registered.
    task: Option<Waker>,
}

impl Alarm {
    pub(super) fn new(at: Instant) -> Self {
        Self { sleep: Box::pin(sleep_until(at)), task: None }
    }

    pub(super) fn reset(&mut self, at: Instant) {
        self.sleep.as_mut().reset(at);
        // It may have run out before that, and then it wakes no task until it is polled.
        self.task = None;
    }

    /// Whether it has run out. Registers the task to be woken then.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let is_registered = self.task.as_ref().is_some_and(|task| task.will_wake(cx.waker()));
        if is_registered && !self.sleep.is_elapsed() {
            return Poll::Pending;
        }
        // A task that has used up its budget would be sent away without being registered.
        let polled = Pin::new(&mut unconstrained(self.sleep.as_mut())).poll(cx);
        self.task = polled.is_pending().then(|| cx.waker().clone());
        polled
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::time::Duration;

    use tokio::task::coop::{consume_budget, has_budget_remaining};
    use tokio::time::{advance, timeout};
    use tokio_test::task::spawn;
    use tokio_test::{assert_pending, assert_ready};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn the_task_that_polled_last_is_woken_when_it_runs_out() {
        let mut alarm = Alarm::new(Instant::now() + SECOND);
        let (mut former, mut task) = (spawn(()), spawn(()));
        assert_pending!(former.enter(|cx, _| alarm.poll(cx)));
        for _ in 0..3 {
            assert_pending!(task.enter(|cx, _| alarm.poll(cx)));
        }
        advance(SECOND * 2).await;
        assert!(task.is_woken() && !former.is_woken());
        assert_ready!(task.enter(|cx, _| alarm.poll(cx)));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_reset_after_it_ran_out_wakes_its_task_again() {
        let mut alarm = Alarm::new(Instant::now() + SECOND);
        let mut task = spawn(());
        for is_seen in [false, true] {
            assert_pending!(task.enter(|cx, _| alarm.poll(cx)));
            advance(SECOND * 2).await;
            assert!(task.is_woken(), "it ran out");
            if is_seen {
                assert_ready!(task.enter(|cx, _| alarm.poll(cx)));
            }
            alarm.reset(Instant::now() + SECOND);
            assert_pending!(task.enter(|cx, _| alarm.poll(cx)));
            advance(SECOND * 2).await;
            assert!(task.is_woken(), "and once more");
            alarm.reset(Instant::now() + SECOND);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_without_budget_is_woken_as_well() {
        let mut alarm = Alarm::new(Instant::now() + SECOND);
        let mut turns = 0;
        let task = tokio::spawn(poll_fn(move |cx| {
            turns += 1;
            while turns == 1 && has_budget_remaining() {
                let _ = pin!(consume_budget()).poll(cx);
            }
            alarm.poll(cx)
        }));
        timeout(SECOND * 10, task).await.expect("it is woken").expect("no panic");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_put_off_wakes_its_task_at_the_later_time() {
        let mut alarm = Alarm::new(Instant::now() + SECOND);
        let mut task = spawn(());
        assert_pending!(task.enter(|cx, _| alarm.poll(cx)));
        alarm.reset(Instant::now() + SECOND * 3);
        assert_pending!(task.enter(|cx, _| alarm.poll(cx)));
        advance(SECOND * 2).await;
        assert!(!task.is_woken(), "not yet");
        assert_pending!(task.enter(|cx, _| alarm.poll(cx)));
        advance(SECOND * 2).await;
        assert!(task.is_woken());
    }
}
