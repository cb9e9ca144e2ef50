//! Functions that reads add to SQL.
//!
//! The names are public: an application that uses the customizer of its pool finds both functions
//! on its connections. A connection without them fails the reads that filter by text or group, so
//! that each checkout for a read registers them if they are missing.

use diesel::prelude::*;

use crate::similarity::{contains, texts_are_similar};

#[diesel::declare_sql_function]
extern "SQL" {
    /// Returns `true` if two queries are similar.
    #[sql_name = "memory_retrieval_nearly_the_same"]
    fn nearly_the_same(
        one: diesel::sql_types::Text,
        other: diesel::sql_types::Text,
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
    nearly_the_same_utils::register_impl(conn, |one: String, other: String| {
        texts_are_similar(&one, &other)
    })?;
    text_contains_utils::register_impl(conn, |text: String, part: String| contains(&text, &part))
}

/// Returns `true` if SQL has what queries need.
pub(crate) fn are_registered(conn: &mut SqliteConnection) -> bool {
    diesel::select((nearly_the_same("", ""), text_contains("", "")))
        .get_result::<(bool, bool)>(conn)
        .is_ok()
}
