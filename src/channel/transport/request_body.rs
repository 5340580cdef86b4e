//! The request body on its way to the server: kept for a replay until the response begins.
//!
//! Until then the call itself polls the body, whenever the call is polled. The rest goes on in a
//! [`BodySender`](super::BodySender), since a response may be read on another task or not at all.

use std::panic::{self, AssertUnwindSafe};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::SendStream;
use http_body::{Body as _, Frame};
use tonic::body::Body;
use tonic::{Code, Status};

use crate::channel::error::ChannelError;

/// A call's request body, and the part of it that is kept. The default has nothing to send.
#[derive(Default)]
pub(crate) struct RequestBody {
    source: Source,
    /// Frames that were read: all of them while a replay is possible, otherwise those that still have to be sent.
    frames: Frames,
    /// The next of them for the present attempt.
    next: usize,
    /// How far the present attempt is.
    progress: Progress,
    kept: Kept,
    /// How many bytes the present attempt has sent.
    bytes: usize,
    /// The last frame, once all of them are with h2 and are not kept.
    last: Option<Bytes>,
}

/// How far an attempt is.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Progress {
    #[default]
    Unsent,
    Partly,
    /// All of it is with h2.
    Entirely,
}

/// The part that is kept for a further attempt.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Kept {
    /// Everything.
    #[default]
    All,
    /// Everything as yet; frames that are sent from now on are not kept.
    Unsent,
    /// The part that was not sent yet: there can be no further attempt.
    Tail,
}

/// The caller's body.
#[derive(Default)]
enum Source {
    /// There may be more.
    Open(Body),
    /// It came to its end.
    #[default]
    Ended,
}

/// Frames, the first without an allocation: most bodies have one.
#[derive(Default)]
struct Frames {
    first: Option<Bytes>,
    rest: Vec<Bytes>,
    bytes: usize,
}

impl RequestBody {
    pub(crate) fn new(body: Body) -> Self {
        let source = if body.is_end_stream() { Source::Ended } else { Source::Open(body) };
        Self { source, ..Self::default() }
    }

    /// Begins an attempt: reads what goes into the first write. Tells whether there is nothing to send at all.
    ///
    /// # Errors
    ///
    /// What the caller's body failed with.
    pub(crate) fn begin(&mut self, cx: &mut Context<'_>) -> Result<bool, Status> {
        (self.next, self.progress, self.bytes) = (0, Progress::Unsent, 0);
        if self.frames.len() == 0
            && let Poll::Ready(read) = self.poll_read(cx)
        {
            read?;
        }
        if self.is_read() {
            self.progress = Progress::Entirely;
        }
        Ok(self.is_sent())
    }

