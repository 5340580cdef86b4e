//! What the code of this room leans on and h2 does not document, against h2 alone: where one of these fails after an
//! update, the comment beside it says what has to change.

use std::future::poll_fn;

use h2::SendStream;
use h2::client::{Builder, ResponseFuture};

use super::early::{DATA, HEADERS, RESET, frame, head, trailers};
use super::*;

type Frames = Vec<(u8, u8, u32, Vec<u8>)>;

/// h2's client over a pipe, driven by a task, and the peer, which has seen the preface.
async fn client(
    options: &Builder,
    bytes: usize,
) -> (SendRequest<Bytes>, JoinHandle<Result<(), h2::Error>>, DuplexStream) {
    client_of(options, bytes, &settings(None)).await
}

async fn client_of(
    options: &Builder,
    bytes: usize,
    settings: &[u8],
) -> (SendRequest<Bytes>, JoinHandle<Result<(), h2::Error>>, DuplexStream) {
    let (near, mut far) = duplex(bytes);
    far.write_all(settings).await.expect("open");
    let (send, connection) = options.handshake(near).await.expect("a handshake");
    let driver = tokio::spawn(connection);
    if bytes > 1_000 {
        let _ = seen(&mut far, 24).await;
    }
    (send, driver, far)
}

/// [`client`], over a pipe that holds so few bytes that frames are written in pieces.
async fn client_through(
    options: &Builder,
    bytes: usize,
) -> (SendRequest<Bytes>, JoinHandle<Result<(), h2::Error>>, DuplexStream) {
    let (send, driver, mut far) = client_of(options, bytes, &settings(None)).await;
    let _ = seen(&mut far, 24).await;
    (send, driver, far)
}

fn begin(send: &SendRequest<Bytes>, ends: bool) -> (ResponseFuture, SendStream<Bytes>) {
    send.clone().send_request(request(()), ends).expect("h2 takes it")
}

fn of_kind(frames: &Frames, kind: u8) -> Vec<u32> {
    frames.iter().filter(|(of, ..)| *of == kind).map(|(.., stream, _)| *stream).collect()
}

fn bytes_of(frames: &Frames, stream: u32) -> usize {
    frames.iter().filter(|(kind, _, of, _)| (*kind, *of) == (DATA, stream)).map(|(.., data)| data.len()).sum()
}

/// `Transport::begin`: a clone per call, and none is asked whether it is ready. The quota keeps the peer's limit.
#[tokio::test(start_paused = true)]
async fn clones_take_requests_beyond_the_peers_limit_without_poll_ready() {
    let (send, _driver, mut far) = client_of(&Builder::new(), 1 << 20, &settings(Some(1))).await;
    let calls: Vec<_> = (0..3).map(|_| begin(&send, true)).collect();
    assert_eq!(of_kind(&seen(&mut far, 0).await, HEADERS), [1], "the others wait in h2");
    far.write_all(&head(1, true)).await.expect("open");
    assert_eq!(of_kind(&seen(&mut far, 0).await, HEADERS), [3]);
    drop(calls);
}

/// `PeerState::is_unwritten`: a stream above the last that was written was not written.
#[tokio::test(start_paused = true)]
async fn heads_are_written_in_the_order_of_streams() {
    let (send, _driver, mut far) = client_of(&Builder::new(), 1 << 20, &settings(Some(40))).await;
    let mut calls = Vec::new();
    for at in 0..100 {
        let (answer, mut stream) = begin(&send, false);
        if at % 3 == 0 {
            stream.send_data(vec![7; 3_000].into(), true).expect("open");
        }
        if at % 7 != 1 {
            calls.push((answer, stream));
        }
    }
    let (mut streams, mut answered) = (Vec::new(), 0);
    while streams.len() < 100 {
        streams.extend(of_kind(&seen(&mut far, 0).await, HEADERS));
        for stream in &streams[answered..] {
            far.write_all(&head(*stream, true)).await.expect("open");
        }
        answered = streams.len();
        calls.clear();
    }
    assert!(streams.is_sorted(), "{streams:?}");
}

/// The gate: what h2 has once, it writes, also for a call that was given up before.
#[tokio::test(start_paused = true)]
async fn a_request_that_is_dropped_unwritten_is_written_and_reset() {
    let (send, _driver, mut far) = client(&Builder::new(), 1 << 20).await;
    let (answer, mut stream) = begin(&send, false);
    stream.send_data(vec![7; 10_000].into(), true).expect("open");
    drop((answer, stream));
    let frames = seen(&mut far, 0).await;
    assert_eq!((of_kind(&frames, HEADERS), of_kind(&frames, RESET)), (vec![1], vec![1]));
    assert_eq!(bytes_of(&frames, 1), 0, "without its data, at least");
}

