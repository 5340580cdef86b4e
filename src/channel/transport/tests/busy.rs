//! A socket that is busy with uploads and takes bytes all the time, and one that takes them at a trickle or no more.

use std::future::poll_fn;

use super::early::{Call, HEADERS, driven, frame, of};
use super::*;

/// Counts how often calls were told to go elsewhere.
#[derive(Default)]
struct Stalls(Arc<AtomicU32>);

impl ConnectionObserver for Stalls {
    fn on_stream_limit(&self, _: u32) {}
    fn on_going_away(&self, _: &Ended) {}
    fn on_too_many_pings(&self) {}

    fn on_doubt(&self, _: bool) {}

    fn on_stalled(&self, is_stalled: bool) {
        self.0.fetch_add(is_stalled.into(), Ordering::Relaxed);
    }

    fn open_calls(&self) -> u32 {
        0
    }

    fn awaited_calls(&self) -> u32 {
        0
    }
}

#[tokio::test(start_paused = true)]
async fn calls_beside_an_upload_are_not_sent_elsewhere() {
    let (options, mut far) = piped_through(4_096);
    // All the room that HTTP/2 knows.
    let wide = [frame(4, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]), update(0, 1 << 30)].concat();
    far.write_all(&wide).await.expect("the pipe is open");
    let connection = connect(&options, &nowhere()).await.expect("SETTINGS came");
    let (transport, stalls) = (connection.transport, Stalls::default());
    let stalled = stalls.0.clone();
    tokio::spawn(connection.driver.run(stalls));
    let mut upload = Call::new(&transport, RequestBody::new(Body::new(Endless::default())));
    tokio::spawn(async move { upload.response().await.map(drop) });
    let mut calls = Vec::new();
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; 4_096]);
    for turn in 0..1_000 {
        let bursts = if turn % 40 == 0 && calls.len() < 400 { 40 } else { 0 };
        for _ in 0..bursts {
            let mut call = Call::new(&transport, of(vec![7; 5]));
            calls.push(tokio::spawn(async move { call.response().await.map(drop) }));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        let read = far.read(&mut buffer).await.expect("the pipe is open");
        bytes.extend_from_slice(&buffer[..read]);
    }
    assert_eq!(stalled.load(Ordering::Relaxed), 0, "the socket never stands still");
    let mut heads = frame_kinds(&bytes[24..]);
    heads.retain(|kind| *kind == HEADERS);
    assert_eq!(heads.len(), 401, "all calls are written");
}

/// A pipe that is never flushed, as TLS may be while its socket takes nothing.
struct Unflushed(DuplexStream);

impl AsyncRead for Unflushed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Unflushed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_closed_ends_also_where_it_cannot_be_flushed() {
    let (near, mut far) = duplex(256);
    let near = StdMutex::new(Some(near));
    let connector = Connector::new(service_fn(move |_: Uri| {
        let near = near.lock().expect("no test panics here").take();
        std::future::ready(near.map(|near| TokioIo::new(Unflushed(near))).ok_or("taken"))
    }));
    let options = TransportConfig { connector: Some(connector), ..TransportConfig::default() };
    far.write_all(&settings(None)).await.expect("the pipe is open");
    let (transport, driver) = driven(connect(&options, &nowhere()).await.expect("SETTINGS came"));
    let mut call = Call::new(&transport, of(vec![7; 5_000]));
    assert!(timeout(Duration::from_millis(1), call.response()).await.is_err(), "it is not answered");
    far.shutdown().await.expect("the pipe is open");
    assert!(call.response().await.is_err(), "the call fails");
    let ended = soon("the end", driver).await.expect("no panic");
    assert!(matches!(ended, Ended::Closed), "{ended}");
    let mut late = Call::new(&transport, of(vec![7; 5]));
    assert!(late.response().await.is_err(), "and so do others");
}

/// h2 reads nothing as long as it has a ping to write.
#[tokio::test(start_paused = true)]
async fn a_slow_connection_that_brings_answers_is_not_taken_for_silent() {
    let (options, mut far) = piped_through(4_096);
    let (interval, timeout) = (Some(Duration::from_secs(3)), Duration::from_secs(1));
    let options = TransportConfig { http2_keep_alive_interval: interval, keep_alive_timeout: timeout, ..options };
    let wide = [frame(4, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]), update(0, 1 << 30)].concat();
    far.write_all(&wide).await.expect("the pipe is open");
    let (transport, driver) = driven(connect(&options, &nowhere()).await.expect("SETTINGS came"));
    let mut upload = Call::new(&transport, RequestBody::new(Body::new(Endless::default())));
    let call = tokio::spawn(async move { poll_fn(|cx| upload.poll(cx)).await.map(drop) });
    let mut buffer = vec![0; 400];
    for _ in 0..100 {
        // Two bytes in a millisecond, and nothing is heard for longer than the interval.
        tokio::time::sleep(Duration::from_millis(200)).await;
        far.read_exact(&mut buffer).await.expect("the pipe is open");
    }
    assert!(!driver.is_finished(), "the peer is there");
    far.write_all(&early::head(1, true)).await.expect("the pipe is open");
    call.await.expect("no panic").expect("it is answered");
}
