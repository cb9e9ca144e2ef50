//! Copies a log from one database to another, of the same kind or of another one.
//!
//! The source is read in one transaction, so that the copy is its state of one moment. The target
//! is written in many, one for each range of rows. Ids, moments and the id of the log stay, so that
//! cursors and positions of tail streams hold for the copy.
//!
//! A range that the target has already is left as it is. A second copy therefore writes nothing,
//! one that follows a crash resumes, and one that follows a copy brings it up to date.
//!
//! The target is empty, or an earlier copy: it has the id of the source then, and nothing that is
//! newer. Another one stays as it is, because a copy deletes what the source does not have.

use std::ops::Range;
use std::path::PathBuf;

use crate::config::Location;
use crate::error::{ConfigError, StartError, StoreError};
use crate::store;
use crate::store::copy::{BY_MINUTE, RETENTION, Readable, Sum, TABLES, Table, Writable};

/// Rows of a range. A row has about 4 KB at most, so that both sides take some 30 MB at most.
const ROWS_PER_RANGE: i64 = 4096;

/// Reason why a copy ended early. What was copied stays, and the next copy resumes.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// Correct the setting.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Name a file or a server: a log in memory ends with its process.
    #[error("database_url = :memory:: cannot be copied; name a file or a server")]
    Memory,
    /// Name the file of a log.
    #[error("there is no database {}; name the file of a log", .0.display())]
    Missing(PathBuf),
    /// Name two databases.
    #[error("both names lead to the same database; name another one")]
    Same,
    /// Name an empty database.
    #[error(
        "the target has a log of its own ({table}: not empty); name an empty database, or the \
         earlier copy of this source"
    )]
    Occupied {
        /// A table that is not empty.
        table: &'static str,
    },
    /// Name another database: a logger has written this copy since it was made.
    #[error(
        "the target is newer than the source ({table}): a logger has written it since it was \
         copied; name an empty database"
    )]
    Newer {
        /// The table with newer rows.
        table: &'static str,
    },
    /// Do what the error says.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Do what the [`StoreError`] says.
    #[error("the source failed: {0}; run the copy once more, which resumes it")]
    Source(StoreError),
    /// Do what the [`StoreError`] says.
    #[error("the target failed: {0}; run the copy once more, which resumes it")]
    Target(StoreError),
}

impl From<StoreError> for CopyError {
    fn from(error: StoreError) -> Self {
        Self::Source(error)
    }
}

#[cfg(feature = "postgres")]
impl store::postgres::KeepsConnection for CopyError {
    /// No connection is used after its copy.
    fn keeps_connection(&self) -> bool {
        false
    }
}

/// Step of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyPhase {
    /// Rows are read from the source, and written unless the target has them.
    Copying,
    /// The rows of the target are read once more.
    Comparing,
}

/// Rows of a table in one database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Content {
    /// Number of rows.
    pub rows: u64,
    /// Sum of a hash of each row.
    pub sum: u128,
}

/// Result for one table.
#[derive(Debug, Clone)]
pub struct CopiedTable {
    /// Name of the table, or of a part of it.
    pub table: &'static str,
    /// Rows that this copy wrote.
    pub written: u64,
    /// Rows of the source, as the target can store them.
    pub source: Content,
    /// Rows of the target after the copy.
    pub target: Content,
}

/// Result of a copy.
#[derive(Debug, Clone, Default)]
pub struct CopyReport {
    /// All tables, in the order in which they were copied.
    pub tables: Vec<CopiedTable>,
}

impl CopyReport {
    /// Returns `true` if both databases have the same rows.
    pub fn is_equal(&self) -> bool {
        self.tables.iter().all(|table| table.source == table.target)
    }
}

impl Content {
    /// Returns the sum as text: 16 hexadecimal digits of it.
    pub fn digits(&self) -> String {
        format!("{:016x}", self.sum & u128::from(u64::MAX))
    }
}

impl From<Sum> for Content {
    fn from(Sum { rows, sum }: Sum) -> Self {
        Self { rows, sum }
    }
}

