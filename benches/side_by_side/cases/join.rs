//! A running server's key is put into a real etcd: how soon it answers a call, against how soon etcd reports any key.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use etcd_client::{Client, EventType, WatchOptions, WatchStream};
use tokio::time::timeout;
use tonic_etcd::format::{Entry, Format, Kitex};
use tonic_etcd::{BalancedChannel, Instance, Registry, ServiceName};

use crate::load::Caller;
use crate::processes::{Etcd, Servers};
use crate::proto::echo::echo_client::EchoClient;
use crate::results::{Line, Results, Row, Unit};
use crate::rounds::{Plan, milliseconds};
use crate::statistics::{estimate, median, rounded};
use crate::subject::TONIC_ETCD;

/// Both times are taken while calls go one after another, and take turns at being the first of a round.
pub(crate) async fn run(plan: Plan, results: &mut Results) {
    let (etcd, servers) = (Etcd::start().await, Servers::start(2));
    let mut client = etcd.client().await;
    let registry = Registry::builder([etcd.url()]).build().expect("a good URL");
    let mut watch = client.watch("raw/", Some(WatchOptions::new().with_prefix())).await.expect("etcd watches");

    let (mut raw, mut joined) = (Vec::new(), Vec::new());
    for round in 0..plan.rounds {
        // A service of its own, so that no round sees what is left of another.
        let service: ServiceName = format!("join-{round}").parse().expect("a good name");
        put(&mut client, &service, servers.addresses()[0]).await;
        let channel = registry.channel(service.as_str()).build().expect("the defaults make a channel");
        channel.ready_within(LIMIT).await.expect("the channel finds the first server in time");

        for turn in [round % 2, (round + 1) % 2] {
            if turn == 0 {
                raw.push(milliseconds(until_told(&mut client, &mut watch, &channel, round).await));
            } else {
                let joins = until_answered(&mut client, &channel, &service, servers.addresses()[1]);
                joined.push(milliseconds(timeout(LIMIT, joins).await.expect("the second server answers in time")));
            }
        }
    }

    for (case, subject, times) in [("join", TONIC_ETCD, &joined), ("join", "raw-watch", &raw)] {
        let (median_ms, rounds) = (Some(rounded(median(times))), Some(times.len()));
        results.line(&Line { case, subject, median_ms, rounds, ..Line::default() });
    }
    let beyond: Vec<f64> = joined.iter().zip(&raw).map(|(joined, raw)| joined - raw).collect();
    let goal_of = "put in etcd to first call answered by the new instance, beyond the raw put-to-event time";
    results.row(Row::at_most(goal_of, estimate(&beyond), 2.0, Unit::Milliseconds));
}

/// From the put of a key that is no instance's to its event.
async fn until_told(client: &mut Client, watch: &mut WatchStream, channel: &BalancedChannel, round: usize) -> Duration {
    let mut caller = EchoClient::new(channel.clone());
    let key = format!("raw/{round}");
    let begin = Instant::now();
    let told = async {
        loop {
            let response = watch.message().await.expect("etcd tells").expect("the watch goes on");
            let ours = |event: &etcd_client::Event| {
                event.event_type() == EventType::Put && event.kv().is_some_and(|pair| pair.key() == key.as_bytes())
            };
            if response.events().iter().any(ours) {
                return begin.elapsed();
            }
        }
    };
    let calls = async {
        loop {
            caller.call(None).await.expect("the first server answers");
        }
    };
    let told = async {
        let (put, told) = tokio::join!(client.put(key.as_str(), "", None), told);
        put.expect("etcd takes a key");
        told
    };
    tokio::select! {
        told = timeout(LIMIT, told) => told.expect("etcd tells in time"),
        () = calls => unreachable!("calls go on for ever"),
    }
}

/// From the put of a server's key to the first call that this server answers.
async fn until_answered(
    client: &mut Client,
    channel: &BalancedChannel,
    service: &ServiceName,
    address: SocketAddr,
) -> Duration {
    let mut caller = EchoClient::new(channel.clone());
    let text = address.to_string();
    let begin = Instant::now();
    let answered = async {
        while caller.call(None).await.expect("one of the servers answers").address != text {}
        begin.elapsed()
    };
    tokio::join!(put(client, service, address), answered).1
}

async fn put(client: &mut Client, service: &ServiceName, address: SocketAddr) {
    let instance = Instance::new(service.as_str(), address);
    let value = Kitex::new().encode(&Entry::new(service, &instance, 1, 1));
    let key = format!("{}/{service}/{address}", Kitex::new().default_prefix());
    client.put(key, value, None).await.expect("etcd takes a key");
}

const LIMIT: Duration = Duration::from_secs(10);
