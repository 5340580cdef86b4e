//! The clients: calls without end, and what each is told of the servers.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tokio::task::JoinHandle;
use tokio::time::{self, MissedTickBehavior};
use tonic::{Request, Status};
use tonic_etcd::channel::Connectivity;
use tonic_etcd::{BalancedChannel, Change, Discover, Registry};

use super::journal::Journal;
use super::{SERVERS, SETTLED};
use crate::support::eventually;
use crate::support::server::proto::echo::EchoRequest;
use crate::support::server::proto::echo::echo_client::EchoClient;

/// A client: its calls, and what its stream reports.
pub(super) struct Client {
    pub(super) registry: Registry,
    pub(super) channel: BalancedChannel,
    pub(super) known: Discover,
    pub(super) failures: Arc<Mutex<Vec<Failure>>>,
    tasks: [JoinHandle<()>; 2],
}

#[derive(Debug)]
pub(super) struct Failure {
    pub(super) begin: Instant,
    pub(super) end: Instant,
    pub(super) status: Status,
}

impl Client {
    pub(super) async fn start(
        urls: Vec<String>,
        journal: &Journal,
        removals: &Arc<Mutex<Vec<(Instant, String)>>>,
    ) -> Self {
        let registry = Registry::builder(urls).build().expect("a good registry");
        let channel = registry.channel("echo").build().expect("a good channel");
        let known = registry.discover("echo").expect("a good name");
        let mut told = registry.discover("echo").expect("a good name");
        all_ready(&channel).await;
        let failures: Arc<Mutex<Vec<Failure>>> = Arc::default();
        let calls = tokio::spawn(call(channel.clone(), failures.clone()));
        let (journal, removals) = (journal.clone(), removals.clone());
        let removed = tokio::spawn(async move {
            while let Some(Ok(change)) = told.next().await {
                if let Change::Remove(address) = change {
                    journal.note(format!("a client is told of the removal of {address}"));
                    let mut removals = removals.lock().unwrap_or_else(PoisonError::into_inner);
                    removals.push((Instant::now(), address.to_string()));
                }
            }
        });
        Self { registry, channel, known, failures, tasks: [calls, removed] }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

pub(super) async fn all_ready(channel: &BalancedChannel) {
    let ready = async || {
        let instances = channel.instances();
        let is_ready = |status: &tonic_etcd::channel::InstanceStatus| {
            status.state() == Connectivity::Ready && !status.is_ejected()
        };
        instances.len() == SERVERS && instances.iter().all(is_ready)
    };
    eventually("all servers are connected and in use", SETTLED, ready).await;
}

async fn call(channel: BalancedChannel, failures: Arc<Mutex<Vec<Failure>>>) {
    let client = EchoClient::new(channel);
    let mut due = time::interval(Duration::from_secs(1) / RATE);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        due.tick().await;
        let (mut client, failures) = (client.clone(), failures.clone());
        tokio::spawn(async move {
            let mut request = Request::new(EchoRequest { message: "hi".into() });
            request.set_timeout(DEADLINE);
            let begin = Instant::now();
            if let Err(status) = client.unary_echo(request).await {
                let failure = Failure { begin, end: Instant::now(), status };
                failures.lock().unwrap_or_else(PoisonError::into_inner).push(failure);
            }
        });
    }
}

/// Calls a second of each client.
const RATE: u32 = 250;

/// How long a call may take.
const DEADLINE: Duration = Duration::from_secs(1);
