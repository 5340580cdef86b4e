//! What can go wrong, as types: configuration that is refused before any I/O, and one failed operation against etcd.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

/// An error of any type, as a cause.
pub(crate) type BoxError = Box<dyn StdError + Send + Sync>;

/// Configuration that was refused.
///
/// Every variant names the offending value and what was expected instead. All of them surface before any network
/// I/O, from a `build()`, from [`Registry::discover`](crate::Registry::discover), from
/// [`Registration::update`](crate::Registration::update) or from reading a TLS file. Trying again with the same values
/// never helps.
///
/// `Debug` shows what `Display` does, with the causes: it is what a `main` prints that returns an error.
#[derive(Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The list of etcd endpoints is empty.
    #[error("no etcd endpoint was given; at least one URL such as http://127.0.0.1:2379 is needed")]
    NoEndpoints,

    /// An etcd endpoint is no usable URL. User names and passwords in it are left out of the message.
    #[error("bad etcd endpoint {url:?}: {reason}")]
    #[non_exhaustive]
    Endpoint {
        /// The URL as it was given, without its user information.
        url: String,
        /// What is wrong with it.
        reason: Cow<'static, str>,
    },

    /// A prefix cannot begin a key.
    #[error("bad prefix {prefix:?}: {reason}")]
    #[non_exhaustive]
    Prefix {
        /// The prefix as it was given.
        prefix: String,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// A service name is not allowed.
    #[error("bad service name {name:?}: {reason}")]
    #[non_exhaustive]
    ServiceName {
        /// The name as it was given.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// An address is no `host:port`, or one that clients must never be sent to.
    #[error("bad address {address:?}: {reason}")]
    #[non_exhaustive]
    Address {
        /// The address as it was given.
        address: String,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// An option is out of its range.
    #[error("bad {option} {value}: expected {expected}")]
    #[non_exhaustive]
    Option {
        /// The option's name as its method is called.
        option: &'static str,
        /// The value, or in words what is wrong with it; never a secret.
        value: String,
        /// The values that are allowed.
        expected: &'static str,
    },

    /// An option does not go with another one, or with the policy: one of the two has to be left out.
    #[error("{option} does not go with {with}: {reason}")]
    #[non_exhaustive]
    Conflict {
        /// The option's name as its method is called.
        option: &'static str,
        /// The other one.
        with: String,
        /// Why, and what to write instead.
        reason: &'static str,
    },

    /// An environment variable that tonic-etcd honours has a value that it cannot use.
    #[error("bad environment variable {variable}={value:?}: expected {expected}")]
    #[non_exhaustive]
    Environment {
        /// The variable's name.
        variable: &'static str,
        /// Its value.
        value: String,
        /// The values that are allowed.
        expected: &'static str,
    },

    /// TLS material could not be read or used.
    #[error("cannot use {what}{}", at(.path.as_ref()))]
    #[non_exhaustive]
    Tls {
        /// Which part of the TLS configuration it is.
        what: &'static str,
        /// The file it came from, if it came from one.
        path: Option<PathBuf>,
        /// Why it was refused.
        source: BoxError,
    },

    /// The network interfaces could not be listed in order to find an address to publish.
    #[error("cannot list the network interfaces to find an address to publish; state one with advertise(..)")]
    #[non_exhaustive]
    Interfaces {
        /// The operating system's reason.
        source: std::io::Error,
    },

    /// The call needs a tokio runtime and there is none on this thread.
    #[error("{call} needs a tokio runtime: call it from async code or inside of Runtime::enter")]
    #[non_exhaustive]
    NoRuntime {
        /// The method that was called.
        call: &'static str,
    },
}

impl fmt::Debug for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&chain(self))
    }
}

impl fmt::Debug for RegistryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&chain(self))
    }
}

fn at(path: Option<&PathBuf>) -> String {
    path.map(|path| format!(" from {}", path.display())).unwrap_or_default()
}

