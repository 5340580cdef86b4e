//! Everything that can be wrong with a registry, looked for and named, with what to do about it.
//!
//! # Layout
//!
//! | file | what flows through it |
//! | --- | --- |
//! | this file | flags to looks, one after another, to the findings of all |
//! | `etcd` | what members report, and why they do not, to findings |
//! | `keys` | keys as they stand in etcd to findings; pure |
//! | `leases` | leases to findings |
//! | `elsewhere` | other formats and prefixes to a finding |
//! | `dials`, `dial` | addresses to what listens there to findings |
//! | `finding` | findings to what is printed |
//! | `kind` | a kind of finding to its name, its level and its advice |

mod dial;
mod dials;
mod elsewhere;
mod etcd;
mod finding;
mod keys;
mod kind;
mod leases;

use std::collections::BTreeSet;
use std::time::Duration;

use clap::Args;
use tokio::time::{Instant, sleep, timeout_at};
use tonic_etcd::inspect::{StoredKey, StoredKeys};
use tonic_etcd::{Registry, RegistryError, ServiceName};

use self::dials::Dials;
use self::finding::{Finding, Scope};
use self::keys::key_name;
use self::kind::{Kind, Level};
use self::leases::Leases;
use crate::connection::{Connection, time};
use crate::failure::Failure;
use crate::print::Output;

/// What is checked, and how.
#[derive(Args)]
pub(crate) struct Flags {
    /// The service's name [default: all services]
    service: Option<ServiceName>,

    /// Exits with 1 for warnings, too
    #[arg(long)]
    strict: bool,

    /// How long all of it may take
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = limit)]
    timeout: Duration,

    /// How long one server may take to answer
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = limit)]
    answer_timeout: Duration,

    /// Looks at etcd alone, and connects to no server
    #[arg(long)]
    no_dial: bool,
}

pub(crate) async fn run(
    registry: Registry,
    connection: &Connection,
    flags: &Flags,
    output: Output,
) -> Result<(), Failure> {
    let check = Check { connection, registry, flags, deadline: Instant::now() + flags.timeout };
    let (mut findings, scope) = check.findings().await?;
    finding::sort(&mut findings);
    if output.json {
        finding::print_json(&findings)?;
    } else {
        finding::print_text(&findings, scope)?;
    }
    let worst = if flags.strict { Level::Warning } else { Level::Error };
    if findings.iter().any(|finding| finding.level <= worst) { Err(Failure::Found) } else { Ok(()) }
}

impl Flags {
    fn service(&self) -> Option<&str> {
        self.service.as_ref().map(ServiceName::as_str)
    }
}

struct Check<'a> {
    connection: &'a Connection,
    registry: Registry,
    flags: &'a Flags,
    deadline: Instant,
}

