//! A call is given up, and the next one takes its place at once. h2 counts the stream of the first until the driver's
//! next turn, and no call waits for longer than that.

use std::collections::BTreeMap;

use futures_util::{FutureExt, StreamExt, stream};
use http_body::Body as _;
use http_body_util::StreamBody;
use tokio::io::join;
use tokio_test::assert_pending;
use tokio_test::task::{Spawn, spawn};

use super::early::{Call, DATA, HEADERS, RESET, frame, head, of, trailers};
use super::*;
use crate::channel::transport::connection::Running as Driving;
use crate::channel::transport::{BodySender, IncomingBody, Transport};

/// A connection whose driver takes a turn only where the test says so.
struct Line {
    transport: Transport,
    driver: Spawn<Driving<Ear>>,
    far: Far,
}

/// The peer's end: what it writes always finds room.
struct Far {
    write: DuplexStream,
    read: DuplexStream,
    /// Bytes that are no whole frame yet.
    bytes: Vec<u8>,
}

impl Line {
    /// The peer allows so many calls at once, and the way to it holds so many bytes.
    async fn open(limit: u8, bytes: usize) -> Self {
        let ((near_read, mut write), (near_write, read)) = (duplex(1 << 20), duplex(bytes));
        let near = StdMutex::new(Some(join(near_read, near_write)));
        let connector = Connector::new(service_fn(move |_: Uri| {
            let near = near.lock().expect("no test panics here").take();
            std::future::ready(near.map(TokioIo::new).ok_or("taken"))
        }));
        let options = TransportConfig { connector: Some(connector), ..TransportConfig::default() };
        write.write_all(&settings(Some(limit))).await.expect("the pipe is open");
        let Connection { transport, driver, .. } = connect(&options, &nowhere()).await.expect("SETTINGS came");
        let (tell, _) = unbounded_channel();
        let mut driver = spawn(driver.run(Ear(tell, Arc::default())));
        assert_pending!(driver.poll());
        let mut line = Self { transport, driver, far: Far { write, read, bytes: Vec::new() } };
        line.turns();
        line.far.take(usize::MAX);
        line.far.bytes.drain(..24);
        line
    }

    /// One turn of the driver, which is due.
    fn turn(&mut self) {
        assert!(self.driver.is_woken(), "the driver has something to do");
        assert_pending!(self.driver.poll());
    }

    /// Turns for as long as the driver has something to do. Returns whether it had.
    fn turns(&mut self) -> bool {
        let is_due = self.driver.is_woken();
        while self.driver.is_woken() {
            self.turn();
        }
        is_due
    }

    async fn say(&mut self, frames: &[Vec<u8>]) {
        self.far.write.write_all(&frames.concat()).await.expect("the pipe is open");
    }

    /// The streams of heads that came.
    fn heads(&mut self) -> Vec<u32> {
        let frames = self.far.frames(usize::MAX);
        frames.iter().filter(|(kind, ..)| *kind == HEADERS).map(|(.., stream)| *stream).collect()
    }
}

impl Far {
    /// Takes up to so many bytes that came. Returns whether there were some.
    fn take(&mut self, most: usize) -> bool {
        let (mut buffer, before) = (vec![0; most.min(1 << 16)], self.bytes.len());
        while self.bytes.len() - before < most
            && let Some(Ok(read)) = self.read.read(&mut buffer).now_or_never()
        {
            self.bytes.extend_from_slice(&buffer[..read]);
        }
        self.bytes.len() > before
    }

    /// The whole frames in them, by kind, flags and stream.
    fn frames(&mut self, most: usize) -> Vec<(u8, u8, u32)> {
        self.take(most);
        let (mut frames, mut bytes) = (Vec::new(), &self.bytes[..]);
        while let Some(([l0, l1, l2, kind, flags, s0, s1, s2, s3], rest)) = bytes.split_first_chunk::<9>() {
            let length = usize::from(*l0) << 16 | usize::from(*l1) << 8 | usize::from(*l2);
            let Some(rest) = rest.get(length..) else { break };
            frames.push((*kind, *flags, u32::from_be_bytes([*s0, *s1, *s2, *s3])));
            bytes = rest;
        }
        self.bytes = bytes.to_vec();
        frames
    }
}

