//! The pool of a store: the writer, the readers and the checkpoints draw on one set of connections.
//!
//! Invariants:
//!
//! - No more connections are open than the pool has places. The writer needs one at a time, and
//!   readers and checkpoints leave one place to it. In a pool of one place they take turns with the
//!   writer.
//! - A connection returns with the settings that it came with: a checkout restores what it set, or
//!   closes the connection.
//! - Order of locks: first the place in the pool, then a checkpoint's own lock.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use diesel::connection::{AnsiTransactionManager, SimpleConnection as _, TransactionManager as _};
use diesel::prelude::*;
use diesel::r2d2::{self, ConnectionManager, PooledConnection};
use scheduled_thread_pool::ScheduledThreadPool;

use crate::error::StoreError;
use crate::store::reads::Deadline;
use crate::store::sqlite::errors::classify;
use crate::store::sqlite::file::Identity;
use crate::store::sqlite::functions;

/// Longest wait of a statement for a lock. Transactions of loggers take milliseconds; one of
/// another program that takes longer leads to `Retry`.
pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time that a query keeps the only connection of a pool from the writer.
const LONGEST_TURN: Duration = Duration::from_secs(1);
/// Longest wait of a reader for a lock: it tries again until its own deadline.
const READER_BUSY_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait of the writer for a connection. Longer than a statement waits, so that SQLite's own
/// error comes first.
pub(crate) const WRITER_TIMEOUT: Duration = Duration::from_secs(6);
/// SQLite's own checkpoints, for connections of an application: 64 MiB of 4 KiB pages. The logger
/// checkpoints long before, and SQLite does when the logger has ended.
pub(crate) const APPLICATION_AUTOCHECKPOINT: i64 = 16384;

pub(crate) type Pool = r2d2::Pool<ConnectionManager<SqliteConnection>>;

/// Statements for each new connection of the logger's own pool.
pub(crate) const STATEMENTS: &str = "
    PRAGMA synchronous = NORMAL;
    PRAGMA foreign_keys = ON;
    PRAGMA temp_store = MEMORY;
    PRAGMA cache_size = -8000;
    PRAGMA wal_autocheckpoint = 0;
    PRAGMA journal_size_limit = 67108864;";

/// Sets up each new connection of the logger's own pool.
#[derive(Debug)]
struct Customizer;

impl r2d2::CustomizeConnection<SqliteConnection, r2d2::Error> for Customizer {
    fn on_acquire(&self, conn: &mut SqliteConnection) -> Result<(), r2d2::Error> {
        customize(conn).map_err(r2d2::Error::QueryError)
    }
}

/// Sets up a connection. The busy timeout comes first, because the statements after it may meet a
/// lock.
fn customize(conn: &mut SqliteConnection) -> QueryResult<()> {
    conn.batch_execute(&format!(
        "PRAGMA busy_timeout = {};{STATEMENTS}",
        BUSY_TIMEOUT.as_millis()
    ))?;
    functions::register(conn)
}

/// Sets up a connection of a pool that an application builds, and uses after the logger has ended.
pub(crate) fn customize_for_application(conn: &mut SqliteConnection) -> QueryResult<()> {
    customize(conn)?;
    conn.batch_execute(&format!(
        "PRAGMA wal_autocheckpoint = {APPLICATION_AUTOCHECKPOINT}"
    ))
}

/// The pool retries by itself; the caller that waits for a connection gets the error that counts.
#[derive(Debug)]
struct LogAtDebug;

impl r2d2::HandleError<r2d2::Error> for LogAtDebug {
    fn handle_error(&self, error: r2d2::Error) {
        tracing::debug!(%error, "the pool could not connect, and tries again");
    }
}

/// Builds a pool of the logger's own, which opens its connections on `threads` when they are
/// needed.
pub(crate) fn build(
    url: String,
    size: u32,
    threads: Arc<ScheduledThreadPool>,
) -> Result<Pool, r2d2::PoolError> {
    r2d2::Pool::builder()
        .max_size(size)
        // No connection is opened before it is needed: a command that writes once needs one.
        .min_idle(Some(0))
        // Connections to a file neither die nor age.
        .test_on_check_out(false)
        .max_lifetime(None)
        .idle_timeout(None)
        .connection_timeout(BUSY_TIMEOUT)
        .connection_customizer(Box::new(Customizer))
        .error_handler(Box::new(LogAtDebug))
        .thread_pool(threads)
        .build(ConnectionManager::new(url))
}

