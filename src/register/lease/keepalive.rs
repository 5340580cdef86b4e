//! A lease in, its end out: a keeper renews each lease in time and reports when it is dead.
//!
//! A renewal is due each third of the TTL, whether or not the one before was answered:
//!
//! ```text
//! Due --> Asked --its patience ends--> Hedged --an answer, from either--> Answered --> Due
//!          | ^                            |
//!          | +- the stream broke:         +--the next renewal is due: given up --> Due
//!          |    another member at once
//!          +--all members' streams broke--> Waiting, up to a second --> Asked
//! ```
//!
//! - *Asked*: one member has it, the preferred one unless that is late by now.
//! - *Hedged*: one more has it, any that is not late. There is no second hedge: where the leader is slow, each costs it
//!   one more renewal and helps nothing.
//! - *Given up*: by the keeper alone. What was asked goes on in its [streams](super::streams), and counts if etcd takes
//!   it, answered or not.
//!
//! The keeper owns the renewal and its times; a stream owns what was sent on it and how late it is; the cluster owns
//! connections and the preferred member.
//!
//! | TTL | renewals, at most every | patience | a member froze after a renewal: hedged after | next renewal, hedged after |
//! | --- | --- | --- | --- | --- |
//! | 5 s | 1.83 s | 0.83 s | 2.67 s | 3.67 s, 4.50 s |
//! | 15 s | 5.5 s | 2 s | 7.5 s | 11 s, 13 s |
//!
//! An election takes up to 2 s and gives each lease its full TTL anew.

use std::future::{self, Future};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tracing::Instrument;

use super::streams::{Answer, KeepalivePool, KeepaliveStreams, PATIENCE_MAX};
use crate::backoff::{Backoff, spread};
use crate::targets::REGISTRATION;

/// A lease that is kept alive for as long as this exists.
pub(super) struct Lease {
    pub(super) id: i64,
    state: watch::Receiver<LeaseState>,
}

/// The state of a lease, as far as its keeper knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LeaseState {
    /// The lease is kept alive, or no member could be asked.
    Kept,
    /// etcd reported that the lease does not exist.
    Dead,
}

impl Lease {
    /// Resolves when the lease is dead.
    pub(super) async fn died(&mut self) {
        if self.state.wait_for(|state| *state == LeaseState::Dead).await.is_err() {
            // The keeper ended silently: its runtime is shutting down, and the task of the registration with it.
            future::pending::<()>().await;
        }
    }
}

/// Keeps a lease alive until it is dropped or etcd reports it dead. The first keepalive is due at `first`, and each
/// other one a third of the TTL after the one before.
pub(super) fn keep(pool: Arc<KeepalivePool>, id: i64, ttl: Duration, first: Option<Instant>) -> Lease {
    let (publisher, state) = watch::channel(LeaseState::Kept);
    let interval = move || Instant::now() + spread(ttl / 3, 0.1);
    let keeper = async move {
        // Held between keepalives as well: the streams end with their last handle.
        let mut streams = pool.streams();
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        let mut due = first.unwrap_or_else(interval);
        loop {
            tokio::select! {
                () = publisher.closed() => return,
                () = sleep_until(due) => due = interval(),
            }
            // Late after the process was stopped, and then renewed at once.
            let renewal = timeout_at(due, renew(&pool, &mut streams, id, patience(ttl), &mut backoff));
            tokio::select! {
                () = publisher.closed() => return,
                answer = renewal => match answer {
                    Ok(Answer::Renewed) => {
                        pool.metrics().on_renewed();
                        backoff.reset();
                    }
                    Ok(Answer::Dead) => {
                        pool.metrics().on_dead();
                        publisher.send_replace(LeaseState::Dead);
                        return;
                    }
                    Err(_) => {
                        pool.metrics().on_unanswered();
                        tracing::debug!(target: REGISTRATION, "a renewal was not answered before the next one");
                    }
                },
            }
        }
    };
    tokio::spawn(keeper.in_current_span());
    Lease { id, state }
}

/// How long a member may take to answer before another one is asked: half of the time between two renewals, or less.
fn patience(ttl: Duration) -> Duration {
    (ttl / 6).min(PATIENCE_MAX)
}

