//! The board to every open page: all that is known first, then each change.
//!
//! A page that reads slower than the registry changes loses its place in the queue, and gets all that is known again
//! instead of what it missed. So the queue is bounded, and no page holds up another.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use http_body::Frame;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::board::{Board, News};
use super::wire;

pub(crate) struct Hub {
    board: Mutex<Board>,
    news: broadcast::Sender<News>,
    places: Arc<Semaphore>,
}

impl Hub {
    pub(crate) fn new(board: Board) -> Self {
        Self {
            board: Mutex::new(board),
            news: broadcast::channel(QUEUE).0,
            places: Arc::new(Semaphore::new(MAX_PAGES)),
        }
    }

    /// Changes the board and tells every page, in one step: a page that opens meanwhile hears it once.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Board, u64) -> Vec<News>) {
        let mut board = self.board();
        for news in change(&mut board, wire::now()) {
            // Fails where no page is open.
            let _ = self.news.send(news);
        }
    }

    pub(crate) fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The events of one page, until `end`. `None` where too many pages are open.
    pub(crate) fn open(
        self: &Arc<Self>,
        end: CancellationToken,
    ) -> Option<impl Stream<Item = Result<Frame<Bytes>, Infallible>> + Send + use<>> {
        let place = self.places.clone().try_acquire_owned().ok()?;
        let (backlog, news) = self.subscribe();
        let page = Page { hub: self.clone(), backlog, news, end, _place: place };
        Some(stream::unfold(Some(page), |page| async {
            let mut page = page?;
            Some(match page.next().await {
                Some(event) => (Ok(Frame::data(event)), Some(page)),
                None => (Ok(Frame::data(wire::event("bye", &()))), None),
            })
        }))
    }

    fn subscribe(&self) -> (VecDeque<Bytes>, broadcast::Receiver<News>) {
        let mut board = self.board();
        (board.everything(wire::now()), self.news.subscribe())
    }
}

/// One open page.
struct Page {
    hub: Arc<Hub>,
    backlog: VecDeque<Bytes>,
    news: broadcast::Receiver<News>,
    end: CancellationToken,
    _place: OwnedSemaphorePermit,
}

impl Page {
    /// The next event; `None` at the server's end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.end.is_cancelled() {
                return None;
            }
            if let Some(event) = self.backlog.pop_front() {
                return Some(event);
            }
            let news = tokio::select! {
                news = self.news.recv() => news,
                () = self.end.cancelled() => return None,
            };
            match news {
                Ok(News::Event(event)) => return Some(event),
                // It may be gone by now.
                Ok(News::Service(name)) => self.backlog.extend(self.hub.board().service(&name)),
                Err(RecvError::Lagged(_)) => (self.backlog, self.news) = self.hub.subscribe(),
                Err(RecvError::Closed) => return None,
            }
        }
    }
}

/// Places of the queue that all pages share.
const QUEUE: usize = 256;
/// Pages that are open at once.
const MAX_PAGES: usize = 64;

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::{FutureExt, StreamExt};

    use super::*;

    fn hub() -> Arc<Hub> {
        Arc::new(Hub::new(Board::new("1.0.0", String::new(), false)))
    }

    fn names(events: &[Bytes]) -> Vec<String> {
        let name = |event: &Bytes| {
            let text = String::from_utf8_lossy(event).into_owned();
            text.strip_prefix("event: ").and_then(|rest| rest.split('\n').next()).unwrap_or_default().to_owned()
        };
        events.iter().map(name).collect()
    }

    /// What is there without waiting.
    fn read(page: &mut (impl Stream<Item = Result<Frame<Bytes>, Infallible>> + Unpin)) -> Vec<Bytes> {
        let next = || page.next().now_or_never().flatten();
        std::iter::from_fn(next).filter_map(|frame| frame.ok()?.into_data().ok()).collect()
    }

    #[tokio::test]
    async fn a_page_hears_all_that_is_known_first_and_each_change_once() {
        let hub = hub();
        hub.update(|board, now| board.on_trouble("before".to_owned(), now));
        let mut page = pin!(hub.open(CancellationToken::new()).expect("a place"));
        hub.update(|board, now| board.on_answer(0, now));
        let events = read(&mut page);
        assert_eq!(names(&events), ["begin", "log", "beat", "live", "log", "beat"]);
        assert!(read(&mut page).is_empty(), "and nothing twice");
    }

    #[tokio::test]
    async fn a_page_that_read_too_slowly_begins_anew_and_the_others_do_not() {
        let hub = hub();
        let mut slow = pin!(hub.open(CancellationToken::new()).expect("a place"));
        let mut quick = pin!(hub.open(CancellationToken::new()).expect("a place"));
        read(&mut slow);
        read(&mut quick);
        let mut heard = 0;
        for left_out in 0..=QUEUE {
            hub.update(|board, now| board.on_answer(left_out, now));
            heard += read(&mut quick).len();
            // A task that reads on and on is made to wait, though there is more.
            tokio::task::yield_now().await;
        }
        assert_eq!(heard, QUEUE + 1, "one event for each change");
        let events = read(&mut slow);
        assert_eq!(names(&events), ["begin", "log", "beat", "live"], "all that is known instead of what it missed");
        let beat = String::from_utf8_lossy(&events[2]);
        assert!(beat.contains(&format!("\"left_out\":{QUEUE}")), "as it is now: {beat}");
    }

    #[tokio::test]
    async fn pages_beyond_the_limit_wait_for_one_that_closes() {
        let hub = hub();
        let mut pages: Vec<_> = (0..MAX_PAGES).map(|_| hub.open(CancellationToken::new()).expect("a place")).collect();
        assert!(hub.open(CancellationToken::new()).is_none());
        pages.pop();
        assert!(hub.open(CancellationToken::new()).is_some());
    }

    #[tokio::test]
    async fn the_end_is_told_whatever_is_still_to_be_read() {
        let hub = hub();
        let end = CancellationToken::new();
        let mut page = pin!(hub.open(end.clone()).expect("a place"));
        end.cancel();
        assert_eq!(names(&read(&mut page)), ["bye"]);
    }
}