/// `Exchange`: dropped before its response, it leaves the reset to h2, which must not send the data first.
#[tokio::test(start_paused = true)]
async fn a_dropped_stream_discards_its_data_and_gives_its_window_back() {
    let (send, _driver, mut far) = client(&Builder::new(), 1 << 20).await;
    let (answer, mut stream) = begin(&send, false);
    stream.send_data(vec![7; 100_000].into(), false).expect("open");
    assert_eq!(bytes_of(&seen(&mut far, 0).await, 1), 65_535, "the rest waits for room");
    far.write_all(&update(0, 50_000)).await.expect("open");
    drop((answer, stream));
    let frames = seen(&mut far, 0).await;
    assert_eq!((of_kind(&frames, RESET), bytes_of(&frames, 1)), (vec![1], 0));
    let (_answer, mut next) = begin(&send, false);
    next.send_data(vec![7; 100_000].into(), false).expect("open");
    assert_eq!(bytes_of(&seen(&mut far, 0).await, 3), 50_000);
}

/// `Exchange::finish`, `Sending::drop`: why they reset explicitly, and may do so too often.
#[tokio::test(start_paused = true)]
async fn after_a_whole_response_only_an_explicit_reset_ends_a_request() {
    let (send, _driver, mut far) = client(&Builder::new(), 1 << 20).await;
    let (answer, mut stream) = begin(&send, false);
    stream.send_data(vec![7; 100_000].into(), true).expect("open");
    let _ = seen(&mut far, 0).await;
    far.write_all(&head(1, true)).await.expect("open");
    let response = answer.await.expect("a response");
    let (second, mut other) = begin(&send, false);
    other.send_data(vec![7; 100_000].into(), true).expect("open");
    let _ = seen(&mut far, 0).await;
    far.write_all(&head(3, true)).await.expect("open");
    let _ = second.await.expect("a response");
    other.send_reset(h2::Reason::CANCEL);
    assert_eq!(of_kind(&seen(&mut far, 0).await, RESET), [3]);
    drop((response, stream));
    assert_eq!(of_kind(&seen(&mut far, 0).await, RESET), [0; 0], "dropped, the first stays half sent");
}

/// As above: of a request that was sent entirely there is nothing to reset.
#[tokio::test(start_paused = true)]
async fn an_explicit_reset_of_a_stream_that_is_over_and_flushed_writes_nothing() {
    let (send, _driver, mut far) = client(&Builder::new(), 1 << 20).await;
    let (answer, mut stream) = begin(&send, false);
    stream.send_data(vec![7; 100].into(), true).expect("open");
    let _ = seen(&mut far, 0).await;
    far.write_all(&head(1, true)).await.expect("open");
    answer.await.expect("a response");
    stream.send_reset(h2::Reason::CANCEL);
    assert_eq!(of_kind(&seen(&mut far, 0).await, RESET), [0; 0]);
}

