//! Asks members for the id of their cluster, and holds answers back until it is known whether they count.
//!
//! An answer counts once its member was asked over the connection that the answer came from and the verdict is known.
//! An error is an answer, too: another cluster knows none of our leases. An error does not count either where most
//! members reported an id and its member never did: a member with another authentication cannot be asked.
//!
//! Members are asked in two ways. The first answer of a connection has its member asked, once: so a member that comes
//! back, or another one behind its URL, is found out. And a survey, a task of which there is one at a time, asks all
//! members while their reports disagree, or else those that never reported an id. It ends when all have reported the
//! same id, and with the cluster. Each answer and each refusal starts it where there is something to ask.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::Instrument;

use super::cluster_id::{ClusterIdCheck, Verdict};
use super::connection::Connection;
use super::members::Members;
use super::metrics::strangers;
use crate::backoff::Backoff;
use crate::error::{EtcdError, chain};
use crate::metrics::Share;
use crate::targets::ETCD;

/// The cluster id check of one cluster, and the surveys that feed it.
pub(super) struct Surveys {
    members: Arc<Members>,
    check: Mutex<ClusterIdCheck>,
    verdict: watch::Sender<Verdict>,
    /// How many members are refused.
    refused: Mutex<Share>,
}

/// Tells when a member turns out to be of another cluster than ours.
pub(crate) struct RefusalWatch(watch::Receiver<Verdict>);

impl RefusalWatch {
    /// Resolves once the connection's member is refused and others are not.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn refused(&mut self, connection: &Connection) {
        if self.0.wait_for(|verdict| verdict.is_stranger(connection.index())).await.is_err() {
            // The cluster is gone, so there will be no other verdict.
            std::future::pending::<()>().await;
        }
    }
}

impl Surveys {
    pub(super) fn new(members: Arc<Members>) -> Self {
        let check = Mutex::new(ClusterIdCheck::new(members.len()));
        Self { members, check, verdict: watch::Sender::new(Verdict::Unknown), refused: Mutex::new(strangers()) }
    }

    /// Of the members that replace these: those that stay have reported already.
    pub(super) fn successor(&self, members: Arc<Members>) -> Self {
        let before = |index: usize| self.members.index_of(members.name(index));
        let check = self.check().successor((0..members.len()).map(before));
        let verdict = check.judge(&Verdict::Unknown, |index| members.name(index));
        (0..members.len()).for_each(|index| members.set_strange(index, verdict.is_stranger(index)));
        let refused = Mutex::new(strangers());
        // Theirs are counted from now on.
        self.show_refused(&Verdict::Unknown);
        let next = Self { members, check: Mutex::new(check), verdict: watch::Sender::new(verdict), refused };
        next.show_refused(&next.verdict.borrow());
        next
    }

    /// A watch on the members that are refused.
    pub(super) fn refusal_watch(&self) -> RefusalWatch {
        RefusalWatch(self.verdict.subscribe())
    }

    /// A call is about to go to a member.
    ///
    /// # Errors
    ///
    /// The member is refused.
    pub(super) fn before_call(self: &Arc<Self>, index: usize) -> Result<(), EtcdError> {
        let verdict = self.verdict.borrow().clone();
        if !verdict.is_refused(index) {
            return Ok(());
        }
        self.start();
        Err(self.refuse(index, &verdict))
    }

    /// A member answered a call, perhaps with an error; the answer is about to be used.
    ///
    /// # Errors
    ///
    /// The answer does not count.
    pub(super) async fn before_answer(
        self: &Arc<Self>,
        connection: &Connection,
        is_error: bool,
    ) -> Result<(), EtcdError> {
        if self.members.len() == 1 {
            return Ok(());
        }
        self.start();
        let index = connection.index();
        let known = async {
            let ask = async || self.on_report(index, ask(connection, SURVEY_LIMIT).await);
            connection.was_asked.get_or_init(ask).await;
            self.start();
            self.known().await;
        };
        let _ = timeout(VERDICT_LIMIT, known).await;
        let verdict = self.verdict.borrow().clone();
        if verdict == Verdict::Unknown {
            // The survey may have been left behind on a runtime that stands still.
            self.check().on_survey_end();
        }
        if verdict == Verdict::Unknown || verdict.is_refused(index) || (is_error && verdict.is_mute(index)) {
            return Err(self.refuse(index, &verdict));
        }
        Ok(())
    }

