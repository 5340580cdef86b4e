//! Where a channel's list of instances comes from, and what calls and the log are told while it is late or empty.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

use crate::log_limit::LogLimit;
use crate::targets::CHANNEL;

/// The source of a channel's list.
pub(crate) struct Listing {
    /// Why a call fails where the list is empty.
    empty: String,
    /// The same, with what may keep instances from being known, as it was when that was looked at last.
    none: String,
    /// Why the list does not come, as far as is known.
    trouble: Trouble,
    /// Why a call waits before it is overdue, as far as is known.
    awaited: Option<String>,
    /// Why a call fails where it did not come in time.
    overdue: String,
    log: LogLimit,
}

type Trouble = Box<dyn Fn() -> Option<String> + Send>;

impl Listing {
    pub(crate) fn new(none: impl Into<String>, trouble: impl Fn() -> Option<String> + Send + 'static) -> Self {
        let none = none.into();
        let (empty, awaited, overdue, log) = (none.clone(), None, String::new(), LogLimit::default());
        Self { empty, none, trouble: Box::new(trouble), awaited, overdue, log }
    }

    /// A list that a program makes by itself.
    pub(crate) fn of_the_program() -> Self {
        Self::new("there is no instance", || None)
    }

    pub(super) fn none(&self) -> &str {
        &self.none
    }

    /// The list is empty: looks for what may keep instances from being known, one of several registries that is away
    /// for example. Returns whether that is news.
    pub(super) fn on_none(&mut self) -> bool {
        let none = format!("{}{}", self.empty, self.trouble());
        let is_news = none != self.none;
        self.none = none;
        is_news
    }

    fn trouble(&self) -> String {
        (self.trouble)().map(|trouble| format!(": {trouble}")).unwrap_or_default()
    }

    /// Why the list did not come yet, as it was when that was looked at last.
    pub(super) fn awaited(&self) -> Option<&str> {
        self.awaited.as_deref()
    }

    /// The list did not come yet: looks for the reason. Returns whether it is another one.
    pub(super) fn on_awaited(&mut self) -> bool {
        let awaited = (self.trouble)().map(|trouble| format!("there is no list of instances yet: {trouble}"));
        let is_news = awaited != self.awaited;
        self.awaited = awaited;
        is_news
    }

    /// Why the list is late, as it was when that was looked at last.
    pub(super) fn overdue(&self) -> &str {
        &self.overdue
    }

    /// The list is late: looks for the reason, and again every [`FIRST_LIST`]. Returns whether it is another one.
    pub(super) fn on_overdue(&mut self, now: Instant) -> bool {
        let overdue = format!("there is no list of instances after {FIRST_LIST:?}{}", self.trouble());
        if self.log.admit(now) {
            tracing::warn!(target: CHANNEL, reason = overdue, "calls fail");
        }
        let is_news = overdue != self.overdue;
        self.overdue = overdue;
        is_news
    }
}

impl fmt::Debug for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listing").field("overdue", &self.overdue).finish_non_exhaustive()
    }
}

/// How long calls wait for the first list of instances: a registry that has not answered by then is down.
pub(super) const FIRST_LIST: Duration = Duration::from_secs(5);

/// How often the reason is looked for until then: calls with short deadlines tell it, too.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(500);
