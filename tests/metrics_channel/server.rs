//! An HTTP/2 server by hand, which answers calls and ends connections as a test asks for.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Response};
use prost::Message;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;
use tokio::task::JoinHandle;
use tonic::Code;
use tonic_etcd::Instance;

use crate::proto::echo::EchoReply;

/// A server on a port of its own, until it is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    address: SocketAddr,
    answers: Arc<Mutex<Answers>>,
    commands: broadcast::Sender<Command>,
    task: JoinHandle<()>,
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Answer {
    /// A message, and OK.
    Reply,
    /// A status alone.
    Status(Code),
    /// A message, and a status.
    Ends(Code),
    /// A message, and then nothing.
    Begins,
    /// Nothing.
    Hangs,
    /// `REFUSED_STREAM`
    Refused,
}

/// What becomes of the connections.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Command {
    /// They are reset, as by a process that was killed with data unread.
    Reset,
    /// They are closed without a word.
    Close,
    /// They end with this GOAWAY.
    GoAway(Reason),
}

#[derive(Debug)]
struct Answers {
    next: VecDeque<Answer>,
    usual: Answer,
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::with_streams(100)
    }

    /// It takes so many calls at once.
    pub(crate) fn with_streams(limit: u32) -> Self {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let answers = Arc::new(Mutex::new(Answers { next: VecDeque::new(), usual: Answer::Reply }));
        let (commands, _) = broadcast::channel(8);
        let task = tokio::spawn(accept(listener, limit, answers.clone(), commands.clone()));
        Self { address, answers, commands, task }
    }

    pub(crate) fn instance(&self) -> Instance {
        Instance::new("echo", self.address)
    }

    /// The next calls get these answers.
    pub(crate) fn next(&self, answers: impl IntoIterator<Item = Answer>) {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).next.extend(answers);
    }

    /// All others get this one.
    pub(crate) fn usually(&self, answer: Answer) {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).usual = answer;
    }

    pub(crate) fn command(&self, command: Command) {
        self.commands.send(command).expect("there is a connection");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(
    listener: std::net::TcpListener,
    limit: u32,
    answers: Arc<Mutex<Answers>>,
    commands: broadcast::Sender<Command>,
) {
    listener.set_nonblocking(true).expect("a socket takes options");
    let listener = TcpListener::from_std(listener).expect("a listener");
    while let Ok((socket, _)) = listener.accept().await {
        tokio::spawn(serve(socket, limit, answers.clone(), commands.subscribe()));
    }
}

/// Ends with an error where the client ends the connection.
async fn serve(
    socket: TcpStream,
    limit: u32,
    answers: Arc<Mutex<Answers>>,
    mut commands: broadcast::Receiver<Command>,
) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let socket = socket.into_std()?;
    let twin = socket.try_clone()?;
    let socket = TcpStream::from_std(socket)?;
    let handshake = Builder::new().max_concurrent_streams(limit).handshake::<_, Bytes>(socket);
    let mut connection = handshake.await.map_err(io::Error::other)?;
    let mut held = Vec::new();
    loop {
        tokio::select! {
            call = connection.accept() => {
                let Some(call) = call else { return Ok(()) };
                let (request, respond) = call.map_err(io::Error::other)?;
                let answer = {
                    let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
                    answers.next.pop_front().unwrap_or(answers.usual)
                };
                held.extend(respond_with(answer, request.into_body(), respond).map_err(io::Error::other)?);
            }
            Ok(command) = commands.recv() => match command {
                Command::Reset => {
                    SockRef::from(&twin).set_linger(Some(Duration::ZERO))?;
                    return Ok(());
                }
                Command::Close => return Ok(()),
                Command::GoAway(reason) => connection.abrupt_shutdown(reason),
            },
        }
    }
}

/// What has to be kept for the call to stay open.
type Held = (RecvStream, SendResponse<Bytes>, Option<SendStream<Bytes>>);

fn respond_with(
    answer: Answer,
    request: RecvStream,
    mut respond: SendResponse<Bytes>,
) -> Result<Option<Held>, h2::Error> {
    let mut head = Response::new(());
    head.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    let code = match answer {
        Answer::Hangs => return Ok(Some((request, respond, None))),
        Answer::Refused => {
            respond.send_reset(Reason::REFUSED_STREAM);
            return Ok(None);
        }
        Answer::Status(code) => {
            head.headers_mut().insert("grpc-status", i32::from(code).into());
            respond.send_response(head, true)?;
            return Ok(None);
        }
        Answer::Begins => None,
        Answer::Reply => Some(Code::Ok),
        Answer::Ends(code) => Some(code),
    };
    let mut stream = respond.send_response(head, false)?;
    stream.send_data(message(), false)?;
    let Some(code) = code else { return Ok(Some((request, respond, Some(stream)))) };
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", i32::from(code).into());
    stream.send_trailers(trailers)?;
    Ok(None)
}

/// A reply behind its length.
fn message() -> Bytes {
    let reply = EchoReply { message: "x".to_owned(), address: String::new() }.encode_to_vec();
    let mut message = BytesMut::new();
    message.put_u8(0);
    message.put_u32(u32::try_from(reply.len()).expect("a short one"));
    message.put_slice(&reply);
    message.freeze()
}
