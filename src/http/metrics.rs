//! Numbers for Prometheus, read from the logger's own counters at each scrape.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use actix_web::HttpResponse;
use actix_web::web::Data;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::Api;
use super::problem::{NotShown, Problem};
use crate::attempts::{OTHER_STRATEGIES, OutcomeKind};
use crate::handle::LoggerHandle;
use crate::metrics::HistogramCounts;

/// Numbers for Prometheus, in its text format.
#[utoipa::path(get, path = "/metrics", tag = "operations", responses(
    (status = 200, body = String, content_type = "application/openmetrics-text"),
    NotShown,
))]
pub(super) async fn metrics(api: Data<Api>) -> Result<HttpResponse, Problem> {
    let mut registry = Registry::with_prefix("failure_logger");
    let has_rate = api.strategies_with_rate().await;
    registry.register_collector(Box::new(Scrape { logger: api.logger.clone(), api: api.into_inner(), has_rate }));
    let mut body = String::new();
    text::encode(&mut body, &registry)
        .map_err(|_| Problem::new(actix_web::http::StatusCode::INTERNAL_SERVER_ERROR, "no metrics"))?;
    Ok(HttpResponse::Ok().content_type("application/openmetrics-text; version=1.0.0; charset=utf-8").body(body))
}

impl Api {
    /// Returns the strategies of which an attempt was ever reported: those that this process knows, and those of the
    /// database, which is read once.
    async fn strategies_with_rate(&self) -> HashSet<String> {
        let known = self.stored_with_rate.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let stored = match known {
            Some(stored) => stored,
            // Without the database, those of this process.
            None => match self.logger.reader().strategies_with_rate().await {
                Ok(read) => self.stored_with_rate.lock().unwrap_or_else(PoisonError::into_inner).insert(read).clone(),
                Err(_) => HashSet::new(),
            },
        };
        let mut all = stored;
        all.extend(self.logger.shared().attempts.strategies_with_attempts());
        all
    }
}

struct Scrape {
    logger: LoggerHandle,
    api: Arc<Api>,
    /// Strategies of which an attempt was ever reported.
    has_rate: HashSet<String>,
}

impl std::fmt::Debug for Scrape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scrape").finish_non_exhaustive()
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut out = Out(encoder);
        let stats = self.logger.stats();
        let shared = self.logger.shared();
        let by_http = self.api.received.load(Ordering::Relaxed).min(stats.received);
        out.counters(
            "records_received",
            "Records handed over, whatever became of them.",
            "source",
            &[("http", by_http), ("embedded", stats.received - by_http)],
        )?;
        out.counter("records_written", "Records committed to the database.", stats.persisted)?;
        out.counter(
            "records_duplicate",
            "Of these, stored before under the same event_id, and left as they were.",
            stats.duplicates,
        )?;
        let dropped = stats.dropped.by_reason().map(|(reason, records)| (reason.as_str(), records));
        out.counters("records_dropped", "Records lost, by reason.", "reason", &dropped)?;
        let rejections = &self.api.rejections;
        let rejected = rejections.by_reason().map(|(reason, records)| (reason.as_str(), records));
        out.counters(
            "records_rejected",
            "Records that were never received, because there was something wrong with them, by reason.",
            "reason",
            &rejected,
        )?;
        out.counter("ignored_fields", "Unknown fields of accepted records.", rejections.ignored_fields())?;
        out.gauge("buffer_records", "Records held in memory.", stats.buffered as f64)?;
        out.gauge("buffer_capacity", "Records held in memory at most.", shared.config.buffer_capacity as f64)?;
        let is_full = if stats.mailbox_full { 1.0 } else { 0.0 };
        out.gauge("mailbox_full", "1 while records sent to the actor are handed back.", is_full)?;
        out.histogram("flush_duration_seconds", "Time of a committed batch.", &shared.counters.flush_seconds.counts())?;
        out.histogram("flush_batch_records", "Records of a committed batch.", &shared.counters.flush_records.counts())?;
        out.counters(
            "flushes",
            "Batches, by result.",
            "result",
            &[("ok", stats.flushes), ("failed", stats.failed_flushes)],
        )?;
        let last = stats.last_flush.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
        out.gauge(
            "last_successful_flush_timestamp_seconds",
            "When a batch was committed last; 0: never.",
            last.map_or(0.0, |at| at.as_secs_f64()),
        )?;
        out.counter("retention_deleted", "Old rows deleted.", stats.purged)?;
        let by_size = "Of these, deleted because the database was larger than max_database_bytes.";
        out.counter("size_deleted", by_size, stats.purged_by_size)?;
        out.counter("records_redated", "Records and attempts dated in the future, stored as of now.", stats.redated)?;
        out.counter("actor_restarts", "Restarts of the actor.", stats.restarts)?;
        out.gauge("database_size_bytes", "Size of the database, without its journal.", shared.database_bytes() as f64)?;
        self.attempts(&mut out)?;
        let mut info = out.0.encode_descriptor("build_info", "The version that runs.", None, MetricType::Gauge)?;
        info.encode_family(&[("version", env!("CARGO_PKG_VERSION"))])?.encode_gauge(&1_i64)
    }
}

