//! How the client balances and retries, as flags.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use http::HeaderName;
use tonic::metadata::AsciiMetadataKey;
use tonic::{Code, Request};
use tonic_etcd::ChannelBuilder;
use tonic_etcd::channel::ServiceConfig;
use tonic_etcd::policy::{LeastRequest, PeakEwma, PickFirst, RingHash, WeightedRandom, WeightedRoundRobin};
use tonic_etcd::retry::RetryPolicy;

use crate::proto::echo::EchoRequest;
use crate::shared::Failure;
use crate::tally::name;
use crate::values::{number, seconds};

/// How servers are chosen, and calls retried.
#[derive(Args)]
pub(crate) struct Balancing {
    /// How a server is chosen for each call; tonic's balancer knows only random [default: what --service-config says,
    /// or least-request, or random with --balancer tonic]
    #[arg(long, value_enum, value_name = "NAME")]
    policy: Option<Policy>,

    /// With ring hash: the header with a call's key, of which the calls have a thousand in turn
    #[arg(long, value_name = "NAME", value_parser = header)]
    hash_header: Option<AsciiMetadataKey>,

    /// Prefers the servers of this zone
    #[arg(long, value_name = "ZONE")]
    zone: Option<String>,

    /// The tag that names a server's zone
    #[arg(long, value_name = "NAME", default_value = "zone", requires = "zone")]
    zone_tag: String,

    /// Uses, and connects to, this many servers only
    #[arg(long, value_name = "N", value_parser = number(1..=usize::MAX))]
    subset: Option<usize>,

    /// The share of a new server grows from a tenth to all of it in this time
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    slow_start: Option<Duration>,

    /// Makes calls again that fail with one of these codes, such as UNAVAILABLE,ABORTED: three attempts in all
    #[arg(long, value_name = "CODES", value_delimiter = ',', value_parser = code)]
    retry: Vec<Code>,

    /// Takes retries, timeouts and the policy from a gRPC service config in JSON; --policy and --retry
    /// count more
    #[arg(long, value_name = "FILE")]
    service_config: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Policy {
    LeastRequest,
    WeightedRoundRobin,
    Random,
    PickFirst,
    PeakEwma,
    RingHash,
}

impl Balancing {
    /// Gives the channel what the flags say.
    pub(crate) fn over(&self, channel: ChannelBuilder) -> Result<ChannelBuilder, Failure> {
        let mut channel = match &self.service_config {
            Some(file) => channel.service_config(read(file)?),
            None => channel,
        };
        channel = match self.policy {
            None => channel,
            Some(Policy::LeastRequest) => channel.policy(LeastRequest::new()),
            Some(Policy::WeightedRoundRobin) => channel.policy(WeightedRoundRobin::new()),
            Some(Policy::Random) => channel.policy(WeightedRandom::new()),
            Some(Policy::PickFirst) => channel.policy(PickFirst::new()),
            Some(Policy::PeakEwma) => channel.policy(PeakEwma::new()),
            Some(Policy::RingHash) => channel.policy(self.ring()?),
        };
        let has_ring = self.policy.map_or(self.service_config.is_some(), |policy| policy == Policy::RingHash);
        if self.hash_header.is_some() && !has_ring {
            return Err(Failure::Usage("--hash-header is for --policy ring-hash".into()));
        }
        if let Some(window) = self.slow_start {
            channel = channel.slow_start(window);
        }
        if let Some(zone) = &self.zone {
            channel = channel.prefer_zone(&self.zone_tag, zone);
        }
        if let Some(size) = self.subset {
            channel = channel.subset(size);
        }
        if !self.retry.is_empty() {
            channel = channel.retry(RetryPolicy::new(self.retry.iter().copied()));
        }
        Ok(channel)
    }

    /// Whether tonic's balancer can do it.
    pub(crate) fn is_tonics(&self) -> Result<(), Failure> {
        let Self { policy, hash_header, zone, zone_tag: _, subset, slow_start, retry, service_config } = self;
        let spreads = hash_header.is_some() || zone.is_some() || subset.is_some() || slow_start.is_some();
        if spreads || !retry.is_empty() || service_config.is_some() {
            return Err(Failure::Usage(
                "tonic's balancer knows no --hash-header, --zone, --subset, --slow-start, --retry and --service-config: \
                 expected --balancer own"
                    .into(),
            ));
        }
        if !matches!(policy, None | Some(Policy::Random)) {
            return Err(Failure::Usage(
                "tonic's balancer has one policy: expected --policy random, or none with --balancer tonic".into(),
            ));
        }
        Ok(())
    }

    /// The call of this number.
    pub(crate) fn request(&self, number: u64, timeout: Duration) -> Request<EchoRequest> {
        let mut request = Request::new(EchoRequest { message: "hello".to_owned() });
        request.set_timeout(timeout);
        if let Some(header) = &self.hash_header {
            request.metadata_mut().insert(header, (number % KEYS).into());
        }
        request
    }

    fn ring(&self) -> Result<RingHash, Failure> {
        let header = self.hash_header.as_ref().and_then(|header| header.as_str().parse::<HeaderName>().ok());
        header.map(RingHash::by_header).ok_or_else(|| Failure::Usage("--policy ring-hash needs --hash-header".into()))
    }
}

fn read(file: &Path) -> Result<ServiceConfig, Failure> {
    let refuse = |problem: String| Failure::Usage(format!("--service-config {}: {problem}", file.display()).into());
    let text = fs::read_to_string(file).map_err(|error| refuse(error.to_string()))?;
    text.parse().map_err(|error: tonic_etcd::channel::ServiceConfigError| refuse(error.to_string()))
}

fn header(value: &str) -> Result<AsciiMetadataKey, &'static str> {
    value.parse().map_err(|_| "expected the name of a header that does not end with -bin, such as x-user")
}

fn code(value: &str) -> Result<Code, &'static str> {
    // All but OK.
    let code = (1..=16).map(Code::from).find(|code| name(*code).eq_ignore_ascii_case(value));
    code.ok_or("expected the name of a code of failures, such as UNAVAILABLE")
}

/// Keys of calls for a ring: enough that each of a few dozen servers has some.
const KEYS: u64 = 1_000;
