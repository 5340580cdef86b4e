//! The weight that an operator sets: onto the keys of an instance, and on to its server, which answers by writing its
//! value anew.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::iter;
use tokio::time::{Instant, sleep};

use super::operate::{MARK_ATTEMPTS, MARK_RETRY};
use super::watcher::Watchers;
use crate::error::{ConfigError, EtcdErrorKind, RegistryError};
use crate::etcd::{CALL_LIMIT, Claimed, Kv, MAX_VALUE, Range, Scan, hex};
use crate::format::Decoded;
use crate::instance::{Address, Instance, ServiceName};
use crate::targets::DISCOVERY;

/// One instance and the weight that it is to have.
#[derive(Clone, Copy)]
struct Target<'a> {
    service: &'a ServiceName,
    address: &'a Address,
    weight: u16,
}

/// What became of a weight that was written.
enum Answer {
    /// The server wrote its value with this weight.
    TakenUp,
    /// The key holds something else.
    Replaced(Kv),
    /// The time is up, and the former value is back.
    Silence,
}

impl Target<'_> {
    fn is_gone(self) -> RegistryError {
        RegistryError::UnknownAddress { service: self.service.to_string(), address: self.address.to_string() }
    }

    fn is_not_kept(self, reason: &'static str) -> RegistryError {
        RegistryError::WeightNotKept { service: self.service.to_string(), address: self.address.to_string(), reason }
    }
}

impl Watchers {
    /// Sets the weight on every key of an instance, and waits until its server has taken it up. Where a former process
    /// left a key behind, the answer for the other one counts.
    pub(crate) async fn set_weight(
        &self,
        service: &ServiceName,
        address: &Address,
        weight: u16,
    ) -> Result<(), RegistryError> {
        if weight == 0 {
            return Err(ConfigError::Option { option: "weight", value: "0".into(), expected: "1 to 65535" }.into());
        }
        let target = Target { service, address, weight };
        let keys = self.keys_at(service, address).await?;
        let answers = iter(keys).map(|kv| self.reweigh(target, kv)).buffer_unordered(AT_ONCE);
        let answers: Vec<Result<(), RegistryError>> = answers.collect().await;
        if answers.iter().any(Result::is_ok) {
            return Ok(());
        }
        Err(answers.into_iter().find_map(Result::err).unwrap_or_else(|| target.is_gone()))
    }

    /// Writes only against the revision that was seen, under the lease that the key has.
    async fn reweigh(&self, target: Target<'_>, mut seen: Kv) -> Result<(), RegistryError> {
        let key = String::from_utf8_lossy(&seen.key).into_owned();
        let deadline = Instant::now() + TAKE_UP_LIMIT;
        for _ in 0..MARK_ATTEMPTS {
            let reweighed = self.reweighed(target, &seen)?;
            let Some(reweighed) = reweighed else { return Ok(()) };
            let Kv { lease, mod_revision, .. } = seen;
            let (name, value) = (&key, &reweighed);
            let written = if seen.value == reweighed {
                // By a call that was cut off.
                Ok(Claimed::Done(mod_revision))
            } else {
                self.ask(
                    |member| async move { member.put_if(name, value.clone(), lease, mod_revision, CALL_LIMIT).await },
                )
                .await
            };
            match written {
                Ok(Claimed::Done(_)) => match self.answer(target, &key, &seen, &reweighed, deadline).await? {
                    Answer::TakenUp => {
                        let Target { service, address, weight } = target;
                        tracing::info!(
                            target: DISCOVERY,
                            %service,
                            %address,
                            key,
                            lease = hex(lease),
                            weight,
                            "instance has another weight"
                        );
                        return Ok(());
                    }
                    Answer::Replaced(kv) => seen = kv,
                    Answer::Silence => return Err(target.is_not_kept(SILENCE)),
                },
                // Among others by this same call, whose answer was lost.
                Ok(Claimed::Found(Some(kv))) => seen = kv,
                Ok(Claimed::Found(None)) => return Err(target.is_gone()),
                // Its lease is dead, and its key about to go.
                Err(error) if error.kind == EtcdErrorKind::NotFound => sleep(MARK_RETRY).await,
                Err(error) => return Err(error.into()),
            }
            if Instant::now() > deadline {
                return Err(target.is_not_kept(OVERWRITTEN));
            }
        }
        Err(target.is_not_kept(OVERWRITTEN))
    }