    /// The login to a member failed. Returns what that means: nothing about the credentials where most members reported
    /// an id and this one never did.
    pub(super) async fn on_login_failure(self: &Arc<Self>, index: usize, error: EtcdError) -> EtcdError {
        if self.members.len() == 1 {
            return error;
        }
        self.start();
        self.members.on_failure(index, false);
        let _ = timeout(VERDICT_LIMIT, self.known()).await;
        let verdict = self.verdict.borrow().clone();
        if verdict.is_mute(index) { verdict.refusal(self.members.name(index)) } else { error }
    }

    fn refuse(&self, index: usize, verdict: &Verdict) -> EtcdError {
        self.members.on_failure(index, false);
        verdict.refusal(self.members.name(index))
    }

    /// Waits for the verdict.
    async fn known(&self) {
        let mut verdict = self.verdict.subscribe();
        let _ = verdict.wait_for(|verdict| *verdict != Verdict::Unknown).await;
    }

    /// Starts a survey, if there is something to ask and none is under way.
    fn start(self: &Arc<Self>) {
        if self.check().begin_survey() {
            let survey = Survey { surveys: Arc::downgrade(self) };
            let span = tracing::info_span!(target: ETCD, parent: None, "survey");
            tokio::spawn(survey.run(self.verdict.subscribe()).instrument(span));
        }
    }

    /// Asks a member for the id of its cluster, over the connection that the next call uses; returns whether it
    /// answered and is of ours.
    pub(super) async fn is_there(&self, index: usize, limit: Duration) -> bool {
        let asked = async {
            let connection = self.members.connect(index, limit).await?;
            let id = ask(&connection, limit).await.inspect_err(|error| self.members.on_error(&connection, error))?;
            self.members.on_response(&connection);
            Ok(id)
        };
        let answer = asked.await;
        let has_answered = answer.is_ok();
        self.on_report(index, answer);
        has_answered && !self.verdict.borrow().is_refused(index)
    }

    /// A member reported the id of its cluster, or was asked in vain.
    fn on_report(&self, index: usize, answer: Result<u64, EtcdError>) {
        let id = answer.inspect_err(|error| {
            tracing::debug!(target: ETCD, error = chain(error), "etcd member does not tell its cluster");
        });
        let mut check = self.check();
        check.on_report(index, id.ok());
        // Under the lock, so that the newest verdict is the last one.
        self.verdict.send_if_modified(|verdict| {
            let next = check.judge(verdict, |index| self.members.name(index));
            let (was, is) = (verdict.refused(), next.refused());
            if !is.is_empty() && was != is {
                tracing::error!(target: ETCD, reason = next.reason(), "etcd members belong to different clusters");
            } else if !was.is_empty() && is.is_empty() {
                tracing::info!(target: ETCD, "etcd members are of one cluster again");
            }
            let is_news = *verdict != next;
            if is_news {
                self.show_refused(&next);
                (0..self.members.len()).for_each(|index| self.members.set_strange(index, next.is_stranger(index)));
            }
            *verdict = next;
            is_news
        });
    }

    #[expect(clippy::cast_precision_loss, reason = "members are few")]
    fn show_refused(&self, verdict: &Verdict) {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).set(verdict.refused().len() as f64);
    }

    fn check(&self) -> MutexGuard<'_, ClusterIdCheck> {
        self.check.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn ask(connection: &Connection, limit: Duration) -> Result<u64, EtcdError> {
    let asking = timeout(limit, connection.cluster_id(limit)).await;
    asking.unwrap_or_else(|_| Err(connection.deadline("read cluster id", "the cluster", limit)))
}

