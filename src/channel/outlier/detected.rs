//! What was found against an instance, and why it may have no consequence: in words for the log, and as gRPC's metrics
//! name them (A91).

use std::fmt;

/// How it was found that an instance fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DetectionMethod {
    FailuresInARow,
    MissedDeadlines,
    Probation,
    SuccessRate,
    FailurePercentage,
}

impl DetectionMethod {
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::FailuresInARow => "consecutive_failures",
            Self::MissedDeadlines => "missed_deadlines",
            Self::Probation => "probation",
            Self::SuccessRate => "success_rate",
            Self::FailurePercentage => "failure_percentage",
        }
    }
}

impl fmt::Display for DetectionMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FailuresInARow => "its calls failed in a row",
            Self::MissedDeadlines => "it missed deadlines in silence",
            Self::Probation => "it failed on probation",
            Self::SuccessRate | Self::FailurePercentage => "it fails more often than the others",
        })
    }
}

/// Why an instance that fails is not left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unenforced {
    /// The number that was drawn is not among those that the enforcement percentage has eject.
    EnforcementPercentage,
    /// As many instances are out as may be.
    MaxEjectionOverflow,
}

impl Unenforced {
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::EnforcementPercentage => "enforcement_percentage",
            Self::MaxEjectionOverflow => "max_ejection_overflow",
        }
    }
}
