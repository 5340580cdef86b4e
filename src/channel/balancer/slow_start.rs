//! How the share of a new instance grows: a straight line from a tenth of its weight to all of it.

use std::time::Duration;

use tokio::time::Instant;

use crate::error::ConfigError;

/// The window in which new instances come up to their weights.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SlowStart {
    window: Duration,
}

impl SlowStart {
    pub(crate) fn new(window: Duration) -> Self {
        Self { window }
    }

    pub(super) fn check(self) -> Result<(), ConfigError> {
        if self.window.is_zero() || self.window > Duration::from_secs(86_400) {
            let value = format!("{:?}", self.window);
            let expected = "more than zero and at most a day; None switches it off";
            return Err(ConfigError::Option { option: "slow_start", value, expected });
        }
        Ok(())
    }

    /// The share at `now` of an instance that is READY `since` then, in percent of its weight: all of it before that.
    pub(super) fn percent(self, since: Option<Instant>, now: Instant) -> u32 {
        let Some(since) = since else { return 100 };
        let age = now.saturating_duration_since(since);
        let grown = age.as_nanos() * u128::from(100 - FIRST) / self.window.as_nanos().max(1);
        u32::try_from(grown).map_or(100, |grown| grown.saturating_add(FIRST).min(100))
    }

    /// When shares are worth setting anew: after one percent.
    pub(super) fn step(self) -> Duration {
        (self.window / (100 - FIRST)).max(SHORTEST_STEP)
    }
}

/// The first share of a new instance, in percent of its weight: enough to warm up, and little enough to bear it cold.
const FIRST: u32 = 10;

/// The shortest time after which shares are set anew: each time costs a picker.
const SHORTEST_STEP: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_grows_on_a_straight_line_from_a_tenth_to_all() {
        let (slow_start, since) = (SlowStart::new(Duration::from_secs(90)), Instant::now());
        for (second, percent) in [(0, 10), (1, 11), (45, 55), (89, 99), (90, 100), (10_000, 100)] {
            assert_eq!(
                slow_start.percent(Some(since), since + Duration::from_secs(second)),
                percent,
                "after {second} s"
            );
        }
        assert_eq!(slow_start.step(), Duration::from_secs(1));
        assert_eq!(SlowStart::new(Duration::from_secs(1)).step(), SHORTEST_STEP);
    }

    #[test]
    fn a_window_of_nothing_or_of_days_is_refused() {
        assert!(SlowStart::new(Duration::ZERO).check().is_err());
        assert!(SlowStart::new(Duration::from_secs(100_000)).check().is_err());
        assert!(SlowStart::new(Duration::from_secs(30)).check().is_ok());
    }
}
