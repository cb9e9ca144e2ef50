//! A database for each test, and reads of it that bypass the logger.
#![allow(
    dead_code,
    clippy::allow_attributes,
    reason = "no test uses all helpers, and `expect` would fail in a test that does"
)]

use std::path::PathBuf;

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Text};
use failure_logger::{
    FailureLogger, LoggerConfig, LoggerHandle, RetrievalFailureRecord, RetrievalFailureType,
};
use tempfile::TempDir;

/// A folder with a database file that is deleted at the end of the test.
pub struct TestDb {
    pub folder: TempDir,
}

impl TestDb {
    pub fn new() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
        }
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("failures.db")
    }

    pub fn url(&self) -> String {
        self.path().to_str().expect("UTF-8").to_owned()
    }

    pub fn config(&self) -> LoggerConfig {
        LoggerConfig::new(self.url())
    }

    /// Returns `true` if a file in the folder of the database has the text.
    pub fn is_on_the_disk(&self, text: &str) -> bool {
        let files = std::fs::read_dir(self.folder.path()).unwrap();
        let mut files = files.map(|file| std::fs::read(file.unwrap().path()).unwrap());
        files.any(|bytes| {
            bytes
                .windows(text.len())
                .any(|window| window == text.as_bytes())
        })
    }

    pub fn spawn(&self) -> LoggerHandle {
        spawn(self.config())
    }

    pub fn connect(&self) -> SqliteConnection {
        let mut conn = SqliteConnection::establish(&self.url()).expect("connect");
        diesel::sql_query("PRAGMA busy_timeout = 10000")
            .execute(&mut conn)
            .expect("busy_timeout");
        conn
    }

    pub fn execute(&self, sql: &str) {
        diesel::connection::SimpleConnection::batch_execute(&mut self.connect(), sql).expect(sql);
    }

    pub fn integer(&self, sql: &str) -> i64 {
        #[derive(QueryableByName)]
        struct Cell {
            #[diesel(sql_type = BigInt)]
            value: i64,
        }
        let sql = format!("SELECT ({sql}) AS value");
        diesel::sql_query(&sql)
            .get_result::<Cell>(&mut self.connect())
            .expect(&sql)
            .value
    }

    /// Returns the text that created a table.
    pub fn schema(&self, table: &str) -> String {
        self.cell(&format!(
            "SELECT sql FROM sqlite_schema WHERE name = '{table}'"
        ))
    }

    pub fn pragma(&self, name: &str) -> String {
        self.cell(&format!("SELECT {name} FROM pragma_{name}"))
    }

    fn cell(&self, sql: &str) -> String {
        #[derive(QueryableByName)]
        struct Cell {
            #[diesel(sql_type = Text)]
            value: String,
        }
        let sql = format!("SELECT CAST(({sql}) AS TEXT) AS value");
        diesel::sql_query(&sql)
            .get_result::<Cell>(&mut self.connect())
            .expect(&sql)
            .value
    }

    pub fn rows(&self) -> i64 {
        self.integer("SELECT count(*) FROM memory_retrieval_failures")
    }

    /// Returns the number of counted attempts, each once.
    pub fn attempts(&self) -> i64 {
        self.integer(
            "SELECT coalesce((SELECT sum(attempts) FROM memory_retrieval_attempts_recent), 0) \
             + coalesce((SELECT sum(attempts) FROM memory_retrieval_attempts WHERE resolution = 86400), 0) \
             + (SELECT count(*) FROM memory_retrieval_failures \
                WHERE uncounted IS NOT NULL AND id > (SELECT rolled_up_to FROM memory_retrieval_log))",
        )
    }

    /// Returns the values of a column, in the order of the ids.
    pub fn texts(&self, column: &str) -> Vec<Option<String>> {
        #[derive(QueryableByName)]
        struct Cell {
            #[diesel(sql_type = Nullable<Text>)]
            value: Option<String>,
        }
        let sql = format!(
            "SELECT CAST({column} AS TEXT) AS value FROM memory_retrieval_failures ORDER BY id"
        );
        let cells: Vec<Cell> = diesel::sql_query(&sql)
            .load(&mut self.connect())
            .expect(&sql);
        cells.into_iter().map(|cell| cell.value).collect()
    }

    pub fn text(&self, column: &str) -> Option<String> {
        let mut all = self.texts(column);
        assert_eq!(all.len(), 1, "one row");
        all.remove(0)
    }

    pub fn turns(&self) -> Vec<i64> {
        self.texts("coalesce(turn_index, 0)")
            .into_iter()
            .map(|turn| turn.expect("a turn").parse().expect("a number"))
            .collect()
    }
}

/// Starts a logger and waits for the work of its start, so that nothing interferes with the test.
pub fn spawn(config: LoggerConfig) -> LoggerHandle {
    let logger = FailureLogger::spawn(config).expect("spawn");
    block_on(logger.flush()).expect("the first flush");
    logger
}

pub fn no_hit(turn: i64) -> RetrievalFailureRecord {
    RetrievalFailureRecord {
        turn_index: turn,
        ..RetrievalFailureRecord::new(RetrievalFailureType::NoHit, "semantic", "where is the key?")
    }
}

/// A second connection that holds the write lock until it is dropped: a gate before every flush.
pub struct Lock(SqliteConnection);

impl Lock {
    pub fn new(db: &TestDb) -> Self {
        let mut conn = db.connect();
        diesel::connection::SimpleConnection::batch_execute(&mut conn, "BEGIN IMMEDIATE")
            .expect("lock");
        Self(conn)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = diesel::connection::SimpleConnection::batch_execute(&mut self.0, "ROLLBACK");
    }
}

/// Calls `done` until it returns `true`. The test's own timeout is the limit.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !done() {
        assert!(
            start.elapsed() < std::time::Duration::from_secs(60),
            "still waiting: {what}"
        );
        std::thread::yield_now();
    }
}

/// Runs a future of the handle without any runtime.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    futures_executor::block_on(future)
}

/// Inserts rows that are `days` old.
pub fn age(db: &TestDb, rows: usize, days: u32) {
    db.execute(&format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
         INSERT INTO memory_retrieval_failures (event_id, turn_index, failure_type, retrieval_strategy, query_text,
             query_len, result_count, latency_ms, created_at)
         SELECT randomblob(16), -1, 'no_hit', 'semantic', 'old', 3, 0, 1, unixepoch() * 1000 - {days} * 86400000 FROM n"
    ));
}

pub fn old_rows(db: &TestDb) -> i64 {
    db.integer("SELECT count(*) FROM memory_retrieval_failures WHERE turn_index = -1")
}

/// Has the logger purge. Each flush but the first follows the purge that is due.
pub fn purge(logger: &LoggerHandle) {
    for turn in 0..3 {
        logger.log(no_hit(turn));
        block_on(logger.flush()).unwrap();
    }
}
