//! Writer, readers and checkpoints share the connections of one pool.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Lock, TestDb, block_on, eventually, no_hit};
use failure_logger::error::{StoreError, Unhealthy};
use failure_logger::sqlite::diesel::connection::{SimpleConnection as _, TransactionManager as _};
use failure_logger::sqlite::diesel::prelude::*;
use failure_logger::sqlite::{CustomizeConnection, Pool, diesel, r2d2};
use failure_logger::{
    Deletion, FailureLogger, LogOutcome, LoggerConfig, LoggerError, LoggerHandle, PageRequest,
    RetrievalFailureRecord, StartError,
};

const NEVER: Duration = Duration::from_secs(24 * 60 * 60);

/// Returns a record that fills about a fifth of a page.
fn large(turn: i64) -> RetrievalFailureRecord {
    RetrievalFailureRecord {
        query_text: "q".repeat(512).into(),
        ..no_hit(turn)
    }
}

/// Counts the descriptors of the database file in this process: one for each connection.
#[cfg(target_os = "linux")]
fn connections(db: &TestDb) -> usize {
    let path = db.path();
    let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    links
        .filter(|link| std::fs::read_link(link.path()).is_ok_and(|file| file == path))
        .count()
}

#[cfg(target_os = "linux")]
fn assert_connections_within(db: &TestDb, size: usize, logger: &LoggerHandle) {
    const RECORDS: i64 = 20_000;
    let over = AtomicBool::new(false);
    let (queries, most) = std::thread::scope(|scope| {
        let readers = [(); 8].map(|()| {
            scope.spawn(|| {
                let reader = logger.reader().timeout(NEVER);
                let mut queries = 0;
                while !over.load(Ordering::Acquire) {
                    block_on(reader.list(Default::default(), PageRequest::newest(10))).unwrap();
                    queries += 1;
                }
                queries
            })
        });
        let counter = scope.spawn(|| {
            let mut most = 0;
            while !over.load(Ordering::Acquire) {
                most = most.max(connections(db));
            }
            most
        });
        for turn in 0..RECORDS {
            // The writer makes room in the buffer.
            while logger.stats().buffered >= 8000 {
                std::thread::yield_now();
            }
            assert_eq!(logger.log(large(turn)), LogOutcome::Queued);
        }
        block_on(logger.flush()).unwrap();
        over.store(true, Ordering::Release);
        (
            readers
                .map(|reader| reader.join().unwrap())
                .iter()
                .sum::<u64>(),
            counter.join().unwrap(),
        )
    });
    assert!(
        (1..=size).contains(&most),
        "{most} connections in a pool of {size}"
    );
    assert!(queries >= 8, "{queries}");
    let stats = block_on(logger.shutdown()).unwrap().stats;
    assert!(
        stats.is_balanced() && stats.dropped.total() == 0,
        "{stats:?}"
    );
    assert_eq!(db.rows(), RECORDS);
}

#[cfg(target_os = "linux")]
#[test]
fn connections_under_load_stay_within_the_pool() {
    for size in [1, 2, 4] {
        let db = TestDb::new();
        let logger = FailureLogger::spawn(db.config().pool_size(size)).unwrap();
        assert_connections_within(&db, size as usize, &logger);
        assert_eq!(connections(&db), 0, "every connection is closed");
        assert!(!db.path().with_extension("db-wal").exists());
    }
}

/// Ways in which an application builds its pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// With our customizer, in WAL mode.
    Customized,
    /// By `Pool::new`: with diesel's connections as they are, which are tested at each checkout.
    Plain,
}

fn manager(url: &str) -> r2d2::ConnectionManager<SqliteConnection> {
    r2d2::ConnectionManager::new(url)
}

/// Returns the pool of an application that has a table in the same file.
fn pool(db: &TestDb, size: u32, kind: Kind) -> Pool {
    pool_with(Pool::builder().max_size(size), db, kind)
}

fn pool_with(
    builder: r2d2::Builder<r2d2::ConnectionManager<SqliteConnection>>,
    db: &TestDb,
    kind: Kind,
) -> Pool {
    let pool = match kind {
        Kind::Customized => builder
            .connection_customizer(Box::new(CustomizeConnection))
            .build(manager(&db.url())),
        Kind::Plain => builder.build(manager(&db.url())),
    };
    let pool = pool.unwrap();
    let mut conn = pool.get().unwrap();
    if kind == Kind::Customized {
        conn.batch_execute("PRAGMA journal_mode = WAL").unwrap();
    }
    conn.batch_execute("CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY)")
        .unwrap();
    drop(conn);
    pool
}

