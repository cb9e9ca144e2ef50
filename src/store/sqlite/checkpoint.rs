//! Checkpoints beside the writer: what it commits goes to the write-ahead log (WAL), and from there
//! into the database file on a thread of its own, so that no flush waits for it. The thread has a
//! connection of the pool for the time of a checkpoint.
//!
//! SQLite reuses the WAL from its start only when a checkpoint has caught up with the writer. A
//! writer that never rests would never let it, so the writer finishes a checkpoint that is nearly
//! done, and waits for one if the WAL has grown too long.
//!
//! # Watching for idle times
//!
//! The thread empties the WAL when there was no commit for [`IDLE_AFTER`], so that the database
//! file alone is complete and small. It must not miss the last commit, and the writer must not wake
//! it at each one:
//!
//! 1. The writer commits, counts the commit, and sets `is_watching`. If it was `false`, it wakes
//!    the thread.
//! 2. The thread clears `is_watching`, and then checkpoints.
//!
//! Either the thread's swap comes after the writer's, and the checkpoint sees the commit; or it
//! comes before, and the writer finds `false` and wakes the thread.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel::sql_types::Integer;

use crate::store::reads::Deadline;
use crate::store::sqlite::pool::{Connections, Purpose};

/// Pages of the WAL that are not in the database file yet, after which a checkpoint begins:
/// SQLite's own limit.
const EVERY_PAGES: u64 = 1000;
/// The writer itself copies this many pages at most, in a few milliseconds.
const PAGES_TO_FINISH: u64 = 128;
/// A reader can keep a checkpoint from copying all pages: the next attempt begins this much later.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Pages of the WAL beyond which the writer waits for a checkpoint: 32 MiB of 4 KiB pages.
const WAIT_AT_PAGES: u64 = 8192;
/// Time without a commit after which the WAL is emptied.
const IDLE_AFTER: Duration = Duration::from_secs(5);
/// Longest wait of a checkpoint for a connection.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time between two attempts to empty the WAL while a reader prevents it.
const LONGEST_IDLE: Duration = Duration::from_secs(640);

/// Runs checkpoints on a thread of its own, which ends with this value.
pub(crate) struct Checkpointer {
    state: Arc<State>,
    requested_at: Instant,
    /// At how many pages the writer waits next.
    wait_at: u64,
    request: Option<SyncSender<Request>>,
    thread: Option<JoinHandle<()>>,
}

struct State {
    connections: Arc<Connections>,
    /// Held during a checkpoint: SQLite refuses a second one at the same time. Only taken with a
    /// connection in hand, so that the writer, which has one, never waits for a thread that waits
    /// for one.
    running: Mutex<()>,
    /// Pages that the last checkpoint could not copy.
    left: AtomicU64,
    /// Number of commits. The thread compares two readings of it, and does not use its value.
    commits: AtomicU64,
    /// `true` while the thread looks for a time without commits; the writer then need not wake it.
    is_watching: AtomicBool,
}

/// A message from the writer to the thread.
enum Request {
    /// There was a commit after a time without.
    Watch,
    Checkpoint,
}

/// Kind of checkpoint.
#[derive(Clone, Copy)]
enum Mode {
    /// Copies nothing, but counts. SQLite before 3.51 takes it for `Passive`, which is slower and
    /// harms nothing.
    Count,
    /// Copies what no reader prevents, and waits for nothing.
    Passive,
    /// Copies all pages and empties the file, unless a reader or writer prevents it.
    Truncate,
}

/// Number of pages in the WAL.
#[derive(Clone, Copy)]
struct Pages {
    all: u64,
    copied: u64,
}

impl Pages {
    /// Returns the pages that are not in the database file yet.
    fn left(self) -> u64 {
        self.all.saturating_sub(self.copied)
    }
}

impl Checkpointer {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// The system gives no thread.
    pub(crate) fn start(connections: Arc<Connections>) -> std::io::Result<Self> {
        let state = Arc::new(State {
            connections,
            running: Mutex::new(()),
            left: AtomicU64::new(0),
            commits: AtomicU64::new(0),
            is_watching: AtomicBool::new(false),
        });
        // One place: a request that finds it taken is dropped, because the thread comes to the WAL
        // anyway.
        let (request, requests) = sync_channel(1);
        let thread = Builder::new()
            .name("failure-logger-checkpoint".into())
            .spawn({
                let state = Arc::clone(&state);
                move || run(&state, &requests)
            })?;
        Ok(Self {
            state,
            requested_at: Instant::now(),
            wait_at: WAIT_AT_PAGES,
            request: Some(request),
            thread: Some(thread),
        })
    }

