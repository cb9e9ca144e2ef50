//! The locks that SQLite holds on the database file survive whatever a logger does in the same
//! process.
//!
//! SQLite's locks belong to the process, and the kernel releases all of them as soon as the process
//! closes any descriptor of the file. Another process may then delete the journal under open
//! connections.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use common::{FaultDb, TestDb, block_on, eventually, no_hit};
use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use failure_logger::{FailureLogger, LogOutcome, LoggerConfig, LoggerHandle};

/// The file that the child process of a test reads.
const DATABASE: &str = "FAILURE_LOGGER_TEST_LOCKS_DATABASE";
/// A `sqlite3` program that reads the file instead.
const SQLITE3: &str = "FAILURE_LOGGER_TEST_SQLITE3";
const NEVER: Duration = Duration::from_secs(24 * 60 * 60);

fn config(db: &TestDb) -> LoggerConfig {
    db.config()
        .flush_interval(NEVER)
        .backoff(Duration::from_millis(1), Duration::from_millis(20))
}

/// Returns a connection of the application. It holds SQLite's shared lock from its first read on.
fn application(db: &TestDb) -> SqliteConnection {
    let mut conn = db.connect();
    conn.batch_execute(
        "PRAGMA journal_mode = WAL; PRAGMA user_version = 7; SELECT * FROM sqlite_schema",
    )
    .unwrap();
    conn
}

/// Counts the kernel's read and write locks of this process on the inode.
fn kernel_locks(inode: u64) -> usize {
    let process = std::process::id().to_string();
    let locks = fs::read_to_string("/proc/locks").unwrap();
    let is_ours = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(1) == Some(&"POSIX")
            && fields.get(4) == Some(&process.as_str())
            && fields
                .get(5)
                .is_some_and(|file| file.ends_with(&format!(":{inode}")))
    };
    locks.lines().filter(is_ours).count()
}

fn inode(path: &Path) -> u64 {
    fs::metadata(path).unwrap().ino()
}

fn restart(logger: &LoggerHandle) {
    let restarts = logger.stats().restarts;
    fail::cfg("flush", "1*panic->off").unwrap();
    assert_eq!(logger.log(no_hit(-1)), LogOutcome::Queued);
    let _ = block_on(logger.flush());
    eventually("the restart", || logger.stats().restarts > restarts);
    eventually("a flush", || block_on(logger.flush()).is_ok());
}

#[test]
fn application_lock_survives_start_restart_and_shutdown() {
    let db = FaultDb::new();
    let mut conn = application(&db);
    let (file, index) = (
        inode(&db.path()),
        inode(&db.path().with_extension("db-shm")),
    );
    let held = |when: &str| {
        assert!(
            kernel_locks(file) > 0 && kernel_locks(index) > 0,
            "lost {when}"
        )
    };
    held("before the start");
    let logger = FailureLogger::spawn(config(&db)).unwrap();
    held("at the start");
    let second = FailureLogger::spawn(config(&db)).unwrap();
    held("at the start of a second logger");
    restart(&logger);
    held("at a restart");
    block_on(logger.reader().get(uuid::Uuid::nil())).unwrap();
    held("by a reader");
    let _ = block_on(logger.import_reference(db.path()));
    held("by an import that reads the same file");
    for logger in [logger, second] {
        block_on(logger.shutdown()).unwrap();
        held("at a shutdown");
    }
    // Locks on other files must not count for this one.
    conn.batch_execute("PRAGMA wal_checkpoint(TRUNCATE)")
        .unwrap();
    drop(conn);
    assert_eq!(kernel_locks(file), 0);
}

#[test]
fn application_lock_survives_a_quarantine() {
    let db = FaultDb::new();
    let logger = FailureLogger::spawn(config(&db)).unwrap();
    logger.log(no_hit(0));
    block_on(logger.flush()).unwrap();
    let _conn = application(&db);
    let damaged = inode(&db.path());
    db.execute(
        "PRAGMA writable_schema = ON;
         UPDATE sqlite_schema SET sql = 'CREATE TABLE nonsense (' WHERE name = 'memory_retrieval_failures';
         PRAGMA schema_version = 1000",
    );
    logger.log(no_hit(1));
    let _ = block_on(logger.flush());
    eventually("the new file", || block_on(logger.flush()).is_ok());
    assert_ne!(inode(&db.path()), damaged, "quarantined");
    assert!(
        kernel_locks(damaged) > 0,
        "the application still has the damaged file open"
    );
    let (new, log) = (inode(&db.path()), logger);
    assert!(kernel_locks(new) > 0);
    block_on(log.shutdown()).unwrap();
}

