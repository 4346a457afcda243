//! An HTTP/2 connection whose small writes leave together.
//!
//! HTTP/2 writes after each answer; a call of the kernel for each would cost more than most
//! answers do. So what is written stays here until the task of the connection has nothing else to
//! do, and [`Cork::pull`] lets it go.

use std::io::{IoSlice, Result};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is held at most; what does not fit leaves at once, behind what was held.
const HELD_BYTES_MAX: usize = 32 << 10;

/// A stream whose writes wait for the cork.
pub struct Corked<S> {
    held: Arc<Mutex<Held<S>>>,
}

/// Lets go what a stream holds.
pub struct Cork<S> {
    held: Arc<Mutex<Held<S>>>,
}

struct Held<S> {
    stream: S,
    /// Empty and without memory while nothing waits: most connections are idle.
    bytes: Vec<u8>,
    /// How much of it has left.
    sent: usize,
    /// HTTP/1 never is: it takes what it has flushed for sent, and counts its time from then.
    is_corked: bool,
}

/// A stream that can be corked.
pub fn cork<S>(stream: S) -> (Corked<S>, Cork<S>) {
    let held = Arc::new(Mutex::new(Held {
        stream,
        bytes: Vec::new(),
        sent: 0,
        is_corked: false,
    }));
    (Corked { held: held.clone() }, Cork { held })
}

impl<S: AsyncWrite + Unpin> Cork<S> {
    /// What is written from now on is held.
    pub fn put_in(&self) {
        lock(&self.held).is_corked = true;
    }

    /// Writes what is held; the task is woken when it can go on.
    pub fn pull(&self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let mut held = lock(&self.held);
        ready!(held.poll_empty(cx))?;
        // Also if nothing was held: TLS holds something itself.
        Pin::new(&mut held.stream).poll_flush(cx)
    }
}

impl<S: AsyncWrite + Unpin> Held<S> {
    fn poll_empty(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        if self.bytes.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while self.sent < self.bytes.len() {
            let rest = &self.bytes[self.sent..];
            let sent = ready!(Pin::new(&mut self.stream).poll_write(cx, rest))?;
            if sent == 0 {
                return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into()));
            }
            self.sent += sent;
        }
        (self.bytes, self.sent) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Corked<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        Pin::new(&mut lock(&self.held).stream).poll_read(cx, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Corked<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let mut held = lock(&self.held);
        if !held.is_corked {
            return Pin::new(&mut held.stream).poll_write_vectored(cx, parts);
        }
        let size = parts.iter().map(|part| part.len()).sum();
        if held.bytes.len() + size > HELD_BYTES_MAX {
            ready!(held.poll_empty(cx))?;
        }
        if size > HELD_BYTES_MAX {
            return Pin::new(&mut held.stream).poll_write_vectored(cx, parts);
        }
        if held.bytes.is_empty() {
            held.bytes.reserve_exact(HELD_BYTES_MAX);
        }
        parts
            .iter()
            .for_each(|part| held.bytes.extend_from_slice(part));
        Poll::Ready(Ok(size))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let mut held = lock(&self.held);
        match held.is_corked {
            // The cork sees to it.
            true => Poll::Ready(Ok(())),
            false => Pin::new(&mut held.stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let mut held = lock(&self.held);
        ready!(held.poll_empty(cx))?;
        Pin::new(&mut held.stream).poll_shutdown(cx)
    }
}

fn lock<S>(held: &Mutex<Held<S>>) -> MutexGuard<'_, Held<S>> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    fn corked(room: usize) -> (Corked<DuplexStream>, Cork<DuplexStream>, DuplexStream) {
        let (stream, other) = duplex(room);
        let (corked, cork) = cork(stream);
        cork.put_in();
        (corked, cork, other)
    }

    #[tokio::test]
    async fn small_writes_leave_together_when_the_cork_is_pulled() {
        let (mut corked, cork, mut other) = corked(100);
        corked.write_all(b"one ").await.unwrap();
        corked.flush().await.unwrap();
        corked.write_all(b"two").await.unwrap();
        let mut read = [0; 100];
        assert!(other.read(&mut read).now_or_never().is_none());
        poll_fn(|cx| cork.pull(cx)).await.unwrap();
        let size = other.read(&mut read).await.unwrap();
        assert_eq!(&read[..size], b"one two");
    }

    #[tokio::test]
    async fn without_the_cork_what_is_written_leaves_at_once() {
        let (stream, mut other) = duplex(100);
        let (mut corked, _cork) = cork(stream);
        corked.write_all(b"now").await.unwrap();
        let mut read = [0; 3];
        other.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"now");
    }

    #[tokio::test]
    async fn what_does_not_fit_leaves_behind_what_was_held() {
        let (mut corked, cork, mut other) = corked(16);
        let sizes = [10, HELD_BYTES_MAX, 3, 2 * HELD_BYTES_MAX, 7];
        let all: Vec<u8> = (0..sizes.iter().sum()).map(|at: usize| at as u8).collect();
        let expected = all.clone();
        let writing = tokio::spawn(async move {
            let mut rest = &all[..];
            for size in sizes {
                let (now, later) = rest.split_at(size);
                corked.write_all(now).await.unwrap();
                rest = later;
            }
            poll_fn(|cx| cork.pull(cx)).await.unwrap();
        });
        let mut read = Vec::new();
        other.read_to_end(&mut read).await.unwrap();
        writing.await.unwrap();
        assert!(read == expected);
    }

    #[tokio::test]
    async fn a_writer_waits_once_as_much_is_held_as_may_be() {
        let (mut corked, _cork, _other) = corked(16);
        corked.write_all(&vec![0; HELD_BYTES_MAX]).await.unwrap();
        assert!(corked.write(b"more").now_or_never().is_none());
    }

    #[tokio::test]
    async fn nothing_is_held_of_a_stream_that_was_shut_down() {
        let (mut corked, _cork, mut other) = corked(100);
        corked.write_all(b"the end").await.unwrap();
        corked.shutdown().await.unwrap();
        let mut read = String::new();
        other.read_to_string(&mut read).await.unwrap();
        assert_eq!(read, "the end");
    }

    /// A stream that keeps what is written until it is flushed, as TLS may, and flushes at the
    /// second attempt.
    #[derive(Default)]
    struct Keeping {
        kept: Vec<u8>,
        flushes: u32,
        sent: Vec<u8>,
    }

    impl AsyncWrite for Keeping {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<Result<usize>> {
            self.kept.extend_from_slice(bytes);
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
            self.flushes += 1;
            if self.flushes % 2 == 1 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let kept = std::mem::take(&mut self.kept);
            self.sent.extend(kept);
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
            self.poll_flush(cx)
        }
    }

    #[tokio::test]
    async fn what_the_stream_keeps_itself_is_flushed_however_long_that_takes() {
        let (mut corked, cork) = cork(Keeping::default());
        cork.put_in();
        for size in [5, HELD_BYTES_MAX + 1] {
            corked.write_all(&vec![0; size]).await.unwrap();
            poll_fn(|cx| cork.pull(cx)).await.unwrap();
            assert_eq!(lock(&cork.held).stream.kept.len(), 0);
        }
        assert_eq!(lock(&cork.held).stream.sent.len(), HELD_BYTES_MAX + 6);
    }

    #[tokio::test]
    async fn an_idle_stream_holds_no_memory() {
        let (mut corked, cork, _other) = corked(100);
        corked.write_all(b"something").await.unwrap();
        poll_fn(|cx| cork.pull(cx)).await.unwrap();
        assert_eq!(lock(&cork.held).bytes.capacity(), 0);
    }
}
