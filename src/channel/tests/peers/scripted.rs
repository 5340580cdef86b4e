//! A peer that speaks HTTP/2 by hand, frame by frame, so that it can say what no library would.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};

use super::proto::EchoReply;
use super::{ANY_PORT, Count, listen};

/// An HTTP/2 server without a library: it counts calls, holds them, and sends what the test asks for.
///
/// It does not read what a call sends: an answer is an echo reply with an empty message and the peer's address.
/// Commands go to all of its connections. Dropping it closes everything.
#[derive(Debug)]
pub(crate) struct Scripted {
    address: SocketAddr,
    shared: Arc<Shared>,
    _alive: oneshot::Sender<()>,
}

/// What happens to a call as soon as its head arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnCall {
    /// The call waits for a command.
    Hold,
    /// The call is answered.
    Answer,
    /// The call is reset with `REFUSED_STREAM`.
    Refuse,
    /// A GOAWAY says that the call and whatever follows is not processed.
    GoAwayBelow,
}

impl Scripted {
    /// Treats calls like this, and allows that many at once (`None`: says nothing about it).
    pub(crate) fn start(on_call: OnCall, max_streams: impl Into<Option<u32>>) -> Self {
        let (listener, address) = listen(ANY_PORT);
        let state = State { on_call, max_streams: max_streams.into(), connections: Vec::new(), held: VecDeque::new() };
        let shared = Arc::new(Shared {
            address,
            state: Mutex::new(state),
            connections: Count::default(),
            calls: Count::default(),
            resets: Count::default(),
        });
        let (alive, dropped) = oneshot::channel();
        let accepting = shared.clone();
        tokio::spawn(async move {
            let accept = async {
                while let Ok((socket, _)) = listener.accept().await {
                    _ = socket.set_nodelay(true);
                    let (id, frames) = accepting.connected();
                    tokio::spawn(serve(accepting.clone(), id, frames, socket));
                }
            };
            tokio::select! {
                () = accept => {}
                _ = dropped => accepting.hang_up(),
            }
        });
        Self { address, shared, _alive: alive }
    }

    /// Resets every call with `REFUSED_STREAM`.
    pub(crate) fn refusing_streams() -> Self {
        Self::start(OnCall::Refuse, None)
    }

    /// Answers the first call of each connection with a GOAWAY below it.
    pub(crate) fn going_away_below() -> Self {
        Self::start(OnCall::GoAwayBelow, None)
    }

