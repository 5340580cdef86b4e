//! Real tonic servers join and leave a real etcd while a client calls all the time: watch its calls follow them.
//!
//! `process.rs` runs etcd and the servers, `load.rs` makes the calls, both send `events.rs`; `stage.rs` holds all that
//! was seen of both, `story.rs` is what happens step by step, `screen.rs` shows it, and `verdict.rs` judges what was
//! promised. `page.rs` is there for `--web`.

use std::env;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
#[cfg(unix)]
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time;
use tonic_etcd::shutdown_signal;

use events::{Event, Events};
use process::Etcd;
use screen::Screen;
use stage::{Stage, StatusOrigin};

mod events;
mod load;
mod page;
mod process;
#[path = "../proto/mod.rs"]
mod proto;
mod screen;
mod stage;
mod story;
mod verdict;

/// Real tonic servers join and leave a real etcd while a client calls all the time. Takes less than a minute.
///
/// Exits with 0 if everything that was promised held, with 1 if not, with 130 if it was interrupted.
#[derive(Parser)]
#[command(name = "demo")]
struct Flags {
    /// The etcd binary [default: $ETCD, or etcd on the PATH]
    #[arg(long, value_name = "PATH")]
    etcd_bin: Option<PathBuf>,

    /// Shows it in a browser as well, on the page of `tonic-etcd web`
    #[arg(long)]
    web: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let flags = Flags::parse();
    let etcd = flags.etcd_bin.or_else(|| env::var_os("ETCD").filter(|path| !path.is_empty()).map(PathBuf::from));
    match run(etcd.unwrap_or_else(|| PathBuf::from("etcd")).into(), flags.web).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(StatusOrigin::Interrupted) => {
            eprintln!("demo: interrupted");
            ExitCode::from(130)
        }
        Err(StatusOrigin::Failed(reason)) => {
            eprintln!("demo: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// Everything it started ends with it, whichever way it ends: the stage owns the processes, and they the folder.
async fn run(etcd: OsString, web: bool) -> Result<bool, StatusOrigin> {
    let (events, seen) = mpsc::unbounded_channel();
    interrupt(events.clone())?;
    let etcd = Etcd::new(etcd)?;
    let mut stage = Stage::new(etcd, Screen::new(Instant::now()), events, seen)?;
    if web {
        stage.open_page().await?;
    }

    let begin = Instant::now();
    let told = time::timeout(LIMIT, story::tell(&mut stage)).await;
    let moments = match told {
        Ok(Ok(moments)) => moments,
        Ok(Err(StatusOrigin::Interrupted)) => return Err(StatusOrigin::Interrupted),
        Ok(Err(StatusOrigin::Failed(reason))) => return Err(StatusOrigin::Failed(stage.with_logs(reason))),
        Err(_) => {
            return Err(StatusOrigin::Failed(stage.with_logs(format!("it took longer than {} s", LIMIT.as_secs()))));
        }
    };
    let is_kept = verdict::sum_up(&mut stage, &moments, begin.elapsed());
    stage.leave_page_open().await;
    Ok(is_kept)
}

/// Ctrl-c, SIGTERM and a closed terminal end the demo as events, so that it tidies up.
fn interrupt(events: Events) -> io::Result<()> {
    #[cfg(unix)]
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        #[cfg(unix)]
        tokio::select! {
            () = shutdown_signal() => {}
            _ = hangup.recv() => {}
        }
        #[cfg(not(unix))]
        shutdown_signal().await;
        let _ = events.send(Event::Interrupted);
    });
    Ok(())
}

/// The story takes about 40 s; this is for what was not foreseen.
const LIMIT: Duration = Duration::from_secs(57);
