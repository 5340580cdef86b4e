//! What the silence of a watch stream means. Pure: what was heard goes in, what is to be asked comes out.
//!
//! ```text
//!          silent for a while                     unanswered
//! Calm ------------------------> a sign of life ---------------> how far is the store?
//!  ^ ^                                ^                           |    |      |
//!  | +-- anything heard               +---- it moved on ----------+    |      |
//!  +-- nothing was written, so silence is right -----------------------+      |
//!  +-- it had moved on before the sign was asked for: no signs come from here-+
//! ```
//!
//! A sign of life costs etcd nothing, and a read of the store little. But etcd from 3.4.38, 3.5.22 and 3.6.2 on gives
//! no sign before something was written behind the revision that a watch began at, and `etcd grpc-proxy` never does and
//! logs each question as an error: a stream that left one unanswered is asked for the store first.

use std::time::Duration;

use tokio::time::Instant;

/// A stream's silence.
#[derive(Debug)]
pub(super) struct Silence {
    state: State,
    /// How long the stream may be silent.
    patience: Duration,
    signs: Signs,
    /// How many reads of the store in a row were not answered.
    late: u32,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Calm {
        since: Instant,
    },
    /// A sign of life was asked for.
    Sign {
        at: Instant,
        /// Whether the store had moved on before that, so that silence is no answer.
        is_owed: bool,
    },
    /// The member is asked how far the store is.
    Store {
        /// The unanswered question before, and whether its answer was owed.
        after: Option<bool>,
    },
}

/// Whether the member gives signs of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signs {
    Unknown,
    Given,
    /// One was asked for in vain.
    Missed,
    /// None will ever come.
    Never,
}

/// What is to be done about silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// Ask the stream for a sign of life.
    Sign,
    /// Ask the member how far the store is.
    Store,
    /// Nothing: only reads show from now on what watches miss.
    Mute,
    /// Give the stream up.
    Leave,
}

impl Silence {
    pub(super) fn new(now: Instant, is_mute: bool) -> Self {
        let signs = if is_mute { Signs::Never } else { Signs::Unknown };
        Self { state: State::Calm { since: now }, patience: IDLE, signs, late: 0 }
    }

    /// When something is to be done; `None` while the member is being asked.
    pub(super) fn due(&self) -> Option<Instant> {
        match self.state {
            State::Calm { since } => Some(since + self.patience),
            State::Sign { at, .. } => Some(at + SIGN_LIMIT),
            State::Store { .. } => None,
        }
    }

    /// That time came.
    pub(super) fn on_due(&mut self, now: Instant) -> Ask {
        match self.state {
            State::Calm { .. } if matches!(self.signs, Signs::Unknown | Signs::Given) => self.ask_sign(now, false),
            State::Calm { .. } | State::Store { .. } => self.ask_store(None),
            State::Sign { is_owed, .. } => {
                if self.signs == Signs::Unknown {
                    self.signs = Signs::Missed;
                }
                self.ask_store(Some(is_owed))
            }
        }
    }

    /// The stream brought something.
    pub(super) fn on_heard(&mut self, now: Instant, is_sign: bool) {
        if is_sign {
            self.signs = Signs::Given;
        }
        (self.state, self.patience, self.late) = (State::Calm { since: now }, IDLE, 0);
    }

    /// The member said whether the store moved on since the stream brought something.
    pub(super) fn on_store(&mut self, now: Instant, has_moved: bool) -> Option<Ask> {
        let State::Store { after } = self.state else { return None };
        self.late = 0;
        match (has_moved, after) {
            (true, Some(true)) => {
                self.signs = Signs::Never;
                (self.state, self.patience) = (State::Calm { since: now }, QUIET);
                Some(Ask::Mute)
            }
            (true, _) if self.signs != Signs::Never => Some(self.ask_sign(now, true)),
            _ => {
                (self.state, self.patience) = (State::Calm { since: now }, QUIET);
                None
            }
        }
    }

    /// The member did not say; `is_late` where it may be slow.
    pub(super) fn on_no_store(&mut self, now: Instant, is_late: bool) -> Option<Ask> {
        let State::Store { after } = self.state else { return None };
        if !is_late {
            // The stream will tell, if its connection broke.
            (self.state, self.patience) = (State::Calm { since: now }, QUIET);
            return None;
        }
        self.late += 1;
        Some(if self.late < LATE { self.ask_store(after) } else { Ask::Leave })
    }

