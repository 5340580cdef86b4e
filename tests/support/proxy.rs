//! A TCP proxy on the loopback interface: bytes pass through it until the test says otherwise.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

/// A proxy in front of one address.
///
/// It forwards until one of its methods switches it; a switch holds for existing and for new
/// connections alike. Dropping it resets its connections and closes its port.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    target: Arc<Mutex<String>>,
    mode: watch::Sender<Mode>,
    count: Arc<Count>,
}

impl Proxy {
    /// Listens on a free port, and dials `target` (`host:port`) anew for each connection.
    pub async fn start(target: impl Into<String>) -> Self {
        Self::start_any(target.into(), false).await
    }

    /// Starts a proxy between members of an etcd cluster, which knows the member behind each connection.
    pub async fn start_between_members(target: impl Into<String>) -> Self {
        Self::start_any(target.into(), true).await
    }

    async fn start_any(target: String, between_members: bool) -> Self {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("the loopback interface has a free port");
        let address = listener.local_addr().expect("a listener has an address");
        let (mode, changes) = watch::channel(Mode::Forward);
        let (count, target) = (Arc::new(Count::default()), Arc::new(Mutex::new(target)));
        tokio::spawn(accept(listener, target.clone(), between_members, changes, count.clone()));
        Self { address, target, mode, count }
    }

    /// Where the proxy listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address as an `http` URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Dials another target for each connection from now on, as a name does that resolves to another address.
    pub fn lead_to(&self, target: impl Into<String>) {
        *self.target.lock().unwrap_or_else(PoisonError::into_inner) = target.into();
    }

    /// Passes everything on at once. What a black hole held back arrives now, as it does when a
    /// broken network heals.
    pub fn forward(&self) {
        self.mode.send_replace(Mode::Forward);
    }

    /// Keeps every connection open and accepts new ones, and lets nothing through in either
    /// direction: no byte, and no end of a connection.
    pub fn black_hole(&self) {
        self.mode.send_replace(Mode::BlackHole);
    }

    /// Like a black hole, for the connections of now alone: new ones pass, as where something between has forgotten the
    /// old ones.
    pub fn strand(&self) {
        self.mode.send_replace(Mode::Strand(self.accepted()));
    }

    /// Like a black hole, for what comes from this member of the cluster and what goes to it.
    ///
    /// # Panics
    ///
    /// If the proxy does not stand between members.
    pub fn black_hole_from(&self, member: u64) {
        self.mode.send_replace(Mode::BlackHoleFrom(member));
    }

    /// Resets every connection, and each new one as soon as it is accepted.
    pub fn reset(&self) {
        self.mode.send_replace(Mode::Reset);
    }

    /// Passes what comes from the server on `delay` after it came, as from a server that is slow to answer: its answers
    /// to HTTP/2 pings, and what else belongs to no stream, pass at once. Zero ends it, and what was held back still
    /// leaves in its turn.
    pub fn delay(&self, delay: Duration) {
        self.mode.send_replace(if delay.is_zero() { Mode::Forward } else { Mode::Delay(delay) });
    }

    /// How many connections were accepted so far.
    pub fn accepted(&self) -> usize {
        self.count.accepted.load(Ordering::SeqCst)
    }

    /// How many of them are open now.
    pub fn open(&self) -> usize {
        self.count.open.load(Ordering::SeqCst)
    }
}

/// What happens to bytes and connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Bytes pass.
    Forward,
    /// Bytes wait until the mode changes.
    BlackHole,
    /// Bytes on connections of this member wait until the mode changes.
    BlackHoleFrom(u64),
    /// Bytes on the first connections, so many of them, wait until the mode changes.
    Strand(usize),
    /// No connection lives.
    Reset,
    /// Bytes from the server pass later.
    Delay(Duration),
}

#[derive(Debug, Default)]
struct Count {
    accepted: AtomicUsize,
    open: AtomicUsize,
}

