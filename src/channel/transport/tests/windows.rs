//! Flow control, and calls that were given up.

use super::*;

#[tokio::test(start_paused = true)]
async fn an_adaptive_window_is_measured_only_by_data() {
    let (options, mut far) = piped();
    let options = TransportConfig { http2_adaptive_window: Some(true), ..options };
    far.write_all(&settings(None)).await.expect("the pipe is open");
    let mut running = run(connect(&options, &nowhere()).await.expect("SETTINGS came"));
    running.calls.store(1, Ordering::Relaxed);
    let (_answer, mut stream) = running.send.send_request(request(()), false).expect("the connection takes it");
    let mut skip = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();
    let mut pings = Vec::new();
    // An body: the peer only ever takes it in. It answers pings.
    for second in 0..100 {
        let _ = stream.send_data(vec![7; 1_000].into(), false);
        let frames = seen(&mut far, std::mem::take(&mut skip)).await;
        for (kind, flags, _, payload) in frames {
            if kind == PING && flags == 0 {
                pings.push(second);
                far.write_all(&[&[0, 0, 8, PING, 1, 0, 0, 0, 0], payload.as_slice()].concat()).await.expect("open");
            }
        }
        far.write_all(&update(0, 1_000)).await.expect("open");
        far.write_all(&update(1, 1_000)).await.expect("open");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(pings.len() <= 2, "grpc-go closes a connection at the third ping without data between them: {pings:?}");
}

#[tokio::test(start_paused = true)]
async fn late_answers_to_calls_given_up_do_not_end_the_connection() {
    let (options, mut far) = piped();
    far.write_all(&settings(None)).await.expect("the pipe is open");
    let running = run(connect(&options, &nowhere()).await.expect("SETTINGS came"));
    let _ = seen(&mut far, 24).await;
    let mut streams = Vec::new();
    for _ in 0..12 {
        let calls: Vec<_> = (0..100)
            .map(|_| running.send.clone().send_request(request(()), true).expect("the connection takes it"))
            .collect();
        let frames = seen(&mut far, 0).await;
        streams.extend(frames.iter().filter(|(kind, ..)| *kind == 1).map(|(.., stream, _)| *stream));
        // A hundred calls run out of time at once. Their answers are under way.
        drop(calls);
        let _ = seen(&mut far, 0).await;
    }
    assert_eq!(streams.len(), 1_200);
    for stream in streams {
        let _ = far.write_all(&[&[0, 0, 1, 1, 5], stream.to_be_bytes().as_slice(), &[0x88]].concat()).await;
    }
    let _ = seen(&mut far, 0).await;
    let ended = timeout(Duration::from_secs(1), running.driver).await;
    assert!(ended.is_err(), "it ended: {}", chain(&ended.expect("it ended").expect("no panic")));
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_lags_behind_small_messages_does_not_end_the_connection() {
    for (adaptive, messages) in [(None, 20_000), (Some(true), 2_000)] {
        let (options, mut far) = piped();
        let options = TransportConfig { http2_adaptive_window: adaptive, ..options };
        far.write_all(&settings(None)).await.expect("the pipe is open");
        let mut running = run(connect(&options, &nowhere()).await.expect("SETTINGS came"));
        let (answer, _stream) = running.send.send_request(request(()), true).expect("the connection takes it");
        let _ = seen(&mut far, 24).await;
        far.write_all(&[0, 0, 1, 1, 4, 0, 0, 0, 1, 0x88]).await.expect("open");
        let _unread = answer.await.expect("an answer").into_body();
        for _ in 0..messages {
            far.write_all(&[&[0, 0, 20, 0, 0, 0, 0, 0, 1], [7_u8; 20].as_slice()].concat()).await.expect("open");
        }
        let _ = seen(&mut far, 0).await;
        let ended = timeout(Duration::from_secs(1), running.driver).await;
        assert!(ended.is_err(), "adaptive {adaptive:?}, {messages} messages: it ended with {ended:?}");
    }
}

#[tokio::test]
async fn streams_that_are_not_read_leave_the_others_their_windows() {
    for adaptive in [None, Some(true)] {
        let (mut server, address) = Server::tcp().await;
        let options = TransportConfig { http2_adaptive_window: adaptive, ..TransportConfig::default() };
        let running = run(connect(&options, &address).await.expect("connected"));
        let mut unread = Vec::new();
        for _ in 0..8 {
            let answer = running.ask();
            let (_, mut respond) = server.call().await;
            let mut stream = respond.send_response(Response::new(()), false).expect("the call is open");
            stream.send_data(vec![7; 4 * 1024 * 1024].into(), true).expect("the call is open");
            unread.push(soon("the head", answer).await.expect("no panic").expect("it is answered"));
        }
        let answer = running.ask();
        let (_, mut respond) = server.call().await;
        let mut stream = respond.send_response(Response::new(()), false).expect("the call is open");
        stream.send_data(vec![7; 10_000].into(), true).expect("the call is open");
        let body = soon("the head", answer).await.expect("no panic").expect("it is answered").into_body();
        assert_eq!(soon("the body", read_all(body)).await.len(), 10_000, "adaptive: {adaptive:?}");
    }
}
