//! The newest snapshot of a service for whoever follows it: a watcher's own, or one that is merged from several registries'.
//!
//! A merge has no task and no memory: it is made from what each watcher knows now, by whoever asks.

use std::future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_all;
use futures_util::stream::{self, BoxStream, StreamExt};
use tokio::time::{Instant, sleep_until};

use super::watcher::Listener;
use crate::snapshot::{Member, MemberState, Snapshot};

/// How long the first snapshot waits for the registries that have not answered, once one has: a list takes milliseconds, and
/// one member that is silent is passed over after a second. Channels let calls wait for 5 s.
const FIRST_LISTS: Duration = Duration::from_secs(2);

/// The newest snapshot of a service.
#[derive(Debug, Clone)]
pub(crate) struct Snapshots {
    sources: Vec<Source>,
    /// When the first snapshot waits for nobody any more.
    open_at: Instant,
    merged: Option<Merged>,
    told: Option<Arc<Snapshot>>,
}

/// What one registry says.
#[derive(Debug, Clone)]
struct Source {
    listener: Listener,
    /// Its last word, which stands until another watcher has listed where the first one's runtime ended.
    known: Option<Arc<Snapshot>>,
}

/// A merge, kept until a part of it changes.
#[derive(Debug, Clone)]
struct Merged {
    parts: Vec<Option<Arc<Snapshot>>>,
    whole: Arc<Snapshot>,
}

impl Snapshots {
    /// What the listeners hear of one service, the more important ones first.
    pub(crate) fn new(listeners: impl IntoIterator<Item = Listener>) -> Self {
        let sources = listeners.into_iter().map(|listener| Source { listener, known: None }).collect();
        Self { sources, open_at: Instant::now() + FIRST_LISTS, merged: None, told: None }
    }

    /// The latest; `None` until the first one.
    pub(super) fn latest(&mut self) -> Option<Arc<Snapshot>> {
        let mut parts: Vec<_> = self.sources.iter_mut().map(Source::latest).collect();
        if let Some(merged) = self.merged.as_ref().filter(|merged| is_same(&merged.parts, &parts)) {
            return Some(merged.whole.clone());
        }
        let is_open =
            parts.iter().all(Option::is_some) || (parts.iter().any(Option::is_some) && Instant::now() >= self.open_at);
        if !is_open {
            return None;
        }
        let whole = match parts.as_mut_slice() {
            [Some(alone)] => alone.clone(),
            parts => {
                let whole = merge(parts.iter().flatten());
                let before = self.merged.take().map(|merged| merged.whole);
                before.filter(|before| before.members() == whole.members()).unwrap_or_else(|| Arc::new(whole))
            }
        };
        self.merged = Some(Merged { parts, whole: whole.clone() });
        Some(whole)
    }

    /// Counts the latest as not told.
    pub(super) fn mark_changed(&mut self) {
        self.told = None;
    }

    /// The latest and all that follow, each as soon as it is there; what nobody waited for is skipped. Never ends.
    pub(crate) fn into_stream(mut self) -> BoxStream<'static, Arc<Snapshot>> {
        self.mark_changed();
        stream::unfold(self, |mut snapshots| async move { Some((snapshots.next().await, snapshots)) }).boxed()
    }

    /// Waits for one that was not told yet.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: what was not returned counts as not told.
    pub(super) async fn next(&mut self) -> Arc<Snapshot> {
        loop {
            let latest = self.latest();
            if let Some(news) =
                latest.filter(|latest| !self.told.as_ref().is_some_and(|told| Arc::ptr_eq(told, latest)))
            {
                return self.told.insert(news).clone();
            }
            let is_held_back = self.merged.is_none() && self.sources.iter().any(|source| source.known.is_some());
            let open_at = self.open_at;
            let changes = self.sources.iter_mut().map(|source| Box::pin(source.listener.changed()));
            tokio::select! {
                () = any(changes) => {}
                () = async { sleep_until(open_at).await }, if is_held_back => {}
            }
        }
    }
}