/// Asks until a member answers.
async fn renew(
    pool: &KeepalivePool,
    streams: &mut Arc<KeepaliveStreams>,
    lease: i64,
    patience: Duration,
    backoff: &mut Backoff,
) -> Answer {
    loop {
        *streams = pool.streams();
        let choose = |asked: &[usize]| streams.choose(asked, patience);
        let ask = |member| streams.ask(lease, member, patience);
        if let Some(answer) = ask_and_hedge(choose, ask, patience).await {
            return answer;
        }
        sleep(backoff.next()).await;
    }
}

/// Asks one member, and one more if that is late. A member whose stream breaks is replaced at once by another one.
/// `None`: all have broken.
async fn ask_and_hedge<F>(
    choose: impl Fn(&[usize]) -> Option<usize>,
    ask: impl Fn(usize) -> F,
    patience: Duration,
) -> Option<Answer>
where
    F: Future<Output = Option<Answer>>,
{
    let (mut asked, mut waiting) = (Vec::new(), FuturesUnordered::new());
    let mut late = pin!(sleep(patience));
    let mut wanted = 1;
    loop {
        while waiting.len() < wanted
            && let Some(member) = choose(&asked)
        {
            asked.push(member);
            waiting.push(ask(member));
        }
        tokio::select! {
            answer = waiting.next() => match answer {
                Some(Some(answer)) => return Some(answer),
                Some(None) => {}
                None => return None,
            },
            () = &mut late, if wanted == 1 => wanted = 2,
        }
    }
}

/// The first wait after no member took a keepalive.
const RETRY_FIRST: Duration = Duration::from_millis(100);

/// The longest wait after no member took a keepalive: a lease is renewed within a second of etcd's return.
const RETRY_MAX: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(2);

    /// A member that answers after some time, or one whose stream breaks then.
    #[derive(Clone, Copy)]
    enum Member {
        Answers(u64),
        Breaks(u64),
    }

    /// Asks three members, in their order; returns the answer, when it came, and which were asked when, in seconds.
    async fn asking(members: [Member; 3]) -> (Option<Answer>, u64, Vec<(usize, u64)>) {
        let (start, asked) = (Instant::now(), RefCell::new(Vec::new()));
        let ask = |member: usize| {
            asked.borrow_mut().push((member, start.elapsed().as_secs()));
            async move {
                let (after, answer) = match members[member] {
                    Member::Answers(after) => (after, Some(Answer::Renewed)),
                    Member::Breaks(after) => (after, None),
                };
                sleep(Duration::from_secs(after)).await;
                answer
            }
        };
        let choose = |asked: &[usize]| (0..3).find(|member| !asked.contains(member));
        let answer = ask_and_hedge(choose, ask, PATIENCE).await;
        (answer, start.elapsed().as_secs(), asked.into_inner())
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_answer_is_hedged_to_one_other_member_and_counts_all_the_same() {
        use Member::{Answers, Breaks};
        let renewed = Some(Answer::Renewed);
        assert_eq!(asking([Answers(1), Answers(0), Answers(0)]).await, (renewed, 1, vec![(0, 0)]), "in time");
        let hedged = vec![(0, 0), (1, 2)];
        assert_eq!(asking([Answers(9), Answers(1), Answers(0)]).await, (renewed, 3, hedged.clone()), "by the hedge");
        assert_eq!(
            asking([Answers(7), Answers(9), Answers(0)]).await,
            (renewed, 7, hedged),
            "late, and not by a third"
        );
        assert_eq!(
            asking([Answers(7), Breaks(1), Answers(2)]).await,
            (renewed, 5, vec![(0, 0), (1, 2), (2, 3)]),
            "a hedge that breaks is replaced"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_whose_stream_breaks_is_replaced_at_once_until_none_is_left() {
        use Member::{Answers, Breaks};
        let next = vec![(0, 0), (1, 0)];
        assert_eq!(asking([Breaks(0), Answers(1), Answers(0)]).await, (Some(Answer::Renewed), 1, next), "the next one");
        let all = vec![(0, 0), (1, 0), (2, 1)];
        assert_eq!(asking([Breaks(0), Breaks(1), Breaks(0)]).await, (None, 1, all), "none is left");
    }

    #[test]
    fn a_hedge_and_a_second_renewal_fit_into_each_ttl() {
        for seconds in [2, 5, 15, 60] {
            let ttl = Duration::from_secs(seconds);
            let interval = (ttl / 3).mul_f64(1.1);
            assert!(patience(ttl) < (ttl / 3).mul_f64(0.9), "TTL {seconds} s: the hedge comes before the next renewal");
            assert!(2 * interval + patience(ttl) < ttl, "TTL {seconds} s: two renewals are hedged before it ends");
        }
    }
}
