//! The page of the registry in a browser, with what the client measures beside it: for `--web`.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use crate::events::Call;
use crate::process::{Etcd, Process};

/// `tonic-etcd web`, and the file of figures that it reads.
pub(crate) struct Page {
    _process: Process,
    url: String,
    figures: PathBuf,
}

#[derive(Deserialize)]
struct Listening {
    url: String,
}

impl Page {
    /// Starts the program, which lies in the folder above this one's.
    pub(crate) fn start(etcd: &Etcd, service: &str) -> io::Result<Self> {
        let here = env::current_exe()?;
        let folder = here.ancestors().nth(2).unwrap_or(Path::new("."));
        let program = folder.join(format!("tonic-etcd{}", env::consts::EXE_SUFFIX));
        if !program.exists() {
            let message = format!("{} is missing: run `cargo build --features cli` first", program.display());
            return Err(io::Error::new(io::ErrorKind::NotFound, message));
        }
        let figures = etcd.folder().join("figures.json");
        write(&figures, &[])?;
        let mut command = Command::new(program);
        command.args(["--etcd", &etcd.url(), "--json", "web", service, "--listen", "127.0.0.1:0", "--figures"]);
        command.arg(&figures).stdout(Stdio::piped()).stderr(File::create(etcd.folder().join("page.log"))?);
        let mut process = Process::spawn(&mut command)?;
        let mut line = String::new();
        if let Some(stdout) = process.stdout() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let Ok(Listening { url }) = serde_json::from_str(&line) else {
            let log = fs::read_to_string(etcd.folder().join("page.log")).unwrap_or_default();
            return Err(io::Error::other(format!("`tonic-etcd web` did not start: {}", log.trim())));
        };
        Ok(Self { _process: process, url, figures })
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Shows these calls, which ended within the last second.
    pub(crate) fn show(&self, calls: &[&Call]) -> io::Result<()> {
        write(&self.figures, calls)
    }
}

fn write(file: &Path, calls: &[&Call]) -> io::Result<()> {
    let mut latencies: Vec<Duration> = calls.iter().map(|call| call.end - call.begin).collect();
    latencies.sort_unstable();
    let share = |percent: usize| {
        let latency = latencies.get((latencies.len() * percent).div_ceil(100).saturating_sub(1));
        // Two decimals are enough to see it move.
        latency.map_or(0.0, |latency| (latency.as_secs_f64() * 100_000.0).round() / 100.0)
    };
    let mut instances: BTreeMap<&str, usize> = BTreeMap::new();
    for address in calls.iter().filter_map(|call| call.answer.as_ref().ok()) {
        *instances.entry(address).or_default() += 1;
    }
    let instances: BTreeMap<_, _> =
        instances.into_iter().map(|(address, rate)| (address, json!({ "calls/s": rate }))).collect();
    let figures = json!({
        "title": "the demo's client",
        "figures": [
            { "name": "Calls per second", "value": calls.len() },
            { "name": "Median latency", "value": share(50), "unit": "ms" },
            { "name": "p99 latency", "value": share(99), "unit": "ms" },
            { "name": "Failed in the last second", "value": calls.iter().filter(|call| call.answer.is_err()).count() },
        ],
        "instances": instances,
    });
    // Its reader sees the one or the other, and never half of one.
    let new = file.with_extension("new");
    fs::write(&new, figures.to_string())?;
    fs::rename(new, file)
}
