//! Waiting for an instant that may not exist: a deadline in, a wake-up or nothing out.

use std::future;

use tokio::time::{self, Instant};

/// Sleeps until `deadline`; without one it stays pending for ever.
///
/// # Cancel safety
///
/// Cancel safe: it has no state.
pub(crate) async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => time::sleep_until(deadline).await,
        None => future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_sleep_ends_at_its_deadline_and_without_one_never() {
        let start = Instant::now();
        sleep_until(Some(start + Duration::from_secs(3))).await;
        assert_eq!(start.elapsed(), Duration::from_secs(3), "at its deadline");
        sleep_until(Some(start)).await;
        assert_eq!(start.elapsed(), Duration::from_secs(3), "a deadline that has passed takes no time");
        assert!(timeout(Duration::from_secs(86_400), sleep_until(None)).await.is_err(), "no deadline, no end");
    }
}
