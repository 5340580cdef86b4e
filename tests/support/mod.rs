//! The rig of the integration tests: real etcd processes, servers and example programs, and the
//! faults that happen to them.
//!
//! Everything listens on the loopback interface, and everything ends with its handle. A test waits
//! for conditions ([`eventually`]), never for a duration; limits are generous, because only a
//! failing test reaches them.
//!
//! # Layout
//!
//! - [`etcd`]: one etcd process, or a cluster of three: frozen, killed, restarted, wiped, compacted.
//! - [`costs`]: what etcds were asked for and what this process used, between two moments.
//! - [`pki`]: an authority and its certificates, for an etcd or a server with TLS.
//! - [`grpc_proxy`]: etcd's own proxy, `etcd grpc-proxy`, killed and restarted.
//! - [`proxy`]: a TCP proxy that goes silent, cuts connections or slows them down.
//! - `browser`: a headless Chromium on that page, where one is installed.
//! - [`page`]: the page of the program, asked over a plain socket.
//! - [`process`]: an example program as a child process, its events read from its output.
//! - [`server`]: a tonic server in the test's own process, registered or not.
//! - [`figures`]: what a promise came to, for the table of the soak runs.
//! - [`load`]: calls without end over a balanced channel, and what became of each.
//! - [`neighbour`]: Go programs on the same etcd, with grpc-go and go-zero.

#[cfg(feature = "cli")]
pub mod browser;
pub mod changes;
pub mod costs;
pub mod etcd;
pub mod figures;
pub mod grpc_proxy;
pub mod load;
pub mod neighbour;
pub mod page;
pub mod pki;
pub mod process;
pub mod proxy;
pub mod server;

use std::sync::Once;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

/// How long a test waits for something that must happen, unless its promise says sooner.
///
/// Far above what the slowest machine needs.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Polls `probe` every 10 ms until its answer settles the matter, and returns what it found.
///
/// A `bool` settles it when it is true, an `Option` when it is `Some`. A probe that hangs counts as
/// one that has not settled.
///
/// # Panics
///
/// After `limit`, with `what`: the sentence that should have become true.
pub async fn eventually<A: Answer>(what: &str, limit: Duration, mut probe: impl AsyncFnMut() -> A) -> A::Value {
    let settled = async {
        loop {
            if let Some(value) = probe().await.settled() {
                return value;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    let Ok(value) = tokio::time::timeout(limit, settled).await else {
        panic!("not within {limit:?}: {what}");
    };
    value
}

/// What a probe of [`eventually`] may answer.
pub trait Answer {
    /// What is known once the matter is settled.
    type Value;

    /// The value, if this answer settles the matter.
    fn settled(self) -> Option<Self::Value>;
}

impl Answer for bool {
    type Value = ();

    fn settled(self) -> Option<()> {
        self.then_some(())
    }
}

impl<T> Answer for Option<T> {
    type Value = T;

    fn settled(self) -> Option<T> {
        self
    }
}

/// Shows the log of a failing test, filtered by `RUST_LOG` (`RUST_LOG=tonic_etcd=debug`).
///
/// [`etcd::Etcd::start`] calls it, so that most tests need not.
pub fn init_tracing() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing_subscriber::fmt().with_env_filter(EnvFilter::from_default_env()).with_test_writer().init();
    });
}

const POLL_INTERVAL: Duration = Duration::from_millis(10);
