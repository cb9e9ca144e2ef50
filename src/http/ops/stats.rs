//! Counters of the logger as JSON, for people. `/metrics` has the same counters for Prometheus.

use actix_web::HttpResponse;
use actix_web::web::Data;
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::Api;
use crate::http::ingest::rejections::RejectCounts;
use crate::http::ingest::traces::TraceCounts;
use crate::http::ops::health;
use crate::http::problem::{Problem, ScopedProblems};
use crate::http::read::{json, streams};
use crate::model::stats::DropCounts;
use crate::model::time::Timestamp;

/// Counters of the logger since its start, and its health.
#[derive(Serialize, ToSchema)]
pub(crate) struct ServiceStats {
    /// Version of failure-logger.
    version: &'static str,
    /// Records that the logger received. `received = persisted + dropped + buffered`.
    received: u64,
    /// Records that are committed to the database.
    persisted: u64,
    /// Records that are held in memory.
    buffered: u64,
    /// Maximum number of records that are held in memory.
    buffer_capacity: u64,
    /// `true` while the actor returns records to their senders, because the buffer is full.
    mailbox_full: bool,
    /// Records that were dropped, by reason.
    dropped: DropCounts,
    /// Invalid records that were never received, by reason.
    rejected: RejectCounts,
    /// Unknown fields of accepted records. They were ignored.
    ignored_fields: u64,
    /// Spans and retrievals of traces.
    traces: TraceCounts,
    /// Records whose `event_id` was stored before, and attempts whose `event_id` was counted
    /// before.
    duplicates: u64,
    /// Records and attempts that were stored without their source or without their labels, because
    /// the log has 1,000 combinations of them already.
    sources_left_out: u64,
    /// Strategies that have counters of their own.
    strategies: u64,
    /// Maximum number of strategies that have counters of their own. All further strategies are
    /// counted as `[other strategies]`.
    max_strategies: u64,
    /// Batches that were committed.
    flushes: u64,
    /// Commits of a batch that failed. The batch stays in memory for a retry.
    failed_flushes: u64,
    /// Time of the last commit of a batch.
    #[schema(value_type = Option<String>, format = DateTime)]
    last_flush: Option<Timestamp>,
    /// Old rows that were deleted.
    purged: u64,
    /// Rows among `purged` that were deleted because the database exceeded `max_database_bytes`.
    purged_by_size: u64,
    /// Records and attempts with a date in the future. They were stored with the current time.
    redated: u64,
    /// Days after which failures are deleted. 0 means never.
    retention_days: u32,
    /// Days after which counts of attempts are deleted. 0 means never.
    attempts_retention_days: u32,
    /// Restarts of the logger after a fault.
    restarts: u64,
    /// Size of the database in bytes, without its journal.
    database_bytes: u64,
    /// Reason why the logger is unhealthy. Null if it is healthy.
    unhealthy: Option<String>,
}

/// Returns the counters of the logger since its start, and its health.
#[utoipa::path(get, path = "/v1/stats", operation_id = "get_stats", tag = "operations", responses(
    (status = 200, description = "The counters.", body = ServiceStats),
    ScopedProblems,
))]
pub(crate) async fn stats(api: Data<Api>) -> Result<HttpResponse, Problem> {
    let (stats, shared) = (api.logger.stats(), api.logger.shared());
    let json = json(&ServiceStats {
        version: env!("CARGO_PKG_VERSION"),
        received: stats.received,
        persisted: stats.persisted,
        buffered: stats.buffered,
        buffer_capacity: shared.config.buffer_capacity as u64,
        mailbox_full: stats.mailbox_full,
        dropped: stats.dropped,
        rejected: api.rejections.counts(),
        ignored_fields: api.rejections.ignored_fields(),
        traces: api.traces.counts(),
        duplicates: stats.duplicates + api.rejections.duplicate_attempts(),
        sources_left_out: stats.sources_left_out,
        strategies: shared.attempts.strategies() as u64,
        max_strategies: shared.config.max_strategies as u64,
        flushes: stats.flushes,
        failed_flushes: stats.failed_flushes,
        last_flush: stats.last_flush.map(Timestamp::from),
        purged: stats.purged,
        purged_by_size: stats.purged_by_size,
        redated: stats.redated,
        retention_days: shared.retention.days().failures,
        attempts_retention_days: shared.retention.days().attempts,
        restarts: stats.restarts,
        database_bytes: shared.database_bytes(),
        unhealthy: api
            .logger
            .health()
            .err()
            .as_ref()
            .map(health::public_reason),
    })?;
    streams::json(&api, json)
}
