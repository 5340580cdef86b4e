//! The side-by-side benchmark: the same calls go through this crate's channel, tonic's and a bare floor, in turns;
//! ratios come out. `scripts/bench.sh` runs it, together with the microbenchmarks.
//!
//! # How it measures
//!
//! Client and servers are two processes; each has a runtime with two worker threads. All subjects live in the client at
//! the same time, connected and warm, and take turns under load ([`rounds`]). Every goal is for a ratio or a difference
//! within one run ([`results`]): its median over the rounds, and that median's interval ([`statistics`]).
//!
//! # Layout
//!
//! - [`cases`]: what is measured.
//! - [`subject`], [`floor`]: what is compared.
//! - [`load`], [`rounds`]: how calls are made, and in which order.
//! - [`machine`], [`processes`], [`server`]: the process itself, its children, and what the servers do.
//! - [`statistics`], [`results`], [`table`], [`criterion_results`]: figures, and what is written of them.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand, ValueEnum};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use tonic_etcd::shutdown_signal;

use self::cases::connected::Weighed;
use self::cases::metrics::Recorder;
use self::results::Results;
use self::rounds::Plan;

mod cases;
mod criterion_results;
mod floor;
mod load;
mod machine;
mod processes;
#[path = "../../examples/proto/mod.rs"]
mod proto;
mod results;
mod rounds;
mod server;
mod statistics;
mod subject;
#[path = "../shared/table.rs"]
mod table;

/// Compares this crate's channel with tonic's, side by side.
#[derive(Debug, Parser)]
struct Arguments {
    /// A smoke run: everything works, and the figures mean nothing.
    #[arg(long)]
    quick: bool,

    /// How many rounds, instead of 25: more of them decide what a busy machine leaves open.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: Option<u16>,

    /// Runs this case only; can be repeated.
    #[arg(long = "case", value_enum)]
    cases: Vec<Case>,

    /// The folder of results.jsonl and table.md.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,

    /// The folder in which criterion left its estimates.
    #[arg(long, default_value = "target/criterion")]
    criterion: PathBuf,

    /// This program, built with the feature `metrics`.
    #[arg(long)]
    with_metrics: Option<PathBuf>,

    /// What `cargo bench` adds; without it, nothing is measured.
    #[arg(long, hide = true)]
    bench: bool,

    #[command(subcommand)]
    part: Option<Part>,
}

/// What this program is for when it has started itself.
#[derive(Debug, Clone, Subcommand)]
enum Part {
    /// Echo servers.
    #[command(hide = true)]
    Serve { count: usize },
    /// Ten thousand instances.
    #[command(hide = true)]
    Memory,
    /// A channel whose instances are all connected.
    #[command(hide = true)]
    Connected { weighed: Weighed, addresses: String },
    /// A client that calls when it is told to.
    #[command(hide = true)]
    Calls { recorder: Recorder, addresses: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Case {
    /// What criterion left.
    Micro,
    Unary,
    Paced,
    Kinds,
    P99Slow,
    Refuses,
    Mute,
    Frozen,
    Killed,
    Join,
    Arrive,
    Memory,
    Connected,
    Metrics,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = runtime();
    match &arguments.part {
        Some(Part::Serve { count }) => runtime.block_on(server::serve(*count)),
        Some(Part::Memory) => runtime.block_on(cases::many::weigh()),
        Some(Part::Connected { weighed, addresses }) => runtime.block_on(cases::connected::weigh(*weighed, addresses)),
        Some(Part::Calls { recorder, addresses }) => runtime.block_on(cases::metrics::call(*recorder, addresses)),
        None if !arguments.bench => println!("run by scripts/bench.sh or cargo bench: nothing is measured otherwise"),
        None => return runtime.block_on(run(&arguments)),
    }
    ExitCode::SUCCESS
}

/// The figures that hold for the client, the servers, and all subjects.
fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build().expect("a runtime")
}

async fn run(arguments: &Arguments) -> ExitCode {
    // Whatever ends first: what was started ends with the future that holds it.
    let table = tokio::select! {
        table = timeout(arguments.limit(), measure(arguments)) => table,
        () = shutdown_signal() => return ExitCode::FAILURE,
    };
    let Ok(table) = table else {
        eprintln!("given up after {} s", arguments.limit().as_secs());
        return ExitCode::FAILURE;
    };
    println!("\n{table}");
    ExitCode::SUCCESS
}

async fn measure(arguments: &Arguments) -> String {
    let begin = Instant::now();
    let mut results = Results::new(&arguments.out).expect("the folder of the results can be written");
    let plan = arguments.plan();
    for case in Case::value_variants() {
        if arguments.cases.is_empty() || arguments.cases.contains(case) {
            case.run(arguments, plan, &mut results).await;
        }
    }
    let heading = format!(
        "One run of {} s{}: medians of up to {} rounds with their 95 % intervals; client and servers a process each, \
         with {WORKERS} worker threads each, on {} cores.",
        begin.elapsed().as_secs(),
        if arguments.quick { " (a smoke run: these figures mean nothing)" } else { "" },
        plan.rounds,
        std::thread::available_parallelism().map_or(0, usize::from),
    );
    results.table(&heading, "").expect("the folder of the results can be written")
}

impl Arguments {
    fn plan(&self) -> Plan {
        let plan = if self.quick { Plan::QUICK } else { Plan::FULL };
        Plan { rounds: self.rounds.map_or(plan.rounds, usize::from), ..plan }
    }

    fn limit(&self) -> Duration {
        LIMIT * u32::from(self.rounds.unwrap_or_default()).div_ceil(25).max(1)
    }
}

impl Case {
    async fn run(self, arguments: &Arguments, plan: Plan, results: &mut Results) {
        match self {
            Self::Micro => criterion_results::report(&arguments.criterion, results),
            Self::Unary => cases::unary::run(plan, results).await,
            Self::Paced => cases::paced::run(plan, results).await,
            Self::Kinds => cases::kinds::run(plan, results).await,
            Self::P99Slow => cases::slow::run(plan, results).await,
            Self::Refuses => cases::faults::refuses(plan, results).await,
            Self::Mute => cases::faults::mute(plan, results).await,
            Self::Frozen => cases::faults::frozen(plan, results).await,
            Self::Killed => cases::faults::killed(plan, results).await,
            Self::Join => cases::join::run(plan, results).await,
            Self::Arrive => cases::many::arrive(plan, results).await,
            Self::Memory => cases::many::memory(plan, results),
            Self::Connected => cases::connected::run(plan, results),
            Self::Metrics => cases::metrics::run(plan, arguments.with_metrics.as_deref(), results),
        }
    }
}

const WORKERS: usize = 2;
/// A run of 25 rounds takes about half of it.
const LIMIT: Duration = Duration::from_secs(15 * 60);