    /// Sends on, until all of it is with h2 or the stream is over.
    ///
    /// # Errors
    ///
    /// What the caller's body failed with.
    pub(crate) fn poll_send(
        &mut self,
        stream: &mut SendStream<Bytes>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Status>> {
        for _ in 0..FRAMES_PER_POLL {
            if self.is_sent() {
                return Poll::Ready(Ok(()));
            }
            // Read before there is room: what a body with nothing to send would reserve of the connection's window,
            // other calls could not use.
            if self.next == self.frames.len() {
                ready!(self.poll_read(cx))?;
            }
            let bytes = self.frames.get(self.next).map_or(0, Bytes::len);
            if bytes > LARGEST_FRAME {
                let reason = format!("a message of {bytes} bytes is larger than HTTP/2 can carry");
                return Poll::Ready(Err(ChannelError::BadRequest { reason }.into_status(Code::OutOfRange)));
            }
            // A first frame always finds room: h2 keeps it until there is some. The end needs none.
            if self.progress == Progress::Partly && bytes > 0 && !ready!(poll_room(stream, cx)) {
                return Poll::Ready(Ok(()));
            }
            let data = self.frames.get(self.next).cloned();
            self.next += usize::from(data.is_some());
            let data = data.unwrap_or_default();
            self.progress = if self.is_read() { Progress::Entirely } else { Progress::Partly };
            self.bytes = self.bytes.saturating_add(data.len());
            self.forget_sent();
            if self.send(stream, data).is_err() {
                // The stream is over, and the response tells why.
                return Poll::Ready(Ok(()));
            }
        }
        // A stream that always has more must not keep its call from its deadline, its response and its caller.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Hands one message to h2. The end of a large request follows in a frame of its own: of a stream that is over both
    /// ways h2 ignores a reset while a frame is being written and no other one is behind it, even where the rest of the
    /// message waits for room. It goes on counting that stream for as long as the peer makes none.
    fn send(&self, stream: &mut SendStream<Bytes>, data: Bytes) -> Result<(), h2::Error> {
        let ends_apart = self.is_sent() && self.bytes > LARGEST_WHOLE && !data.is_empty();
        stream.send_data(data, self.is_sent() && !ends_apart)?;
        if ends_apart { stream.send_data(Bytes::new(), true) } else { Ok(()) }
    }

    /// Whether all of it is with h2.
    pub(crate) fn is_sent(&self) -> bool {
        self.progress == Progress::Entirely
    }

    /// Whether the caller has more to say, and is not there yet.
    pub(crate) fn is_callers_turn(&self) -> bool {
        matches!(self.source, Source::Open(_)) && self.next == self.frames.len()
    }

    /// Whether all that was read is kept for another attempt.
    pub(crate) fn is_replayable(&self) -> bool {
        self.kept != Kept::Tail
    }

    /// How many bytes the present attempt has sent.
    pub(crate) fn sent_bytes(&self) -> usize {
        self.bytes
    }

    /// Whether h2 has let go of all of it. Not known of frames that the caller keeps handles of, nor of a stream's that
    /// ended after its last message: what is left of those may have to be reset.
    pub(super) fn is_flushed(&self) -> bool {
        let last = self.frames.last().or(self.last.as_ref());
        self.is_sent() && (self.bytes == 0 || last.is_some_and(Bytes::is_unique))
    }

    /// How many bytes are there to be sent.
    pub(super) fn unsent_bytes(&self) -> usize {
        self.frames.bytes
    }

    /// The response has begun: nothing is kept any more.
    pub(super) fn on_response(&mut self) {
        self.keep_no_more();
    }

    /// Whether the present attempt has all that the caller's body had.
    fn is_read(&self) -> bool {
        matches!(self.source, Source::Ended) && self.next == self.frames.len()
    }

    /// Polls the caller's body, and after its first frame once more: if that frame was the last, the end goes out in
    /// the frame itself, where a unary call of tonic's would need another one.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        let is_first = self.frames.len() == 0 && self.kept == Kept::All;
        let Source::Open(body) = &mut self.source else { return Poll::Ready(Ok(())) };
        let frame = ready!(poll_caller(body, cx)).transpose()?;
        let is_data = frame.as_ref().is_some_and(Frame::is_data);
        let ahead = if is_first && is_data { poll_caller(body, cx) } else { Poll::Pending };
        self.keep(frame);
        if let Poll::Ready(frame) = ahead {
            self.keep(frame.transpose()?);
        }
        Poll::Ready(Ok(()))
    }

    /// Takes a frame that was read; `None` is the end. gRPC requests have no trailers, which would be the end as well.
    fn keep(&mut self, frame: Option<Frame<Bytes>>) {
        let Some(data) = frame.and_then(|frame| frame.into_data().ok()) else {
            self.source = Source::Ended;
            return;
        };
        if self.frames.bytes + data.len() > KEPT_BYTES {
            self.keep_no_more();
        }
        self.frames.push(data);
    }

    fn keep_no_more(&mut self) {
        if self.kept == Kept::All {
            self.kept = Kept::Unsent;
        }
        self.forget_sent();
    }

    fn forget_sent(&mut self) {
        if self.kept != Kept::All && self.next > 0 && self.next == self.frames.len() {
            let sent = std::mem::take(&mut self.frames);
            // Not before all of it is sent: a stream that idles keeps no memory.
            self.last = if self.is_sent() { sent.into_last() } else { None };
            (self.next, self.kept) = (0, Kept::Tail);
        }
    }
}

impl Frames {
    fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.rest.len()
    }

    fn get(&self, index: usize) -> Option<&Bytes> {
        match index {
            0 => self.first.as_ref(),
            _ => self.rest.get(index - 1),
        }
    }

    fn last(&self) -> Option<&Bytes> {
        self.rest.last().or(self.first.as_ref())
    }

    fn into_last(mut self) -> Option<Bytes> {
        self.rest.pop().or(self.first)
    }

    fn push(&mut self, frame: Bytes) {
        self.bytes += frame.len();
        match self.first {
            None => self.first = Some(frame),
            Some(_) => self.rest.push(frame),
        }
    }
}

/// Polls the caller's body. A panic in it is that call's failure, whichever task polls.
fn poll_caller(body: &mut Body, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
    panic::catch_unwind(AssertUnwindSafe(|| Pin::new(body).poll_frame(cx))).unwrap_or_else(|_| {
        let reason = "the request stream panicked".to_owned();
        Poll::Ready(Some(Err(ChannelError::BadRequest { reason }.into_status(Code::Internal))))
    })
}

/// Waits until the peer takes more; `false` if the stream is over. Bytes beyond the window wait in memory, which this
/// bounds to one frame.
fn poll_room(stream: &mut SendStream<Bytes>, cx: &mut Context<'_>) -> Poll<bool> {
    stream.reserve_capacity(1);
    while stream.capacity() == 0 {
        match ready!(stream.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return Poll::Ready(false),
        }
    }
    Poll::Ready(true)
}

/// How much of a request body is kept for a replay: what most unary calls need, and little enough to keep for each.
const KEPT_BYTES: usize = 64 * 1024;

/// What h2 takes as one message.
const LARGEST_FRAME: usize = i32::MAX as usize;

/// What goes out as one frame, so that no rest of it waits for room, unless the windows are smaller than at first or
/// used up by other calls.
const LARGEST_WHOLE: usize = 16 * 1024;

/// How many frames one poll sends before other tasks have their turn.
const FRAMES_PER_POLL: usize = 32;
