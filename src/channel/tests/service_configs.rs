//! What a service config says becomes options of a channel, and those that the channel is given itself come first.

use tokio::time::Instant;
use tonic::Code;

use super::peers::{Peer, Reply};
use super::rig::{Rig, SECOND, ends, is_ejected, live, rest};
use crate::channel::{ChannelBuilder, Connectivity, InstanceStatus, ServiceConfig, WaitForReady};
use crate::policy::PickFirst;
use crate::retry::{RetryPolicy, RetryThrottling};

fn config(text: &str) -> ServiceConfig {
    text.parse().expect(text)
}

/// Channels with a config and options of their own, given before the config and after it.
fn both_orders(text: &str, own: impl Fn(ChannelBuilder) -> ChannelBuilder) -> [Rig; 2] {
    [
        Rig::with(|builder| own(builder).service_config(config(text))),
        Rig::with(|builder| own(builder.service_config(config(text)))),
    ]
}

#[tokio::test(start_paused = true)]
async fn the_older_name_of_a_policy_is_the_policy_of_the_channel() {
    for (name, share) in [("ROUND_ROBIN", [10, 10]), ("pick_first", [20, 0])] {
        let text = format!(r#"{{"loadBalancingPolicy":"{name}"}}"#);
        let rig = Rig::with(|builder| builder.service_config(config(&text)));
        let [one, two] = rig.network.peers(1);
        rig.serve(&[&one, &two]).await;
        let answers = [rig.answers_of(&one, 20).await, rig.answers_of(&two, 20).await];
        assert!(answers == share || name == "pick_first" && answers == [0, 20], "{name}: {answers:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_channels_own_wait_for_ready_comes_before_a_methods() {
    for (method, own) in [(true, false), (false, true)] {
        let text = format!(r#"{{"methodConfig":[{{"name":[{{}}],"waitForReady":{method}}}]}}"#);
        for rig in both_orders(&text, |builder| builder.wait_for_ready(own)) {
            rig.set_instances([]);
            rest().await;
            let begin = Instant::now();
            let status = ends(rig.call_within(SECOND)).await.expect_err("no instance is there");
            let expected = if own { Code::DeadlineExceeded } else { Code::Unavailable };
            assert_eq!((status.code(), begin.elapsed() >= SECOND), (expected, own), "the channel says {own}");
            let call = rig.call_with(|request| {
                request.set_timeout(SECOND);
                request.extensions_mut().insert(WaitForReady(!own));
            });
            let status = ends(call).await.expect_err("no instance is there");
            assert_eq!(status.code() == Code::DeadlineExceeded, !own, "the call's own word comes first");
        }
    }
    let rig =
        Rig::with(|builder| builder.service_config(config(r#"{"methodConfig":[{"name":[{}],"waitForReady":true}]}"#)));
    rig.set_instances([]);
    rest().await;
    let status = ends(rig.call_within(SECOND)).await.expect_err("no instance is there");
    assert_eq!(status.code(), Code::DeadlineExceeded, "where the channel says nothing, the method's counts");
}

/// Ejects instances of whose calls more than half failed, each second.
const OUTLIERS: &str = r#"{"loadBalancingConfig":[{"outlier_detection_experimental":{
    "interval":"1s","baseEjectionTime":"5s","maxEjectionPercent":10,
    "failurePercentageEjection":{"threshold":50,"minimumHosts":2,"requestVolume":5},
    "childPolicy":[{"round_robin":{}}]}}]}"#;

/// Two instances of which the first has failed ten calls in a row, with a code that says that the server is there.
async fn with_a_failing_one(rig: &Rig) -> [Peer; 2] {
    let [bad, good] = rig.network.peers(1);
    bad.reply(Reply::Fail(Code::Internal));
    rig.serve(&[&bad, &good]).await;
    while bad.calls().get() < 10 {
        let _ = rig.answer().await;
    }
    [bad, good]
}

#[tokio::test(start_paused = true)]
async fn outlier_detection_in_a_config_ejects_as_grpc_does() {
    let rig = Rig::with(|builder| builder.service_config(config(OUTLIERS)));
    let [bad, _good] = with_a_failing_one(&rig).await;
    assert!(!is_ejected(&rig, &bad), "failures in a row are nothing in gRPC's terms");
    rig.until_peer(&bad, "10 % of two is one, and any failure counts", InstanceStatus::is_ejected).await;
}

#[tokio::test(start_paused = true)]
async fn the_channels_own_outlier_detection_comes_before_a_configs() {
    for rig in both_orders(OUTLIERS, |builder| builder.outlier_detection(None)) {
        let [bad, _good] = with_a_failing_one(&rig).await;
        tokio::time::sleep(3 * SECOND).await;
        assert!(!is_ejected(&rig, &bad));
    }
}

#[tokio::test(start_paused = true)]
async fn a_subset_in_a_config_is_that_of_the_channel_unless_it_has_its_own() {
    let text = r#"{"loadBalancingConfig":[{"random_subsetting_experimental":{
        "subsetSize":3,"childPolicy":[{"round_robin":{}}]}}]}"#;
    let [before, after] = both_orders(text, |builder| builder.subset(5));
    let [off_before, off_after] = both_orders(text, |builder| builder.subset(None));
    let alone = Rig::with(|builder| builder.service_config(config(text)));
    for (rig, size) in [(alone, 3), (before, 5), (after, 5), (off_before, 10), (off_after, 10)] {
        let peers: [Peer; 10] = rig.network.peers(1);
        rig.set_instances(peers.iter().map(live));
        let is_ready = |state: Connectivity| state == Connectivity::Ready;
        rig.until("as many are READY", |all| {
            all.len() == 10 && all.iter().filter(|status| is_ready(status.state())).count() == size
        })
        .await;
        rest().await;
        assert_eq!(peers.iter().filter(|peer| peer.open() > 0).count(), size);
    }
}

