//! What etcds were asked for and what this process used, between two moments.
//!
//! ```text
//! let before = Costs::of(&cluster).await;
//! // .. what is weighed ..
//! let spent = before.until_now().await;
//! assert!(spent.calls("Range") <= 2, "a watch lists once: {spent:?}");
//! ```
//!
//! Everything but the connections is read from etcd's own `/metrics` page; all that is read here has one name in etcd
//! 3.4 to 3.7. No such page tells how many clients are connected: that is read from the kernel, and absent outside of
//! Linux. What the rig itself asks (`Etcd::put`, `Etcd::keys`) is counted like the rest.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::etcd::{Cluster, Etcd};
use super::process::{cpu_of, memory_of};
use super::{LIMIT, eventually};

/// A reading of one etcd, or of several members.
///
/// What only grows (calls, bytes, CPU time) counts from the start of each etcd, or, after
/// [`until_now`](Self::until_now), from the reading before; where a member was restarted meanwhile, from its restart.
/// What goes up and down (watches, connections, memory) is as it was at the reading.
#[derive(Clone)]
pub struct Costs {
    members: Vec<Reading>,
    /// CPU time of this process.
    own_cpu: Option<Duration>,
    own_memory: u64,
}

impl Costs {
    /// Reads an [`Etcd`], all members of a [`Cluster`], or the etcds of an array.
    ///
    /// # Panics
    ///
    /// If one of them does not serve its metrics within [`LIMIT`].
    pub async fn of(etcds: &impl Members) -> Self {
        let mut members = Vec::new();
        for etcd in etcds.members() {
            members.push(Reading::of(Source::of(etcd)).await);
        }
        Self { members, own_cpu: cpu_of("self"), own_memory: memory_of("self").0 }
    }

    /// Reads the same etcds again: what was spent since this reading.
    ///
    /// # Panics
    ///
    /// If one of them does not serve its metrics.
    pub async fn until_now(&self) -> Self {
        let mut members = Vec::new();
        for then in &self.members {
            let mut now = Reading::of(then.source.clone()).await;
            now.then = then.page.clone();
            members.push(now);
        }
        let own_cpu = cpu_of("self").zip(self.own_cpu).map(|(now, then)| now.saturating_sub(then));
        Self { members, own_cpu, own_memory: memory_of("self").0 }
    }

    /// How many calls of this method were begun, a stream counting as one: `Range`, `Watch`, `Authenticate`.
    pub fn calls(&self, method: &str) -> u64 {
        // gRPC's own service for health has a Watch, too.
        let label = format!("grpc_method=\"{method}\",grpc_service=\"etcdserverpb.");
        self.counted(|member| member.counter("grpc_server_started_total", &label))
    }

    /// How many messages came in: one a call, and each one in a stream (a watch or its end, a question for progress,
    /// a keepalive).
    pub fn requests(&self) -> u64 {
        self.counted(|member| member.counter("grpc_server_msg_received_total", ""))
    }

    /// How many keepalives were answered; the leader counts them, whichever member was asked.
    pub fn renewals(&self) -> u64 {
        self.counted(|member| member.counter("etcd_debugging_lease_renewed_total", ""))
    }

    /// How many bytes of messages were exchanged with clients, in both directions.
    pub fn bytes(&self) -> u64 {
        let of = |direction| format!("etcd_network_client_grpc_{direction}_bytes_total");
        self.counted(|member| member.counter(&of("received"), "") + member.counter(&of("sent"), ""))
    }

    /// CPU time of the etcds.
    pub fn cpu(&self) -> Duration {
        let seconds = |member: &Reading| member.counter("process_cpu_seconds_total", "");
        Duration::from_secs_f64(self.members.iter().map(seconds).sum())
    }

    /// How many watches are open.
    pub fn watchers(&self) -> u64 {
        self.counted(|member| member.gauge("etcd_debugging_mvcc_watcher_total"))
    }

    /// How many streams carry them.
    pub fn watch_streams(&self) -> u64 {
        self.counted(|member| member.gauge("etcd_debugging_mvcc_watch_stream_total"))
    }

    /// How many connections of clients are open, etcd's own to itself among them; `None` where the kernel does not
    /// tell.
    pub fn connections(&self) -> Option<u64> {
        self.members.iter().map(|member| member.connections).sum()
    }

    /// How many entries of its log an etcd has committed and not applied yet, where it has most of them. From 5,000 on
    /// it refuses requests as too many.
    pub fn backlog(&self) -> u64 {
        let entries = |member: &Reading| {
            let applied = member.gauge("etcd_server_proposals_applied_total");
            whole((member.gauge("etcd_server_proposals_committed_total") - applied).max(0.0))
        };
        self.members.iter().map(entries).max().unwrap_or_default()
    }

    /// Resident memory of the etcds, in bytes; 0 where the system does not report it.
    pub fn memory(&self) -> u64 {
        self.counted(|member| member.page.sum("process_resident_memory_bytes", ""))
    }

    /// CPU time of this process; `None` where the system does not report it.
    pub fn own_cpu(&self) -> Option<Duration> {
        self.own_cpu
    }

    /// Resident memory of this process in bytes; `None` where the system does not report it.
    pub fn own_memory(&self) -> Option<u64> {
        Some(self.own_memory).filter(|bytes| *bytes > 0)
    }

    /// What each member has by itself, in the order of the members.
    pub fn each(&self) -> impl Iterator<Item = Self> {
        self.members.iter().map(|member| Self { members: vec![member.clone()], ..self.clone() })
    }

