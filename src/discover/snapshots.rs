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
mod tests;