    /// The value to write; `None` where the key has this weight already.
    fn reweighed(&self, target: Target<'_>, seen: &Kv) -> Result<Option<Vec<u8>>, RegistryError> {
        let before = self.own(target, seen).ok_or_else(|| target.is_gone())?;
        if before.draining {
            return Err(target.is_not_kept("it is leaving"));
        }
        if seen.lease == 0 {
            return Err(
                target.is_not_kept("its key has no lease, so no server keeps it: put it again, with the weight")
            );
        }
        let format = &self.layout.format;
        let Some(reweighed) = format.reweigh(&seen.value, target.weight) else {
            return Err(RegistryError::NoWeight { format: format!("{format:?}") });
        };
        if reweighed != seen.value && states(&before, target.weight) {
            return Ok(None);
        }
        let after = self.own(target, &Kv { value: reweighed.clone(), ..seen.clone() });
        let expected = Decoded { weight: Some(target.weight), ..before };
        if reweighed.len() > MAX_VALUE || after != Some(expected) {
            // Readers would not see it.
            return Err(RegistryError::NoWeight { format: format!("{format:?}, in the value of this key,") });
        }
        Ok(Some(reweighed))
    }

    /// Waits for the server to write its own value in place of `reweighed`, and puts the former one back if it does not.
    async fn answer(
        &self,
        target: Target<'_>,
        key: &str,
        former: &Kv,
        reweighed: &[u8],
        deadline: Instant,
    ) -> Result<Answer, RegistryError> {
        loop {
            sleep(LOOK_INTERVAL).await;
            let range = &Range::key(key.to_owned());
            let take = |found: &mut Option<Kv>, kv: Kv| *found = Some(kv);
            let look = self.ask(|member| async move { member.list(range, Scan::new, CALL_LIMIT, take).await });
            let Some(kv) = look.await?.1 else { return Err(target.is_gone()) };
            if kv.value != reweighed {
                let is_taken_up = self.own(target, &kv).is_some_and(|now| states(&now, target.weight));
                return Ok(if is_taken_up { Answer::TakenUp } else { Answer::Replaced(kv) });
            }
            if Instant::now() < deadline {
                continue;
            }
            let put_back = self.ask(|member| async move {
                member.put_if(key, former.value.clone(), kv.lease, kv.mod_revision, CALL_LIMIT).await
            });
            match put_back.await? {
                // It changed at the last moment: the next look tells.
                Claimed::Found(Some(kv)) if kv.value != former.value => {}
                Claimed::Done(_) | Claimed::Found(Some(_)) => return Ok(Answer::Silence),
                Claimed::Found(None) => return Err(target.is_gone()),
            }
        }
    }

    /// The instance in a key, if it is the one that is meant.
    fn own(&self, target: Target<'_>, kv: &Kv) -> Option<Decoded> {
        self.decode(target.service, kv).filter(|decoded| decoded.address == *target.address)
    }
}

/// Whether a server states this weight: the default one may be stated by its absence.
fn states(decoded: &Decoded, weight: u16) -> bool {
    decoded.weight.unwrap_or(Instance::DEFAULT_WEIGHT) == weight
}

/// Why a weight was put back.
const SILENCE: &str = "its server did not take the weight up within 3 s, so it is another program's, frozen, or cut off \
                       from etcd";

/// Why a weight is not tried again.
const OVERWRITTEN: &str = "its server writes its own weight over it, as other programs do";

/// How long a server may take to take a weight up: an election of etcd fits in.
const TAKE_UP_LIMIT: Duration = Duration::from_secs(3);

/// How often a key is looked at meanwhile.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// How many keys of one address are seen to at once; more than one is rare.
const AT_ONCE: usize = 8;