/// Returns the longest wait for a connection of the pool: its own timeout, within limits.
pub(crate) fn timeout(pool: &Pool) -> Duration {
    pool.connection_timeout().min(WRITER_TIMEOUT)
}

/// Returns the error of the last attempt to connect. `None`: there was none, and all connections
/// are in use.
pub(crate) fn last_error(error: &r2d2::PoolError) -> Option<String> {
    let text = error.to_string();
    text.split_once(": ").map(|(_, cause)| cause.to_owned())
}

/// Says that an application's pool has no connection left.
pub(crate) fn all_in_use(size: u32) -> String {
    format!(
        "all {size} connections of the pool are in use; return them sooner, or build the pool \
         with more"
    )
}

/// The owner of the pool, which uses its connections as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    Logger,
    Application,
}

/// Purpose of a checkout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Write,
    Read,
    Checkpoint,
}

impl Purpose {
    fn class(self) -> Class {
        match self {
            Self::Write => Class::Writer,
            Self::Read | Self::Checkpoint => Class::Background,
        }
    }
}

/// Reason why a checkout failed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoConnection {
    /// The store closes, or is closed. Only readers and checkpoints get this; the writer closes it.
    Closed,
    /// All are in use until the deadline.
    Busy(String),
    Failed(StoreError),
}

impl From<NoConnection> for StoreError {
    fn from(error: NoConnection) -> Self {
        match error {
            NoConnection::Closed => Self::Retry("the store is closed".into()),
            NoConnection::Busy(cause) => Self::Retry(cause),
            NoConnection::Failed(error) => error,
        }
    }
}

/// The connections of a store that is open.
pub(crate) struct Connections {
    /// `None` after the end of the store. Used with a place in hand, so that it ends with the last
    /// place.
    pool: Mutex<Option<Pool>>,
    size: u32,
    owner: Owner,
    /// The file that they lead to; `None` in memory.
    identity: Option<Identity>,
    admission: Mutex<Admission>,
    changed: Condvar,
}

impl Connections {
    /// Returns the connections of `pool`, which lead to the file `identity`; `None` in memory.
    pub(crate) fn new(pool: Pool, owner: Owner, identity: Option<Identity>) -> Arc<Self> {
        let size = pool.max_size();
        let admission = Mutex::new(Admission::new(size));
        Arc::new(Self {
            pool: Mutex::new(Some(pool)),
            size,
            owner,
            identity,
            admission,
            changed: Condvar::new(),
        })
    }

    /// Waits for a connection until the deadline.
    pub(crate) fn get(
        self: &Arc<Self>,
        purpose: Purpose,
        deadline: Deadline,
    ) -> Result<Checkout, NoConnection> {
        let place = self.admit(purpose.class(), deadline)?;
        // With the place in hand, and never the other way round: a caller that held a connection
        // while it waited for a place would keep the writer waiting for that connection.
        let pool = lock(&self.pool).clone().ok_or(NoConnection::Closed)?;
        let timeout = match self.owner {
            Owner::Logger => deadline.left(),
            // Its connections may be in use for other things.
            Owner::Application => deadline.left().min(timeout(&pool)),
        };
        let mut conn = pool
            .get_timeout(timeout)
            .map_err(|error| self.no_connection(&error))?;
        drop(pool);
        // Computed after the wait, because the turn limits the time with the connection and not the
        // wait for it.
        let deadline = if self.size == 1 {
            deadline.at_most(LONGEST_TURN)
        } else {
            deadline
        };
        match self.prepare(&mut conn, purpose) {
            Ok(restore) => Ok(Checkout {
                conn,
                restore,
                deadline,
                _place: place,
            }),
            Err(error) => {
                discard(&mut conn);
                Err(NoConnection::Failed(classify(&error)))
            }
        }
    }

    /// Returns `true` if the connections lead to the file with this identity.
    pub(crate) fn leads_to(&self, identity: Option<Identity>) -> bool {
        self.identity == identity
    }

    /// Ends the admission of readers and checkpoints, and waits for those that have a connection.
    /// Returns `false` if some still have one after `timeout`.
    pub(crate) fn close(&self, timeout: Duration) -> bool {
        let mut admission = lock(&self.admission);
        admission.closed = true;
        self.changed.notify_all();
        let is_used = |admission: &mut Admission| admission.background > 0;
        let waited = self.changed.wait_timeout_while(admission, timeout, is_used);
        waited.unwrap_or_else(PoisonError::into_inner).0.background == 0
    }

