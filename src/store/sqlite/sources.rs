//! The table of senders: each source with its labels, once.
//!
//! Failures and attempts have the id of their sender. Ids are looked up in the transaction of the insert,
//! so that a transaction that fails leaves neither a row nor an id behind.
//!
//! `schema.rs` has neither this table nor the column `source_id` of the failures: diesel's tables
//! have at most 16 columns without a feature that slows down its build, and all statements with the
//! column are written by hand.

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};

use crate::model::source::{Labels, NO_SENDER, Sender, SenderId, SourceFilter};
use crate::store::row::{MAX_SOURCES, SenderPlace, sender_places};

/// Returns the places of senders. The transaction must hold the write lock.
pub(crate) fn places<'s>(
    conn: &mut SqliteConnection,
    senders: impl Iterator<Item = Option<&'s Sender>>,
) -> QueryResult<Vec<SenderPlace>> {
    sender_places(senders, |sender| place(conn, sender))
}

fn place(
    conn: &mut SqliteConnection,
    Sender { source, labels }: &Sender,
) -> QueryResult<SenderPlace> {
    let source = source.as_deref().unwrap_or_default();
    if let Some(id) = id_of(conn, source, &labels.to_json())? {
        return Ok(SenderPlace::Found(id));
    }
    if labels.is_empty() || source.is_empty() {
        return Ok(SenderPlace::LeftOut(NO_SENDER));
    }
    let source_alone = id_of(conn, source, &Labels::default().to_json())?;
    Ok(SenderPlace::LeftOut(source_alone.unwrap_or(NO_SENDER)))
}

/// Returns all senders, by their ids.
pub(crate) fn all(conn: &mut SqliteConnection) -> QueryResult<Vec<(SenderId, Sender)>> {
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

/// Returns the ids that `filter` selects as a JSON array. `None`: any.
pub(crate) fn selected(
    conn: &mut SqliteConnection,
    filter: &SourceFilter,
) -> QueryResult<Option<String>> {
    if filter.is_empty() {
        return Ok(None);
    }
    let ids: Vec<SenderId> = filter.ids(&all(conn)?).collect();
    Ok(serde_json::to_string(&ids).ok())
}

/// Returns the id of a row, which is inserted if there is none. `None`: the table is full.
fn id_of(conn: &mut SqliteConnection, source: &str, labels: &str) -> QueryResult<Option<i64>> {
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
    let id = match found {
        Some(found) => Some(found),
        None => diesel::sql_query(INSERT)
            .bind::<Text, _>(source)
            .bind::<Text, _>(labels)
            .bind::<BigInt, _>(MAX_SOURCES)
            .get_result(conn)
            .optional()?,
    };
    Ok(id.map(|id| id.source_id))
}

const ALL: &str =
    "SELECT source_id, source, labels FROM memory_retrieval_sources ORDER BY source_id";
const FIND: &str =
    "SELECT source_id FROM memory_retrieval_sources WHERE source = ?1 AND labels = ?2";
const INSERT: &str = "INSERT INTO memory_retrieval_sources (source, labels) SELECT ?1, ?2 \
     WHERE (SELECT count(*) FROM memory_retrieval_sources) < ?3 RETURNING source_id";
