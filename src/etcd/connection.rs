//! One connection to one member: its login, and how each call on it ends. The only file that builds an
//! `etcd_client::Client`.

use std::error::Error as _;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Error as ClientError, KvClient, WatchClient};
use tokio::sync::{Mutex, OnceCell};
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Status};

use super::endpoint::Target;
use super::login::{Credentials, Logins, NoCredentials};
use crate::error::{BoxError, EtcdError, EtcdErrorKind, chain};

/// One connection to one member. Streams opened on it keep it open after the cluster has moved on to a new one.
pub(crate) struct Connection {
    index: usize,
    name: Arc<str>,
    pub(super) client: Client,
    pub(super) kv: KvClient,
    pub(super) watch: WatchClient,
    login: Mutex<Login>,
    /// How often a login succeeded.
    tokens: AtomicU64,
    logins: Option<Arc<Logins>>,
    /// Set once the member was asked for the id of its cluster.
    pub(super) was_asked: OnceCell<()>,
    /// When the member was heard on it the last time.
    heard: StdMutex<Option<Instant>>,
    streams: AtomicUsize,
    /// Whether the member gives no signs of life on watches; the member's, for all its connections.
    is_mute: Arc<AtomicBool>,
}

/// Counts as an open stream of a connection until it is dropped.
pub(crate) struct StreamGuard(Arc<Connection>);

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where the login on one connection stands.
enum Login {
    Needed,
    Done,
}

impl Connection {
    /// Opens it lazily: nothing is dialled before the first call.
    pub(super) async fn open(
        index: usize,
        name: Arc<str>,
        target: &Target,
        logins: Option<Arc<Logins>>,
        is_mute: Arc<AtomicBool>,
    ) -> Result<Self, EtcdError> {
        // Without a user `from_channel` does no I/O; with one it would log in without a deadline. Its own refresh of
        // tokens would go on with a password that was changed.
        let options = ConnectOptions::new().with_require_leader(true);
        let channel = etcd_client::Channel::Tonic(target.channel());
        let client = Client::from_channel(channel, Some(options)).await;
        let client = client.map_err(|error| failure(&name, "connect", "", error))?;
        Ok(Self {
            index,
            name,
            kv: client.kv_client().max_decoding_message_size(DECODE_LIMIT),
            watch: client.watch_client().max_decoding_message_size(DECODE_LIMIT),
            client,
            login: Mutex::new(if logins.is_some() { Login::Needed } else { Login::Done }),
            tokens: AtomicU64::new(0),
            logins,
            was_asked: OnceCell::new(),
            heard: StdMutex::new(None),
            streams: AtomicUsize::new(0),
            is_mute,
        })
    }

