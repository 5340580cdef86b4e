//! etcd's own proxy, `etcd grpc-proxy`, in front of an etcd or of what leads there.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client::{Channel, Client, Error, GetResponse};
use tempfile::TempDir;
use tokio::time::timeout;
use tonic::transport::Endpoint;

use super::etcd::free_port;
use super::process::Child;
use super::{LIMIT, eventually};

/// An `etcd grpc-proxy` process, of the program that the tests' etcd is. It ends when this is dropped.
#[derive(Debug)]
pub struct GrpcProxy {
    target: String,
    port: u16,
    // Dropped before the folder it writes to.
    child: Mutex<Child>,
    folder: TempDir,
}

impl GrpcProxy {
    /// Starts a proxy in front of this URL of an etcd that runs, and waits until it answers.
    pub async fn start(target: impl Into<String>) -> Self {
        let (target, port) = (target.into(), free_port());
        let folder = tempfile::Builder::new().prefix("proxy-").tempdir().expect("the temporary folder takes a folder");
        let proxy = Self { child: Mutex::new(spawn(&folder, port, &target)), target, port, folder };
        proxy.answers().await;
        proxy
    }

    /// Its URL for clients.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Its address for clients, `host:port`: what another proxy dials.
    pub fn address(&self) -> String {
        format!("{}:{}", Ipv4Addr::LOCALHOST, self.port)
    }

    /// Ends the process with SIGKILL.
    pub fn kill(&self) {
        self.child().kill();
    }

    /// Kills the process if it runs, starts another one on the same port, and waits until it answers.
    pub async fn restart(&self) {
        self.kill();
        *self.child() = spawn(&self.folder, self.port, &self.target);
        self.answers().await;
    }

    /// What it has logged so far, in the order of the lines.
    pub fn log(&self) -> Vec<String> {
        let log = fs::read(self.folder.path().join(LOG)).unwrap_or_default();
        String::from_utf8_lossy(&log).lines().map(str::to_owned).collect()
    }

    async fn answers(&self) {
        let answers = async || matches!(timeout(ATTEMPT, self.read()).await, Ok(Ok(_)));
        eventually("the proxy answers", LIMIT, answers).await;
    }

    async fn read(&self) -> Result<GetResponse, Error> {
        let channel = Endpoint::from_shared(self.url()).expect("its URL is one").connect().await?;
        let mut client = Client::from_channel(Channel::Tonic(channel), None).await?;
        client.get("tonic-etcd-probe", None).await
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn spawn(folder: &TempDir, port: u16, target: &str) -> Child {
    let log = File::options().create(true).append(true).open(folder.path().join(LOG)).expect("the folder takes a log");
    let stderr = log.try_clone().expect("the log can be shared");
    let address = format!("{}:{port}", Ipv4Addr::LOCALHOST);
    let arguments = [
        format!("--endpoints={target}"),
        format!("--listen-addr={address}"),
        format!("--advertise-client-url={address}"),
        format!("--data-dir={}", folder.path().join("data").display()),
    ];
    let program = env::var_os("ETCD").unwrap_or_else(|| OsString::from("etcd"));
    let mut command = Command::new(program);
    Child::spawn(command.args(["grpc-proxy", "start"]).args(arguments).stdin(Stdio::null()).stdout(log).stderr(stderr))
}

/// How long one question may take while it starts.
const ATTEMPT: Duration = Duration::from_secs(1);

const LOG: &str = "log";
