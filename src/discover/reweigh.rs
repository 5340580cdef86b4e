//! The weight that an operator sets: onto the keys of an instance, and on to its server, which answers by writing its
//! value anew.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::iter;
use tokio::time::{Instant, sleep, timeout_at};

use super::operate::{MARK_ATTEMPTS, MARK_RETRY};
use super::watcher::Watchers;
use crate::backoff::Backoff;
use crate::error::{ConfigError, EtcdError, EtcdErrorKind, RegistryError, WeightRefusal};
use crate::etcd::{CALL_LIMIT, Claimed, Kv, MAX_VALUE, Range, Scan, hex};
use crate::format::{Decoded, Entry};
use crate::instance::{Address, ServiceName};
use crate::targets::DISCOVERY;

/// One instance and the weight that it is to have.
#[derive(Clone, Copy)]
struct WeightOrder<'a> {
    service: &'a ServiceName,
    address: &'a Address,
    weight: u16,
}

/// What is to be written over a value, which is `seen`.
struct Change {
    key: String,
    seen: Kv,
    value: Vec<u8>,
    /// What the server itself wrote: the same as `value` where that takes an order back.
    base: Vec<u8>,
}

/// What became of a weight that was written.
enum Answer {
    /// The server wrote its value with this weight.
    Kept,
    /// The key holds something else.
    Replaced(Kv),
    /// The time is up, and the server's own value is back.
    Silence,
    /// The key is gone.
    Gone,
}

impl WeightOrder<'_> {
    fn gone(self) -> RegistryError {
        RegistryError::UnknownAddress { service: self.service.to_string(), address: self.address.to_string() }
    }

    fn not_kept(self, reason: WeightRefusal) -> RegistryError {
        RegistryError::WeightNotKept { service: self.service.to_string(), address: self.address.to_string(), reason }
    }

    fn unknown(self, failure: Option<EtcdError>) -> RegistryError {
        RegistryError::WeightUnknown {
            service: self.service.to_string(),
            address: self.address.to_string(),
            source: failure.map_or_else(|| "etcd did not answer in time".into(), Into::into),
        }
    }
}

impl Watchers {
    /// Sets the weight on every key of an instance, and waits until its server has written it as its own. Where a former
    /// process left a key behind, the answer for the other one counts.
    pub(crate) async fn set_weight(
        &self,
        service: &ServiceName,
        address: &Address,
        weight: u16,
    ) -> Result<(), RegistryError> {
        if weight == 0 {
            return Err(ConfigError::Option { option: "weight", value: "0".into(), expected: "1 to 65535" }.into());
        }
        let order = WeightOrder { service, address, weight };
        let keys = self.keys_at(service, address).await?;
        let answers = iter(keys).map(|kv| self.reweigh(order, kv)).buffer_unordered(AT_ONCE);
        let answers: Vec<Result<(), RegistryError>> = answers.collect().await;
        if answers.iter().any(Result::is_ok) {
            return Ok(());
        }
        Err(answers.into_iter().find_map(Result::err).unwrap_or_else(|| order.gone()))
    }

    /// Writes only against the revision that was seen, under the lease that the key has.
    async fn reweigh(&self, order: WeightOrder<'_>, mut seen: Kv) -> Result<(), RegistryError> {
        let deadline = Instant::now() + ANSWER_LIMIT;
        let (mut is_overwritten, mut rivals) = (false, Backoff::new(RIVAL_FIRST, RIVAL_MAX));
        for _ in 0..MARK_ATTEMPTS {
            let Some(change) = self.change(order, seen)? else { return Ok(()) };
            let mut lost = None;
            match self.write(&change, deadline).await {
                Ok(Claimed::Done(_)) if change.value == change.base => {
                    report(order, &change);
                    return Ok(());
                }
                Ok(Claimed::Done(_)) => {}
                // By this same call, whose answer was lost, or by another one.
                Ok(Claimed::Found(Some(kv))) if kv.value == change.value => {}
                Ok(Claimed::Found(Some(kv))) => {
                    (seen, is_overwritten) = (kv, false);
                    continue;
                }
                Ok(Claimed::Found(None)) => return Err(order.gone()),
                // Its lease is dead, and its key about to go.
                Err(Some(error)) if error.kind == EtcdErrorKind::NotFound => {
                    sleep(MARK_RETRY).await;
                    seen = change.seen;
                    continue;
                }
                Err(Some(error)) if error.is_final() => return Err(error.into()),
                // It may be written all the same.
                Err(error) => lost = error,
            }
            match self.answer(order, &change, deadline).await? {
                Answer::Kept => {
                    report(order, &change);
                    return Ok(());
                }
                Answer::Replaced(kv) => {
                    is_overwritten = kv.value == change.base;
                    // Another caller's order: the server may be about to answer it.
                    if self.layout.format.former(&kv.value).is_some() {
                        sleep(rivals.next()).await;
                    }
                    seen = kv;
                }
                // Which is all that was asked for.
                Answer::Silence if change.value == change.base => {
                    report(order, &change);
                    return Ok(());
                }
                Answer::Silence => {
                    let silence = order.not_kept(WeightRefusal::Silent);
                    return Err(lost.map_or(silence, RegistryError::from));
                }
                Answer::Gone => return Err(order.gone()),
            }
            if Instant::now() > deadline {
                break;
            }
        }
        if is_overwritten {
            return Err(order.not_kept(WeightRefusal::Overwritten));
        }
        Err(RegistryError::Contended { key: String::from_utf8_lossy(&seen.key).into_owned() })
    }

