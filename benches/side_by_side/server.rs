//! The servers' process: echo servers on free ports, their addresses on standard output, orders on standard input.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::stream::{BoxStream, StreamExt, TryStreamExt};
use tokio::sync::mpsc::channel;
use tokio::time::sleep;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use crate::load::ITEM;
use crate::proto::echo::echo_server::{Echo, EchoServer};
use crate::proto::echo::{EchoReply, EchoRequest};

/// What the process prints when an order has been carried out.
pub(crate) const DONE: &str = "done";

/// Starts `count` servers and prints their addresses as a JSON array on one line. Then obeys
/// `delay INDEX MILLISECONDS`, a line each, until standard input ends: no server outlives the process that started it.
///
/// # Panics
///
/// If the loopback interface has no free port, or an order is not understood.
pub(crate) async fn serve(count: usize) {
    let servers: Vec<Answers> = (0..count).map(|_| start()).collect();
    let addresses: Vec<SocketAddr> = servers.iter().map(|server| server.address).collect();
    println!("{}", serde_json::to_string(&addresses).expect("addresses are plain JSON"));

    let obey = move || {
        for order in io::stdin().lines().map_while(Result::ok) {
            let words: Vec<&str> = order.split(' ').collect();
            let ["delay", index, milliseconds] = words[..] else { panic!("not understood: {order}") };
            let index: usize = index.parse().expect("a server's index");
            servers[index].delay.store(milliseconds.parse().expect("milliseconds"), Ordering::Relaxed);
            println!("{DONE}");
        }
    };
    tokio::task::spawn_blocking(obey).await.expect("orders are understood");
}

fn start() -> Answers {
    let incoming = TcpIncoming::bind((Ipv4Addr::LOCALHOST, 0).into()).expect("the loopback interface has a free port");
    let address = incoming.local_addr().expect("a listener has an address");
    let answers = Answers { address, text: address.to_string().into(), delay: Arc::default() };
    let service = EchoServer::new(answers.clone());
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming.with_nodelay(Some(true))));
    answers
}

#[derive(Debug, Clone)]
struct Answers {
    address: SocketAddr,
    text: Arc<str>,
    /// In milliseconds.
    delay: Arc<AtomicU64>,
}

impl Answers {
    async fn begin(&self) {
        let delay = self.delay.load(Ordering::Relaxed);
        if delay > 0 {
            sleep(Duration::from_millis(delay)).await;
        }
    }

    fn reply(&self, request: EchoRequest) -> EchoReply {
        EchoReply { message: request.message, address: self.text.to_string() }
    }
}

#[tonic::async_trait]
impl Echo for Answers {
    type ServerStreamingEchoStream = BoxStream<'static, Result<EchoReply, Status>>;
    type BidirectionalStreamingEchoStream = BoxStream<'static, Result<EchoReply, Status>>;

    async fn unary_echo(&self, request: Request<EchoRequest>) -> Result<Response<EchoReply>, Status> {
        self.begin().await;
        Ok(Response::new(self.reply(request.into_inner())))
    }

    async fn server_streaming_echo(
        &self,
        request: Request<EchoRequest>,
    ) -> Result<Response<Self::ServerStreamingEchoStream>, Status> {
        let count = request.into_inner().message.parse();
        let count: usize = count.map_err(|_| Status::invalid_argument("a number of replies is asked for"))?;
        let (replies, items) = channel(AHEAD);
        tokio::spawn(async move {
            let reply = EchoReply { message: "x".repeat(ITEM), address: String::new() };
            for _ in 0..count {
                if replies.send(Ok(reply.clone())).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(items).boxed()))
    }

    async fn client_streaming_echo(
        &self,
        request: Request<Streaming<EchoRequest>>,
    ) -> Result<Response<EchoReply>, Status> {
        let count = request.into_inner().try_fold(0_usize, |count, _| async move { Ok(count + 1) }).await?;
        Ok(Response::new(self.reply(EchoRequest { message: count.to_string() })))
    }

    async fn bidirectional_streaming_echo(
        &self,
        request: Request<Streaming<EchoRequest>>,
    ) -> Result<Response<Self::BidirectionalStreamingEchoStream>, Status> {
        let answers = self.clone();
        Ok(Response::new(request.into_inner().map_ok(move |request| answers.reply(request)).boxed()))
    }
}

/// How many replies of a stream are made before the first of them is sent.
const AHEAD: usize = 16;
