//! Whether the members of a cluster are members of one: with a URL of another cluster among them, servers would
//! register in the one and clients look in the other. Pure: reports of members in, a verdict out.
//!
//! Every member can report the id of its cluster. The last id that a member reported is kept until the member itself
//! reports another one: silence changes no report. The report of one member:
//!
//! ```text
//!             reported                asked in vain
//! Unheard ----------> Reported(id) <--------------> Silent(id, if it ever reported one)
//!    ^  |                |       reported              ^ |
//!    |  +----------------|------asked in vain----------+ |
//!    +-------------------+-------------------------------+
//!      another member that reported the same id reports another one now: that cluster was set up anew
//! ```
//!
//! The reports make the verdict:
//!
//! - An id that more than half of the members reported is the cluster's; a member that reported another id is refused.
//! - Without such an id nothing is known before each member was asked, which takes a second at most. Then the members
//!   that answer now decide. If they agree, a member that reported another id before it fell silent is refused. If they
//!   do not, every member is.
//! - While no member answers, the verdict stays.
//!
//! A refused member is asked for nothing but the id of its cluster. Open streams leave it where another member can be
//! used; where all members are refused the streams go on, since what they know and keep alive is right for one side.

use std::fmt::Write as _;
use std::sync::Arc;

use crate::error::{EtcdError, EtcdErrorKind};

/// What the members of a cluster reported, and whether a survey asks them.
pub(super) struct ClusterIdCheck {
    reports: Vec<MemberReport>,
    is_surveyed: bool,
}

/// What is known of one member's cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MemberReport {
    /// The member was not asked since its cluster was set up anew, or ever.
    Unheard,
    /// The member reported this id when it was asked last.
    Reported(u64),
    /// The member did not answer when it was asked last; the id is the one that it reported before.
    Silent(Option<u64>),
}

/// Which members are used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It depends on members that were not asked yet.
    Unknown,
    /// Enough members were asked.
    Known(Arc<Assessment>),
}

/// Which members are used and which are not, and why.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Assessment {
    refused: Vec<usize>,
    /// Members that never reported an id, while most members reported the same.
    mute: Vec<usize>,
    /// Whether every member is refused.
    is_hopeless: bool,
    /// The id that each member reported.
    reason: String,
}

impl MemberReport {
    /// The last id that was reported.
    fn id(self) -> Option<u64> {
        match self {
            Self::Unheard => None,
            Self::Reported(id) => Some(id),
            Self::Silent(id) => id,
        }
    }

    fn is_current(self) -> bool {
        matches!(self, Self::Reported(_))
    }
}

impl ClusterIdCheck {
    pub(super) fn new(members: usize) -> Self {
        Self { reports: vec![MemberReport::Unheard; members], is_surveyed: false }
    }

    /// Of other members: for each its place among these, if it had one.
    pub(super) fn successor(&self, before: impl Iterator<Item = Option<usize>>) -> Self {
        let reports = before.map(|before| before.map_or(MemberReport::Unheard, |index| self.reports[index]));
        Self { reports: reports.collect(), is_surveyed: false }
    }

    /// A member reported the id of its cluster, or was asked in vain.
    pub(super) fn on_report(&mut self, index: usize, id: Option<u64>) {
        let before = self.reports[index].id();
        self.reports[index] = id.map_or(MemberReport::Silent(before), MemberReport::Reported);
        if id.is_some() && before.is_some() && id != before {
            // No other member can have moved with it, except where the cluster was set up anew.
            let stale = self.reports.iter_mut().filter(|report| report.id() == before);
            stale.for_each(|report| *report = MemberReport::Unheard);
        }
    }

    /// Whether two members reported different ids.
    pub(super) fn has_disagreement(&self) -> bool {
        let mut ids = self.reports.iter().filter_map(|report| report.id());
        let first = ids.next();
        ids.any(|id| Some(id) != first)
    }

    /// The members that are to be asked.
    pub(super) fn agenda(&self) -> Vec<usize> {
        let disagrees = self.has_disagreement();
        (0..self.reports.len()).filter(|&index| disagrees || self.reports[index].id().is_none()).collect()
    }

    /// Marks a survey as under way if there is something to ask and none is; returns whether it has to be started.
    pub(super) fn begin_survey(&mut self) -> bool {
        let begins = !self.is_surveyed && !self.agenda().is_empty();
        self.is_surveyed |= begins;
        begins
    }

