//! Lists and watches of a source that fail: how long the next attempt has to wait, how much time it gets, and what the
//! log says of it.

use std::time::Duration;

use super::limits::{CALL_LIMIT, DENIED_PAUSE, REFUSED_PAUSE, SPLIT_PAUSE};
use crate::backoff::{Backoff, spread, up_to};
use crate::error::{EtcdError, EtcdErrorKind, chain};
use crate::targets::ETCD;
use crate::trouble::Trouble;

/// The attempts of one source.
pub(super) struct Attempts {
    /// How long a call may take: longer after one that was late.
    limit: Duration,
    /// What the last list took, from which follows over how long a time the next ones are spread.
    cost: Duration,
    /// The waits of its own after failures.
    backoff: Backoff,
    /// Whether the last attempt failed at all.
    has_failed: bool,
    /// How often in a row an attempt failed for its token. Once or twice is normal: streams and calls can be on two
    /// connections with a token each.
    token_refusals: u32,
    /// How many members in a row refused for a reason of their own.
    incapable: usize,
    trouble: Trouble,
}

impl Attempts {
    /// `trouble` is told how the last attempt failed.
    pub(super) fn new(trouble: Trouble) -> Self {
        Self {
            limit: CALL_LIMIT,
            cost: Duration::ZERO,
            backoff: Backoff::new(RETRY_FIRST, RETRY_MAX),
            has_failed: false,
            token_refusals: 0,
            incapable: 0,
            trouble,
        }
    }

    /// How long a call may take now.
    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    /// Whether the last attempt failed.
    pub(super) fn has_failed(&self) -> bool {
        self.has_failed
    }

    /// A list took so long.
    pub(super) fn on_listed(&mut self, cost: Duration) {
        self.cost = cost;
    }

    /// Over how long a time lists of many clients are spread: it grows with what one costs.
    pub(super) fn window(&self) -> Duration {
        (self.cost * LISTS_AT_ONCE).clamp(VERIFY_WITHIN, VERIFY_WITHIN_AT_MOST)
    }

    /// How long the next attempt waits for its turn at least.
    pub(super) fn next_wait(&mut self) -> Duration {
        self.backoff.next()
    }

    pub(super) fn on_success(&mut self) {
        self.backoff.reset();
        self.limit = CALL_LIMIT;
        self.has_failed = false;
        self.token_refusals = 0;
        self.incapable = 0;
        self.trouble.clear();
    }

    /// After a call that was late the next one has more time: an etcd that is slow would work in vain.
    pub(super) fn on_late(&mut self, error: &EtcdError) {
        if matches!(error.kind, EtcdErrorKind::Deadline(limit) if limit >= self.limit) {
            self.limit = (self.limit * 2).min(LONGEST_LIMIT);
        }
    }

    /// A check failed, or a move to another member. Returns whether the stream that it was made beside goes on.
    pub(super) fn on_check_failed(&mut self, error: &EtcdError, wait: Duration) -> bool {
        if matches!(error.kind, EtcdErrorKind::Deadline(limit) if limit >= LONGEST_LIMIT) {
            // Slow is not dead, but this is no answer at all.
            return false;
        }
        self.on_late(error);
        if error.is_final() {
            tracing::warn!(
                target: ETCD,
                error = chain(error),
                ?wait,
                "etcd refuses to have a watch verified; the watch goes on"
            );
        } else {
            tracing::debug!(target: ETCD, error = chain(error), ?wait, "watch could not be verified; it goes on");
        }
        true
    }

