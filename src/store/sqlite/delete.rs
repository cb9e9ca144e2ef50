//! Deletion of what must not be kept: the failures of a conversation or a query, wherever the file
//! has them.
//!
//! A deletion runs in chunks by id, so that a flush waits for some milliseconds at most. Each chunk
//! deletes the statuses of the queries whose rows it deletes. `secure_delete` overwrites rows with
//! zeros where they stood, but SQLite moves rows between pages, and a page that became free earlier
//! may still have an old copy: only the rewrite at the end reaches those.
//!
//! Binds of both statements: `?1` after this id, `?2` up to this id, `?3` conversation or NULL,
//! `?4` query or NULL. One of the last two is NULL, and its condition then holds for each row.

use std::collections::BTreeSet;
use std::ops::DerefMut;

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer, Nullable, Text};

use crate::error::StoreError;
use crate::model::deletion::{Deleted, Deletion};
use crate::similarity::normalized;
use crate::store::sqlite::errors::classify;
use crate::store::sqlite::schema::memory_retrieval_query_statuses::dsl as statuses;

/// Ids that one transaction looks at: the write lock is held for some milliseconds.
const IDS_PER_CHUNK: i64 = 20_000;

/// Deletes one chunk, after `so_far`. All rows must be rolled up, so that their counts stay.
///
/// `so_far.after` is the id up to which earlier chunks have looked. Rows that come while the
/// deletion runs have larger ids, and are reached as well: the newest id is read in each chunk.
pub(crate) fn delete_chunk(
    conn: &mut SqliteConnection,
    deletion: &Deletion,
    so_far: Deleted,
) -> QueryResult<Deleted> {
    let newest = crate::store::sqlite::log::edge(conn)?.newest_id;
    // By ids and not by matching rows: no index has conversations, and a chunk that searches until
    // it has found enough rows could read the whole table under the write lock.
    let until = newest.min(so_far.after.saturating_add(IDS_PER_CHUNK));
    let (conversation, query) = match deletion {
        Deletion::Conversation(id) => (Some(id.as_str()), None),
        Deletion::Query(query) => (None, Some(query.as_str())),
    };
    let texts: Vec<QueryText> = diesel::sql_query(TEXTS)
        .bind::<BigInt, _>(so_far.after)
        .bind::<BigInt, _>(until)
        .bind::<Nullable<Text>, _>(conversation)
        .bind::<Nullable<Text>, _>(query)
        .load(conn)?;
    let rows = diesel::sql_query(DELETE)
        .bind::<BigInt, _>(so_far.after)
        .bind::<BigInt, _>(until)
        .bind::<Nullable<Text>, _>(conversation)
        .bind::<Nullable<Text>, _>(query)
        .execute(conn)?;
    let texts: BTreeSet<String> = texts
        .iter()
        .map(|text| normalized(&text.query_text))
        .collect();
    let mut statuses = 0;
    for text in texts {
        statuses += diesel::delete(
            statuses::memory_retrieval_query_statuses.filter(statuses::query.eq(text)),
        )
        .execute(conn)?;
    }
    Ok(Deleted {
        rows: so_far.rows + rows as u64,
        statuses: so_far.statuses + statuses as u64,
        after: until,
        is_done: until >= newest,
    })
}

/// Runs `work` on a connection that overwrites what it deletes with zeros. Afterwards, the
/// connection has its own setting again: it may be an application's. The setting is on for a
/// deletion alone, because it makes every deletion write more.
pub(crate) fn with_secure_delete<C, T>(
    conn: &mut C,
    work: impl FnOnce(&mut C) -> Result<T, StoreError>,
) -> Result<T, StoreError>
where
    C: DerefMut<Target = SqliteConnection>,
{
    use diesel::connection::SimpleConnection as _;

    #[derive(QueryableByName)]
    struct Setting {
        #[diesel(sql_type = Integer)]
        secure_delete: i32,
    }
    let failed = |error: diesel::result::Error| classify(&error);
    let Setting { secure_delete } = diesel::sql_query("PRAGMA secure_delete")
        .get_result(&mut **conn)
        .map_err(failed)?;
    conn.batch_execute("PRAGMA secure_delete = ON")
        .map_err(failed)?;
    let result = work(conn);
    // By its words, because the number 2 would set it to ON.
    let setting = ["OFF", "ON", "FAST"]
        .get(usize::try_from(secure_delete).unwrap_or_default())
        .unwrap_or(&"OFF");
    let reset = conn
        .batch_execute(&format!("PRAGMA secure_delete = {setting}"))
        .map_err(failed);
    reset.and(result)
}

/// Rewrites the file without the deleted rows, and empties the journal. Returns `false` if a reader
/// keeps the journal.
pub(crate) fn erase(conn: &mut SqliteConnection) -> QueryResult<bool> {
    use diesel::connection::SimpleConnection as _;

    // Pages that SQLite moved rows out of, long before, may contain them still.
    conn.batch_execute("VACUUM")?;
    empty_journal(conn)
}

/// Copies the journal to the file and empties it. Returns `false` if a reader keeps it.
pub(crate) fn empty_journal(conn: &mut SqliteConnection) -> QueryResult<bool> {
    #[derive(QueryableByName)]
    struct Checkpoint {
        #[diesel(sql_type = Integer)]
        busy: i32,
    }
    let checkpoint: Checkpoint =
        diesel::sql_query("PRAGMA wal_checkpoint(TRUNCATE)").get_result(conn)?;
    Ok(checkpoint.busy == 0)
}

#[derive(QueryableByName)]
struct QueryText {
    #[diesel(sql_type = Text)]
    query_text: String,
}

macro_rules! of_chunk {
    () => {
        "WHERE id > ?1 AND id <= ?2 AND (?3 IS NULL OR conversation_id = ?3) AND (?4 IS NULL OR \
         query_text = ?4)"
    };
}
const TEXTS: &str = concat!(
    "SELECT DISTINCT query_text FROM memory_retrieval_failures ",
    of_chunk!()
);
const DELETE: &str = concat!("DELETE FROM memory_retrieval_failures ", of_chunk!());
