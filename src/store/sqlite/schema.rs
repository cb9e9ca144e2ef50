// @generated automatically by Diesel CLI.

diesel::table! {
    memory_retrieval_failures (id) {
        id -> BigInt,
        event_id -> Binary,
        conversation_id -> Nullable<Text>,
        turn_index -> Nullable<BigInt>,
        failure_type -> Text,
        retrieval_strategy -> Text,
        query_text -> Text,
        query_len -> BigInt,
        top_score -> Nullable<Float>,
        confidence_threshold -> Nullable<Float>,
        result_count -> Nullable<BigInt>,
        latency_ms -> Nullable<BigInt>,
        edge_types -> Nullable<Text>,
        error_context -> Nullable<Text>,
        created_at -> BigInt,
        uncounted -> Nullable<BigInt>,
    }
}

diesel::table! {
    memory_retrieval_attempts (resolution, started_at, strategy, outcome, source_id) {
        resolution -> BigInt,
        started_at -> BigInt,
        strategy -> Text,
        outcome -> Text,
        source_id -> BigInt,
        attempts -> BigInt,
        unobserved -> BigInt,
        latency -> Nullable<Binary>,
        top_score -> Nullable<Binary>,
    }
}

diesel::table! {
    memory_retrieval_attempts_recent (delta_id) {
        delta_id -> Binary,
        started_at -> BigInt,
        strategy -> Text,
        outcome -> Text,
        attempts -> BigInt,
        unobserved -> BigInt,
        latency -> Nullable<Binary>,
        top_score -> Nullable<Binary>,
        owner -> BigInt,
        source_id -> BigInt,
    }
}

diesel::table! {
    memory_retrieval_drops (started_at, reason) {
        started_at -> BigInt,
        reason -> Text,
        records -> BigInt,
    }
}

diesel::table! {
    memory_retrieval_log (one) {
        one -> BigInt,
        log_id -> Binary,
        starts_after -> BigInt,
        largest_deleted_id -> BigInt,
        rolled_up_to -> BigInt,
    }
}

diesel::table! {
    memory_retrieval_query_statuses (query) {
        query -> Text,
        status -> Text,
        set_at -> BigInt,
        sequence -> Nullable<BigInt>,
    }
}

diesel::table! {
    memory_retrieval_retention (one) {
        one -> BigInt,
        failures_days -> Nullable<BigInt>,
        attempts_days -> Nullable<BigInt>,
        trusted_at -> Nullable<BigInt>,
        trusted_boot -> Nullable<Text>,
        trusted_since_boot -> Nullable<BigInt>,
        trusted_unexplained -> Nullable<BigInt>,
        ahead_at -> Nullable<BigInt>,
        ahead_boot -> Nullable<Text>,
        ahead_since_boot -> Nullable<BigInt>,
        behind_at -> Nullable<BigInt>,
        behind_boot -> Nullable<Text>,
        behind_since_boot -> Nullable<BigInt>,
    }
}

diesel::table! {
    memory_retrieval_strategies (strategy) {
        strategy -> Text,
        confidence_threshold -> Nullable<Float>,
        lower_is_better -> Bool,
        timeout_ms -> Nullable<BigInt>,
        updated_at -> BigInt,
    }
}

diesel::allow_tables_to_appear_in_same_query!(
    memory_retrieval_attempts,
    memory_retrieval_attempts_recent,
    memory_retrieval_drops,
    memory_retrieval_failures,
    memory_retrieval_log,
    memory_retrieval_query_statuses,
    memory_retrieval_retention,
    memory_retrieval_strategies,
);
