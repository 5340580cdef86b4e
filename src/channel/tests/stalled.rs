//! Connections whose peer takes no bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::stream;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::Code;
use tower::Service;
use tower::util::service_fn;

use super::client::{Client, call, connected, say, say_within};
use super::peers::Network;
use super::rig::SECOND;
use crate::channel::BalancedChannel;
use crate::instance::Instance;
use crate::policy::WeightedRoundRobin;

/// A client of these ports, of which 1 is a peer that has sent its SETTINGS and reads nothing, and that peer's end.
async fn client(network: &Network, ports: &[u16]) -> (Client, DuplexStream) {
    let (opened, mut far) = mpsc::unbounded_channel();
    let others = Arc::new(std::sync::Mutex::new(network.connector()));
    let connector = service_fn(move |uri: http::Uri| {
        let (opened, others) = (opened.clone(), others.clone());
        async move {
            if uri.port_u16() != Some(1) {
                let connecting = others.lock().expect("no panic").call(uri);
                return connecting.await;
            }
            let (near, mut far) = duplex(256);
            far.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await?;
            _ = opened.send(far);
            Ok(TokioIo::new(near))
        }
    });
    let set: Vec<_> =
        ports.iter().map(|port| Instance::new("echo", std::net::SocketAddr::from(([127, 0, 0, 1], *port)))).collect();
    let builder = BalancedChannel::from_instances("echo", stream::iter([set]));
    let client = connected(builder.connector(connector).policy(WeightedRoundRobin::new())).await;
    (client, far.recv().await.expect("it is connected"))
}

#[tokio::test(start_paused = true)]
async fn calls_go_elsewhere_while_a_connection_takes_no_bytes() {
    let network = Network::default();
    let _good = network.peer(2);
    let (client, _far) = client(&network, &[1, 2]).await;
    let answered = Arc::<AtomicUsize>::default();
    for _ in 0..10 {
        for _ in 0..20 {
            let (mut client, answered) = (client.clone(), answered.clone());
            tokio::spawn(async move {
                client.unary_echo(say("x".repeat(3_000))).await.expect("an answer");
                answered.fetch_add(1, Ordering::Relaxed);
            });
        }
        // In less than 100 ms a socket that takes nothing does not count as one that stands still.
        tokio::time::sleep(SECOND / 5).await;
    }
    let answered = answered.load(Ordering::Relaxed);
    assert!((150..200).contains(&answered), "{answered} of 200 calls are answered, the others wait");
    for _ in 0..50 {
        client.clone().unary_echo(say_within(SECOND)).await.expect("no call goes there any more");
    }
}

#[tokio::test(start_paused = true)]
async fn calls_wait_to_their_deadlines_where_no_connection_takes_bytes() {
    let (client, mut far) = client(&Network::default(), &[1]).await;
    let mut large = tonic::Request::new(say("x".repeat(10_000)));
    large.set_timeout(SECOND / 5);
    call(&client, large).await.expect("no panic").expect_err("no answer");
    // The socket has stood still for a while.
    for _ in 0..100 {
        let calls: Vec<_> = (0..100)
            .map(|_| {
                let mut request = tonic::Request::new(say("x".repeat(10_000)));
                request.set_timeout(SECOND / 100);
                call(&client, request)
            })
            .collect();
        for call in calls {
            let status = call.await.expect("no panic").expect_err("no answer");
            assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
        }
    }
    let mut bytes = Vec::new();
    let read = async { while far.read_buf(&mut bytes).await.is_ok_and(|read| read > 0) {} };
    assert!(timeout(SECOND, read).await.is_err(), "the connection stays open");
    let heads = heads(&bytes[24..]);
    assert!((1..=120).contains(&heads), "{heads} of 10,000 calls that were given up were written");
}

fn heads(mut bytes: &[u8]) -> usize {
    let mut heads = 0;
    while let Some(([l0, l1, l2, kind, ..], rest)) = bytes.split_first_chunk::<9>() {
        heads += usize::from(*kind == 1);
        bytes = &rest[usize::from(*l0) << 16 | usize::from(*l1) << 8 | usize::from(*l2)..];
    }
    heads
}
