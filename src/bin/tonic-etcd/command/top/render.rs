//! The state to a frame: a title, a table, events, and a line of keys.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Clear, Paragraph, Row, Table};
use tonic_etcd::snapshot::MemberState;

use super::state::{Counts, Event, Seen, Service, State, View, What, place};
use crate::print::{Column, shown, tags, time_of_day};

/// Draws what is known at this second since the begin.
pub(super) fn render(frame: &mut Frame<'_>, state: &State, second: u64) {
    let [title, table, events, keys] = parts(frame.area());
    frame.render_widget(title_line(state, second), title);
    match &state.view {
        View::Services => services(frame, state, second, table),
        View::Instances(service) => instances(frame, state, service, table),
    }
    render_events(frame, state, events);
    frame.render_widget(key_line(state), keys);
    if state.is_help_open {
        help(frame);
    }
}

/// How many rows of a table fit on a screen of this height.
pub(super) fn rows(area: Rect) -> usize {
    let [_, table, ..] = parts(area);
    usize::from(table.height.saturating_sub(BORDER_AND_HEADER)).max(1)
}

fn parts(area: Rect) -> [Rect; 4] {
    let parts = [Constraint::Length(1), Constraint::Fill(3), Constraint::Fill(2), Constraint::Length(1)];
    Layout::vertical(parts).areas(area)
}

fn title_line(state: &State, second: u64) -> Line<'static> {
    let instances: usize = state.services.values().map(|service| service.counts.all).sum();
    let (services, rate) = (state.services.len(), state.rate.per_minute(second));
    let more = if state.left_out == 0 { String::new() } else { format!(" of {}", services + state.left_out) };
    let mut line = vec![
        Span::styled("tonic-etcd top", Style::new().bold()),
        Span::raw(format!("  {services}{more} services  {instances} instances  {rate} changes/min")),
    ];
    line.push(match &state.trouble {
        Some(trouble) => Span::styled(format!("  etcd: {}", shown(trouble)), Style::new().fg(Color::Red)),
        None => Span::styled(format!("  {}", shown(&state.prefix)), Style::new().add_modifier(Modifier::DIM)),
    });
    Line::from(line)
}

fn services(frame: &mut Frame<'_>, state: &State, second: u64, area: Rect) {
    let services = state.shown_services();
    let names: Vec<&String> = services.iter().map(|(name, _)| *name).collect();
    let chosen = place(&names, state.service_list.chosen.as_ref());
    let page = Page::of(services.len(), chosen, area);
    let rows = services.iter().enumerate().skip(page.first).take(page.rows).map(|(index, (name, service))| {
        styled(service_row(name, service, second), index == chosen, service_colour(service))
    });
    let header = [
        Column::Text("SERVICE"),
        Column::Number("INSTANCES"),
        Column::Number("LIVE"),
        Column::Number("DRAINING"),
        Column::Number("SUSPECT"),
        Column::Number("WEIGHT"),
        Column::Number("CHANGES/MIN"),
    ];
    let widths = [
        Constraint::Fill(1),
        Constraint::Length(9),
        Constraint::Length(7),
        Constraint::Length(8),
        Constraint::Length(7),
        Constraint::Length(9),
        Constraint::Length(11),
    ];
    let title = format!("services {}{}", page.of, filtered(&state.service_list.filter));
    frame.render_widget(table(rows.collect(), header, &widths, &title), area);
}

fn service_row(name: &str, service: &Service, second: u64) -> Row<'static> {
    if service.instances.is_none() {
        return Row::new([Cell::from(name.to_owned()), Cell::from("..")]);
    }
    let Counts { all, live, draining, suspect, weight } = service.counts;
    let counts = [all, live, draining, suspect].map(|count| count.to_string());
    let numbers = counts.into_iter().chain([weight.to_string(), service.rate.per_minute(second).to_string()]);
    let numbers = numbers.map(|number| Cell::from(Line::from(number).right_aligned()));
    Row::new(std::iter::once(Cell::from(name.to_owned())).chain(numbers))
}

fn service_colour(service: &Service) -> Option<Color> {
    service.instances.as_ref()?;
    match service.counts {
        Counts { all: 0, .. } => Some(Color::Red),
        Counts { all, live, .. } if live < all => Some(Color::Yellow),
        _ => None,
    }
}

fn instances(frame: &mut Frame<'_>, state: &State, service: &str, area: Rect) {
    let seen = state.shown_instances(service);
    let addresses: Vec<_> = seen.iter().map(|seen| seen.address()).collect();
    let chosen = place(&addresses, state.instance_list.chosen.as_ref());
    let page = Page::of(seen.len(), chosen, area);
    let rows = seen.iter().enumerate().skip(page.first).take(page.rows).map(|(index, seen)| {
        let colour = (seen.state != MemberState::Live).then_some(Color::Yellow);
        styled(instance_row(seen), index == chosen, colour)
    });
    let header = [
        Column::Text("ADDRESS"),
        Column::Number("WEIGHT"),
        Column::Text("STATE"),
        Column::Text("LEASE"),
        Column::Text("TAGS"),
    ];
    let widths = [
        Constraint::Fill(2),
        Constraint::Length(6),
        Constraint::Length(8),
        Constraint::Length(16),
        Constraint::Fill(3),
    ];
    let title = format!("{service} {}{}", page.of, filtered(&state.instance_list.filter));
    frame.render_widget(table(rows.collect(), header, &widths, &title), area);
}

