//! Attempts of a registration that fail, and keys that are removed: when the next attempt is made, and what prevents it,
//! for the handles and the log.

use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::{Backoff, spread};
use crate::error::{EtcdError, EtcdErrorKind, chain};
use crate::etcd::{DENIED_PAUSE, REFUSED_PAUSE, SPLIT_PAUSE};
use crate::log_limit::LogLimit;
use crate::targets::REGISTRATION;
use crate::trouble::Trouble;

/// The failures in a row of a registration.
pub(super) struct Setbacks {
    backoff: Backoff,
    /// The backoff from members that cannot take a grant or a claim, each for a reason of its own.
    busy_backoff: Backoff,
    trouble: Trouble,
    since: Option<Instant>,
    /// When the key was last put back, or is to be.
    restored: Option<Instant>,
    log: LogLimit,
}

impl Setbacks {
    /// `first` is the longest first wait; `trouble` is told how the last attempt failed.
    pub(super) fn new(first: Duration, trouble: Trouble) -> Self {
        let up_to = |max: Duration| Backoff::new(first, first.max(max));
        Self {
            backoff: up_to(RETRY_MAX),
            busy_backoff: up_to(REFUSED_PAUSE),
            trouble,
            since: None,
            restored: None,
            log: LogLimit::default(),
        }
    }

    /// When to try again after a failure: to register, or, where it is held, to change what is there.
    pub(super) fn retry_at(&mut self, error: &EtcdError, is_held: bool) -> Instant {
        let wait = match error.kind {
            EtcdErrorKind::Denied => DENIED_PAUSE,
            // All members were asked. Full jitter: what makes them busy may be all that come back.
            EtcdErrorKind::Incapable => self.busy_backoff.next(),
            EtcdErrorKind::Refused => spread(REFUSED_PAUSE, 0.1),
            EtcdErrorKind::Split => spread(SPLIT_PAUSE, 0.1),
            _ => self.pause(),
        };
        let now = Instant::now();
        self.on_failure(error, wait, is_held, now);
        now + wait
    }

    /// How long to wait after what is no failure of etcd's.
    pub(super) fn pause(&mut self) -> Duration {
        self.backoff.next()
    }

    fn on_failure(&mut self, error: &EtcdError, wait: Duration, is_held: bool, now: Instant) {
        let reason = chain(error);
        if error.is_final() {
            tracing::warn!(
                target: REGISTRATION,
                error = reason,
                ?wait,
                "etcd refuses the registration; it is tried again"
            );
        } else {
            tracing::debug!(target: REGISTRATION, error = reason, ?wait, "registration is tried again");
        }
        if is_held {
            return;
        }
        // What it was withheld for was told before.
        if error.kind != EtcdErrorKind::Withheld {
            self.trouble.set(reason);
        }
        let lasts = now - *self.since.get_or_insert(now);
        if !error.is_final()
            && lasts >= LOG_AFTER
            && let Some(reason) = self.trouble.get()
            && self.log.admit(now)
        {
            tracing::warn!(
                target: REGISTRATION,
                reason,
                ?lasts,
                "the instance is not registered yet; it is tried again and again"
            );
        }
    }

    /// When a key that was touched or withdrawn may be put back.
    pub(super) fn restore_at(&mut self, now: Instant) -> Instant {
        let at = match self.restored {
            // The planned time is still ahead.
            Some(planned) if planned > now => planned,
            Some(restored) => now.max(restored + RESTORE_INTERVAL),
            None => now,
        };
        self.restored = Some(at);
        at
    }

    /// It begins to be tried.
    pub(super) fn on_start(&mut self, now: Instant) {
        self.since = Some(now);
    }

    /// It is registered.
    pub(super) fn on_registered(&mut self) {
        self.backoff.reset();
        self.busy_backoff.reset();
        self.on_settled();
    }

    /// It is registered, or another server has its place.
    pub(super) fn on_settled(&mut self) {
        self.trouble.clear();
        (self.since, self.log) = (None, LogLimit::default());
    }
}

/// The longest wait after a failed grant or claim, unless the first one is longer: a server is back within 3 s of etcd.
const RETRY_MAX: Duration = Duration::from_secs(2);

/// How long a registration may fail before the log says so: most etcds that restart are back by then.
const LOG_AFTER: Duration = Duration::from_secs(5);

/// The least time between two returns of a key that is removed again and again, or whose health flutters.
const RESTORE_INTERVAL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_log::Log;

    const SECOND: Duration = Duration::from_secs(1);

    fn error(kind: EtcdErrorKind) -> EtcdError {
        EtcdError { kind, member: "http://a:1".into(), operation: "grant", key: "7".into(), source: Some("no".into()) }
    }

    #[test]
    fn a_key_that_is_removed_again_and_again_is_put_back_once_a_second() {
        let (mut setbacks, start) = (Setbacks::new(SECOND, Trouble::default()), Instant::now());
        let mut restored = |millis| (setbacks.restore_at(start + Duration::from_millis(millis)) - start).as_millis();
        assert_eq!([0, 300, 400, 1_100, 5_000].map(&mut restored), [0, 1_000, 1_000, 2_000, 5_000]);
    }

    #[test]
    fn failures_are_logged_after_five_seconds_and_once_a_minute_until_it_is_registered() {
        let (trouble, start) = (Trouble::default(), Instant::now());
        let (log, _guard) = Log::capture();
        let mut setbacks = Setbacks::new(SECOND, trouble.clone());
        let fail = |setbacks: &mut Setbacks, seconds: u32| {
            setbacks.on_failure(&error(EtcdErrorKind::Unreachable), SECOND, false, start + seconds * SECOND);
            log.count("is not registered yet")
        };
        assert_eq!([0, 1, 4, 5, 6, 64, 65].map(|at| fail(&mut setbacks, at)), [0, 0, 0, 1, 1, 1, 2]);
        let told = trouble.get().expect("it failed");
        assert!(told.contains("http://a:1") && told.ends_with("no"), "{told}");
        setbacks.on_failure(&error(EtcdErrorKind::Withheld), SECOND, false, start + 66 * SECOND);
        assert_eq!(trouble.get().as_deref(), Some(&*told), "nothing was tried");
        setbacks.on_failure(&error(EtcdErrorKind::Denied), SECOND, true, start + 67 * SECOND);
        assert_eq!(trouble.get().as_deref(), Some(&*told), "it is registered");
        assert_eq!(log.count("etcd refuses the registration"), 1);
        setbacks.on_settled();
        assert_eq!(trouble.get(), None);
        assert_eq!([70, 74, 75].map(|at| fail(&mut setbacks, at)), [2, 2, 3], "it begins anew");
    }
}
