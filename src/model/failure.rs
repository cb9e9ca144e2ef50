//! A failure as it is stored, and the filter of those that are wanted.

use std::time::SystemTime;

use serde::{Serialize, Serializer};
use uuid::Uuid;

use crate::model::outcome::RetrievalFailureType;
use crate::model::source::{Labels, SourceFilter};
use crate::model::time::{TimeRange, Timestamp};

/// A failure as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct Failure {
    /// Position in the table: grows with every row, and is never used again.
    #[serde(serialize_with = "as_text")]
    #[cfg_attr(feature = "http", schema(value_type = String))]
    pub id: i64,
    /// Identifies the failure everywhere (UUIDv7).
    pub event_id: Uuid,
    /// The conversation in which retrieval failed.
    pub conversation_id: Option<String>,
    /// Turn within the conversation. `None`: unknown.
    pub turn_index: Option<i64>,
    /// The type of the failure.
    pub failure_type: RetrievalFailureType,
    /// The strategy that was tried.
    pub retrieval_strategy: String,
    /// The query, cut to 512 characters.
    pub query_text: String,
    /// Length in bytes of the original query.
    pub query_len: i64,
    /// Best score that was found.
    pub top_score: Option<f32>,
    /// The threshold at that time.
    pub confidence_threshold: Option<f32>,
    /// Number of results that were found. `None`: not measured.
    pub result_count: Option<i64>,
    /// Duration of the retrieval, in milliseconds. `None`: not measured.
    pub latency_ms: Option<i64>,
    /// JSON list of the graph edge types that were followed.
    pub edge_types: Option<String>,
    /// Message of the backend.
    pub error_context: Option<String>,
    /// When retrieval failed.
    #[serde(serialize_with = "crate::model::time::serialize_moment")]
    #[cfg_attr(feature = "http", schema(value_type = String, format = DateTime))]
    pub created_at: SystemTime,
    /// The program that sent the failure.
    pub source: Option<String>,
    /// Labels of the sender, such as its version.
    #[cfg_attr(feature = "http", schema(value_type = std::collections::BTreeMap<String, String>))]
    pub labels: Labels,
}

/// Selects failures. Default: all.
#[derive(Debug, Clone, Default)]
pub struct FailureFilter {
    /// Only those within this range.
    pub range: Option<TimeRange>,
    /// Only those of one of these types. Empty: of any.
    pub failure_type: Vec<RetrievalFailureType>,
    /// Only those of one of these strategies. Empty: of any.
    pub retrieval_strategy: Vec<String>,
    /// Only those of one of these conversations. Empty: of any, or none.
    pub conversation_id: Vec<String>,
    /// Only those whose query or error contains this text: in either case, composed or decomposed,
    /// wide or narrow. Accents count, and no script is written as another.
    pub text: Option<String>,
    /// Only those with exactly one of these queries, as they are stored. Empty: with any.
    pub query_text: Vec<String>,
    /// Only those whose query is similar to one of these. Empty: to any.
    pub similar_to: Vec<String>,
    /// Only those that these sources sent.
    pub sources: SourceFilter,
}

impl FailureFilter {
    /// Returns `true` if a read may visit many rows for one that fits.
    pub(crate) fn is_selective(&self) -> bool {
        let Self {
            range: _,
            failure_type,
            retrieval_strategy,
            conversation_id,
            text,
            query_text,
            similar_to,
            sources,
        } = self;
        let lists = [retrieval_strategy, conversation_id, query_text, similar_to];
        !failure_type.is_empty()
            || lists.iter().any(|list| !list.is_empty())
            || text.is_some()
            || !sources.is_empty()
    }
}

/// A place in the order of moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) created_at: Timestamp,
    pub(crate) id: i64,
}

impl Place {
    /// Before everything.
    pub(crate) const BEGINNING: Self = Self {
        created_at: Timestamp::MIN,
        id: i64::MIN,
    };

    /// After everything.
    pub(crate) const END: Self = Self {
        created_at: Timestamp::MAX,
        id: i64::MAX,
    };

    /// Before everything that happened at `moment`.
    pub(crate) fn at(moment: Timestamp) -> Self {
        Self {
            created_at: moment,
            id: i64::MIN,
        }
    }

    pub(crate) fn next(self) -> Self {
        Self {
            id: self.id.saturating_add(1),
            ..self
        }
    }

    pub(crate) fn previous(self) -> Self {
        match self.id {
            i64::MIN => Self {
                created_at: self.created_at - 1,
                id: i64::MAX,
            },
            id => Self { id: id - 1, ..self },
        }
    }
}

/// In which order rows are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Direction {
    /// From the newest on.
    Backwards,
    /// From the oldest on.
    Forwards,
}

/// Numbers beyond 2^53 do not survive every JSON reader.
fn as_text<S: Serializer>(id: &i64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}
