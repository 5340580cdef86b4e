//! The etcd cluster as the rest of the crate sees it: one connection a member, each call with a deadline.
//!
//! This is the only file that builds an `etcd_client::Client`. Its own balancing over members is not used: it picks one at
//! random for each call, while a watch, a lease and a retry need to know whom they talk to.

mod calls;
mod endpoint;
mod range;
mod source;
#[cfg(feature = "tls-ring")]
mod tls;
mod watch;

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Error as ClientError, KvClient, WatchClient};
use tokio::time::Instant;
use tonic::Code;
use tonic::transport::Endpoint;

use crate::error::{EtcdError, EtcdErrorKind, chain};

pub(crate) use self::calls::{Claimed, Kv, Listing, hex};
pub(crate) use self::endpoint::{Tls, parse_endpoints};
pub(crate) use self::range::Range;
pub(crate) use self::source::{Source, Update};
#[cfg(feature = "tls-ring")]
pub use self::tls::EtcdTls;
pub(crate) use self::watch::Event;
use self::watch::{Watch, WatchMessage};

/// How long a unary call, and the first answer of a stream, may take: well above a slow disk's fsync, well below what an
/// operator takes for a hang.
pub(crate) const CALL_LIMIT: Duration = Duration::from_secs(5);

/// How long a grant or a claim may take: shorter, since a server waits for it to be found.
pub(crate) const CLAIM_LIMIT: Duration = Duration::from_secs(3);

/// How long to leave etcd alone after it refused our credentials.
pub(crate) const DENIED_PAUSE: Duration = Duration::from_secs(30);

/// How often a member that does not answer is logged.
const OUTAGE_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The interval of HTTP/2 pings towards etcd while a stream is open: twice the least that etcd allows (5 s).
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// How long a ping may stay unanswered.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// The largest message that is read: a lease with 100,000 keys ends in one of 5 MB, and etcd's default limit for
/// requests is 1.5 MB.
const DECODE_LIMIT: usize = 16 * 1024 * 1024;

/// User and password towards etcd.
#[derive(Clone)]
pub(crate) struct Credentials {
    pub(crate) user: String,
    pub(crate) password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// The members of one etcd cluster.
pub(crate) struct Cluster {
    members: Vec<Member>,
    credentials: Option<Credentials>,
    /// The member that answered last, asked first.
    preferred: AtomicUsize,
}

struct Member {
    name: Arc<str>,
    endpoint: Endpoint,
    connection: Mutex<Option<Arc<Connection>>>,
    outage: Mutex<Option<Outage>>,
}

/// Since when a member does not answer, and when that was logged.
struct Outage {
    since: Instant,
    logged: Instant,
}

/// One connection to one member. Streams opened on it keep it open after the cluster has moved on to a new one.
pub(crate) struct Connection {
    index: usize,
    name: Arc<str>,
    client: Client,
    kv: KvClient,
    watch: WatchClient,
    login: tokio::sync::Mutex<Login>,
}

/// Where the login on one connection stands.
enum Login {
    Needed,
    Done,
    Refused(Instant),
}

impl Cluster {
    pub(crate) fn new(endpoints: Vec<Endpoint>, credentials: Option<Credentials>) -> Self {
        let members = endpoints.into_iter().map(|endpoint| Member {
            name: endpoint.uri().to_string().trim_end_matches('/').into(),
            // Pings without a stream earn a GOAWAY from etcd.
            endpoint: endpoint
                .http2_keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_TIMEOUT)
                .keep_alive_while_idle(false),
            connection: Mutex::new(None),
            outage: Mutex::new(None),
        });
        Self { members: members.collect(), credentials, preferred: AtomicUsize::new(0) }
    }

    /// The number of members.
    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    /// The member that answered last.
    pub(crate) fn preferred(&self) -> usize {
        self.preferred.load(Ordering::Relaxed)
    }

    /// The connection to member `index` (modulo their number), logged in. Opening it costs nothing until the first call.
    ///
    /// # Errors
    ///
    /// What became of the login, if one is configured.
    pub(crate) async fn connection(&self, index: usize) -> Result<Arc<Connection>, EtcdError> {
        let index = index % self.members.len();
        let connection = match self.existing(index) {
            Some(connection) => connection,
            None => self.open(index).await?,
        };
        if let Some(credentials) = &self.credentials {
            connection.log_in(credentials).await.inspect_err(|error| self.note(index, error))?;
        }
        Ok(connection)
    }

    /// Logs that a member does not answer: when it begins, and once a minute, whoever asks how often.
    fn note(&self, index: usize, error: &EtcdError) {
        if !error.is_worth_another_member() {
            return;
        }
        let now = Instant::now();
        let mut outage = self.members[index].outage();
        let since = match &*outage {
            Some(outage) if now < outage.logged + OUTAGE_LOG_INTERVAL => return,
            Some(outage) => outage.since,
            None => now,
        };
        *outage = Some(Outage { since, logged: now });
        tracing::warn!(member = %error.member, lasts = ?now - since, error = chain(error), "etcd member does not answer");
    }

