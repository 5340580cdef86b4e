use std::sync::Arc;

use futures_util::StreamExt;
use tokio::time::{Instant, timeout};

use super::*;
use crate::error::Gone;
use crate::etcd::{Cluster, MAX_SEGMENT, parse_endpoints};
use crate::format::{DecodeError, Decoded, Entry, Format, Kitex};

/// An instance that registers where nobody listens.
fn builder() -> RegistrationBuilder {
    builder_for(Arc::new(Kitex))
}

fn builder_for(format: Arc<dyn Format>) -> RegistrationBuilder {
    let members = parse_endpoints(&["http://127.0.0.1:1".into()], None, Duration::from_secs(1)).expect("a good URL");
    let registrar = Registrar::new(Arc::new(Cluster::new(members, None)), "prefix/".into(), format);
    RegistrationBuilder::new(registrar, Instance::new("echo", std::net::SocketAddr::from(([127, 0, 0, 1], 1001))))
}

/// How long a registration with six attempts goes on.
async fn lasts(builder: RegistrationBuilder) -> Duration {
    let began = Instant::now();
    let registration = builder.max_attempts(6).build().expect("a good instance");
    registration.start();
    assert_eq!(registration.registered().await, Err(Gone));
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_registration_that_may_fail_three_times_gives_up_and_says_why() {
    let registration = builder().max_attempts(3).build().expect("a good instance");
    let changes = registration.status_changes();
    registration.start();
    assert_eq!(registration.registered().await, Err(Gone), "who waits for it is told");
    let RegistrationStatus::GaveUp { attempts, reason } = registration.status() else {
        panic!("the status says what became of it: {:?}", registration.status());
    };
    assert_eq!(attempts, 3);
    assert!(reason.contains("grant") && reason.contains("127.0.0.1:1"), "{reason:?} names what failed and where");
    let seen: Vec<RegistrationStatus> = changes.collect().await;
    assert!(seen.last().is_some_and(RegistrationStatus::has_ended), "the stream of statuses ends: {seen:?}");
    registration.deregister().await;
    assert!(matches!(registration.status(), RegistrationStatus::GaveUp { .. }), "that stays its last word");
}

#[tokio::test(start_paused = true)]
async fn without_a_limit_a_registration_never_gives_up() {
    let registration = builder().build().expect("a good instance");
    registration.start();
    let ended = timeout(Duration::from_secs(600), registration.registered()).await;
    assert!(ended.is_err(), "ten minutes without etcd end nothing");
    assert_eq!(registration.status(), RegistrationStatus::Registering);
}

#[tokio::test(start_paused = true)]
async fn the_first_wait_after_a_failure_is_as_long_as_was_said() {
    // Waits are drawn at random: the sum of five up to an hour each is below a minute once in 10^11 times.
    let long = lasts(builder().retry_delay(Duration::from_secs(3600))).await;
    assert!(long > Duration::from_secs(60), "an hour at most, five times, took {long:?}");
    // Five waits of 6 s in all, six grants of 3 s, and 3 s to leave.
    let short = lasts(builder()).await;
    assert!(short < Duration::from_secs(30), "250 ms at most, and then up to 2 s, took {short:?}");
}

#[test]
fn the_preset_has_kitex_s_defaults_and_what_follows_it_counts() {
    let seconds = Duration::from_secs;
    let kitex = builder().ttl(seconds(1)).max_attempts(1).kitex();
    assert_eq!(
        (kitex.ttl, kitex.default_ttl),
        (None, seconds(60)),
        "a TTL of 60 s, unless the variable says otherwise"
    );
    assert_eq!(kitex.propagation_pause, seconds(6), "longer than Kitex clients take to look again");
    assert_eq!(kitex.upkeep.max_attempts, 5, "MaxAttemptTimes");
    assert_eq!(kitex.upkeep.check_interval, seconds(30), "ObserveDelay");
    assert_eq!(kitex.upkeep.retry_delay, seconds(10), "RetryDelay");
    let own = kitex.ttl(seconds(20)).max_attempts(0);
    assert_eq!((own.ttl, own.upkeep.max_attempts), (Some(seconds(20)), 0), "options behind it count");
}

#[test]
fn times_out_of_their_range_are_refused_by_name() {
    let (never, ages) = (Duration::ZERO, Duration::from_secs(86_401));
    for (builder, option) in [
        (builder().retry_delay(never), "retry_delay"),
        (builder().retry_delay(ages), "retry_delay"),
        (builder().check_interval(Duration::from_millis(999)), "check_interval"),
        (builder().check_interval(ages), "check_interval"),
    ] {
        let error = builder.build().expect_err("it is out of range").to_string();
        assert!(error.contains(option), "{error} names {option}");
    }
}

/// Keys that end in so many bytes.
#[derive(Debug)]
struct Long(usize);

impl Format for Long {
    fn default_prefix(&self) -> &'static str {
        "long"
    }

    fn segment(&self, _: &Entry<'_>) -> String {
        "x".repeat(self.0)
    }

    fn encode(&self, _: &Entry<'_>) -> Vec<u8> {
        Vec::new()
    }

    fn decode(&self, _: &str, _: &[u8]) -> Result<Decoded, DecodeError> {
        Err(DecodeError::new("it is only written"))
    }

    fn carries_draining(&self) -> bool {
        false
    }
}

#[test]
fn a_key_that_readers_would_not_look_at_is_refused() {
    builder_for(Arc::new(Long(MAX_SEGMENT))).build().expect("just short enough");
    let error = builder_for(Arc::new(Long(MAX_SEGMENT + 1))).build().expect_err("too long");
    assert_eq!(error.to_string(), "bad format that ends a key in 513 bytes: expected at most 512");
}
