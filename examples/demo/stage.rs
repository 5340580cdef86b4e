//! Everything that plays in the demo and all that was seen of it: the processes, the calls, and the servers that the
//! client knows from etcd.

use std::collections::HashMap;
use std::error::Error;
use std::io::{self, IsTerminal};
use std::thread;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::time::{self, Interval};
use tonic_etcd::snapshot::MemberState;
use tonic_etcd::{Address, ConfigError, Discover, Instance, Registry};
use tower::discover::Change;

use crate::events::{Call, Event, Events, Line};
use crate::load;
use crate::page::Page;
use crate::process::{self, Etcd, Process};
use crate::screen::{Row, Screen, Tone, grouped};

/// Why the story does not come to its end.
pub(crate) enum StatusOrigin {
    Interrupted,
    Failed(String),
}

impl From<io::Error> for StatusOrigin {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<ConfigError> for StatusOrigin {
    fn from(error: ConfigError) -> Self {
        Self::Failed(error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}")))
    }
}

pub(crate) struct Server {
    process: Process,
    pub(crate) address: String,
    pub(crate) life: Life,
}

/// What happened to a server's process.
#[derive(Clone, Copy)]
pub(crate) enum Life {
    /// It runs, and is not in etcd yet.
    Starting,
    /// It reported that it is in etcd.
    Registered(Instant),
    /// It got SIGTERM.
    Leaving,
    /// It ended after that.
    Stopped,
    /// It got SIGKILL.
    Killed,
    /// It ended without being asked to.
    Crashed,
}

/// What the client learned of a server from etcd.
#[derive(Clone, Copy)]
enum Listed {
    Yes { weight: u16 },
    NoMore { since: Instant, weight: u16 },
}

/// etcd, as the spectator sees it.
enum Registrar {
    Starting,
    Up,
    Down(Instant),
}

pub(crate) struct Stage {
    // These go before etcd, whose folder holds their logs.
    servers: Vec<Server>,
    page: Option<Page>,
    /// Whether the spectator has pressed Enter.
    is_watched: bool,
    etcd: Etcd,
    registrar: Registrar,
    registry: Registry,
    discover: Discover,
    listed: HashMap<Address, Listed>,
    struck_out: usize,
    calls: Vec<Call>,
    /// How many calls ended that are not kept any more.
    forgotten: usize,
    pub(crate) screen: Screen,
    events: Events,
    seen: mpsc::UnboundedReceiver<Event>,
    redraw: Interval,
    figures: Interval,
}

impl Stage {
    pub(crate) fn new(
        mut etcd: Etcd,
        screen: Screen,
        events: Events,
        seen: mpsc::UnboundedReceiver<Event>,
    ) -> Result<Self, StatusOrigin> {
        etcd.start(events.clone())?;
        let registry = Registry::builder([etcd.url()]).build()?;
        Ok(Self {
            servers: Vec::new(),
            page: None,
            is_watched: false,
            etcd,
            registrar: Registrar::Starting,
            discover: registry.discover(SERVICE)?,
            registry,
            listed: HashMap::new(),
            struck_out: 0,
            calls: Vec::new(),
            forgotten: 0,
            screen,
            events,
            seen,
            redraw: time::interval(REDRAW),
            figures: time::interval(FIGURES),
        })
    }

    /// Shows the registry in a browser as well. At a terminal the spectator presses Enter when the page is open.
    pub(crate) async fn open_page(&mut self) -> Result<(), StatusOrigin> {
        self.until("etcd to answer", ETCD_LIMIT, Self::etcd_answers).await?;
        let page = self.page.insert(Page::start(&self.etcd, SERVICE)?);
        self.screen.say(&format!("The address book is shown live on {}", page.url()));
        if io::stdin().is_terminal() {
            self.screen.say("Open it in a browser, and press Enter.");
            let events = self.events.clone();
            thread::spawn(move || {
                let _ = io::stdin().read_line(&mut String::new());
                let _ = events.send(Event::Enter);
            });
            while !self.is_watched {
                self.see().await?;
            }
        }
        Ok(())
    }

    /// Leaves a page that was opened at a terminal open, until ctrl-c.
    pub(crate) async fn leave_page_open(&mut self) {
        if self.is_watched {
            self.screen.say("The page stays until ctrl-c.");
            self.screen.leave_table();
            while self.see().await.is_ok() {
                self.forget();
            }
        }
    }

    /// Lets go of the calls that the page shows no more: the verdict has been given, and this may go on for days.
    fn forget(&mut self) {
        // Now and again: each time moves those that are kept.
        if self.calls.len() >= KEPT_CALLS {
            let old = self.calls.len() - self.last_second().count();
            self.calls.drain(..old);
            self.forgotten += old;
        }
    }

    /// Starts the client: a channel that any generated client takes, and calls over it without end.
    pub(crate) fn start_client(&self) -> Result<(), StatusOrigin> {
        let channel = self.registry.channel(SERVICE).build()?;
        let events = self.events.clone();
        tokio::spawn(async move {
            // Before the first server is registered there is no server to call.
            if channel.ready().await.is_ok() {
                load::run(channel, events).await;
            }
        });
        Ok(())
    }

