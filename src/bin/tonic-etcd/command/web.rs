//! The registry on a page in browsers, until ctrl-c.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic_etcd::{Registry, ServiceName, shutdown_signal};

use crate::failure::{Failure, failed, refused};
use crate::print::Output;
use crate::services::Services;
use crate::web::board::Board;
use crate::web::guard::Guard;
use crate::web::hub::Hub;
use crate::web::route::Site;
use crate::web::{feed, figures, server};

/// What is shown, where, and to which browsers.
#[derive(Args)]
pub(crate) struct Flags {
    /// The services that are shown [default: all]
    #[arg(value_name = "SERVICE")]
    services: Vec<ServiceName>,

    /// Where the page is served; port 0 takes a free one
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,

    /// Lets --listen take an address that other machines reach: everyone there sees the registry, without a password
    #[arg(long)]
    allow_remote: bool,

    /// A name under which browsers reach the page, besides localhost and IP addresses; may be repeated
    #[arg(long, value_name = "NAME")]
    allow_host: Vec<String>,

    /// Puts a button on the page that asks a server to leave, as `drain` does, for those that open the address that is
    /// printed then: it ends with a secret
    #[arg(long)]
    allow_drain: bool,

    /// A JSON file of figures that the page shows besides, read every second
    #[arg(long, value_name = "FILE")]
    figures: Option<PathBuf>,
}

pub(crate) async fn run(registry: Registry, shown: String, flags: Flags, output: Output) -> Result<(), Failure> {
    let Flags { services: wanted, listen, allow_remote, allow_host, allow_drain, figures } = flags;
    if !listen.ip().to_canonical().is_loopback() {
        if !allow_remote {
            return Err(refused(format!(
                "{listen} can be reached from other machines: add --allow-remote if it shall be"
            )));
        }
        tracing::warn!(%listen, may_drain = allow_drain, "every machine that reaches this address may use the page");
    }
    // Handled from here on: a signal just after the line that says it listens ends it in order.
    let shutdown = shutdown_signal();
    let guard = Guard::new(allow_host)?;
    // What is refused here is refused before it says that it listens.
    let services = Services::snapshots(&registry, &wanted)?;
    let listener =
        TcpListener::bind(listen).await.map_err(|error| failed(format!("cannot listen on {listen}: {error}")))?;
    // Browsers keep what follows the # to themselves: it stands in no request, where another account might read it.
    let token = if allow_drain { format!("#{}", guard.token()) } else { String::new() };
    output.listening(&format!("http://{}/{token}", listener.local_addr()?))?;

    let hub = Arc::new(Hub::new(Board::new(env!("CARGO_PKG_VERSION"), shown, allow_drain)));
    let site = Arc::new(Site::new(hub.clone(), guard, registry.clone(), allow_drain, output));
    let end = CancellationToken::new();
    let followed = async {
        let ended = tokio::select! {
            ended = feed::follow(services, &wanted, &hub) => ended,
            () = follow_figures(figures, &hub) => Ok(()),
            () = shutdown => Ok(()),
        };
        end.cancel();
        ended
    };
    let (ended, ()) = tokio::join!(followed, server::serve(listener, site, end.clone()));
    ended
}

async fn follow_figures(file: Option<PathBuf>, hub: &Hub) {
    match file {
        Some(file) => figures::follow(&file, hub).await,
        None => std::future::pending().await,
    }
}
