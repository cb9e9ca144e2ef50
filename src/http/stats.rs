//! The logger's own counters, for people; /metrics has them for Prometheus.

use actix_web::HttpResponse;
use actix_web::web::Data;
use serde::Serialize;
use utoipa::ToSchema;

use super::problem::{NotShown, Problem};
use super::questions::json;
use super::rejections::RejectCounts;
use super::{Api, health};
use crate::clock;
use crate::report::rfc3339;
use crate::stats::DropCounts;

/// What the logger did since it was started, and how it is.
#[derive(Serialize, ToSchema)]
pub(super) struct ServiceStats {
    /// Version of failure-logger.
    version: &'static str,
    /// Records that were handed over: `received = persisted + dropped + buffered`.
    received: u64,
    /// Records that are committed to the database.
    persisted: u64,
    /// Records that are held in memory.
    buffered: u64,
    /// Records that are held in memory at most.
    buffer_capacity: u64,
    /// `true` while records sent to the actor are handed back, because the buffer is full.
    mailbox_full: bool,
    /// Records that were lost.
    dropped: DropCounts,
    /// Records that were never received, because there was something wrong with them, by reason.
    rejected: RejectCounts,
    /// Unknown fields of accepted records, which were ignored.
    ignored_fields: u64,
    /// Records that were stored before under the same `event_id`, and attempts that were counted before.
    duplicates: u64,
    /// Strategies that are counted by themselves.
    strategies: u64,
    /// Strategies that may be counted by themselves. Beyond them, all are counted as `[other strategies]`.
    max_strategies: u64,
    /// Batches that were committed.
    flushes: u64,
    /// Attempts to commit a batch that failed; the batch was kept.
    failed_flushes: u64,
    /// When a batch was committed last.
    #[schema(format = DateTime)]
    last_flush: Option<String>,
    /// Old rows that were deleted.
    purged: u64,
    /// Of these, the ones that were deleted because the database was larger than `max_database_bytes`.
    purged_by_size: u64,
    /// Records and attempts that were dated in the future, and got the present moment instead.
    redated: u64,
    /// Days after which failures are deleted; 0: never.
    retention_days: u32,
    /// Days after which counts of attempts are deleted; 0: never.
    attempts_retention_days: u32,
    /// How often the logger was restarted after a fault.
    restarts: u64,
    /// Size of the database, without its journal, in bytes.
    database_bytes: u64,
    /// What is wrong; null if records are kept as they should be.
    unhealthy: Option<String>,
}

/// What the logger did since it was started, and how it is.
#[utoipa::path(get, path = "/v1/stats", tag = "operations", responses(
    (status = 200, body = ServiceStats),
    NotShown,
))]
pub(super) async fn stats(api: Data<Api>) -> Result<HttpResponse, Problem> {
    let (stats, shared) = (api.logger.stats(), api.logger.shared());
    json(&ServiceStats {
        version: env!("CARGO_PKG_VERSION"),
        received: stats.received,
        persisted: stats.persisted,
        buffered: stats.buffered,
        buffer_capacity: shared.config.buffer_capacity as u64,
        mailbox_full: stats.mailbox_full,
        dropped: stats.dropped,
        rejected: api.rejections.counts(),
        ignored_fields: api.rejections.ignored_fields(),
        duplicates: stats.duplicates + api.rejections.repeated_attempts(),
        strategies: shared.attempts.strategies() as u64,
        max_strategies: shared.config.max_strategies as u64,
        flushes: stats.flushes,
        failed_flushes: stats.failed_flushes,
        last_flush: stats.last_flush.map(|at| rfc3339(clock::milliseconds_of(at))),
        purged: stats.purged,
        purged_by_size: stats.purged_by_size,
        redated: stats.redated,
        retention_days: shared.retention.days().failures,
        attempts_retention_days: shared.retention.days().attempts,
        restarts: stats.restarts,
        database_bytes: shared.database_bytes(),
        unhealthy: api.logger.health().err().as_ref().map(health::told),
    })
}
