//! Whether the members of a cluster are members of one: a URL of another cluster among them would have servers register in
//! the one and clients look in the other.
//!
//! Every member can tell the id of its cluster. What each told last is kept, and nothing but another id from the member
//! itself replaces it: silence changes no mind. A member's word:
//!
//! ```text
//!             told                   asked in vain
//! Unheard ----------> Told(id) <------------------> Silent(id, if it ever told one)
//!    ^  |                |      told                  ^ |
//!    |  +----------------|------asked in vain---------+ |
//!    +-------------------+------------------------------+
//!      another member that told the same id tells another one now: that cluster was set up anew
//! ```
//!
//! The words make the verdict:
//!
//! - An id that more than half of the members told is the cluster's; who told another one is refused.
//! - Without such an id nothing is known before each of them was asked, which takes a second at most. Then those count that
//!   speak now. If they are of one mind, who told another id before they fell silent is refused. If they are not, everybody
//!   is.
//! - While nobody speaks, the verdict stays.
//!
//! Who is refused is not asked for anything but its cluster. Open streams leave it where there is somebody to go to; where
//! everybody is refused they go on, since what they know and keep alive is right for one side.
//!
//! An answer counts once its member was asked over the same connection and the verdict is known. Errors are answers, too:
//! another cluster knows none of our leases. They do not count either where most members told an id and this one never did,
//! since those with another authentication cannot.
//!
//! Two ask. Whoever has an answer of a connection asks that one, once: it is the word of a member that comes back, or of
//! another one behind the same URL. And one survey at a time, a task, asks all where they disagree, or else who never told;
//! it ends when everybody has told the same id, and with the cluster. Whoever has an answer or is refused sees to it that it
//! runs while there is something to ask.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::Instrument;

use super::{Cluster, Connection, Member};
use crate::backoff::Backoff;
use crate::error::{EtcdError, EtcdErrorKind, chain};

/// How long a member may take to tell: as long as a member gets when it is asked for the first time.
const SURVEY_LIMIT: Duration = Duration::from_secs(1);

/// How long it may take while they disagree: being slow is no change of mind.
const SPLIT_LIMIT: Duration = Duration::from_secs(3);

/// How long an answer waits for the verdict: clearly longer than it takes to ask everybody.
const VERDICT_LIMIT: Duration = SURVEY_LIMIT.saturating_add(Duration::from_millis(250));

/// How soon members that disagree are asked again.
const SPLIT_INTERVAL: Duration = Duration::from_secs(5);

/// How soon members that never told are asked again at first, and how rarely in the end.
const SILENCE_FIRST: Duration = Duration::from_secs(5);
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// What the members of a cluster said of it.
pub(super) struct Unity {
    verdict: watch::Sender<Verdict>,
    state: Mutex<State>,
}

struct State {
    words: Vec<Word>,
    /// Whether a survey is under way.
    is_surveyed: bool,
}

/// What is known of one member's cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    /// It was not asked since its cluster was set up anew, or ever.
    Unheard,
    /// It told this when it was asked last.
    Told(u64),
    /// It did not tell when it was asked last, and told this before.
    Silent(Option<u64>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    /// It depends on members that were not asked yet.
    Unknown,
    Known(Arc<Standing>),
}

/// Who is used and who is not.
#[derive(Debug, Default, PartialEq, Eq)]
struct Standing {
    refused: Vec<usize>,
    /// Who never told an id, while most told the same.
    mute: Vec<usize>,
    /// Whether everybody is refused.
    is_hopeless: bool,
    /// Who told what.
    reason: String,
}

impl Word {
    /// What it told last.
    fn id(self) -> Option<u64> {
        match self {
            Self::Unheard => None,
            Self::Told(id) => Some(id),
            Self::Silent(id) => id,
        }
    }
}

