//! Peers that fall silent, and how soon pings find out: by an interval, and by suspicion.

use super::*;

/// A connection whose pings these are, and its far end, which has read the preface.
async fn pinged(interval: Option<Duration>, timeout: Duration) -> (Connection, DuplexStream) {
    let (options, mut far) = piped();
    let options = TransportConfig { http2_keep_alive_interval: interval, keep_alive_timeout: timeout, ..options };
    far.write_all(&settings(None)).await.expect("the pipe is open");
    let connection = connect(&options, &nowhere()).await.expect("SETTINGS came");
    (connection, far)
}

/// How many pings the far end has read by now, and their answers.
async fn pings(far: &mut DuplexStream, skip: usize) -> Vec<Vec<u8>> {
    let frames = seen(far, skip).await;
    let pings = frames.into_iter().filter(|(kind, flags, ..)| *kind == PING && *flags == 0);
    pings.map(|(.., payload)| [&[0, 0, 8, PING, 1, 0, 0, 0, 0], payload.as_slice()].concat()).collect()
}

const SECOND: Duration = Duration::from_secs(1);

const PREFACE: usize = 24;

#[tokio::test(start_paused = true)]
async fn a_vanished_peer_is_found_by_calls_that_are_short_and_rare() {
    let (connection, _far) = pinged(Some(3 * SECOND), SECOND).await;
    let running = run(connection);
    let started = Instant::now();
    let mut send = running.send.clone();
    let calls = running.calls.clone();
    tokio::spawn(async move {
        tokio::time::sleep(SECOND).await;
        // Each is given up before the interval looks for it.
        while let Ok((response, _)) = send.send_request(request(()), true) {
            calls.store(1, Ordering::Relaxed);
            let _ = timeout(SECOND / 2, response).await;
            calls.store(0, Ordering::Relaxed);
            tokio::time::sleep(SECOND * 5 / 2).await;
        }
    });
    let ended = timeout(60 * SECOND, running.driver).await.expect("it is found").expect("no panic");
    assert!(matches!(ended, Ended::Silent), "{ended}");
    assert!(started.elapsed() <= 6 * SECOND, "within two intervals, and not after {:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_vanished_peer_is_found_by_one_call_that_was_given_up() {
    let (connection, _far) = pinged(Some(3 * SECOND), SECOND).await;
    let running = run(connection);
    let started = Instant::now();
    let (response, _) = running.send.clone().send_request(request(()), true).expect("the connection takes it");
    assert!(timeout(SECOND, response).await.is_err(), "it is not answered");
    let ended = timeout(60 * SECOND, running.driver).await.expect("it is found").expect("no panic");
    assert!(matches!(ended, Ended::Silent), "{ended}");
    assert!(started.elapsed().abs_diff(4 * SECOND) < SECOND / 100, "after {:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_connection_whose_calls_were_all_answered_is_not_pinged() {
    let (connection, mut far) = pinged(Some(3 * SECOND), SECOND).await;
    let running = run(connection);
    let answer = running.ask();
    assert_eq!(pings(&mut far, PREFACE).await.len(), 0);
    // HEADERS that end the stream, with the status 200.
    far.write_all(&[0, 0, 1, 1, 5, 0, 0, 0, 1, 0x88]).await.expect("the pipe is open");
    answer.await.expect("no panic").expect("it is answered");
    tokio::time::sleep(3_600 * SECOND).await;
    assert_eq!(pings(&mut far, 0).await.len(), 0, "in an hour");
    assert!(!running.driver.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_suspicion_finds_a_silent_peer_also_without_an_interval() {
    for interval in [None, Some(310 * SECOND)] {
        let (connection, mut far) = pinged(interval, 5 * SECOND).await;
        let transport = connection.transport.clone();
        let running = run(connection);
        let answer = running.ask();
        tokio::time::sleep(SECOND).await;
        let started = Instant::now();
        transport.suspect();
        assert_eq!(pings(&mut far, PREFACE).await.len(), 1, "at once, with {interval:?}");
        transport.suspect();
        assert_eq!(pings(&mut far, 0).await.len(), 0, "once a silence");
        let ended = timeout(60 * SECOND, running.driver).await.expect("it is found").expect("no panic");
        assert!(matches!(ended, Ended::Silent), "{ended}");
        assert!(started.elapsed().abs_diff(5 * SECOND) < SECOND / 100, "after {:?}", started.elapsed());
        assert!(answer.await.expect("no panic").is_err(), "the open call fails");
    }
}

#[tokio::test(start_paused = true)]
async fn suspicions_of_a_peer_that_answers_pings_alone_are_no_abuse() {
    let (connection, mut far) = pinged(None, 5 * SECOND).await;
    let transport = connection.transport.clone();
    let running = run(connection);
    running.calls.store(1, Ordering::Relaxed);
    let (mut skip, mut asked) = (PREFACE, Vec::new());
    for second in 0..700 {
        transport.suspect();
        for answer in pings(&mut far, std::mem::take(&mut skip)).await {
            asked.push(second);
            far.write_all(&answer).await.expect("the pipe is open");
        }
        tokio::time::sleep(SECOND).await;
    }
    assert_eq!(asked.len(), 3, "in seconds {asked:?}");
    assert!(asked.windows(2).all(|pair| pair[1] - pair[0] >= 295), "five minutes lie between them: {asked:?}");
    assert!(!running.driver.is_finished(), "the peer is there");
}

#[tokio::test(start_paused = true)]
async fn too_many_pings_is_told_before_the_end_that_it_causes() {
    let (connection, mut far) = pinged(None, SECOND).await;
    let mut running = run(connection);
    let text = b"too_many_pings";
    let head = [0, 0, 22, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 11];
    far.write_all(&[&head[..], text].concat()).await.expect("the pipe is open");
    assert_eq!(soon("the news", running.told.recv()).await, Some(Told::TooManyPings));
    assert_eq!(soon("the news", running.told.recv()).await, Some(Told::GoingAway));
}
