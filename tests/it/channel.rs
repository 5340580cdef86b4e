//! This crate's own channel, on real etcd.

use std::collections::HashSet;

use tonic::{Code, Request, Status};
use tonic_etcd::policy::WeightedRoundRobin;
use tonic_etcd::{BalancedChannel, Instance, Registry};

use crate::support::costs::Costs;
use crate::support::etcd::Etcd;
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

/// One call, and the address that answered it.
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
    let before = Costs::of(&etcd).await.watchers();
    let server = EchoServer::registered(&registry, "echo").await;
    let with_server = Costs::of(&etcd).await.watchers();
    let channels: Vec<BalancedChannel> = (0..1_000).map(|_| channel(&registry)).collect();
    for channel in &channels {
        channel.ready_within(LIMIT).await.expect("every channel finds the server");
    }
    let one_more = async || Costs::of(&etcd).await.watchers() == with_server.max(before + 1) + 1;
    eventually("one watch is open for all of them", LIMIT, one_more).await;
    assert!(Costs::of(&etcd).await.calls("Watch") <= 2, "the server's own key has one, the channels have one");
    drop(channels);
    let ended = async || Costs::of(&etcd).await.watchers() <= with_server.max(before + 1);
    eventually("it ends with the last of them", LIMIT, ended).await;
    server.stop().await;
}

#[tokio::test]
async fn calls_spread_by_weight_and_new_weights_keep_the_connections() {
    let etcd = Etcd::start().await;
    let registry = registry(&etcd);
    let backend = EchoServer::unregistered();
    let proxy = Proxy::start(backend.address().to_string()).await;
    let registration = registry.registration(Instance::new("echo", proxy.address())).build().expect("a good instance");
    registration.start();
    let other = EchoServer::registered(&registry, "echo").await;
    // Shares by weight alone, whatever the proxy adds to a call's latency.
    let channel = registry.channel("echo").policy(WeightedRoundRobin::new()).build().expect("a good channel");
    let both = async || {
        let answers: HashSet<_> = [call(&channel).await.ok(), call(&channel).await.ok()].into();
        answers.len() == 2 && !answers.contains(&None)
    };
    eventually("both answer", LIMIT, both).await;
    let accepted = proxy.accepted();

    registration.update(|instance| instance.with_weight(1_000).with_tag("zone", "b")).expect("a good weight");
    let updated = async || {
        channel
            .instances()
            .iter()
            .any(|status| status.instance().weight() == 1_000 && &status.instance().tags()["zone"] == "b")
    };
    eventually("the channel knows the new weight", LIMIT, updated).await;
    let mut heavy = 0;
    for _ in 0..300 {
        heavy += u32::from(call(&channel).await.expect("a call succeeds") == backend.address().to_string());
    }
    assert!(heavy > 290, "of 300 calls it gets 1,000 of 1,010 parts: {heavy}");
    assert_eq!(proxy.accepted(), accepted, "on the same connection");
    registration.deregister().await;
    other.stop().await;
}

#[tokio::test]
async fn an_empty_service_fails_at_once_and_says_which_it_is() {
    let etcd = Etcd::start().await;
    let channel = channel(&registry(&etcd));
    let status = call(&channel).await.expect_err("no server is registered");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    for part in ["echo", "kitex/registry-etcd", "no instance is registered"] {
        assert!(status.message().contains(part), "{part:?} is missing in {:?}", status.message());
    }
}
