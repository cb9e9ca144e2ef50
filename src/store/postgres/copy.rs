//! A log in a server, as `copy` reads and writes it.

use std::ops::Range;
use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Binary, Bool, Float, Nullable, Text};

use crate::error::{StartError, StoreError};
use crate::server::ServerConfig;
use crate::store::backend::Backend as _;
use crate::store::copy::{Kind, Log, ReadLog, Readable, Row, STATUSES, Table, Value, Writable};
use crate::store::postgres::connection::{Connection, KeepsConnection, Purpose};
use crate::store::postgres::database::Server;
use crate::store::postgres::errors::classify;
use crate::store::postgres::{small, storable};

/// Longest time of one statement of the source: the count of a large table is one.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// Reads the log of a `server`, whose schema must be that of this version.
pub(crate) fn read_source<E>(server: &ServerConfig, read: ReadLog<'_, E>) -> Result<(), E>
where
    E: From<StoreError> + From<StartError> + KeepsConnection,
{
    drop(Server::new(server.clone(), 1, false).open()?);
    Connection::new(server.clone()).transact(Purpose::Read(STATEMENT_TIMEOUT), |conn| {
        read(&mut CopySnapshot(conn))
    })
}

/// A log within a transaction that reads.
struct CopySnapshot<'c>(&'c mut PgConnection);

/// A log that is written.
pub(crate) struct CopyServer(Connection);

impl CopyServer {
    /// Opens a log to write it. Creates its tables, or updates them, if it may.
    pub(crate) fn target(server: &ServerConfig, migrate: bool) -> Result<Self, StartError> {
        drop(Server::new(server.clone(), 1, migrate).open()?);
        Ok(Self(Connection::new(server.clone())))
    }

    fn transact<T>(
        &mut self,
        work: impl FnOnce(&mut PgConnection) -> QueryResult<T>,
    ) -> Result<T, StoreError> {
        self.0.transact(Purpose::Write, |conn| {
            work(conn).map_err(|error| classify(&error))
        })
    }
}

#[derive(QueryableByName)]
struct Number {
    #[diesel(sql_type = Nullable<BigInt>)]
    number: Option<i64>,
}

fn number(conn: &mut PgConnection, sql: String) -> QueryResult<Option<i64>> {
    diesel::sql_query(sql)
        .get_result(conn)
        .map(|Number { number }| number)
}

fn log(conn: &mut PgConnection) -> QueryResult<Log> {
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
    diesel::sql_query(
        "SELECT uuid_send(log_id) AS log_id, starts_after, newest_id, \
         (SELECT rolled_up_to FROM memory_retrieval_rollup WHERE one = 1) AS rolled_up_to \
         FROM memory_retrieval_log WHERE one = 1",
    )
    .get_result(conn)
    .map(
        |LogRow {
             log_id,
             starts_after,
             newest_id,
             rolled_up_to,
         }| Log {
            log_id,
            starts_after,
            newest_id,
            rolled_up_to,
        },
    )
}

fn count(conn: &mut PgConnection, table: &Table) -> QueryResult<u64> {
    let (name, condition) = (table.name, table.condition());
    let sql = format!("SELECT count(*) AS number FROM {name} WHERE {condition} IS NOT NULL");
    Ok(number(conn, sql)?
        .and_then(|rows| u64::try_from(rows).ok())
        .unwrap_or(0))
}

fn range_end(
    conn: &mut PgConnection,
    table: &Table,
    from: i64,
    rows: i64,
) -> QueryResult<Option<i64>> {
    let (name, key, condition) = (table.name, table.key, table.condition());
    let end: Option<Number> = diesel::sql_query(format!(
        "SELECT {key} AS number FROM {name} WHERE {condition} >= $1 ORDER BY {key} \
         LIMIT 1 OFFSET $2"
    ))
    .bind::<BigInt, _>(from)
    .bind::<BigInt, _>(rows)
    .get_result(conn)
    .optional()?;
    Ok(end.and_then(|end| end.number))
}

