//! `loadBalancingConfig` and `loadBalancingPolicy`: JSON becomes a policy, and what gRPC wraps around one.

use std::str::FromStr;
use std::sync::Arc;

use http::HeaderName;

use super::json::{At, Read};
use super::methods::checked;
use crate::channel::outlier::{
    FailurePercentage, GRPC_EJECTION_TIME, GRPC_MAX_EJECTION_TIME, OutlierDetection, SuccessRate,
};
use crate::channel::policy::{LeastRequest, PeakEwma, PickFirst, Policy, RingHash, WeightedRandom, WeightedRoundRobin};

/// What a service config says of balancing. gRPC nests policies in each other; here each is an option of its own.
#[derive(Debug, Clone, Default)]
pub(crate) struct Balancing {
    pub(crate) policy: Option<NamedPolicy>,
    pub(crate) outliers: Option<OutlierDetection>,
    pub(crate) subset: Option<usize>,
}

/// A policy that a service config can name.
#[derive(Debug, Clone)]
pub(crate) enum NamedPolicy {
    LeastRequest(LeastRequest),
    PeakEwma(PeakEwma),
    PickFirst(PickFirst),
    Random(WeightedRandom),
    RingHash(RingHash),
    RoundRobin(WeightedRoundRobin),
}

impl NamedPolicy {
    /// The policy of one channel. Channels share none, or the choices of one would be those of another service.
    pub(crate) fn make(&self) -> Arc<dyn Policy> {
        match self.clone() {
            Self::LeastRequest(policy) => Arc::new(policy),
            Self::PeakEwma(policy) => Arc::new(policy),
            Self::PickFirst(policy) => Arc::new(policy),
            Self::Random(policy) => Arc::new(policy),
            Self::RingHash(policy) => Arc::new(policy),
            Self::RoundRobin(policy) => Arc::new(policy),
        }
    }
}

impl Balancing {
    /// Reads `loadBalancingConfig`.
    pub(super) fn of_config(at: &At<'_>) -> Read<Self> {
        let mut balancing = Self::default();
        balancing.read_list(at)?;
        Ok(balancing)
    }

    /// Reads `loadBalancingPolicy`, the older field.
    pub(super) fn of_name(at: &At<'_>) -> Read<Self> {
        let name = at.text()?;
        let policy = match name.to_ascii_lowercase().as_str() {
            // As protobuf has it: a text that is not there is empty.
            "" => return Ok(Self::default()),
            "round_robin" => NamedPolicy::RoundRobin(WeightedRoundRobin::new()),
            "pick_first" => NamedPolicy::PickFirst(PickFirst::new()),
            _ => {
                let instead = "for other policies write a loadBalancingConfig";
                at.unsupported(&format!("{name:?} is not round_robin or pick_first; {instead}"))?;
                return Ok(Self::default());
            }
        };
        Ok(Self { policy: Some(policy), ..Self::default() })
    }

    /// Takes the first policy of the list that is known. Returns whether there is one.
    fn read_list(&mut self, at: &At<'_>) -> Read<bool> {
        for item in at.items()? {
            let fields = item.fields()?;
            let [(name, options)] = fields.as_slice() else { return item.refuse("has not exactly one policy") };
            if self.read_policy(name, options)? {
                return Ok(true);
            }
        }
        at.unsupported(&format!("has no policy that is known here: expected one of {}", NAMES.join(", ")))?;
        Ok(false)
    }

