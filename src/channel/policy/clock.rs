//! Time as loads keep it: milliseconds in 32 bits, and what is left of a quantity after some of them.

use std::sync::LazyLock;
use std::time::Duration;

use tokio::time::Instant;

/// Milliseconds since the first use in this process. They start again after 49 days, so only differences mean
/// something.
pub(super) fn millis(at: Instant) -> u32 {
    static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);
    let low = |duration: Duration| u32::try_from(duration.as_millis() % (1 << 32)).unwrap_or_default();
    match at.checked_duration_since(*EPOCH) {
        Some(since) => low(since),
        None => 0_u32.wrapping_sub(low(EPOCH.duration_since(at))),
    }
}

/// The milliseconds from `then` to `now`; 0 where `then` is later by up to [`SLACK`].
pub(super) fn since(then: u32, now: Instant) -> u32 {
    between(then, millis(now), u32::MAX)
}

/// The milliseconds from `then` to `now` where both count up to `last` and start again, a power of two less one; 0
/// where `then` is later by up to [`SLACK`].
pub(super) fn between(then: u32, now: u32, last: u32) -> u32 {
    let passed = now.wrapping_sub(then) & last;
    if last - passed < SLACK { 0 } else { passed }
}

/// By how many milliseconds a stamp may lie in the future: a minute. A pick looks at the clock once and then at the
/// stamps, and meanwhile another thread, which looked later, may set them.
pub(super) const SLACK: u32 = 1 << 16;

/// The rest of a quantity of which half decays in `half_life`, after `passed`.
#[inline]
pub(super) fn decayed(quantity: u32, passed: u32, half_life: u32) -> u32 {
    let (halvings, rest) = (passed / half_life, passed % half_life);
    let halved = u64::from(quantity.checked_shr(halvings).unwrap_or(0));
    // Between two halvings a straight line is near enough.
    let twice = 2 * u64::from(half_life);
    u32::try_from(halved * (twice - u64::from(rest)) / twice).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn times_before_the_first_look_are_counted_backwards() {
        let now = Instant::now();
        let _ = millis(now);
        let earlier = now.checked_sub(Duration::from_secs(3)).expect("the machine runs for longer than that");
        let passed = since(millis(earlier), now);
        assert!((2_999..=3_000).contains(&passed), "differences hold on both sides: {passed} ms of 3,000");
    }

    #[tokio::test(start_paused = true)]
    async fn no_time_has_passed_since_a_moment_that_is_to_come() {
        let now = Instant::now();
        assert_eq!(since(millis(now + Duration::from_secs(60)), now), 0, "another thread looked later");
        let long_ago = millis(now).wrapping_sub(u32::MAX / 4 * 3);
        assert_eq!(since(long_ago, now), u32::MAX / 4 * 3, "weeks are told apart from that");
    }

    #[test]
    fn half_of_a_quantity_is_left_after_each_half_life() {
        assert_eq!([0, 50, 100, 200, 4_000].map(|passed| decayed(1_000, passed, 100)), [1_000, 750, 500, 250, 0]);
    }
}
