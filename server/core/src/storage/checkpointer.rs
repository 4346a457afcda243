//! Copies what commits left in the write-ahead log into the database (SQLite), beside the commits
//! instead of within one of them.
//!
//! By itself SQLite does it in the commit that finds a thousand frames in the log. That one takes
//! some milliseconds longer, and all who wait for the disk wait for it. Here a connection of its
//! own copies while commits go on; what they add meanwhile is little, and is copied while none
//! runs. The next commit begins the log anew then, so that it does not grow
//! (<https://www.sqlite.org/wal.html>, section 3).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sqlx::{Connection, SqliteConnection};
use tokio::sync::{Mutex, Notify};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::sqlite::{PAGE_BYTES, Writer};

/// Frames at which the log is copied: as many as by SQLite's own default. Twice as many were no
/// faster, and what waits for the disk meanwhile waits twice as long.
const FRAMES: usize = 1000;
/// Frames at which SQLite copies within a commit all the same, should this one be late.
pub(super) const FRAMES_LATE: u32 = 4000;
/// No more than so many frames are copied while commits wait, unless commits are always faster.
const FRAMES_HELD: usize = 100;
/// Times that the end of the log is approached.
const PASSES_MAX: usize = 4;
/// Pages that a commit of segments writes beside those that it fills: that of the heads, and the
/// last one of the tree.
const PAGES_BESIDE: usize = 2;

const COPY: &str = "pragma wal_checkpoint(passive)";
/// Tells only how many frames the log has.
const ASK: &str = "pragma wal_checkpoint(noop)";

/// What copies, until it is closed or dropped.
pub(super) struct Checkpointer {
    log: Arc<Log>,
    stop: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// What is known of the write-ahead log.
#[derive(Default)]
pub(super) struct Log {
    /// Frames since it was copied last, about.
    frames: AtomicUsize,
    grown: Notify,
}

impl Log {
    /// A commit has added so many.
    fn add(&self, frames: usize) {
        if self.frames.fetch_add(frames, Ordering::Relaxed) + frames >= FRAMES {
            self.grown.notify_one();
        }
    }

    /// A transaction has added frames; nobody knows how many.
    pub(super) fn add_some(&self) {
        self.grown.notify_one();
    }

    fn is_full(&self) -> bool {
        self.frames.load(Ordering::Relaxed) >= FRAMES
    }
}

impl Checkpointer {
    /// `log` is told of each commit by who makes it.
    pub(super) fn start(
        connection: SqliteConnection,
        writer: Arc<Mutex<Writer>>,
        log: Arc<Log>,
    ) -> Self {
        let stop = CancellationToken::new();
        let task = tokio::spawn(run(connection, writer, log.clone(), stop.clone()));
        Checkpointer {
            log,
            stop,
            task: Mutex::new(Some(task)),
        }
    }

    /// A commit of segments has stored so many bytes: what fills pages also changes some of the
    /// tree above them.
    pub(super) fn stored(&self, bytes: usize) {
        self.log
            .add(bytes / PAGE_BYTES as usize * 3 / 2 + PAGES_BESIDE);
    }