fn instance_row(Seen { instance, state, lease }: &Seen) -> Row<'static> {
    Row::new([
        Cell::from(instance.address().to_string()),
        Cell::from(Line::from(instance.weight().to_string()).right_aligned()),
        Cell::from(state.to_string()),
        Cell::from(if *lease == 0 { "none".to_owned() } else { format!("{lease:x}") }),
        Cell::from(tags(instance.tags())),
    ])
}

/// Which rows of a table are on the screen: a page of them, so that rows stay where they are until the next page.
struct Page {
    first: usize,
    rows: usize,
    /// The place of the chosen row among all, in words.
    of: String,
}

impl Page {
    fn of(count: usize, chosen: usize, area: Rect) -> Self {
        let rows = usize::from(area.height.saturating_sub(BORDER_AND_HEADER)).max(1);
        let of = if count == 0 { "(none)".to_owned() } else { format!("{} of {count}", chosen + 1) };
        Self { first: chosen / rows * rows, rows, of }
    }
}

fn table<const N: usize>(
    rows: Vec<Row<'static>>,
    header: [Column; N],
    widths: &[Constraint],
    title: &str,
) -> Table<'static> {
    let block = Block::new().borders(Borders::TOP).title(format!(" {title} "));
    let header = header.map(|column| match column {
        Column::Text(title) => Line::from(title),
        Column::Number(title) => Line::from(title).right_aligned(),
    });
    Table::new(rows, widths).header(Row::new(header).style(Style::new().bold())).column_spacing(1).block(block)
}

fn styled(row: Row<'static>, is_chosen: bool, colour: Option<Color>) -> Row<'static> {
    let style = colour.map_or_else(Style::new, |colour| Style::new().fg(colour));
    row.style(if is_chosen { style.add_modifier(Modifier::REVERSED) } else { style })
}

fn filtered(filter: &str) -> String {
    if filter.is_empty() { String::new() } else { format!(", with {filter:?}") }
}

fn render_events(frame: &mut Frame<'_>, state: &State, area: Rect) {
    let is_shown = |event: &&Event| match &state.view {
        View::Services => true,
        View::Instances(service) => event.service == *service,
    };
    let rows = usize::from(area.height.saturating_sub(1));
    let lines: Vec<Line<'_>> = state.events.iter().filter(is_shown).take(rows).map(event_line).collect();
    let block = Block::new().borders(Borders::TOP).title(" changes ");
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn event_line(event: &Event) -> Line<'static> {
    let (what, colour) = match event.what {
        What::Joined { weight } => (format!("joined, weight {weight}"), Color::Green),
        What::Left => ("left".to_owned(), Color::Red),
        What::Draining => ("is draining".to_owned(), Color::Yellow),
        What::Lost => ("its key is gone".to_owned(), Color::Yellow),
        What::Returned => ("is back".to_owned(), Color::Green),
        What::Weight { before, now } => (format!("weight {before} -> {now}"), Color::Cyan),
        What::Tags => ("has other tags".to_owned(), Color::Cyan),
    };
    let Event { unix_us, service, address, .. } = event;
    let time = time_of_day(*unix_us);
    Line::from(vec![Span::raw(format!("{time}  {service}  {address}  ")), Span::styled(what, Style::new().fg(colour))])
}

fn key_line(state: &State) -> Line<'static> {
    if state.is_filter_open {
        let filter = match state.view {
            View::Services => &state.service_list.filter,
            View::Instances(_) => &state.instance_list.filter,
        };
        return Line::from(format!("/{}_   enter: keep it  esc: all rows", shown(filter)));
    }
    let keys = match state.view {
        View::Services => "q: quit  arrows, j, k: choose  enter: its instances  /: filter  ?: help",
        View::Instances(_) => "q: quit  arrows, j, k: choose  esc: all services  /: filter  ?: help",
    };
    Line::from(keys).style(Style::new().add_modifier(Modifier::DIM))
}

fn help(frame: &mut Frame<'_>) {
    let middle = frame.area().centered(Constraint::Length(HELP_COLUMNS), Constraint::Length(HELP_ROWS));
    let block = Block::bordered().title(" keys and words ");
    frame.render_widget(Clear, middle);
    frame.render_widget(Paragraph::new(HELP.map(Line::from).to_vec()).block(block), middle);
}

/// A table's first two lines.
const BORDER_AND_HEADER: u16 = 2;

/// The size of the help, with its border.
const HELP_COLUMNS: u16 = 62;
const HELP_ROWS: u16 = 14;

const HELP: [&str; 12] = [
    "arrows, j, k         the row before, the next one",
    "page up, page down   a screen of rows",
    "g, G                 the first row, the last one",
    "enter                the instances of the service",
    "esc                  back; takes the filter away first",
    "/                    rows with this text alone",
    "q, ctrl-c            quit",
    "",
    "live      it is registered",
    "draining  it announced that it leaves",
    "suspect   its key went without an announcement",
    "any key closes this",
];
