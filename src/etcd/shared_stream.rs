//! One watch stream on one member, which all watches of a process share.
//!
//! ```text
//! Opening --opened--> Open --no watch is left for a while----------------> over
//!    |                 |  \--broken, or silent beyond doubt--> each watch ends with the error
//!    |                 +--another token is needed, or another member is drawn--> its watches move on
//!    +--failed--> each watch that waits gets the error
//! ```
//!
//! Its task alone reads the stream, so that a list of one service never holds up the events of another. It ends with
//! the cluster and the last watch.
//!
//! Whether the member is there is one question a stream, not one a watch. HTTP/2 pings find a dead connection, and
//! `require_leader` ends the stream of a member without a leader. What is left is something between that answers pings
//! in the member's place: `silence` finds that, and so does a watch that is not created in time. A single watch that a
//! member has forgotten is found by the checks of its source. A member that is slow is waited for.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{WatchOptions, WatchRequestSender, WatchResponse, WatchResponseStream};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};
use tonic::Code;

use super::connection::{Connection, StreamGuard};
use super::failure::{classify_status, failure};
use super::metrics::{Lag, Progress};
use super::range::Range;
use super::routes::Routes;
use super::silence::{Ask, Silence};
use super::spread::Spread;
use super::watch::{Reader, Watch, WatchMessage};
use crate::error::{EtcdError, EtcdErrorKind};
use crate::metrics;
use crate::targets::ETCD;
use crate::time::sleep_until;

/// A watch that is wanted.
pub(super) struct Wanted {
    pub(super) range: Range,
    /// The first revision that it tells of.
    pub(super) start: i64,
    pub(super) progress: Progress,
    /// Takes the watch, and the revision of the store when it was created.
    pub(super) answer: oneshot::Sender<Result<(Watch, i64), EtcdError>>,
}

/// The task of one stream.
pub(super) struct SharedStream {
    connection: Arc<Connection>,
    spread: Spread,
    wanted: mpsc::UnboundedReceiver<Wanted>,
    /// Watches that were dropped, and the way to say so.
    dropped: (mpsc::UnboundedSender<i64>, mpsc::UnboundedReceiver<i64>),
    routes: Routes<Wanted, Open>,
    /// Watches that the server is to end.
    ending: Vec<i64>,
    /// Set once the stream takes no further watches, and those that are open go elsewhere.
    is_retired: watch::Sender<bool>,
    silence: Silence,
    /// The newest revision of the store that a response named.
    revision: i64,
    /// Whether there are members to move to.
    has_others: bool,
    /// Held from the moment at which the stream is opened.
    guard: Option<StreamGuard>,
    /// When the oldest watch that was asked for is to be created.
    create_by: Option<Instant>,
    /// Before then, no watch that is not read holds up the others.
    patient_at: Instant,
    /// When it is shown next how far the watches are behind.
    show_at: Instant,
}

/// An open watch.
struct Open {
    range: Range,
    reader: Reader,
    messages: mpsc::Sender<WatchMessage>,
    lag: Lag,
}

/// What ends a stream.
enum End {
    /// It is not needed.
    Unused,
    Broken(EtcdErrorKind, String),
}

/// What waits for an answer from elsewhere, beside the stream.
type Asked = BoxFuture<'static, Answer>;

enum Answer {
    /// How far the store is.
    Store(Result<i64, EtcdError>),
    /// Whether the streams have another member now.
    Moved(bool),
}

impl SharedStream {
    pub(super) fn new(
        connection: Arc<Connection>,
        spread: Spread,
        wanted: mpsc::UnboundedReceiver<Wanted>,
        is_retired: watch::Sender<bool>,
    ) -> Self {
        let silence = Silence::new(Instant::now(), connection.is_mute());
        let has_others = spread.has_others();
        Self {
            connection,
            spread,
            wanted,
            dropped: mpsc::unbounded_channel(),
            routes: Routes::new(),
            ending: Vec::new(),
            is_retired,
            silence,
            revision: 0,
            has_others,
            guard: None,
            create_by: None,
            patient_at: Instant::now(),
            show_at: Instant::now(),
        }
    }

