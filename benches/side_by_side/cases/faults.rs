//! Servers that refuse, say nothing, freeze or are killed under load: how many calls that costs.

use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use tokio::io::{copy, sink};
use tokio::net::{TcpListener, TcpSocket};
use tokio::time::sleep;
use tonic_etcd::channel::InstanceStatus;
use tonic_etcd::{Address, BalancedChannel};

use crate::load::{self, Call, Shape};
use crate::processes::Servers;
use crate::results::{Line, Results, Row};
use crate::rounds::{Plan, milliseconds};
use crate::statistics::rounded;
use crate::subject::{Subject, TONIC_BALANCE, TONIC_ETCD, balanced};

/// 1 of 10 instances refuses connections.
pub(crate) async fn refuses(plan: Plan, results: &mut Results) {
    let servers = Servers::start(9);
    // Bound and not listening: no other process gets the port meanwhile.
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).expect("the loopback interface has a free port");
    let refusing = socket.local_addr().expect("a bound socket has an address");
    from_the_start("refuses", "1 of 10 refuses connections", servers.addresses(), refusing, plan, results).await;
}

/// 1 of 10 instances accepts connections and never writes a byte.
pub(crate) async fn mute(plan: Plan, results: &mut Results) {
    let servers = Servers::start(9);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("the loopback interface has a free port");
    let mute = listener.local_addr().expect("a listener has an address");
    let accepts = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move { copy(&mut stream, &mut sink()).await });
        }
    });
    from_the_start("mute", "1 of 10 accepts and never sends SETTINGS", servers.addresses(), mute, plan, results).await;
    accepts.abort();
}

/// Calls from the moment at which the channel is made: nothing is warm and nothing is known.
async fn from_the_start(
    case: &'static str,
    words: &str,
    good: &[SocketAddr],
    bad: SocketAddr,
    plan: Plan,
    results: &mut Results,
) {
    let mut addresses = good.to_vec();
    addresses.insert(0, bad);
    for subject in [Subject::tonic_etcd(&addresses), Subject::tonic_balance(&addresses)] {
        let calls = subject.open(RATE, plan.fault, DEADLINE).await;
        let figures = load::sample(&calls, plan.fault).figures();
        results.line(&Line {
            case,
            instances: Some(addresses.len()),
            subject: subject.name,
            calls_per_s: Some(rounded(figures.calls_per_s)),
            p50_us: Some(rounded(figures.p50_us)),
            p99_us: Some(rounded(figures.p99_us)),
            calls: Some(figures.calls),
            failed: Some(figures.failed),
            deadline_ms: Some(milliseconds(DEADLINE)),
            rounds: Some(1),
            ..Line::default()
        });
        if subject.name == TONIC_ETCD {
            let measured = format!("{} of {} failed", figures.failed, figures.calls);
            results.row(Row::counted(words, measured, "0 failed", figures.failed == 0));
        }
    }
}

/// 1 of 10 instances is stopped under load, its connections open. Each run lasts until after its first probe.
pub(crate) async fn frozen(plan: Plan, results: &mut Results) {
    let fault = Fault {
        case: "frozen",
        lost: 1,
        // The fault shows once calls have missed their deadline, and three of them in a row make sure.
        known_after: DEADLINE + Duration::from_millis(100),
        duration: plan.fault * 2,
        strike: Servers::freeze,
    };
    let ours = fault.happens_to_ours(plan.faults).await;
    report(results, &fault, TONIC_ETCD, &ours);
    report(results, &fault, TONIC_BALANCE, &[fault.happens_to_tonic().await]);
    let toll: Toll = ours.iter().sum();
    // The fault cannot show before answers are overdue.
    let goal = "failed ≤ in flight on it until its silence shows; 0 of the calls begun after the first deadline";
    results.row(toll.row("1 of 10 is frozen under load", toll.most_in_flight, goal));
}

/// 5 of 10 instances are killed under load.
pub(crate) async fn killed(plan: Plan, results: &mut Results) {
    let fault = Fault {
        case: "killed",
        lost: 5,
        known_after: Duration::from_millis(250),
        duration: plan.fault / 2,
        strike: Servers::kill,
    };
    let ours = fault.happens_to_ours(plan.faults).await;
    report(results, &fault, TONIC_ETCD, &ours);
    report(results, &fault, TONIC_BALANCE, &[fault.happens_to_tonic().await]);
    let toll: Toll = ours.iter().sum();
    // A process takes a while to end: calls are sent to it until its connections do.
    let goal = "failed ≤ in flight on them until they end; 0 of the calls begun 250 ms after";
    results.row(toll.row("kill -9 of 5 of 10 at 2,000 calls/s", toll.most_in_flight, goal));
}

fn report(results: &mut Results, fault: &Fault, subject: &'static str, runs: &[Toll]) {
    let toll: Toll = runs.iter().sum();
    let known = subject == TONIC_ETCD;
    results.line(&Line {
        case: fault.case,
        instances: Some(10),
        subject,
        calls: Some(toll.calls),
        failed: Some(toll.failed),
        failed_late: Some(toll.failed_late),
        in_flight_on_lost: known.then_some(toll.in_flight),
        most_in_flight_on_lost: known.then_some(toll.most_in_flight),
        deadline_ms: Some(milliseconds(DEADLINE)),
        rounds: Some(runs.len()),
        ..Line::default()
    });
}

struct Fault {
    case: &'static str,
    /// How many of the ten it befalls.
    lost: u8,
    /// From when on no call should be lost to it.
    known_after: Duration,
    /// How long calls go on afterwards.
    duration: Duration,
    strike: fn(&mut Servers),
}

