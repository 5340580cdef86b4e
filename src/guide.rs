//! The guide, chapter by chapter.
//!
//! These are the pages of the repository's folder `docs/`. Where one page links to another one, the link leads to the
//! page's file in the repository, and to its module here.
//!
//! | chapter | what it is about |
//! | --- | --- |
//! | [`channel`] | load balancing, outlier detection, deadlines, TLS to the servers |
//! | [`retries`] | retries, and gRPC's service configs |
//! | [`servers`] | a server in one call, graceful shutdown |
//! | [`etcd`] | authentication and TLS towards etcd, and what holds while it is unreachable |
//! | [`options`] | all options with their defaults, a table per builder |
//! | [`formats`] | Kitex, grpc-go, go-zero, Kratos, and several at once |
//! | [`from_tonic`] | from tonic's `Channel` to `BalancedChannel` |
//! | [`from_kitex`] | from Kitex's etcd extension |
//! | [`production`] | what to check before production |
//! | [`deployment`] | Kubernetes, Docker and systemd |
//! | [`testing`] | tests of your own service, without etcd |
//! | [`operating`] | the program `tonic-etcd`: what is registered, and orders to servers |
//! | [`logging`] | targets, levels and messages |
//! | [`tracing`] | the spans of calls, for OpenTelemetry |
//! | [`metrics`] | counters, gauges and histograms, and when to raise an alarm |
//! | [`troubleshooting`] | messages, their causes and remedies |
//! | [`compared`] | Kitex, grpc-go, linkerd and tonic beside this crate |
//! | [`benchmarks`] | the channel beside tonic's |
//! | [`fleet`] | what thousands of processes cost an etcd |
//! | [`versions`] | the minimum Rust version, semantic versioning, platforms |

#![expect(clippy::doc_markdown, reason = "chapters are prose, and show tables as programs print them")]

/// A module per chapter. The first definition of a link counts in Markdown: those here, to modules, come before those
/// at the end of the chapter, to files.
macro_rules! chapters {
    ($($name:ident = $file:literal;)*) => {$(
        #[doc = links!()]
        #[doc = include_str!($file)]
        pub mod $name {}
    )*};
}

/// Where the links of the chapters lead to here, by the names that they have there.
macro_rules! links {
    () => {
        "[benchmarks]: crate::guide::benchmarks#what-was-measured
[channel-deadlines]: crate::guide::channel#deadlines-and-keepalive
[channel-outliers]: crate::guide::channel#outlier-detection
[channel-policies]: crate::guide::channel#load-balancing-policies
[channel-subset]: crate::guide::channel#slow-start-zones-subsets
[channel-tls]: crate::guide::channel#tls-to-the-servers
[channel-tonic]: crate::guide::channel#tonics-balancer
[channel-unix]: crate::guide::channel#unix-sockets
[deployment-time]: crate::guide::deployment#how-long-a-shutdown-takes
[etcd-auth]: crate::guide::etcd#authentication-and-tls
[etcd-large]: crate::guide::etcd#large-services
[etcd-unreachable]: crate::guide::etcd#when-etcd-is-unreachable
[fleet]: crate::guide::fleet
[formats]: crate::guide::formats
[formats-several]: crate::guide::formats#several-at-once
[from-tonic]: crate::guide::from_tonic
[kitex]: crate::kitex
[logging]: crate::guide::logging
[logging-spans]: crate::guide::logging#spans
[metrics]: crate::guide::metrics
[operating-check]: crate::guide::operating#check
[options]: crate::guide::options#registry
[options-address]: crate::guide::options#the-published-address
[retries]: crate::guide::retries
[servers]: crate::guide::servers
[servers-drain]: crate::guide::servers#graceful-shutdown-without-etcd
[servers-shutdown]: crate::guide::servers#graceful-shutdown
[testing]: crate::guide::testing
[tracing]: crate::guide::tracing
"
    };
}

chapters! {
    channel = "../docs/channel.md";
    retries = "../docs/retries.md";
    servers = "../docs/servers.md";
    etcd = "../docs/etcd.md";
    options = "../docs/options.md";
    formats = "../docs/formats.md";
    from_tonic = "../docs/from-tonic.md";
    from_kitex = "../docs/from-kitex.md";
    production = "../docs/production.md";
    deployment = "../docs/deployment.md";
    testing = "../docs/testing.md";
    operating = "../docs/operating.md";
    logging = "../docs/logging.md";
    tracing = "../docs/tracing.md";
    metrics = "../docs/metrics.md";
    troubleshooting = "../docs/troubleshooting.md";
    compared = "../docs/compared.md";
    benchmarks = "../docs/benchmarks.md";
    fleet = "../docs/fleet.md";
    versions = "../docs/versions.md";
}
