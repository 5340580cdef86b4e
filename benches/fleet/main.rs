//! The fleet benchmark: many clients and servers on real etcds, faults that happen to those, and what it all cost them.
//! `scripts/fleet.sh` runs it.
//!
//! # How it measures
//!
//! A client is a `Registry` of its own, with connections of its own; all of them live in this process, but for those
//! whose CPU time or memory is measured, which have a process of theirs ([`follower`]). What an etcd was asked for is
//! read from its metrics (`Costs` of the tests' rig). Every case has its own etcds. Cases that mostly wait run beside
//! the others, and the others one after another.
//!
//! # Layout
//!
//! - [`cases`]: what is measured, one file a case.
//! - [`fleet`]: clients, keys, and what has come of them.
//! - [`follower`]: a client in a process of its own.
//! - [`report`]: what a case leaves.
//! - [`outlook`]: what the measured costs mean for larger fleets.

#![allow(clippy::missing_panics_doc, clippy::must_use_candidate, reason = "the rig is that of the tests")]

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand, ValueEnum};
use futures_util::future::LocalBoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use tonic_etcd::shutdown_signal;

use self::outlook::Facts;
use self::report::{Plan, Report};
use self::table::{Results, Row};

mod cases;
mod fleet;
mod follower;
mod outlook;
mod report;
#[path = "../../tests/support/mod.rs"]
pub mod support;
#[path = "../shared/table.rs"]
mod table;

/// Measures what many clients and servers cost etcd.
#[derive(Debug, Parser)]
struct Arguments {
    /// A smoke run: everything works, and the figures mean nothing.
    #[arg(long)]
    quick: bool,

    /// Runs this case only; can be repeated.
    #[arg(long = "case", value_enum)]
    cases: Vec<Case>,

    /// The folder of results.jsonl and table.md.
    #[arg(long, default_value = "target/fleet")]
    out: PathBuf,

    /// What `cargo bench` adds; without it, nothing is measured.
    #[arg(long, hide = true)]
    bench: bool,

    #[command(subcommand)]
    part: Option<Part>,
}

/// What this program is for when it has started itself.
#[derive(Debug, Clone, Subcommand)]
enum Part {
    /// A client in a process of its own.
    #[command(hide = true)]
    Follow { url: String, service: String, instances: usize },
}

/// In the order in which they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Case {
    Quiet,
    Proxy,
    Restart,
    Services,
    Slow,
    Return,
    Logins,
    Frozen,
    Changes,
    Large,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = runtime();
    match &arguments.part {
        Some(Part::Follow { url, service, instances }) => {
            runtime.block_on(follower::follow(url, service, *instances));
            ExitCode::SUCCESS
        }
        None if !arguments.bench => {
            println!("run by scripts/fleet.sh or cargo bench: nothing is measured otherwise");
            ExitCode::SUCCESS
        }
        None => runtime.block_on(run(&arguments)),
    }
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

async fn run(arguments: &Arguments) -> ExitCode {
    // Whatever ends first: what was started ends with the future that holds it.
    let table = tokio::select! {
        table = timeout(LIMIT, measure(arguments)) => table,
        () = shutdown_signal() => return ExitCode::FAILURE,
    };
    let Ok(table) = table else {
        eprintln!("given up after {} s", LIMIT.as_secs());
        return ExitCode::FAILURE;
    };
    println!("\n{table}");
    ExitCode::SUCCESS
}

async fn measure(arguments: &Arguments) -> String {
    let begin = Instant::now();
    let mut results = Results::new(&arguments.out).expect("the folder of the results can be written");
    let plan = Plan { is_quick: arguments.quick };
    let is_wanted = |case: &Case| arguments.cases.is_empty() || arguments.cases.contains(case);
    let wanted = Case::value_variants().iter().copied().filter(is_wanted);
    let (beside, alone): (Vec<Case>, Vec<Case>) = wanted.partition(|case| case.mostly_waits());

    let mut facts = Facts::default();
    let mut keep = |report: Report| {
        report.lines.iter().for_each(|line| results.line(line));
        report.rows.into_iter().for_each(|row| results.row(row));
        facts = facts.or(report.facts);
    };
    let beside = stream::iter(beside).map(|case| case.report(plan)).buffer_unordered(usize::MAX);
    let alone = stream::iter(alone).then(|case| case.report(plan));
    let mut reports = std::pin::pin!(stream::select(beside, alone));
    while let Some(report) = reports.next().await {
        keep(report);
    }

    let heading = format!(
        "One run of {} s{} on {}, with {} cores.",
        begin.elapsed().as_secs(),
        if arguments.quick { " (a smoke run: these figures mean nothing)" } else { "" },
        fleet::version().await,
        std::thread::available_parallelism().map_or(0, usize::from),
    );
    results.table(&heading, &facts.outlook()).expect("the folder of the results can be written")
}

impl Case {
    /// Whether it needs the machine for itself.
    fn mostly_waits(self) -> bool {
        matches!(self, Self::Quiet | Self::Proxy)
    }

    /// What the case leaves. One that panics has said why on standard error, and ends no other.
    async fn report(self, plan: Plan) -> Report {
        if let Ok(report) = AssertUnwindSafe(self.run(plan)).catch_unwind().await {
            return report;
        }
        let name = self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        Report { rows: vec![Row::missing(name, "the case failed: see its message")], ..Report::default() }
    }

    fn run(self, plan: Plan) -> LocalBoxFuture<'static, Report> {
        match self {
            Self::Quiet => Box::pin(cases::quiet::run(plan)),
            Self::Proxy => Box::pin(cases::proxy::run(plan)),
            Self::Restart => Box::pin(cases::restart::run(plan)),
            Self::Services => Box::pin(cases::services::run(plan)),
            Self::Slow => Box::pin(cases::slow::run(plan)),
            Self::Return => Box::pin(cases::returning::run(plan)),
            Self::Logins => Box::pin(cases::logins::run(plan)),
            Self::Frozen => Box::pin(cases::frozen::run(plan)),
            Self::Changes => Box::pin(cases::changes::run(plan)),
            Self::Large => Box::pin(cases::large::run(plan)),
        }
    }
}

/// A whole run takes half of it.
const LIMIT: Duration = Duration::from_secs(20 * 60);
