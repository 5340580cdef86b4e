//! What is left of a request when its response is complete, and what of a response is not.

use std::future::poll_fn;

use http_body::Body as _;
use http_body_util::{BodyExt, Full};

use super::*;
use crate::channel::transport::{AttemptError, Exchange, IncomingBody, Transport, TransportError};

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RESET: u8 = 3;

/// A frame with flags.
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).expect("it is short").to_be_bytes();
    [&size[1..], &[kind, flags], stream.to_be_bytes().as_slice(), payload].concat()
}

/// A head or trailers: `:status: 200`, with the end of the response or without.
pub(super) fn head(stream: u32, ends: bool) -> Vec<u8> {
    frame(HEADERS, 4 | u8::from(ends), stream, &[0x88])
}

/// `grpc-status: 0`
pub(super) fn trailers(stream: u32) -> Vec<u8> {
    frame(HEADERS, 5, stream, b"\x00\x0bgrpc-status\x010")
}

/// A transport whose driver runs, and the peer, which has seen the preface.
pub(super) async fn opened() -> (Transport, JoinHandle<Ended>, DuplexStream) {
    let (options, mut far) = piped();
    far.write_all(&settings(None)).await.expect("the pipe is open");
    let (transport, driver) = driven(connect(&options, &nowhere()).await.expect("SETTINGS came"));
    let _ = seen(&mut far, 24).await;
    (transport, driver, far)
}

pub(super) fn driven(connection: Connection) -> (Transport, JoinHandle<Ended>) {
    let (tell, _) = unbounded_channel();
    let running = connection.driver.run(Ear(tell, Arc::default()));
    let driver = tokio::spawn(async move { running.await.0 });
    (connection.transport, driver)
}

pub(super) fn of(data: impl Into<Bytes>) -> RequestBody {
    RequestBody::new(Body::new(Full::new(data.into())))
}

/// A request between its beginning and the head of its response.
pub(super) struct Call {
    pub(super) exchange: Exchange,
    pub(super) body: RequestBody,
    transport: Transport,
}