    /// Takes a policy, and what is in it, if it is known. One around a list of which nothing is known is not taken
    /// either.
    fn read_policy(&mut self, name: &str, at: &At<'_>) -> Read<bool> {
        let policy = match name {
            "round_robin" => {
                no_options(at)?;
                NamedPolicy::RoundRobin(WeightedRoundRobin::new())
            }
            "weighted_round_robin" => {
                without_load_reports(at)?;
                NamedPolicy::RoundRobin(WeightedRoundRobin::new())
            }
            "random" => {
                no_options(at)?;
                NamedPolicy::Random(WeightedRandom::new())
            }
            "peak_ewma" => {
                no_options(at)?;
                NamedPolicy::PeakEwma(PeakEwma::new())
            }
            "pick_first" => NamedPolicy::PickFirst(pick_first(at)?),
            "least_request_experimental" => NamedPolicy::LeastRequest(least_request(at)?),
            "ring_hash_experimental" => match ring_hash(at)? {
                Some(policy) => NamedPolicy::RingHash(policy),
                None => return Ok(false),
            },
            "outlier_detection_experimental" => {
                if self.outliers.is_some() {
                    return at.refuse("stands within another one");
                }
                let (detection, child) = outlier_detection(at)?;
                self.outliers = Some(detection);
                let is_known = self.read_list(&child)?;
                self.outliers = self.outliers.take().filter(|_| is_known);
                return Ok(is_known);
            }
            "random_subsetting_experimental" => {
                if self.subset.is_some() {
                    return at.refuse("stands within another one");
                }
                let (size, child) = random_subsetting(at)?;
                self.subset = Some(size);
                let is_known = self.read_list(&child)?;
                self.subset = self.subset.filter(|_| is_known);
                return Ok(is_known);
            }
            _ => {
                at.pass_over("not known here, as a list allows");
                return Ok(false);
            }
        };
        self.policy = Some(policy);
        Ok(true)
    }
}

fn no_options(at: &At<'_>) -> Read<()> {
    at.fields()?.iter().try_for_each(|(_, field)| field.unknown(&[]))
}

/// A58 weighs by what servers report of their load, and its options are about those reports. Here instances register
/// their weights.
fn without_load_reports(at: &At<'_>) -> Read<()> {
    for (name, field) in at.fields()? {
        match name {
            "enableOobLoadReport" if !field.flag()? => {}
            _ if LOAD_REPORTS.contains(&name) => {
                field.unsupported(
                    "not supported: weights are what instances register, not load reports; leave it out",
                )?;
            }
            _ => field.unknown(&LOAD_REPORTS[..1])?,
        }
    }
    Ok(())
}

const LOAD_REPORTS: [&str; 6] = [
    "enableOobLoadReport",
    "oobReportingPeriod",
    "blackoutPeriod",
    "weightExpirationPeriod",
    "weightUpdatePeriod",
    "errorUtilizationPenalty",
];

fn pick_first(at: &At<'_>) -> Read<PickFirst> {
    let mut policy = PickFirst::new();
    for (name, field) in at.fields()? {
        match name {
            "shuffleAddressList" if field.flag()? => policy = PickFirst::shuffled(),
            "shuffleAddressList" => {}
            _ => field.unknown(&["shuffleAddressList"])?,
        }
    }
    Ok(policy)
}

fn least_request(at: &At<'_>) -> Read<LeastRequest> {
    let mut policy = LeastRequest::new();
    for (name, field) in at.fields()? {
        match name {
            "choiceCount" => match field.whole()? {
                0 | 1 => return field.expected("2 or more"),
                count => policy = policy.choices(count),
            },
            _ => field.unknown(&["choiceCount"])?,
        }
    }
    Ok(policy)
}

/// Without a header there is no key here, where gRPC would have one of xDS: the policy is not supported.
fn ring_hash(at: &At<'_>) -> Read<Option<RingHash>> {
    let (mut header, mut min, mut max) = (None, None, None);
    for (name, field) in at.fields()? {
        match name {
            "requestHashHeader" if field.text()?.is_empty() => {}
            "requestHashHeader" => {
                let read = HeaderName::from_str(field.text()?).ok().filter(|name| !name.as_str().ends_with("-bin"));
                header = Some(read.map_or_else(|| field.expected("the name of a header that is text"), Ok)?);
            }
            "minRingSize" => min = Some(ring_size(&field)?),
            "maxRingSize" => max = Some(ring_size(&field)?),
            _ => field.unknown(&["requestHashHeader", "minRingSize", "maxRingSize"])?,
        }
    }
    let Some(header) = header else {
        at.unsupported(r#"has no requestHashHeader: write the name of a header, such as "x-user""#)?;
        return Ok(None);
    };
    let (min, max) = (min.unwrap_or(MIN_RING), max.unwrap_or(MAX_RING));
    if min > max {
        return at.refuse("has a minRingSize above its maxRingSize");
    }
    Ok(Some(RingHash::by_header(header).ring_size(min, max)))
}

fn ring_size(at: &At<'_>) -> Read<u32> {
    match at.whole()? {
        size @ 1..=LARGEST_RING => Ok(size),
        _ => at.expected("a number of points from 1 to 8388608"),
    }
}

/// A42's defaults.
const MIN_RING: u32 = 1_024;
const MAX_RING: u32 = 4_096;

/// A42's limit.
const LARGEST_RING: u32 = 8 * 1024 * 1024;

fn random_subsetting<'a>(at: &At<'a>) -> Read<(usize, At<'a>)> {
    let (mut size, mut child) = (None, None);
    for (name, field) in at.fields()? {
        match name {
            "subsetSize" => match usize::try_from(field.whole()?) {
                Ok(0) | Err(_) => return field.expected("1 or more"),
                Ok(whole) => size = Some(whole),
            },
            "childPolicy" => child = Some(field),
            _ => field.unknown(&["subsetSize", "childPolicy"])?,
        }
    }
    let Some(size) = size else { return at.refuse("has no subsetSize") };
    Ok((size, child.map_or_else(|| at.refuse(NO_CHILD), Ok)?))
}

