//! Log lines on standard error, many by one call of the kernel.
//!
//! Each call has a line, and to write it by itself would cost as much as half of what many calls
//! do. So lines wait together, for a moment only: warnings and errors take with them what waits
//! and leave at once, and what a process that is killed had not written yet is of its last
//! [`WAIT_MAX`]. On a terminal nothing waits.

use std::io::{ErrorKind, IsTerminal, Result, Write, stderr};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// How long a line waits at most for others.
const WAIT_MAX: Duration = Duration::from_millis(20);
/// What waits at most; with more, all of it leaves, and whoever logs waits for that.
const WAITING_BYTES_MAX: usize = 64 << 10;
/// Past this lines are dropped, whole: who reads them takes none, and said not to be waited for.
const STUCK_BYTES_MAX: usize = 1 << 20;

/// Where lines are written; cheap to clone.
#[derive(Clone)]
pub struct StandardError(Arc<Inner>);

struct Inner {
    /// Nothing waits.
    at_once: bool,
    waiting: Mutex<Waiting>,
    /// Something waits, and nothing did before.
    begun: Condvar,
}

struct Waiting {
    bytes: Vec<u8>,
    into: Box<dyn Write + Send>,
}

/// One line.
pub struct Line<'a> {
    lines: &'a Inner,
    at_once: bool,
}

impl StandardError {
    /// Lines wait for others unless it is a terminal, where somebody watches.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn open() -> Result<Self> {
        let lines = Self::new(stderr().is_terminal(), Box::new(stderr()));
        if !lines.0.at_once {
            let inner = lines.0.clone();
            let thread = std::thread::Builder::new().name("hub-log".to_owned());
            thread.spawn(move || inner.run())?;
        }
        Ok(lines)
    }

    fn new(at_once: bool, into: Box<dyn Write + Send>) -> Self {
        let bytes = Vec::new();
        StandardError(Arc::new(Inner {
            at_once,
            waiting: Mutex::new(Waiting { bytes, into }),
            begun: Condvar::new(),
        }))
    }

    /// Writes what waits: the process ends.
    pub fn flush(&self) {
        self.0.waiting().leave();
    }
}

impl Inner {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what has waited long enough, for as long as the process lives.
    fn run(&self) {
        loop {
            let is_empty = |waiting: &mut Waiting| waiting.bytes.is_empty();
            drop(self.begun.wait_while(self.waiting(), is_empty));
            std::thread::sleep(WAIT_MAX);
            self.waiting().leave();
        }
    }
}

impl Waiting {
    /// Under the lock, so that lines stay in their order. Where nothing can be written now, the
    /// rest waits; nobody can be told of another error here.
    fn leave(&mut self) {
        let mut sent = 0;
        while sent < self.bytes.len() {
            match self.into.write(&self.bytes[sent..]) {
                Ok(more @ 1..) => sent += more,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Ok(0) | Err(_) => sent = self.bytes.len(),
            }
        }
        self.bytes.drain(..sent);
    }
}

impl<'a> MakeWriter<'a> for StandardError {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line {
            lines: &self.0,
            at_once: true,
        }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line<'a> {
        Line {
            lines: &self.0,
            at_once: self.0.at_once || *metadata.level() <= Level::WARN,
        }
    }
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let mut waiting = self.lines.waiting();
        if waiting.bytes.is_empty() && !self.at_once {
            self.lines.begun.notify_one();
        }
        if waiting.bytes.len() < STUCK_BYTES_MAX {
            waiting.bytes.extend_from_slice(bytes);
        }
        if self.at_once || waiting.bytes.len() >= WAITING_BYTES_MAX {
            waiting.leave();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>, Arc<AtomicUsize>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> Result<usize> {
            let room = self.1.load(Ordering::SeqCst);
            match room.min(bytes.len()) {
                0 => Err(ErrorKind::WouldBlock.into()),
                some => {
                    self.1.fetch_sub(some, Ordering::SeqCst);
                    self.0.lock().unwrap().write(&bytes[..some])
                }
            }
        }

        fn flush(&mut self) -> Result<()> {
            Ok(())
        }
    }

    impl Written {
        fn lines(&self) -> Vec<String> {
            let bytes = self.0.lock().unwrap().clone();
            let text = String::from_utf8(bytes).unwrap();
            let words = text
                .lines()
                .map(|line| line.rsplit(' ').next().unwrap().to_owned());
            words.collect()
        }
    }

    /// Logs to lines of which nobody takes care, and tells what was written.
    fn logged(at_once: bool, log: impl FnOnce(&StandardError, &Written)) {
        let written = Written::default();
        written.1.store(usize::MAX, Ordering::SeqCst);
        let lines = StandardError::new(at_once, Box::new(written.clone()));
        let layer = tracing_subscriber::fmt::layer().with_ansi(false);
        let subscriber = tracing_subscriber::registry().with(layer.with_writer(lines.clone()));
        tracing::subscriber::with_default(subscriber, || log(&lines, &written));
    }

    #[test]
    fn a_line_waits_for_others_and_a_warning_takes_them_with_it_in_their_order() {
        logged(false, |lines, written| {
            tracing::info!("one");
            tracing::info!("two");
            assert!(written.lines().is_empty());
            tracing::warn!("three");
            assert_eq!(written.lines(), ["one", "two", "three"]);
            tracing::info!("four");
            lines.flush();
            assert_eq!(written.lines()[3..], ["four"]);
            tracing::error!("five");
            assert_eq!(written.lines()[4..], ["five"]);
        });
    }

    #[test]
    fn on_a_terminal_no_line_waits() {
        logged(true, |_, written| {
            tracing::info!("one");
            assert_eq!(written.lines(), ["one"]);
        });
    }

    #[test]
    fn lines_without_end_leave_in_bounded_memory() {
        logged(false, |lines, written| {
            for _ in 0..5_000 {
                tracing::info!("line");
                assert!(lines.0.waiting().bytes.len() < WAITING_BYTES_MAX);
            }
            lines.flush();
            assert_eq!(written.lines().len(), 5_000);
        });
    }

    #[test]
    fn a_reader_that_takes_nothing_for_a_while_gets_whole_lines_in_their_order() {
        logged(false, |lines, written| {
            written.1.store(100, Ordering::SeqCst);
            let said = 100_000;
            for number in 0..said {
                tracing::warn!("{number}");
                assert!(lines.0.waiting().bytes.len() < STUCK_BYTES_MAX + 200);
            }
            written.1.store(usize::MAX, Ordering::SeqCst);
            lines.flush();
            tracing::warn!("last");
            let lines = written.lines();
            let (last, numbers) = lines.split_last().unwrap();
            assert_eq!(last, "last");
            assert!(numbers.len() < said, "too many are dropped");
            let expected: Vec<String> = (0..numbers.len()).map(|one| one.to_string()).collect();
            assert_eq!(numbers, expected);
        });
    }

    #[test]
    fn what_waits_leaves_without_more() {
        logged(false, |lines, written| {
            let inner = lines.0.clone();
            std::thread::spawn(move || inner.run());
            tracing::info!("one");
            let until = std::time::Instant::now() + Duration::from_secs(20);
            while written.lines().is_empty() && std::time::Instant::now() < until {
                std::thread::yield_now();
            }
            assert_eq!(written.lines(), ["one"]);
        });
    }
}
