//! Files that loggers share with each other and with the tables of an application.

mod common;

use std::path::PathBuf;
use std::time::Duration;

use common::{TestDb, block_on, eventually, no_hit, spawn};
use diesel::connection::SimpleConnection as _;
use failure_logger::error::Unhealthy;
use failure_logger::{
    FailureLogger, LogOutcome, LoggerConfig, LoggerHandle, PageRequest, StartError,
};

const NEVER: Duration = Duration::from_secs(24 * 60 * 60);

fn config(db: &TestDb) -> LoggerConfig {
    db.config()
        .flush_interval(NEVER)
        .backoff(Duration::from_millis(1), Duration::from_millis(20))
}

fn log(logger: &LoggerHandle, turns: std::ops::Range<i64>) {
    for turn in turns {
        assert_eq!(logger.log(no_hit(turn)), LogOutcome::Queued);
    }
}

fn quarantined(db: &TestDb) -> Vec<PathBuf> {
    let files = std::fs::read_dir(db.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let is_database = |path: &PathBuf| {
        !path.to_string_lossy().ends_with("-wal") && !path.to_string_lossy().ends_with("-shm")
    };
    files
        .filter(|path| path.to_string_lossy().contains(".corrupt-") && is_database(path))
        .collect()
}

/// Replaces a table's schema, so that every connection cannot read it, or can read it once more.
fn set_schema(db: &TestDb, table: &str, sql: &str) {
    db.execute(&format!(
        "PRAGMA writable_schema = ON;
         UPDATE sqlite_schema SET sql = '{sql}' WHERE name = '{table}';
         PRAGMA schema_version = {}",
        db_version()
    ));
}

/// Returns another version at each call, so that every connection reads the schema once more.
fn db_version() -> u32 {
    static VERSION: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1000);
    VERSION.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

#[test]
fn damaged_file_with_other_tables_stays_where_it_is() {
    const ORDERS: &str = "CREATE TABLE orders (id INTEGER PRIMARY KEY)";
    for damaged in ["orders", "memory_retrieval_strategies"] {
        let db = TestDb::new();
        let logger = spawn(config(&db));
        log(&logger, 0..10);
        block_on(logger.flush()).unwrap();
        // The change comes after the start, so the logger's knowledge of the file is stale.
        db.execute(&format!("{ORDERS}; INSERT INTO orders VALUES (1), (2)"));
        let sql = db.schema(damaged);
        set_schema(&db, damaged, "CREATE TABLE nonsense (");
        log(&logger, 10..20);
        eventually("the logger to be unavailable", || {
            let _ = block_on(logger.flush());
            matches!(logger.health(), Err(Unhealthy::Unavailable { cause }) if cause.contains("another application"))
        });
        assert_eq!(quarantined(&db), [] as [PathBuf; 0], "{damaged}");
        assert!(logger.stats().is_balanced() && logger.stats().buffered == 10);

        set_schema(&db, damaged, &sql);
        eventually("the repaired file to be used", || {
            block_on(logger.flush()).is_ok()
        });
        assert_eq!(db.turns(), (0..20).collect::<Vec<_>>(), "{damaged}");
        assert_eq!(db.integer("SELECT count(*) FROM orders"), 2);
    }
}

#[test]
fn damaged_file_at_the_start_is_named_and_left() {
    let db = TestDb::new();
    block_on(spawn(config(&db)).shutdown()).unwrap();
    set_schema(
        &db,
        "memory_retrieval_strategies",
        "CREATE TABLE nonsense (",
    );
    let refused = FailureLogger::spawn(config(&db)).unwrap_err();
    assert!(
        matches!(&refused, StartError::Damaged { path, .. } if *path == db.path()),
        "{refused:?}"
    );
    assert!(
        refused.to_string().contains("restore a backup"),
        "{refused}"
    );
    assert_eq!(quarantined(&db), [] as [PathBuf; 0]);
}

#[test]
fn damaged_file_of_two_loggers_is_quarantined_once() {
    let db = TestDb::new();
    let loggers = [(); 2].map(|()| spawn(config(&db)));
    log(&loggers[0], 0..10);
    block_on(loggers[0].flush()).unwrap();
    set_schema(&db, "memory_retrieval_failures", "CREATE TABLE nonsense (");
    // The second logger finds the damage only after the first one has created a new database.
    for (logger, first) in loggers.iter().zip([10, 20]) {
        log(logger, first..first + 10);
        eventually("the new file", || block_on(logger.flush()).is_ok());
    }
    assert_eq!(quarantined(&db).len(), 1);
    assert_eq!(db.turns(), (10..30).collect::<Vec<_>>());
    for logger in loggers {
        let stats = block_on(logger.shutdown()).unwrap().stats;
        assert!(stats.is_balanced() && stats.dropped.total() == 0);
    }
}

#[test]
fn settings_of_an_application_file_stay_as_they_are() {
    let db = TestDb::new();
    db.execute(
        "PRAGMA page_size = 8192; PRAGMA auto_vacuum = FULL; PRAGMA journal_mode = DELETE; CREATE \
         TABLE orders (id)",
    );
    let mode = |mode| {
        std::fs::set_permissions(
            db.path(),
            std::os::unix::fs::PermissionsExt::from_mode(mode),
        )
        .unwrap()
    };
    mode(0o640);
    let logger = spawn(config(&db));
    log(&logger, 0..1000);
    block_on(logger.flush()).unwrap();
    block_on(logger.shutdown()).unwrap();
    for (pragma, value) in [
        ("journal_mode", "delete"),
        ("auto_vacuum", "1"),
        ("page_size", "8192"),
    ] {
        assert_eq!(db.pragma(pragma), value, "{pragma}");
    }
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(db.path()).unwrap());
    assert_eq!((mode & 0o777, db.rows()), (0o640, 1000));
}

