//! Rounds: the subjects take turns, forwards and back, so that what changes on the machine meets all of them alike.

use std::time::Duration;

use crate::load::{Figures, Sample};
use crate::statistics::{Estimate, estimate, median, quotient_of_quartiles, rounded};
use crate::subject::Subject;

/// How long and how often is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// How many rounds.
    pub(crate) rounds: usize,
    /// How long one subject is under load at a time.
    pub(crate) slot: Duration,
    /// How often a fault happens.
    pub(crate) faults: usize,
    /// How long a run with a fault goes on.
    pub(crate) fault: Duration,
}

impl Plan {
    /// What the quoted figures are made with.
    pub(crate) const FULL: Self =
        Self { rounds: 25, slot: Duration::from_millis(250), faults: 3, fault: Duration::from_secs(4) };
    /// Shows that all of it works; the figures mean nothing.
    pub(crate) const QUICK: Self =
        Self { rounds: 3, slot: Duration::from_millis(60), faults: 1, fault: Duration::from_secs(2) };
}

/// What one subject did in each round.
#[derive(Debug)]
pub(crate) struct Course {
    /// The subject's name.
    pub(crate) subject: &'static str,
    rounds: Vec<Figures>,
}

impl Course {
    /// The median of a figure over the rounds, as results show it.
    pub(crate) fn median(&self, of: impl Fn(&Figures) -> f64) -> f64 {
        rounded(median(&self.rounds.iter().map(of).collect::<Vec<_>>()))
    }

    /// How many rounds there were.
    pub(crate) fn rounds(&self) -> usize {
        self.rounds.len()
    }

    /// How many calls were made in all rounds.
    pub(crate) fn calls(&self) -> usize {
        self.rounds.iter().map(|round| round.calls).sum()
    }

    /// How many calls failed in all rounds.
    pub(crate) fn failed(&self) -> usize {
        self.rounds.iter().map(|round| round.failed).sum()
    }

    /// The quotient of the lower quartiles of a figure of the tail, here and in `other`.
    pub(crate) fn tail_ratio(&self, other: &Self, of: impl Fn(&Figures) -> f64) -> Estimate {
        let figures = |course: &Self| course.rounds.iter().map(&of).collect::<Vec<_>>();
        quotient_of_quartiles(&figures(self), &figures(other))
    }

    /// The quotients of a figure here and in the same round of `other`.
    pub(crate) fn ratio(&self, other: &Self, of: impl Fn(&Figures) -> f64) -> Estimate {
        let pairs = self.rounds.iter().zip(&other.rounds);
        estimate(&pairs.map(|(mine, theirs)| of(mine) / of(theirs)).collect::<Vec<_>>())
    }
}

/// Puts each subject under load twice a round, in an order like A B C C B A that begins with another one each time.
pub(crate) async fn mirrored(
    subjects: &[Subject],
    rounds: usize,
    slot: impl AsyncFn(&Subject) -> Sample,
) -> Vec<Course> {
    // Connections open and caches fill before anything counts.
    for subject in subjects {
        slot(subject).await;
    }
    let mut courses: Vec<Course> =
        subjects.iter().map(|subject| Course { subject: subject.name, rounds: Vec::new() }).collect();
    for round in 0..rounds {
        let order: Vec<usize> = (0..subjects.len()).map(|turn| (turn + round) % subjects.len()).collect();
        let mut samples = vec![Sample::default(); subjects.len()];
        for &turn in order.iter().chain(order.iter().rev()) {
            samples[turn].merge(slot(&subjects[turn]).await);
        }
        for (course, sample) in courses.iter_mut().zip(samples) {
            course.rounds.push(sample.figures());
        }
    }
    courses
}

/// Milliseconds, with what lies behind the point.
pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