/// Copies the log at `from` to `to`. With `migrate`, the schema of `to` may change.
pub(crate) fn copy(
    from: &Location,
    to: &Location,
    migrate: bool,
    progress: &mut dyn FnMut(CopyPhase, u64, u64),
) -> Result<CopyReport, CopyError> {
    if let Location::File(path) = from
        && !path.exists()
    {
        return Err(CopyError::Missing(path.clone()));
    }
    let mut report = CopyReport::default();
    store::copy_source(from, &mut |source| {
        let mut target = store::copy_target(to, migrate)?;
        report = copy_log(source, &mut *target, progress)?;
        Ok(())
    })?;
    Ok(report)
}

fn copy_log(
    source: &mut dyn Readable,
    target: &mut dyn Writable,
    progress: &mut dyn FnMut(CopyPhase, u64, u64),
) -> Result<CopyReport, CopyError> {
    let log = source.log()?;
    check(source, target)?;
    // First: a logger that starts on an unfinished copy gives no id twice, and the next copy knows
    // its target by the id of the log.
    if target.log().map_err(CopyError::Target)? != log {
        target.put_log(&log).map_err(CopyError::Target)?;
    }
    let mut all = 0;
    for table in &TABLES {
        all += source.count(table)?;
    }
    let mut done = 0;
    let mut report = CopyReport::default();
    for table in &TABLES {
        let (mut sum, mut written) = (Sum::default(), 0);
        let mut from = Some(i64::MIN);
        while let Some(start) = from {
            let range = next_range(source, table, start)?;
            let copied = copy_range(source, target, table, range.keys)?;
            sum = sum.plus(copied.sum);
            written += copied.written;
            done += copied.sum.rows;
            progress(CopyPhase::Copying, done, all);
            from = range.next;
        }
        report.tables.push(CopiedTable {
            table: table.title,
            written,
            source: sum.into(),
            target: Content::default(),
        });
    }
    done = 0;
    for (table, copied) in TABLES.iter().zip(&mut report.tables) {
        let mut sum = Sum::default();
        let mut from = Some(i64::MIN);
        while let Some(start) = from {
            let range = next_range(target, table, start).map_err(CopyError::Target)?;
            let rows = target
                .read(table, range.keys, i64::MAX)
                .map_err(CopyError::Target)?;
            sum = sum.plus(Sum::of(&rows));
            done += rows.len() as u64;
            progress(CopyPhase::Comparing, done, all);
            from = range.next;
        }
        copied.target = sum.into();
    }
    Ok(report)
}

/// Fails unless the target is empty, or a copy that is not newer than the source.
fn check(source: &mut dyn Readable, target: &mut dyn Writable) -> Result<(), CopyError> {
    if source.identity()? == target.identity().map_err(CopyError::Target)? {
        return Err(CopyError::Same);
    }
    let (theirs, ours) = (source.log()?, target.log().map_err(CopyError::Target)?);
    if theirs.log_id == ours.log_id {
        let newest = [
            newest_attempt(source)?,
            newest_attempt(target).map_err(CopyError::Target)?,
        ];
        return if ours.newest_id > theirs.newest_id {
            Err(CopyError::Newer { table: "failures" })
        } else if newest[1] > newest[0] {
            Err(CopyError::Newer { table: "attempts" })
        } else {
            Ok(())
        };
    }
    for table in &TABLES {
        let is_empty = target.last_key(table).map_err(CopyError::Target)?.is_none();
        // A logger that ran once has stored its retention.
        if !is_empty && table.title != RETENTION {
            return Err(CopyError::Occupied { table: table.title });
        }
    }
    Ok(())
}

/// Returns the minute of the newest attempt. `None`: there is none.
fn newest_attempt<S: Readable + ?Sized>(side: &mut S) -> Result<Option<i64>, StoreError> {
    let mut newest = None;
    for table in TABLES
        .iter()
        .filter(|table| BY_MINUTE.contains(&table.title))
    {
        newest = newest.max(side.last_key(table)?);
    }
    Ok(newest)
}

/// Keys of some rows, and the first key after them.
struct NextRange {
    keys: Range<i64>,
    /// `None`: the range has the last row.
    next: Option<i64>,
}

