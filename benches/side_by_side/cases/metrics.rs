//! What the feature `metrics` costs a unary call: this program without it, the same one with it, and that again with
//! Prometheus' recorder, in turns.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use clap::ValueEnum;
use metrics_exporter_prometheus::PrometheusBuilder;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncBufReadExt;

use crate::load::Shape;
use crate::machine::cpu_time;
use crate::processes::Servers;
use crate::results::{Line, Results, Row, Unit};
use crate::rounds::Plan;
use crate::statistics::{estimate, figure, median, rounded};
use crate::subject::Subject;

/// What a process records with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "kebab-case")]
pub(crate) enum Recorder {
    Nothing,
    Prometheus,
}

/// Three processes on ten instances, 64 calls in flight each in its turn. `with` is this program, built with the
/// feature.
///
/// # Panics
///
/// If one of them does not answer.
pub(crate) fn run(plan: Plan, with: Option<&Path>, results: &mut Results) {
    let goals = [(WITH, 1.03), (PROMETHEUS, 1.08)];
    let goal_of =
        |name: &str| format!("client CPU a unary call, 10 instances, {IN_FLIGHT} in flight, {name} / {WITHOUT}");
    let Some(with) = with else {
        for (name, _) in goals {
            results.row(Row::missing(goal_of(name), "--with-metrics names no program"));
        }
        return;
    };
    let servers = Servers::start(10);
    let without = std::env::current_exe().expect("a program knows where it lies");
    let clients = [
        Client::start(WITHOUT, &without, Recorder::Nothing, servers.addresses()),
        Client::start(WITH, with, Recorder::Nothing, servers.addresses()),
        Client::start(PROMETHEUS, with, Recorder::Prometheus, servers.addresses()),
    ];
    // Connections open and caches fill before anything counts.
    for client in &clients {
        client.slot(plan.slot);
    }
    let mut courses = vec![Vec::new(); clients.len()];
    for round in 0..plan.rounds {
        let order: Vec<usize> = (0..clients.len()).map(|turn| (turn + round) % clients.len()).collect();
        let mut sums = vec![Slot::default(); clients.len()];
        for &turn in order.iter().chain(order.iter().rev()) {
            sums[turn] += clients[turn].slot(plan.slot);
        }
        for (course, sum) in courses.iter_mut().zip(sums) {
            course.push(sum);
        }
    }
    for (client, course) in clients.iter().zip(&courses) {
        let costs: Vec<f64> = course.iter().map(Slot::cost).collect();
        results.line(&Line {
            case: "metrics",
            instances: Some(10),
            in_flight: Some(IN_FLIGHT),
            subject: client.name,
            cpu_us_per_call: Some(rounded(median(&costs))),
            calls: Some(course.iter().map(|slot| slot.calls).sum()),
            failed: Some(course.iter().map(|slot| slot.failed).sum()),
            rounds: Some(course.len()),
            ..Line::default()
        });
    }
    for ((name, goal), course) in goals.into_iter().zip(&courses[1..]) {
        let pairs = course.iter().zip(&courses[0]);
        let ratios: Vec<f64> = pairs.map(|(mine, theirs)| mine.cost() / theirs.cost()).collect();
        results.row(Row::at_most(goal_of(name), estimate(&ratios), goal, Unit::Ratio));
    }
}

/// What a process did in its turns.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Slot {
    /// User and system time, in microseconds.
    cpu_us: f64,
    calls: usize,
    failed: usize,
}

impl Slot {
    fn cost(&self) -> f64 {
        self.cpu_us / figure(self.calls)
    }
}

impl std::ops::AddAssign for Slot {
    fn add_assign(&mut self, other: Self) {
        self.cpu_us += other.cpu_us;
        self.calls += other.calls;
        self.failed += other.failed;
    }
}

/// A process that calls when it is told to, and ends with its handle.
struct Client {
    name: &'static str,
    process: Child,
    pipes: RefCell<(ChildStdin, BufReader<ChildStdout>)>,
}

impl Client {
    fn start(name: &'static str, program: &Path, recorder: Recorder, addresses: &[SocketAddr]) -> Self {
        let addresses = serde_json::to_string(addresses).expect("addresses are plain JSON");
        let recorder = recorder.to_possible_value().expect("each has a name");
        let mut command = Command::new(program);
        command.args(["calls", recorder.get_name(), &addresses]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("the program can be started");
        let orders = process.stdin.take().expect("standard input is piped");
        let answers = BufReader::new(process.stdout.take().expect("standard output is piped"));
        Self { name, process, pipes: RefCell::new((orders, answers)) }
    }

    /// Has it call for a while.
    fn slot(&self, duration: Duration) -> Slot {
        let (orders, answers) = &mut *self.pipes.borrow_mut();
        writeln!(orders, "{}", duration.as_millis()).expect("the process takes orders");
        let mut line = String::new();
        answers.read_line(&mut line).expect("the process answers");
        serde_json::from_str(&line).expect("figures are plain JSON")
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Fails for a process that has ended, and the wait does not care.
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

/// The body of such a process: a slot of so many milliseconds for each line, until standard input ends. What the
/// recorder does with what it was given is part of the slot.
///
/// # Panics
///
/// If the addresses are no JSON array, or a line is no number.
pub(crate) async fn call(recorder: Recorder, addresses: &str) {
    let prometheus = (recorder == Recorder::Prometheus)
        .then(|| PrometheusBuilder::new().install_recorder().expect("there is no other recorder"));
    let addresses: Vec<SocketAddr> = serde_json::from_str(addresses).expect("addresses are a JSON array");
    let subject = Subject::tonic_etcd(&addresses);
    let mut orders = tokio::io::BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(order)) = orders.next_line().await {
        let duration = Duration::from_millis(order.trim().parse().expect("milliseconds"));
        let figures = subject.closed(Shape::Short(None), IN_FLIGHT, duration).await.figures();
        let before = cpu_time();
        if let Some(prometheus) = &prometheus {
            prometheus.run_upkeep();
        }
        let upkeep = cpu_time().saturating_sub(before);
        let cpu_us = figures.cpu_us_per_call * figure(figures.calls) + upkeep.as_secs_f64() * 1e6;
        let slot = Slot { cpu_us, calls: figures.calls, failed: figures.failed };
        println!("{}", serde_json::to_string(&slot).expect("figures are plain JSON"));
    }
}

const IN_FLIGHT: usize = 64;
const WITHOUT: &str = "without the feature metrics";
const WITH: &str = "with the feature metrics and no recorder";
const PROMETHEUS: &str = "with Prometheus' recorder";
