//! Whether a call that failed may be made again, in view of all that the channel retries. Pure: time comes in.
//!
//! | budget | a call that may be retried | a failure that may be retried | a success | allows a retry |
//! | --- | --- | --- | --- | --- |
//! | share, by default of 10 % and ten a second | counts in its second | counts in its second, if it is allowed | - | while the retries of about the last ten seconds are fewer than the share of the calls of that time and ten times those a second |
//! | tokens ([`RetryThrottling`]) | - | takes a token | gives back a part of one | while more than half of the tokens are left |
//!
//! The seconds of a share are counted from when the channel was built. Each has a cell of a ring of ten, and is in one
//! of these states:
//!
//! | state | a call in it | its count |
//! | --- | --- | --- |
//! | the present second | counts: one atomic addition | counts |
//! | one of the nine before it | belongs to a call that was late: counts | counts |
//! | an earlier one | begins the second that it is in, with a count of one | does not count |

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use super::throttling::{RetryThrottling, TokenBucket};
use crate::error::ConfigError;

/// How many retries the calls of a channel may make together, for
/// [`ChannelBuilder::retry_budget`](crate::ChannelBuilder::retry_budget).
///
/// ```
/// use tonic_etcd::retry::{RetryBudget, RetryThrottling};
///
/// let a_fifth = RetryBudget::share(20, 10);
/// let as_grpc = RetryBudget::from(RetryThrottling::new(10, 0.1));
/// # _ = (a_fifth, as_grpc);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[must_use = "it does nothing before a channel is given it"]
pub struct RetryBudget(Terms);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Terms {
    /// Retries in percent of the calls, and some a second.
    Share {
        percent: u32,
        per_second: u32,
    },
    Tokens(RetryThrottling),
}

impl RetryBudget {
    /// A share of the calls that may be retried, 0 to 100 percent of them, and `per_second` more, up to 1,000,000, for
    /// channels with few calls; at least one of both. Both count over about ten seconds: a tenth and ten a second, the
    /// default, are a tenth of the calls of that time and a hundred more.
    pub fn share(percent: u32, per_second: u32) -> Self {
        Self(Terms::Share { percent, per_second })
    }

    pub(crate) fn check(self) -> Result<(), ConfigError> {
        let Terms::Share { percent, per_second } = self.0 else { return Ok(()) };
        let refuse = |value, expected| Err(ConfigError::Option { option: "retry_budget", value, expected });
        if percent > 100 || per_second > MOST_PER_SECOND {
            return refuse(format!("{percent} % and {per_second} a second"), "0 to 100 % and up to 1000000 a second");
        }
        if (percent, per_second) == (0, 0) {
            return refuse(
                "0 % and 0 a second".to_owned(),
                "more than nothing; without a retry policy nothing is retried",
            );
        }
        Ok(())
    }
}

/// gRPC's terms.
impl From<RetryThrottling> for RetryBudget {
    fn from(throttling: RetryThrottling) -> Self {
        Self(Terms::Tokens(throttling))
    }
}

/// So that an option that takes `None` as well takes it as it is.
impl From<RetryThrottling> for Option<RetryBudget> {
    fn from(throttling: RetryThrottling) -> Self {
        Some(throttling.into())
    }
}

/// What limits the retries of a channel.
#[derive(Debug)]
pub(crate) enum RetryLimiter {
    Share(Share),
    Tokens(TokenBucket),
}

/// What is said of the retries of a channel, where something is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RetryLimit {
    /// There is no budget.
    Off,
    Budget(RetryBudget),
}

impl RetryLimiter {
    /// The budget of a channel, of which this is said. By default there is one where calls of any method are retried.
    ///
    /// # Errors
    ///
    /// Numbers out of their ranges.
    pub(crate) fn of(limit: Option<RetryLimit>, has_retries: bool, now: Instant) -> Result<Option<Self>, ConfigError> {
        match limit {
            Some(RetryLimit::Off) => Ok(None),
            Some(RetryLimit::Budget(budget)) => {
                budget.check()?;
                match budget.0 {
                    Terms::Share { percent, per_second } => Ok(Some(Self::Share(Share::new(percent, per_second, now)))),
                    Terms::Tokens(throttling) => throttling.check().map(|()| Some(Self::tokens(throttling))),
                }
            }
            None => Ok(has_retries.then(|| Self::share(now))),
        }
    }

    /// The default.
    pub(crate) fn share(now: Instant) -> Self {
        Self::Share(Share::new(PERCENT, PER_SECOND, now))
    }

    pub(crate) fn tokens(throttling: RetryThrottling) -> Self {
        Self::Tokens(TokenBucket::new(throttling))
    }