/// A look at what is registered, or an order to an instance, that failed.
///
/// `Debug` shows what `Display` does, with the causes: it is what a `main` prints that returns an error.
#[derive(Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The request is impossible: a bad service name, or all services under an empty prefix. Trying again never helps.
    #[error(transparent)]
    Config(#[from] ConfigError),

    /// No etcd member answered in time. Trying again helps once one does.
    #[error("etcd does not answer")]
    #[non_exhaustive]
    Unavailable {
        /// The failure of the last member that was asked.
        source: BoxError,
    },

    /// No TLS session could be made with the last member that was asked: its certificate expired or is not signed by a
    /// trusted authority, for instance. Trying again helps once certificates or authorities change.
    #[error("there is no TLS session with etcd: check tls(..), and that the endpoints are https")]
    #[non_exhaustive]
    Tls {
        /// Why the session could not be made.
        source: BoxError,
    },

    /// etcd wants other credentials, or they are not allowed to do this. Trying again helps once that is changed.
    #[error("etcd denies it: check auth(..), and the permissions of the user's roles")]
    #[non_exhaustive]
    Denied {
        /// etcd's own message.
        source: BoxError,
    },

    /// etcd answered and refused for another reason: its disk is full, for instance. Trying again may help much later.
    #[error("etcd refuses it")]
    #[non_exhaustive]
    Refused {
        /// etcd's own message.
        source: BoxError,
    },

    /// The URLs are those of more than one cluster: a server would register in the one, and clients look in the other.
    /// Trying again helps once they are not.
    #[error("the etcd members belong to different clusters: name those of one, or use a RegistrySet")]
    #[non_exhaustive]
    SplitCluster {
        /// Which member belongs to which.
        source: BoxError,
    },

    /// No instance is registered at the address. Trying again helps once one is.
    #[error("no instance of {service} is registered at {address}")]
    #[non_exhaustive]
    UnknownAddress {
        /// The service that was looked at.
        service: String,
        /// The address that none of its instances has.
        address: String,
    },

    /// The format has no place for the draining mark, so no instance can be drained. Trying again never helps.
    #[error("the format {format} cannot carry the draining mark")]
    #[non_exhaustive]
    NoDrainingMark {
        /// The format, as its `Debug` shows it.
        format: String,
    },

    /// The format, or this value in it, has no place for a weight that an operator sets. Trying again never helps.
    #[error("the format {format} cannot carry a weight that an operator sets: {reason}")]
    #[non_exhaustive]
    NoWeight {
        /// The format, as its `Debug` shows it.
        format: String,
        /// Why it cannot.
        reason: String,
    },

    /// The server does not keep a weight that an operator sets, so it has the weight that it had before. Trying again
    /// helps where it was silent, frozen or cut off from etcd.
    #[error("the weight of {service} at {address} stays as it was: {reason}")]
    #[non_exhaustive]
    WeightNotKept {
        /// The service.
        service: String,
        /// The address of the instance.
        address: String,
        /// Why it does not keep it.
        reason: WeightRefusal,
    },

    /// A weight was written, and etcd did not answer after that: the server may keep it or not, and one that another
    /// program registered may have it until its key is written again. Trying again helps, and settles it.
    #[error("whether {service} at {address} has the weight is not known")]
    #[non_exhaustive]
    WeightUnknown {
        /// The service.
        service: String,
        /// The address of the instance.
        address: String,
        /// What the last call failed with.
        source: BoxError,
    },

    /// The key changed each time that it was about to be written, by a drain or a weight: others write it as well. Trying
    /// again helps.
    #[error("{key} changes all the time")]
    #[non_exhaustive]
    Contended {
        /// The whole key.
        key: String,
    },
}

impl RegistryError {
    /// The etcd member that was asked last, as its URL; `None` where none was asked.
    #[must_use]
    pub fn member(&self) -> Option<&str> {
        self.source().and_then(|source| source.downcast_ref::<EtcdError>()).map(|error| &*error.member)
    }

