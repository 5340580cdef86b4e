use std::sync::Arc;
use std::time::Duration;
use bytes::Bytes;
use http::uri::Scheme;
use hyper::client::conn::http2::SendRequest;
use crate::instance::Address;
type BoxError = Box<dyn std::error::Error + Send + Sync>;
#[derive(Debug, Clone, Default)]
pub(super) struct Connector;
impl Connector { pub(super) fn new<C>(_c: C) -> Self { Self } }
#[derive(Debug, Clone)]
pub(super) struct Options {
    pub(super) connect_timeout: Duration, pub(super) tcp_nodelay: bool, pub(super) tcp_keepalive: Option<Duration>,
    pub(super) http2_keep_alive_interval: Option<Duration>, pub(super) keep_alive_timeout: Duration, pub(super) keep_alive_while_idle: bool,
    pub(super) initial_stream_window_size: Option<u32>, pub(super) initial_connection_window_size: Option<u32>, pub(super) http2_adaptive_window: Option<bool>,
    pub(super) http2_max_header_list_size: Option<u32>, pub(super) connector: Option<Connector>,
    #[cfg(feature = "tls-ring")] pub(super) tls: Option<super::tls::ChannelTls>,
}
impl Default for Options { fn default() -> Self { Self { connect_timeout: Duration::from_secs(1), tcp_nodelay: true, tcp_keepalive: None, http2_keep_alive_interval: None, keep_alive_timeout: Duration::from_secs(5), keep_alive_while_idle: false,
  initial_stream_window_size: None, initial_connection_window_size: None, http2_adaptive_window: None, http2_max_header_list_size: None, connector: None, #[cfg(feature = "tls-ring")] tls: None } } }
#[derive(Debug, thiserror::Error)] #[error("{0}")]
pub(super) struct ConnectError(String);
impl ConnectError { pub(super) fn describe(&self) -> String { self.0.clone() } }
pub(super) struct Connection<B> { pub(super) send: SendRequest<B>, pub(super) streams: u32, pub(super) driver: ConnectionDriver }
pub(super) struct ConnectionDriver(std::pin::Pin<Box<dyn Future<Output = Result<(), hyper::Error>> + Send>>);
pub(super) trait Watcher: Send + Sync + 'static { fn streams(&self, limit: u32); fn going_away(&self); }
#[derive(Clone)] pub(super) struct Cutter;
impl Cutter { pub(super) fn cut(&self) {} }
impl ConnectionDriver { pub(super) fn cutter(&self) -> Cutter { Cutter } pub(super) async fn run(self, _w: impl Watcher) -> String { match self.0.await { Ok(()) => "closed".into(), Err(e) => e.to_string() } } }
impl Options {
    pub(super) fn scheme(&self) -> Scheme { Scheme::HTTP }
    pub(super) async fn connect<B>(self: Arc<Self>, address: &Address) -> Result<Connection<B>, ConnectError>
    where B: http_body::Body<Data = Bytes> + Send + Unpin + 'static, B::Error: Into<BoxError> {
        let e = |e: &dyn std::fmt::Display| ConnectError(format!("{address}: {e}"));
        let io = tokio::net::TcpStream::connect(address.to_string()).await.map_err(|x| e(&x))?;
        io.set_nodelay(true).map_err(|x| e(&x))?;
        let (send, conn) = hyper::client::conn::http2::Builder::new(super::executor::Executor).handshake(hyper_util::rt::TokioIo::new(io)).await.map_err(|x| e(&x))?;
        Ok(Connection { send, streams: u32::MAX, driver: ConnectionDriver(Box::pin(conn)) })
    }
}