/// A request whose caller always has more to come.
fn unended(data: Vec<u8>) -> RequestBody {
    let first = stream::iter([Ok::<_, tonic::Status>(Frame::data(Bytes::from(data)))]);
    RequestBody::new(Body::new(StreamBody::new(first.chain(stream::pending()))))
}

/// How far a call is when it is given up.
#[derive(Debug, Clone, Copy)]
enum Given {
    /// Its head is with h2.
    Unwritten,
    /// All of its request is written.
    Awaited,
    /// The peer has no more room for its request.
    Uploading,
    /// The response has begun.
    Responding,
    /// The response has begun, and the peer has no more room for the request.
    RespondingEarly,
    /// The response has begun, and the caller may have more to say.
    Conversing,
    /// All of the response is here, unread, and the peer has no more room for the request.
    Answered,
}

/// A call that holds a place.
struct Held {
    /// What it is woken through.
    task: Spawn<()>,
    stage: Stage,
}

enum Stage {
    Asking(Box<Call>),
    Responding {
        incoming: IncomingBody,
        rest: BodySender,
    },
    /// Its place is free.
    Over,
}

impl Held {
    /// A call that is handed to the connection.
    fn begin(transport: &Transport, body: RequestBody) -> Self {
        let mut held = Self { task: spawn(()), stage: Stage::Asking(Box::new(Call::new(transport, body))) };
        held.poll(transport);
        held
    }

    /// Does what a call of the channel does: its response begins, is read, and ends with its trailers.
    fn poll(&mut self, transport: &Transport) {
        let Self { task, stage } = self;
        task.enter(|cx, _| {
            if let Stage::Asking(call) = stage {
                let Poll::Ready(response) = call.poll(cx) else { return };
                let Stage::Asking(call) = std::mem::replace(stage, Stage::Over) else { return };
                let Ok(response) = response else { return };
                if response.body().is_end_stream() {
                    call.exchange.finish(&call.body);
                    return;
                }
                let rest = call.exchange.send_rest(transport, call.body);
                *stage = Stage::Responding { incoming: response.into_body(), rest };
            }
            while let Stage::Responding { incoming, .. } = stage {
                match Pin::new(incoming).poll_frame(cx) {
                    Poll::Pending => return,
                    Poll::Ready(Some(Ok(frame))) if frame.is_data() => {}
                    Poll::Ready(_) => *stage = Stage::Over,
                }
            }
        });
    }

    /// Whether it waits for the socket, where it leaves nothing behind.
    fn is_in_the_gate(&self) -> bool {
        matches!(&self.stage, Stage::Asking(call) if call.exchange.is_waiting())
    }

    fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over)
    }
}

