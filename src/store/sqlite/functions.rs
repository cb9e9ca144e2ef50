//! Functions that reads add to SQL.
//!
//! The names are public: an application that uses the customizer of its pool finds both functions
//! on its connections. A connection without them fails the reads that filter by text or group, so
//! that each checkout for a read registers them if they are missing.

use std::sync::{Mutex, PoisonError};

use diesel::prelude::*;

use crate::similarity::{Similar, contains};

#[diesel::declare_sql_function]
extern "SQL" {
    /// Returns `true` if a query is similar to one of others, which are a JSON array.
    #[sql_name = "memory_retrieval_nearly_the_same"]
    fn nearly_the_same(
        query: diesel::sql_types::Text,
        others: diesel::sql_types::Text,
    ) -> diesel::sql_types::Bool;

    /// Returns `true` if a text contains a part, which is folded.
    #[sql_name = "memory_retrieval_contains"]
    fn text_contains(
        text: diesel::sql_types::Text,
        part: diesel::sql_types::Text,
    ) -> diesel::sql_types::Bool;
}

/// Adds the functions that reads use to a connection.
pub(crate) fn register(conn: &mut SqliteConnection) -> QueryResult<()> {
    // A statement compares all rows with the same texts. Only the thread of the connection takes the
    // lock.
    let prepared: Mutex<(String, Similar)> = Mutex::default();
    let nearly_the_same = move |query: String, others: String| {
        let mut prepared = prepared.lock().unwrap_or_else(PoisonError::into_inner);
        if prepared.0 != others {
            let texts: Vec<String> = serde_json::from_str(&others).unwrap_or_default();
            *prepared = (others, Similar::to(texts.iter().map(String::as_str)));
        }
        prepared.1.has(&query)
    };
    nearly_the_same_utils::register_impl(conn, nearly_the_same)?;
    text_contains_utils::register_impl(conn, |text: String, part: String| contains(&text, &part))
}

/// Returns `true` if SQL has what queries need.
pub(crate) fn are_registered(conn: &mut SqliteConnection) -> bool {
    diesel::select((nearly_the_same("", "[]"), text_contains("", "")))
        .get_result::<(bool, bool)>(conn)
        .is_ok()
}
