//! The cluster as the rest of the crate sees it: its members of now, which others can replace.
//!
//! ```text
//! named A, B, C --generation--> calls, keepalives, watches
//! named A, B, D --generation--> the next ones of them; open watches move here
//! ```
//!
//! What was begun on members that are not named any more ends there, or fails there and is tried again here. Logins and
//! the pace of attempts are the cluster's own.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::Uri;

use super::connection::Connection;
use super::credentials::Provider;
use super::endpoints::Endpoints;
use super::generation::Generation;
use super::login::Logins;
use super::pace::Pace;
use crate::error::EtcdError;
use crate::targets::ETCD;

/// One etcd cluster.
pub(crate) struct Cluster {
    generation: ArcSwap<Generation>,
    /// Held by the one that replaces the generation.
    replacing: Mutex<()>,
    pace: Arc<Pace>,
}

impl Cluster {
    pub(crate) fn new(endpoints: Endpoints, provider: Option<Provider>) -> Self {
        let logins = provider.map(|provider| Arc::new(Logins::new(provider)));
        let pace = Arc::new(Pace::new());
        let generation = Generation::new(Arc::new(endpoints), logins, pace.clone());
        Self { generation: ArcSwap::from_pointee(generation), replacing: Mutex::new(()), pace }
    }

    /// The members of now: those that were named last.
    pub(crate) fn current(&self) -> Arc<Generation> {
        let generation = self.generation.load_full();
        if generation.is_current() { generation } else { self.replace() }
    }

    fn replace(&self) -> Arc<Generation> {
        let _replacing = self.replacing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.generation.load_full();
        if before.is_current() {
            return before;
        }
        let next = Arc::new(before.successor());
        tracing::info!(target: ETCD, ?before, now = ?next, "etcd has other members");
        self.generation.store(next.clone());
        next
    }

    /// The address of the first member, if its URL holds one.
    pub(crate) fn ip(&self) -> Option<IpAddr> {
        self.hosts().first()?.parse().ok()
    }

    /// Whether a member is on this host, by its URL.
    pub(crate) fn is_local(&self) -> bool {
        let is_local = |host: &String| host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        self.hosts().iter().any(is_local)
    }

    /// The hosts of the URLs.
    fn hosts(&self) -> Vec<String> {
        let members = self.current();
        let host = |index| {
            members.name(index).parse::<Uri>().ok()?.host().map(|host| host.trim_matches(['[', ']']).to_owned())
        };
        (0..members.len()).filter_map(host).collect()
    }

    /// Makes one call, on each member of now until one answers, and on those that replaced them meanwhile: see
    /// [`Generation::call`].
    ///
    /// # Errors
    ///
    /// The answer of the first member that gave one, or what the last one failed with.
    pub(crate) async fn call<T, F, Fut>(&self, limit: Duration, call: F) -> Result<T, EtcdError>
    where
        F: Fn(Arc<Connection>) -> Fut,
        Fut: Future<Output = Result<T, EtcdError>>,
    {
        let generation = self.current();
        match generation.call(limit, &call).await {
            Err(error) if error.is_worth_another_member() && !generation.is_current() => {
                self.current().call(limit, &call).await
            }
            answer => answer,
        }
    }

    /// Waits for a turn to try again what failed, and as long as `least`: there is one budget of attempts for all that
    /// a process asks.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(super) async fn turn(&self, least: Duration) {
        self.pace.turn(least).await;
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("members", &self.generation.load()).finish_non_exhaustive()
    }
}
