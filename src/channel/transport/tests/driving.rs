//! Connections that are open: what is reported of them, and how they end.

use std::future::poll_fn;

use super::*;
use crate::channel::transport::config::{KEEP_ALIVE_INTERVAL, KEEP_ALIVE_TIMEOUT};

#[tokio::test]
async fn a_limit_of_open_calls_is_seen_and_so_is_each_change() {
    let (options, mut far) = piped();
    far.write_all(&settings(Some(4))).await.expect("the pipe is open");
    let connection = connect(&options, &nowhere()).await.expect("SETTINGS came");
    assert_eq!(connection.max_streams, 4);
    let mut running = run(connection);
    for piece in settings(Some(7)).chunks(2) {
        far.write_all(piece).await.expect("the pipe is open");
        tokio::task::yield_now().await;
    }
    assert_eq!(soon("a change", running.told.recv()).await, Some(Told::Streams(7)));
    far.write_all(&settings(None)).await.expect("the pipe is open");
    far.write_all(&settings(Some(9))).await.expect("the pipe is open");
    assert_eq!(soon("a change", running.told.recv()).await, Some(Told::Streams(9)), "what is not stated stays");
}

#[tokio::test]
async fn without_a_limit_any_number_of_calls_may_be_open() {
    let (options, mut far) = piped();
    far.write_all(&settings(None)).await.expect("the pipe is open");
    assert_eq!(connect(&options, &nowhere()).await.expect("SETTINGS came").max_streams, u32::MAX);
}

#[tokio::test]
async fn a_goaway_is_reported_at_once_and_open_calls_are_finished() {
    let (mut server, address) = Server::tcp().await;
    let mut running = run(connect(&TransportConfig::default(), &address).await.expect("connected"));
    let answer = running.ask();
    let (_, mut respond) = server.call().await;
    server.goaway.send(()).expect("the server runs");
    assert_eq!(soon("the news", running.told.recv()).await, Some(Told::GoingAway), "with a call open");
    respond.send_response(Response::new(()), true).expect("the call is open");
    assert!(soon("the answer", answer).await.expect("no panic").is_ok(), "the open call is answered");
    let ended = soon("the end", running.driver).await.expect("no panic");
    assert!(matches!(ended, Ended::GoneAway(h2::Reason::NO_ERROR)), "{ended}");
    assert_eq!(running.told.recv().await, None, "it is reported once");
}

#[tokio::test]
async fn a_cut_closes_the_socket_and_ends_open_calls() {
    let (mut server, address) = Server::tcp().await;
    let running = run(connect(&TransportConfig::default(), &address).await.expect("connected"));
    let answer = running.ask();
    let _call = server.call().await;
    running.abort_handle.abort();
    running.abort_handle.abort();
    assert!(soon("the answer", answer).await.expect("no panic").is_err(), "the open call fails");
    let ended = soon("the end", running.driver).await.expect("no panic");
    assert!(matches!(ended, Ended::Aborted), "{ended}");
    soon("the server's end", server.done).await.expect("no panic");
}

#[tokio::test]
async fn a_cut_ends_a_connection_whose_peer_does_not_read() {
    let (near, mut far) = duplex(256);
    let near = StdMutex::new(Some(near));
    let connector = Connector::new(service_fn(move |_: Uri| {
        let near = near.lock().expect("no test panics here").take();
        std::future::ready(near.map(TokioIo::new).ok_or("taken"))
    }));
    far.write_all(&settings(None)).await.expect("the pipe is open");
    let options = TransportConfig { connector: Some(connector), ..TransportConfig::default() };
    let connection = soon("a connect", Box::pin(super::connect(&options, &nowhere()))).await.expect("SETTINGS came");
    let mut running = run(connection);
    let (answer, mut stream) = running.send.send_request(request(()), false).expect("the connection takes it");
    let answer = tokio::spawn(answer);
    stream.send_data(vec![7; 100_000].into(), true).expect("the call is open");
    running.abort_handle.abort();
    let ended = soon("the end", running.driver).await.expect("no panic");
    assert!(matches!(ended, Ended::Aborted), "{ended}");
    assert!(soon("the answer", answer).await.expect("no panic").is_err(), "the open call fails");
}

