//! What commands print: aligned columns for people, a JSON object a line for programs, and nothing that a terminal
//! obeys.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};

use ratatui::text::Span;
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
            return services.iter().try_for_each(|(service, keys)| {
                print_line(&ServiceLine { service: service.as_str(), instances: *keys })
            });
        }
        let rows = services.iter().map(|(service, keys)| [service.to_string(), keys.to_string()]);
        print_table([Column::Text("SERVICE"), Column::Number("INSTANCES")], rows.collect())
    }

    /// `left` has how many seconds leases have left, as far as that is known.
    pub(crate) fn instances(self, service: &str, snapshot: &Snapshot, left: &HashMap<i64, u64>) -> io::Result<()> {
        let left = |member: &Member| left.get(&member.lease()).copied();
        if self.json {
            return snapshot.iter().try_for_each(|member| print_line(&InstanceLine::of(service, member, left(member))));
        }
        let rows = snapshot.iter().map(|member| {
            let instance = member.instance();
            [
                instance.address().to_string(),
                instance.weight().to_string(),
                state(member).to_owned(),
                instance.tags().get(ZONE).map_or_else(|| "-".to_owned(), shown),
                lease(member),
                left(member).map_or_else(|| "-".to_owned(), |seconds| format!("{seconds} s")),
                tags(instance.tags().iter().filter(|(name, _)| *name != ZONE)),
            ]
        });
        let columns = [
            Column::Text("ADDRESS"),
            Column::Number("WEIGHT"),
            Column::Text("STATE"),
            Column::Text("ZONE"),
            Column::Text("LEASE"),
            Column::Number("LEFT"),
            Column::Text("TAGS"),
        ];
        print_table(columns, rows.collect())
    }

    pub(crate) fn change(self, service: &str, line: &Line) -> io::Result<()> {
        if self.json {
            return print_line(&ChangeLine { service, line });
        }
        let (time, tags) = (time_of_day(line.unix_us), tags(&line.tags));
        let (event, service, address, weight) = (line.event, shown(service), shown(&line.address), line.weight);
        let text = format!("{time} {event:<6} {service} {address} weight {weight} {tags}");
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
        print(&format!("{} {} {event}", shown(service), shown(&address)))
    }

    pub(crate) fn reweighed(self, service: &str, address: &Address, weight: u16) -> io::Result<()> {
        let address = address.to_string();
        if self.json {
            return print_line(&WeightLine { event: "reweighed", service, address, weight });
        }
        print(&format!("{} {} weight {weight}", shown(service), shown(&address)))
    }
}

#[derive(Serialize)]
struct ServiceLine<'a> {
    service: &'a str,
    instances: usize,
}

#[derive(Serialize)]
struct InstanceLine<'a> {
    service: &'a str,
    address: String,
    weight: u16,
    state: &'static str,
    /// As etcdctl shows it; 0 for a key that was put without one.
    lease: String,
    /// How long that lease lives without another keepalive; `null` for none, and where it is not known.
    seconds_left: Option<u64>,
    tags: BTreeMap<&'a str, &'a str>,
}

impl<'a> InstanceLine<'a> {
    fn of(service: &'a str, member: &'a Member, seconds_left: Option<u64>) -> Self {
        let instance = member.instance();
        Self {
            service,
            address: instance.address().to_string(),
            weight: instance.weight(),
            state: state(member),
            lease: lease(member),
            seconds_left,
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

#[derive(Serialize)]
struct WeightLine<'a> {
    event: &'static str,
    service: &'a str,
    address: String,
    weight: u16,
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

/// Tags in one line, safe to show.
pub(crate) fn tags<T: AsRef<str>>(tags: impl IntoIterator<Item = (T, T)>) -> String {
    let tags = tags.into_iter().map(|(name, value)| format!("{}={}", shown(name.as_ref()), shown(value.as_ref())));
    tags.collect::<Vec<_>>().join(" ")
}

/// A text as a terminal may get it. Any program can write to etcd, and a terminal obeys control characters and turns
/// texts around; these and invisible ones are escaped.
pub(crate) fn shown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\'' | '"' => shown.push(c),
            c => shown.extend(c.escape_debug()),
        }
    }
    shown
}

/// The time of day in UTC.
pub(crate) fn time_of_day(unix_us: u128) -> String {
    let millis = unix_us / 1_000 % 86_400_000;
    let (seconds, millis) = (millis / 1_000, millis % 1_000);
    format!("{:02}:{:02}:{:02}.{millis:03}", seconds / 3_600, seconds / 60 % 60, seconds % 60)
}

/// A column's title, and with it the side that it is aligned to.
#[derive(Clone, Copy)]
pub(crate) enum Column {
    Text(&'static str),
    Number(&'static str),
}

fn print_table<const N: usize>(columns: [Column; N], mut rows: Vec<[String; N]>) -> io::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    rows.insert(0, columns.map(|(Column::Text(title) | Column::Number(title))| title.to_owned()));
    let width = |column: usize| rows.iter().map(|row| Span::raw(&row[column]).width()).max().unwrap_or_default();
    let widths: [usize; N] = std::array::from_fn(width);
    for row in &rows {
        // `{:<width$}` counts characters, and some are two cells wide.
        let cells = columns.iter().zip(row).zip(widths).map(|((column, cell), width)| {
            let space = " ".repeat(width - Span::raw(cell).width());
            match column {
                Column::Text(_) => format!("{cell}{space}"),
                Column::Number(_) => format!("{space}{cell}"),
            }
        });
        print(cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

/// Prints one JSON line to standard output, now: its reader acts on it.
pub(crate) fn print_line(line: &impl Serialize) -> io::Result<()> {
    print(&without_controls(&serde_json::to_string(line)?))
}

/// JSON text without the characters that a terminal obeys or hides: they stand in strings alone.
fn without_controls(json: &str) -> String {
    let mut safe = String::with_capacity(json.len());
    for c in json.chars() {
        if (c.is_ascii() && c != '\u{7f}') || c.escape_debug().len() == 1 {
            safe.push(c);
        } else {
            safe.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
        }
    }
    safe
}

/// Prints a line of text to standard output.
pub(crate) fn print(line: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}

/// Says something beside the output. Where standard error is closed nothing is left to do.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "note: {}", shown(text));
}

/// The tag that has a column of its own.
const ZONE: &str = "zone";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_shown_moves_the_cursor_or_turns_text_around() {
        for (text, expected) in [
            ("a 'b' \"c\" \u{e4} \u{6f22}", "a 'b' \"c\" \u{e4} \u{6f22}"),
            ("\u{1b}[2J", "\\u{1b}[2J"),
            ("\r\n\t\u{0}", "\\r\\n\\t\\0"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("\u{202e}abc\u{2066}", "\\u{202e}abc\\u{2066}"),
            ("a\\u{1b}", "a\\\\u{1b}"),
            ("a\u{200b}b", "a\\u{200b}b"),
        ] {
            assert_eq!(shown(text), expected);
        }
    }

    #[test]
    fn json_is_the_same_without_such_characters() {
        let text = "\u{1b}\u{7f}\u{9b}\u{202e}\u{e0001} \u{e4}\u{6f22}";
        let json = without_controls(&serde_json::to_string(text).expect("text"));
        assert_eq!(json, "\"\\u001b\\u007f\\u009b\\u202e\\udb40\\udc01 \u{e4}\u{6f22}\"");
        assert_eq!(serde_json::from_str::<String>(&json).expect("JSON"), text);
    }
}
