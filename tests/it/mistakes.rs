//! A newcomer's mistakes: what the status of a call says, without a log, so that it is clear what to do.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpSocket;
use tonic::{Code, Status};
use tonic_etcd::{ClientTls, Credentials, Instance, Registry, RegistryBuilder, RegistrySet, StartError};

use crate::auth::add_users;
use crate::support::etcd::Etcd;
use crate::support::pki::Authority;
use crate::support::server::proto::echo::EchoRequest;
use crate::support::server::proto::echo::echo_client::EchoClient;

/// A URL at which nothing listens, for as long as the socket lives: no other test's etcd gets its port.
fn nowhere() -> (String, TcpSocket) {
    let socket = TcpSocket::new_v4().expect("the system has sockets");
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("there is a free port");
    (format!("http://{}", socket.local_addr().expect("it has an address")), socket)
}

/// The status of a call to a service in a registry with a mistake.
async fn status(registry: RegistryBuilder) -> Status {
    let channel = registry.build().expect("only etcd knows of the mistake").channel("hello").build();
    let mut client = EchoClient::new(channel.expect("a good name"));
    let call = client.unary_echo(EchoRequest::default());
    let answer = tokio::time::timeout(Duration::from_secs(30), call).await.expect("it does not wait for ever");
    answer.expect_err("there is no server")
}

/// A server that gives up after a second says why.
#[tokio::test]
async fn a_server_that_cannot_register_in_time_is_told_why() {
    let (url, _held) = nowhere();
    let registry = Registry::builder([&url]).build().expect("a good URL");
    let instance = Instance::new("hello", SocketAddr::from(([127, 0, 0, 1], 1)));
    let registration = registry.registration(instance).build().expect("good options");
    let error = registration.start_within(Duration::from_secs(2)).await.expect_err("there is no etcd");
    assert!(matches!(error, StartError::TimedOut { .. }), "{error}");
    for shown in [error.to_string(), format!("{error:?}")] {
        for part in ["hello is not registered within 2s: registering", &url, "Connection refused"] {
            assert!(shown.contains(part), "{part:?} is missing in {shown:?}");
        }
    }
    registration.deregister().await;
    let ended = registration.start_within(Duration::from_secs(2)).await.expect_err("it has ended");
    assert!(matches!(ended, StartError::Ended { .. }), "{ended}");
}

fn says(status: &Status, parts: &[&str]) {
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    for part in parts {
        assert!(status.message().contains(part), "{part:?} is missing in {:?}", status.message());
    }
}

#[tokio::test]
async fn an_etcd_that_is_not_there_is_named_with_the_cause() {
    let (url, _held) = nowhere();
    let status = status(Registry::builder([&url])).await;
    says(&status, &["hello under kitex/registry-etcd/", &url, "Connection refused"]);
}

#[tokio::test]
async fn a_wrong_password_and_a_missing_one_are_told() {
    let etcd = Etcd::start().await;
    add_users(&etcd).await;
    etcd.client().await.auth_enable().await.expect("etcd switches authentication on");
    let wrong = status(Registry::builder([etcd.url()]).auth("server", "canary")).await;
    says(&wrong, &[&etcd.url(), "could not log in"]);
    let provider = || async { Err::<Credentials, _>("canary: the vault is sealed") };
    let none = status(Registry::builder([etcd.url()]).auth_with(provider)).await;
    says(&none, &[&etcd.url(), "could not log in", "the log says why"]);
    for status in [&wrong, &none] {
        assert!(!status.message().contains("canary"), "callers need not hear that: {status:?}");
    }
    let missing = status(Registry::builder([etcd.url()])).await;
    says(&missing, &[&etcd.url(), "was denied", "user name is empty", "auth(..)"]);
}

