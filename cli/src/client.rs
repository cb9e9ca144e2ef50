//! Reads of a log, which is a database file or a running service. Commands read through [`Client`]
//! only, so that both give the same JSON.
//!
//! A read of the file needs no logger, starts no migration, and works beside a service that writes.
//! A service is asked over HTTP. Flags are parsed here for both, and become a filter of the library
//! or parameters of a URL. A filter that one of them lacked would silently read more than the
//! other.

#![expect(
    clippy::indexing_slicing,
    reason = "indexing a JSON value returns null for a missing key"
)]

use std::time::Duration;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use failure_logger::error::ConfigError;
use failure_logger::program::{
    self, DatabaseLocation, PeriodBounds, database_location, parse_labels, parse_moment, parse_span,
};
use failure_logger::report::{AttemptFilter, ExportFormat, QueryFilter};
use failure_logger::{
    FailureFilter, FailureReader, PageRequest, RetrievalFailureType, SourceFilter, TimeRange,
};
use futures_util::StreamExt as _;
use serde::Serialize;
use serde_json::{Value, json};

use super::service::{Service, TIMEOUT};
use super::settings::Settings;
use super::{CommandError, Target};

/// Interval between two requests for a ranking that the service is still computing. The service
/// ranks millions of failures in steps, and responds with those that it has ranked so far.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Reader of a log.
pub(super) enum Client {
    /// Database of `--db`: a file, or one behind a server.
    File(FailureReader),
    /// Service of `--url`.
    Service(Service),
}

impl Client {
    /// Selects the log by the flags. A missing file is an error, because a reader would see an
    /// empty log in it and a misspelt path would look like a day without failures.
    pub(super) fn new(settings: &Settings, target: &Target) -> Result<Self, CommandError> {
        if let Some(url) = &target.url {
            return Ok(Self::Service(Service::new(url, target)?));
        }
        let usage = |error: ConfigError| CommandError::Usage(error.to_string());
        match database_location(&settings.logger) {
            Ok(DatabaseLocation::File(path)) if path.exists() => {
                Ok(Self::File(FailureReader::open(path).timeout(TIMEOUT)))
            }
            Ok(DatabaseLocation::Server(_)) => {
                let reader = program::reader(&settings.logger).map_err(usage)?;
                Ok(Self::File(reader.timeout(TIMEOUT)))
            }
            Ok(DatabaseLocation::File(path)) => Err(CommandError::Unreachable(format!(
                "there is no database {}; set --db to the file or --url to a service",
                path.display()
            ))),
            Ok(DatabaseLocation::Memory) => Err(CommandError::Usage(
                "database_url = :memory:: expected a file; set --db or --url".into(),
            )),
            Err(error) => Err(usage(error)),
        }
    }

    /// Reads a page of the newest failures.
    pub(super) async fn failures(
        &self,
        selection: &Selection,
        period: &Period,
        limit: u16,
    ) -> Result<Value, CommandError> {
        match self {
            Self::File(reader) => {
                let page = PageRequest::newest(usize::from(limit));
                value(&reader.list(selection.filter(Some(period))?, page).await?)
            }
            Self::Service(service) => {
                let mut query = selection.query(Some(period))?;
                query.push(("limit", limit.to_string()));
                service.get("/v1/failures", &query).await
            }
        }
    }

    /// Reads rates and latencies by strategy, of the last day unless the period says otherwise.
    pub(super) async fn summary(
        &self,
        selection: &AttemptSelection,
    ) -> Result<Value, CommandError> {
        match self {
            Self::File(reader) => value(&reader.summary(selection.filter()?).await?),
            Self::Service(service) => service.get("/v1/summary", &selection.query()?).await,
        }
    }

    /// Reads counts over time. The step depends on the length of the period.
    pub(super) async fn timeseries(
        &self,
        selection: &AttemptSelection,
    ) -> Result<Value, CommandError> {
        match self {
            Self::File(reader) => value(&reader.timeseries(selection.filter()?, Vec::new()).await?),
            Self::Service(service) => service.get("/v1/timeseries", &selection.query()?).await,
        }
    }

