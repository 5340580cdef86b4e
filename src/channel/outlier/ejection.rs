//! Whether an instance takes calls, as far as its failures decide: out, on probation, back.
//!
//! ```text
//! In --failures in a row, or a rate--> Out --time--> Probation --a response, or time--> Returned
//!                                       ^                |
//!                                       +---a failure----+
//! ```
//!
//! Each state but `In` and `Returned` has a way out that needs no call.

use tokio::time::Instant;

use super::{OutlierDetection, Terms};

/// Whether an instance may be picked, as far as its failures decide.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Ejection {
    /// It takes calls, and nothing is held against it.
    #[default]
    In,
    /// It takes no calls until then; it was ejected this often lately.
    Out { until: Instant, times: u32 },
    /// Its time is over: one call at a time is sent to it, until the first response begins, or until this moment.
    Probation { until: Instant, times: u32, is_prolonged: bool },
    /// It takes calls since then, and each interval that it stays takes one of these times off the next ejection.
    Returned { since: Instant, times: u32 },
}

impl Ejection {
    /// Takes the instance out, for longer the more often it was lately, and returns until when; `None` if it is out
    /// already.
    ///
    /// Ask [`may_eject`] first.
    pub(crate) fn eject(&mut self, now: Instant, detection: &OutlierDetection) -> Option<Instant> {
        let before = match *self {
            Self::Out { .. } => return None,
            Self::In => 0,
            Self::Probation { times, .. } => times,
            Self::Returned { since, times } => {
                // As if a timer took one off at the end of each interval.
                let stayed = now.saturating_duration_since(since).as_nanos() / detection.interval.as_nanos().max(1);
                times.saturating_sub(u32::try_from(stayed).unwrap_or(u32::MAX))
            }
        };
        let times = before.saturating_add(1);
        let until = now + detection.time_out(times);
        *self = Self::Out { until, times };
        Some(until)
    }

    /// Puts the instance on probation if its time is over, and returns until when. Connections that are made now need a
    /// tally [on probation](super::Tally::on_probation).
    pub(crate) fn begin_probation(&mut self, now: Instant, detection: &OutlierDetection) -> Option<Instant> {
        match *self {
            Self::Out { until, times } if until <= now => {
                let until = now + detection.ejection_time;
                *self = Self::Probation { until, times, is_prolonged: false };
                Some(until)
            }
            _ => None,
        }
    }

    /// Whether the time of a probation is over.
    pub(crate) fn is_probation_over(&self, now: Instant) -> bool {
        matches!(*self, Self::Probation { until, .. } if until <= now)
    }

    /// Goes on with a probation whose time is over, and returns until when: the first call is still on its way. Once:
    /// that call may be a stream, whose head comes with its first message.
    pub(crate) fn prolong_probation(&mut self, now: Instant, detection: &OutlierDetection) -> Option<Instant> {
        match *self {
            Self::Probation { times, is_prolonged: false, .. } => {
                let until = now + detection.ejection_time;
                *self = Self::Probation { until, times, is_prolonged: true };
                Some(until)
            }
            _ => None,
        }
    }

    /// Takes the instance back from probation, and returns whether it was on one.
    pub(crate) fn take_back(&mut self, now: Instant) -> bool {
        let Self::Probation { times, .. } = *self else { return false };
        *self = Self::Returned { since: now, times };
        true
    }

    /// Forgets everything: the process that runs there now is not the one that failed.
    /// [`Tally::reset`](super::Tally::reset) has to follow.
    pub(crate) fn clear(&mut self) {
        *self = Self::In;
    }

    /// Whether the instance must not be picked.
    pub(crate) fn is_out(&self) -> bool {
        matches!(self, Self::Out { .. })
    }

    /// Whether the instance is picked only for a probe.
    pub(crate) fn is_on_probation(&self) -> bool {
        matches!(self, Self::Probation { .. })
    }
}

