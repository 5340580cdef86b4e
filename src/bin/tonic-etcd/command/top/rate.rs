//! Changes to how many there were within the last minute: a bucket a second, whatever comes.

/// The changes of the last minute. Time is in whole seconds since some begin.
#[derive(Debug, Clone)]
pub(super) struct Rate {
    buckets: [u32; MINUTE],
    /// The second of the newest bucket.
    newest: u64,
}

impl Rate {
    pub(super) fn new() -> Self {
        Self { buckets: [0; MINUTE], newest: 0 }
    }

    pub(super) fn add(&mut self, changes: usize, second: u64) {
        self.advance(second);
        let bucket = &mut self.buckets[index(self.newest)];
        *bucket = bucket.saturating_add(u32::try_from(changes).unwrap_or(u32::MAX));
    }

    /// How many changes there were in the minute that ends with this second.
    pub(super) fn per_minute(&self, second: u64) -> u64 {
        self.live(second).map(|(_, count)| u64::from(count)).sum()
    }

    /// The second in which the oldest changes leave the minute; `None` where there are none.
    pub(super) fn next_change(&self, second: u64) -> Option<u64> {
        self.live(second).filter(|(_, count)| *count > 0).map(|(at, _)| at + MINUTE as u64).min()
    }

    /// The seconds of the last minute with their changes.
    fn live(&self, second: u64) -> impl Iterator<Item = (u64, u32)> {
        let first = (second.max(self.newest) + 1).saturating_sub(MINUTE as u64);
        (first..=self.newest).map(|at| (at, self.buckets[index(at)]))
    }

    fn advance(&mut self, second: u64) {
        let steps = second.saturating_sub(self.newest).min(MINUTE as u64);
        for step in 1..=steps {
            self.buckets[index(second - steps + step)] = 0;
        }
        self.newest = self.newest.max(second);
    }
}

fn index(second: u64) -> usize {
    usize::try_from(second % MINUTE as u64).unwrap_or(0)
}

const MINUTE: usize = 60;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_count_for_a_minute() {
        let mut rate = Rate::new();
        assert_eq!((rate.per_minute(0), rate.next_change(0)), (0, None));
        rate.add(2, 5);
        rate.add(1, 5);
        rate.add(4, 30);
        assert_eq!((rate.per_minute(30), rate.next_change(30)), (7, Some(65)));
        assert_eq!((rate.per_minute(64), rate.per_minute(65)), (7, 4), "the first three are over");
        assert_eq!(rate.next_change(65), Some(90));
        assert_eq!((rate.per_minute(90), rate.next_change(90)), (0, None));
        rate.add(1, 1_000);
        assert_eq!(rate.per_minute(1_000), 1, "and nothing comes back");
    }
}
