//! What gRPC calls a service config, in JSON: what is said of methods, and how to balance.
//!
//! | file | |
//! | --- | --- |
//! | `balancing` | `loadBalancingConfig`, `loadBalancingPolicy` -> a policy, outlier detection, a subset |
//! | `methods` | `methodConfig`, `retryThrottling` -> options of methods |
//! | `json` | values with the places where they stand, read strictly or with a list of what is passed over |

mod balancing;
mod error;
mod json;
mod methods;
#[cfg(test)]
mod tests;

use std::str::FromStr;
#[cfg(feature = "health")]
use std::sync::Arc;

use serde_json::Value;

use self::balancing::Balancing;
pub use self::error::ServiceConfigError;
use self::json::{At, Ignored, NoFieldTwice, Read};
use crate::channel::config::methods::MethodConfig;
use crate::channel::config::throttling::RetryThrottling;

/// A gRPC [service config], as teams have it for grpc-go and others. Read it with [`str::parse`].
///
/// | field | what is read of it |
/// | --- | --- |
/// | `loadBalancingConfig` | the first policy of the list that is known here; see below |
/// | `loadBalancingPolicy` | `round_robin` or `pick_first`, in capitals or not, where there is no `loadBalancingConfig` |
/// | `methodConfig` | `name`, `timeout`, `waitForReady`, `maxRequestMessageBytes`, `maxResponseMessageBytes`, and `retryPolicy` with `maxAttempts`, `initialBackoff`, `maxBackoff`, `backoffMultiplier`, `retryableStatusCodes` and `perAttemptRecvTimeout`; see [`RetryPolicy`](crate::retry::RetryPolicy) |
/// | `retryThrottling` | `maxTokens` and `tokenRatio`; see [`RetryThrottling`] |
/// | `healthCheckConfig` | `serviceName`, with the feature `health`; see `ChannelBuilder::health_check` |
///
/// | policy | its options | becomes |
/// | --- | --- | --- |
/// | `pick_first` | `shuffleAddressList` | [`PickFirst`](crate::policy::PickFirst) |
/// | `round_robin` | none | [`WeightedRoundRobin`](crate::policy::WeightedRoundRobin), by the weights of the instances |
/// | `weighted_round_robin` | `enableOobLoadReport` if it is false | the same: those about load reports are refused |
/// | `least_request_experimental` | `choiceCount` | [`LeastRequest`](crate::policy::LeastRequest) |
/// | `ring_hash_experimental` | `requestHashHeader`, which it needs, `minRingSize` (1024), `maxRingSize` (4096) | [`RingHash`](crate::policy::RingHash) |
/// | `outlier_detection_experimental` | all of A50's, and its `childPolicy` | [`OutlierDetection::grpc`](crate::outlier::OutlierDetection::grpc) |
/// | `random_subsetting_experimental` | `subsetSize` and its `childPolicy` | [`ChannelBuilder::subset`](crate::ChannelBuilder::subset) |
/// | `random`, `peak_ewma` | none; this crate's alone | [`WeightedRandom`](crate::policy::WeightedRandom), [`PeakEwma`](crate::policy::PeakEwma) |
///
/// Policies of a list that are not known here are passed over, which is what such a list is for. Anything else that is
/// not known or not supported is an error that names it and says what to write instead: a config of which a part counts
/// would be another config. [`lenient`](Self::lenient) lists such parts, and goes without them. A field that is `null`
/// is not there, a name that stands twice is an error.
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
///         "maxResponseMessageBytes": 1048576,
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
/// let wrong = r#"{"methodConfig": [{"name": [{}], "waitForReddy": true}]}"#.parse::<ServiceConfig>();
/// assert!(wrong.unwrap_err().to_string().starts_with("methodConfig[0].waitForReddy: not known: expected name, "));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// [service config]: https://github.com/grpc/grpc/blob/master/doc/service_config.md
#[derive(Debug, Clone, Default)]
pub struct ServiceConfig {
    pub(crate) methods: Vec<(String, MethodConfig)>,
    pub(crate) throttling: Option<RetryThrottling>,
    pub(crate) balancing: Balancing,
    #[cfg(feature = "health")]
    pub(crate) health: Option<Arc<str>>,
}

