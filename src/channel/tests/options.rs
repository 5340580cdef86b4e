//! Options that cannot be meant, or do not go with one another, are refused by `build()`, which says what to write.

use std::time::Duration;

use http::{HeaderName, Uri};
use tonic::Code;
use tower::util::service_fn;

use super::client::over;
use super::peers::{Network, OnConnect, Reply};
use super::rig::{Rig, SECOND, is_ejected, rest};
use crate::channel::{ChannelBuilder, Connectivity};
use crate::outlier::OutlierDetection;
use crate::policy::{Candidate, LeastRequest, PickFirst, Picker, Policy, RingHash, WeightedRoundRobin};

/// Why a channel with these options is refused.
fn refused(options: impl FnOnce(ChannelBuilder) -> ChannelBuilder) -> String {
    options(over([([127, 0, 0, 1], 1).into()])).build().expect_err("these options are refused").to_string()
}

fn accepted(options: impl FnOnce(ChannelBuilder) -> ChannelBuilder) {
    let built = options(over([([127, 0, 0, 1], 1).into()])).build();
    assert!(built.is_ok(), "these options are fine: {:?}", built.err());
}

fn ring() -> RingHash {
    RingHash::by_header(HeaderName::from_static("x-user"))
}

/// A policy around another one.
#[derive(Debug)]
struct Around<P>(P);

impl<P: Policy> Policy for Around<P> {
    fn picker(&self, candidates: &[Candidate]) -> Box<dyn Picker> {
        self.0.picker(candidates)
    }

    fn inner(&self) -> Option<&dyn Policy> {
        Some(&self.0)
    }
}

#[tokio::test]
async fn a_ring_of_a_subset_is_refused_whoever_asks_for_the_ring() {
    let begin =
        format!("subset does not go with {:?}: all clients of this policy have to see the same instances", ring());
    assert!(refused(|builder| builder.subset(2).policy(ring())).starts_with(&begin));
    assert!(refused(|builder| builder.policy(ring()).subset_as(2, "pod-1")).starts_with(&begin), "in any order");
    let wrapped = refused(|builder| builder.subset(2).policy(Around(Box::new(ring()) as Box<dyn Policy>)));
    assert!(wrapped.starts_with(&format!("subset does not go with Around({:?}): ", ring())), "{wrapped}");
    let config = r#"{"loadBalancingConfig":[{"ring_hash_experimental":{"requestHashHeader":"x-user"}}]}"#;
    let config = config.parse::<crate::channel::ServiceConfig>().expect("a good config");
    let by_config = refused(|builder| builder.subset(2).service_config(config.clone()));
    assert!(by_config.starts_with("subset does not go with RingHash"), "{by_config}");
    assert!(by_config.contains(" of the service config: all clients of this policy"), "{by_config}");
    let subset = r#"{"loadBalancingConfig":[{"random_subsetting_experimental":{
        "subsetSize":2,"childPolicy":[{"round_robin":{}}]}}]}"#;
    let subset = subset.parse::<crate::channel::ServiceConfig>().expect("a good config");
    accepted(|builder| builder.policy(ring()).service_config(subset.clone()));
    accepted(|builder| builder.service_config(subset.clone()).policy(ring()));
    accepted(|builder| builder.subset(2).service_config(config).policy(LeastRequest::new()));
    accepted(|builder| builder.subset(2).policy(PickFirst::new()));
    accepted(|builder| builder.subset(2).subset(None).policy(ring()));
    accepted(|builder| builder.prefer_zone("zone", "a").policy(ring()));
}

#[tokio::test]
async fn slow_start_is_refused_where_the_policy_would_not_see_it() {
    for policy in [Box::new(ring()) as Box<dyn Policy>, Box::new(PickFirst::new())] {
        let policy = std::sync::Arc::new(policy);
        let says = refused(|builder| builder.slow_start(SECOND).policy(policy.clone()));
        assert!(says.starts_with(&format!("slow_start does not go with {policy:?}: ")), "{says}");
        accepted(|builder| builder.slow_start(SECOND).slow_start(None).policy(policy));
    }
}

#[tokio::test]
async fn options_that_have_no_effect_beside_others_are_refused() {
    let says = refused(|builder| builder.keep_alive_while_idle(true).http2_keep_alive_interval(None));
    assert!(says.starts_with("keep_alive_while_idle does not go with http2_keep_alive_interval(None): "), "{says}");
    let network = Network::default();
    let own = |builder: ChannelBuilder| builder.connector(network.connector());
    for (says, option) in [
        (refused(|builder| own(builder).tcp_nodelay(false)), "tcp_nodelay"),
        (refused(|builder| own(builder).tcp_keepalive(SECOND)), "tcp_keepalive"),
        (refused(|builder| own(builder.tcp_user_timeout(SECOND))), "tcp_user_timeout"),
    ] {
        assert!(says.starts_with(&format!("{option} does not go with connector: ")), "{says}");
    }
    accepted(|builder| own(builder).tcp_nodelay(true).tcp_keepalive(None).tcp_user_timeout(None));
    accepted(|builder| builder.tcp_nodelay(false).tcp_keepalive(SECOND).tcp_user_timeout(SECOND));
}

