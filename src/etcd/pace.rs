//! One budget of attempts for all that a process asks of a cluster that does not answer: how many watches wait for it
//! costs it nothing.
//!
//! A task that failed waits for a turn. Turns follow each other at random waits that double up to two seconds, and the
//! task that is there first takes one: none is kept for a task whose runtime stands still. With the first answer all
//! tasks that still wait go on, over a window that grows with their number. None goes on before a wait of its own is
//! over, since what fails for it may be answered for others.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use crate::backoff::{Backoff, up_to};

/// The turns of one cluster.
pub(super) struct Pace {
    state: Mutex<State>,
    /// How often the cluster answered after it had not.
    answers: watch::Sender<u64>,
}

struct State {
    backoff: Backoff,
    /// A failure before then is of attempts that were made together, and counts once.
    grown: Option<Instant>,
    has_failed: bool,
    waiting: u32,
    /// When the next turn begins.
    turn: Option<Instant>,
}

impl Pace {
    pub(super) fn new() -> Self {
        let backoff = Backoff::new(FIRST, MAX);
        let state = State { backoff, grown: None, has_failed: false, waiting: 0, turn: None };
        Self { state: Mutex::new(state), answers: watch::Sender::new(0) }
    }

    /// Waits for a turn, and as long as `least`.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the turn is lost, and nothing else.
    pub(super) async fn turn(&self, least: Duration) {
        let earliest = Instant::now() + least;
        let mut answers = self.answers.subscribe();
        let is_failing = {
            let mut state = self.state();
            state.waiting += 1;
            state.has_failed
        };
        let waiting = Waiting(self);
        tokio::select! {
            () = self.own_turn(), if is_failing => {}
            // Or it has answered another one since the failure.
            _ = answers.changed(), if is_failing => waiting.spread().await,
            () = std::future::ready(()), if !is_failing => waiting.spread().await,
        }
        sleep_until(earliest).await;
    }

    async fn own_turn(&self) {
        loop {
            let turn = self.state().turn_from(Instant::now());
            sleep_until(turn).await;
            if self.state().take(turn, Instant::now()) {
                return;
            }
        }
    }

    /// An attempt failed.
    pub(super) fn on_failure(&self) {
        let now = Instant::now();
        let mut state = self.state();
        state.has_failed = true;
        if state.grown.is_none_or(|grown| now >= grown) {
            state.grown = Some(now + state.backoff.longest());
        }
    }

    /// The cluster answered.
    pub(super) fn on_success(&self) {
        let mut state = self.state();
        if std::mem::take(&mut state.has_failed) {
            state.grown = None;
            state.backoff.reset();
            drop(state);
            self.answers.send_modify(|answers| *answers += 1);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The next turn. One that began and was not taken is over.
    fn turn_from(&mut self, now: Instant) -> Instant {
        let next = now + up_to(self.backoff.ceiling());
        *self.turn.insert(self.turn.filter(|turn| *turn > now).unwrap_or(next))
    }

    /// Takes this turn, unless another one did.
    fn take(&mut self, turn: Instant, now: Instant) -> bool {
        let is_there = self.turn == Some(turn);
        if is_there {
            self.turn = Some(now + up_to(self.backoff.ceiling()));
        }
        is_there
    }
}

/// Counts as one that waits until it is dropped.
struct Waiting<'a>(&'a Pace);

impl Waiting<'_> {
    /// Waits for a moment in a window for all tasks that wait now.
    async fn spread(&self) {
        let waiting = self.0.state().waiting;
        sleep(up_to((EACH * waiting).min(MAX))).await;
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.state().waiting -= 1;
    }
}

/// The longest wait for a turn after the first failure.
const FIRST: Duration = Duration::from_millis(100);

/// The longest wait in the end, so that a client is back within 3 s of etcd.
const MAX: Duration = Duration::from_secs(2);

/// How much the window grows with each that waits once etcd answers again: 200 of them take a second.
const EACH: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// As many that try again and again, in vain until there is an answer; returns how often they tried in all.
    fn try_in_vain(pace: &Arc<Pace>, count: usize) -> Arc<AtomicUsize> {
        let tries = Arc::<AtomicUsize>::default();
        for _ in 0..count {
            let (pace, tries) = (pace.clone(), tries.clone());
            tokio::spawn(async move {
                loop {
                    tries.fetch_add(1, Ordering::Relaxed);
                    pace.on_failure();
                    pace.turn(Duration::ZERO).await;
                }
            });
        }
        tries
    }

    #[tokio::test(start_paused = true)]
    async fn five_hundred_try_no_more_often_than_one() {
        let pace = Arc::new(Pace::new());
        let tries = try_in_vain(&pace, 500);
        sleep(Duration::from_secs(100)).await;
        let tries = tries.load(Ordering::Relaxed);
        // Once each at first, and then one a second on the average.
        assert!((550..=720).contains(&tries), "{tries} attempts");
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_is_polled_no_more_keeps_nobody_waiting() {
        let pace = Pace::new();
        pace.on_failure();
        let mut stands_still = tokio_test::task::spawn(pace.turn(Duration::ZERO));
        tokio_test::assert_pending!(stands_still.poll());
        for _ in 0..10 {
            let start = Instant::now();
            pace.turn(Duration::ZERO).await;
            assert!(start.elapsed() <= 2 * FIRST, "{:?}", start.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_alone_waits_two_seconds_at_most() {
        let pace = Pace::new();
        for _ in 0..100 {
            pace.on_failure();
            let start = Instant::now();
            pace.turn(Duration::ZERO).await;
            assert!(start.elapsed() <= MAX + Duration::from_millis(1), "{:?}", start.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_while_others_are_answered_waits_for_its_own_time() {
        let pace = Arc::new(Pace::new());
        pace.on_failure();
        let waits = pace.clone();
        let turn = tokio::spawn(async move { waits.turn(Duration::from_secs(1)).await });
        tokio::task::yield_now().await;
        pace.on_success();
        let answered = Instant::now();
        turn.await.expect("it does not panic");
        assert!(answered.elapsed() >= Duration::from_secs(1), "{:?}", answered.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_wait_go_on_with_the_first_answer_and_not_at_once() {
        let pace = Arc::new(Pace::new());
        (0..8).for_each(|_| pace.on_failure());
        let turns: Vec<_> = (0..200)
            .map(|_| {
                let pace = pace.clone();
                tokio::spawn(async move {
                    pace.turn(Duration::ZERO).await;
                    Instant::now()
                })
            })
            .collect();
        tokio::task::yield_now().await;
        pace.on_success();
        let answered = Instant::now();
        let mut last = Duration::ZERO;
        for turn in turns {
            last = last.max(turn.await.expect("it does not panic") - answered);
        }
        assert!(last <= Duration::from_millis(1_010), "{last:?}");
        assert!(last >= Duration::from_millis(300), "they are spread: {last:?}");
        assert_eq!(pace.state().waiting, 0, "none is forgotten");
    }
}
