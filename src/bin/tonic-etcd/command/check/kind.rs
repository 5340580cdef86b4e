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
    /// Its name for programs; stays as it is once it was released.
    pub(crate) id: &'static str,
    pub(crate) level: Level,
    /// What was found, before the names.
    pub(crate) what: &'static str,
    /// What to do.
    pub(crate) advice: &'static str,
}

impl Kind {
    pub(crate) const fn entry(self) -> Entry {
        use Level::{Error, Note, Warning};
        let (id, level, what, advice) = match self {
            Self::EtcdUnreachable => (
                "etcd-unreachable",
                Error,
                "no etcd member answers",
                "check --etcd, that etcd runs, and that this host may connect to it",
            ),
            Self::EtcdTls => (
                "etcd-tls",
                Error,
                "there is no TLS session with etcd",
                "check http or https in --etcd, that --ca names the authority of etcd's certificate, its names and its dates",
            ),
            Self::EtcdLogin => (
                "etcd-login",
                Error,
                "etcd refuses the login, or wants one",
                "check --user and the password; `etcdctl user list` shows the users",
            ),
            Self::EtcdSplit => (
                "etcd-split",
                Error,
                "the URLs are those of different clusters",
                "name the members of one cluster alone: servers would register in one, and clients look in the other",
            ),
            Self::EtcdNoLeader => (
                "etcd-no-leader",
                Error,
                "etcd has no leader",
                "bring back members until most of them run: until then nothing can register, and no change is seen",
            ),
            Self::EtcdNoSpace => (
                "etcd-nospace",
                Error,
                "etcd is out of space and refuses writes",
                "compact and defragment etcd, raise its quota, then run `etcdctl alarm disarm`",
            ),
            Self::EtcdProblem => (
                "etcd-problem",
                Error,
                "a member reports a problem",
                "look at the member's log, and at `etcdctl alarm list`",
            ),
            Self::EtcdPermission => (
                "etcd-permission",
                Error,
                "the user may not read the prefix",
                "grant its role read on the prefix (servers need readwrite): `etcdctl role grant-permission --prefix=true`",
            ),
            Self::EtcdRefused => (
                "etcd-refused",
                Error,
                "etcd refuses to be read",
                "look at the log of the member",
            ),
            Self::EtcdMemberDown => (
                "etcd-member-down",
                Warning,
                "a member does not answer while others do",
                "bring it back, or take its URL out where it was replaced",
            ),
            Self::EtcdLearner => (
                "etcd-learner",
                Warning,
                "a member is a learner, which serves no clients",
                "promote it with `etcdctl member promote`, or take its URL out",
            ),
            Self::RegisteredElsewhere => (
                "registered-elsewhere",
                Error,
                "nothing usable is here, but something is elsewhere",
                "use these flags, or set the same format and prefix in servers and clients",
            ),
            Self::ServiceEmpty => (
                "service-empty",
                Error,
                "no instance of the service is registered",
                "check the name and --prefix, and the log of its servers for `registration has begun`",
            ),
            Self::PrefixEmpty => (
                "prefix-empty",
                Warning,
                "nothing is registered below the prefix",
                "check --prefix and --format, and that servers have started",
            ),
            Self::ValueUnreadable => (
                "value-unreadable",
                Error,
                "clients cannot read the value",
                "write it as --format has it, or delete the key; find out which program writes it",
            ),
            Self::AddressUnusable => (
                "address-unusable",
                Error,
                "clients must not be sent to the address",
                "let the server publish an address that names one host: `advertise(..)`, or the bound address",
            ),
            Self::AddressUnresolved => (
                "address-unresolved",
                Error,
                "the name cannot be resolved here",
                "publish an IP address, or a name that every client can resolve",
            ),
            Self::AddressRefused => (
                "address-refused",
                Error,
                "no server listens at the address",
                "start the server, or correct the address that it publishes; a key without a lease has to be deleted",
            ),
            Self::AddressUnreachable => (
                "address-unreachable",
                Error,
                "no connection to the address comes about",
                "check routes and firewalls between this host and the server, and the address that it publishes",
            ),
            Self::ServerSilent => (
                "server-silent",
                Error,
                "the server takes connections and does not answer",
                "look whether it is frozen or overloaded, or whether another program listens there",
            ),
            Self::ServerCloses => (
                "server-closes",
                Error,
                "the server ends connections at once",
                "look at its log: a proxy without its backend or a limit on connections does that",
            ),
            Self::ServerHttp1 => (
                "server-http1",
                Error,
                "the server speaks HTTP/1 alone",
                "publish the port of the gRPC server; this is that of a web server or a proxy without HTTP/2",
            ),
            Self::ServerOther => (
                "server-other",
                Error,
                "what listens there speaks another protocol",
                "publish the port of the gRPC server",
            ),
            Self::ServicePartlyTls => (
                "service-partly-tls",
                Error,
                "some servers of the service want TLS, others plain text",
                "use one of both: a channel is either with tls(..) or without",
            ),
            Self::ServerNotServing => (
                "server-not-serving",
                Warning,
                "the server is registered and reports NOT_SERVING",
                "look why it is unhealthy; with `RegistrationBuilder::health` it stays out of etcd meanwhile",
            ),
            Self::ServerNotGrpc => (
                "server-not-grpc",
                Warning,
                "the server speaks HTTP/2 without gRPC",
                "publish the port of the gRPC server, unless clients of it send plain HTTP requests",
            ),
            Self::ServerTls => (
                "server-tls",
                Note,
                "the server wants TLS",
                "clients need `ChannelBuilder::tls`; what is behind TLS was not looked at",
            ),
            Self::AddressLoopback => (
                "address-loopback",
                Warning,
                "the address is that of the server's own host",
                "bind or advertise an address that other hosts reach; on one host alone it is fine",
            ),
            Self::AddressTwice => (
                "address-twice",
                Warning,
                "two keys of one service have the same address",
                "one is that of a server which was replaced, or two servers publish one address: delete the older key",
            ),
            Self::WeightZero => (
                "weight-zero",
                Warning,
                "a weight of 0 counts as the default weight",
                "drain an instance to take it out: `tonic-etcd drain`",
            ),
            Self::DrainingNotLeft => (
                "draining-not-left",
                Warning,
                "the instance was told to leave, and has not",
                "a server without this crate cannot obey: stop it, or delete its key",
            ),
            Self::KeysWithoutLease => (
                "keys-without-lease",
                Warning,
                "the key has no lease and never expires",
                "delete it when its server is gone; let servers register themselves",
            ),
            Self::LeaseRunningOut => (
                "lease-running-out",
                Warning,
                "the lease is not renewed and about to run out",
                "look whether the server is frozen, overloaded or cut off from etcd",
            ),
            Self::LeaseLong => (
                "lease-long",
                Warning,
                "the lease lives long: a server that crashes stays registered for that time",
                "use a TTL of seconds: `RegistrationBuilder::ttl`",
            ),
            Self::TooManyKeys => (
                "too-many-keys",
                Warning,
                "there are more keys than clients read",
                "find out what writes them, or raise `RegistryBuilder::max_instances`",
            ),
            Self::KeyForeign => (
                "key-foreign",
                Warning,
                "the key belongs to no service",
                "give other data a prefix of its own",
            ),
            Self::CheckIncomplete => (
                "check-incomplete",
                Warning,
                "this could not be looked at",
                "give it more time with --timeout, or a user that may read it",
            ),
            Self::AddressShared => (
                "address-shared",
                Note,
                "several services have the address",
                "fine where one server offers them all",
            ),
            Self::LeaseWithoutKeys => (
                "lease-without-keys",
                Note,
                "the lease has no key",
                "a registration that is paused keeps such a lease; otherwise it runs out by itself",
            ),
        };
        Entry { id, level, what, advice }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    /// Of each kind, by its place.
    const LAST: Kind = Kind::LeaseWithoutKeys;

    fn all() -> Vec<Kind> {
        use Kind::*;
        let all = [
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
        ];
        assert_eq!(all.len(), LAST as usize + 1, "every kind is here");
        all.to_vec()
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
        let entry = |kind: Kind| (kind.entry().id.to_owned(), kind.entry().level.to_string());
        let known: BTreeSet<(String, String)> = all().into_iter().map(entry).collect();
        assert_eq!(documented, known);
    }

    #[test]
    fn ids_are_words_with_dashes_and_sentences_fit_the_output() {
        for kind in all() {
            let Entry { id, what, advice, .. } = kind.entry();
            assert!(id.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-' || byte.is_ascii_digit()), "{id}");
            assert!(!what.ends_with('.') && !advice.ends_with('.'), "{id}: no sentence of its own");
        }
    }
}