    /// A list or a watch failed. Returns how long to wait; `None` for a turn among all attempts of the process.
    /// `members` is their number.
    pub(super) fn on_error(&mut self, error: &EtcdError, members: usize) -> Option<Duration> {
        self.has_failed = true;
        if error.kind != EtcdErrorKind::Withheld {
            self.trouble.set(error.outline());
        }
        self.on_late(error);
        let wait = match error.kind {
            EtcdErrorKind::Compacted => Some(self.backoff.next()),
            // It ended the stream of all watches, and each lists.
            EtcdErrorKind::TooLarge => Some(self.backoff.next() + up_to(self.window())),
            EtcdErrorKind::Token if self.token_refusals < TOKEN_ATTEMPTS => {
                self.token_refusals += 1;
                Some(self.backoff.next())
            }
            EtcdErrorKind::Token | EtcdErrorKind::Denied => {
                self.token_refusals = 0;
                Some(DENIED_PAUSE)
            }
            EtcdErrorKind::Refused => Some(spread(REFUSED_PAUSE, 0.1)),
            EtcdErrorKind::Incapable => {
                self.incapable += 1;
                // Once around, each of them said so.
                Some(if self.incapable.is_multiple_of(members) {
                    spread(REFUSED_PAUSE, 0.1)
                } else {
                    self.backoff.next()
                })
            }
            EtcdErrorKind::Split => Some(spread(SPLIT_PAUSE, 0.1)),
            _ => None,
        };
        if error.is_final() || wait == Some(DENIED_PAUSE) {
            tracing::warn!(
                target: ETCD,
                error = chain(error),
                ?wait,
                "etcd refuses to be watched; the last known set stays"
            );
        } else {
            tracing::debug!(target: ETCD, error = chain(error), ?wait, "watch is interrupted; the last known set stays");
        }
        wait
    }
}

/// The longest wait before a list or a watch is tried again at first.
const RETRY_FIRST: Duration = Duration::from_millis(100);

/// The longest wait in the end, so that a client is back within 3 s of etcd.
const RETRY_MAX: Duration = Duration::from_secs(2);

/// How long a call may take in the end, after others were late.
const LONGEST_LIMIT: Duration = Duration::from_secs(30);

/// How many fresh logins in a row may be refused before etcd is left alone.
const TOKEN_ATTEMPTS: u32 = 3;

/// After a reconnect a check verifies the stream within this time: a DELETE that was compacted away while the watch was
/// down is never reported. Spread, so that a thousand clients do not ask at once when etcd comes back.
const VERIFY_WITHIN: Duration = Duration::from_secs(3);

/// The same where lists take long.
const VERIFY_WITHIN_AT_MOST: Duration = Duration::from_secs(60);

/// How many lists an etcd may have to make at once: so many times as long as one takes, they are spread over.
const LISTS_AT_ONCE: u32 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    fn error(kind: EtcdErrorKind) -> EtcdError {
        EtcdError { kind, member: "http://a:1".into(), operation: "list", key: "p/".into(), source: Some("no".into()) }
    }

    #[test]
    fn calls_get_more_time_after_one_that_was_late_until_one_succeeds() {
        let mut attempts = Attempts::new(Trouble::default());
        for _ in 0..10 {
            attempts.on_error(&error(EtcdErrorKind::Deadline(attempts.limit())), 1);
        }
        assert_eq!(attempts.limit(), LONGEST_LIMIT);
        assert!(
            !attempts.on_check_failed(&error(EtcdErrorKind::Deadline(LONGEST_LIMIT)), RETRY_MAX),
            "no answer at all"
        );
        attempts.on_success();
        assert_eq!(attempts.limit(), CALL_LIMIT);
    }

    #[test]
    fn etcd_is_left_alone_once_fresh_logins_are_refused_and_once_each_member_refused() {
        let mut attempts = Attempts::new(Trouble::default());
        let waits: Vec<_> = (0..4).map(|_| attempts.on_error(&error(EtcdErrorKind::Token), 1)).collect();
        assert!(waits[..3].iter().all(|wait| wait.is_some_and(|wait| wait <= RETRY_MAX)), "{waits:?}");
        assert_eq!(waits[3], Some(DENIED_PAUSE));
        let waits: Vec<_> = (0..2).map(|_| attempts.on_error(&error(EtcdErrorKind::Incapable), 2)).collect();
        assert!(waits[0] < waits[1] && waits[1].is_some_and(|wait| wait > RETRY_MAX), "{waits:?}");
        assert_eq!(attempts.on_error(&error(EtcdErrorKind::Unreachable), 1), None, "its turn among all");
    }
}