    /// Notes that a member answered.
    pub(crate) fn answered(&self, connection: &Connection) {
        if let Some(outage) = self.members[connection.index].outage().take() {
            let lasted = outage.since.elapsed();
            tracing::info!(member = connection.name(), ?lasted, "etcd member answers again");
        }
    }

    fn existing(&self, index: usize) -> Option<Arc<Connection>> {
        self.members[index].slot().clone()
    }

    async fn open(&self, index: usize) -> Result<Arc<Connection>, EtcdError> {
        let Member { name, endpoint, .. } = &self.members[index];
        // Without a user `from_channel` does no I/O; with one it would log in without a deadline.
        let options = ConnectOptions::new().with_require_leader(true).with_auto_token_refresh(true);
        let channel = etcd_client::Channel::Tonic(endpoint.connect_lazy());
        let client =
            Client::from_channel(channel, Some(options)).await.map_err(|error| failure(name, "connect", "", error))?;
        let connection = Arc::new(Connection {
            index,
            name: name.clone(),
            kv: client.kv_client().max_decoding_message_size(DECODE_LIMIT),
            watch: client.watch_client().max_decoding_message_size(DECODE_LIMIT),
            client,
            login: tokio::sync::Mutex::new(Login::Needed),
        });
        Ok(self.members[index].slot().get_or_insert(connection).clone())
    }

    /// Gives up a connection that seems dead: the next call opens another one.
    pub(crate) fn forget(&self, connection: &Arc<Connection>) {
        let mut slot = self.members[connection.index].slot();
        if slot.as_ref().is_some_and(|current| Arc::ptr_eq(current, connection)) {
            *slot = None;
        }
    }

    /// Makes one call, on each member in turn until one answers, beginning with the one that answered last.
    ///
    /// What a member did before it fell silent is unknown, so `call` must be safe to repeat.
    ///
    /// # Errors
    ///
    /// The answer of the first member that gave one, or what the last one failed with.
    pub(crate) async fn call<T, F, Fut>(&self, call: F) -> Result<T, EtcdError>
    where
        F: Fn(Arc<Connection>) -> Fut,
        Fut: Future<Output = Result<T, EtcdError>>,
    {
        let first = self.preferred();
        let mut attempt = 0;
        loop {
            let index = (first + attempt) % self.len();
            let result = self.call_on(index, &call).await;
            attempt += 1;
            match result {
                Err(error) if error.is_worth_another_member() && attempt < self.len() => {
                    tracing::debug!(error = chain(&error), "etcd call goes to the next member");
                }
                Err(error) => return Err(error),
                Ok(answer) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return Ok(answer);
                }
            }
        }
    }

    async fn call_on<T, F, Fut>(&self, index: usize, call: &F) -> Result<T, EtcdError>
    where
        F: Fn(Arc<Connection>) -> Fut,
        Fut: Future<Output = Result<T, EtcdError>>,
    {
        let connection = self.connection(index).await?;
        let answer = call(connection.clone()).await;
        match &answer {
            Ok(_) => self.answered(&connection),
            Err(error) => self.after(&connection, error).await,
        }
        answer
    }

    /// Draws the conclusions for a connection from an error that was seen on it.
    pub(crate) async fn after(&self, connection: &Arc<Connection>, error: &EtcdError) {
        self.note(connection.index, error);
        match error.kind {
            EtcdErrorKind::Deadline(_) => self.forget(connection),
            EtcdErrorKind::Token | EtcdErrorKind::Denied => connection.log_in_again().await,
            _ => {}
        }
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.members.iter().map(|member| &*member.name).collect();
        f.debug_struct("Cluster").field("members", &names).finish_non_exhaustive()
    }
}

