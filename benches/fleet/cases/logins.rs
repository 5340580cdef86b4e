//! Many clients with user and password that all log in at once, to an etcd that hashes a password for each login.

use std::time::{Duration, Instant};

use serde_json::json;
use tonic_etcd::{Discover, Registry};

use crate::fleet::{begins, listed, until, until_etcd, watch};
use crate::outlook::Facts;
use crate::report::{Plan, Report, rounded, seconds};
use crate::support::costs::{Costs, figure};
use crate::support::etcd::Etcd;

/// Those that start together; then fewer of them that are in, while etcd restarts.
pub(crate) async fn run(plan: Plan) -> Report {
    let mut report = Report::default();
    start(plan.size(300, 10), &mut report).await;
    restart(plan.size(150, 5), &mut report).await;
    report
}

async fn start(clients: usize, report: &mut Report) {
    let etcd = with_password().await;
    let hash = one_hash(&etcd).await;
    let limit = hash.time * 2 * u32::try_from(clients).unwrap_or(u32::MAX);
    let before = Costs::of(&etcd).await;
    let known: Vec<Discover> = (0..clients).map(|_| watch(&client(&etcd), "echo")).collect();
    let all_in = until(limit + PATIENCE, async || listed(&known) == clients).await;
    let spent = before.until_now().await;
    let there = Attempt { words: "start together", clients, there: listed(&known), all_in, limit, spent };
    there.tell(hash, report);
}

async fn restart(clients: usize, report: &mut Report) {
    let etcd = with_password().await;
    let hash = one_hash(&etcd).await;
    let limit = hash.time * 2 * u32::try_from(clients).unwrap_or(u32::MAX);
    let mut known: Vec<Discover> = Vec::new();
    while known.len() < clients {
        // A few at a time all get in.
        known.extend((0..STEP.min(clients - known.len())).map(|_| watch(&client(&etcd), "echo")));
        begins("all are in", async || listed(&known) == known.len()).await;
    }
    let watches = async || Costs::of(&etcd).await.watchers() == clients as u64;
    begins("all watch", watches).await;
    etcd.restart_unanswered().await;
    let all_in = until_etcd(limit + PATIENCE, watches).await;
    let spent = Costs::of(&etcd).await;
    let there = usize::try_from(spent.watchers()).unwrap_or_default();
    Attempt { words: "are in, and etcd restarts", clients, there, all_in, limit, spent }.tell(hash, report);
}

/// What a number of clients came to.
struct Attempt {
    words: &'static str,
    clients: usize,
    /// How many of them are in.
    there: usize,
    /// When all were, if they were.
    all_in: Option<Duration>,
    limit: Duration,
    spent: Costs,
}

impl Attempt {
    fn tell(self, hash: Hash, report: &mut Report) {
        let Self { words, clients, there, all_in, limit, spent } = self;
        let logins = spent.calls("Authenticate");
        let logins_a_client = rounded(figure(logins) / figure(clients as u64));
        report.lines.push(json!({
            "case": "logins", "what": words, "clients": clients, "in": there, "all_in_after_s": seconds(all_in),
            "limit_s": seconds(Some(limit)), "logins": logins, "logins_a_client": logins_a_client,
            "hash_ms": rounded(hash.time.as_secs_f64() * 1e3), "etcd_cpu_s": seconds(Some(spent.cpu())),
        }));
        let goal_of = |what: &str| format!("{clients} clients with a password {words}: {what}");
        let missing = format!("{there} of {clients} after {:.0} s", (limit + PATIENCE).as_secs_f64());
        let all = format!("all in (a hash takes {:.0} ms)", hash.time.as_secs_f64() * 1e3);
        report.within(goal_of(&all), all_in, limit, missing);
        report.at_most(goal_of("logins a client"), logins_a_client, 2.0, "");
        report.facts = std::mem::take(&mut report.facts).or(Facts {
            logins_of_a_client: Some(logins_a_client),
            cpu_of_a_login: Some(rounded(hash.cpu.as_secs_f64())),
            ..Facts::default()
        });
    }
}

/// What one login takes of an etcd that has nothing else to do.
#[derive(Debug, Clone, Copy)]
struct Hash {
    time: Duration,
    cpu: Duration,
}

async fn one_hash(etcd: &Etcd) -> Hash {
    let mut login = etcd.client().await.auth_client();
    let (before, begin) = (Costs::of(etcd).await, Instant::now());
    for _ in 0..LOGINS {
        login.authenticate(USER.to_owned(), PASSWORD.to_owned()).await.expect("etcd takes the password");
    }
    Hash { time: begin.elapsed() / LOGINS, cpu: before.until_now().await.cpu() / LOGINS }
}

async fn with_password() -> Etcd {
    let (etcd, done) = (Etcd::start().await, "etcd sets up its users");
    let mut client = etcd.client().await;
    client.user_add(USER, PASSWORD, None).await.expect(done);
    client.user_grant_role(USER, USER).await.expect(done);
    client.auth_enable().await.expect(done);
    etcd
}

fn client(etcd: &Etcd) -> Registry {
    Registry::builder([etcd.url()]).auth(USER, PASSWORD).build().expect("good options")
}

const USER: &str = "root";
const PASSWORD: &str = "the-fleet's-own-password";

/// How many logins the cost of one is measured with.
const LOGINS: u32 = 10;

/// How many clients log in at once where that is not what is measured.
const STEP: usize = 10;

/// How long a case that misses its goal is waited for.
const PATIENCE: Duration = Duration::from_secs(20);