    /// Opens the stream with the first watch that is wanted, and serves watches until none is left.
    pub(super) async fn run(mut self) {
        while let Some(first) = self.wanted.recv().await {
            if first.answer.is_closed() {
                continue;
            }
            self.routes.add(first);
            match self.open().await {
                Ok((requests, responses)) => {
                    if let End::Broken(kind, reason) = self.serve(requests, responses).await {
                        self.fail(kind, &reason);
                    }
                }
                Err(error) => {
                    if matches!(error.kind, EtcdErrorKind::Deadline(_)) {
                        self.spread.forget(&self.connection);
                    }
                    self.fail(error.kind, &error.reason());
                }
            }
            return;
        }
    }

    async fn open(&mut self) -> Result<(WatchRequestSender, WatchResponseStream), EtcdError> {
        self.guard = Some(self.connection.hold_stream());
        let (id, wanted) = self.routes.next().expect("the first watch was just added");
        let options = wanted.options(id);
        let open = || {
            let (mut client, options) = (self.connection.watch.clone(), options.clone());
            async move { client.watch(wanted.range.start(), Some(options)).await }
        };
        let stream = self.connection.limited(WATCH, wanted.range.name(), OPEN_LIMIT, open).await?;
        self.on_asked();
        Ok(stream.split())
    }

    fn on_asked(&mut self) {
        self.routes.on_asked();
        self.create_by.get_or_insert_with(|| Instant::now() + OPEN_LIMIT);
    }

    /// The stream is over, or was never opened: so is every watch.
    fn fail(&mut self, kind: EtcdErrorKind, reason: &str) {
        self.take_wanted();
        for wanted in self.routes.take_pending() {
            let error = self.connection.refusal(WATCH, wanted.range.name(), kind, reason.to_owned());
            let _ = wanted.answer.send(Err(error));
        }
        for open in self.routes.opened() {
            // Where its queue is full, the end of the queue says so.
            let _ = open.messages.try_send(WatchMessage::Over(kind, reason.to_owned()));
        }
    }

    /// Takes in the watches that were wanted until now, and none from now on.
    fn take_wanted(&mut self) {
        self.wanted.close();
        while let Ok(wanted) = self.wanted.try_recv() {
            self.routes.add(wanted);
        }
    }

    async fn serve(&mut self, mut requests: WatchRequestSender, mut responses: WatchResponseStream) -> End {
        let mut asked: Option<Asked> = None;
        let mut draw_at = Instant::now() + self.spread.first_draw();
        let mut unused_at = None;
        let (mut retired, mut is_over) = (self.is_retired.subscribe(), false);
        let mut successors = self.spread.successors();
        loop {
            // Where the cluster is gone, no watch follows.
            let linger = if self.wanted.is_closed() { Duration::ZERO } else { LINGER };
            unused_at = self.routes.is_empty().then(|| unused_at.unwrap_or_else(|| Instant::now() + linger));
            self.routes.skip(|wanted| wanted.answer.is_closed());
            let silent_at = self.silence.due().filter(|_| asked.is_none() && unused_at.is_none());
            let takes_more = !(self.wanted.is_closed() && self.wanted.is_empty());
            tokio::select! {
                response = responses.message() => match response {
                    Ok(Some(response)) => self.on_response(response).await,
                    Ok(None) => return End::Broken(EtcdErrorKind::Unreachable, "the member ended the stream".to_owned()),
                    Err(error) => return self.broken(error),
                },
                Some(id) = self.dropped.1.recv() => self.ending.extend(self.routes.remove(id)),
                wanted = self.wanted.recv(), if takes_more => if let Some(wanted) = wanted {
                    self.routes.add(wanted);
                },
                sent = send(&mut requests, self.ending.last().copied(), self.routes.next()) => match sent {
                    Ok(Sent::End) => drop(self.ending.pop()),
                    Ok(Sent::Create) => self.on_asked(),
                    Err(error) => return self.broken(error),
                },
                answer = answer(&mut asked) => {
                    asked = None;
                    match answer {
                        Answer::Store(store) => match self.on_store(store) {
                            None => {}
                            Some(Ask::Sign) => sign(&mut requests),
                            Some(Ask::Store) => asked = self.ask_store(),
                            Some(Ask::Mute) => self.on_mute(),
                            Some(Ask::Leave) => {
                                self.spread.forget(&self.connection);
                                let reason = "the member answers nothing but pings".to_owned();
                                return End::Broken(EtcdErrorKind::Deadline(STORE_LIMIT), reason);
                            }
                        },
                        Answer::Moved(true) => {
                            self.is_retired.send_replace(true);
                        }
                        Answer::Moved(false) => draw_at = Instant::now() + self.spread.next_draw(),
                    }
                }
                () = sleep_until(silent_at) => match self.silence.on_due(Instant::now()) {
                    Ask::Store => asked = self.ask_store(),
                    _ => sign(&mut requests),
                },
                () = successors.named(), if !is_over => {
                    is_over = true;
                    self.is_retired.send_replace(true);
                }
                Ok(()) = retired.changed() => {
                    self.take_wanted();
                    self.tell(|| WatchMessage::MoveOn);
                }
                () = self.spread.displaced() => draw_at = draw_at.min(Instant::now() + self.spread.first_draw()),
                () = sleep_until(Some(draw_at)), if asked.is_none() && self.has_others && !self.wanted.is_closed() => {
                    let spread = self.spread.clone();
                    asked = Some(async move { Answer::Moved(spread.draw().await) }.boxed());
                    // Set anew by the answer.
                    draw_at = Instant::now() + OPEN_LIMIT;
                }
                () = sleep_until(self.create_by) => {
                    self.spread.forget(&self.connection);
                    let reason = "the member creates no watch".to_owned();
                    return End::Broken(EtcdErrorKind::Deadline(OPEN_LIMIT), reason);
                }
                () = sleep_until(unused_at) => {
                    self.take_wanted();
                    if self.routes.is_empty() {
                        return End::Unused;
                    }
                    // One came at the same moment; those that follow find another stream.
                    self.is_retired.send_replace(true);
                }
            }
        }
    }