/// Asks until every member has reported the same id. It keeps no cluster alive. A survey that ends with its runtime is
/// replaced.
struct Survey {
    surveys: Weak<Surveys>,
}

impl Survey {
    async fn run(mut self, mut verdict: watch::Receiver<Verdict>) {
        let mut silence = Backoff::new(SILENCE_FIRST, SILENCE_MAX);
        while let Some(surveys) = self.surveys.upgrade() {
            let (agenda, disagrees) = {
                let mut check = surveys.check();
                let agenda = check.agenda();
                if agenda.is_empty() {
                    check.on_survey_end();
                    // Its drop must not end the survey that may begin now.
                    self.surveys = Weak::new();
                    return;
                }
                (agenda, check.has_disagreement())
            };
            let limit = if disagrees { SPLIT_LIMIT } else { SURVEY_LIMIT };
            join_all(agenda.into_iter().map(|index| surveys.is_there(index, limit))).await;
            let pause = {
                let check = surveys.check();
                if check.agenda().is_empty() || *verdict.borrow_and_update() == Verdict::Unknown {
                    continue;
                }
                if check.has_disagreement() { SPLIT_INTERVAL } else { silence.longest() }
            };
            drop(surveys);
            tokio::select! {
                () = sleep(pause) => {}
                // A report came from elsewhere.
                changed = verdict.changed() => if changed.is_err() { return },
            }
        }
    }
}

impl Drop for Survey {
    fn drop(&mut self) {
        if let Some(surveys) = self.surveys.upgrade() {
            surveys.check().on_survey_end();
        }
    }
}

/// How long a member may take to report: as long as a member gets when it is asked for the first time.
const SURVEY_LIMIT: Duration = Duration::from_secs(1);

/// How long a report may take while reports disagree: a slow member keeps the id that it reported before.
const SPLIT_LIMIT: Duration = Duration::from_secs(3);

/// How long an answer waits for the verdict: clearly longer than it takes to ask every member.
const VERDICT_LIMIT: Duration = SURVEY_LIMIT.saturating_add(Duration::from_millis(250));

/// How soon members that disagree are asked again.
const SPLIT_INTERVAL: Duration = Duration::from_secs(5);

/// How soon members that never reported are asked again at first.
const SILENCE_FIRST: Duration = Duration::from_secs(5);

/// How rarely members that never reported are asked again in the end.
const SILENCE_MAX: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::EtcdErrorKind;
    use crate::etcd::Endpoints;

    /// Two members that cannot be reached.
    fn silent() -> Arc<Surveys> {
        let urls = ["http://127.0.0.1:1".to_owned(), "http://127.0.0.1:2".to_owned()];
        let endpoints = Endpoints::new(&urls, None, None, SURVEY_LIMIT).expect("good URLs");
        Arc::new(Surveys::new(Arc::new(Members::new(Arc::new(endpoints), None))))
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_waits_once_for_a_survey_that_stands_still() {
        let surveys = silent();
        let connection = surveys.members.connect(0, SURVEY_LIMIT).await.expect("it is opened lazily");
        // A survey that was left behind by its runtime.
        assert!(surveys.check().begin_survey(), "no other survey is under way");
        let error =
            surveys.before_answer(&connection, false).await.expect_err("the other one may be of another cluster");
        assert_eq!(error.kind, EtcdErrorKind::Unavailable);
        surveys.before_answer(&connection, false).await.expect("no member disagrees");
    }

    #[tokio::test(start_paused = true)]
    async fn a_survey_without_answers_goes_on_and_keeps_no_cluster_alive() {
        let surveys = silent();
        surveys.start();
        timeout(VERDICT_LIMIT, surveys.known()).await.expect("known before the patience of any answer ends");
        sleep(SILENCE_MAX * 3).await;
        assert!(!surveys.check().begin_survey(), "a member may yet report, so it is under way");
        let mut verdict = surveys.verdict.subscribe();
        drop(surveys);
        let gone = async { while verdict.changed().await.is_ok() {} };
        timeout(SURVEY_LIMIT * 2, gone).await.expect("no cluster is kept until the next round");
    }
}