    /// Has the WAL checkpointed if it is long. The writer calls it before a transaction, with its
    /// connection. Waits only if the WAL has grown too long.
    ///
    /// Four cases, by the pages of the WAL:
    ///
    /// - Long beyond `wait_at`: the writer checkpoints itself, or waits for the checkpoint that
    ///   runs.
    /// - Nearly copied: the writer copies the last pages, so that SQLite can begin the WAL from its
    ///   start.
    /// - A thousand pages more than after the last checkpoint: the thread gets a request.
    /// - Otherwise nothing.
    pub(crate) fn before_transaction(&mut self, conn: &mut SqliteConnection) {
        let Some(pages) = checkpoint(conn, Mode::Count) else {
            return;
        };
        let left = pages.left();
        if pages.all < WAIT_AT_PAGES {
            self.wait_at = WAIT_AT_PAGES;
        }
        if pages.all >= self.wait_at {
            // If a reader holds on to the WAL, waiting does not help: not again before it has
            // grown as much as before.
            self.wait_at = self
                .state
                .checkpoint_with(conn, Mode::Passive)
                .map_or(pages.all, |pages| pages.all)
                + WAIT_AT_PAGES;
        } else if pages.all >= EVERY_PAGES && (1..=PAGES_TO_FINISH).contains(&left) {
            checkpoint(conn, Mode::Passive);
        } else if left >= EVERY_PAGES
            && (left >= self.state.left.load(Ordering::Acquire) + EVERY_PAGES
                || self.requested_at.elapsed() >= RETRY_AFTER)
            && self.request(Request::Checkpoint)
        {
            self.requested_at = Instant::now();
        }
    }

    /// Notes a commit. The writer calls it after each one.
    pub(crate) fn committed(&self) {
        // Release, and before the swap: a thread that sees the commit's number does not take the
        // time for idle.
        self.state.commits.fetch_add(1, Ordering::Release);
        // After the commit: the thread clears it before its last look, which then covers the
        // commit.
        if !self.state.is_watching.swap(true, Ordering::AcqRel) {
            self.request(Request::Watch);
        }
    }

    /// Sends a request. Returns `false` if the thread has something to do already, after which it
    /// watches as well.
    fn request(&self, what: Request) -> bool {
        self.request
            .as_ref()
            .is_some_and(|request| request.try_send(what).is_ok())
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.request = None;
        if let Some(thread) = self.thread.take() {
            // It has nothing to say, not even if it panicked.
            let _ = thread.join();
        }
    }
}

/// Checkpoints when the writer asks for it, and once when there was no commit for a while. Then it
/// sleeps until the next commit.
fn run(state: &State, requests: &Receiver<Request>) {
    let Ok(mut request) = requests.recv() else {
        return;
    };
    loop {
        if matches!(request, Request::Checkpoint) {
            state.checkpoint(Mode::Passive);
        }
        request = match watch(state, requests) {
            Some(request) => request,
            None => return,
        };
    }
}

