//! What stands in etcd is shown key by key and lease by lease, with what clients make of it.

use std::time::Duration;

use etcd_client::PutOptions;
use tonic_etcd::inspect::Unusable;
use tonic_etcd::{ConfigError, Registry, RegistryError};

use crate::support::etcd::{Cluster, Etcd};
use crate::support::eventually;
use crate::support::{LIMIT, server::EchoServer};

fn registry(urls: impl IntoIterator<Item = String>) -> Registry {
    Registry::builder(urls).build().expect("a good registry")
}

#[tokio::test]
async fn every_key_is_shown_with_what_clients_make_of_it() {
    let etcd = Etcd::start().await;
    let registry = registry([etcd.url()]);
    let server = EchoServer::registered(&registry, "echo").await;
    let put = async |key: &str, value: &[u8]| etcd.put(format!("kitex/registry-etcd/{key}"), value).await;
    let created = put("a/good", br#"{"address":"10.0.0.1:80","draining":true}"#).await;
    put("a/nothing", b"\xff\x1b").await;
    put("a/nowhere", br#"{"address":"0.0.0.0:80"}"#).await;
    put("a/deeper/still", br#"{"address":"10.0.0.1:80"}"#).await;
    put("b/large", &vec![b' '; 70_000]).await;

    let all = registry.keys().await.expect("etcd answers");
    assert!(!all.is_cut_off() && all.revision() == etcd.revision().await, "{}", all.revision());
    let names: Vec<_> = all.keys().iter().map(|key| String::from_utf8_lossy(key.key()).into_owned()).collect();
    let own = format!("echo/{}", server.address());
    let expected = ["a/deeper/still", "a/good", "a/nothing", "a/nowhere", "b/large", &own];
    assert_eq!(names, expected.map(|name| format!("kitex/registry-etcd/{name}")), "in etcd's order");

    let [foreign, good, nothing, nowhere, large, registered] = all.keys() else { panic!("{all:?}") };
    assert_eq!((foreign.service(), foreign.instance().err()), (None, Some(&Unusable::ForeignKey)));
    assert_eq!(good.instance().expect("it can be read").address().to_string(), "10.0.0.1:80");
    assert!(good.is_draining() && good.lease() == 0);
    assert_eq!((good.create_revision(), good.mod_revision()), (created, created));
    assert!(matches!(nothing.instance(), Err(Unusable::Malformed(_))), "{nothing:?}");
    assert_eq!(nothing.value(), Some(&b"\xff\x1b"[..]), "as it is");
    assert!(matches!(nowhere.instance(), Err(Unusable::Address(reason)) if reason.contains("unspecified")));
    assert_eq!((large.value(), large.instance().err()), (None, Some(&Unusable::TooLarge)));
    assert!(registered.lease() != 0 && registered.instance().is_ok(), "{registered:?}");

    let some = registry.keys_of("a").await.expect("etcd answers");
    assert_eq!(some.keys(), &all.keys()[..4], "of one service: the same");
    let root = Registry::builder([etcd.url()]).prefix("").build().expect("a good registry");
    assert!(matches!(root.keys().await, Err(RegistryError::Config(ConfigError::Prefix { .. }))));
    server.stop().await;
}

#[tokio::test]
async fn a_lease_is_shown_with_its_time_and_keys_until_it_is_gone() {
    let etcd = Etcd::start().await;
    let registry = registry([etcd.url()]);
    let mut client = etcd.client().await;
    let lease = client.lease_grant(600, None).await.expect("a lease").id();
    client.put("a", "", Some(PutOptions::new().with_lease(lease))).await.expect("a put");
    client.put("b", "", Some(PutOptions::new().with_lease(lease))).await.expect("a put");

    assert_eq!(registry.leases().await.expect("etcd answers"), [lease]);
    let shown = registry.lease(lease).await.expect("etcd answers").expect("it is there");
    assert_eq!((shown.id(), shown.granted(), shown.key_count()), (lease, Duration::from_secs(600), 2));
    assert!(shown.remaining() <= shown.granted() && shown.remaining() > Duration::from_secs(500), "{shown:?}");
    let mut keys = shown.keys().to_vec();
    keys.sort();
    assert_eq!(keys, [b"a", b"b"]);

    etcd.revoke(lease).await;
    assert_eq!(registry.lease(lease).await.expect("etcd answers"), None);
    assert!(registry.leases().await.expect("etcd answers").is_empty());
    assert!(matches!(registry.lease(0).await, Err(RegistryError::Config(ConfigError::Option { .. }))));
}

#[tokio::test]
async fn each_member_reports_for_itself_and_a_dead_one_fails_alone() {
    let cluster = Cluster::start().await;
    let registry = registry(cluster.urls());
    let members = registry.members().await;
    let urls: Vec<_> = members.iter().map(|(url, _)| url.trim_end_matches('/').to_owned()).collect();
    assert_eq!(urls, cluster.urls());
    let all: Vec<_> = members.iter().map(|(_, status)| status.as_ref().expect("it answers")).collect();
    assert!(all.iter().all(|status| status.cluster_id() == all[0].cluster_id() && status.problems().is_empty()));
    assert!(all.iter().any(|status| status.leader() == Some(status.member_id())), "one leads: {all:?}");
    assert!(all.iter().all(|status| status.db_size() >= status.db_size_in_use() && !status.is_learner()));
    assert!(all.iter().all(|status| status.version().starts_with('3')));

    cluster.member(1).kill();
    eventually("the others answer alone", LIMIT, async || {
        let members = registry.members().await;
        let answers: Vec<bool> = members.iter().map(|(_, status)| status.is_ok()).collect();
        answers == [true, false, true]
    })
    .await;
}