    /// Allows four calls at once, each held until [`answer`](Self::answer).
    pub(crate) fn four_streams() -> Self {
        Self::start(OnCall::Hold, 4)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections were accepted.
    pub(crate) fn connections(&self) -> &Count {
        &self.shared.connections
    }

    /// How many calls arrived, refused ones included.
    pub(crate) fn calls(&self) -> &Count {
        &self.shared.calls
    }

    /// How many calls the client reset.
    pub(crate) fn resets(&self) -> &Count {
        &self.shared.resets
    }

    /// How many calls are held now.
    pub(crate) fn held(&self) -> usize {
        self.shared.lock().held.len()
    }

    /// Treats calls like this from now on.
    pub(crate) fn on_call(&self, on_call: OnCall) {
        self.shared.lock().on_call = on_call;
    }

    /// Answers that many of the held calls, the oldest first, and returns how many there were.
    pub(crate) fn answer(&self, calls: usize) -> usize {
        let mut state = self.shared.lock();
        let calls = calls.min(state.held.len());
        let answered: Vec<_> = state.held.drain(..calls).collect();
        for held in answered {
            state.send(held.connection, answer(held.stream, self.address));
        }
        calls
    }

    /// Sends SETTINGS with another `MAX_CONCURRENT_STREAMS`.
    pub(crate) fn change_streams(&self, max_streams: u32) {
        let mut state = self.shared.lock();
        state.max_streams = Some(max_streams);
        state.send_to_all(|_| settings(Some(max_streams)));
    }

    /// Sends a GOAWAY that covers every call so far: held ones go on, new ones do not begin here.
    pub(crate) fn go_away_gracefully(&self) {
        self.shared.lock().send_to_all(|connection| go_away(connection.newest));
    }

    /// Sends a GOAWAY that excludes the newest call of each connection, and forgets that call. Older ones go on.
    pub(crate) fn go_away_below_newest(&self) {
        let mut state = self.shared.lock();
        let State { connections, held, .. } = &mut *state;
        held.retain(|held| connections.iter().any(|known| known.id == held.connection && known.newest != held.stream));
        state.send_to_all(|connection| go_away(connection.newest.saturating_sub(2)));
    }

    /// Closes every connection without a GOAWAY: calls that were sent end by the end of file.
    pub(crate) fn hang_up(&self) {
        self.shared.hang_up();
    }
}

#[derive(Debug)]
struct Shared {
    address: SocketAddr,
    state: Mutex<State>,
    connections: Count,
    calls: Count,
    resets: Count,
}

#[derive(Debug)]
struct State {
    on_call: OnCall,
    max_streams: Option<u32>,
    connections: Vec<Connection>,
    held: VecDeque<Held>,
}

/// An open connection; without its sender it ends.
#[derive(Debug)]
struct Connection {
    id: usize,
    newest: u32,
    frames: mpsc::UnboundedSender<Vec<u8>>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Held {
    connection: usize,
    stream: u32,
}

impl State {
    fn send(&self, connection: usize, bytes: Vec<u8>) {
        if let Some(known) = self.connections.iter().find(|known| known.id == connection) {
            // The connection may have ended a moment ago.
            _ = known.frames.send(bytes);
        }
    }

