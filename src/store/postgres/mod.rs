//! All SQL of PostgreSQL, and of the engines that speak its protocol.
//!
//! | file | content |
//! | --- | --- |
//! | `database` | connects, migrates and writes: the `Backend` and the `Store` |
//! | `connection` | one connection, its transactions and their limits |
//! | `reader`, `snapshot` | the connections of readers, and their reads |
//! | `reference` | the table of the reference implementation, which is imported |
//! | `migrate` | the schema and its versions |
//! | `copy` | the tables as `copy` reads and writes them |
//! | `failures`, `attempts`, `uncounted`, `small` | the statements of the tables |
//! | `errors` | errors by their remedy |
//!
//! # Several nodes
//!
//! | work | what keeps nodes apart |
//! | --- | --- |
//! | insert of failures | the row of `memory_retrieval_log`, from the first statement to the commit |
//! | roll-up | the row of `memory_retrieval_rollup`; a second node leaves the work to the first |
//! | purge, deletion | the locks of the deleted rows; each node deletes what the other one has not |
//! | change of the retention | its row |
//! | change of a status | the row of `memory_retrieval_log` |
//! | migration | the row of `memory_retrieval_migration_lock` |
//!
//! Each of these locks ends with its transaction. The server ends the transaction of a node that
//! died: at once if the connection is closed, otherwise after the timeout of [`connection`].
//!
//! Ids come from a row and not from a sequence, because a sequence gives a smaller id to a
//! transaction that commits later: a tail that has read beyond this id would miss its rows, and the
//! mark of the roll-up would pass over them. With the row, the order of ids is the order of commits
//! on all nodes, and no engine needs more than a row lock.
//!
//! The functions with statements take a connection and return diesel's result. They begin no
//! transaction and classify no error, as in `store/sqlite/`.

mod attempts;
mod connection;
#[cfg(feature = "program")]
pub(crate) mod copy;
pub(crate) mod database;
mod errors;
mod failures;
pub(crate) mod migrate;
#[cfg(test)]
mod nodes;
mod reader;
pub(crate) mod reference;
#[cfg(test)]
pub(crate) mod server;
mod small;
mod snapshot;
mod sources;
mod uncounted;

#[cfg(feature = "program")]
pub(crate) use connection::KeepsConnection;

use std::borrow::Cow;

/// The character that stands for NUL, which PostgreSQL's text cannot contain: U+2400, its symbol.
const SYMBOL_FOR_NUL: &str = "\u{2400}";

/// Returns a text as PostgreSQL can store and compare it.
fn storable(text: &str) -> Cow<'_, str> {
    if text.contains('\0') {
        Cow::Owned(text.replace('\0', SYMBOL_FOR_NUL))
    } else {
        Cow::Borrowed(text)
    }
}

/// Returns a count as PostgreSQL stores it: its integers are signed.
fn stored_count(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Returns a count as it was read. No logger writes a negative one.
fn read_count(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use diesel::connection::SimpleConnection as _;
    use diesel::prelude::*;

    use crate::config::Location;
    use crate::store;
    use crate::store::postgres::server::TestDatabase;
    use crate::store::suite::{Fixture, store_suite};

    /// A trigger, as an application may have one.
    const REFUSE: &str = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN RAISE EXCEPTION 'refused'; END $$; \
         CREATE TRIGGER refuse BEFORE INSERT ON memory_retrieval_failures FOR EACH ROW \
         WHEN (new.query_text = 'unstorable') EXECUTE FUNCTION refuse()";

    fn fixture() -> Fixture {
        let database = Rc::new(TestDatabase::new());
        distribute(&database);
        let backend = store::backend(&Location::Postgres(database.url.clone().into()), 4, true);
        let [to_refuse, to_list, to_fail, to_end, to_dump] = [(); 5].map(|()| Rc::clone(&database));
        Fixture {
            backend,
            refuse: Box::new(move || to_refuse.connect().batch_execute(REFUSE).unwrap()),
            tables: Box::new(move || tables(&to_list)),
            fail_changes: Box::new(move |table| {
                let sql = format!(
                    "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS \
                     $$ BEGIN RAISE EXCEPTION 'injected'; END $$; \
                     CREATE TRIGGER fail BEFORE INSERT OR UPDATE OR DELETE ON {table} \
                     FOR EACH ROW EXECUTE FUNCTION fail()"
                );
                to_fail.connect().batch_execute(&sql).unwrap();
            }),
            end_failures: Box::new(move || {
                let sql = "DROP FUNCTION fail CASCADE";
                to_end.connect().batch_execute(sql).unwrap();
            }),
            dump: Box::new(move || dump(&to_dump)),
            _folder: tempfile::tempdir().unwrap(),
        }
    }

    /// Distributes the tables, if `TEST_DATABASE_DISTRIBUTED` names an engine that does so.
    fn distribute(database: &TestDatabase) {
        let engine = std::env::var("TEST_DATABASE_DISTRIBUTED").unwrap_or_default();
        let script = match &*engine {
            "" => return,
            "citus" => include_str!("../../../contrib/citus.sql"),
            engine => panic!("TEST_DATABASE_DISTRIBUTED = {engine}: expected citus"),
        };
        let mut conn = database.connect();
        conn.batch_execute(&store::postgres::migrate::script())
            .unwrap();
        for statement in script.split(";\n") {
            conn.batch_execute(statement).unwrap();
        }
        // Triggers inject the faults of the suite.
        let _ = conn.batch_execute("ALTER ROLE current_user SET citus.enable_unsafe_triggers = on");
    }

    #[derive(QueryableByName)]
    struct Cell {
        #[diesel(sql_type = diesel::sql_types::Text)]
        text: String,
    }

    fn texts(conn: &mut PgConnection, sql: &str) -> Vec<String> {
        let cells: Vec<Cell> = diesel::sql_query(sql).load(conn).expect(sql);
        cells.into_iter().map(|cell| cell.text).collect()
    }

    fn tables(database: &TestDatabase) -> Vec<String> {
        let sql = format!(
            "SELECT tablename::text AS text FROM pg_tables WHERE schemaname = '{}' \
             AND tablename NOT LIKE 'memory_retrieval_migration%' ORDER BY 1",
            database.schema()
        );
        texts(&mut database.connect(), &sql)
    }

    fn dump(database: &TestDatabase) -> Vec<String> {
        let mut conn = database.connect();
        tables(database)
            .iter()
            .flat_map(|table| {
                let sql =
                    format!("SELECT '{table}: ' || t::text AS text FROM {table} AS t ORDER BY 1");
                texts(&mut conn, &sql)
            })
            .collect()
    }

    store_suite!(
        #[ignore = "needs PostgreSQL's programs, or the server of TEST_DATABASE_URL"]
        server,
        super::fixture
    );
}
