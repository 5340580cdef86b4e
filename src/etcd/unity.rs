//! Whether the members of a cluster are members of one: a URL of another cluster among them would have servers register in
//! the one and clients look in the other.
//!
//! Every member that answers tells the id of its cluster. One task asks them all: when one of them has answered for the first
//! time, whenever a new connection has, and again and again while one is silent or they disagree.
//!
//! | verdict | when | who may be used |
//! | --- | --- | --- |
//! | unknown | nobody was asked yet | everybody; the first answer waits for a verdict, for a moment |
//! | agreed | whoever answers is of one cluster | everybody, but who is silent and was of another one has to tell first |
//! | split | members are of different clusters | those of the cluster that most of all are of; if there is none, nobody, but streams that are open go on |
//!
//! A member that is silent is still taken to be what it was a minute ago. If nobody answers, nothing changes. One id that is
//! another than before is a cluster that was set up anew, and that is fine.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::Instrument;

use super::{Cluster, Connection, LoginFor};
use crate::backoff::Backoff;
use crate::error::{EtcdError, EtcdErrorKind, chain};

/// How long a member may take to tell: as long as a member gets when it is asked for the first time.
const SURVEY_LIMIT: Duration = Duration::from_secs(1);

/// How long it may take where they disagreed: being slow is no change of mind.
const SPLIT_LIMIT: Duration = Duration::from_secs(3);

/// How long an answer waits for a verdict: a little longer than one takes where a member is silent.
const VERDICT_LIMIT: Duration = Duration::from_millis(1_250);

/// How soon members that disagree are asked again, and how soon those are that did not answer.
const SURVEY_INTERVAL: Duration = Duration::from_secs(5);

/// How rarely those are asked in the end that do not answer.
const SILENT_INTERVAL: Duration = Duration::from_secs(60);

/// For how long what a member told counts while it is silent: longer than a freeze or a restart, and not for ever, since a
/// cluster can be restored with one of its members alone.
const REMEMBERED: Duration = Duration::from_secs(60);

/// What the members of a cluster said of it.
pub(super) struct Unity {
    verdict: watch::Sender<Verdict>,
    /// Of each member the id that it told last, and when.
    told: Mutex<Vec<Option<(u64, Instant)>>>,
    agenda: Mutex<Agenda>,
    /// There is something new on the agenda.
    news: Notify,
}

/// Whether members are to be asked.
struct Agenda {
    /// There is a reason that nobody looked into yet.
    is_wanted: bool,
    /// A survey is under way, and looks into it.
    is_running: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Unknown,
    /// `doubted` are silent and were of another cluster.
    Agreed {
        doubted: Arc<[usize]>,
    },
    /// Who said what, and who of them is not used.
    Split {
        reason: Arc<str>,
        refused: Arc<[usize]>,
        is_hopeless: bool,
    },
}

impl Verdict {
    fn is_split(&self) -> bool {
        matches!(self, Self::Split { .. })
    }

    fn doubts(&self, index: usize) -> bool {
        matches!(self, Self::Agreed { doubted } if doubted.contains(&index))
    }

    fn refuses(&self, index: usize) -> bool {
        matches!(self, Self::Split { refused, .. } if refused.contains(&index))
    }
}

impl Unity {
    pub(super) fn new(members: usize) -> Self {
        Self {
            verdict: watch::Sender::new(Verdict::Unknown),
            told: Mutex::new(vec![None; members]),
            agenda: Mutex::new(Agenda { is_wanted: true, is_running: false }),
            news: Notify::new(),
        }
    }

    /// There is a reason to ask.
    fn want(&self) {
        self.agenda().is_wanted = true;
        self.news.notify_one();
    }

    /// Whether whoever asks this is to begin a survey.
    fn begin(&self) -> bool {
        let mut agenda = self.agenda();
        let begins = agenda.is_wanted && !agenda.is_running;
        agenda.is_running |= begins;
        begins
    }

    /// The survey takes note of all reasons up to now.
    fn note(&self) {
        self.agenda().is_wanted = false;
    }

    /// Whether the survey may end: not where there is a new reason.
    fn end(&self) -> bool {
        let mut agenda = self.agenda();
        agenda.is_running = agenda.is_wanted;
        !agenda.is_running
    }

