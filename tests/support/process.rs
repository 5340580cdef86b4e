//! Child processes: signals go to them by their id, events come back as lines of JSON.

use std::env;
use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, WaitId, WaitIdOptions, kill_process, waitid};
use serde_json::Value;
use tempfile::NamedTempFile;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::eventually;

pub use rustix::process::Signal;

/// A command that runs one of this package's examples; add its arguments and [`Process::start`] it.
///
/// # Panics
///
/// If the example is not built. `cargo test` builds examples before it runs tests; `cargo test
/// --test it` alone does not.
pub fn example(name: &str) -> Command {
    let test = env::current_exe().expect("the test knows where it lies");
    let path: PathBuf = test.ancestors().nth(2).expect("tests lie in target/PROFILE/deps").join("examples").join(name);
    assert!(
        path.exists(),
        "{} is not built: run `cargo build --examples`, with --release where the tests have it",
        path.display()
    );
    Command::new(path)
}

/// The program of this crate, which the feature `cli` builds.
pub fn program() -> Command {
    let test = env::current_exe().expect("the test knows where it lies");
    let path = test.ancestors().nth(2).expect("tests lie in target/PROFILE/deps").join("tonic-etcd");
    assert!(path.exists(), "{} is not built: run `cargo build --features cli`", path.display());
    Command::new(path)
}

/// The memory that a process has now, and the most that it ever had, in bytes; 0 where the system does not report it.
/// `process` is its id, or `self`.
pub fn memory_of(process: &str) -> (u64, u64) {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let read = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kilobytes = line.map_or(0, |line| line.trim().trim_end_matches("kB").trim().parse().unwrap_or(0));
        kilobytes * 1024_u64
    };
    (read("VmRSS:"), read("VmHWM:"))
}

/// User and system time of all threads of a process; `None` where the system does not report it. `process` is its id,
/// or `self`.
pub fn cpu_of(process: &str) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name in brackets may hold anything; the 12th and the 13th word behind it are the times.
    let (_, words) = stat.rsplit_once(')')?;
    let ticks: Vec<u32> = words.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse().ok()).collect();
    Some(TICK * ticks.iter().sum::<u32>())
}

/// What Linux counts CPU time in for programs, whatever its own clock does.
const TICK: Duration = Duration::from_millis(10);

/// A program that writes one JSON object a line to standard output, and its log to standard error.
///
/// Killed when dropped. If that happens because the test panics, the log is printed first.
#[derive(Debug)]
pub struct Process {
    child: Child,
    lines: mpsc::UnboundedReceiver<String>,
    seen: Vec<Value>,
    log: NamedTempFile,
}