impl Member {
    fn slot(&self) -> MutexGuard<'_, Option<Arc<Connection>>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn outage(&self) -> MutexGuard<'_, Option<Outage>> {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// The member's URL.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    async fn log_in(&self, credentials: &Credentials) -> Result<(), EtcdError> {
        let mut login = self.login.lock().await;
        match *login {
            Login::Done => return Ok(()),
            Login::Refused(at) if at.elapsed() < DENIED_PAUSE => {
                return Err(EtcdError {
                    kind: EtcdErrorKind::Denied,
                    member: self.name.to_string(),
                    operation: "login",
                    key: credentials.user.clone(),
                    source: Some("the same credentials were refused less than 30 s ago".into()),
                });
            }
            Login::Needed | Login::Refused(_) => {}
        }
        let user = (credentials.user.clone(), credentials.password.clone());
        let mut client = self.client.clone();
        let answer = self.limited("login", &credentials.user, CALL_LIMIT, client.update_user(Some(user))).await;
        match answer {
            Ok(()) => *login = Login::Done,
            Err(error) if error.kind == EtcdErrorKind::Denied => {
                *login = Login::Refused(Instant::now());
                tracing::warn!(member = %self.name, user = %credentials.user, "etcd refused the credentials");
                return Err(error);
            }
            // etcd with authentication switched off needs none.
            Err(error) if error.kind == EtcdErrorKind::Refused => *login = Login::Done,
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn log_in_again(&self) {
        let mut login = self.login.lock().await;
        if matches!(*login, Login::Done) {
            *login = Login::Needed;
        }
    }

    /// Runs one request on this connection under a deadline and says of its failure what was tried.
    async fn limited<T>(
        &self,
        operation: &'static str,
        key: &str,
        limit: Duration,
        request: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, EtcdError> {
        match tokio::time::timeout(limit, request).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(failure(&self.name, operation, key, error)),
            Err(_) => Err(self.deadline(operation, key, limit)),
        }
    }

    fn deadline(&self, operation: &'static str, key: &str, limit: Duration) -> EtcdError {
        EtcdError {
            kind: EtcdErrorKind::Deadline(limit),
            member: self.name.to_string(),
            operation,
            key: key.to_owned(),
            source: None,
        }
    }

    /// A failure that the member told in words.
    fn refusal(&self, operation: &'static str, key: &str, kind: EtcdErrorKind, reason: String) -> EtcdError {
        EtcdError { kind, member: self.name.to_string(), operation, key: key.to_owned(), source: Some(reason.into()) }
    }
}

fn failure(member: &str, operation: &'static str, key: &str, error: ClientError) -> EtcdError {
    EtcdError {
        kind: classify(&error),
        member: member.to_owned(),
        operation,
        key: key.to_owned(),
        source: Some(Box::new(error)),
    }
}

fn classify(error: &ClientError) -> EtcdErrorKind {
    match error {
        ClientError::GRpcStatus(status) => classify_status(status.code(), status.message()),
        ClientError::TransportError(_) | ClientError::IoError(_) | ClientError::WatchError(_) => {
            EtcdErrorKind::Unreachable
        }
        // The text is all that etcd-client leaves of a lease that died before its first keepalive.
        ClientError::LeaseKeepAliveError(text) if text.contains("not found") => EtcdErrorKind::NotFound,
        ClientError::LeaseKeepAliveError(_) => EtcdErrorKind::Unreachable,
        _ => EtcdErrorKind::Refused,
    }
}

/// etcd's codes alone do not tell: wrong passwords are `InvalidArgument`, and so are malformed requests.
fn classify_status(code: Code, message: &str) -> EtcdErrorKind {
    let says = |text: &str| message.contains(text);
    match code {
        _ if says("invalid auth token") => EtcdErrorKind::Token,
        _ if says("decoded message length too large") || says("larger than max") => EtcdErrorKind::TooLarge,
        Code::Unauthenticated => EtcdErrorKind::Token,
        Code::PermissionDenied => EtcdErrorKind::Denied,
        Code::InvalidArgument if says("authentication failed") || says("user name is empty") => EtcdErrorKind::Denied,
        // The permissions changed since the token was given out.
        Code::InvalidArgument if says("revision of auth store is old") => EtcdErrorKind::Token,
        Code::NotFound => EtcdErrorKind::NotFound,
        Code::FailedPrecondition if says("lease already exists") => EtcdErrorKind::AlreadyExists,
        Code::AlreadyExists => EtcdErrorKind::AlreadyExists,
        Code::OutOfRange => EtcdErrorKind::Compacted,
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::Unknown
        | Code::Internal
        | Code::Aborted => EtcdErrorKind::Unreachable,
        _ => EtcdErrorKind::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcds_answers_are_told_apart_by_code_and_text() {
        use EtcdErrorKind::{AlreadyExists, Compacted, Denied, NotFound, Refused, Token, TooLarge, Unreachable};
        for (code, message, kind) in [
            (Code::Unavailable, "etcdserver: no leader", Unreachable),
            (Code::Unavailable, "etcdserver: request timed out", Unreachable),
            (Code::Unauthenticated, "etcdserver: invalid auth token", Token),
            (Code::Unknown, "etcdserver: invalid auth token", Token),
            (Code::InvalidArgument, "etcdserver: authentication failed, invalid user ID or password", Denied),
            (Code::InvalidArgument, "etcdserver: user name is empty", Denied),
            (Code::PermissionDenied, "etcdserver: permission denied", Denied),
            (Code::NotFound, "etcdserver: requested lease not found", NotFound),
            (Code::FailedPrecondition, "etcdserver: lease already exists", AlreadyExists),
            (Code::FailedPrecondition, "etcdserver: authentication is not enabled", Refused),
            (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted", Compacted),
            (Code::OutOfRange, "Error, decoded message length too large: found 5, the limit is: 4", TooLarge),
            (Code::ResourceExhausted, "grpc: trying to send message larger than max (9 vs. 8)", TooLarge),
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", Refused),
            (Code::InvalidArgument, "etcdserver: key is not provided", Refused),
        ] {
            assert_eq!(classify_status(code, message), kind, "{code:?} {message}");
        }
    }

    #[test]
    fn credentials_never_show_their_password() {
        let credentials = Credentials { user: "root".into(), password: "secret".into() };
        assert!(!format!("{credentials:?}").contains("secret"));
    }
}