impl Check<'_> {
    async fn findings(&self) -> Result<(Vec<Finding>, Scope), Failure> {
        let Ok(reports) = timeout_at(self.deadline, self.registry.members()).await else {
            return Ok((vec![self.late("etcd")], Scope::default()));
        };
        let (mut findings, answers) = etcd::findings(&reports);
        // With a leader that one member does not see, others may still answer.
        if !answers && !findings.iter().any(|finding| finding.kind == Kind::EtcdNoLeader) {
            return Ok((findings, Scope::default()));
        }
        let keys = match timeout_at(self.deadline, self.keys()).await {
            Ok(Ok(keys)) => keys,
            Ok(Err(error @ RegistryError::Config(_))) => return Err(error.into()),
            Ok(Err(error)) => {
                let failure = etcd::failure(&error);
                if !findings.iter().any(|finding| finding.kind == failure.kind) {
                    findings.push(failure);
                }
                return Ok((findings, Scope::default()));
            }
            Err(_) => {
                findings.push(self.late("the keys"));
                return Ok((findings, Scope::default()));
            }
        };
        findings.extend(keys::findings(&keys, self.connection.is_local()));
        if !keys.keys().iter().any(|key| key.instance().is_ok()) {
            findings.extend(self.nothing_usable(&keys).await?);
        }
        findings.extend(self.outside(&keys).await);
        Ok((findings, keys::scope(&keys)))
    }

    async fn keys(&self) -> Result<StoredKeys, RegistryError> {
        match self.flags.service() {
            Some(service) => self.registry.keys_of(service).await,
            None => self.registry.keys().await,
        }
    }

    async fn nothing_usable(&self, keys: &StoredKeys) -> Result<Vec<Finding>, Failure> {
        let service = self.flags.service();
        let mut findings = Vec::new();
        if keys.keys().is_empty() {
            let kind = if service.is_some() { Kind::ServiceEmpty } else { Kind::PrefixEmpty };
            findings.push(Finding::new(kind, service, vec![self.connection.place()]));
        }
        findings.extend(elsewhere::look(self.connection.elsewhere()?, service, self.deadline).await);
        Ok(findings)
    }

    /// What leases and servers have to say of the keys, after a second look at what changes by itself: a server that
    /// leaves meanwhile is none that is down.
    async fn outside(&self, keys: &StoredKeys) -> Vec<Finding> {
        let dials = async {
            if self.flags.no_dial {
                None
            } else {
                Some(Dials::of(keys, self.flags.answer_timeout, self.deadline).await)
            }
        };
        let started = Instant::now();
        let (leases, dials) = tokio::join!(Leases::of(&self.registry, keys, self.deadline), dials);
        let draining: BTreeSet<(String, i64)> = draining(keys).collect();
        let is_in_doubt = leases.are_in_doubt() || dials.as_ref().is_some_and(Dials::are_in_doubt);
        let again = if is_in_doubt || !draining.is_empty() { Some(self.again(&draining, started).await) } else { None };
        let had_time_to_leave = started.elapsed() >= LEAVING;
        let now = again.as_ref().and_then(|again| again.as_ref().ok()).unwrap_or(keys);
        let mut findings = leases.findings(&self.registry, now, self.deadline).await;
        findings.extend(dials.as_ref().and_then(Dials::gap));
        let of_dials = dials.map(|dials| dials.findings(keys, now)).unwrap_or_default();
        match &again {
            None => findings.extend(of_dials),
            Some(Ok(_)) => {
                findings.extend(of_dials);
                let not_left = not_left(now, &draining);
                findings.extend(not_left.into_iter().map(|it| if had_time_to_leave { it } else { it.unconfirmed() }));
            }
            Some(Err(reason)) => {
                findings.extend(of_dials.into_iter().map(Finding::unconfirmed));
                let name = format!("the second look at the keys: {reason}");
                findings.push(Finding::new(Kind::CheckIncomplete, None, vec![name]).with_level(Level::Error));
            }
        }
        findings
    }

    /// The keys after a while, and after a longer one where instances have to leave; or why they could not be read.
    async fn again(&self, draining: &BTreeSet<(String, i64)>, started: Instant) -> Result<StoredKeys, String> {
        tokio::time::sleep_until((started + SETTLING).min(self.deadline)).await;
        loop {
            let Ok(keys) = timeout_at(self.deadline, self.keys()).await else {
                return Err(format!("there was no time for it within {:?}", self.flags.timeout));
            };
            let keys = keys.map_err(|error| etcd::causes(&error))?;
            let have_left = !self::draining(&keys).any(|key| draining.contains(&key));
            if have_left || started.elapsed() >= LEAVING || Instant::now() + LOOK_INTERVAL >= self.deadline {
                return Ok(keys);
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    fn late(&self, what: &str) -> Finding {
        let name = format!("{what} did not answer within {:?}", self.flags.timeout);
        Finding::new(Kind::EtcdUnreachable, None, vec![name])
    }
}

/// The keys with the draining mark, as they were written.
fn draining(keys: &StoredKeys) -> impl Iterator<Item = (String, i64)> {
    keys.keys().iter().filter(|key| key.is_draining()).map(|key| (key_name(key), key.mod_revision()))
}

fn not_left(keys: &StoredKeys, draining: &BTreeSet<(String, i64)>) -> Vec<Finding> {
    let is_left_over = |key: &&StoredKey| draining.contains(&(key_name(key), key.mod_revision()));
    let left_over: Vec<&StoredKey> = keys.keys().iter().filter(is_left_over).collect();
    let groups = left_over.chunk_by(|a, b| a.service() == b.service());
    let finding = |keys: &[&StoredKey]| {
        let names = keys.iter().map(|key| key_name(key)).collect();
        Finding::new(Kind::DrainingNotLeft, keys[0].service().map(ServiceName::as_str), names)
    };
    groups.map(finding).collect()
}

/// A time that a look may take.
fn limit(text: &str) -> Result<Duration, &'static str> {
    let limit = time(text)?;
    let is_within = (SHORTEST..=LONGEST).contains(&limit);
    if is_within { Ok(limit) } else { Err("expected 100ms to 60m") }
}

/// The limits of the times that can be set.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(3_600);

/// The time between the looks at what may change by itself: registrations and departures take less.
const SETTLING: Duration = Duration::from_millis(1_200);

/// The time that an instance has to leave after it was asked to.
const LEAVING: Duration = Duration::from_secs(5);

/// How often it is looked whether it has.
const LOOK_INTERVAL: Duration = Duration::from_millis(300);