impl Unity {
    pub(super) fn new(members: usize) -> Self {
        let state = State { words: vec![Word::Unheard; members], is_surveyed: false };
        Self { verdict: watch::Sender::new(Verdict::Unknown), state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a member told, or that it was asked in vain.
    fn note(&self, members: &[Member], index: usize, told: Option<u64>) {
        let mut state = self.state();
        state.note(index, told);
        // Under the lock, so that the newest verdict is the last one.
        self.verdict.send_if_modified(|verdict| {
            let next = judge(&state.words, verdict, |index| &members[index].name);
            let (was, is) = (verdict.refused(), next.refused());
            if !is.is_empty() && was != is {
                tracing::error!(reason = next.reason(), "etcd members belong to different clusters");
            } else if !was.is_empty() && is.is_empty() {
                tracing::info!("etcd members are of one cluster again");
            }
            let is_news = *verdict != next;
            *verdict = next;
            is_news
        });
    }
}

impl State {
    fn note(&mut self, index: usize, told: Option<u64>) {
        let before = self.words[index].id();
        self.words[index] = told.map_or(Word::Silent(before), Word::Told);
        if told.is_some() && before.is_some() && told != before {
            // Nobody else can have moved with it, except where it was set up anew.
            self.words.iter_mut().filter(|word| word.id() == before).for_each(|word| *word = Word::Unheard);
        }
    }

    fn disagrees(&self) -> bool {
        let mut ids = self.words.iter().filter_map(|word| word.id());
        let first = ids.next();
        ids.any(|id| Some(id) != first)
    }

    /// Who is to be asked.
    fn agenda(&self) -> Vec<usize> {
        let disagrees = self.disagrees();
        (0..self.words.len()).filter(|&index| disagrees || self.words[index].id().is_none()).collect()
    }

    /// Whether there is something to ask and nobody does.
    fn begin(&mut self) -> bool {
        let begins = !self.is_surveyed && !self.agenda().is_empty();
        self.is_surveyed |= begins;
        begins
    }
}

/// What the words come to.
fn judge<'a>(words: &[Word], before: &Verdict, name: impl Fn(usize) -> &'a str) -> Verdict {
    let ids = || words.iter().filter_map(|word| word.id());
    let most = ids().find(|id| ids().filter(|other| other == id).count() * 2 > words.len());
    if most.is_none() && words.contains(&Word::Unheard) {
        return Verdict::Unknown;
    }
    let speaks = |word: &&Word| matches!(word, Word::Told(_));
    let is_silence = !words.iter().any(|word| speaks(&word));
    if most.is_none() && is_silence && *before != Verdict::Unknown {
        return before.clone();
    }
    let mut voices = words.iter().filter(|word| is_silence || speaks(word)).filter_map(|word| word.id());
    let first = voices.next();
    let is_hopeless = most.is_none() && voices.any(|id| Some(id) != first);
    let ours = most.or(first);
    let mut standing = Standing { is_hopeless, ..Standing::default() };
    for (index, word) in words.iter().enumerate() {
        match word.id() {
            id if is_hopeless || (id.is_some() && id != ours) => standing.refused.push(index),
            None if most.is_some() => standing.mute.push(index),
            _ => {}
        }
        if let Some(id) = word.id() {
            let comma = if standing.reason.is_empty() { "" } else { ", " };
            let _ = write!(standing.reason, "{comma}{} is of cluster {id:x}", name(index));
        }
    }
    Verdict::Known(standing.into())
}

impl Verdict {
    fn standing(&self) -> Option<&Standing> {
        match self {
            Self::Unknown => None,
            Self::Known(standing) => Some(standing),
        }
    }

    fn refused(&self) -> &[usize] {
        self.standing().map_or(&[], |standing| &standing.refused)
    }

    fn reason(&self) -> &str {
        self.standing().map_or("it is not known yet of which cluster the members are", |standing| &standing.reason)
    }

    fn refuses(&self, index: usize) -> bool {
        self.refused().contains(&index)
    }

    /// Whether a member is refused and others are not.
    fn is_stranger(&self, index: usize) -> bool {
        self.refuses(index) && self.standing().is_some_and(|standing| !standing.is_hopeless)
    }

    /// Whether most members told an id, and this one never did.
    fn is_mute(&self, index: usize) -> bool {
        self.standing().is_some_and(|standing| standing.mute.contains(&index))
    }

