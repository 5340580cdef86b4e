//! What commands print: aligned columns for people, a JSON object a line for programs.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};

use serde::Serialize;
use tonic_etcd::snapshot::{Member, MemberState, Snapshot};
use tonic_etcd::{Address, ServiceName};

use crate::changes::Line;

#[derive(Clone, Copy)]
pub(crate) struct Output {
    pub(crate) json: bool,
}

impl Output {
    pub(crate) fn services(self, services: &BTreeMap<ServiceName, usize>) -> io::Result<()> {
        if self.json {
            return services
                .iter()
                .try_for_each(|(service, keys)| print_line(&ServiceLine { service: service.as_str(), keys: *keys }));
        }
        let rows = services.iter().map(|(service, keys)| [service.to_string(), keys.to_string()]);
        print_table([Column::Text("SERVICE"), Column::Number("KEYS")], rows.collect())
    }

    pub(crate) fn instances(self, service: &str, snapshot: &Snapshot) -> io::Result<()> {
        if self.json {
            return snapshot.iter().try_for_each(|member| print_line(&InstanceLine::of(service, member)));
        }
        let rows = snapshot.iter().map(|member| {
            let instance = member.instance();
            [
                instance.address().to_string(),
                instance.weight().to_string(),
                state(member).to_owned(),
                lease(member),
                shown(instance.tags()),
            ]
        });
        let columns = [
            Column::Text("ADDRESS"),
            Column::Number("WEIGHT"),
            Column::Text("STATE"),
            Column::Text("LEASE"),
            Column::Text("TAGS"),
        ];
        print_table(columns, rows.collect())
    }

    pub(crate) fn change(self, service: &str, line: &Line) -> io::Result<()> {
        if self.json {
            return print_line(&ChangeLine { service, line });
        }
        let (time, tags) = (time_of_day(line.unix_us), shown(&line.tags));
        let text = format!("{time} {:<6} {service} {} weight {} {tags}", line.event, line.address, line.weight);
        print(text.trim_end())
    }

    pub(crate) fn listening(self, url: &str) -> io::Result<()> {
        if self.json {
            return print_line(&ListeningLine { event: "listening", url });
        }
        print(&format!("listening on {url}"))
    }

    pub(crate) fn drained(self, service: &str, address: &Address, event: &'static str) -> io::Result<()> {
        let address = address.to_string();
        if self.json {
            return print_line(&DrainLine { event, service, address });
        }
        print(&format!("{service} {address} {event}"))
    }
}

#[derive(Serialize)]
struct ServiceLine<'a> {
    service: &'a str,
    keys: usize,
}

#[derive(Serialize)]
struct InstanceLine<'a> {
    service: &'a str,
    address: String,
    weight: u16,
    state: &'static str,
    /// As etcdctl shows it; 0 for a key that was put without one.
    lease: String,
    tags: BTreeMap<&'a str, &'a str>,
}

impl<'a> InstanceLine<'a> {
    fn of(service: &'a str, member: &'a Member) -> Self {
        let instance = member.instance();
        Self {
            service,
            address: instance.address().to_string(),
            weight: instance.weight(),
            state: state(member),
            lease: lease(member),
            tags: instance.tags().iter().collect(),
        }
    }
}

#[derive(Serialize)]
struct ChangeLine<'a> {
    service: &'a str,
    #[serde(flatten)]
    line: &'a Line,
}

#[derive(Serialize)]
struct ListeningLine<'a> {
    event: &'static str,
    url: &'a str,
}

#[derive(Serialize)]
struct DrainLine<'a> {
    event: &'static str,
    service: &'a str,
    address: String,
}

fn state(member: &Member) -> &'static str {
    match member.state() {
        MemberState::Draining => "draining",
        _ => "live",
    }
}

fn lease(member: &Member) -> String {
    format!("{:x}", member.lease())
}

/// Any program can write tags, and a terminal obeys control characters.
pub(crate) fn shown<T: fmt::Display>(tags: impl IntoIterator<Item = (T, T)>) -> String {
    let tags: Vec<String> = tags.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    tags.join(" ").escape_debug().to_string()
}

/// The time of day in UTC.
pub(crate) fn time_of_day(unix_us: u128) -> String {
    let millis = unix_us / 1_000 % 86_400_000;
    let (seconds, millis) = (millis / 1_000, millis % 1_000);
    format!("{:02}:{:02}:{:02}.{millis:03}", seconds / 3_600, seconds / 60 % 60, seconds % 60)
}

/// A column's title, and with it the side that it is aligned to.
#[derive(Clone, Copy)]
enum Column {
    Text(&'static str),
    Number(&'static str),
}

fn print_table<const N: usize>(columns: [Column; N], mut rows: Vec<[String; N]>) -> io::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    rows.insert(0, columns.map(|(Column::Text(title) | Column::Number(title))| title.to_owned()));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: [usize; N] = std::array::from_fn(width);
    for row in &rows {
        let cells = columns.iter().zip(row).zip(widths).map(|((column, cell), width)| match column {
            Column::Text(_) => format!("{cell:<width$}"),
            Column::Number(_) => format!("{cell:>width$}"),
        });
        print(cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

/// Prints one JSON line to standard output, now: its reader acts on it.
pub(crate) fn print_line(line: &impl Serialize) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    serde_json::to_writer(&mut stdout, line)?;
    stdout.write_all(b"\n")?;
    stdout.flush()
}

/// Prints a line of text to standard output.
pub(crate) fn print(line: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}
