//! The registry on a screen: services, instances, and what happens to them.
//!
//! # Layout
//!
//! | file | what flows through it |
//! | --- | --- |
//! | this file | updates and keys to the state, and the state to the terminal: drawn when something changed |
//! | `state` | updates and keys to what is shown; pure |
//! | `rate` | changes to how many a minute; pure |
//! | `render` | the state to a frame; pure |

mod rate;
mod render;
mod state;
#[cfg(test)]
mod tests;

use std::io::{self, IsTerminal};
use std::pin::pin;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{self, Event as Input, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Position, Rect};
use ratatui::{DefaultTerminal, Terminal};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic_etcd::snapshot::{Member, Snapshot};
use tonic_etcd::{Registry, ServiceName, shutdown_signal};

use self::state::{Flow, Key, Now, Seen, State};
use crate::connection::Connection;
use crate::failure::{Failure, failed, raw_causes};
use crate::print::print;
use crate::services::{self, Services};

/// What is shown, and how.
#[derive(Args)]
pub(crate) struct Flags {
    /// The service's name [default: all services]
    service: Option<ServiceName>,

    /// Prints one screen as plain text, and ends
    #[arg(long)]
    once: bool,

    /// The size of that screen
    #[arg(long, value_name = "COLUMNSxROWS", default_value = "80x24", requires = "once", value_parser = size)]
    size: (u16, u16),
}

pub(crate) async fn run(registry: &Registry, connection: &Connection, flags: &Flags) -> Result<(), Failure> {
    let service = flags.service.as_ref().map(ServiceName::as_str);
    let mut services = Services::snapshots(registry, flags.service.as_slice())?;
    let mut state = State::new(connection.prefix(), service);
    let clock = Clock::started();
    if flags.once {
        first(&mut services, &mut state, clock).await?;
        return Ok(print(&plain(&state, clock.now().second, flags.size))?);
    }
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        let why = "this needs a terminal: use `top --once` for one screen as text, or `watch` for a log of changes";
        return Err(failed(why.to_owned()));
    }
    // It puts the terminal back where this program panics, too.
    let mut terminal = ratatui::try_init()?;
    let ended = follow(&mut terminal, &mut services, &mut state, clock).await;
    ratatui::restore();
    ended
}

/// Updates and keys to the screen, until the user or a signal ends it.
async fn follow(
    terminal: &mut DefaultTerminal,
    services: &mut Snapshots,
    state: &mut State,
    clock: Clock,
) -> Result<(), Failure> {
    let mut inputs = inputs();
    let mut shutdown = pin!(shutdown_signal());
    let mut hangup = pin!(hangup());
    let mut drawn = None::<Instant>;
    let mut is_dirty = true;
    loop {
        // A storm of changes is drawn some twenty times a second, and a key at once.
        let draw_at = drawn.map_or_else(Instant::now, |drawn| drawn + FRAME);
        let second = clock.now().second;
        let fades_at = state.next_change(second).map(|second| clock.instant(second));
        tokio::select! {
            biased;
            () = &mut shutdown => return Ok(()),
            () = &mut hangup => return Ok(()),
            () = sleep_until(draw_at), if is_dirty => {
                terminal.draw(|frame| render::render(frame, state, clock.now().second))?;
                (drawn, is_dirty) = (Some(Instant::now()), false);
            }
            input = inputs.recv() => match input {
                Some(Ok(Input::Key(key))) => {
                    let rows = render::rows(Rect::from((Position::ORIGIN, terminal.size()?)));
                    if on_input(state, key, rows) == Flow::Quit {
                        return Ok(());
                    }
                    (drawn, is_dirty) = (None, true);
                }
                Some(Ok(Input::Resize(..))) => (drawn, is_dirty) = (None, true),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.into()),
                None => return Ok(()),
            },
            update = services.next() => {
                on_update(state, services, update?, clock.now());
                is_dirty = true;
            }
            () = async { sleep_until(fades_at.unwrap_or_else(Instant::now)).await }, if fades_at.is_some() => {
                is_dirty = true;
            }
        }
    }
}

fn on_update(state: &mut State, services: &mut Snapshots, update: Update, now: Now) {
    match update {
        Update::Listed(listed) => {
            for name in state.on_services(&listed.names, listed.left_out) {
                services.forget(&name);
            }
        }
        Update::Trouble(error) => state.on_trouble(raw_causes(&error)),
        Update::Of(service, snapshot) => state.on_instances(service.as_str(), seen(&snapshot), now),
    }
}

