//! The other processes of a run: servers, and an etcd. Each ends with its handle, also when the run fails.

use std::env;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use etcd_client::Client;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use crate::server::DONE;

/// A process of echo servers: this very program, started with other arguments.
#[derive(Debug)]
pub(crate) struct Servers {
    process: Process,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    addresses: Vec<SocketAddr>,
}

impl Servers {
    /// Starts `count` servers in one process, and waits until they listen.
    ///
    /// # Panics
    ///
    /// If they do not.
    pub(crate) fn start(count: usize) -> Self {
        let mut command = Command::new(env::current_exe().expect("a program knows where it lies"));
        command.args(["serve", &count.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process(command.spawn().expect("this program can be started again"));
        let orders = process.0.stdin.take().expect("standard input is piped");
        let mut answers = BufReader::new(process.0.stdout.take().expect("standard output is piped"));
        let mut line = String::new();
        answers.read_line(&mut line).expect("the servers tell their addresses");
        let addresses = serde_json::from_str(&line).expect("addresses are a JSON array");
        Self { process, orders, answers, addresses }
    }

    /// Where they listen.
    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Lets each call to one of them take this long, from now on. Timers count whole milliseconds.
    ///
    /// # Panics
    ///
    /// If the process has ended.
    pub(crate) fn delay(&mut self, index: usize, delay: Duration) {
        writeln!(self.orders, "delay {index} {}", delay.as_millis()).expect("the servers take orders");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("the servers answer");
        assert_eq!(line.trim_end(), DONE, "the servers obey");
    }

    /// Like [`delay`](Self::delay), for all of them.
    ///
    /// # Panics
    ///
    /// If the process has ended.
    pub(crate) fn delay_all(&mut self, delay: Duration) {
        (0..self.addresses.len()).for_each(|index| self.delay(index, delay));
    }

    /// Stops the process with SIGSTOP: its connections stay open, and nothing is answered.
    ///
    /// # Panics
    ///
    /// If the process has ended.
    pub(crate) fn freeze(&mut self) {
        let id = Pid::from_child(&self.process.0);
        kill_process(id, Signal::STOP).expect("a child takes signals");
        let stopped = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(id), stopped).expect("a child can be waited for");
    }

    /// Sends SIGKILL: the kernel closes all connections.
    pub(crate) fn kill(&mut self) {
        // Only a process that has ended does not take it.
        _ = self.process.0.kill();
    }
}

/// An etcd of the run's own, on free ports and in a temporary folder.
#[derive(Debug)]
pub(crate) struct Etcd {
    url: String,
    // Ends before its folder goes.
    _process: Process,
    _folder: TempDir,
}

impl Etcd {
    /// Starts what the variable `ETCD` names, or `etcd` of the PATH, and waits until it answers.
    ///
    /// # Panics
    ///
    /// If it does not within ten seconds.
    pub(crate) async fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("etcd-").tempdir().expect("the temporary folder takes a folder");
        let [url, peers] = free_urls();
        let log = File::create(folder.path().join("log")).expect("the folder takes a log");
        let process = Command::new(env::var_os("ETCD").unwrap_or_else(|| "etcd".into()))
            .arg("--data-dir")
            .arg(folder.path().join("data"))
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &format!("default={peers}")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log can be shared"))
            .stderr(log)
            .spawn()
            .expect("etcd can be started");
        let etcd = Self { url, _process: Process(process), _folder: folder };
        timeout(START_LIMIT, etcd.client()).await.expect("etcd answers in time");
        etcd
    }

    /// The URL for clients.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// A client, once etcd answers.
    pub(crate) async fn client(&self) -> Client {
        loop {
            if let Ok(mut client) = Client::connect([&self.url], None).await
                && client.get("probe", None).await.is_ok()
            {
                return client;
            }
            sleep(Duration::from_millis(10)).await;
        }
    }
}

fn free_urls() -> [String; 2] {
    // Both are bound before the first is given back, so that they differ.
    let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("the loopback interface has a free port");
    [bind(), bind()].map(|listener| format!("http://{}", listener.local_addr().expect("a listener has an address")))
}

/// A child that does not outlive its handle, even when it is frozen.
#[derive(Debug)]
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Fails for a process that has ended, and the wait does not care.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

const START_LIMIT: Duration = Duration::from_secs(10);