    /// The member was heard on it.
    pub(super) fn on_heard(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Whether the member was heard on it that short a while ago.
    pub(super) fn was_heard_within(&self, time: Duration) -> bool {
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
        self.is_mute.load(Ordering::Relaxed)
    }

    /// Its member gives none, on whichever connection.
    pub(super) fn set_mute(&self) {
        self.is_mute.store(true, Ordering::Relaxed);
    }

    /// The member's place in its cluster.
    pub(super) fn index(&self) -> usize {
        self.index
    }

    /// The member's URL.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Logs in, if that is due. Calls that come while another one logs in wait for it, each until its own deadline, so
    /// that a silent member costs each of them one limit, not one after the other.
    pub(super) async fn log_in(&self, deadline: Instant, limit: Duration) -> Result<(), EtcdError> {
        let Some(logins) = &self.logins else { return Ok(()) };
        let late = || {
            if !logins.is_asking() {
                return self.deadline(LOGIN, USERS, limit);
            }
            let reason = format!("the provider of credentials did not answer within {limit:?}");
            self.refusal(LOGIN, USERS, EtcdErrorKind::Login, reason)
        };
        let mut login = timeout_at(deadline, self.login.lock()).await.map_err(|_| late())?;
        if matches!(*login, Login::Done) {
            return Ok(());
        }
        let credentials = timeout_at(deadline, logins.credentials(self.index)).await.map_err(|_| late())?;
        let credentials = credentials.map_err(|none| self.no_credentials(none))?;
        let Credentials { user, password } = credentials.clone();
        let mut client = self.client.clone();
        let answer = timeout_at(deadline, client.update_user(Some((user, password)))).await.map_err(|_| late())?;
        match answer {
            Ok(()) => {}
            // Then the member wants no login.
            Err(ClientError::GRpcStatus(status)) if status.message().contains("authentication is not enabled") => {}
            Err(error) => {
                let mut error = self.failure(LOGIN, &credentials.user, error);
                if error.kind == EtcdErrorKind::Denied {
                    error.kind = EtcdErrorKind::Login;
                    logins.on_refused(self.index, &self.name, credentials);
                }
                return Err(error);
            }
        }
        self.tokens.fetch_add(1, Ordering::Relaxed);
        *login = Login::Done;
        Ok(())
    }

    fn no_credentials(&self, none: NoCredentials) -> EtcdError {
        let kind = match none {
            NoCredentials::Failed(_) => EtcdErrorKind::Login,
            NoCredentials::TooEarly => EtcdErrorKind::Withheld,
        };
        EtcdError {
            kind,
            member: self.name.to_string(),
            operation: LOGIN,
            key: USERS.to_owned(),
            source: Some(Box::new(none)),
        }
    }

    /// A token of this connection was refused: the next call logs in afresh, unless one does already.
    pub(super) fn on_token_refused(&self) {
        if let Ok(mut login) = self.login.try_lock()
            && self.logins.is_some()
        {
            *login = Login::Needed;
        }
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
        let deadline = Instant::now() + limit;
        let run = async || match timeout_at(deadline, request()).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.failure(operation, key, error)),
            Err(_) => Err(self.deadline(operation, key, limit)),
        };
        let token = self.tokens.load(Ordering::Relaxed);
        match run().await {
            Err(error) if error.kind == EtcdErrorKind::Token => {}
            result => return result,
        }
        // Another call with the same token may have fetched the next one meanwhile.
        if self.tokens.load(Ordering::Relaxed) == token {
            self.on_token_refused();
        }
        self.log_in(deadline, limit).await?;
        run().await
    }

    fn failure(&self, operation: &'static str, key: &str, error: ClientError) -> EtcdError {
        let mut error = failure(&self.name, operation, key, error);
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

pub(super) fn failure(member: &str, operation: &'static str, key: &str, error: ClientError) -> EtcdError {
    let kind = classify(&error);
    let source: BoxError = match error {
        ClientError::GRpcStatus(status) => reason(&status).into(),
        error => error.into(),
    };
    EtcdError { kind, member: member.to_owned(), operation, key: key.to_owned(), source: Some(source) }
}

/// The member's message, or the fate of the connection; a status shows its own source as `Debug` does.
fn reason(status: &Status) -> String {
    status.source().map_or_else(|| status.message().to_owned(), chain)
}

fn classify(error: &ClientError) -> EtcdErrorKind {
    match error {
        #[cfg(feature = "_tls")]
        ClientError::GRpcStatus(status) if crate::tls::TlsError::is_behind(status) => EtcdErrorKind::Tls,
        // A status with a source was made here, from a connection that broke or could not be made.
        ClientError::GRpcStatus(status) => match classify_status(status.code(), status.message()) {
            EtcdErrorKind::Unavailable if status.source().is_some() => EtcdErrorKind::Unreachable,
            kind => kind,
        },
        ClientError::TransportError(_) | ClientError::IoError(_) | ClientError::WatchError(_) => {
            EtcdErrorKind::Unreachable
        }
        // The text is all that etcd-client leaves of a lease that died before its first keepalive.
        ClientError::LeaseKeepAliveError(text) if text.contains("not found") => EtcdErrorKind::NotFound,
        ClientError::LeaseKeepAliveError(_) => EtcdErrorKind::Unreachable,
        _ => EtcdErrorKind::Refused,
    }
}

/// etcd's codes alone are ambiguous: wrong passwords are `InvalidArgument`, and so are malformed requests.
pub(super) fn classify_status(code: Code, message: &str) -> EtcdErrorKind {
    let says = |text: &str| message.contains(text);
    match code {
        // Permissions changed since the token was given out, or there is none: authentication was switched on
        // meanwhile.
        _ if says("invalid auth token") || says("revision of auth store is old") || says("user name is empty") => {
            EtcdErrorKind::Token
        }
        _ if says("permission denied") || says("authentication failed") => EtcdErrorKind::Denied,
        _ if says("decoded message length too large") || says("larger than max") => EtcdErrorKind::TooLarge,
        _ if says("failed to decode") || says("decompress") => EtcdErrorKind::TooLarge,
        // Of this member, whatever its code, which changed between versions.
        _ if INCAPABLE.iter().any(|text| says(text)) => EtcdErrorKind::Incapable,
        Code::Unauthenticated => EtcdErrorKind::Token,
        Code::PermissionDenied => EtcdErrorKind::Denied,
        Code::NotFound => EtcdErrorKind::NotFound,
        Code::FailedPrecondition if says("lease already exists") => EtcdErrorKind::AlreadyExists,
        Code::AlreadyExists => EtcdErrorKind::AlreadyExists,
        Code::OutOfRange => EtcdErrorKind::Compacted,
        // etcd says so when it cannot serve; the others come from tonic and h2, when a connection or its runtime is
        // gone.
        Code::Unavailable | Code::DeadlineExceeded => EtcdErrorKind::Unavailable,
        Code::Cancelled | Code::Unknown | Code::Internal | Code::Aborted => EtcdErrorKind::Unreachable,
        _ => EtcdErrorKind::Refused,
    }
}

/// What a member says that lags behind the others, that starts, that is a learner, or that takes only smaller requests.
const INCAPABLE: [&str; 4] = ["too many requests", "not capable", "not supported for learner", "request is too large"];

/// The largest message that is read: a lease with 100,000 keys ends in one of 5 MB, and etcd's default limit for
/// requests is 1.5 MB.
const DECODE_LIMIT: usize = 16 * 1024 * 1024;

/// The operation of a login in errors.
const LOGIN: &str = "login";

/// The key of a login in errors before the user is known.
const USERS: &str = "the user";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcds_answers_are_told_apart_by_code_and_text() {
        use EtcdErrorKind::{
            AlreadyExists, Compacted, Denied, Incapable, NotFound, Refused, Token, TooLarge, Unavailable, Unreachable,
        };
        for (code, message, kind) in [
            (Code::Unavailable, "etcdserver: no leader", Unavailable),
            (Code::Unavailable, "etcdserver: request timed out", Unavailable),
            (Code::Unknown, "Service was not ready: transport error", Unreachable),
            (Code::Unauthenticated, "etcdserver: invalid auth token", Token),
            (Code::Unknown, "etcdserver: invalid auth token", Token),
            (Code::InvalidArgument, "etcdserver: authentication failed, invalid user ID or password", Denied),
            (Code::InvalidArgument, "etcdserver: user name is empty", Token),
            // As a watch gets it, in a message.
            (Code::Unavailable, "rpc error: code = InvalidArgument desc = etcdserver: user name is empty", Token),
            (
                Code::Unavailable,
                "rpc error: code = InvalidArgument desc = etcdserver: revision of auth store is old",
                Token,
            ),
            (Code::Unavailable, "rpc error: code = PermissionDenied desc = etcdserver: permission denied", Denied),
            (Code::PermissionDenied, "etcdserver: permission denied", Denied),
            (Code::NotFound, "etcdserver: requested lease not found", NotFound),
            (Code::FailedPrecondition, "etcdserver: lease already exists", AlreadyExists),
            (Code::FailedPrecondition, "etcdserver: authentication is not enabled", Refused),
            (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted", Compacted),
            (Code::OutOfRange, "Error, decoded message length too large: found 5, the limit is: 4", TooLarge),
            (Code::Internal, "failed to decode Protobuf message: buffer underflow", TooLarge),
            (Code::ResourceExhausted, "grpc: trying to send message larger than max (9 vs. 8)", TooLarge),
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", Refused),
            (Code::ResourceExhausted, "etcdserver: too many requests", Incapable),
            (Code::InvalidArgument, "etcdserver: request is too large", Incapable),
            (Code::Unavailable, "etcdserver: rpc not supported for learner", Incapable),
            (Code::FailedPrecondition, "etcdserver: rpc not supported for learner", Incapable),
            (Code::FailedPrecondition, "etcdserver: not capable", Incapable),
            (Code::InvalidArgument, "etcdserver: key is not provided", Refused),
        ] {
            assert_eq!(classify_status(code, message), kind, "{code:?} {message}");
        }
    }
}