    /// Starts a server and returns its number.
    pub(crate) fn start_server(&mut self) -> Result<usize, StatusOrigin> {
        let number = self.servers.len();
        let process = process::start_server(number, TTL, &self.etcd, self.events.clone())?;
        self.servers.push(Server { process, address: String::new(), life: Life::Starting });
        Ok(number)
    }

    pub(crate) fn terminate_server(&mut self, number: usize) -> Result<Instant, StatusOrigin> {
        let server = &mut self.servers[number];
        server.life = Life::Leaving;
        Ok(server.process.terminate()?)
    }

    pub(crate) fn kill_server(&mut self, number: usize) -> Result<Instant, StatusOrigin> {
        let server = &mut self.servers[number];
        server.life = Life::Killed;
        Ok(server.process.kill()?)
    }

    pub(crate) fn kill_etcd(&mut self) -> Result<Instant, StatusOrigin> {
        let killed = self.etcd.kill()?;
        self.registrar = Registrar::Down(killed);
        Ok(killed)
    }

    pub(crate) fn restart_etcd(&mut self) -> Result<(), StatusOrigin> {
        Ok(self.etcd.start(self.events.clone())?)
    }

    pub(crate) fn etcd_answers(&self) -> bool {
        matches!(self.registrar, Registrar::Up)
    }

    pub(crate) fn etcd_address(&self) -> String {
        self.etcd.address().to_string()
    }

    pub(crate) fn server(&self, number: usize) -> &Server {
        &self.servers[number]
    }

    /// Whether every server answered a call.
    pub(crate) fn settled(&self) -> bool {
        (0..self.servers.len()).all(|server| self.first_call(server).is_some())
    }

    /// When the client heard from etcd that a server is off the list.
    pub(crate) fn off_the_list(&self, number: usize) -> Option<Instant> {
        match self.listed(&self.servers[number])? {
            Listed::Yes { .. } => None,
            Listed::NoMore { since, .. } => Some(since),
        }
    }

    /// How often the client heard from etcd that a server is off the list.
    pub(crate) fn struck_out(&self) -> usize {
        self.struck_out
    }

    pub(crate) fn calls(&self) -> &[Call] {
        &self.calls
    }

    /// When the first of the calls began that a server answered.
    pub(crate) fn first_call(&self, server: usize) -> Option<Instant> {
        self.calls_of(server).map(|call| call.begin).min()
    }

    /// When the last of the calls began that a server answered.
    pub(crate) fn last_call(&self, server: usize) -> Option<Instant> {
        self.calls_of(server).map(|call| call.begin).max()
    }

    fn calls_of(&self, server: usize) -> impl Iterator<Item = &Call> {
        let address = &self.servers[server].address;
        self.calls.iter().filter(move |call| call.answer.as_ref() == Ok(address))
    }

    /// Lets the play go on until `done`, and fails if `what` takes longer than `limit`.
    pub(crate) async fn until(
        &mut self,
        what: &str,
        limit: Duration,
        mut done: impl FnMut(&Self) -> bool,
    ) -> Result<(), StatusOrigin> {
        let begin = Instant::now();
        while !done(self) {
            if begin.elapsed() > limit {
                return Err(StatusOrigin::Failed(format!("waited {} s in vain for {what}", limit.as_secs())));
            }
            self.see().await?;
        }
        Ok(())
    }

    /// Lets the play go on for a while.
    pub(crate) async fn look_on(&mut self, duration: Duration) -> Result<(), StatusOrigin> {
        let begin = Instant::now();
        while begin.elapsed() < duration {
            self.see().await?;
        }
        Ok(())
    }

    /// A moment that is worth a look at the table.
    pub(crate) fn pause(&mut self) {
        self.screen.pause(&self.rows(), &self.footer());
    }

    /// A reason, with what the logs say.
    pub(crate) fn with_logs(&self, mut reason: String) -> String {
        reason.push_str(&process::last_lines(self.etcd.folder()).unwrap_or_default());
        reason
    }

    /// Takes in one thing that happened. Returns after the next redraw at the latest.
    async fn see(&mut self) -> Result<(), StatusOrigin> {
        tokio::select! {
            Some(event) = self.seen.recv() => match event {
                Event::Said { server, at, line } => self.said(server, at, line),
                Event::Ended { server } => self.servers[server].end(),
                Event::EtcdAnswers => self.registrar = Registrar::Up,
                Event::Called(call) => self.calls.push(call),
                Event::Enter => self.is_watched = true,
                Event::Interrupted => return Err(StatusOrigin::Interrupted),
            },
            Some(Ok(change)) = self.discover.next() => self.changed(change),
            _ = self.figures.tick() => {
                if let Some(page) = &self.page {
                    page.show(&self.last_second().collect::<Vec<_>>())?;
                }
            }
            _ = self.redraw.tick() => self.screen.show(&self.rows(), &self.footer()),
        }
        Ok(())
    }