    /// Whether the same may succeed soon without a change of anything: no member answered in time, or the key changed.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unavailable { .. } | Self::Contended { .. } | Self::WeightUnknown { .. } => true,
            Self::WeightNotKept { reason, .. } => matches!(reason, WeightRefusal::Silent),
            _ => false,
        }
    }
}

/// Why a server does not keep a weight that an operator sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WeightRefusal {
    /// It is leaving.
    Leaving,
    /// Its key has no lease, so there is no server that keeps it.
    NoLease,
    /// It did not answer: it is another program's, frozen, or cut off from etcd.
    Silent,
    /// It writes its own weight over the one that was set, as some other programs do.
    Overwritten,
}

impl fmt::Display for WeightRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Leaving => "it is leaving",
            Self::NoLease => "its key has no lease, so no server keeps it: put it again, with the weight",
            Self::Silent => {
                "its server did not take the weight up within 3 s, so it is another program's, frozen, or cut off from \
                 etcd"
            }
            Self::Overwritten => "its server writes its own weight over it, as other programs do",
        })
    }
}

impl From<EtcdError> for RegistryError {
    fn from(error: EtcdError) -> Self {
        use EtcdErrorKind::{
            Deadline, Denied, Login, LoginPending, Split, Tls, Token, Unavailable, Unreachable, Withheld,
        };
        let kind = error.kind;
        let source = Box::new(error);
        match kind {
            Unreachable | Unavailable | Deadline(_) | LoginPending => Self::Unavailable { source },
            Tls => Self::Tls { source },
            Split => Self::SplitCluster { source },
            Denied | Login | Withheld | Token => Self::Denied { source },
            _ => Self::Refused { source },
        }
    }
}

/// One failed operation against one etcd member.
#[derive(Debug)]
pub(crate) struct EtcdError {
    pub(crate) kind: EtcdErrorKind,
    pub(crate) member: String,
    pub(crate) operation: &'static str,
    pub(crate) key: String,
    pub(crate) source: Option<BoxError>,
}

/// The kind of a failure, which decides which member is asked next and how soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EtcdErrorKind {
    /// The member could not be reached, or its connection broke. Another member may answer; a retry helps.
    Unreachable,
    /// The member answered that it cannot serve now: it has no leader, for instance. Another one may; a retry helps.
    Unavailable,
    /// The member did not answer in time. The operation may still be applied; a retry helps.
    Deadline(Duration),
    /// No TLS session could be made with the member. Another member may have a better certificate; a retry helps after
    /// certificates change.
    #[cfg_attr(not(feature = "_tls"), expect(dead_code, reason = "without TLS nothing fails like that"))]
    Tls,
    /// The login was refused, or the provider of credentials had none. A retry helps only after they change, and may
    /// come soon: refused credentials are kept from etcd.
    Login,
    /// Nothing was tried: credentials were refused, or missing, a moment ago. A retry may come soon.
    Withheld,
    /// Nothing was tried: a login is under way that etcd has yet to answer. No fault of the member; a retry waits for
    /// the same login.
    LoginPending,
    /// The user is not allowed to do this, or none was named. A retry helps only after an operator changed that.
    Denied,
    /// The token is not valid (any more). A retry helps after a fresh login.
    Token,
    /// The lease or the key does not exist. A retry does not help.
    NotFound,
    /// The lease exists already: an earlier attempt of ours was applied. Not a failure where the id is our own choice.
    AlreadyExists,
    /// The wanted revision is compacted away. Only a fresh list helps.
    Compacted,
    /// The response was larger than the limit, or could not be decoded.
    TooLarge,
    /// Members answer that belong to different clusters. A retry helps after one of the URLs changes, or a member.
    Split,
    /// The member answered and refused for a reason of its own: it is overloaded, a learner, or limited to smaller
    /// requests. Another one may take it at once; the same one much later.
    Incapable,
    /// etcd answered and refused (out of space, a bad request). A retry may help much later.
    Refused,
}

