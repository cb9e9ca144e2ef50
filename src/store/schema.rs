// @generated automatically by Diesel CLI.

diesel::table! {
    memory_retrieval_failures (id) {
        id -> BigInt,
        event_id -> Binary,
        conversation_id -> Nullable<Text>,
        turn_index -> BigInt,
        failure_type -> Text,
        retrieval_strategy -> Text,
        query_text -> Text,
        query_len -> BigInt,
        top_score -> Nullable<Float>,
        confidence_threshold -> Nullable<Float>,
        result_count -> BigInt,
        latency_ms -> BigInt,
        edge_types -> Nullable<Text>,
        error_context -> Nullable<Text>,
        created_at -> BigInt,
    }
}
