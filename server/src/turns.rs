//! The first turn of each new stream of HTTP/2 is taken in the task of its connection.
//!
//! Most calls are answered in one turn, from memory. A task for each would cost more than the
//! answer: to make it, to wake another thread for it, to wake the connection for its answer, and a
//! write for each. So the streams that came in one read have a turn here one after the other, and
//! their answers leave in one write. What has to wait goes on in a task of its own.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::rt::Executor;
use tokio::io::AsyncWrite;
use tokio::runtime::Handle;
use tokio::task::coop::unconstrained;

use crate::corked::Cork;
use crate::pace::{Paced, Stream};

/// How long turns may take before what they wrote leaves, so that the client has something to do
/// meanwhile.
const SLICE: Duration = Duration::from_micros(100);
/// How long slices go on in a row. Then other tasks have a turn on this thread. The streams that
/// are left have theirs in tasks of their own, on other threads; so a turn that computes for long
/// holds up nobody but itself. Where there is no other thread, they have it here, later.
const SLICES: Duration = Duration::from_millis(1);
/// With so many streams before their first turn nothing more is read from their connection. Those
/// that the client has reset do not count as open any more, so HTTP/2 alone does not bound them.
const WAITING_MAX: usize = 256;

/// Streams that have had no turn yet; what HTTP calls an executor.
#[derive(Clone)]
pub struct Arrivals {
    paced: Paced,
    new: Arc<Mutex<Vec<Stream>>>,
}

impl Arrivals {
    /// None yet.
    pub fn new(paced: Paced) -> Self {
        Arrivals {
            paced,
            new: Arc::default(),
        }
    }

    fn take(&self) -> Vec<Stream> {
        std::mem::take(&mut self.new.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<F> Executor<F> for Arrivals
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let stream = Stream::new(&self.paced, stream);
        let mut new = self.new.lock().unwrap_or_else(PoisonError::into_inner);
        new.push(stream);
    }
}

/// The turns of a connection and of its streams.
pub struct Turns<S> {
    arrivals: Arrivals,
    /// Had no turn yet.
    waiting: VecDeque<Stream>,
    /// There are other threads.
    others: bool,
    cork: Cork<S>,
}

impl<S: AsyncWrite + Unpin> Turns<S> {
    /// Those of a connection that gives its streams to `arrivals` and writes behind `cork`.
    pub fn new(arrivals: Arrivals, cork: Cork<S>) -> Self {
        Turns {
            arrivals,
            waiting: VecDeque::new(),
            others: Handle::current().metrics().num_workers() > 1,
            cork,
        }
    }

