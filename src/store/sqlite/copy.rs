//! A log in a file, as `copy` reads and writes it.

use std::ops::Range;
use std::path::Path;

use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Binary, Bool, Float, Nullable, Text};

use crate::error::{MigrationError, StartError, StoreError};
use crate::store::backend::Backend as _;
use crate::store::copy::{Log, Readable, Row, Table, Value, Writable};
use crate::store::sqlite::database::Database;
use crate::store::sqlite::errors::{classify, classify_text};
use crate::store::sqlite::file::DatabaseFile;
use crate::store::sqlite::migrate::Versions;
use crate::store::sqlite::models::LARGEST_ID;
use crate::store::sqlite::pool::BUSY_TIMEOUT;

/// Rows of one statement: at most 17 values each.
const ROWS_PER_STATEMENT: usize = 64;

/// A connection to the file.
pub(crate) struct CopyFile {
    file: DatabaseFile,
    conn: SqliteConnection,
}

impl CopyFile {
    /// Opens a log to read it. All reads see its present state, whatever other processes write. The
    /// schema must be that of this version.
    pub(crate) fn source(path: &Path) -> Result<Self, StartError> {
        let file = DatabaseFile::new(path);
        file.check_type()?;
        // The last connection to close a file removes its journal, which only one that may write
        // can.
        let mut conn = SqliteConnection::establish(&file.read_write_url())
            .or_else(|_| SqliteConnection::establish(&file.read_only_url()))
            .map_err(|error| classify_text(&error.to_string()))?;
        let timeout = format!("PRAGMA busy_timeout = {}; BEGIN", BUSY_TIMEOUT.as_millis());
        conn.batch_execute(&timeout)
            .map_err(|error| unusable(path, classify(&error)))?;
        let Versions { found, needed } =
            Versions::read(&mut conn).map_err(|error| match error {
                MigrationError::TooNew { found, needed } => StartError::SchemaTooNew {
                    path: path.into(),
                    found,
                    needed,
                },
                MigrationError::Store(error) => unusable(path, error),
                error => StartError::Incompatible {
                    path: path.into(),
                    cause: error.to_string(),
                },
            })?;
        if found != needed {
            return Err(StartError::SchemaTooOld {
                path: path.into(),
                found,
                needed,
            });
        }
        Ok(Self { file, conn })
    }

    /// Opens a log to write it. Creates a missing one, and updates its schema if it may.
    pub(crate) fn target(path: &Path, migrate: bool) -> Result<Self, StartError> {
        drop(Database::file(path, 1).migrate(migrate).open()?);
        let file = DatabaseFile::new(path);
        let mut conn = SqliteConnection::establish(&file.read_write_url())
            .map_err(|error| classify_text(&error.to_string()))?;
        // A row that an application refers to is deleted only to be inserted with the same id.
        let settings = format!(
            "PRAGMA busy_timeout = {}; PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = OFF",
            BUSY_TIMEOUT.as_millis()
        );
        conn.batch_execute(&settings)
            .map_err(|error| unusable(path, classify(&error)))?;
        Ok(Self { file, conn })
    }

    fn transact(
        &mut self,
        work: impl FnOnce(&mut SqliteConnection) -> QueryResult<()>,
    ) -> Result<(), StoreError> {
        self.conn
            .immediate_transaction(work)
            .map_err(|error| classify(&error))
    }
}

fn unusable(path: &Path, error: StoreError) -> StartError {
    match error {
        StoreError::Corrupt(_) => StartError::NotADatabase { path: path.into() },
        error => StartError::Store(error),
    }
}

#[derive(QueryableByName)]
struct Number {
    #[diesel(sql_type = Nullable<BigInt>)]
    number: Option<i64>,
}

impl Readable for CopyFile {
    fn log(&mut self) -> Result<Log, StoreError> {
        #[derive(QueryableByName)]
        struct LogRow {
            #[diesel(sql_type = Binary)]
            log_id: Vec<u8>,
            #[diesel(sql_type = BigInt)]
            starts_after: i64,
            #[diesel(sql_type = BigInt)]
            newest_id: i64,
            #[diesel(sql_type = BigInt)]
            rolled_up_to: i64,
        }
        let sql = format!(
            "SELECT log_id, starts_after, rolled_up_to, ({LARGEST_ID}) AS newest_id \
             FROM memory_retrieval_log"
        );
        let LogRow {
            log_id,
            starts_after,
            newest_id,
            rolled_up_to,
        } = diesel::sql_query(sql)
            .get_result(&mut self.conn)
            .map_err(|error| classify(&error))?;
        Ok(Log {
            log_id,
            starts_after,
            newest_id,
            rolled_up_to,
        })
    }

