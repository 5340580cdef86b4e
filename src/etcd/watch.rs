//! A watch stream on one member, in messages that say what happened.

use std::time::Duration;

use etcd_client::proto::PbEvent;
use etcd_client::{WatchOptions, WatchRequestSender, WatchResponse, WatchResponseStream};
use tonic::Code;

use super::connection::{Connection, classify_status, failure};
use super::kv::Kv;
use super::range::Range;
use crate::error::{EtcdError, EtcdErrorKind};

/// An open watch.
///
/// Dropping it ends the stream, and with it the watch at the server.
pub(crate) struct Watch {
    member: String,
    key: String,
    requests: WatchRequestSender,
    responses: WatchResponseStream,
    /// The newest revision in the fragments of a message that is not complete; 0 between messages.
    begun: i64,
}

/// A message of a watch.
#[derive(Debug)]
pub(crate) enum WatchMessage {
    /// The watch is in place; the store was at this revision.
    Created(i64),
    /// What happened since the last message: all of it up to this revision, or a part while there is none.
    Events(Option<i64>, Vec<Event>),
    /// Nothing happened, but the member is there.
    Progress,
    /// The revision to begin with is compacted away.
    Compacted,
    /// The member ended the watch.
    Canceled(EtcdErrorKind, String),
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
}

impl Connection {
    /// Watches every key of `range` from revision `start` on.
    pub(crate) async fn watch(&self, range: &Range, start: i64, limit: Duration) -> Result<Watch, EtcdError> {
        let options = WatchOptions::new().with_range(range.end()).with_start_revision(start);
        let options = options.with_progress_notify().with_fragment();
        let open = || {
            let (mut client, options) = (self.watch.clone(), options.clone());
            async move { client.watch(range.start(), Some(options)).await }
        };
        let stream = self.limited("watch", range.name(), limit, open).await?;
        let (requests, responses) = stream.split();
        let (member, key) = (self.name().to_owned(), range.name().to_owned());
        Ok(Watch { member, key, requests, responses, begun: 0 })
    }
}

impl Watch {
    /// Asks for a sign of life, which comes as [`WatchMessage::Progress`].
    pub(crate) async fn request_progress(&mut self) -> Result<(), EtcdError> {
        let asked = self.requests.request_progress().await;
        asked.map_err(|error| failure(&self.member, "watch", &self.key, error))
    }

    /// The next message.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a message is lost neither by dropping the future nor by polling another one afterwards.
    pub(crate) async fn message(&mut self) -> Result<WatchMessage, EtcdError> {
        match self.responses.message().await {
            Ok(Some(response)) => Ok(self.read(response)),
            Ok(None) => Err(self.ended()),
            Err(error) => Err(failure(&self.member, "watch", &self.key, error)),
        }
    }

    fn read(&mut self, response: WatchResponse) -> WatchMessage {
        let response = response.0;
        let revision = response.header.as_ref().map_or(0, |header| header.revision);
        if response.compact_revision > 0 {
            return WatchMessage::Compacted;
        }
        // A refusal can come as `created` and `canceled` in one.
        if response.canceled {
            let kind = classify_status(Code::Unavailable, &response.cancel_reason);
            return WatchMessage::Canceled(kind, response.cancel_reason);
        }
        if response.created {
            return WatchMessage::Created(revision);
        }
        // The header can be ahead of the events: a resumed watch gets its history in portions.
        let newest = response.events.iter().filter_map(|event| event.kv.as_ref()).map(|kv| kv.mod_revision).max();
        self.begun = self.begun.max(newest.unwrap_or(0));
        let events: Vec<_> = response.events.into_iter().filter_map(read_event).collect();
        if response.fragment {
            return WatchMessage::Events(None, events);
        }
        match std::mem::take(&mut self.begun) {
            0 => WatchMessage::Progress,
            revision => WatchMessage::Events(Some(revision), events),
        }
    }

    fn ended(&self) -> EtcdError {
        EtcdError {
            kind: EtcdErrorKind::Unreachable,
            member: self.member.clone(),
            operation: "watch",
            key: self.key.clone(),
            source: Some("the member ended the stream".into()),
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
            tracing::debug!(event_type = unknown, "unknown kind of watch event skipped");
            None
        }
    }
}