    fn broken(&self, error: etcd_client::Error) -> End {
        let error = failure(self.connection.name(), WATCH, "", error);
        End::Broken(error.kind, error.reason())
    }

    async fn on_response(&mut self, response: WatchResponse) {
        let server = response.0.watch_id;
        let is_sign = server == OF_THE_STREAM && !response.0.created;
        self.silence.on_heard(Instant::now(), is_sign);
        if is_sign && self.connection.is_mute() {
            self.connection.set_mute(false);
        }
        self.connection.on_heard();
        let revision = response.0.header.as_ref().map_or(0, |header| header.revision);
        self.revision = self.revision.max(revision);
        if response.0.created {
            self.on_created(&response, revision);
            return;
        }
        if is_sign && !response.0.canceled {
            self.routes.opened().for_each(|open| open.lag.on_complete(revision));
        }
        self.show_lags(is_sign);
        let has_ended = response.0.canceled || response.0.compact_revision > 0;
        let Some(open) = self.routes.get(server) else { return };
        let Some(message) = open.reader.read(response) else {
            // A sign of life of this watch alone.
            open.lag.on_complete(revision);
            return open.lag.show(self.revision);
        };
        if let WatchMessage::Events(Some(complete), _) = &message {
            open.lag.on_complete(*complete);
            open.lag.show(self.revision);
        }
        // One that is not read holds up the others for a moment only, and not again soon.
        let is_sent = match open.messages.try_send(message) {
            Ok(()) => true,
            Err(TrySendError::Full(message)) if Instant::now() >= self.patient_at => {
                let sent = timeout(READ_LIMIT, open.messages.send(message)).await;
                self.patient_at = Instant::now() + READ_LIMIT * 10;
                matches!(sent, Ok(Ok(())))
            }
            Err(_) => false,
        };
        if has_ended {
            self.routes.on_ended(server);
        } else if !is_sent {
            self.routes.on_ended(server);
            self.ending.push(server);
        }
    }

    /// Shows how far the watches are behind, at once or now and then: others may have moved the store on.
    fn show_lags(&mut self, at_once: bool) {
        let now = Instant::now();
        if metrics::ENABLED && (at_once || now >= self.show_at) {
            self.show_at = now + SHOW_EVERY;
            let newest = self.revision;
            self.routes.opened().for_each(|open| open.lag.show(newest));
        }
    }

    /// A watch was created, or refused by the same kind of response.
    fn on_created(&mut self, response: &WatchResponse, revision: i64) {
        let is_refused = response.0.canceled;
        let Some((id, wanted)) = self.routes.on_answer(response.0.watch_id, !is_refused) else { return };
        self.create_by = self.routes.is_owed().then(|| Instant::now() + OPEN_LIMIT);
        let Wanted { range, start, progress, answer } = wanted;
        if is_refused {
            let reason = response.0.cancel_reason.clone();
            let kind = self.connection.as_seen_by_us(classify_status(Code::Unavailable, &reason));
            let _ = answer.send(Err(self.connection.refusal(WATCH, range.name(), kind, reason)));
            return;
        }
        let (sender, messages) = mpsc::channel(QUEUE);
        if self.connection.is_mute() {
            let _ = sender.try_send(WatchMessage::Mute);
        }
        if *self.is_retired.borrow() || self.spread.is_over() {
            let _ = sender.try_send(WatchMessage::MoveOn);
        }
        let (name, connection, dropped) = (range.name().to_owned(), self.connection.clone(), self.dropped.0.clone());
        self.routes.open(id, Open { range, reader: Reader::default(), messages: sender, lag: progress.lag(start - 1) });
        // Where it is not waited for any more, it is dropped here.
        let _ = answer.send(Ok((Watch { id, name, connection, messages, dropped }, revision)));
    }