impl Scrape {
    fn attempts(&self, out: &mut Out<'_>) -> Result<(), std::fmt::Error> {
        let mut totals: Vec<(String, [u64; OutcomeKind::ALL.len()])> = self
            .logger
            .shared()
            .attempts
            .totals()
            .into_iter()
            .map(|(name, totals)| (name.to_string(), totals))
            .collect();
        // Every label exists from the start.
        if totals.iter().all(|(name, _)| name != OTHER_STRATEGIES) {
            totals.push((OTHER_STRATEGIES.into(), Default::default()));
        }
        let mut family = out.0.encode_descriptor(
            "attempts",
            "Attempts, by strategy and outcome; failures that no monitor counted included.",
            None,
            MetricType::Counter,
        )?;
        for (name, by_kind) in &totals {
            for (kind, total) in OutcomeKind::ALL.into_iter().zip(by_kind) {
                let labels = [("strategy", name.as_str()), ("outcome", kind.as_str())];
                family.encode_family(&labels)?.encode_counter::<NoLabels, _, u64>(total, None)?;
            }
        }
        let mut family = out.0.encode_descriptor(
            "strategy_has_rate",
            "1 if an attempt of the strategy was ever reported; 0 if only failures were, of which no rate follows.",
            None,
            MetricType::Gauge,
        )?;
        for (name, _) in &totals {
            let has_rate = i64::from(self.has_rate.contains(name));
            family.encode_family(&[("strategy", name.as_str())])?.encode_gauge(&has_rate)?;
        }
        let attempts = &self.logger.shared().attempts;
        out.gauge("strategies", "Strategies that are counted by themselves.", attempts.strategies() as f64)?;
        let max = self.logger.shared().config.max_strategies;
        out.gauge("max_strategies", "Strategies that may be counted by themselves.", max as f64)
    }
}

type NoLabels = [(String, String); 0];

/// One metric after the other.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn counter(&mut self, name: &str, help: &str, value: u64) -> Result<(), std::fmt::Error> {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabels, _, u64>(&value, None)
    }

    fn counters(&mut self, name: &str, help: &str, label: &str, values: &[(&str, u64)]) -> Result<(), std::fmt::Error> {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (of, value) in values {
            family.encode_family(&[(label, *of)])?.encode_counter::<NoLabels, _, u64>(value, None)?;
        }
        Ok(())
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) -> Result<(), std::fmt::Error> {
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn histogram(&mut self, name: &str, help: &str, counts: &HistogramCounts) -> Result<(), std::fmt::Error> {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        metric.encode_histogram::<NoLabels>(counts.sum, counts.total, &counts.buckets, None)
    }
}
