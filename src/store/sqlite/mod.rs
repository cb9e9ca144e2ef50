//! All SQL of SQLite.
//!
//! | file | content |
//! | --- | --- |
//! | `database` | opens, prepares and writes a file: the `Backend` and the `Store` |
//! | `reader`, `snapshot` | the connections of readers, and their reads |
//! | `pool`, `checkpoint` | the connections, and the write-ahead log |
//! | `file` | the file as the file system sees it |
//! | `application`, `embed` | the pool of an application, and what it may use |
//! | `migrate`, `schema` | the schema, and its versions |
//! | `models`, `failures`, `uncounted`, `attempts`, `statuses`, `drops`, `retention`, `log`, `delete` | the statements of one table, or of one purpose |
//! | `errors`, `functions` | errors by their remedy, and functions that SQL calls |
//! | `backup`, `reference` | copies of a log, and the table of the reference |
//!
//! The functions with statements take a connection and return diesel's result. They begin no
//! transaction and classify no error: `database` does both for writes and `reader` for reads, so
//! that a transaction can have several of them and each error is classified once.
//!
//! Statements that diesel can check are written in its language. The others are text, because they
//! need what it lacks (`json_each`, row values, hints for the planner) or because diesel would
//! prepare them again at each call. Tests compare the query plans of those that read or delete rows.

mod application;
pub(crate) mod attempts;
#[cfg(feature = "program")]
#[expect(missing_docs, reason = "public for the program alone")]
pub(crate) mod backup;
mod checkpoint;
#[cfg(feature = "program")]
pub(crate) mod copy;
pub(crate) mod database;
pub(crate) mod delete;
pub(crate) mod drops;
pub mod embed;
pub(crate) mod errors;
pub(crate) mod failures;
mod file;
pub(crate) mod functions;
pub(crate) mod log;
pub(crate) mod migrate;
pub(crate) mod models;
#[cfg(test)]
pub(crate) mod peer;
pub(crate) mod pool;
pub(crate) mod reader;
pub(crate) mod reference;
pub(crate) mod retention;
mod schema;
pub(crate) mod snapshot;
pub(crate) mod sources;
mod statuses;
mod uncounted;

use diesel::serialize::{IsNull, Output, Result, ToSql};
use diesel::sql_types::BigInt;
use diesel::sqlite::Sqlite;

use crate::model::time::Timestamp;

/// Binds a moment as the columns have it: in Unix milliseconds.
impl ToSql<BigInt, Sqlite> for Timestamp {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Sqlite>) -> Result {
        out.set_value(self.as_millis());
        Ok(IsNull::No)
    }
}

#[cfg(test)]
mod tests {
    use diesel::connection::SimpleConnection as _;
    use diesel::prelude::*;
    use diesel::r2d2::ConnectionManager;

    use crate::config::Location;
    use crate::store;
    use crate::store::suite::{Fixture, store_suite};

    /// A trigger, as an application may have one.
    const REFUSE: &str = "CREATE TRIGGER refuse BEFORE INSERT ON memory_retrieval_failures WHEN new.query_text = 'unstorable' \
         BEGIN SELECT raise(ABORT, 'refused'); END";

    const VERBS: [&str; 3] = ["INSERT", "UPDATE", "DELETE"];

    fn fixture(backend: impl FnOnce(&str) -> Box<dyn store::backend::Backend>) -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.db").to_str().unwrap().to_owned();
        SqliteConnection::establish(&path)
            .unwrap()
            .batch_execute("PRAGMA journal_mode = WAL")
            .unwrap();
        let backend = backend(&path);
        let connect = move || SqliteConnection::establish(&path).unwrap();
        let [to_refuse, to_list, to_fail, to_end] = [(); 4].map(|()| connect.clone());
        Fixture {
            backend,
            refuse: Box::new(move || to_refuse().batch_execute(REFUSE).unwrap()),
            tables: Box::new(move || tables(&mut to_list())),
            fail_changes: Box::new(move |table| {
                for verb in VERBS {
                    let sql = format!(
                        "CREATE TRIGGER fail_{verb} BEFORE {verb} ON {table} \
                         BEGIN SELECT raise(ABORT, 'injected'); END"
                    );
                    to_fail().batch_execute(&sql).unwrap();
                }
            }),
            end_failures: Box::new(move || {
                for verb in VERBS {
                    let sql = format!("DROP TRIGGER fail_{verb}");
                    to_end().batch_execute(&sql).unwrap();
                }
            }),
            dump: Box::new(move || dump(&mut connect())),
            _folder: folder,
        }
    }

    #[derive(QueryableByName)]
    struct Cell {
        #[diesel(sql_type = diesel::sql_types::Text)]
        text: String,
    }

    fn texts(conn: &mut SqliteConnection, sql: &str) -> Vec<String> {
        let cells: Vec<Cell> = diesel::sql_query(sql).load(conn).expect(sql);
        cells.into_iter().map(|cell| cell.text).collect()
    }

    fn tables(conn: &mut SqliteConnection) -> Vec<String> {
        texts(
            conn,
            "SELECT name AS text FROM sqlite_schema WHERE type = 'table' \
             AND name LIKE 'memory_retrieval_%' AND name <> 'memory_retrieval_migrations'",
        )
    }

    fn dump(conn: &mut SqliteConnection) -> Vec<String> {
        let mut rows = Vec::new();
        for table in tables(conn) {
            let columns = texts(
                conn,
                &format!(
                    "SELECT 'quote(' || name || ')' AS text FROM pragma_table_info('{table}')"
                ),
            );
            let row = columns.join(" || ', ' || ");
            let sql = format!("SELECT '{table}: ' || {row} AS text FROM {table} ORDER BY 1");
            rows.extend(texts(conn, &sql));
        }
        rows
    }

    fn file() -> Fixture {
        fixture(|path| store::backend(&Location::File(path.into()), 4, true))
    }

    fn pool_of_an_application() -> Fixture {
        fixture(|path| {
            let pool = diesel::r2d2::Pool::builder()
                .max_size(4)
                .build(ConnectionManager::new(path))
                .unwrap();
            store::of_application(pool, true).unwrap().0
        })
    }

    store_suite!(own_file, super::file);
    store_suite!(pool, super::pool_of_an_application);
}
