//! When each of many registrations that lost their leases asks for a new one: one after the other, the slower the more
//! a grant costs.

use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::up_to;

/// The turns of one process, and what they are paced by.
///
/// Two of them are a few times the cost of the latest grant apart on average, so that etcd has time for other
/// processes: while it is busy, each leaves it more. They stay within a window all the same, since a registration that
/// waits is not found.
#[derive(Debug)]
pub(super) struct Pace {
    /// The latest turn that was given out.
    last: Option<Instant>,
    /// How long the latest grant took.
    cost: Duration,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self { last: None, cost: Duration::ZERO }
    }

    /// When the next registration may ask. The first one has some jitter, as other processes lose their leases at the
    /// same moment; the others follow it.
    pub(super) fn turn(&mut self, now: Instant) -> Instant {
        let Some(last) = self.last.filter(|last| *last > now) else {
            let first = now + up_to((4 * self.cost).clamp(FIRST_MIN, FIRST_MAX));
            self.last = Some(first);
            return first;
        };
        let turn = last + up_to(2 * (4 * self.cost).clamp(INTERVAL_MIN, INTERVAL_MAX));
        if turn > now + WINDOW {
            return now + up_to(WINDOW);
        }
        self.last = Some(turn);
        turn
    }

    /// A grant succeeded.
    pub(super) fn on_granted(&mut self, cost: Duration) {
        self.cost = cost;
    }
}

/// The longest delay of the first turn while grants are cheap: 500 processes that lose a lease each come back spread.
const FIRST_MIN: Duration = Duration::from_millis(250);

/// The longest delay of the first turn: a lost lease is replaced within about a second.
const FIRST_MAX: Duration = Duration::from_secs(1);

/// The mean time between two turns while grants are cheap: 100 registrations take a second.
const INTERVAL_MIN: Duration = Duration::from_millis(10);

/// The mean time between two turns while etcd is busy: 100 registrations take four seconds.
const INTERVAL_MAX: Duration = Duration::from_millis(40);

/// How far ahead turns lie at most: all registrations are to be back within ten seconds, however many there are.
const WINDOW: Duration = Duration::from_secs(4);

#[cfg(test)]
mod tests {
    use super::*;

    /// The turns of so many registrations that lose their leases at once, after a grant of that cost; in their order.
    fn turns(count: usize, cost: Duration) -> Vec<Duration> {
        let (mut pace, now) = (Pace::new(), Instant::now());
        pace.on_granted(cost);
        let mut turns: Vec<_> = (0..count).map(|_| pace.turn(now) - now).collect();
        turns.sort_unstable();
        turns
    }

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_registration_that_is_alone_waits_for_a_quarter_of_a_second_at_most() {
        let (mut pace, now) = (Pace::new(), Instant::now());
        for second in 0..100 {
            let now = now + Duration::from_secs(second);
            let wait = pace.turn(now) - now;
            assert!(wait <= FIRST_MIN, "{wait:?}, although no other turn is ahead");
        }
    }

    #[test]
    fn the_window_grows_with_the_registrations_and_with_the_cost_of_a_grant() {
        let last = |count, cost| *turns(count, cost).last().expect("there are some");
        for _ in 0..20 {
            let (few, many, costly) = (last(10, MS), last(100, MS), last(100, 500 * MS));
            assert!(few < 500 * MS, "ten take {few:?}");
            assert!(many > 600 * MS && many < 1_700 * MS, "a hundred take {many:?}");
            assert!(costly > 3_000 * MS, "a hundred take {costly:?} while a grant takes long");
        }
    }

    #[test]
    fn turns_are_spread_evenly_and_within_the_window() {
        for (count, cost) in [(100, MS), (500, MS), (100, 500 * MS), (5_000, MS)] {
            let turns = turns(count, cost);
            let window = turns[count - 1];
            assert!(window <= WINDOW, "{count} take {window:?}");
            let early = turns.iter().filter(|turn| **turn < window / 4).count();
            assert!(early * 2 < count, "{early} of {count} come in the first quarter of {window:?}");
        }
    }
}