#[tokio::test]
async fn plain_text_where_tls_is_wanted_and_the_reverse_are_told() {
    let authority = Authority::new();
    let files = authority.issue_files("etcd", &["127.0.0.1"]);
    let etcd = Etcd::builder().tls(&files).start().await;
    let url = etcd.url().replace("https", "http");
    let plain = status(Registry::builder([&url])).await;
    says(&plain, &[&url, "it may want TLS: https and tls(..)"]);

    let etcd = Etcd::start().await;
    let url = etcd.url().replace("http", "https");
    let tls = ClientTls::new().ca_file(authority.file()).expect("a good file");
    let secure = status(Registry::builder([&url]).tls(tls)).await;
    says(&secure, &[&url, "it may speak plain HTTP, or be no etcd"]);
}

#[tokio::test]
async fn certificates_that_etcd_does_not_go_with_are_told_with_the_option() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let trusting = |authority: &Authority| ClientTls::new().ca_file(authority.file()).expect("a good file");
    let files = authority.issue_files("etcd", &["127.0.0.1"]);
    let etcd = Etcd::builder().mutual_tls(&files, &clients).start().await;
    let strange = status(Registry::builder([etcd.url()]).tls(trusting(&clients))).await;
    says(&strange, &[&etcd.url(), "invalid peer certificate", "; ca_file(..) names the authority to trust"]);
    let anonymous = status(Registry::builder([etcd.url()]).tls(trusting(&authority))).await;
    says(&anonymous, &[&etcd.url(), "it may want a client certificate, or another one: identity_files(..)"]);
}

#[tokio::test]
async fn a_user_without_a_role_is_told_with_the_key() {
    let etcd = Etcd::start().await;
    add_users(&etcd).await;
    let mut client = etcd.client().await;
    client.user_add("stranger", "secret", None).await.expect("etcd adds a user");
    client.auth_enable().await.expect("etcd switches authentication on");
    let denied = status(Registry::builder([etcd.url()]).auth("stranger", "secret")).await;
    says(&denied, &[&etcd.url(), "kitex/registry-etcd/hello/", "was denied", "permission denied"]);
}

#[tokio::test]
async fn a_service_that_nobody_registered_is_told_with_prefix_and_format() {
    let etcd = Etcd::start().await;
    let none = status(Registry::builder([etcd.url()])).await;
    says(&none, &["hello under kitex/registry-etcd/: no instance is registered in the format Kitex"]);
    let registry = Registry::builder([etcd.url()]).build().expect("a good URL");
    let channel = registry.channel("tonicetcd.echo.v1.Echo").build().expect("an allowed name");
    let named = EchoClient::new(channel).unary_echo(EchoRequest::default()).await.expect_err("there is no server");
    says(&named, &["it looks like a gRPC service: give the name that Instance::new(..) was given"]);
    let channel = registry.channel("hello").wait_for_ready(true).timeout(Duration::from_millis(500)).build();
    let mut client = EchoClient::new(channel.expect("a good name"));
    let waited = client.unary_echo(EchoRequest::default()).await.expect_err("there is no server");
    assert_eq!(waited.code(), Code::DeadlineExceeded, "{waited:?}");
    for part in ["an instance of hello under kitex/registry-etcd/", "no instance is registered in the format Kitex"] {
        assert!(waited.message().contains(part), "{part:?} is missing in {waited:?}");
    }
    let (url, _held) = nowhere();
    let nowhere = Registry::builder([url]).build().expect("a good URL");
    let empty = Registry::builder([etcd.url()]).build().expect("a good URL");
    let channel = RegistrySet::new([nowhere, empty]).channel("hello").build().expect("a good name");
    let answer = EchoClient::new(channel).unary_echo(EchoRequest::default()).await;
    says(&answer.expect_err("there is no server"), &["no instance is registered", "Connection refused"]);
    let none = status(Registry::builder([etcd.url()]).format(tonic_etcd::format::EtcdNaming::new())).await;
    says(&none, &["hello under hello/: no instance is registered in the format EtcdNaming"]);
}