    /// What is to be written; `None` where the key has this weight already.
    fn change(&self, order: WeightOrder<'_>, seen: Kv) -> Result<Option<Change>, RegistryError> {
        let before = self.own(order, &seen.key, &seen.value).ok_or_else(|| order.gone())?;
        if before.draining {
            return Err(order.not_kept(WeightRefusal::Leaving));
        }
        if seen.lease == 0 {
            return Err(order.not_kept(WeightRefusal::NoLease));
        }
        let format = &self.layout.format;
        let key = String::from_utf8_lossy(&seen.key).into_owned();
        // Another call's order, or one that was cut off, is none of the server's own.
        let former = format.former(&seen.value);
        let Some(base) = former else {
            if self.states(order, &before) {
                return Ok(None);
            }
            let base = seen.value.clone();
            let value = self.reweighed(order, before, &seen)?;
            return Ok(Some(Change { key, seen, value, base }));
        };
        if self.own(order, &seen.key, &base).is_some_and(|own| self.states(order, &own)) {
            return Ok(Some(Change { key, seen, value: base.clone(), base }));
        }
        let value = self.reweighed(order, before, &seen)?;
        Ok(Some(Change { key, seen, value, base }))
    }

    /// The value that is seen, with the weight.
    fn reweighed(&self, order: WeightOrder<'_>, before: Decoded, seen: &Kv) -> Result<Vec<u8>, RegistryError> {
        let format = &self.layout.format;
        let refused = |reason: String| RegistryError::NoWeight { format: format!("{format:?}"), reason };
        // As the server is going to write it.
        let stated = Decoded { weight: Some(order.weight), ..Decoded::new(order.address.clone()) };
        let instance = self.layout.instance(order.service, stated);
        let entry = Entry::new(order.service, &instance, seen.lease, 0);
        let is_stated = format
            .decode(&format.segment(&entry), &format.encode(&entry))
            .is_ok_and(|decoded| self.states(order, &decoded));
        if !is_stated {
            let WeightOrder { weight, .. } = order;
            let default = self.layout.default_weight;
            return Err(refused(format!("a weight of {weight} is not stated, and would be read as {default}")));
        }
        let value = format.reweigh(&seen.value, order.weight).map_err(|error| refused(error.to_string()))?;
        let after = self.own(order, &seen.key, &value);
        let expected = Decoded { weight: Some(order.weight), ..before };
        if value.len() > MAX_VALUE || after != Some(expected) {
            // Readers would not see it.
            return Err(refused("the value of this key has no room for it".to_owned()));
        }
        Ok(value)
    }

    /// An error without a cause is that of the deadline.
    async fn write(&self, change: &Change, deadline: Instant) -> Result<Claimed, Option<EtcdError>> {
        let Change { key, seen, value, .. } = change;
        if seen.value == *value {
            // By a call that was cut off.
            return Ok(Claimed::Done(seen.mod_revision));
        }
        let Kv { lease, mod_revision, .. } = *seen;
        let put =
            self.ask(|member| async move { member.put_if(key, value.clone(), lease, mod_revision, CALL_LIMIT).await });
        timeout_at(deadline, put).await.map_or(Err(None), |put| put.map_err(Some))
    }

