//! Whether the members of a cluster are members of one: a URL of another cluster among them would have servers register in
//! the one and clients look in the other.
//!
//! Every member that answers tells the id of its cluster. They are asked when one of them has answered for the first time
//! and whenever a new connection has; who does not answer now says nothing. Where most of them are of one cluster, the others
//! are passed over; where no cluster has most of them, nobody is used. One id that is another than before is a cluster that
//! was set up anew, and that is fine.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::Instrument;

use super::{Cluster, Connection, Member};
use crate::error::{EtcdError, EtcdErrorKind, chain};

/// How long a member may take to tell, and how long the first answer of all waits for that: as long as a member gets when
/// it is asked for the first time.
const SURVEY_LIMIT: Duration = Duration::from_secs(1);

/// How long it may take where it was one of those that disagreed: being slow is no change of mind.
const SPLIT_LIMIT: Duration = Duration::from_secs(3);

/// How soon members that disagree are asked again, and how soon those are that did not answer.
const SURVEY_INTERVAL: Duration = Duration::from_secs(5);

/// What the members of a cluster said of it.
pub(super) struct Unity {
    verdict: watch::Sender<Verdict>,
    agenda: Mutex<Agenda>,
}

/// When members are to be asked.
struct Agenda {
    /// From when on there is a reason to; `None` while there is none.
    due: Option<Instant>,
    /// Whether they are being asked: nobody else asks meanwhile.
    is_running: bool,
}

#[derive(Debug, Clone)]
enum Verdict {
    /// Nobody was asked yet.
    Unknown,
    /// Whoever answered was of one mind.
    Agreed,
    /// Who said what, and who of them is not used.
    Split { reason: Arc<str>, refused: Arc<[usize]>, is_hopeless: bool },
}

impl Default for Unity {
    fn default() -> Self {
        let agenda = Agenda { due: Some(Instant::now()), is_running: false };
        Self { verdict: watch::Sender::new(Verdict::Unknown), agenda: Mutex::new(agenda) }
    }
}

impl Unity {
    /// There is a reason to ask, from `at` on.
    fn ask(&self, at: Instant) {
        let mut agenda = self.agenda();
        agenda.due = Some(agenda.due.map_or(at, |due| due.min(at)));
    }

    /// Whether they are to be asked now, by whom this is told and until [`end`](Self::end).
    fn begin(&self) -> bool {
        let mut agenda = self.agenda();
        let is_due = !agenda.is_running && agenda.due.is_some_and(|due| due <= Instant::now());
        if is_due {
            *agenda = Agenda { due: None, is_running: true };
        }
        is_due
    }

    fn end(&self) {
        self.agenda().is_running = false;
    }

    fn agenda(&self) -> MutexGuard<'_, Agenda> {
        self.agenda.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cluster {
    /// Whether the answer of a member counts: not while others answer that belong to another cluster, unless those are the
    /// fewer. The first answer of all waits until that is known, for a second at most.
    pub(super) async fn is_one(self: &Arc<Self>, connection: &Connection) -> Result<(), EtcdError> {
        if self.len() == 1 {
            return Ok(());
        }
        if !connection.is_known.swap(true, Ordering::Relaxed) {
            self.unity.ask(Instant::now());
        }
        if self.unity.begin() {
            let survey = Survey { cluster: self.clone(), is_done: false };
            tokio::spawn(survey.run().in_current_span());
        }
        let mut verdict = self.unity.verdict.subscribe();
        if matches!(*verdict.borrow(), Verdict::Unknown) {
            // Nobody to wait for is nobody who disagrees.
            let known = verdict.wait_for(|verdict| !matches!(verdict, Verdict::Unknown));
            let _ = timeout(SURVEY_LIMIT, known).await;
        }
        match &*verdict.borrow() {
            Verdict::Unknown | Verdict::Agreed => Ok(()),
            Verdict::Split { reason, refused, is_hopeless } => {
                if !refused.contains(&connection.index()) {
                    return Ok(());
                }
                // Another member may be one of the cluster.
                let kind = if *is_hopeless { EtcdErrorKind::Split } else { EtcdErrorKind::Unavailable };
                Err(connection.refusal("read cluster id", "the cluster", kind, reason.to_string()))
            }
        }
    }

    /// What is to be done about the ids that the members told, unless they are all the same.
    fn split(&self, told: &[Option<u64>]) -> Option<Verdict> {
        let answers = || told.iter().flatten();
        let first = answers().next()?;
        if answers().all(|id| id == first) {
            return None;
        }
        let most = answers().find(|id| answers().filter(|other| other == id).count() * 2 > self.len());
        let refused =
            (0..self.len()).filter(|&index| most.is_none() || told[index].as_ref().is_some_and(|id| Some(id) != most));
        let say = |(member, id): (&Member, &Option<u64>)| id.map(|id| format!("{} is of cluster {id:x}", member.name));
        let reason: Vec<_> = self.members.iter().zip(told).filter_map(say).collect();
        Some(Verdict::Split {
            reason: reason.join(", ").into(),
            refused: refused.collect(),
            is_hopeless: most.is_none(),
        })
    }

    /// The id of a member's cluster, if it tells now.
    async fn cluster_id(self: &Arc<Self>, index: usize, limit: Duration) -> Option<u64> {
        let asked = async {
            let connection = self.connection(index, limit).await?;
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

/// Asks all members, again and again while they disagree. One that ends with its runtime is due again.
struct Survey {
    cluster: Arc<Cluster>,
    is_done: bool,
}

impl Survey {
    async fn run(mut self) {
        let cluster = self.cluster.clone();
        let unity = &cluster.unity;
        loop {
            let was_one = !matches!(*unity.verdict.borrow(), Verdict::Split { .. });
            let limit = if was_one { SURVEY_LIMIT } else { SPLIT_LIMIT };
            let told = join_all((0..cluster.len()).map(|index| cluster.cluster_id(index, limit))).await;
            let Some(split) = cluster.split(&told) else {
                if !was_one {
                    tracing::info!("etcd members are of one cluster again");
                }
                if told.iter().any(Option::is_none) {
                    // Who did not answer is asked when the others have something to say again.
                    unity.ask(Instant::now() + SURVEY_INTERVAL);
                }
                unity.verdict.send_replace(Verdict::Agreed);
                self.is_done = true;
                return;
            };
            if was_one && let Verdict::Split { reason, .. } = &split {
                tracing::error!(%reason, "etcd members belong to different clusters");
            }
            unity.verdict.send_replace(split);
            // This one's own two.
            if Arc::strong_count(&cluster) == 2 {
                return;
            }
            sleep(SURVEY_INTERVAL).await;
        }
    }
}

impl Drop for Survey {
    fn drop(&mut self) {
        let unity = &self.cluster.unity;
        unity.end();
        if !self.is_done {
            unity.ask(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn members_are_asked_by_one_at_a_time_and_again_for_each_reason_that_comes_meanwhile() {
        let unity = Unity::default();
        assert!(unity.begin(), "nobody was asked yet");
        unity.ask(Instant::now());
        assert!(!unity.begin(), "somebody asks");
        unity.end();
        assert!(unity.begin(), "there was a reason meanwhile");
        unity.end();
        assert!(!unity.begin(), "there is none any more");
        unity.ask(Instant::now() + SURVEY_INTERVAL);
        unity.ask(Instant::now() + 2 * SURVEY_INTERVAL);
        assert!(!unity.begin(), "it is not time");
        tokio::time::advance(SURVEY_INTERVAL).await;
        assert!(unity.begin(), "the earlier one counts");
    }
}