    /// The survey ended, whatever the reason.
    pub(super) fn on_survey_end(&mut self) {
        self.is_surveyed = false;
    }

    /// The verdict that the reports make after the one `before`; `name` is for its reason.
    pub(super) fn judge<'a>(&self, before: &Verdict, name: impl Fn(usize) -> &'a str) -> Verdict {
        let reports = &self.reports;
        let ids = || reports.iter().filter_map(|report| report.id());
        let majority = ids().find(|id| ids().filter(|other| other == id).count() * 2 > reports.len());
        let is_silence = !reports.iter().any(|report| report.is_current());
        if majority.is_none() && reports.contains(&MemberReport::Unheard) {
            return Verdict::Unknown;
        }
        if majority.is_none() && is_silence && *before != Verdict::Unknown {
            return before.clone();
        }
        let counted = reports.iter().filter(|report| is_silence || report.is_current());
        let mut counted = counted.filter_map(|report| report.id());
        let first = counted.next();
        let is_hopeless = majority.is_none() && counted.any(|id| Some(id) != first);
        let ours = majority.or(first);
        let mut assessment = Assessment { is_hopeless, ..Assessment::default() };
        for (index, report) in reports.iter().enumerate() {
            match report.id() {
                id if is_hopeless || (id.is_some() && id != ours) => assessment.refused.push(index),
                None if majority.is_some() => assessment.mute.push(index),
                _ => {}
            }
            if let Some(id) = report.id() {
                let comma = if assessment.reason.is_empty() { "" } else { ", " };
                let _ = write!(assessment.reason, "{comma}{} is of cluster {id:x}", name(index));
            }
        }
        Verdict::Known(assessment.into())
    }
}

impl Verdict {
    fn assessment(&self) -> Option<&Assessment> {
        match self {
            Self::Unknown => None,
            Self::Known(assessment) => Some(assessment),
        }
    }

    /// The members that are refused.
    pub(super) fn refused(&self) -> &[usize] {
        self.assessment().map_or(&[], |assessment| &assessment.refused)
    }

    /// The id that each member reported, in words.
    pub(super) fn reason(&self) -> &str {
        let unknown = "it is not known yet of which cluster the members are";
        self.assessment().map_or(unknown, |assessment| &assessment.reason)
    }

    /// Whether a member is refused.
    pub(super) fn is_refused(&self, index: usize) -> bool {
        self.refused().contains(&index)
    }

    /// Whether a member is refused and others are not.
    pub(super) fn is_stranger(&self, index: usize) -> bool {
        self.is_refused(index) && !self.is_hopeless()
    }

    /// Whether most members reported an id, and this one never did.
    pub(super) fn is_mute(&self, index: usize) -> bool {
        self.assessment().is_some_and(|assessment| assessment.mute.contains(&index))
    }

    /// Why the member of this name is not used.
    pub(super) fn refusal(&self, member: &str) -> EtcdError {
        EtcdError {
            // Unless all are refused, another member may be one of the cluster.
            kind: if self.is_hopeless() { EtcdErrorKind::Split } else { EtcdErrorKind::Unavailable },
            member: member.to_owned(),
            operation: "read cluster id",
            key: "the cluster".to_owned(),
            source: Some(self.reason().into()),
        }
    }

