//! What goes wrong with real etcds is found in what Prometheus would read, and every gauge is back at 0 when all of it
//! has ended. One program, since a process has one recorder; its tests run one after the other for the same reason.

// Processes are stopped and ended with signals.
#![cfg(unix)]
#![allow(clippy::missing_panics_doc, clippy::must_use_candidate, reason = "a panic is how a test fails")]

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future::{Future, ready};
use std::net::SocketAddr;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use http::{Request, Response};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::runtime::Builder;
use tonic::body::Body;
use tonic_etcd::server::Drain;
use tonic_etcd::{Discover, Instance, Registration, RegistrationStatus, Registry};
use tower::{Layer, Service, service_fn};

use support::changes::Changes;
use support::etcd::Etcd;
use support::proxy::Proxy;
use support::server::proto::echo::EchoRequest;
use support::server::proto::echo::echo_client::EchoClient;
use support::server::{EchoServer, reaches};
use support::{LIMIT, eventually};

#[path = "support/mod.rs"]
pub mod support;

#[test]
fn each_loss_of_a_registration_is_counted_by_what_happened_to_it() {
    alone(async {
        let grants = Since::now("etcd_calls_total", &[("operation", "grant"), ("outcome", "ok")]);
        let connects = Since::now("etcd_connects_total", &[("outcome", "made")]);
        let etcd = Etcd::start().await;
        let registry = registry(etcd.url());
        let server = EchoServer::registered(&registry, "lost").await;
        assert_eq!(state("lost", "registered"), 1);
        let losses = |reason| value("registration_lost_total", &[("service", "lost"), ("reason", reason)]);
        let returns = || value("registration_registered_total", &[("service", "lost")]);
        let is_back = async |count: i64| {
            eventually("it is back", LIMIT, async || returns() == count && state("lost", "registered") == 1).await;
        };
        let (key, _, lease) = etcd.keys("").await.pop().expect("the server is registered");

        etcd.delete(key.clone()).await;
        is_back(2).await;
        assert_eq!((losses("key_deleted"), losses("key_overwritten"), losses("lease_ended")), (1, 0, 0));
        etcd.put(key, "of another program").await;
        is_back(3).await;
        assert_eq!((losses("key_deleted"), losses("key_overwritten"), losses("lease_ended")), (1, 1, 0));
        etcd.revoke(lease).await;
        is_back(4).await;
        assert_eq!((losses("key_deleted"), losses("key_overwritten"), losses("lease_ended")), (1, 1, 1));

        let took = |cause| value("registration_duration_seconds_count", &[("service", "lost"), ("cause", cause)]);
        assert_eq!((took("start"), took("lost")), (1, 3));
        assert_eq!((grants.value(), connects.value()), (2, 1), "two leases, over one connection");
        server.stop().await;
        assert_eq!(value("registration_ended_total", &[("service", "lost"), ("ending", "left")]), 1);
        assert_eq!(value("registration_left_behind_total", &[("service", "lost")]), 0, "nothing is left in etcd");
    });
}

#[test]
fn a_conflict_is_a_state_until_the_other_server_leaves() {
    alone(async {
        let etcd = Etcd::start().await;
        let registry = registry(etcd.url());
        let instance = || Instance::new("conflict", SocketAddr::from(([127, 0, 0, 1], 80)));
        let registration = || -> Registration {
            let built = registry.registration(instance()).advertise("10.0.0.1:80").build();
            built.expect("a good registration")
        };
        let first = registration();
        first.registered().await.expect("it lasts");
        let second = registration();
        second.start();
        reaches(&second, "the second one yields", |status| matches!(status, RegistrationStatus::Conflict { .. })).await;
        assert_eq!((state("conflict", "registered"), state("conflict", "conflict")), (1, 1));
        assert_eq!(value("registration_conflicts_total", &[("service", "conflict")]), 1);

        first.deregister().await;
        second.registered().await.expect("it lasts");
        assert_eq!((state("conflict", "registered"), state("conflict", "conflict")), (1, 0));
        let cause = [("service", "conflict"), ("cause", "conflict")];
        assert_eq!(value("registration_duration_seconds_count", &cause), 1);
        second.deregister().await;
    });
}