    /// A call begins that may be retried.
    pub(crate) fn on_call(&self, now: Instant) {
        if let Self::Share(share) = self {
            share.on_call(now);
        }
    }

    /// Whether [`on_success`](Self::on_success) does anything.
    pub(crate) fn counts_successes(&self) -> bool {
        matches!(self, Self::Tokens(_))
    }

    /// A call was answered to its end.
    pub(crate) fn on_success(&self) {
        if let Self::Tokens(tokens) = self {
            tokens.on_success();
        }
    }

    /// An attempt failed in a way that is retried, or its server wants no other attempt.
    pub(crate) fn on_failure(&self) {
        if let Self::Tokens(tokens) = self {
            tokens.on_failure();
        }
    }

    /// Whether there may be one more retry, which counts then.
    pub(crate) fn takes_retry(&self, now: Instant) -> bool {
        match self {
            Self::Share(share) => share.takes_retry(now),
            Self::Tokens(tokens) => tokens.allows_retries(),
        }
    }
}

/// Calls and retries of the last seconds.
#[derive(Debug)]
pub(crate) struct Share {
    begin: Instant,
    percent: u64,
    at_least: u64,
    calls: Seconds,
    retries: Seconds,
    /// Two calls that ask at once must not both get the last retry. Calls that succeed ask nothing.
    asking: Mutex<()>,
}

impl Share {
    fn new(percent: u32, per_second: u32, now: Instant) -> Self {
        let (percent, at_least) = (u64::from(percent), u64::from(per_second) * u64::from(WINDOW));
        let (calls, retries) = (Seconds::default(), Seconds::default());
        Self { begin: now, percent, at_least, calls, retries, asking: Mutex::default() }
    }

    fn on_call(&self, now: Instant) {
        self.calls.add(self.second(now));
    }

    fn takes_retry(&self, now: Instant) -> bool {
        let second = self.second(now);
        let _asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        let may = self.retries.sum(second) < self.at_least + self.calls.sum(second) * self.percent / 100;
        if may {
            self.retries.add(second);
        }
        may
    }

    fn second(&self, now: Instant) -> u32 {
        u32::try_from(now.saturating_duration_since(self.begin).as_secs()).unwrap_or(u32::MAX)
    }
}

/// How much there was in each of the last [`WINDOW`] seconds: the second in the upper half of a cell, and the count in
/// the lower one.
#[derive(Debug, Default)]
struct Seconds([AtomicU64; WINDOW as usize]);

impl Seconds {
    fn add(&self, second: u32) {
        let cell = &self.0[(second % WINDOW) as usize];
        if second_of(cell.load(Ordering::Relaxed)) == second {
            cell.fetch_add(1, Ordering::Relaxed);
            return;
        }
        // The first one of a second; a late one counts in the second that has begun since.
        let begun = |now| if second_of(now) < second { (u64::from(second) << 32) | 1 } else { now + 1 };
        _ = cell.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| Some(begun(now)));
    }

    fn sum(&self, second: u32) -> u64 {
        let cells = self.0.iter().map(|cell| cell.load(Ordering::Relaxed));
        let is_recent = |cell: &u64| second.saturating_sub(second_of(*cell)) < WINDOW;
        cells.filter(is_recent).map(|cell| cell & u64::from(u32::MAX)).sum()
    }
}

fn second_of(cell: u64) -> u32 {
    u32::try_from(cell >> 32).unwrap_or(u32::MAX)
}

/// How many seconds count together, as in linkerd: a server that restarts takes its calls along for some of them, and
/// they shall find their retries, while a failure that lasts must not be multiplied.
const WINDOW: u32 = 10;

/// A tenth of the calls may be retried: what fails when one of ten servers does, and nothing that a service notices.
const PERCENT: u32 = 10;

/// For channels with few calls: what no service notices.
const PER_SECOND: u32 = 10;