fn read(
    conn: &mut PgConnection,
    table: &Table,
    keys: Range<i64>,
    limit: i64,
) -> QueryResult<Vec<Row>> {
    let (name, key, condition) = (table.name, table.key, table.condition());
    let columns = table.selected(|name, kind| match kind {
        Kind::Id => format!("uuid_send({name})"),
        Kind::Number | Kind::Score | Kind::Text | Kind::Bytes | Kind::Flag => name.to_owned(),
    });
    diesel::sql_query(format!(
        "SELECT {columns} FROM {name} WHERE {condition} >= $1 AND {key} < $2 LIMIT $3"
    ))
    .bind::<BigInt, _>(keys.start)
    .bind::<BigInt, _>(keys.end)
    .bind::<BigInt, _>(limit)
    .load(conn)
}

fn last_key(conn: &mut PgConnection, table: &Table) -> QueryResult<Option<i64>> {
    let (name, key, condition) = (table.name, table.key, table.condition());
    let sql = format!("SELECT max({key}) AS number FROM {name} WHERE {condition} IS NOT NULL");
    number(conn, sql)
}

/// A server is told from another one by the moment of its start, in microseconds.
fn identity(conn: &mut PgConnection) -> QueryResult<String> {
    #[derive(QueryableByName)]
    struct Identity {
        #[diesel(sql_type = Text)]
        identity: String,
    }
    diesel::sql_query(
        "SELECT concat_ws(' ', pg_postmaster_start_time(), current_database(), \
         'memory_retrieval_failures'::regclass::oid) AS identity",
    )
    .get_result(conn)
    .map(|Identity { identity }| identity)
}

fn put_log(conn: &mut PgConnection, log: &Log) -> QueryResult<()> {
    diesel::sql_query(
        "UPDATE memory_retrieval_log SET log_id = encode($1, 'hex')::uuid, starts_after = $2, \
         newest_id = $3 WHERE one = 1",
    )
    .bind::<Binary, _>(&log.log_id)
    .bind::<BigInt, _>(log.starts_after)
    .bind::<BigInt, _>(log.newest_id)
    .execute(conn)?;
    diesel::sql_query("UPDATE memory_retrieval_rollup SET rolled_up_to = $1 WHERE one = 1")
        .bind::<BigInt, _>(log.rolled_up_to)
        .execute(conn)
        .map(drop)
}

fn replace(
    conn: &mut PgConnection,
    table: &Table,
    keys: Range<i64>,
    rows: &[Row],
) -> QueryResult<()> {
    let (name, key, condition) = (table.name, table.key, table.condition());
    diesel::sql_query(format!(
        "DELETE FROM {name} WHERE {condition} >= $1 AND {key} < $2"
    ))
    .bind::<BigInt, _>(keys.start)
    .bind::<BigInt, _>(keys.end)
    .execute(conn)?;
    if rows.is_empty() {
        return Ok(());
    }
    let mut columns = table.columns.to_vec();
    // The key of a status is made of its query, and SQLite's table does not have it.
    let with_ids: Vec<Row>;
    let rows = if name == STATUSES {
        columns.push(("query_id", Kind::Id));
        with_ids = rows.iter().map(with_query_id).collect();
        &*with_ids
    } else {
        rows
    };
    let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
    let (mut values, mut binds) = (Vec::new(), Vec::new());
    for (nth, (_, kind)) in columns.iter().enumerate() {
        values.push(match kind {
            Kind::Id => format!("encode(c{nth}, 'hex')::uuid"),
            Kind::Number | Kind::Score | Kind::Text | Kind::Bytes | Kind::Flag => {
                format!("c{nth}")
            }
        });
        binds.push((format!("${}", nth + 1), format!("c{nth}")));
    }
    let (binds, aliases): (Vec<String>, Vec<String>) = binds.into_iter().unzip();
    let mut insert = diesel::sql_query(format!(
        "INSERT INTO {name} ({}) SELECT {} FROM unnest({}) AS rows ({})",
        names.join(", "),
        values.join(", "),
        binds.join(", "),
        aliases.join(", ")
    ))
    .into_boxed();
    for (nth, (_, kind)) in columns.iter().enumerate() {
        let cells = rows.iter().map(|Row(values)| values.get(nth));
        insert = match kind {
            Kind::Number => {
                insert.bind::<Array<Nullable<BigInt>>, _>(column(cells, |value| match value {
                    Value::Number(number) => Some(*number),
                    _ => None,
                }))
            }
            Kind::Score => {
                insert.bind::<Array<Nullable<Float>>, _>(column(cells, |value| match value {
                    Value::Score(score) => Some(*score),
                    _ => None,
                }))
            }
            Kind::Text => {
                insert.bind::<Array<Nullable<Text>>, _>(column(cells, |value| match value {
                    Value::Text(text) => Some(&**text),
                    _ => None,
                }))
            }
            Kind::Bytes | Kind::Id => {
                insert.bind::<Array<Nullable<Binary>>, _>(column(cells, |value| match value {
                    Value::Bytes(bytes) => Some(&**bytes),
                    _ => None,
                }))
            }
            Kind::Flag => {
                insert.bind::<Array<Nullable<Bool>>, _>(column(cells, |value| match value {
                    Value::Flag(flag) => Some(*flag),
                    _ => None,
                }))
            }
        };
    }
    insert.execute(conn).map(drop)
}

