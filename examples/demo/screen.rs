//! What the spectator sees: the story as it unfolds, and below it a table of the servers. On a terminal the table is
//! drawn anew in place; anywhere else each change of it is a line.

use std::env;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::time::Instant;

/// One server, as the table shows it.
pub(crate) struct Row {
    pub(crate) name: char,
    pub(crate) address: String,
    pub(crate) weight: Option<u16>,
    pub(crate) calls_a_second: usize,
    pub(crate) state: &'static str,
    pub(crate) tone: Tone,
}

/// How a piece of text looks, where colours are wanted.
#[derive(Clone, Copy)]
pub(crate) enum Tone {
    Bold,
    Dim,
    Good,
    Uneasy,
    Bad,
}

pub(crate) struct Screen {
    begin: Instant,
    terminal: bool,
    colours: bool,
    /// The table's lines as they stand on the terminal now.
    drawn: Vec<String>,
    /// Elsewhere: the state that was last printed of each server.
    told: Vec<&'static str>,
}

impl Screen {
    pub(crate) fn new(begin: Instant) -> Self {
        let terminal = io::stdout().is_terminal() && env::var_os("TERM").is_some_and(|term| term != "dumb");
        let colours = terminal && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let screen = Self { begin, terminal, colours, drawn: Vec::new(), told: Vec::new() };
        if screen.terminal {
            write(HIDE_CURSOR);
        }
        screen
    }

    /// A line that begins a part of the story.
    pub(crate) fn headline(&mut self, text: &str) {
        let text = self.paint(Tone::Bold, text);
        self.print(&format!("\n{text}\n"));
    }

    /// A sentence or two, with the time.
    pub(crate) fn say(&mut self, text: &str) {
        let mut time = format!("{:5.1} s", self.begin.elapsed().as_secs_f64());
        let mut told = String::new();
        for line in wrap(text, TEXT_WIDTH) {
            let _ = writeln!(told, "{}  {line}", self.paint(Tone::Dim, &time));
            time = " ".repeat(time.len());
        }
        self.print(&told);
    }

    /// Text that stays, above the table.
    pub(crate) fn print(&mut self, text: &str) {
        let table = self.drawn.concat();
        write(&format!("{}{text}{table}", self.erase()));
    }

    /// The servers as they are now.
    pub(crate) fn show(&mut self, rows: &[Row], footer: &str) {
        if self.terminal {
            let erase = self.erase();
            self.drawn = self.table(rows, footer);
            write(&format!("{erase}{}", self.drawn.concat()));
        } else {
            self.told.resize(rows.len(), "");
            for (index, row) in rows.iter().enumerate().filter(|(_, row)| !row.address.is_empty()) {
                if self.told[index] != row.state {
                    self.told[index] = row.state;
                    self.say(&format!("{} {}: {}", row.name, row.address, row.state));
                }
            }
        }
    }

    /// The end of a part of the story, where the table is worth a look. A terminal shows it all the time.
    pub(crate) fn pause(&mut self, rows: &[Row], footer: &str) {
        if !self.terminal {
            let table = self.table(rows, footer);
            self.print(&table.concat());
        }
    }

    /// The table stays where it is, and what follows is printed below.
    pub(crate) fn leave_table(&mut self) {
        self.drawn.clear();
    }

    pub(crate) fn paint(&self, tone: Tone, text: &str) -> String {
        if !self.colours {
            return text.to_owned();
        }
        let code = match tone {
            Tone::Bold => "1",
            Tone::Dim => "2",
            Tone::Good => "32",
            Tone::Uneasy => "33",
            Tone::Bad => "31",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    fn table(&self, rows: &[Row], footer: &str) -> Vec<String> {
        let head = format!("{INDENT}   {:<21}{:>7}{:>9}{:<16}state", "address", "weight", "calls/s", "");
        let mut lines = vec!["\n".to_owned(), self.paint(Tone::Dim, &head) + "\n"];
        for row in rows {
            let weight = row.weight.map_or_else(|| "-".to_owned(), |weight| weight.to_string());
            let bar = if self.terminal { bar(row.calls_a_second) } else { String::new() };
            lines.push(format!(
                "{INDENT}{}  {:<21}{weight:>7}{:>9}  {bar:<14}{}\n",
                self.paint(Tone::Bold, &row.name.to_string()),
                row.address,
                row.calls_a_second,
                self.paint(row.tone, row.state),
            ));
        }
        lines.extend(["\n".to_owned(), format!("{INDENT}{footer}\n")]);
        lines
    }

    /// Takes the table off the terminal. Its lines never wrap, or they could not be counted.
    fn erase(&self) -> String {
        match self.drawn.len() {
            0 => String::new(),
            lines => format!("\x1b[{lines}A\r\x1b[J"),
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.terminal {
            write(SHOW_CURSOR);
        }
    }
}

/// One write a picture, so that it does not flicker. A reader that is gone is no reason to end: promises are still
/// judged.
fn write(text: &str) {
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

/// A bar with eighths of a character, one character for each 16 calls a second.
fn bar(calls: usize) -> String {
    let eighths = (calls / 2).min(12 * 8);
    let last = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][eighths % 8];
    "█".repeat(eighths / 8) + last
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("there is a line from the start");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

/// A number with its thousands set off.
pub(crate) fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

const INDENT: &str = "         ";
/// With the time before it, a line fits the 80 columns of a small terminal.
const TEXT_WIDTH: usize = 70;
/// Lines that are too long for the terminal are cut there instead of wrapped.
const HIDE_CURSOR: &str = "\x1b[?25l\x1b[?7l";
const SHOW_CURSOR: &str = "\x1b[?25h\x1b[?7h";