/// Inserts a row for the application. Retries while another connection, perhaps of the logger, has
/// the lock.
fn insert_order(pool: &Pool, id: i64) {
    let sql = format!("INSERT INTO orders VALUES ({id})");
    eventually("the lock", || {
        match pool.get().unwrap().batch_execute(&sql) {
            Err(error) if error.to_string() == "database is locked" => false,
            result => result.map(|()| true).unwrap(),
        }
    });
}

/// Starts a logger that retries soon, and flushes only on request.
fn start(pool: &Pool) -> Result<LoggerHandle, StartError> {
    let config = LoggerConfig::new("postgres://ignored").flush_interval(NEVER);
    FailureLogger::with_pool(
        config.backoff(Duration::from_millis(1), Duration::from_millis(20)),
        pool.clone(),
    )
    .and_then(FailureLogger::start_on_thread)
}

fn log(logger: &LoggerHandle, turns: std::ops::Range<i64>) {
    for turn in turns {
        assert_eq!(logger.log(no_hit(turn)), LogOutcome::Queued);
    }
}

fn read(logger: &LoggerHandle) -> usize {
    block_on(
        logger
            .reader()
            .list(Default::default(), PageRequest::newest(1000)),
    )
    .unwrap()
    .failures
    .len()
}

/// Ends the logger, and returns the turns in the file.
fn end(logger: &LoggerHandle, db: &TestDb) -> Vec<i64> {
    let stats = block_on(logger.shutdown()).unwrap().stats;
    assert!(
        stats.is_balanced() && stats.dropped.total() == 0,
        "{stats:?}"
    );
    db.turns()
}

