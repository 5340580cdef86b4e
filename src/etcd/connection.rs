//! One connection to one member: its login, and how each call on it ends. The only file that builds an
//! `etcd_client::Client`.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Error as ClientError, GetOptions, KvClient, WatchClient};
use futures_util::FutureExt;
use tokio::sync::{OnceCell, oneshot};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::Instrument;

use super::credentials::Credentials;
use super::failure::{add_hint, failure};
use super::limits::CALL_LIMIT;
use super::login::{Authentication, LoginFailure, Logins, NoCredentials, NoToken};
use super::metrics::on_call;
use super::target::Target;
use super::token::{Token, TokenSlot};
use crate::backoff::spread;
use crate::error::{EtcdError, EtcdErrorKind, chain};
use crate::targets::ETCD;

/// One connection to one member. Streams opened on it keep it open after the cluster has moved on to a new one.
pub(crate) struct Connection {
    index: usize,
    name: Arc<str>,
    target: Target,
    pub(super) client: Client,
    pub(super) kv: KvClient,
    pub(super) watch: WatchClient,
    logins: Option<MemberLogins>,
    /// The token that requests carry.
    slot: TokenSlot,
    proof: Mutex<Proof>,
    /// Ends the task that uses the token.
    _keeper: oneshot::Receiver<()>,
    /// Set once the member was asked for the id of its cluster.
    pub(super) was_asked: OnceCell<()>,
    /// When the member was heard on it the last time.
    heard: Mutex<Option<Instant>>,
    streams: AtomicUsize,
    signs: Arc<Signs>,
}

/// What a member was seen to do, on any of its connections.
#[derive(Debug, Default)]
pub(super) struct Signs {
    /// Whether it gives no signs of life on watches.
    is_mute: AtomicBool,
    /// Whether it was ever heard.
    was_heard: AtomicBool,
}

/// The logins of the cluster, and the member's place there.
type MemberLogins = (Arc<Logins>, usize);

/// Counts as an open stream of a connection until it is dropped.
pub(crate) struct StreamGuard(Arc<Connection>);

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether the member takes the token.
#[derive(Default)]
struct Proof {
    /// The token that the member took over this connection, and when.
    taken: Option<(Arc<Token>, Instant)>,
    /// When a stream was denied, maybe for its token.
    doubted: Option<Instant>,
}

impl Connection {
    /// Opens it lazily: nothing is dialled before the first call.
    pub(super) async fn open(
        index: usize,
        name: Arc<str>,
        target: &Target,
        logins: Option<MemberLogins>,
        signs: Arc<Signs>,
    ) -> Result<Arc<Self>, EtcdError> {
        // Without a user `from_channel` does no I/O; with one it would log in, for itself and without a deadline. A
        // token is nothing that it takes from elsewhere: the channel below adds it.
        let options = ConnectOptions::new().with_require_leader(true);
        let slot = logins.as_ref().map(|(logins, place)| logins.slot(*place)).unwrap_or_default();
        let channel = match &logins {
            Some(_) => slot.add_to(target.channel()),
            None => etcd_client::Channel::Tonic(target.channel()),
        };
        let client = Client::from_channel(channel, Some(options)).await;
        let client = client.map_err(|error| failure(&name, "connect", "", error))?;
        let (dropped, keeper) = oneshot::channel();
        let connection = Arc::new(Self {
            index,
            name,
            target: target.clone(),
            kv: client.kv_client().max_decoding_message_size(DECODE_LIMIT),
            watch: client.watch_client().max_decoding_message_size(DECODE_LIMIT),
            client,
            slot,
            proof: Mutex::default(),
            _keeper: keeper,
            logins,
            was_asked: OnceCell::new(),
            heard: Mutex::new(None),
            streams: AtomicUsize::new(0),
            signs,
        });
        if connection.logins.is_some() {
            connection.keep_token(dropped);
        }
        Ok(connection)
    }

    /// The token that requests carry now.
    pub(super) fn token(&self) -> Option<Arc<Token>> {
        self.slot.token()
    }