    fn agenda(&self) -> MutexGuard<'_, Agenda> {
        self.agenda.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self) -> MutexGuard<'_, Vec<Option<(u64, Instant)>>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What follows from the answers of a round, or of a part of it, and what was told before; `None` where that is nothing.
    fn judge(&self, names: &[&str], answers: &[Option<u64>]) -> Option<Verdict> {
        let now = Instant::now();
        let told = &*self.told().clone();
        let votes = || told.iter().flatten().filter(|(_, at)| now.duration_since(*at) < REMEMBERED).map(|(id, _)| *id);
        let first = answers.iter().flatten().next()?;
        let most = votes().find(|id| votes().filter(|other| other == id).count() * 2 > told.len());
        let others = |id: u64| (0..told.len()).filter(move |&index| told_other(told[index], id));
        let agree = answers.iter().flatten().all(|id| id == first);
        if agree && most.is_none_or(|most| most == *first) {
            return Some(Verdict::Agreed { doubted: others(*first).collect() });
        }
        let say =
            |(name, told): (&&str, &Option<(u64, Instant)>)| told.map(|(id, _)| format!("{name} is of cluster {id:x}"));
        let reason: Vec<_> = names.iter().zip(told).filter_map(say).collect();
        Some(Verdict::Split {
            reason: reason.join(", ").into(),
            refused: most.map_or_else(|| (0..told.len()).collect(), |most| others(most).collect()),
            is_hopeless: most.is_none(),
        })
    }
}

fn told_other(told: Option<(u64, Instant)>, id: u64) -> bool {
    told.is_some_and(|(told, _)| told != id)
}

impl Cluster {
    /// Whether a member that answered is one of this cluster. The first answer of all waits until that is known, for a moment.
    ///
    /// # Errors
    ///
    /// `Unavailable` where another member may be of the cluster, `Split` where none is.
    pub(super) async fn is_one(self: &Arc<Self>, connection: &Connection) -> Result<(), EtcdError> {
        if self.len() == 1 {
            return Ok(());
        }
        if !connection.is_known.swap(true, Ordering::Relaxed) {
            self.unity.want();
        }
        let index = connection.index();
        self.verdict(index, |verdict| *verdict == Verdict::Unknown || verdict.doubts(index)).await
    }

    /// Whether a member may be asked at all: not where it is known to be of another cluster.
    ///
    /// # Errors
    ///
    /// As with [`is_one`](Self::is_one).
    pub(super) async fn is_usable(self: &Arc<Self>, index: usize) -> Result<(), EtcdError> {
        if self.len() == 1 {
            return Ok(());
        }
        if self.unity.verdict.borrow().doubts(index) {
            self.unity.want();
        }
        self.verdict(index, |verdict| verdict.doubts(index)).await
    }

