//! Every kind of finding: its name for programs, how bad it is, what it means and what to do.

use std::fmt;

use serde::Serialize;

/// How bad a finding is; the worst comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// Calls or registrations fail.
    Error,
    /// They will, or nearly do.
    Warning,
    /// Worth knowing.
    Note,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}

/// What can be found. In the order in which findings of one level are printed: what causes others comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    EtcdUnreachable,
    EtcdTls,
    EtcdLogin,
    EtcdSplit,
    EtcdNoLeader,
    EtcdNoSpace,
    EtcdProblem,
    EtcdPermission,
    EtcdRefused,
    EtcdMemberDown,
    EtcdLearner,
    RegisteredElsewhere,
    ServiceEmpty,
    PrefixEmpty,
    ValueUnreadable,
    AddressUnusable,
    AddressUnresolved,
    AddressRefused,
    AddressUnreachable,
    ServerSilent,
    ServerCloses,
    ServerHttp1,
    ServerOther,
    ServicePartlyTls,
    ServerNotServing,
    ServerNotGrpc,
    ServerTls,
    AddressLoopback,
    AddressTwice,
    WeightZero,
    DrainingNotLeft,
    KeysWithoutLease,
    LeaseRunningOut,
    LeaseLong,
    TooManyKeys,
    KeyForeign,
    CheckIncomplete,
    AddressShared,
    LeaseWithoutKeys,
}

/// What is said of a kind.
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    /// Its name for programs; stays as it is once it was released.
    pub(crate) id: &'static str,
    pub(crate) level: Level,
    /// What was found, before the names.
    pub(crate) what: &'static str,
    /// What to do.
    pub(crate) advice: &'static str,
}

impl Kind {
    pub(crate) fn entry(self) -> &'static Entry {
        let entry = &TABLE[self as usize];
        debug_assert_eq!(entry.kind, self, "kinds stand at their places");
        entry
    }
}

