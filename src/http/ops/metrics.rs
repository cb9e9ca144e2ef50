//! Metrics for Prometheus. Each scrape reads the counters of the logger.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use actix_web::HttpResponse;
use actix_web::web::Data;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::handle::LoggerHandle;
use crate::http::Api;
use crate::http::ops::process;
use crate::http::problem::{Code, Problem, ScopedProblems};
use crate::model::histogram::HistogramCounts;
use crate::model::outcome::OutcomeKind;
use crate::rollup::OTHER_STRATEGIES;

/// Returns the metrics for Prometheus.
#[utoipa::path(get, path = "/metrics", operation_id = "get_metrics", tag = "operations", responses(
    (status = 200, description = "The metrics, in the text format of OpenMetrics.", body = String, content_type = "application/openmetrics-text"),
    ScopedProblems,
))]
pub(crate) async fn metrics(api: Data<Api>) -> Result<HttpResponse, Problem> {
    let mut registry = Registry::default();
    let has_rate = api.strategies_with_rate().await;
    let scrape = Scrape {
        logger: api.logger.clone(),
        api: api.into_inner(),
        has_rate,
    };
    registry
        .sub_registry_with_prefix("failure_logger")
        .register_collector(Box::new(scrape));
    registry.register_collector(Box::new(Process));
    let mut body = String::new();
    text::encode(&mut body, &registry)
        .map_err(|_| Problem::new(Code::Unreadable, "the metrics cannot be written"))?;
    Ok(HttpResponse::Ok()
        .content_type("application/openmetrics-text; version=1.0.0; charset=utf-8")
        .body(body))
}