#[tokio::test]
async fn a_dropped_driver_leaves_no_socket_and_no_task() {
    let (mut server, address) = Server::tcp().await;
    let metrics = tokio::runtime::Handle::current().metrics();
    let running = run(connect(&TransportConfig::default(), &address).await.expect("connected"));
    let answer = running.ask();
    let _call = server.call().await;
    running.driver.abort();
    soon("the server's end", server.done).await.expect("no panic");
    assert!(soon("the answer", answer).await.expect("no panic").is_err(), "the open call fails");
    soon("the end of all tasks", async {
        while metrics.num_alive_tasks() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_is_not_needed_any_more_ends_after_its_last_call() {
    let (mut server, address) = Server::tcp().await;
    let mut running = run(connect(&TransportConfig::default(), &address).await.expect("connected"));
    let answer = running.ask();
    let (_, mut respond) = server.call().await;
    drop(running.send);
    let mut body = respond.send_response(Response::new(()), false).expect("the call is open");
    let response = soon("the answer", answer).await.expect("no panic").expect("it is answered");
    body.send_data("late".into(), true).expect("the call is open");
    let data = soon("the body", read_all(response.into_body())).await;
    assert_eq!(data, b"late", "a call in flight is finished");
    let ended = soon("the end", running.driver).await.expect("no panic");
    assert!(matches!(ended, Ended::Unused), "{ended}");
    assert_eq!(running.told.recv().await, None, "no GOAWAY came");
    soon("the server's end", server.done).await.expect("no panic");
}

#[tokio::test]
async fn a_server_that_closes_the_connection_is_named_as_the_reason() {
    let (options, mut far) = piped();
    far.write_all(&settings(None)).await.expect("the pipe is open");
    let running = run(connect(&options, &nowhere()).await.expect("SETTINGS came"));
    drop(far);
    let ended = soon("the end", running.driver).await.expect("no panic");
    assert!(matches!(ended, Ended::Closed), "{ended}");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_freezes_with_a_call_open_is_noticed_by_keepalive() {
    let (options, mut far) = piped();
    far.write_all(&settings(None)).await.expect("the pipe is open");
    let running = run(connect(&options, &nowhere()).await.expect("SETTINGS came"));
    let started = Instant::now();
    running.calls.store(1, Ordering::Relaxed);
    let answer = running.ask();
    let ended = running.driver.await.expect("no panic");
    assert!(matches!(ended, Ended::Silent), "{ended}");
    let noticed = KEEP_ALIVE_INTERVAL + KEEP_ALIVE_TIMEOUT;
    assert!(started.elapsed().abs_diff(noticed) < Duration::from_secs(1), "after {:?}", started.elapsed());
    assert!(answer.await.expect("no panic").is_err(), "the open call fails");
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_not_pinged() {
    let (options, mut far) = piped();
    far.write_all(&settings(None)).await.expect("the pipe is open");
    let running = run(connect(&options, &nowhere()).await.expect("SETTINGS came"));
    let idle = timeout(Duration::from_secs(24 * 60 * 60), running.driver).await;
    assert!(idle.is_err(), "nothing ends it in a day");
    drop(running.send);
    let mut sent = Vec::new();
    soon("the end", far.read_to_end(&mut sent)).await.expect("the far end reads");
    let mut kinds = frame_kinds(&sent["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len()..]);
    kinds.retain(|kind| *kind == PING);
    assert!(kinds.is_empty(), "no ping was sent");
}

#[tokio::test]
async fn a_request_body_that_waits_for_room_is_reset_at_the_server_at_once() {
    let (mut server, address) = Server::tcp().await;
    let mut running = run(connect(&TransportConfig::default(), &address).await.expect("connected"));
    let body = Endless::default();
    let held = body.0.clone();
    let (answer, stream) = running.send.send_request(request(()), false).expect("the connection takes it");
    let rest = BodySender::of(RequestBody::new(Body::new(body)), stream, &tokio::runtime::Handle::current());
    // The request stream is kept and never read.
    let (unread, mut respond) = server.call().await;
    let mut response = respond.send_response(Response::new(()), false).expect("the call is open");
    let answer = soon("the answer", answer).await.expect("it is answered");
    assert!(Arc::strong_count(&held) > 1, "the body waits for room");
    drop((rest, answer));
    assert_eq!(Arc::strong_count(&held), 1, "the caller's body is dropped");
    let reason = soon("the reset", poll_fn(|cx| response.poll_reset(cx))).await.expect("the connection is open");
    assert_eq!(reason, h2::Reason::CANCEL);
    drop(unread);
    let next = running.ask();
    let (_, mut respond) = server.call().await;
    respond.send_response(Response::new(()), true).expect("the call is open");
    assert!(soon("the next answer", next).await.expect("no panic").is_ok(), "other calls go on");
}

#[tokio::test(start_paused = true)]
async fn a_message_of_a_stream_takes_one_turn_of_its_task() {
    let (options, mut far) = piped();
    far.write_all(&settings(None)).await.expect("the pipe is open");
    let running = run(connect(&options, &nowhere()).await.expect("SETTINGS came"));
    let (messages, mut body) = unbounded_channel();
    let polls = Arc::<AtomicU32>::default();
    let counted = polls.clone();
    let body = http_body_util::StreamBody::new(futures_util::stream::poll_fn(move |cx| {
        counted.fetch_add(1, Ordering::Relaxed);
        body.poll_recv(cx).map(|message| message.map(|data| Ok::<_, tonic::Status>(Frame::data(data))))
    }));
    let (_answer, stream) = running.send.clone().send_request(request(()), false).expect("the connection takes it");
    let _rest = BodySender::of(RequestBody::new(Body::new(body)), stream, &tokio::runtime::Handle::current());
    let _ = seen(&mut far, 24).await;
    for _ in 0..100 {
        messages.send(Bytes::from_static(&[7; 100])).expect("the body is there");
        assert_eq!(seen(&mut far, 0).await.len(), 1, "a message is a frame");
    }
    // Once before there is a message; each is taken then, and after it there is none.
    assert_eq!(polls.load(Ordering::Relaxed), 1 + 2 * 100, "100 messages");
}

#[tokio::test]
async fn calls_made_together_go_out_in_one_write() {
    let (near, mut far) = duplex(1 << 20);
    far.write_all(&settings(None)).await.expect("the pipe is open");
    let writes = Arc::<AtomicU32>::default();
    let near = StdMutex::new(Some(CountsWrites(near, writes.clone())));
    let connector = Connector::new(service_fn(move |_: Uri| {
        let near = near.lock().expect("no test panics here").take();
        std::future::ready(near.map(TokioIo::new).ok_or("taken"))
    }));
    let options = TransportConfig { connector: Some(connector), ..TransportConfig::default() };
    let running = run(connect(&options, &nowhere()).await.expect("SETTINGS came"));
    tokio::task::yield_now().await;
    running.calls.store(GATHERS_FROM, Ordering::Relaxed);
    let before = writes.load(Ordering::Relaxed);
    let send = running.send.clone();
    let calls: Vec<_> = (0..8)
        .map(|_| {
            let mut send = send.clone();
            tokio::spawn(async move { send.send_request(request(()), true).map(drop) })
        })
        .collect();
    for call in calls {
        call.await.expect("no panic").expect("the connection takes it");
    }
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert_eq!(writes.load(Ordering::Relaxed) - before, 1, "eight heads in one write");
}