/// Returns the error with which a pool is refused.
fn start_error(pool: &Pool) -> String {
    match start(pool) {
        Err(error @ StartError::Pool { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

/// Counts our tables in the file alone, without a journal that may belong to another file.
fn our_tables(db: &TestDb) -> i64 {
    let mut conn =
        SqliteConnection::establish(&format!("file:{}?mode=ro&immutable=1", db.url())).unwrap();
    let count = "(SELECT count(*) FROM sqlite_schema WHERE name LIKE 'memory%')";
    diesel::select(diesel::dsl::sql::<diesel::sql_types::BigInt>(count))
        .get_result(&mut conn)
        .unwrap()
}

fn setting(conn: &mut SqliteConnection, name: &str) -> String {
    #[derive(QueryableByName)]
    struct Setting {
        #[diesel(sql_type = diesel::sql_types::Text)]
        value: String,
    }
    let column = if name == "busy_timeout" {
        "timeout"
    } else {
        name
    };
    let sql = format!("SELECT CAST({column} AS TEXT) AS value FROM pragma_{name}");
    diesel::sql_query(sql)
        .get_result::<Setting>(conn)
        .expect(name)
        .value
}

#[cfg(target_os = "linux")]
#[test]
fn connections_under_load_stay_within_the_applications_limit() {
    for (size, kind) in [
        (1, Kind::Customized),
        (2, Kind::Plain),
        (4, Kind::Customized),
    ] {
        let db = TestDb::new();
        // r2d2 replaces a connection that fails its test at a checkout, as happens while another
        // one has the lock. It opens the new connection before it closes the old one.
        let pool = pool_with(
            Pool::builder().max_size(size).test_on_check_out(false),
            &db,
            kind,
        );
        let logger = FailureLogger::with_pool(LoggerConfig::default(), pool.clone())
            .unwrap()
            .start_on_thread()
            .unwrap();
        assert_connections_within(&db, size as usize, &logger);
        assert_eq!(
            pool.state().idle_connections,
            pool.state().connections,
            "every connection is returned"
        );
    }
}

#[test]
fn application_and_logger_share_file_and_pool() {
    for (size, kind) in [
        (1, Kind::Plain),
        (1, Kind::Customized),
        (4, Kind::Plain),
        (4, Kind::Customized),
    ] {
        let db = TestDb::new();
        let pool = pool(&db, size, kind);
        let logger = start(&pool).unwrap();
        for round in 0..10 {
            insert_order(&pool, round);
            log(&logger, 10 * round..10 * round + 10);
            block_on(logger.flush()).unwrap();
            assert_eq!(read(&logger) as i64, 10 * round + 10);
        }
        assert_eq!(logger.stats().restarts, 0);
        assert_eq!(
            end(&logger, &db),
            (0..100).collect::<Vec<_>>(),
            "{size} {kind:?}"
        );
        assert_eq!(read(&logger), 100, "after the end");
        insert_order(&pool, 10);
        assert_eq!(db.integer("SELECT count(*) FROM orders"), 11);
    }
}

#[test]
fn application_statements_give_the_same_results_as_before() {
    const SETTINGS: [&str; 7] = [
        "busy_timeout",
        "query_only",
        "synchronous",
        "foreign_keys",
        "temp_store",
        "cache_size",
        "journal_size_limit",
    ];
    let all = |conn: &mut SqliteConnection| SETTINGS.map(|name| setting(conn, name));
    let (plain, customized) = (TestDb::new(), TestDb::new());
    for (db, kind) in [(plain, Kind::Plain), (customized, Kind::Customized)] {
        let pool = pool(&db, 1, kind);
        let before = all(&mut pool.get().unwrap());
        let logger = start(&pool).unwrap();
        log(&logger, 0..10);
        block_on(logger.flush()).unwrap();
        assert_eq!(read(&logger), 10);
        // A read that fails returns its connection, too.
        db.execute("ALTER TABLE memory_retrieval_failures RENAME TO elsewhere");
        block_on(
            logger
                .reader()
                .list(Default::default(), PageRequest::newest(1)),
        )
        .unwrap_err();
        db.execute("ALTER TABLE elsewhere RENAME TO memory_retrieval_failures");
        let conn = &mut pool.get().unwrap();
        assert_eq!(all(conn), before, "{kind:?}");
        conn.batch_execute("INSERT INTO orders VALUES (1)").unwrap();
    }
}

#[test]
fn file_settings_stay_as_the_application_set_them() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let db = TestDb::new();
    db.execute(
        "PRAGMA page_size = 8192; PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = DELETE; CREATE TABLE filler (x);
         INSERT INTO filler SELECT zeroblob(1000000)",
    );
    db.execute("DROP TABLE filler");
    std::fs::set_permissions(db.path(), std::fs::Permissions::from_mode(0o640)).unwrap();
    let free = db.pragma("freelist_count");
    let pool = pool(&db, 2, Kind::Plain);
    let logger = start(&pool).unwrap();
    log(&logger, 0..1);
    block_on(logger.flush()).unwrap();
    assert_eq!(read(&logger), 1);
    db.execute("UPDATE memory_retrieval_failures SET created_at = 1");
    assert_eq!(end(&logger, &db), [0]);
    for (pragma, value) in [
        ("journal_mode", "delete"),
        ("auto_vacuum", "2"),
        ("page_size", "8192"),
    ] {
        assert_eq!(db.pragma(pragma), value, "{pragma}");
    }
    assert!(
        db.pragma("freelist_count").parse::<u64>().unwrap() + 100 > free.parse().unwrap(),
        "no vacuum"
    );
    assert_eq!(
        db.integer("SELECT count(*) FROM sqlite_schema WHERE name LIKE 'sqlite_stat%'"),
        0,
        "no statistics"
    );
    assert_eq!(std::fs::metadata(db.path()).unwrap().mode() & 0o777, 0o640);
}

#[test]
fn pool_without_a_file_is_refused() {
    for url in [":memory:", "", "file:x?mode=memory&cache=shared"] {
        let pool = Pool::builder().max_size(1).build(manager(url)).unwrap();
        assert!(
            start_error(&pool).contains("give it a pool of a file"),
            "{url}"
        );
    }
}

#[test]
fn pool_that_cannot_connect_is_refused() {
    let db = TestDb::new();
    let url = format!("file:{}?mode=rw", db.url());
    let pool = Pool::builder()
        .connection_timeout(Duration::from_millis(500))
        .build_unchecked(manager(&url));
    let sentence = start_error(&pool);
    assert!(
        sentence.contains("unable to open database file") || sentence.contains("Unable to open"),
        "{sentence}"
    );
    assert!(
        sentence.ends_with("the file must exist, and the pool may open it"),
        "{sentence}"
    );
    assert!(!db.path().exists());
}

#[test]
fn pool_whose_file_is_gone_is_refused() {
    let (db, other) = (TestDb::new(), TestDb::new());
    let pool = pool(&db, 1, Kind::Customized);
    let elsewhere = db.folder.path().join("elsewhere");
    std::fs::rename(db.path(), &elsewhere).unwrap();
    assert!(start_error(&pool).contains("put the file back, or build a new pool"));
    // Another file has the name now. The pool's connection does not lead to it.
    other.execute("CREATE TABLE theirs (x)");
    std::fs::rename(other.path(), db.path()).unwrap();
    let sentence = start_error(&pool);
    assert!(
        sentence.contains("put the file back, or build a new pool"),
        "{sentence}"
    );
    assert_eq!(our_tables(&db), 0);
}

#[test]
fn replaced_file_is_left_and_no_record_is_lost() {
    for replace in [false, true] {
        let (db, other) = (TestDb::new(), TestDb::new());
        let pool = pool(&db, 2, Kind::Customized);
        let logger = start(&pool).unwrap();
        log(&logger, 0..10);
        block_on(logger.flush()).unwrap();
        let elsewhere = db.folder.path().join("elsewhere");
        std::fs::rename(db.path(), &elsewhere).unwrap();
        if replace {
            other.execute("CREATE TABLE theirs (x)");
            std::fs::rename(other.path(), db.path()).unwrap();
        }
        log(&logger, 10..20);
        eventually("the logger to be unavailable", || {
            let _ = block_on(logger.flush());
            matches!(logger.health(), Err(Unhealthy::Unavailable { cause }) if cause.contains("put the file back"))
        });
        assert_eq!(logger.stats().buffered, 10);
        if replace {
            assert_eq!(our_tables(&db), 0);
        }
        std::fs::rename(&elsewhere, db.path()).unwrap();
        eventually("the file to be used", || block_on(logger.flush()).is_ok());
        assert_eq!(end(&logger, &db), (0..20).collect::<Vec<_>>());
    }
}

#[test]
fn pool_that_may_not_write_is_refused() {
    #[derive(Debug)]
    struct ReadOnly;
    impl r2d2::CustomizeConnection<SqliteConnection, r2d2::Error> for ReadOnly {
        fn on_acquire(&self, conn: &mut SqliteConnection) -> Result<(), r2d2::Error> {
            conn.batch_execute("PRAGMA query_only = ON")
                .map_err(r2d2::Error::QueryError)
        }
    }
    let db = TestDb::new();
    drop(pool(&db, 1, Kind::Plain));
    let read_only = Pool::builder()
        .max_size(1)
        .build(manager(&format!("file:{}?mode=ro", db.url())))
        .unwrap();
    let query_only = Pool::builder()
        .max_size(1)
        .connection_customizer(Box::new(ReadOnly))
        .build(manager(&db.url()));
    for pool in [read_only, query_only.unwrap()] {
        let sentence = start_error(&pool);
        assert!(
            sentence.contains("attempt to write a readonly database"),
            "{sentence}"
        );
        assert!(sentence.contains("make the file writable"), "{sentence}");
    }
    assert_eq!(db.integer("SELECT count(*) FROM sqlite_schema"), 1);
}

#[test]
fn damaged_file_of_a_pool_is_never_renamed() {
    let db = TestDb::new();
    block_on(db.spawn().shutdown()).unwrap();
    let pool = Pool::builder()
        .max_size(2)
        .build(manager(&db.url()))
        .unwrap();
    let logger = start(&pool).unwrap();
    log(&logger, 0..10);
    // The file has no table but ours.
    let sql = db.schema("memory_retrieval_failures");
    let set_schema = |sql: &str, version: u32| {
        db.execute(&format!(
            "PRAGMA writable_schema = ON;
             UPDATE sqlite_schema SET sql = '{}' WHERE name = 'memory_retrieval_failures';
             PRAGMA schema_version = {version}",
            sql.replace('\'', "''")
        ));
    };
    set_schema("CREATE TABLE nonsense (", 1000);
    eventually("the logger to be unavailable", || {
        let _ = block_on(logger.flush());
        matches!(logger.health(), Err(Unhealthy::Unavailable { .. }))
    });
    assert!(
        start(&pool)
            .unwrap_err()
            .to_string()
            .contains("repair it, or restore a backup")
    );
    let names = std::fs::read_dir(db.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    assert!(
        names
            .into_iter()
            .all(|name| !name.to_string_lossy().contains("corrupt"))
    );
    set_schema(&sql, 1001);
    eventually("the repaired file to be used", || {
        block_on(logger.flush()).is_ok()
    });
    assert_eq!(end(&logger, &db), (0..10).collect::<Vec<_>>());
}

#[test]
fn pool_in_use_is_waited_for_and_no_record_is_lost() {
    for size in [1, 3] {
        let db = TestDb::new();
        let builder = Pool::builder()
            .max_size(size)
            .connection_timeout(Duration::from_millis(500));
        let pool = pool_with(builder, &db, Kind::Plain);
        let logger = start(&pool).unwrap();
        block_on(logger.flush()).unwrap();
        let held: Vec<_> = (0..size).map(|_| pool.get().unwrap()).collect();
        log(&logger, 0..10);
        match block_on(logger.flush()) {
            Err(LoggerError::Waiting {
                buffered: 10,
                cause,
            }) => {
                assert!(
                    cause.starts_with(&format!("all {size} connections of the pool are in use")),
                    "{cause}"
                );
            }
            other => panic!("{other:?}"),
        }
        let reader = logger.reader().timeout(Duration::from_millis(200));
        let busy = block_on(reader.list(Default::default(), PageRequest::newest(1))).unwrap_err();
        assert!(busy.to_string().contains("retry later"), "{busy}");
        match start(&pool) {
            Err(StartError::Store(StoreError::Retry(cause))) => {
                assert!(cause.contains("return them sooner"), "{cause}")
            }
            other => panic!("{other:?}"),
        }
        drop(held);
        eventually("a flush", || block_on(logger.flush()).is_ok());
        assert_eq!(logger.stats().restarts, 0);
        assert_eq!(end(&logger, &db), (0..10).collect::<Vec<_>>());
    }
}

#[test]
fn two_loggers_share_one_pool() {
    for size in [1, 2] {
        let db = TestDb::new();
        let pool = pool(&db, size, Kind::Plain);
        let loggers = [(); 2].map(|()| start(&pool).unwrap());
        std::thread::scope(|scope| {
            for (logger, first) in loggers.iter().zip([0, 1000]) {
                scope.spawn(move || {
                    for round in 0..20 {
                        log(logger, first + 10 * round..first + 10 * round + 10);
                        eventually("a flush", || block_on(logger.flush()).is_ok());
                    }
                });
                scope.spawn(move || {
                    (0..50).for_each(|_| {
                        drop(block_on(
                            logger
                                .reader()
                                .list(Default::default(), PageRequest::newest(1)),
                        ))
                    })
                });
            }
        });
        let mut turns = loggers
            .iter()
            .map(|logger| end(logger, &db))
            .next_back()
            .unwrap();
        turns.sort_unstable();
        assert_eq!(turns, (0..200).chain(1000..1200).collect::<Vec<_>>());
    }
}

#[test]
fn file_locked_by_another_application_is_waited_for() {
    let db = TestDb::new();
    let pool = pool(&db, 1, Kind::Customized);
    pool.get()
        .unwrap()
        .batch_execute("PRAGMA busy_timeout = 1")
        .unwrap();
    let lock = Lock::new(&db);
    match start(&pool) {
        Err(StartError::Store(StoreError::Retry(cause))) => {
            assert!(
                cause.contains("database is locked; end the transaction that holds the lock"),
                "{cause}"
            );
        }
        other => panic!("{other:?}"),
    }
    drop(lock);
    let logger = start(&pool).unwrap();
    block_on(logger.flush()).unwrap();
    let lock = Lock::new(&db);
    log(&logger, 0..10);
    let waiting = block_on(logger.flush());
    assert!(
        matches!(&waiting, Err(LoggerError::Waiting { buffered: 10, cause }) if cause.contains("locked")),
        "{waiting:?}"
    );
    drop(lock);
    eventually("a flush", || block_on(logger.flush()).is_ok());
    assert_eq!(end(&logger, &db), (0..10).collect::<Vec<_>>());
}

#[test]
fn connection_returned_within_a_transaction_loses_no_record() {
    let db = TestDb::new();
    let pool = pool(&db, 1, Kind::Plain);
    let logger = start(&pool).unwrap();
    block_on(logger.flush()).unwrap();
    // The statement bypasses diesel, which does not know of the transaction.
    pool.get().unwrap().batch_execute("BEGIN").unwrap();
    log(&logger, 0..10);
    assert!(matches!(
        block_on(logger.flush()),
        Err(LoggerError::Waiting { buffered: 10, .. })
    ));
    pool.get().unwrap().batch_execute("ROLLBACK").unwrap();
    eventually("a flush", || block_on(logger.flush()).is_ok());
    assert_eq!(end(&logger, &db), (0..10).collect::<Vec<_>>());
}

#[test]
fn pool_that_renews_its_connections_loses_no_record() {
    let db = TestDb::new();
    let pool = pool(&db, 1, Kind::Customized);
    let logger = start(&pool).unwrap();
    for round in 0..5 {
        log(&logger, 10 * round..10 * round + 10);
        block_on(logger.flush()).unwrap();
        // The pool closes a connection that returns within a transaction. With the last connection
        // SQLite removes the journal.
        let mut conn = pool.get().unwrap();
        diesel::connection::AnsiTransactionManager::begin_transaction(&mut *conn).unwrap();
        drop(conn);
    }
    assert_eq!(logger.stats().restarts, 0);
    assert_eq!(end(&logger, &db), (0..50).collect::<Vec<_>>());
}

#[test]
fn removed_journal_gets_no_record() {
    let db = TestDb::new();
    let pool = pool(&db, 1, Kind::Customized);
    let logger = start(&pool).unwrap();
    block_on(logger.flush()).unwrap();
    std::fs::remove_file(db.path().with_extension("db-wal")).unwrap();
    log(&logger, 0..10);
    eventually("the logger to be unavailable", || {
        let _ = block_on(logger.flush());
        matches!(logger.health(), Err(Unhealthy::Unavailable { cause }) if cause.contains("restart the application"))
    });
    assert_eq!(logger.stats().buffered, 10);
}

/// Runs `work`, and returns the log lines of this thread.
fn logged(work: impl FnOnce()) -> String {
    #[derive(Clone, Default)]
    struct Log(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);
    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, work);
    String::from_utf8(log.0.lock().unwrap().clone()).unwrap()
}

#[test]
fn pool_size_overrides_the_setting_and_is_logged() {
    for (size, setting, is_said) in [(2, 2, false), (2, 4, true)] {
        let db = TestDb::new();
        let pool = pool(&db, size, Kind::Plain);
        let config = LoggerConfig::default().pool_size(setting);
        let log = logged(|| {
            let logger = FailureLogger::with_pool(config, pool.clone())
                .and_then(FailureLogger::start_on_thread)
                .unwrap();
            log(&logger, 0..10);
            assert_eq!(end(&logger, &db), (0..10).collect::<Vec<_>>());
        });
        assert_eq!(log.contains("pool_size=2 setting=4"), is_said, "{log}");
    }
}

#[test]
fn deletion_leaves_the_settings_of_the_application_s_connection() {
    #[derive(QueryableByName)]
    struct Setting {
        #[diesel(sql_type = diesel::sql_types::Integer)]
        secure_delete: i32,
    }
    let db = TestDb::new();
    let pool = pool(&db, 1, Kind::Plain);
    for (setting, number) in [("OFF", 0), ("ON", 1), ("FAST", 2)] {
        let set = format!("PRAGMA secure_delete = {setting}");
        pool.get().unwrap().batch_execute(&set).unwrap();
        let logger = FailureLogger::with_pool(LoggerConfig::default(), pool.clone())
            .unwrap()
            .start_on_thread()
            .unwrap();
        logger.log(no_hit(1));
        let deletion = Deletion::Query("where is the key?".into());
        assert_eq!(block_on(logger.delete(deletion)).unwrap().rows, 1);
        block_on(logger.shutdown()).unwrap();
        let Setting { secure_delete } = diesel::sql_query("PRAGMA secure_delete")
            .get_result(&mut pool.get().unwrap())
            .unwrap();
        assert_eq!(secure_delete, number, "{setting}");
    }
}
