//! The table of senders: each source with its labels, once.
//!
//! Failures and attempts have the id of their sender. Ids are looked up in the transaction of the insert,
//! so that a transaction that fails leaves neither a row nor an id behind.

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};

use crate::model::source::{Labels, NO_SENDER, Sender, SenderId, SourceFilter};
use crate::store::postgres::storable;
use crate::store::row::{MAX_SOURCES, SenderPlace, sender_places};

/// Returns the places of senders. Holds the row of the log if one of them is new, so that no other
/// transaction gives the same id.
pub(crate) fn places<'s>(
    conn: &mut PgConnection,
    senders: impl Iterator<Item = Option<&'s Sender>>,
) -> QueryResult<Vec<SenderPlace>> {
    sender_places(senders, |sender| place(conn, sender))
}

fn place(conn: &mut PgConnection, Sender { source, labels }: &Sender) -> QueryResult<SenderPlace> {
    let source = storable(source.as_deref().unwrap_or_default());
    if let Some(id) = id_of(conn, &source, &labels.to_json())? {
        return Ok(SenderPlace::Found(id));
    }
    if labels.is_empty() || source.is_empty() {
        return Ok(SenderPlace::LeftOut(NO_SENDER));
    }
    let source_alone = id_of(conn, &source, &Labels::default().to_json())?;
    Ok(SenderPlace::LeftOut(source_alone.unwrap_or(NO_SENDER)))
}

/// Returns all senders, by their ids.
pub(crate) fn all(conn: &mut PgConnection) -> QueryResult<Vec<(SenderId, Sender)>> {
    #[derive(QueryableByName)]
    struct Stored {
        #[diesel(sql_type = BigInt)]
        source_id: i64,
        #[diesel(sql_type = Text)]
        source: String,
        #[diesel(sql_type = Text)]
        labels: String,
    }
    let stored: Vec<Stored> = diesel::sql_query(ALL).load(conn)?;
    let read = |of: Stored| {
        let labels = Labels::from_stored(Some(&of.labels));
        Some((of.source_id, Sender::new(Some(of.source.into()), labels)?))
    };
    Ok(stored.into_iter().filter_map(read).collect())
}

/// Returns the ids that `filter` selects. `None`: any.
pub(crate) fn selected(
    conn: &mut PgConnection,
    filter: &SourceFilter,
) -> QueryResult<Option<Vec<SenderId>>> {
    if filter.is_empty() {
        return Ok(None);
    }
    Ok(Some(filter.ids(&all(conn)?).collect()))
}

/// Returns the id of a row, which is inserted if there is none. `None`: the table is full.
fn id_of(conn: &mut PgConnection, source: &str, labels: &str) -> QueryResult<Option<i64>> {
    #[derive(QueryableByName)]
    struct Id {
        #[diesel(sql_type = BigInt)]
        source_id: i64,
    }
    let found: Option<Id> = diesel::sql_query(FIND)
        .bind::<Text, _>(source)
        .bind::<Text, _>(labels)
        .get_result(conn)
        .optional()?;
    if found.is_some() {
        return Ok(found.map(|found| found.source_id));
    }
    // A transaction of attempts alone does not hold the row yet.
    diesel::sql_query(LOCK_LOG).execute(conn)?;
    let inserted: Option<Id> = diesel::sql_query(INSERT)
        .bind::<Text, _>(source)
        .bind::<Text, _>(labels)
        .bind::<BigInt, _>(MAX_SOURCES)
        .get_result(conn)
        .optional()?;
    Ok(inserted.map(|id| id.source_id))
}

const LOCK_LOG: &str = "SELECT one FROM memory_retrieval_log WHERE one = 1 FOR UPDATE";

const ALL: &str =
    "SELECT source_id, source, labels FROM memory_retrieval_sources ORDER BY source_id";
const FIND: &str =
    "SELECT source_id FROM memory_retrieval_sources WHERE source = $1 AND labels = $2";
// Another transaction may have inserted the sender before the lock, which then keeps its id.
const INSERT: &str = "INSERT INTO memory_retrieval_sources AS stored (source_id, source, labels) \
     SELECT coalesce(max(source_id), 0) + 1, $1, $2 FROM memory_retrieval_sources \
     HAVING count(*) < $3 ON CONFLICT (source, labels) DO UPDATE SET source = stored.source \
     RETURNING source_id";
