//! The dashboard among the files to deploy asks for what the examples show: each of its queries has an answer.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::future::pending;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use tonic_etcd::{Instance, Registry};

use crate::support::etcd::{Etcd, free_port};
use crate::support::process::{Process, Signal, example};
use crate::support::server::proto::hello::hello_server::{Hello, HelloServer};
use crate::support::server::proto::hello::{HelloReply, HelloRequest};
use crate::support::{LIMIT, eventually};

/// A server and a client on one etcd, both with their metrics page.
struct Fleet {
    etcd: Etcd,
    processes: Vec<Process>,
    /// Where the pages are.
    pages: Vec<String>,
}

/// A server that fails every call.
struct Failing;

#[tonic::async_trait]
impl Hello for Failing {
    async fn say_hello(&self, _: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        Err(Status::unavailable("it never works"))
    }
}

impl Fleet {
    async fn start() -> Self {
        let etcd = Etcd::start().await;
        let (mut processes, mut pages) = (Vec::new(), Vec::new());
        for name in ["metrics_server", "metrics_client"] {
            let (process, page) = start(name, &etcd).await;
            processes.push(process);
            pages.push(page);
        }
        Self { etcd, processes, pages }
    }

    /// Has another server join, take calls and die.
    async fn lose_a_server(&self) {
        let before = self.calls().await;
        let (mut server, _) = start("metrics_server", &self.etcd).await;
        eventually("it is in etcd", LIMIT, async || self.etcd.keys("").await.len() == 2).await;
        eventually("the client knows it", LIMIT, async || {
            self.client_shows("instances{grpc_target=\"etcd:///hello\",state=\"ready\"} 2").await
        })
        .await;
        eventually("it takes calls", LIMIT, async || self.calls().await > before + 20).await;
        server.signal(Signal::KILL);
        eventually("its connection ends", LIMIT, async || self.client_counts("grpc_subchannel_disconnections").await)
            .await;
    }

    /// Has a server join that fails every call, until it is ejected.
    async fn have_a_server_fail(&self) {
        let registry = Registry::builder([self.etcd.url()]).build().expect("a good registry");
        let incoming = TcpIncoming::bind((Ipv4Addr::LOCALHOST, 0).into()).expect("a free port");
        let instance = Instance::new("hello", incoming.local_addr().expect("it is bound"));
        let registration = registry.registration(instance).build().expect("a good registration");
        tokio::spawn(registration.serve(HelloServer::new(Failing), incoming, pending()));
        let is_ejected = async || self.client_counts("grpc_lb_outlier_detection_ejections_enforced").await;
        eventually("it is ejected", LIMIT, is_ejected).await;
    }

    async fn client_shows(&self, text: &str) -> bool {
        get(&self.pages[1], "/metrics").await.is_ok_and(|page| page.contains(text))
    }

    /// Whether a counter of the client has a series above 0.
    async fn client_counts(&self, name: &str) -> bool {
        let (page, begin) = (get(&self.pages[1], "/metrics").await.unwrap_or_default(), format!("{name}_total{{"));
        page.lines().any(|line| line.starts_with(&begin) && !line.ends_with(" 0"))
    }

    /// How many calls the client has made.
    async fn calls(&self) -> u64 {
        let page = get(&self.pages[1], "/metrics").await.unwrap_or_default();
        let line = page.lines().find(|line| line.starts_with("grpc_client_attempt_started_total{"));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_default()
    }

    /// Takes the server out of etcd, which it has to notice and to mend.
    async fn lose_the_registration(&self) {
        let listed = async || self.etcd.keys("").await.into_iter().next();
        let (key, _, _) = eventually("the server is in etcd", LIMIT, listed).await;
        self.etcd.delete(key).await;
        eventually("it is back", LIMIT, listed).await;
    }

    async fn series(&self) -> Series {
        let mut series = Series::default();
        for page in &self.pages {
            series.add(&get(page, "/metrics").await.expect("the page is there"));
        }
        series
    }

    async fn end(mut self) {
        for process in &mut self.processes {
            process.signal(Signal::TERM);
            assert!(process.wait(LIMIT).await.success(), "it ends in order: {}", process.log());
        }
    }
}

/// Starts an example on an etcd, and returns where its metrics are.
async fn start(name: &str, etcd: &Etcd) -> (Process, String) {
    let page = format!("127.0.0.1:{}", free_port());
    let mut command = example(name);
    let process = Process::start(command.args([etcd.url(), page.clone()]).env("POD_IP", "127.0.0.1"));
    eventually("the page is there", LIMIT, async || get(&page, "/metrics").await.is_ok()).await;
    (process, page)
}