#[test]
fn logger_beside_a_rollback_journal_loses_no_record() {
    let db = TestDb::new();
    let mut conn = db.connect();
    conn.batch_execute(
        "PRAGMA journal_mode = DELETE; CREATE TABLE orders (id INTEGER PRIMARY KEY)",
    )
    .unwrap();
    let logger = spawn(config(&db));
    for round in 0..20 {
        conn.batch_execute(&format!("INSERT INTO orders VALUES ({round})"))
            .unwrap();
        log(&logger, 10 * round..10 * round + 10);
        block_on(logger.flush()).unwrap();
        let page = block_on(
            logger
                .reader()
                .list(Default::default(), PageRequest::newest(1000)),
        )
        .unwrap();
        assert_eq!(page.failures.len() as i64, 10 * round + 10);
    }
    block_on(logger.shutdown()).unwrap();
    assert_eq!(
        (db.rows(), db.integer("SELECT count(*) FROM orders")),
        (200, 20)
    );
}

#[test]
fn shutdown_returns_a_complete_file() {
    for _ in 0..50 {
        let (db, copy) = (TestDb::new(), TestDb::new());
        let logger = FailureLogger::spawn(config(&db)).unwrap();
        log(&logger, 0..10);
        block_on(logger.shutdown()).unwrap();
        // A backup program would copy the file alone.
        std::fs::copy(db.path(), copy.path()).unwrap();
        assert_eq!(copy.rows(), 10);
        let journal = db.path().with_extension("db-wal");
        assert!(!journal.exists(), "a connection was still open");
    }
}

#[test]
fn replaced_file_behind_a_symbolic_link_keeps_its_content() {
    let (db, other) = (TestDb::new(), TestDb::new());
    let real = db.folder.path().join("real");
    std::fs::create_dir(&real).unwrap();
    std::os::unix::fs::symlink(real.join("x.db"), db.path()).unwrap();
    std::fs::File::create(real.join("x.db")).unwrap();
    other.execute("CREATE TABLE orders (id); INSERT INTO orders VALUES (1), (2)");
    let logger = spawn(config(&db));
    log(&logger, 0..100);
    block_on(logger.flush()).unwrap();
    assert!(
        real.join("x.db-lock").exists(),
        "all names of the file share one lock"
    );
    std::fs::rename(other.path(), real.join("x.db")).unwrap();
    log(&logger, 100..110);
    eventually("the other file", || block_on(logger.flush()).is_ok());
    assert_eq!(
        (db.integer("SELECT count(*) FROM orders"), db.rows()),
        (2, 10)
    );
    assert_eq!(
        db.integer("SELECT count(*) FROM pragma_integrity_check WHERE integrity_check = 'ok'"),
        1
    );
    assert!(
        std::fs::symlink_metadata(db.path())
            .unwrap()
            .file_type()
            .is_symlink()
    );
}

#[test]
fn symbolic_link_to_nothing_is_refused_and_left() {
    let db = TestDb::new();
    let elsewhere = db.folder.path().join("elsewhere");
    std::os::unix::fs::symlink(&elsewhere, db.path()).unwrap();
    let refused = FailureLogger::spawn(config(&db)).unwrap_err();
    assert!(refused.to_string().contains("symbolic link"), "{refused}");
    assert!(!elsewhere.exists());
}

#[test]
fn modes_of_a_new_and_of_a_shared_database_are_kept() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().mode() & 0o777;
    let set = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let db = TestDb::new();
    let lock = db.folder.path().join("failures.db-lock");
    std::fs::File::create(&lock).unwrap();
    set(&lock, 0o664);
    block_on(spawn(config(&db)).shutdown()).unwrap();
    assert_eq!(
        (mode(&db.path()), mode(&lock)),
        (0o600, 0o600),
        "the mode of an old lock file does not matter"
    );

    std::fs::remove_file(&lock).unwrap();
    set(&db.path(), 0o660);
    block_on(spawn(config(&db)).shutdown()).unwrap();
    assert_eq!(
        (mode(&db.path()), mode(&lock)),
        (0o660, 0o660),
        "a group that shares one shares the other"
    );
}

/// Needs a file system that can be mounted read-only if root runs it, because folder permissions do
/// not bind root.
#[test]
fn reader_of_a_read_only_file_reads_it_or_names_the_remedy() {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use failure_logger::{FailureFilter, FailureReader, PageRequest};

    let db = TestDb::new();
    let logger = db.spawn();
    logger.log(no_hit(1));
    block_on(logger.shutdown()).unwrap();
    let modes = |folder, file| {
        fs::set_permissions(db.path(), Permissions::from_mode(file)).unwrap();
        fs::set_permissions(db.folder.path(), Permissions::from_mode(folder)).unwrap();
    };
    modes(0o555, 0o444);
    let is_root = fs::write(db.folder.path().join("probe"), "").is_ok();
    let read = || {
        block_on(
            FailureReader::open(db.path()).list(FailureFilter::default(), PageRequest::newest(10)),
        )
    };
    assert_eq!(read().unwrap().failures.len(), 1);
    if !is_root {
        // The file is not complete without this journal.
        modes(0o755, 0o644);
        fs::write(format!("{}-wal", db.url()), [0_u8; 4096]).unwrap();
        fs::set_permissions(format!("{}-wal", db.url()), Permissions::from_mode(0o000)).unwrap();
        modes(0o555, 0o444);
        let said = read().unwrap_err().to_string();
        assert!(said.contains("read it as its owner"), "{said}");
    }
    modes(0o755, 0o644);
}