#[test]
fn a_registration_that_gives_up_is_counted_with_its_failures() {
    alone(async {
        let grants = Since::now("etcd_calls_total", &[("operation", "grant"), ("outcome", "unreachable")]);
        let connects = Since::now("etcd_connects_total", &[("outcome", "failed")]);
        let registry = registry("http://127.0.0.1:1".to_owned());
        let instance = Instance::new("given-up", SocketAddr::from(([127, 0, 0, 1], 80)));
        let registration = registry.registration(instance).max_attempts(2).build().expect("a good registration");
        assert_eq!(state("given-up", "unregistered"), 1, "it was not started");
        registration.registered().await.expect_err("there is no etcd");
        assert_eq!(value("registration_ended_total", &[("service", "given-up"), ("ending", "gave_up")]), 1);
        assert_eq!(value("registration_failures_total", &[("service", "given-up")]), 2);
        assert_eq!(grants.value(), 2);
        assert!(connects.value() >= 2, "{}", connects.value());
        assert_eq!(value("etcd_members", &[("state", "silent")]), 1);
    });
}

#[test]
fn a_wiped_etcd_is_seen_by_the_list_and_the_lost_lease() {
    alone(async {
        let etcd = Etcd::start().await;
        let registry = registry(etcd.url());
        let server = EchoServer::registered(&registry, "wiped").await;
        let mut changes = Changes::of(&registry, "wiped");
        changes.expect_insert(server.address()).await;
        // Revisions that the next store takes long to come to.
        for n in 0..100 {
            etcd.put("elsewhere", n.to_string()).await;
        }
        etcd.put("kitex/registry-etcd/wiped/127.0.0.1:1", r#"{"address":"127.0.0.1:1"}"#).await;
        changes.expect_insert("127.0.0.1:1").await;

        etcd.wipe_and_restart().await;

        let lists =
            || value("watch_lists_total", &[("service", "wiped"), ("of", "instances"), ("cause", "rolled_back")]);
        eventually("everything is listed anew", LIMIT, async || lists() >= 1).await;
        let returns = || value("registration_registered_total", &[("service", "wiped")]);
        eventually("the server is registered again", LIMIT, async || returns() == 2).await;
        assert_eq!(value("registration_lost_total", &[("service", "wiped")]), 1);
        changes.expect_remove("127.0.0.1:1").await;
        let live = || value("discovery_instances", &[("service", "wiped"), ("state", "live")]);
        eventually("one instance is left", LIMIT, async || live() == 1).await;
        assert!(value("watch_restarts_total", &[("service", "wiped"), ("reason", "stream_ended")]) >= 1);
        server.stop().await;
    });
}

#[test]
fn a_frozen_etcd_shows_in_renewals_watches_members_and_age() {
    alone(async {
        let renewals = |outcome| Since::now("keepalive_renewals_total", &[("outcome", outcome)]);
        let (answered, unanswered) = (renewals("renewed"), renewals("unanswered"));
        let outages = Since::now("etcd_outages_total", &[]);
        let etcd = Etcd::start().await;
        let registry = registry(etcd.url());
        let server = EchoServer::start(|address| {
            registry.registration(Instance::new("frozen", address)).ttl(Duration::from_secs(5))
        });
        server.registration().registered().await.expect("it lasts");
        let mut changes = Changes::of(&registry, "frozen");
        changes.expect_insert(server.address()).await;
        let watching = || value("watches", &[("service", "frozen"), ("state", "watching")]);
        eventually("both are watched", LIMIT, async || watching() == 2).await;
        eventually("a renewal is answered", LIMIT, async || answered.value() >= 1).await;
        let verified = || value("watch_verified_timestamp_seconds", &[("service", "frozen"), ("of", "instances")]);
        let before = verified();
        assert!(before > 1_700_000_000, "{before} is a time of now");

        etcd.freeze();
        eventually("a renewal is not answered", LIMIT, async || unanswered.value() >= 1).await;
        eventually("no watch is open", LIMIT, async || watching() == 0).await;
        eventually("the member is away", LIMIT, async || value("etcd_members", &[("state", "answering")]) == 0).await;
        assert!(outages.value() >= 1);
        let frozen = verified();

        etcd.resume();
        eventually("both are watched again", LIMIT, async || watching() == 2).await;
        eventually("the member is back", LIMIT, async || value("etcd_members", &[("state", "answering")]) == 1).await;
        eventually("what is known is fresh again", LIMIT, async || verified() > frozen).await;
        eventually("the server is registered", LIMIT, async || state("frozen", "registered") == 1).await;
        server.stop().await;
    });
}

#[test]
fn a_compaction_during_an_outage_shows_as_the_cause_of_a_list() {
    alone(async {
        let etcd = Etcd::start().await;
        let proxy = Proxy::start(etcd.address()).await;
        let registry = registry(proxy.url());
        let (service, key) = ("compacted", |n: u16| format!("kitex/registry-etcd/compacted/127.0.0.1:{n}"));
        let mut changes = Changes::of(&registry, service);
        etcd.put(key(1), r#"{"address":"127.0.0.1:1"}"#).await;
        changes.expect_insert("127.0.0.1:1").await;
        let lists = |cause| value("watch_lists_total", &[("service", service), ("cause", cause)]);
        assert_eq!((lists("start"), lists("compacted")), (1, 0));

        proxy.reset();
        etcd.delete(key(1)).await;
        etcd.put(key(2), r#"{"address":"127.0.0.1:2"}"#).await;
        etcd.put(key(3), r#"{"address":"127.0.0.1:3"}"#).await;
        etcd.compact().await;
        proxy.forward();

        changes.expect_remove("127.0.0.1:1").await;
        eventually("it is listed anew", LIMIT, async || lists("compacted") == 1).await;
        assert_eq!(value("watch_restarts_total", &[("service", service), ("reason", "compacted")]), 1);
        assert!(value("watch_list_keys_total", &[("service", service)]) >= 2);
        assert!(value("watch_list_size_bytes_total", &[("service", service)]) >= 100);
    });
}

#[test]
fn a_watch_that_moves_to_another_member_or_lost_its_runtime_is_counted_by_that() {
    alone(async {
        let restarts = |service, reason| value("watch_restarts_total", &[("service", service), ("reason", reason)]);
        let watching = |service| value("watches", &[("service", service), ("state", "watching")]);
        let is_open = async |service| eventually("its watch is open", LIMIT, async || watching(service) == 1).await;
        let etcd = Etcd::start().await;
        let (old, next) = (Proxy::start(etcd.address()).await, Proxy::start(etcd.address()).await);
        let (name, named) = tokio::sync::watch::channel(Vec::new());
        let urls = move || {
            let mut named = named.clone();
            async move { named.wait_for(|urls| !urls.is_empty()).await.map(|urls| urls.clone()) }
        };
        let registry = Registry::builder([old.url()]).endpoints_with(urls).build().expect("a good registry");
        let mut changes = Changes::of(&registry, "moved");
        changes.expect_nothing_before(&etcd, "127.0.0.1:1").await;
        is_open("moved").await;
        old.reset();
        eventually("the watch breaks", LIMIT, async || restarts("moved", "stream_ended") == 1).await;
        old.forward();
        changes.expect_nothing_before(&etcd, "127.0.0.1:2").await;
        is_open("moved").await;
        name.send(vec![next.url()]).expect("the question waits");
        eventually("it moves", LIMIT, async || restarts("moved", "moved") == 1).await;

        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
        // It runs the stream that both watches are on.
        let first = {
            let _inside = runtime.enter();
            registry.discover("first").expect("a good name")
        };
        is_open("first").await;
        let mut changes = Changes::of(&registry, "left-behind");
        changes.expect_nothing_before(&etcd, "127.0.0.1:3").await;
        is_open("left-behind").await;
        runtime.shutdown_background();
        eventually("it was left behind", LIMIT, async || restarts("left-behind", "left_behind") == 1).await;
        changes.expect_nothing_before(&etcd, "127.0.0.1:4").await;
        drop(first);
    });
}

#[test]
fn hostile_keys_are_counted_and_make_no_label() {
    alone(async {
        let etcd = Etcd::start().await;
        let limited = Registry::builder([etcd.url()]).max_instances(50).build().expect("a good registry");
        etcd.put("kitex/registry-etcd/hostile/127.0.0.1:1", r#"{"address":"127.0.0.1:1"}"#).await;
        let mut changes = Changes::of(&limited, "hostile");
        changes.expect_insert("127.0.0.1:1").await;
        let before = series();

        for n in 0..1000_u16 {
            let value = match n % 5 {
                0 => format!(r#"{{"address":"10.0.{}.{}:80"}}"#, n / 250, n % 250),
                1 => "{".to_owned(),
                2 => r#"{"address":"evil\",service=\"admin:80"}"#.to_owned(),
                3 => "x".repeat(70_000),
                _ => format!(r#"{{"address":"evil-{n}.example:80","weight":1,"tags":{{"evil-{n}":"evil"}}}}"#),
            };
            let segment = if n % 7 == 0 { format!("evil-{n}/evil") } else { format!("evil\"{{}}\n{n}") };
            etcd.put(format!("kitex/registry-etcd/hostile/{segment}"), value).await;
        }
        etcd.put(b"kitex/registry-etcd/hostile/\xff\xfe".to_vec(), "evil").await;

        let unusable = |trouble| value("discovery_unusable_total", &[("service", "hostile"), ("trouble", trouble)]);
        eventually("all were read", LIMIT, async || unusable("foreign_key") >= 100 && unusable("too_large") >= 100)
            .await;
        eventually("some are left out", LIMIT, async || value("discovery_cut_off", &[("service", "hostile")]) > 0)
            .await;
        assert!(unusable("malformed") > 0 && unusable("too_many_keys") > 0);
        let after = series();
        let new: Vec<&String> = after.difference(&before).collect();
        assert!(new.iter().all(|series| !series.contains("evil") && !series.contains("admin")), "{new:#?}");
        let of_service = |all: &BTreeSet<String>| all.iter().filter(|it| it.contains("hostile")).count();
        // Lists for room that came again, and with them how long they took.
        assert!(of_service(&after) <= of_service(&before) + 4, "{new:#?}");
        assert!(value("discovery_size_bytes", &[("service", "hostile")]) > 1_000);
        drop(changes);
    });
}

#[test]
fn a_watch_lags_by_the_writes_of_others_until_a_sign_of_life() {
    alone(async {
        let etcd = Etcd::start().await;
        let registry = registry(etcd.url());
        let mut quiet = registry.discover("quiet").expect("a good name");
        let mut busy = registry.discover("busy").expect("a good name");
        quiet.ready().await;
        busy.ready().await;
        let watching = |service| value("watches", &[("service", service), ("state", "watching")]);
        eventually("both are watched", LIMIT, async || watching("quiet") + watching("busy") == 2).await;

        // Updates are shown once a second.
        let lag = |service| value("watch_lag", &[("service", service)]);
        eventually("one that is quiet cannot know what it misses", LIMIT, async || {
            etcd.put("kitex/registry-etcd/busy/127.0.0.1:1", r#"{"address":"127.0.0.1:1"}"#).await;
            lag("quiet") >= 20
        })
        .await;
        assert_eq!(lag("busy"), 0, "one that hears of each write lags behind none");
        eventually("a sign of life settles it", LIMIT, async || lag("quiet") == 0).await;
        let _: (Discover, Discover) = (quiet, busy);
    });
}

#[test]
fn a_shutdown_counts_calls_that_finish_and_calls_that_are_cut() {
    alone(async {
        let ended = |outcome| Since::now("server_drain_calls_total", &[("outcome", outcome)]);
        let (finished, cut, drains) = (ended("finished"), ended("cut"), Since::now("server_drains_total", &[]));
        let etcd = Etcd::start().await;
        let registry = registry(etcd.url());
        let server = EchoServer::start(|address| {
            let instance = Instance::new("drained", address);
            registry.registration(instance).propagation_pause(Duration::ZERO).drain_limit(Duration::from_secs(2))
        });
        server.registration().registered().await.expect("it lasts");
        let client = EchoClient::connect(format!("http://{}", server.address())).await.expect("it listens");
        let call = |delay: u64| {
            server.delay(Duration::from_millis(delay));
            let mut client = client.clone();
            let call = tokio::spawn(async move { client.unary_echo(EchoRequest::default()).await.map(drop) });
            (call, server.calls() + 1)
        };
        let (short, begun) = call(1_000);
        eventually("the short call has begun", LIMIT, async || server.calls() == begun).await;
        let (long, begun) = call(60_000);
        eventually("the long call has begun", LIMIT, async || server.calls() == begun).await;
        assert_eq!((value("server_calls", &[]), value("server_connections", &[])), (2, 1));

        server.stop().await;
        short.await.expect("no panic").expect("it had time to finish");
        assert_eq!(long.await.expect("no panic").expect_err("it was cut").code(), tonic::Code::Unavailable);
        assert_eq!((drains.value(), finished.value(), cut.value()), (1, 1, 1));
        assert_eq!((value("server_calls", &[]), value("server_connections", &[])), (0, 0));
    });
}

#[test]
fn a_call_behind_the_limit_is_refused_and_a_limit_that_went_with_its_runtime_is_lost() {
    alone(async {
        let (refused, lost) = (
            Since::now("server_drain_calls_total", &[("outcome", "refused")]),
            Since::now("server_drain_lost_total", &[]),
        );
        let answer = |_: Request<Body>| ready(Ok::<_, Infallible>(Response::new(Body::empty())));
        let drain = Drain::new().limit(Duration::ZERO);
        let mut service = drain.layer().layer(service_fn(answer));
        drain.on(ready(())).await;
        eventually("calls are refused", LIMIT, async || {
            service.call(Request::new(Body::empty())).await.is_ok_and(|response| response.status() == 503)
        })
        .await;
        assert_eq!(refused.value(), 1);

        let drain = Drain::new();
        let open = drain.layer().layer(service_fn(answer)).call(Request::new(Body::empty()));
        assert_eq!(value("server_calls", &[]), 1);
        let elsewhere = std::thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(drain.on(ready(())));
        });
        elsewhere.join().expect("no panic");
        assert_eq!(lost.value(), 1);
        drop(open);
    });
}

#[test]
fn members_that_are_replaced_are_counted_no_more() {
    alone(async {
        let etcd = Etcd::start().await;
        let named = etcd.url();
        let registry = Registry::builder(["http://127.0.0.1:1", "http://127.0.0.1:2"])
            .endpoints_with(move || ready(Ok::<_, Infallible>([named.clone()])))
            .build()
            .expect("a good registry");
        assert_eq!(value("etcd_members", &[("state", "unknown")]), 2);
        eventually("the other member is asked", LIMIT, async || registry.instances("replaced").await.is_ok()).await;
        assert_eq!((value("etcd_members", &[]), value("etcd_members", &[("state", "answering")])), (1, 1));
    });
}

#[test]
fn logins_are_counted_by_what_etcd_says_to_them() {
    alone(async {
        let etcd = Etcd::start().await;
        let done = "etcd sets up authentication";
        let mut client = etcd.client().await;
        client.user_add("root", "right", None).await.expect(done);
        client.user_grant_role("root", "root").await.expect(done);
        client.auth_enable().await.expect(done);
        let logins = |outcome| value("etcd_logins_total", &[("outcome", outcome)]);

        let wrong = Registry::builder([etcd.url()]).auth("root", "wrong").build().expect("a good registry");
        wrong.instances("logins").await.expect_err("etcd refuses the password");
        assert_eq!((logins("ok"), logins("refused")), (0, 1));
        let right = Registry::builder([etcd.url()]).auth("root", "right").build().expect("a good registry");
        right.instances("logins").await.expect("etcd takes the password");
        assert_eq!((logins("ok"), logins("refused")), (1, 1));
        let without = Registry::builder([etcd.url()])
            .auth_with(|| async { Err::<tonic_etcd::Credentials, _>("the vault is closed") })
            .build()
            .expect("a good registry");
        without.instances("logins").await.expect_err("there is no password");
        assert_eq!(logins("no_credentials"), 1);
    });
}

#[test]
fn members_of_different_clusters_are_counted() {
    alone(async {
        let (one, other) = (Etcd::start().await, Etcd::start().await);
        other.set_up_anew().await;
        let both = Registry::builder([one.url(), other.url()]).build().expect("a good registry");
        both.instances("strangers").await.expect_err("the members do not belong together");
        eventually("both are refused", LIMIT, async || value("etcd_strangers", &[]) == 2).await;
    });
}

fn registry(url: String) -> Registry {
    Registry::builder([url]).build().expect("a good registry")
}

/// Runs a test while no other one does, and makes sure that no gauge is left behind by it.
fn alone(test: impl Future<Output = ()>) {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    LazyLock::force(&PROMETHEUS);
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(test);
    drop(runtime);
    let page = PROMETHEUS.render();
    let gauges: Vec<&str> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE tonic_etcd_")?.strip_suffix(" gauge")).collect();
    assert!(!gauges.is_empty(), "nothing was recorded:\n{page}");
    let is_left = |(series, value): &(&str, i64)| {
        let name = series.split('{').next().unwrap_or_default();
        *value != 0 && gauges.iter().any(|gauge| name.strip_prefix("tonic_etcd_") == Some(*gauge))
    };
    let left: Vec<_> = samples(&page).filter(is_left).collect();
    assert!(left.is_empty(), "gauges are left behind: {left:#?}");
}

static PROMETHEUS: LazyLock<PrometheusHandle> = LazyLock::new(|| {
    PrometheusBuilder::new()
        .with_recommended_naming(true)
        .set_buckets(&[0.001, 0.1, 1.0, 10.0])
        .expect("good buckets")
        .install_recorder()
        .expect("the first recorder")
});

/// How many registrations of a service are in a state.
fn state(service: &str, state: &str) -> i64 {
    value("registrations", &[("service", service), ("state", state)])
}

/// The sum over all series of a metric that have these labels, by its name behind `tonic_etcd_`.
fn value(name: &str, labels: &[(&str, &str)]) -> i64 {
    let text = PROMETHEUS.render();
    let has = |series: &str| labels.iter().all(|(label, value)| series.contains(&format!("{label}=\"{value}\"")));
    let of_metric = |series: &str| series.split('{').next().and_then(|it| it.strip_prefix("tonic_etcd_")) == Some(name);
    samples(&text).filter(|(series, _)| of_metric(series) && has(series)).map(|(_, value)| value).sum()
}

/// What a counter without the label of a service came to since a moment of this test.
struct Since<'a> {
    name: &'a str,
    labels: Vec<(&'a str, &'a str)>,
    before: i64,
}

impl<'a> Since<'a> {
    fn now(name: &'a str, labels: &[(&'a str, &'a str)]) -> Self {
        Self { name, labels: labels.to_vec(), before: value(name, labels) }
    }

    fn value(&self) -> i64 {
        value(self.name, &self.labels) - self.before
    }
}

/// All series whose values are whole, with their labels.
fn series() -> BTreeSet<String> {
    samples(&PROMETHEUS.render()).map(|(series, _)| series.to_owned()).collect()
}

fn samples(text: &str) -> impl Iterator<Item = (&str, i64)> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        Some((series, value.parse().ok()?))
    })
}
