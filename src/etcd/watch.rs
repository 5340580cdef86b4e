//! A watch of one range, one of many on a shared stream, in messages that say what happened.

use std::sync::Arc;

use etcd_client::WatchResponse;
use etcd_client::proto::PbEvent;
use tokio::sync::mpsc;
use tonic::Code;

use super::connection::Connection;
use super::failure::classify_status;
use super::kv::Kv;
use crate::error::{EtcdError, EtcdErrorKind};
use crate::targets::ETCD;

/// An open watch.
///
/// Dropping it ends the watch at the server, and the stream with the last of its watches.
pub(crate) struct Watch {
    pub(super) id: i64,
    pub(super) name: String,
    pub(super) connection: Arc<Connection>,
    pub(super) messages: mpsc::Receiver<WatchMessage>,
    /// Where the stream's task learns that the watch is dropped.
    pub(super) dropped: mpsc::UnboundedSender<i64>,
}

/// A message of a watch.
#[derive(Debug)]
pub(crate) enum WatchMessage {
    /// What happened since the last message: all of it up to this revision, or a part while there is none.
    Events(Option<i64>, Vec<Event>),
    /// The revision to begin with is compacted away.
    Compacted,
    /// The member gives no signs of life on watches: only reads show what one misses.
    Mute,
    /// Nothing is wrong; the watch is to be opened anew soon, and finds another stream.
    MoveOn,
    /// The watch is over: the member ended it, or its stream broke.
    Over(EtcdErrorKind, String),
    /// The stream left the watch behind: with a runtime, or since the watch was not read for too long.
    Left,
}

/// What happened to one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    Put(Kv),
    Delete { key: Vec<u8>, mod_revision: i64 },
}

impl Event {
    pub(crate) fn mod_revision(&self) -> i64 {
        match self {
            Self::Put(kv) => kv.mod_revision,
            Self::Delete { mod_revision, .. } => *mod_revision,
        }
    }

    /// By how much it changes the number of keys.
    pub(super) fn keys(&self) -> i64 {
        match self {
            Self::Put(kv) => i64::from(kv.version == 1),
            Self::Delete { .. } => -1,
        }
    }
}

impl Watch {
    /// What the watch came over.
    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// The next message.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a message is lost neither by dropping the future nor by polling another one afterwards.
    pub(super) async fn message(&mut self) -> WatchMessage {
        self.messages.recv().await.unwrap_or(WatchMessage::Left)
    }

    /// The error of a watch that is over.
    pub(super) fn error(&self, kind: EtcdErrorKind, reason: String) -> EtcdError {
        self.connection.refusal("watch", &self.name, kind, reason)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.dropped.send(self.id);
    }
}

/// Puts the messages of one watch together.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// The newest revision in the fragments of a message that is not complete; 0 between messages.
    begun: i64,
}

impl Reader {
    /// What a response says to the watch; nothing, where it is a sign of life alone.
    pub(super) fn read(&mut self, response: WatchResponse) -> Option<WatchMessage> {
        let response = response.0;
        if response.compact_revision > 0 {
            return Some(WatchMessage::Compacted);
        }
        if response.canceled {
            let kind = classify_status(Code::Unavailable, &response.cancel_reason);
            return Some(WatchMessage::Over(kind, response.cancel_reason));
        }
        // The header can be ahead of the events: a resumed watch gets its history in portions.
        let newest = response.events.iter().filter_map(|event| event.kv.as_ref()).map(|kv| kv.mod_revision).max();
        self.begun = self.begun.max(newest.unwrap_or(0));
        let events: Vec<_> = response.events.into_iter().filter_map(read_event).collect();
        if response.fragment {
            return Some(WatchMessage::Events(None, events));
        }
        match std::mem::take(&mut self.begun) {
            0 => None,
            revision => Some(WatchMessage::Events(Some(revision), events)),
        }
    }
}

/// Not `event_type()`: it panics on a type it does not know.
fn read_event(event: PbEvent) -> Option<Event> {
    const PUT: i32 = 0;
    const DELETE: i32 = 1;
    let kv = event.kv?;
    match event.r#type {
        PUT => Some(Event::Put(Kv::from(kv))),
        DELETE => Some(Event::Delete { key: kv.key, mod_revision: kv.mod_revision }),
        unknown => {
            tracing::debug!(target: ETCD, event_type = unknown, "unknown kind of watch event skipped");
            None
        }
    }
}