impl Source {
    fn latest(&mut self) -> Option<Arc<Snapshot>> {
        if let Some(latest) = self.listener.latest() {
            self.known = Some(latest);
        }
        self.known.clone()
    }
}

/// Resolves with the first of them; never, where there is none.
async fn any<F: Future<Output = ()> + Unpin>(futures: impl ExactSizeIterator<Item = F>) {
    if futures.len() == 0 {
        future::pending::<()>().await;
    }
    select_all(futures).await;
}

fn is_same(a: &[Option<Arc<Snapshot>>], b: &[Option<Arc<Snapshot>>]) -> bool {
    let is_same = |pair: (&Option<Arc<Snapshot>>, &Option<Arc<Snapshot>>)| match pair {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    };
    a.len() == b.len() && a.iter().zip(b).all(is_same)
}

/// Every instance that one of them has, once: as the first that has it says, with a state in which all have their say.
fn merge<'a>(parts: impl Iterator<Item = &'a Arc<Snapshot>>) -> Snapshot {
    let mut revision = 0;
    let mut members: Vec<&Member> = Vec::new();
    for part in parts {
        revision = revision.max(part.revision());
        members.extend(part.iter());
    }
    // Stable: of two with one address, the one of the earlier part stays in front.
    members.sort_by(|a, b| a.instance().address.cmp(&b.instance().address));
    let merged = members.chunk_by(|a, b| a.instance().address == b.instance().address).map(|same| {
        let first = same[0];
        Member::new(first.shared_instance().clone(), first.lease(), state(same))
    });
    Snapshot::new(revision, merged.collect())
}

