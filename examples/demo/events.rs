//! What the demo hears: from its processes, from the client's calls, and from the terminal that interrupts it.

use std::time::Instant;

use serde::Deserialize;
use tokio::sync::mpsc;

pub(crate) type Events = mpsc::UnboundedSender<Event>;

pub(crate) enum Event {
    /// A server printed a line.
    Said { server: usize, at: Instant, line: Line },
    /// A server's standard output closed: it ended.
    Ended { server: usize },
    /// etcd answers.
    EtcdAnswers,
    /// A call ended.
    Called(Call),
    /// Enter was pressed.
    Enter,
    /// Ctrl-c, SIGTERM, or the terminal is gone.
    Interrupted,
}

/// What an echo server prints on standard output.
#[derive(Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub(crate) enum Line {
    Listening {
        address: String,
    },
    Registered,
    #[serde(other)]
    Other,
}

pub(crate) struct Call {
    pub(crate) begin: Instant,
    pub(crate) end: Instant,
    /// The address of the server that answered, or the error.
    pub(crate) answer: Result<String, String>,
}
