//! OpenAPI schemas of records. The service also accepts all other values that docs/api.md lists.

use utoipa::ToSchema;

use crate::model::outcome::{OutcomeKind, RetrievalFailureType};
use crate::rollup::ScoreDirection;

macro_rules! described {
    ($(#[$about:meta])* $record:ident as $name:ident { $(#[$kind_about:meta])* $kind:ident: $kind_type:ty }) => {
        $(#[$about])*
        #[derive(ToSchema)]
        #[schema(as = $name)]
        #[expect(dead_code, reason = "only described")]
        pub(crate) struct $record {
            $(#[$kind_about])*
            $kind: $kind_type,
            /// Strategy of the retrieval. The first 64 characters are stored. `strategy` is an
            /// alias of this field.
            #[schema(min_length = 1)]
            retrieval_strategy: String,
            /// Query of the retrieval. The first 512 characters are stored.
            query_text: String,
            /// Length of the query in bytes; the length of `query_text` by default.
            #[schema(minimum = 0)]
            query_len: Option<u64>,
            /// Id that makes a retry idempotent: a failure is stored once for each id. Prefer a
            /// UUIDv7.
            event_id: Option<uuid::Uuid>,
            /// Conversation, as a string or a number. The first 128 characters are stored.
            #[schema(schema_with = conversation)]
            conversation_id: Option<String>,
            /// Turn within the conversation.
            turn_index: Option<i64>,
            /// Best score among the results. NaN, infinity and values beyond ±3.4e38 are stored as
            /// null.
            top_score: Option<f64>,
            /// Score that a result must reach to count. The threshold of an attempt becomes the
            /// current threshold of its strategy.
            confidence_threshold: Option<f64>,
            /// Direction in which scores get better. It is stored for the strategy.
            score_direction: Option<ScoreDirection>,
            /// Number of results.
            #[schema(minimum = 0)]
            result_count: Option<u64>,
            /// Duration of the retrieval in milliseconds.
            #[schema(minimum = 0)]
            latency_ms: Option<f64>,
            /// Types of the graph edges that the retrieval followed.
            edge_types: Option<Vec<String>>,
            /// Error message of the backend. The first 256 characters are stored.
            error_context: Option<String>,
            /// Time at which the retrieval ended, in RFC 3339; now by default.
            #[schema(value_type = Option<String>, format = DateTime)]
            created_at: Option<String>,
            /// Program that sends the record. The first 64 characters are stored with a failure.
            source: Option<String>,
            /// At most four labels of the sender, such as its version. A key has 1 to 32 characters
            /// of `a` to `z`, `0` to `9`, `_`, `.` and `-`; the first 64 characters of a value are
            /// stored.
            labels: Option<std::collections::BTreeMap<String, String>>,
        }
    };
}

described! {
    /// Failed retrieval. Only the first three fields are required; all others may be null.
    NewFailure as NewFailure {
        /// Type of the failure.
        failure_type: RetrievalFailureType
    }
}

described! {
    /// Retrieval with any outcome. A failed one is also logged, so do not send it to `/v1/failures`
    /// as well. Only the first two fields are required; all others may be null.
    NewAttempt as NewAttempt {
        /// Outcome of the retrieval.
        outcome: OutcomeKind
    }
}

/// One failure or a list. Each element of a list is accepted or rejected on its own.
#[derive(ToSchema)]
#[schema(as = FailureOrList)]
#[serde(untagged)]
#[expect(dead_code, reason = "only described")]
pub(crate) enum FailureOrList {
    One(Box<NewFailure>),
    List(Vec<serde_json::Value>),
}

/// One attempt or a list. Each element of a list is accepted or rejected on its own.
#[derive(ToSchema)]
#[schema(as = AttemptOrList)]
#[serde(untagged)]
#[expect(dead_code, reason = "only described")]
pub(crate) enum AttemptOrList {
    One(Box<NewAttempt>),
    List(Vec<serde_json::Value>),
}

fn conversation() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
    use utoipa::openapi::{ObjectBuilder, OneOfBuilder, Type};
    let schema = |schema_type| ObjectBuilder::new().schema_type(schema_type);
    OneOfBuilder::new()
        .item(schema(Type::String))
        .item(schema(Type::Number))
        .item(schema(Type::Null))
        .description(Some(
            "Conversation, as a string or a number. The first 128 characters are stored.",
        ))
        .into()
}
