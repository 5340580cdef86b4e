//! The processes of the demo, etcd and the echo servers, and the folder that holds their data and logs.

use std::env;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
#[cfg(unix)]
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

#[cfg(unix)]
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::events::{Event, Events};

/// One process. It does not outlive its value.
pub(crate) struct Process(Child);

impl Process {
    /// In a process group of its own: ctrl-c is for the demo, which then ends its processes in order.
    pub(crate) fn spawn(command: &mut Command) -> io::Result<Self> {
        #[cfg(unix)]
        command.process_group(0);
        command.stdin(Stdio::null()).spawn().map(Self).map_err(|error| {
            let program = command.get_program().display();
            io::Error::new(error.kind(), format!("cannot start {program}: {error}"))
        })
    }

    /// Its standard output, where that is piped and not taken yet.
    pub(crate) fn stdout(&mut self) -> Option<ChildStdout> {
        self.0.stdout.take()
    }

    /// Asks it to end (SIGTERM), and returns when that was.
    #[cfg(unix)]
    pub(crate) fn terminate(&self) -> io::Result<Instant> {
        kill_process(Pid::from_child(&self.0), Signal::TERM)?;
        Ok(Instant::now())
    }

    /// Other systems have no such signal.
    #[cfg(not(unix))]
    pub(crate) fn terminate(&self) -> io::Result<Instant> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "a server that is asked to end needs Unix"))
    }

    /// Ends it at once (SIGKILL), waits until it is gone, and returns when it was killed.
    pub(crate) fn kill(&mut self) -> io::Result<Instant> {
        self.0.kill()?;
        let killed = Instant::now();
        self.0.wait()?;
        Ok(killed)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it is gone already.
        let _ = self.kill();
    }
}

/// One etcd, which can be killed and started again on the same port and data.
pub(crate) struct Etcd {
    process: Option<Process>,
    binary: OsString,
    address: SocketAddr,
    peers: SocketAddr,
    folder: TempDir,
}

impl Etcd {
    pub(crate) fn new(binary: OsString) -> io::Result<Self> {
        // Both are held until both are found, so that they differ.
        let (client, peer) = (free_port()?, free_port()?);
        let (address, peers) = (client.local_addr()?, peer.local_addr()?);
        let folder = tempfile::Builder::new().prefix("tonic-etcd-demo-").tempdir()?;
        Ok(Self { process: None, binary, address, peers, folder })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where the logs are.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts it, and sends an event when it answers.
    pub(crate) fn start(&mut self, events: Events) -> io::Result<()> {
        let log = File::options().create(true).append(true).open(self.folder().join("etcd.log"))?;
        let (client, peer) = (self.url(), format!("http://{}", self.peers));
        let mut command = Command::new(&self.binary);
        command
            .arg("--data-dir")
            .arg(self.folder().join("etcd"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .stdout(log.try_clone()?)
            .stderr(log);
        if cfg!(target_arch = "aarch64") {
            // etcd 3.4 does not start there without this variable.
            command.env("ETCD_UNSUPPORTED_ARCH", "arm64");
        }
        self.process = Some(Process::spawn(&mut command)?);

        let address = self.address;
        thread::spawn(move || {
            while !healthy(address).unwrap_or(false) {
                if events.is_closed() {
                    return;
                }
                thread::sleep(Duration::from_millis(20));
            }
            let _ = events.send(Event::EtcdAnswers);
        });
        Ok(())
    }

    pub(crate) fn kill(&mut self) -> io::Result<Instant> {
        match self.process.take() {
            Some(mut process) => process.kill(),
            None => Ok(Instant::now()),
        }
    }
}

/// Outside of the range that the system hands out for outgoing connections: while etcd is dead, one of those could get
/// its port otherwise.
fn free_port() -> io::Result<TcpListener> {
    let mut tries = (0..100).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, fastrand::u16(20_000..30_000))));
    tries.find_map(Result::ok).ok_or_else(|| io::Error::other("found no free port from 20000 to 29999"))
}

fn healthy(address: SocketAddr) -> io::Result<bool> {
    let limit = Duration::from_secs(1);
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.contains(r#""health":"true""#))
}

/// Starts `echo_server`, which lies beside this program, and sends what it says as events of `server`.
pub(crate) fn start_server(server: usize, ttl: Duration, etcd: &Etcd, events: Events) -> io::Result<Process> {
    let program = env::current_exe()?.with_file_name(format!("echo_server{}", env::consts::EXE_SUFFIX));
    if !program.exists() {
        let message = format!("{} is missing: run `cargo build --examples` first", program.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, message));
    }
    let log = File::create(etcd.folder().join(format!("server-{server}.log")))?;
    let mut command = Command::new(program);
    command.args(["--etcd", &etcd.url(), "--ttl", &ttl.as_secs().to_string()]).stdout(Stdio::piped()).stderr(log);
    let mut process = Process::spawn(&mut command)?;

    let stdout = process.stdout();
    thread::spawn(move || {
        for line in stdout.into_iter().flat_map(|stdout| BufReader::new(stdout).lines()).map_while(Result::ok) {
            let at = Instant::now();
            if let Ok(line) = serde_json::from_str(&line) {
                let _ = events.send(Event::Said { server, at, line });
            }
        }
        let _ = events.send(Event::Ended { server });
    });
    Ok(process)
}

/// The last lines of every log, for when something went wrong.
pub(crate) fn last_lines(folder: &Path) -> io::Result<String> {
    let mut text = String::new();
    for file in fs::read_dir(folder)? {
        let path = file?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            let log = fs::read_to_string(&path)?;
            let lines: Vec<_> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
            let _ = write!(text, "\n\n{}:\n{}", path.file_name().unwrap_or_default().display(), last.join("\n"));
        }
    }
    Ok(text)
}

/// Lines of a log that are shown: enough for the error and what led to it.
const LOG_LINES: usize = 8;