impl Api {
    /// Returns the strategies with a reported attempt, in this process or in the database. The
    /// database is read once, because scrapes are frequent.
    async fn strategies_with_rate(&self) -> HashSet<String> {
        let known = self
            .stored_with_rate
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let stored = match known {
            Some(stored) => stored,
            // If the database cannot be read, only the strategies of this process are returned. The
            // next scrape retries.
            None => match self.logger.reader().strategies_with_rate().await {
                Ok(read) => self
                    .stored_with_rate
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(read)
                    .clone(),
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
    /// Strategies with a reported attempt. Others have only failures, so they have no failure rate.
    has_rate: HashSet<String>,
}

impl std::fmt::Debug for Scrape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scrape").finish_non_exhaustive()
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut out = MetricEncoder(encoder);
        let stats = self.logger.stats();
        let shared = self.logger.shared();
        out.counter(
            "records_received",
            "Records received, including those dropped later.",
            stats.received,
        )?;
        out.counter(
            "http_records_received",
            "Records among records_received that were received over HTTP.",
            self.api.received.load(Ordering::Relaxed),
        )?;
        out.counter(
            "records_written",
            "Records committed to the database.",
            stats.persisted,
        )?;
        out.counter(
            "records_duplicate",
            "Records among records_written whose event_id was stored before; their row is unchanged.",
            stats.duplicates,
        )?;
        out.counter(
            "source_left_out",
            "Records and attempts that were stored without their source or labels, because the log has 1,000 combinations.",
            stats.sources_left_out,
        )?;
        let dropped = stats
            .dropped
            .by_reason()
            .map(|(reason, records)| (reason.as_str(), records));
        out.counters(
            "records_dropped",
            "Records dropped, by reason.",
            "reason",
            &dropped,
        )?;
        let rejections = &self.api.rejections;
        let rejected = rejections
            .by_reason()
            .map(|(reason, records)| (reason.as_str(), records));
        out.counters(
            "records_rejected",
            "Invalid records that were never received, by reason.",
            "reason",
            &rejected,
        )?;
        out.counter(
            "ignored_fields",
            "Unknown fields of accepted records, which were ignored.",
            rejections.ignored_fields(),
        )?;
        let traces = self.api.traces.counts();
        out.counter(
            "trace_spans",
            "Spans of traces that were received, whatever they are.",
            traces.spans,
        )?;
        out.counters(
            "trace_retrievals",
            "Spans of retrievals, by what was done with them: counted, counted with unknown outcome, received before, ignored by a rule, or part of another retrieval.",
            "result",
            &[
                ("counted", traces.retrievals.saturating_sub(traces.unknown)),
                ("unknown", traces.unknown),
                ("duplicate", traces.duplicates),
                ("ignored", traces.ignored),
                ("part", traces.parts),
            ],
        )?;
        out.gauge(
            "trace_retrievals_waiting",
            "Retrievals of traces that wait for the span around them.",
            traces.waiting as f64,
        )?;
        out.gauge(
            "buffer_records",
            "Records held in memory.",
            stats.buffered as f64,
        )?;
        out.gauge(
            "buffer_capacity",
            "Maximum number of records held in memory.",
            shared.config.buffer_capacity as f64,
        )?;
        let is_full = if stats.mailbox_full { 1.0 } else { 0.0 };
        out.gauge(
            "mailbox_full",
            "1 while the actor returns records to their senders, because the buffer is full.",
            is_full,
        )?;
        out.histogram(
            "flush_duration_seconds",
            "Time to commit a batch.",
            &shared.counters.flush_seconds.counts(),
        )?;
        out.histogram(
            "flush_batch_records",
            "Records in a committed batch.",
            &shared.counters.flush_records.counts(),
        )?;
        out.counters(
            "flushes",
            "Batches, by result.",
            "result",
            &[("ok", stats.flushes), ("failed", stats.failed_flushes)],
        )?;
        let last = stats
            .last_flush
            .and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
        out.gauge(
            "last_successful_flush_timestamp_seconds",
            "Unix time of the last commit of a batch; 0 if there was none.",
            last.map_or(0.0, |at| at.as_secs_f64()),
        )?;
        out.counter("retention_deleted", "Old rows deleted.", stats.purged)?;
        let by_size = "Rows among retention_deleted that were deleted because the database exceeded max_database_bytes.";
        out.counter("size_deleted", by_size, stats.purged_by_size)?;
        out.counter(
            "records_redated",
            "Records and attempts with a date in the future, stored with the current time.",
            stats.redated,
        )?;
        out.counter("actor_restarts", "Restarts of the actor.", stats.restarts)?;
        out.gauge(
            "database_size_bytes",
            "Size of the database, without its journal.",
            shared.database_bytes() as f64,
        )?;
        self.attempts(&mut out)?;
        self.requests(&mut out)?;
        let mut info = out.0.encode_descriptor(
            "build_info",
            "Version of the service.",
            None,
            MetricType::Gauge,
        )?;
        info.encode_family(&[("version", env!("CARGO_PKG_VERSION"))])?
            .encode_gauge(&1_i64)
    }
}

impl Scrape {
    fn requests(&self, out: &mut MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let routes = &self.api.routes;
        let mut family = out.0.encode_descriptor(
            "http_requests",
            "Requests, by route, method and class of the status.",
            None,
            MetricType::Counter,
        )?;
        for route in routes {
            for (method, class, count) in route.counts() {
                let labels = [
                    ("route", route.route),
                    ("method", method),
                    ("status", class),
                ];
                family
                    .encode_family(&labels)?
                    .encode_counter::<NoLabels, _, u64>(&count, None)?;
            }
        }
        let help = "Time to the beginning of the response, by route.";
        let mut family = out.0.encode_descriptor(
            "http_request_duration_seconds",
            help,
            None,
            MetricType::Histogram,
        )?;
        for route in routes {
            let counts = route.seconds();
            if counts.total > 0 {
                let labels = [("route", route.route)];
                let mut metric = family.encode_family(&labels)?;
                metric.encode_histogram::<NoLabels>(
                    counts.sum,
                    counts.total,
                    &counts.buckets,
                    None,
                )?;
            }
        }
        let failures = self.api.auth_failures.by_reason();
        let help = "Requests rejected because of their token, by reason.";
        out.counters("http_authentication_failures", help, "reason", &failures)
    }