/// The names of samples, each with all labels that it ever has.
#[derive(Debug, Default)]
struct Series(BTreeMap<String, BTreeSet<String>>);

impl Series {
    fn add(&mut self, page: &str) {
        for line in page.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            let name: String = line.chars().take_while(|char| is_part_of_name(*char)).collect();
            let labels = self.0.entry(name.clone()).or_default();
            labels.extend(labels_in(&line[name.len()..]));
        }
    }

    /// What a query asks for that is not there.
    fn lacks(&self, query: &str) -> Vec<String> {
        let mut known: BTreeSet<&str> = BTreeSet::from(["instance", "job"]);
        let mut lacking = Vec::new();
        for (name, asked) in metrics_in(query) {
            let Some(labels) = self.0.get(&name) else {
                lacking.push(name);
                continue;
            };
            known.extend(labels.iter().map(String::as_str));
            lacking.extend(
                asked.into_iter().filter(|label| !labels.contains(label)).map(|label| format!("{name}{{{label}}}")),
            );
        }
        let grouped = grouped_by(query);
        lacking.extend(grouped.into_iter().filter(|label| !known.contains(label.as_str())));
        lacking
    }
}

fn is_part_of_name(char: char) -> bool {
    char.is_ascii_alphanumeric() || matches!(char, '_' | ':')
}

/// The metrics of the crate that a query names, each with the labels that it is chosen by.
fn metrics_in(query: &str) -> Vec<(String, Vec<String>)> {
    let mut metrics = Vec::new();
    let query = without_groups(query);
    let mut rest = &*query;
    while let Some(begin) = ["grpc_client_", "grpc_subchannel_", "grpc_lb_", "tonic_etcd_"]
        .iter()
        .filter_map(|begin| rest.find(begin))
        .min()
    {
        rest = &rest[begin..];
        let end = rest.find(|char| !is_part_of_name(char)).unwrap_or(rest.len());
        let (name, behind) = rest.split_at(end);
        metrics.push((name.to_owned(), labels_in(behind)));
        rest = behind;
    }
    metrics
}

/// The labels within braces, if the text begins with some.
fn labels_in(text: &str) -> Vec<String> {
    let Some(text) = text.strip_prefix('{') else { return Vec::new() };
    let (mut names, mut is_value) = (String::new(), false);
    for char in text.chars() {
        match char {
            // A value may hold anything but a quotation mark.
            '"' => is_value = !is_value,
            '}' if !is_value => break,
            char if !is_value && is_part_of_name(char) => names.push(char),
            _ if !is_value => names.push(' '),
            _ => {}
        }
    }
    names.split_whitespace().map(str::to_owned).collect()
}

/// The query without the labels that it groups by: some begin as metrics do.
fn without_groups(query: &str) -> String {
    let mut parts = query.split("by (");
    let begin = parts.next().unwrap_or_default().to_owned();
    parts.fold(begin, |before, part| before + part.split_once(')').map_or(part, |(_, behind)| behind))
}

fn grouped_by(query: &str) -> Vec<String> {
    let groups = query.split("by (").skip(1).filter_map(|rest| rest.split_once(')'));
    groups.flat_map(|(labels, _)| labels.split(',').map(|label| label.trim().to_owned())).collect()
}

/// Every query of the dashboard, with the title of its panel.
fn queries() -> Vec<(String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/grafana.json");
    let text = fs::read_to_string(path).expect("there is a dashboard");
    let dashboard: Value = serde_json::from_str(&text).expect("it is JSON");
    let panels = dashboard["panels"].as_array().expect("it has panels");
    let mut queries = Vec::new();
    for panel in panels {
        let title = panel["title"].as_str().expect("a panel has a title");
        for target in panel["targets"].as_array().into_iter().flatten() {
            queries.push((title.to_owned(), target["expr"].as_str().expect("a query").to_owned()));
        }
    }
    for variable in dashboard["templating"]["list"].as_array().expect("it has variables") {
        if let Some(query) = variable["query"]["query"].as_str() {
            let name = variable["name"].as_str().expect("a variable has a name");
            let query = query.strip_prefix("label_values(").and_then(|query| query.strip_suffix(')'));
            let (metric, label) = query.and_then(|query| query.rsplit_once(',')).expect("it is the values of a label");
            queries.push((name.to_owned(), format!("count by ({}) ({metric})", label.trim())));
        }
    }
    assert!(queries.len() > 20, "the dashboard shows something: {queries:?}");
    queries
}