    /// Gives up the pool. The connections of one of the logger's own are closed when this returns,
    /// but for those that are in use.
    pub(crate) fn end(&self) {
        let pool = lock(&self.pool).take();
        drop(pool);
    }

    /// Waits for a place until the deadline. The place is given up when it is dropped.
    ///
    /// # Errors
    ///
    /// [`NoConnection::Closed`] for readers and checkpoints of a store that closes,
    /// [`NoConnection::Busy`] when the deadline has passed.
    fn admit(self: &Arc<Self>, class: Class, deadline: Deadline) -> Result<Place, NoConnection> {
        let mut admission = lock(&self.admission);
        // Readers and checkpoints are served by their tickets, in the order in which they came.
        // Without tickets, whichever thread gets the lock first would pass, and under load the same
        // one could wait until its deadline.
        let ticket = admission.queue(class);
        loop {
            if class == Class::Background && admission.closed {
                admission.leave_queue(class, ticket);
                return Err(NoConnection::Closed);
            }
            if admission.admit(class, ticket) {
                // The next in the queue may find a place, too.
                self.changed.notify_all();
                return Ok(Place {
                    connections: Arc::clone(self),
                    class,
                });
            }
            if deadline.passed() {
                admission.leave_queue(class, ticket);
                self.changed.notify_all();
                return Err(NoConnection::Busy(self.all_in_use()));
            }
            let waited = self.changed.wait_timeout(admission, deadline.left());
            admission = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Returns the error of a pool: the last one of SQLite if it could not connect, or else that
    /// all connections are in use.
    fn no_connection(&self, error: &r2d2::PoolError) -> NoConnection {
        match last_error(error) {
            Some(cause) => NoConnection::Failed(StoreError::Retry(cause)),
            None => NoConnection::Busy(self.all_in_use()),
        }
    }

    fn all_in_use(&self) -> String {
        let size = self.size;
        match self.owner {
            Owner::Logger => format!("all connections are in use; raise pool_size (now {size})"),
            Owner::Application => all_in_use(size),
        }
    }

    /// Sets what `purpose` needs. Returns the statements that restore the connection.
    fn prepare(
        &self,
        conn: &mut SqliteConnection,
        purpose: Purpose,
    ) -> QueryResult<Option<String>> {
        let found = match self.owner {
            Owner::Logger => Settings {
                busy_timeout: BUSY_TIMEOUT.as_millis(),
                query_only: false,
            },
            Owner::Application => Settings::read(conn)?,
        };
        let needed = match purpose {
            Purpose::Write if found.busy_timeout == 0 => Settings {
                busy_timeout: BUSY_TIMEOUT.as_millis(),
                ..found
            },
            Purpose::Write => found,
            Purpose::Read => Settings {
                busy_timeout: READER_BUSY_TIMEOUT.as_millis(),
                query_only: true,
            },
            // One that waits for a reader would keep writers waiting.
            Purpose::Checkpoint => Settings {
                busy_timeout: 0,
                ..found
            },
        };
        if purpose == Purpose::Read
            && self.owner == Owner::Application
            && !functions::are_registered(conn)
        {
            functions::register(conn)?;
        }
        if needed == found {
            return Ok(None);
        }
        conn.batch_execute(&needed.statements())?;
        Ok(Some(found.statements()))
    }
}

/// Settings that a checkout changes and a return restores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Settings {
    /// Milliseconds.
    busy_timeout: u128,
    query_only: bool,
}

impl Settings {
    /// Reads the settings, by statements that need no lock, whatever another process does with the
    /// file.
    fn read(conn: &mut SqliteConnection) -> QueryResult<Self> {
        #[derive(QueryableByName)]
        struct BusyTimeout {
            #[diesel(sql_type = diesel::sql_types::BigInt)]
            timeout: i64,
        }
        #[derive(QueryableByName)]
        struct QueryOnly {
            #[diesel(sql_type = diesel::sql_types::Bool)]
            query_only: bool,
        }
        let BusyTimeout { timeout } = diesel::sql_query("PRAGMA busy_timeout").get_result(conn)?;
        let QueryOnly { query_only } = diesel::sql_query("PRAGMA query_only").get_result(conn)?;
        Ok(Self {
            busy_timeout: u128::try_from(timeout).unwrap_or(0),
            query_only,
        })
    }

