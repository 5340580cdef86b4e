//! TLS and mutual TLS towards tonic servers: calls get through, or fail with the reason, and files may change.

use std::path::Path;

use tonic::{Code, Request, Status};
use tonic_etcd::{BalancedChannel, ClientTls, Instance, Registry};

use crate::support::etcd::Etcd;
use crate::support::pki::{Authority, Certificate};
use crate::support::server::EchoServer;
use crate::support::server::proto::echo::EchoRequest;
use crate::support::server::proto::echo::echo_client::EchoClient;
use crate::support::{LIMIT, eventually};

const HERE: &[&str] = &["127.0.0.1"];

/// A registry that servers and channels meet at.
struct World {
    _etcd: Etcd,
    registry: Registry,
}

impl World {
    async fn new() -> Self {
        let etcd = Etcd::start().await;
        let registry = Registry::builder([etcd.url()]).build().expect("a good registry");
        Self { _etcd: etcd, registry }
    }

    async fn server(&self, certificate: &Certificate, clients: Option<&Authority>) -> EchoServer {
        let register = |address| self.registry.registration(Instance::new("echo", address));
        let server = EchoServer::start_secure(certificate, clients, register);
        let registered = tokio::time::timeout(LIMIT, server.registration().registered()).await;
        registered.expect("it registers in time").expect("it is not deregistered");
        server
    }

    fn channel(&self, tls: ClientTls) -> BalancedChannel {
        self.registry.channel("echo").tls(tls).build().expect("a good channel")
    }
}

fn trusting(ca: impl AsRef<Path>) -> ClientTls {
    ClientTls::new().ca_file(ca).expect("the authority's file is good")
}

async fn call(channel: &BalancedChannel) -> Result<String, Status> {
    let mut request = Request::new(EchoRequest { message: "hi".into() });
    request.set_timeout(LIMIT);
    EchoClient::new(channel.clone()).unary_echo(request).await.map(|reply| reply.into_inner().address)
}

/// A call answered by this server, once the channel has connected anew.
async fn reaches(channel: &BalancedChannel, server: &EchoServer) {
    let address = server.address().to_string();
    eventually("a call is answered", LIMIT, async || call(channel).await.is_ok_and(|by| by == address)).await;
}

async fn fails_for(channel: &BalancedChannel, cause: &str) {
    let status = eventually("a call says what is wrong", LIMIT, async || {
        let status = call(channel).await.expect_err("no call gets through");
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        status.message().contains("TLS").then_some(status)
    })
    .await;
    assert!(status.message().contains(cause), "{} names the cause: {cause}", status.message());
    let told = channel.instances().iter().any(|instance| instance.cause().is_some_and(|told| told.contains(cause)));
    assert!(told, "and so does the list of instances");
}

#[tokio::test]
async fn calls_go_over_tls_and_mutual_tls() {
    let (world, authority, clients) = (World::new().await, Authority::new(), Authority::new());
    let server = world.server(&authority.issue(HERE), None).await;
    let address = server.address().to_string();
    let channel = world.channel(trusting(authority.file()));
    assert_eq!(call(&channel).await.expect("the server is trusted"), address);
    server.stop().await;

    let server = world.server(&authority.issue(HERE), Some(&clients)).await;
    let ours = clients.issue(&["client"]);
    let tls = ClientTls::new().ca_pem(authority.pem()).and_then(|tls| tls.identity_pem(ours.cert, ours.key));
    reaches(&world.channel(tls.expect("good PEM")), &server).await;
    let anonymous = world.channel(trusting(authority.file()));
    let status = call(&anonymous).await.expect_err("it wants a certificate");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(
        status.message().ends_with("; it may want a client certificate, or another one: identity_files(..)"),
        "{status:?}"
    );
    server.stop().await;
}

#[tokio::test]
async fn a_server_that_cannot_show_a_good_certificate_gets_no_call() {
    let (world, authority) = (World::new().await, Authority::new());
    let server = world.server(&authority.issue(HERE), None).await;
    fails_for(&world.channel(trusting(Authority::new().file())), "; ca_file(..) names the authority to trust").await;
    assert_eq!(server.calls(), 0);
    server.stop().await;

    let server = world.server(&authority.issue_expired(HERE), None).await;
    fails_for(&world.channel(trusting(authority.file())), "expired").await;
    assert_eq!(server.calls(), 0);
    server.stop().await;
}

#[tokio::test]
async fn neither_side_falls_back_to_plaintext() {
    let (world, authority) = (World::new().await, Authority::new());
    let plain = EchoServer::registered(&world.registry, "echo").await;
    fails_for(&world.channel(trusting(authority.file())), "; it may speak plaintext: leave tls(..) out").await;
    assert_eq!(plain.calls(), 0, "nothing is sent to a server without TLS");
    plain.stop().await;

    let secure = world.server(&authority.issue(HERE), None).await;
    let channel = world.registry.channel("echo").build().expect("a good channel");
    for attempt in ["first", "second"] {
        let status = call(&channel).await.expect_err("the server wants TLS");
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert!(status.message().ends_with("; it may want TLS: tls(..)"), "the {attempt} call: {status:?}");
    }
    assert_eq!(secure.calls(), 0);
    secure.stop().await;
}

#[tokio::test]
async fn a_server_name_of_ours_is_verified_instead_of_the_address() {
    let (world, authority) = (World::new().await, Authority::new());
    let server = world.server(&authority.issue(&["echo.internal"]), None).await;
    fails_for(&world.channel(trusting(authority.file())), "; server_name(..) sets the name to expect").await;
    let named = trusting(authority.file()).server_name("echo.internal").expect("a name");
    reaches(&world.channel(named), &server).await;
    server.stop().await;
}

#[tokio::test]
async fn files_that_are_replaced_are_used_by_the_next_connection() {
    let (world, authority, clients, strangers) =
        (World::new().await, Authority::new(), Authority::new(), Authority::new());
    let files = strangers.issue_files("client", &["client"]);
    let tls = trusting(authority.file()).identity_files(&files.cert, &files.key).expect("good files");
    let channel = world.channel(tls);
    let server = world.server(&authority.issue(HERE), Some(&clients)).await;
    assert_eq!(call(&channel).await.expect_err("no authority of ours is trusted").code(), Code::Unavailable);
    clients.issue(&["client"]).write(&files);
    reaches(&channel, &server).await;
    server.stop().await;

    let next = Authority::new();
    std::fs::write(authority.file(), next.pem()).expect("the authority's file can be replaced");
    let server = world.server(&next.issue(HERE), Some(&clients)).await;
    reaches(&channel, &server).await;
    server.stop().await;
}

#[tokio::test]
async fn a_connection_that_is_open_outlives_its_authority() {
    let (world, authority) = (World::new().await, Authority::new());
    let server = world.server(&authority.issue(HERE), None).await;
    let channel = world.channel(trusting(authority.file()));
    reaches(&channel, &server).await;
    // From here on no connection could be made.
    std::fs::write(authority.file(), Authority::new().pem()).expect("the authority's file can be replaced");
    for _ in 0..20 {
        call(&channel).await.expect("the connection is as good as before");
    }
    server.stop().await;
}
