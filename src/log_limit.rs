//! What goes on and on is logged once a minute.

use std::time::Duration;

use tokio::time::Instant;

/// Lets one line pass per minute, the first one at once.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LogLimit {
    last: Option<Instant>,
}

impl LogLimit {
    /// Whether a line may be logged now, which then counts.
    pub(crate) fn admit(&mut self, now: Instant) -> bool {
        let is_admitted = self.last.is_none_or(|last| now >= last + INTERVAL);
        if is_admitted {
            self.last = Some(now);
        }
        is_admitted
    }
}

const INTERVAL: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_passes_per_minute() {
        let (mut limit, start) = (LogLimit::default(), Instant::now());
        let passes = [0, 1, 59, 60, 61, 119, 120].map(|second| limit.admit(start + Duration::from_secs(second)));
        assert_eq!(passes, [true, false, false, true, false, false, true]);
    }
}
