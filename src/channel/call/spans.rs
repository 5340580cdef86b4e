//! A call and its attempts become spans, where a subscriber wants them.
//!
//! | span | begins | is held by | ends |
//! | --- | --- | --- | --- |
//! | `rpc` | with the call | `ResponseFuture`, then `OpenCall` | with the status of the call, or dropped with it |
//! | `attempt` | with its pick | `Attempt` | with that: a failure, or the end of the response |
//!
//! Both are held by what the caller holds, and by nothing else: no task of the channel is in one of them.

use std::sync::atomic::{AtomicBool, Ordering};

use http::HeaderMap;
use tonic::{Code, Status};
use tracing::field::Empty;
use tracing::span::{Entered, Span};

use super::status;
use crate::channel::error::ChannelError;
use crate::codes;
use crate::instance::Address;
use crate::targets::CHANNEL;

/// The span of a call or of an attempt: it costs a null pointer where no subscriber wants it.
#[derive(Default)]
pub(super) struct CallSpan(Option<Box<Open>>);

struct Open {
    span: Span,
    /// Whether the status was recorded, which is done once.
    has_status: AtomicBool,
}

impl CallSpan {
    /// A call of a method, `/echo.Echo/UnaryEcho`, within the span that the caller is in.
    pub(super) fn rpc(service: &str, path: &str) -> Self {
        let method = path.strip_prefix('/').unwrap_or(path);
        Self::new(tracing::debug_span!(
            target: CHANNEL,
            "rpc",
            otel.name = method,
            otel.kind = "client",
            otel.status_code = Empty,
            otel.status_description = Empty,
            rpc.system.name = "grpc",
            rpc.method = method,
            rpc.response.status_code = Empty,
            server.address = service,
            error.type = Empty,
        ))
    }

    /// An attempt at an instance, within the span of its call. The first one has the number 1.
    pub(super) fn attempt(number: u32, address: &Address) -> Self {
        Self::new(tracing::debug_span!(
            target: CHANNEL,
            "attempt",
            attempt = number,
            otel.status_code = Empty,
            otel.status_description = Empty,
            rpc.response.status_code = Empty,
            server.address = %address.host(),
            server.port = address.port(),
            error.type = Empty,
        ))
    }

    fn new(span: Span) -> Self {
        Self((!span.is_disabled()).then(|| Box::new(Open { span, has_status: AtomicBool::new(false) })))
    }

    /// Enters the span, until the guard is dropped.
    pub(super) fn enter(&self) -> Option<Entered<'_>> {
        self.0.as_ref().map(|open| open.span.enter())
    }

    /// The head of a response is here, which may have the status.
    pub(super) fn on_headers(&self, headers: &HeaderMap) {
        if let Some(open) = &self.0
            && let Some(code) = status::code_of(headers)
        {
            open.on_end(code);
        }
    }

    /// It ended with this code. What comes after the first end counts for nothing.
    pub(super) fn on_code(&self, code: Code) {
        if let Some(open) = &self.0 {
            open.on_end(code);
        }
    }

    /// It ended with this status. Only what the channel says itself is passed on in words: what a server says may be
    /// for the caller alone.
    pub(super) fn on_status(&self, status: &Status) {
        if let Some(open) = &self.0
            && open.on_end(status.code())
            && ChannelError::of(status).is_some()
        {
            open.span.record("otel.status_description", status.message());
        }
    }
}

impl Open {
    /// Whether this is its first end.
    fn on_end(&self, code: Code) -> bool {
        if self.has_status.swap(true, Ordering::Relaxed) {
            return false;
        }
        let name = codes::name(code);
        self.span.record("rpc.response.status_code", name);
        if code != Code::Ok {
            self.span.record("error.type", name);
            self.span.record("otel.status_code", "ERROR");
        }
        true
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.on_end(Code::Cancelled);
    }
}

/// Calls are made by the million: without a subscriber, each carries a word.
const _: () = assert!(size_of::<CallSpan>() == size_of::<usize>());

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_log::Log;

    #[test]
    fn spans_that_no_subscriber_wants_cost_no_allocation() {
        let address = "10.0.0.1:80".parse().expect("an address");
        let spans = || {
            for span in [CallSpan::rpc("etcd:///echo", "/echo.Echo/UnaryEcho"), CallSpan::attempt(1, &address)] {
                drop(span.enter());
                span.on_code(Code::Internal);
            }
        };
        let none = allocation_counter::measure(spans);
        assert_eq!(none.count_total, 0, "there is no subscriber");
        // It takes info and above.
        let (log, _guard) = Log::capture();
        let unwanted = allocation_counter::measure(spans);
        assert_eq!((unwanted.count_total, log.text()), (0, String::new()), "it does not want them");
    }
}