impl Call {
    pub(super) fn new(transport: &Transport, body: RequestBody) -> Self {
        Self { exchange: Exchange::default(), body, transport: transport.clone() }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<IncomingBody>, AttemptError>> {
        self.exchange.poll_response(&self.transport, || Ok(request(())), &mut self.body, cx)
    }

    pub(super) async fn response(&mut self) -> Result<Response<IncomingBody>, AttemptError> {
        soon("the response", poll_fn(|cx| self.poll(cx))).await
    }

    /// Polls it once, and looks what the peer has seen then.
    pub(super) async fn begun(&mut self, far: &mut DuplexStream) -> Vec<(u8, u8, u32, Vec<u8>)> {
        poll_fn(|cx| Poll::Ready(self.poll(cx).is_ready())).await;
        seen(far, 0).await
    }
}

fn resets(frames: &[(u8, u8, u32, Vec<u8>)]) -> Vec<u32> {
    frames.iter().filter(|(kind, ..)| *kind == RESET).map(|(.., stream, _)| *stream).collect()
}

#[tokio::test(start_paused = true)]
async fn a_head_that_is_all_of_the_response_resets_what_is_left_of_the_request() {
    let (transport, _driver, mut far) = opened().await;
    let mut large = Call::new(&transport, of(vec![7; 1_000_000]));
    large.begun(&mut far).await;
    // The first has used up the connection's window, so that of this one not a byte was sent.
    let mut small = Call::new(&transport, of(vec![7; 5]));
    small.begun(&mut far).await;
    for (mut call, stream) in [(large, 1), (small, 3)] {
        far.write_all(&head(stream, true)).await.expect("open");
        let response = call.response().await.expect("a response");
        assert!(response.body().is_end_stream());
        call.exchange.finish(&call.body);
        assert_eq!(resets(&seen(&mut far, 0).await), [stream]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_was_sent_entirely_is_not_reset() {
    let (transport, _driver, mut far) = opened().await;
    for (stream, body) in [(1, vec![7; 5]), (3, vec![7; 20_000]), (5, Vec::new())] {
        let mut call = Call::new(&transport, of(body));
        call.begun(&mut far).await;
        far.write_all(&head(stream, true)).await.expect("open");
        call.response().await.expect("a response");
        call.exchange.finish(&call.body);
        assert_eq!(resets(&seen(&mut far, 0).await), [0; 0], "stream {stream}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_response_that_was_not_looked_at_resets_what_is_left_of_the_request() {
    let (transport, _driver, mut far) = opened().await;
    let mut call = Call::new(&transport, of(vec![7; 1_000_000]));
    call.begun(&mut far).await;
    far.write_all(&head(1, true)).await.expect("open");
    let _ = seen(&mut far, 0).await;
    drop(call);
    assert_eq!(resets(&seen(&mut far, 0).await), [1]);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_response_resets_what_is_left_of_the_request() {
    let (transport, _driver, mut far) = opened().await;
    let mut large = Call::new(&transport, of(vec![7; 1_000_000]));
    large.begun(&mut far).await;
    let mut small = Call::new(&transport, of(vec![7; 5]));
    small.begun(&mut far).await;
    for (mut call, stream) in [(large, 1), (small, 3)] {
        far.write_all(&head(stream, false)).await.expect("open");
        let mut body = call.response().await.expect("a response").into_body();
        let rest = call.exchange.send_rest(&transport, call.body);
        assert_eq!(resets(&seen(&mut far, 0).await), [0; 0]);
        far.write_all(&trailers(stream)).await.expect("open");
        let last = soon("the trailers", body.frame()).await.expect("trailers").expect("whole");
        assert!(last.is_trailers());
        drop((body, rest));
        assert_eq!(resets(&seen(&mut far, 0).await), [stream]);
    }
}

#[tokio::test(start_paused = true)]
async fn the_rest_of_a_stream_is_reset_at_the_end_of_its_response() {
    let (transport, _driver, mut far) = opened().await;
    // Two messages, of which the second waits for room and then for the end of the call.
    let frames = [vec![7; 60_000], vec![7; 20_000]].map(|data| Ok::<_, tonic::Status>(Frame::data(Bytes::from(data))));
    let stream = http_body_util::StreamBody::new(futures_util::stream::iter(frames));
    let mut call = Call::new(&transport, RequestBody::new(Body::new(stream)));
    call.begun(&mut far).await;
    far.write_all(&head(1, false)).await.expect("open");
    let mut body = call.response().await.expect("a response").into_body();
    let rest = call.exchange.send_rest(&transport, call.body);
    let _ = seen(&mut far, 0).await;
    far.write_all(&trailers(1)).await.expect("open");
    soon("the trailers", body.frame()).await.expect("trailers").expect("whole");
    drop((body, rest));
    assert_eq!(resets(&seen(&mut far, 0).await), [1]);
}

#[tokio::test(start_paused = true)]
async fn a_response_that_is_reset_with_no_error_is_truncated() {
    let (transport, _driver, mut far) = opened().await;
    let mut call = Call::new(&transport, of(vec![7; 5]));
    call.begun(&mut far).await;
    let reset = frame(RESET, 0, 1, &[0; 4]);
    far.write_all(&[head(1, false), frame(DATA, 0, 1, b"half"), reset.clone()].concat()).await.expect("open");
    let mut body = call.response().await.expect("a response").into_body();
    let data = soon("the data", body.frame()).await.expect("data").expect("it came");
    assert_eq!(data.into_data().ok(), Some(Bytes::from_static(b"half")));
    let error = soon("the end", body.frame()).await.expect("no clean end").expect_err("no clean end");
    assert_eq!(error.status(&nowhere()).code(), tonic::Code::Internal);

    let mut call = Call::new(&transport, of(vec![7; 5]));
    call.begun(&mut far).await;
    let reset = frame(RESET, 0, 3, &[0; 4]);
    far.write_all(&[head(3, false), frame(DATA, 0, 3, b"all"), trailers(3), reset].concat()).await.expect("open");
    let body = call.response().await.expect("a response").into_body();
    let whole = soon("all of it", body.collect()).await.expect("the server wants no more, but all of it is here");
    assert!(whole.trailers().is_some());
}

#[tokio::test(start_paused = true)]
async fn an_idle_upload_holds_none_of_the_connections_window() {
    let (transport, _driver, mut far) = opened().await;
    let frames = futures_util::stream::iter([Ok::<_, tonic::Status>(Frame::data(Bytes::from(vec![7; 65_534])))]);
    let idle = http_body_util::StreamBody::new(futures_util::StreamExt::chain(frames, futures_util::stream::pending()));
    let mut upload = Call::new(&transport, RequestBody::new(Body::new(idle)));
    let upload = tokio::spawn(async move { upload.response().await.is_ok() });
    let sent = |frames: &[(u8, u8, u32, Vec<u8>)], of: u32| -> usize {
        frames.iter().filter(|(kind, _, stream, _)| (*kind, *stream) == (DATA, of)).map(|(.., data)| data.len()).sum()
    };
    assert_eq!(sent(&seen(&mut far, 0).await, 1), 65_534, "a byte of the window is left");
    let mut other = Call::new(&transport, of(vec![7; 5]));
    assert_eq!(sent(&other.begun(&mut far).await, 3), 1, "and it is the other call's");
    // This peer renews its window only when it is used up.
    far.write_all(&update(0, 65_535)).await.expect("open");
    assert_eq!(sent(&seen(&mut far, 0).await, 3), 4);
    upload.abort();
}

#[tokio::test(start_paused = true)]
async fn what_is_called_unwritten_at_the_end_is_not_written_after_it() {
    let (options, mut far) = piped_through(256);
    far.write_all(&settings(None)).await.expect("the pipe is open");
    let (transport, _driver) = driven(connect(&options, &nowhere()).await.expect("SETTINGS came"));
    let mut calls: Vec<_> = (0..20).map(|_| Call::new(&transport, RequestBody::default())).collect();
    for call in &mut calls {
        poll_fn(|cx| Poll::Ready(call.poll(cx).is_ready())).await;
    }
    // Some of the heads are in the pipe, the others with h2. Then the peer ends its half, and reads on.
    tokio::time::sleep(Duration::from_millis(1)).await;
    far.shutdown().await.expect("open");
    tokio::time::sleep(Duration::from_millis(1)).await;
    let mut unsent = 0;
    for call in &mut calls {
        let error = call.response().await.expect_err("the connection ended");
        unsent += u32::from(matches!(error, AttemptError::Unprocessed { is_unsent: true, .. }));
    }
    drop((calls, transport));
    let mut bytes = Vec::new();
    soon("the end", far.read_to_end(&mut bytes)).await.expect("open");
    let mut heads = frame_kinds(&bytes[24..]);
    heads.retain(|kind| *kind == HEADERS);
    let heads = u32::try_from(heads.len());
    assert!(unsent > 0, "not all were written");
    assert_eq!(heads.expect("a few") + unsent, 20, "none of the others was");
}

#[tokio::test]
async fn a_long_status_costs_its_own_call_alone() {
    let default = [1_000, 20_000, 100_000, 250_000].map(|size| (size, None));
    let wider = [100_000, 700_000].map(|size| (size, Some(200_000)));
    for (size, allowed) in default.into_iter().chain(wider) {
        let (mut server, address) = Server::tcp().await;
        let options = TransportConfig { http2_max_header_list_size: allowed, ..TransportConfig::default() };
        let (transport, _driver) = driven(connect(&options, &address).await.expect("connected"));
        let is_fine = size <= allowed.unwrap_or(16 * 1024);
        let long = || {
            http::HeaderMap::from_iter([(
                http::HeaderName::from_static("grpc-message"),
                http::HeaderValue::try_from("x".repeat(size as usize)).expect("a value"),
            )])
        };
        let names_the_option = |error: &TransportError| {
            let status = error.status(&nowhere());
            assert_eq!(status.code(), tonic::Code::Internal);
            let named = format!("http2_max_header_list_size is {}", allowed.unwrap_or(16_384));
            assert!(status.message().contains(&named), "{status:?}");
        };
        let mut call = Call::new(&transport, of(vec![7; 5]));
        let (answer, (_, mut respond)) = tokio::join!(call.response(), async {
            let (request, mut respond) = server.call().await;
            let mut head = Response::new(());
            *head.headers_mut() = long();
            respond.send_response(head, true).expect("the call is open");
            (request, respond)
        });
        match answer {
            Ok(_) => assert!(is_fine, "a head of {size} bytes"),
            Err(AttemptError::MaybeProcessed(error)) if !is_fine => names_the_option(&error),
            Err(error) => panic!("a head of {size} bytes: {error:?}"),
        }
        let mut call = Call::new(&transport, of(vec![7; 5]));
        let (answer, _stream) = tokio::join!(call.response(), async {
            let (_, mut next) = server.call().await;
            let mut stream = next.send_response(Response::new(()), false).expect("the call is open");
            stream.send_trailers(long()).expect("the call is open");
            respond = next;
            stream
        });
        let body = answer.expect("the connection stays").into_body();
        match soon("the end", body.collect()).await {
            Ok(whole) => assert!(is_fine && whole.trailers().is_some(), "trailers of {size} bytes"),
            Err(error) => {
                assert!(!is_fine, "trailers of {size} bytes: {error}");
                names_the_option(&error);
            }
        }
        let mut call = Call::new(&transport, of(vec![7; 5]));
        let (answer, ()) = tokio::join!(call.response(), async {
            let (_, mut next) = server.call().await;
            next.send_response(Response::new(()), true).expect("the call is open");
        });
        answer.expect("the connection stays");
    }
}