    fn statements(self) -> String {
        let Self {
            busy_timeout,
            query_only,
        } = self;
        format!(
            "PRAGMA query_only = {}; PRAGMA busy_timeout = {busy_timeout}",
            u8::from(query_only)
        )
    }
}

/// Has the pool close the connection when it gets it back: r2d2 asks diesel if the transaction
/// manager is broken.
fn discard(conn: &mut SqliteConnection) {
    AnsiTransactionManager::transaction_manager_status_mut(conn).set_in_error();
}

/// A connection of the pool, which is restored and returned when this is dropped. The fields are
/// dropped in their order: the connection goes back before the place is given up, so that the next
/// one that gets the place finds a connection.
pub(crate) struct Checkout {
    conn: PooledConnection<ConnectionManager<SqliteConnection>>,
    restore: Option<String>,
    deadline: Deadline,
    /// Given up after the connection was returned.
    _place: Place,
}

impl Checkout {
    /// Returns the moment by which the connection must be returned.
    pub(crate) fn deadline(&self) -> Deadline {
        self.deadline
    }
}

impl Deref for Checkout {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        &self.conn
    }
}

impl DerefMut for Checkout {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        &mut self.conn
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        if let Some(statements) = self.restore.take()
            && let Err(error) = self.conn.batch_execute(&statements)
        {
            tracing::debug!(%error, "a connection could not be restored, and is closed");
            discard(&mut self.conn);
        }
    }
}

/// A place in the pool, given up when this is dropped.
struct Place {
    connections: Arc<Connections>,
    class: Class,
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.connections.admission).give_up(self.class);
        self.connections.changed.notify_all();
    }
}

/// The writer, or those that leave a place to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Writer,
    /// Readers and checkpoints.
    Background,
}

/// The places of a pool, and who waits for one.
struct Admission {
    size: u32,
    writers: u32,
    background: u32,
    writers_waiting: u32,
    /// By their tickets, in the order in which they came.
    background_waiting: VecDeque<u64>,
    last_ticket: u64,
    /// The class that had the last turn, in a pool of one place.
    last: Class,
    closed: bool,
}

impl Admission {
    fn new(size: u32) -> Self {
        Self {
            size,
            writers: 0,
            background: 0,
            writers_waiting: 0,
            background_waiting: VecDeque::new(),
            last_ticket: 0,
            last: Class::Background,
            closed: false,
        }
    }

    /// Puts one more into the queue of its class. Returns its ticket.
    fn queue(&mut self, class: Class) -> u64 {
        self.last_ticket += 1;
        match class {
            Class::Writer => self.writers_waiting += 1,
            Class::Background => self.background_waiting.push_back(self.last_ticket),
        }
        self.last_ticket
    }

    /// Takes one out of its queue, admitted or not.
    fn leave_queue(&mut self, class: Class, ticket: u64) {
        match class {
            Class::Writer => self.writers_waiting = self.writers_waiting.saturating_sub(1),
            Class::Background => self.background_waiting.retain(|waiting| *waiting != ticket),
        }
    }

    /// Gives the place to one that waits. Returns `false` if it has to wait on.
    fn admit(&mut self, class: Class, ticket: u64) -> bool {
        let is_first = class == Class::Writer || self.background_waiting.front() == Some(&ticket);
        if !is_first || !self.has_place(class) {
            return false;
        }
        self.leave_queue(class, ticket);
        match class {
            Class::Writer => self.writers += 1,
            Class::Background => self.background += 1,
        }
        self.last = class;
        true
    }

    /// Returns `true` if a place is free for `class`.
    fn has_place(&self, class: Class) -> bool {
        // In a pool of one place, writer and readers alternate while both wait. Without `last`, a
        // writer under load would keep all readers out, or readers without a pause the writer.
        let is_alone = self.writers == 0 && self.background == 0;
        match class {
            Class::Writer if self.size == 1 => {
                is_alone && (self.last == Class::Background || self.background_waiting.is_empty())
            }
            // One is left for it at all times.
            Class::Writer => true,
            Class::Background if self.size == 1 => {
                is_alone && (self.last == Class::Writer || self.writers_waiting == 0)
            }
            Class::Background => self.background + 1 < self.size,
        }
    }

    fn give_up(&mut self, class: Class) {
        match class {
            Class::Writer => self.writers = self.writers.saturating_sub(1),
            Class::Background => self.background = self.background.saturating_sub(1),
        }
    }
}

/// The slot in which readers find the connections of the store.
#[derive(Default)]
pub(crate) struct Slot {
    state: Mutex<SlotState>,
    changed: Condvar,
}

#[derive(Default)]
enum SlotState {
    /// There is no logger, or its store is closed: readers open connections of their own.
    #[default]
    Closed,
    Open(Arc<Connections>),
    /// Readers wait: a connection that they opened now would keep SQLite from completing the file.
    Closing,
}