/// A process that opens the database, reads it and closes it.
enum OtherProcess {
    /// This program, started once, with the SQLite that is built in. It does its work once for each
    /// line of its input.
    Test {
        process: Child,
        work: ChildStdin,
        done: std::io::Lines<BufReader<ChildStdout>>,
    },
    /// A `sqlite3` program, started for each round. Older versions check less before they delete a
    /// journal.
    Sqlite3 { program: String, url: String },
}

impl OtherProcess {
    fn start(test: &str, db: &TestDb) -> Self {
        if let Ok(program) = std::env::var(SQLITE3) {
            return Self::Sqlite3 {
                program,
                url: db.url(),
            };
        }
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args([test, "--exact", "--nocapture", "--test-threads=1"])
            .env(DATABASE, db.url())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (work, done) = (
            process.stdin.take().unwrap(),
            process.stdout.take().unwrap(),
        );
        Self::Test {
            process,
            work,
            done: BufReader::new(done).lines(),
        }
    }

    fn open_read_close(&mut self) {
        match self {
            Self::Test { work, done, .. } => {
                writeln!(work, "go").unwrap();
                assert!(
                    done.by_ref()
                        .map_while(Result::ok)
                        .any(|line| line == "closed")
                );
            }
            Self::Sqlite3 { program, url } => {
                let read = Command::new(program)
                    .args([url, "SELECT count(*) FROM orders"])
                    .output()
                    .unwrap();
                assert!(read.status.success(), "{read:?}");
            }
        }
    }

    /// Runs the part of the other process, if this is it. Returns `true` if so.
    fn run() -> bool {
        let Ok(database) = std::env::var(DATABASE) else {
            return false;
        };
        for _ in std::io::stdin().lock().lines() {
            let mut conn = SqliteConnection::establish(&database).unwrap();
            conn.batch_execute("PRAGMA busy_timeout = 10000; SELECT count(*) FROM orders")
                .unwrap();
            drop(conn);
            println!("\nclosed");
        }
        true
    }
}

impl Drop for OtherProcess {
    fn drop(&mut self) {
        if let Self::Test { process, .. } = self {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Returns the number of rounds: a hundred, or as many as the environment says.
fn rounds() -> i64 {
    std::env::var("FAILURE_LOGGER_TEST_LOCK_ROUNDS").map_or(100, |rounds| rounds.parse().unwrap())
}

#[test]
fn process_that_opens_and_closes_the_file_loses_no_commit() {
    if OtherProcess::run() {
        return;
    }
    let db = FaultDb::new();
    let mut conn = application(&db);
    conn.batch_execute("CREATE TABLE orders (id INTEGER PRIMARY KEY)")
        .unwrap();
    let loggers = [(); 2].map(|()| FailureLogger::spawn(config(&db)).unwrap());
    let mut other = OtherProcess::start(
        "process_that_opens_and_closes_the_file_loses_no_commit",
        &db,
    );
    let mut sent = BTreeSet::new();
    for round in 0..rounds() {
        conn.batch_execute(&format!("INSERT INTO orders VALUES ({round})"))
            .unwrap();
        for (logger, turn) in loggers.iter().zip(2 * round..) {
            assert_eq!(logger.log(no_hit(turn)), LogOutcome::Queued);
            block_on(logger.flush()).unwrap();
            sent.insert(turn);
        }
        if round % 10 == 5 {
            restart(&loggers[usize::from(round % 20 == 5)]);
        }
        other.open_read_close();
        // A new connection reads what is in the file and its journal.
        assert_eq!(
            db.integer("SELECT count(*) FROM orders"),
            round + 1,
            "acknowledged commits of the application"
        );
    }
    for logger in &loggers {
        let stats = block_on(logger.shutdown()).unwrap().stats;
        assert!(
            stats.is_balanced() && stats.dropped.total() == 0,
            "{stats:?}"
        );
    }
    drop(conn);
    let stored: Vec<i64> = db.turns().into_iter().filter(|turn| *turn >= 0).collect();
    assert_eq!(stored.len(), sent.len(), "each record is stored once");
    assert_eq!(stored.into_iter().collect::<BTreeSet<_>>(), sent);
    assert_eq!(
        db.integer("SELECT count(*) FROM pragma_integrity_check WHERE integrity_check = 'ok'"),
        1
    );
}
