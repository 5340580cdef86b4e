//! A tonic server in one call: its three places in the registration cannot be forgotten.

use std::pin::pin;
use std::task::Poll;

use bytes::Bytes;
use futures_util::future::select;
use futures_util::stream::{self, Stream, StreamExt};
use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tonic::body::Body;
use tonic::transport::server::Connected;
use tonic::transport::{Error, Server};
use tower::{Layer, Service};

use super::registration::Registration;
use super::server::DrainService;
use super::set::RegistrationSet;
use crate::error::BoxError;

/// Connections, and what resolves when there will be no other.
fn until_exhausted<I, T>(connections: I) -> (impl Stream<Item = T>, oneshot::Receiver<()>)
where
    I: Stream<Item = T>,
{
    let (held, exhausted) = oneshot::channel::<()>();
    let mut held = Some(held);
    let end = stream::poll_fn(move |_| {
        drop(held.take());
        Poll::Ready(None)
    });
    (connections.chain(end), exhausted)
}

/// The same for one registration and for several: of the three places, none can be forgotten.
macro_rules! serves {
    ($handle:ty) => {
        impl $handle {
            /// Serves until `signal`, or until no connection can come any more, then leaves and shuts down: tonic's
            /// `serve_with_incoming_shutdown` with [`layer`](Self::layer), [`incoming`](Self::incoming) and
            /// [`deregister_on`](Self::deregister_on) in their places.
            ///
            /// `service` is what a generated server is, or several of them as [`Routes`](tonic::service::Routes).
            /// Options of tonic's server, and layers of your own, go to [`serve_with`](Self::serve_with).
            ///
            /// ```no_run
            /// use tonic::transport::server::TcpIncoming;
            /// use tonic_etcd::{Instance, Registry, shutdown_signal};
            ///
            /// # async fn example(service: tonic::service::Routes) -> Result<(), Box<dyn std::error::Error>> {
            /// let registry = Registry::builder(["http://127.0.0.1:2379"]).build()?;
            /// let incoming = TcpIncoming::bind("0.0.0.0:50051".parse()?)?;
            /// let registration = registry.registration(Instance::new("echo", incoming.local_addr()?)).build()?;
            /// // One service is EchoServer::new(Echo), two are Routes::new(EchoServer::new(Echo)).add_service(health).prepare().
            /// registration.serve(service, incoming, shutdown_signal()).await?;
            /// # Ok(())
            /// # }
            /// ```
            ///
            /// When it returns, the registration has ended.
            ///
            /// # Errors
            ///
            /// As tonic's: what the server or its connections failed with.
            ///
            /// # Panics
            ///
            /// Outside of a tokio runtime.
            ///
            /// # Cancel safety
            ///
            /// Dropped, it stops serving at once, without a shutdown, as tonic's does. The registration ends with its
            /// last handle.
            pub fn serve<S, B, I, IO, E, F>(
                &self,
                service: S,
                incoming: I,
                signal: F,
            ) -> impl Future<Output = Result<(), Error>> + use<S, B, I, IO, E, F>
            where
                S: Service<Request<Body>, Response = Response<B>, Future: Send, Error: Into<BoxError> + Send>,
                S: Clone + Send + 'static,
                B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
                I: Stream<Item = Result<IO, E>>,
                IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
                E: Into<BoxError>,
                F: Future<Output = ()> + Send,
            {
                self.serve_with(Server::builder(), service, incoming, signal)
            }

            /// Like [`serve`](Self::serve), with a server of tonic's that has options and layers: timeouts, TLS,
            /// limits.
            ///
            /// Its layers are around the registration's: calls that they hold back are not counted, and not answered at
            /// the drain limit.
            ///
            /// When it returns, the registration has ended.
            ///
            /// # Errors
            ///
            /// As tonic's: what the server or its connections failed with.
            ///
            /// # Panics
            ///
            /// Outside of a tokio runtime.
            ///
            /// # Cancel safety
            ///
            /// As [`serve`](Self::serve).
            pub fn serve_with<L, S, B, C, I, IO, E, F>(
                &self,
                server: Server<L>,
                service: S,
                incoming: I,
                signal: F,
            ) -> impl Future<Output = Result<(), Error>> + use<L, S, B, C, I, IO, E, F>
            where
                L: Layer<DrainService<S>>,
                L::Service: Service<Request<Body>, Response = Response<C>, Future: Send, Error: Into<BoxError> + Send>,
                L::Service: Clone + Send + 'static,
                C: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
                S: Service<Request<Body>, Response = Response<B>>,
                I: Stream<Item = Result<IO, E>>,
                IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
                E: Into<BoxError>,
                F: Future<Output = ()> + Send,
            {
                let this = self.clone();
                async move {
                    let (incoming, exhausted) = until_exhausted(incoming);
                    let signal = async { drop(select(pin!(signal), exhausted).await) };
                    let (incoming, signal) = (this.incoming(incoming), this.deregister_on(signal));
                    let served =
                        server.layer(this.layer()).serve_with_incoming_shutdown(service, incoming, signal).await;
                    // It may have failed.
                    this.deregister_all().await;
                    served
                }
            }
        }
    };
}

serves!(Registration);
serves!(RegistrationSet);