    fn send_to_all(&self, bytes: impl Fn(&Connection) -> Vec<u8>) {
        for connection in &self.connections {
            _ = connection.frames.send(bytes(connection));
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connected(&self) -> (usize, mpsc::UnboundedReceiver<Vec<u8>>) {
        let (frames, queue) = mpsc::unbounded_channel();
        let mut state = self.lock();
        let id = self.connections.get();
        _ = frames.send(settings(state.max_streams));
        state.connections.push(Connection { id, newest: 0, frames });
        drop(state);
        self.connections.add_one();
        (id, queue)
    }

    fn hang_up(&self) {
        let mut state = self.lock();
        state.connections.clear();
        state.held.clear();
    }

    fn disconnected(&self, id: usize) {
        let mut state = self.lock();
        state.connections.retain(|connection| connection.id != id);
        state.held.retain(|held| held.connection != id);
    }

    fn received(&self, connection: usize, frame: &Frame) {
        match frame.kind {
            HEADERS => self.called(Held { connection, stream: frame.stream }),
            DATA if !frame.payload.is_empty() => {
                let size = u32::try_from(frame.payload.len()).expect("a frame is below 16 MiB").to_be_bytes();
                let mut both = encode(WINDOW_UPDATE, 0, 0, &size);
                both.extend(encode(WINDOW_UPDATE, 0, frame.stream, &size));
                self.lock().send(connection, both);
            }
            SETTINGS if frame.flags & ACK == 0 => self.lock().send(connection, encode(SETTINGS, ACK, 0, &[])),
            PING if frame.flags & ACK == 0 => self.lock().send(connection, encode(PING, ACK, 0, &frame.payload)),
            RST_STREAM => {
                self.lock().held.retain(|held| *held != Held { connection, stream: frame.stream });
                self.resets.add_one();
            }
            _ => {}
        }
    }

    fn called(&self, call: Held) {
        let mut state = self.lock();
        if let Some(known) = state.connections.iter_mut().find(|known| known.id == call.connection) {
            if call.stream <= known.newest {
                // The trailers of a request.
                return;
            }
            known.newest = call.stream;
        }
        match state.on_call {
            OnCall::Hold => state.held.push_back(call),
            OnCall::Answer => state.send(call.connection, answer(call.stream, self.address)),
            OnCall::Refuse => {
                state.send(call.connection, encode(RST_STREAM, 0, call.stream, &REFUSED_STREAM.to_be_bytes()));
            }
            OnCall::GoAwayBelow => state.send(call.connection, go_away(call.stream.saturating_sub(2))),
        }
        drop(state);
        self.calls.add_one();
    }
}

async fn serve(shared: Arc<Shared>, id: usize, frames: mpsc::UnboundedReceiver<Vec<u8>>, mut socket: TcpStream) {
    let (reader, writer) = socket.split();
    tokio::select! {
        () = read(&shared, id, reader) => {}
        () = write(frames, writer) => {}
    }
    shared.disconnected(id);
}

/// Ends with the client's end of the connection.
async fn read(shared: &Shared, id: usize, mut reader: ReadHalf<'_>) {
    let mut preface = [0; PREFACE.len()];
    if reader.read_exact(&mut preface).await.is_err() || preface != *PREFACE {
        return;
    }
    while let Some(frame) = Frame::read(&mut reader).await {
        shared.received(id, &frame);
    }
}

/// Ends when the connection is forgotten, after what was queued.
async fn write(mut frames: mpsc::UnboundedReceiver<Vec<u8>>, mut writer: WriteHalf<'_>) {
    while let Some(bytes) = frames.recv().await {
        if writer.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Frame {
    async fn read(reader: &mut ReadHalf<'_>) -> Option<Self> {
        let mut head = [0; 9];
        reader.read_exact(&mut head).await.ok()?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        reader.read_exact(&mut payload).await.ok()?;
        Some(Self { kind, flags, stream: u32::from_be_bytes(stream) & (u32::MAX >> 1), payload })
    }
}

fn encode(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).expect("a frame is below 16 MiB").to_be_bytes();
    let head = [size[1], size[2], size[3], kind, flags];
    [&head, stream.to_be_bytes().as_slice(), payload].concat()
}

fn settings(max_streams: Option<u32>) -> Vec<u8> {
    let mut payload = Vec::new();
    if let Some(max_streams) = max_streams {
        payload.extend(MAX_CONCURRENT_STREAMS.to_be_bytes());
        payload.extend(max_streams.to_be_bytes());
    }
    encode(SETTINGS, 0, 0, &payload)
}

/// With `NO_ERROR`.
fn go_away(last: u32) -> Vec<u8> {
    encode(GO_AWAY, 0, 0, &[last.to_be_bytes(), 0_u32.to_be_bytes()].concat())
}

/// A whole successful response: head, one message, trailers.
fn answer(stream: u32, address: SocketAddr) -> Vec<u8> {
    let reply = EchoReply { message: String::new(), address: address.to_string() }.encode_to_vec();
    let size = u32::try_from(reply.len()).expect("an address is short").to_be_bytes();
    let message = [[0].as_slice(), &size, &reply].concat();
    // HPACK: an indexed `:status: 200`, then literals without indexing and without Huffman coding.
    let head = [&[0x88], literal("content-type", "application/grpc").as_slice()].concat();
    let mut response = encode(HEADERS, END_HEADERS, stream, &head);
    response.extend(encode(DATA, 0, stream, &message));
    response.extend(encode(HEADERS, END_HEADERS | END_STREAM, stream, &literal("grpc-status", "0")));
    response
}

fn literal(name: &str, value: &str) -> Vec<u8> {
    let length = |text: &str| u8::try_from(text.len()).expect("the text is short");
    [&[0, length(name)], name.as_bytes(), &[length(value)], value.as_bytes()].concat()
}

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GO_AWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

const MAX_CONCURRENT_STREAMS: u16 = 3;
const REFUSED_STREAM: u32 = 7;