/// Of each kind, in their order.
static TABLE: [Entry; 39] = [
    Entry {
        kind: Kind::EtcdUnreachable,
        id: "etcd-unreachable",
        level: Level::Error,
        what: "no etcd member answers",
        advice: "check --etcd, that etcd runs, and that this host may connect to it",
    },
    Entry {
        kind: Kind::EtcdTls,
        id: "etcd-tls",
        level: Level::Error,
        what: "there is no TLS session with etcd",
        advice: "check http or https in --etcd, that --ca names the authority of etcd's certificate, its names and its \
                 dates",
    },
    Entry {
        kind: Kind::EtcdLogin,
        id: "etcd-login",
        level: Level::Error,
        what: "etcd refuses the login, or wants one",
        advice: "check --user and the password; `etcdctl user list` shows the users",
    },
    Entry {
        kind: Kind::EtcdSplit,
        id: "etcd-split",
        level: Level::Error,
        what: "the URLs are those of different clusters",
        advice: "name the members of one cluster alone: servers would register in one, and clients look in the other",
    },
    Entry {
        kind: Kind::EtcdNoLeader,
        id: "etcd-no-leader",
        level: Level::Error,
        what: "etcd has no leader",
        advice: "bring back members until most of them run: until then nothing can register, and no change is seen",
    },
    Entry {
        kind: Kind::EtcdNoSpace,
        id: "etcd-nospace",
        level: Level::Error,
        what: "etcd is out of space and refuses writes",
        advice: "compact and defragment etcd, raise its quota, then run `etcdctl alarm disarm`",
    },
    Entry {
        kind: Kind::EtcdProblem,
        id: "etcd-problem",
        level: Level::Error,
        what: "a member reports a problem",
        advice: "look at the member's log, and at `etcdctl alarm list`",
    },
    Entry {
        kind: Kind::EtcdPermission,
        id: "etcd-permission",
        level: Level::Error,
        what: "the user may not read the prefix",
        advice: "grant its role read on the prefix (servers need readwrite): \
                 `etcdctl role grant-permission --prefix=true`",
    },
    Entry {
        kind: Kind::EtcdRefused,
        id: "etcd-refused",
        level: Level::Error,
        what: "etcd refuses to be read",
        advice: "look at the log of the member",
    },
    Entry {
        kind: Kind::EtcdMemberDown,
        id: "etcd-member-down",
        level: Level::Warning,
        what: "a member does not answer while others do",
        advice: "bring it back, or take its URL out where it was replaced",
    },
    Entry {
        kind: Kind::EtcdLearner,
        id: "etcd-learner",
        level: Level::Warning,
        what: "a member is a learner, which serves no clients",
        advice: "promote it with `etcdctl member promote`, or take its URL out",
    },
    Entry {
        kind: Kind::RegisteredElsewhere,
        id: "registered-elsewhere",
        level: Level::Error,
        what: "nothing usable is here, but something is elsewhere",
        advice: "use these flags, or set the same format and prefix in servers and clients",
    },
    Entry {
        kind: Kind::ServiceEmpty,
        id: "service-empty",
        level: Level::Error,
        what: "no instance of the service is registered",
        advice: "check the name and --prefix, and the log of its servers for `registration has begun`",
    },
    Entry {
        kind: Kind::PrefixEmpty,
        id: "prefix-empty",
        level: Level::Warning,
        what: "nothing is registered below the prefix",
        advice: "check --prefix and --format, and that servers have started",
    },
    Entry {
        kind: Kind::ValueUnreadable,
        id: "value-unreadable",
        level: Level::Error,
        what: "clients cannot read the value",
        advice: "check --format and --prefix first; where other keys of the service can be read, find out which \
                 program writes this one, and delete it",
    },
    Entry {
        kind: Kind::AddressUnusable,
        id: "address-unusable",
        level: Level::Error,
        what: "clients must not be sent to the address",
        advice: "let the server publish an address that names one host: `advertise(..)`, or the bound address",
    },
    Entry {
        kind: Kind::AddressUnresolved,
        id: "address-unresolved",
        level: Level::Error,
        what: "the name cannot be resolved here",
        advice: "publish an IP address, or a name that every client can resolve",
    },
    Entry {
        kind: Kind::AddressRefused,
        id: "address-refused",
        level: Level::Error,
        what: "no server listens at the address",
        advice: "start the server, or correct the address that it publishes; a key without a lease has to be deleted",
    },
    Entry {
        kind: Kind::AddressUnreachable,
        id: "address-unreachable",
        level: Level::Error,
        what: "no connection to the address comes about",
        advice: "check routes and firewalls between this host and the server, and the address that it publishes",
    },
    Entry {
        kind: Kind::ServerSilent,
        id: "server-silent",
        level: Level::Error,
        what: "the server takes connections and does not answer",
        advice: "look whether it is frozen or overloaded, or whether another program listens there",
    },
    Entry {
        kind: Kind::ServerCloses,
        id: "server-closes",
        level: Level::Error,
        what: "the server ends connections at once",
        advice: "look at its log: a proxy without its backend or a limit on connections does that",
    },
    Entry {
        kind: Kind::ServerHttp1,
        id: "server-http1",
        level: Level::Error,
        what: "the server speaks HTTP/1 alone",
        advice: "publish the port of the gRPC server; this is that of a web server or a proxy without HTTP/2",
    },
    Entry {
        kind: Kind::ServerOther,
        id: "server-other",
        level: Level::Error,
        what: "what listens there speaks another protocol",
        advice: "publish the port of the gRPC server",
    },
    Entry {
        kind: Kind::ServicePartlyTls,
        id: "service-partly-tls",
        level: Level::Error,
        what: "some servers of the service want TLS, others plain text",
        advice: "use one of both: a channel is either with tls(..) or without",
    },
    Entry {
        kind: Kind::ServerNotServing,
        id: "server-not-serving",
        level: Level::Warning,
        what: "the server is registered and reports NOT_SERVING",
        advice: "look why it is unhealthy; with `RegistrationBuilder::health` it stays out of etcd meanwhile",
    },
    Entry {
        kind: Kind::ServerNotGrpc,
        id: "server-not-grpc",
        level: Level::Warning,
        what: "the server speaks HTTP/2 without gRPC",
        advice: "publish the port of the gRPC server, unless clients of it send plain HTTP requests",
    },
    Entry {
        kind: Kind::ServerTls,
        id: "server-tls",
        level: Level::Note,
        what: "the server wants TLS",
        advice: "clients need `ChannelBuilder::tls`; what is behind TLS was not looked at",
    },
    Entry {
        kind: Kind::AddressLoopback,
        id: "address-loopback",
        level: Level::Warning,
        what: "the address is that of the server's own host",
        advice: "bind or advertise an address that other hosts reach; on one host alone it is fine",
    },
    Entry {
        kind: Kind::AddressTwice,
        id: "address-twice",
        level: Level::Warning,
        what: "two keys of one service have the same address",
        advice: "delete the key without a lease if another has one, and let a lease that is not renewed run out by \
                 itself; where all are renewed, two servers publish one address: let one of them publish its own",
    },
    Entry {
        kind: Kind::WeightZero,
        id: "weight-zero",
        level: Level::Warning,
        what: "a weight of 0 counts as the default weight",
        advice: "drain an instance to take it out: `tonic-etcd drain`",
    },
    Entry {
        kind: Kind::DrainingNotLeft,
        id: "draining-not-left",
        level: Level::Warning,
        what: "the instance was told to leave, and has not",
        advice: "a server without this crate cannot obey: stop it, or delete its key",
    },
    Entry {
        kind: Kind::KeysWithoutLease,
        id: "keys-without-lease",
        level: Level::Warning,
        what: "the key has no lease and never expires",
        advice: "delete it when its server is gone; let servers register themselves",
    },
    Entry {
        kind: Kind::LeaseRunningOut,
        id: "lease-running-out",
        level: Level::Warning,
        what: "the lease is not renewed and about to run out",
        advice: "look whether the server is frozen, overloaded or cut off from etcd",
    },
    Entry {
        kind: Kind::LeaseLong,
        id: "lease-long",
        level: Level::Warning,
        what: "the lease lives long: a server that crashes stays registered for that time",
        advice: "use a TTL of seconds: `RegistrationBuilder::ttl`",
    },
    Entry {
        kind: Kind::TooManyKeys,
        id: "too-many-keys",
        level: Level::Warning,
        what: "there are more keys than clients read",
        advice: "find out what writes them, or raise `RegistryBuilder::max_instances`",
    },
    Entry {
        kind: Kind::KeyForeign,
        id: "key-foreign",
        level: Level::Warning,
        what: "the key belongs to no service",
        advice: "give other data a prefix of its own",
    },
    Entry {
        kind: Kind::CheckIncomplete,
        id: "check-incomplete",
        level: Level::Warning,
        what: "this could not be looked at",
        advice: "give it more time with --timeout, or a user that may read it",
    },
    Entry {
        kind: Kind::AddressShared,
        id: "address-shared",
        level: Level::Note,
        what: "several services have the address",
        advice: "fine where one server offers them all",
    },
    Entry {
        kind: Kind::LeaseWithoutKeys,
        id: "lease-without-keys",
        level: Level::Note,
        what: "the lease has no key",
        advice: "a registration that is paused keeps such a lease; otherwise it runs out by itself",
    },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_kind_stands_at_its_place_in_the_table() {
        let places: Vec<usize> = TABLE.iter().map(|entry| entry.kind as usize).collect();
        assert_eq!(places, (0..=Kind::LeaseWithoutKeys as usize).collect::<Vec<_>>());
    }

    #[test]
    fn every_kind_of_finding_has_a_row_in_the_docs_and_no_row_is_of_none() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operating.md");
        let page = fs::read_to_string(page).expect("the page of the program");
        let (_, rows) = page.split_once("| finding | level |").expect("a table of findings");
        let rows = rows.lines().skip(2).take_while(|line| line.starts_with('|'));
        let row = |line: &str| {
            let mut cells = line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`').to_owned());
            (cells.next().expect("an id"), cells.next().expect("a level"))
        };
        let documented: BTreeSet<(String, String)> = rows.map(row).collect();
        let known = TABLE.iter().map(|entry| (entry.id.to_owned(), entry.level.to_string()));
        let known: BTreeSet<(String, String)> = known.collect();
        assert_eq!(documented, known);
    }

    #[test]
    fn ids_are_words_with_dashes_and_sentences_fit_the_output() {
        for &Entry { id, what, advice, .. } in &TABLE {
            assert!(id.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-' || byte.is_ascii_digit()), "{id}");
            assert!(!what.ends_with('.') && !advice.ends_with('.'), "{id}: no sentence of its own");
        }
    }
}