    /// Waits for the server to write its own value in place of the change, and puts the former one back if it does not.
    async fn answer(
        &self,
        order: WeightOrder<'_>,
        change: &Change,
        deadline: Instant,
    ) -> Result<Answer, RegistryError> {
        let mut pause = FIRST_LOOK;
        while Instant::now() < deadline {
            sleep(pause).await;
            pause = LOOK_INTERVAL.min(2 * pause);
            // A look that fails is worth another one until then.
            let Ok(Ok(now)) = timeout_at(deadline, self.look(&change.key)).await else { continue };
            if let Some(answer) = self.read(order, change, now.as_ref()) {
                return Ok(answer);
            }
        }
        let deadline = Instant::now() + PUT_BACK_LIMIT;
        let mut failure = None;
        while Instant::now() < deadline {
            match timeout_at(deadline, self.put_back(order, change)).await {
                Ok(Ok(Some(answer))) => return Ok(answer),
                // It changed at the last moment: the next look tells.
                Ok(Ok(None)) | Err(_) => {}
                Ok(Err(error)) => failure = Some(error),
            }
            sleep(LOOK_INTERVAL).await;
        }
        Err(order.unknown(failure))
    }

    async fn put_back(&self, order: WeightOrder<'_>, change: &Change) -> Result<Option<Answer>, EtcdError> {
        let now = self.look(&change.key).await?;
        if let Some(answer) = self.read(order, change, now.as_ref()) {
            return Ok(Some(answer));
        }
        let Some(Kv { lease, mod_revision, .. }) = now else { return Ok(Some(Answer::Gone)) };
        let Change { key, base, .. } = change;
        let put = self.ask(|member| async move {
            // Also where the change is not there: a put that is still under way then finds another revision.
            member.put_if(key, base.clone(), lease, mod_revision, CALL_LIMIT).await
        });
        Ok(matches!(put.await?, Claimed::Done(_)).then_some(Answer::Silence))
    }

    /// What a look at the key says of the change; `None` where it is not answered.
    fn read(&self, order: WeightOrder<'_>, change: &Change, now: Option<&Kv>) -> Option<Answer> {
        let Some(now) = now else { return Some(Answer::Gone) };
        if now.value == change.value {
            return (change.value == change.base).then_some(Answer::Kept);
        }
        if now.mod_revision == change.seen.mod_revision {
            return None;
        }
        let is_the_servers = self.layout.format.former(&now.value).is_none();
        let own = self.own(order, &now.key, &now.value).filter(|_| is_the_servers);
        let is_kept = own.is_some_and(|own| self.states(order, &own));
        Some(if is_kept { Answer::Kept } else { Answer::Replaced(now.clone()) })
    }

    async fn look(&self, key: &str) -> Result<Option<Kv>, EtcdError> {
        let range = &Range::key(key.to_owned());
        let take = |found: &mut Option<Kv>, kv: Kv| *found = Some(kv);
        let look = self.ask(|member| async move { member.list(range, Scan::new, CALL_LIMIT, take).await });
        Ok(look.await?.1)
    }

    /// The instance in a value, if it is the one that is meant.
    fn own(&self, order: WeightOrder<'_>, key: &[u8], value: &[u8]) -> Option<Decoded> {
        self.decode(order.service, key, value).filter(|decoded| decoded.address == *order.address)
    }

    /// Whether clients of this registry read the weight from it.
    fn states(&self, order: WeightOrder<'_>, decoded: &Decoded) -> bool {
        decoded.weight.unwrap_or(self.layout.default_weight) == order.weight
    }
}

fn report(order: WeightOrder<'_>, change: &Change) {
    let WeightOrder { service, address, weight } = order;
    tracing::info!(
        target: DISCOVERY,
        %service,
        %address,
        key = change.key,
        lease = hex(change.seen.lease),
        weight,
        "instance has another weight"
    );
}

/// How long a server may take to answer: an election of etcd fits in.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);

/// How long it may take to put a value back.
const PUT_BACK_LIMIT: Duration = Duration::from_secs(5);

/// When a key is looked at first: most servers have answered by then.
const FIRST_LOOK: Duration = Duration::from_millis(20);

/// The longest time between two looks, to which it grows.
const LOOK_INTERVAL: Duration = Duration::from_millis(160);

/// The longest first wait for the answer to another caller's order, before it is replaced.
const RIVAL_FIRST: Duration = Duration::from_millis(100);

/// The longest wait for that: a server that has answered many orders takes a second for the next one.
const RIVAL_MAX: Duration = Duration::from_secs(1);

/// How many keys of one address are seen to at once; more than one is rare.
const AT_ONCE: usize = 8;