impl Fault {
    async fn happens_to_ours(&self, times: usize) -> Vec<Toll> {
        let mut tolls = Vec::new();
        for _ in 0..times {
            let (kept, lost) = self.servers();
            let channel = balanced(&[kept.addresses(), lost.addresses()].concat());
            let watched = lost.addresses().to_vec();
            tolls.push(self.happens(&Subject::of(&channel), lost, || in_flight_on(&channel, &watched)).await);
        }
        tolls
    }

    async fn happens_to_tonic(&self) -> Toll {
        let (kept, lost) = self.servers();
        let subject = Subject::tonic_balance(&[kept.addresses(), lost.addresses()].concat());
        self.happens(&subject, lost, Vec::new).await
    }

    /// Those that stay and those that do not, in a process each. Calls take a while, so that some are in flight.
    fn servers(&self) -> (Servers, Servers) {
        let (mut kept, mut lost) =
            (Servers::start(usize::from(10 - self.lost)), Servers::start(usize::from(self.lost)));
        kept.delay_all(WORK);
        lost.delay_all(WORK);
        (kept, lost)
    }

    /// How many calls to the lost ones are due in so short a time, rounded up.
    fn begun_within(&self, time: Duration) -> u32 {
        let micros_a_call = 10_000_000 / (u128::from(RATE) * u128::from(self.lost));
        u32::try_from(time.as_micros().div_ceil(micros_a_call)).unwrap_or(u32::MAX)
    }

    async fn happens(&self, subject: &Subject, mut lost: Servers, in_flight: impl Fn() -> Vec<u32>) -> Toll {
        subject.closed(Shape::Short(None), 64, BEFORE).await;
        let load = {
            let (subject, duration) = (subject.clone(), BEFORE + self.duration);
            tokio::spawn(async move { subject.open(RATE, duration, DEADLINE).await })
        };
        sleep(BEFORE).await;
        let mut counts = Counts(in_flight());
        (self.strike)(&mut lost);
        let struck = Instant::now();
        // A call that begins while the signal is on its way is in flight like the others.
        counts.add(in_flight());
        let at_once = counts.sum();
        let (mut counted, mut gap) = (struck, Duration::ZERO);
        while struck.elapsed() < self.known_after {
            if struck.elapsed() < TURMOIL {
                // No timer of the runtime is as short as this. The load is not held up: it has its own threads.
                thread::sleep(Duration::from_micros(100));
                gap = gap.max(counted.elapsed());
                counted = Instant::now();
            } else {
                sleep(Duration::from_millis(1)).await;
            }
            counts.add(in_flight());
        }
        let calls = load.await.expect("the load does not panic");
        let failed = |calls: &mut dyn Iterator<Item = &Call>| calls.filter(|call| call.answered_by.is_none()).count();
        Toll {
            calls: calls.len(),
            failed: failed(&mut calls.iter()),
            failed_late: failed(&mut calls.iter().filter(|call| call.begun > struck + self.known_after)),
            in_flight: at_once,
            most_in_flight: counts.sum() + self.begun_within(gap),
        }
    }
}

/// What a fault cost.
///
/// The most in flight includes calls that may have begun and ended between two counts, when a connection ended.
#[derive(Debug, Clone, Copy, Default)]
struct Toll {
    calls: usize,
    failed: usize,
    failed_late: usize,
    in_flight: u32,
    most_in_flight: u32,
}

impl Toll {
    /// Held if no more calls failed than those that no channel could have saved, and none that came later.
    fn row(self, goal_of: &str, doomed: u32, goal: &str) -> Row {
        let Self { failed, failed_late, in_flight, most_in_flight, .. } = self;
        let measured = format!(
            "{failed} failed, {in_flight} in flight at once and at most {most_in_flight} later, {failed_late} failed late"
        );
        let within = u32::try_from(failed).is_ok_and(|failed| failed <= doomed);
        Row::counted(goal_of, measured, goal, within && failed_late == 0)
    }
}

impl<'a> std::iter::Sum<&'a Toll> for Toll {
    fn sum<I: Iterator<Item = &'a Toll>>(tolls: I) -> Self {
        tolls.fold(Self::default(), |sum, toll| Self {
            calls: sum.calls + toll.calls,
            failed: sum.failed + toll.failed,
            failed_late: sum.failed_late + toll.failed_late,
            in_flight: sum.in_flight + toll.in_flight,
            most_in_flight: sum.most_in_flight + toll.most_in_flight,
        })
    }
}

/// The most calls that were in flight at a time, on each of several servers.
struct Counts(Vec<u32>);

impl Counts {
    fn add(&mut self, counts: Vec<u32>) {
        self.0.iter_mut().zip(counts).for_each(|(most, count)| *most = count.max(*most));
    }

    fn sum(&self) -> u32 {
        self.0.iter().sum()
    }
}

/// How many calls are in flight on each of these servers now, as the channel counts them: on connections that stand.
fn in_flight_on(channel: &BalancedChannel, addresses: &[SocketAddr]) -> Vec<u32> {
    let statuses = channel.instances();
    let on = |address: Address| {
        let status = statuses.iter().find(|status| *status.instance().address() == address);
        status.map_or(0, InstanceStatus::in_flight)
    };
    addresses.iter().map(|address| on((*address).into())).collect()
}

const RATE: u32 = 2_000;
const DEADLINE: Duration = Duration::from_millis(500);
const BEFORE: Duration = Duration::from_secs(1);
/// How long a killed process takes to end, at most.
const TURMOIL: Duration = Duration::from_millis(20);
const WORK: Duration = Duration::from_millis(20);