impl ServiceConfig {
    /// Reads a config that was written for other clients as well, and lists what is left out: fields and policies that
    /// are not known or not supported here, each with its place and what to write instead. Log the list.
    ///
    /// # Errors
    ///
    /// Text that is no JSON, and a field that is known and whose value is wrong: what was meant by it cannot be left
    /// out safely.
    ///
    /// ```
    /// use tonic_etcd::channel::ServiceConfig;
    ///
    /// let text = r#"{"loadBalancingPolicy": "round_robin", "connectionScaling": {}}"#;
    /// let (config, ignored) = ServiceConfig::lenient(text)?;
    /// assert_eq!(ignored[0].path(), "connectionScaling");
    /// # _ = config;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn lenient(text: &str) -> Result<(Self, Vec<ServiceConfigError>), ServiceConfigError> {
        let ignored = Ignored::default();
        let config = Self::read(text, Some(&ignored))?;
        Ok((config, ignored.into_inner()))
    }

    fn read(text: &str, ignored: Option<&Ignored>) -> Read<Self> {
        let unread = |error: serde_json::Error| ServiceConfigError {
            path: String::new(),
            problem: format!("cannot be read: {error}"),
        };
        let _: NoFieldTwice = serde_json::from_str(text).map_err(unread)?;
        let value: Value = serde_json::from_str(text).map_err(unread)?;
        let root = At::root(&value, ignored);
        if value.is_array() {
            return root.refuse(A_CHOICE);
        }
        let (mut config, mut named) = (Self::default(), None);
        let mut balancing = None;
        for (name, field) in root.fields()? {
            match name {
                "loadBalancingConfig" => balancing = Some(Balancing::of_config(&field)?),
                "loadBalancingPolicy" => named = Some(field),
                "methodConfig" => config.read_methods(&field)?,
                "retryThrottling" => config.throttling = Some(methods::throttling(&field)?),
                "healthCheckConfig" => config.read_health(&field)?,
                "connectionScaling" => {
                    field.unsupported("not supported: there is one connection to an instance; leave it out")?;
                }
                "serviceConfig" | "clientLanguage" | "clientHostname" | "percentage" => return field.refuse(A_CHOICE),
                _ => field.unknown(&FIELDS)?,
            }
        }
        config.balancing = match (balancing, named) {
            (Some(balancing), _) => balancing,
            (None, Some(named)) => Balancing::of_name(&named)?,
            (None, None) => Balancing::default(),
        };
        Ok(config)
    }

    fn read_methods(&mut self, at: &At<'_>) -> Read<()> {
        for method in at.items()? {
            for (name, said) in methods::methods(&method)? {
                if self.methods.iter().any(|(known, _)| *known == name) {
                    return method.refuse(format!("names {name:?}, of which something was said before"));
                }
                self.methods.push((name, said));
            }
        }
        Ok(())
    }

    #[cfg(feature = "health")]
    fn read_health(&mut self, at: &At<'_>) -> Read<()> {
        for (name, field) in at.fields()? {
            match name {
                "serviceName" => self.health = Some(field.text()?.into()),
                _ => field.unknown(&["serviceName"])?,
            }
        }
        if self.health.is_none() {
            at.unsupported(r#"has no serviceName: "" asks for the whole server"#)?;
        }
        Ok(())
    }

    #[cfg(not(feature = "health"))]
    #[expect(clippy::unused_self, reason = "it is the one with the feature that uses it")]
    fn read_health(&mut self, at: &At<'_>) -> Read<()> {
        at.unsupported("not supported without the feature `health` of tonic-etcd: switch it on, or leave this out")
    }
}

impl FromStr for ServiceConfig {
    type Err = ServiceConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::read(text, None)
    }
}

const FIELDS: [&str; 5] =
    ["loadBalancingConfig", "loadBalancingPolicy", "methodConfig", "retryThrottling", "healthCheckConfig"];

/// What DNS has are several configs, with conditions for each.
const A_CHOICE: &str = "this is a choice of service configs, as DNS has it: give what one `serviceConfig` of it holds";