    fn count(&mut self, table: &Table) -> Result<u64, StoreError> {
        let sql = format!(
            "SELECT count(*) AS number FROM {} WHERE {} IS NOT NULL",
            table.name,
            table.condition()
        );
        let Number { number } = diesel::sql_query(sql)
            .get_result(&mut self.conn)
            .map_err(|error| classify(&error))?;
        Ok(number
            .and_then(|rows| u64::try_from(rows).ok())
            .unwrap_or(0))
    }

    fn range_end(
        &mut self,
        table: &Table,
        from: i64,
        rows: i64,
    ) -> Result<Option<i64>, StoreError> {
        let (name, key, condition) = (table.name, table.key, table.condition());
        let sql = format!(
            "SELECT {key} AS number FROM {name} WHERE {condition} >= ? ORDER BY {key} LIMIT 1 OFFSET ?"
        );
        let end: Option<Number> = diesel::sql_query(sql)
            .bind::<BigInt, _>(from)
            .bind::<BigInt, _>(rows)
            .get_result(&mut self.conn)
            .optional()
            .map_err(|error| classify(&error))?;
        Ok(end.and_then(|end| end.number))
    }

    fn read(
        &mut self,
        table: &Table,
        keys: Range<i64>,
        limit: i64,
    ) -> Result<Vec<Row>, StoreError> {
        let (name, key, condition) = (table.name, table.key, table.condition());
        let columns = table.selected(|name, _| name.to_owned());
        let sql =
            format!("SELECT {columns} FROM {name} WHERE {condition} >= ? AND {key} < ? LIMIT ?");
        diesel::sql_query(sql)
            .bind::<BigInt, _>(keys.start)
            .bind::<BigInt, _>(keys.end)
            .bind::<BigInt, _>(limit)
            .load(&mut self.conn)
            .map_err(|error| classify(&error))
    }

    fn last_key(&mut self, table: &Table) -> Result<Option<i64>, StoreError> {
        let sql = format!(
            "SELECT max({}) AS number FROM {} WHERE {} IS NOT NULL",
            table.key,
            table.name,
            table.condition()
        );
        diesel::sql_query(sql)
            .get_result(&mut self.conn)
            .map(|Number { number }| number)
            .map_err(|error| classify(&error))
    }

    fn identity(&mut self) -> Result<String, StoreError> {
        Ok(format!("{:?}", self.file.identity().ok().flatten()))
    }
}

impl Writable for CopyFile {
    fn put_log(&mut self, log: &Log) -> Result<(), StoreError> {
        self.transact(|conn| {
            diesel::sql_query(
                "UPDATE memory_retrieval_log SET log_id = ?, starts_after = ?, \
                 largest_deleted_id = ?, rolled_up_to = ?",
            )
            .bind::<Binary, _>(&log.log_id)
            .bind::<BigInt, _>(log.starts_after)
            .bind::<BigInt, _>(log.newest_id)
            .bind::<BigInt, _>(log.rolled_up_to)
            .execute(conn)
            .map(drop)
        })
    }

    fn replace(&mut self, table: &Table, keys: Range<i64>, rows: &[Row]) -> Result<(), StoreError> {
        let (name, key, condition) = (table.name, table.key, table.condition());
        let delete = format!("DELETE FROM {name} WHERE {condition} >= ? AND {key} < ?");
        let placeholders = vec!["?"; table.columns.len()].join(", ");
        self.transact(|conn| {
            diesel::sql_query(delete)
                .bind::<BigInt, _>(keys.start)
                .bind::<BigInt, _>(keys.end)
                .execute(conn)?;
            for rows in rows.chunks(ROWS_PER_STATEMENT) {
                let values = vec![format!("({placeholders})"); rows.len()].join(", ");
                let insert = format!("INSERT INTO {name} ({}) VALUES {values}", table.names());
                let mut insert = diesel::sql_query(insert).into_boxed();
                for value in rows.iter().flat_map(|Row(values)| values) {
                    insert = match value {
                        Value::Missing => insert.bind::<Nullable<BigInt>, _>(None::<i64>),
                        Value::Number(number) => insert.bind::<BigInt, _>(*number),
                        Value::Score(score) => insert.bind::<Float, _>(*score),
                        Value::Text(text) => insert.bind::<Text, _>(text),
                        Value::Bytes(bytes) => insert.bind::<Binary, _>(bytes),
                        Value::Flag(flag) => insert.bind::<Bool, _>(*flag),
                    };
                }
                insert.execute(conn)?;
            }
            Ok(())
        })
    }

    /// Does nothing, because SQLite stores what any logger stored.
    fn adapt(&self, _: &mut [Row]) {}
}
