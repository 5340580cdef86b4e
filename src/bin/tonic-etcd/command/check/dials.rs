//! The addresses of all instances, dialled side by side, to findings.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use tokio::time::{Instant, timeout_at};
use tonic_etcd::Address;
use tonic_etcd::inspect::StoredKeys;

use super::dial::{Answer, dial};
use super::finding::Finding;
use super::keys::addresses;
use super::kind::{Kind, Level};

/// What listens at the addresses.
pub(super) struct Dials {
    answers: BTreeMap<Address, Answer>,
    /// How many addresses there was no time for.
    left_out: usize,
}

impl Dials {
    /// Dials every address once, until the deadline.
    pub(super) async fn of(keys: &StoredKeys, limit: Duration, deadline: Instant) -> Self {
        let all: Vec<Address> = addresses(keys).into_keys().collect();
        let count = all.len();
        let dials = stream::iter(all).map(|address| async move {
            let answer = dial(&address, limit).await;
            (address, answer)
        });
        let mut dials = dials.buffer_unordered(MOST_AT_ONCE);
        let mut answers = BTreeMap::new();
        while let Ok(Some((address, answer))) = timeout_at(deadline, dials.next()).await {
            answers.insert(address, answer);
        }
        let left_out = count - answers.len();
        Self { answers, left_out }
    }

    /// Whether a second look at the keys may clear something.
    pub(super) fn are_in_doubt(&self) -> bool {
        self.answers.values().any(|answer| !matches!(answer, Answer::Serves | Answer::Tls))
    }

    /// The findings of the addresses that are there before and after.
    pub(super) fn findings(&self, before: &StoredKeys, after: &StoredKeys) -> Vec<Finding> {
        let (before, after) = (addresses(before), addresses(after));
        let mut groups: BTreeMap<(Kind, String), Vec<String>> = BTreeMap::new();
        let mut sessions: BTreeMap<&str, (BTreeSet<&Address>, usize)> = BTreeMap::new();
        for (address, answer) in &self.answers {
            let Some(services) = before.get(address) else { continue };
            for service in
                services.iter().filter(|service| after.get(address).is_some_and(|now| now.contains(*service)))
            {
                let (tls, plain) = sessions.entry(service).or_default();
                match answer {
                    Answer::Tls => _ = tls.insert(address),
                    Answer::Serves | Answer::NotServing | Answer::NotGrpc(_) => *plain += 1,
                    _ => {}
                }
                if let Some((kind, name)) = judged(address, answer) {
                    groups.entry((kind, service.clone())).or_default().push(name);
                }
            }
        }
        for (service, (tls, plain)) in sessions {
            if !tls.is_empty() && plain > 0 {
                let names = tls.iter().map(|address| format!("{address} wants TLS, {plain} others do not"));
                groups.insert((Kind::ServicePartlyTls, service.to_owned()), names.collect());
            }
        }
        let finding = |((kind, service), names): ((Kind, String), _)| Finding::new(kind, Some(&service), names);
        groups.into_iter().map(finding).collect()
    }

    /// That there was no time for some: an error, for any of these may be down.
    pub(super) fn gap(&self) -> Option<Finding> {
        let name = format!("{} addresses were not dialled in time", self.left_out);
        let gap = Finding::new(Kind::CheckIncomplete, None, vec![name]).with_level(Level::Error);
        (self.left_out > 0).then_some(gap)
    }
}

fn judged(address: &Address, answer: &Answer) -> Option<(Kind, String)> {
    let (kind, reason) = match answer {
        Answer::Serves => return None,
        Answer::NotServing => (Kind::ServerNotServing, None),
        Answer::NotGrpc(reason) => (Kind::ServerNotGrpc, Some(reason.clone())),
        Answer::Http1 => (Kind::ServerHttp1, None),
        Answer::Tls => (Kind::ServerTls, None),
        Answer::Other(begin) => (Kind::ServerOther, Some(format!("it says {begin:?}"))),
        Answer::Silent => (Kind::ServerSilent, None),
        Answer::Closes => (Kind::ServerCloses, None),
        Answer::Refused => (Kind::AddressRefused, None),
        Answer::Unreachable(reason) => (Kind::AddressUnreachable, Some(reason.clone())),
        Answer::Unresolved(reason) => (Kind::AddressUnresolved, Some(reason.clone())),
    };
    Some((kind, reason.map_or_else(|| address.to_string(), |reason| format!("{address}: {reason}"))))
}

/// How many addresses are dialled at once: most systems let a process have 1,024 files open.
const MOST_AT_ONCE: usize = 200;