/// `RequestBody::send`: why the end of a large request is a frame of its own. Without that h2 ignores the reset.
#[tokio::test(start_paused = true)]
async fn a_reset_of_a_stream_that_is_over_is_ignored_while_its_last_frame_is_being_written() {
    for ends_apart in [false, true] {
        let (send, _driver, mut far) = client_through(&Builder::new(), 1_000).await;
        let (answer, mut stream) = begin(&send, false);
        stream.send_data(vec![7; 100_000].into(), !ends_apart).expect("open");
        if ends_apart {
            stream.send_data(Bytes::new(), true).expect("open");
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        far.write_all(&head(1, true)).await.expect("open");
        answer.await.expect("a response");
        stream.send_reset(h2::Reason::CANCEL);
        drop(stream);
        let frames = seen(&mut far, 0).await;
        assert_eq!(of_kind(&frames, RESET), if ends_apart { vec![1] } else { vec![] });
        assert_eq!(bytes_of(&frames, 1), if ends_apart { 16_384 } else { 65_535 }, "h2 writes on");
    }
}

/// `RequestBody::is_flushed`: h2 holds a frame exactly until it is written.
#[tokio::test(start_paused = true)]
async fn a_frame_is_let_go_once_it_is_written_and_not_before() {
    for size in [5, 300, 1_500, 40_000] {
        let (send, _driver, mut far) = client(&Builder::new(), 1 << 20).await;
        let data = Bytes::from(vec![7; size]);
        let (_answer, mut stream) = begin(&send, false);
        stream.send_data(data.clone(), true).expect("open");
        assert!(!data.is_unique(), "{size}: it is with h2");
        let _ = seen(&mut far, 0).await;
        assert!(data.is_unique(), "{size}: it is written");
        let (_other, mut all) = begin(&send, false);
        all.send_data(vec![7; 70_000].into(), true).expect("open");
        let (_last, mut late) = begin(&send, false);
        late.send_data(data.clone(), true).expect("open");
        let _ = seen(&mut far, 0).await;
        assert!(!data.is_unique(), "{size}: the connection has no window left");
    }
}

/// `IncomingBody`: an error after the end was received is no error of the response, also if it says `NO_ERROR`; before
/// it always is.
#[tokio::test(start_paused = true)]
async fn no_error_before_the_end_of_a_response_is_an_error_and_none_after_it() {
    let (send, _driver, mut far) = client(&Builder::new(), 1 << 20).await;
    let (answer, _stream) = begin(&send, false);
    let (whole, _other) = begin(&send, false);
    let _ = seen(&mut far, 0).await;
    far.write_all(&[head(1, false), frame(RESET, 0, 1, &[0; 4])].concat()).await.expect("open");
    far.write_all(&[head(3, false), trailers(3), frame(RESET, 0, 3, &[0; 4])].concat()).await.expect("open");
    let _ = seen(&mut far, 0).await;
    let mut body = answer.await.expect("a head").into_body();
    let error = body.data().await.expect("no clean end").expect_err("no clean end");
    assert!(error.is_reset() && error.reason() == Some(h2::Reason::NO_ERROR), "{error}");
    let mut body = whole.await.expect("a head").into_body();
    assert!(body.data().await.is_none(), "the end of the data");
    assert!(body.trailers().await.expect("whole").is_some());
}

/// `Socket::poll_write`: h2 tells all calls of the end of file, and flushes after that.
#[tokio::test(start_paused = true)]
async fn what_the_codec_holds_is_flushed_after_calls_were_told_of_the_end() {
    let (send, driver, mut far) = client(&Builder::new(), 256).await;
    let calls: Vec<_> = (0..20).map(|_| begin(&send, true).0).collect();
    tokio::time::sleep(Duration::from_millis(1)).await;
    far.shutdown().await.expect("open");
    for call in calls {
        assert!(call.await.expect_err("the end").is_io());
    }
    let mut bytes = Vec::new();
    soon("the end", far.read_to_end(&mut bytes)).await.expect("open");
    let mut heads = frame_kinds(&bytes[24..]);
    heads.retain(|kind| *kind == HEADERS);
    assert_eq!(heads.len(), 20, "although all of them have failed");
    let _ = driver.await;
}

/// `profile.dev.package.h2` in `Cargo.toml`: why a check is off that is made with the last handle of a connection. One
/// that is dropped unread leaves h2 at once.
#[tokio::test(start_paused = true)]
async fn a_stream_that_is_read_after_the_end_of_its_connection_stays_until_the_last_handle_goes() {
    for is_read in [false, true] {
        let (send, driver, mut far) = client(&Builder::new(), 1 << 20).await;
        let (answer, stream) = begin(&send, true);
        let _ = seen(&mut far, 0).await;
        let data = frame(DATA, 0, 1, &[7; 16_000]);
        far.write_all(&[head(1, false), data.clone(), data.clone(), data].concat()).await.expect("open");
        let mut body = answer.await.expect("a head").into_body();
        let _ = seen(&mut far, 0).await;
        drop(far);
        soon("the end", driver).await.expect("no panic").expect("it is closed between two frames");
        for _ in 0..if is_read { 3 } else { 0 } {
            let data = body.data().await.expect("it came before the end").expect("it came before the end");
            body.flow_control().release_capacity(data.len()).expect("it was read");
        }
        drop((body, stream));
        assert_eq!(send.num_wired_streams(), usize::from(is_read), "its window waits to be told to the peer");
    }
}

/// `Transport::begin`, `ConnectionDriver::run`: after a GOAWAY requests are refused, so that the gate can let them in.
#[tokio::test(start_paused = true)]
async fn after_a_goaway_requests_are_refused_at_once() {
    let (send, _driver, mut far) = client(&Builder::new(), 1 << 20).await;
    let _open = begin(&send, true);
    let _ = seen(&mut far, 0).await;
    far.write_all(&frame(7, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0])).await.expect("open");
    let _ = seen(&mut far, 0).await;
    let error = send.clone().send_request(request(()), true).expect_err("it is refused");
    assert!(error.is_go_away() && error.is_remote(), "{error}");
}