    fn on_mute(&mut self) {
        tracing::debug!(target: ETCD, member = self.connection.name(), "member gives no signs of life on watches");
        self.connection.set_mute(true);
        self.tell(|| WatchMessage::Mute);
    }

    /// Tells all watches. One whose queue is full is ended: it begins again where it was.
    fn tell(&mut self, message: impl Fn() -> WatchMessage) {
        let is_full = |open: &mut Open| open.messages.try_send(message()).is_err();
        self.ending.extend(self.routes.end_those(is_full));
    }

    /// Asks the member how far the store is, by a range that may be read.
    fn ask_store(&mut self) -> Option<Asked> {
        let range = self.routes.opened().next().map(|open| &open.range);
        let range = range.or_else(|| self.routes.pending().next().map(|wanted| &wanted.range)).cloned();
        let Some(range) = range else {
            // All watches went meanwhile.
            self.silence.on_no_store(Instant::now(), false);
            return None;
        };
        let connection = self.connection.clone();
        Some(async move { Answer::Store(connection.revision(&range, STORE_LIMIT).await) }.boxed())
    }

    fn on_store(&mut self, store: Result<i64, EtcdError>) -> Option<Ask> {
        let now = Instant::now();
        match store {
            Ok(store) => self.silence.on_store(now, store > self.revision),
            Err(error) => self.silence.on_no_store(now, matches!(error.kind, EtcdErrorKind::Deadline(_))),
        }
    }
}

impl Wanted {
    fn options(&self, id: i64) -> WatchOptions {
        let options = WatchOptions::new().with_range(self.range.end()).with_start_revision(self.start);
        options.with_watch_id(id).with_progress_notify().with_fragment()
    }
}

/// What was sent.
enum Sent {
    End,
    Create,
}

/// Sends the next request, where there is one: the end of a watch first.
///
/// # Cancel safety
///
/// Cancel safe: a request is sent once this resolves, and not before.
async fn send(
    requests: &mut WatchRequestSender,
    ending: Option<i64>,
    wanted: Option<(i64, &Wanted)>,
) -> Result<Sent, etcd_client::Error> {
    match (ending, wanted) {
        (Some(id), _) => requests.cancel(id).await.map(|()| Sent::End),
        (None, Some((id, wanted))) => {
            requests.watch(wanted.range.start(), Some(wanted.options(id))).await.map(|()| Sent::Create)
        }
        (None, None) => pending().await,
    }
}

/// Asks for a sign of life; not where more requests wait than the member has read, which keep it busy.
fn sign(requests: &mut WatchRequestSender) {
    let _ = requests.request_progress().now_or_never();
}

async fn answer(asked: &mut Option<Asked>) -> Answer {
    match asked {
        Some(asked) => asked.await,
        None => pending().await,
    }
}

/// The operation of a watch in errors.
pub(super) const WATCH: &str = "watch";

/// The watch id of responses that are for the whole stream.
const OF_THE_STREAM: i64 = -1;

/// How long a stream may take to open. Pings find a member that is dead sooner.
const OPEN_LIMIT: Duration = Duration::from_secs(20);

/// How long a read of the store may take: an etcd that is slow is no reason to leave it.
const STORE_LIMIT: Duration = Duration::from_secs(15);

/// How many messages of a watch wait to be read.
const QUEUE: usize = 128;

/// How long a watch that is not read may hold up the others of its stream. It is ended then, and begins again where it
/// was.
const READ_LIMIT: Duration = Duration::from_secs(1);

/// How often it is shown at most how far watches are behind that hear nothing themselves.
const SHOW_EVERY: Duration = Duration::from_secs(1);

/// How long a stream without watches stays open: a watch often ends for a moment, while a list is made.
const LINGER: Duration = Duration::from_secs(5);
