use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::mpsc;

use super::*;

const NAME: &str = "tested";
const SECOND: Duration = Duration::from_secs(1);

fn up(workers: &Workers) -> bool {
    let health = workers.health();
    assert_eq!(health.len(), 1);
    health[0].up
}

/// Lets the tasks of this thread go on until none can.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn rounds_come_at_once_and_then_at_their_interval() {
    let clock = Clock::manual(0);
    let workers = Workers::new(clock.clone());
    let (done, mut rounds) = mpsc::unbounded_channel();
    workers.every(NAME, SECOND, move || {
        let done = done.clone();
        async move { done.send(()).map_err(|_| "nobody counts") }
    });
    rounds.recv().await.unwrap();
    settle().await;
    assert!(rounds.is_empty(), "the interval has not passed");
    clock.advance(SECOND);
    rounds.recv().await.unwrap();
    assert!(up(&workers));
    workers.stop().await;
}

#[tokio::test]
async fn a_worker_that_panics_is_down_until_its_restart_passes() {
    let clock = Clock::manual(0);
    let workers = Workers::new(clock.clone());
    let count = Arc::new(AtomicU32::new(0));
    let counted = count.clone();
    workers.every(NAME, SECOND, move || {
        let number = counted.fetch_add(1, Ordering::Relaxed);
        assert!(number != 0, "on purpose, before there is a future");
        async move {
            assert!(number != 1, "on purpose");
            if number == 2 {
                Err("on purpose")
            } else {
                Ok(())
            }
        }
    });
    for (restarts, pause) in [(1, 100), (2, 200), (3, 400)] {
        settle().await;
        assert_eq!(count.load(Ordering::Relaxed), restarts);
        assert!(!up(&workers));
        clock.advance(Duration::from_millis(pause - 1));
        settle().await;
        assert_eq!(count.load(Ordering::Relaxed), restarts, "too early");
        clock.advance(Duration::from_millis(1));
    }
    settle().await;
    assert!(up(&workers));
    workers.stop().await;
}

#[tokio::test]
async fn the_pause_before_a_restart_ends_at_five_seconds() {
    let workers = Workers::new(Clock::manual(0));
    workers.begin(NAME);
    let pauses: Vec<_> = (0..12).map(|_| workers.failed(NAME, "error")).collect();
    assert_eq!(pauses[0], PAUSE_MIN);
    assert_eq!(pauses[5], Duration::from_millis(3_200));
    assert_eq!(pauses[6..], [PAUSE_MAX; 6]);
    (0..100).for_each(|_| assert_eq!(workers.failed(NAME, "error"), PAUSE_MAX));
    workers.passed(NAME, Duration::ZERO);
    assert_eq!(workers.failed(NAME, "error"), PAUSE_MIN);
}

#[tokio::test]
async fn a_worker_that_ends_or_hangs_is_down() {
    let clock = Clock::manual(0);
    let ended = Workers::new(clock.clone());
    ended.spawn(NAME, |_| async { Ok::<(), String>(()) });
    let hangs = Workers::new(clock.clone());
    hangs.spawn(NAME, |turn| async move {
        turn.passed_for(SECOND);
        turn.stopped().cancelled().await;
        Ok::<(), String>(())
    });
    settle().await;
    assert!(!up(&ended));
    assert!(up(&hangs));
    clock.advance(SILENCE_MAX + SECOND);
    assert!(up(&hangs));
    clock.advance(Duration::from_micros(1));
    assert!(!up(&hangs));
    hangs.stop().await;
    ended.stop().await;
}