/// Returns the row of a status with the key of PostgreSQL's table.
fn with_query_id(Row(values): &Row) -> Row {
    let mut values = values.clone();
    values.push(match values.first() {
        Some(Value::Text(query)) => Value::Bytes(small::status_id(query).as_bytes().into()),
        _ => Value::Missing,
    });
    Row(values)
}

/// Returns the values of a column. A row has `None` for a value that is missing.
fn column<'r, T>(
    cells: impl Iterator<Item = Option<&'r Value>>,
    value: impl Fn(&'r Value) -> Option<T>,
) -> Vec<Option<T>> {
    cells.map(|cell| cell.and_then(&value)).collect()
}

impl Readable for CopySnapshot<'_> {
    fn log(&mut self) -> Result<Log, StoreError> {
        log(self.0).map_err(|error| classify(&error))
    }

    fn count(&mut self, table: &Table) -> Result<u64, StoreError> {
        count(self.0, table).map_err(|error| classify(&error))
    }

    fn range_end(
        &mut self,
        table: &Table,
        from: i64,
        rows: i64,
    ) -> Result<Option<i64>, StoreError> {
        range_end(self.0, table, from, rows).map_err(|error| classify(&error))
    }

    fn read(
        &mut self,
        table: &Table,
        keys: Range<i64>,
        limit: i64,
    ) -> Result<Vec<Row>, StoreError> {
        read(self.0, table, keys, limit).map_err(|error| classify(&error))
    }

    fn last_key(&mut self, table: &Table) -> Result<Option<i64>, StoreError> {
        last_key(self.0, table).map_err(|error| classify(&error))
    }

    fn identity(&mut self) -> Result<String, StoreError> {
        identity(self.0).map_err(|error| classify(&error))
    }
}

impl Readable for CopyServer {
    fn log(&mut self) -> Result<Log, StoreError> {
        self.transact(log)
    }

    fn count(&mut self, table: &Table) -> Result<u64, StoreError> {
        self.transact(|conn| count(conn, table))
    }

    fn range_end(
        &mut self,
        table: &Table,
        from: i64,
        rows: i64,
    ) -> Result<Option<i64>, StoreError> {
        self.transact(|conn| range_end(conn, table, from, rows))
    }

    fn read(
        &mut self,
        table: &Table,
        keys: Range<i64>,
        limit: i64,
    ) -> Result<Vec<Row>, StoreError> {
        self.transact(|conn| read(conn, table, keys, limit))
    }

    fn last_key(&mut self, table: &Table) -> Result<Option<i64>, StoreError> {
        self.transact(|conn| last_key(conn, table))
    }

    fn identity(&mut self) -> Result<String, StoreError> {
        self.transact(identity)
    }
}

impl Writable for CopyServer {
    fn put_log(&mut self, log: &Log) -> Result<(), StoreError> {
        self.transact(|conn| put_log(conn, log))
    }

    fn replace(&mut self, table: &Table, keys: Range<i64>, rows: &[Row]) -> Result<(), StoreError> {
        self.transact(|conn| replace(conn, table, keys, rows))
    }

    fn adapt(&self, rows: &mut [Row]) {
        for value in rows.iter_mut().flat_map(|Row(values)| values) {
            if let Value::Text(text) = value
                && text.contains('\0')
            {
                *text = storable(text).into_owned();
            }
        }
    }
}