fn outlier_detection<'a>(at: &At<'a>) -> Read<(OutlierDetection, At<'a>)> {
    let (mut detection, mut child) = (OutlierDetection::grpc(), None);
    let (mut base, mut max) = (GRPC_EJECTION_TIME, GRPC_MAX_EJECTION_TIME);
    for (name, field) in at.fields()? {
        match name {
            "interval" => detection = detection.interval(field.duration()?),
            "baseEjectionTime" => base = field.duration()?,
            "maxEjectionTime" => max = field.duration()?,
            "maxEjectionPercent" => detection = detection.max_ejected_percent(field.percent()?),
            "successRateEjection" => detection = detection.success_rate(success_rate(&field)?),
            "failurePercentageEjection" => detection = detection.failure_percentage(failure_percentage(&field)?),
            "childPolicy" => child = Some(field),
            _ => field.unknown(&OUTLIER_FIELDS)?,
        }
    }
    // The larger one counts, as A50 says.
    detection = detection.ejection_time(base).max_ejection_time(max.max(base));
    checked(at, detection.check())?;
    Ok((detection, child.map_or_else(|| at.refuse(NO_CHILD), Ok)?))
}

const OUTLIER_FIELDS: [&str; 7] = [
    "interval",
    "baseEjectionTime",
    "maxEjectionTime",
    "maxEjectionPercent",
    "successRateEjection",
    "failurePercentageEjection",
    "childPolicy",
];

fn success_rate(at: &At<'_>) -> Read<SuccessRate> {
    let mut options = SuccessRate::new();
    for (name, field) in at.fields()? {
        options = match name {
            "stdevFactor" => options.stdev_factor(field.whole()?),
            "enforcementPercentage" => options.enforcement_percentage(field.percent()?),
            "minimumHosts" => options.minimum_hosts(field.whole()?),
            "requestVolume" => options.request_volume(field.whole()?),
            _ => {
                field.unknown(&["stdevFactor", "enforcementPercentage", "minimumHosts", "requestVolume"])?;
                options
            }
        };
    }
    Ok(options)
}

fn failure_percentage(at: &At<'_>) -> Read<FailurePercentage> {
    let mut options = FailurePercentage::new();
    for (name, field) in at.fields()? {
        options = match name {
            "threshold" => options.threshold(field.percent()?),
            "enforcementPercentage" => options.enforcement_percentage(field.percent()?),
            "minimumHosts" => options.minimum_hosts(field.whole()?),
            "requestVolume" => options.request_volume(field.whole()?),
            _ => {
                field.unknown(&["threshold", "enforcementPercentage", "minimumHosts", "requestVolume"])?;
                options
            }
        };
    }
    Ok(options)
}

const NO_CHILD: &str = r#"has no childPolicy: write the policy within it, such as [{"round_robin": {}}]"#;

/// The policies that are known, by the names that gRPC has for them.
const NAMES: [&str; 9] = [
    "round_robin",
    "weighted_round_robin",
    "least_request_experimental",
    "pick_first",
    "ring_hash_experimental",
    "outlier_detection_experimental",
    "random_subsetting_experimental",
    "random",
    "peak_ewma",
];