/// More is a mistake in units.
const MOST_PER_SECOND: u32 = 1_000_000;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// How many retries are allowed of so many that are asked for at this second, after so many calls in it.
    fn allowed(budget: &RetryLimiter, begin: Instant, (second, calls, asked): (u64, u64, u64)) -> u64 {
        let now = begin + Duration::from_secs(second);
        (0..calls).for_each(|_| budget.on_call(now));
        (0..asked).map(|_| u64::from(budget.takes_retry(now))).sum()
    }

    #[test]
    fn retries_are_a_tenth_of_the_calls_of_ten_seconds_and_a_hundred() {
        for (what, steps) in [
            ("without calls, a hundred", &[(0, 0, 1_000, 100)][..]),
            ("few calls", &[(0, 9, 1_000, 100), (1, 1, 1_000, 1)]),
            ("many calls", &[(0, 10_000, 5_000, 1_100)]),
            ("calls of earlier seconds", &[(0, 5_000, 0, 0), (9, 5_000, 5_000, 1_100)]),
            ("calls of ten seconds ago", &[(0, 5_000, 0, 0), (10, 0, 5_000, 100)]),
            ("retries of earlier seconds", &[(0, 0, 60, 60), (9, 0, 60, 40), (10, 0, 100, 60), (19, 0, 100, 40)]),
            ("after a pause", &[(0, 1_000, 200, 200), (1_000, 0, 1_000, 100), (1_001, 10_000, 5_000, 1_000)]),
            ("time that runs backwards", &[(20, 0, 40, 40), (11, 0, 100, 60)]),
            (
                "every second of a failure that lasts",
                &[
                    (0, 1_000, 3_000, 200),
                    (1, 1_000, 3_000, 100),
                    (2, 1_000, 3_000, 100),
                    (3, 1_000, 3_000, 100),
                    (4, 1_000, 3_000, 100),
                    (5, 1_000, 3_000, 100),
                    (6, 1_000, 3_000, 100),
                    (7, 1_000, 3_000, 100),
                    (8, 1_000, 3_000, 100),
                    (9, 1_000, 3_000, 100),
                    (10, 1_000, 3_000, 200),
                    (11, 1_000, 3_000, 100),
                ],
            ),
        ] {
            let begin = Instant::now();
            let budget = RetryLimiter::share(begin);
            for &(second, calls, asked, expected) in steps {
                assert_eq!(allowed(&budget, begin, (second, calls, asked)), expected, "{what}: second {second}");
            }
        }
    }

    #[test]
    fn there_is_a_share_where_calls_are_retried_unless_something_else_is_said() {
        let of = |limit, has_retries| RetryLimiter::of(limit, has_retries, Instant::now());
        assert!(matches!(of(None, true), Ok(Some(RetryLimiter::Share(_)))));
        assert!(matches!(of(None, false), Ok(None)), "nothing is retried");
        assert!(matches!(of(Some(RetryLimit::Off), true), Ok(None)));
        let tokens = |max| Some(RetryLimit::Budget(RetryThrottling::new(max, 0.1).into()));
        assert!(matches!(of(tokens(10), true), Ok(Some(RetryLimiter::Tokens(_)))));
        assert!(of(tokens(0), true).is_err(), "out of its range");
        let share = |percent, per_second| of(Some(RetryLimit::Budget(RetryBudget::share(percent, per_second))), true);
        for (percent, per_second) in [(101, 1), (0, 0), (1, 1_000_001)] {
            assert!(share(percent, per_second).is_err(), "{percent} {per_second}");
        }
        for (percent, per_second, retries) in [(0, 1, 10), (100, 0, 1_000), (25, 2, 270), (100, 1_000_000, 20_000)] {
            let begin = Instant::now();
            let limiter = share(percent, per_second).expect("it is a good one").expect("a limit");
            assert_eq!(allowed(&limiter, begin, (0, 1_000, 20_000)), retries, "{percent} % and {per_second} a second");
        }
    }

    #[test]
    fn neither_successes_nor_failures_change_a_share() {
        let now = Instant::now();
        let budget = RetryLimiter::share(now);
        (0..1_000).for_each(|_| budget.on_failure());
        (0..1_000).for_each(|_| budget.on_success());
        assert_eq!(allowed(&budget, now, (0, 0, 1_000)), 100);
        assert!(!budget.counts_successes());
    }

    #[test]
    fn tokens_know_nothing_of_calls_and_time() {
        let now = Instant::now();
        let budget = RetryLimiter::tokens(RetryThrottling::new(10, 1.0));
        assert!(budget.counts_successes());
        (0..4).for_each(|_| budget.on_failure());
        assert_eq!(allowed(&budget, now, (0, 1_000, 1_000)), 1_000, "six of ten are left");
        budget.on_failure();
        assert_eq!(allowed(&budget, now, (100, 1_000, 1_000)), 0, "five are left");
        budget.on_success();
        assert!(budget.takes_retry(now), "six again");
    }

    #[test]
    fn calls_of_many_threads_are_all_counted() {
        let begin = Instant::now();
        let budget = RetryLimiter::share(begin);
        let later = begin + Duration::from_secs(12);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|_| budget.on_call(later)));
            }
        });
        let taken = std::thread::scope(|scope| {
            let takers: Vec<_> =
                (0..4).map(|_| scope.spawn(|| (0..10_000).filter(|_| budget.takes_retry(later)).count())).collect();
            takers.into_iter().map(|taker| taker.join().expect("no panic")).sum::<usize>()
        });
        assert_eq!(taken, 4_100, "a tenth of 40,000, and a hundred");
    }
}