    /// Reads the groups of failing queries. Waits until the service has ranked all failures of the
    /// period. A file is ranked within the time budget of one read, and the result may be partial.
    pub(super) async fn ranking(
        &self,
        period: &Period,
        filter: QueryFilter,
        limit: u16,
    ) -> Result<Value, CommandError> {
        match self {
            Self::File(reader) => value(
                &reader
                    .top_queries(period.or_last_day()?, filter, usize::from(limit))
                    .await?,
            ),
            Self::Service(service) => {
                let mut query = period.query()?;
                query.push(("limit", limit.to_string()));
                query.extend(
                    filter
                        .failure_type
                        .iter()
                        .map(|failure_type| ("failure_type", failure_type.to_string())),
                );
                query.extend(
                    filter
                        .retrieval_strategy
                        .iter()
                        .map(|strategy| ("retrieval_strategy", strategy.clone())),
                );
                query.extend(filter.status.map(|status| ("status", status.to_string())));
                loop {
                    let ranking = service.get("/v1/queries", &query).await?;
                    // The response has either the groups that are known so far, or only the status
                    // `working`.
                    if ranking["in_progress"] != json!(true)
                        && ranking["status"] != json!("working")
                    {
                        return Ok(ranking);
                    }
                    actix_rt::time::sleep(POLL_INTERVAL).await;
                }
            }
        }
    }

    /// Reads the scores of a strategy. Adds the failure rate at `threshold` and the threshold for a
    /// failure rate of `rate`. The service computes the two by itself, from the scores that its
    /// response leaves out.
    pub(super) async fn calibration(
        &self,
        selection: &AttemptSelection,
        strategy: &str,
        rate: Option<f64>,
        threshold: Option<f64>,
    ) -> Result<Value, CommandError> {
        match self {
            Self::File(reader) => {
                let calibration = reader.calibration(strategy, selection.filter()?).await?;
                let mut curve = value(&calibration)?;
                // The fields have the names of the service. A value that does not exist is null.
                curve["failure_rate_at_threshold"] = threshold
                    .and_then(|threshold| calibration.failure_rate_at(threshold))
                    .into();
                curve["threshold_for_failure_rate"] =
                    rate.and_then(|rate| calibration.threshold_for(rate)).into();
                Ok(curve)
            }
            Self::Service(service) => {
                let mut query = selection.query()?;
                query.push(("retrieval_strategy", strategy.to_owned()));
                query.extend(rate.map(|rate| ("failure_rate", rate.to_string())));
                query.extend(threshold.map(|threshold| ("threshold", threshold.to_string())));
                service.get("/v1/calibration", &query).await
            }
        }
    }

    /// Reads the counts of attempts by day, from a file only. The flags of `export` exclude
    /// `--url`. The period is unlimited by default, because the purpose is a copy of the whole log.
    pub(super) async fn attempt_counts(&self, period: &Period) -> Result<Value, CommandError> {
        match self {
            Self::File(reader) => value(
                &reader
                    .attempt_counts(period.or_all_time()?.unwrap_or(TimeRange::all()))
                    .await?,
            ),
            Self::Service(_) => Err(CommandError::Usage(
                "--attempts: cannot be combined with --url; read the database file with --db"
                    .into(),
            )),
        }
    }

    /// Reads all failures and passes them to `sink` chunk by chunk. A chunk of a service ends
    /// anywhere. Only the concatenation of all chunks is a document.
    pub(super) async fn export(
        &self,
        selection: &Selection,
        period: &Period,
        layout: Layout,
        mut sink: impl FnMut(&[u8]) -> Result<(), CommandError>,
    ) -> Result<(), CommandError> {
        match self {
            Self::File(reader) => {
                let filter = selection.filter(Some(period))?;
                let mut chunks = match layout {
                    Layout::JsonLines => reader.export(filter, ExportFormat::JsonLines),
                    Layout::Csv => reader.export(filter, ExportFormat::Csv),
                    Layout::CsvForExcel => reader
                        .export(filter, ExportFormat::Csv)
                        .with_byte_order_mark(),
                };
                while let Some(chunk) = chunks.next_chunk().await? {
                    sink(&chunk)?;
                }
            }
            Self::Service(service) => {
                let mut query = selection.query(Some(period))?;
                query.extend((layout != Layout::JsonLines).then(|| ("format", "csv".to_owned())));
                query.extend((layout == Layout::CsvForExcel).then(|| ("bom", "true".to_owned())));
                let mut response = service.open("/v1/export", &query, None).await?;
                while let Some(piece) = response.next().await {
                    sink(&piece.map_err(|error| service.unreachable(error))?)?;
                }
            }
        }
        Ok(())
    }
}

