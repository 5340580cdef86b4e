//! Whether the process was stopped for a while, or its machine slept: its connections may be dead by now.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// Beats at an interval, and notices when one is late.
pub(super) struct Pulse {
    due: Instant,
    /// The clock on the wall at the last beat. It goes on while a machine sleeps, which tokio's does not everywhere.
    wall: SystemTime,
}

impl Pulse {
    pub(super) fn new(now: Instant, wall: SystemTime) -> Self {
        Self { due: now + BEAT, wall }
    }

    /// When the next beat is due.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// Beats, and tells whether that came so late that the process was stopped. A wall clock that is set forward counts
    /// as well.
    pub(super) fn beat(&mut self, now: Instant, wall: SystemTime) -> bool {
        let late = now.saturating_duration_since(self.due);
        let slept = wall.duration_since(self.wall).unwrap_or_default().saturating_sub(BEAT);
        *self = Self::new(now, wall);
        late.max(slept) >= STOPPED
    }
}

/// Rare enough to cost nothing, and more often than anything forgets a connection.
const BEAT: Duration = Duration::from_secs(10);

/// More than a busy machine keeps a task waiting.
const STOPPED: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_beat_tells_by_either_clock_that_the_process_was_stopped() {
        let second = Duration::from_secs(1);
        let (start, wall) = (Instant::now(), SystemTime::now());
        for (seconds, wall_seconds, expected) in
            [(10, 10, false), (12, 12, false), (15, 10, true), (10, 15, true), (10, 0, false)]
        {
            let mut pulse = Pulse::new(start, wall);
            let late = pulse.beat(start + seconds * second, wall + wall_seconds * second);
            assert_eq!(late, expected, "{seconds} s, and {wall_seconds} s on the wall");
            assert_eq!(pulse.due(), start + (seconds + 10) * second);
        }
        let set_back = Pulse::new(start, wall).beat(start + BEAT, wall - second);
        assert!(!set_back, "a wall clock that is set back");
    }
}