    /// Whether every member is refused.
    fn is_hopeless(&self) -> bool {
        self.assessment().is_some_and(|assessment| assessment.is_hopeless)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: &[usize] = &[];

    /// A check with the verdict that its reports have made so far.
    struct Panel {
        check: ClusterIdCheck,
        verdict: Verdict,
    }

    impl Panel {
        fn of(members: usize) -> Self {
            Self { check: ClusterIdCheck::new(members), verdict: Verdict::Unknown }
        }

        fn report(&mut self, index: usize, id: Option<u64>) -> &Verdict {
            self.check.on_report(index, id);
            self.verdict = self.check.judge(&self.verdict, |index| ["a", "b", "c"][index]);
            &self.verdict
        }

        /// All members were asked.
        fn report_all<const N: usize>(ids: [Option<u64>; N]) -> Self {
            let mut panel = Self::of(N);
            for (index, id) in ids.into_iter().enumerate() {
                panel.report(index, id);
            }
            panel
        }
    }

    #[test]
    fn a_majority_is_known_without_the_others() {
        let mut panel = Panel::of(3);
        assert_eq!(panel.report(0, Some(1)), &Verdict::Unknown, "the others may agree");
        assert_eq!(panel.report(2, Some(1)).refused(), NONE, "two of three are");
        assert_ne!(panel.verdict, Verdict::Unknown);
        assert_eq!(panel.report(1, Some(2)).refused(), [1]);
        assert_eq!(panel.verdict.reason(), "a is of cluster 1, b is of cluster 2, c is of cluster 1");
    }

    #[test]
    fn no_member_is_used_while_one_that_was_not_asked_could_decide() {
        let mut panel = Panel::of(3);
        panel.report(0, Some(1));
        assert_eq!(panel.report(2, Some(2)), &Verdict::Unknown);
        assert_eq!(panel.report(1, None).refused(), [0, 1, 2], "it does not report");
        assert!(panel.verdict.is_hopeless());
        assert_eq!(panel.report(1, Some(1)).refused(), [2], "now it does");
    }

    #[test]
    fn silence_changes_no_report() {
        let mut panel = Panel::report_all([Some(1), Some(1), Some(2)]);
        for silent in [2, 1, 0] {
            assert_eq!(panel.report(silent, None).refused(), [2], "what {silent} reported stands");
        }
        for back in [2, 0, 1] {
            assert_eq!(panel.report(back, Some(if back == 2 { 2 } else { 1 })).refused(), [2]);
        }
        assert_eq!(panel.report(2, Some(1)).refused(), NONE, "only another report does");
    }

    #[test]
    fn of_two_that_disagree_the_one_that_still_answers_is_used() {
        let mut panel = Panel::report_all([Some(1), Some(2)]);
        assert_eq!(panel.verdict.refused(), [0, 1]);
        assert_eq!(panel.report(1, None).refused(), [1]);
        assert!(!panel.verdict.is_hopeless());
        assert_eq!(panel.report(0, None).refused(), [1], "no member answers, so nothing changes");
        assert_eq!(panel.report(0, Some(1)).refused(), [1]);
        assert_eq!(panel.report(1, Some(2)).refused(), [0, 1], "it is back");
        assert!(panel.verdict.is_hopeless());
    }

    #[test]
    fn a_cluster_that_is_set_up_anew_is_not_split() {
        let mut panel = Panel::report_all([Some(1), Some(1), Some(1)]);
        assert_eq!(panel.report(1, Some(2)), &Verdict::Unknown, "what the others reported is void");
        assert_eq!(panel.report(0, Some(2)).refused(), NONE);
        assert_eq!(panel.report(2, Some(2)).refused(), NONE);

        let mut only_one = Panel::report_all([Some(1), Some(1), Some(1)]);
        only_one.report(1, Some(2));
        assert_eq!(only_one.report(0, Some(1)), &Verdict::Unknown);
        assert_eq!(only_one.report(2, Some(1)).refused(), [1], "only one moved");

        let mut one_left = Panel::report_all([Some(1), Some(1), Some(1)]);
        one_left.report(1, Some(2));
        one_left.report(0, None);
        assert_eq!(one_left.report(2, None).refused(), NONE, "it was set up from that one");
    }

    #[test]
    fn a_member_that_never_reports_is_mute_where_most_have() {
        let panel = Panel::report_all([Some(1), None, Some(1)]);
        assert!(panel.verdict.is_mute(1) && !panel.verdict.is_mute(0));
        assert_eq!(panel.verdict.refused(), NONE, "it may yet report");
        let silent = Panel::report_all([None, None, None]);
        assert_ne!(silent.verdict, Verdict::Unknown, "no member is left to wait for");
        assert!(!silent.verdict.is_mute(0) && silent.verdict.refused().is_empty());
    }

    #[test]
    fn one_survey_asks_the_silent_members_and_all_where_they_disagree() {
        let mut panel = Panel::of(3);
        assert!(panel.check.begin_survey(), "no member was asked yet");
        assert!(!panel.check.begin_survey(), "a survey is under way");
        panel.check.on_survey_end();
        panel.report(0, Some(1));
        panel.report(1, None);
        assert_eq!(panel.check.agenda(), [1, 2]);
        panel.report(2, Some(2));
        assert_eq!(panel.check.agenda(), [0, 1, 2]);
        panel.report(2, Some(1));
        panel.report(1, Some(1));
        panel.report(1, None);
        assert!(!panel.check.begin_survey(), "all have told the same");
    }
}