/// Runs until the proxy is dropped.
async fn accept(
    listener: TcpListener,
    target: Arc<Mutex<String>>,
    between_members: bool,
    mode: watch::Receiver<Mode>,
    count: Arc<Count>,
) {
    let mut proxy = mode.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = proxy.wait_for(|_| false) => return,
        };
        let (client, _) = accepted.expect("the proxy accepts connections");
        let number = count.accepted.fetch_add(1, Ordering::SeqCst) + 1;
        count.open.fetch_add(1, Ordering::SeqCst);
        let target = target.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (mode, count) = (mode.clone(), count.clone());
        tokio::spawn(async move {
            let member = if between_members { member_in(&client).await } else { None };
            carry(client, &target, &Gate { mode, member, number }).await;
            count.open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

/// The member that dials: its id is in the head of its first request.
async fn member_in(client: &TcpStream) -> Option<u64> {
    let mut head = [0; 4096];
    loop {
        let length = client.peek(&mut head).await.ok().filter(|length| *length > 0)?;
        let text = String::from_utf8_lossy(&head[..length]).to_lowercase();
        if let Some((head, _)) = text.split_once("\r\n\r\n") {
            let line = head.lines().find_map(|line| line.strip_prefix("x-server-from:"))?;
            return u64::from_str_radix(line.trim(), 16).ok();
        }
        // It has come in part, and peeking does not wait for more.
        sleep_until(Instant::now() + Duration::from_millis(1)).await;
    }
}

/// What one connection obeys.
#[derive(Clone)]
struct Gate {
    mode: watch::Receiver<Mode>,
    member: Option<u64>,
    /// Counted from 1 in the order in which connections are accepted.
    number: usize,
}

impl Gate {
    fn holds_back(&self, mode: Mode) -> bool {
        match mode {
            Mode::BlackHole => true,
            Mode::BlackHoleFrom(member) => self.member == Some(member),
            Mode::Strand(first) => self.number <= first,
            _ => false,
        }
    }

    /// Waits for the end of a black hole.
    async fn passable(&self) {
        _ = self.mode.clone().wait_for(|mode| !self.holds_back(*mode)).await;
    }
}

/// One connection, from its first byte to its end.
async fn carry(mut client: TcpStream, target: &str, gate: &Gate) {
    let dialled = tokio::select! {
        biased;
        error = torn(gate) => Err(error),
        dialled = dial(target, gate) => dialled,
    };
    let Ok(mut server) = dialled else {
        reset_on_close(&client);
        return;
    };

    let ended = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        tokio::select! {
            biased;
            error = torn(gate) => Err(error),
            ended = async {
                tokio::try_join!(
                    pump(from_client, to_server, gate),
                    pump_answers(from_server, to_client, gate),
                )
            } => ended,
        }
    };
    if ended.is_err() {
        reset_on_close(&client);
        reset_on_close(&server);
    }
}

/// Resolves when connections must not live: the mode says so, or the proxy is gone.
async fn torn(gate: &Gate) -> io::Error {
    _ = gate.mode.clone().wait_for(|mode| *mode == Mode::Reset).await;
    io::ErrorKind::ConnectionReset.into()
}

async fn dial(target: &str, gate: &Gate) -> io::Result<TcpStream> {
    gate.passable().await;
    let server = TcpStream::connect(target).await?;
    server.set_nodelay(true)?;
    Ok(server)
}

/// Carries what comes from the client.
async fn pump(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, gate: &Gate) -> io::Result<()> {
    let (queue, mut queued) = mpsc::channel::<Vec<u8>>(QUEUE);
    let collect = async {
        let mut buffer = vec![0; CHUNK];
        loop {
            let length = read(&mut from, &mut buffer, gate).await?;
            if length == 0 || queue.send(buffer[..length].to_vec()).await.is_err() {
                break;
            }
        }
        drop(queue);
        Ok(())
    };
    let deliver = async {
        while let Some(chunk) = queued.recv().await {
            gate.passable().await;
            to.write_all(&chunk).await?;
        }
        gate.passable().await;
        to.shutdown().await
    };
    tokio::try_join!(collect, deliver)?;
    Ok(())
}

/// Carries what comes from the server: each piece is stamped with the time at which it may leave.
async fn pump_answers(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, gate: &Gate) -> io::Result<()> {
    let (at_once, mut prompt) = mpsc::channel::<Vec<u8>>(QUEUE);
    let (later, mut delayed) = mpsc::channel::<(Instant, Vec<u8>)>(FRAMES);
    let collect = async {
        let (mut buffer, mut pieces) = (vec![0; CHUNK], Pieces::default());
        loop {
            let length = read(&mut from, &mut buffer, gate).await?;
            if length == 0 {
                break;
            }
            pieces.rest.extend_from_slice(&buffer[..length]);
            while let Some((piece, is_prompt)) = pieces.next() {
                let delay = match *gate.mode.borrow() {
                    Mode::Delay(delay) => delay,
                    _ => Duration::ZERO,
                };
                let sent = if is_prompt {
                    at_once.send(piece).await.is_ok()
                } else {
                    later.send((Instant::now() + delay, piece)).await.is_ok()
                };
                if !sent {
                    return Ok(());
                }
            }
        }
        drop((at_once, later));
        Ok(())
    };
    let deliver = async {
        let mut held: Option<(Instant, Vec<u8>)> = None;
        loop {
            let leaves = held.as_ref().map_or_else(Instant::now, |(leaves, _)| *leaves);
            let piece = tokio::select! {
                biased;
                Some(piece) = prompt.recv() => piece,
                () = sleep_until(leaves), if held.is_some() => held.take().expect("it was looked at").1,
                Some(next) = delayed.recv(), if held.is_none() => {
                    held = Some(next);
                    continue;
                }
                else => break,
            };
            gate.passable().await;
            to.write_all(&piece).await?;
        }
        gate.passable().await;
        to.shutdown().await
    };
    tokio::try_join!(collect, deliver)?;
    Ok(())
}

/// What came from the server, cut into the frames of HTTP/2, or not at all if it is none.
#[derive(Default)]
struct Pieces {
    rest: Vec<u8>,
    /// Whether it began as HTTP/2 does, with the head of a short SETTINGS frame.
    is_http2: Option<bool>,
}

impl Pieces {
    /// The next whole frame, and whether it belongs to no stream.
    fn next(&mut self) -> Option<(Vec<u8>, bool)> {
        const HEAD: usize = 9;
        let first = *self.rest.first()?;
        if !*self.is_http2.get_or_insert(first == 0) {
            return Some((std::mem::take(&mut self.rest), false));
        }
        let head = self.rest.get(..HEAD)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let is_of_connection = head[5..HEAD].iter().all(|byte| *byte == 0);
        let end = HEAD + usize::try_from(length).expect("a frame is short");
        if self.rest.len() < end {
            return None;
        }
        let rest = self.rest.split_off(end);
        Some((std::mem::replace(&mut self.rest, rest), is_of_connection))
    }
}

/// Reads some bytes; none at the end. In a black hole an error does not show.
async fn read(from: &mut ReadHalf<'_>, buffer: &mut [u8], gate: &Gate) -> io::Result<usize> {
    match from.read(buffer).await {
        Ok(length) => Ok(length),
        Err(error) => {
            gate.passable().await;
            Err(error)
        }
    }
}

/// Lets `stream` end with a RST when it is dropped. Fails only where it has ended already.
fn reset_on_close(stream: &TcpStream) {
    _ = stream.set_zero_linger();
}

/// Bytes read at once.
const CHUNK: usize = 16 * 1024;

/// Chunks on their way in one direction; the sender feels back-pressure beyond.
const QUEUE: usize = 64;

/// Frames that are held back on one connection, at most.
const FRAMES: usize = 4096;
