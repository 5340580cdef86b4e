//! The newest snapshot of a service: a watcher's own, or one that is merged from those of several registries.
//!
//! A merge has no task: each call makes it from what the watchers know now, and from the merge before, as far as that
//! still holds.

use std::future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_all;
use futures_util::stream::{self, BoxStream, StreamExt};
use tokio::time::{Instant, sleep_until};

use super::watcher::Listener;
use crate::snapshot::{Member, MemberList, MemberState, Snapshot};

/// The newest snapshot of a service.
#[derive(Debug, Clone)]
pub(crate) struct Snapshots {
    subscriptions: Vec<Subscription>,
    /// When the first snapshot stops waiting for registries that have not answered.
    open_at: Instant,
    merged: Option<Merged>,
    yielded: Option<Arc<Snapshot>>,
}

/// The snapshots of one registry.
#[derive(Debug, Clone)]
struct Subscription {
    listener: Listener,
    /// The last snapshot; it stands until another watcher has listed, where the runtime of the first watcher ended.
    known: Option<Arc<Snapshot>>,
}

/// A merge, kept until a part of it changes.
#[derive(Debug, Clone)]
struct Merged {
    parts: Vec<Option<Arc<Snapshot>>>,
    whole: Arc<Snapshot>,
}

impl Snapshots {
    /// The snapshots of one service in several registries, the most important registry first.
    pub(crate) fn new(listeners: impl IntoIterator<Item = Listener>) -> Self {
        let subscriptions = listeners.into_iter().map(|listener| Subscription { listener, known: None }).collect();
        Self { subscriptions, open_at: Instant::now() + FIRST_LISTS, merged: None, yielded: None }
    }

    /// The latest; `None` until the first one.
    pub(super) fn latest(&mut self) -> Option<Arc<Snapshot>> {
        let mut parts: Vec<_> = self.subscriptions.iter_mut().map(Subscription::latest).collect();
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
                let whole = merge(self.merged.as_ref(), parts);
                let before = self.merged.take().map(|merged| merged.whole);
                before.filter(|before| before.is_same(&whole)).unwrap_or_else(|| Arc::new(whole))
            }
        };
        self.merged = Some(Merged { parts, whole: whole.clone() });
        Some(whole)
    }

    /// Counts the latest as not yielded yet.
    pub(super) fn mark_changed(&mut self) {
        self.yielded = None;
    }

    /// The latest and all that follow, each as soon as it is there; a poll skips to the newest. Never ends.
    pub(crate) fn into_stream(mut self) -> BoxStream<'static, Arc<Snapshot>> {
        self.mark_changed();
        stream::unfold(self, |mut snapshots| async move { Some((snapshots.next().await, snapshots)) }).boxed()
    }

    /// Waits for a snapshot that was not yielded yet.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: what was not returned counts as not yielded.
    pub(super) async fn next(&mut self) -> Arc<Snapshot> {
        loop {
            let latest = self.latest();
            if let Some(news) =
                latest.filter(|latest| !self.yielded.as_ref().is_some_and(|yielded| Arc::ptr_eq(yielded, latest)))
            {
                return self.yielded.insert(news).clone();
            }
            let is_held_back =
                self.merged.is_none() && self.subscriptions.iter().any(|subscription| subscription.known.is_some());
            let open_at = self.open_at;
            let changes = self.subscriptions.iter_mut().map(|subscription| Box::pin(subscription.listener.changed()));
            tokio::select! {
                () = any(changes) => {}
                () = async { sleep_until(open_at).await }, if is_held_back => {}
            }
        }
    }
}

impl Subscription {
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

/// Every instance of the parts once: as in the first part that has it, with a state merged from all. Only addresses
/// about which a part says something else than in the merge `before` are merged anew.
fn merge(before: Option<&Merged>, parts: &[Option<Arc<Snapshot>>]) -> Snapshot {
    let nothing = Snapshot::new(0, Vec::new());
    let mut addresses = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        let part_before = before.and_then(|before| before.parts.get(index)?.as_deref()).unwrap_or(&nothing);
        let differences = part.as_deref().unwrap_or(&nothing).changes_since(part_before);
        addresses.extend(differences.map(|difference| difference.address().clone()));
    }
    addresses.sort_unstable();
    addresses.dedup();
    let known = || parts.iter().flatten();
    let updates = addresses.into_iter().map(|address| {
        let same: Vec<&Member> = known().filter_map(|part| part.get(&address)).collect();
        let first = same.first();
        let member = first.map(|first| Member::new(first.shared_instance().clone(), first.lease(), state(&same)));
        (address, member)
    });
    let members = before.map_or_else(MemberList::default, |before| before.whole.members().clone());
    let revision = known().map(|part| part.revision()).max().unwrap_or(0);
    Snapshot::of_list(revision, members.updated(updates.collect()), known().map(|part| part.cut_off()).sum())
}

