//! One instance's state in the control task.

pub(crate) mod connection;
pub(crate) mod shared;
pub(crate) mod status;

use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::backoff::Backoff;
#[cfg(feature = "health")]
use crate::channel::balancer::health::Health;
use crate::channel::balancer::slow_start::SlowStart;
use crate::channel::outlier::{Ejection, OutlierDetection};
use crate::channel::policy::candidate::{Candidate, Load};
use crate::channel::subchannel::shared::Record;
use crate::channel::subchannel::status::Connectivity;
use crate::instance::Address;
use crate::snapshot::{Member, MemberState};

/// The first wait after a failure to connect, and the longest: gRPC waits 1 s to 120 s, made for the internet; in a data
/// centre a restarted server is wanted back at once, and a dead one is asked for often enough every 10 s.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(10);

/// How long an instance that failed must stand, unless it answers a call, before nobody stands in for it: several times longer
/// than a server takes that accepts and then ends.
const SETTLED: Duration = Duration::from_secs(1);

/// Whether a connection is a good one: it answered a call, or stands for so long.
fn is_proven(load: &Load, since: Instant, long: Duration) -> bool {
    since.elapsed() >= long || load.link().is_some_and(|link| link.report.answered() > 0)
}

/// One instance's state in the control task.
pub(crate) struct Entry {
    pub(crate) member: Member,
    pub(crate) record: Arc<Record>,
    pub(crate) phase: Phase,
    pub(crate) ejection: Ejection,
    pub(crate) backoff: Backoff,
    /// Its rank in the subset, if there is one.
    pub(crate) rank: u64,
    /// Since when it is READY as a new instance, and until then whether it is one.
    new_since: Option<Instant>,
    is_new: bool,
    /// Whether an attempt to connect or a connection of it failed before the present one.
    is_back: bool,
    /// Its earlier connections, as far as they still have calls: a word to each gives its streams a limit.
    retired: Vec<oneshot::Sender<()>>,
}

/// Where the connection to an instance stands. Each wish, attempt and connection has a generation, so that news of an
/// earlier one is recognised.
pub(crate) enum Phase {
    /// Waits for its turn to connect.
    Queued { generation: u64 },
    /// An attempt is under way.
    Connecting { generation: u64 },
    /// Connected; calls are chosen for `load`. A word through `retire` gives its streams a limit.
    Ready {
        load: Arc<Load>,
        generation: u64,
        since: Instant,
        retire: oneshot::Sender<()>,
        #[cfg(feature = "health")]
        health: Health,
    },
    /// The last attempt failed, and the next one waits for its time.
    Backoff { generation: u64 },
    /// It is ejected and lost its connection: the probe brings the next one.
    Benched,
    /// It is not in the channel's subset.
    Aside,
    /// It left the list without a word, or said that it leaves, and its connection ended.
    Gone,
}

impl Entry {
    /// A new instance, which is nothing yet.
    pub(crate) fn new(member: Member) -> Self {
        let record = Arc::new(Record::new(member.shared_instance().clone()));
        record.draining.store(member.state() == MemberState::Draining, Ordering::Relaxed);
        Self {
            member,
            record,
            phase: Phase::Gone,
            ejection: Ejection::default(),
            backoff: Backoff::new(FIRST_BACKOFF, MAX_BACKOFF),
            rank: 0,
            new_since: None,
            is_new: true,
            is_back: false,
            retired: Vec::new(),
        }
    }

    pub(crate) fn address(&self) -> &Address {
        &self.member.instance().address
    }

    /// Whether calls may be chosen for it: it is connected, and does not say that it is not well.
    pub(crate) fn is_ready(&self) -> bool {
        match &self.phase {
            #[cfg(feature = "health")]
            Phase::Ready { health, .. } => health.is_good(),
            #[cfg(not(feature = "health"))]
            Phase::Ready { .. } => true,
            _ => false,
        }
    }