    fn said(&mut self, server: usize, at: Instant, line: Line) {
        let server = &mut self.servers[server];
        match (line, server.life) {
            (Line::Listening { address }, _) => server.address = address,
            (Line::Registered, Life::Starting) => server.life = Life::Registered(at),
            _ => {}
        }
    }

    fn changed(&mut self, change: Change<Address, Instance>) {
        match change {
            Change::Insert(address, instance) => {
                self.listed.insert(address, Listed::Yes { weight: instance.weight() });
            }
            Change::Remove(address) => {
                self.struck_out += 1;
                if let Some(listed) = self.listed.get_mut(&address) {
                    *listed = Listed::NoMore { since: Instant::now(), weight: listed.weight() };
                }
            }
        }
    }

    fn rows(&self) -> Vec<Row> {
        let snapshot = self.discover.snapshot();
        let row = |(server, name): (&Server, char)| {
            let listed = self.listed(server);
            let member = snapshot.as_ref().and_then(|snapshot| snapshot.get(&server.address.parse().ok()?));
            let suspect = member.is_some_and(|member| member.state() == MemberState::Suspect);
            let (state, tone) = server.state(listed, suspect);
            Row {
                name,
                address: server.address.clone(),
                weight: listed.map(Listed::weight),
                calls_a_second: self.last_second().filter(|call| call.answer.as_ref() == Ok(&server.address)).count(),
                state,
                tone,
            }
        };
        self.servers.iter().zip(NAMES.chars()).map(row).collect()
    }

    fn listed(&self, server: &Server) -> Option<Listed> {
        self.listed.get(&server.address.parse().ok()?).copied()
    }

    fn footer(&self) -> String {
        let etcd = match self.registrar {
            Registrar::Starting => self.screen.paint(Tone::Uneasy, "starting"),
            Registrar::Up => self.screen.paint(Tone::Good, "up"),
            Registrar::Down(since) => {
                self.screen.paint(Tone::Bad, &format!("down for {:.0} s", since.elapsed().as_secs_f64()))
            }
        };
        let rate = self.last_second().count();
        let failing = match self.last_second().filter(|call| call.answer.is_err()).count() {
            0 => "none failing".to_owned(),
            failing => self.screen.paint(Tone::Bad, &format!("{failing} failing")),
        };
        format!(
            "etcd: {etcd}   client: {rate} calls/s, {failing}, {} so far",
            grouped(self.forgotten + self.calls.len())
        )
    }

    fn last_second(&self) -> impl Iterator<Item = &Call> {
        self.calls.iter().rev().take_while(|call| call.end.elapsed() < Duration::from_secs(1))
    }
}

impl Server {
    fn end(&mut self) {
        self.life = match self.life {
            Life::Killed => Life::Killed,
            Life::Leaving => Life::Stopped,
            _ => Life::Crashed,
        };
    }

    fn state(&self, listed: Option<Listed>, suspect: bool) -> (&'static str, Tone) {
        match (self.life, listed) {
            (Life::Starting, _) => ("starting", Tone::Dim),
            (Life::Registered(_), None) => ("registered", Tone::Uneasy),
            (Life::Registered(_), Some(Listed::Yes { .. })) if suspect => ("in question", Tone::Uneasy),
            (Life::Registered(_), Some(Listed::Yes { .. })) => ("serving", Tone::Good),
            (Life::Registered(_), Some(Listed::NoMore { .. })) => ("forgotten", Tone::Bad),
            (Life::Leaving, Some(Listed::NoMore { .. })) => ("leaving", Tone::Uneasy),
            (Life::Leaving, _) => ("told to stop", Tone::Uneasy),
            (Life::Stopped, _) => ("stopped", Tone::Dim),
            (Life::Killed, Some(Listed::Yes { .. })) if suspect => ("killed, in question", Tone::Bad),
            (Life::Killed, Some(Listed::Yes { .. })) => ("killed, on the list", Tone::Bad),
            (Life::Killed, _) => ("killed, off the list", Tone::Dim),
            (Life::Crashed, _) => ("crashed", Tone::Bad),
        }
    }
}

impl Listed {
    fn weight(self) -> u16 {
        match self {
            Self::Yes { weight } | Self::NoMore { weight, .. } => weight,
        }
    }
}

/// What the table calls a server: A, B, C.
pub(crate) fn name(server: usize) -> char {
    NAMES.chars().nth(server).unwrap_or('?')
}

const NAMES: &str = "ABCDEFGH";
/// The name that the servers register and the client asks for: the default of `echo_server`.
const SERVICE: &str = "echo";
/// Short, so that the wait for the end of a killed server's lease is short.
pub(crate) const TTL: Duration = Duration::from_secs(5);
/// Ten pictures a second look alive, and cost nothing.
const REDRAW: Duration = Duration::from_millis(100);
/// For an etcd that has just started.
const ETCD_LIMIT: Duration = Duration::from_secs(12);
/// Calls from which on old ones are let go once nothing judges them any more: those of a few seconds.
const KEPT_CALLS: usize = 1_000;
/// Twice as often as the page looks at them.
const FIGURES: Duration = Duration::from_millis(500);
