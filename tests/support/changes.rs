//! What a discover stream reports, in words that a test can compare.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::timeout;
use tonic_etcd::{Change, Discover, Instance, Registry, RegistrySet};

use super::LIMIT;
use super::etcd::Etcd;

/// A service's changes, one after the other.
#[derive(Debug)]
pub struct Changes {
    service: String,
    stream: Discover,
}

impl Changes {
    /// Watches a service from now on.
    pub fn of(registry: &Registry, service: &str) -> Self {
        let stream = registry.discover(service).expect("the test's service name is valid, and it has a runtime");
        Self { service: service.to_owned(), stream }
    }

    /// Watches a service in several registries from now on.
    pub fn over(registries: &RegistrySet, service: &str) -> Self {
        let stream = registries.discover(service).expect("the test's service name is valid, and it has a runtime");
        Self { service: service.to_owned(), stream }
    }

    /// The next change.
    ///
    /// # Panics
    ///
    /// If none comes within [`LIMIT`].
    pub async fn next(&mut self) -> Change<String, Instance> {
        let next = timeout(LIMIT, self.stream.next()).await;
        match next.unwrap_or_else(|_| panic!("a change of {} comes in time", self.service)) {
            Some(Ok(Change::Insert(address, instance))) => Change::Insert(address.to_string(), instance),
            Some(Ok(Change::Remove(address))) => Change::Remove(address.to_string()),
            None => panic!("the stream of {} never ends", self.service),
        }
    }

    /// Waits for the next change, which is this address's insert.
    pub async fn expect_insert(&mut self, address: impl ToString) -> Instance {
        match self.next().await {
            Change::Insert(inserted, instance) if inserted == address.to_string() => instance,
            other => panic!("expected an insert of {}, not {}", address.to_string(), show(&other)),
        }
    }

    /// Waits for the next change, which is this address's removal.
    pub async fn expect_remove(&mut self, address: impl ToString) {
        match self.next().await {
            Change::Remove(removed) if removed == address.to_string() => {}
            other => panic!("expected the removal of {}, not {}", address.to_string(), show(&other)),
        }
    }

    /// Shows that nothing was reported since the last change: puts a key of its own into etcd, and that comes next.
    ///
    /// Each call wants a `marker` of its own, such as `127.0.0.1:1`.
    pub async fn expect_nothing_before(&mut self, etcd: &Etcd, marker: &str) {
        let key = format!("kitex/registry-etcd/{}/{marker}", self.service);
        etcd.put(key, format!(r#"{{"network":"tcp","address":"{marker}","weight":10,"tags":null}}"#)).await;
        self.expect_insert(marker).await;
    }

    /// Whether no change comes within `time`. A change that comes is consumed.
    pub async fn stays_quiet_for(&mut self, time: Duration) -> bool {
        timeout(time, self.stream.next()).await.is_err()
    }

    /// The stream itself.
    pub fn stream(&mut self) -> &mut Discover {
        &mut self.stream
    }
}

fn show(change: &Change<String, Instance>) -> String {
    match change {
        Change::Insert(address, instance) => format!("an insert of {address} with weight {}", instance.weight()),
        Change::Remove(address) => format!("the removal of {address}"),
    }
}
