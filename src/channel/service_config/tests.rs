//! Configs as text, and what becomes of them.

use std::time::Duration;

use http::HeaderName;
use proptest::prelude::*;
use tonic::Code;

use super::balancing::NamedPolicy;
use super::*;
use crate::channel::config::retry::RetryPolicy;
use crate::channel::outlier::{FailurePercentage, OutlierDetection, SuccessRate};
use crate::channel::policy::tests::candidates;
use crate::channel::policy::{PickArgs, RingHash};

fn read(text: &str) -> Result<ServiceConfig, String> {
    text.parse().map_err(|error: ServiceConfigError| error.to_string())
}

fn with_retry(fields: &str) -> String {
    format!(r#"{{"methodConfig":[{{"name":[{{}}],"retryPolicy":{{{fields}}}}}]}}"#)
}

const RETRY: &str = r#""maxAttempts":4,"initialBackoff":"0.1s","maxBackoff":"1s","backoffMultiplier":1.5,
    "retryableStatusCodes":["UNAVAILABLE",10]"#;

#[test]
fn a_config_is_read_as_it_is_meant() {
    let config = read(&format!(
        r#"{{"loadBalancingConfig":[{{"new_experimental":{{"x":1}}}},{{"round_robin":{{}}}},{{"pick_first":{{}}}}],
        "methodConfig":[
            {{"name":[{{"service":"a.B","method":"C"}},{{"service":"a.D"}}],"timeout":"1.000000001s","waitForReady":true}},
            {{"name":[{{}}],"retryPolicy":{{{RETRY},"perAttemptRecvTimeout":"0.25s"}}}}],
        "retryThrottling":{{"maxTokens":10,"tokenRatio":0.1}}}}"#
    ))
    .expect("it is a good one");
    let names: Vec<&str> = config.methods.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["a.B/C", "a.D", ""]);
    assert_eq!(config.methods[0].1.timeout, Some(Duration::new(1, 1)));
    assert_eq!(config.methods[1].1.wait_for_ready, Some(true));
    let retry = RetryPolicy::new([Code::Unavailable, Code::Aborted])
        .max_attempts(4)
        .backoff(Duration::from_millis(100), Duration::from_secs(1), 1.5)
        .attempt_timeout(Duration::from_millis(250));
    assert_eq!(config.methods[2].1.retry.as_deref(), Some(&retry));
    assert_eq!(config.throttling, Some(RetryThrottling::new(10, 0.1)));
    assert_eq!(policy(&config), "WeightedRoundRobin");
    assert!(read("{}").is_ok(), "nothing is configured, and that is fine");
}

