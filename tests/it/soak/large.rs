//! Large services: what their lists and their changes cost a client.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use etcd_client::{Client, Txn, TxnOp};
use futures_util::StreamExt;
use http::Uri;
use hyper_util::rt::TokioIo;
use rustix::time::{ClockId, clock_gettime};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::sleep;
use tonic_etcd::channel::Connectivity;
use tonic_etcd::{BalancedChannel, Change, Discover, Registry};
use tower::service_fn;

use crate::support::etcd::Etcd;
use crate::support::figures;
use crate::support::process::memory_of;
use crate::support::server::EchoServer;
use crate::support::{LIMIT, eventually};

/// How many changes come a second, and for how long.
const RATE: u32 = 300;
const LENGTH: Duration = Duration::from_secs(20);

/// How many operations etcd takes in one transaction.
const AT_ONCE: usize = 128;

const SUBSET: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "soak: takes half a minute"]
async fn ten_thousand_instances_of_which_300_change_a_second() {
    let large = Large::start(10_000).await;
    let mut discover = large.registry.discover("echo").expect("a good name");
    discover.ready().await;
    large.changes("10,000 instances, 300 changes a second, watched", discover, 15).await;

    let (channel, mut discover) = (large.channel(), large.registry.discover("echo").expect("a good name"));
    discover.ready().await;
    large.changes("10,000 instances, 300 changes a second, with a subset of 20", discover, 15).await;
    assert_eq!(ready(&channel), SUBSET);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "soak: takes a minute"]
async fn a_hundred_thousand_instances() {
    let large = Large::start(100_000).await;
    let before = memory_of("self").0;
    let begin = Instant::now();
    let mut discover = large.registry.discover("echo").expect("a good name");
    let snapshot = discover.ready().await;
    figures::within("100,000 instances are listed", begin.elapsed(), Duration::from_secs(10));
    assert_eq!((snapshot.len(), snapshot.cut_off()), (100_000, 0));
    drop(snapshot);
    sleep(Duration::from_secs(1)).await;
    let watched = memory_of("self").0;
    let mebibytes = |now: u64, then: u64| usize::try_from(now.saturating_sub(then) >> 20).expect("not that much");
    figures::at_most("memory of 100,000 instances in a watch", mebibytes(watched, before), WATCHED, "MiB");

    let channel = large.channel();
    eventually("the subset is connected", LIMIT, async || ready(&channel) == SUBSET).await;
    sleep(Duration::from_secs(1)).await;
    let used = mebibytes(memory_of("self").0, watched);
    figures::at_most("memory of a channel with a subset of 20 of 100,000", used, 24, "MiB");
    large.changes("100,000 instances, 300 changes a second, with a subset of 20", discover, 20).await;
    assert_eq!(ready(&channel), SUBSET);
}

/// What 100,000 instances may take in a watch, in MiB.
const WATCHED: usize = 64;

fn ready(channel: &BalancedChannel) -> usize {
    channel.instances().iter().filter(|status| status.state() == Connectivity::Ready).count()
}

/// A service of many instances, all of which are one server.
struct Large {
    etcd: Etcd,
    registry: Registry,
    server: EchoServer,
    count: usize,
}

impl Large {
    async fn start(count: usize) -> Self {
        let etcd = Etcd::start().await;
        let mut client = etcd.client().await;
        let all: Vec<usize> = (0..count).collect();
        for some in all.chunks(AT_ONCE) {
            let puts = some.iter().map(|n| TxnOp::put(key(*n), value(*n, 10), None));
            client.txn(Txn::new().and_then(puts.collect::<Vec<_>>())).await.expect("etcd takes them");
        }
        let registry = Registry::builder([etcd.url()]).max_instances(100_000).build().expect("a good registry");
        let server = EchoServer::registered(&registry, "server").await;
        Self { etcd, registry, server, count }
    }

    fn channel(&self) -> BalancedChannel {
        let address = self.server.address();
        let connect = move |_: Uri| async move { TcpStream::connect(address).await.map(TokioIo::new) };
        let channel = self.registry.channel("echo").connector(service_fn(connect)).subset_as(SUBSET, "one");
        channel.build().expect("the options are good")
    }

