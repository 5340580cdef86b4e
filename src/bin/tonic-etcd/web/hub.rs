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
