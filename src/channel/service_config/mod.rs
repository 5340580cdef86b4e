//! What gRPC calls a service config, in JSON: what is said of methods, and how to balance.

mod error;
mod json;

use std::str::FromStr;
use std::sync::Arc;

use http::HeaderName;
use serde_json::Value;
use tonic::Code;

pub use self::error::ServiceConfigError;
use self::json::{At, NoFieldTwice, Read};
use crate::channel::config::methods::MethodConfig;
use crate::channel::config::retry::RetryPolicy;
use crate::channel::config::throttling::RetryThrottling;
use crate::channel::policy::{LeastRequest, PeakEwma, PickFirst, Policy, RingHash, WeightedRandom, WeightedRoundRobin};
use crate::error::ConfigError;

/// A gRPC [service config], as teams have it for grpc-go and others. Read it with [`str::parse`].
///
/// | field | what is read of it |
/// | --- | --- |
/// | `loadBalancingConfig` | the first policy of the list that is known here: `round_robin` and `weighted_round_robin` ([`WeightedRoundRobin`]), `least_request_experimental` with a `choiceCount` of 2 ([`LeastRequest`]), `pick_first` ([`PickFirst`]), `ring_hash_experimental` with a `requestHashHeader` ([`RingHash`]), and, of this crate alone, `random` ([`WeightedRandom`]) and `peak_ewma` ([`PeakEwma`]) |
/// | `methodConfig` | `name`, `timeout`, `waitForReady`, `maxRequestMessageBytes`, `maxResponseMessageBytes`, and `retryPolicy` with `maxAttempts`, `initialBackoff`, `maxBackoff`, `backoffMultiplier`, `retryableStatusCodes` and `perAttemptRecvTimeout`; see [`RetryPolicy`] |
/// | `retryThrottling` | `maxTokens` and `tokenRatio`; see [`RetryThrottling`] |
///
/// Anything else is an error that names it: a config of which a part counts would be another config.
///
/// A message limit counts for each message of a request or a response, streams included, as long as it is on the wire:
/// after compression. A call that exceeds one ends with `RESOURCE_EXHAUSTED`, which tells size and limit; a request's
/// message that is too long is not sent. The limits of tonic's generated clients count as well.
///
/// ```
/// use tonic_etcd::channel::ServiceConfig;
///
/// let config: ServiceConfig = r#"{
///     "loadBalancingConfig": [{"least_request_experimental": {"choiceCount": 2}}],
///     "methodConfig": [{
///         "name": [{"service": "echo.Echo"}],
///         "timeout": "1s",
///         "retryPolicy": {
///             "maxAttempts": 3,
///             "initialBackoff": "0.05s",
///             "maxBackoff": "1s",
///             "backoffMultiplier": 2,
///             "retryableStatusCodes": ["UNAVAILABLE"]
///         }
///     }]
/// }"#
/// .parse()?;
///
/// let wrong = r#"{"methodConfig": [{"name": [{}], "hedgingPolicy": {}}]}"#.parse::<ServiceConfig>();
/// assert_eq!(wrong.unwrap_err().to_string(), "methodConfig[0].hedgingPolicy: not supported");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// [service config]: https://github.com/grpc/grpc/blob/master/doc/service_config.md
#[derive(Debug, Clone)]
pub struct ServiceConfig {
    pub(crate) methods: Vec<(String, MethodConfig)>,
    pub(crate) throttling: Option<RetryThrottling>,
    pub(crate) policy: Option<Arc<dyn Policy>>,
}

impl FromStr for ServiceConfig {
    type Err = ServiceConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unread = |error: serde_json::Error| ServiceConfigError {
            path: String::new(),
            problem: format!("cannot be read: {error}"),
        };
        let _: NoFieldTwice = serde_json::from_str(text).map_err(unread)?;
        let value: Value = serde_json::from_str(text).map_err(unread)?;
        let root = At::root(&value);
        let mut config = Self { methods: Vec::new(), throttling: None, policy: None };
        for (name, field) in root.fields()? {
            match name {
                "loadBalancingConfig" => config.policy = Some(policy(&field)?),
                "methodConfig" => {
                    for method in field.items()? {
                        for (name, said) in methods(&method)? {
                            if config.methods.iter().any(|(known, _)| *known == name) {
                                return method.refuse(format!("names {name:?}, of which something was said before"));
                            }
                            config.methods.push((name, said));
                        }
                    }
                }
                "retryThrottling" => config.throttling = Some(throttling(&field)?),
                _ => return field.refuse("not supported"),
            }
        }
        Ok(config)
    }
}