    /// Resolves when a member turns out to be of another cluster than most.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn refuses(&self, index: usize) -> EtcdError {
        let mut verdict = self.unity.verdict.subscribe();
        loop {
            match self.judged(index, &verdict.borrow_and_update()) {
                Err(error) if error.kind != EtcdErrorKind::Split => return error,
                _ => {}
            }
            if verdict.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// What is known of a member, after a while if that is open.
    async fn verdict(self: &Arc<Self>, index: usize, is_open: impl Fn(&Verdict) -> bool) -> Result<(), EtcdError> {
        if self.unity.begin() {
            let survey = Survey { cluster: self.clone(), is_over: false };
            tokio::spawn(survey.run().in_current_span());
        }
        let mut verdict = self.unity.verdict.subscribe();
        if is_open(&verdict.borrow()) {
            // Nobody to wait for is nobody who disagrees.
            let _ = timeout(VERDICT_LIMIT, verdict.wait_for(|verdict| !is_open(verdict))).await;
        }
        let verdict = verdict.borrow();
        if verdict.doubts(index) {
            return Err(self.refusal(index, EtcdErrorKind::Unavailable, "it was of another cluster".to_owned()));
        }
        self.judged(index, &verdict)
    }

    fn judged(&self, index: usize, verdict: &Verdict) -> Result<(), EtcdError> {
        match verdict {
            Verdict::Split { reason, is_hopeless, .. } if verdict.refuses(index) => {
                // Another member may be one of the cluster.
                let kind = if *is_hopeless { EtcdErrorKind::Split } else { EtcdErrorKind::Unavailable };
                Err(self.refusal(index, kind, reason.to_string()))
            }
            _ => Ok(()),
        }
    }

    fn refusal(&self, index: usize, kind: EtcdErrorKind, reason: String) -> EtcdError {
        let member = self.members[index].name.to_string();
        EtcdError {
            kind,
            member,
            operation: "read cluster id",
            key: "the cluster".to_owned(),
            source: Some(reason.into()),
        }
    }

    /// The id of a member's cluster, if it tells now.
    async fn cluster_id(self: &Arc<Self>, index: usize, limit: Duration) -> Option<u64> {
        let asked = async {
            let connection = self.connected(index, limit, LoginFor::Survey).await?;
            let id = connection.cluster_id(limit).await.inspect_err(|error| self.after(&connection, error))?;
            connection.is_known.store(true, Ordering::Relaxed);
            Ok::<_, EtcdError>(id)
        };
        match timeout(limit, asked).await {
            Ok(Ok(id)) => return Some(id),
            Ok(Err(error)) => tracing::debug!(error = chain(&error), "etcd member does not tell its cluster"),
            Err(_) => {
                tracing::debug!(member = %self.members[index].name, "etcd member does not tell its cluster in time");
            }
        }
        None
    }
}

/// Asks all members, again and again while there is a reason. One that ends with its runtime is due again.
struct Survey {
    cluster: Arc<Cluster>,
    is_over: bool,
}

impl Survey {
    async fn run(mut self) {
        let cluster = self.cluster.clone();
        let unity = &cluster.unity;
        let mut backoff = Backoff::new(SURVEY_INTERVAL, SILENT_INTERVAL);
        loop {
            unity.note();
            let all_told = self.round().await;
            let is_split = unity.verdict.borrow().is_split();
            if all_told && !is_split {
                self.is_over = unity.end();
                if self.is_over {
                    return;
                }
                continue;
            }
            // This one's own two.
            if Arc::strong_count(&cluster) == 2 {
                return;
            }
            let wait = if is_split { SURVEY_INTERVAL } else { backoff.longest() };
            tokio::select! {
                () = sleep(wait) => {}
                () = unity.news.notified() => {}
            }
        }
    }

