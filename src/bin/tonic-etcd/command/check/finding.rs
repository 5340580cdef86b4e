//! Findings to what is printed of them: grouped for people, an object a line for programs.

use std::io;

use serde::Serialize;

use super::kind::{Entry, Kind, Level};
use crate::print::{print, print_line, shown};

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) kind: Kind,
    pub(crate) level: Level,
    /// The service that it is about, if it is about one.
    pub(crate) service: Option<String>,
    /// What it was found at: keys, addresses, members, each with a reason where there is one.
    pub(crate) names: Vec<String>,
}

impl Finding {
    pub(crate) fn new(kind: Kind, service: Option<&str>, names: Vec<String>) -> Self {
        Self { kind, level: kind.entry().level, service: service.map(str::to_owned), names }
    }

    /// Nothing but a suspicion: the second look that would confirm it is missing.
    pub(crate) fn unconfirmed(mut self) -> Self {
        self.level = self.level.max(Level::Warning);
        self.names.iter_mut().for_each(|name| name.push_str(" (not confirmed)"));
        self
    }

    pub(crate) fn with_level(mut self, level: Level) -> Self {
        self.level = level;
        self
    }
}

/// How much was looked at.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Scope {
    pub(crate) services: usize,
    pub(crate) keys: usize,
    pub(crate) addresses: usize,
}

/// The worst level comes first, then the kinds in their order.
pub(crate) fn sort(findings: &mut [Finding]) {
    findings.sort_by(|a, b| (a.level, a.kind, &a.service).cmp(&(b.level, b.kind, &b.service)));
}

/// Prints an object a line.
pub(crate) fn print_json(findings: &[Finding]) -> io::Result<()> {
    findings.iter().try_for_each(|finding| {
        let &Entry { id, what, advice, .. } = finding.kind.entry();
        let service = finding.service.as_deref();
        print_line(&Line { level: finding.level, id, service, what, names: &finding.names, advice })
    })
}

#[derive(Serialize)]
struct Line<'a> {
    level: Level,
    id: &'static str,
    service: Option<&'a str>,
    what: &'static str,
    names: &'a [String],
    #[serde(rename = "do")]
    advice: &'static str,
}

/// Prints the findings of each kind below each other, then how much was looked at.
pub(crate) fn print_text(findings: &[Finding], scope: Scope) -> io::Result<()> {
    print(&text(findings, scope))
}

fn text(findings: &[Finding], scope: Scope) -> String {
    let mut lines = Vec::new();
    for group in findings.chunk_by(|a, b| (a.level, a.kind) == (b.level, b.kind)) {
        let (&Entry { id, what, advice, .. }, level) = (group[0].kind.entry(), group[0].level);
        lines.push(format!("{level}: {what} ({id})"));
        lines.extend(group.iter().take(MOST_SHOWN).flat_map(names));
        if let Some(more) = group.len().checked_sub(MOST_SHOWN).filter(|more| *more > 0) {
            lines.push(format!("  and {more} more services"));
        }
        lines.push(format!("  -> {advice}"));
    }
    let Scope { services, keys, addresses } = scope;
    let looked_at = format!("looked at {services} services, {keys} keys and {addresses} addresses");
    if findings.is_empty() {
        lines.push(format!("nothing is wrong: {looked_at}"));
    } else {
        let count = |level, word| {
            let count = findings.iter().filter(|finding| finding.level == level).count();
            format!("{count} {word}{}", if count == 1 { "" } else { "s" })
        };
        let (errors, warnings) = (count(Level::Error, "error"), count(Level::Warning, "warning"));
        lines.push(format!("{errors}, {warnings}, {}; {looked_at}", count(Level::Note, "note")));
    }
    lines.join("\n")
}

/// A line for each of a finding's first names.
fn names(finding: &Finding) -> Vec<String> {
    let service = finding.service.as_ref().map(|service| format!("{service}: ")).unwrap_or_default();
    let mut lines: Vec<String> =
        finding.names.iter().take(MOST_SHOWN).map(|name| format!("  {}", cut(&format!("{service}{name}")))).collect();
    if let Some(more) = finding.names.len().checked_sub(MOST_SHOWN).filter(|more| *more > 0) {
        lines.push(format!("  {service}and {more} more"));
    }
    lines
}

/// As much of a name as a line has room for.
fn cut(text: &str) -> String {
    let line: String = text.chars().take(MOST_OF_A_NAME).collect();
    let more = if line.len() < text.len() { ".." } else { "" };
    format!("{}{more}", shown(&line))
}

/// How many names of a finding, and findings of a kind, are shown to people. Programs see all.
const MOST_SHOWN: usize = 8;

/// The most of a name that is shown to people: two lines of a wide terminal.
const MOST_OF_A_NAME: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_grouped_by_kind_and_cut_short_and_escaped() {
        let names = |count: usize| (1..=count).map(|n| format!("10.0.0.{n}:80")).collect::<Vec<_>>();
        let mut findings = vec![
            Finding::new(Kind::AddressShared, None, vec!["10.0.0.1:80: a, b".into()]),
            Finding::new(Kind::AddressRefused, Some("b"), vec!["\u{1b}[31m\u{202e}".into()]),
            Finding::new(Kind::AddressRefused, Some("a"), names(10)),
            Finding::new(Kind::AddressLoopback, Some("a"), names(1)).with_level(Level::Note),
        ];
        sort(&mut findings);
        let text = text(&findings, Scope { services: 2, keys: 12, addresses: 11 });
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "error: no server listens at the address (address-refused)");
        assert_eq!(lines[1], "  a: 10.0.0.1:80");
        assert_eq!(lines[9], "  a: and 2 more");
        assert_eq!(lines[10], "  b: \\u{1b}[31m\\u{202e}");
        assert!(lines[11].starts_with("  -> start the server"), "{text}");
        assert!(lines[12].starts_with("note: ") && lines[12].ends_with("(address-loopback)"), "{text}");
        let last = "2 errors, 0 warnings, 2 notes; looked at 2 services, 12 keys and 11 addresses";
        assert_eq!(lines.last().copied(), Some(last), "{text}");
    }

    #[test]
    fn a_check_that_found_nothing_says_how_much_it_looked_at() {
        let text = text(&[], Scope { services: 1, keys: 2, addresses: 2 });
        assert_eq!(text, "nothing is wrong: looked at 1 services, 2 keys and 2 addresses");
    }
}
