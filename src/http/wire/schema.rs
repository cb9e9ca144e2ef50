//! What the description of the API says of records. Every value that docs/api.md lists is accepted beside these.

use utoipa::ToSchema;

use crate::attempts::{OutcomeKind, ScoreDirection};
use crate::record::RetrievalFailureType;

macro_rules! described {
    ($(#[$about:meta])* $record:ident as $name:ident { $(#[$kind_about:meta])* $kind:ident: $of:ty }) => {
        $(#[$about])*
        #[derive(ToSchema)]
        #[schema(as = $name)]
        #[expect(dead_code, reason = "only described")]
        pub(crate) struct $record {
            $(#[$kind_about])*
            $kind: $of,
            /// The strategy that was tried; its first 64 characters are kept. `strategy` is the same.
            #[schema(min_length = 1)]
            retrieval_strategy: String,
            /// The query; its first 512 characters are kept.
            query_text: String,
            /// Length of the query in bytes; that of `query_text` by default.
            #[schema(minimum = 0)]
            query_len: Option<u64>,
            /// Makes a repetition harmless: a failure is stored once for each id. Best a UUIDv7.
            event_id: Option<uuid::Uuid>,
            /// The conversation, as a string or a number; its first 128 characters are kept.
            #[schema(schema_with = conversation)]
            conversation_id: Option<String>,
            /// Turn within the conversation.
            turn_index: Option<i64>,
            /// Best score that was found. One that is NaN, infinite or beyond ±3.4e38 is stored as null.
            top_score: Option<f64>,
            /// Score below which a result does not count. Of an attempt, it becomes the strategy's present one.
            confidence_threshold: Option<f64>,
            /// Which scores are better: kept for the strategy.
            score_direction: Option<ScoreDirection>,
            /// Number of results.
            #[schema(minimum = 0)]
            result_count: Option<u64>,
            /// How long it took, in milliseconds.
            #[schema(minimum = 0)]
            latency_ms: Option<f64>,
            /// The graph edge types that were followed.
            edge_types: Option<Vec<String>>,
            /// What the backend said; its first 256 characters are kept.
            error_context: Option<String>,
            /// When it ended, in RFC 3339; now by default.
            #[schema(value_type = Option<String>, format = DateTime)]
            created_at: Option<String>,
        }
    };
}

described! {
    /// A retrieval that failed. All but the first three may be missing or null.
    NewFailure as NewFailure {
        /// How it failed.
        failure_type: RetrievalFailureType
    }
}

described! {
    /// A retrieval that was attempted, however it ended. One that failed is logged, too: do not send it to
    /// `/v1/failures` as well. All but the first two may be missing or null.
    NewAttempt as NewAttempt {
        /// How it ended.
        outcome: OutcomeKind
    }
}

/// One failure, or a list. The elements of a list are looked at one by one: a bad one is reported,
/// and does not spoil the others.
#[derive(ToSchema)]
#[schema(as = FailureOrList)]
#[serde(untagged)]
#[expect(dead_code, reason = "only described")]
pub(crate) enum FailureOrList {
    One(Box<NewFailure>),
    List(Vec<serde_json::Value>),
}

/// One attempt, or a list, whose elements are looked at one by one.
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
    let of = |of| ObjectBuilder::new().schema_type(of);
    OneOfBuilder::new()
        .item(of(Type::String))
        .item(of(Type::Number))
        .item(of(Type::Null))
        .description(Some("The conversation; its first 128 characters are kept."))
        .into()
}