impl EtcdError {
    /// Whether another member may do what this one could not.
    pub(crate) fn is_worth_another_member(&self) -> bool {
        use EtcdErrorKind::{Deadline, Incapable, LoginPending, Tls, Unavailable, Unreachable};
        matches!(self.kind, Unreachable | Unavailable | Incapable | Deadline(_) | LoginPending | Tls)
    }

    /// What callers of a service may hear of it: not what a provider of credentials said, nor the name of the user.
    pub(crate) fn outline(&self) -> String {
        let Self { kind, member, operation, .. } = self;
        let all = match (kind, *operation) {
            (EtcdErrorKind::Login, "login") => format!("could not log in at {member}; the log says why"),
            (_, "login") => format!("no login at {member}; the log says why"),
            _ => chain(self),
        };
        all.chars().take(MOST_OF_A_FAILURE).collect()
    }

    /// The causes in one line; empty where there is none.
    pub(crate) fn reason(&self) -> String {
        self.source.as_deref().map_or_else(String::new, |source| chain(source))
    }

    /// Whether etcd answered and said no, so that asking again soon is of no use.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self.kind, EtcdErrorKind::Denied | EtcdErrorKind::Refused | EtcdErrorKind::Split)
    }
}

impl fmt::Display for EtcdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, member, operation, key, .. } = self;
        // Some operations concern no key.
        let of = if key.is_empty() { "" } else { " of " };
        write!(f, "{operation}{of}{key} at {member} ")?;
        match kind {
            EtcdErrorKind::Unreachable => f.write_str("failed: the member cannot be reached"),
            EtcdErrorKind::Unavailable => f.write_str("failed: the member cannot serve it now"),
            EtcdErrorKind::Deadline(limit) => write!(f, "was not answered within {limit:?}"),
            EtcdErrorKind::Tls => f.write_str("failed: no TLS session with the member"),
            EtcdErrorKind::Login => f.write_str("failed: could not log in"),
            EtcdErrorKind::Withheld => f.write_str("was not tried"),
            EtcdErrorKind::LoginPending => f.write_str("is under way"),
            EtcdErrorKind::Denied => f.write_str("was denied"),
            EtcdErrorKind::Token => f.write_str("was denied: the token is not valid"),
            EtcdErrorKind::NotFound => f.write_str("failed: not found"),
            EtcdErrorKind::AlreadyExists => f.write_str("failed: it exists already"),
            EtcdErrorKind::Compacted => f.write_str("failed: the revision is compacted"),
            EtcdErrorKind::TooLarge => f.write_str("failed: the response is too large or malformed"),
            EtcdErrorKind::Split => f.write_str("failed: the members belong to different clusters"),
            EtcdErrorKind::Incapable => f.write_str("was refused by the member itself"),
            EtcdErrorKind::Refused => f.write_str("was refused"),
        }
    }
}

impl StdError for EtcdError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// The most of a failure that goes into a status: it is sent in a header.
const MOST_OF_A_FAILURE: usize = 500;

/// An error with all of its causes in one line, for logs and for a status that must be a text.
pub(crate) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        // Wrappers of tonic and hyper often repeat their cause word for word.
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = error.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_etcd_error_names_operation_key_and_member_but_not_the_cause() {
        let error = EtcdError {
            kind: EtcdErrorKind::Deadline(Duration::from_secs(5)),
            member: "http://127.0.0.1:2379".into(),
            operation: "range",
            key: "kitex/registry-etcd/echo/".into(),
            source: Some("the cause".into()),
        };
        assert_eq!(
            error.to_string(),
            "range of kitex/registry-etcd/echo/ at http://127.0.0.1:2379 was not answered within 5s"
        );
        assert_eq!(
            chain(&error),
            "range of kitex/registry-etcd/echo/ at http://127.0.0.1:2379 was not answered within 5s: the cause"
        );
    }

    #[test]
    fn a_tls_error_names_its_file() {
        let error = ConfigError::Tls {
            what: "the client key",
            path: Some("/etc/key.pem".into()),
            source: "no such file".into(),
        };
        assert_eq!(error.to_string(), "cannot use the client key from /etc/key.pem");
    }
}