#[tokio::test]
async fn values_that_cannot_be_meant_are_refused_with_what_to_write() {
    let origin = |builder: ChannelBuilder, origin| builder.origin(Uri::from_static(origin));
    for (says, expected) in [
        (
            refused(|builder| builder.timeout(Duration::ZERO)),
            "bad timeout 0ns: expected more than zero and at most a year; None is no limit",
        ),
        (
            refused(|builder| builder.timeout(Duration::MAX)),
            "bad timeout 18446744073709551615.999999999s: expected more than zero and at most a year; None is no limit",
        ),
        (
            refused(|builder| builder.slow_start(Duration::ZERO)),
            "bad slow_start 0ns: expected more than zero and at most a day; None switches it off",
        ),
        (
            refused(|builder| builder.tcp_keepalive(Duration::ZERO)),
            "bad tcp_keepalive 0ns: expected more than zero, and at most a year; None switches off what can be",
        ),
        (refused(|builder| builder.subset(0)), "bad subset 0: expected at least 1; None uses all instances"),
        (
            refused(|builder| builder.subset_as(2, "")),
            "bad subset_as an empty name: expected the client's own name, or subset(..) where it has none",
        ),
        (
            refused(|builder| builder.prefer_zone("zone", "")),
            "bad prefer_zone an empty zone: expected the name of a tag, and the client's own zone; leave prefer_zone out \
             where there is none",
        ),
        (
            refused(|builder| builder.prefer_zone("", "a")),
            "bad prefer_zone an empty tag: expected the name of a tag, and the client's own zone; leave prefer_zone out \
             where there is none",
        ),
        (
            refused(|builder| builder.initial_stream_window_size(0)),
            "bad initial_stream_window_size 0: expected 1 to 2147483647, HTTP/2's largest",
        ),
        (
            refused(|builder| builder.http2_max_header_list_size(0)),
            "bad http2_max_header_list_size 0: expected at least 1",
        ),
        (
            refused(|builder| origin(builder, "https://echo/v1")),
            "bad origin https://echo/v1: expected a scheme and an authority without a path: https://echo",
        ),
        (
            refused(|builder| origin(builder, "/v1")),
            "bad origin /v1: expected a scheme and an authority without a path: https://echo",
        ),
    ] {
        assert_eq!(says, expected);
    }
    accepted(|builder| origin(builder, "https://echo").timeout(SECOND).timeout(None));
    accepted(|builder| origin(builder, "https://echo/"));
}

#[test]
fn a_channel_without_a_runtime_is_refused_by_name() {
    let connector = service_fn(|_: Uri| async { Err::<hyper_util::rt::TokioIo<tokio::io::DuplexStream>, _>("never") });
    let error = over([([127, 0, 0, 1], 1).into()]).connector(connector).build().expect_err("there is no runtime");
    assert!(error.to_string().starts_with("ChannelBuilder::build needs a tokio runtime"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn without_outlier_detection_no_instance_is_ejected_whatever_it_does() {
    for (outliers, ejects) in [(Some(OutlierDetection::new()), true), (None, false)] {
        let rig = Rig::with(|builder| builder.policy(WeightedRoundRobin::new()).outlier_detection(outliers));
        let [failing, other] = rig.network.peers(1);
        rig.serve(&[&failing, &other]).await;
        failing.reply(Reply::Fail(Code::Unavailable));
        for _ in 0..20 {
            _ = rig.answer().await;
        }
        rest().await;
        assert_eq!(is_ejected(&rig, &failing), ejects, "{:?}", rig.status(&failing));
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_limit_streams_to_a_removed_instance_go_on() {
    let rig = Rig::with(|builder| builder.removed_stream_limit(None));
    let peer = rig.network.peer(1);
    rig.serve(&[&peer]).await;
    peer.reply(Reply::Hold);
    let held = rig.call();
    peer.calls().reaches(1).await;
    peer.on_connect(OnConnect::Refuse);
    rig.set_instances([]);
    rig.until("it is gone", <[_]>::is_empty).await;
    tokio::time::sleep(Duration::from_secs(86_400)).await;
    assert!(!held.is_finished() && rig.channel.state() != Connectivity::Ready, "a day later it still waits");
    peer.release();
    super::rig::ends(held).await.expect("it is answered");
}