#[tokio::test(start_paused = true)]
async fn the_channels_own_policy_and_budget_come_before_a_configs() {
    let text = r#"{
        "loadBalancingConfig":[{"round_robin":{}}],
        "methodConfig":[{"name":[{}],"retryPolicy":{"maxAttempts":3,"initialBackoff":"0.1s","maxBackoff":"1s",
            "backoffMultiplier":2,"retryableStatusCodes":["UNAVAILABLE"]}}],
        "retryThrottling":{"maxTokens":2,"tokenRatio":0.1}}"#;
    let calls = async |rig: &Rig| {
        let peer = rig.network.peer(1);
        peer.reply(Reply::Fail(Code::Unavailable));
        rig.serve(&[&peer]).await;
        rig.answer().await.expect_err("it fails");
        peer.calls().get()
    };
    let none = |builder: ChannelBuilder| builder.outlier_detection(None);
    let alone = Rig::with(|builder| none(builder.service_config(config(text))));
    assert_eq!(calls(&alone).await, 1, "the first failure takes one of two tokens");
    for rig in both_orders(text, |builder| none(builder).retry_budget(None)) {
        assert_eq!(calls(&rig).await, 3, "there is no limit");
    }
    for rig in both_orders(text, |builder| none(builder).retry_budget(RetryThrottling::new(4, 0.1))) {
        assert_eq!(calls(&rig).await, 2, "the second failure takes two of four tokens");
    }
    for rig in both_orders(text, |builder| none(builder).retry(RetryPolicy::new([Code::Aborted]))) {
        assert_eq!(calls(&rig).await, 1, "the channel retries other codes");
    }
    for rig in both_orders(text, |builder| builder.policy(PickFirst::new())) {
        let [one, two] = rig.network.peers(1);
        rig.serve(&[&one, &two]).await;
        assert!([0, 20].contains(&rig.answers_of(&one, 20).await));
    }
}
