//! What etcd counts about itself, read from its `/metrics` page.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::etcd::Etcd;

/// The watches that are open on this etcd.
pub async fn watchers(etcd: &Etcd) -> u64 {
    read(etcd, "etcd_debugging_mvcc_watcher_total").await
}

/// How many keepalives were answered.
pub async fn renewals(etcd: &Etcd) -> u64 {
    read(etcd, "etcd_debugging_lease_renewed_total").await
}

/// How many bytes of messages it has exchanged with its clients, in both directions.
pub async fn traffic(etcd: &Etcd) -> u64 {
    let (received, sent) =
        ("etcd_network_client_grpc_received_bytes_total", "etcd_network_client_grpc_sent_bytes_total");
    read(etcd, received).await + read(etcd, sent).await
}

/// How many streams of this kind of call were ever opened.
pub async fn started(etcd: &Etcd, method: &str) -> u64 {
    let line = page(etcd).await;
    let wanted = format!("grpc_method=\"{method}\"");
    let counter = |line: &&str| line.starts_with("grpc_server_started_total{") && line.contains(&wanted);
    line.lines().find(counter).map_or(0, value)
}

async fn read(etcd: &Etcd, metric: &str) -> u64 {
    let page = page(etcd).await;
    let line = page.lines().find(|line| line.split(' ').next() == Some(metric));
    line.map_or_else(|| panic!("etcd has a metric {metric}"), value)
}

fn value(line: &str) -> u64 {
    let value = line.rsplit(' ').next().unwrap_or_default();
    // Large ones are written as 1.234567e+06.
    let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line} ends in a count"));
    format!("{value:.0}").parse().unwrap_or_else(|_| panic!("{line} ends in a count"))
}

async fn page(etcd: &Etcd) -> String {
    let page = "etcd serves its metrics";
    let mut socket = TcpStream::connect(etcd.plain_address()).await.expect(page);
    socket.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.expect(page);
    let mut text = String::new();
    socket.read_to_string(&mut text).await.expect(page);
    text
}
