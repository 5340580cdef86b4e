//! Attempts to connect, and why they fail.

use std::net::SocketAddr;

use futures_util::future::BoxFuture;

use super::*;
use crate::error::BoxError;

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_given_up_after_the_connect_timeout() {
    let (options, _far) = piped();
    let started = Instant::now();
    let error = refusal(&options, &nowhere()).await;
    assert_eq!(error.to_string(), "127.0.0.1:1: no HTTP/2 SETTINGS from the server within 1s (connect_timeout)");
    assert_eq!(started.elapsed(), Duration::from_secs(1), "the timeout is for the whole attempt");
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_is_given_up_closes_its_socket() {
    let (options, mut far) = piped();
    let _ = refusal(&options, &nowhere()).await;
    let mut read = Vec::new();
    far.read_to_end(&mut read).await.expect("the far end reads");
    assert!(read.starts_with(b"PRI * HTTP/2.0"), "the peer has seen our preface, and then the end");
}

#[tokio::test]
async fn a_refused_connect_says_so() {
    let (listener, address) = listen().await;
    drop(listener);
    let error = refusal(&TransportConfig::default(), &address).await;
    assert_eq!(chain(&error), format!("{address}: connection refused"));
}

#[test]
fn a_refusal_on_this_host_says_that_others_are_not_reached_there() {
    let refused = |address: &str| ConnectError::Refused { address: address.parse().expect("an address") }.reason();
    for loopback in ["127.0.0.1:80", "[::1]:80", "localhost:80"] {
        let hint = "a loopback address is this host's own: servers on other hosts must publish theirs";
        assert_eq!(refused(loopback), format!("{loopback}: connection refused; {hint}"));
    }
    assert_eq!(refused("10.0.0.1:80"), "10.0.0.1:80: connection refused");
}

#[tokio::test]
async fn a_peer_that_does_not_speak_http2_is_refused_at_once() {
    let (options, mut far) = piped();
    far.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.expect("the pipe is open");
    let error = chain(&refusal(&options, &nowhere()).await);
    assert!(error.starts_with("127.0.0.1:1: no HTTP/2 connection"), "{error}");
    assert!(error.contains("does not speak HTTP/2"), "{error}");
}

#[tokio::test]
async fn a_peer_that_hangs_up_before_its_settings_is_no_connection() {
    let (options, far) = piped();
    drop(far);
    let error = chain(&refusal(&options, &nowhere()).await);
    assert!(error.starts_with("127.0.0.1:1: no HTTP/2 connection: "), "{error}");
}

#[tokio::test]
async fn names_are_resolved_and_every_address_is_tried() {
    let (_server, address) = Server::tcp().await;
    // Where localhost is ::1 first, nothing listens there.
    let named = Address::new(Host::Name("localhost".into()), address.port());
    let connection = connect(&TransportConfig::default(), &named).await.expect("it is resolved and connected");
    assert_eq!(connection.max_streams, 100, "the server's SETTINGS were read");
}

#[tokio::test]
async fn a_mute_address_leaves_time_for_the_next_one() {
    let (mute, mute_address) = listen().await;
    let (_server, address) = Server::tcp().await;
    let options = TransportConfig::default();
    let attempt = Attempt::new(&options, &address, options.terms(Duration::ZERO)).expect("a good address");
    let dialled = [&mute_address, &address].map(|address| match address.host() {
        Host::Ip(ip) => SocketAddr::new(*ip, address.port()),
        Host::Name(_) => unreachable!("both are IP addresses"),
    });
    let connection = soon("a connect", attempt.dial_in_turn(&dialled)).await;
    assert!(connection.is_ok(), "the second address answers: {:?}", connection.err());
    drop(mute);
}

#[tokio::test]
async fn a_unix_socket_is_reached_through_a_connector_that_cannot_be_cloned() {
    struct Unix {
        path: std::path::PathBuf,
        _not_clone: Box<dyn std::any::Any + Send>,
    }
    impl tower::Service<Uri> for Unix {
        type Response = TokioIo<tokio::net::UnixStream>;
        type Error = io::Error;
        type Future = BoxFuture<'static, io::Result<Self::Response>>;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn call(&mut self, uri: Uri) -> Self::Future {
            assert_eq!(uri, "http://127.0.0.1:1/", "it gets the address");
            let path = self.path.clone();
            Box::pin(async move { Ok(TokioIo::new(tokio::net::UnixStream::connect(path).await?)) })
        }
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("echo.sock");
    let listener = tokio::net::UnixListener::bind(&path).expect("a socket");
    let _server = Server::serve(async move { Ok(listener.accept().await?.0) });
    let connector = Connector::new(Unix { path, _not_clone: Box::new(()) });
    let options = TransportConfig { connector: Some(connector), ..TransportConfig::default() };
    assert_eq!(connect(&options, &nowhere()).await.expect("connected").max_streams, 100);
}

#[tokio::test]
async fn an_error_of_a_connector_is_the_cause() {
    let connector = Connector::new(service_fn(|_: Uri| async {
        pending::<()>().await;
        Ok::<TokioIo<DuplexStream>, BoxError>(TokioIo::new(duplex(1).0))
    }));
    let timed = TransportConfig {
        connector: Some(connector),
        connect_timeout: Some(Duration::from_millis(1)),
        ..TransportConfig::default()
    };
    assert_eq!(
        refusal(&timed, &nowhere()).await.to_string(),
        "127.0.0.1:1: not connected within 1ms (connect_timeout)"
    );
    let connector =
        Connector::new(service_fn(|_: Uri| async { Err::<TokioIo<DuplexStream>, _>(io::Error::other("no route")) }));
    let failing = TransportConfig { connector: Some(connector), ..TransportConfig::default() };
    let error = refusal(&failing, &nowhere()).await;
    assert_eq!(chain(&error), "127.0.0.1:1: cannot connect: no route");
}

#[test]
fn options_out_of_range_are_refused_by_name() {
    assert!(TransportConfig::default().check().is_ok(), "the defaults are fine");
    let no_time = TransportConfig { connect_timeout: Some(Duration::ZERO), ..TransportConfig::default() };
    let endless = TransportConfig { http2_keep_alive_interval: Some(Duration::MAX), ..TransportConfig::default() };
    let wide = TransportConfig { initial_connection_window_size: Some(1 << 31), ..TransportConfig::default() };
    let idle = TransportConfig { tcp_keepalive: Some(Duration::from_secs(32_768)), ..TransportConfig::default() };
    let unheard =
        TransportConfig { tcp_user_timeout: Some(Duration::from_millis(1 << 31)), ..TransportConfig::default() };
    for (options, name) in [
        (no_time, "connect_timeout"),
        (endless, "http2_keep_alive_interval"),
        (wide, "initial_connection_window_size"),
        (idle, "tcp_keepalive"),
        (unheard, "tcp_user_timeout"),
    ] {
        let error = options.check().expect_err("it is out of range").to_string();
        assert!(error.contains(name), "{error} names {name}");
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_socket_has_a_limit_for_what_is_not_acknowledged() {
    let (listener, address) = listen().await;
    let default = TransportConfig::default();
    let other = TransportConfig { tcp_user_timeout: Some(Duration::from_millis(1_500)), ..default.clone() };
    let none = TransportConfig { tcp_user_timeout: None, ..default.clone() };
    let long = TransportConfig {
        tcp_user_timeout: Some(Duration::from_millis(0x7fff_ffff)),
        tcp_keepalive: Some(Duration::from_secs(32_767)),
        ..default.clone()
    };
    let cases = [(default, Some(20_000)), (other, Some(1_500)), (none, None), (long, Some(0x7fff_ffff))];
    for (options, expected) in cases {
        options.check().expect("it is within the limits");
        let attempt = Attempt::new(&options, &address, options.terms(Duration::ZERO)).expect("a good address");
        let at = listener.local_addr().expect("it is bound");
        let stream = tokio::net::TcpStream::connect(at).await.expect("it listens");
        let stream = attempt.tuned(stream).expect("it can be set");
        let limit = socket2::SockRef::from(&stream).tcp_user_timeout().expect("it can be read");
        assert_eq!(limit, expected.map(Duration::from_millis));
    }
}

#[test]
fn the_limit_of_an_attempt_grows_with_the_back_off_from_1_s_to_20_s() {
    let grows = TransportConfig::default();
    let fixed = TransportConfig { connect_timeout: Some(Duration::from_secs(3)), ..grows.clone() };
    for (back_off, expected) in [(0, 1_000), (100, 1_000), (800, 1_600), (6_400, 12_800), (10_000, 20_000)] {
        let back_off = Duration::from_millis(back_off);
        assert_eq!(grows.terms(back_off).limit, Duration::from_millis(expected), "with a back-off of {back_off:?}");
        assert_eq!(fixed.terms(back_off).limit, Duration::from_secs(3), "one that is given stays");
    }
}

#[tokio::test(start_paused = true)]
async fn a_name_that_takes_long_is_asked_for_once_by_all_attempts() {
    let lookups = Arc::<AtomicU32>::default();
    let counted = lookups.clone();
    let names = Names::new(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        async {
            tokio::time::sleep(Duration::from_millis(2_500)).await;
            Ok(vec![Ipv4Addr::new(10, 0, 0, 1).into(), Ipv4Addr::new(169, 254, 0, 1).into()])
        }
    });
    let options = TransportConfig { names, ..TransportConfig::default() };
    let address = Address::new(Host::Name("echo".into()), 50_051);
    for _ in 0..2 {
        let error = refusal(&options, &address).await;
        assert_eq!(error.to_string(), "echo:50051: the name was not resolved within 1s (connect_timeout)");
    }
    let attempt = Attempt::new(&options, &address, options.terms(Duration::ZERO)).expect("a good address");
    let found = attempt.resolve().await.expect("it is resolved");
    assert_eq!(found, [SocketAddr::from(([10, 0, 0, 1], 50_051))], "without one that must not be dialled");
    assert_eq!(lookups.load(Ordering::Relaxed), 1);
}