/// Format of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// One object per line, with all fields.
    JsonLines,
    /// A header and one record per failure, with guards against formulas.
    Csv,
    /// With a byte order mark. Excel takes a file without the mark for an encoding of the system,
    /// and garbles other letters.
    CsvForExcel,
}

/// Converts a result of a [`FailureReader`] to the JSON that a service would return.
pub(super) fn value(result: &impl Serialize) -> Result<Value, CommandError> {
    // `to_value` would widen an `f32` to an `f64` with more digits; text keeps the digits of HTTP.
    let json = serde_json::to_string(result).and_then(|text| serde_json::from_str(&text));
    json.map_err(|error| CommandError::Unreachable(error.to_string()))
}

/// Flags that select failures by type and strategy.
#[derive(Args)]
pub(super) struct Kinds {
    /// Only failures of this type; repeatable
    #[arg(long = "type", value_name = "TYPE", value_parser = failure_type())]
    pub(super) failure_type: Vec<RetrievalFailureType>,
    /// Only failures of this strategy; repeatable
    #[arg(long)]
    pub(super) strategy: Vec<String>,
}

/// Returns a parser of types that lists the names in errors and completions.
fn failure_type() -> impl TypedValueParser<Value = RetrievalFailureType> {
    let names = RetrievalFailureType::ALL.map(RetrievalFailureType::as_str);
    PossibleValuesParser::new(names)
        .try_map(|name| RetrievalFailureType::parse(&name).ok_or("not a failure type"))
}

/// Flags that select failures.
#[derive(Args)]
pub(super) struct Selection {
    #[command(flatten)]
    kind: Kinds,
    /// Only failures of this conversation; repeatable
    #[arg(long)]
    conversation: Vec<String>,
    /// Only failures whose query or error contains this text
    #[arg(long)]
    text: Option<String>,
    #[command(flatten)]
    sources: Sources,
}

impl Selection {
    /// Returns the selection as a filter of the library. `None` as a period reads the whole log.
    pub(super) fn filter(&self, period: Option<&Period>) -> Result<FailureFilter, CommandError> {
        Ok(FailureFilter {
            range: period.map(Period::or_all_time).transpose()?.flatten(),
            failure_type: self.kind.failure_type.clone(),
            retrieval_strategy: self.kind.strategy.clone(),
            conversation_id: self.conversation.clone(),
            text: self.text.clone(),
            sources: self.sources.filter()?,
            ..FailureFilter::default()
        })
    }

    /// Returns the selection as parameters of the service, under the same names. A name occurs once
    /// for each value.
    pub(super) fn query(
        &self,
        period: Option<&Period>,
    ) -> Result<Vec<(&'static str, String)>, CommandError> {
        let mut query = period.map(Period::query).transpose()?.unwrap_or_default();
        query.extend(
            self.kind
                .failure_type
                .iter()
                .map(|wanted| ("failure_type", wanted.to_string())),
        );
        query.extend(
            self.kind
                .strategy
                .iter()
                .map(|name| ("retrieval_strategy", name.clone())),
        );
        query.extend(
            self.conversation
                .iter()
                .map(|id| ("conversation_id", id.clone())),
        );
        query.extend(self.text.clone().map(|text| ("text", text)));
        query.extend(self.sources.query()?);
        Ok(query)
    }
}

/// Flags that select sources.
#[derive(Args)]
struct Sources {
    /// Only what this source sent; "" for what has no source; repeatable
    #[arg(long, value_name = "NAME")]
    source: Vec<String>,
    /// Only what has this label, such as index:7; repeatable, with another key
    #[arg(long, value_name = "KEY:VALUE")]
    label: Vec<String>,
}

