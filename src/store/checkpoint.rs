//! Checkpoints beside the writer: what it commits goes to the write-ahead log (WAL), and from
//! there into the database file on a thread of its own, so that no flush waits for it.
//!
//! SQLite begins the WAL anew only when a checkpoint has caught up with the writer. A writer that
//! never rests would never let it, so beyond a limit the writer waits for one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel::sql_types::Integer;

/// Bytes of committed rows after which a checkpoint begins: about SQLite's own 1000 pages.
const EVERY_BYTES: usize = 4 << 20;
/// How soon a WAL that is too long is checkpointed again.
const SOON: Duration = Duration::from_secs(1);
/// Pages of the WAL beyond which the writer waits for a checkpoint: 32 MiB of 4 KiB pages.
const WAIT_AT_PAGES: u64 = 8192;

/// Runs checkpoints on a thread of its own, which ends with this value.
pub(super) struct Checkpointer {
    state: Arc<State>,
    /// Bytes committed since a checkpoint was last asked for.
    bytes: usize,
    /// When that was.
    asked_at: Instant,
    /// At how many pages the writer waits next.
    wait_at: u64,
    wake: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct State {
    conn: Mutex<SqliteConnection>,
    /// Length of the WAL at the last checkpoint, in pages.
    pages: AtomicU64,
}

impl Checkpointer {
    /// `conn` must not checkpoint by itself, nor may the writer's.
    pub(super) fn start(conn: SqliteConnection) -> std::io::Result<Self> {
        let state = Arc::new(State { conn: Mutex::new(conn), pages: AtomicU64::new(0) });
        let (wake, woken) = sync_channel(1);
        let thread = Builder::new().name("failure-logger-checkpoint".into()).spawn({
            let state = Arc::clone(&state);
            move || run(&state, &woken)
        })?;
        Ok(Self {
            state,
            bytes: 0,
            asked_at: Instant::now(),
            wait_at: WAIT_AT_PAGES,
            wake: Some(wake),
            thread: Some(thread),
        })
    }

    /// To be told by the writer what it has committed, between two transactions. Waits only if the
    /// WAL has grown too long.
    pub(super) fn committed(&mut self, bytes: usize) {
        self.bytes += bytes;
        // A journal that a reader let grow is worked off soon after, however little is written.
        let too_long = self.state.pages.load(Ordering::Acquire) >= WAIT_AT_PAGES;
        if self.bytes < EVERY_BYTES && !(too_long && self.asked_at.elapsed() >= SOON) {
            return;
        }
        self.bytes = 0;
        self.asked_at = Instant::now();
        let asked = self.wake.as_ref().is_some_and(|wake| wake.try_send(()).is_ok());
        let pages = self.state.pages.load(Ordering::Acquire);
        if pages < WAIT_AT_PAGES {
            self.wait_at = WAIT_AT_PAGES;
        } else if pages >= self.wait_at || !asked {
            self.state.checkpoint();
            // If a reader holds on to the WAL, waiting does not help: not again before it has
            // grown as much as before.
            self.wait_at = self.state.pages.load(Ordering::Acquire) + WAIT_AT_PAGES;
        }
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.wake = None;
        if let Some(thread) = self.thread.take() {
            // It has nothing to say, not even if it panicked.
            let _ = thread.join();
        }
    }
}

fn run(state: &State, woken: &Receiver<()>) {
    while woken.recv().is_ok() {
        state.checkpoint();
    }
}

impl State {
    fn checkpoint(&self) {
        #[derive(QueryableByName)]
        struct Outcome {
            #[diesel(sql_type = Integer)]
            log: i32,
        }
        let mut conn = self.conn.lock().unwrap_or_else(PoisonError::into_inner);
        match diesel::sql_query("PRAGMA wal_checkpoint(PASSIVE)").get_result::<Outcome>(&mut *conn) {
            Ok(Outcome { log }) => self.pages.store(u64::try_from(log).unwrap_or(0), Ordering::Release),
            // The next one does it; a database that cannot be written fails the flush, and is said there.
            Err(error) => tracing::debug!(%error, "no checkpoint"),
        }
    }
}