    /// Changes many of them for a while, and tells what that costs this process and how soon it is visible.
    async fn changes(&self, what: &str, discover: Discover, percent: usize) {
        let sent = Sent::default();
        let (latencies, reader) = read(discover, sent.clone());
        // What is known at the start counts neither as a change nor as work.
        sleep(Duration::from_secs(1)).await;
        let (begin, before) = (Instant::now(), cpu(ClockId::ProcessCPUTime));
        let (url, count) = (self.etcd.url(), self.count);
        let writer = thread::spawn(move || write(&url, count, &sent));
        while !writer.is_finished() {
            sleep(Duration::from_millis(100)).await;
        }
        let written = writer.join().expect("the writer ends well");
        let used = cpu(ClockId::ProcessCPUTime).saturating_sub(before).saturating_sub(written);
        reader.abort();
        let mut latencies = std::mem::take(&mut *latencies.lock().unwrap_or_else(PoisonError::into_inner));
        latencies.sort();
        let wanted = usize::try_from(RATE).expect("few") * 10;
        assert!(latencies.len() >= wanted, "most changes are seen: {} are", latencies.len());
        let at = |share: usize| latencies[latencies.len() * share / 100];
        println!("{what}: half within {:?}, 99 of 100 within {:?}", at(50), at(99));
        let tenths = used.as_secs_f64() * 1_000.0 / begin.elapsed().as_secs_f64();
        println!("{what}: {:.1} % of a core", tenths / 10.0);
        figures::within(&format!("{what}: a change is visible, at the median"), at(50), Duration::from_millis(50));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few thousand at most")]
        figures::at_most(&format!("{what}: CPU"), (tenths / 10.0).ceil() as usize, percent, "% of a core");
    }
}

type Latencies = Arc<Mutex<Vec<Duration>>>;

/// When which instance was sent which weight.
type Sent = Arc<Mutex<HashMap<(String, u16), Instant>>>;

/// Notes how soon each change is seen.
fn read(mut discover: Discover, sent: Sent) -> (Latencies, AbortHandle) {
    let latencies = Latencies::default();
    let seen = latencies.clone();
    let reader = tokio::spawn(async move {
        while let Some(Ok(change)) = discover.next().await {
            if let Change::Insert(address, instance) = change
                && instance.weight() != 10
            {
                let sent = sent
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .remove(&(address.to_string(), instance.weight()));
                let latency = sent.map(|at| at.elapsed());
                seen.lock().unwrap_or_else(PoisonError::into_inner).extend(latency);
            }
        }
    });
    (latencies, reader.abort_handle())
}

/// Changes weights on a thread of its own, and returns the CPU time that it took.
fn write(url: &str, count: usize, sent: &Sent) -> Duration {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut client = Client::connect([url], None).await.expect("etcd answers");
        let mut turns = tokio::time::interval(Duration::from_secs(1) / RATE);
        let begin = Instant::now();
        while begin.elapsed() < LENGTH {
            turns.tick().await;
            let (n, weight) = (fastrand::usize(..count), fastrand::u16(11..));
            sent.lock().unwrap_or_else(PoisonError::into_inner).insert((address(n), weight), Instant::now());
            client.put(key(n), value(n, weight), None).await.expect("etcd takes it");
        }
    });
    cpu(ClockId::ThreadCPUTime)
}

fn cpu(clock: ClockId) -> Duration {
    Duration::try_from(clock_gettime(clock)).expect("no time before the beginning")
}

fn address(n: usize) -> String {
    format!("10.{}.{}.{}:50051", n / 62_500, n / 250 % 250, n % 250 + 1)
}

fn key(n: usize) -> String {
    format!("kitex/registry-etcd/echo/{}", address(n))
}

/// About 150 bytes, as a fleet's own may look.
fn value(n: usize, weight: u16) -> String {
    let (address, zone) = (address(n), ["a", "b", "c"][n % 3]);
    format!(
        r#"{{"network":"tcp","address":"{address}","weight":{weight},"tags":{{"zone":"eu-west-1{zone}","version":"2026.11.3","host":"node-{n:06}.internal"}}}}"#
    )
}