#[test]
fn what_is_not_known_or_wrong_is_named_with_its_place_and_what_to_write_instead() {
    for (text, message) in [
        ("{", "cannot be read: EOF while parsing an object at line 1 column 1"),
        ("1", "1 is not an object"),
        ("[]", "this is a choice of service configs, as DNS has it: give what one `serviceConfig` of it holds"),
        (
            r#"{"clientLanguage":["go"],"serviceConfig":{}}"#,
            "clientLanguage: this is a choice of service configs, as DNS has it: give what one `serviceConfig` of it holds",
        ),
        (
            r#"{"methodconfig":[]}"#,
            "methodconfig: not known: expected loadBalancingConfig, loadBalancingPolicy, methodConfig, retryThrottling, \
             healthCheckConfig",
        ),
        (
            r#"{"connectionScaling":{"maxConnectionsPerSubchannel":2}}"#,
            "connectionScaling: not supported: there is one connection to an instance; leave it out",
        ),
        (
            r#"{"loadBalancingPolicy":"grpclb"}"#,
            r#"loadBalancingPolicy: "grpclb" is not round_robin or pick_first; for other policies write a loadBalancingConfig"#,
        ),
        (r#"{"loadBalancingPolicy":1}"#, "loadBalancingPolicy: 1 is not a string"),
        (r#"{"methodConfig":{}}"#, "methodConfig: {} is not an array"),
        (
            r#"{"methodConfig":[{"name":[{}],"timeout":"1s","timeout":"2s"}]}"#,
            r#"cannot be read: the field "timeout" stands twice at line 1 column 60"#,
        ),
        (
            r#"{"methodConfig":[{"name":[{"service":"a.B"}]},{"name":[{"service":"a.B"}],"timeout":"1s"}]}"#,
            r#"methodConfig[1]: names "a.B", of which something was said before"#,
        ),
        (r#"{"methodConfig":[{"name":[]}]}"#, "methodConfig[0]: names no method"),
        (r#"{"methodConfig":[{"timeout":"1s"}]}"#, "methodConfig[0]: has no name"),
        (r#"{"methodConfig":[{"name":[{"method":"C"}]}]}"#, "methodConfig[0].name[0]: names a method of no service"),
        (
            r#"{"methodConfig":[{"name":[{"service":"a.B","methods":"C"}]}]}"#,
            "methodConfig[0].name[0].methods: not known: expected service, method",
        ),
        (
            r#"{"methodConfig":[{"name":[{}]},{"name":[{}],"maxRequestMessageBytes":-1}]}"#,
            "methodConfig[1].maxRequestMessageBytes: -1 is not a whole number from 0 to 4294967295",
        ),
        (
            r#"{"methodConfig":[{"name":[{}],"hedgingPolicy":{}}]}"#,
            "methodConfig[0].hedgingPolicy: not supported: write a retryPolicy, whose attempts come one after the other",
        ),
        (
            r#"{"methodConfig":[{"name":[{}],"timeout":"1"}]}"#,
            r#"methodConfig[0].timeout: "1" is not a duration such as "1.5s""#,
        ),
        (
            r#"{"methodConfig":[{"name":[{}],"waitForReady":1}]}"#,
            "methodConfig[0].waitForReady: 1 is not true or false",
        ),
        (r#"{"retryThrottling":{"maxTokens":10}}"#, "retryThrottling: has not both of maxTokens and tokenRatio"),
        (r#"{"loadBalancingConfig":[{}]}"#, "loadBalancingConfig[0]: has not exactly one policy"),
        (
            r#"{"loadBalancingConfig":[{"grpclb":{}}]}"#,
            "loadBalancingConfig: has no policy that is known here: expected one of round_robin, weighted_round_robin, \
             least_request_experimental, pick_first, ring_hash_experimental, outlier_detection_experimental, \
             random_subsetting_experimental, random, peak_ewma",
        ),
    ] {
        assert_eq!(read(text).map(|_| ()), Err(message.to_owned()), "{text}");
    }
}

#[test]
fn what_a_policy_does_not_have_is_named_with_what_to_write_instead() {
    for (policy, message) in [
        (r#"{"round_robin":{"x":1}}"#, "round_robin.x: not known: this policy has no options"),
        (r#"{"pick_first":{"shuffle":true}}"#, "pick_first.shuffle: not known: expected shuffleAddressList"),
        (
            r#"{"pick_first":{"shuffleAddressList":"yes"}}"#,
            r#"pick_first.shuffleAddressList: "yes" is not true or false"#,
        ),
        (
            r#"{"weighted_round_robin":{"blackoutPeriod":"10s"}}"#,
            "weighted_round_robin.blackoutPeriod: not supported: weights are what instances register, not load reports; \
             leave it out",
        ),
        (
            r#"{"weighted_round_robin":{"enableOobLoadReport":true}}"#,
            "weighted_round_robin.enableOobLoadReport: not supported: weights are what instances register, not load \
             reports; leave it out",
        ),
        (
            r#"{"weighted_round_robin":{"weights":{}}}"#,
            "weighted_round_robin.weights: not known: expected enableOobLoadReport",
        ),
        (
            r#"{"least_request_experimental":{"choiceCount":1}}"#,
            "least_request_experimental.choiceCount: 1 is not 2 or more",
        ),
        (
            r#"{"ring_hash_experimental":{}}"#,
            r#"ring_hash_experimental: has no requestHashHeader: write the name of a header, such as "x-user""#,
        ),
        (
            r#"{"ring_hash_experimental":{"requestHashHeader":"key-bin"}}"#,
            r#"ring_hash_experimental.requestHashHeader: "key-bin" is not the name of a header that is text"#,
        ),
        (
            r#"{"ring_hash_experimental":{"requestHashHeader":"key","minRingSize":2,"maxRingSize":1}}"#,
            "ring_hash_experimental: has a minRingSize above its maxRingSize",
        ),
        (
            r#"{"ring_hash_experimental":{"requestHashHeader":"key","maxRingSize":512}}"#,
            "ring_hash_experimental: has a minRingSize above its maxRingSize",
        ),
        (
            r#"{"ring_hash_experimental":{"requestHashHeader":"key","maxRingSize":8388609}}"#,
            "ring_hash_experimental.maxRingSize: 8388609 is not a number of points from 1 to 8388608",
        ),
        (r#"{"random_subsetting_experimental":{}}"#, "random_subsetting_experimental: has no subsetSize"),
        (
            r#"{"random_subsetting_experimental":{"subsetSize":0}}"#,
            "random_subsetting_experimental.subsetSize: 0 is not 1 or more",
        ),
        (
            r#"{"random_subsetting_experimental":{"subsetSize":5}}"#,
            r#"random_subsetting_experimental: has no childPolicy: write the policy within it, such as [{"round_robin": {}}]"#,
        ),
        (
            r#"{"outlier_detection_experimental":{}}"#,
            r#"outlier_detection_experimental: has no childPolicy: write the policy within it, such as [{"round_robin": {}}]"#,
        ),
        (
            r#"{"outlier_detection_experimental":{"maxEjectionPercent":101}}"#,
            "outlier_detection_experimental.maxEjectionPercent: 101 is not a percentage from 0 to 100",
        ),
        (
            r#"{"outlier_detection_experimental":{"interval":"0s"}}"#,
            "outlier_detection_experimental: bad interval 0ns: expected more than zero and at most an hour",
        ),
        (
            r#"{"outlier_detection_experimental":{"consecutive5xx":5}}"#,
            "outlier_detection_experimental.consecutive5xx: not known: expected interval, baseEjectionTime, \
             maxEjectionTime, maxEjectionPercent, successRateEjection, failurePercentageEjection, childPolicy",
        ),
        (
            r#"{"outlier_detection_experimental":{"successRateEjection":{"threshold":1}}}"#,
            "outlier_detection_experimental.successRateEjection.threshold: not known: expected stdevFactor, \
             enforcementPercentage, minimumHosts, requestVolume",
        ),
        (
            r#"{"outlier_detection_experimental":{"childPolicy":[{"outlier_detection_experimental":{}}]}}"#,
            "outlier_detection_experimental.childPolicy[0].outlier_detection_experimental: stands within another one",
        ),
    ] {
        let text = format!(r#"{{"loadBalancingConfig":[{policy}]}}"#);
        assert_eq!(read(&text).map(|_| ()), Err(format!("loadBalancingConfig[0].{message}")), "{text}");
    }
}

/// The config with one list of policies.
fn balancing(list: &str) -> ServiceConfig {
    read(&format!(r#"{{"loadBalancingConfig":{list}}}"#)).expect(list)
}

fn policy(config: &ServiceConfig) -> String {
    format!("{:?}", config.balancing.policy.as_ref().expect("a policy").make())
}

#[test]
fn each_policy_is_the_one_that_is_named_with_its_options() {
    for (name, policies) in [
        (
            "WeightedRoundRobin",
            vec![r#"{"round_robin":{}}"#, r#"{"weighted_round_robin":{"enableOobLoadReport":false}}"#],
        ),
        ("LeastRequest { choices: 2 }", vec![r#"{"least_request_experimental":{}}"#]),
        ("LeastRequest { choices: 5 }", vec![r#"{"least_request_experimental":{"choiceCount":"5"}}"#]),
        ("LeastRequest { choices: 10 }", vec![r#"{"least_request_experimental":{"choiceCount":11}}"#]),
        ("PeakEwma", vec![r#"{"peak_ewma":{}}"#]),
        ("WeightedRandom", vec![r#"{"random":{}}"#]),
    ] {
        for text in policies {
            assert_eq!(policy(&balancing(&format!("[{text}]"))), name, "{text}");
        }
    }
    let first = |options: &str| policy(&balancing(&format!(r#"[{{"pick_first":{options}}}]"#)));
    assert!(first("{}").contains("seed: None") && first(r#"{"shuffleAddressList":false}"#).contains("seed: None"));
    assert!(first(r#"{"shuffleAddressList":true}"#).contains("seed: Some"));
    let ring = |options: &str| {
        let text = format!(r#"[{{"ring_hash_experimental":{{"requestHashHeader":"x-user"{options}}}}}]"#);
        match balancing(&text).balancing.policy {
            Some(NamedPolicy::RingHash(ring)) => ring,
            other => panic!("{text} is {other:?}"),
        }
    };
    let own = || RingHash::by_header(HeaderName::from_static("x-user"));
    let sizes = |ring: RingHash| format!("{ring:?}");
    assert_eq!(sizes(ring("")), sizes(own().ring_size(1_024, 4_096)), "A42's sizes");
    assert_eq!(sizes(ring(r#","minRingSize":"1","maxRingSize":9000"#)), sizes(own().ring_size(1, 9_000)));
    assert_eq!(sizes(ring(r#","maxRingSize":2048"#)), sizes(own().ring_size(1_024, 2_048)));
    assert_eq!(sizes(ring(r#","minRingSize":512"#)), sizes(own().ring_size(512, 4_096)));
}

#[test]
fn names_that_grpc_does_not_know_are_not_known() {
    for name in ["least_request", "ring_hash", "outlier_detection", "random_subsetting"] {
        let config = balancing(&format!(r#"[{{"{name}":{{"x":1}}}},{{"random":{{}}}}]"#));
        assert_eq!(policy(&config), "WeightedRandom", "{name} is passed over");
    }
}

#[test]
fn numbers_are_read_as_protobuf_reads_them() {
    for (attempts, multiplier) in [("4", "1.5"), ("4.0", "\"1.5\""), ("4e0", "15e-1"), ("\"4\"", "\"15e-1\"")] {
        let text = with_retry(&RETRY.replacen(":4", &format!(":{attempts}"), 1).replacen("1.5", multiplier, 1));
        let config = read(&text).expect(&text);
        assert_eq!(config.methods[0].1.retry, read(&with_retry(RETRY)).expect("a good one").methods[0].1.retry);
    }
    for wrong in ["4.5", "-4", "\"four\"", "\"\"", "true", "1e30", "\"NaN\""] {
        assert!(read(&with_retry(&RETRY.replacen(":4", &format!(":{wrong}"), 1))).is_err(), "{wrong} attempts");
    }
    for wrong in ["\"NaN\"", "\"Infinity\"", "\"\"", "\"two\"", "1e999"] {
        assert!(read(&with_retry(&RETRY.replacen("1.5", wrong, 1))).is_err(), "times {wrong}");
    }
}

#[test]
fn the_older_name_of_a_policy_counts_where_there_is_no_list() {
    for (text, name) in [
        (r#"{"loadBalancingPolicy":"round_robin"}"#, "WeightedRoundRobin"),
        (r#"{"loadBalancingPolicy":"ROUND_ROBIN"}"#, "WeightedRoundRobin"),
        (r#"{"loadBalancingPolicy":"pick_first","loadBalancingConfig":[{"random":{}}]}"#, "WeightedRandom"),
        (r#"{"loadBalancingConfig":[{"random":{}}],"loadBalancingPolicy":"grpclb"}"#, "WeightedRandom"),
        (r#"{"loadBalancingPolicy":"ROUND_ROBIN","loadBalancingConfig":null}"#, "WeightedRoundRobin"),
        (r#"{"loadBalancingPolicy":"","loadBalancingConfig":[{"random":{}}]}"#, "WeightedRandom"),
    ] {
        assert_eq!(policy(&read(text).expect(text)), name, "{text}");
    }
    let first = read(r#"{"loadBalancingPolicy":"Pick_First"}"#).expect("it is known");
    assert!(policy(&first).starts_with("PickFirst"));
    let empty = read(r#"{"loadBalancingPolicy":""}"#).expect("it is not there");
    assert!(empty.balancing.policy.is_none());
}

#[test]
fn policies_within_policies_become_options_of_the_channel() {
    let outliers = |text: &str| format!("{:?}", balancing(text).balancing.outliers.expect("outlier detection"));
    let all = r#"[{"outlier_detection_experimental":{
        "interval":"2s","baseEjectionTime":"3s","maxEjectionTime":"40s","maxEjectionPercent":20,
        "successRateEjection":{"stdevFactor":1000,"enforcementPercentage":50,"minimumHosts":3,"requestVolume":7},
        "failurePercentageEjection":{"threshold":70,"enforcementPercentage":60,"minimumHosts":4,"requestVolume":8},
        "childPolicy":[{"unknown":{}},{"random_subsetting_experimental":{"subsetSize":20,
            "childPolicy":[{"least_request_experimental":{}}]}}]}}]"#;
    let seconds = Duration::from_secs;
    let rates = SuccessRate::new().stdev_factor(1_000).enforcement_percentage(50).minimum_hosts(3).request_volume(7);
    let percentages =
        FailurePercentage::new().threshold(70).enforcement_percentage(60).minimum_hosts(4).request_volume(8);
    let expected = OutlierDetection::grpc()
        .interval(seconds(2))
        .ejection_time(seconds(3))
        .max_ejection_time(seconds(40))
        .max_ejected_percent(20)
        .success_rate(rates)
        .failure_percentage(percentages);
    assert_eq!(outliers(all), format!("{expected:?}"));
    let config = balancing(all);
    assert_eq!(config.balancing.subset, Some(20));
    assert_eq!(policy(&config), "LeastRequest { choices: 2 }");

    let none = outliers(r#"[{"outlier_detection_experimental":{"childPolicy":[{"round_robin":{}}]}}]"#);
    assert_eq!(none, format!("{:?}", OutlierDetection::grpc()), "A50's defaults, which eject nothing");
    let rates = r#"[{"outlier_detection_experimental":{"baseEjectionTime":"600s","successRateEjection":{},
        "childPolicy":[{"round_robin":{}}]}}]"#;
    let expected = OutlierDetection::grpc().ejection_time(seconds(600)).max_ejection_time(seconds(600));
    assert_eq!(outliers(rates), format!("{:?}", expected.success_rate(SuccessRate::new())), "the larger time counts");
}

#[test]
fn channels_of_one_config_share_no_policy() {
    let config = balancing(r#"[{"pick_first":{}}]"#).balancing.policy.expect("a policy");
    let (one, other) = (config.make(), config.make());
    let all = candidates(&[1, 1]);
    one.picker(&all[1..]);
    assert_eq!(one.picker(&all).pick(&all, &PickArgs::default()), Some(1), "it stays with its choice");
    assert_eq!(other.picker(&all).pick(&all, &PickArgs::default()), Some(0), "of which the other one knows nothing");
}

#[test]
fn message_limits_are_those_of_their_methods() {
    let config = read(
        r#"{"methodConfig":[{"name":[{}],"maxRequestMessageBytes":0,"maxResponseMessageBytes":"4194304"},
            {"name":[{"service":"a.B","method":null}],"maxRequestMessageBytes":null}]}"#,
    )
    .expect("it is a good one");
    let limits = |index: usize| {
        let (name, method) = &config.methods[index];
        (name.as_str(), method.max_request_bytes, method.max_response_bytes)
    };
    assert_eq!(limits(0), ("", Some(0), Some(4_194_304)));
    assert_eq!(limits(1), ("a.B", None, None), "null is not there");
    let config = read(
        r#"{"methodConfig":[{"name":[{}],"maxRequestMessageBytes":"4294967296","maxResponseMessageBytes":1e30}]}"#,
    )
    .expect("no message is longer");
    assert_eq!((config.methods[0].1.max_request_bytes, config.methods[0].1.max_response_bytes), (None, None));
}

#[cfg(feature = "health")]
#[test]
fn health_is_asked_for_by_the_name_of_a_service() {
    let health = |text: &str| read(text).map(|config| config.health);
    assert_eq!(health(r#"{"healthCheckConfig":{"serviceName":"echo.Echo"}}"#), Ok(Some("echo.Echo".into())));
    assert_eq!(health(r#"{"healthCheckConfig":{"serviceName":""}}"#), Ok(Some("".into())));
    assert_eq!(health("{}"), Ok(None));
    let none = "healthCheckConfig: has no serviceName: \"\" asks for the whole server";
    assert_eq!(health(r#"{"healthCheckConfig":{}}"#), Err(none.to_owned()));
    let (config, ignored) = ServiceConfig::lenient(r#"{"healthCheckConfig":{}}"#).expect("it is left out");
    assert_eq!((config.health, ignored[0].to_string()), (None, none.to_owned()));
}

#[cfg(not(feature = "health"))]
#[test]
fn without_its_feature_health_is_refused_with_what_to_switch_on() {
    let text = r#"{"healthCheckConfig":{"serviceName":"echo.Echo"}}"#;
    let refused = "healthCheckConfig: not supported without the feature `health` of tonic-etcd: switch it on, or leave \
                   this out";
    assert_eq!(read(text).map(|_| ()), Err(refused.to_owned()));
    assert_eq!(ServiceConfig::lenient(text).expect("it is left out").1[0].to_string(), refused);
}

#[test]
fn a_lenient_reader_lists_what_it_leaves_out_and_refuses_what_is_wrong() {
    let text = format!(
        r#"{{"loadBalancingConfig":[{{"grpclb":{{"x":1}}}},{{"weighted_round_robin":{{"blackoutPeriod":"1s"}}}},{{"xds":{{}}}}],
            "methodConfig":[{{"name":[{{}}],"retryPolicy":{{{RETRY},"jitter":1}},"hedgingPolicy":{{}},"x":{{}}}}],
            "connectionScaling":{{}},"new":[1]}}"#
    );
    assert!(read(&text).is_err());
    let (config, ignored) = ServiceConfig::lenient(&text).expect("what is known is right");
    let mut paths: Vec<&str> = ignored.iter().map(ServiceConfigError::path).collect();
    paths.sort_unstable();
    assert_eq!(
        paths,
        [
            "connectionScaling",
            "loadBalancingConfig[0].grpclb",
            "loadBalancingConfig[1].weighted_round_robin.blackoutPeriod",
            "methodConfig[0].hedgingPolicy",
            "methodConfig[0].retryPolicy.jitter",
            "methodConfig[0].x",
            "new",
        ]
    );
    assert_eq!(policy(&config), "WeightedRoundRobin");
    assert!(config.methods[0].1.retry.is_some());

    let (config, ignored) =
        ServiceConfig::lenient(r#"{"loadBalancingConfig":[{"grpclb":{}}]}"#).expect("it is left out");
    assert!(config.balancing.policy.is_none() && ignored.len() == 2, "the policy, and that there is none: {ignored:?}");
    for (list, ignored) in [
        (r#"{"ring_hash_experimental":{}}"#, vec!["ring_hash_experimental"]),
        (
            r#"{"outlier_detection_experimental":{"childPolicy":[{"xds":{}}]}}"#,
            vec!["outlier_detection_experimental.childPolicy[0].xds", "outlier_detection_experimental.childPolicy"],
        ),
        (
            r#"{"random_subsetting_experimental":{"subsetSize":2,"childPolicy":[{"ring_hash_experimental":{}}]}}"#,
            vec![
                "random_subsetting_experimental.childPolicy[0].ring_hash_experimental",
                "random_subsetting_experimental.childPolicy",
            ],
        ),
    ] {
        let text = format!(r#"{{"loadBalancingConfig":[{list},{{"random":{{}}}}]}}"#);
        let (config, left_out) = ServiceConfig::lenient(&text).expect(list);
        assert_eq!(policy(&config), "WeightedRandom", "the next one counts: {list}");
        let Balancing { outliers, subset, .. } = &config.balancing;
        assert!(outliers.is_none() && subset.is_none(), "nothing of it is left behind: {list}");
        let paths: Vec<&str> = left_out.iter().map(ServiceConfigError::path).collect();
        let expected: Vec<String> = ignored.iter().map(|path| format!("loadBalancingConfig[0].{path}")).collect();
        assert_eq!(paths, expected);
    }
    for wrong in ["{", r#"{"methodConfig":[{"name":[{}],"timeout":1}]}"#, r#"{"methodConfig":[{"timeout":"1s"}]}"#] {
        assert!(ServiceConfig::lenient(wrong).is_err(), "{wrong}");
    }
    let (_, ignored) = ServiceConfig::lenient(r#"{"loadBalancingPolicy":"round_robin"}"#).expect("it is a good one");
    assert!(ignored.is_empty(), "{ignored:?}");
}

#[test]
fn durations_are_seconds_with_up_to_nine_decimals() {
    let timeout = |text: &str| {
        let config = read(&format!(r#"{{"methodConfig":[{{"name":[{{}}],"timeout":"{text}"}}]}}"#));
        config.ok().and_then(|config| config.methods[0].1.timeout)
    };
    for (text, nanos) in [("1s", 1_000_000_000), (".1s", 100_000_000), ("1.s", 1_000_000_000), ("0.000000001s", 1)] {
        assert_eq!(timeout(text), Some(Duration::from_nanos(nanos)), "{text}");
    }
    for text in ["", "s", ".s", "1", "1ms", "-1s", "+1s", "1.0000000001s", "1,5s", "99999999999999999999s"] {
        assert_eq!(timeout(text), None, "{text}");
    }
}

#[test]
fn a_retry_policy_is_whole_and_within_its_limits() {
    assert!(read(&with_retry(RETRY)).is_ok());
    for (good, bad, path) in [
        (r#""maxAttempts":4,"#, "", "methodConfig[0].retryPolicy"),
        (r#""maxAttempts":4"#, r#""maxAttempts":1"#, "methodConfig[0].retryPolicy"),
        (r#""maxAttempts":4"#, r#""maxAttempts":-4"#, "methodConfig[0].retryPolicy.maxAttempts"),
        ("\"0.1s\"", "\"0s\"", "methodConfig[0].retryPolicy"),
        ("\"0.1s\"", "\"0.1\"", "methodConfig[0].retryPolicy.initialBackoff"),
        ("1.5", "0", "methodConfig[0].retryPolicy"),
        ("\"UNAVAILABLE\"", "\"UNAVAILABEL\"", "methodConfig[0].retryPolicy.retryableStatusCodes[0]"),
        ("10", "17", "methodConfig[0].retryPolicy.retryableStatusCodes[1]"),
        ("10", "0", "methodConfig[0].retryPolicy"),
    ] {
        let text = with_retry(&RETRY.replacen(good, bad, 1));
        let error = text.parse::<ServiceConfig>().expect_err(&text);
        assert_eq!(error.path(), path, "{text}: {error}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in ".{0,200}") {
        let _ = read(&text);
    }

    #[test]
    fn no_json_makes_it_panic(
        name in prop_oneof!["methodConfig|loadBalancingConfig|retryThrottling|healthCheckConfig", ".{0,9}"],
        inner in prop_oneof!["name|timeout|retryPolicy|maxTokens|pick_first|outlier_detection|childPolicy", ".{0,9}"],
        value in prop_oneof!["[0-9.-]{1,30}s?", ".{0,9}"],
        number in any::<f64>(),
    ) {
        for value in [Value::from(value.clone()), Value::from(number), Value::Null, serde_json::json!([{}])] {
            let _ = read(&serde_json::json!({ &name: [{ &inner: value }] }).to_string());
            let _ = ServiceConfig::lenient(&serde_json::json!({ &name: [{ &inner: { &inner: value } }] }).to_string());
            let _ = read(&serde_json::json!({ &name: { &inner: value } }).to_string());
        }
    }
}