/// `RequestBody::poll_send`: one byte that is asked for is room for a whole frame, which keeps none once it is sent.
#[tokio::test(start_paused = true)]
async fn a_reserved_byte_is_taken_from_the_window_until_it_is_used() {
    let (send, _driver, mut far) = client(&Builder::new(), 1 << 20).await;
    let (_idle, mut holder) = begin(&send, false);
    holder.send_data(vec![7; 65_534].into(), false).expect("open");
    let _ = seen(&mut far, 0).await;
    holder.reserve_capacity(1);
    let (_answer, mut stream) = begin(&send, false);
    stream.send_data(vec![7; 5].into(), true).expect("open");
    assert_eq!(bytes_of(&seen(&mut far, 0).await, 3), 0, "the last byte of the window is held");
    assert_eq!(poll_fn(|cx| holder.poll_capacity(cx)).await.expect("open").expect("open"), 1);
    holder.send_data(vec![7; 5].into(), false).expect("more than the room is taken");
    assert_eq!(bytes_of(&seen(&mut far, 0).await, 1), 1);
    far.write_all(&[update(0, 65_535), update(1, 65_535)].concat()).await.expect("open");
    let frames = seen(&mut far, 0).await;
    assert_eq!((bytes_of(&frames, 1), bytes_of(&frames, 3)), (4, 5), "and is free again after that");
}

/// `Sending::poll`: a stream has one waker, for room and for a reset; room that is there wakes it at once. If each
/// had its own, that for a reset could stay registered while the stream is sent on.
#[tokio::test(start_paused = true)]
async fn the_last_task_that_asks_for_a_reset_is_woken_and_also_by_room() {
    let (send, _driver, mut far) = client(&Builder::new(), 1 << 20).await;
    let (_answer, mut stream) = begin(&send, false);
    let _ = seen(&mut far, 0).await;
    let mut tasks = [(); 2].map(|()| tokio_test::task::spawn(()));
    for task in &mut tasks {
        assert!(task.enter(|cx, _| stream.poll_reset(cx)).is_pending());
    }
    stream.reserve_capacity(1);
    assert_eq!([tasks[0].is_woken(), tasks[1].is_woken()], [false, true], "by room");
    let [first, last] = &mut tasks;
    assert!(last.enter(|cx, _| stream.poll_reset(cx)).is_pending());
    assert!(first.enter(|cx, _| stream.poll_reset(cx)).is_pending());
    far.write_all(&frame(RESET, 0, 1, &[0, 0, 0, 8])).await.expect("open");
    let _ = seen(&mut far, 0).await;
    assert!(first.is_woken(), "by the reset");
    assert_eq!(poll_fn(|cx| stream.poll_reset(cx)).await.expect("a reset"), h2::Reason::CANCEL);
}

/// `LONGEST_HEADER_LIST`: beyond its limit h2 cuts trailers silently, beyond four times that it ends the connection.
#[tokio::test]
async fn trailers_beyond_h2s_limit_are_cut_or_end_the_connection() {
    for (size, is_end) in [(2_000, false), (5_000, true)] {
        let (near, far) = duplex(1 << 20);
        let mut server = Server::serve(std::future::ready(Ok(far)));
        let (send, connection) =
            Builder::new().max_header_list_size(1_000).handshake::<_, Bytes>(near).await.expect("open");
        tokio::spawn(connection);
        let (answer, _stream) = begin(&send, true);
        let (_, mut respond) = server.call().await;
        let mut stream = respond.send_response(Response::new(()), false).expect("open");
        let value = http::HeaderValue::try_from("x".repeat(size)).expect("a value");
        let headers = http::HeaderMap::from_iter([(http::HeaderName::from_static("x-long"), value)]);
        stream.send_trailers(headers).expect("open");
        let mut body = answer.await.expect("a head").into_body();
        match body.trailers().await {
            Ok(trailers) => assert!(!is_end && trailers.is_some_and(|trailers| trailers.is_empty()), "{size}"),
            Err(error) => assert!(is_end && error.is_go_away(), "{size}: {error}"),
        }
    }
}

/// `Pings::poll`: a change of the windows is refused while the one before is not confirmed.
#[tokio::test(start_paused = true)]
async fn a_second_change_of_windows_waits_for_the_first() {
    let (near, mut far) = duplex(1 << 20);
    far.write_all(&settings(None)).await.expect("open");
    let (_send, mut connection) = Builder::new().handshake::<_, Bytes>(near).await.expect("a handshake");
    assert!(connection.set_initial_window_size(100_000).is_err(), "the handshake's own is not confirmed");
    far.write_all(&frame(4, 1, 0, &[])).await.expect("open");
    let _ = timeout(Duration::from_millis(1), &mut connection).await;
    assert!(connection.set_initial_window_size(100_000).is_ok());
    assert!(connection.set_initial_window_size(200_000).is_err());
}
