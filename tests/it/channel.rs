//! This crate's own channel, on real etcd.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use tonic::{Code, Request, Status};
use tonic_etcd::{BalancedChannel, Instance, Registry};

use crate::support::etcd::Etcd;
use crate::support::metrics::{started, watchers};
use crate::support::proxy::Proxy;
use crate::support::server::EchoServer;
use crate::support::server::proto::echo::EchoRequest;
use crate::support::server::proto::echo::echo_client::EchoClient;
use crate::support::{LIMIT, eventually};

fn registry(etcd: &Etcd) -> Registry {
    Registry::builder([etcd.url()]).build().expect("a good registry")
}

fn channel(registry: &Registry) -> BalancedChannel {
    registry.channel("echo").build().expect("the defaults make a channel")
}

/// One call, and who answered it.
async fn call(channel: &BalancedChannel) -> Result<String, Status> {
    let mut request = Request::new(EchoRequest { message: "hi".into() });
    request.set_timeout(LIMIT);
    let reply = EchoClient::new(channel.clone()).unary_echo(request).await?;
    Ok(reply.into_inner().address)
}

#[tokio::test]
async fn a_thousand_channels_of_one_service_share_one_watch() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd);
    let before = watchers(&etcd).await;
    let server = EchoServer::registered(&registry, "echo").await;
    let with_server = watchers(&etcd).await;
    let channels: Vec<BalancedChannel> = (0..1_000).map(|_| channel(&registry)).collect();
    for channel in &channels {
        tokio::time::timeout(LIMIT, channel.ready()).await.expect("every channel finds the server");
    }
    let one_more = async || watchers(&etcd).await == with_server.max(before + 1) + 1;
    eventually("one watch is open for all of them", LIMIT, one_more).await;
    assert!(started(&etcd, "Watch").await <= 2, "the server's own key has one, the channels have one");
    drop(channels);
    let ended = async || watchers(&etcd).await <= with_server.max(before + 1);
    eventually("it ends with the last of them", LIMIT, ended).await;
    server.stop().await;
}

#[tokio::test]
async fn a_join_is_called_and_a_leave_is_not_without_a_failed_call() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd);
    let channel = channel(&registry);
    let mut servers = vec![EchoServer::registered(&registry, "echo").await];
    tokio::time::timeout(LIMIT, channel.ready()).await.expect("the first one is found");
    let calls = {
        let channel = channel.clone();
        tokio::spawn(async move {
            let mut failed = Vec::new();
            let end = Instant::now() + Duration::from_secs(60);
            while Instant::now() < end && channel.instances().len() != 5 {
                if let Err(status) = call(&channel).await {
                    failed.push(status);
                }
            }
            failed
        })
    };
    // Each is replaced by another one, all of them under load.
    for _ in 0..3 {
        servers.push(EchoServer::registered(&registry, "echo").await);
        let new = servers[1].address().to_string();
        let joined = async || call(&channel).await.is_ok_and(|by| by == new);
        eventually("the new one answers", LIMIT, joined).await;
        let old = servers.remove(0);
        let gone = old.address();
        old.stop().await;
        let left = async || channel.instances().iter().all(|status| status.instance().address != gone.into());
        eventually("the old one is off the list", LIMIT, left).await;
        for _ in 0..20 {
            assert_eq!(call(&channel).await.expect("a call succeeds"), new, "only the new one is called");
        }
    }
    calls.abort();
    match calls.await {
        Ok(failed) => assert!(failed.is_empty(), "{failed:?}"),
        Err(error) => assert!(error.is_cancelled(), "{error}"),
    }
    for server in servers {
        server.stop().await;
    }
}

#[tokio::test]
async fn calls_spread_over_all_servers_by_weight_and_new_weights_keep_the_connections() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd);
    let backend = EchoServer::unregistered();
    let proxy = Proxy::start(backend.address().to_string()).await;
    let registration = registry.register(Instance::new("echo", proxy.address())).build().expect("a good instance");
    registration.start();
    let other = EchoServer::registered(&registry, "echo").await;
    let channel = channel(&registry);
    let both = async || {
        let answers: HashSet<_> = [call(&channel).await.ok(), call(&channel).await.ok()].into();
        answers.len() == 2 && !answers.contains(&None)
    };
    eventually("both answer", LIMIT, both).await;
    let open = proxy.open();

    registration.update(|instance| instance.weight(1_000).tag("zone", "b")).expect("a good weight");
    let updated = async || {
        channel
            .instances()
            .iter()
            .any(|status| status.instance().weight == 1_000 && status.instance().tags["zone"] == "b")
    };
    eventually("the channel knows the new weight", LIMIT, updated).await;
    let mut heavy = 0;
    for _ in 0..300 {
        heavy += u32::from(call(&channel).await.expect("a call succeeds") == backend.address().to_string());
    }
    assert!(heavy > 250, "of 300 calls it gets nearly all: {heavy}");
    assert_eq!(proxy.open(), open, "on the same connection");
    registration.deregister().await;
    other.stop().await;
}

#[tokio::test]
async fn an_empty_service_fails_at_once_and_says_which_it_is() {
    let etcd = Etcd::start().await;
    let channel = channel(&registry(&etcd));
    let status = call(&channel).await.expect_err("nobody is registered");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    for part in ["echo", "kitex/registry-etcd", "no instance is registered"] {
        assert!(status.message().contains(part), "{part:?} is missing in {:?}", status.message());
    }
}

#[tokio::test]
async fn the_only_server_may_come_back_and_is_called_within_a_second() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd);
    let channel = channel(&registry);
    let first = EchoServer::registered(&registry, "echo").await;
    eventually("it is called", LIMIT, async || call(&channel).await.is_ok()).await;
    first.stop().await;
    eventually("calls fail at once", LIMIT, async || call(&channel).await.is_err()).await;
    let again = EchoServer::registered(&registry, "echo").await;
    let answered = async || call(&channel).await.is_ok_and(|by| by == again.address().to_string());
    eventually("its successor is called", LIMIT, answered).await;
    again.stop().await;
}

#[tokio::test]
async fn an_etcd_that_is_down_at_the_start_is_a_reason_and_not_a_hang() {
    let registry = Registry::builder(["http://127.0.0.1:1"]).build().expect("a good registry");
    let channel = channel(&registry);
    let begun = Instant::now();
    let status = call(&channel).await.expect_err("there is no etcd");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("has not told"), "{status:?}");
    assert!(begun.elapsed() < LIMIT, "it does not wait for its deadline");
}
