//! The bytes that a socket takes, turn by turn: whether it takes all of them, is busy, or stands still.

use std::mem;
use std::time::Duration;

use tokio::time::Instant;

/// The way out of one connection, as the turns of its driver see it.
#[derive(Debug, Default)]
pub(super) struct Uplink {
    /// When a socket that is blocked took something the last time, or was blocked at first.
    moved: Option<Instant>,
    /// The last stream that was written by the turn before.
    written: u32,
    /// Bytes that were taken and are not counted as a call yet.
    rest: usize,
    way: Way,
}

/// Whether the peer's end takes what is written, as far as the last turn shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Way {
    #[default]
    Clear,
    /// The socket takes no more for the moment. A ping would keep h2 from reading until it does.
    Blocked,
    /// A socket that was blocked has taken bytes, for which the peer's end has made room. It may be blocked again.
    Moved { is_blocked: bool },
}

impl Way {
    pub(super) fn is_blocked(self) -> bool {
        matches!(self, Self::Blocked | Self::Moved { is_blocked: true })
    }
}

/// What became of the bytes that the driver had to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    /// The socket has taken all of them.
    Free,
    /// It takes no more for the moment. It has taken so many calls since the last turn, which is what a long upload
    /// looks like, and also a driver whose turn was over before its bytes were.
    Busy { calls: i32 },
    /// It stood still, and has taken so many calls after that.
    Slow { calls: i32 },
    /// It stands still.
    Stalled,
}

impl Uplink {
    /// After a turn, in which the socket took so many bytes, and HEADERS up to the stream `written`.
    pub(super) fn on_turn(&mut self, is_blocked: bool, taken: usize, written: u32) -> Flow {
        self.way = match (self.way.is_blocked() && taken > 0, is_blocked) {
            (true, _) => Way::Moved { is_blocked },
            (false, true) => Way::Blocked,
            (false, false) => Way::Clear,
        };
        let before = mem::replace(&mut self.written, written);
        let bytes = self.rest + taken;
        self.rest = bytes % BYTES_PER_CALL;
        if !is_blocked {
            self.moved = None;
            return Flow::Free;
        }
        // The numbers of a client's streams are odd.
        let heads = written.saturating_sub(before) / 2;
        let calls = i32::try_from(bytes / BYTES_PER_CALL).unwrap_or(i32::MAX).saturating_add_unsigned(heads);
        let now = Instant::now();
        let stands = now.duration_since(*self.moved.get_or_insert(now)) >= STANDSTILL;
        if taken > 0 {
            self.moved = Some(now);
        }
        match (stands, taken > 0) {
            (false, _) => Flow::Busy { calls },
            (true, true) => Flow::Slow { calls },
            (true, false) => Flow::Stalled,
        }
    }

    pub(super) fn way(&self) -> Way {
        self.way
    }
}

/// A request counts as one call, and one more for each of these: an HTTP/2 frame of the usual size.
pub(super) const BYTES_PER_CALL: usize = 16 * 1024;

/// From when on a socket that takes nothing stands still. Over a network that works, the next acknowledgement makes
/// room within a round trip.
const STANDSTILL: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_blocked_socket_stands_still_after_a_while_without_bytes() {
        let mut uplink = Uplink::default();
        assert_eq!(uplink.on_turn(false, 100, 1), Flow::Free);
        assert_eq!(uplink.on_turn(true, 0, 1), Flow::Busy { calls: 0 });
        tokio::time::advance(Duration::from_millis(99)).await;
        assert_eq!(uplink.on_turn(true, 0, 1), Flow::Busy { calls: 0 }, "not yet");
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(uplink.on_turn(true, 0, 1), Flow::Stalled);
        assert_eq!(uplink.on_turn(true, 1, 1), Flow::Slow { calls: 0 });
        assert_eq!(uplink.on_turn(true, 0, 1), Flow::Busy { calls: 0 }, "it has just taken something");
    }

    #[tokio::test(start_paused = true)]
    async fn heads_and_every_16_kib_count_as_calls() {
        let mut uplink = Uplink::default();
        assert_eq!(uplink.on_turn(true, 10_000, 7), Flow::Busy { calls: 3 });
        assert_eq!(uplink.on_turn(true, 10_000, 7), Flow::Busy { calls: 1 }, "with the bytes of the turn before");
        assert_eq!(uplink.on_turn(true, usize::MAX / 2, 9), Flow::Busy { calls: i32::MAX });
    }
}