impl Sources {
    fn filter(&self) -> Result<SourceFilter, CommandError> {
        let labels = parse_labels(self.label.iter().map(String::as_str));
        Ok(SourceFilter {
            source: self.source.clone(),
            labels: labels.map_err(|error| CommandError::Usage(format!("--label: {error}")))?,
        })
    }

    fn query(&self) -> Result<impl Iterator<Item = (&'static str, String)>, CommandError> {
        self.filter()?;
        let of = |name: &'static str, values: &[String]| {
            let values = values.iter().cloned();
            values.map(|value| (name, value)).collect::<Vec<_>>()
        };
        let (source, label) = (of("source", &self.source), of("label", &self.label));
        Ok(source.into_iter().chain(label))
    }
}

/// Flags that select attempts.
#[derive(Args)]
pub(super) struct AttemptSelection {
    #[command(flatten)]
    period: Period,
    #[command(flatten)]
    sources: Sources,
}

impl AttemptSelection {
    /// Returns the selection as a filter of the library: of the last 24 hours without a period.
    fn filter(&self) -> Result<AttemptFilter, CommandError> {
        Ok(AttemptFilter {
            range: self.period.or_last_day()?,
            sources: self.sources.filter()?,
        })
    }

    /// Returns the selection as parameters of the service.
    fn query(&self) -> Result<Vec<(&'static str, String)>, CommandError> {
        let mut query = self.period.query()?;
        query.extend(self.sources.query()?);
        Ok(query)
    }
}

/// Flags that select a period.
#[derive(Args)]
pub(super) struct Period {
    /// Length of the period before its end: a number and s, m, h, d or w, such as 24h
    #[arg(long, value_name = "SPAN")]
    since: Option<String>,
    /// Start of the period, such as 2026-11-24T10:30:00Z
    #[arg(long, conflicts_with = "since", value_name = "TIME")]
    from: Option<String>,
    /// End of the period [default: now]
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
}

impl Period {
    /// Parses the flags.
    ///
    /// `--since` counts from the end of the period. Without `--to`, that is the clock of this
    /// machine for a file, and the clock of the service for a service.
    ///
    /// # Errors
    ///
    /// A moment or a span that does not parse, with the name of the flag, or an end before the
    /// start.
    fn parsed(&self) -> Result<PeriodBounds, CommandError> {
        let invalid = |name: &str, value: &str, expected: &str| {
            CommandError::Usage(format!("--{name} {value}: expected {expected}"))
        };
        let moment = |name: &str, text: &Option<String>| {
            text.as_deref()
                .map(|text| parse_moment(text).map_err(|expected| invalid(name, text, expected)))
                .transpose()
        };
        let span =
            |text: &str| parse_span(text).map_err(|expected| invalid("since", text, expected));
        let period = PeriodBounds {
            since: self.since.as_deref().map(span).transpose()?,
            from: moment("from", &self.from)?,
            to: moment("to", &self.to)?,
        };
        period.or_all_time()?;
        Ok(period)
    }

    /// Returns the range of a command that reads the whole log without a period, or `None`.
    pub(super) fn or_all_time(&self) -> Result<Option<TimeRange>, CommandError> {
        Ok(self.parsed()?.or_all_time()?)
    }

    /// Returns the range of a command that reads the last 24 hours without a period.
    pub(super) fn or_last_day(&self) -> Result<TimeRange, CommandError> {
        Ok(self.parsed()?.or_last_day()?)
    }

    /// Returns the period as URL parameters of the service. Validates them first, because an error
    /// about a flag is clearer than one about a parameter.
    pub(super) fn query(&self) -> Result<Vec<(&'static str, String)>, CommandError> {
        self.parsed()?;
        let parameters = [
            ("since", &self.since),
            ("from", &self.from),
            ("to", &self.to),
        ];
        Ok(parameters
            .into_iter()
            .filter_map(|(name, value)| Some((name, value.clone()?)))
            .collect())
    }
}
