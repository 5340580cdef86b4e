//! A socket that is busy with uploads and takes bytes all the time.

use super::early::{Call, HEADERS, frame, of};
use super::*;

/// Counts how often calls were told to go elsewhere.
#[derive(Default)]
struct Stalls(Arc<AtomicU32>);

impl ConnectionObserver for Stalls {
    fn on_stream_limit(&self, _: u32) {}
    fn on_going_away(&self, _: &Ended) {}
    fn on_too_many_pings(&self) {}

    fn on_stalled(&self, is_stalled: bool) {
        self.0.fetch_add(is_stalled.into(), Ordering::Relaxed);
    }

    fn open_calls(&self) -> u32 {
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
    let heads = frame_kinds(&bytes[24..]).iter().filter(|kind| **kind == HEADERS).count();
    assert_eq!(heads, 401, "all calls are written");
}