    fn attempts(&self, out: &mut MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut totals: Vec<(String, [u64; OutcomeKind::ALL.len()])> = self
            .logger
            .shared()
            .attempts
            .totals()
            .into_iter()
            .map(|(name, totals)| (name.to_string(), totals))
            .collect();
        // Every label exists from the start, so that `rate()` sees the first increment.
        if totals.iter().all(|(name, _)| name != OTHER_STRATEGIES) {
            totals.push((OTHER_STRATEGIES.into(), Default::default()));
        }
        let mut family = out.0.encode_descriptor(
            "attempts",
            "Attempts, by strategy and outcome, including failures that no monitor counted.",
            None,
            MetricType::Counter,
        )?;
        for (name, by_kind) in &totals {
            for (kind, total) in OutcomeKind::ALL.into_iter().zip(by_kind) {
                let labels = [("strategy", name.as_str()), ("outcome", kind.as_str())];
                family
                    .encode_family(&labels)?
                    .encode_counter::<NoLabels, _, u64>(total, None)?;
            }
        }
        let mut family = out.0.encode_descriptor(
            "strategy_has_rate",
            "1 if the strategy has reported attempts; 0 if nothing but failures is known of it, and thus no rate.",
            None,
            MetricType::Gauge,
        )?;
        for (name, by_kind) in &totals {
            let total = |kind: OutcomeKind| by_kind.get(kind as usize).copied().unwrap_or(0);
            // As in a summary: traces without documents show errors and hide successes.
            let is_biased = total(OutcomeKind::Success) == 0 && total(OutcomeKind::Unknown) > 0;
            let has_rate = i64::from(self.has_rate.contains(name) && !is_biased);
            family
                .encode_family(&[("strategy", name.as_str())])?
                .encode_gauge(&has_rate)?;
        }
        let attempts = &self.logger.shared().attempts;
        out.gauge(
            "strategies",
            "Strategies with counters of their own.",
            attempts.strategies() as f64,
        )?;
        let max = self.logger.shared().config.max_strategies;
        out.gauge(
            "max_strategies",
            "Maximum number of strategies with counters of their own.",
            max as f64,
        )
    }
}

/// Collector of the standard process metrics of Prometheus. It is empty on systems without `/proc`.
#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut out = MetricEncoder(encoder);
        let Some(process) = process::read() else {
            return Ok(());
        };
        let mut cpu = out.0.encode_descriptor(
            "process_cpu_seconds",
            "Processor time.",
            None,
            MetricType::Counter,
        )?;
        cpu.encode_counter::<NoLabels, _, u64>(&process.cpu_seconds, None)?;
        out.gauge(
            "process_start_time_seconds",
            "Start, as Unix time.",
            process.start_time_seconds,
        )?;
        out.gauge(
            "process_resident_memory_bytes",
            "Resident memory.",
            process.resident_bytes as f64,
        )?;
        out.gauge(
            "process_virtual_memory_bytes",
            "Virtual memory.",
            process.virtual_bytes as f64,
        )?;
        out.gauge(
            "process_open_fds",
            "Open file descriptors.",
            process.open_fds as f64,
        )?;
        out.gauge(
            "process_max_fds",
            "Maximum number of open file descriptors.",
            process.max_fds as f64,
        )
    }
}

type NoLabels = [(String, String); 0];

/// Encoder with one method for each kind of metric.
struct MetricEncoder<'a>(DescriptorEncoder<'a>);

impl MetricEncoder<'_> {
    fn counter(&mut self, name: &str, help: &str, value: u64) -> Result<(), std::fmt::Error> {
        let mut metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabels, _, u64>(&value, None)
    }

    fn counters(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: &[(&str, u64)],
    ) -> Result<(), std::fmt::Error> {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        for (label_value, value) in values {
            family
                .encode_family(&[(label, *label_value)])?
                .encode_counter::<NoLabels, _, u64>(value, None)?;
        }
        Ok(())
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) -> Result<(), std::fmt::Error> {
        self.0
            .encode_descriptor(name, help, None, MetricType::Gauge)?
            .encode_gauge(&value)
    }

    fn histogram(
        &mut self,
        name: &str,
        help: &str,
        counts: &HistogramCounts,
    ) -> Result<(), std::fmt::Error> {
        let mut metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Histogram)?;
        metric.encode_histogram::<NoLabels>(counts.sum, counts.total, &counts.buckets, None)
    }
}