    /// Why a member is not used.
    fn refusal(&self, member: &Member) -> EtcdError {
        // Another member may be one of the cluster.
        let is_hopeless = self.standing().is_some_and(|standing| standing.is_hopeless);
        EtcdError {
            kind: if is_hopeless { EtcdErrorKind::Split } else { EtcdErrorKind::Unavailable },
            member: member.name.to_string(),
            operation: "read cluster id",
            key: "the cluster".to_owned(),
            source: Some(self.reason().into()),
        }
    }
}

/// Tells when a member turns out to be of another cluster than ours.
pub(crate) struct Eye(watch::Receiver<Verdict>);

impl Eye {
    /// Resolves once the member is refused and others are not.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn refused(&mut self, connection: &Connection) {
        if self.0.wait_for(|verdict| verdict.is_stranger(connection.index())).await.is_err() {
            // The cluster is gone, and nobody else tells.
            std::future::pending::<()>().await;
        }
    }
}

impl Cluster {
    /// An eye on who is refused.
    pub(crate) fn eye(&self) -> Eye {
        Eye(self.unity.verdict.subscribe())
    }

    /// Nothing is asked of a member that is refused.
    pub(super) fn admit(self: &Arc<Self>, index: usize) -> Result<(), EtcdError> {
        let verdict = self.unity.verdict.borrow().clone();
        if !verdict.refuses(index) {
            return Ok(());
        }
        self.survey();
        self.avoid(index);
        Err(verdict.refusal(&self.members[index]))
    }

    /// Whether the answer of a member counts, an error or not.
    pub(super) async fn accept(self: &Arc<Self>, connection: &Connection, is_error: bool) -> Result<(), EtcdError> {
        if self.len() == 1 {
            return Ok(());
        }
        self.survey();
        let known = async {
            let ask = async || self.note_answer(connection.index(), self.ask(connection, SURVEY_LIMIT).await);
            connection.was_asked.get_or_init(ask).await;
            self.survey();
            self.known().await;
        };
        let _ = timeout(VERDICT_LIMIT, known).await;
        let verdict = self.unity.verdict.borrow().clone();
        let index = connection.index();
        if verdict == Verdict::Unknown || verdict.refuses(index) || (is_error && verdict.is_mute(index)) {
            if verdict == Verdict::Unknown {
                // Its survey may have been left behind on a runtime that stands still.
                self.unity.state().is_surveyed = false;
            }
            self.avoid(index);
            return Err(verdict.refusal(&self.members[index]));
        }
        Ok(())
    }

    /// What it means that nobody could log in to a member: nothing where most told an id and this one never did.
    pub(super) async fn without_login(self: &Arc<Self>, index: usize, error: EtcdError) -> EtcdError {
        if self.len() == 1 {
            return error;
        }
        self.survey();
        self.avoid(index);
        let _ = timeout(VERDICT_LIMIT, self.known()).await;
        let verdict = self.unity.verdict.borrow().clone();
        if verdict.is_mute(index) { verdict.refusal(&self.members[index]) } else { error }
    }

    /// Waits for the verdict.
    async fn known(&self) {
        let mut verdict = self.unity.verdict.subscribe();
        let _ = verdict.wait_for(|verdict| *verdict != Verdict::Unknown).await;
    }

    /// Sees to it that a survey is under way, if there is something to ask.
    fn survey(self: &Arc<Self>) {
        if self.unity.state().begin() {
            let survey = Survey { cluster: Arc::downgrade(self) };
            tokio::spawn(survey.run(self.unity.verdict.subscribe()).in_current_span());
        }
    }

    fn note_answer(&self, index: usize, answer: Result<u64, EtcdError>) {
        let told =
            answer.inspect_err(|error| tracing::debug!(error = chain(error), "etcd member does not tell its cluster"));
        self.unity.note(&self.members, index, told.ok());
    }

    async fn ask(self: &Arc<Self>, connection: &Connection, limit: Duration) -> Result<u64, EtcdError> {
        let asking = timeout(limit, connection.cluster_id(limit)).await;
        asking.unwrap_or_else(|_| Err(connection.deadline("read cluster id", "the cluster", limit)))
    }

    /// Asks a member for the id of its cluster, over the connection that the next call uses.
    async fn ask_member(self: &Arc<Self>, index: usize, limit: Duration) {
        let asked = async {
            let connection = self.reach(index, limit).await?;
            self.ask(&connection, limit).await.inspect_err(|error| self.after(&connection, error))
        };
        self.note_answer(index, asked.await);
    }
}

/// Asks until everybody has told the same id. It keeps no cluster alive. One that ends with its runtime is replaced.
struct Survey {
    cluster: Weak<Cluster>,
}