    fn ask_sign(&mut self, now: Instant, is_owed: bool) -> Ask {
        self.state = State::Sign { at: now, is_owed };
        Ask::Sign
    }

    fn ask_store(&mut self, after: Option<bool>) -> Ask {
        self.state = State::Store { after };
        Ask::Store
    }
}

/// How long a stream may be silent before it is asked for a sign of life.
const IDLE: Duration = Duration::from_secs(15);

/// The same once it turned out that nothing was written, or that its member gives no signs of life.
const QUIET: Duration = Duration::from_secs(180);

/// How long a sign of life may take: an etcd that is slow is no reason to leave it.
const SIGN_LIMIT: Duration = Duration::from_secs(20);

/// How many reads of the store in a row may be late.
const LATE: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Lets the time come at which something is to be done.
    fn wait(silence: &mut Silence, now: &mut Instant) -> (Duration, Ask) {
        let due = silence.due().expect("the member is not being asked");
        let waited = due - *now;
        *now = due;
        (waited, silence.on_due(due))
    }

    #[test]
    fn a_stream_that_gives_signs_is_asked_for_nothing_else() {
        let mut now = Instant::now();
        let mut silence = Silence::new(now, false);
        for _ in 0..10 {
            assert_eq!(wait(&mut silence, &mut now), (IDLE, Ask::Sign));
            now += SECOND;
            silence.on_heard(now, true);
        }
    }

    #[test]
    fn on_a_quiet_store_one_question_and_a_read_in_three_minutes_are_all() {
        let mut now = Instant::now();
        let mut silence = Silence::new(now, false);
        assert_eq!(wait(&mut silence, &mut now), (IDLE, Ask::Sign));
        assert_eq!(wait(&mut silence, &mut now), (SIGN_LIMIT, Ask::Store));
        assert_eq!(silence.due(), None, "the read ends by itself");
        assert_eq!(silence.on_store(now, false), None, "silence is right");
        for _ in 0..10 {
            assert_eq!(wait(&mut silence, &mut now), (QUIET, Ask::Store), "no further question that goes unanswered");
            assert_eq!(silence.on_store(now, false), None);
        }
    }

    #[test]
    fn a_member_that_owes_a_sign_and_gives_none_is_mute() {
        let mut now = Instant::now();
        let mut silence = Silence::new(now, false);
        wait(&mut silence, &mut now);
        wait(&mut silence, &mut now);
        assert_eq!(silence.on_store(now, true), Some(Ask::Sign), "the write may have come behind the question");
        assert_eq!(wait(&mut silence, &mut now), (SIGN_LIMIT, Ask::Store));
        assert_eq!(silence.on_store(now, true), Some(Ask::Mute));
        assert_eq!(wait(&mut silence, &mut now), (QUIET, Ask::Store), "whether it is there at all");
        assert_eq!(silence.on_store(now, true), None, "no question any more");
        let mut other = Silence::new(now, true);
        assert_eq!(wait(&mut other, &mut now), (IDLE, Ask::Store), "nor on its next stream");
    }

    #[test]
    fn a_member_that_is_late_twice_is_left_and_one_that_is_slow_is_not() {
        let mut now = Instant::now();
        let mut silence = Silence::new(now, false);
        wait(&mut silence, &mut now);
        wait(&mut silence, &mut now);
        assert_eq!(silence.on_no_store(now, true), Some(Ask::Store), "once more");
        silence.on_heard(now, false);
        assert_eq!(silence.on_no_store(now, true), None, "something came meanwhile");
        // Signs were asked for in vain, so the store comes first.
        assert_eq!(wait(&mut silence, &mut now), (IDLE, Ask::Store));
        assert_eq!(silence.on_no_store(now, true), Some(Ask::Store));
        assert_eq!(silence.on_no_store(now, true), Some(Ask::Leave));
    }

    #[test]
    fn a_read_that_fails_says_nothing_about_the_stream() {
        let mut now = Instant::now();
        let mut silence = Silence::new(now, true);
        for _ in 0..5 {
            assert_eq!(wait(&mut silence, &mut now).1, Ask::Store);
            assert_eq!(silence.on_no_store(now, false), None);
        }
    }
}