impl At<'_> {
    fn code(&self) -> Read<Code> {
        let number = match self.value {
            Value::String(name) => NAMES.iter().position(|known| known == name),
            Value::Number(number) => number.as_u64().and_then(|number| usize::try_from(number).ok()),
            _ => None,
        };
        let code = number.filter(|number| *number < NAMES.len()).and_then(|number| i32::try_from(number).ok());
        code.map_or_else(|| self.expected("a status code"), |code| Ok(Code::from(code)))
    }
}

/// The status codes, each at its number.
const NAMES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

fn methods(at: &At<'_>) -> Read<Vec<(String, MethodConfig)>> {
    let (mut names, mut method) = (None, MethodConfig::default());
    for (name, field) in at.fields()? {
        match name {
            "name" => names = Some(field.items()?.iter().map(method_name).collect::<Read<Vec<_>>>()?),
            "timeout" => method.timeout = Some(field.duration()?),
            "waitForReady" => method.wait_for_ready = Some(field.flag()?),
            "maxRequestMessageBytes" => method.max_request_bytes = Some(field.whole()?),
            "maxResponseMessageBytes" => method.max_response_bytes = Some(field.whole()?),
            "retryPolicy" => method.retry = Some(Arc::new(retry(&field)?)),
            _ => return field.refuse("not supported"),
        }
    }
    match names {
        Some(names) if names.is_empty() => at.refuse("names no method"),
        Some(names) => Ok(names.into_iter().map(|name| (name, method.clone())).collect()),
        None => at.refuse("has no name"),
    }
}

fn method_name(at: &At<'_>) -> Read<String> {
    let (mut service, mut method) = ("", "");
    for (name, field) in at.fields()? {
        match name {
            "service" => service = field.text()?,
            "method" => method = field.text()?,
            _ => return field.refuse("not supported"),
        }
    }
    let is_name = |text: &str| !text.contains('/');
    match (service, method) {
        _ if !is_name(service) || !is_name(method) => at.expected("a name without a slash"),
        ("", "") => Ok(String::new()),
        ("", _) => at.refuse("names a method of no service"),
        (_, "") => Ok(service.to_owned()),
        _ => Ok(format!("{service}/{method}")),
    }
}

fn retry(at: &At<'_>) -> Read<RetryPolicy> {
    let (mut attempts, mut initial, mut max, mut multiplier, mut codes) = (None, None, None, None, None);
    let mut attempt_timeout = None;
    for (name, field) in at.fields()? {
        match name {
            "maxAttempts" => attempts = Some(field.whole()?),
            "initialBackoff" => initial = Some(field.duration()?),
            "maxBackoff" => max = Some(field.duration()?),
            "backoffMultiplier" => multiplier = Some(field.number()?),
            "retryableStatusCodes" => codes = Some(field.items()?.iter().map(At::code).collect::<Read<Vec<_>>>()?),
            "perAttemptRecvTimeout" => attempt_timeout = Some(field.duration()?),
            _ => return field.refuse("not supported"),
        }
    }
    let (Some(attempts), Some(initial), Some(max), Some(multiplier), Some(codes)) =
        (attempts, initial, max, multiplier, codes)
    else {
        let all = "maxAttempts, initialBackoff, maxBackoff, backoffMultiplier and retryableStatusCodes";
        return at.refuse(format!("has not all of {all}"));
    };
    let mut policy = RetryPolicy::new(codes).max_attempts(attempts).backoff(initial, max, multiplier);
    if let Some(timeout) = attempt_timeout {
        policy = policy.attempt_timeout(timeout);
    }
    checked(at, policy.check())?;
    Ok(policy)
}

fn throttling(at: &At<'_>) -> Read<RetryThrottling> {
    let (mut tokens, mut ratio) = (None, None);
    for (name, field) in at.fields()? {
        match name {
            "maxTokens" => tokens = Some(field.whole()?),
            "tokenRatio" => ratio = Some(field.number()?),
            _ => return field.refuse("not supported"),
        }
    }
    let (Some(tokens), Some(ratio)) = (tokens, ratio) else {
        return at.refuse("has not both of maxTokens and tokenRatio");
    };
    let throttling = RetryThrottling::new(tokens, ratio);
    checked(at, throttling.check())?;
    Ok(throttling)
}

fn checked(at: &At<'_>, result: Result<(), ConfigError>) -> Read<()> {
    result.or_else(|error| at.refuse(error.to_string()))
}

/// The first policy of the list that is known.
fn policy(at: &At<'_>) -> Read<Arc<dyn Policy>> {
    for item in at.items()? {
        let fields = item.fields()?;
        let [(name, options)] = fields.as_slice() else { return item.refuse("has not exactly one policy") };
        if let Some(policy) = known_policy(name, options)? {
            return Ok(policy);
        }
    }
    at.expected("a list with a policy that is known here")
}