/// As Grafana fills it in: every service, and a window of a few scrapes.
fn filled_in(query: &str) -> String {
    let mut query = query.replace("$__rate_interval", "10s").replace("$__range", "1m");
    for variable in ["$service", "$target", "$instance"] {
        query = query.replace(variable, ".*");
    }
    assert!(!query.contains('$'), "every variable is known: {query}");
    query
}

async fn get(address: &str, path: &str) -> io::Result<String> {
    let mut socket = TcpStream::connect(address).await?;
    socket.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
    let mut text = String::new();
    socket.read_to_string(&mut text).await?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let is_fine = head.split(' ').nth(1) == Some("200");
    if is_fine { Ok(body.to_owned()) } else { Err(io::Error::other(text)) }
}

#[test]
fn what_a_query_asks_for_is_read_from_it() {
    let query = "sum by (grpc_lb_method) (rate(grpc_client_x{a=~\"b,c=\", d=\"e\"}[1m])) / tonic_etcd_y";
    let asked =
        [("grpc_client_x".to_owned(), vec!["a".to_owned(), "d".to_owned()]), ("tonic_etcd_y".to_owned(), vec![])];
    assert_eq!(metrics_in(query), asked);
    assert_eq!(grouped_by(query), ["grpc_lb_method"]);
    let mut series = Series::default();
    series.add("# TYPE grpc_client_x counter\ngrpc_client_x{a=\"1\"} 5\n");
    assert_eq!(series.lacks(query), ["grpc_client_x{d}", "tonic_etcd_y", "grpc_lb_method"]);
    series.add("grpc_client_x{a=\"1\",d=\"}\",grpc_lb_method=\"m\"} 5\ntonic_etcd_y 1\n");
    assert_eq!(series.lacks(query), [""; 0]);
}

#[tokio::test]
async fn each_query_of_the_dashboard_asks_for_what_the_examples_show() {
    let fleet = Fleet::start().await;
    fleet.lose_the_registration().await;
    fleet.lose_a_server().await;
    fleet.have_a_server_fail().await;
    let queries = queries();
    let complete = async || {
        let series = fleet.series().await;
        let lacking = |(panel, query): &(String, String)| {
            let lacking = series.lacks(&filled_in(query));
            (!lacking.is_empty()).then(|| format!("{panel}: {lacking:?}"))
        };
        let lacking: Vec<_> = queries.iter().filter_map(lacking).collect();
        if lacking.is_empty() { Ok(()) } else { Err(lacking) }
    };
    let limit = Instant::now() + LIMIT;
    while let Err(lacking) = complete().await {
        assert!(Instant::now() < limit, "what queries ask for never came: {lacking:#?}");
        sleep(Duration::from_millis(50)).await;
    }
    fleet.end().await;
}

#[tokio::test]
async fn a_real_prometheus_answers_each_query_of_the_dashboard() {
    if Command::new("prometheus").arg("--version").output().is_err() {
        eprintln!("skipped: there is no prometheus (Debian's package of that name) to ask");
        return;
    }
    let fleet = Fleet::start().await;
    let folder = TempDir::new().expect("a temporary folder");
    let config = folder.path().join("prometheus.yml");
    let pages = serde_json::to_string(&fleet.pages).expect("addresses are text");
    let text = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: test\n  static_configs: [{{targets: {pages}}}]\n"
    );
    fs::write(&config, text).expect("the folder takes a file");
    let address = format!("127.0.0.1:{}", free_port());
    let mut command = Command::new("prometheus");
    command
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
        .arg(format!("--web.listen-address={address}"));
    let mut prometheus = Process::start(&mut command);
    eventually("Prometheus is ready", LIMIT, async || get(&address, "/-/ready").await.is_ok()).await;
    fleet.lose_the_registration().await;
    fleet.lose_a_server().await;
    fleet.have_a_server_fail().await;

    for (panel, query) in queries() {
        let query = filled_in(&query);
        let encoded = query.bytes().fold(String::new(), |encoded, byte| encoded + &format!("%{byte:02x}"));
        let path = format!("/api/v1/query?query={encoded}");
        eventually(&format!("{panel}: {query} has an answer"), 2 * LIMIT, async || {
            let answer = get(&address, &path).await.unwrap_or_else(|error| panic!("{panel}: {query}: {error}"));
            let answer: Value = serde_json::from_str(&answer).expect("Prometheus answers with JSON");
            answer["data"]["result"].as_array().is_some_and(|result| !result.is_empty())
        })
        .await;
    }
    prometheus.signal(Signal::TERM);
    let _ = prometheus.wait(LIMIT).await;
    fleet.end().await;
}