impl Process {
    /// Starts `command`.
    pub fn start(command: &mut Command) -> Self {
        let log = NamedTempFile::new().expect("the temporary folder takes a file");
        let stderr = log.reopen().expect("the log opens a second time");
        let mut child = Child::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr));
        let stdout = child.inner.stdout.take().expect("standard output is piped");
        let (sender, lines) = mpsc::unbounded_channel();
        // Ends with the program, whose end closes the pipe.
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines, seen: Vec::new(), log }
    }

    /// The next line, or `None` when the program has closed its output.
    ///
    /// # Panics
    ///
    /// After `limit`, or if the line is not JSON.
    pub async fn next_line(&mut self, limit: Duration) -> Option<Value> {
        let Ok(line) = timeout(limit, self.line()).await else {
            panic!("no line within {limit:?} after {:?}", self.seen);
        };
        line
    }

    /// The next line whose `event` is this one; the lines before it are skipped.
    ///
    /// # Panics
    ///
    /// If it has not come after `limit`, the output ends without it, or a line is not JSON.
    pub async fn expect_event(&mut self, event: &str, limit: Duration) -> Value {
        self.expect(&format!("event {event:?}"), limit, |line| line["event"] == event).await
    }

    /// The next line that `is_it`; the lines before it are skipped.
    ///
    /// # Panics
    ///
    /// With `what`, if it has not come after `limit`, the output ends without it, or a line is not JSON.
    pub async fn expect(&mut self, what: &str, limit: Duration, is_it: impl Fn(&Value) -> bool) -> Value {
        let found = timeout(limit, async {
            while let Some(value) = self.line().await {
                if is_it(&value) {
                    return Some(value);
                }
            }
            None
        });
        let Ok(found) = found.await else {
            panic!("no {what} within {limit:?}: {:?}", self.seen);
        };
        found.unwrap_or_else(|| panic!("the output ended without {what}: {:?}", self.seen))
    }

    /// The rest of the next line that begins with `begin`; the lines before it are skipped. For programs that print
    /// text.
    ///
    /// # Panics
    ///
    /// If it has not come after `limit`, or the output ends without it.
    pub async fn expect_text(&mut self, begin: &str, limit: Duration) -> String {
        let found = self.find_text(begin, limit).await;
        found.unwrap_or_else(|skipped| panic!("the output ended without {begin:?}: {skipped:?}"))
    }

    /// Like [`expect_text`](Self::expect_text), for output that may end without such a line.
    ///
    /// # Errors
    ///
    /// All lines that came instead.
    ///
    /// # Panics
    ///
    /// If it has not come after `limit`.
    pub async fn find_text(&mut self, begin: &str, limit: Duration) -> Result<String, Vec<String>> {
        let mut skipped = Vec::new();
        let found = timeout(limit, async {
            while let Some(line) = self.lines.recv().await {
                if let Some(rest) = line.strip_prefix(begin) {
                    return Some(rest.to_owned());
                }
                skipped.push(line);
            }
            None
        });
        let Ok(found) = found.await else {
            panic!("no line {begin:?} within {limit:?}: {skipped:?}");
        };
        found.ok_or(skipped)
    }

    /// All lines that were read so far.
    pub fn seen(&self) -> &[Value] {
        &self.seen
    }

    /// All lines that are still to come, until the program closes its output.
    ///
    /// # Panics
    ///
    /// If it has not closed it after `limit`, or a line is not JSON.
    pub async fn rest(&mut self, limit: Duration) -> Vec<Value> {
        let first = self.seen.len();
        let end = timeout(limit, async { while self.line().await.is_some() {} }).await;
        assert!(end.is_ok(), "the output is open after {limit:?}: {:?}", self.seen);
        self.seen.split_off(first)
    }

    /// Waits for the program to end by itself.
    ///
    /// # Panics
    ///
    /// If it still runs after `limit`.
    pub async fn wait(&mut self, limit: Duration) -> ExitStatus {
        let child = &mut self.child;
        eventually("the program has ended", limit, async || child.exited()).await
    }

    /// What the program has written to standard error so far.
    pub fn log(&self) -> String {
        let log = fs::read(self.log.path()).expect("the log can be read");
        String::from_utf8_lossy(&log).into_owned()
    }

    /// The process's id.
    pub fn id(&self) -> u32 {
        self.child.inner.id()
    }

    /// The memory that it has now, and the most that it ever had, in bytes; 0 where the system does not report it.
    pub fn memory(&self) -> (u64, u64) {
        memory_of(&self.id().to_string())
    }

    /// User and system time of all its threads so far; `None` where the system does not report it.
    pub fn cpu(&self) -> Option<Duration> {
        cpu_of(&self.id().to_string())
    }

    /// How many sockets it has open; 0 where the system does not report it.
    pub fn sockets(&self) -> usize {
        let Ok(files) = fs::read_dir(format!("/proc/{}/fd", self.id())) else { return 0 };
        let target = |file: std::io::Result<fs::DirEntry>| fs::read_link(file.ok()?.path()).ok();
        files.filter_map(target).filter(|target| target.to_string_lossy().starts_with("socket:")).count()
    }

    /// Sends `signal`.
    ///
    /// # Panics
    ///
    /// If the program has ended.
    pub fn signal(&mut self, signal: Signal) {
        self.child.signal(signal);
    }

    /// Ends the program with SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill();
    }

    /// Stops the program with SIGSTOP, as if its machine were paused.
    ///
    /// # Panics
    ///
    /// If the program has ended.
    pub fn freeze(&mut self) {
        self.child.freeze();
    }

    /// Lets a frozen program run again.
    ///
    /// # Panics
    ///
    /// If the program has ended.
    pub fn resume(&mut self) {
        self.child.signal(Signal::CONT);
    }

    async fn line(&mut self) -> Option<Value> {
        let line = self.lines.recv().await?;
        let value: Value =
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("the program printed {line:?}: {error}"));
        self.seen.push(value.clone());
        Some(value)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() {
            self.child.kill();
            let log = fs::read(self.log.path()).unwrap_or_default();
            eprintln!("{:?} logged:", self.child);
            eprintln!("{}", String::from_utf8_lossy(&log));
        }
    }
}

/// A child process that does not outlive its handle, even when it is frozen.
pub struct Child {
    name: String,
    inner: std::process::Child,
}

impl Child {
    /// Starts `command`.
    ///
    /// # Panics
    ///
    /// If the program cannot be started.
    pub fn spawn(command: &mut Command) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        let inner = command.spawn().unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        Self { name, inner }
    }

    /// How the process ended, or `None` while it runs or is frozen.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.inner.try_wait().expect("a child can be waited for")
    }

    /// Sends `signal`.
    ///
    /// # Panics
    ///
    /// If the process has ended: its id may be another's by now.
    pub fn signal(&mut self, signal: Signal) {
        // Nothing else waits for the child, so its id stays its own until `exited` has seen its end.
        if let Some(status) = self.exited() {
            panic!("{signal:?} comes too late for {self:?}: {status}");
        }
        kill_process(self.pid(), signal).expect("a child takes signals");
    }

    /// Sends SIGSTOP, and returns when the process has stopped.
    ///
    /// # Panics
    ///
    /// If the process has ended.
    pub fn freeze(&mut self) {
        self.signal(Signal::STOP);
        let stopped = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(self.pid()), stopped).expect("a child can be waited for");
    }

    /// Sends SIGKILL and waits for the end: its ports are free afterwards. Nothing happens to a
    /// process that has ended.
    pub fn kill(&mut self) {
        // Fails for a process that has ended, and the wait does not care.
        _ = self.inner.kill();
        _ = self.inner.wait();
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.inner)
    }
}

impl fmt::Debug for Child {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {})", self.name, self.inner.id())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}
