//! Waiting times between attempts: doubling, with full jitter, so that many clients of one etcd spread out.

use std::time::Duration;

/// Doubling waiting times with full jitter.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    first: Duration,
    max: Duration,
    ceiling: Duration,
}

impl Backoff {
    /// Waits up to `first`, then up to twice as long each time, and never longer than `max`.
    pub(crate) fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, ceiling: first }
    }

    /// The next waiting time: anything from zero to the present ceiling, which then doubles.
    pub(crate) fn next(&mut self) -> Duration {
        up_to(self.longest())
    }

    /// The present ceiling.
    pub(crate) fn ceiling(&self) -> Duration {
        self.ceiling
    }

    /// The present ceiling, which then doubles: for a task that waits alone and needs no jitter.
    pub(crate) fn longest(&mut self) -> Duration {
        let wait = self.ceiling;
        self.ceiling = (self.ceiling * 2).min(self.max);
        wait
    }

    /// Starts over, after a success.
    pub(crate) fn reset(&mut self) {
        self.ceiling = self.first;
    }
}

/// A random duration from zero to `limit`.
pub(crate) fn up_to(limit: Duration) -> Duration {
    limit.mul_f64(fastrand::f64())
}

/// `mean` give or take `share` of it: `spread(5 s, 0.1)` lies between 4.5 s and 5.5 s.
pub(crate) fn spread(mean: Duration, share: f64) -> Duration {
    mean.mul_f64(1.0 + share * (2.0 * fastrand::f64() - 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_maximum_and_start_over_after_a_success() {
        let (first, max) = (Duration::from_millis(100), Duration::from_secs(2));
        let mut backoff = Backoff::new(first, max);
        let mut ceiling = first;
        for _ in 0..20 {
            assert!(backoff.next() <= ceiling, "a wait never passes its ceiling");
            ceiling = (ceiling * 2).min(max);
        }
        backoff.reset();
        assert!(backoff.next() <= first, "after a success the first wait is short again");
    }

    #[test]
    fn a_spread_stays_within_its_share() {
        for _ in 0..1000 {
            let wait = spread(Duration::from_secs(10), 0.1);
            assert!(wait >= Duration::from_secs(9) && wait <= Duration::from_secs(11), "{wait:?}");
        }
    }
}
