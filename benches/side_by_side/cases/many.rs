//! Ten thousand instances of which none is connected: how soon the channel knows them, and what one of them weighs.

use std::convert::Infallible;
use std::env;
use std::future::{Pending, pending};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic_etcd::channel::{InstanceChanges, InstanceStatus};
use tonic_etcd::{BalancedChannel, Instance};
use tower::service_fn;

use crate::machine::resident_memory;
use crate::results::{Line, Results, Row, Unit};
use crate::rounds::{Plan, milliseconds};
use crate::statistics::{Estimate, estimate, median, rounded};
use crate::subject::TONIC_ETCD;

/// All of them arrive in one list; then the weight of one of them changes.
///
/// A new picker cannot be seen, but the list of instances that comes with it can. Making and searching that list of ten
/// thousand is the reader's cost and not the picker's: it is timed in the same round, and taken off.
pub(crate) async fn arrive(plan: Plan, results: &mut Results) {
    let (mut arrivals, mut reweighings, mut reads) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..plan.rounds {
        let (channel, sets) = unconnected();
        let mut changes = channel.instance_changes();
        let mut instances = all();
        let is_heavy = |statuses: &[InstanceStatus]| statuses.iter().any(|status| status.instance().weight() == HEAVY);
        // What is known so far: nothing.
        until(&mut changes, <[InstanceStatus]>::is_empty).await;

        let set = instances.clone();
        let begin = Instant::now();
        sets.send(set).expect("the channel listens");
        until(&mut changes, |statuses| statuses.len() == MANY).await;
        let arrived = begin.elapsed();
        // The first connects begin, which are changes as well.
        while timeout(QUIET, changes.next()).await.is_ok() {}

        let begin = Instant::now();
        assert!(!is_heavy(&channel.instances()), "nothing has changed yet");
        let read = begin.elapsed();

        let heavy = &mut instances[round % MANY];
        *heavy = Arc::new((**heavy).clone().with_weight(HEAVY));
        let begin = Instant::now();
        sets.send(instances).expect("the channel listens");
        until(&mut changes, is_heavy).await;
        let reweighed = begin.elapsed();

        arrivals.push(milliseconds(arrived.saturating_sub(read)));
        reweighings.push(milliseconds(reweighed.saturating_sub(read)));
        reads.push(milliseconds(read));
    }
    result(results, "read", &reads);
    result(results, "arrive", &arrivals);
    result(results, "change", &reweighings);
    let row = |goal_of: &str, times: &[f64], goal| Row::at_most(goal_of, estimate(times), goal, Unit::Milliseconds);
    results.row(row("10,000 unconnected instances arrive in one list: picker in place", &arrivals, 50.0));
    results.row(row("1 of 10,000 unconnected instances changes: picker in place", &reweighings, 2.0));
}

fn result(results: &mut Results, case: &'static str, times: &[f64]) {
    results.line(&Line {
        case,
        instances: Some(MANY),
        subject: TONIC_ETCD,
        median_ms: Some(rounded(median(times))),
        rounds: Some(times.len()),
        ..Line::default()
    });
}

/// What an instance costs, measured in processes of their own: nothing else grows or shrinks there.
pub(crate) fn memory(plan: Plan, results: &mut Results) {
    let goal_of = "memory an unconnected instance";
    let mut bytes = Vec::new();
    for _ in 0..plan.faults * 3 {
        let program = env::current_exe().expect("a program knows where it lies");
        let output = Command::new(program).arg("memory").output().expect("this program can be started again");
        let figure = String::from_utf8_lossy(&output.stdout).trim().parse::<f64>();
        let Ok(figure) = figure else {
            results.row(Row::missing(goal_of, "this system does not tell a process's resident memory"));
            return;
        };
        bytes.push(figure);
    }
    let measured: Estimate = estimate(&bytes);
    results.line(&Line {
        case: "memory",
        instances: Some(MANY),
        subject: TONIC_ETCD,
        bytes_per_instance: Some(rounded(measured.median)),
        rounds: Some(bytes.len()),
        ..Line::default()
    });
    results.row(Row::at_most(goal_of, measured, 1.5 * 1024.0, Unit::Bytes));
}

/// The body of such a process: prints the bytes an instance by which the resident memory has grown.
pub(crate) async fn weigh() {
    let (channel, sets) = unconnected();
    let mut changes = channel.instance_changes();
    let Some(before) = resident_memory() else { return };
    sets.send(all()).expect("the channel listens");
    until(&mut changes, |statuses| statuses.len() == MANY).await;
    drop(changes);
    // Connects begin meanwhile, and what was used to build the set is given back.
    sleep(SETTLE).await;
    let after = resident_memory().unwrap_or(before);
    let grown = u32::try_from(after.saturating_sub(before)).unwrap_or(u32::MAX);
    println!("{}", f64::from(grown) / f64::from(COUNT));
    drop((channel, sets));
}

/// A channel whose connects never end, and the sender of its instances.
/// Shared instances, as they come from etcd: a change there makes one anew and leaves the others as they are.
fn unconnected() -> (BalancedChannel, UnboundedSender<Vec<Arc<Instance>>>) {
    let (sets, items) = unbounded_channel();
    let connect = |_: Uri| -> Pending<Result<TokioIo<TcpStream>, Infallible>> { pending() };
    let channel = BalancedChannel::from_instances("many", UnboundedReceiverStream::new(items))
        .connector(service_fn(connect))
        .build()
        .expect("the defaults make a channel");
    (channel, sets)
}

fn all() -> Vec<Arc<Instance>> {
    let address = |number: u32| SocketAddr::from((Ipv4Addr::from_bits(FIRST.to_bits() + number), 1));
    (0..COUNT).map(|number| Arc::new(Instance::new("many", address(number)))).collect()
}

async fn until(changes: &mut InstanceChanges, enough: impl Fn(&[InstanceStatus]) -> bool) {
    let seen = async { while !enough(&changes.next().await.expect("the channel lives")) {} };
    timeout(LIMIT, seen).await.expect("the channel tells in time");
}

const COUNT: u32 = 10_000;
const MANY: usize = COUNT as usize;
const FIRST: Ipv4Addr = Ipv4Addr::new(127, 1, 0, 0);
const HEAVY: u16 = 77;
/// No change for this long means that there is none left.
const QUIET: Duration = Duration::from_millis(20);
const SETTLE: Duration = Duration::from_millis(300);
const LIMIT: Duration = Duration::from_secs(10);