    /// The member was heard on it.
    pub(crate) fn on_heard(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        if !self.signs.was_heard.load(Ordering::Relaxed) {
            self.signs.was_heard.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the member was heard on it that short a while ago.
    pub(crate) fn was_heard_within(&self, time: Duration) -> bool {
        let heard = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.is_some_and(|heard| heard.elapsed() <= time)
    }

    /// A stream is open on it until the guard is dropped: HTTP/2 pings go out meanwhile.
    pub(crate) fn hold_stream(self: &Arc<Self>) -> StreamGuard {
        self.streams.fetch_add(1, Ordering::Relaxed);
        StreamGuard(self.clone())
    }

    /// Whether a stream is open on it.
    pub(super) fn has_streams(&self) -> bool {
        self.streams.load(Ordering::Relaxed) > 0
    }

    /// Whether its member gives no signs of life on watches.
    pub(super) fn is_mute(&self) -> bool {
        self.signs.is_mute.load(Ordering::Relaxed)
    }

    /// Its member gives none, on whichever connection; or it does after all, since another version took its place.
    pub(super) fn set_mute(&self, is_mute: bool) {
        self.signs.is_mute.store(is_mute, Ordering::Relaxed);
    }

    /// The member's place in its cluster.
    pub(super) fn index(&self) -> usize {
        self.index
    }

    /// The member's URL.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Makes sure of a token that the member takes, if one is needed: the cluster's, or a fresh one from a login.
    ///
    /// # Errors
    ///
    /// A login that is under way beyond the deadline is no fault of the member: [`EtcdErrorKind::LoginPending`].
    pub(super) async fn log_in(&self, deadline: Instant, limit: Duration) -> Result<(), EtcdError> {
        let Some((logins, place)) = &self.logins else { return Ok(()) };
        loop {
            let token = logins.token(*place, deadline, |credentials| self.authenticate(credentials, *place)).await;
            let token = token.map_err(|none| self.no_token(none, limit))?;
            if self.is_proven(&token, *place) {
                return Ok(());
            }
            let asked = Instant::now();
            match timeout_at(deadline, self.prove(&token)).await {
                Ok(Err(error)) if error.kind == EtcdErrorKind::Token => {}
                Ok(proven) => return proven,
                // The login may have left it little time, which is then nothing that the member did.
                Err(_) => return Err(self.deadline(PROOF, USERS, asked.elapsed())),
            }
        }
    }

    /// A login at this member, over a connection of its own: that of the calls is given up sooner, and a login that
    /// ends with it is one that etcd hashes in vain.
    fn authenticate(&self, credentials: Credentials, member: usize) -> Authentication {
        let (name, channel) = (self.name.clone(), etcd_client::Channel::Tonic(self.target.patient().channel()));
        let Credentials { user, password } = credentials;
        let (was_heard, is_plain) = (self.signs.was_heard.load(Ordering::Relaxed), self.target.is_plain());
        let authenticate = async move {
            let answer = async {
                let options = ConnectOptions::new().with_require_leader(true);
                let mut client = Client::from_channel(channel, Some(options)).await?.auth_client();
                client.authenticate(user.clone(), password).await
            };
            let error = match answer.await {
                Ok(answer) => {
                    let refuse = |error| LoginFailure {
                        kind: EtcdErrorKind::Refused,
                        member: name,
                        user,
                        reason: chain(&error),
                    };
                    return Token::new(answer.token(), member).map(Arc::new).map_err(refuse);
                }
                // Then the member wants no login.
                Err(ClientError::GRpcStatus(status)) if status.message().contains("authentication is not enabled") => {
                    return Ok(Arc::new(Token::not_needed(member)));
                }
                Err(error) => error,
            };
            let mut error = failure(&name, LOGIN, &user, error);
            if !was_heard {
                add_hint(&mut error, true, is_plain);
            }
            let kind = if error.kind == EtcdErrorKind::Denied { EtcdErrorKind::Login } else { error.kind };
            Err(LoginFailure { kind, member: name, user, reason: error.reason() })
        };
        authenticate.boxed()
    }

    fn no_token(&self, none: NoToken, limit: Duration) -> EtcdError {
        let error = |kind, source| EtcdError {
            kind,
            member: self.name.to_string(),
            operation: LOGIN,
            key: USERS.to_owned(),
            source: Some(source),
        };
        match none {
            NoToken::Credentials(none @ NoCredentials::Failed(_)) => error(EtcdErrorKind::Login, Box::new(none)),
            NoToken::Credentials(none @ NoCredentials::TooEarly) => error(EtcdErrorKind::Withheld, Box::new(none)),
            NoToken::Unprovided => {
                let reason = format!("the provider of credentials did not answer within {limit:?}");
                error(EtcdErrorKind::Login, reason.into())
            }
            NoToken::Pending => {
                let reason = format!("etcd has not answered it within {limit:?}");
                error(EtcdErrorKind::LoginPending, reason.into())
            }
            NoToken::Late(limit) => self.deadline(LOGIN, USERS, limit),
            NoToken::Failed(LoginFailure { kind, user, reason, .. }) => {
                EtcdError { key: user, ..error(kind, reason.into()) }
            }
        }
    }

    /// Shows that the member takes a token, by a read that needs nothing else. A stream cannot show it: on a watch,
    /// etcd up to 3.5 says the same of a token that is not valid as of a permission that is missing.
    async fn prove(&self, token: &Arc<Token>) -> Result<(), EtcdError> {
        let mut kv = self.kv.clone();
        let options = GetOptions::new().with_serializable().with_count_only();
        let answer = kv.get(ANY_KEY, Some(options)).await.map_err(|error| self.failure(PROOF, USERS, error));
        match answer {
            Err(error) if error.kind == EtcdErrorKind::Token => {
                self.on_token_refused(token);
                Err(error)
            }
            Err(error) if error.is_worth_another_member() => Err(error),
            // Also if the user may not read this key.
            _ => {
                self.proof().taken = Some((token.clone(), Instant::now()));
                Ok(())
            }
        }
    }

    /// Whether the member took the token, or gave it out, a moment ago.
    fn is_proven(&self, token: &Arc<Token>, place: usize) -> bool {
        let proof = self.proof();
        let proven = proof.taken.as_ref().filter(|(proven, _)| Arc::ptr_eq(proven, token)).map(|(_, at)| *at);
        let newest = proven.max(token.given_by(place));
        newest.is_some_and(|at| at.elapsed() < PROOF_AGE && Some(at) > proof.doubted)
    }

    /// Whether the member answers a read that it needs no other member for, be it with an error.
    pub(crate) async fn answers(&self, limit: Duration) -> bool {
        let mut kv = self.kv.clone();
        let options = GetOptions::new().with_serializable().with_count_only();
        let read = timeout(limit, kv.get(ANY_KEY, Some(options))).await;
        let is_answer = |error: ClientError| {
            !matches!(self.failure(SIGN, ANY_KEY, error).kind, EtcdErrorKind::Unreachable | EtcdErrorKind::Tls)
        };
        let has_answered = read.is_ok_and(|answer| answer.map_or_else(is_answer, |_| true));
        if has_answered {
            self.on_heard();
        }
        has_answered
    }

    fn on_token_refused(&self, token: &Arc<Token>) {
        if let Some((logins, place)) = &self.logins {
            logins.on_token_refused(*place, token);
        }
    }

    /// A stream was denied, maybe for its token: that has to prove itself before the next one.
    pub(super) fn on_token_doubted(&self) {
        self.proof().doubted = Some(Instant::now());
    }

    fn proof(&self) -> MutexGuard<'_, Proof> {
        self.proof.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Uses the token now and then: a simple one lives for 300 s from its last use, and streams do not count as one. A
    /// read costs etcd some 50 us, a login a thousand times that.
    fn keep_token(self: &Arc<Self>, mut dropped: oneshot::Sender<()>) {
        let connection = Arc::downgrade(self);
        let keep = async move {
            loop {
                tokio::select! {
                    () = dropped.closed() => return,
                    () = sleep(spread(TOKEN_USE, 0.2)) => {}
                }
                let Some(connection) = connection.upgrade() else { return };
                // None before a call wanted one: nothing is dialled for this.
                if let Some(token) = connection.slot.token()
                    && let Ok(Err(error)) = timeout(CALL_LIMIT, connection.prove(&token)).await
                {
                    tracing::debug!(target: ETCD, error = chain(&error), "token of etcd was not used");
                }
            }
        };
        let span = tracing::info_span!(target: ETCD, parent: None, "token", member = %self.name);
        tokio::spawn(keep.instrument(span));
    }

    /// Runs one request on this connection under a deadline; an error names the operation and the key. Where the token
    /// is not valid any more, the request gets a fresh one and runs again.
    pub(super) async fn limited<T, F>(
        &self,
        operation: &'static str,
        key: &str,
        limit: Duration,
        request: impl Fn() -> F,
    ) -> Result<T, EtcdError>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let began = Instant::now();
        let answer = self.retried(operation, key, limit, request).await;
        on_call(operation, answer.as_ref().err(), began.elapsed());
        answer
    }

    async fn retried<T, F>(
        &self,
        operation: &'static str,
        key: &str,
        limit: Duration,
        request: impl Fn() -> F,
    ) -> Result<T, EtcdError>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let deadline = Instant::now() + limit;
        let run = async || match timeout_at(deadline, request()).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.failure(operation, key, error)),
            Err(_) => Err(self.deadline(operation, key, limit)),
        };
        // Another call may fetch the next token meanwhile.
        let token = self.slot.token();
        match run().await {
            Err(error) if error.kind == EtcdErrorKind::Token => {}
            result => return result,
        }
        if let Some(token) = token {
            self.on_token_refused(&token);
        }
        self.log_in(deadline, limit).await?;
        run().await
    }

    fn failure(&self, operation: &'static str, key: &str, error: ClientError) -> EtcdError {
        let mut error = failure(&self.name, operation, key, error);
        if !self.signs.was_heard.load(Ordering::Relaxed) {
            add_hint(&mut error, self.logins.is_some(), self.target.is_plain());
        }
        error.kind = self.as_seen_by_us(error.kind);
        error
    }

    /// Without credentials there is no better token to get.
    pub(super) fn as_seen_by_us(&self, kind: EtcdErrorKind) -> EtcdErrorKind {
        match kind {
            EtcdErrorKind::Token if self.logins.is_none() => EtcdErrorKind::Denied,
            kind => kind,
        }
    }

    pub(super) fn deadline(&self, operation: &'static str, key: &str, limit: Duration) -> EtcdError {
        EtcdError {
            kind: EtcdErrorKind::Deadline(limit),
            member: self.name.to_string(),
            operation,
            key: key.to_owned(),
            source: None,
        }
    }

    /// A failure that the member reported in words.
    pub(super) fn refusal(&self, operation: &'static str, key: &str, kind: EtcdErrorKind, reason: String) -> EtcdError {
        let source = (!reason.is_empty()).then(|| reason.into());
        EtcdError { kind, member: self.name.to_string(), operation, key: key.to_owned(), source }
    }
}

/// The largest message that is read: a lease with 100,000 keys ends in one of 5 MB, and etcd's default limit for
/// requests is 1.5 MB.
const DECODE_LIMIT: usize = 16 * 1024 * 1024;

/// How long a token counts as taken over a connection.
const PROOF_AGE: Duration = Duration::from_secs(60);

/// How often a token is used: twice in the life of a simple one, so that one use may be lost.
const TOKEN_USE: Duration = Duration::from_secs(120);

/// Any key does for a read that shows something else, whether the user may read it or not.
const ANY_KEY: &str = "tonic-etcd";

/// The operation of a token's proof in errors.
const PROOF: &str = "check of the token";

/// The operation of a read that shows that the member is there.
const SIGN: &str = "sign of life";

/// The operation of a login in errors.
const LOGIN: &str = "login";

/// The key of a login in errors before the user is known.
const USERS: &str = "the user";
