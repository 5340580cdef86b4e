//! Whether an instance takes calls, as far as its failures decide: out, on probation, back.

use tokio::time::Instant;

use super::OutlierDetection;

/// Whether an instance may be picked, as far as its failures decide.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Ejection {
    /// It takes calls, and nothing is held against it.
    #[default]
    In,
    /// It takes no calls until then; it was ejected this often lately.
    Out { until: Instant, times: u32 },
    /// Its time is over: one call at a time is sent to it, and the first to end decides.
    Probation { times: u32 },
    /// It takes calls since then, and each interval that it stays takes one of these times off the next ejection.
    Returned { since: Instant, times: u32 },
}

impl Ejection {
    /// Takes the instance out, for longer the more often it was lately. Nothing happens if it is out.
    ///
    /// Ask [`may_eject`] first.
    pub(crate) fn eject(&mut self, now: Instant, detection: &OutlierDetection) {
        let before = match *self {
            Self::Out { .. } => return,
            Self::In => 0,
            Self::Probation { times } => times,
            Self::Returned { since, times } => {
                // The same as a timer that takes one off at the end of each interval, without the timer.
                let stayed = now.saturating_duration_since(since).as_nanos() / detection.interval.as_nanos().max(1);
                times.saturating_sub(u32::try_from(stayed).unwrap_or(u32::MAX))
            }
        };
        let times = before.saturating_add(1);
        *self = Self::Out { until: now + detection.time_out(times), times };
    }

    /// When to call [`probe`](Self::probe), if it is out.
    pub(crate) fn due(&self) -> Option<Instant> {
        match *self {
            Self::Out { until, .. } => Some(until),
            Self::In | Self::Probation { .. } | Self::Returned { .. } => None,
        }
    }

    /// Puts the instance on probation if its time is over. True if that happened: then
    /// [`Tally::begin_probation`](super::Tally::begin_probation) has to follow.
    pub(crate) fn probe(&mut self, now: Instant) -> bool {
        match *self {
            Self::Out { until, times } if until <= now => {
                *self = Self::Probation { times };
                true
            }
            _ => false,
        }
    }

    /// Takes the instance back: a call succeeded on probation.
    pub(crate) fn proved(&mut self, now: Instant) {
        if let Self::Probation { times } = *self {
            *self = Self::Returned { since: now, times };
        }
    }

    /// Forgets everything: what runs there now is not what failed. [`Tally::reset`](super::Tally::reset) has to follow.
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

/// Whether one more of that many instances may be ejected. Those on probation count as out: they carry no load yet.
pub(crate) fn may_eject(already_out: usize, of: usize, detection: &OutlierDetection) -> bool {
    (already_out + 1) * 100 <= of * usize::from(detection.max_ejected_percent)
}

#[cfg(test)]
mod tests;
