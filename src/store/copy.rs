//! The interface through which `copy` reads and writes the tables of a log, and their list.
//!
//! Both backends have the same tables, with the same columns and moments. A table is therefore
//! described once, and each backend makes its statements from the description. A value keeps its
//! type from one database to the other.
//!
//! Each table is copied in ranges of one integer column, so that a range has a bounded number of
//! rows in either database, whatever the collation of its texts is.

use std::ops::Range;

use diesel::backend::Backend;
use diesel::deserialize::{self, FromSql, QueryableByName};
use diesel::row::{Field, NamedRow, Row as Fields};
use diesel::sql_types::{BigInt, Binary, Bool, Float, Text};
use uuid::Uuid;

use crate::error::StoreError;

/// Tables of a log in the order in which they are copied.
pub(crate) const TABLES: [Table; 10] = [
    Table {
        title: "sources",
        name: "memory_retrieval_sources",
        columns: &[
            ("source_id", Kind::Number),
            ("source", Kind::Text),
            ("labels", Kind::Text),
        ],
        key: "source_id",
        resolution: None,
    },
    Table {
        title: "failures",
        name: "memory_retrieval_failures",
        columns: &[
            ("event_id", Kind::Id),
            ("id", Kind::Number),
            ("conversation_id", Kind::Text),
            ("turn_index", Kind::Number),
            ("failure_type", Kind::Text),
            ("retrieval_strategy", Kind::Text),
            ("query_text", Kind::Text),
            ("query_len", Kind::Number),
            ("top_score", Kind::Score),
            ("confidence_threshold", Kind::Score),
            ("result_count", Kind::Number),
            ("latency_ms", Kind::Number),
            ("edge_types", Kind::Text),
            ("error_context", Kind::Text),
            ("created_at", Kind::Number),
            ("uncounted", Kind::Number),
            ("source_id", Kind::Number),
        ],
        key: "id",
        resolution: None,
    },
    attempts(BY_MINUTE[0], 60),
    attempts("attempts by hour", 3600),
    attempts("attempts by day", 86_400),
    Table {
        title: BY_MINUTE[1],
        name: "memory_retrieval_attempts_recent",
        columns: &[
            ("delta_id", Kind::Id),
            ("started_at", Kind::Number),
            ("strategy", Kind::Text),
            ("outcome", Kind::Text),
            ("source_id", Kind::Number),
            ("attempts", Kind::Number),
            ("unobserved", Kind::Number),
            ("latency", Kind::Bytes),
            ("top_score", Kind::Bytes),
            ("owner", Kind::Number),
        ],
        key: "started_at",
        resolution: None,
    },
    Table {
        title: "strategies",
        name: "memory_retrieval_strategies",
        columns: &[
            ("strategy", Kind::Text),
            ("confidence_threshold", Kind::Score),
            ("lower_is_better", Kind::Flag),
            ("timeout_ms", Kind::Number),
            ("updated_at", Kind::Number),
        ],
        key: "updated_at",
        resolution: None,
    },
    Table {
        title: "statuses",
        name: STATUSES,
        columns: &[
            ("query", Kind::Text),
            ("status", Kind::Text),
            ("set_at", Kind::Number),
            ("sequence", Kind::Number),
        ],
        key: "sequence",
        resolution: None,
    },
    Table {
        title: "drops",
        name: "memory_retrieval_drops",
        columns: &[
            ("started_at", Kind::Number),
            ("reason", Kind::Text),
            ("records", Kind::Number),
        ],
        key: "started_at",
        resolution: None,
    },
    Table {
        title: RETENTION,
        name: "memory_retrieval_retention",
        columns: &[
            ("one", Kind::Number),
            ("failures_days", Kind::Number),
            ("attempts_days", Kind::Number),
            ("trusted_at", Kind::Number),
            ("trusted_boot", Kind::Text),
            ("trusted_since_boot", Kind::Number),
            ("trusted_unexplained", Kind::Number),
            ("ahead_at", Kind::Number),
            ("ahead_boot", Kind::Text),
            ("ahead_since_boot", Kind::Number),
            ("behind_at", Kind::Number),
            ("behind_boot", Kind::Text),
            ("behind_since_boot", Kind::Number),
        ],
        key: "one",
        resolution: None,
    },
];

/// Titles of the tables that have each attempt by its minute, before and after its roll-up.
pub(crate) const BY_MINUTE: [&str; 2] = ["attempts by minute", "attempts not rolled up"];
/// Title of the table that a logger fills when it starts.
pub(crate) const RETENTION: &str = "retention";