impl Survey {
    async fn run(mut self, mut verdict: watch::Receiver<Verdict>) {
        let mut silence = Backoff::new(SILENCE_FIRST, SILENCE_MAX);
        while let Some(cluster) = self.cluster.upgrade() {
            let (agenda, disagrees) = {
                let mut state = cluster.unity.state();
                let agenda = state.agenda();
                if agenda.is_empty() {
                    state.is_surveyed = false;
                    // The next one's is none of its business.
                    self.cluster = Weak::new();
                    return;
                }
                (agenda, state.disagrees())
            };
            let limit = if disagrees { SPLIT_LIMIT } else { SURVEY_LIMIT };
            join_all(agenda.into_iter().map(|index| cluster.ask_member(index, limit))).await;
            let pause = {
                let state = cluster.unity.state();
                if state.agenda().is_empty() || *verdict.borrow_and_update() == Verdict::Unknown {
                    continue;
                }
                if state.disagrees() { SPLIT_INTERVAL } else { silence.longest() }
            };
            drop(cluster);
            tokio::select! {
                () = sleep(pause) => {}
                // The newest word is not this one's.
                changed = verdict.changed() => if changed.is_err() { return },
            }
        }
    }
}

impl Drop for Survey {
    fn drop(&mut self) {
        if let Some(cluster) = self.cluster.upgrade() {
            cluster.unity.state().is_surveyed = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::parse_endpoints;

    const NONE: &[usize] = &[];

    /// What members told and how it was judged.
    struct Panel {
        state: State,
        verdict: Verdict,
    }

    impl Panel {
        fn of(members: usize) -> Self {
            let state = State { words: vec![Word::Unheard; members], is_surveyed: false };
            Self { state, verdict: Verdict::Unknown }
        }

        fn hear(&mut self, index: usize, told: Option<u64>) -> &Verdict {
            self.state.note(index, told);
            self.verdict = judge(&self.state.words, &self.verdict, |index| ["a", "b", "c"][index]);
            &self.verdict
        }

        /// All were asked.
        fn hear_all<const N: usize>(told: [Option<u64>; N]) -> Self {
            let mut panel = Self::of(N);
            for (index, told) in told.into_iter().enumerate() {
                panel.hear(index, told);
            }
            panel
        }

        fn is_hopeless(&self) -> bool {
            self.verdict.standing().expect("it is known").is_hopeless
        }
    }

    #[test]
    fn a_majority_is_known_without_the_others() {
        let mut panel = Panel::of(3);
        assert_eq!(panel.hear(0, Some(1)), &Verdict::Unknown, "the others may be of one mind");
        assert_eq!(panel.hear(2, Some(1)).refused(), NONE, "two of three are");
        assert_ne!(panel.verdict, Verdict::Unknown);
        assert_eq!(panel.hear(1, Some(2)).refused(), [1]);
        assert_eq!(panel.verdict.reason(), "a is of cluster 1, b is of cluster 2, c is of cluster 1");
    }

    #[test]
    fn nobody_is_let_through_while_one_who_was_not_asked_could_decide() {
        let mut panel = Panel::of(3);
        panel.hear(0, Some(1));
        assert_eq!(panel.hear(2, Some(2)), &Verdict::Unknown);
        assert_eq!(panel.hear(1, None).refused(), [0, 1, 2], "it does not tell");
        assert!(panel.is_hopeless());
        assert_eq!(panel.hear(1, Some(1)).refused(), [2], "now it does");
    }

    #[test]
    fn silence_changes_no_mind() {
        let mut panel = Panel::hear_all([Some(1), Some(1), Some(2)]);
        for silent in [2, 1, 0] {
            assert_eq!(panel.hear(silent, None).refused(), [2], "{silent} has said all that is to be said");
        }
        for back in [2, 0, 1] {
            assert_eq!(panel.hear(back, Some(if back == 2 { 2 } else { 1 })).refused(), [2]);
        }
        assert_eq!(panel.hear(2, Some(1)).refused(), NONE, "only another word does");
    }

    #[test]
    fn of_two_that_disagree_the_one_that_is_left_is_used_and_the_other_not_before_it_tells() {
        let mut panel = Panel::hear_all([Some(1), Some(2)]);
        assert_eq!(panel.verdict.refused(), [0, 1]);
        assert_eq!(panel.hear(1, None).refused(), [1]);
        assert!(!panel.is_hopeless());
        assert_eq!(panel.hear(0, None).refused(), [1], "nobody speaks, so nothing changes");
        assert_eq!(panel.hear(0, Some(1)).refused(), [1]);
        assert_eq!(panel.hear(1, Some(2)).refused(), [0, 1], "it is back");
        assert!(panel.is_hopeless());
    }

    #[test]
    fn a_cluster_that_is_set_up_anew_is_not_split() {
        let mut panel = Panel::hear_all([Some(1), Some(1), Some(1)]);
        assert_eq!(panel.hear(1, Some(2)), &Verdict::Unknown, "what the others told is void");
        assert_eq!(panel.hear(0, Some(2)).refused(), NONE);
        assert_eq!(panel.hear(2, Some(2)).refused(), NONE);

        let mut only_one = Panel::hear_all([Some(1), Some(1), Some(1)]);
        only_one.hear(1, Some(2));
        assert_eq!(only_one.hear(0, Some(1)), &Verdict::Unknown);
        assert_eq!(only_one.hear(2, Some(1)).refused(), [1], "only one moved");

        let mut one_left = Panel::hear_all([Some(1), Some(1), Some(1)]);
        one_left.hear(1, Some(2));
        one_left.hear(0, None);
        assert_eq!(one_left.hear(2, None).refused(), NONE, "it was set up from that one");
    }

    #[test]
    fn who_never_tells_is_mute_where_most_have_told() {
        let panel = Panel::hear_all([Some(1), None, Some(1)]);
        assert!(panel.verdict.is_mute(1) && !panel.verdict.is_mute(0));
        assert_eq!(panel.verdict.refused(), NONE, "it may yet tell");
        let nobody = Panel::hear_all([None, None, None]);
        assert_ne!(nobody.verdict, Verdict::Unknown, "nobody is left to wait for");
        assert!(!nobody.verdict.is_mute(0) && nobody.verdict.refused().is_empty());
    }

    #[test]
    fn one_survey_at_a_time_asks_who_never_told_and_all_where_they_disagree() {
        let mut panel = Panel::of(3);
        assert!(panel.state.begin(), "nobody was asked yet");
        assert!(!panel.state.begin(), "somebody asks");
        panel.state.is_surveyed = false;
        panel.hear(0, Some(1));
        panel.hear(1, None);
        assert_eq!(panel.state.agenda(), [1, 2]);
        panel.hear(2, Some(2));
        assert_eq!(panel.state.agenda(), [0, 1, 2]);
        panel.hear(2, Some(1));
        panel.hear(1, Some(1));
        panel.hear(1, None);
        assert!(!panel.state.begin(), "all have told the same");
    }

    /// Two members of whom neither answers.
    fn silent() -> Arc<Cluster> {
        let urls = ["http://127.0.0.1:1".to_owned(), "http://127.0.0.1:2".to_owned()];
        Arc::new(Cluster::new(parse_endpoints(&urls, None, SURVEY_LIMIT).expect("good URLs"), None))
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_waits_for_a_survey_that_stands_still_once_and_is_none_until_then() {
        let cluster = silent();
        let connection = cluster.reach(0, SURVEY_LIMIT).await.expect("it is opened lazily");
        // As one that was left behind by its runtime.
        cluster.unity.state().is_surveyed = true;
        let error = cluster.accept(&connection, false).await.expect_err("the other one may be of another cluster");
        assert_eq!(error.kind, EtcdErrorKind::Unavailable);
        cluster.accept(&connection, false).await.expect("nobody disagrees");
    }

    #[tokio::test(start_paused = true)]
    async fn a_survey_that_hears_nobody_goes_on_and_keeps_no_cluster_alive() {
        let cluster = silent();
        cluster.survey();
        timeout(VERDICT_LIMIT, cluster.known()).await.expect("known before anybody's patience ends");
        sleep(SILENCE_MAX * 3).await;
        assert!(cluster.unity.state().is_surveyed, "somebody may yet tell");
        let mut verdict = cluster.unity.verdict.subscribe();
        drop(cluster);
        let gone = async { while verdict.changed().await.is_ok() {} };
        timeout(SURVEY_LIMIT * 2, gone).await.expect("nobody waits for its next round");
    }
}
