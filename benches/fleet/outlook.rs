//! What the measured costs mean for larger fleets: facts of the cases go in, a table comes out.

use std::fmt::Write as _;

/// What was measured of one process, watch or login; `None` where its case did not run.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Facts {
    /// Watch streams of a process that serves one service and calls fifty.
    pub(crate) streams_of_a_process: Option<f64>,
    /// Messages of such a process to etcd, at rest.
    pub(crate) requests_a_second: Option<f64>,
    /// Those of them that are lists.
    pub(crate) lists_a_second: Option<f64>,
    /// Bytes of such a process to and from etcd, at rest.
    pub(crate) bytes_a_second: Option<f64>,
    /// Memory of etcd for one more watch of a client.
    pub(crate) bytes_of_a_watch: Option<f64>,
    /// Memory of etcd for one more client with one watch.
    pub(crate) bytes_of_a_client: Option<f64>,
    /// Lists after a restart of etcd.
    pub(crate) lists_a_watch: Option<f64>,
    /// How long it took until all were current again.
    pub(crate) seconds_to_return: Option<f64>,
    /// Logins until a client is in, when all want to be at once.
    pub(crate) logins_of_a_client: Option<f64>,
    /// CPU time of etcd for one of them, in seconds.
    pub(crate) cpu_of_a_login: Option<f64>,
}

impl Facts {
    /// These, and where one is missing, the other's.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            streams_of_a_process: self.streams_of_a_process.or(other.streams_of_a_process),
            requests_a_second: self.requests_a_second.or(other.requests_a_second),
            lists_a_second: self.lists_a_second.or(other.lists_a_second),
            bytes_a_second: self.bytes_a_second.or(other.bytes_a_second),
            bytes_of_a_watch: self.bytes_of_a_watch.or(other.bytes_of_a_watch),
            bytes_of_a_client: self.bytes_of_a_client.or(other.bytes_of_a_client),
            lists_a_watch: self.lists_a_watch.or(other.lists_a_watch),
            seconds_to_return: self.seconds_to_return.or(other.seconds_to_return),
            logins_of_a_client: self.logins_of_a_client.or(other.logins_of_a_client),
            cpu_of_a_login: self.cpu_of_a_login.or(other.cpu_of_a_login),
        }
    }

    /// The second table: each fact times the processes of a fleet, for all members of etcd together.
    pub(crate) fn outlook(&self) -> String {
        let watches = WATCHES;
        let memory = self.bytes_of_a_client.zip(self.bytes_of_a_watch);
        let rows: [(&str, Option<f64>, Show); 7] = [
            ("Watch streams", self.streams_of_a_process, count),
            ("etcd's memory for clients", memory.map(|(client, watch)| client + (watches - 1.0) * watch), bytes),
            ("messages to etcd a second, at rest", self.requests_a_second, count),
            ("lists among them a second", self.lists_a_second, count),
            ("bytes to and from etcd a second, at rest", self.bytes_a_second, bytes),
            ("lists after a restart of etcd", self.lists_a_watch.map(|lists| lists * watches), count),
            (
                "etcd's CPU time for logins after a restart",
                self.logins_of_a_client.zip(self.cpu_of_a_login).map(|(logins, cpu)| logins * cpu),
                time,
            ),
        ];
        if rows.iter().all(|(_, fact, _)| fact.is_none()) {
            return String::new();
        }
        let mut table = String::from(HEAD);
        for (words, fact, show) in rows {
            let Some(fact) = fact else { continue };
            let cells = FLEETS.map(|processes| format!(" {} |", show(fact * processes)));
            _ = writeln!(table, "| {words} | {} |{}", show(fact), cells.concat());
        }
        table
    }
}

/// How a row shows its figures.
type Show = fn(f64) -> String;

fn count(figure: f64) -> String {
    match figure {
        ..0.1 => format!("{figure:.3}"),
        ..10.0 => format!("{figure:.1}"),
        ..10_000.0 => format!("{figure:.0}"),
        ..1_000_000.0 => format!("{:.0} thousand", figure / 1e3),
        _ => format!("{:.1} million", figure / 1e6),
    }
}

fn bytes(figure: f64) -> String {
    match figure {
        ..1024.0 => format!("{figure:.0} B"),
        ..1_048_576.0 => format!("{:.0} KiB", figure / 1024.0),
        ..1_073_741_824.0 => format!("{:.0} MiB", figure / 1_048_576.0),
        _ => format!("{:.1} GiB", figure / 1_073_741_824.0),
    }
}

fn time(seconds: f64) -> String {
    match seconds {
        ..1.0 => format!("{:.0} ms", seconds * 1e3),
        ..600.0 => format!("{seconds:.0} s"),
        _ => format!("{:.0} min", seconds / 60.0),
    }
}

const HEAD: &str = "
What these costs mean for a fleet whose processes serve one service each and call fifty, for all members of etcd together:

| | one process | 100 | 10,000 | 100,000 |
| --- | --- | --- | --- | --- |
";

const FLEETS: [f64; 3] = [100.0, 10_000.0, 100_000.0];

/// Of a process: fifty services and the own key.
const WATCHES: f64 = 51.0;