/// Waits for the next request, and empties the WAL when there was no commit for a while. `None`:
/// the logger ends.
fn watch(state: &State, requests: &Receiver<Request>) -> Option<Request> {
    let mut pause = IDLE_AFTER;
    loop {
        let commits = state.commits.load(Ordering::Acquire);
        match requests.recv_timeout(pause) {
            Ok(request) => return Some(request),
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if state.commits.load(Ordering::Acquire) != commits {
            pause = IDLE_AFTER;
            continue;
        }
        // Acquire: the checkpoint sees each commit whose writer found it set.
        state.is_watching.swap(false, Ordering::AcqRel);
        if state
            .checkpoint(Mode::Truncate)
            .is_some_and(|pages| pages.left() == 0)
        {
            failpoint!("checkpoint-idle");
            return requests.recv().ok();
        }
        pause = (2 * pause).min(LONGEST_IDLE);
    }
}

impl State {
    /// Checkpoints with a connection of the pool. `None` also if there is none: the writer asks
    /// once more, or waits for a checkpoint by itself if the WAL has grown too long.
    fn checkpoint(&self, mode: Mode) -> Option<Pages> {
        let deadline = Deadline::after(CONNECTION_TIMEOUT);
        let mut conn = self.connections.get(Purpose::Checkpoint, deadline).ok()?;
        self.checkpoint_with(&mut conn, mode)
    }

    /// Checkpoints with `conn`, while no other checkpoint of this process runs. Notes the pages
    /// that are left.
    fn checkpoint_with(&self, conn: &mut SqliteConnection, mode: Mode) -> Option<Pages> {
        let _running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let pages = checkpoint(conn, mode)?;
        self.left.store(pages.left(), Ordering::Release);
        Some(pages)
    }
}

/// Empties the WAL, so that the database file has all tables and rows, unless a reader or writer
/// prevents it. A `conn` with a busy timeout would wait for them.
pub(crate) fn empty(conn: &mut SqliteConnection) {
    checkpoint(conn, Mode::Truncate);
}

/// Checkpoints. `None`: there is no WAL, or another process is just checkpointing or recovering it.
///
/// The pragma returns three numbers: busy, pages in the WAL, and pages that are copied. The first
/// one is left out, because the other two say the same.
fn checkpoint(conn: &mut SqliteConnection, mode: Mode) -> Option<Pages> {
    #[derive(QueryableByName)]
    struct Outcome {
        #[diesel(sql_type = Integer)]
        log: i32,
        #[diesel(sql_type = Integer)]
        checkpointed: i32,
    }
    let statement = match mode {
        Mode::Count => "PRAGMA wal_checkpoint(NOOP)",
        Mode::Passive => "PRAGMA wal_checkpoint(PASSIVE)",
        Mode::Truncate => "PRAGMA wal_checkpoint(TRUNCATE)",
    };
    match diesel::sql_query(statement).get_result::<Outcome>(conn) {
        Ok(Outcome { log, checkpointed }) => Some(Pages {
            all: u64::try_from(log).ok()?,
            copied: u64::try_from(checkpointed).ok()?,
        }),
        // The next one does it; a database that cannot be written fails the flush, and is said
        // there.
        Err(error) => {
            tracing::debug!(%error, "no checkpoint");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use diesel::connection::SimpleConnection as _;
    use scheduled_thread_pool::ScheduledThreadPool;

    use super::*;
    use crate::store::sqlite::pool::{self, Owner};

    struct Database {
        _folder: tempfile::TempDir,
        url: String,
    }

    impl Database {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let url = folder.path().join("c.db").to_str().unwrap().to_owned();
            let database = Self {
                _folder: folder,
                url,
            };
            database
                .connect()
                .batch_execute(
                    "PRAGMA journal_mode = WAL; CREATE TABLE t (n INTEGER PRIMARY KEY, bytes BLOB)",
                )
                .unwrap();
            database
        }

        fn connect(&self) -> SqliteConnection {
            let mut conn = SqliteConnection::establish(&self.url).unwrap();
            conn.batch_execute("PRAGMA busy_timeout = 5000; PRAGMA wal_autocheckpoint = 0")
                .unwrap();
            conn
        }

        fn checkpointer(&self) -> Checkpointer {
            let pool =
                pool::build(self.url.clone(), 2, Arc::new(ScheduledThreadPool::new(1))).unwrap();
            Checkpointer::start(Connections::new(pool, Owner::Logger, None)).unwrap()
        }

        fn journal(&self) -> u64 {
            std::fs::metadata(format!("{}-wal", self.url)).map_or(0, |file| file.len())
        }
    }

    /// Adds about as many pages to the WAL, in one transaction.
    fn write(conn: &mut SqliteConnection, pages: u64) {
        conn.batch_execute(&format!(
            "INSERT INTO t (bytes) VALUES (zeroblob({}))",
            4092 * pages
        ))
        .unwrap();
    }

    fn count(conn: &mut SqliteConnection) -> Pages {
        checkpoint(conn, Mode::Count).unwrap()
    }

    fn eventually(what: &str, mut done: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !done() {
            assert!(
                begin.elapsed() < Duration::from_secs(60),
                "still waiting: {what}"
            );
            std::thread::yield_now();
        }
    }

    #[test]
    fn checkpoint_begins_at_a_thousand_pages() {
        let database = Database::new();
        let mut conn = database.connect();
        let mut checkpointer = database.checkpointer();
        for pages in [400, 400] {
            write(&mut conn, pages);
            checkpointer.before_transaction(&mut conn);
        }
        assert_eq!(checkpointer.state.left.load(Ordering::Acquire), 0);
        assert_eq!(count(&mut conn).copied, 0);
        write(&mut conn, 400);
        checkpointer.before_transaction(&mut conn);
        eventually("the checkpoint", || count(&mut conn).left() == 0);
    }

    #[test]
    fn writer_finishes_a_checkpoint_that_is_nearly_done() {
        let database = Database::new();
        let mut conn = database.connect();
        let mut checkpointer = database.checkpointer();
        write(&mut conn, 1200);
        // All pages are copied, but the reader keeps SQLite from reusing the WAL from its start.
        let mut reader = database.connect();
        reader
            .batch_execute("BEGIN; SELECT count(*) FROM t")
            .unwrap();
        checkpoint(&mut conn, Mode::Passive).unwrap();
        write(&mut conn, 10);
        reader.batch_execute("ROLLBACK").unwrap();
        assert!(count(&mut conn).all > 1200 && count(&mut conn).left() > 0);
        checkpointer.before_transaction(&mut conn);
        assert_eq!(count(&mut conn).left(), 0);
    }

    #[test]
    fn writer_waits_for_a_checkpoint_of_a_long_journal() {
        let database = Database::new();
        let mut conn = database.connect();
        let mut checkpointer = database.checkpointer();
        write(&mut conn, WAIT_AT_PAGES + 100);
        checkpointer.before_transaction(&mut conn);
        assert_eq!(count(&mut conn).left(), 0);
    }

    #[test]
    fn journal_is_emptied_once_after_the_last_commit() {
        let database = Database::new();
        let mut conn = database.connect();
        let checkpointer = database.checkpointer();
        for _ in 0..2 {
            write(&mut conn, 10);
            checkpointer.committed();
            assert!(database.journal() > 0);
            eventually("the checkpoint", || database.journal() == 0);
            // It sleeps until the next commit.
            assert!(!checkpointer.state.is_watching.load(Ordering::Acquire));
        }
    }
}
