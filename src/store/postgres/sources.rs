//! The table of the senders of failures: each source with its labels, once.
//!
//! A row of a failure has the id of its sender. Ids are looked up in the transaction of the insert,
//! so that a transaction that fails leaves neither a row nor an id behind.

use std::collections::HashMap;

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};

use crate::model::source::Labels;
use crate::store::postgres::storable;
use crate::store::row::{MAX_SOURCES, Row, Sender, SenderId, SenderIds};

/// Returns the ids of the senders of rows. The transaction must hold the row of the log, so that no
/// other one gives the same id.
pub(crate) fn ids(conn: &mut PgConnection, rows: &[Row]) -> QueryResult<SenderIds> {
    let mut known: HashMap<&Sender, SenderId> = HashMap::new();
    let mut senders = SenderIds::default();
    for row in rows {
        let Some(sender) = &row.sender else {
            senders.ids.push(None);
            continue;
        };
        let id = match known.get(sender) {
            Some(id) => *id,
            None => {
                let id = id(conn, sender)?;
                known.insert(sender, id);
                id
            }
        };
        senders.push(id);
    }
    Ok(senders)
}

fn id(conn: &mut PgConnection, Sender { source, labels }: &Sender) -> QueryResult<SenderId> {
    let source = storable(source.as_deref().unwrap_or_default());
    if let Some(id) = id_of(conn, &source, &labels.to_json())? {
        return Ok(SenderId::Whole(id));
    }
    if labels.is_empty() || source.is_empty() {
        return Ok(SenderId::LeftOut(None));
    }
    id_of(conn, &source, &Labels::default().to_json()).map(SenderId::LeftOut)
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

const FIND: &str =
    "SELECT source_id FROM memory_retrieval_sources WHERE source = $1 AND labels = $2";
const INSERT: &str = "INSERT INTO memory_retrieval_sources (source_id, source, labels) \
     SELECT coalesce(max(source_id), 0) + 1, $1, $2 FROM memory_retrieval_sources \
     HAVING count(*) < $3 RETURNING source_id";
