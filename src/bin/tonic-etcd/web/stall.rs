//! Writes to an error, where the other end takes too long to read what was written up to a flush.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

pub(crate) struct StallLimit<S> {
    stream: S,
    limit: Duration,
    /// Runs from the first write that waits until all is flushed: an end that reads byte by byte gains nothing.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> StallLimit<S> {
    pub(crate) fn new(stream: S, limit: Duration) -> Self {
        Self { stream, limit, stalled: None }
    }

    fn limited<T>(&mut self, poll: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            return poll;
        }
        let limit = self.limit;
        ready!(self.stalled.get_or_insert_with(|| Box::pin(sleep(limit))).as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for StallLimit<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for StallLimit<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.limited(poll, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.limited(poll, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = ready!(Pin::new(&mut self.stream).poll_flush(cx));
        self.stalled = None;
        Poll::Ready(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::Instant;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn a_write_to_an_end_that_does_not_read_fails_at_the_limit() {
        let (near, _far) = duplex(8);
        let begin = Instant::now();
        let failed = StallLimit::new(near, LIMIT).write_all(&[0; 9]).await.expect_err("nothing reads");
        assert_eq!((failed.kind(), begin.elapsed()), (io::ErrorKind::TimedOut, LIMIT));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_has_the_limit_for_all_that_is_flushed_together_and_not_for_each_byte() {
        let (near, mut far) = duplex(1);
        let reads = async {
            for _ in 0..9 {
                sleep(LIMIT / 3).await;
                if far.read_u8().await.is_err() {
                    return;
                }
            }
        };
        let writes = async {
            let mut near = StallLimit::new(near, LIMIT);
            for _ in 0..2 {
                near.write_all(&[0; 3]).await.expect("it takes less than the limit");
                near.flush().await.expect("nothing is left");
            }
            let begin = Instant::now();
            let failed = near.write_all(&[0; 9]).await.expect_err("nine take too long");
            (failed.kind(), begin.elapsed())
        };
        let (ended, ()) = tokio::join!(writes, reads);
        assert_eq!(ended, (io::ErrorKind::TimedOut, LIMIT));
    }
}