    /// Polls the connection, gives its new streams their turn, and lets go what they wrote. Ends
    /// as the connection does, which shuts its stream down before, and so has written all.
    pub fn poll<E>(
        &mut self,
        mut connection: Pin<&mut impl Future<Output = E>>,
        cx: &mut Context<'_>,
    ) -> Poll<E> {
        let began = Instant::now();
        loop {
            let polled = match self.waiting.len() < WAITING_MAX {
                true => connection.as_mut().poll(cx),
                false => Poll::Pending,
            };
            self.pull(cx);
            let new = self.arrivals.take();
            if !new.is_empty() {
                // Only HTTP/2 has streams.
                self.cork.put_in();
            }
            self.waiting.extend(new);
            if polled.is_ready() || self.waiting.is_empty() {
                // With its memory: most connections are idle.
                std::mem::take(&mut self.waiting)
                    .into_iter()
                    .for_each(spawn);
                return polled;
            }
            slice(&mut self.waiting, cx);
            if began.elapsed() >= SLICES {
                if self.others {
                    self.waiting.drain(..).for_each(spawn);
                }
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    }

    /// Answers that are ready leave also if the turns have used up the budget of the task. The
    /// connection learns of an error when it reads or writes next.
    fn pull(&self, cx: &mut Context<'_>) {
        let pull = poll_fn(|cx| self.cork.pull(cx));
        let _ = pin!(unconstrained(pull)).poll(cx);
    }
}

/// First turns, for a while.
fn slice(waiting: &mut VecDeque<Stream>, cx: &mut Context<'_>) {
    let began = Instant::now();
    while began.elapsed() < SLICE
        && let Some(mut stream) = waiting.pop_front()
    {
        // A panic ends this stream only, as it does in a task.
        let turn = catch_unwind(AssertUnwindSafe(|| stream.turn(cx)));
        if let Ok(Poll::Pending) = turn {
            spawn(stream);
        }
    }
}

fn spawn(stream: Stream) {
    tokio::spawn(stream.run());
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use hub_core::clock::Clock;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::sync::{mpsc, oneshot};

    use super::*;
    use crate::corked::{Corked, cork};

    struct Subject {
        arrivals: Arrivals,
        turns: Turns<DuplexStream>,
        corked: Corked<DuplexStream>,
        other: DuplexStream,
    }

    fn subject() -> Subject {
        let limit = Duration::from_secs(60);
        let clock = Clock::system();
        let arrivals = Arrivals::new(Paced { clock, limit });
        let (stream, other) = duplex(100);
        let (corked, cork) = cork(stream);
        Subject {
            turns: Turns::new(arrivals.clone(), cork),
            arrivals,
            corked,
            other,
        }
    }

    /// One look at a connection that has nothing else to do.
    async fn look(subject: &mut Subject) {
        let mut connection = pending::<()>();
        poll_fn(|cx| {
            let polled = subject.turns.poll(Pin::new(&mut connection), cx);
            assert!(polled.is_pending());
            Poll::Ready(())
        })
        .await;
    }

    #[tokio::test]
    async fn a_stream_that_need_not_wait_has_ended_after_the_turn_of_its_connection() {
        let mut subject = subject();
        let (tell, mut told) = mpsc::unbounded_channel();
        for number in 0..3 {
            let tell = tell.clone();
            subject.arrivals.execute(async move {
                tell.send(number).unwrap();
            });
        }
        look(&mut subject).await;
        let told: Vec<_> = std::iter::from_fn(|| told.try_recv().ok()).collect();
        assert_eq!(told, [0, 1, 2]);
    }

    #[tokio::test]
    async fn a_stream_that_has_to_wait_goes_on_without_its_connection() {
        let mut subject = subject();
        let (go, wait) = oneshot::channel::<()>();
        let (tell, told) = oneshot::channel();
        subject.arrivals.execute(async move {
            wait.await.unwrap();
            tell.send("done").unwrap();
        });
        look(&mut subject).await;
        go.send(()).unwrap();
        assert_eq!(told.await.unwrap(), "done");
    }

    #[tokio::test]
    async fn a_stream_that_panics_ends_alone() {
        let mut subject = subject();
        let (tell, told) = oneshot::channel();
        subject
            .arrivals
            .execute(async { panic!("a stream panics") });
        subject.arrivals.execute(async move {
            tell.send("done").unwrap();
        });
        look(&mut subject).await;
        // To show a panic may take longer than slices do.
        while !subject.turns.waiting.is_empty() {
            look(&mut subject).await;
        }
        assert_eq!(told.await.unwrap(), "done");
    }

    #[tokio::test]
    async fn a_connection_that_never_stops_taking_streams_lets_others_have_a_turn() {
        let mut subject = subject();
        let arrivals = subject.arrivals.clone();
        let mut connection = poll_fn(|_| {
            arrivals.execute(ready(()));
            Poll::<()>::Pending
        });
        poll_fn(|cx| {
            let polled = subject.turns.poll(Pin::new(&mut connection), cx);
            assert!(polled.is_pending());
            Poll::Ready(())
        })
        .await;
    }

    #[tokio::test]
    async fn streams_that_are_left_after_their_slices_have_their_turn_later() {
        let mut subject = subject();
        let (tell, mut told) = mpsc::unbounded_channel();
        let streams = 20;
        for number in 0..streams {
            let tell = tell.clone();
            subject.arrivals.execute(async move {
                let began = Instant::now();
                while began.elapsed() < SLICES / 5 {}
                tell.send(number).unwrap();
            });
        }
        look(&mut subject).await;
        let first: Vec<_> = std::iter::from_fn(|| told.try_recv().ok()).collect();
        assert!(!first.is_empty() && first.len() < streams, "{first:?}");
        while !subject.turns.waiting.is_empty() {
            look(&mut subject).await;
        }
        let all = first
            .into_iter()
            .chain(std::iter::from_fn(|| told.try_recv().ok()));
        assert!(all.eq(0..streams));
    }

    #[tokio::test]
    async fn a_connection_waits_for_the_turns_of_its_streams_if_they_are_many() {
        let mut subject = subject();
        let arrivals = subject.arrivals.clone();
        let mut connection = poll_fn(|_| {
            for _ in 0..WAITING_MAX {
                arrivals.execute(async {
                    let began = Instant::now();
                    while began.elapsed() < SLICE {}
                });
            }
            Poll::<()>::Pending
        });
        for _ in 0..20 {
            poll_fn(|cx| {
                assert!(
                    subject
                        .turns
                        .poll(Pin::new(&mut connection), cx)
                        .is_pending()
                );
                Poll::Ready(())
            })
            .await;
            assert!(subject.turns.waiting.len() < 2 * WAITING_MAX);
        }
    }

    #[tokio::test]
    async fn streams_that_are_left_at_the_end_of_their_connection_have_their_turn() {
        let mut subject = subject();
        let (tell, told) = oneshot::channel();
        subject.arrivals.execute(async move {
            tell.send("done").unwrap();
        });
        poll_fn(|cx| subject.turns.poll(Pin::new(&mut ready(())), cx)).await;
        assert_eq!(told.await.unwrap(), "done");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_stream_that_computes_for_long_holds_up_no_other() {
        let mut subject = subject();
        let (tell, mut told) = mpsc::unbounded_channel();
        for length in [SLICES, Duration::ZERO] {
            let tell = tell.clone();
            subject.arrivals.execute(async move {
                let began = Instant::now();
                while began.elapsed() < length {}
                // The connection of this test is in no task.
                tell.send((length, tokio::task::try_id().is_some()))
                    .unwrap();
            });
        }
        look(&mut subject).await;
        assert_eq!(told.recv().await, Some((SLICES, false)));
        let next = told.recv().await;
        assert_eq!(
            next,
            Some((Duration::ZERO, true)),
            "it went on in the connection"
        );
    }

    #[tokio::test]
    async fn what_was_written_in_a_turn_has_left_after_it() {
        let mut subject = subject();
        subject.corked.write_all(b"an answer").await.unwrap();
        look(&mut subject).await;
        let mut read = [0; 9];
        subject.other.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"an answer");
    }
}