impl Slot {
    /// Lets readers use the connections of a store that was opened.
    pub(crate) fn open(&self, connections: &Arc<Connections>) {
        self.set(SlotState::Open(Arc::clone(connections)));
    }

    /// Keeps readers from opening connections until [`Self::closed`].
    pub(crate) fn closing(&self) {
        self.set(SlotState::Closing);
    }

    /// Lets readers open connections of their own.
    pub(crate) fn closed(&self) {
        self.set(SlotState::Closed);
    }

    /// Returns the connections of the store, or `None` if it is closed. Waits while it closes,
    /// until the deadline.
    pub(crate) fn connections(&self, deadline: Deadline) -> Option<Arc<Connections>> {
        let is_closing = |state: &mut SlotState| matches!(state, SlotState::Closing);
        let waited =
            self.changed
                .wait_timeout_while(lock(&self.state), deadline.left(), is_closing);
        match &*waited.unwrap_or_else(PoisonError::into_inner).0 {
            SlotState::Open(connections) => Some(Arc::clone(connections)),
            SlotState::Closed | SlotState::Closing => None,
        }
    }

    /// Changes the state, and wakes the readers that wait for the end of `Closing`.
    fn set(&self, state: SlotState) {
        let before = std::mem::replace(&mut *lock(&self.state), state);
        self.changed.notify_all();
        // Behind the lock: the last owner closes the connections.
        drop(before);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    struct Fixture {
        _folder: tempfile::TempDir,
        connections: Arc<Connections>,
    }

    fn fixture(size: u32) -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let url = folder.path().join("x.db").to_str().unwrap().to_owned();
        SqliteConnection::establish(&url)
            .unwrap()
            .batch_execute("CREATE TABLE t (x)")
            .unwrap();
        let pool = build(url, size, Arc::new(ScheduledThreadPool::new(1))).unwrap();
        Fixture {
            _folder: folder,
            connections: Connections::new(pool, Owner::Logger, None),
        }
    }

    impl Fixture {
        fn get(&self, purpose: Purpose) -> Checkout {
            self.connections
                .get(purpose, Deadline::after(LONG))
                .unwrap()
        }

        fn open(&self) -> u32 {
            lock(&self.connections.pool)
                .as_ref()
                .unwrap()
                .state()
                .connections
        }

        fn try_get(&self, purpose: Purpose) -> Result<Checkout, NoConnection> {
            self.connections
                .get(purpose, Deadline::after(Duration::ZERO))
        }

        fn is_busy(&self, purpose: Purpose) -> bool {
            matches!(self.try_get(purpose), Err(NoConnection::Busy(_)))
        }
    }

    #[test]
    fn background_leaves_one_connection_to_the_writer() {
        for size in [2, 4] {
            let fixture = fixture(size);
            let mut background: Vec<_> = (1..size).map(|_| fixture.get(Purpose::Read)).collect();
            assert!(fixture.is_busy(Purpose::Read) && fixture.is_busy(Purpose::Checkpoint));
            let writer = fixture.get(Purpose::Write);
            background.pop();
            background.push(fixture.get(Purpose::Checkpoint));
            drop(writer);
            assert!(fixture.is_busy(Purpose::Read), "the writer has none now");
            assert_eq!(fixture.open(), size);
        }
    }

    #[test]
    fn the_only_connection_goes_to_writer_and_background_in_turns() {
        let mut admission = Admission::new(1);
        let writer = admission.queue(Class::Writer);
        assert!(admission.admit(Class::Writer, writer));
        let readers = [(); 2].map(|()| admission.queue(Class::Background));
        let next = admission.queue(Class::Writer);
        for (class, ticket) in [(Class::Background, readers[0]), (Class::Writer, next)] {
            assert!(!admission.admit(class, ticket), "it is in use");
        }
        admission.give_up(Class::Writer);
        assert!(
            !admission.admit(Class::Writer, next),
            "its turn was the last"
        );
        assert!(
            !admission.admit(Class::Background, readers[1]),
            "another came before"
        );
        assert!(admission.admit(Class::Background, readers[0]));
        admission.give_up(Class::Background);
        assert!(
            !admission.admit(Class::Background, readers[1]),
            "the writer waits"
        );
        assert!(admission.admit(Class::Writer, next));
        admission.give_up(Class::Writer);
        admission.leave_queue(Class::Background, readers[1]);
        let alone = admission.queue(Class::Writer);
        assert!(admission.admit(Class::Writer, alone), "no one else waits");
    }