    /// Asks everybody once. Tells whether all have told.
    async fn round(&self) -> bool {
        let (cluster, unity) = (&self.cluster, &self.cluster.unity);
        let is_calm = match &*unity.verdict.borrow() {
            Verdict::Unknown => true,
            Verdict::Agreed { doubted } => doubted.is_empty(),
            Verdict::Split { .. } => false,
        };
        let limit = if is_calm { SURVEY_LIMIT } else { SPLIT_LIMIT };
        let ask = |index| async move { (index, cluster.cluster_id(index, limit).await) };
        let mut asked: FuturesUnordered<_> = (0..cluster.len()).map(ask).collect();
        let names: Vec<_> = cluster.members.iter().map(|member| &*member.name).collect();
        let mut answers = vec![None; cluster.len()];
        while let Some((index, id)) = asked.next().await {
            let Some(id) = id else { continue };
            answers[index] = Some(id);
            unity.told()[index] = Some((id, Instant::now()));
            // What most of them say need not wait for who is silent.
            let said = answers.iter().filter(|answer| **answer == Some(id)).count();
            if said * 2 > answers.len() {
                unity.publish(unity.judge(&names, &answers));
            }
        }
        let verdict = unity.judge(&names, &answers);
        // Who hears nobody at first has heard nobody who disagrees.
        let is_first = *unity.verdict.borrow() == Verdict::Unknown;
        unity.publish(verdict.or_else(|| is_first.then(|| Verdict::Agreed { doubted: Arc::new([]) })));
        answers.iter().all(Option::is_some)
    }
}

impl Unity {
    fn publish(&self, verdict: Option<Verdict>) {
        let Some(verdict) = verdict else { return };
        let was_split = self.verdict.borrow().is_split();
        match &verdict {
            Verdict::Split { reason, .. } if !was_split => {
                tracing::error!(%reason, "etcd members belong to different clusters");
            }
            Verdict::Agreed { .. } if was_split => tracing::info!("etcd members are of one cluster again"),
            _ => {}
        }
        self.verdict.send_if_modified(|present| {
            let is_new = *present != verdict;
            *present = verdict;
            is_new
        });
    }
}

impl Drop for Survey {
    fn drop(&mut self) {
        if !self.is_over {
            let mut agenda = self.cluster.unity.agenda();
            *agenda = Agenda { is_wanted: true, is_running: false };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 3] = ["a", "b", "c"];

    /// What follows if these answer, and others are silent.
    fn heard(unity: &Unity, answers: [u64; 3]) -> Option<Verdict> {
        let answers = answers.map(|id| (id > 0).then_some(id));
        for (told, id) in unity.told().iter_mut().zip(answers) {
            *told = id.map(|id| (id, Instant::now())).or(*told);
        }
        unity.judge(&NAMES, &answers)
    }

    fn agreed(doubted: &[usize]) -> Verdict {
        Verdict::Agreed { doubted: doubted.into() }
    }

    fn refused(verdict: Option<Verdict>) -> Vec<usize> {
        match verdict {
            Some(Verdict::Split { refused, is_hopeless, .. }) => {
                assert_eq!(is_hopeless, refused.len() == 3);
                refused.to_vec()
            }
            other => panic!("they disagree: {other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn reasons_to_ask_are_looked_into_by_one_survey_and_none_is_lost() {
        let unity = Unity::new(2);
        assert!(unity.begin(), "nobody was asked yet");
        unity.note();
        unity.want();
        assert!(!unity.begin(), "somebody asks");
        assert!(!unity.end(), "there was a reason meanwhile");
        unity.note();
        assert!(unity.end() && !unity.begin(), "there is none any more");
        unity.want();
        assert!(unity.begin());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_of_the_cluster_of_most_is_used() {
        let unity = Unity::new(3);
        assert_eq!(heard(&unity, [0, 0, 0]), None, "nobody says anything");
        assert_eq!(heard(&unity, [1, 0, 0]), Some(agreed(&[])));
        assert_eq!(refused(heard(&unity, [1, 0, 2])), [0, 1, 2], "one and one of three");
        assert_eq!(refused(heard(&unity, [1, 1, 2])), [2]);
        assert_eq!(heard(&unity, [1, 1, 1]), Some(agreed(&[])));
        assert_eq!(heard(&unity, [2, 2, 2]), Some(agreed(&[])), "it was set up anew");
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_silent_is_for_a_minute_what_it_was_and_has_to_tell_before_it_is_used_again() {
        let unity = Unity::new(3);
        heard(&unity, [1, 1, 2]);
        assert_eq!(heard(&unity, [0, 0, 0]), None, "nothing changes");
        assert_eq!(refused(heard(&unity, [1, 0, 2])), [2], "the second is still of the first cluster");
        assert_eq!(refused(heard(&unity, [0, 0, 2])), [2], "both are");
        assert_eq!(heard(&unity, [1, 1, 0]), Some(agreed(&[2])), "nobody who answers disagrees");
        tokio::time::advance(2 * REMEMBERED).await;
        assert_eq!(heard(&unity, [1, 0, 0]), Some(agreed(&[2])), "it was of another one, however long ago");
        tokio::time::advance(2 * REMEMBERED).await;
        assert_eq!(heard(&unity, [0, 0, 2]), Some(agreed(&[0, 1])), "the others are gone for good");
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_that_disagree_one_that_dies_frees_the_other() {
        let unity = Unity::new(2);
        unity.told().clone_from(&vec![Some((1, Instant::now())), Some((2, Instant::now()))]);
        let judge = |answers: [Option<u64>; 2]| unity.judge(&NAMES[..2], &answers);
        assert!(judge([Some(1), Some(2)]).is_some_and(|verdict| verdict.refuses(0) && verdict.refuses(1)));
        assert_eq!(judge([Some(1), None]), Some(agreed(&[1])));
    }
}