/// Whether one more of that many instances may be ejected. Those on probation are not out: they are READY, and take all
/// calls where nothing else is.
pub(crate) fn may_eject(already_out: usize, of: usize, detection: &OutlierDetection) -> bool {
    let (share, percent) = (of * usize::from(detection.max_ejected_percent), 100);
    match detection.terms {
        Terms::Own => (already_out + 1) * percent <= share,
        Terms::Grpc => already_out * percent < share,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// When the time of an ejected instance is over.
    fn due(ejection: &Ejection) -> Option<Instant> {
        match *ejection {
            Ejection::Out { until, .. } => Some(until),
            _ => None,
        }
    }

    /// Ejects, waits, probes and proves; returns how long it was out.
    fn out_and_back(ejection: &mut Ejection, now: &mut Instant, detection: &OutlierDetection) -> Duration {
        ejection.eject(*now, detection);
        let until = due(ejection).expect("it is out");
        let lasted = until - *now;
        *now = until;
        assert!(ejection.begin_probation(*now, detection).is_some(), "its time is over");
        assert!(ejection.take_back(*now), "a response");
        lasted
    }

    #[test]
    fn an_ejected_instance_is_out_for_five_seconds_then_on_probation_then_in() {
        let (now, detection) = (Instant::now(), OutlierDetection::new());
        let mut ejection = Ejection::default();
        assert_eq!(ejection, Ejection::In, "nothing is held against a new instance");
        assert!(!ejection.is_out() && !ejection.is_on_probation() && due(&ejection).is_none(), "it takes calls");

        ejection.eject(now, &detection);
        let until = now + 5 * SECOND;
        assert_eq!(ejection, Ejection::Out { until, times: 1 }, "the first ejection lasts 5 s");
        assert!(ejection.is_out() && !ejection.is_on_probation(), "it takes no calls");
        assert_eq!(due(&ejection), Some(until), "it is due when its time is over");

        assert_eq!(ejection.begin_probation(until - Duration::from_nanos(1), &detection), None, "its time is not over");
        assert!(ejection.is_out(), "so it stays out");
        let probation = ejection.begin_probation(until, &detection);
        assert_eq!(probation, Some(until + 5 * SECOND), "its time is over");
        assert!(ejection.is_on_probation() && !ejection.is_out() && due(&ejection).is_none(), "it takes a probe");

        assert!(!ejection.is_probation_over(until + 4 * SECOND) && ejection.is_probation_over(until + 5 * SECOND));
        let later = until + 5 * SECOND;
        assert_eq!(ejection.prolong_probation(later, &detection), Some(later + 5 * SECOND), "its probe is on its way");
        assert!(!ejection.is_probation_over(later), "once more");
        assert_eq!(ejection.prolong_probation(later + 5 * SECOND, &detection), None, "and not again");

        assert!(ejection.take_back(until), "it was on probation");
        assert_eq!(ejection, Ejection::Returned { since: until, times: 1 }, "it is back, and not yet forgotten");
        assert!(!ejection.is_out() && !ejection.is_on_probation() && due(&ejection).is_none(), "it takes calls");
    }

    #[test]
    fn each_step_moves_only_the_state_that_it_is_for() {
        let (now, detection) = (Instant::now(), OutlierDetection::new());
        let states = [
            Ejection::In,
            Ejection::Out { until: now + SECOND, times: 2 },
            Ejection::Probation { until: now + SECOND, times: 2, is_prolonged: false },
            Ejection::Returned { since: now, times: 2 },
        ];
        for state in states {
            let mut ejection = state;
            assert_eq!(ejection.begin_probation(now, &detection), None, "no ejection time is over");
            assert!(!ejection.is_probation_over(now), "nor that of a probation");
            assert_eq!(ejection, state, "so nothing moves");

            assert_eq!(ejection.take_back(now), state.is_on_probation());
            let proved = if state.is_on_probation() { Ejection::Returned { since: now, times: 2 } } else { state };
            assert_eq!(ejection, proved, "only from probation is it taken back");

            ejection = state;
            ejection.eject(now, &detection);
            let (until, times) = match state {
                Ejection::Out { until, times } => (until, times),
                Ejection::In => (now + 5 * SECOND, 1),
                Ejection::Probation { .. } | Ejection::Returned { .. } => (now + 20 * SECOND, 3),
            };
            assert_eq!(
                ejection,
                Ejection::Out { until, times },
                "out, and no longer than before if it was out already"
            );

            ejection = state;
            ejection.clear();
            assert_eq!(ejection, Ejection::In, "all is forgotten");
        }
    }

    #[test]
    fn a_failed_probe_doubles_the_time_up_to_the_maximum() {
        let (mut now, detection) = (Instant::now(), OutlierDetection::new());
        let mut ejection = Ejection::default();
        let mut lasted = Vec::new();
        for _ in 0..6 {
            ejection.eject(now, &detection);
            let until = due(&ejection).expect("it is out");
            lasted.push((until - now).as_secs());
            now = until;
            assert!(ejection.begin_probation(now, &detection).is_some(), "its time is over");
        }
        assert_eq!(lasted, [5, 10, 20, 25, 25, 25], "each failed probe doubles it, up to 25 s");
    }

    #[test]
    fn each_interval_that_it_stays_in_takes_back_one_doubling() {
        let (mut now, detection) = (Instant::now(), OutlierDetection::new());
        let mut ejection = Ejection::default();
        assert_eq!(out_and_back(&mut ejection, &mut now, &detection), 5 * SECOND, "the first");
        assert_eq!(out_and_back(&mut ejection, &mut now, &detection), 10 * SECOND, "at once again: the second");
        now += Duration::from_millis(9_999);
        assert_eq!(
            out_and_back(&mut ejection, &mut now, &detection),
            20 * SECOND,
            "it stayed for less than an interval"
        );
        now += 10 * SECOND;
        assert_eq!(
            out_and_back(&mut ejection, &mut now, &detection),
            20 * SECOND,
            "one interval takes back one of three"
        );
        now += 29 * SECOND;
        assert_eq!(
            out_and_back(&mut ejection, &mut now, &detection),
            10 * SECOND,
            "two intervals take back two of three"
        );
        now += Duration::from_secs(1_000_000);
        assert_eq!(out_and_back(&mut ejection, &mut now, &detection), 5 * SECOND, "after a long time all is forgotten");
    }

    #[test]
    fn time_that_seems_to_run_backwards_takes_nothing_back_and_does_not_panic() {
        let (now, detection) = (Instant::now(), OutlierDetection::new());
        let mut ejection = Ejection::Returned { since: now + SECOND, times: 1 };
        ejection.eject(now, &detection);
        assert_eq!(due(&ejection), Some(now + 10 * SECOND), "it counts as ejected twice");
    }

    #[test]
    fn at_most_half_of_the_instances_are_out() {
        let detection = OutlierDetection::new();
        for (of, most) in [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (10, 5), (101, 50), (10_000, 5_000)] {
            let mut out = 0;
            while may_eject(out, of, &detection) {
                out += 1;
            }
            assert_eq!(out, most, "of {of}");
        }
        assert!(!may_eject(7, 3, &detection), "the set shrank while more than half were out");
    }

    #[test]
    fn in_grpcs_terms_shares_are_rounded_up_and_times_are_multiples() {
        let most = |of, percent| {
            let detection = OutlierDetection::grpc().max_ejected_percent(percent);
            (0..=of).find(|out| !may_eject(*out, of, &detection)).unwrap_or(of + 1)
        };
        for (of, percent, expected) in [(1, 10, 1), (5, 10, 1), (10, 10, 1), (11, 10, 2), (10, 0, 0), (3, 100, 3)] {
            assert_eq!(most(of, percent), expected, "{percent} % of {of}");
        }
        let (mut now, detection) = (Instant::now(), OutlierDetection::grpc());
        let mut ejection = Ejection::default();
        let lasted: Vec<u64> = (0..12).map(|_| out_and_back(&mut ejection, &mut now, &detection).as_secs()).collect();
        assert_eq!(lasted, [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300]);
    }

    #[test]
    fn other_shares_are_rounded_down_as_well() {
        let most = |of, percent| {
            let detection = OutlierDetection::new().max_ejected_percent(percent);
            (0..=of).find(|out| !may_eject(*out, of, &detection)).unwrap_or(of + 1)
        };
        assert_eq!(most(10, 0), 0, "none of ten");
        assert_eq!(most(9, 10), 0, "less than one of nine");
        assert_eq!(most(10, 10), 1, "one of ten");
        assert_eq!(most(19, 10), 1, "one of nineteen");
        assert_eq!(most(1, 100), 1, "the only one, if that is wanted");
        assert_eq!(most(10, 100), 10, "all of ten, if that is wanted");
    }
}
