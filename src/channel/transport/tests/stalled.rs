//! A socket that takes no bytes: what is handed to h2 then, and what is not.

use std::future::poll_fn;

use super::early::{Call, HEADERS, driven, head, of};
use super::*;

/// A request's data that counts while it is somewhere.
struct Counted([u8; 10_000], #[expect(dead_code, reason = "it is counted")] Arc<()>);

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[tokio::test(start_paused = true)]
async fn calls_given_up_before_the_socket_took_bytes_are_never_written() {
    let (options, mut far) = piped_through(256);
    far.write_all(&settings(None)).await.expect("the pipe is open");
    let (transport, _driver) = driven(connect(&options, &nowhere()).await.expect("SETTINGS came"));
    let alive = Arc::new(());
    // The socket has stood still for a while.
    for _ in 0..2 {
        let mut call = Call::new(&transport, of(vec![7; 5_000]));
        assert!(timeout(Duration::from_millis(150), poll_fn(|cx| call.poll(cx))).await.is_err());
    }
    for _ in 0..100 {
        let calls: Vec<_> = (0..100)
            .map(|_| {
                let data = Bytes::from_owner(Counted([7; 10_000], alive.clone()));
                let mut call = Call::new(&transport, of(data));
                tokio::spawn(async move { timeout(Duration::from_millis(10), call.response()).await.is_err() })
            })
            .collect();
        for call in calls {
            assert!(call.await.expect("no panic"), "no call is answered");
        }
    }
    let kept = Arc::strong_count(&alive) - 1;
    assert!(kept <= 120, "{kept} of 10,000 requests are kept");
    let frames = seen(&mut far, 24).await;
    let heads = frames.iter().filter(|(kind, ..)| *kind == HEADERS).count();
    assert!((1..=120).contains(&heads), "{heads} of 10,000 dead calls were written");
    assert_eq!(Arc::strong_count(&alive), 1, "and nothing is kept after that");

    let mut call = Call::new(&transport, of(vec![7; 5]));
    let stream = call.begun(&mut far).await.iter().map(|(.., stream, _)| *stream).max().expect("it is written");
    far.write_all(&head(stream, true)).await.expect("open");
    call.response().await.expect("calls go on");
}

#[tokio::test(start_paused = true)]
async fn calls_that_wait_for_the_socket_are_sent_when_it_moves() {
    let (options, mut far) = piped_through(256);
    far.write_all(&settings(None)).await.expect("the pipe is open");
    let (transport, _driver) = driven(connect(&options, &nowhere()).await.expect("SETTINGS came"));
    let mut calls = Vec::new();
    for _ in 0..20 {
        for _ in 0..20 {
            let mut call = Call::new(&transport, of(vec![7; 100]));
            calls.push(tokio::spawn(async move { call.response().await.map(drop) }));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let frames = seen(&mut far, 24).await;
    let streams: Vec<_> = frames.iter().filter(|(kind, ..)| *kind == HEADERS).map(|(.., stream, _)| *stream).collect();
    assert_eq!(streams.len(), 400, "each of them, once");
    for stream in streams {
        far.write_all(&head(stream, true)).await.expect("open");
        let _ = seen(&mut far, 0).await;
    }
    for call in calls {
        call.await.expect("no panic").expect("it is answered");
    }
}

#[tokio::test(start_paused = true)]
async fn calls_that_wait_for_the_socket_end_unsent_with_the_connection() {
    let (options, mut far) = piped_through(256);
    far.write_all(&settings(None)).await.expect("the pipe is open");
    let (transport, driver) = driven(connect(&options, &nowhere()).await.expect("SETTINGS came"));
    let mut calls: Vec<_> = Vec::new();
    for _ in 0..100 {
        let mut call = Call::new(&transport, of(vec![7; 100]));
        poll_fn(|cx| Poll::Ready(call.poll(cx).is_ready())).await;
        tokio::task::yield_now().await;
        calls.push(call);
    }
    driver.abort();
    let mut unsent = 0;
    for call in &mut calls {
        let error = call.response().await.expect_err("the connection ended");
        unsent +=
            u32::from(matches!(error, crate::channel::transport::AttemptError::Unprocessed { is_unsent: true, .. }));
    }
    assert!(unsent > 80, "{unsent}");
}