/// Live if one of them is, since a server may leave one registry and stay in another. Else draining if one of them is:
/// a key that went silently contradicts no other.
fn state(same: &[&Member]) -> MemberState {
    let says = |state| same.iter().any(|member| member.state() == state);
    if says(MemberState::Live) {
        MemberState::Live
    } else if says(MemberState::Draining) {
        MemberState::Draining
    } else {
        MemberState::Suspect
    }
}

/// How long the first snapshot waits for the registries that have not answered, once one has: a list takes
/// milliseconds, and one member that is silent is skipped after a second. Channels let calls wait for 5 s.
const FIRST_LISTS: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use futures_util::FutureExt;
    use proptest::prelude::*;
    use tokio::sync::watch;

    use super::MemberState::{Draining, Live, Suspect};
    use super::*;
    use crate::discover::watcher::tests::published;
    use crate::instance::{Address, Instance};

    type Publisher = watch::Sender<Option<Arc<Snapshot>>>;

    /// Snapshots of that many registries, and the publisher of each.
    fn following(count: usize) -> (Vec<Publisher>, Snapshots) {
        let (publishers, listeners): (Vec<_>, Vec<_>) = (0..count).map(|_| watch::channel(None)).unzip();
        (publishers, Snapshots::new(listeners.into_iter().map(published)))
    }

    fn snapshot(revision: i64, members: &[(&str, u16, i64, MemberState)]) -> Arc<Snapshot> {
        let members = members.iter().map(|(address, weight, lease, state)| {
            let address: Address = address.parse().expect("an address");
            Member::new(Arc::new(Instance::new("echo", address).with_weight(*weight)), *lease, *state)
        });
        Arc::new(Snapshot::new(revision, members.collect()))
    }

    fn publish(publisher: &Publisher, members: &[(&str, u16, i64, MemberState)]) {
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
        assert!(snapshots.next().now_or_never().is_none(), "and yielded once");
        snapshots.mark_changed();
        assert!(Arc::ptr_eq(&snapshots.next().await, &first), "unless it is to count as not yielded");
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_is_there_while_one_registry_has_it() {
        let (publishers, mut snapshots) = following(2);
        publish(&publishers[0], &[("a:1", 1, 7, Live), ("c:1", 3, 7, Live)]);
        publish(&publishers[1], &[("a:1", 10, 8, Live), ("b:1", 20, 8, Live)]);
        let merged = snapshots.next().await;
        assert_eq!(
            show(&merged),
            ["a:1 weight 1 lease 7 Live", "b:1 weight 20 lease 8 Live", "c:1 weight 3 lease 7 Live"]
        );

        publish(&publishers[0], &[]);
        let merged = snapshots.next().await;
        assert_eq!(show(&merged), ["a:1 weight 10 lease 8 Live", "b:1 weight 20 lease 8 Live"]);
        publish(&publishers[1], &[]);
        assert!(snapshots.next().await.is_empty(), "gone from the last one, it is gone");
    }

    #[tokio::test(start_paused = true)]
    async fn what_changes_nothing_in_the_merge_is_not_told() {
        let (publishers, mut snapshots) = following(2);
        publish(&publishers[0], &[("a:1", 1, 7, Live)]);
        publish(&publishers[1], &[]);
        let before = snapshots.next().await;
        publish(&publishers[1], &[("a:1", 99, 8, Draining)]);
        assert!(snapshots.next().now_or_never().is_none(), "the first registry decides");
        let after = snapshots.latest().expect("it is known");
        assert!(Arc::ptr_eq(&before, &after));
    }

    #[test]
    fn a_merged_state_is_the_one_that_knows_most() {
        for (one, other, merged) in [
            (Live, Live, Live),
            (Live, Draining, Live),
            (Live, Suspect, Live),
            (Draining, Draining, Draining),
            (Draining, Suspect, Draining),
            (Suspect, Suspect, Suspect),
        ] {
            for (first, second) in [(one, other), (other, one)] {
                let parts = [snapshot(3, &[("a:1", 1, 7, first)]), snapshot(5, &[("a:1", 2, 8, second)])];
                let whole = merge(None, &parts.map(Some));
                assert_eq!(show(&whole), [format!("a:1 weight 1 lease 7 {merged:?}")], "{first:?} and {second:?}");
                assert_eq!(whole.revision(), 5, "the highest of both");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_snapshot_waits_for_all_that_answer_in_time() {
        let (publishers, mut snapshots) = following(2);
        publish(&publishers[1], &[("b:1", 1, 8, Live)]);
        assert!(snapshots.next().now_or_never().is_none() && snapshots.latest().is_none(), "half the truth is none");
        let start = Instant::now();
        let answer = async {
            tokio::time::sleep(FIRST_LISTS / 2).await;
            publish(&publishers[0], &[("a:1", 1, 7, Live)]);
        };
        let (merged, ()) = tokio::join!(snapshots.next(), answer);
        assert_eq!(merged.len(), 2, "both are in the first one");
        assert_eq!(start.elapsed(), FIRST_LISTS / 2, "as soon as the second answered");
    }

    #[tokio::test(start_paused = true)]
    async fn an_unreachable_registry_hides_the_others_for_two_seconds_at_most() {
        let (publishers, mut snapshots) = following(3);
        publish(&publishers[1], &[("b:1", 1, 8, Live)]);
        let start = Instant::now();
        assert_eq!(snapshots.next().await.len(), 1, "what is known is yielded");
        assert_eq!(start.elapsed(), FIRST_LISTS);

        publish(&publishers[2], &[("c:1", 1, 9, Live)]);
        assert_eq!(
            snapshots.next().now_or_never().map(|merged| merged.len()),
            Some(2),
            "a late registry is taken in at once"
        );
        publish(&publishers[0], &[("a:1", 1, 7, Live)]);
        assert_eq!(snapshots.next().now_or_never().map(|merged| merged.len()), Some(3));
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_answer_is_enough_after_two_seconds_without_any() {
        let (publishers, mut snapshots) = following(2);
        assert!(tokio::time::timeout(FIRST_LISTS * 2, snapshots.next()).await.is_err(), "nothing is known");
        publish(&publishers[1], &[]);
        assert_eq!(snapshots.next().now_or_never().map(|merged| merged.len()), Some(0), "an empty list is an answer");
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_snapshot_of_a_watcher_that_went_down_stands() {
        let (mut publishers, mut snapshots) = following(2);
        publish(&publishers[0], &[("a:1", 1, 7, Live)]);
        publish(&publishers[1], &[("b:1", 1, 8, Live)]);
        assert_eq!(snapshots.next().await.len(), 2);
        // With its runtime. Another watcher finds an etcd that is unreachable.
        drop(publishers.remove(0));
        publish(&publishers[0], &[("b:1", 2, 8, Live)]);
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
        publish(&publishers[0], &[]);
        publish(&publishers[1], &[]);
        snapshots.next().await;
        for weight in 1..10 {
            assert!(snapshots.next().now_or_never().is_none(), "polled, and given up");
            let which = usize::from(weight % 2);
            publish(&publishers[which], &[(["a:1", "b:1"][which], weight, 7, Live)]);
            let merged = snapshots.next().now_or_never().expect("the change is there");
            assert!(merged.iter().any(|member| member.instance().weight == weight), "{merged:?}");
        }
    }

    proptest! {
        #[test]
        fn a_merge_that_is_made_of_the_one_before_is_the_one_made_from_scratch(
            history in prop::collection::vec((0..3_usize, prop::collection::btree_map(0..9u8, (1..9u16, 0..3u8), 0..9)), 1..9),
        ) {
            let (mut parts, mut before) = (vec![None; 3], None);
            for (which, members) in history {
                let names: Vec<String> = members.keys().map(|n| format!("{}:1", char::from(b'a' + n))).collect();
                let state = |state: &u8| [Live, Draining, Suspect][usize::from(*state)];
                let members: Vec<_> = members.values().zip(&names).map(|((weight, n), name)| (name.as_str(), *weight, 7, state(n))).collect();
                parts[which] = Some(snapshot(1, &members));
                let whole = merge(before.as_ref(), &parts);
                prop_assert_eq!(&whole, &merge(None, &parts));
                before = Some(Merged { parts: parts.clone(), whole: Arc::new(whole) });
            }
        }

        #[test]
        fn a_merge_has_every_address_once_as_the_first_says(
            parts in prop::collection::vec(prop::collection::btree_map(0..9u8, (1..99u16, 0..3u8), 0..9), 0..4),
        ) {
            let name = |n: &u8| format!("{}:1", char::from(b'a' + n));
            let yielded: Vec<Arc<Snapshot>> = parts
                .iter()
                .map(|part| {
                    let members: BTreeMap<String, (u16, MemberState)> = part
                        .iter()
                        .map(|(n, (weight, state))| (name(n), (*weight, [Live, Draining, Suspect][usize::from(*state)])))
                        .collect();
                    let members: Vec<_> =
                        members.iter().map(|(name, (weight, state))| (name.as_str(), *weight, 7, *state)).collect();
                    snapshot(1, &members)
                })
                .collect();
            let merged = merge(None, &yielded.iter().cloned().map(Some).collect::<Vec<_>>());
            let addresses: BTreeSet<String> = parts.iter().flat_map(|part| part.keys().map(name)).collect();
            prop_assert_eq!(merged.len(), addresses.len());
            for member in &merged {
                let address = &member.instance().address;
                let says: Vec<&Member> = yielded.iter().filter_map(|part| part.get(address)).collect();
                prop_assert!(Arc::ptr_eq(member.shared_instance(), says[0].shared_instance()), "no copy is made");
                let is_live = says.iter().any(|member| member.state() == Live);
                prop_assert_eq!(member.state() == Live, is_live);
                let is_draining = !is_live && says.iter().any(|member| member.state() == Draining);
                prop_assert_eq!(member.state() == Draining, is_draining);
            }
        }
    }
}