/// Live where one says so, since a server may leave one registry and stay in another. Else draining where one says so: a key
/// that went without a word contradicts nobody.
fn state(same: &[&Member]) -> MemberState {
    let says = |state| same.iter().any(|member| member.state() == state);
    if says(MemberState::Live) {
        MemberState::Live
    } else if says(MemberState::Draining) {
        MemberState::Draining
    } else {
        MemberState::InQuestion
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use futures_util::FutureExt;
    use proptest::prelude::*;
    use tokio::sync::watch;

    use super::MemberState::{Draining, InQuestion, Live};
    use super::*;
    use crate::discover::watcher::tests::published;
    use crate::instance::{Address, Instance};

    type Publisher = watch::Sender<Option<Arc<Snapshot>>>;

    /// Snapshots of that many registries, and what each of them is told by.
    fn following(count: usize) -> (Vec<Publisher>, Snapshots) {
        let (publishers, listeners): (Vec<_>, Vec<_>) = (0..count).map(|_| watch::channel(None)).unzip();
        (publishers, Snapshots::new(listeners.into_iter().map(published)))
    }

    fn snapshot(revision: i64, members: &[(&str, u16, i64, MemberState)]) -> Arc<Snapshot> {
        let members = members.iter().map(|(address, weight, lease, state)| {
            let address: Address = address.parse().expect("an address");
            Member::new(Arc::new(Instance::new("echo", address).weight(*weight)), *lease, *state)
        });
        Arc::new(Snapshot::new(revision, members.collect()))
    }

    fn tell(publisher: &Publisher, members: &[(&str, u16, i64, MemberState)]) {
        publisher.send_replace(Some(snapshot(1, members)));
    }

    fn show(snapshot: &Snapshot) -> Vec<String> {
        let show = |member: &Member| {
            let instance = member.instance();
            format!("{} weight {} lease {} {:?}", instance.address, instance.weight, member.lease(), member.state())
        };
        snapshot.iter().map(show).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn one_registrys_snapshots_are_its_watchers_own() {
        let (publishers, mut snapshots) = following(1);
        assert_eq!(snapshots.latest(), None, "nothing is known before the first list");
        let first = snapshot(1, &[("a:1", 1, 7, Live)]);
        publishers[0].send_replace(Some(first.clone()));
        assert!(Arc::ptr_eq(&snapshots.next().await, &first), "it is passed on as it is");
        assert!(snapshots.next().now_or_never().is_none(), "and told once");
        snapshots.mark_changed();
        assert!(Arc::ptr_eq(&snapshots.next().await, &first), "unless it is to count as not told");
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_is_there_while_one_registry_has_it_as_the_first_one_says() {
        let (publishers, mut snapshots) = following(2);
        tell(&publishers[0], &[("a:1", 1, 7, Live), ("c:1", 3, 7, Live)]);
        tell(&publishers[1], &[("a:1", 10, 8, Live), ("b:1", 20, 8, Live)]);
        let merged = snapshots.next().await;
        assert_eq!(
            show(&merged),
            ["a:1 weight 1 lease 7 Live", "b:1 weight 20 lease 8 Live", "c:1 weight 3 lease 7 Live"]
        );

        tell(&publishers[0], &[]);
        let merged = snapshots.next().await;
        assert_eq!(show(&merged), ["a:1 weight 10 lease 8 Live", "b:1 weight 20 lease 8 Live"]);
        tell(&publishers[1], &[]);
        assert!(snapshots.next().await.is_empty(), "gone from the last one, it is gone");
    }

    #[tokio::test(start_paused = true)]
    async fn what_changes_nothing_in_the_merge_is_not_told() {
        let (publishers, mut snapshots) = following(2);
        tell(&publishers[0], &[("a:1", 1, 7, Live)]);
        tell(&publishers[1], &[]);
        let before = snapshots.next().await;
        tell(&publishers[1], &[("a:1", 99, 8, Draining)]);
        assert!(snapshots.next().now_or_never().is_none(), "the first registry's word stands");
        let after = snapshots.latest().expect("it is known");
        assert!(Arc::ptr_eq(&before, &after));
    }

    #[test]
    fn states_are_merged_by_who_knows_most() {
        for (one, other, merged) in [
            (Live, Live, Live),
            (Live, Draining, Live),
            (Live, InQuestion, Live),
            (Draining, Draining, Draining),
            (Draining, InQuestion, Draining),
            (InQuestion, InQuestion, InQuestion),
        ] {
            for (first, second) in [(one, other), (other, one)] {
                let parts = [snapshot(3, &[("a:1", 1, 7, first)]), snapshot(5, &[("a:1", 2, 8, second)])];
                let whole = merge(parts.iter());
                assert_eq!(show(&whole), [format!("a:1 weight 1 lease 7 {merged:?}")], "{first:?} and {second:?}");
                assert_eq!(whole.revision(), 5, "the highest of both");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_snapshot_waits_for_all_who_answer_in_time() {
        let (publishers, mut snapshots) = following(2);
        tell(&publishers[1], &[("b:1", 1, 8, Live)]);
        assert!(snapshots.next().now_or_never().is_none() && snapshots.latest().is_none(), "half the truth is none");
        let start = Instant::now();
        let answer = async {
            tokio::time::sleep(FIRST_LISTS / 2).await;
            tell(&publishers[0], &[("a:1", 1, 7, Live)]);
        };
        let (merged, ()) = tokio::join!(snapshots.next(), answer);
        assert_eq!(merged.len(), 2, "both are in the first one");
        assert_eq!(start.elapsed(), FIRST_LISTS / 2, "as soon as the second answered");
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_that_is_away_hides_the_others_for_two_seconds_at_most() {
        let (publishers, mut snapshots) = following(3);
        tell(&publishers[1], &[("b:1", 1, 8, Live)]);
        let start = Instant::now();
        assert_eq!(snapshots.next().await.len(), 1, "what is known is told");
        assert_eq!(start.elapsed(), FIRST_LISTS);

        tell(&publishers[2], &[("c:1", 1, 9, Live)]);
        assert_eq!(
            snapshots.next().now_or_never().map(|merged| merged.len()),
            Some(2),
            "who comes late is taken in at once"
        );
        tell(&publishers[0], &[("a:1", 1, 7, Live)]);
        assert_eq!(snapshots.next().now_or_never().map(|merged| merged.len()), Some(3));
    }

    #[tokio::test(start_paused = true)]
    async fn where_all_are_away_the_first_that_answers_is_enough_after_two_seconds() {
        let (publishers, mut snapshots) = following(2);
        assert!(tokio::time::timeout(FIRST_LISTS * 2, snapshots.next()).await.is_err(), "nobody knows anything");
        tell(&publishers[1], &[]);
        assert_eq!(snapshots.next().now_or_never().map(|merged| merged.len()), Some(0), "an empty list is an answer");
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_word_of_a_watcher_that_went_down_stands() {
        let (mut publishers, mut snapshots) = following(2);
        tell(&publishers[0], &[("a:1", 1, 7, Live)]);
        tell(&publishers[1], &[("b:1", 1, 8, Live)]);
        assert_eq!(snapshots.next().await.len(), 2);
        // With its runtime. Who looks for another one finds an etcd that is away.
        drop(publishers.remove(0));
        tell(&publishers[0], &[("b:1", 2, 8, Live)]);
        let merged = snapshots.next().await;
        assert_eq!(show(&merged), ["a:1 weight 1 lease 7 Live", "b:1 weight 2 lease 8 Live"]);
    }

    #[tokio::test(start_paused = true)]
    async fn of_no_registry_at_all_an_empty_list_is_told_once() {
        let (_, mut snapshots) = following(0);
        assert!(snapshots.next().await.is_empty());
        assert!(tokio::time::timeout(FIRST_LISTS * 2, snapshots.next()).await.is_err(), "nothing else ever comes");
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_was_given_up_loses_nothing() {
        let (publishers, mut snapshots) = following(2);
        tell(&publishers[0], &[]);
        tell(&publishers[1], &[]);
        snapshots.next().await;
        for weight in 1..10 {
            assert!(snapshots.next().now_or_never().is_none(), "polled, and given up");
            let which = usize::from(weight % 2);
            tell(&publishers[which], &[(["a:1", "b:1"][which], weight, 7, Live)]);
            let merged = snapshots.next().now_or_never().expect("the change is there");
            assert!(merged.iter().any(|member| member.instance().weight == weight), "{merged:?}");
        }
    }

    proptest! {
        #[test]
        fn a_merge_has_every_address_once_as_the_first_says(
            parts in prop::collection::vec(prop::collection::btree_map(0..9u8, (1..99u16, 0..3u8), 0..9), 0..4),
        ) {
            let name = |n: &u8| format!("{}:1", char::from(b'a' + n));
            let told: Vec<Arc<Snapshot>> = parts
                .iter()
                .map(|part| {
                    let members: BTreeMap<String, (u16, MemberState)> = part
                        .iter()
                        .map(|(n, (weight, state))| (name(n), (*weight, [Live, Draining, InQuestion][usize::from(*state)])))
                        .collect();
                    let members: Vec<_> =
                        members.iter().map(|(name, (weight, state))| (name.as_str(), *weight, 7, *state)).collect();
                    snapshot(1, &members)
                })
                .collect();
            let merged = merge(told.iter());
            let addresses: BTreeSet<String> = parts.iter().flat_map(|part| part.keys().map(name)).collect();
            prop_assert_eq!(merged.len(), addresses.len());
            for member in merged.iter() {
                let address = &member.instance().address;
                let says: Vec<&Member> = told.iter().filter_map(|part| part.get(address)).collect();
                prop_assert!(Arc::ptr_eq(member.shared_instance(), says[0].shared_instance()), "no copy is made");
                let is_live = says.iter().any(|member| member.state() == Live);
                prop_assert_eq!(member.state() == Live, is_live);
                let is_draining = !is_live && says.iter().any(|member| member.state() == Draining);
                prop_assert_eq!(member.state() == Draining, is_draining);
            }
        }
    }
}