    #[test]
    fn a_query_on_the_only_connection_has_the_time_of_a_turn() {
        let checkout = fixture(1).get(Purpose::Read);
        assert!(checkout.deadline().left() <= LONGEST_TURN);
        let checkout = fixture(2).get(Purpose::Read);
        assert!(checkout.deadline().left() > LONGEST_TURN);
    }

    #[test]
    fn a_connection_that_is_in_use_names_the_remedy() {
        let fixture = fixture(1);
        let _writer = fixture.get(Purpose::Write);
        let refused = fixture.try_get(Purpose::Read).err().unwrap();
        assert_eq!(
            refused,
            NoConnection::Busy("all connections are in use; raise pool_size (now 1)".into())
        );
    }

    #[test]
    fn what_a_checkout_sets_is_restored() {
        let fixture = fixture(1);
        let found = Settings {
            busy_timeout: BUSY_TIMEOUT.as_millis(),
            query_only: false,
        };
        for (purpose, needed) in [
            (Purpose::Write, found),
            (
                Purpose::Read,
                Settings {
                    busy_timeout: READER_BUSY_TIMEOUT.as_millis(),
                    query_only: true,
                },
            ),
            (
                Purpose::Checkpoint,
                Settings {
                    busy_timeout: 0,
                    query_only: false,
                },
            ),
        ] {
            let mut checkout = fixture.get(purpose);
            assert_eq!(
                Settings::read(&mut checkout).unwrap(),
                needed,
                "{purpose:?}"
            );
            if purpose == Purpose::Read {
                checkout
                    .batch_execute("INSERT INTO t VALUES (1)")
                    .unwrap_err();
            }
            drop(checkout);
            let mut checkout = fixture.get(Purpose::Write);
            assert_eq!(
                Settings::read(&mut checkout).unwrap(),
                found,
                "after {purpose:?}"
            );
            checkout.batch_execute("INSERT INTO t VALUES (1)").unwrap();
        }
    }

    #[test]
    fn a_connection_that_cannot_be_restored_is_closed() {
        let fixture = fixture(1);
        let mut checkout = fixture.get(Purpose::Read);
        checkout.restore = Some("PRAGMA nonsense(".into());
        drop(checkout);
        assert_eq!(fixture.open(), 0);
        fixture
            .get(Purpose::Write)
            .batch_execute("INSERT INTO t VALUES (1)")
            .unwrap();
    }

    #[test]
    fn a_connection_whose_user_panics_is_closed() {
        let fixture = fixture(1);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _checkout = fixture.get(Purpose::Read);
            panic!("injected");
        }));
        assert!(result.is_err());
        assert_eq!(fixture.open(), 0);
        fixture
            .get(Purpose::Write)
            .batch_execute("INSERT INTO t VALUES (1)")
            .unwrap();
    }

    #[test]
    fn end_of_the_store_lets_the_writer_in_only() {
        let fixture = fixture(2);
        let reader = fixture.get(Purpose::Read);
        let connections = Arc::clone(&fixture.connections);
        let waiting =
            std::thread::spawn(move || connections.get(Purpose::Read, Deadline::after(LONG)).err());
        crate::store::sqlite::database::eventually("the second reader", || {
            !lock(&fixture.connections.admission)
                .background_waiting
                .is_empty()
        });
        assert!(
            !fixture.connections.close(Duration::ZERO),
            "a reader has a connection"
        );
        assert_eq!(waiting.join().unwrap(), Some(NoConnection::Closed));
        fixture.get(Purpose::Write);
        drop(reader);
        assert!(fixture.connections.close(Duration::ZERO));
    }

    #[test]
    fn readers_wait_while_the_store_closes() {
        let (slot, fixture) = (Arc::new(Slot::default()), fixture(2));
        assert!(
            slot.connections(Deadline::after(LONG)).is_none(),
            "there is none"
        );
        slot.open(&fixture.connections);
        assert!(slot.connections(Deadline::after(LONG)).is_some());
        slot.closing();
        assert!(
            slot.connections(Deadline::after(Duration::ZERO)).is_none(),
            "at the deadline"
        );
        let (begin, begun) = channel();
        let waiting = std::thread::spawn({
            let slot = Arc::clone(&slot);
            move || {
                begin.send(()).unwrap();
                slot.connections(Deadline::after(LONG)).is_none()
            }
        });
        begun.recv().unwrap();
        slot.closed();
        assert!(waiting.join().unwrap());
    }
}