    /// Whether calls go to it, or will soon: it neither failed nor leaves.
    pub(crate) fn is_fit(&self) -> bool {
        let stays = match self.member.state() {
            MemberState::Live => true,
            // It lives by its connection: an etcd that forgets everybody must not make each client dial all of them.
            MemberState::InQuestion => self.is_ready(),
            MemberState::Draining => false,
        };
        let is_trusted = !self.ejection.is_out() && !self.ejection.is_on_probation();
        let is_good = match &self.phase {
            // A server that has not yet said how it is will soon.
            Phase::Queued { .. } | Phase::Connecting { .. } => self.record.cause().is_none(),
            Phase::Ready { load, since, .. } => {
                let is_settled = !self.is_back || is_proven(load, *since, SETTLED);
                is_settled && (self.is_ready() || self.record.cause().is_none())
            }
            _ => false,
        };
        stays && is_trusted && is_good
    }

    /// When an instance that came back stands long enough to need no stand-in: one that comes back only to go again would let
    /// that come and go as often.
    pub(crate) fn settles_at(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Ready { since, .. } if self.is_back => Some(*since + SETTLED),
            _ => None,
        }
    }

    /// Takes no more calls and wants no connection: others are in the channel's subset.
    pub(crate) fn set_aside(&mut self) {
        self.unseat();
        self.is_back = false;
        self.phase = Phase::Aside;
        self.record.set_state(Connectivity::Idle);
        self.record.set_cause(None);
    }

    fn is_connected(&self) -> bool {
        matches!(self.phase, Phase::Ready { .. })
    }

    /// Whether calls are chosen for the connection of this generation.
    pub(crate) fn is_seated_by(&self, generation: u64) -> bool {
        matches!(self.phase, Phase::Ready { generation: load, .. } if load == generation)
    }

    /// Whether both are about the very same registration, as a look at the pointers tells.
    pub(crate) fn is_same(&self, member: &Member) -> bool {
        Arc::ptr_eq(self.member.shared_instance(), member.shared_instance())
    }

    pub(crate) fn is_unchanged(&self, member: &Member) -> bool {
        self.member.state() == member.state()
            && self.member.lease() == member.lease()
            && (self.is_same(member) || self.member.instance() == member.instance())
    }

    /// What share of its weight it has by now, in percent.
    pub(crate) fn percent(&self, slow_start: SlowStart, now: Instant) -> u32 {
        self.new_since.map_or(100, |since| slow_start.percent(since, now))
    }

    /// What a policy chooses from, if it is READY.
    pub(crate) fn candidate(&self) -> Option<Candidate> {
        match &self.phase {
            Phase::Ready { load, .. } => Some(Candidate::new(load.clone(), self.member.shared_instance().clone())),
            _ => None,
        }
    }

    /// An attempt to connect failed. Who answers the next one is a new process, most likely: its key may tell so only later.
    pub(crate) fn found_nobody(&mut self) {
        self.is_new = true;
        self.is_back = true;
    }

    /// Who is READY for the first time begins slowly now.
    fn begin(&mut self) {
        if self.is_ready() && mem::take(&mut self.is_new) {
            self.new_since = Some(Instant::now());
        }
    }

    /// A connection is there.
    pub(crate) fn take_seat(
        &mut self,
        load: Arc<Load>,
        generation: u64,
        retire: oneshot::Sender<()>,
        #[cfg(feature = "health")] health: Health,
    ) {
        self.record.load.store(Some(load.clone()));
        self.record.generation.store(generation, Ordering::Relaxed);
        self.phase = Phase::Ready {
            load,
            generation,
            since: Instant::now(),
            retire,
            #[cfg(feature = "health")]
            health,
        };
        self.begin();
        self.record.set_state(if self.is_ready() { Connectivity::Ready } else { Connectivity::Connecting });
        self.record.set_cause(None);
    }

    /// Its server says how it is.
    #[cfg(feature = "health")]
    pub(crate) fn hear_health(&mut self, verdict: crate::channel::balancer::health::Verdict) {
        let Phase::Ready { health, .. } = &mut self.phase else { return };
        health.set(verdict.is_ok());
        self.record.set_state(if verdict.is_ok() { Connectivity::Ready } else { Connectivity::TransientFailure });
        self.record.set_cause(verdict.err());
        self.begin();
    }

    /// Takes no more calls on the present connection, whose streams go on. Tells whether it was a good one: it answered a
    /// call, or stood for longer than anybody backs off.
    pub(crate) fn unseat(&mut self) -> bool {
        self.record.load.store(None);
        match mem::replace(&mut self.phase, Phase::Gone) {
            Phase::Ready { load, since, retire, .. } => {
                load.close();
                self.retired.retain(|retire| !retire.is_closed());
                self.retired.push(retire);
                let is_good = is_proven(&load, since, MAX_BACKOFF);
                self.is_back = !is_good;
                is_good
            }
            _ => false,
        }
    }

    /// The instance left the list: the streams of all its connections finish within a limit.
    pub(crate) fn leave(mut self) {
        self.unseat();
        for retire in self.retired {
            // Its connection may be gone already.
            let _ = retire.send(());
        }
    }

    /// A new process stands at the address: what its predecessor did does not count.
    pub(crate) fn forgive(&mut self) {
        // Whose connection stands is the process that it was, with another lease.
        self.is_new |= !self.is_connected();
        self.ejection.clear();
        self.backoff.reset();
        self.record.tally.reset();
        self.record.ejected.store(false, Ordering::Relaxed);
        self.record.set_cause(None);
        self.open_seat();
    }

    /// Leaves the instance out for a while; tells until when, unless it is out already.
    pub(crate) fn eject(&mut self, now: Instant, outliers: &OutlierDetection) -> Option<Instant> {
        if self.ejection.is_out() {
            return None;
        }
        self.ejection.eject(now, outliers);
        if !self.is_connected() && !matches!(self.phase, Phase::Gone) {
            self.phase = Phase::Benched;
            self.record.set_state(Connectivity::Idle);
        }
        self.record.tally.reset();
        self.record.ejected.store(true, Ordering::Relaxed);
        // Where nothing else is READY it takes all calls, and not one at a time.
        self.open_seat();
        self.ejection.due()
    }

    /// If its time out is over: one call at a time may come, on a new connection. Tells whether it is.
    pub(crate) fn probe(&mut self, now: Instant) -> bool {
        let is_over = self.ejection.probe(now);
        if is_over {
            self.record.ejected.store(false, Ordering::Relaxed);
            self.unseat();
            // No connection decides until the next one is there.
            self.record.generation.store(0, Ordering::Relaxed);
            self.record.tally.begin_probation();
        }
        is_over
    }

    /// A call that does not count was answered on probation.
    pub(crate) fn keep_on_probation(&self) {
        if self.ejection.is_on_probation() {
            self.record.tally.begin_probation();
        }
    }

    /// A call on probation was answered.
    pub(crate) fn proved(&mut self) {
        self.ejection.proved(Instant::now());
        self.open_seat();
    }

    /// As many calls may come as the peer allows.
    fn open_seat(&self) {
        if let Phase::Ready { load, .. } = &self.phase
            && let Some(link) = load.link()
        {
            load.set_limit(link.peer_limit.load(Ordering::Relaxed));
        }
    }
}

#[cfg(all(test, feature = "health"))]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::instance::Instance;

    #[tokio::test(start_paused = true)]
    async fn an_instance_starts_slowly_from_the_moment_at_which_its_server_says_that_it_serves() {
        let instance = Instance::new("echo", SocketAddr::from(([127, 0, 0, 1], 1)));
        let mut entry = Entry::new(Member::new(Arc::new(instance), 1, MemberState::Live));
        let slow_start = SlowStart::new(Duration::from_secs(90));
        let (watch, _watched) = oneshot::channel();
        let (retire, _retired) = oneshot::channel();
        let asking = Health::Watched { is_serving: false, _watch: watch };
        entry.take_seat(Load::new(1, None), 1, retire, asking);
        tokio::time::advance(Duration::from_secs(900)).await;
        entry.hear_health(Err("it warms up".into()));
        tokio::time::advance(Duration::from_secs(900)).await;
        entry.hear_health(Ok(()));
        assert_eq!(entry.percent(slow_start, Instant::now()), 10);
        tokio::time::advance(Duration::from_secs(45)).await;
        entry.hear_health(Ok(()));
        assert_eq!(entry.percent(slow_start, Instant::now()), 55, "it does not begin anew");
    }
}