    /// Which part of all each member has, in the order of the members: `shares(Costs::watch_streams)`. Where there is
    /// nothing at all, each part is 0.
    pub fn shares(&self, of: impl Fn(&Self) -> u64) -> Vec<f64> {
        let each: Vec<f64> = self.each().map(|member| figure(of(&member))).collect();
        let sum: f64 = each.iter().sum();
        each.into_iter().map(|one| if sum > 0.0 { one / sum } else { 0.0 }).collect()
    }

    fn counted(&self, of: impl Fn(&Reading) -> f64) -> u64 {
        whole(self.members.iter().map(of).sum())
    }
}

impl fmt::Debug for Costs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let methods = ["Range", "Txn", "Watch", "LeaseGrant", "LeaseKeepAlive", "Authenticate"];
        let mut text = f.debug_struct("Costs");
        for method in methods {
            text.field(method, &self.calls(method));
        }
        text.field("requests", &self.requests())
            .field("renewals", &self.renewals())
            .field("bytes", &self.bytes())
            .field("watchers", &self.watchers())
            .field("watch_streams", &self.watch_streams())
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}

/// Etcds whose costs are read together.
pub trait Members {
    /// Each of them.
    fn members(&self) -> Vec<&Etcd>;
}

impl Members for Etcd {
    fn members(&self) -> Vec<&Etcd> {
        vec![self]
    }
}

impl Members for Cluster {
    fn members(&self) -> Vec<&Etcd> {
        self.each().iter().collect()
    }
}

impl<const N: usize> Members for [&Etcd; N] {
    fn members(&self) -> Vec<&Etcd> {
        self.to_vec()
    }
}

/// Where one etcd is read.
#[derive(Debug, Clone)]
struct Source {
    page: String,
    /// Where clients connect.
    ports: Vec<u16>,
}

impl Source {
    fn of(etcd: &Etcd) -> Self {
        let (page, clients) = (etcd.plain_address(), etcd.address());
        let port = |address: &String| address.rsplit(':').next().and_then(|port| port.parse().ok());
        let mut ports: Vec<u16> = [&page, &clients].into_iter().filter_map(port).collect();
        ports.dedup();
        Self { page, ports }
    }
}

/// One etcd at one moment.
#[derive(Debug, Clone)]
struct Reading {
    source: Source,
    page: Page,
    /// The page of the reading before.
    then: Page,
    connections: Option<u64>,
}

impl Reading {
    async fn of(source: Source) -> Self {
        let connections = connections(&source.ports);
        Self { page: Page::read(&source.page).await, then: Page::default(), source, connections }
    }

    fn gauge(&self, metric: &str) -> f64 {
        assert!(self.page.has(metric), "etcd has a metric {metric}");
        self.page.sum(metric, "")
    }

    /// The growth of a counter, summed up over the series that have `label`.
    fn counter(&self, metric: &str, label: &str) -> f64 {
        let started = |page: &Page| page.sum("process_start_time_seconds", "");
        let is_restarted = (started(&self.page) - started(&self.then)).abs() > f64::EPSILON;
        let then = if is_restarted { 0.0 } else { self.then.sum(metric, label) };
        (self.page.sum(metric, label) - then).max(0.0)
    }
}

/// The figures of a `/metrics` page, each under its name and labels.
#[derive(Debug, Clone, Default)]
struct Page(HashMap<String, f64>);

impl Page {
    async fn read(address: &str) -> Self {
        // One that begins, or has hundreds of logins to answer, may not serve it at once.
        let text = eventually("etcd serves its metrics", LIMIT, async || text(address).await.ok()).await;
        let is_read = |line: &&str| ["etcd_", "grpc_server_", "process_"].iter().any(|begin| line.starts_with(begin));
        let figures = text.lines().filter(is_read).filter_map(|line| {
            let (name, figure) = line.rsplit_once(' ')?;
            Some((name.to_owned(), figure.parse().ok()?))
        });
        Self(figures.collect())
    }

    fn has(&self, metric: &str) -> bool {
        self.0.keys().any(|name| name_of(name) == metric)
    }

    fn sum(&self, metric: &str, label: &str) -> f64 {
        let is_wanted = |name: &str| name_of(name) == metric && name.contains(label);
        self.0.iter().filter(|(name, _)| is_wanted(name)).map(|(_, figure)| figure).sum()
    }
}

/// The page as etcd sends it.
async fn text(address: &str) -> io::Result<String> {
    let mut socket = TcpStream::connect(address).await?;
    socket.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
    let mut text = String::new();
    socket.read_to_string(&mut text).await?;
    Ok(text)
}

/// The name of a series without its labels.
fn name_of(series: &str) -> &str {
    series.split('{').next().unwrap_or_default()
}

/// How many established connections the kernel has whose own end is one of these ports.
fn connections(ports: &[u16]) -> Option<u64> {
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    let is_one = |line: &&str| {
        let mut words = line.split_whitespace().skip(1);
        let port = words.next().and_then(|own| u16::from_str_radix(own.rsplit(':').next()?, 16).ok());
        let state = words.nth(1);
        state == Some(ESTABLISHED) && port.is_some_and(|port| ports.contains(&port))
    };
    u64::try_from(table.lines().filter(is_one).count()).ok()
}

/// A count as a figure.
pub fn figure(count: u64) -> f64 {
    let half = |count: u64| f64::from(u32::try_from(count & u64::from(u32::MAX)).unwrap_or_default());
    half(count >> 32) * 4_294_967_296.0 + half(count)
}

/// A figure as a count.
fn whole(figure: f64) -> u64 {
    format!("{figure:.0}").parse().unwrap_or_else(|_| panic!("{figure} is a count"))
}

/// The state of a connection in the kernel's table.
const ESTABLISHED: &str = "01";