#[tokio::test(start_paused = true)]
async fn the_next_call_is_written_in_the_turn_after_one_was_given_up() {
    use Given::{Answered, Awaited, Conversing, Responding, RespondingEarly, Unwritten, Uploading};
    for given in [Unwritten, Awaited, Uploading, Responding, RespondingEarly, Conversing, Answered] {
        for is_begun_first in [false, true] {
            let mut line = Line::open(1, 1 << 20).await;
            let body = match given {
                Unwritten | Awaited | Responding => of(vec![7; 5]),
                // HTTP/2's window is 65,535 bytes at first.
                Uploading | RespondingEarly | Answered => of(vec![7; 100_000]),
                Conversing => unended(vec![7; 5]),
            };
            let mut held = Held::begin(&line.transport, body);
            if !matches!(given, Unwritten) {
                line.turns();
                assert_eq!(line.heads(), [1], "{given:?}");
            }
            match given {
                Unwritten | Awaited | Uploading => {}
                Responding | RespondingEarly | Conversing => {
                    line.say(&[head(1, false), frame(DATA, 0, 1, &[0; 5])]).await;
                    line.turns();
                    held.poll(&line.transport);
                    assert!(matches!(held.stage, Stage::Responding { .. }), "{given:?}");
                    tokio::task::yield_now().await;
                }
                Answered => {
                    line.say(&[head(1, true)]).await;
                    line.turns();
                }
            }
            // Its place may come back before its last handle is dropped.
            let next = is_begun_first.then(|| Held::begin(&line.transport, of(vec![7; 5])));
            drop(held);
            let next = next.unwrap_or_else(|| Held::begin(&line.transport, of(vec![7; 5])));
            line.turn();
            let expected: &[u32] = if matches!(given, Unwritten) { &[1, 3] } else { &[3] };
            assert_eq!(line.heads(), expected, "{given:?}, and the next one begun first: {is_begun_first}");
            assert!(!next.is_over(), "{given:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_behind_one_that_was_given_up_waits_for_the_socket_alone() {
    tokio::task::unconstrained(behind_one_that_was_given_up()).await;
}

async fn behind_one_that_was_given_up() {
    for (size, written) in [(5, 0), (5_000, 0), (5_000, 300), (100_000, 20_000), (100_000, 66_000)] {
        let mut line = Line::open(1, 64).await;
        // The peer reads so many bytes, and then no more.
        let held = Held::begin(&line.transport, of(vec![7; size]));
        let mut read = 0;
        while line.turns() && read < written {
            let before = line.far.bytes.len();
            line.far.take(64);
            read += line.far.bytes.len() - before;
        }
        let begun = Held::begin(&line.transport, of(vec![7; size]));
        drop(held);
        drop(begun);
        let mut next = Held::begin(&line.transport, of(vec![7; 5]));
        // It takes bytes again, and says nothing.
        let mut heads = Vec::new();
        loop {
            heads.extend(line.heads());
            if next.task.is_woken() {
                next.poll(&line.transport);
            } else if !line.turns() {
                break;
            }
        }
        assert_eq!(heads.last(), Some(&5), "of {size} bytes {written} were written: {heads:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_large_request_that_is_answered_while_it_is_written_leaves_its_place() {
    tokio::task::unconstrained(async {
        let mut line = Line::open(1, 1_000).await;
        let mut held = Held::begin(&line.transport, of(vec![7; 100_000]));
        line.turns();
        line.say(&[head(1, true)]).await;
        line.turns();
        held.poll(&line.transport);
        assert!(held.is_over(), "it is answered, and the socket holds a part of its first frame");
        let _next = Held::begin(&line.transport, of(vec![7; 5]));
        let mut heads = line.heads();
        while line.turns() {
            heads.extend(line.heads());
        }
        assert_eq!(heads, [1, 3]);
    })
    .await;
}

/// A stream as the peer sees it.
#[derive(Default)]
struct PeerStream {
    is_asked: bool,
    is_begun: bool,
    is_answered: bool,
}

/// What the walk below goes through: calls within the peer's limit, and what the peer knows of them.
struct Walk {
    line: Line,
    dice: fastrand::Rng,
    limit: usize,
    held: Vec<Held>,
    /// How many calls were with h2, except those that are held.
    left: usize,
    /// How many heads came.
    heads: usize,
    open: BTreeMap<u32, PeerStream>,
}

impl Walk {
    /// Begins a call, if there is a place.
    fn begin(&mut self) {
        if self.held.len() < self.limit {
            let body = match self.dice.u8(..5) {
                0 => RequestBody::default(),
                1 => of(vec![7; 5]),
                2 => of(vec![7; 100_000]),
                3 => unended(vec![7; 3_000]),
                _ => RequestBody::new(Body::new(Endless::default())),
            };
            self.held.push(Held::begin(&self.line.transport, body));
        }
    }

    /// Gives a call up, and may begin the next before the last handle of it is dropped.
    fn give_up(&mut self) {
        if !self.held.is_empty() {
            let held = self.held.swap_remove(self.dice.usize(..self.held.len()));
            self.left += usize::from(!held.is_in_the_gate());
            if let Stage::Responding { incoming, rest } = held.stage {
                drop(incoming);
                self.begin();
                drop(rest);
            } else if self.dice.bool() {
                self.begin();
            }
        }
    }

    /// Polls the calls that were woken. Returns whether there were some.
    fn poll(&mut self) -> bool {
        let mut is_woken = false;
        for held in &mut self.held {
            if held.task.is_woken() {
                is_woken = true;
                held.poll(&self.line.transport);
            }
        }
        let before = self.held.len();
        self.held.retain(|held| !held.is_over());
        self.left += before - self.held.len();
        is_woken
    }

    /// The peer reads. Returns whether something came.
    fn read(&mut self, most: usize) -> bool {
        let before = self.line.far.bytes.len();
        let frames = self.line.far.frames(most);
        for &(kind, flags, stream) in &frames {
            match kind {
                HEADERS => {
                    self.heads += 1;
                    self.open.insert(stream, PeerStream::default());
                    assert!(self.open.len() <= self.limit, "more calls are open than the peer allows");
                }
                RESET => drop(self.open.remove(&stream)),
                _ => {}
            }
            if (kind == HEADERS || kind == DATA)
                && flags & 1 != 0
                && let Some(open) = self.open.get_mut(&stream)
            {
                open.is_asked = true;
            }
            self.forget_closed();
        }
        !frames.is_empty() || self.line.far.bytes.len() > before
    }

    fn forget_closed(&mut self) {
        self.open.retain(|_, open| !(open.is_asked && open.is_answered));
    }

    /// The peer does something for one of its calls, or for all.
    async fn say(&mut self) {
        let dice = self.dice.u8(..7);
        let Some(&stream) = self.dice.choice(self.open.keys().collect::<Vec<_>>()) else { return };
        let Some(open) = self.open.get_mut(&stream) else { return };
        if open.is_answered {
            return;
        }
        let said = match (dice, open.is_begun) {
            (0 | 1, false) => {
                (open.is_begun, open.is_answered) = (true, dice == 0);
                head(stream, dice == 0)
            }
            (0, true) => frame(DATA, 0, stream, &[0; 5]),
            (1, true) => {
                open.is_answered = true;
                trailers(stream)
            }
            (2, _) => {
                // Refused, given up, or all that it wanted to say.
                let reason = self.dice.choice([7, 8, 0]).unwrap_or_default();
                self.open.remove(&stream);
                frame(RESET, 0, stream, &[0, 0, 0, reason])
            }
            (3, _) => update(stream, 10_000),
            _ => update(0, 10_000),
        };
        self.forget_closed();
        self.line.say(&[said]).await;
    }

    /// Everything comes to rest, without a word of the peer, which reads all that there is.
    async fn rest(&mut self) {
        // Tasks on the runtime send the rest of requests on, and need a few turns of it.
        let mut quiet = 0;
        while quiet < 5 {
            tokio::task::yield_now().await;
            let (polled, turned, read) = (self.poll(), self.line.turns(), self.read(usize::MAX));
            quiet = if polled || turned || read { 0 } else { quiet + 1 };
        }
    }

    async fn step(&mut self) {
        match self.dice.u8(..20) {
            0..4 => self.begin(),
            4..6 => self.give_up(),
            6..9 => {
                self.poll();
            }
            9..12 => {
                self.line.turns();
            }
            12..15 => {
                let most = self.dice.usize(1..2_000);
                self.read(most);
            }
            15..18 => self.say().await,
            18 => tokio::task::yield_now().await,
            _ => tokio::time::advance(Duration::from_millis(self.dice.u64(..60))).await,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_is_given_up_no_call_with_a_place_stays_unwritten() {
    tokio::task::unconstrained(async {
        for seed in 0..60 {
            let mut dice = fastrand::Rng::with_seed(seed);
            let (limit, bytes) = (dice.u8(1..4), dice.choice([64, 1_000, 1 << 20]).expect("there are three"));
            let (line, limit) = (Line::open(limit, bytes).await, limit.into());
            let mut walk = Walk { line, dice, limit, held: Vec::new(), left: 0, heads: 0, open: BTreeMap::new() };
            for _ in 0..20 {
                for _ in 0..30 {
                    walk.step().await;
                }
                walk.rest().await;
                assert!(walk.held.iter().all(|held| !held.is_in_the_gate()), "seed {seed}: the socket takes all");
                assert_eq!(walk.heads, walk.left + walk.held.len(), "seed {seed}: each call was written");
            }
            assert!(walk.heads > 20, "seed {seed}: {}", walk.heads);
        }
    })
    .await;
}