/// The table of statuses, which has one more column in PostgreSQL.
pub(crate) const STATUSES: &str = "memory_retrieval_query_statuses";

const fn attempts(title: &'static str, seconds: i64) -> Table {
    Table {
        title,
        name: "memory_retrieval_attempts",
        columns: &[
            ("resolution", Kind::Number),
            ("started_at", Kind::Number),
            ("strategy", Kind::Text),
            ("outcome", Kind::Text),
            ("source_id", Kind::Number),
            ("attempts", Kind::Number),
            ("unobserved", Kind::Number),
            ("latency", Kind::Bytes),
            ("top_score", Kind::Bytes),
        ],
        key: "started_at",
        resolution: Some(seconds),
    }
}

/// A table, or the rows of one resolution of the table of attempts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Table {
    /// As reports name it.
    pub(crate) title: &'static str,
    pub(crate) name: &'static str,
    pub(crate) columns: &'static [(&'static str, Kind)],
    /// Integer column by whose ranges the table is copied.
    pub(crate) key: &'static str,
    /// Length of the span of the rows in seconds.
    pub(crate) resolution: Option<i64>,
}

impl Table {
    /// Returns the list of columns of a SELECT, as `expression` makes it of each. An alias says by
    /// its first letter of which kind the value is: see [`Row`].
    pub(crate) fn selected(&self, expression: impl Fn(&str, Kind) -> String) -> String {
        let columns = self.columns.iter().enumerate();
        let columns: Vec<String> = columns
            .map(|(nth, (name, kind))| {
                format!("{} AS {}{nth}", expression(name, *kind), kind.letter())
            })
            .collect();
        columns.join(", ")
    }

    /// Returns the names of the columns, as an INSERT lists them.
    pub(crate) fn names(&self) -> String {
        let names: Vec<&str> = self.columns.iter().map(|(name, _)| *name).collect();
        names.join(", ")
    }

    /// Returns the condition that the rows have, before one of their keys.
    pub(crate) fn condition(&self) -> String {
        match self.resolution {
            Some(seconds) => format!("resolution = {seconds} AND {}", self.key),
            None => self.key.to_owned(),
        }
    }
}

/// Kind of the values of a column. Each may be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Number,
    Score,
    Text,
    Bytes,
    Flag,
    /// A UUID, which is read as its 16 bytes.
    Id,
}

impl Kind {
    const fn letter(self) -> char {
        match self {
            Self::Number => 'n',
            Self::Score => 's',
            Self::Text => 't',
            Self::Bytes | Self::Id => 'b',
            Self::Flag => 'f',
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Missing,
    Number(i64),
    Score(f32),
    Text(String),
    Bytes(Vec<u8>),
    Flag(bool),
}

/// Values of a row, in the order of the columns.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row(pub(crate) Vec<Value>);

impl<DB: Backend> QueryableByName<DB> for Row
where
    i64: FromSql<BigInt, DB>,
    f32: FromSql<Float, DB>,
    String: FromSql<Text, DB>,
    Vec<u8>: FromSql<Binary, DB>,
    bool: FromSql<Bool, DB>,
{
    fn build<'a>(row: &impl NamedRow<'a, DB>) -> deserialize::Result<Self> {
        let mut values = Vec::with_capacity(row.field_count());
        for nth in 0..row.field_count() {
            let field = Fields::get(row, nth).ok_or("a column is missing")?;
            let letter = field.field_name().and_then(|name| name.chars().next());
            values.push(match (field.value(), letter) {
                (None, _) => Value::Missing,
                (Some(value), Some('n')) => Value::Number(FromSql::from_sql(value)?),
                (Some(value), Some('s')) => Value::Score(FromSql::from_sql(value)?),
                (Some(value), Some('t')) => Value::Text(FromSql::from_sql(value)?),
                (Some(value), Some('b')) => Value::Bytes(FromSql::from_sql(value)?),
                (Some(value), Some('f')) => Value::Flag(FromSql::from_sql(value)?),
                (Some(_), _) => return Err("a column has no kind".into()),
            });
        }
        Ok(Self(values))
    }
}

/// Number of rows, and a sum over their values that does not depend on their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Sum {
    pub(crate) rows: u64,
    pub(crate) sum: u128,
}

impl Sum {
    pub(crate) fn of(rows: &[Row]) -> Self {
        let mut sum = Self::default();
        rows.iter().for_each(|row| sum.add(row));
        sum
    }