fn known_policy(name: &str, at: &At<'_>) -> Read<Option<Arc<dyn Policy>>> {
    let mut header = None;
    for (option, field) in at.fields()? {
        match (name, option) {
            ("least_request_experimental" | "least_request", "choiceCount") => {
                if field.whole()? != 2 {
                    return field.expected("2, the only number of choices that is supported");
                }
            }
            ("ring_hash_experimental" | "ring_hash", "requestHashHeader") => {
                let read = HeaderName::from_str(field.text()?);
                header = Some(read.or_else(|_| field.expected("the name of a header"))?);
            }
            _ if NAMED.contains(&name) => return field.refuse("not supported"),
            _ => return Ok(None),
        }
    }
    Ok(Some(match name {
        "round_robin" | "weighted_round_robin" => Arc::new(WeightedRoundRobin::new()),
        "least_request_experimental" | "least_request" => Arc::new(LeastRequest::new()),
        "pick_first" => Arc::new(PickFirst::new()),
        "random" => Arc::new(WeightedRandom::new()),
        "peak_ewma" => Arc::new(PeakEwma::new()),
        "ring_hash_experimental" | "ring_hash" => match header {
            Some(header) => Arc::new(RingHash::by_header(header)),
            None => return at.refuse("has no requestHashHeader"),
        },
        _ => return Ok(None),
    }))
}

/// The policies that are known.
const NAMED: [&str; 9] = [
    "round_robin",
    "weighted_round_robin",
    "least_request_experimental",
    "least_request",
    "pick_first",
    "random",
    "peak_ewma",
    "ring_hash_experimental",
    "ring_hash",
];

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

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
        assert_eq!(format!("{:?}", config.policy.expect("a policy")), "WeightedRoundRobin");
        assert!(read("{}").is_ok(), "nothing is configured, and that is fine");
    }

    #[test]
    fn what_is_not_supported_or_wrong_is_named_with_its_place() {
        for (text, message) in [
            ("{", "cannot be read: EOF while parsing an object at line 1 column 1"),
            ("[]", "[] is not an object"),
            (r#"{"healthCheckConfig":{}}"#, "healthCheckConfig: not supported"),
            (r#"{"loadBalancingPolicy":"ROUND_ROBIN"}"#, "loadBalancingPolicy: not supported"),
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
            (
                r#"{"methodConfig":[{"name":[{"method":"C"}]}]}"#,
                "methodConfig[0].name[0]: names a method of no service",
            ),
            (
                r#"{"methodConfig":[{"name":[{}]},{"name":[{}],"maxRequestMessageBytes":-1}]}"#,
                "methodConfig[1].maxRequestMessageBytes: -1 is not a whole number",
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
            (
                r#"{"loadBalancingConfig":[{"ring_hash_experimental":{}}]}"#,
                "loadBalancingConfig[0].ring_hash_experimental: has no requestHashHeader",
            ),
            (
                r#"{"loadBalancingConfig":[{"least_request_experimental":{"choiceCount":3}}]}"#,
                "loadBalancingConfig[0].least_request_experimental.choiceCount: 3 is not 2, the only number of choices that \
                 is supported",
            ),
            (
                r#"{"loadBalancingConfig":[{"pick_first":{"shuffleAddressList":true}}]}"#,
                "loadBalancingConfig[0].pick_first.shuffleAddressList: not supported",
            ),
            (r#"{"loadBalancingConfig":[{}]}"#, "loadBalancingConfig[0]: has not exactly one policy"),
        ] {
            assert_eq!(read(text).map(|_| ()), Err(message.to_owned()), "{text}");
        }
        assert!(read(r#"{"loadBalancingConfig":[{"grpclb":{}}]}"#).is_err_and(|error| error.contains("is known here")));
    }

    #[test]
    fn durations_are_seconds_with_up_to_nine_decimals() {
        let timeout = |text: &str| {
            let config = read(&format!(r#"{{"methodConfig":[{{"name":[{{}}],"timeout":"{text}"}}]}}"#));
            config.ok().and_then(|config| config.methods[0].1.timeout)
        };
        for (text, nanos) in [("1s", 1_000_000_000), (".1s", 100_000_000), ("1.s", 1_000_000_000), ("0.000000001s", 1)]
        {
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
            name in prop_oneof!["methodConfig|loadBalancingConfig|retryThrottling", ".{0,9}"],
            inner in prop_oneof!["name|timeout|retryPolicy|maxTokens|pick_first", ".{0,9}"],
            value in prop_oneof!["[0-9.-]{1,30}s?", ".{0,9}"],
            number in any::<f64>(),
        ) {
            for value in [Value::from(value.clone()), Value::from(number), Value::Null, serde_json::json!([{}])] {
                let _ = read(&serde_json::json!({ &name: [{ &inner: value }] }).to_string());
                let _ = read(&serde_json::json!({ &name: { &inner: value } }).to_string());
            }
        }
    }
}