    /// Ends with its connection closed.
    pub(super) async fn close(&self) {
        self.stop.cancel();
        if let Some(task) = self.task.lock().await.take() {
            // It has said itself what went wrong.
            let _ = task.await;
        }
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn run(
    mut connection: SqliteConnection,
    writer: Arc<Mutex<Writer>>,
    log: Arc<Log>,
    stop: CancellationToken,
) {
    while stop
        .run_until_cancelled(log.grown.notified())
        .await
        .is_some()
    {
        if let Err(error) = look(&mut connection, &writer, &log).await {
            tracing::warn!("the write-ahead log was not copied, and is later: {error}");
        }
    }
    // What is left is copied when the last connection closes.
    let _ = connection.close().await;
}

async fn look(
    connection: &mut SqliteConnection,
    writer: &Mutex<Writer>,
    log: &Log,
) -> sqlx::Result<()> {
    if !log.is_full() {
        let asked = sqlx::query_as(ASK).fetch_one(&mut *connection).await;
        let (_, frames, copied): (i64, i64, i64) = asked?;
        let left = usize::try_from(frames - copied).unwrap_or_default();
        log.frames.store(left, Ordering::Relaxed);
    }
    match log.is_full() {
        true => copy(connection, writer, log).await,
        false => Ok(()),
    }
}

async fn copy(
    connection: &mut SqliteConnection,
    writer: &Mutex<Writer>,
    log: &Log,
) -> sqlx::Result<()> {
    for _ in 0..PASSES_MAX {
        log.frames.store(0, Ordering::Relaxed);
        sqlx::raw_sql(COPY).execute(&mut *connection).await?;
        if log.frames.load(Ordering::Relaxed) <= FRAMES_HELD {
            break;
        }
    }
    let held = writer.lock().await;
    log.frames.store(0, Ordering::Relaxed);
    let copied = sqlx::raw_sql(COPY).execute(connection).await;
    drop(held);
    copied.map(|_| ())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Options;
    use super::super::sqlite::Sqlite;
    use super::*;

    struct Place(std::path::PathBuf);

    impl Place {
        /// With a log that is full of commits that nobody counted.
        async fn open() -> (Place, Sqlite, rusqlite::Connection) {
            let folder = std::env::temp_dir().join(crate::id::new("hubtest"));
            let options = Options {
                url: String::new(),
                connections_max: 1,
                size_bytes_max: 0,
            };
            let sqlite = Sqlite::open(folder.join("hub.db"), &options).await.unwrap();
            let direct = sqlite.direct().unwrap();
            direct.execute("create table t (data blob)", []).unwrap();
            fill(&direct, FRAMES);
            (Place(folder), sqlite, direct)
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// Commits `count` pages of bytes, one after the other.
    fn fill(direct: &rusqlite::Connection, count: usize) {
        for _ in 0..count {
            let page = vec![1u8; PAGE_BYTES as usize];
            direct.execute("insert into t values (?)", [page]).unwrap();
        }
    }

    /// Frames that the log has.
    fn frames(direct: &rusqlite::Connection) -> i64 {
        direct.query_row(ASK, [], |row| row.get(1)).unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_commit_behind_a_copy_begins_the_log_anew() {
        let (_place, sqlite, direct) = Place::open().await;
        // These commits copied nothing themselves.
        let path = sqlite.path.with_extension("db-wal");
        let before = std::fs::metadata(&path).unwrap().len();
        assert!(before > FRAMES as u64 * u64::from(PAGE_BYTES));
        let mut own = SqliteConnection::connect(&format!("sqlite:{}", sqlite.path.display()))
            .await
            .unwrap();
        copy(&mut own, &sqlite.writer, &Log::default())
            .await
            .unwrap();
        fill(&direct, 1);
        assert!(frames(&direct) < 10);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), before);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_log_that_is_full_is_copied_beside_the_commits() {
        let (_place, sqlite, direct) = Place::open().await;
        sqlite.stored(FRAMES * PAGE_BYTES as usize);
        let copied = async {
            while sqlite.checkpointer.log.frames.load(Ordering::Relaxed) > 0 {
                tokio::task::yield_now().await;
            }
        };
        let patience = Duration::from_secs(60);
        tokio::time::timeout(patience, copied).await.unwrap();
        // Not before the copy under way has ended.
        sqlite.close().await;
        fill(&direct, 1);
        assert!(frames(&direct) < 10);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_transaction_added_is_found_out() {
        let (_place, sqlite, direct) = Place::open().await;
        let mut writer = sqlite.writer().await.unwrap();
        writer.begin().await.unwrap();
        writer.commit().await.unwrap();
        drop(writer);
        let begun_anew = async {
            loop {
                let held = sqlite.writer().await.unwrap();
                fill(&direct, 1);
                drop(held);
                if frames(&direct) < 100 {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), begun_anew)
            .await
            .unwrap();
    }
}