    fn add(&mut self, Row(values): &Row) {
        let mut bytes = Vec::with_capacity(256);
        for value in values {
            // The kind and the length come first, so that no two rows have the same bytes.
            let mut push = |kind: u8, value: &[u8]| {
                bytes.push(kind);
                bytes.extend((value.len() as u64).to_le_bytes());
                bytes.extend(value);
            };
            match value {
                Value::Missing => push(0, &[]),
                Value::Number(number) => push(1, &number.to_le_bytes()),
                Value::Score(score) => push(2, &score.to_bits().to_le_bytes()),
                Value::Text(text) => push(3, text.as_bytes()),
                Value::Bytes(bytes) => push(4, bytes),
                Value::Flag(flag) => push(5, &[u8::from(*flag)]),
            }
        }
        self.rows += 1;
        // A hash that is the same in every version, so that sums of two runs can be compared.
        let hash = Uuid::new_v5(&Uuid::nil(), &bytes).as_u128();
        self.sum = self.sum.wrapping_add(hash);
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            rows: self.rows + other.rows,
            sum: self.sum.wrapping_add(other.sum),
        }
    }
}

/// Facts about a log as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Log {
    pub(crate) log_id: Vec<u8>,
    pub(crate) starts_after: i64,
    /// Largest id that any row has or had.
    pub(crate) newest_id: i64,
    pub(crate) rolled_up_to: i64,
}

/// A log that is read. All methods block.
pub(crate) trait Readable {
    fn log(&mut self) -> Result<Log, StoreError>;

    fn count(&mut self, table: &Table) -> Result<u64, StoreError>;

    /// Returns the key of the row that `rows` rows precede, from the key `from` on. `None`: there
    /// are fewer.
    fn range_end(&mut self, table: &Table, from: i64, rows: i64)
    -> Result<Option<i64>, StoreError>;

    /// Returns at most `limit` rows with a key within `keys`.
    fn read(&mut self, table: &Table, keys: Range<i64>, limit: i64)
    -> Result<Vec<Row>, StoreError>;

    /// Returns the largest key, or `None` if the table is empty.
    fn last_key(&mut self, table: &Table) -> Result<Option<i64>, StoreError>;

    /// Returns a text that is the same for another connection to this log, and for no other log.
    fn identity(&mut self) -> Result<String, StoreError>;
}

/// A log that is written. Each method is one transaction.
pub(crate) trait Writable: Readable {
    fn put_log(&mut self, log: &Log) -> Result<(), StoreError>;

    /// Replaces the rows with a key within `keys`.
    fn replace(&mut self, table: &Table, keys: Range<i64>, rows: &[Row]) -> Result<(), StoreError>;

    /// Replaces what the database cannot store, as its logger does.
    fn adapt(&self, rows: &mut [Row]);
}

/// Reads a log. All reads see its state of one moment.
pub(crate) type ReadLog<'a, E> = &'a mut dyn FnMut(&mut dyn Readable) -> Result<(), E>;

#[cfg(test)]
mod tests {
    use diesel::prelude::*;

    use super::*;

    #[test]
    fn every_column_of_every_table_is_copied() {
        #[derive(QueryableByName)]
        struct Found {
            #[diesel(sql_type = Text)]
            name: String,
        }
        let found: Vec<Found> = diesel::sql_query(
            "SELECT t.name || '.' || c.name AS name FROM sqlite_schema AS t, pragma_table_info(t.name) AS c \
             WHERE t.type = 'table' AND t.name LIKE 'memory_retrieval_%' \
             AND t.name NOT IN ('memory_retrieval_log', 'memory_retrieval_migrations')",
        )
        .load(&mut crate::store::migrated())
        .unwrap();
        let mut found: Vec<String> = found.into_iter().map(|found| found.name).collect();
        let mut copied: Vec<String> = TABLES
            .iter()
            .flat_map(|table| {
                table
                    .columns
                    .iter()
                    .map(|(name, _)| format!("{}.{name}", table.name))
            })
            .collect();
        copied.sort();
        copied.dedup();
        found.sort();
        assert_eq!(copied, found);
    }

    #[test]
    fn sum_depends_on_the_values_and_not_on_their_order() {
        let row = |text: &str, number| Row(vec![Value::Text(text.into()), number]);
        let [first, second] = [[row("a", Value::Number(1))], [row("b", Value::Missing)]];
        let both = [first.clone(), second.clone()].concat();
        let turned = [second.clone(), first.clone()].concat();
        assert_eq!(Sum::of(&both), Sum::of(&turned));
        assert_eq!(Sum::of(&both), Sum::of(&first).plus(Sum::of(&second)));
        for other in [
            row("a", Value::Number(2)),
            row("a", Value::Missing),
            row("", Value::Number(1)),
        ] {
            assert_ne!(Sum::of(&first), Sum::of(&[other]));
        }
    }
}
