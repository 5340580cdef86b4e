//! Which member the streams of a process are on: each draws a home by chance, so that a fleet spreads over the members
//! of a cluster, and goes back to it after a failure.
//!
//! ```text
//! At home --the member failed, so a random other one is asked--> Displaced
//!    ^  \                                                          |   |
//!    |   +-- after 15 to 45 minutes: another home is drawn          |   |
//!    +--- the home is there: first look after 10 s to 40 s ---------+   |
//!    +--- it is away for half an hour: another home is drawn -----------+
//! ```
//!
//! Without a way back, each failure would shift its member's share to the others for good: after a rolling upgrade of
//! etcd one member would be empty.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::connection::Connection;
use super::members::{Members, Successors};
use super::survey::Surveys;
use crate::backoff::{Backoff, spread, up_to};

/// When the stream on one member draws again, and what comes of it.
#[derive(Clone)]
pub(super) struct Spread {
    members: Arc<Members>,
    surveys: Arc<Surveys>,
    /// The member of the stream.
    index: usize,
    displaced: watch::Receiver<u64>,
    successors: Successors,
    again: Backoff,
}

impl Spread {
    pub(super) fn new(members: Arc<Members>, surveys: Arc<Surveys>, index: usize) -> Self {
        let (displaced, successors) = (members.displacements(), members.successors());
        Self { members, surveys, index, displaced, successors, again: Backoff::new(AGAIN_FIRST, AGAIN_MAX) }
    }

    /// Whether other members are named by now.
    pub(super) fn is_over(&self) -> bool {
        self.successors.are_named()
    }

    /// Tells when other members are named: watches on this one have to move then.
    pub(super) fn successors(&self) -> Successors {
        self.successors.clone()
    }

    /// Whether there is more than one member.
    pub(super) fn has_others(&self) -> bool {
        self.members.len() > 1
    }

    /// Gives up a connection that is of no use: the next call opens another one.
    pub(super) fn forget(&self, connection: &Arc<Connection>) {
        self.members.forget(connection);
    }

    /// How long a stream that is opened stays before it draws.
    pub(super) fn first_draw(&mut self) -> Duration {
        self.again.reset();
        if self.members.is_displaced() { EARLIEST + up_to(EARLIEST * 3) } else { spread(AGE, 0.5) }
    }

    /// How long it stays after a draw that left it where it is.
    pub(super) fn next_draw(&mut self) -> Duration {
        if self.members.is_displaced() { spread(self.again.longest(), 0.5) } else { spread(AGE, 0.5) }
    }

    /// Resolves when the process was displaced once more; never, where there is one member alone.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(super) async fn displaced(&mut self) {
        if !self.has_others() || self.displaced.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Looks for the member that the streams of the process should be on; returns whether those on this one have to
    /// move.
    pub(super) async fn draw(&self) -> bool {
        let preferred = self.members.preferred();
        // A call failed here, and the stream is well.
        if self.members.home() == self.index && preferred != self.index {
            if self.surveys.is_there(self.index, LIMIT).await {
                self.members.settle(preferred, self.index);
            }
            return false;
        }
        if preferred != self.index {
            return self.surveys.is_there(preferred, LIMIT).await;
        }
        if self.members.is_displaced() {
            let home = self.members.home();
            if self.surveys.is_there(home, LIMIT).await {
                return self.settle(home);
            }
            if !self.members.is_displaced_for(AGE) {
                return false;
            }
        }
        let Some(drawn) = self.members.random(|member| !member.is_strange()) else { return false };
        (drawn == self.index || self.surveys.is_there(drawn, LIMIT).await) && self.settle(drawn)
    }

    fn settle(&self, home: usize) -> bool {
        self.members.settle(self.index, home) && home != self.index
    }
}

/// How long a stream stays on a member that nothing is wrong with, give or take half of it: load that went elsewhere in
/// a way that was not seen comes back within the hour.
const AGE: Duration = Duration::from_secs(30 * 60);

/// How soon a displaced process looks for its home at the earliest: a member that restarts is back by then, and busy
/// with others no more.
const EARLIEST: Duration = Duration::from_secs(10);

/// How soon it looks again at first.
const AGAIN_FIRST: Duration = Duration::from_secs(20);

/// How rarely in the end.
const AGAIN_MAX: Duration = Duration::from_secs(5 * 60);

/// How long a member may take to show that it is there.
const LIMIT: Duration = Duration::from_secs(2);