/// Returns a range of a bounded number of rows. More rows may have the same key: as many as there
/// are strategies, outcomes and sources in a minute.
fn next_range<S: Readable + ?Sized>(
    side: &mut S,
    table: &Table,
    start: i64,
) -> Result<NextRange, StoreError> {
    let end = side.range_end(table, start, ROWS_PER_RANGE)?;
    let next = end.map(|end| end.max(start.saturating_add(1)));
    Ok(NextRange {
        keys: start..next.unwrap_or(i64::MAX),
        next,
    })
}

/// What the copy of a range did.
struct CopiedRange {
    /// Of the rows of the source, as the target stores them.
    sum: Sum,
    written: u64,
}

fn copy_range(
    source: &mut dyn Readable,
    target: &mut dyn Writable,
    table: &Table,
    keys: Range<i64>,
) -> Result<CopiedRange, CopyError> {
    let mut rows = source.read(table, keys.clone(), i64::MAX)?;
    target.adapt(&mut rows);
    let sum = Sum::of(&rows);
    // One more tells that the target has others.
    let limit = i64::try_from(rows.len()).unwrap_or(i64::MAX);
    let there = target
        .read(table, keys.clone(), limit.saturating_add(1))
        .map_err(CopyError::Target)?;
    if Sum::of(&there) == sum {
        return Ok(CopiedRange { sum, written: 0 });
    }
    target
        .replace(table, keys, &rows)
        .map_err(CopyError::Target)?;
    Ok(CopiedRange {
        sum,
        written: sum.rows,
    })
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::store::sqlite::peer::Peer;

    /// Two ranges of failures and a part of a third one, and a row of each other table.
    const FAILURES: i64 = 10_000;
    const FILL: &str = "
        INSERT INTO memory_retrieval_sources VALUES (3, 'search', '{\"version\":\"2\"}');
        WITH RECURSIVE n (id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n WHERE id < 10000)
        INSERT INTO memory_retrieval_failures
        SELECT
            2 * id, CAST(printf('%016d', id) AS BLOB), 'c' || id % 7, id % 3, 'timeout', 'semantic', 'query ' || id, 9,
            id / 3.0, NULL, NULL, id, '[\"a\"]', 'context', 1700000000000 + id, nullif(id % 3, 0), nullif(id % 2, 0) * 3
        FROM n;
        INSERT INTO memory_retrieval_attempts VALUES
            (60, 1700000040000, 'semantic', 'success', 3, 7, 0, x'00ff', NULL),
            (60, 1700000040000, 'Semantic', 'success', 0, 7, 0, NULL, x''),
            (3600, 1699999200000, 'semantic', 'timeout', 0, 8, 1, NULL, NULL),
            (86400, 1699920000000, 'semantic', 'timeout', 0, 8, 1, NULL, NULL);
        INSERT INTO memory_retrieval_attempts_recent VALUES
            (x'000102030405060708090a0b0c0d0e0f', 1700000040000, 'semantic', 'success', 7, 0, x'01', x'02', -9, 3);
        INSERT INTO memory_retrieval_strategies VALUES ('semantic', 0.1, 1, NULL, 5), ('graph', NULL, 0, 20, 5);
        INSERT INTO memory_retrieval_query_statuses VALUES ('who', 'ignored', 4, 1), ('where', 'open', 4, 2);
        INSERT INTO memory_retrieval_drops VALUES (60000, 'buffer_full', 4), (60000, 'too_old', 9);
        UPDATE memory_retrieval_retention SET failures_days = 0, trusted_at = -1, trusted_boot = 'b';
        UPDATE memory_retrieval_log SET rolled_up_to = 19000, starts_after = 1";

    struct Files {
        folder: tempfile::TempDir,
    }

    impl Files {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            Self { folder }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn file(&self, name: &str) -> Location {
            Location::File(self.path(name))
        }

        /// Returns a file with rows in all tables.
        fn filled(&self) -> (Location, Peer) {
            let location = self.file("filled.db");
            drop(store::backend(&location, 1, true).open().unwrap());
            let mut peer = Peer::open(&self.path("filled.db"));
            peer.execute(FILL);
            (location, peer)
        }
    }

    fn copied(from: &Location, to: &Location) -> CopyReport {
        let report = copy(from, to, true, &mut |_, _, _| ()).unwrap();
        assert!(report.is_equal(), "{report:?}");
        report
    }

    fn refusal(from: &Location, to: &Location) -> String {
        copy(from, to, true, &mut |_, _, _| ())
            .unwrap_err()
            .to_string()
    }

    fn written(report: &CopyReport) -> u64 {
        report.tables.iter().map(|table| table.written).sum()
    }

    fn contents(report: &CopyReport) -> Vec<Content> {
        report.tables.iter().map(|table| table.source).collect()
    }

    /// Copies to an empty log and back.
    fn there_and_back(files: &Files, there: &Location) {
        let (source, mut peer) = files.filled();
        let first = copied(&source, there);
        let by_table: Vec<_> = first.tables.iter().map(|table| table.source.rows).collect();
        assert_eq!(by_table, [1, FAILURES as u64, 2, 1, 1, 1, 2, 2, 2, 1]);
        assert_eq!(written(&first), by_table.iter().sum::<u64>());
        assert_eq!(
            written(&copied(&source, there)),
            0,
            "a second copy changes nothing"
        );

        let back = files.file("back.db");
        assert_eq!(contents(&copied(there, &back)), contents(&first));
        assert_eq!(
            written(&copied(&source, &back)),
            0,
            "the copy of the copy is the source"
        );
        let log =
            "SELECT hex(log_id) || starts_after || ' ' || rolled_up_to FROM memory_retrieval_log";
        assert_eq!(Peer::open(&files.path("back.db")).text(log), peer.text(log));
    }

    /// Changes the source after a copy, and copies it once more.
    fn up_to_date(files: &Files, target: &Location) {
        let (source, mut peer) = files.filled();
        copied(&source, target);
        peer.execute(
            "DELETE FROM memory_retrieval_failures WHERE id = 8; \
             INSERT INTO memory_retrieval_failures (id, event_id, failure_type, retrieval_strategy, query_text, \
             query_len, created_at) VALUES (30000, zeroblob(16), 'error', 's', 'q', 1, 1700000000000); \
             DELETE FROM memory_retrieval_query_statuses WHERE query = 'where'; \
             DELETE FROM memory_retrieval_attempts_recent; \
             UPDATE memory_retrieval_attempts SET attempts = 14 WHERE strategy = 'semantic' AND resolution = 60; \
             UPDATE memory_retrieval_log SET rolled_up_to = 20000",
        );
        let second = copied(&source, target);
        assert_eq!(second.tables[1].source.rows, FAILURES as u64);
        assert!(
            (1..FAILURES as u64).contains(&second.tables[1].written),
            "{second:?}"
        );
        assert_eq!(written(&copied(&source, target)), 0);
    }

    /// Ends a copy in its middle, as a crash would.
    fn resumed(files: &Files, target: &Location) {
        let (source, _peer) = files.filled();
        let crashed = catch_unwind(AssertUnwindSafe(|| {
            copy(&source, target, true, &mut |_, done, _| {
                assert!(done <= 4096, "injected");
            })
        }));
        assert!(crashed.is_err());
        let rest = copied(&source, target);
        let written = rest.tables[1].written;
        assert!((1..FAILURES as u64).contains(&written), "{rest:?}");
    }

    /// A log that is not a copy, or more than that, stays as it is.
    fn refused(files: &Files, target: &Location) {
        let (source, mut peer) = files.filled();
        copied(&source, target);
        assert!(refusal(target, target).contains("the same database"));
        // A logger wrote to the copy: here, the source lacks what the copy has.
        peer.execute(
            "DELETE FROM memory_retrieval_failures WHERE id > 19000; \
             UPDATE memory_retrieval_log SET largest_deleted_id = 19000",
        );
        assert!(refusal(&source, target).contains("newer than the source (failures)"));
        peer.execute(
            "UPDATE memory_retrieval_log SET largest_deleted_id = 20000; \
             UPDATE memory_retrieval_attempts SET started_at = 0 WHERE resolution = 60; \
             DELETE FROM memory_retrieval_attempts_recent",
        );
        assert!(refusal(&source, target).contains("newer than the source (attempts)"));
        peer.execute("UPDATE memory_retrieval_log SET log_id = zeroblob(16)");
        assert!(refusal(&source, target).contains("a log of its own (sources"));
    }

    #[test]
    fn copy_to_a_file_and_back_is_equal() {
        let files = Files::new();
        there_and_back(&files, &files.file("there.db"));
    }

    #[test]
    fn later_copy_to_a_file_writes_what_changed() {
        let files = Files::new();
        up_to_date(&files, &files.file("target.db"));
    }

    #[test]
    fn copy_to_a_file_resumes_after_a_crash() {
        let files = Files::new();
        resumed(&files, &files.file("target.db"));
    }

    #[test]
    fn file_with_another_log_is_refused() {
        let files = Files::new();
        refused(&files, &files.file("target.db"));
    }

    #[test]
    fn source_that_is_no_log_of_this_version_is_refused() {
        let files = Files::new();
        let (source, mut peer) = files.filled();
        let target = files.file("target.db");
        assert!(refusal(&files.file("missing.db"), &target).contains("there is no database"));
        assert!(refusal(&Location::Memory, &target).contains(":memory:"));
        assert!(refusal(&source, &Location::Memory).contains(":memory:"));
        std::fs::write(files.path("text.db"), "no database").unwrap();
        assert!(refusal(&files.file("text.db"), &target).contains("not an SQLite database"));
        peer.execute("DELETE FROM memory_retrieval_migrations WHERE version > '20261128'");
        assert!(refusal(&source, &target).contains("too old"));
        peer.execute("INSERT INTO memory_retrieval_migrations (version) VALUES ('99990101')");
        assert!(refusal(&source, &target).contains("too new"));
        assert!(!files.path("target.db").exists());
    }

    #[cfg(feature = "postgres")]
    mod postgres {
        use super::*;
        use crate::store::postgres::server::TestDatabase;

        fn location(database: &TestDatabase) -> Location {
            Location::Postgres(database.url.clone().into())
        }

        #[test]
        #[ignore = "needs PostgreSQL's programs, or the server of TEST_DATABASE_URL"]
        fn copy_to_a_server_and_back_is_equal() {
            there_and_back(&Files::new(), &location(&TestDatabase::new()));
        }

        #[test]
        #[ignore = "needs PostgreSQL's programs, or the server of TEST_DATABASE_URL"]
        fn copy_between_two_servers_is_equal() {
            let (first, second) = (TestDatabase::new(), TestDatabase::new());
            let files = Files::new();
            let (source, _peer) = files.filled();
            copied(&source, &location(&first));
            copied(&location(&first), &location(&second));
            assert_eq!(written(&copied(&source, &location(&second))), 0);
        }

        #[test]
        #[ignore = "needs PostgreSQL's programs, or the server of TEST_DATABASE_URL"]
        fn later_copy_to_a_server_writes_what_changed() {
            up_to_date(&Files::new(), &location(&TestDatabase::new()));
        }

        #[test]
        #[ignore = "needs PostgreSQL's programs, or the server of TEST_DATABASE_URL"]
        fn copy_to_a_server_resumes_after_a_crash() {
            resumed(&Files::new(), &location(&TestDatabase::new()));
        }

        #[test]
        #[ignore = "needs PostgreSQL's programs, or the server of TEST_DATABASE_URL"]
        fn server_with_another_log_is_refused() {
            refused(&Files::new(), &location(&TestDatabase::new()));
        }

        #[test]
        #[ignore = "needs PostgreSQL's programs, or the server of TEST_DATABASE_URL"]
        fn text_with_nul_is_copied_as_a_logger_stores_it() {
            let (files, database) = (Files::new(), TestDatabase::new());
            let (source, mut peer) = files.filled();
            peer.execute(
                "UPDATE memory_retrieval_failures SET query_text = 'a' || char(0) WHERE id = 2",
            );
            copied(&source, &location(&database));
            assert_eq!(written(&copied(&source, &location(&database))), 0);
            copied(&location(&database), &files.file("back.db"));
            let query = "SELECT query_text FROM memory_retrieval_failures WHERE id = 2";
            assert_eq!(Peer::open(&files.path("back.db")).text(query), "a\u{2400}");
        }
    }
}