fn seen(snapshot: &Snapshot) -> Vec<Seen> {
    let seen =
        |member: &Member| Seen { instance: member.instance().clone(), state: member.state(), lease: member.lease() };
    snapshot.iter().map(seen).collect()
}

type Snapshots = Services<Arc<Snapshot>>;
type Update = services::Update<Arc<Snapshot>>;

fn on_input(state: &mut State, key: KeyEvent, rows: usize) -> Flow {
    if key.kind == KeyEventKind::Release {
        return Flow::Continue;
    }
    let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
    let key = match key.code {
        KeyCode::Char('c' | 'd') if is_control => return Flow::Quit,
        KeyCode::Char(_) if is_control => return Flow::Continue,
        KeyCode::Char(char) => Key::Char(char),
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Home => Key::First,
        KeyCode::End => Key::Last,
        KeyCode::Enter | KeyCode::Right => Key::Enter,
        KeyCode::Esc | KeyCode::Left => Key::Escape,
        KeyCode::Backspace => Key::Backspace,
        _ => return Flow::Continue,
    };
    state.on_key(key, rows)
}

/// Waits until every service was read once.
async fn first(services: &mut Snapshots, state: &mut State, clock: Clock) -> Result<(), Failure> {
    let deadline = Instant::now() + FIRST_LIMIT;
    let mut is_listed = false;
    while !is_listed || state.services.values().any(|service| service.instances.is_none()) {
        let Ok(update) = timeout_at(deadline, services.next()).await else {
            return Err(failed(format!("etcd did not answer within {} s", FIRST_LIMIT.as_secs())));
        };
        match update? {
            Update::Trouble(error) => return Err(error.into()),
            update => {
                is_listed |= matches!(update, Update::Listed(_));
                on_update(state, services, update, clock.now());
            }
        }
    }
    Ok(())
}

/// A screen of this size as text.
fn plain(state: &State, second: u64, (columns, rows): (u16, u16)) -> String {
    let Ok(mut terminal) = Terminal::new(TestBackend::new(columns, rows));
    let Ok(_) = terminal.draw(|frame| render::render(frame, state, second));
    lines(terminal.backend().buffer()).join("\n")
}

fn lines(buffer: &Buffer) -> Vec<String> {
    let area = buffer.area;
    let line = |row| (0..area.width).map(|column| buffer[(column, row)].symbol()).collect::<String>();
    (0..area.height).map(|row| line(row).trim_end().to_owned()).collect()
}

/// Keys and sizes, from a thread that waits for them: it ends with the program.
fn inputs() -> mpsc::Receiver<io::Result<Input>> {
    let (sender, inputs) = mpsc::channel(64);
    thread::spawn(move || {
        loop {
            let input = event::read();
            let has_failed = input.is_err();
            if sender.blocking_send(input).is_err() || has_failed {
                return;
            }
        }
    });
    inputs
}

/// The terminal was closed.
#[cfg(unix)]
async fn hangup() {
    use tokio::signal::unix::{SignalKind, signal};

    match signal(SignalKind::hangup()) {
        Ok(mut hangups) => _ = hangups.recv().await,
        Err(_) => std::future::pending().await,
    }
}

#[cfg(not(unix))]
async fn hangup() {
    std::future::pending().await
}

/// Both clocks, from the begin on.
#[derive(Clone, Copy)]
struct Clock {
    started: Instant,
}

impl Clock {
    fn started() -> Self {
        Self { started: Instant::now() }
    }

    fn now(self) -> Now {
        let unix_us = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        Now { unix_us, second: self.started.elapsed().as_secs() }
    }

    fn instant(self, second: u64) -> Instant {
        self.started + Duration::from_secs(second)
    }
}

/// A size as it is typed.
fn size(text: &str) -> Result<(u16, u16), String> {
    let sides = text.split_once('x').and_then(|(columns, rows)| Some((columns.parse().ok()?, rows.parse().ok()?)));
    let (columns, rows) = sides.ok_or("expected COLUMNSxROWS, for example 80x24")?;
    if (20..=500).contains(&columns) && (6..=500).contains(&rows) {
        Ok((columns, rows))
    } else {
        Err("expected 20x6 to 500x500".to_owned())
    }
}

/// The time between two frames that no key asks for.
const FRAME: Duration = Duration::from_millis(50);

/// How long the first look at all services may take.
const FIRST_LIMIT: Duration = Duration::from_secs(10);
